"""Captions and clips for text-video retrieval: which belong together, which count, and their tokens.

The columns of the similarity matrix are clips (whole videos where a dataset's clips are), the rows captions. A caption
counts in a split if its clip is in it, and if the store's `texts` have a column of the same name, if the caption is in
it too (MSR-VTT 1k-A is tested with one caption a video).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from errors import UserError
from pipelines.needed_arrays import no_array
from stores import OK, SequenceDataset, Store
from stores.joining import positions
from stores.splits import split_column, split_mask

__all__ = [
    "CachedTokens",
    "Captions",
    "Pairs",
    "TokenIds",
    "expert_array",
    "max_tokens_of",
    "read_captions",
    "video_ends",
]

# Tokens of an expert and a video at most, of MSR-VTT (METHODS of the authors' release); any other expert: 30.
MAX_TOKENS = {"rgb": 51, "flow": 49, "scene": 31, "audio": 31, "speech": 112}
_OTHERS = 30


def max_tokens_of(experts: Sequence[str], most: int = 0) -> dict[str, int]:
    """{expert: its tokens at most}; most: the same for all, 0: the release's."""
    return {name: most or MAX_TOKENS.get(name, _OTHERS) for name in experts}


def expert_array(store: Store) -> str:
    """The array that is an expert's tokens: words, else boxes, else one vector a row. Raises UserError for none."""
    there = store.manifest.arrays
    for array, beside in (("tokens", "n_tokens"), ("roi", "n_boxes"), ("vector", "vector")):
        if {array, beside} <= {*there}:
            return array
    raise no_array(store, "vector")


def video_ends(stores: Iterable[Store], videos: np.ndarray) -> np.ndarray:
    """(n,) seconds at which whole videos (n,) names end: as the first store has it that has a probe of one, else with
    the last row that any store has of it; NaN where neither says."""
    stores, end = list(stores), np.full(len(videos), np.nan)
    places = [positions(videos, np.asarray(store.videos["name"]).astype(object)) for store in stores]
    for store, place in zip(stores, places, strict=True):
        for i in np.flatnonzero(np.isnan(end) & (place >= 0)):
            end[i] = (store.probe(int(place[i])) or {}).get("duration_s") or np.nan
    if not np.isnan(end).any():
        return end
    last = np.full(len(videos), np.nan)
    for store, place in zip(stores, places, strict=True):
        stop = store.rows["stop_s"]
        rows = np.flatnonzero(store.visible & np.isfinite(stop) & (stop > 0))
        of_video = np.full(len(store.videos["name"]), np.nan)
        np.fmax.at(of_video, store.rows["video"][rows], stop[rows])
        there = place >= 0
        last[there] = np.fmax(last[there], of_video[place[there]])
    return np.where(np.isnan(end), last, end)


@dataclass(frozen=True)
class Captions:
    """All captions that a store's dataset has.

    clip: (n,) the id of each one's clip; k: (n,) its number among the clip's; text: (n,).
    """

    clip: np.ndarray
    k: np.ndarray
    text: np.ndarray
    parts: Mapping[str, np.ndarray]  # {split column: (n,)}, where captions have their own

    @classmethod
    def of(cls, store: Store) -> Captions:
        """Raises UserError for a store of a dataset without captions."""
        told = store.texts
        if told is None or not len(told["clip"]):
            raise UserError(f"{store.path}: its dataset has no captions")
        clip = np.asarray(told["clip"])
        order = np.argsort(clip, kind="stable")
        first = np.searchsorted(clip[order], clip[order])
        k = np.empty(len(clip), np.int64)
        k[order] = np.arange(len(clip)) - first
        ids = np.asarray(store.clips["id"]).astype(object)
        parts = {name: np.asarray(told[name]).astype(object) for name in told if name.startswith("split")}
        return cls(ids[clip], k, np.asarray(told["caption"]).astype(object), parts)

    def count_in(self, split: str, where) -> np.ndarray:
        """(n,) bool: captions that a split, `[scheme:]part[+part]`, counts; all where captions have no such column."""
        column = split_column(split)
        return split_mask(self.parts, split, where) if column in self.parts else np.ones(len(self.clip), bool)


class CachedTokens:
    """Token features of every caption, from a text store: `batch(captions)` -> {"tokens", "mask"}."""

    def __init__(self, store: Store, captions: Captions, allow_incomplete: bool, keep_bytes: int):
        self.data = SequenceDataset(
            {"text": store}, by="row", arrays={"text": ["tokens"]}, allow_incomplete=allow_incomplete,
            keep_bytes=keep_bytes,
        )  # fmt: skip
        rows = np.flatnonzero(store.visible & (store.rows["draw"] == 0))  # the items of by="row"
        ids = np.asarray(store.clips["id"]).astype(object)[store.rows["clip"][rows]]
        named = {pair: i for i, pair in enumerate(zip(ids, store.rows["k"][rows].tolist(), strict=True))}
        pairs = zip(captions.clip, captions.k.tolist(), strict=True)
        self.item = np.array([named.get(pair, -1) for pair in pairs], np.int64)
        if (self.item < 0).any():
            i = int(np.flatnonzero(self.item < 0)[0])
            raise UserError(
                f"{store.path} has no row for caption {captions.k[i]} of clip {captions.clip[i]}: run extract again"
            )
        self.there = (store.status()[rows] == OK)[self.item]

    def batch(self, captions: np.ndarray) -> dict[str, np.ndarray]:
        text = self.data.batch(self.item[captions])["text"]
        return {"tokens": text["tokens"], "mask": text["mask"]}


