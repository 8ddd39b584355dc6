"""FCVID (Jiang et al., TPAMI 2018): 91,223 web videos, 239 classes, several labels a video.

The dataset is given on request. Layout: `<data>/fcvid/{annotations,videos}`, a video's file where the lists say,
`videos/<class>/<name>.mp4` (at any depth). Annotations, at any depth, plain or gzipped:

- the official `FCVID_VideoName_TrainTestSplit.txt`, lines `<class>/<name>.mp4 <train|test>`, with `FCVID_Label.txt`,
  whose i-th line says 0 or 1 of every class for the i-th video;
- or AR-Net's `fcvid_train_split.txt` and `fcvid_val_split.txt`, lines `path,frames,label[,label...]`.

`classInd.txt` (AR-Net's, lines `id,name`) names the classes; AR-Net's lists need it. Splits: `train`, and `val` for
the official test half, as AR-Net and PSN evaluate on it; `split_official` has the official names.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from errors import UserError
from extract.csv_reading import Problems
from extract.datasets.base import VIDEO_SUFFIXES, Dataset
from extract.datasets.registry import register_dataset
from extract.datasets.whole_videos import (
    WholeVideo,
    annotation_folder,
    find_annotation,
    numbered_lines,
    read_class_index,
    whole_video_dataset,
)

__all__ = ["fcvid"]

OFFICIAL = ("FCVID_VideoName_TrainTestSplit.txt", "FCVID_Label.txt")
ARNET = {"train": "fcvid_train_split.txt", "val": "fcvid_val_split.txt"}
PARTS = {"train": "train", "test": "val"}


@register_dataset("fcvid")
def fcvid(data_root: Path | None, media: str = "rgb") -> Dataset:
    """Load FCVID's tables; videos that are not on disk have an empty path.

    Raises:
        UserError: no data root, no annotations or half of a pair, malformed ones, a video that is listed twice.
    """
    root, folder = annotation_folder(data_root, "fcvid", media)
    official = [find_annotation(folder, name) for name in OFFICIAL]
    lists = {part: find_annotation(folder, name) for part, name in ARNET.items()}
    index = find_annotation(folder, "classInd.txt")
    names = read_class_index(index) if index is not None else []
    if None not in official:
        videos, classes = _read_official(*official)
        names = names or [f"class {i}" for i in range(classes)]
        if len(names) != classes:
            raise UserError(f"{index} names {len(names)} classes, {official[1]} has {classes}")
    elif None not in lists.values() and names:
        videos = [video for part, path in lists.items() for video in _read_list(path, part, len(names))]
    else:
        raise UserError(
            f"dataset fcvid: looked for {' and '.join(OFFICIAL)}, or for {', '.join(ARNET.values())} and classInd.txt,"
            f" in {folder}, plain or .gz; neither is complete there"
        )
    original = {ours: theirs for theirs, ours in PARTS.items()}
    return whole_video_dataset(
        "fcvid",
        root,
        videos,
        names,
        multi_label=True,
        schemes={"official": {video.name: original[video.split] for video in videos}},
    )


def _read_official(listed: Path, labels: Path) -> tuple[list[WholeVideo], int]:
    """(videos, number of classes) of the official pair of files."""
    lines, rows = numbered_lines(listed), numbered_lines(labels)
    if len(lines) != len(rows):
        raise UserError(f"{listed} lists {len(lines)} videos, {labels} has labels of {len(rows)}: they go line by line")
    videos, problems, of_labels = [], Problems(listed), Problems(labels)
    classes = len(rows[0][1].split()) if rows else 0
    for (number, line), (row, flags) in zip(lines, rows, strict=True):
        path, _, part = line.replace("\t", " ").rpartition(" ")
        flags = flags.split()
        if part not in PARTS or not path.strip():
            problems.add(number, f"{line!r} is not <class>/<name>.mp4 <train|test>")
        elif len(flags) != classes or set(flags) - {"0", "1"}:
            of_labels.add(row, f"{len(flags)} fields; {classes} times 0 or 1 are looked for")
        else:
            told = tuple(np.flatnonzero(np.array(flags) == "1").tolist())
            videos.append(WholeVideo(_name(path.strip()), PARTS[part], told))
    problems.check()
    of_labels.check()
    return videos, classes


def _read_list(path: Path, part: str, classes: int) -> list[WholeVideo]:
    """A list of AR-Net."""
    videos, problems = [], Problems(path)
    for number, line in numbered_lines(path):
        name, frames, *labels = (text.strip() for text in line.split(","))
        if not labels or not all(text.isdecimal() for text in (frames, *labels)):
            problems.add(number, f"{line!r} is not path,frames,label[,label...]")
        elif max(map(int, labels)) >= classes:
            problems.add(number, f"class {max(map(int, labels))}, but classInd.txt ends at {classes - 1}")
        else:
            videos.append(WholeVideo(_name(name), part, tuple(dict.fromkeys(map(int, labels)))))
    problems.check()
    return videos


def _name(path: str) -> str:
    """A listed path without the suffix of a video, if it has one."""
    stem, suffix = os.path.splitext(path)
    return stem if suffix.lower() in VIDEO_SUFFIXES else path
