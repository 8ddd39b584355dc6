"""What datasets of whole, labelled videos share: one clip a video, found by its name, with any number of labels.

A clip has no stop: it reaches to its video's end, so it is planned once the video is probed. Videos are files under
`videos/`, at any depth. Frame folders are not read: each video's own rate, which numbers them, is listed nowhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract.csv_reading import Problems, read_text
from extract.datasets.base import Dataset, Table, dataset_folder, safe_video_name, strings, walk_media

__all__ = [
    "WholeVideo",
    "annotation_folder",
    "find_annotation",
    "find_videos",
    "numbered_lines",
    "read_class_index",
    "read_json",
    "whole_video_dataset",
    "whole_video_tables",
]


@dataclass(frozen=True)
class WholeVideo:
    """A video as its annotations know it. labels: distinct classes in the order they are told; none: unlabelled."""

    name: str
    split: str
    labels: tuple[int, ...] = ()


# ---- annotation files ------------------------------------------------------------------------------------


def annotation_folder(data_root: Path | None, name: str, media: str) -> tuple[Path, Path]:
    """(`<data_root>/<name>`, its annotations/).

    Raises:
        UserError: no data root, no such folders; media other than RGB, which these datasets do not publish.
    """
    if media != "rgb":
        raise UserError(
            f"dataset {name} has videos only, no published {media} frames: compute flow from them (--flow tvl1, dis or"
            " raft)"
        )
    root = dataset_folder(data_root, name, "annotations/ and videos/")
    if not (root / "annotations").is_dir():
        raise UserError(f"dataset {name}: looked for {root / 'annotations'}, which is not a folder")
    return root, root / "annotations"


def find_annotation(folder: Path, *names: str) -> Path | None:
    """The first of these files, or of them with .gz, that lies in `folder` or below; None if none does.

    Raises:
        UserError: it is there twice.
    """
    for name in names:
        found = sorted(path for end in ("", ".gz") for path in folder.rglob(name + end) if path.is_file())
        if len(found) > 1:
            raise UserError(f"annotations: {name} is there twice: {found[0]} and {found[1]}; move one of them away")
        if found:
            return found[0]
    return None


def numbered_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, line without surrounding blanks) of a text file's lines that are not blank."""
    lines = enumerate(read_text(path).splitlines(), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_json(path: Path, key: str | None = None) -> dict:
    """The object in a JSON file, or the one that it has under `key`.

    Raises:
        UserError: no JSON, no such key, no object, or one that is empty.
    """
    try:
        data = json.loads(read_text(path))
        data = data if key is None else data[key]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the JSON that was looked for ({error!r})") from None
    if not isinstance(data, dict) or not data:
        raise UserError(f"{path}: not the JSON that was looked for: it holds no videos")
    return data


def read_class_index(path: Path) -> list[str]:
    """Names of classes 0..n-1 from lines `id,name`; a name may hold commas.

    Raises:
        UserError: another line, ids that are not exactly 0..n-1, a name twice.
    """
    problems, names = Problems(path), {}
    for number, line in numbered_lines(path):
        key, comma, name = line.partition(",")
        if not (comma and key.strip().isdecimal() and name.strip()):
            problems.add(number, f"{line!r} is not id,name, such as 0,Archery")
        elif int(key) in names or name.strip() in names.values():
            problems.add(number, f"{line!r}: this id or this name is there twice")
        else:
            names[int(key)] = name.strip()
    problems.check()
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{path}: the ids must be each of 0..{len(names) - 1} once")
    return [names[i] for i in range(len(names))]


# ---- videos on disk --------------------------------------------------------------------------------------


def find_videos(root: Path, names: Sequence[str], prefixes: Iterable[str] = ("",)) -> tuple[np.ndarray, np.ndarray]:
    """(path relative to `root`, "" where there is none; kind "file" or ""), object arrays, of each video's file.

    A file below `videos/` is that of the name that its path without suffix ends with, whole parts of the path being
    compared; `prefixes` may stand before the name, such as v_.

    Raises:
        UserError: a name that two files match.
    """
    depths = sorted({name.count("/") + 1 for name in names})
    wanted = {
        "/".join([*folders, prefix + last]): name
        for prefix in reversed(list(prefixes))  # where one name with a prefix is another name, it is the other
        for name in names
        for *folders, last in [name.split("/")]
    }
    found: dict[str, str] = {}
    folder = root / "videos"
    for path, _ in walk_media(folder, tars=False) if folder.is_dir() else ():
        parts = os.path.splitext(path)[0].split("/")
        for depth in depths:
            name = wanted.get("/".join(parts[-depth:])) if depth <= len(parts) else None
            if name is None:
                continue
            if name in found:
                raise UserError(
                    f"video {name!r} is there twice under {root}: {found[name]} and videos/{path}; move one of them"
                    " away"
                )
            found[name] = f"videos/{path}"
    paths = [found.get(name, "") for name in names]
    return strings(paths), strings("file" if path else "" for path in paths)


# ---- tables ----------------------------------------------------------------------------------------------


def whole_video_tables(
    name: str,
    root: Path,
    videos: Sequence,
    *,
    prefixes: Iterable[str] = ("",),
    labels: Mapping[str, np.ndarray] | None = None,
    schemes: Mapping[str, Mapping[str, str]] | None = None,
) -> tuple[Table, Table]:
    """(videos, clips) of a dataset of whole videos, in their order; a clip bears its video's name as id.

    Args:
        videos: whatever has a `name` and a `split`.
        labels: label columns of the clips.
        prefixes, schemes: as of `whole_video_dataset`.

    Raises:
        UserError: a name that leaves the folder of videos, two files of one name.
    """
    names = [video.name for video in videos]
    if wrong := next((video for video in names if not safe_video_name(video)), None):
        raise UserError(f"dataset {name}: video {wrong!r} is not a path below the folder of videos")
    paths, kinds = find_videos(root, names, prefixes)
    clips: Table = {
        "id": strings(names),
        "video": np.arange(len(names), dtype=np.int32),
        "start_s": np.zeros(len(names)),
        "stop_s": np.full(len(names), np.nan),
        **(labels or {}),
        "split": strings(video.split for video in videos),
    }
    for scheme, part_of in (schemes or {}).items():
        clips[f"split_{scheme}"] = strings(part_of.get(video, "") for video in names)
    return {"name": strings(names), "path": paths, "kind": kinds}, clips


def whole_video_dataset(
    name: str,
    root: Path,
    videos: Sequence[WholeVideo],
    class_names: Sequence[str],
    *,
    multi_label: bool,
    prefixes: Iterable[str] = ("",),
    schemes: Mapping[str, Mapping[str, str]] | None = None,
    events: Table | None = None,
    facts: Mapping | None = None,
) -> Dataset:
    """The tables of a dataset of whole videos, sorted by name; a clip bears its video's name as id.

    Args:
        multi_label: videos may have several labels: column `label` is the first, the table `labels` has them all.
        prefixes: what may stand before a video's name in its file's.
        schemes: {scheme: {video: part}}, further splits; "" where a video is in no part.
        events: video (name), start_s, stop_s, label, of any order.

    Raises:
        UserError: a name that leaves the folder of videos, one that is there twice, two files of one name.
    """
    videos = sorted(videos, key=lambda video: video.name)
    number = {video.name: i for i, video in enumerate(videos)}
    first = np.array([next(iter(video.labels), -1) for video in videos], np.int32)
    table, clips = whole_video_tables(name, root, videos, prefixes=prefixes, labels={"label": first}, schemes=schemes)
    labels = None
    if multi_label:
        pairs = [(i, label) for i, video in enumerate(videos) for label in video.labels]
        columns = np.array(pairs, np.int32).reshape(-1, 2)
        labels = {"clip": columns[:, 0], "label": columns[:, 1]}
    if events is not None:
        order = sorted(range(len(events["video"])), key=lambda i: (number[events["video"][i]], events["start_s"][i]))
        events = {
            "video": np.array([number[events["video"][i]] for i in order], np.int32),
            "start_s": np.array([events["start_s"][i] for i in order], np.float64),
            "stop_s": np.array([events["stop_s"][i] for i in order], np.float64),
            "label": np.array([events["label"][i] for i in order], np.int32),
        }
    of = ("label", "labels") if multi_label else ("label",)
    return Dataset(
        name=name,
        root=root,
        videos=table,
        clips=clips,
        labels=labels,
        events=events,
        classes=dict.fromkeys(of, len(class_names)),
        class_names={column: list(class_names) for column in of},
        facts={"searched": [root / "videos"], **(facts or {})},
    )
