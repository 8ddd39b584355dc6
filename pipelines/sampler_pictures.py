"""Pictures of a sampler: where it looks (thesis figure 5.4), and strips of a video's frames (figure 5.5)."""

from __future__ import annotations

import itertools
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from errors import UserError, count_of
from heads.published import published
from pipelines.pictures import COLOURS, FrameAt, pyplot, save_figure, show_frame
from pipelines.protocols import dataset_family
from pipelines.recogniser_clips import middles
from pipelines.run_folder import Run

__all__ = ["accuracy_cost", "sampler_pictures", "strip"]

_COLUMNS = 9  # frames of a line of a strip
_PICKED, _LEFT = "#3cb44b", "#b0b0b0"


def sampler_pictures(
    run: Run, n: int = 6, *, frame_at: FrameAt | None, split: str, stores: Mapping[str, object] | None = None
) -> list[Path]:
    """Histograms of where a run's sampler looks and of its scores (figure 5.4), and strips of n clips evenly spaced
    over a split (figure 5.5), in `<run>/pictures`.

    frame_at: (video name, seconds) -> (H, W, 3) uint8; None: no strips.

    Raises UserError: a split without a clip that has frames.
    """
    from pipelines.sampler_evaluation import open_sampler, picked_logits, see

    opened = open_sampler(run, stores)
    which = opened.source.split(split)
    if not opened.candidates.shared.usable[which].any():
        raise UserError(f"{run.path}: no clip of split {split!r} has frames, so there is nothing to show")
    head, candidates = opened.model.head, opened.candidates
    seen, there = see(opened.model, candidates, which, device=opened.device)
    which, (logits, picked) = which[there], picked_logits(seen, head, head.config.sampled)
    paths = [_histograms(run, seen.scores.numpy(), picked.numpy(), seen.mask.numpy(), split)]
    if frame_at is None:
        return paths
    store, source, target = candidates.shared.stores[0], opened.source, candidates.targets
    rows, _ = candidates.shared.at(which, middles(len(which), head.config.frames))
    names = (store.manifest.dataset.get("class_names") or {}).get(target.name) or ()

    def said(label: int) -> str:
        return str(names[label]) if 0 <= label < len(names) else f"{target.name} {label}"

    for i in np.unique(np.linspace(0, len(which) - 1, min(n, len(which))).astype(int)):
        clip, mask = which[i], seen.mask[i].numpy()
        times, video = store.rows["start_s"][rows[i, mask, 0]], str(source.videos[source.clips["video"][clip]])
        truth = ", ".join(said(label) for label in target.labels[clip] if label >= 0) or "not known"
        name = str(source.clips["id"][clip])
        title = f"{name}     truth: {truth}     predicted: {said(int(logits[i].argmax()))}"
        title += f"     {int(picked[i].sum())} of {count_of(int(mask.sum()), 'frame')}"
        frames, scores = [frame_at(video, time) for time in times], seen.scores[i].numpy()[mask]
        path = run.picture_path("strip", name)
        paths.append(strip(path, frames, scores, picked[i].numpy()[mask], title, times))
    return paths


def _histograms(run: Run, scores: np.ndarray, picked: np.ndarray, mask: np.ndarray, split: str) -> Path:
    """Of all (V, N) candidates of a split: where in their videos the picked ones are, and all scores."""
    plt = pyplot()
    figure, (where, score) = plt.subplots(1, 2, figsize=(9, 3.4))
    bins = mask.shape[1]  # one a candidate: fewer would hold unequal numbers of them
    place = (mask.cumsum(axis=1) - 0.5) / np.maximum(mask.sum(axis=1, keepdims=True), 1)
    shares = np.full(picked.sum(), 100 / max(picked.sum(), 1))
    where.hist(place[picked], bins=bins, range=(0, 1), weights=shares, color=COLOURS[2])
    where.axhline(100 / bins, color="black", linewidth=1, linestyle="--", label="uniform")
    where.set(xlabel="place in the video", ylabel="share of the frames picked, %", xlim=(0, 1))
    where.set_ylim(0, 1.25 * where.get_ylim()[1])  # the legend stands above the bars
    where.legend(fontsize=8, loc="upper right")
    style = {"bins": 50, "range": (0, 1)}
    score.hist([scores[mask & ~picked], scores[picked]], stacked=True, color=(_LEFT, _PICKED), **style,
               label=("left", "picked"))  # fmt: skip
    score.set(xlabel="score", ylabel="frames", xlim=(0, 1))
    score.set_ylim(0, 1.25 * score.get_ylim()[1])
    score.legend(fontsize=8, loc="upper right", ncols=2)
    name, m = run.facts["dataset"]["name"], run.facts["head"]["config"]["sampled"]
    figure.suptitle(
        f"{run.trained} on {name}, {split}: {m} of {count_of(bins, 'frame')} of {count_of(len(mask), 'clip')}",
        fontsize=10,
    )
    figure.tight_layout()
    return save_figure(figure, run.path / "pictures" / "sampling.png")


