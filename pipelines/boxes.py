"""Boxes that are given, not detected: a dataset's own, or a CSV; looked up by row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract.csv_reading import Problems, numbers, read_csv
from extract.datasets import Dataset
from extract.datasets.base import annotation_hash

__all__ = ["GivenBoxes", "dataset_boxes", "read_boxes"]

CORNERS = ("x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class GivenBoxes:
    """Boxes in (video, time, falling score) order; `boxes` are XYXY relative to the frame."""

    video: np.ndarray  # int32 (n,)
    time_s: np.ndarray  # float64 (n,)
    boxes: np.ndarray  # float32 (n, 4)
    scores: np.ndarray  # float32 (n,)
    classes: np.ndarray  # int32 (n,)
    digest: str

    def at(self, video: int, time_s: float, within_s: float) -> dict[str, np.ndarray]:
        """boxes, scores and classes of the annotated instant nearest to `time_s`, if it is within `within_s`."""
        first, stop = np.searchsorted(self.video, [video, video + 1])
        distance = np.abs(self.time_s[first:stop] - time_s)
        near = (distance == distance.min(initial=np.inf)) & (distance <= within_s)
        chosen = first + np.flatnonzero(near)
        return {name: getattr(self, name)[chosen] for name in ("boxes", "scores", "classes")}


def dataset_boxes(dataset: Dataset) -> GivenBoxes:
    """The boxes that a dataset brings. Raises `UserError` if it has none."""
    if dataset.boxes is None:
        raise UserError(f"dataset {dataset.name} has no boxes of its own: give --boxes FILE.csv, or use --detector")
    return _given(dataset.boxes, dataset.box_reference)


def read_boxes(path: Path, dataset: Dataset) -> GivenBoxes:
    """Boxes of a CSV with columns video,time,x1,y1,x2,y2[,score], XYXY relative to the frame, in [0, 1].

    Raises `UserError` naming file, line and field: unknown video, not a number, a box that is not inside
    the frame or has no area.
    """
    table = read_csv(path, ("video", "time", *CORNERS))
    problems = Problems(path)
    number_of = {name: i for i, name in enumerate(dataset.videos["name"])}
    video = np.array([number_of.get(name, -1) for name in table["video"]], np.int32)
    for i in np.flatnonzero(video < 0):
        problems.value(table.lines[i], "video", table["video"][i], f"dataset {dataset.name} has no such video")
    columns = {field: numbers(table, field, problems) for field in ("time", *CORNERS)}
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
    corners = {corner: columns[corner] for corner in CORNERS}
    classes = np.zeros(len(table), np.int32)
    return _given({"video": video, "time_s": columns["time"], **corners, "score": score, "class": classes}, (1, 1))


def _given(table: dict[str, np.ndarray], reference: tuple[float, float]) -> GivenBoxes:
    """Sorted, and relative to the frame."""
    order = np.lexsort((-table["score"], table["time_s"], table["video"]))
    scale = np.array([reference[0], reference[1]] * 2, np.float64)
    corners = np.stack([table[corner][order] for corner in CORNERS], axis=1)
    columns = {
        "video": table["video"][order].astype(np.int32),
        "time_s": table["time_s"][order].astype(np.float64),
        "boxes": (corners / scale).astype(np.float32).reshape(-1, 4),
        "scores": table["score"][order].astype(np.float32),
        "classes": table["class"][order].astype(np.int32),
    }
    return GivenBoxes(**columns, digest=annotation_hash([], columns))
