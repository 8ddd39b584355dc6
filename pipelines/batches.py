"""From a unit's rows to the batches that its network runs on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipelines.frames import DecodedRow, decode_rows
from pipelines.planning import Job
from pipelines.videos import Opened, Videos
from stores import Store, Unit

__all__ = ["Batch", "decode_unit"]


@dataclass(frozen=True)
class Batch:
    """One batch of a unit: slot i holds row `unit.start + number * batch_size + i`, None where it has no frames."""

    unit: Unit
    number: int
    frames: list[np.ndarray | None]
    boxes: list[dict[str, np.ndarray] | None]  # given boxes with their scores and classes
    sizes: list[tuple[int, int] | None]  # (width, height) of the source: boxes are in its pixels
    n_padded: list[int]
    failures: dict[int, tuple[str, str]]

    @property
    def inputs(self) -> dict[str, list]:
        """What the network's `run` takes."""
        given = {
            name: [None if boxes is None else boxes[name] for boxes in self.boxes]
            for name in ("boxes", "scores", "classes")
        }
        return {"frames": self.frames, "sizes": self.sizes, **given}

    @property
    def decoded(self) -> int:
        return sum(frames is not None for frames in self.frames)


def decode_unit(
    job: Job, store: Store, unit: Unit, todo: np.ndarray, batch_size: int, videos: Videos
) -> Iterator[Batch]:
    """The batches of one unit, each as soon as its last row is decoded; slots of rows not in `todo` stay empty."""
    rows = unit.start + np.flatnonzero(todo[unit.start : unit.stop])
    waiting = Counter(((rows - unit.start) // batch_size).tolist())
    batches = {}
    for number in waiting:
        size = min(batch_size, len(unit) - number * batch_size)
        batches[number] = Batch(unit, number, [None] * size, [None] * size, [None] * size, [0] * size, {})
    video_of = store.rows["video"][rows]
    for same_video in np.split(rows, np.flatnonzero(np.diff(video_of)) + 1):
        opened = videos.open(int(store.rows["video"][same_video[0]]))
        for decoded in decode_video(job, store, same_video, opened):
            number, slot = divmod(decoded.row - unit.start, batch_size)
            batch = batches[number]
            if decoded.failure is not None:
                batch.failures[decoded.row] = decoded.failure
            elif decoded.frames is not None:
                batch.frames[slot] = decoded.frames if job.sampling.axis == "clip" else decoded.frames[0]
                batch.n_padded[slot] = decoded.n_padded
                batch.boxes[slot] = job.boxes_of(store.rows, decoded.row)
                batch.sizes[slot] = opened.source.width, opened.source.height
            waiting[number] -= 1
            if waiting[number] == 0:
                yield batches.pop(number)


def decode_video(job: Job, store: Store, rows: np.ndarray, opened: Opened) -> Iterator[DecodedRow]:
    """Rows of one video; without frames and without a failure if the video cannot be used now (they stay pending)."""
    if opened.source is None:
        for row in rows:
            yield DecodedRow(int(row), None, np.empty(0, np.int64), failure=opened.failure)
        return
    instants = job.instants({column: store.rows[column][rows] for column in ("start_s", "stop_s")})
    yield from decode_rows(opened.source, rows, instants, job.resize)
