"""Temporal action localisation's mean average precision.

Source: ActivityNet's evaluation code (Heilbron et al. 2015), as SF-Net uses it (Flowerfan/SF-Net@a82bc04,
eval_detection.py, eval_frame.py). Predictions of a class are taken over all videos by falling score, and of equal
scores the later one first. At every threshold each takes the best instance of its video that is still free and fits it
well enough, of equal ones the later, and is a false positive where there is none. The average precision is VOC 2011's:
the area under the precision, of which every value is raised to the largest at a recall as high.

Times are in any one unit (seconds, say), of ground truth and predictions alike.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence

import numpy as np

__all__ = ["RANGES", "THRESHOLDS", "frame_localisation_map", "localisation_map"]

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
"""Temporal intersections over union."""
RANGES = (0.25, 0.5, 0.75, 1.0)
"""Distances from the middle of an instance, in halves of its length."""


def localisation_map(
    ground_truth: Mapping[Hashable, Iterable[Mapping]],
    predictions: Mapping[Hashable, Iterable[Mapping]],
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict:
    """mAP of predicted segments at thresholds of the temporal intersection over union (tIoU).

    ground_truth: {video: [{"label": any hashable, "segment": [start, stop]}]} of one subset, as ActivityNet's
    annotations have it under "database". predictions: {video: [{"label", "segment", "score"}]}, the "results" of its
    prediction files. thresholds: T numbers in (0, 1]; a segment fits where its tIoU is at least that. Other keys are
    not looked at. A prediction in a video without such an instance, or in an unknown video, is a false positive; one of
    a label that occurs in no video is left out.

    Returns {"mAP": float64 (T,) mean over the labels that occur in the ground truth, "average": its mean over the
    thresholds, "per_class": {label: float64 (T,)}, in the order of first occurrence}, as shares; 0 for a label without
    predictions, NaN means without ground truth. Raises ValueError: a missing key, a segment that is not two finite
    numbers in order (in the ground truth: of some length), a score that is no finite number, thresholds outside (0, 1].
    """
    return _map(ground_truth, predictions, _segment, _tiou, _levels(thresholds, "thresholds"))


def frame_localisation_map(
    ground_truth: Mapping[Hashable, Iterable[Mapping]],
    predictions: Mapping[Hashable, Iterable[Mapping]],
    ranges: Sequence[float] = RANGES,
) -> dict:
    """mAP of single frames, SF-Net's frame task: as `localisation_map`, but predictions are {"label", "frame": time,
    "score"}, and one fits an instance whose middle is no farther than `ranges` halves of the instance's length: T
    numbers in (0, 1], 1 being anywhere inside. Returns and raises the same; a frame is a finite number. Of
    instances equally far the later is taken, as with segments; SF-Net's code takes the earlier here."""
    return _map(ground_truth, predictions, _frame, _closeness, -_levels(ranges, "ranges"))


def _map(ground_truth, predictions, place_of, fit, levels: np.ndarray) -> dict:
    """place_of(prediction, where) -> its place; fit(instances (G, 2), place) -> (G,), the better the higher; levels
    (T,): the least fit that counts."""
    instances: dict[Hashable, dict] = {}  # label -> video -> [segment]
    for video, items in ground_truth.items():
        where = f"ground truth of {video}"
        for item in items:
            label, segment = _value(item, "label", where), _segment(item, where)
            if segment[0] == segment[1]:
                raise ValueError(f"{where}: a segment must have some length, got {item['segment']!r}")
            instances.setdefault(label, {}).setdefault(video, []).append(segment)
    found: dict[Hashable, list] = {label: [] for label in instances}  # label -> [(score, video, place)]
    for video, items in predictions.items():
        where = f"predictions of {video}"
        for item in items:
            label, place = _value(item, "label", where), place_of(item, where)
            score = _number(_value(item, "score", where), "score", where)
            if label in found:
                found[label].append((score, video, place))
    per_class = {
        label: _average_precision({v: np.array(s) for v, s in of.items()}, found[label], fit, levels)
        for label, of in instances.items()
    }
    means = np.mean(list(per_class.values()), axis=0) if per_class else np.full(len(levels), np.nan)
    return {"mAP": means, "average": float(means.mean()), "per_class": per_class}


def _average_precision(instances: Mapping, found: Sequence[tuple], fit, levels: np.ndarray) -> np.ndarray:
    """(T,) of one label. instances: {video: (G, 2)}; found: [(score, video, place)]."""
    free = {video: np.ones((len(levels), len(segments)), bool) for video, segments in instances.items()}
    hits, each = np.zeros((len(levels), len(found)), bool), np.arange(len(levels))
    order = np.argsort([score for score, _, _ in found], kind="stable")[::-1]
    for rank, (_, video, place) in enumerate(found[i] for i in order):
        if video not in instances:
            continue
        fits = np.where(free[video], fit(instances[video], place), -np.inf)
        best = fits.shape[1] - 1 - fits[:, ::-1].argmax(axis=1)  # of equal ones the later
        hits[:, rank] = fits[each, best] >= levels
        free[video][each, best] &= ~hits[:, rank]
    precision = np.cumsum(hits, axis=1) / np.arange(1, len(found) + 1)
    raised = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    return (raised * hits).sum(axis=1) / sum(map(len, instances.values()))


def _tiou(instances: np.ndarray, segment: tuple[float, float]) -> np.ndarray:
    """(G,) intersection over union of (G, 2) segments and one."""
    start, stop = segment
    shared = np.maximum(np.minimum(instances[:, 1], stop) - np.maximum(instances[:, 0], start), 0)
    return shared / (instances[:, 1] - instances[:, 0] + stop - start - shared)


def _closeness(instances: np.ndarray, frame: float) -> np.ndarray:
    """(G,) minus the distance of a frame from the middles of (G, 2) segments, in halves of their lengths."""
    return -np.abs(frame - instances.mean(axis=1)) / ((instances[:, 1] - instances[:, 0]) / 2)


def _levels(values: Sequence[float], name: str) -> np.ndarray:
    levels = np.asarray(values, np.float64)
    if levels.ndim != 1 or not len(levels) or not ((levels > 0) & (levels <= 1)).all():
        raise ValueError(f"{name} must be one or more numbers in (0, 1], got {values!r}")
    return levels


def _segment(item: Mapping, where: str) -> tuple[float, float]:
    segment = _value(item, "segment", where)
    if not isinstance(segment, list | tuple | np.ndarray) or len(segment) != 2:
        raise ValueError(f"{where}: a segment must be [start, stop], got {segment!r}")
    start, stop = (_number(value, name, where) for value, name in zip(segment, ("start", "stop"), strict=True))
    if start > stop:
        raise ValueError(f"{where}: a segment must not stop before it starts, got {segment!r}")
    return start, stop


def _frame(item: Mapping, where: str) -> float:
    return _number(_value(item, "frame", where), "frame", where)


def _value(item: Mapping, key: str, where: str):
    if key not in item:
        raise ValueError(f"{where}: {item!r} has no {key!r}")
    return item[key]


def _number(value, name: str, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {name} must be a finite number, got {value!r}")
    return number