def strip(
    path: str | Path,
    frames: Sequence[np.ndarray],
    scores: np.ndarray,
    picked: np.ndarray,
    title: str,
    times_s: Sequence[float] | None = None,
) -> Path:
    """A PNG of a video's candidate frames in time order over bars of their scores, those picked framed (figure 5.5).

    Args:
        path: where the PNG goes; its folder is made.
        frames: N images (H, W, 3) uint8, at least one of them shown.
        scores: (N,), drawn relative to the largest; NaN: of a frame that could not be decoded, which is not shown.
        picked: (N,) bool.
        times_s: (N,) seconds of the frames.

    Returns the path. Raises ValueError for lists of different lengths or no frame at all.
    """
    scores, picked = np.asarray(scores, np.float64), np.asarray(picked, bool)
    n = len(frames)
    lengths = {len(part) for part in (scores, picked, *([] if times_s is None else [times_s]))}
    if lengths != {n} or not n:
        raise ValueError(f"{n} frames need as many scores, picks and times, and at least one; got {sorted(lengths)}")
    plt = pyplot()
    columns = min(n, _COLUMNS)
    lines = -(-n // columns)
    height, width = frames[0].shape[:2]
    there, largest = ~np.isnan(scores), np.nanmax(scores, initial=0) or 1
    side = 1.45  # inches of a frame and the gap beside it
    tall = (side - 0.1) * height / width
    wide, high = max(side * columns + 0.2, 0.075 * len(title) + 0.3), (tall + 0.46) * lines + 0.42
    figure = plt.figure(figsize=(wide, high))
    for i in range(n):
        line, column = divmod(i, columns)
        left = (0.1 + side * column) / wide
        bottom = (high - 0.42 - (tall + 0.46) * (line + 1) + 0.46) / high
        axis = figure.add_axes((left + 0.05 / wide, bottom, (side - 0.1) / wide, tall / high))
        colour, width, alpha = (_PICKED, 3.0, 1.0) if picked[i] else (_LEFT, 0.5, 0.45)
        show_frame(axis, frames[i] if there[i] else None, colour, width, aspect="auto", alpha=alpha)
        bar = figure.add_axes((left + 0.05 / wide, bottom - 0.12 / high, (side - 0.1) / wide, 0.07 / high))
        bar.barh(0, scores[i] / largest if there[i] else 0, color=colour, height=1)
        bar.set(xlim=(0, 1), ylim=(-0.5, 0.5))
        bar.axis("off")
        when = "" if times_s is None else f"{times_s[i]:.1f} s   "
        style = {"weight": "bold", "color": "black"} if picked[i] else {"color": "#707070"}
        at = (left + side / 2 / wide, bottom - 0.15 / high)
        figure.text(
            *at, f"{when}{scores[i]:.2f}" if there[i] else when.strip(), fontsize=7.5, ha="center", va="top", **style
        )
    figure.text(0.15 / wide, 1 - 0.14 / high, title, fontsize=10, va="top")
    return save_figure(figure, Path(path))


def accuracy_cost(run: Run, result: Mapping) -> Path:
    """`<run>/pictures/accuracy_cost.png`: a figure of merit against GFLOPs of every method over M (figure 5.3), with
    what papers print for the dataset, if anything.

    result: what `sampler_evaluation.evaluate_sampler` returns. Where the cost is not known, frames take its place.
    """
    rows, family = result["methods"], dataset_family(run.facts["dataset"]["name"])
    metric = "top1" if family == "mini_kinetics" else "mAP"
    known = "gflops" in rows[0]
    across = "gflops" if known else "frames"
    printed = [point for point in published(family, metric) if point.gflops is not None] if known else []
    plt = pyplot()
    from matplotlib.ticker import LogLocator

    figure, axis = plt.subplots(figsize=(9.6 if printed else 7.2, 4.8))
    by_method: dict[str, list] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append((row[across], 100 * row[metric]))
    for (method, points), colour in zip(by_method.items(), itertools.cycle(COLOURS)):
        marker = "*" if len(points) == 1 else "o"
        axis.plot(*zip(*points, strict=True), color=colour, marker=marker, markersize=9 if marker == "*" else 4,
                  linewidth=1.4, linestyle="--" if method == "adaptive" else "-", label=method)  # fmt: skip
    key = []
    for i, point in enumerate(sorted(printed, key=lambda point: -point.value)):
        letter = string.ascii_uppercase[i % 26]
        axis.plot(point.gflops, point.value, color="black", marker="x", markersize=4)
        style = {"ha": "left" if i % 2 else "right", "va": "center", "textcoords": "offset points", "fontsize": 8}
        axis.annotate(letter, (point.gflops, point.value), (5 if i % 2 else -5, 0), **style)
        key.append(f"{letter}  {point.method}, {point.input}" if point.input else f"{letter}  {point.method}")
    if key:
        axis.text(1.02, 1, "as printed:\n" + "\n".join(key), transform=axis.transAxes, va="top", fontsize=7.5)
    axis.set_xlabel("GFLOPs of a video (multiply-adds)" if known else "frames that the recogniser sees")
    axis.set_ylabel({"top1": "top-1, %", "mAP": "mAP, %"}[metric])
    if known:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")
    axis.grid(alpha=0.25)
    name = run.facts["dataset"]["name"]
    axis.set_title(f"{run.trained} on {name}, {result['split']} ({result['features']})", fontsize=10)
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=4)
    figure.tight_layout()
    return save_figure(figure, run.path / "pictures" / "accuracy_cost.png")
