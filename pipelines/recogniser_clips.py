"""What recogniser training reads of a dataset: its labels, the rows that lie in each clip, frames or features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from errors import UserError, count_of
from heads import metrics
from pipelines.augment import centre_window, cut, random_crops
from pipelines.frame_reader import FrameReader
from pipelines.labelled_clips import ClipSource, labels_of
from pipelines.training import KEEP_BYTES
from stores import OK, PENDING, Store
from stores.joining import per_item
from stores.row_cache import RowCache

__all__ = ["ClipRows", "FrameInputs", "Targets", "VectorInputs", "middles", "segment_positions", "targets_of"]

TABLE = "labels"  # target: the dataset's table of any number of labels a clip


# --- labels ---


@dataclass(frozen=True)
class Targets:
    """What is to be named: `labels` (n_clips, L) int64, the classes of each clip, padded with -1."""

    name: str
    labels: np.ndarray
    classes: int
    multi: bool  # any number of labels a clip

    @property
    def known(self) -> np.ndarray:
        """(n_clips,) bool: clips with a label."""
        return (self.labels >= 0).any(axis=1)

    def of(self, items: np.ndarray) -> np.ndarray:
        """Class numbers (n,) int64; of several labels a clip, multi-hot rows (n, classes) float32."""
        labels = self.labels[items]
        if not self.multi:
            return labels[:, 0]
        out = np.zeros((len(items), self.classes), np.float32)
        clip, place = np.nonzero(labels >= 0)
        out[clip, labels[clip, place]] = 1
        return out

    def figures(self, scores: np.ndarray, which: np.ndarray) -> dict:
        """{name: {"top1", "top5", "mAP"}} of clips `which` by their scores (n, classes), {"mAP", "mAP_first_label"}
        with several labels a clip; "clips", "coverage". Clips without scores (NaN) count as wrong."""
        labels = self.labels[which]
        found = metrics.mean_average_precision(scores, labels)
        if self.multi:
            figures = {key: found[key] for key in ("mAP", "mAP_first_label")}
        else:
            top = metrics.topk_accuracy(scores, labels[:, 0])
            figures = {"top1": top[0], "top5": top[1], "mAP": found["mAP"]}
        covered = float(np.mean(~np.isnan(scores).any(axis=1)))
        return {self.name: figures, "clips": len(which), "coverage": covered}


def targets_of(source: ClipSource, store: Store, target: str, fit: str) -> Targets:
    """The labels of a dataset's clips.

    Raises:
        UserError: a target that is no label column, and no table of labels.
    """
    if target != TABLE or TABLE in source.clips:
        columns, classes = labels_of(source, (target,), fit)
        return Targets(target, columns[target][:, None], classes[target], multi=False)
    if store.labels is None:
        raise UserError(f"{source.where}: its dataset has no table of labels; name a label column instead")
    clip, label = (np.asarray(store.labels[name]).astype(np.int64) for name in ("clip", "label"))
    order = np.argsort(clip, kind="stable")
    clip, label = clip[order], label[order]
    place = np.arange(len(clip)) - np.searchsorted(clip, clip)
    labels = np.full((len(source.clips["id"]), int(place.max(initial=0)) + 1), -1, np.int64)
    labels[clip, place] = label
    return Targets(target, labels, max(source.classes.get(TABLE, 0), int(label.max(initial=-1)) + 1), multi=True)


# --- which rows ---


def segment_positions(count: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Which of a clip's `count` (n,) frames stand for its segments: (n, S) int64, ascending.

    The frames are cut into S equal segments, u (n, S) in [0, 1) says where in each: 0.5 the middle. A clip of fewer
    frames than segments shows some of them several times.
    """
    segments = u.shape[1]
    return ((np.arange(segments) + u) * np.asarray(count)[:, None] / segments).astype(np.int64)


def middles(n: int, segments: int) -> np.ndarray:
    """u of `segment_positions` for the middle of every segment of n clips: (n, segments) float64."""
    return np.full((n, segments), 0.5)


