"""From rows of one video to what their network reads: frames, computed or stored flow, its sound, captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from extract.datasets import Dataset
from extract.decode import VideoError
from extract.networks.spec import READS
from extract.sampling import Sampling
from extract.sampling import instants as instants_of
from extract.transforms import Resize, plan_resize
from pipelines.flow_source import FlowSource
from pipelines.frames import DecodedRow, decode_rows
from stores import OK, Store

__all__ = ["ReadRow", "Reading", "captions_of", "read_captions", "read_video"]

FLOW_BATCH = 16  # rows of stored flow read at once: of 64 x 224 x 224, 100 MB


@dataclass(frozen=True)
class Reading:
    """How the rows of a store are read: everything of its plan that matters to a decoder."""

    reads: str  # rgb_clip, rgb_frame, flow, waveform, text (`NetworkSpec.reads`)
    sampling: Sampling
    resize: Resize
    flow: FlowSource | None  # where computed flow comes from; None: the network reads none, or published images

    @property
    def frames(self) -> str:
        """The frames that are decoded: "rgb" or "flow"."""
        return "flow" if self.reads == "flow" and self.flow is None else "rgb"

    @property
    def clips(self) -> bool:
        """A row is a clip of frames, not one frame, waveform or caption."""
        return READS[self.reads][0] == "THWC"


@dataclass(frozen=True)
class ReadRow:
    """What the network reads of one row, or why there is nothing; neither: it cannot be had now."""

    row: int
    value: Any = None  # uint8 (T, h, w, C) or (h, w, C), float32 (n,), str
    n_padded: int = 0  # frames outside the video; of a waveform, milliseconds outside its sound
    failure: tuple[str, str] | None = None  # reason code, one line; code "absent": no such modality, no failure
    indices: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))  # the frames that were picked


def read_video(how: Reading, store: Store, rows: np.ndarray, source) -> Iterator[ReadRow]:
    """Rows of one video, each as soon as it is there.

    source: an open FrameSource; an AudioSource for waveforms; not looked at where flow is stored.
    """
    if how.reads == "waveform":
        yield from _sound(store, rows, source)
        return
    times = instants_of({column: store.rows[column][rows] for column in ("start_s", "stop_s")}, how.sampling)
    if how.flow is None:
        decoded = decode_rows(source, rows, times, how.resize)
    elif how.flow.store is not None:
        decoded = _stored_flow(how.flow, store, rows)
    else:
        decoded = _computed_flow(how, rows, times, source)
    for one in decoded:
        value = one.frames if one.frames is None or how.clips else one.frames[0]
        yield ReadRow(one.row, value, one.n_padded, one.failure, one.indices)


def read_captions(texts: dict[str, list[str]], store: Store, rows: np.ndarray) -> Iterator[ReadRow]:
    """Rows of the text axis: the k-th caption of each row's clip. texts: {clip id: its captions in order}."""
    for row in rows.tolist():
        clip = str(store.clips["id"][store.rows["clip"][row]])
        yield ReadRow(row, texts[clip][int(store.rows["k"][row])])


def captions_of(source: Dataset | Store) -> dict[str, list[str]]:
    """{clip id: its captions in order}, of a dataset or of a store."""
    ids, found = source.clips["id"], {}
    for clip, caption in zip(source.texts["clip"].tolist(), source.texts["caption"], strict=True):
        found.setdefault(str(ids[clip]), []).append(str(caption))
    return found


def _sound(store: Store, rows: np.ndarray, source) -> Iterator[ReadRow]:
    for row in rows.tolist():
        try:
            samples, missing = source.read(float(store.rows["start_s"][row]), float(store.rows["stop_s"][row]))
        except VideoError as error:
            yield ReadRow(row, failure=(error.reason, str(error)))
            continue
        yield ReadRow(row, samples, n_padded=round(1000 * missing / source.rate))


# ---- flow ------------------------------------------------------------------------------------------------------------


def _computed_flow(how: Reading, rows: np.ndarray, times: np.ndarray, source) -> Iterator[DecodedRow]:
    """Flow from the frame at every instant to the one a fixed step later; a pair that rows share is computed once.

    Flow is computed on the resized frame as a whole, so that what moves in over a crop's border is known.
    """
    from extract.flow import FLOW_STEP_S, PairCache

    whole = replace(how.resize, crop=None)
    placed = plan_resize(how.resize, source.width, source.height)
    crop = (slice(placed.top, placed.top + placed.crop_h), slice(placed.left, placed.left + placed.crop_w))
    pairs = np.stack([times, times + FLOW_STEP_S], axis=2).reshape(len(times), -1)
    cache = PairCache(how.flow.method)
    for one in decode_rows(source, rows, pairs, whole):
        if one.frames is None:
            yield one
            continue
        clip = np.ascontiguousarray(cache.clip(one.indices, one.frames)[:, *crop])
        yield replace(one, frames=clip, indices=one.indices[0::2], n_padded=one.n_padded // 2)


def _stored_flow(source: FlowSource, store: Store, rows: np.ndarray) -> Iterator[DecodedRow]:
    """The same rows of a store of flow images; a row that it does not have stays pending."""
    flow, none = source.store, np.empty(0, np.int64)
    numbers = source.rows_like(store, rows)
    usable = (numbers >= 0) & (flow.status()[numbers] == OK)
    failures = flow.failures() if not usable.all() else {}
    for row, number in zip(rows[~usable].tolist(), numbers[~usable].tolist(), strict=True):
        yield DecodedRow(row, None, none, failure=failures.get(number))
    for start in range(0, int(usable.sum()), FLOW_BATCH):
        batch = np.flatnonzero(usable)[start : start + FLOW_BATCH]
        images, padded = (flow.read(name, numbers[batch]) for name in ("flow", "n_padded"))
        for row, clip, n in zip(rows[batch].tolist(), images, padded.tolist(), strict=True):
            yield DecodedRow(row, clip, none, n)
