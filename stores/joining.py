"""Stores side by side: opened once each, of one dataset, their videos and clips matched by name."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from errors import UserError

from .reader import Store, open_store

Roles = Mapping[str, Any]
"""{role: Store, or its path or URL}."""


def open_roles(stores: Roles) -> dict[str, Store]:
    """{role: Store}; a path that plays two roles is opened, and later read, once."""
    given = {role: os.fspath(s) if isinstance(s, str | os.PathLike) else s for role, s in stores.items()}
    by_path = {path: open_store(path) for path in dict.fromkeys(s for s in given.values() if isinstance(s, str))}
    return {role: by_path[s] if isinstance(s, str) else s for role, s in given.items()}


def same_dataset(stores: Mapping[str, Store]) -> str:
    """The name of the dataset of all of them. Raises UserError if there are several."""
    names = {role: store.manifest.dataset.get("name", "") for role, store in stores.items()}
    if len(set(names.values())) > 1:
        raise UserError("stores of different datasets: " + ", ".join(f"{role} of {n}" for role, n in names.items()))
    return next(iter(names.values()))


def same_store(one: Store, other: Store) -> bool:
    """Whether two objects are one store."""
    return one is other or str(one.path) == str(other.path)


def no_array(store: Store, name: str) -> UserError:
    """The error to raise for an array that a store lacks."""
    has = ", ".join(store.manifest.arrays)
    return UserError(
        f"{store.path} has no array {name!r} (it has {has}); a network that gives it adds it when it is"
        f" extracted again with --keep {name}"
    )


def texts(column: Iterable) -> np.ndarray:
    """A column of strings as objects, whatever it came as."""
    return np.asarray(column).astype(object)


def positions(names: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each of `names` stands in `among`, -1 where it does not."""
    index = {name: i for i, name in enumerate(among.tolist())}
    return np.array([index.get(name, -1) for name in names.tolist()], np.int64).reshape(len(names))


def ranges(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the numbers begin[i] .. end[i] - 1 of all i one after another, where those of each i begin (len + 1,))."""
    counts = end - begin
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], counts), offsets


def per_item(flags: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """How many of each item's flags are set; item i's are flags[offsets[i]:offsets[i + 1]]."""
    return np.diff(np.concatenate([[0], np.cumsum(flags)])[offsets])


def label_columns(clips: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The columns of a clips table that are labels: whole numbers other than the video's."""
    return {
        name: np.asarray(clips[name])
        for name in clips
        if name not in ("id", "video") and np.asarray(clips[name]).dtype.kind in "iu"
    }


class VideoFacts:
    """Four numbers a video, each video asked for when it first comes up."""

    def __init__(self, ask: Callable[[str], Sequence[float]], names: Sequence[str]):
        self._ask, self._names = ask, names
        self._known = np.full((len(names), 4), np.nan, np.float32)

    def of(self, videos: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """(B, 4) float32 of videos (B,), numbers into `names`; zeros where not needed (B,) bool."""
        wanted = np.unique(videos[needed])
        for video in wanted[np.isnan(self._known[wanted, 0])].tolist():
            self._known[video] = self._ask(self._names[video])
        return np.where(needed[:, None], self._known[np.where(needed, videos, 0)], np.float32(0))


def frame_size(store: Store, video: str) -> list[float]:
    """[width, height, width, height] of the frames that a store of boxes read. Raises UserError if it does not know."""
    probe = store.probe(video)
    if probe is None:
        raise UserError(f"{store.path}: no probe of video {video!r}, so its boxes have no frame size")
    return [probe["width"], probe["height"]] * 2
