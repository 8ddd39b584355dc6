"""Pictures of IPL: where on the frames the features lie that name the noun (thesis figure 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipelines.pictures import FrameAt, pyplot, save_figure, title_of_clip
from pipelines.run_folder import Run
from pipelines.shown_clips import shown_clips

__all__ = ["assignment_pictures"]

_RIGHT, _WRONG = "#2e8b3d", "#c0202a"


def assignment_pictures(
    run: str | Path | Run, n: int = 6, *, frame_at: FrameAt, frames_shown: int = 4, **options
) -> list[Path]:
    """One PNG a clip in `<run>/pictures`: frames under the sum of the assignments to the selected verbs' prototypes.

    Arguments and options as for `pictures.attention_pictures`. `frames_shown` of the map's steps, evenly spaced; each
    lies over the frame in the middle of the time it stands for, at the place that the geometry says. Red is
    much, on one scale a clip; the title is green where verb and noun are right and red where they are not.

    Raises UserError: a head without assignments, what `shown_clips` raises, a picture that cannot be written.
    """
    shown = shown_clips(run, "assignment", "assigns no features to prototypes", n, **options)
    paths = []
    for i, clip in enumerate(shown.clips):
        maps = shown.out["selected"][i]  # (T, H, W)
        start, stop = clip.window
        steps = np.unique(np.linspace(0, len(maps) - 1, min(frames_shown, len(maps))).round().astype(int))
        times = start + (steps + 0.5) / len(maps) * (stop - start)
        frames = [frame_at(clip.video, max(float(time), 0.0)) for time in times]
        geometry = shown.batch["verb"]["geometry"][i]
        paths.append(_draw(clip.path, clip.words, clip.right, frames, times, maps[steps], geometry))
    return paths


def _draw(path: Path, words: Sequence[str], right: bool, frames, times, maps: np.ndarray, geometry: np.ndarray) -> Path:
    plt = pyplot()
    high, wide = frames[0].shape[:2]
    inches = 3.1
    figure, axes = plt.subplots(
        1, len(frames), figsize=(inches * len(frames) + 0.7, inches * high / wide + 0.9), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    sx, sy, ox, oy = (float(value) for value in geometry)
    rows, columns = maps.shape[1:]
    # Cells c of the map lie at relative places (c - o) / s of the frame.
    extent = (-ox / sx * wide, (columns - ox) / sx * wide, (rows - oy) / sy * high, -oy / sy * high)
    for axis, frame, time, cells in zip(axes[0], frames, times, maps, strict=True):
        whole = (0, wide, high, 0)
        axis.imshow(frame.mean(axis=-1), extent=whole, cmap="gray", vmin=0, vmax=255)  # colour is the assignment's
        shown = axis.imshow(
            cells, extent=extent, cmap="turbo", alpha=0.5, interpolation="bilinear", vmin=0, vmax=max(maps.max(), 1e-6)
        )
        axis.set_xlim(0, wide)
        axis.set_ylim(high, 0)
        axis.axis("off")
        axis.set_title(f"{time:.2f} s", fontsize=9)
    bar = figure.colorbar(shown, ax=list(axes[0]), fraction=0.04, pad=0.01)
    bar.ax.tick_params(labelsize=7)
    bar.solids.set_alpha(1)
    title_of_clip(figure, words, _RIGHT if right else _WRONG)
    return save_figure(figure, path)
