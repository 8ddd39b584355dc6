"""Pictures of T2VLAD's local alignment: which words of a caption and which segments of its video go to each of the
shared centres (thesis figure 6.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipelines.pictures import pyplot, save_figure, show_frame
from pipelines.retrieval_examples import Examples, Footage, open_examples, wrapped
from pipelines.run_folder import Run

__all__ = ["alignment_pictures"]

_LABEL, _COLUMN, _APART, _ROW = 1.35, 1.02, 0.18, 0.2  # inches: names, a centre, what sets the background apart, a row
_WORDS, _SEGMENTS = "Greens", "Blues"


@dataclass(frozen=True)
class Segment:
    """A token of an expert and what of it goes to each centre."""

    expert: str
    number: int  # among the expert's tokens of the clip
    time_s: float  # the middle of its row; NaN where unknown
    weights: np.ndarray  # (K + background,)


def alignment_pictures(
    run: Run,
    n: int = 6,
    *,
    footage: Footage,
    split: str,
    stores: Mapping[str, object] | None = None,
    frames_shown: int = 3,
    allow_incomplete: bool = False,
) -> list[Path]:
    """One PNG a caption in `<run>/pictures`, a column a centre, those of the background apart: how much of each word
    goes there (eq. 6.1), how much of each expert on average, and the frames of the segments that go there more than
    anywhere else, the most certain first.

    n captions evenly spaced over the split's clips. stores: {role: store or path} of those that have moved since the
    training.

    Raises UserError: a head whose words and segments share no centres, a split without captions that have features.
    """
    import torch

    from pipelines.devices import to_device

    examples = open_examples(run, n, split, stores, allow_incomplete, "assignment")
    pairs, model, items = examples.pairs, examples.model, examples.items
    batch = pairs.batch(items)
    tensors = to_device({role: part for role, part in batch.items() if role != "labels"}, examples.device)
    with torch.inference_mode():
        tensors["text"] = model.tokens(tensors["text"])
        assigned = {name: value.float().cpu().numpy() for name, value in model.head.assignments(tensors).items()}
    words, times = examples.words(), pairs.times_s(batch["labels"]["video"])
    paths = []
    for i, (item, column) in enumerate(zip(items, batch["labels"]["video"].tolist(), strict=True)):
        weights = assigned["text"][i, batch["text"]["mask"][i]]
        named = words[i] if len(words[i]) == len(weights) else [f"token {j + 1}" for j in range(len(weights))]
        segments = [
            Segment(expert, j, float(times[expert][i, j].mean()), assigned[expert][i, j])
            for expert in model.head.config.experts
            for j in np.flatnonzero(batch[expert]["mask"][i])
        ]
        title = f"clip {examples.clip_id(column)} of {examples.video(column)}: {examples.caption(item)}"
        path = run.picture_path("assignment", examples.clip_id(column))
        page = _Page(examples, title, named, weights, segments, frames_shown)
        paths.append(page.draw(path, footage, examples.video(column)))
    return paths


class _Page:
    """A picture: rows of words, rows of experts, frames; all lengths in inches, from the upper left corner."""

    def __init__(self, examples: Examples, title: str, words: list[str], weights: np.ndarray, segments, frames: int):
        self.config = examples.model.head.config
        self.words, self.weights, self.segments = words, weights, segments
        self.centres = self.config.clusters + self.config.background
        self.left = [_LABEL + i * _COLUMN + (_APART if i >= self.config.clusters else 0) for i in range(self.centres)]
        self.wide = self.left[-1] + _COLUMN + 0.15
        self.title = wrapped(title, self.wide - 0.3)
        self.experts = {
            expert: np.array([one.weights for one in segments if one.expert == expert])
            for expert in self.config.experts
        }
        self.shown = [self._of_centre(centre, frames) for centre in range(self.centres)]

    def _of_centre(self, centre: int, most: int) -> list[Segment]:
        """The segments that go to this centre more than to any other, the most certain first."""
        own = [one for one in self.segments if one.weights.argmax() == centre]
        return sorted(own, key=lambda one: -one.weights[centre])[:most]

    def draw(self, path: Path, footage: Footage, video: str) -> Path:
        pictures = {id(one): footage.frame(video, one.time_s) for column in self.shown for one in column}
        shapes = [picture.shape[:2] for picture in pictures.values() if picture is not None]
        tall = (_COLUMN - 0.08) * min(1.2, max(high / wide for high, wide in shapes)) if shapes else 0.0
        deepest = max(map(len, self.shown))
        top = 0.2 + 0.17 * (self.title.count("\n") + 1) + 0.3
        below_words = top + _ROW * len(self.words) + 0.32
        below_experts = below_words + _ROW * len(self.experts) + 0.32
        high = below_experts + max(1, deepest) * (tall + 0.24) + 0.08
        plt = pyplot()
        self.figure, self.high = plt.figure(figsize=(self.wide, high)), high
        self._text(0.12, 0.1, self.title, fontsize=10, va="top")
        for i, left in enumerate(self.left):
            name = f"centre {i + 1}" if i < self.config.clusters else "background"
            self._text(left + _COLUMN / 2, top - 0.06, name, fontsize=8.5, ha="center", weight="bold")
        self._text(0.12, top - 0.06, "of each word, %", fontsize=8, color="#505050")
        self._matrix(top, self.words, self.weights, _WORDS)
        self._text(0.12, below_words - 0.07, "of each expert's segments on average, %", fontsize=8, color="#505050")
        means = [each.mean(axis=0) if len(each) else np.full(self.centres, np.nan) for each in self.experts.values()]
        names = [f"{expert} ({len(each)})" for expert, each in self.experts.items()]
        self._matrix(below_words, names, np.stack(means), _SEGMENTS)
        said = "segments that go there most, and how much of each"
        self._text(0.12, below_experts - 0.07, said, fontsize=8, color="#505050")
        for left, column in zip(self.left, self.shown, strict=True):
            for row, one in enumerate(column):
                self._segment(left, below_experts + row * (tall + 0.24), tall, one, pictures[id(one)])
            if not column:
                self._text(left + _COLUMN / 2, below_experts + 0.16, "none", fontsize=8, ha="center", color="#909090")
        return save_figure(self.figure, path)

    def _text(self, x: float, y: float, text: str, va: str = "bottom", **style) -> None:
        self.figure.text(x / self.wide, 1 - y / self.high, text, va=va, **style)

    def _axis(self, left: float, top: float, wide: float, tall: float):
        axis = self.figure.add_axes(
            (left / self.wide, 1 - (top + tall) / self.high, wide / self.wide, tall / self.high)
        )
        axis.set(xticks=[], yticks=[])
        return axis

    def _matrix(self, top: float, names: list[str], values: np.ndarray, colours: str) -> None:
        """Names on the left, cells with their percent under the centres; the largest of a row bold."""
        for row, name in enumerate(names):
            best = self.config.clusters > np.argmax(np.nan_to_num(values[row], nan=-1))
            style = {"color": "black" if best else "#808080"}
            self._text(_LABEL - 0.08, top + _ROW * (row + 0.5), name, va="center", fontsize=8.5, ha="right", **style)
        for part in (slice(0, self.config.clusters), slice(self.config.clusters, self.centres)):
            cells = values[:, part]
            if not cells.shape[1]:
                continue
            axis = self._axis(self.left[part.start], top, _COLUMN * cells.shape[1], _ROW * len(names))
            axis.imshow(cells, cmap=colours, vmin=0, vmax=max(0.3, np.nanmax(values, initial=0)), aspect="auto")
            for row, column in np.argwhere(~np.isnan(cells)):
                value, largest = cells[row, column], cells[row, column] >= np.nanmax(values[row])
                dark = value > 0.6 * max(0.3, np.nanmax(values, initial=0))
                style = {"color": "white" if dark else "black" if largest else "#606060"}
                axis.text(column, row, f"{100 * value:.0f}", fontsize=7, ha="center", va="center",
                          weight="bold" if largest else "normal", **style)  # fmt: skip
            for spine in axis.spines.values():
                spine.set(color="#b0b0b0", linewidth=0.5)

    def _segment(self, left: float, top: float, tall: float, one: Segment, picture: np.ndarray | None) -> None:
        if tall:
            show_frame(self._axis(left + 0.04, top, _COLUMN - 0.08, tall), picture, "#b0b0b0")
        when = f"{one.time_s:.1f} s" if np.isfinite(one.time_s) else f"no. {one.number + 1}"
        said = f"{one.expert} {when}  {100 * one.weights.max():.0f} %"
        self._text(left + _COLUMN / 2, top + tall + 0.02, said, va="top", fontsize=6.5, ha="center")
