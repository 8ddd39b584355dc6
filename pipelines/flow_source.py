"""Where flow comes from when it is not published as frames: computed by a method, or a store of flow images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from errors import UserError
from stores import Store, open_store

__all__ = ["FlowSource", "flow_source"]


@dataclass(frozen=True)
class FlowSource:
    """`recipe` says how the flow is computed, whether that happens now (`make`) or happened before (`store`)."""

    recipe: dict
    make: Callable[[], Callable] | None = None
    store: Store | None = None

    @cached_property
    def method(self) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
        """(h, w, 3) uint8, (h, w, 3) uint8 -> (h, w, 2) float32 pixels; made when it is first needed."""
        return self.make()

    def rows_like(self, other: Store, rows: np.ndarray) -> np.ndarray:
        """int64 (n,): the rows of the flow store with the video, clip, draw and k of another store's; -1: none."""
        known = self._known
        return np.array([known.get(key, -1) for key in _keys(other, rows)], np.int64)

    @cached_property
    def _known(self) -> dict[tuple, int]:
        return {key: row for row, key in enumerate(_keys(self.store, np.arange(len(self.store))))}


def flow_source(given: str) -> FlowSource:
    """The flow of `--flow METHOD` or `--flow STORE`.

    Raises:
        UserError: neither a method nor a store of flow images.
    """
    from extract.flow import METHODS, create_flow, flow_recipe

    if given in METHODS:
        return FlowSource(flow_recipe(given), make=lambda: create_flow(given, device=_device_for(given)))
    if not (Path(given) / "zarr.json").is_file():
        raise UserError(
            f"--flow {given}: neither a method ({', '.join(METHODS)}) nor a store of flow images"
            " (made by extract --backbone flow_images --flow METHOD)"
        )
    store = open_store(given)
    if "flow" not in store.manifest.arrays or "flow" not in store.manifest.recipe:
        raise UserError(
            f"--flow {given}: this store holds {', '.join(store.manifest.arrays)}, not flow images computed from videos"
        )
    return FlowSource(dict(store.manifest.recipe["flow"]), store=store)


def _device_for(method: str) -> str:
    """RAFT is a network: it runs on a GPU where there is one."""
    if method != "raft":
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _keys(store: Store, rows: np.ndarray) -> list[tuple]:
    clips = store.clips["id"]
    columns = {name: store.rows[name][rows].tolist() for name in ("video", "clip", "draw", "k")}
    return [
        (str(store.videos["name"][video]), str(clips[clip]) if clip >= 0 else "", draw, k)
        for video, clip, draw, k in zip(*columns.values(), strict=True)
    ]
