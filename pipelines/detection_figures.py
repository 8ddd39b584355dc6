"""COCO's figures of a detector, by COCO's own code (pycocotools)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence

import numpy as np

from extract.networks.packages import need_package

__all__ = ["MOST_BOXES", "coco_figures"]

MOST_BOXES = 100  # boxes a frame that count, the best by score: COCO's own number


def coco_figures(
    truth: Sequence[Mapping[str, np.ndarray]], found: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, float]:
    """Average precision of found boxes against annotated ones (Lin et al. 2014, arXiv:1405.0312; cocodataset.org).

    Args:
        truth: a frame each: "boxes" (n, 4) XYXY in pixels, "classes" (n,) whole numbers.
        found: likewise, in the same order, with "scores" (n,).

    Returns:
        mAP (mean over classes and over IoU 0.50 to 0.95), mAP50, mAP75, recall (of 100 boxes a frame, over the same
        IoU); and any_class_mAP, any_class_mAP50: as if all boxes were of one class, so that only places count.

    Raises:
        UserError: pycocotools is not installed.
        ValueError: no annotated box at all, or lists of different length.
    """
    need_package("pycocotools", "COCO's mAP")
    from pycocotools.cocoeval import COCOeval

    if len(truth) != len(found) or not any(len(frame["boxes"]) for frame in truth):
        raise ValueError(f"figures need annotated boxes: {len(truth)} frames, {len(found)} with detections")
    classes = sorted({int(c) for frame in (*truth, *found) for c in frame["classes"]})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its tables
        evaluation = COCOeval(_coco(truth, classes), _coco(found, classes), "bbox")
        evaluation.params.maxDets = [1, 10, MOST_BOXES]
        stats = {}
        for name, use_classes in (("", 1), ("any_class_", 0)):
            evaluation.params.useCats = use_classes
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats |= {f"{name}{key}": float(evaluation.stats[i]) for key, i in _STATS.items()}
    del stats["any_class_mAP75"], stats["any_class_recall"]
    return stats


_STATS = {"mAP": 0, "mAP50": 1, "mAP75": 2, "recall": 8}  # places in COCOeval.stats


def _coco(frames: Sequence[Mapping[str, np.ndarray]], classes: list[int]):
    """An index of boxes as pycocotools knows it."""
    from pycocotools.coco import COCO

    annotations = []
    for number, frame in enumerate(frames, start=1):
        scores = frame.get("scores", np.ones(len(frame["boxes"])))
        for (x1, y1, x2, y2), kind, score in zip(
            np.asarray(frame["boxes"], np.float64).tolist(), frame["classes"], scores, strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(kind),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "score": float(score),
                }
            )
    index = COCO()
    index.dataset = {
        "info": {},
        "images": [{"id": number + 1} for number in range(len(frames))],
        "categories": [{"id": number} for number in classes],
        "annotations": annotations,
    }
    index.createIndex()
    return index
