"""Pictures of a run: where SAOA looked (thesis figure 3.4), and how the training went."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from pipelines.devices import to_device
from pipelines.evaluation import clip_dataset
from pipelines.run_folder import Run, open_run
from stores import ClipDataset
from stores.manifest import write_durable

__all__ = ["attention_pictures", "class_name", "pyplot", "save_figure", "show_frame", "shown_clips", "training_curve"]

FrameAt = Callable[[str, float], np.ndarray]
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def attention_pictures(
    run: str | Path | Run,
    n: int = 6,
    *,
    frame_at: FrameAt,
    split: str = "val",
    stores: Mapping[str, object] | None = None,
    clips: Sequence[str] | None = None,
    class_names: Mapping[str, Sequence[str]] | None = None,
    frames_shown: int = 4,
    allow_incomplete: bool = False,
) -> list[Path]:
    """One PNG a clip in `<run>/pictures`: its most attended frames with their boxes and both attentions.

    frame_at: (video name, seconds) -> (H, W, 3) uint8, the frame shown at that instant, in display orientation.
    clips: clip ids; by default n clips evenly spaced over the split. class_names: {"verb": [...], "noun": [...]},
    by default those the store names, else the numbers. Under each frame stand the weights of its boxes for the noun
    ("verb attends noun") and for the verb ("noun attends verb"), as shares of the whole list, in percent.

    stores: {role: store or path} of those that have moved since the training.

    Raises UserError: a head without attention, a clip that is not in the split, a split without any features, a
    picture that cannot be written.
    """
    dataset, batch, out, shown = shown_clips(
        run, "attention", "attends to no objects", n,
        split=split, stores=stores, clips=clips, class_names=class_names, allow_incomplete=allow_incomplete,
    )  # fmt: skip
    paths = []
    for i, clip in enumerate(shown):
        frames = _most_attended(_frames(batch, out, i, dataset.boxes_per_frame), frames_shown)
        paths.append(_draw(clip.path, clip.title, frames, lambda t, v=clip.video: frame_at(v, t)))
    return paths


@dataclass(frozen=True)
class ShownClip:
    """A clip that a picture is made of."""

    clip: int  # its number in the dataset
    video: str
    title: str  # its id, what it shows and what the head says it shows
    right: bool  # whether the two agree
    path: Path  # of the picture


def shown_clips(
    run: str | Path | Run,
    picture: str,
    lacks: str,
    n: int,
    *,
    split: str = "val",
    stores: Mapping[str, object] | None = None,
    clips: Sequence[str] | None = None,
    class_names: Mapping[str, Sequence[str]] | None = None,
    allow_incomplete: bool = False,
) -> tuple[ClipDataset, dict, dict[str, np.ndarray], list[ShownClip]]:
    """(dataset, batch of n of its clips, the head's outputs for them, the clips), for pictures that show clips.

    picture: its name among the head's `pictures`. lacks: what a head that has no such picture does, for the message.
    The others, and what is raised, as for `attention_pictures`.
    """
    import torch

    run = run if isinstance(run, Run) else open_run(run)
    head, _ = run.best_head()
    if picture not in getattr(head, "pictures", ()):
        raise UserError(f"{run.path}: head {run.head_name} {lacks}, so there is no {picture} to show")
    opened = run.open_stores(stores)
    dataset = clip_dataset(head, opened, split, draws=(0,), allow_incomplete=allow_incomplete)
    items = _chosen(dataset, clips, n)
    if not items:
        raise UserError(f"{run.path}: no clip of split {split!r} has features, so there is no {picture} to show")
    batch = dataset.batch(items)
    with torch.inference_mode():
        out = {key: value.numpy() for key, value in head(to_device(batch, "cpu")).items()}
    names = class_names or dataset.stores["verb"].manifest.dataset.get("class_names") or {}
    shown = []
    for i, item in enumerate(items):
        clip, video = dataset.clips[item], dataset.video_names[dataset.videos[item]]
        name, (truth, guess, right) = dataset.clip_ids[clip], _clip_words(batch, out, i, names)
        title = f"{name}     truth: {truth}     predicted: {guess}"
        shown.append(ShownClip(clip, video, title, right, run.picture_path(picture, str(name))))
    return dataset, batch, out, shown


def class_name(names: Sequence[str], number: int) -> str:
    """A class's name, or its number where it has none."""
    return str(names[number]) if number < len(names) else str(number)


def _chosen(dataset, clips: Sequence[str] | None, n: int) -> list[int]:
    """Items of these clips, or of n evenly spaced ones with features. Raises UserError for a clip that is not there."""
    if clips is None:
        good = np.flatnonzero(dataset.ok)
        return (
            good[np.unique(np.linspace(0, len(good) - 1, min(n, len(good))).astype(int))].tolist() if len(good) else []
        )
    where = {str(dataset.clip_ids[clip]): item for item, clip in enumerate(dataset.clips)}
    lost = [clip for clip in clips if str(clip) not in where]
    if lost:
        raise UserError(f"clip {lost[0]!r} is not in this split")
    return [where[str(clip)] for clip in clips]


def _frames(batch: dict, out: dict, i: int, k: int) -> dict[float, dict]:
    """{time: {"boxes": (k, 4), "noun": (k,) or None, "verb": (k,) or None}} of clip i, masked boxes with weight NaN."""
    frames: dict[float, dict] = {}
    for name in ("noun", "verb"):
        part = batch[f"objects_{name}"]
        mask = part["mask"][i].reshape(-1, k)
        weights = np.where(mask, out[f"attention_{name}"][i].reshape(-1, k), np.nan)
        for row in np.flatnonzero(mask.any(axis=1)):
            time = float(part["time_s"][i].reshape(-1, k)[row][mask[row]][0])
            frame = frames.setdefault(
                time, {"boxes": part["boxes"][i].reshape(-1, k, 4)[row], "noun": None, "verb": None}
            )
            frame[name] = weights[row]
    return frames


def _most_attended(frames: Mapping[float, dict], n: int) -> list[tuple[float, dict]]:
    """The n frames that both branches together look at most, in time order."""

    def weight(time):
        return sum(np.nansum(frames[time][name]) for name in ("noun", "verb") if frames[time][name] is not None)

    return [(time, frames[time]) for time in sorted(sorted(frames, key=weight)[-n:])]


def _clip_words(batch: dict, out: dict, i: int, names: Mapping) -> tuple[str, str, bool]:
    """(true verb and noun of clip i in words, predicted ones, whether they agree)."""

    def words(pair):
        said = []
        for label, value in zip(("verb", "noun"), pair, strict=True):
            known = names.get(label) or ()
            said.append(str(known[value]) if 0 <= value < len(known) else f"{label} {value}")
        return " ".join(said)

    truth = [int(batch["labels"][label][i]) for label in ("verb", "noun")]
    guess = [int(out[label][i].argmax()) for label in ("verb", "noun")]
    return words(truth), words(guess), truth == guess


def _draw(path: Path, title: str, frames: list[tuple[float, dict]], frame_at: Callable) -> Path:
    plt = pyplot()
    columns = max(1, len(frames))
    figure, axes = plt.subplots(1, columns, figsize=(3.6 * columns, 3.9), squeeze=False)
    for axis in axes[0]:
        axis.axis("off")
    for axis, (time, frame) in zip(axes[0], frames, strict=False):
        image = frame_at(time)
        height, width = image.shape[:2]
        axis.imshow(image)
        for j, (x0, y0, x1, y1) in enumerate(frame["boxes"]):
            if x1 <= x0 or y1 <= y0:
                continue
            colour = COLOURS[j % len(COLOURS)]
            corner = (x0 * width, y0 * height)
            box = plt.Rectangle(corner, (x1 - x0) * width, (y1 - y0) * height, fill=False, ec=colour, lw=1.8)
            axis.add_patch(box)
            label = {"color": "white", "fontsize": 7, "va": "top", "bbox": {"fc": colour, "ec": "none", "pad": 1}}
            axis.text(*corner, str(j + 1), **label)
        axis.set_title(f"{time:.1f} s", fontsize=9)
        for line, name in enumerate(("noun", "verb")):
            _weights(axis, name, frame[name], 0.06 + 0.085 * line)
    if not frames:
        axes[0, 0].text(0.5, 0.5, "no objects were seen", ha="center")
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    return save_figure(figure, path)


def _weights(axis, name: str, weights: np.ndarray | None, below: float) -> None:
    """One line under a picture: the weights in percent, each in its box's colour, the largest bold."""
    style = {"transform": axis.transAxes, "fontsize": 8, "va": "center"}
    axis.text(0, -below, f"{name}, %", **style)
    if weights is None or np.isnan(weights).all():
        axis.text(0.2, -below, "outside the window" if weights is None else "no box", **style, color="gray")
        return
    for j, weight in enumerate(weights):
        if not np.isnan(weight):
            bold = "bold" if j == np.nanargmax(weights) else "normal"
            place = 0.2 + 0.8 * j / len(weights)
            axis.text(place, -below, f"{100 * weight:.1f}", **style, color=COLOURS[j % len(COLOURS)], weight=bold)


def training_curve(run: str | Path | Run) -> Path:
    """`<run>/pictures/training_curve.png`: loss, and the validation figures (`val_...`, but top-5) by epoch.

    Raises UserError when no epoch is finished.
    """
    run = run if isinstance(run, Run) else open_run(run)
    log = run.log()
    if not log:
        raise UserError(f"{run.path} has no finished epoch to draw")
    plt = pyplot()
    epochs = [row["epoch"] for row in log]
    figure, loss = plt.subplots(figsize=(6.4, 4.2))
    loss.plot(epochs, [row["loss"] for row in log], color="black", label="training loss")
    loss.set_xlabel("epoch")
    loss.set_ylabel("training loss")
    loss.set_ylim(0, 1.05 * max(row["loss"] for row in log) or 1)
    lines = loss.get_lines()
    figures = [name for name in log[-1] if name.startswith("val_") and not name.endswith("top5")]
    if figures:
        accuracy = loss.twinx()
        for name, colour in zip(figures, itertools.cycle(COLOURS)):
            label = name.removeprefix("val_").replace("_top1", " top-1").replace("_", " ")
            accuracy.plot(epochs, [100 * row[name] for row in log], color=colour, label=f"{label} (validation)")
        accuracy.set_ylabel("top-1, %" if all(name.endswith("top1") for name in figures) else "%")
        accuracy.set_ylim(0, 103)
        lines = [*lines, *accuracy.get_lines()]
    loss.xaxis.get_major_locator().set_params(integer=True)
    loss.legend(
        lines,
        [line.get_label() for line in lines],
        fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=2,
    )
    loss.set_title(f"{run.trained} on {run.facts['dataset']['name']}, seed {run.facts['seed']}", fontsize=10)
    figure.tight_layout()
    return save_figure(figure, run.path / "pictures" / "training_curve.png")


def show_frame(axis, frame: np.ndarray | None, edge: str, width: float = 0.5, **style) -> None:
    """A frame (H, W, 3) on an axis without ticks, or the words that there is none, in an edge of this colour and width
    in points. style: of `imshow`."""
    axis.set(xticks=[], yticks=[])
    if frame is None:
        where = {"transform": axis.transAxes, "ha": "center", "va": "center"}
        axis.text(0.5, 0.5, "no frame", fontsize=7.5, color="#707070", **where)
    else:
        axis.imshow(frame, **style)
    for spine in axis.spines.values():
        spine.set(color=edge, linewidth=width)


def save_figure(figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all, and forget it. Raises UserError or MachineError."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110)
    pyplot().close(figure)
    write_durable(path, data.getvalue())
    return path


def pyplot():
    """matplotlib without a display; imported when a picture is drawn, not before."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt
