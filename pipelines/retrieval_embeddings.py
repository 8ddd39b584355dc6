"""Embeddings as an index keeps them: what of, and how they are read (`pipelines.retrieval_index` writes them)."""

from __future__ import annotations

import numpy as np
import torch

from errors import MachineError
from stores import Store

__all__ = ["CAPTIONS", "VIDEOS", "read_embeddings"]

VIDEOS, CAPTIONS = "videos", "captions"  # what an index is of


def read_embeddings(store: Store, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """{name: (len(rows), ...) tensor} of rows of an index, as the head's `similarity` takes them."""
    out = {}
    for name, spec in store.manifest.arrays.items():
        if name in store.manifest.spec["embeddings"]:
            try:
                values = store.read(name, rows)
            except MachineError as error:
                raise MachineError(
                    f"{error.message}. An index is not repaired: remove {store.path}, make it anew with cli.py index"
                ) from error
            out[name] = torch.from_numpy(values.astype(bool) if spec.dtype == "int8" else values)
    return out