class ClipRows:
    """The rows of a store on a grid (frames, or their features) that lie in each annotated clip, in time order.

    Of a clip without a stop, to its video's end; of one shorter than the grid's step, the row on screen at its middle.
    Failed rows are left out. Safe to share between threads.

    Attributes:
        ids: (n_clips,) object, the clips' ids.
        count: (n_clips,) int64 rows each has.

    Raises:
        UserError: a store whose rows belong to clips; rows still pending, unless `allow_incomplete`.
    """

    def __init__(self, store: Store, allow_incomplete: bool = False):
        if (store.rows["clip"][store.visible] >= 0).any():
            raise UserError(f"{store.path}: its rows belong to clips; a recogniser needs them on the frame axis")
        clips, status = store.clips, store.status()
        self.ids = np.asarray(clips["id"]).astype(object)
        start, stop = clips["start_s"], np.where(np.isnan(clips["stop_s"]), np.inf, clips["stop_s"])
        rows, offsets = store.rows_between_many(clips["video"], start, stop)
        empty = np.flatnonzero(np.diff(offsets) == 0)
        middle = np.where(np.isinf(stop), start, (start + stop) / 2)[empty]
        earlier, until = store.rows_between_many(
            clips["video"][empty], np.zeros(len(empty)), np.nextafter(middle, np.inf)
        )
        begun = np.diff(until) > 0
        rows = np.insert(rows, offsets[empty[begun]], earlier[until[1:][begun] - 1])
        count = np.diff(offsets)
        count[empty[begun]] = 1
        offsets = np.concatenate([[0], np.cumsum(count)])
        pending = int((status[rows] == PENDING).sum())
        if pending and not allow_incomplete:
            waiting = count_of(pending, "row of its clips is", "rows of its clips are")
            raise UserError(
                f"{store.path}: {waiting} still pending: run extract again, or leave them out with --allow-incomplete"
            )
        ok = status[rows] == OK
        self.count = per_item(ok, offsets)
        self._rows, self._first = rows[ok], np.cumsum(self.count) - self.count

    def at(self, which: np.ndarray, u: np.ndarray) -> np.ndarray:
        """(n, S) row numbers of clips `which` (n,), all with rows; u (n, S) as for `segment_positions`."""
        return self._rows[self._first[which][:, None] + segment_positions(self.count[which], u)]

    def of(self, which: np.ndarray) -> np.ndarray:
        """All rows of clips `which`, each once, ascending."""
        spans = [self._rows[self._first[i] : self._first[i] + self.count[i]] for i in which]
        return np.unique(np.concatenate(spans))


# --- what the model is given ---


class FrameInputs:
    """Frames of a store: cropped at random to train, in the centre to validate (`batch`), as extraction shows them."""

    def __init__(self, reader: FrameReader, size: int, config, seed: int):
        self.reader, self.size, self.config, self.seed = reader, size, config, seed

    def random(self, rows: np.ndarray, ids: np.ndarray, epoch: int) -> np.ndarray:
        """Rows (n, S) of clips `ids` -> uint8 (n, S, size, size, C); one crop for all segments of a clip."""
        segments = rows.shape[1]
        images = self.reader.images(rows.ravel())
        clips = [np.stack(images[i : i + segments]) for i in range(0, len(images), segments)]
        return np.stack(random_crops(clips, ids, epoch, self.seed, self.size, self.config, self.config.crop)[1])

    def batch(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n,) -> uint8 (n, size, size, C)."""
        images = self.reader.images(rows)
        return np.concatenate([cut(image[None], centre_window(*image.shape[:2], self.size)) for image in images])


class VectorInputs:
    """Pooled features of a store, float32."""

    def __init__(self, store: Store):
        self.store = store
        self._cache = RowCache([(store, "vector", None)], KEEP_BYTES)

    def random(self, rows: np.ndarray, ids: np.ndarray, epoch: int) -> np.ndarray:
        """Rows (n, S) -> (n, S, C): nothing about a cached feature is random."""
        return self.batch(rows.ravel()).reshape(*rows.shape, -1)

    def batch(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n,) -> (n, C)."""
        return self._cache.read(self.store, "vector", rows).astype(np.float32)
