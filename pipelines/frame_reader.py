"""Frames for training: out of a store of frames (`--backbone frames`, or flow images one by one), or out of the videos.

Both readers have one face: `usable(videos, times_s)` and `read(videos, times_s)`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from errors import MachineError, UserError
from extract.datasets import Dataset
from extract.decode import FrameError, FrameSource, VideoError, open_source
from extract.sampling import sampling_from
from extract.transforms import Resize
from pipelines.frames import decode_rows
from stores import OK, Store

__all__ = ["FRAME_ARRAYS", "FrameReader", "VideoFrames", "frames_of"]

FRAME_ARRAYS = ("jpeg", "frame", "flow")  # arrays that hold one image a row
_OPEN_VIDEOS = 4  # that a thread keeps open
_SAME_S = 1e-6  # instants this close to a row's are its own: swallows float64 rounding


class FrameReader:
    """Images of a store whose rows are single images at a fixed step: `frames`, or `flow_images` with clip_len=1.

    Safe to share between threads; nothing is kept in memory but the index.

    Attributes:
        store: the open Store.
        step_s: seconds from one row of a video to the next.
        size: (H, W) of every image, None where JPEGs may have any.
        channels: 3 (RGB) or 2 (flow: u, v).

    Raises:
        UserError: a store of something else.
    """

    def __init__(self, store: Store):
        self.store = store
        manifest = store.manifest
        self._array = next((name for name in FRAME_ARRAYS if name in manifest.arrays), None)
        sampling = sampling_from(manifest.recipe["sampling"])
        if self._array is None or sampling.axis == "clip" or getattr(sampling, "frames", 1) != 1:
            raise UserError(
                f"{store.path} holds no single frames: make such a store with extract --backbone frames (flow:"
                " --backbone flow_images --axis segment --option clip_len=1)"
            )
        self.step_s = getattr(sampling, "hop", 1) / sampling.fps
        shape = manifest.arrays[self._array].row_shape
        resize = manifest.spec["resize"]
        square = resize.get("crop") or (resize["size"] if resize["mode"] == "squash" else None)
        self.size = (square, square) if self._array == "jpeg" and square else tuple(shape[-3:-1]) or None
        self.channels = 2 if self._array == "flow" else 3
        self._first, self._index, self._count = _rows_of_videos(store)
        self._ok = store.status() == OK

    def rows(self, videos: np.ndarray, times_s: np.ndarray) -> np.ndarray:
        """Row numbers (n, T) int64 of the images on screen at instants (n, T) of the store's videos (n,).

        That is the row at or just before each instant; before a video's first row it is the first, behind its last the
        last, as a decoder repeats the edge frame. -1: the video has no rows.
        """
        videos = np.asarray(videos, np.int64)
        times_s = np.asarray(times_s, np.float64).reshape(len(videos), -1)
        count = self._count[videos][:, None]
        k = np.floor(times_s / self.step_s + _SAME_S).astype(np.int64).clip(0, np.maximum(count - 1, 0))
        if not len(self._index):
            return np.full(k.shape, -1, np.int64)
        return np.where(count > 0, self._index[np.minimum(self._first[videos][:, None] + k, len(self._index) - 1)], -1)

    def duration_s(self, videos: np.ndarray) -> np.ndarray:
        """How far the images of videos (n,) reach, in seconds."""
        return self._count[np.asarray(videos, np.int64)] * self.step_s

    def usable(self, videos: np.ndarray, times_s: np.ndarray) -> np.ndarray:
        """(n,) bool: whether all images of each clip were there when this reader was made."""
        rows = self.rows(videos, times_s)
        return ((rows >= 0) & self._ok[rows]).all(axis=1)

    def read(self, videos: np.ndarray, times_s: np.ndarray) -> list[np.ndarray]:
        """Clips at instants (n, T) of videos (n,): n arrays uint8 (T, h, w, C). What several show is read once."""
        rows = self.rows(videos, times_s)
        images = self.images(rows.ravel())
        return [np.stack(images[i : i + rows.shape[1]]) for i in range(0, rows.size, rows.shape[1])]

    def images(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Images of rows (n,), each uint8 (h, w, C). Raises `MachineError` for a JPEG that cannot be decoded."""
        rows = np.asarray(rows, np.int64)
        wanted, place = np.unique(rows, return_inverse=True)
        values = self.store.read(self._array, wanted)
        if self._array == "flow":
            found = list(values[:, 0])
        elif self._array == "frame":
            found = list(values)
        else:
            found = [self._decode(row, coded) for row, coded in zip(wanted.tolist(), values, strict=True)]
        return [found[i] for i in place.tolist()]

    def _decode(self, row: int, coded: np.ndarray) -> np.ndarray:
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg

        try:
            return decode_jpeg(torch.from_numpy(coded), mode=ImageReadMode.RGB).permute(1, 2, 0).numpy()
        except RuntimeError as error:
            raise MachineError(f"{self.store.path}: row {row} is no JPEG ({error}); run store verify on it") from error


