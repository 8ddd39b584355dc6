"""From a unit's rows to the batches that its network runs on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from extract.networks.spec import READS
from pipelines.planning import Job
from pipelines.reading import ReadRow, read_captions, read_video
from pipelines.videos import Videos
from stores import Store, Unit

__all__ = ["Batch", "decode_unit"]


@dataclass(frozen=True)
class Batch:
    """One batch of a unit: slot i holds row `unit.start + number * batch_size + i`, None where nothing was read."""

    unit: Unit
    number: int
    reads: str  # of the network: what its rows are
    values: list[Any]  # frames, waveforms or texts
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
        return {READS[self.reads][3]: self.values, "sizes": self.sizes, **given}

    @property
    def decoded(self) -> int:
        return sum(value is not None for value in self.values)


def decode_unit(
    job: Job, store: Store, unit: Unit, todo: np.ndarray, batch_size: int, videos: Videos
) -> Iterator[Batch]:
    """The batches of one unit, each as soon as its last row is read; slots of rows not in `todo` stay empty."""
    rows = unit.start + np.flatnonzero(todo[unit.start : unit.stop])
    waiting = Counter(((rows - unit.start) // batch_size).tolist())
    batches = {}
    for number in waiting:
        size = min(batch_size, len(unit) - number * batch_size)
        batches[number] = Batch(unit, number, job.spec.reads, *([None] * size for _ in range(3)), [0] * size, {})
    for one, size in _read(job, store, rows, videos):
        number, slot = divmod(one.row - unit.start, batch_size)
        batch = batches[number]
        if one.failure is not None:
            batch.failures[one.row] = one.failure
        elif one.value is not None:
            batch.values[slot] = one.value
            batch.n_padded[slot] = one.n_padded
            batch.boxes[slot] = job.boxes_of(store.rows, one.row)
            batch.sizes[slot] = size
        waiting[number] -= 1
        if waiting[number] == 0:
            yield batches.pop(number)


def _read(job: Job, store: Store, rows: np.ndarray, videos: Videos) -> Iterator[tuple[ReadRow, tuple | None]]:
    """Every row with the (width, height) of its source, video by video."""
    if job.spec.reads == "text":
        for one in read_captions(job.captions, store, rows):
            yield one, None
        return
    video_of = store.rows["video"][rows]
    for same_video in np.split(rows, np.flatnonzero(np.diff(video_of)) + 1):
        opened = videos.open(int(store.rows["video"][same_video[0]]))
        if opened.usable:
            for one in read_video(job.reading, store, same_video, opened.source):
                yield one, opened.size
        else:
            for row in same_video.tolist():
                yield ReadRow(row, failure=opened.failure), None
