"""Pictures of what a run mistakes for what, and of what it names better than another run, class by class."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from errors import UserError, count_of
from heads.metrics import predicted_classes
from pipelines.evaluated_clips import ClipScorer
from pipelines.pictures import class_name, pyplot, save_figure
from pipelines.run_folder import Run

__all__ = ["class_gains", "confusion", "confusion_pictures", "gain_pictures"]

NAMED = 40  # classes that have room for their names
NUMBERED = 16  # classes that have room for numbers in the cells
TITLE = 88  # characters of a line above the gains
ENDS = 20  # of more classes than there is room for: the largest gains and losses shown


def confusion(truth: np.ndarray, guess: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes + 1) int64: how often clips of class i are named j; the last column counts those without a
    prediction (guess -1). Clips without a label (truth -1) count nowhere."""
    found = np.zeros((classes, classes + 1), np.int64)
    labelled = truth >= 0
    np.add.at(found, (truth[labelled], np.where(guess[labelled] < 0, classes, guess[labelled])), 1)
    return found


def confusion_pictures(run: Run, scorer: ClipScorer, split: str, names: Mapping[str, Sequence[str]]) -> list[Path]:
    """`<run>/pictures/confusion_<label>.png` of every label: rows are true classes, columns predicted ones, both in
    order of their frequency in training, the most frequent first. A row sums to 1.

    scorer: of the run on the split (`evaluation.open_scorer`). names: {label: class names}. Classes that neither occur
    nor are predicted are left out.

    Raises UserError: clips that have no single label each.
    """
    labels = scorer.clips.labels
    if not {*scorer.classes} & {*labels}:
        raise UserError(f"{run.path}: its clips have no single {', '.join(scorer.classes)} each: no confusion to show")
    scores = scorer.score()
    return [
        _draw_confusion(
            run.path / "pictures" / f"confusion_{label}.png",
            confusion(labels[label], predicted_classes(scores[label]), classes),
            scorer.counts[label],
            names.get(label) or (),
            f"{label}s: {run.trained} on {split} of {scorer.clips.dataset_name}",
        )
        for label, classes in scorer.classes.items()
        if label in labels
    ]


def class_gains(truth: np.ndarray, ours: np.ndarray, theirs: np.ndarray, classes: int) -> np.ndarray:
    """(classes, 3) int64: of each class how many clips there are, how many one run names right and the other wrong
    (`ours` right), and how many the other way round."""
    right, other = ours == truth, theirs == truth
    found = np.zeros((classes, 3), np.int64)
    for column, clips in enumerate((truth >= 0, right & ~other, other & ~right)):
        found[:, column] = np.bincount(truth[clips & (truth >= 0)], minlength=classes)
    return found


def gain_pictures(
    run: Run, scorer: ClipScorer, against: Run, other: ClipScorer, split: str, names: Mapping[str, Sequence[str]]
) -> list[Path]:
    """`<run>/pictures/gain_<label>_over_<other run>.png`: clips of each class that the run names right and the other
    run wrong, and the other way round. Of many classes those with the largest gains and losses.

    Raises UserError where the two runs are not about the same clips and labels.
    """
    if not np.array_equal(scorer.clips.ids, other.clips.ids):
        raise UserError(f"{run.path} and {against.path} are not about the same clips of split {split!r}")
    shared = [label for label in scorer.classes if label in other.classes and label in scorer.clips.labels]
    if not shared:
        raise UserError(f"{run.path} names {', '.join(scorer.classes)}, {against.path} {', '.join(other.classes)}")
    ours, theirs = scorer.score(), other.score()
    paths = []
    for label in shared:
        truth, guesses = scorer.clips.labels[label], (predicted_classes(ours[label]), predicted_classes(theirs[label]))
        classes = max(scorer.classes[label], other.classes[label])
        tops = [100 * float(np.mean(guess == truth)) for guess in guesses]
        title = f"{label}s, {split}: {run.path.name} {tops[0]:.1f} %, {against.path.name} {tops[1]:.1f} % top-1"
        path = run.path / "pictures" / f"gain_{label}_over_{against.path.name}.png"
        paths.append(
            _draw_gains(path, class_gains(truth, *guesses, classes), len(truth), names.get(label) or (), title)
        )
    return paths


