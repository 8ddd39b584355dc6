"""ActivityNet v1.3 (Caba Heilbron et al., CVPR 2015): untrimmed videos, 200 classes, several labels a video.

Layout: `<data>/activitynet/{annotations,videos}`; a video's file is its YouTube id, or `v_` and its id. Of the
annotations, whatever is there, at any depth, plain or gzipped, is read and united:

- `activity_net.v1-3.min.json`, the official file (or `activity_net.v1-3.json`): ids without prefix;
- `anet_anno_action.json` with `video_info_new.csv` (BMN): the same without the videos that its authors could not get,
  ids with the prefix `v_`; and its `action_name.csv`;
- AR-Net's `actnet_train_split.txt`, `actnet_val_split.txt` and `classInd.txt`: lines `id,frames,label[,label...]`.

Of a video in several of them the first one's labels count; its split must be the same in all. Classes are numbered in
the alphabetical order of their names, which is AR-Net's; the other files have orders of their own, so that names are
compared, never numbers. Splits: train, val, test (without labels); `split_arnet` has the videos of AR-Net's lists,
those that PSN is compared on. `events` are the annotated segments in seconds; one that has no length is no event (its
label counts for the video all the same).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from errors import UserError
from extract.csv_reading import Problems, read_csv
from extract.datasets.base import Dataset
from extract.datasets.registry import register_dataset
from extract.datasets.whole_videos import (
    WholeVideo,
    annotation_folder,
    find_annotation,
    numbered_lines,
    read_class_index,
    read_json,
    whole_video_dataset,
)

__all__ = ["activitynet"]

OFFICIAL = ("activity_net.v1-3.min.json", "activity_net.v1-3.json")
BMN = ("anet_anno_action.json", "video_info_new.csv")
ARNET = {"train": "actnet_train_split.txt", "val": "actnet_val_split.txt"}
PARTS = {"training": "train", "validation": "val", "testing": "test"}
ID_LENGTH = 11  # of a YouTube id


@dataclass
class _Annotated:
    """A video's split, its labels by name in their order, and its segments (start_s, stop_s, label)."""

    split: str
    labels: dict[str, None] = field(default_factory=dict)
    segments: list[tuple[float, float, str]] = field(default_factory=list)


@register_dataset("activitynet")
def activitynet(data_root: Path | None, media: str = "rgb") -> Dataset:
    """Load ActivityNet's tables; videos that are not on disk have an empty path.

    Raises:
        UserError: no data root, no annotations, malformed ones, a video in two splits, a label without a class.
    """
    root, folder = annotation_folder(data_root, "activitynet", media)
    official, bmn = find_annotation(folder, *OFFICIAL), [find_annotation(folder, name) for name in BMN]
    lists = {part: path for part, name in ARNET.items() if (path := find_annotation(folder, name)) is not None}
    index, names = find_annotation(folder, "classInd.txt"), find_annotation(folder, "action_name.csv")
    if lists and index is None:
        raise UserError(f"{next(iter(lists.values()))} numbers its classes: looked for its classInd.txt in {folder}")
    sources = [(official, _read_official(official))] if official else []
    if None not in bmn:
        sources.append((bmn[0], _read_bmn(*bmn)))
    found = _united(sources)
    numbered = read_class_index(index) if index is not None else []
    parts, listed = {}, {}
    for part, path in lists.items():
        listed[part] = _read_list(path, part, numbered, found)
        parts |= dict.fromkeys(listed[part], part)
    found = _united([(None, found), *((lists[part], videos) for part, videos in listed.items())])
    if not found:
        raise UserError(
            f"dataset activitynet: looked for {OFFICIAL[0]}, or {' and '.join(BMN)}, or {', '.join(ARNET.values())} and"
            f" classInd.txt in {folder}, plain or .gz; none is there"
        )
    told = [*numbered, *(read_csv(names, ["action"])["action"] if names is not None else [])]
    classes = sorted(set(told) or {label for video in found.values() for label in video.labels})
    number = {name: i for i, name in enumerate(classes)}
    _check_labels(found, number, folder)
    segments = [(name, *segment) for name, video in found.items() for segment in video.segments]
    events = [segment for segment in segments if segment[2] > segment[1] >= 0]
    return whole_video_dataset(
        "activitynet",
        root,
        [
            WholeVideo(name, video.split, tuple(number[label] for label in video.labels))
            for name, video in found.items()
        ],
        classes,
        multi_label=True,
        prefixes=("", "v_"),
        schemes={"arnet": parts} if lists else None,
        events={
            "video": [event[0] for event in events],
            "start_s": [event[1] for event in events],
            "stop_s": [event[2] for event in events],
            "label": [number[event[3]] for event in events],
        }
        if sources
        else None,
        facts={"segments_without_length": len(segments) - len(events)},
    )


