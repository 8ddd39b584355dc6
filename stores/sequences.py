"""Stores side by side in time: of each video, clip or window, what every expert says about it, one token after another.

For heads that read sequences (retrieval, localisation, detection over time). Nothing here knows torch or a head.
Tokens differ in number from item to item and from expert to expert: they come padded, with masks.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from errors import UserError

from .joining import (
    Roles,
    VideoFacts,
    frame_size,
    label_columns,
    no_array,
    open_roles,
    per_item,
    positions,
    ranges,
    same_dataset,
    same_store,
    texts,
)
from .manifest import ABSENT, FAILED, OK, PENDING
from .reader import Store
from .row_cache import RowCache
from .splits import split_mask

__all__ = ["SequenceDataset", "pad_sequences", "unpack_text"]

COUNTED = {"tokens": "n_tokens", **dict.fromkeys(("roi", "boxes", "scores", "classes"), "n_boxes")}
"""Arrays of which a row holds several entries, and the array that says how many."""

UNCOUNTABLE = ("tokens", "roi", "boxes")
"""Arrays that cannot be read without their count: their padding is zeros like any others."""

LEFT_OUT = ("map", "spatial", "text")
"""Arrays that are read only if they are asked for."""

PICKS = ("even", "random", "first")
FACTS = ("item", "video", "clip", "start_s", "stop_s", "labels")
"""What a batch says of its items beside the roles."""


@dataclass(frozen=True)
class _Span:
    """The rows of a store that the items of a dataset read: item i's are rows[offsets[i]:offsets[i + 1]], in order.

    before: (len(rows) + 1,) tokens of the rows before each; None where a row is one token.
    """

    rows: np.ndarray
    offsets: np.ndarray
    before: np.ndarray | None

    def tokens(self) -> np.ndarray:
        """(items + 1,) where each item's tokens begin."""
        return self.offsets if self.before is None else self.before[self.offsets]


