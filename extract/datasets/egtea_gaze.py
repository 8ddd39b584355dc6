"""Where the wearer looks in EGTEA Gaze+: SMI BeGaze exports, `<data>/egtea/gaze_data/<video>.txt`, of the full videos.

Samples come some thirty times a second, frames 24 times: a frame has none, one or several. Two layouts exist and are
told apart by their columns: that of the sessions `OP..` (left eye, frames counted from 1) and that of `P..` (both eyes,
frames as HH:MM:SS:FF). The number of samples in the header is not always true and is not read.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract.csv_reading import Problems, read_text

__all__ = [
    "FIXATION",
    "FPS",
    "FRAME_SIZE",
    "SACCADE",
    "TRUNCATED",
    "UNKNOWN",
    "UNTRACKED",
    "Gaze",
    "find_gaze",
    "read_gaze",
]

UNTRACKED, FIXATION, SACCADE, UNKNOWN, TRUNCATED = range(5)  # the field's coding, see `Gaze`
EVENTS = {"Fixation": FIXATION, "Saccade": SACCADE, "Blink": UNKNOWN, "-": UNKNOWN}
PREFERRED = (FIXATION, SACCADE, UNKNOWN, TRUNCATED)
FRAME_SIZE = (1280, 960)
FPS = 24  # of the videos
MOST_FRAMES = 12 * 3600 * FPS
FOLDER = "gaze_data"
TIMECODE = re.compile(r"(\d\d):(\d\d):(\d\d):(\d\d)", re.ASCII)


@dataclass(frozen=True)
class Gaze:
    """One point a frame of a full video, 24 a second: row i is the frame shown at i / 24 s."""

    points: np.ndarray
    """(n_frames, 2) float32: x and y from 0 to 1 of the frame's width and height; zero where there is none."""
    kind: np.ndarray
    """(n_frames,) uint8: UNTRACKED 0 (no sample), FIXATION 1, SACCADE 2, UNKNOWN 3 (blinks and what BeGaze could
    not name), TRUNCATED 4 (beside the picture, moved to its border)."""


def find_gaze(root: Path, videos: Iterable[str]) -> dict[str, str]:
    """{video: its file relative to `root`} of the videos that have one; case does not count: some releases differ.

    Raises:
        UserError: two files of one video.
    """
    names = {name.lower(): name for name in videos}
    found: dict[str, str] = {}
    for path in sorted((root / FOLDER).glob("*.txt")):
        video = names.get(path.stem.lower())
        if video in found:
            raise UserError(f"{root}: the gaze of {video} is there twice, {found[video]} and {FOLDER}/{path.name}")
        if video is not None:
            found[video] = f"{FOLDER}/{path.name}"
    return found


def read_gaze(path: Path) -> Gaze:
    """A video's gaze by frame: the mean of the frame's fixated samples; without any, of its saccade's, of unknown
    ones, of those beside the picture.

    Raises:
        UserError: no file, not a BeGaze export with gaze and frames, or values that are wrong, by line and column.
    """
    problems = Problems(path)
    lines = [(number, line) for number, line in enumerate(read_text(path).splitlines(), 1) if line.strip()]
    lines = [(number, line.split("\t")) for number, line in lines if not line.startswith("##")]
    names = lines[0][1] if lines else []
    eye = "L" if "L Event Info" in names else "B"  # the left one, or both
    columns = (f"{eye} POR X [px]", f"{eye} POR Y [px]", f"{eye} Event Info")
    if lost := [name for name in ("Type", *columns, "Frame") if name not in names]:
        where, what = (lines[0][0], "the first line without ##") if lines else (0, "a line of names")
        problems.add(where, f"not a BeGaze export of gaze and frames: {what} lacks the columns {', '.join(lost)}")
    problems.check()

    samples = []
    for number, fields in lines[1:]:
        if len(fields) != len(names):
            problems.add(number, f"{len(fields)} fields between tabs, but the line of names has {len(names)}")
            continue
        row = dict(zip(names, fields, strict=True))
        if row["Type"] == "SMP":  # else a message
            samples.append(_sample(row, columns, number, problems))
    problems.check()
    return _by_frame(np.array(samples, dtype=np.float64).reshape(-1, 4))


def _sample(row: dict[str, str], columns: tuple[str, ...], number: int, problems: Problems) -> tuple[float, ...]:
    """(frame from 0, x, y in pixels, event); what is wrong is noted."""
    values = []
    for column in columns[:2]:
        try:
            values.append(float(row[column]))
        except ValueError:
            values.append(np.nan)
        if not np.isfinite(values[-1]):
            problems.value(number, column, row[column], "not a finite number of pixels")
    event = EVENTS.get(row[columns[2]])
    if event is None:
        problems.value(number, columns[2], row[columns[2]], f"must be {', '.join(EVENTS)}")
    frame = _frame(row["Frame"])
    if frame is None:
        problems.value(
            number, "Frame", row["Frame"], f"neither a frame from 1 nor HH:MM:SS:FF at {FPS} a second (below 12 hours)"
        )
    return (-1 if frame is None else frame, *values, UNKNOWN if event is None else event)


def _frame(text: str) -> int | None:
    """Index of the frame from 0; None if it is none."""
    if match := TIMECODE.fullmatch(text):
        hours, minutes, seconds, frames = map(int, match.groups())
        if minutes >= 60 or seconds >= 60 or frames >= FPS:
            return None
        index = ((hours * 60 + minutes) * 60 + seconds) * FPS + frames
    elif text.isascii() and text.isdigit():
        index = int(text) - 1
    else:
        return None
    return index if 0 <= index < MOST_FRAMES else None


def _by_frame(samples: np.ndarray) -> Gaze:
    """Samples (n, 4) of frame, x, y, event as one point a frame."""
    frame, pixels, kind = samples[:, 0].astype(np.int64), samples[:, 1:3], samples[:, 3].astype(np.int64)
    inside = np.clip(pixels, 0, np.array(FRAME_SIZE) - 1)
    kind = np.where((inside != pixels).any(axis=1), TRUNCATED, kind)
    n = int(frame.max(initial=-1)) + 1
    points, kinds = np.zeros((n, 2), np.float32), np.full(n, UNTRACKED, np.uint8)
    for one in reversed(PREFERRED):  # what is preferred comes last and replaces the rest
        chosen = kind == one
        count = np.bincount(frame[chosen], minlength=n)
        total = [np.bincount(frame[chosen], weights=inside[chosen, axis], minlength=n) for axis in (0, 1)]
        here = count > 0
        points[here] = (np.stack(total, 1)[here] / count[here, None] / FRAME_SIZE).astype(np.float32)
        kinds[here] = one
    return Gaze(points, kinds)
