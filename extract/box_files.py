"""Files of boxes that were given or detected elsewhere, read into one table. A file's content tells its format.

- CSV with columns video,time,x1,y1,x2,y2[,score]: seconds, corners relative to the frame.
- EPIC-KITCHENS-55's EPIC_train_object_labels.csv (Damen et al. 2018; format: README of its annotations).
- EPIC-KITCHENS-100's hand-object detections (Shan et al. 2020; schema: types.proto of
  epic-kitchens-100-hand-object-bboxes @ 5017f57): a pickle a video, or the folder that holds them.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError

from .csv_reading import Csv, Problems, integers, numbers, read_csv
from .unpickle import read_pickle

__all__ = ["BoxFile", "hand_object_time", "object_label_time", "read_boxes"]

CORNERS = ("x1", "y1", "x2", "y2")
HAND_OBJECT_CLASSES = {0: "object", 1: "left hand", 2: "right hand"}

# The frames that EPIC-55's objects were annotated in were cut from the videos as they are, at 60000/1001 a second; only
# the videos of other rates were brought to 60 first. So their numbers are not those of the action labels (the example
# in the README: object frame 56,581 is action frame 56,638), as the published object_action_correspondence tables show:
# by this rule they agree within a frame or two, by (frame - 1) / 60 they part by up to 2.3 s.
_NATIVE_FPS = 60000 / 1001
_BROUGHT_TO_60 = {
    "P09_07", "P09_08", "P10_04", "P18_02",  # 29.97 frames a second
    "P17_01", "P17_02", "P17_03", "P17_04",  # 47.95
    "P18_09",  # 90
}  # fmt: skip
_LABEL_SIZE = (1920.0, 1080.0)  # pixels that the labels are measured in

Keep = Callable[[str, int], bool]


@dataclass(frozen=True)
class BoxFile:
    """Boxes in the file's order.

    `table`: video (text), time_s float64 from the video's first frame, x1, y1, x2, y2 float32 relative to the frame in
    [0, 1], score float32 (1 where boxes are annotated), class int32. `classes`: what a class number means, {} if the
    file has none. `left_out`: boxes of a published file that have no area within the frame.
    """

    table: dict[str, np.ndarray]
    classes: dict[int, str]
    left_out: int = 0


def read_boxes(
    path: str | Path, *, videos: Iterable[str] | None = None, min_score: float = 0.0, fps: float | None = None
) -> BoxFile:
    """Boxes of a file, or of a folder of hand-object pickles.

    Args:
        path: see the module's docstring.
        videos: only these; of a folder, files named after other videos are not opened. None: all.
        min_score: boxes below it are left out. The hand-object detections go down to 0.1 (hands) and 0.01 (objects);
            their authors find 0.5 good.
        fps: of hand-object detections, which cover every frame, only the frames nearest to the instants of this grid.

    Raises:
        UserError: no such file; no such format; what is wrong, by file, line (or entry of a pickle) and field.
    """
    path = Path(path)
    wanted = None if videos is None else set(videos)
    if path.is_dir():
        found = _read_folder(path, wanted, min_score, fps)
    elif path.suffix == ".pkl" or _starts_as_pickle(path):
        found = _read_hand_object([path], wanted, min_score, fps)
    else:
        found = _read_csv(path)
    table = found.table
    keep = table["score"] >= min_score
    if wanted is not None:
        keep &= np.isin(table["video"], list(wanted))
    return BoxFile({name: column[keep] for name, column in table.items()}, found.classes, found.left_out)


def object_label_time(video: str, frame: int) -> float:
    """Seconds of a frame number of EPIC-55's object labels."""
    return (frame - 1) / (60.0 if video in _BROUGHT_TO_60 else _NATIVE_FPS)


def hand_object_time(video: str, frame: int) -> float:
    """Seconds of a frame number of EPIC-100's hand-object detections: 60 a second in the videos of EPIC-55 (P01_01),
    50 in the later ones (P01_101)."""
    return (frame - 1) / (50.0 if len(video.rpartition("_")[2]) == 3 else 60.0)