class SequenceDataset:
    """Videos, clips or windows of one dataset, with the sequence of tokens that each of several stores has of them.

    `stores` maps a role ("rgb", "audio", "ocr", ...) to a store or its path; the first says which videos and clips
    there are, and in which split. `by` says what an item is:

        "video"   a whole video
        "clip"    an annotated clip
        "row"     a row of the first store: a caption of a text store, say, with the experts of its clip
        {"video": names or numbers, "start_s": (n,), "stop_s": (n,)}    windows of one's own, in seconds

    Of a clip, a store whose rows belong to clips gives the rows of that clip, any other store the rows whose centre
    lies in [start_s, stop_s) and, where there is none, the one that saw the clip's middle; of a window, likewise by
    centre; of a whole video (also as a clip, from 0 and without a stop) all, those of unknown time too. Rows are in
    order of time, then k. `draws`: the draws that count.

    A row is one token, or as many as it has entries: words (`tokens`, by `n_tokens`), boxes (`roi`, `boxes`, ...,
    by `n_boxes`). `arrays`: role -> arrays to read; by default the entries, where the store has any, else all but
    `map`, `spatial`, `text` and counts. Several kinds of one store are several roles. `max_tokens`: at most so many
    tokens an item, {role: n} or n for all; `pick` says which: "even" (spread over the whole), "random" (another choice
    each `epoch`, which may be set; determined by `seed`, item and epoch) or "first".

    `batch(indices)` returns, with B = len(indices) and L = the most tokens of an item of the batch, at least 1:

        {role: {array: (B, L, ...), "time_s": (B, L, 2) float64 window of each token's row, NaN where unknown,
                "mask": (B, L) bool, "present": (B,) bool: the expert has at least one token}}
        {"item", "video", "clip": (B,) int64, "start_s", "stop_s": (B,) float64, "labels": {name: (B,) int64}}

    in the stores' dtypes, `boxes` float32 XYXY relative to the frame. Values are zero where mask is False, and only
    there: an expert that is absent, failed or found nothing is not present. clip and labels are -1 where an item is no
    clip. `__getitems__` gives the same item by item, unpadded, (L, ...) each; `pad_sequences` makes a batch of them
    (the `collate_fn` of a torch DataLoader).

    `keep_bytes`: as of `ClipDataset`. Raises UserError: stores of different datasets, rows still pending (unless
    `allow_incomplete`, which masks them), a split or array that is not there.
    """

    def __init__(
        self,
        stores: Roles,
        by: str | Mapping[str, Any] = "video",
        *,
        split: str | None = None,
        arrays: Mapping[str, Sequence[str]] | None = None,
        max_tokens: int | Mapping[str, int] | None = None,
        pick: str = "even",
        seed: int = 0,
        draws: Iterable[int] = (0,),
        allow_incomplete: bool = False,
        keep_bytes: int = 0,
    ):
        self.stores = open_roles(stores)
        wrong = next((role for role in self.stores if role in FACTS), None)
        if not self.stores or wrong is not None:
            raise UserError(f"a SequenceDataset needs stores, by names other than {', '.join(FACTS)}; got {wrong}")
        if pick not in PICKS:
            raise UserError(f"pick must be one of {', '.join(PICKS)}, got {pick!r}")
        self.dataset_name = same_dataset(self.stores)
        self._first = next(iter(self.stores.values()))
        self._pick, self._seed, self.epoch = pick, seed, 0
        self._draws = list(draws)
        self._arrays = {role: self._wanted(role, (arrays or {}).get(role)) for role in self.stores}
        self._most = {role: self._most_of(role, max_tokens) for role in self.stores}

        self.video_names, self.clip_ids = texts(self._first.videos["name"]), texts(self._first.clips["id"])
        self._by_row: np.ndarray | None = None
        self.videos, self.clips, self.start_s, self.stop_s = self._items(by, split)
        labels = label_columns(self._first.clips)
        self.labels = {name: _taken(column, self.clips).astype(np.int64) for name, column in labels.items()}
        self._counts: dict[str, dict[int, int]] = {}
        self._spans = {role: self._span(role, allow_incomplete) for role in self.stores}
        self._frame_size = {
            role: VideoFacts(functools.partial(frame_size, store), self.video_names)
            for role, store in self.stores.items()
        }
        self._cache = RowCache(
            ((self.stores[role], name, None) for role, names in self._arrays.items() for name in names), keep_bytes
        )

    # --- size, coverage, captions ---

    def __len__(self) -> int:
        return len(self.videos)

    def coverage(self) -> dict:
        """{"items": n, "present": {role: items with a token}, "failed", "absent", "pending": {role: rows}}."""
        present = {role: int((np.diff(span.tokens()) > 0).sum()) for role, span in self._spans.items()}
        counted = {
            name: {role: counts[code] for role, counts in self._counts.items() if counts[code]}
            for name, code in (("failed", FAILED), ("absent", ABSENT), ("pending", PENDING))
        }
        return {"items": len(self), "present": present, **counted}

    def captions(self, index: int) -> list[str]:
        """What the dataset says about an item in words: the captions of its clip, else of all clips of its video."""
        kind, number = ("clip", self.clips[index]) if self.clips[index] >= 0 else ("video", self.videos[index])
        captions, first, there = self._captions[kind]
        at = there[number]
        return captions[first[at] : first[at + 1]].tolist() if at >= 0 else []

    @functools.cached_property
    def _captions(self) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """By clip and by video: captions in order, where those of each begin, its number in the store that has them."""
        store = next((store for store in self.stores.values() if store.texts is not None), self._first)
        told = store.texts or {"clip": np.zeros(0, np.int32), "caption": np.zeros(0, object)}
        clip, caption = told["clip"], told["caption"]
        clips, videos = texts(store.clips["id"]), texts(store.videos["name"])
        return {
            "clip": (*_grouped(caption, clip, len(clips)), positions(self.clip_ids, clips)),
            "video": (
                *_grouped(caption, store.clips["video"][clip], len(videos)),
                positions(self.video_names, videos),
            ),
        }

    # --- items ---

    def __getitem__(self, index: int) -> dict:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict]:
        at = self._at(indices)
        items = [{} for _ in at]
        for role in self.stores:
            values, lengths = self._tokens(role, at)
            ends = np.cumsum(lengths)[:-1]
            parts = {name: np.split(array, ends) for name, array in values.items()}
            for i, length in enumerate(lengths.tolist()):
                mask = {"mask": np.ones(length, bool), "present": np.bool_(length > 0)}
                items[i][role] = {name: part[i] for name, part in parts.items()} | mask
        facts = self._facts(at)
        return [item | _entry(facts, i) for i, item in enumerate(items)]

    def batch(self, indices: Sequence[int]) -> dict:
        """One batch as nested dicts of arrays (see the class). Every store and array is read once, in one call."""
        at = self._at(indices)
        return {role: _padded(*self._tokens(role, at)) for role in self.stores} | self._facts(at)

    def _at(self, indices: Sequence[int]) -> np.ndarray:
        at = np.asarray(indices, np.int64)
        if len(at) and not (-len(self) <= at.min() and at.max() < len(self)):
            raise IndexError(f"item {at[(at < -len(self)) | (at >= len(self))][0]} of {len(self)}")
        return at % max(1, len(self))

    def _facts(self, at: np.ndarray) -> dict:
        named = {"video": self.videos, "clip": self.clips, "start_s": self.start_s, "stop_s": self.stop_s}
        labels = {name: column[at] for name, column in self.labels.items()}
        return {"item": at, **{name: column[at] for name, column in named.items()}, "labels": labels}

    def _tokens(self, role: str, at: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """({array: (n, ...)} of all tokens of these items one after another, (B,) tokens of each)."""
        store, span = self.stores[role], self._spans[role]
        begin, total = span.tokens()[at], np.diff(span.tokens())[at]
        length = total if self._most[role] is None else np.minimum(total, self._most[role])
        of_item = np.repeat(np.arange(len(at)), length)
        token = begin[of_item] + self._picked(at, total, length)
        row, slot = token, None
        if span.before is not None:
            row = np.searchsorted(span.before, token, side="right") - 1
            slot = token - span.before[row]
        row = span.rows[row]
        wanted, back = np.unique(row, return_inverse=True)
        out = {}
        for name in self._arrays[role]:
            spec = store.manifest.arrays[name]
            read = self._cache.read(store, name, wanted) if len(wanted) else np.zeros((0, *spec.row_shape), spec.dtype)
            out[name] = read[back] if slot is None else read[back, slot]
        if "boxes" in out:
            size = self._frame_size[role].of(self.videos[at], length > 0)[of_item]
            out["boxes"] = (out["boxes"] / (size if slot is not None else size[:, None])).astype(np.float32)
        times = (store.rows["start_s"][row], store.rows["stop_s"][row])
        return {**out, "time_s": np.stack(times, axis=-1).astype(np.float64)}, length

    def _picked(self, at: np.ndarray, total: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Which of an item's `total` tokens are its `length` ones, ascending, for all items one after another."""
        j, offsets = ranges(np.zeros_like(length), length)
        if self._pick == "first" or (total == length).all():
            return j
        if self._pick == "even":  # the middle of each of `length` equal parts
            return (2 * j + 1) * np.repeat(total, length) // np.maximum(2 * np.repeat(length, length), 1)
        every, starts = ranges(np.zeros_like(total), total)
        of_item = np.repeat(np.arange(len(at)), total)
        order = np.lexsort((_hashed(self._seed, self.epoch, at[of_item], every), of_item))
        rank = np.arange(len(order)) - starts[of_item]  # of_item is sorted, so it is that of the order too
        chosen = order[rank < length[of_item]]
        return every[np.sort(chosen)]

    # --- what is read ---

    def _wanted(self, role: str, names: Sequence[str] | None) -> list[str]:
        store = self.stores[role]
        there = store.manifest.arrays
        if names is None:
            entries = [name for name in there if COUNTED.get(name) in there]
            first = COUNTED[entries[0]] if entries else None
            plain = [name for name in there if not name.startswith("n_")]
            plain = [name for name in plain if name not in LEFT_OUT] or plain
            names = [name for name in entries if COUNTED[name] == first] or plain
        for name in names:
            if name not in there:
                raise no_array(store, name)
            if name in UNCOUNTABLE and COUNTED[name] not in there:
                raise no_array(store, COUNTED[name])
        kinds = {COUNTED[name] if COUNTED.get(name) in there else None for name in names}
        if len(kinds) != 1:
            raise UserError(
                f"{role}: {', '.join(names) or 'nothing'} of {store.path} cannot be one sequence: what belongs to its"
                " words, to its boxes and to a row as a whole are different numbers of tokens. Name one of these in"
                f" arrays={{{role!r}: [...]}}, and the same store again under another role for the next"
            )
        return list(names)

    def _most_of(self, role: str, given: int | Mapping[str, int] | None) -> int | None:
        most = given.get(role) if isinstance(given, Mapping) else given
        unknown = [name for name in given if name not in self.stores] if isinstance(given, Mapping) else []
        if unknown or (most is not None and most < 1):
            raise UserError(f"max_tokens={given!r}: numbers from 1 on, for {', '.join(self.stores)}")
        return most

    # --- which items there are ---

    def _items(self, by: str | Mapping, split: str | None) -> tuple[np.ndarray, ...]:
        """(video, clip or -1, start_s, stop_s) of every item."""
        first = self._first
        clips = first.clips
        in_split = np.ones(len(self.clip_ids), bool)
        if split is not None:
            in_split = split_mask({n: texts(clips[n]) for n in clips if n.startswith("split")}, split, first.path)
        video_in_split = np.full(len(self.video_names), split is None)
        video_in_split[clips["video"][in_split]] = True
        if isinstance(by, Mapping):
            if split is not None or not {"video", "start_s", "stop_s"} <= set(by):
                raise UserError("windows are {'video': ..., 'start_s': ..., 'stop_s': ...}, chosen without split=")
            video = np.array([first.video_index(video) for video in by["video"]], np.int64)
            found = (
                video,
                np.full(len(video), -1),
                *(np.asarray(by[name], np.float64) for name in ("start_s", "stop_s")),
            )
        elif by == "video":
            video = np.flatnonzero(video_in_split)
            found = video, np.full(len(video), -1), np.full(len(video), -np.inf), np.full(len(video), np.inf)
        elif by == "clip":
            clip = np.flatnonzero(in_split)
            found = clips["video"][clip], clip, clips["start_s"][clip], clips["stop_s"][clip]
        elif by == "row":
            rows, clip = first.rows, first.rows["clip"]
            wanted = np.where(clip >= 0, _taken(in_split, clip, False), _taken(video_in_split, rows["video"], False))
            at = self._by_row = np.flatnonzero(wanted & self._usable(first))
            found = rows["video"][at], clip[at], rows["start_s"][at], rows["stop_s"][at]
        else:
            raise UserError(f'by must be "video", "clip", "row" or a dict of windows, got {by!r}')
        if not len(found[0]):
            raise UserError(f"{first.path}: no {by if isinstance(by, str) else 'window'} in split {split!r}")
        video, clip, start, stop = found
        start, stop = np.where(np.isnan(start), -np.inf, start), np.where(np.isnan(stop), np.inf, stop)
        return video.astype(np.int64), clip.astype(np.int64), start, stop

    def _usable(self, store: Store) -> np.ndarray:
        """(len(store),) bool: rows that there are, of the draws that count."""
        return store.visible & np.isin(store.rows["draw"], self._draws)

    # --- which rows they read ---

    def _span(self, role: str, allow_incomplete: bool) -> _Span:
        store = self.stores[role]
        rows, offsets = self._rows_of_items(store)
        status = store.status()[rows]
        self._counts[role] = {code: int((status == code).sum()) for code in (PENDING, FAILED, ABSENT)}
        waiting = per_item(status == PENDING, offsets)
        if waiting.any() and not allow_incomplete:
            i = int(np.flatnonzero(waiting)[0])
            raise UserError(
                f"{store.path}: {(waiting > 0).sum()} of {len(self)} wanted items wait for rows that are still pending"
                f" (first: {self._name(i)}). Run extract again to finish the store, or pass --allow-incomplete"
                " (allow_incomplete=True) to mask them"
            )
        offsets = np.concatenate([[0], np.cumsum(per_item(status == OK, offsets))])
        rows = rows[status == OK]
        counter = COUNTED.get(self._arrays[role][0])
        if counter not in store.manifest.arrays:
            return _Span(rows, offsets, None)
        wanted, back = np.unique(rows, return_inverse=True)
        most = min(store.manifest.arrays[name].row_shape[0] for name in self._arrays[role])
        counts = store.read(counter, wanted)[back] if len(wanted) else np.zeros(0, np.int64)
        return _Span(rows, offsets, np.concatenate([[0], np.cumsum(np.clip(counts, 0, most), dtype=np.int64)]))

    def _rows_of_items(self, store: Store) -> tuple[np.ndarray, np.ndarray]:
        """(rows of all items one after another, offsets (items + 1,)), whatever their status."""
        if self._by_row is not None and same_store(store, self._first):
            return self._by_row, np.arange(len(self) + 1)
        rows, usable = store.rows, np.flatnonzero(self._usable(store))
        order = usable[np.lexsort((rows["k"][usable], (rows["start_s"][usable] + rows["stop_s"][usable]) / 2))]
        if (self.clips >= 0).all() and (rows["clip"][usable] >= 0).any():
            order = order[rows["clip"][order] >= 0]
            order, first = _grouped(order, rows["clip"][order], len(store.clips["id"]))
            number = positions(self.clip_ids, texts(store.clips["id"]))[self.clips]
            return _spanned(order, first, number)
        video = positions(self.video_names, texts(store.videos["name"]))[self.videos]
        whole = (self.start_s <= 0) & np.isposinf(self.stop_s)  # of a whole video, rows of unknown time too
        order, first = _grouped(order, rows["video"][order], len(store.videos["name"]))
        found, offsets = _spanned(order, first, np.where(whole, video, -1))
        if whole.all():
            return found, offsets
        rest, of_item = self._rows_in_windows(store, np.where(whole, -1, video))
        of_item = np.concatenate([np.repeat(np.arange(len(self)), np.diff(offsets)), of_item])
        return _grouped(np.concatenate([found, rest]), of_item, len(self))

    def _rows_in_windows(self, store: Store, video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, item of each), by time; video: (items,) its number in the store, -1: of these items no rows."""
        usable, start, stop = self._usable(store), store.rows["start_s"], store.rows["stop_s"]

        def look(items: np.ndarray, t0: np.ndarray, t1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """(rows, item of each) with their centre in [t0, t1) of these items' videos."""
            rows, offsets = store.rows_between_many(video[items], t0, t1)
            of_item = np.repeat(items, np.diff(offsets))
            return rows[usable[rows]], of_item[usable[rows]]

        known = np.flatnonzero(video >= 0)
        rows, of_item = look(known, self.start_s[known], self.stop_s[known])
        middle = (self.start_s + self.stop_s) / 2
        half = np.nanmax((stop - start)[usable], initial=0) / 2
        empty = known[~np.isin(known, of_item) & np.isfinite(middle[known])]
        if half > 0 and len(empty):  # items shorter than the step from row to row: the row that saw their middle
            near, of_near = look(empty, middle[empty] - half, middle[empty] + half)
            saw = (start[near] <= middle[of_near]) & (middle[of_near] < stop[near])
            near, of_near = near[saw], of_near[saw]
            order = np.lexsort((np.abs((start[near] + stop[near]) / 2 - middle[of_near]), of_near))
            nearest = order[np.flatnonzero(np.diff(of_near[order], prepend=-1))]
            rows, of_item = np.concatenate([rows, near[nearest]]), np.concatenate([of_item, of_near[nearest]])
        return rows, of_item

    def _name(self, item: int) -> str:
        if self.clips[item] >= 0:
            return f"clip {self.clip_ids[self.clips[item]]}"
        return f"video {self.video_names[self.videos[item]]}"


# ---------------------------------------------------------------------------------------------------- padding


def pad_sequences(items: Sequence[Mapping]) -> dict:
    """The batch of items that `SequenceDataset.__getitems__` gave, as `SequenceDataset.batch` makes it."""
    first, out = items[0], {}
    for role in (key for key, value in first.items() if isinstance(value, Mapping) and "mask" in value):
        lengths = np.array([len(item[role]["mask"]) for item in items])
        names = [name for name in first[role] if name not in ("mask", "present")]
        out[role] = _padded({name: np.concatenate([item[role][name] for item in items]) for name in names}, lengths)
    rest = [{key: value for key, value in item.items() if key not in out} for item in items]
    return out | _stacked(rest)


def _padded(values: Mapping[str, np.ndarray], lengths: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (n, ...)} of items one after another -> {name: (B, L, ...)}, with mask and present."""
    mask = np.arange(max(1, lengths.max(initial=0))) < lengths[:, None]
    out = {}
    for name, array in values.items():
        out[name] = np.zeros((*mask.shape, *array.shape[1:]), array.dtype)
        out[name][mask] = array
    return {**out, "mask": mask, "present": lengths > 0}


def _stacked(items: Sequence[Mapping]) -> dict:
    return {
        key: _stacked([item[key] for item in items])
        if isinstance(value, Mapping)
        else np.stack([i[key] for i in items])
        for key, value in items[0].items()
    }


def _entry(values: Mapping, i: int) -> dict:
    return {key: _entry(value, i) if isinstance(value, Mapping) else value[i] for key, value in values.items()}


def unpack_text(values: np.ndarray) -> list:
    """What rows of a `text` array say, (N, bytes) uint8: a list a row, of words with their places or times."""
    return [json.loads(text) if text else [] for text in (row.tobytes().rstrip(b"\0") for row in values)]


# ------------------------------------------------------------------------------------------------ arithmetic


def _taken(column: np.ndarray, index: np.ndarray, otherwise: Any = -1) -> np.ndarray:
    """column[index], `otherwise` where the index is negative."""
    return np.where(index >= 0, np.append(column, otherwise)[np.maximum(index, -1)], otherwise)


def _grouped(values: np.ndarray, key: np.ndarray, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """(values by key, in the order given within one; where each key begins (groups + 1,))."""
    order = np.argsort(key, kind="stable")
    return values[order], np.searchsorted(key[order], np.arange(groups + 1))


def _spanned(values: np.ndarray, first: np.ndarray, number: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The groups of these numbers one after another, nothing for -1, and their offsets."""
    begin, end = (np.where(number >= 0, first[np.maximum(number, 0) + i], 0) for i in (0, 1))
    position, offsets = ranges(begin, end)
    return values[position], offsets


def _hashed(seed: int, epoch: int, item: np.ndarray, token: np.ndarray) -> np.ndarray:
    """A number for every token of every item, uint64, as good as random: the same on any machine, in any batch."""
    x = np.full(len(item), seed % 2**64, np.uint64)
    for part in (np.full(len(item), epoch % 2**64, np.uint64), item.astype(np.uint64), token.astype(np.uint64)):
        x = (x ^ part) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return x
