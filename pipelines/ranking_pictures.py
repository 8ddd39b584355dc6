"""Pictures of what a retrieval run finds: for a caption the first videos, the right one marked (thesis figure 6.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from heads.retrieval_metrics import retrieval_ranks
from pipelines.pictures import pyplot, save_figure, show_frame
from pipelines.retrieval_examples import Examples, Footage, open_examples, wrapped
from pipelines.retrieval_scores import similarities
from pipelines.run_folder import Run

__all__ = ["ranking_pictures"]

RIGHT, OTHER = "#2e8b3d", "#b0b0b0"
_SIDE, _GAP = 1.25, 0.06  # inches of a frame's width, and between frames
_LABEL = 1.75  # inches of what is written before a strip


@dataclass(frozen=True)
class Found:
    """What one run finds for a caption."""

    rank: float  # of the caption's own clip, from 1; ties share the mean of their places
    candidates: int
    columns: np.ndarray  # of the clips shown, best first; the last one is the own, if it is none of the first
    scores: np.ndarray  # (candidates,) similarities, NaN: a clip without features


def ranking_pictures(
    run: Run,
    n: int = 6,
    *,
    footage: Footage,
    split: str,
    stores: Mapping[str, object] | None = None,
    against: Run | None = None,
    top: int = 5,
    frames_shown: int = 4,
    allow_incomplete: bool = False,
) -> list[Path]:
    """One PNG a caption in `<run>/pictures`: strips of the clips that are most like it among all of a split, the right
    one in green, below the others with its rank where it is none of the first `top`.

    n captions evenly spaced over the split's clips. against: another run, whose list for the same captions stands on
    the right. stores: {role: store or path} of those that have moved since the training.

    Raises UserError: a run that ranks nothing, a split without captions that have features, runs on other captions.
    """
    examples = open_examples(run, n, split, stores, allow_incomplete, "ranking")
    sides = [(run, examples)]
    if against is not None:
        other = open_examples(against, n, split, None, allow_incomplete, "ranking")
        _check_same(run, examples, against, other)
        sides.append((against, other))
    found = [(side.path.name, _found(opened, examples.items, top)) for side, opened in sides]
    paths = []
    for i, item in enumerate(examples.items):
        own = int(examples.pairs.column_of[item])
        lists = [(name, each[i]) for name, each in found]
        path = run.picture_path("ranking", examples.clip_id(own))
        paths.append(_draw(path, examples, item, own, lists, footage, frames_shown))
    return paths


def _check_same(run: Run, ours: Examples, against: Run, theirs: Examples) -> None:
    """Raises UserError for runs that are asked about different captions or clips."""

    def told(examples: Examples) -> list:
        pairs = examples.pairs
        clips = [examples.clip_id(column) for column in range(len(pairs.columns))]
        return [clips, pairs.captions.clip[pairs.rows].tolist(), pairs.captions.text[pairs.rows].tolist()]

    if told(ours) != told(theirs):
        raise UserError(f"{run.path} and {against.path} are not about the same captions and clips: no comparison")


def _found(examples: Examples, items: np.ndarray, top: int) -> list[Found]:
    """What the run finds for each of these captions among all clips of the split."""
    similarity = similarities(examples.model, examples.pairs, items, examples.device, examples.precision)
    own = examples.pairs.column_of[items]
    ranks, _ = retrieval_ranks(similarity.__getitem__, own, similarity.shape[1])
    out = []
    for scores, mine, rank in zip(similarity, own.tolist(), ranks.tolist(), strict=True):
        order = np.argsort(np.where(np.isnan(scores), np.inf, -scores), kind="stable")
        first = order[: min(top, int((~np.isnan(scores)).sum()))]
        columns = first if mine in first else np.append(first, mine)
        out.append(Found(rank + 1, len(scores), columns, scores))
    return out


# --- drawing ---


def _draw(
    path: Path,
    examples: Examples,
    item: int,
    own: int,
    lists: Sequence[tuple[str, Found]],
    footage: Footage,
    frames_shown: int,
) -> Path:
    plt = pyplot()
    wanted = {column for _, found in lists for column in found.columns.tolist()}
    strips = {column: _strip(examples, column, footage, frames_shown) for column in sorted(wanted)}
    shapes = [frame.shape[:2] for frames in strips.values() for frame in frames if frame is not None]
    # No taller than wide: videos filmed upright lie small in the middle of their place.
    tall = _SIDE * min(1.0, max(high / wide for high, wide in shapes)) if shapes else 0.42
    block = _LABEL + (frames_shown if shapes else 2) * (_SIDE + _GAP)
    wide = 0.2 + block * len(lists) + 0.3 * (len(lists) - 1)
    caption = wrapped(f"“{examples.caption(item)}”", wide - 0.4, 11)
    head = 0.32 + 0.19 * (caption.count("\n") + 1) + 0.3  # the caption, and each run's line
    rows = max(len(found.columns) for _, found in lists)
    high = head + rows * (tall + 0.12) + 0.1
    figure = plt.figure(figsize=(wide, high))
    figure.text(0.15 / wide, 1 - 0.12 / high, caption, fontsize=11, va="top")
    for i, (name, found) in enumerate(lists):
        left = 0.15 + i * (block + 0.3)
        what = "video" if examples.clip_id(own) == examples.video(own) else "clip"
        said = f"{name}: its own {what} is at rank {found.rank:g} of {found.candidates}"
        if np.isnan(found.scores[own]):
            said = f"{name}: its own {what} has no features, so it is never found"
        figure.text(left / wide, 1 - (head - 0.1) / high, said, fontsize=9, va="bottom",
                    color=RIGHT if found.rank == 1 else "black")  # fmt: skip
        for row, column in enumerate(found.columns.tolist()):
            bottom = high - head - (row + 1) * (tall + 0.12) + 0.12
            _line(figure, examples, found, row, column, own, left, bottom, tall, strips[column] if shapes else ())
    return save_figure(figure, path)


def _line(figure, examples: Examples, found: Found, row: int, column: int, own: int, left: float, bottom: float,
          tall: float, frames: Sequence[np.ndarray | None]) -> None:  # fmt: skip
    """A clip of a list: its place, its name and score, and its strip; all in inches."""
    wide, high = figure.get_size_inches()
    right, beyond = column == own, row >= 1 and column == own and found.rank > row + 1
    colour, score = RIGHT if right else "black", found.scores[column]
    place = f"{found.rank:g}" if beyond else str(row + 1)
    middle = (bottom + tall / 2) / high
    bold = {"weight": "bold"} if right else {}
    figure.text((left + 0.32) / wide, middle, place, fontsize=12, ha="right", va="center", color=colour, **bold)
    name, clip = examples.video(column), examples.clip_id(column)
    lines = [_short(name), *([f"clip {_short(clip, 15)}"] if clip != name else [])]
    lines.append("no features" if np.isnan(score) else f"{score:.3f}" + ("  its own" if right else ""))
    at = ((left + 0.42) / wide, middle)
    figure.text(*at, "\n".join(lines), fontsize=8, va="center", color=colour, linespacing=1.35, **bold)
    for i, frame in enumerate(frames):
        x = left + _LABEL + i * (_SIDE + _GAP)
        axis = figure.add_axes((x / wide, bottom / high, _SIDE / wide, tall / high))
        show_frame(axis, frame, *((RIGHT, 2.5) if right else (OTHER, 0.5)))


def _strip(examples: Examples, column: int, footage: Footage, n: int) -> list[np.ndarray | None]:
    video = examples.video(column)
    return [footage.frame(video, time) for time in examples.times_s(column, n)]


def _short(name: str, most: int = 20) -> str:
    """A name in the room there is: names of one dataset tend to begin alike, so that its end stays."""
    head = most // 3
    return name if len(name) <= most else f"{name[:head]}…{name[head + 1 - most :]}"
