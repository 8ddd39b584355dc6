"""One's own CSV as a dataset: `video,start,stop[,labels...]`, in seconds, with the videos in one folder.

Columns: `video` (file name, with or without suffix and sub-folder), `start`, `stop` (empty: to the end of the
video). Optional: `id` (unique; else made of video and times), `split` and `split_<scheme>`, `caption`. Every
other column is a label: class ids (integers from 0) or words, which become ids in sorted order; empty: no
label. The same interval may be there several times with different captions: it is one clip with several
captions. With `caption`, `start` and `stop` may both be left out: captions are of whole videos then.
"""

import csv
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from errors import UserError
from extract.csv_reading import Csv, Problems, numbers, read_csv, read_text
from extract.datasets.base import VIDEO_SUFFIXES, Dataset, Table, safe_video_name, strings, walk_media
from extract.datasets.epic_csv import observed_pairs

__all__ = ["load_csv_dataset"]

_RESERVED = {"clip", "k", "draw", "start_s", "stop_s", "status"}
_TEXT_COLUMNS = ("id", "split", "caption")
_MAX_CLASS = 1_000_000


def load_csv_dataset(path: Path, videos: str | os.PathLike | None, media: str = "rgb") -> Dataset:
    """Load a CSV; its stem is the dataset's name.

    Args:
        path: the CSV, plain or gzipped.
        videos: folder that holds the videos, at any depth.
        media: only "rgb": one's own videos are files.

    Raises:
        UserError: no folder of videos; anything malformed, with file, line, field and value, up to ten at a
            time; a video's name that two files match.
    """
    if media != "rgb":
        raise UserError(f"{path}: a CSV dataset reads video files; media {media!r} needs a dataset with flow frames")
    source = _read(path)
    if videos is None:
        raise UserError(f"{path}: give --videos DIR, the folder that holds its videos")
    folder = Path(videos).expanduser()
    if not folder.is_dir():
        raise UserError(f"{path}: looked for its videos in {folder}, which is not a folder; give --videos DIR")

    problems = Problems(source.path)
    names = _video_names(source, problems)
    start, stop = numbers(source, "start", problems), numbers(source, "stop", problems, empty_as_nan=True)
    for i in np.flatnonzero(stop <= start):
        message = f"not after start {source['start'][i]}; leave stop empty for the whole rest of the video"
        problems.value(source.lines[i], "stop", source["stop"][i], message)
    labels, class_names, classes = _labels(source, problems)
    if "id" not in source.columns:
        problems.check()  # ids are made of the times, which must be sound first
    ids, keep, clip_of = _clips(source, names, start, stop, labels, problems)
    problems.check()
    path_of = _find(folder, source, names, problems)
    problems.check()
    video_names = sorted(path_of)
    number = {name: i for i, name in enumerate(video_names)}
    paths = [path_of[name] for name in video_names]

    clips: Table = {
        "id": strings(ids),
        "video": np.array([number[names[i]] for i in keep], dtype=np.int32),
        "start_s": start[keep],
        "stop_s": stop[keep],
        **{name: column[keep] for name, column in labels.items()},
    }
    facts: dict = {"searched": [folder]}
    saoa = {}
    if "verb" in labels and "noun" in labels:
        saoa = {"backbone": "i3d_rgb", "objects": "faster_rcnn_r50_fpn"}
        if "action" not in labels:
            clips["action"], facts["actions"] = observed_pairs(clips["verb"], clips["noun"])
    for name in source.columns:
        if name == "split" or name.startswith("split_"):
            clips[name] = strings(source[name][i] for i in keep)
    if "split" not in clips:
        clips["split"] = strings(["train"] * len(keep))
    captions = source["caption"] if "caption" in source.columns else []
    told = [i for i, caption in enumerate(captions) if caption]
    return Dataset(
        name=path.name.removesuffix(".gz").rpartition(".")[0],
        root=folder,
        videos={
            "name": strings(video_names),
            "path": strings(paths),
            "kind": strings("file" if found else "" for found in paths),
        },
        clips=clips,
        texts={"clip": clip_of[told], "caption": strings(captions[i] for i in told)} if captions else None,
        classes=classes,
        class_names=class_names,
        saoa=saoa,
        facts=facts,
    )


def _read(path: Path) -> Csv:
    """The file, with start 0 and no stop where its captions are of whole videos."""
    header = next(csv.reader(line for line in read_text(path).splitlines() if line.strip()), [])
    columns = {name.strip() for name in header}
    if not {"video", "caption"} <= columns or {"start", "stop"} & columns:
        return read_csv(path, ["video", "start", "stop"])
    source = read_csv(path, ["video", "caption"])
    whole = {"start": ["0"] * len(source), "stop": [""] * len(source)}
    return dataclasses.replace(source, columns={**source.columns, **whole})


