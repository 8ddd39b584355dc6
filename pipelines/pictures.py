"""Pictures of a run: where SAOA looked (thesis figure 3.4), and how the training went."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from errors import UserError
from pipelines.run_folder import Run, open_run
from pipelines.shown_clips import shown_clips
from stores.manifest import write_durable

__all__ = ["attention_pictures", "class_name", "pyplot", "save_figure", "show_frame", "title_of_clip", "training_curve"]

FrameAt = Callable[[str, float], np.ndarray]
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")

CHARACTER = 0.082  # inches that a character of a title takes on average


def attention_pictures(
    run: str | Path | Run, n: int = 6, *, frame_at: FrameAt, frames_shown: int = 4, **options
) -> list[Path]:
    """One PNG a clip in `<run>/pictures`: its most attended frames with their boxes and both attentions.

    frame_at: (video name, seconds) -> (H, W, 3) uint8, the frame shown at that instant, in display orientation.
    n, options: which clips, see `shown_clips.shown_clips`. Under each frame stand the weights of its boxes for the noun
    ("verb attends noun") and for the verb ("noun attends verb"), as shares of the whole list, in percent.

    Raises UserError: a head without attention, what `shown_clips` raises, a picture that cannot be written.
    """
    shown = shown_clips(run, "attention", "attends to no objects", n, **options)
    paths = []
    for i, clip in enumerate(shown.clips):
        frames = _most_attended(_frames(shown.batch, shown.out, i, shown.boxes_per_frame), frames_shown)
        paths.append(_draw(clip.path, clip.words, frames, lambda t, v=clip.video: frame_at(v, t)))
    return paths


def class_name(names: Sequence[str], number: int) -> str:
    """A class's name, or its number where it has none."""
    return str(names[number]) if number < len(names) else str(number)


def title_of_clip(figure, words: Sequence[str], colour: str = "black") -> None:
    """What is said of a clip above its picture, on one line, or on several where the figure is too narrow for one."""
    line = (5 * " ").join(words)
    fits = len(line) * CHARACTER <= figure.get_figwidth()
    figure.suptitle(line if fits else "\n".join(words), fontsize=10, color=colour)


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


def _draw(path: Path, words: Sequence[str], frames: list[tuple[float, dict]], frame_at: Callable) -> Path:
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
    title_of_clip(figure, words)
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
