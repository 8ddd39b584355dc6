"""Reads a made toy kitchen through the same EPIC-style reader as EPIC-55."""

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np

from extract.csv_reading import Problems, integers, read_csv
from extract.datasets.base import Dataset, Table, strings
from extract.datasets.epic55 import participant_split
from extract.datasets.epic_csv import EpicPart, epic_dataset, read_class_names, read_video_info
from extract.datasets.toykitchen.make import CARD
from extract.datasets.toykitchen.script import GRID, SIZE

__all__ = ["read_card", "read_events", "read_object_labels", "read_toykitchen"]


def read_toykitchen(folder: Path) -> Dataset:
    """The dataset in a folder that `make_toykitchen` made; named after the folder."""
    annotations = folder / "annotations"
    dataset = epic_dataset(
        folder.name,
        folder,
        [EpicPart(annotations / "EPIC_train_action_labels.csv", participant_split)],
        verb_names=read_class_names(annotations / "EPIC_verb_classes.csv"),
        noun_names=read_class_names(annotations / "EPIC_noun_classes.csv"),
        video_info=read_video_info(annotations / "EPIC_video_info.csv"),
        saoa={"backbone": "i3d_rgb", "objects": "efficientnet_lite0"},
        facts={"gaze": "annotations/gaze.csv", **read_card(folder)},
    )
    number = {name: i for i, name in enumerate(dataset.videos["name"])}
    return dataclasses.replace(
        dataset,
        texts=read_captions(annotations / "captions.csv", dataset),
        events=read_events(annotations / "untrimmed_events.csv", number),
        boxes=read_object_labels(annotations / "EPIC_object_labels.csv", number),
        box_reference=SIZE,
        annotation_hash="",  # of all of it
    )


def read_card(folder: Path) -> dict:
    """What a folder was made with: hash, generator and dials."""
    return json.loads((folder / CARD).read_text(encoding="utf-8"))


def read_object_labels(path: Path, number: dict[str, int], grid_fps: float = GRID) -> Table:
    """EPIC's object labels as a boxes table, in (video, time) order; equal times keep the file's order.

    Columns video_id, frame (1-based on the grid), noun_class, bounding_boxes (`[(top, left, height, width), ...]`).
    number: {video name: index}; rows of other videos are a problem of the file.

    Raises:
        UserError: malformed rows (file, line, field, value).
    """
    source = read_csv(path, ["video_id", "frame", "noun_class", "bounding_boxes"])
    problems = Problems(path)
    frame, noun = integers(source, "frame", problems, minimum=1), integers(source, "noun_class", problems)
    rows = []
    for i, (video, text) in enumerate(zip(source["video_id"], source["bounding_boxes"], strict=True)):
        if video not in number:
            problems.value(source.lines[i], "video_id", video, "not a video of this dataset")
            continue
        try:
            boxes = [(float(t), float(e), float(h), float(w)) for t, e, h, w in ast.literal_eval(text)]
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            problems.value(source.lines[i], "bounding_boxes", text, "not a list of (top, left, height, width)")
            continue
        rows += [(number[video], frame[i], e, t, e + w, t + h, noun[i]) for t, e, h, w in boxes]
    problems.check()
    values = np.array(rows, np.float64).reshape(-1, 7)
    values = values[np.lexsort((values[:, 1], values[:, 0]))]
    return {
        "video": values[:, 0].astype(np.int32),
        "time_s": (values[:, 1] - 1) / grid_fps,
        **{name: values[:, 2 + i].astype(np.float32) for i, name in enumerate(("x1", "y1", "x2", "y2"))},
        "score": np.ones(len(values), np.float32),
        "class": values[:, 6].astype(np.int32),
    }


def read_captions(path: Path, dataset: Dataset) -> Table:
    """captions.csv (uid, caption) as a texts table."""
    source, problems = read_csv(path, ["uid", "caption"]), Problems(path)
    clip = {uid: i for i, uid in enumerate(dataset.clips["id"])}
    for line, uid in zip(source.lines, source["uid"], strict=True):
        if uid not in clip:
            problems.value(line, "uid", uid, "not a clip of this dataset")
    problems.check()
    clips = np.array([clip[uid] for uid in source["uid"]], np.int32)
    return {"clip": clips, "caption": strings(source["caption"])}


def read_events(path: Path, number: dict[str, int]) -> Table:
    """untrimmed_events.csv as an events table: label is the verb, `noun` a further column."""
    columns = ["video_id", "start_frame", "stop_frame", "verb_class", "noun_class"]
    source = read_csv(path, columns, rows_required=False)
    problems = Problems(path)
    start, stop = (integers(source, name, problems, minimum=1) for name in ("start_frame", "stop_frame"))
    verb, noun = (integers(source, name, problems).astype(np.int32) for name in ("verb_class", "noun_class"))
    for line, video in zip(source.lines, source["video_id"], strict=True):
        if video not in number:
            problems.value(line, "video_id", video, "not a video of this dataset")
    problems.check()
    return {
        "video": np.array([number[video] for video in source["video_id"]], np.int32),
        "start_s": (start - 1) / GRID,
        "stop_s": (stop - 1) / GRID,
        "label": verb,
        "noun": noun,
    }