def _video_names(source: Csv, problems: Problems) -> list[str]:
    """Column video without its suffix."""
    names = []
    for line, text in zip(source.lines, source["video"], strict=True):
        stem, suffix = os.path.splitext(text)
        name = stem if suffix.lower() in VIDEO_SUFFIXES else text
        names.append(name)
        if not text:
            problems.value(line, "video", text, "every row names a video")
        elif not safe_video_name(text) or not safe_video_name(name):
            problems.value(line, "video", text, "must be a path below the folder of videos, without '..' and '\\'")
    return names


def _labels(source: Csv, problems: Problems) -> tuple[Table, dict[str, list[str]], dict[str, int]]:
    """Label columns as int32 ids, names of those that were words, number of classes."""
    labels, class_names, classes = {}, {}, {}
    for name in source.columns:
        if name in ("video", "start", "stop", *_TEXT_COLUMNS) or name.startswith("split_"):
            continue
        if name in _RESERVED or "/" in name or not name.isprintable():
            problems.add(1, f"column {name!r}: this name cannot be a label's; rename the column")
            continue
        words = [word for word in source[name] if word]
        if all(re.fullmatch(r"[+-]?[0-9]+", word) for word in words):
            labels[name] = _ids(source, name, problems)
            classes[name] = int(labels[name].max(initial=-1)) + 1
        else:
            class_names[name] = sorted(set(words))
            index = {word: i for i, word in enumerate(class_names[name])} | {"": -1}
            labels[name] = np.array([index[word] for word in source[name]], dtype=np.int32)
            classes[name] = len(class_names[name])
    return labels, class_names, classes


def _ids(source: Csv, name: str, problems: Problems) -> np.ndarray:
    """A column of class ids; empty and -1 mean no label."""
    column = np.full(len(source), -1, dtype=np.int32)
    for i, text in enumerate(source[name]):
        value = int(text or -1)
        if -1 <= value < _MAX_CLASS:
            column[i] = value
        else:
            message = f"class ids are 0..{_MAX_CLASS - 1}, or empty for no label"
            problems.value(source.lines[i], name, text, message)
    return column


def _clips(source: Csv, names: Sequence[str], start, stop, labels: Table, problems: Problems):
    """Join rows into clips.

    Returns:
        ids of the clips; the row each was first seen on (n_clips,); the clip of every row, int32 (n_rows,).
    """
    given = source["id"] if "id" in source.columns else None
    ends = [f"{second:.3f}" if second == second else "end" for second in stop.tolist()]
    ids = given or [f"{v}_{a:.3f}_{b}" for v, a, b in zip(names, start.tolist(), ends, strict=True)]
    captioned = "caption" in source.columns
    splits = [source[name] for name in source.columns if name == "split" or name.startswith("split_")]
    number: dict[str, int] = {}
    keep, clip_of = [], np.zeros(len(ids), dtype=np.int32)

    def content(i: int) -> tuple:
        interval = (names[i], start[i], "" if np.isnan(stop[i]) else stop[i])
        return (*interval, *(int(column[i]) for column in labels.values()), *(column[i] for column in splits))

    for i, clip in enumerate(ids):
        line = source.lines[i]
        if not clip:
            problems.value(line, "id", clip, "every row has an id, or there is no column id")
        elif clip not in number:
            number[clip] = len(keep)
            keep.append(i)
        elif not captioned or content(keep[number[clip]]) != content(i):
            first = source.lines[keep[number[clip]]]
            if given:
                message = f"already the id of line {first}; ids are unique (only another caption may repeat a row)"
                problems.value(line, "id", clip, message)
            else:
                problems.add(line, f"the same video, start and stop as line {first}; remove one, or add a column id")
        clip_of[i] = number.get(clip, -1)
    return list(number), np.array(keep, dtype=np.int64), clip_of


def _find(folder: Path, source: Csv, names: Sequence[str], problems: Problems) -> dict[str, str]:
    """{video's name: path relative to `folder`, "" where there is none}, by one walk of the folder."""
    by_key: dict[str, list[str]] = {}
    for path, _ in walk_media(folder, tars=False):
        base = path.rpartition("/")[2]
        for key in {path, os.path.splitext(path)[0], base, os.path.splitext(base)[0]}:
            by_key.setdefault(key, []).append(path)

    path_of: dict[str, str] = {}
    first: dict[str, int] = {}  # row that first wrote a text
    for i, (name, text) in enumerate(zip(names, source["video"], strict=True)):
        if text in first:
            continue
        first[text] = i
        line, matches = source.lines[i], by_key.get(text, [])
        path = text if text in matches else matches[0] if matches else ""
        if len(matches) > 1 and path != text:
            message = f"two files match below {folder}: {matches[0]} and {matches[1]}; write the one you mean"
            problems.value(line, "video", text, message)
        elif path_of.setdefault(name, path) != path:
            message = f"another file than {path_of[name] or 'before'}, differing in suffix only; rename one of them"
            problems.value(line, "video", text, message)
    owner: dict[str, str] = {}
    for name, path in path_of.items():
        if path and owner.setdefault(path, name) != name:
            message = f"is the file {path}, which other rows call {owner[path]!r}; use one name"
            problems.value(source.lines[names.index(name)], "video", name, message)
    return path_of