class VideoFrames:
    """The same out of the videos themselves, decoded every time: to compare, and where there is no room for a store.

    Args:
        dataset: whose videos.
        resize: how frames are brought to size; a crop is left to the caller.
    """

    def __init__(self, dataset: Dataset, resize: Resize, channels: int = 3):
        self.dataset, self.resize = dataset, replace(resize, crop=None)
        self.channels = channels
        self._mine = threading.local()

    def usable(self, videos: np.ndarray, times_s: np.ndarray) -> np.ndarray:
        """(n,) bool: whether each clip's video is on disk."""
        return np.array([bool(path) for path in self.dataset.videos["path"]])[np.asarray(videos, np.int64)]

    def read(self, videos: np.ndarray, times_s: np.ndarray) -> list[np.ndarray]:
        """Clips at instants (n, T) of videos (n,): n arrays uint8 (T, h, w, C). Raises `MachineError` for a frame that
        cannot be decoded."""
        clips = []
        for video, times in zip(np.asarray(videos).tolist(), np.asarray(times_s), strict=True):
            try:
                source = self._source(video)
                row = next(iter(decode_rows(source, np.zeros(1, np.int64), np.maximum(times, 0)[None], self.resize)))
            except VideoError as error:
                raise MachineError(str(error)) from error
            if row.frames is None:
                raise MachineError(f"{source.path}: {row.failure[1]}")
            clips.append(row.frames)
        return clips

    def _source(self, video: int) -> FrameSource:
        """The video, opened; each thread keeps the few that it used last."""
        opened = self._mine.__dict__.setdefault("sources", {})
        source = opened.pop(video, None)
        if source is None:
            if len(opened) >= _OPEN_VIDEOS:
                opened.pop(next(iter(opened))).close()
            reads = "flow" if self.channels == 2 else "rgb"
            path = self.dataset.video_path(video)
            source = open_source(path, grid_fps=self.dataset.grid_fps_of(video), reads=reads, threads=1)
        opened[video] = source
        return source


def _rows_of_videos(store: Store) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(where each video's rows begin in the index, row numbers by (video, k), rows a video).

    Raises:
        UserError: a video whose rows have holes in its grid.
    """
    video, k = store.rows["video"].astype(np.int64), store.rows["k"].astype(np.int64)
    live = np.flatnonzero(store.visible)
    index = live[np.lexsort((k[live], video[live]))]
    count = np.bincount(video[index], minlength=len(store.videos["name"]))
    first = np.cumsum(count) - count
    wrong = np.flatnonzero(k[index] != np.arange(len(index)) - first[video[index]])
    if len(wrong):
        name = store.videos["name"][video[index[wrong[0]]]]
        raise UserError(f"{store.path}: the frames of video {name!r} have holes in their grid")
    return first, index, count


def frames_of(dataset):
    """(video name, seconds) -> uint8 (H, W, 3), the frame on screen then, for the videos of a dataset."""
    number = {name: i for i, name in enumerate(dataset.videos["name"])}

    @lru_cache(maxsize=4)
    def source_of(video: str):
        path = dataset.video_path(number[video]) if video in number else None
        if path is None:
            raise UserError(
                f"video {video!r} is not on disk under {dataset.root}: give --data, or --dataset and --videos"
            )
        try:
            return open_source(path, grid_fps=dataset.grid_fps_of(number[video]))
        except VideoError as error:
            raise UserError(str(error)) from error

    def frame_at(video: str, time_s: float) -> np.ndarray:
        source = source_of(video)
        index = source.at(np.array([time_s]))[0]
        frame = next(source.read(index))[1]
        if isinstance(frame, FrameError):
            raise UserError(str(frame))
        return frame

    return frame_at
