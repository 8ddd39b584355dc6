"""What sampler training reads: frames that two stores have of the same instants, as each clip's N candidates."""

from __future__ import annotations

import numpy as np

from errors import UserError, count_of
from extract.sampling import counter_uniform
from pipelines.recogniser_clips import Targets, VectorInputs, middles, segment_positions
from pipelines.training import KEEP_BYTES
from stores import OK, PENDING, Store
from stores.joining import positions, texts
from stores.row_cache import RowCache

__all__ = ["Candidates", "SharedFrames"]

_SAME_S = 1e-6  # instants this close are one: swallows float64 rounding of k / fps


class SharedFrames:
    """The instants that a sampler's store and a recogniser's both have rows of, clip by clip, in time order.

    Videos are matched by name, rows by start and stop; instants that one store alone has are no candidates. A row that
    failed in either store keeps its place and is masked, so that it never shifts the others. A clip without a stop
    reaches to its video's end; one between two instants has the one on screen at its middle.

    Args:
        clips: id, video, start_s, stop_s (NaN: not known), by the sampler store's numbers of videos.
        only: (rows of the sampler's store,) bool, those that count; None: all.

    Attributes:
        ids: (n_clips,) object, the clips' ids.
        count: (n_clips,) int64 instants each has, failed ones too.
        usable: (n_clips,) bool, clips with at least one frame that is ok in both.

    Raises:
        UserError: a store whose rows belong to clips; no instant that both have.
    """

    def __init__(self, sampler: Store, recogniser: Store, clips, only: np.ndarray | None = None):
        self.stores = (sampler, recogniser)
        self._rows = _same_instants(sampler, recogniser, only)
        if not len(self._rows):
            raise UserError(
                f"{sampler.path} and {recogniser.path} have no instant of a video in common: extract one of them with"
                f" the other's --hop (their sampling: {_sampling(sampler)}; {_sampling(recogniser)})"
            )
        self.ids = texts(clips["id"])
        video, centre = sampler.rows["video"], (sampler.rows["start_s"] + sampler.rows["stop_s"]) / 2
        self._first, self.count = _spans(video[self._rows[:, 0]], centre[self._rows[:, 0]], clips)

        states = np.stack([s.status()[self._rows[:, i]] for i, s in enumerate(self.stores)])
        self._ok, self._pending = (states == OK).all(axis=0), states == PENDING
        sums = np.concatenate([[0], np.cumsum(self._ok)])
        self.usable = sums[self._first + self.count] > sums[self._first]
        self._some = np.searchsorted(sums, sums[self._first], side="right") - 1  # first one that is ok, where usable

    def at(self, which: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The candidates of usable clips `which` (n,): rows (n, N, 2) int64 of both stores, and mask (n, N) bool.

        u (n, N) in [0, 1) says where in each of N equal segments: 0.5 the middle. A clip of fewer instants than
        segments shows each of them once, in order. A clip whose frames all failed at these places shows one that did
        not. Where mask is False, the rows are those of some frame that is ok, so that they can be read.
        """
        which = np.asarray(which, np.int64)
        count, segments = self.count[which][:, None], u.shape[1]
        place = np.where(count < segments, np.arange(segments), segment_positions(count[:, 0], u))
        at = self._first[which][:, None] + np.minimum(place, count - 1)
        mask = (place < count) & self._ok[at]
        lost = ~mask.any(axis=1)
        mask[lost, 0] = True
        some = self._some[which][:, None]
        at = np.where(mask & ~lost[:, None], at, some)
        return self._rows[at], mask

    def check_pending(self, which: np.ndarray) -> None:
        """Raise `UserError` if a frame of clips `which` has still to be computed."""
        edges = np.zeros(len(self._rows) + 1, np.int64)
        np.add.at(edges, self._first[which], 1)
        np.add.at(edges, self._first[which] + self.count[which], -1)
        shown = np.cumsum(edges)[:-1] > 0
        for store, pending in zip(self.stores, self._pending, strict=True):
            if n := int((pending & shown).sum()):
                waiting = count_of(n, "frame of these clips is", "frames of these clips are")
                raise UserError(
                    f"{store.path}: {waiting} still pending: run extract again, or mask them with --allow-incomplete"
                )

    def line(self) -> str:
        """How the stores fit together, for the person."""
        sampler, recogniser = (int(store.visible.sum()) for store in self.stores)
        failed = int((~self._ok).sum())
        return (
            f"frames: {count_of(len(self._rows), 'instant is', 'instants are')} in both stores"
            f" (of {sampler} and {recogniser})"
            f"{f', {failed} of them without a value in one' if failed else ''}"
        )


class Candidates:
    """A task's batches: the candidates of clips, as the sampler is shown them, with the recogniser's logits.

    inputs: `VectorInputs` or `FrameInputs` of the sampler's store. frames: N. Every random number follows from
    (seed, clip id, epoch). Safe to share between threads.
    """

    def __init__(self, shared: SharedFrames, inputs, targets: Targets, frames: int, seed: int):
        self.shared, self.inputs, self.targets, self.frames, self.seed = shared, inputs, targets, frames, seed
        self._shown = "vector" if isinstance(inputs, VectorInputs) else "frames"
        self._cache = RowCache([(shared.stores[1], "logits", None)], KEEP_BYTES)

    def random(self, which: np.ndarray, epoch: int) -> dict:
        """Clips `which`, one random frame of each segment: the batch of heads.psn, {"sampler": {"vector" (n, N, C), or
        "frames" uint8 (n, N, S, S, 3); "mask"}, "recogniser": {"logits", "mask"}, "labels": {"class"}}."""
        ids = self.shared.ids[which]
        u = counter_uniform(self.seed, ids[:, None], "segment", epoch, np.arange(self.frames))
        rows, mask = self.shared.at(which, u)
        shown = self.inputs.random(rows[..., 0], ids, epoch)
        return {
            "sampler": {self._shown: shown, "mask": mask},
            "recogniser": {"logits": self._logits(rows[..., 1]), "mask": mask},
            "labels": {"class": self.targets.of(which)},
        }

    def batch(self, which: np.ndarray) -> dict:
        """Clips `which` with the middle frame of each segment, each distinct frame once: {"input": (R, ...), "place":
        (n, N) int64 into them, "mask": (n, N) bool, "logits": (n, N, classes) float32}."""
        rows, mask = self.shared.at(which, middles(len(which), self.frames))
        distinct, place = np.unique(rows[..., 0], return_inverse=True)
        return {
            "input": self.inputs.batch(distinct),
            "place": place.reshape(mask.shape),
            "mask": mask,
            "logits": self._logits(rows[..., 1]),
        }

    def _logits(self, rows: np.ndarray) -> np.ndarray:
        values = self._cache.read(self.shared.stores[1], "logits", rows.ravel())
        return values.astype(np.float32).reshape(*rows.shape, -1)


def _same_instants(sampler: Store, recogniser: Store, only: np.ndarray | None) -> np.ndarray:
    """(P, 2) int64: rows of the two stores that are one instant of one video, by (video of the sampler, time)."""
    number = positions(texts(recogniser.videos["name"]), texts(sampler.videos["name"]))
    parts = []
    for of, store in enumerate((sampler, recogniser)):
        if (store.rows["clip"][store.visible] >= 0).any():
            raise UserError(f"{store.path}: its rows belong to clips; a sampler needs frames (extract --axis frame)")
        row = np.flatnonzero(store.visible if of or only is None else store.visible & only)
        video = store.rows["video"][row].astype(np.int64)
        video = number[video] if of else video
        times = store.rows["start_s"][row], store.rows["stop_s"][row]
        parts.append((row[video >= 0], np.full((video >= 0).sum(), of), *(c[video >= 0] for c in (video, *times))))
    row, of, video, start, stop = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((start, video))
    row, of, video, start, stop = (column[order] for column in (row, of, video, start, stop))
    same = (video[1:] == video[:-1]) & (of[1:] != of[:-1])
    same &= (np.abs(np.diff(start)) <= _SAME_S) & (np.abs(np.diff(stop)) <= _SAME_S)
    first = np.flatnonzero(same)
    return np.where(of[first] == 0, (row[first], row[first + 1]), (row[first + 1], row[first])).T


def _spans(video: np.ndarray, time: np.ndarray, clips) -> tuple[np.ndarray, np.ndarray]:
    """(where each clip's instants begin, how many), of instants sorted by (video, time)."""
    start, stop = np.asarray(clips["start_s"], np.float64), np.asarray(clips["stop_s"], np.float64)
    middle = np.where(np.isnan(stop), start, (start + stop) / 2)
    last = 1 + max(np.max(column, initial=0, where=~np.isnan(column)) for column in (time, start, stop))
    stop, of = np.where(np.isnan(stop), last, stop), np.asarray(clips["video"], np.int64)
    key = video * last + time  # ascending: one search over all videos
    first, end = np.searchsorted(key, of * last + start), np.searchsorted(key, of * last + stop)
    on_screen = np.searchsorted(key, of * last + middle, side="right") - 1
    short = (end <= first) & (on_screen >= 0) & (video[on_screen] == of)
    first = np.where(short, on_screen, first)
    return np.minimum(first, len(key)), np.where(short, 1, np.maximum(end - first, 0))


def _sampling(store: Store) -> str:
    said = store.manifest.recipe.get("sampling") or {}
    return ", ".join(f"{name} {value}" for name, value in said.items()) or "not said"