def _united(sources: Iterable[tuple[Path | None, dict[str, _Annotated]]]) -> dict[str, _Annotated]:
    """The videos of all sources, each as the first one tells it. Raises UserError for one in two splits."""
    found: dict[str, _Annotated] = {}
    for path, videos in sources:
        for name, video in videos.items():
            if found.setdefault(name, video).split != video.split:
                raise UserError(f"{path}: video {name} is in {video.split}, another file has it in {found[name].split}")
    return found


def _read_official(path: Path) -> dict[str, _Annotated]:
    database = read_json(path, "database")
    found, problems = {}, Problems(path)
    for name, entry in database.items():
        if not isinstance(entry, dict) or entry.get("subset") not in PARTS:
            problems.add(0, f"video {name}: no subset among {', '.join(PARTS)}")
        else:
            found[name] = _annotated(name, PARTS[entry["subset"]], entry, problems)
    problems.check()
    return found


def _read_bmn(path: Path, info: Path) -> dict[str, _Annotated]:
    subset = read_csv(info, ["video", "subset"])
    part_of = dict(zip(subset["video"], subset["subset"], strict=True))
    found, problems = {}, Problems(path)
    for prefixed, entry in read_json(path).items():
        name = prefixed.removeprefix("v_")
        if part_of.get(prefixed) not in PARTS:
            problems.add(0, f"video {prefixed}: {info.name} has no subset of it among {', '.join(PARTS)}")
        else:
            found[name] = _annotated(name, PARTS[part_of[prefixed]], entry, problems)
    problems.check()
    return found


def _annotated(name: str, split: str, entry: dict, problems: Problems) -> _Annotated:
    """One video of either JSON file."""
    video = _Annotated(split)
    try:
        for one in entry["annotations"]:
            start, stop = (float(second) for second in one["segment"])
            label = one["label"].strip()
            video.labels[label] = None
            video.segments.append((start, stop, label))
    except (KeyError, TypeError, ValueError, AttributeError):
        problems.add(0, f'video {name}: its annotations are not a list of {{"segment": [start, stop], "label": name}}')
    return video


def _read_list(path: Path, part: str, classes: list[str], known: dict[str, _Annotated]) -> dict[str, _Annotated]:
    """A list of AR-Net. Copies of it are around in which ids that begin with v_ have lost these two letters: they are
    given back where a file of annotations knows that id."""
    found, problems = {}, Problems(path)
    for number, line in numbered_lines(path):
        name, *rest = line.split(",")
        if len(name) < ID_LENGTH and f"v_{name}" in known:
            name = f"v_{name}"
        if len(rest) < 2 or not all(text.strip().isdecimal() for text in rest):
            problems.add(number, f"{line!r} is not id,frames,label[,label...]")
        elif len(name) != ID_LENGTH:
            problems.add(
                number, f"{name!r} is no id of {ID_LENGTH} letters: take AR-Net's mended list, without _org in its name"
            )
        elif (largest := max(map(int, rest[1:]))) >= len(classes):
            problems.add(number, f"class {largest} of {name}, but classInd.txt ends at {len(classes) - 1}")
        elif name in found:
            problems.add(number, f"video {name} is there twice")
        else:
            found[name] = _Annotated(part, dict.fromkeys(classes[int(text)] for text in rest[1:]))
    problems.check()
    return found


def _check_labels(found: dict[str, _Annotated], number: dict[str, int], folder: Path) -> None:
    for name, video in found.items():
        if unknown := next((label for label in video.labels if label not in number), None):
            raise UserError(
                f"{folder}: video {name} is labelled {unknown!r}, which is none of the {len(number)} classes of"
                " classInd.txt or action_name.csv"
            )
