"""What pictures of a retrieval run show: some captions of a split with their clips, the words, and the frames."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from errors import UserError
from pipelines.pictures import FrameAt
from pipelines.retrieval_clips import Pairs, video_ends
from pipelines.run_folder import Run

__all__ = ["Examples", "Footage", "open_examples", "wrapped"]


class Footage:
    """Frames of videos, as far as they can be had; of what cannot be, the reason is told once.

    frame_at: (video name, seconds) -> (H, W, 3) uint8; None: there are none.
    """

    def __init__(self, frame_at: FrameAt | None, say: Callable[[str], object]):
        self._frame_at, self._say, self._told = frame_at, say, False

    def frame(self, video: str, time_s: float) -> np.ndarray | None:
        """The frame on screen then; None where the video is not there, or the time is not known."""
        if self._frame_at is None or not np.isfinite(time_s):
            return None
        try:
            return self._frame_at(video, max(float(time_s), 0.0))
        except UserError as error:
            if not self._told:
                self._say(f"some frames are left out: {error}")
            self._told = True
            return None


@dataclass(frozen=True)
class Examples:
    """A run's best model on the pairs of a split, and the captions that are shown."""

    model: object  # pipelines.retrieval_model.RetrievalModel
    pairs: Pairs
    items: np.ndarray  # (n,) of `pairs`, of different clips
    device: str
    precision: str
    network: object | None  # the text network, of a run that trained it too; else
    tokens: object | None  # the store of token features

    def caption(self, item: int) -> str:
        return str(self.pairs.captions.text[self.pairs.rows[item]])

    def clip_id(self, column: int) -> str:
        videos = self.pairs.videos
        return str(videos.clip_ids[videos.clips[self.pairs.columns[column]]])

    def video(self, column: int) -> str:
        videos = self.pairs.videos
        return str(videos.video_names[videos.videos[self.pairs.columns[column]]])

    def times_s(self, column: int, n: int) -> np.ndarray:
        """(n,) seconds spread evenly over a clip; a whole video ends where its probe or its last row does. NaN where
        nobody knows when that is."""
        videos, item = self.pairs.videos, self.pairs.columns[column]
        start, stop = max(float(videos.start_s[item]), 0.0), float(videos.stop_s[item])
        if not np.isfinite(stop):
            stop = float(video_ends(videos.stores.values(), np.array([self.video(column)], object))[0])
        return start + (np.arange(n) + 0.5) / n * (stop - start)

    def words(self) -> list[list[str]]:
        """The tokens of each caption shown, as text; [] of all where the text network cannot be had here."""
        from extract.networks import network_spec

        captions = [self.caption(item) for item in self.items]
        network = self.network
        if network is None:
            made = self.tokens.manifest.spec.get("created_with")
            if made is None:
                return [[] for _ in captions]
            try:
                network = network_spec(made["name"], **made["options"]).build()  # for its words: no weights
            except UserError:
                return [[] for _ in captions]
        return network.pieces(captions, network.spec.options["max_tokens"])


def open_examples(
    run: Run, n: int, split: str, stores: Mapping[str, object] | None, allow_incomplete: bool, picture: str
) -> Examples:
    """n captions of a split, evenly spaced over its clips, the first caption of each that has features.

    Raises UserError: a run that is no retrieval run or whose head has no such picture, a split without captions that
    have features.
    """
    from pipelines.devices import pick_device
    from pipelines.retrieval_training import TEXT, open_retrieval

    if run.kind != "retrieval" or picture not in run.create_head().pictures:
        raise UserError(f"{run.path}: {run.trained} has no picture {picture!r}")
    device, opened = pick_device(None), run.open_stores(stores)
    model, data, _ = open_retrieval(run, opened, device, allow_incomplete)
    pairs = data.pairs(split)
    told = pairs.one_each(pairs.usable())
    if not len(told):
        raise UserError(f"{run.path}: no caption of split {split!r} has features, so there is nothing to show")
    told = told[np.argsort(pairs.column_of[told], kind="stable")]
    items = told[np.unique(np.linspace(0, len(told) - 1, min(n, len(told))).astype(int))]
    return Examples(model, pairs, items, device, data.schedule.precision, data.network, opened.get(TEXT))


def wrapped(text: str, inches: float, points: float = 10) -> str:
    """A text in lines that fit so many inches at this size."""
    return "\n".join(textwrap.wrap(text, max(20, int(inches * 72 / (0.55 * points))))) or " "
