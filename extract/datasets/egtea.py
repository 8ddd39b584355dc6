"""EGTEA Gaze+ (Li, Liu and Rehg, ECCV 2018), read from its published action annotations.

Layout: `<data>/egtea/annotations/` with train_split1.txt ... test_split3.txt and, for the names of the classes,
action_idx.txt, verb_idx.txt and noun_idx.txt; the media are the 86 full videos (`videos/OP01-R01-PastaSalad.mp4`, or
`rgb_frames/`, `flow_frames/` at 24 frames a second), or the 10,321 trimmed clips in `cropped_clips/`
(`egtea:cropped=true`), a video each. The wearers' gaze on the full videos, where `gaze_data/` is there, is in
`facts["gaze"]`: {full video: path relative to the root}, which `egtea_gaze.read_gaze` reads.

A clip's name tells its session, its time in milliseconds and the frames of its trimmed file at 24 a second, which hold
some five frames more on either side, in a few rows up to 233. The frames are what every paper has seen, and both
layouts show the same: the window is theirs, never computed from the milliseconds.

The three published splits are the schemes `1`, `2` and `3` with the parts train and test; there is no validation
part. `split` is split 1, or the one of `egtea:split=2`, which is a dataset of its own (its stores copy what another
split's have). Ids are 0-based here, one less than in the files. The action decides verb and first noun, and they it.
"""

import re
from pathlib import Path

import numpy as np

from errors import UserError, count_of
from extract.csv_reading import Problems, read_text
from extract.datasets.base import MEDIA, Dataset, dataset_folder, find_media, strings
from extract.datasets.egtea_gaze import FPS, find_gaze
from extract.datasets.registry import register_dataset

__all__ = ["CLASSES", "SPLITS", "egtea"]

SPLITS = (1, 2, 3)
CLASSES = {"verb": 19, "noun": 53, "action": 106}
MOST_NOUNS = 3
CROPPED = "cropped_clips"
CLIP_NAME = re.compile(r"(?P<video>(?P<participant>O?P\d\d)-R\d\d-\w+)-\d+-\d+-F(?P<first>\d+)-F(?P<stop>\d+)")


@register_dataset("egtea")
def egtea(data_root: Path | None, media: str = "rgb", split: int = 1, cropped: bool = False) -> Dataset:
    """Load EGTEA's tables; videos that are not on disk have an empty path.

    split: which of the three splits is the default one. cropped: the videos are the trimmed clips.

    Raises:
        UserError: no data root, a file missing or malformed, splits that differ in their clips or labels, a video
            or its gaze that is there twice.
    """
    if split not in SPLITS:
        raise UserError(f"egtea: there is no split {split!r}; it has {', '.join(map(str, SPLITS))}")
    if cropped and media == "flow":
        raise UserError(
            "egtea: the trimmed clips have no published flow images; compute them (--flow), or use flow_frames/"
        )
    root = dataset_folder(data_root, "egtea", "annotations/ and videos/, rgb_frames/, flow_frames/ or cropped_clips/")
    annotations = root / "annotations"
    lines, schemes = _read_splits(annotations)

    names = list(lines)
    told = [CLIP_NAME.fullmatch(name) for name in names]
    labels = np.array([line[:3] for line in lines.values()], dtype=np.int32)
    first, stop = (np.array([int(match[what]) for match in told]) for what in ("first", "stop"))
    video_of = names if cropped else [match["video"] for match in told]
    video_names = sorted(set(video_of))
    number = {video: i for i, video in enumerate(video_names)}
    folders = (CROPPED,) if cropped else MEDIA[media]
    path, kind = find_media(root, video_names, media, folders)
    begin = first if not cropped else np.zeros(len(names))
    nouns = [(clip, noun) for clip, line in enumerate(lines.values()) for noun in dict.fromkeys(line[2:])]
    class_names = _class_names(annotations)
    action, verb, noun = labels.T
    pairs = np.full((CLASSES["action"], 2), -1, dtype=np.int32)
    pairs[action] = labels[:, 1:]
    variant = [f"split={split}"] * (split != 1) + ["cropped=true"] * cropped
    return Dataset(
        name="-".join(["egtea", *variant]),
        root=root,
        videos={"name": strings(video_names), "path": path, "kind": kind},
        clips={
            "id": strings(names),
            "video": np.array([number[video] for video in video_of], dtype=np.int32),
            "start_s": begin / FPS,
            "stop_s": (begin + stop - first) / FPS,
            "verb": verb,
            "noun": noun,
            "action": action,
            "participant": strings(match["participant"] for match in told),
            "split": schemes[split],
            **{f"split_{number}": parts for number, parts in schemes.items()},
        },
        labels=dict(zip(("clip", "label"), np.array(nouns, dtype=np.int32).reshape(-1, 2).T, strict=True)),
        grid_fps=float(FPS),
        classes=dict(CLASSES),
        class_names=class_names,
        saoa={"backbone": "i3d_rgb", "objects": "faster_rcnn_r50_fpn"},
        facts={
            "actions": pairs,
            "searched": [root / folder for folder in folders],
            "gaze": find_gaze(root, (match["video"] for match in told)),
        },
    )


