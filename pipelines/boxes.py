"""Boxes that are given, not detected: a dataset's own, or a file's; looked up by row."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract import box_files
from extract.box_files import CORNERS
from extract.datasets import Dataset
from extract.datasets.base import annotation_hash
from pipelines.request import some_of

__all__ = ["GivenBoxes", "dataset_boxes", "read_boxes"]


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


def read_boxes(path: Path, dataset: Dataset, fps: float) -> GivenBoxes:
    """Boxes of a file in any format that `extract.box_files` knows, of the dataset's videos.

    fps: of the rows; detections that cover every frame are thinned to it.
    Raises `UserError` naming file, line and field, and for a video of one's own CSV that the dataset does not have.
    """
    names = dataset.videos["name"]
    found = box_files.read_boxes(path, videos=names if Path(path).is_dir() else None, fps=fps)
    number_of = {name: i for i, name in enumerate(names)}
    video = np.array([number_of.get(name, -1) for name in found.table["video"]], np.int32)
    others = sorted(set(found.table["video"][video < 0].tolist()))
    if others and not found.classes:  # published files cover videos that a dataset may leave out
        raise UserError(f"{path}: dataset {dataset.name} has no video {some_of([repr(name) for name in others])}")
    if not (video >= 0).any():
        raise UserError(f"{path} has no boxes in any video of dataset {dataset.name}")
    table = {name: column[video >= 0] for name, column in found.table.items()}
    return _given({**table, "video": video[video >= 0]}, (1, 1))


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
