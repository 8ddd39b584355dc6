"""From rows to the frames a network sees: windows to instants to decoded arrays, forward only within a video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from extract.decode import FrameError, FrameSource
from extract.transforms import Resize

__all__ = ["DecodedRow", "decode_rows"]


@dataclass(frozen=True)
class DecodedRow:
    """One row's frames, or why there are none."""

    row: int
    frames: np.ndarray | None  # uint8 (T, h, w, C)
    indices: np.ndarray  # int64 (T,): the frames of the source that were picked
    n_padded: int = 0  # instants outside the video, where the edge frame repeats
    failure: tuple[str, str] | None = None  # reason code, one line


def decode_rows(source: FrameSource, rows: np.ndarray, instants: np.ndarray, resize: Resize) -> Iterator[DecodedRow]:
    """Frames of rows of one video, each row as soon as its last frame is there.

    rows: (n,) row numbers, in time order; instants: float64 (n, T) seconds from the first frame.
    The decoder moves forward only, once over the union of all windows: a frame that several rows share
    is decoded and converted once and copied into each. A row that needs a frame which cannot be decoded,
    or lies wholly outside the video, comes with its reason; the others are unaffected.
    """
    indices, outside = source.at(instants)
    n, length = indices.shape
    wholly_outside = outside.all(axis=1)
    for i in np.flatnonzero(wholly_outside):
        window = f"{instants[i, 0]:.3f} to {instants[i, -1]:.3f} s"
        yield DecodedRow(
            int(rows[i]),
            None,
            indices[i],
            failure=("outside", f"window {window} lies outside the video ({source.duration:.3f} s)"),
        )

    order = np.argsort(indices, axis=None, kind="stable")
    order = order[~wholly_outside[order // length]]
    wanted, first_use = np.unique(indices.ravel()[order], return_index=True)
    uses = np.split(order, first_use[1:])  # for each wanted frame, the flat (row, t) places it fills

    clips: dict[int, np.ndarray] = {}
    missing = np.full(n, length)
    failed: set[int] = set()
    for number, (index, frame) in enumerate(source.read(wanted, resize)):
        if index != wanted[number]:
            raise RuntimeError(f"decoder delivered frame {index} where {wanted[number]} was asked")
        places = uses[number]
        if isinstance(frame, FrameError):
            for i in dict.fromkeys(int(place) // length for place in places):
                if i not in failed:
                    failed.add(i)
                    clips.pop(i, None)
                    yield DecodedRow(int(rows[i]), None, indices[i], failure=(frame.reason, str(frame)))
            continue
        for place in places:
            i, t = divmod(int(place), length)
            if i in failed:
                continue
            if i not in clips:
                clips[i] = np.empty((length, *frame.shape), np.uint8)
            if clips[i].shape[1:] != frame.shape:
                failed.add(i)
                del clips[i]
                yield DecodedRow(
                    int(rows[i]),
                    None,
                    indices[i],
                    failure=("damaged", f"frame {index} changes the picture's size to {frame.shape}"),
                )
                continue
            clips[i][t] = frame
            missing[i] -= 1
            if missing[i] == 0:
                yield DecodedRow(int(rows[i]), clips.pop(i), indices[i], n_padded=int(outside[i].sum()))