def _draw_confusion(path: Path, found: np.ndarray, counts: np.ndarray, names: Sequence[str], title: str) -> Path:
    plt = pyplot()
    order = np.argsort(-counts, kind="stable")
    shown = order[(found.sum(axis=1)[order] > 0) | (found[:, :-1].sum(axis=0)[order] > 0)]
    without = found[:, -1].any()
    columns = np.append(shown, found.shape[1] - 1) if without else shown
    cells = found[np.ix_(shown, columns)]
    shares = cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
    named = len(shown) <= NAMED
    side = 2.6 + (0.34 * len(shown) if named else 6.5)
    figure, axis = plt.subplots(figsize=(side + 0.8, side), layout="compressed")
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if named:
        across = [class_name(names, c) for c in shown] + (["none"] if without else [])
        axis.set_xticks(range(len(columns)), across, rotation=90, fontsize=8)
        down = [f"{class_name(names, c)} ({found[c].sum()})" for c in shown]
        axis.set_yticks(range(len(shown)), down, fontsize=8)
    if len(shown) <= NUMBERED:
        for i, j in np.argwhere(cells):
            colour = "white" if shares[i, j] > 0.55 else "black"
            axis.text(j, i, cells[i, j], ha="center", va="center", fontsize=7, color=colour)
    order_words = "most frequent in training first"
    last = "; last column: no prediction" if without and not named else ""
    axis.set_xlabel(f"predicted ({order_words}{last})", fontsize=9)
    axis.set_ylabel("true (clips)" if named else f"true ({len(shown)} classes, {order_words})", fontsize=9)
    axis.set_title(title, fontsize=10)
    figure.colorbar(image, fraction=0.04, pad=0.02, label="share of the true class's clips")
    return save_figure(figure, path)


def _draw_gains(path: Path, found: np.ndarray, clips: int, names: Sequence[str], title: str) -> Path:
    plt = pyplot()
    occurring = np.flatnonzero(found[:, 0])
    net = found[:, 1] - found[:, 2]
    order = occurring[np.lexsort((found[occurring, 0], net[occurring]))]  # the largest gain on top
    left_out = max(0, len(order) - 2 * ENDS)
    if left_out:
        order = np.concatenate([order[:ENDS], order[-ENDS:]])
    places = np.arange(len(order))
    figure, axis = plt.subplots(figsize=(7.2, 1.6 + 0.24 * max(len(order), 3)), layout="constrained")
    axis.barh(places, found[order, 1], color="#3cb44b", height=0.7, label="right only here")
    axis.barh(places, -found[order, 2], color="#e6194b", height=0.7, label="right only there")
    axis.plot(net[order], places, "D", color="black", markersize=4, label="difference")
    axis.axvline(0, color="black", linewidth=0.8)
    if left_out:
        axis.axhline(ENDS - 0.5, color="gray", linestyle=":", linewidth=1)
        axis.annotate(
            f"{count_of(left_out, 'class', 'classes')} between", (0.985, ENDS - 0.5),
            xycoords=("axes fraction", "data"), fontsize=7,
            ha="right", va="center", color="gray", backgroundcolor="white",
        )  # fmt: skip
    axis.set_yticks(places, [f"{class_name(names, c)} ({found[c, 0]})" for c in order], fontsize=8)
    axis.set_ylim(-0.7, len(order) - 0.3)
    low, high = axis.get_xlim()
    axis.set_xlim(min(low, -1), max(high, 1))  # whole clips have whole ticks, also where there are few
    axis.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel(f"clips (one is {100 / clips:.2g} percentage points of top-1)")
    axis.legend(fontsize=8, loc="lower right")
    figure.suptitle(textwrap.fill(title, TITLE), fontsize=10)
    return save_figure(figure, path)
