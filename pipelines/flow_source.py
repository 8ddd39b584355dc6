"""Where flow comes from when it is not published as frames: computed by a method, or a store of flow images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from errors import UserError
from stores import Store, in_numbering, match_rows, numbers_in, open_store

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
        clip_of, video_of = numbers_in(self.store, other.clips["id"], other.videos["name"])
        wanted = {name: other.rows[name][rows] for name in ("video", "clip", "draw", "k")}
        return match_rows(self.store.rows, in_numbering(wanted, clip_of, video_of))


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
