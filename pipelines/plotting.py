"""All pictures of a run, with the frames fetched from the dataset's videos."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from errors import UserError
from extract.datasets import load_dataset
from extract.decode import FrameError, VideoError, open_source
from heads import get_head
from pipelines.pictures import attention_pictures, training_curve
from pipelines.run_folder import open_run

__all__ = ["frames_of", "plot_run"]


def plot_run(
    run: str | Path,
    *,
    dataset: str | None = None,
    data: str | Path | None = None,
    videos: str | Path | None = None,
    clips: int = 6,
) -> list[Path]:
    """Write `<run>/pictures`: the training curve, and for heads that attend to boxes, `clips` validation clips.

    dataset, data, videos: where the frames come from, by default the dataset that the run's stores name.
    """
    opened = open_run(run)
    paths = [training_curve(opened)]
    if "objects" in get_head(opened.head_name).reads:
        name = dataset or opened.facts["dataset"]["name"]
        source = load_dataset(name, data_root=data, videos=videos)
        paths += attention_pictures(opened, clips, frame_at=frames_of(source))
    return paths


def frames_of(dataset):
    """(video name, seconds) -> uint8 (H, W, 3), the frame on screen then, for the videos of a dataset."""
    number = {name: i for i, name in enumerate(dataset.videos["name"])}

    @lru_cache(maxsize=4)
    def source_of(video: str):
        path = dataset.video_path(number[video]) if video in number else None
        if path is None:
            raise UserError(
                f"video {video!r} is not on disk under {dataset.root}: give --data, or --dataset and --videos"
            )
        try:
            return open_source(path, grid_fps=dataset.grid_fps)
        except VideoError as error:
            raise UserError(str(error)) from error

    def frame_at(video: str, time_s: float) -> np.ndarray:
        source = source_of(video)
        index = source.at(np.array([time_s]))[0]
        frame = next(source.read(index))[1]
        if isinstance(frame, FrameError):
            raise UserError(str(frame))
        return frame

    return frame_at
