"""What stores know already of a video: rows found by recipe, by the content of the file and by their instants."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from errors import MachineError, UserError
from extract.decode import hash_file, stat_video
from pipelines.reuse import SAME_WINDOW_S, store_paths
from stores import OK, Store, open_store

__all__ = ["KnownRows", "KnownVideo", "Video", "same_windows", "stores_like"]

_THREADS = 8


@dataclass
class Video:
    """A video file; or no file, and the name that stores know it by."""

    name: str  # as stores name it, without the suffix
    path: Path | None
    _hash: str = field(default="", repr=False)

    @property
    def content_hash(self) -> str:
        """Of the file, read once. Raises `extract.decode.VideoError`."""
        self._hash = self._hash or hash_file(self.path)
        return self._hash


def stores_like(recipe: Mapping, array: str, roots: Iterable[Path], announce) -> list[Store]:
    """The stores under feature roots whose recipe has these fields and values, and that hold `array`."""
    found = []
    for path in store_paths(roots, announce):
        try:
            store = open_store(path)
        except (UserError, MachineError, OSError):  # unfinished or damaged: what it holds is computed instead
            continue
        has = store.manifest.recipe
        if "imported" not in has and array in store.manifest.arrays and all(has.get(k) == v for k, v in recipe.items()):
            found.append(store)
    return found


def same_windows(starts: np.ndarray, stops: np.ndarray, start_s: np.ndarray, stop_s: np.ndarray) -> np.ndarray:
    """Where windows (n,) stand among windows (R,) in time order, int64 (n,); -1 where they do not."""
    if not len(starts):
        return np.full(len(start_s), -1)
    place = np.minimum(np.searchsorted(starts, start_s - SAME_WINDOW_S), len(starts) - 1)
    same = (np.abs(starts[place] - start_s) <= SAME_WINDOW_S) & (np.abs(stops[place] - stop_s) <= SAME_WINDOW_S)
    return np.where(same, place, -1)


@dataclass(frozen=True)
class KnownVideo:
    """One store's rows of one video, in time order."""

    store: Store
    duration_s: float | None
    rows: np.ndarray  # (R,) int64
    start_s: np.ndarray  # (R,) float64
    stop_s: np.ndarray
    status: np.ndarray  # (R,) uint8

    def at(self, start_s: np.ndarray, stop_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of windows (n,): (numbers of their rows in the store, -1 where it has none; their status, pending there)."""
        place = same_windows(self.start_s, self.stop_s, start_s, stop_s)
        here = place >= 0
        rows, status = np.full(len(place), -1), np.zeros(len(place), np.uint8)
        rows[here], status[here] = self.rows[place[here]], self.status[place[here]]
        return rows, status


class KnownRows:
    """An array of one recipe in any number of stores, the first that has a video counting. Threads may share it."""

    def __init__(self, stores: Sequence[Store], array: str):
        self.array = array
        self._stores = [_Indexed(store) for store in stores]

    def find(self, video: Video) -> KnownVideo | None:
        """The video's rows: of a file, those that were computed from the same bytes; else those of its name."""
        for store in self._stores:
            number = store.number(video)
            known = None if number is None else store.known(number)
            if known is not None and (known.status == OK).any():
                return known
        return None

    def read(self, known: KnownVideo, rows: np.ndarray) -> np.ndarray | None:
        """(n, C) float32; None, with a warning, where the store is damaged."""
        try:
            return known.store.read(self.array, rows).astype(np.float32)
        except MachineError as error:
            warnings.warn(f"{error}; computed instead", stacklevel=2)
            return None


class _Indexed:
    """A store whose videos are looked up by name, and by size and content."""

    def __init__(self, store: Store):
        self.store = store

    @cached_property
    def _names(self) -> dict[str, int]:
        return {str(name): i for i, name in enumerate(self.store.videos["name"])}

    @cached_property
    def _status(self) -> np.ndarray:
        return self.store.status()

    @cached_property
    def _by_size(self) -> dict[int, list[int]]:
        """Numbers of the files it has rows of, by their size in bytes."""
        videos = np.unique(self.store.rows["video"][self.store.visible]).tolist()
        found: dict[int, list[int]] = {}
        with ThreadPoolExecutor(_THREADS) as pool:
            for number, probe in zip(videos, pool.map(self.store.probe, videos), strict=True):
                if probe is not None and probe["kind"] == "file":
                    found.setdefault(probe["size_bytes"], []).append(number)
        return found

    def number(self, video: Video) -> int | None:
        named = self._names.get(video.name)
        if video.path is None:
            return named
        size = stat_video(video.path).st_size
        if named is not None and self._same(named, video, size):
            return named
        return next((n for n in self._by_size.get(size, ()) if self._same(n, video, size)), None)

    def _same(self, number: int, video: Video, size: int) -> bool:
        probe = self.store.probe(number)
        return probe is not None and probe["size_bytes"] == size and probe["content_hash"] == video.content_hash

    def known(self, number: int) -> KnownVideo:
        rows = self.store.rows_between(number, -np.inf, np.inf)
        probe = self.store.probe(number)
        start, stop = (self.store.rows[column][rows] for column in ("start_s", "stop_s"))
        duration = probe["duration_s"] if probe is not None else None
        return KnownVideo(self.store, duration, rows, start, stop, self._status[rows])
