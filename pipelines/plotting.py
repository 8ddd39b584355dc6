"""All pictures of a run, with the frames fetched from the dataset's videos."""

from __future__ import annotations

from collections.abc import Mapping
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
    stores: Mapping[str, object] | None = None,
    split: str | None = None,
) -> list[Path]:
    """Write `<run>/pictures`: the training curve, and for heads that attend to stored boxes, clips of a split.

    dataset, data, videos: where the frames come from, by default the dataset that the run's stores name.
    stores: {role: store or path} of those that have moved since the training.
    split: by default val, or train where there is no val.
    """
    if clips < 1:
        raise UserError(f"--clips must be at least 1, got {clips}")
    opened = open_run(run)
    reads = {} if opened.base else get_head(opened.head_name).reads
    paths = [training_curve(opened)]
    if "objects" in reads:
        there = opened.open_stores(stores)
        parts = {str(part) for part in there[next(iter(reads))].clips.get("split", ())}
        name = dataset or opened.facts["dataset"]["name"]
        source = load_dataset(name, data_root=data, videos=videos)
        paths += attention_pictures(
            opened,
            clips,
            frame_at=frames_of(source),
            split=split or ("val" if "val" in parts else "train"),
            stores=there,
            allow_incomplete=opened.facts["allow_incomplete"],
        )
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