class TokenIds:
    """Token ids of every caption, for a text network that is trained too: `batch(captions)` -> {"ids", "mask"}."""

    def __init__(self, encode: Callable[[list[str]], list[list[int]]], captions: Captions):
        ids = encode(captions.text.tolist())
        lengths = np.array([len(one) for one in ids])
        self.mask = np.arange(lengths.max()) < lengths[:, None]
        self.ids = np.zeros(self.mask.shape, np.int64)
        self.ids[self.mask] = np.concatenate(ids)
        self.there = np.ones(len(ids), bool)

    def batch(self, captions: np.ndarray) -> dict[str, np.ndarray]:
        longest = max(1, int(self.mask[captions].sum(axis=1).max(initial=0)))
        return {"ids": self.ids[captions, :longest], "mask": self.mask[captions, :longest]}


def read_captions(
    store: Store, network, allow_incomplete: bool, keep_bytes: int = 0
) -> tuple[Captions, CachedTokens | TokenIds]:
    """The captions of a store's dataset, and what the model reads of them: ids of the text network that is trained
    too; where there is none (network None), the tokens that the store holds.

    Raises UserError: a dataset without captions, a store that lacks rows of some.
    """
    captions = Captions.of(store)
    if network is None:
        return captions, CachedTokens(store, captions, allow_incomplete, keep_bytes)
    limit = network.spec.options["max_tokens"]
    return captions, TokenIds(lambda texts: network.encode(texts, limit)[0], captions)


class Pairs:
    """The clips of a split with their experts, and the captions that count: items are captions.

    text: CachedTokens or TokenIds of `captions`. pick: of an expert's tokens, as of `SequenceDataset`.
    """

    def __init__(
        self,
        experts: Mapping[str, Store],
        captions: Captions,
        text: CachedTokens | TokenIds,
        split: str,
        *,
        most: int = 0,
        pick: str = "even",
        seed: int = 0,
        allow_incomplete: bool = False,
        keep_bytes: int = 0,
    ):
        self.arrays = {name: expert_array(store) for name, store in experts.items()}
        self.videos = SequenceDataset(
            experts, by="clip", split=split, arrays={name: [array] for name, array in self.arrays.items()},
            max_tokens=max_tokens_of(list(experts), most), pick=pick, seed=seed, allow_incomplete=allow_incomplete,
            keep_bytes=keep_bytes,
        )  # fmt: skip
        self.captions, self.text, self.split = captions, text, split
        first = next(iter(experts.values()))
        clip_ids = self.videos.clip_ids[self.videos.clips]
        of_caption = positions(captions.clip, clip_ids)  # column of each caption's clip, -1 outside of the split
        self.rows = np.flatnonzero((of_caption >= 0) & captions.count_in(split, first.path))
        if not len(self.rows):
            raise UserError(f"{first.path}: no caption of split {split!r}")
        self.columns = np.unique(of_caption[self.rows])  # items of `videos` that have a caption
        self.column_of = np.searchsorted(self.columns, of_caption[self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def epoch(self, number: int) -> None:
        """Another choice of tokens, where it is random."""
        self.videos.epoch = number

    def experts(self, columns: np.ndarray) -> dict[str, dict[str, np.ndarray]]:
        """{expert: {array, "mask"}} of clips, by their columns."""
        batch = self.videos.batch(self.columns[columns])
        return {name: {array: batch[name][array], "mask": batch[name]["mask"]} for name, array in self.arrays.items()}

    def times_s(self, columns: np.ndarray) -> dict[str, np.ndarray]:
        """{expert: (B, L, 2)} seconds of the row of each token that `experts` gives, NaN where unknown. Padding holds
        zeros: the mask that `experts` gives says which it is."""
        batch = self.videos.batch(self.columns[columns])
        return {name: batch[name]["time_s"] for name in self.arrays}

    def texts(self, items: np.ndarray) -> dict[str, np.ndarray]:
        """{"tokens" or "ids", "mask"} of captions, by their items."""
        return self.text.batch(self.rows[items])

    def batch(self, items: np.ndarray) -> dict:
        """Captions with their clips, one of each an item: what `heads.text_video` reads, and the labels."""
        columns = self.column_of[items]
        return {"text": self.texts(items), **self.experts(columns), "labels": {"video": columns}}

    def one_each(self, order: np.ndarray) -> np.ndarray:
        """Of items in any order, the first of each clip, in that order."""
        _, first = np.unique(self.column_of[order], return_index=True)
        return order[np.sort(first)]

    def usable(self) -> np.ndarray:
        """Items whose text has features."""
        return np.flatnonzero(self.text.there[self.rows])