def _read_splits(annotations: Path) -> tuple[dict[str, tuple[int, ...]], dict[int, np.ndarray]]:
    """({clip: 0-based (action, verb, noun, ...)} in the order of split 1's train and test, {split: part of each})."""
    lines: dict[str, tuple[int, ...]] = {}
    schemes = {}
    for split in SPLITS:
        parts: dict[str, str] = {}
        for part in ("train", "test"):
            path = annotations / f"{part}_split{split}.txt"
            problems = Problems(path)
            for line, name, ids in _read_lines(path, problems):
                if name in parts:
                    problems.add(line, f"clip {name} is there twice in split {split}")
                elif split != SPLITS[0] and lines.get(name, ids) != ids:
                    problems.add(line, f"clip {name} has other labels than in split {SPLITS[0]}")
                elif split != SPLITS[0] and name not in lines:
                    problems.add(line, f"clip {name} is not in split {SPLITS[0]}")
                parts[name] = part
                lines.setdefault(name, ids)
            problems.check()
        if lost := [name for name in lines if name not in parts]:
            raise UserError(
                f"{annotations}: split {split} lacks {count_of(len(lost), 'clip')} of split {SPLITS[0]},"
                f" such as {lost[0]}"
            )
        schemes[split] = strings(parts[name] for name in lines)
    return lines, schemes


def _read_lines(path: Path, problems: Problems):
    """Yield (line number, clip, 0-based ids) of `<clip> <action> <verb> <noun> [noun2 [noun3]]`."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        name, ids = fields[0], fields[1:]
        if CLIP_NAME.fullmatch(name) is None:
            problems.add(
                number, f"{name!r} is not a clip's name such as OP01-R01-PastaSalad-66680-68130-F001597-F001639"
            )
        elif not 3 <= len(ids) <= 2 + MOST_NOUNS:
            problems.add(
                number, f"{len(fields)} fields; a line is a clip's name, action, verb and 1 to {MOST_NOUNS} nouns"
            )
        elif (ids_at := _zero_based(ids)) is None:
            most = ", ".join(f"{name} 1..{n}" for name, n in CLASSES.items())
            problems.add(number, f"{' '.join(ids)!r} are no ids; they count from 1 ({most})")
        elif int(CLIP_NAME.fullmatch(name)["stop"]) <= int(CLIP_NAME.fullmatch(name)["first"]):
            problems.add(number, f"clip {name} stops before it starts")
        else:
            yield number, name, ids_at


def _zero_based(ids: list[str]) -> tuple[int, ...] | None:
    """Ids of action, verb, nouns as in the files, less one; None if one is no number or no class."""
    limits = [CLASSES["action"], CLASSES["verb"], *[CLASSES["noun"]] * (len(ids) - 2)]
    good = all(text.isascii() and text.isdigit() and 1 <= int(text) <= n for text, n in zip(ids, limits, strict=True))
    return tuple(int(text) - 1 for text in ids) if good else None


def _class_names(annotations: Path) -> dict[str, list[str]]:
    """Names of the classes from the idx files that are there: `<name with spaces> <id>`, split at the last blank."""
    names = {}
    for label, n in CLASSES.items():
        path = annotations / f"{label}_idx.txt"
        if not path.is_file():
            continue
        pairs = [line.rpartition(" ") for line in read_text(path).splitlines() if line.strip()]
        found = {int(number): name.strip() for name, _, number in pairs if number.isascii() and number.isdigit()}
        if sorted(found) != list(range(1, n + 1)) or len(pairs) != n or not all(found.values()):
            raise UserError(f"{path}: must hold a name and each id 1..{n} once, as in 'Turn on 5'")
        names[label] = [found[number] for number in range(1, n + 1)]
    return names
