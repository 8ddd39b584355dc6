"""Similarities of a retrieval run: every caption of a split with every clip, written for any program to read.

The file is .npz without pickles:

    similarity   (captions, clips) float32; NaN where the caption or the clip has no features
    captions     (captions,) text
    clip         (captions,) the column of each one's own clip
    ids          (clips,) text: the clips of the split
    dataset, split, run
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np

from pipelines.retrieval_clips import Pairs
from pipelines.run_folder import Run
from stores.manifest import write_durable

__all__ = ["predict_similarities", "similarities"]

_AT_ONCE = 64  # texts of a forward pass


def predict_similarities(
    run: Run,
    split: str,
    *,
    out: str | Path | None = None,
    stores=None,
    place=None,
    device: str | None = None,
    allow_incomplete: bool = False,
    progress: bool = True,
) -> dict:
    """`pipelines.predict` of a retrieval run. Returns {"run", "file", "split", "epoch", "texts", "videos": how many,
    "coverage": share of the pairs that have a similarity}."""
    from pipelines.devices import pick_device
    from pipelines.retrieval_training import open_retrieval

    device = pick_device(device)
    model, data, metadata = open_retrieval(run, stores, device, allow_incomplete)
    pairs = data.pairs(split)
    matrix = similarities(model, pairs, np.arange(len(pairs)), device, data.schedule.precision)
    path = Path(out) if out is not None else run.scores_path(split)
    ids = pairs.videos.clip_ids[pairs.videos.clips[pairs.columns]]
    text = {"captions": pairs.captions.text[pairs.rows], "ids": ids}
    body = io.BytesIO()
    np.savez(
        body, similarity=matrix, clip=pairs.column_of, dataset=pairs.videos.dataset_name, split=split,
        run=run.path.name, **{name: column.astype(str) for name, column in text.items()},
    )  # fmt: skip
    write_durable(path, body.getvalue())
    found = {"run": str(run.path), "file": str(path), "split": split, "epoch": metadata["epoch"]}
    coverage = 1 - float(np.isnan(matrix).mean())
    return {**found, "texts": matrix.shape[0], "videos": matrix.shape[1], "coverage": coverage}


def similarities(model, pairs: Pairs, items: np.ndarray, device: str, precision: str) -> np.ndarray:
    """(len(items), clips) float32 of captions, by their items, with all clips of `pairs`, as `retrieval_model.ranked`
    compares them; NaN where one of the two has no features.

    model: pipelines.retrieval_model.RetrievalModel, in evaluation mode.
    """
    import torch

    from pipelines.devices import autocast, to_device
    from pipelines.retrieval_model import embed_videos

    video = {name: value.to(device) for name, value in embed_videos(model, pairs, device, precision).items()}
    out = np.empty((len(items), len(pairs.columns)), np.float32)
    with torch.inference_mode():
        for start in range(0, len(items), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            with autocast(device, precision):
                text = model.head.encode_text(model.tokens(to_device(pairs.texts(items[part]), device)))
            out[part] = model.head.similarity(text, video).cpu().numpy()
    out[~pairs.text.there[pairs.rows[items]]] = np.nan
    out[:, ~video["present"].any(dim=1).cpu().numpy()] = np.nan
    return out
