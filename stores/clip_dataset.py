"""Stores joined clip by clip: what a head trains on, and what one's own DataLoader can read.

Nothing here knows torch. Batches are read whole, one read a store and array, because a store answers a batch several
times faster than its rows one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from errors import UserError

from .joining import (
    VideoFacts,
    label_columns,
    no_array,
    open_roles,
    per_item,
    positions,
    same_dataset,
    same_store,
    texts,
)
from .manifest import ABSENT, FAILED, OK, PENDING
from .object_windows import ObjectWindows
from .row_cache import RowCache
from .splits import split_mask

__all__ = ["ClipDataset"]

_FACTS = ("labels", "item", "clip", "ok")  # what a batch says of its items
_AGREE_S = 1e-3  # joined windows may differ by this much


class ClipDataset:
    """Clips of one dataset with their features from several stores.

    `stores` maps a role to a store or its path. Roles named in `windows` are stores of boxes on the frame axis;
    all others are clip stores, and the first of them says which clips there are. `windows` maps a list to its
    length in seconds: `{"objects": 6}`, or several lists of one store, `{"objects_noun": 6, "objects_verb": 4}`.

    `split`: `train`, `val`, `trainval`, `[scheme:]part[+part]`, None for all clips. `draws`: which draws of a clip
    are items; by default all its random draws for training splits, or the centre clip (draw 0) where it has none and
    on every other split. `arrays`: role -> arrays to read, by default all but `n_padded`. `labels`: the role whose
    labels count, needed when stores disagree.

    An item is one (clip, draw). `batch(indices)` returns, with B = len(indices):

        {role: {array: (B, ...), "geometry": (B, 4) float32 if the store has maps}}     zeros where the row is not ok
        {list: {array: (B, F * K, ...), "boxes": (B, F * K, 4) float32 XYXY relative to the frame,
                "time_s": (B, F * K) float64, "mask": (B, F * K) bool}}                 zeros where mask is False
        {"labels": {name: (B,) int64}, "item": (B,) int64, "clip": (B,) int64, "ok": (B,) bool}

    F is the number of frames in the list's window, K = boxes_per_frame, the first in stored order (by score). Frames
    without a row that is ok, and slots without a box, are masked. `ok` is False where a clip store has no value.
    `__getitems__` gives the same as a list of single items, so a torch DataLoader's default collation works.

    `keep_bytes`: the smallest arrays that fit in this much are read once and kept in memory (`RowCache`) by the process
    that made this object: to profit, read ahead by threads (`prefetch`). Worker processes are as safe; start them by
    "spawn" or "forkserver", or fork them before the first read (keeping rows reads them; so does opening an address).
    Stores stay the version that was opened (see `Store`).

    Raises UserError: stores of different datasets or windows, differing labels, rows still pending (unless
    `allow_incomplete`, which masks them), a split or array that is not there.
    """

    def __init__(
        self,
        stores: Mapping[str, object],
        split: str | None = None,
        *,
        windows: Mapping[str, float] | None = None,
        boxes_per_frame: int = 5,
        arrays: Mapping[str, Sequence[str]] | None = None,
        draws: Iterable[int] | None = None,
        labels: str | None = None,
        allow_incomplete: bool = False,
        keep_bytes: int = 0,
    ):
        self.stores = open_roles(stores)
        self.boxes_per_frame = boxes_per_frame
        self._lists = {name: (self._role_of(name), float(seconds)) for name, seconds in (windows or {}).items()}
        framewise = dict.fromkeys(role for role, _ in self._lists.values())
        self.clip_roles = [role for role in self.stores if role not in framewise]
        wrong = next((name for name in (*self.stores, *self._lists) if name in _FACTS), None)
        if wrong is not None:
            raise UserError(f"a batch has an entry {wrong!r} of its own: choose another name for that store or list")
        if not self.clip_roles:
            raise UserError("a ClipDataset needs at least one clip store beside the stores it looks at in windows")
        self._arrays = {role: self._wanted(role, (arrays or {}).get(role)) for role in self.stores}

        first = self._first = self.stores[self.clip_roles[0]]
        self.dataset_name = same_dataset(self.stores)
        self.clip_ids = texts(first.clips["id"])
        self._splits, self._columns = self._annotations(labels)
        items = self._select(split, draws)
        self._rows = {role: self._join(role, items) for role in self.clip_roles}
        rows = first.rows
        self.clips = rows["clip"][items].astype(np.int64)
        self.draws = rows["draw"][items].astype(np.int64)
        self.video_names = texts(first.videos["name"])
        self.videos = rows["video"][items].astype(np.int64)
        self.centres_s = (rows["start_s"][items] + rows["stop_s"][items]) / 2
        self.labels = {name: column[self.clips].astype(np.int64) for name, column in self._columns.items()}
        self._status = {role: self._status_of(role, r) for role, r in self._rows.items()}
        self.ok = np.all([status == OK for status in self._status.values()], axis=0)
        self._windows = {role: self._windows_of(role) for role in framewise}
        self._spans = {role: w.spans(self.videos, self.centres_s) for role, w in self._windows.items()}
        if not allow_incomplete:
            self._refuse_pending()
        self._geometry = {role: VideoFacts(self.stores[role].geometry, self.video_names) for role in self.stores}
        self._cache = RowCache(self._arrays_read(), keep_bytes)

    # --- size, coverage ---

    def __len__(self) -> int:
        return len(self.clips)

    def coverage(self) -> dict:
        """{"items": n, "ok": n, "failed": {role: n}, "pending": {role: n}, "without_objects": {list: n}}: how many
        items have all clip features, which do not and why, and how many have no frame of objects at all."""

        def count(*codes):
            counts = {role: int(np.isin(status, codes).sum()) for role, status in self._status.items()}
            return {role: n for role, n in counts.items() if n}

        spans = [pair for of_role in self._spans.values() for pair in of_role.items()]
        empty = {name: int((per_item(span.ok, span.offsets) == 0).sum()) for name, span in spans}
        return {
            "items": len(self),
            "ok": int(self.ok.sum()),
            "failed": count(FAILED, ABSENT),
            "pending": count(PENDING),
            "without_objects": {name: n for name, n in empty.items() if n},
        }

    def in_split(self, split: str | None) -> np.ndarray:
        """(len(self),) bool: items whose clip is in `split`; all of them when it is None or not a split here."""
        try:
            return self._mask(split)[self.clips]
        except UserError:
            return np.ones(len(self), bool)

    def split_labels(self, split: str | None) -> dict[str, np.ndarray]:
        """Label columns of all annotated clips of a split, extracted or not."""
        mask = self._mask(split)
        return {name: column[mask].astype(np.int64) for name, column in self._columns.items()}

    # --- items ---

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        batch = self.batch(indices)

        def item(values, i):
            return {key: item(value, i) if isinstance(value, dict) else value[i] for key, value in values.items()}

        return [item(batch, i) for i in range(len(indices))]

    def batch(self, indices: Sequence[int]) -> dict:
        """One batch as nested dicts of arrays (see the class). Every store and array is read once, in one call."""
        at = np.asarray(indices, np.int64)
        if len(at) and not (-len(self) <= at.min() and at.max() < len(self)):
            raise IndexError(f"item {at[(at < -len(self)) | (at >= len(self))][0]} of {len(self)}")
        at = at % max(1, len(self))
        out, done = {}, {}
        for role in self.clip_roles:
            out[role] = {}
            for name in self._arrays[role]:
                key = (str(self.stores[role].path), name)  # one store in two roles is read once
                if key not in done:
                    done[key] = self._read(role, name, self._rows[role][at], self._status[role][at] == OK)
                out[role][name] = done[key]
            if {"map", "spatial"} & set(self._arrays[role]):
                out[role]["geometry"] = self._geometry[role].of(self.videos[at], self._status[role][at] == OK)
        for role, windows in self._windows.items():
            out.update(windows.read(self._spans[role], at, self.videos[at], functools.partial(self._values, role)))
        out["labels"] = {name: column[at] for name, column in self.labels.items()}
        return {**out, "item": at, "clip": self.clips[at], "ok": self.ok[at]}

    def _read(self, role: str, name: str, rows: np.ndarray, good: np.ndarray) -> np.ndarray:
        """Values of `rows`, in their order, zeros where not `good`. The store sees each row once, ascending."""
        if len(rows) and good.all() and (np.diff(rows) > 0).all():
            return self._values(role, name, rows)
        spec = self.stores[role].manifest.arrays[name]
        values = np.zeros((len(rows), *spec.row_shape), spec.dtype)
        wanted, back = np.unique(rows[good], return_inverse=True)
        if len(wanted):
            read = self._values(role, name, wanted)
            values[good] = read[back]
        return values

    def _values(self, role: str, name: str, rows: np.ndarray) -> np.ndarray:
        return self._cache.read(self.stores[role], name, rows)

    def _arrays_read(self):
        """(store, array, how many of a row's entries are used) of all that batches read."""
        for role, names in self._arrays.items():
            first = None if role in self.clip_roles else self.boxes_per_frame
            yield from ((self.stores[role], name, first) for name in names)

    def frames(self, name: str) -> int:
        """F: how many frames of its store's grid the window of a list holds."""
        return self._windows[self._lists[name][0]].frames[name]

    # --- joining ---

    def _role_of(self, name: str) -> str:
        role = name if name in self.stores else name.rpartition("_")[0]
        if role not in self.stores:
            raise UserError(f"window {name!r} names no store; there are {', '.join(self.stores)}")
        if "boxes" not in self.stores[role].manifest.arrays:
            raise UserError(f"window {name!r}: {self.stores[role].path} holds no boxes")
        return role

    def _wanted(self, role: str, names: Sequence[str] | None) -> list[str]:
        store = self.stores[role]
        framewise = role not in self.clip_roles
        if names is None:
            there = store.manifest.arrays
            names = [n for n in there if n != "n_padded" and not (framewise and not there[n].row_shape)]
        for name in names:
            if name not in store.manifest.arrays:
                raise no_array(store, name)
        return list(names) if not framewise or "boxes" in names else [*names, "boxes"]

    def _annotations(self, labels: str | None):
        """(splits table, label columns) by clip of the first store; refuses labels that differ between stores."""
        first = self._first
        if labels is not None and labels not in self.clip_roles:
            raise UserError(f"labels={labels!r} is no clip store; there are {', '.join(self.clip_roles)}")
        chosen = labels or self.clip_roles[0]
        columns = label_columns(first.clips)
        for role in self.clip_roles[1:]:
            store = self.stores[role]
            if store is first:
                continue
            back = positions(texts(first.clips["id"]), texts(store.clips["id"]))
            here = label_columns(store.clips)
            both = back >= 0
            for name in sorted(set(columns) & set(here)):
                differs = np.flatnonzero(both & (here[name][back] != columns[name]))
                if labels is None and len(differs):
                    clip = texts(first.clips["id"])[differs[0]]
                    raise UserError(
                        f"{first.path} and {store.path} disagree on {name} of {len(differs)} clips (first: {clip});"
                        f" say which counts with labels={self.clip_roles[0]!r} or labels={role!r}"
                    )
            if role == chosen:
                columns = {name: np.where(both, column[back], -1) for name, column in here.items()}
        splits = {name: texts(first.clips[name]) for name in first.clips if name.startswith("split")}
        return splits, columns

    def _mask(self, split: str | None) -> np.ndarray:
        """(clips of the first store,) bool."""
        if split is None:
            return np.ones(len(self.clip_ids), bool)
        return split_mask(self._splits, split, self._first.path)

    def _select(self, split: str | None, draws: Iterable[int] | None) -> np.ndarray:
        """Rows of the first store that are items, ascending."""
        rows = self._first.rows
        clip, draw = rows["clip"], rows["draw"]
        if draws is not None:
            draws = list(draws)
            chosen = np.isin(draw, draws)
        elif split is not None and split.rpartition(":")[2] in ("train", "trainval"):
            varied = np.zeros(int(clip.max(initial=-1)) + 1, bool)
            varied[clip[draw > 0]] = True
            chosen = np.where(varied[clip], draw > 0, draw == 0)
        else:
            chosen = draw == 0
        items = np.flatnonzero(self._mask(split)[clip] & chosen & (clip >= 0))
        if not len(items):
            asked = f" with draws {draws}" if draws else ""
            raise UserError(f"{self._first.path}: no clip in split {split!r}{asked}")
        return items

    def _join(self, role: str, items: np.ndarray) -> np.ndarray:
        """Rows of `role` that are the same clip and draw as rows `items` of the first store; -1 where it has none."""
        first, store = self._first, self.stores[role]
        if same_store(store, first):
            return items
        ours, theirs = first.rows, store.rows
        clip = positions(texts(first.clips["id"]), texts(store.clips["id"]))[ours["clip"][items]]
        width, none = 1 << 20, -(1 << 62)  # clip and draw in one number; k is 0 on the clip axis
        key = theirs["clip"].astype(np.int64) * width + theirs["draw"]
        wanted = np.where(clip >= 0, clip * width + ours["draw"][items], none)
        order = np.argsort(key, kind="stable")
        at = np.minimum(np.searchsorted(key, wanted, sorter=order), len(key) - 1)
        rows = np.where(key[order[at]] == wanted, order[at], -1)
        known = np.flatnonzero(rows >= 0)
        off = np.zeros(len(rows))
        for edge in ("start_s", "stop_s"):
            one, other = ours[edge][items[known]], theirs[edge][rows[known]]
            differs = np.where(np.isnan(one) & np.isnan(other), 0, np.abs(one - other))  # the end of a whole video
            off[known] = np.maximum(off[known], differs)
        names = texts(first.videos["name"])[ours["video"][items[known]]]
        off[known[names != texts(store.videos["name"])[theirs["video"][rows[known]]]]] = np.inf
        wrong = np.flatnonzero(~(off <= _AGREE_S))
        if len(wrong):
            i = wrong[0]
            a, b = items[i], rows[i]
            clip_id, draw = texts(first.clips["id"])[ours["clip"][a]], ours["draw"][a]
            raise UserError(
                f"{first.path} and {store.path} saw different windows of {len(wrong)} clips; first: clip {clip_id}"
                f" draw {draw}, [{ours['start_s'][a]:.3f}, {ours['stop_s'][a]:.3f}) s in row {a} and"
                f" [{theirs['start_s'][b]:.3f}, {theirs['stop_s'][b]:.3f}) s in row {b}."
                " Extract both with the same sampling and seed"
            )
        return rows

    def _status_of(self, role: str, rows: np.ndarray) -> np.ndarray:
        return np.where(rows >= 0, self.stores[role].status()[rows], PENDING).astype(np.uint8)

    def _windows_of(self, role: str) -> ObjectWindows:
        return ObjectWindows(
            self.stores[role],
            {name: seconds for name, (of, seconds) in self._lists.items() if of == role},
            self.video_names,
            boxes_per_frame=self.boxes_per_frame,
            arrays=self._arrays[role],
        )

    def _refuse_pending(self) -> None:
        for role, status in self._status.items():
            waiting = np.flatnonzero(status == PENDING)
            if len(waiting):
                self._incomplete(role, len(waiting), len(status), self.clip_ids[self.clips[waiting[0]]])
        for role, spans in self._spans.items():
            status = self.stores[role].status()
            for span in spans.values():
                waiting = np.flatnonzero(per_item(status[span.rows] == PENDING, span.offsets))
                if len(waiting):
                    self._incomplete(role, len(waiting), len(self), self.clip_ids[self.clips[waiting[0]]])

    def _incomplete(self, role: str, n: int, of: int, clip: str):
        raise UserError(
            f"{self.stores[role].path}: {n} of {of} wanted clips wait for rows that are still pending"
            f" (first: clip {clip}). Run extract again to finish the store, or pass --allow-incomplete"
            " (allow_incomplete=True) to mask them"
        )