def _starts_as_pickle(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(1) == b"\x80"
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _table(video: Iterable[str], **columns: Any) -> dict[str, np.ndarray]:
    types = {"time_s": np.float64, "class": np.int32}
    table = {"video": np.array(list(video), dtype=np.str_)}
    for name in ("time_s", *CORNERS, "score", "class"):
        table[name] = np.asarray(columns[name], types.get(name, np.float32))
    return table


# -- CSV -----------------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> BoxFile:
    table = read_csv(path, ())
    if "bounding_boxes" in table.columns:
        return _object_labels(table)
    needed = ("video", "time", *CORNERS)
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise UserError(
            f"{path}: no column {', '.join(map(repr, missing))} in the header {','.join(table.columns)!r}; boxes are "
            f"read from a CSV with {','.join(needed)}[,score], from EPIC_train_object_labels.csv (bounding_boxes), and "
            "from EPIC-100's hand-object pickles"
        )
    return _corners(table)


def _corners(table: Csv) -> BoxFile:
    problems = Problems(table.path)
    columns = {name: numbers(table, name, problems) for name in ("time", *CORNERS)}
    score = numbers(table, "score", problems) if "score" in table.columns else np.ones(len(table))
    x1, y1, x2, y2 = (columns[corner] for corner in CORNERS)
    with np.errstate(invalid="ignore"):
        wrong = (x2 <= x1) | (y2 <= y1) | (x2 > 1) | (y2 > 1)
    for i in np.flatnonzero(wrong):
        problems.add(
            table.lines[i],
            f"box ({x1[i]}, {y1[i]}, {x2[i]}, {y2[i]}) must have x1 < x2 and y1 < y2 within"
            " [0, 1], relative to the frame",
        )
    problems.check()
    times = columns.pop("time")
    classes = np.zeros(len(table))
    return BoxFile(_table(table["video"], time_s=times, score=score, **columns, **{"class": classes}), {})


def _object_labels(table: Csv) -> BoxFile:
    """EPIC-55's labels: a row an object and frame, with a Python list of (top, left, height, width) in pixels.

    A class is named by the noun that most of its rows carry.
    """
    missing = [name for name in ("noun_class", "noun", "video_id", "frame") if name not in table.columns]
    if missing:
        raise UserError(f"{table.path}: no column {', '.join(map(repr, missing))} beside bounding_boxes")
    problems = Problems(table.path)
    frame = integers(table, "frame", problems, minimum=1)
    noun = integers(table, "noun_class", problems)
    row_of: list[int] = []
    boxes: list[list[float]] = []
    for i, text in enumerate(table["bounding_boxes"]):
        own = _box_list(text)
        if own is None:
            problems.value(
                table.lines[i],
                "bounding_boxes",
                text,
                "not a list of (top, left, height, width) such as [(76, 1260, 462, 186)]",
            )
            continue
        row_of += [i] * len(own)
        boxes += own
    problems.check()
    top, left, height, width = np.array(boxes, np.float64).reshape(-1, 4).T
    x = np.stack([left, left + width]) / _LABEL_SIZE[0]
    y = np.stack([top, top + height]) / _LABEL_SIZE[1]
    (x1, x2), (y1, y2) = np.clip(x, 0, 1), np.clip(y, 0, 1)
    whole = (x2 > x1) & (y2 > y1)
    rows = np.array(row_of, np.int64)[whole]
    times = [object_label_time(video, f) for video, f in zip(table["video_id"], frame.tolist(), strict=True)]
    nouns = Counter(zip(noun.tolist(), table["noun"], strict=True))
    classes: dict[int, str] = {}
    for (number, name), _ in sorted(nouns.items(), key=lambda item: (item[0][0], -item[1], item[0][1])):
        classes.setdefault(number, name)
    columns = {"x1": x1[whole], "y1": y1[whole], "x2": x2[whole], "y2": y2[whole], "score": np.ones(len(rows))}
    named = _table(
        [table["video_id"][i] for i in rows], time_s=np.array(times)[rows], **columns, **{"class": noun[rows]}
    )
    return BoxFile(named, classes, int((~whole).sum()))


def _box_list(text: str) -> list[list[float]] | None:
    """The four numbers of each box in a Python literal "[(1, 2, 3, 4), ...]"; None where it is something else."""
    if not re.fullmatch(r"\[[-+\d.eE,()\s]*\]", text):
        return None
    try:
        boxes = json.loads(re.sub(r",\s*(?=[\])])", "", text).translate({40: "[", 41: "]"}))
    except (ValueError, RecursionError):
        return None
    good = all(isinstance(box, list) and len(box) == 4 and not any(isinstance(v, list) for v in box) for box in boxes)
    return boxes if good and all(math.isfinite(v) for box in boxes for v in box) else None


# -- hand-object detections ----------------------------------------------------------------------------------------


def _read_folder(path: Path, wanted: set[str] | None, min_score: float, fps: float | None) -> BoxFile:
    files = sorted(path.rglob("*.pkl"))
    if not files:
        raise UserError(f"{path} holds no .pkl file: expected EPIC-100's hand-object detections, P01/P01_101.pkl ...")
    files = [file for file in files if wanted is None or file.stem in wanted]
    return _read_hand_object(files, wanted, min_score, fps)


def _read_hand_object(files: list[Path], wanted: set[str] | None, min_score: float, fps: float | None) -> BoxFile:
    def keep(video: str, frame: int) -> bool:
        if wanted is not None and video not in wanted:
            return False
        return fps is None or _nearest_to_grid(hand_object_time(video, frame), video, fps)

    video: list[str] = []
    values: list[tuple[float, ...]] = []  # time, corners, score, class
    left_out = 0
    for file in files:
        for name, time_s, boxes in _detections(file, keep):
            for corners, score, number in boxes:
                x1, y1, x2, y2 = corners
                if x2 <= x1 or y2 <= y1:
                    left_out += 1
                elif score >= min_score:
                    video.append(name)
                    values.append((time_s, x1, y1, x2, y2, score, number))
    names = ("time_s", *CORNERS, "score", "class")
    columns = np.array(values, np.float64).reshape(-1, len(names)).T
    return BoxFile(_table(video, **dict(zip(names, columns, strict=True))), dict(HAND_OBJECT_CLASSES), left_out)


def _nearest_to_grid(time_s: float, video: str, fps: float) -> bool:
    """Whether a frame is the one nearest to an instant k / fps; of two equally near ones the first."""
    half = hand_object_time(video, 2) / 2
    distance = time_s - round(time_s * fps) / fps
    return -half - 1e-9 <= distance < half - 1e-9


def _detections(file: Path, keep: Keep) -> Iterator[tuple[str, float, list[tuple[list[float], float, int]]]]:
    """(video, seconds, [(corners, score, class)]) of each wanted frame of one pickle."""
    try:
        entries = read_pickle(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    if not isinstance(entries, list):
        raise UserError(
            f"{file} holds a {type(entries).__name__}, expected the list of EPIC-100's hand-object detections"
        )
    for i, entry in enumerate(entries):
        try:
            if not isinstance(entry, bytes):
                raise ValueError(f"a {type(entry).__name__}, expected serialised detections")
            found = _frame(entry, keep)
        except ValueError as error:
            raise UserError(f"{file}, entry {i + 1}: {error}") from error
        if found is not None:
            yield found


def _frame(entry: bytes, keep: Keep) -> tuple[str, float, list[tuple[list[float], float, int]]] | None:
    """message Detections {string video_id = 1; int32 frame_number = 2; repeated hands = 3; repeated objects = 4}."""
    video, frame, parts = "", 0, []
    for number, value in _fields(entry):
        if number == 1:
            video = _typed("video_id", value, bytes).decode("utf-8")
        elif number == 2:
            frame = _typed("frame_number", value, int)
        elif number in (3, 4):
            parts.append((number, _typed("hands" if number == 3 else "objects", value, bytes)))
    if not video:
        raise ValueError("field 'video_id' is missing: not a hand-object detection")
    if not 1 <= frame < 2**31:
        raise ValueError(f"field 'frame_number' is {frame}: frames count from 1")
    if not keep(video, frame):
        return None
    return video, hand_object_time(video, frame), [_detection(number, part) for number, part in parts]


def _detection(kind: int, part: bytes) -> tuple[list[float], float, int]:
    """message HandDetection or ObjectDetection {BBox bbox = 1; float score = 2; hands only: HandSide side = 5}."""
    corners, score, side = [0.0] * 4, 0.0, 0  # proto3 does not write zeros
    for number, value in _fields(part):
        if number == 1:
            for corner, coordinate in _fields(_typed("bbox", value, bytes)):  # left, top, right, bottom
                if 1 <= corner <= 4:
                    corners[corner - 1] = _typed("bbox", coordinate, float)
        elif number == 2:
            score = _typed("score", value, float)
        elif number == 5 and kind == 3:
            side = _typed("side", value, int)
    if not all(0.0 <= v <= 1.0 for v in corners):
        raise ValueError(f"field 'bbox' is {tuple(corners)}: expected left, top, right, bottom within [0, 1]")
    if not math.isfinite(score):
        raise ValueError(f"field 'score' is {score}")
    if kind == 3 and side not in (0, 1):
        raise ValueError(f"field 'side' is {side}: expected 0 (left) or 1 (right)")
    return corners, score, 1 + side if kind == 3 else 0


def _typed(field: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"field {field!r} is written as {type(value).__name__}, expected {kind.__name__}")
    return value


# -- protobuf's wire format ------------------------------------------------------------------------------------------


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """(field number, value) of a message: varints as int, 32-bit fields as float, 64-bit ones and groups of bytes as
    bytes. Raises `ValueError` where it is damaged."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(message, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"damaged: wire type {wire} at byte {position}")
        if position + size > end:
            raise ValueError(f"damaged: field {number} ends at byte {position + size} of {end}")
        value = message[position : position + size]
        position += size
        yield number, struct.unpack("<f", value)[0] if wire == 5 else value


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 64:
        if position >= len(message):
            raise ValueError("damaged: it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"damaged: a number of more than 64 bits at byte {position}")
