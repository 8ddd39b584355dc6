"""Boxes in the seconds around an instant: what a head sees of the objects near a clip."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .joining import VideoFacts, frame_size, positions, texts
from .manifest import OK
from .reader import Store

__all__ = ["ObjectWindows", "Span"]


@dataclass(frozen=True)
class Span:
    """Frames of many windows: window i's are rows[offsets[i]:offsets[i + 1]], in time order, and ok says which are."""

    rows: np.ndarray
    offsets: np.ndarray
    ok: np.ndarray


class ObjectWindows:
    """Lists of boxes of one store on the frame axis, around any instants.

    lists: {name: seconds}; a list's window around centre c is [c - seconds / 2, c + seconds / 2). boxes_per_frame: the
    first in stored order (by score). arrays: what is read of each box, `boxes` among them. video_names: how the caller
    numbers videos. Which rows are ok is looked up once.
    """

    def __init__(
        self,
        store: Store,
        lists: Mapping[str, float],
        video_names: Sequence[str],
        *,
        boxes_per_frame: int,
        arrays: Sequence[str],
    ):
        self.store, self.lists = store, {name: float(seconds) for name, seconds in lists.items()}
        self.boxes_per_frame, self.arrays = boxes_per_frame, list(arrays)
        self._video = positions(texts(video_names), texts(store.videos["name"]))
        self._frame_size = VideoFacts(functools.partial(frame_size, store), video_names)
        self._ok = store.status() == OK
        step = _step(store)
        self.frames = {name: max(1, round(seconds / step)) for name, seconds in self.lists.items()}
        """F: how many frames of the store's grid the window of each list holds."""

    def spans(self, videos: np.ndarray, centres_s: np.ndarray) -> dict[str, Span]:
        """The frames of every list around centres (n,), in seconds, of videos (n,)."""
        video = self._video[videos]
        known = np.flatnonzero(video >= 0)
        centre, found = centres_s[known], {}
        for name, seconds in self.lists.items():
            rows, of_known = self.store.rows_between_many(video[known], centre - seconds / 2, centre + seconds / 2)
            counts = np.zeros(len(videos), np.int64)
            counts[known] = np.diff(of_known)
            found[name] = Span(rows, np.concatenate([[0], np.cumsum(counts)]), self._ok[rows])
        return found

    def read(
        self,
        spans: Mapping[str, Span],
        at: np.ndarray,
        videos: np.ndarray,
        values_of: Callable[[str, np.ndarray], np.ndarray] | None = None,
    ) -> dict[str, dict[str, np.ndarray]]:
        """Lists of windows `at` (B,) of the spans, in videos (B,): what `ClipDataset.batch` says of them.

        values_of: (array, rows) -> values, by default the store's own. The union of all lists' frames is read once.
        """
        values_of = values_of or self.store.read
        k, grids = self.boxes_per_frame, {}
        for name, span in spans.items():
            slot = span.offsets[at][:, None] + np.arange(self.frames[name])
            inside = slot < span.offsets[at + 1][:, None]
            slot = np.where(inside, slot, 0)
            grids[name] = (
                np.where(inside & span.ok[slot], span.rows[slot], -1) if len(span.rows) else np.full_like(slot, -1)
            )
        rows = np.unique(np.concatenate([grid.ravel() for grid in grids.values()]))
        rows = rows[rows >= 0]
        read = {}
        for name in self.arrays:
            spec = self.store.manifest.arrays[name]
            # One more row of zeros at the end: where a frame is missing, index -1 finds it.
            read[name] = np.zeros((len(rows) + 1, min(k, spec.row_shape[0]), *spec.row_shape[1:]), spec.dtype)
            if len(rows):
                read[name][:-1] = values_of(name, rows)[:, :k]
        times = self.store.rows["start_s"]
        out = {}
        for name, grid in grids.items():
            place = np.where(grid >= 0, np.searchsorted(rows, grid), -1)
            picked = {array: values[place] for array, values in read.items()}  # (B, F, K, ...)
            boxes = picked["boxes"]
            mask = (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])  # padding is zero
            flat = mask.shape[1] * mask.shape[2]
            size = self._frame_size.of(videos, (grid >= 0).any(axis=1))[:, None, None]
            picked["boxes"] = (boxes / np.where(size > 0, size, 1)).astype(np.float32)
            picked["time_s"] = np.broadcast_to(np.where(grid >= 0, times[grid], 0)[..., None], mask.shape)
            for array, values in picked.items():
                values = np.where(mask.reshape(*mask.shape, *[1] * (values.ndim - 3)), values, values.dtype.type(0))
                picked[array] = values.reshape(len(at), flat, *values.shape[3:])
            out[name] = {**picked, "mask": mask.reshape(len(at), flat)}
        return out


def _step(store: Store) -> float:
    """Seconds between neighbouring frames of a frame store."""
    rows = store.rows
    steps = np.diff(rows["start_s"])[np.diff(rows["video"]) == 0]
    steps = steps[steps > 0]
    return float(np.median(steps)) if len(steps) else np.inf
