"""The steps of Faster R-CNN's inference by detectron2's rules, as plain functions; boxes are XYXY in pixels.

Where torchvision's detector differs: frames are resized as images (PIL, antialiased, rounded to 8 bits) to a size that
is rounded, not floored; anchors keep their fractions and step by the level's stride, not by the padded image's size
over the map's; RoIAlign is aligned and samples every cell; levels are assigned without 1e-6; the background is the
last class; nothing is dropped for being small, only what is empty.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms, roi_align

__all__ = [
    "ASPECT_RATIOS",
    "STRIDES",
    "anchors_of",
    "decode",
    "detections",
    "levels_of",
    "pool_boxes",
    "resize_frames",
    "select_proposals",
    "shortest_edge",
    "to_source",
]

STRIDES = (4, 8, 16, 32, 64)  # of p2 to p6
ANCHOR_SIZES = (32, 64, 128, 256, 512)  # square roots of the areas, one a level
ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height over width
_MAX_LOG_SCALE = math.log(1000.0 / 16)  # of predicted widths and heights
_CELLS = 7


def shortest_edge(height: int, width: int, size: int, max_size: int) -> tuple[int, int]:
    """(height, width) with the short side `size`, or the long side `max_size` if that is smaller; rounded half up."""
    scale = size / min(height, width)
    new = [float(size), scale * width] if height < width else [scale * height, float(size)]
    if max(new) > max_size:
        scale = max_size / max(new)
        new = [side * scale for side in new]
    return int(new[0] + 0.5), int(new[1] + 0.5)


def resize_frames(frames: np.ndarray, size: int, max_size: int) -> np.ndarray:
    """uint8 (B, H, W, 3) -> uint8 (B, H', W', 3) by `shortest_edge`, PIL's bilinear filter."""
    height, width = shortest_edge(*frames.shape[1:3], size, max_size)
    if (height, width) == frames.shape[1:3]:
        return frames
    images = (Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR) for frame in frames)
    return np.stack([np.asarray(image) for image in images])


def anchors_of(maps: list[tuple[int, int]], device: torch.device | str = "cpu") -> list[Tensor]:
    """Per level of (height, width) the anchors (H * W * 3, 4), row by row; the first is centred at pixel (0, 0)."""
    anchors = []
    for (height, width), stride, size in zip(maps, STRIDES, ANCHOR_SIZES, strict=True):
        cell = []
        for ratio in ASPECT_RATIOS:
            w = math.sqrt(size**2 / ratio)
            h = ratio * w
            cell.append([-w / 2, -h / 2, w / 2, h / 2])
        steps = [torch.arange(n, device=device) * stride for n in (height, width)]
        y, x = torch.meshgrid(*steps, indexing="ij")
        corners = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4).float()
        anchors.append((corners + torch.tensor(cell, device=device)).reshape(-1, 4))
    return anchors


def decode(deltas: Tensor, boxes: Tensor, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Boxes (N, 4) moved and scaled by deltas (N, 4k) of dx, dy, dw, dh, each over its weight -> (N, 4k)."""
    deltas = deltas.float()
    widths, heights = (boxes[:, 2] - boxes[:, 0])[:, None], (boxes[:, 3] - boxes[:, 1])[:, None]
    center_x, center_y = boxes[:, :1] + 0.5 * widths, boxes[:, 1:2] + 0.5 * heights
    dx, dy, dw, dh = (deltas[:, i::4] / weights[i] for i in range(4))
    x, y = dx * widths + center_x, dy * heights + center_y
    w = dw.clamp(max=_MAX_LOG_SCALE).exp() * widths
    h = dh.clamp(max=_MAX_LOG_SCALE).exp() * heights
    return torch.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], dim=-1).reshape(deltas.shape)


def _clip(boxes: Tensor, size: tuple[float, float]) -> Tensor:
    """Boxes (..., 4) clipped to an image of (height, width)."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x, y], dim=-1).flatten(-2)


def _not_empty(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def select_proposals(
    anchors: list[Tensor],
    logits: list[Tensor],
    deltas: list[Tensor],
    size: tuple[int, int],
    keep: int,
    nms_threshold: float = 0.7,
) -> Tensor:
    """The first stage's boxes (n, 4) of one image of (height, width), n <= keep, by falling objectness.

    Per level (anchors (A, 4), logits (A,), deltas (A, 4)) the best `keep`, clipped; what is empty or not finite is
    dropped; NMS within each level; then the best `keep` of all levels.
    """
    boxes, scores, levels = [], [], []
    for level, (anchor, logit, delta) in enumerate(zip(anchors, logits, deltas, strict=True)):
        best, index = logit.float().topk(min(keep, len(logit)))
        boxes.append(decode(delta[index], anchor[index]))
        scores.append(best)
        levels.append(torch.full_like(index, level))
    box, score, level = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
    finite = box.isfinite().all(1) & score.isfinite()
    box = _clip(box, size)
    good = finite & _not_empty(box)
    box, score, level = box[good], score[good], level[good]
    return box[batched_nms(box, score, level, nms_threshold)[:keep]]


def levels_of(boxes: Tensor) -> Tensor:
    """Which map (0 for p2 to 3 for p5) a box (n, 4) is pooled from: by its size, 224 pixels belonging to p4."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    level = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-8))
    return level.clamp(2, 5).long() - 2


def pool_boxes(maps: list[Tensor], boxes: list[Tensor]) -> Tensor:
    """Maps p2 to p5 (B, C, H, W) and boxes per image -> (M, C, 7, 7) by aligned RoIAlign, in the order of the boxes."""
    rows = torch.cat([torch.cat([b.new_full((len(b), 1), i), b], dim=1) for i, b in enumerate(boxes)])
    levels = levels_of(rows[:, 1:])
    pooled = maps[0].new_zeros(len(rows), maps[0].shape[1], _CELLS, _CELLS)
    for level, fmap in enumerate(maps):
        chosen = (levels == level).nonzero()[:, 0]
        pooled[chosen] = roi_align(fmap, rows[chosen], _CELLS, 1 / STRIDES[level], sampling_ratio=0, aligned=True)
    return pooled


def detections(
    boxes: Tensor, scores: Tensor, size: tuple[int, int], score_threshold: float, nms_threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(boxes (n, 4), scores (n,), classes (n,) from 0) of one image after NMS within each class, by falling score.

    Args:
        boxes: (R, 4K) of R proposals and K classes, or (R, 4) for all classes alike; clipped to `size` here.
        scores: (R, K + 1) probabilities, the background last.
        size: (height, width) of the image.
        score_threshold: a score must exceed it.
    """
    finite = boxes.isfinite().all(1) & scores.isfinite().all(1)
    boxes, scores = boxes[finite], scores[finite, :-1]
    boxes = _clip(boxes.reshape(len(boxes), -1, 4), size).expand(-1, scores.shape[1], 4)
    row, label = (scores > score_threshold).nonzero(as_tuple=True)
    boxes, scores = boxes[row, label], scores[row, label]
    kept = batched_nms(boxes, scores, label, nms_threshold)
    return boxes[kept], scores[kept], label[kept]


def to_source(boxes: Tensor, size: tuple[int, int], source: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Boxes in an image of (height, width) -> (in a source of (width, height), which of them are not empty there)."""
    (height, width), (source_width, source_height) = size, source
    scale = boxes.new_tensor([source_width / width, source_height / height] * 2)
    boxes = _clip(boxes * scale, (source_height, source_width))
    return boxes, _not_empty(boxes)
