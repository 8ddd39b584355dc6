"""Embeddings as an index keeps them: what of, and how they are read (`pipelines.retrieval_index` writes them)."""

from __future__ import annotations

import numpy as np
import torch

from stores import Store

__all__ = ["CAPTIONS", "VIDEOS", "read_embeddings"]

VIDEOS, CAPTIONS = "videos", "captions"  # what an index is of


def read_embeddings(store: Store, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """{name: (len(rows), ...) tensor} of rows of an index, as the head's `similarity` takes them."""
    out = {}
    for name, spec in store.manifest.arrays.items():
        if name in store.manifest.spec["embeddings"]:
            values = store.read(name, rows)
            out[name] = torch.from_numpy(values.astype(bool) if spec.dtype == "int8" else values)
    return out
