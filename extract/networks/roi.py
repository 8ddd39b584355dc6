"""RoI features of given boxes with any image network."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .base import Network

__all__ = ["RoiNetwork", "pack_boxes", "source_size"]


def source_size(batch: dict[str, list], slot: int, frame: np.ndarray) -> tuple[float, float]:
    """(width, height) of the frame read: `batch["sizes"][slot]` if given, else the frame's own."""
    sizes = batch.get("sizes")
    if sizes is not None and sizes[slot] is not None:
        width, height = sizes[slot]
        return float(width), float(height)
    return float(frame.shape[1]), float(frame.shape[0])


def pack_boxes(rows: list[dict[str, Tensor]], top: int, channels: int) -> dict[str, Tensor]:
    """Per-row tables (roi (n, C), boxes (n, 4), scores (n,), classes (n,), n_boxes) -> arrays padded with zeros."""
    packed = {
        "roi": torch.zeros(len(rows), top, channels),
        "boxes": torch.zeros(len(rows), top, 4),
        "scores": torch.zeros(len(rows), top),
        "classes": torch.zeros(len(rows), top, dtype=torch.int32),
        "n_boxes": torch.tensor([int(row["n_boxes"]) for row in rows], dtype=torch.int32),
    }
    for i, row in enumerate(rows):
        for name in ("roi", "boxes", "scores", "classes"):
            values = row[name][:top].to("cpu")
            packed[name][i, : len(values)] = values.to(packed[name].dtype)
    return packed


class RoiNetwork(Network):
    """A module that maps images to a feature map, read at boxes given with each frame.

    `run` also reads batch["boxes"]: per row (n, 4) float32 XYXY relative to the frame, in [0, 1], or None; and, where
    they are known, batch["scores"] and batch["classes"] (n,), otherwise 1 and 0. The first `top` by order are kept;
    `n_boxes` is the true number. RoIAlign(`roi_size`, aligned) on the map, then max or mean over its cells.
    """

    def compute(self, x: Tensor, slots: list[int], batch: dict[str, list]) -> dict[str, Tensor]:
        from torchvision.ops import roi_align

        options = self.spec.options
        top, cells = options["top"], options["roi_size"]
        given = [self._given(batch, slot) for slot in slots]
        fmap = self.module(self.normalise(x)).float()
        extent = torch.tensor([fmap.shape[3], fmap.shape[2]] * 2, dtype=torch.float32)
        rois = [torch.from_numpy(boxes[:top]) * extent for boxes, _, _ in given]
        pooled = roi_align(fmap, [r.to(fmap.device) for r in rois], cells, aligned=True)
        pooled = pooled.amax((2, 3)) if options["roi_pool"] == "max" else pooled.mean((2, 3))
        rows = []
        for slot, (boxes, scores, classes), roi in zip(slots, given, pooled.split([len(r) for r in rois]), strict=True):
            frame = batch["frames"][slot]
            width, height = source_size(batch, slot, frame) if frame is not None else (0.0, 0.0)
            rows.append(
                {
                    "roi": roi,
                    "boxes": torch.from_numpy(boxes * np.array([width, height] * 2, np.float32)),
                    "scores": torch.from_numpy(scores),
                    "classes": torch.from_numpy(classes),
                    "n_boxes": torch.tensor(len(boxes)),
                }
            )
        return pack_boxes(rows, top, fmap.shape[1])

    def _given(self, batch: dict[str, list], slot: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(boxes (n, 4) float32, scores (n,) float32, classes (n,) int32) of one row."""

        def column(name: str) -> np.ndarray | None:
            values = batch.get(name)
            return None if values is None else values[slot]

        if batch.get("boxes") is None:
            raise ValueError(
                f'{self.spec.name} reads boxes: batch["boxes"] must hold (n, 4) XYXY in [0, 1] for each frame'
            )
        boxes, scores, classes = column("boxes"), column("scores"), column("classes")
        boxes = np.zeros((0, 4), np.float32) if boxes is None else np.asarray(boxes, np.float32)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{self.spec.name}: boxes[{slot}] must be (n, 4) XYXY in [0, 1], got {boxes.shape}")
        n = len(boxes)
        scores = np.ones(n, np.float32) if scores is None else np.asarray(scores, np.float32)
        classes = np.zeros(n, np.int32) if classes is None else np.asarray(classes, np.int32)
        if scores.shape != (n,) or classes.shape != (n,):
            raise ValueError(
                f"{self.spec.name}: row {slot} has {n} boxes, {scores.shape} scores, {classes.shape} classes"
            )
        return boxes, scores, classes
