"""A small 3D network to be trained on one's own labels, on a CPU if need be: entry, no torch.

0.86 M parameters, 0.48 GMAC for 16 frames of 112 x 112. Dense 3 x 3 x 3 convolutions (as C3D's: Tran et al. 2015,
arXiv:1412.0767) on two streams of features that the stem makes: one of the frames, one of the differences between
consecutive frames (as in TSN, Wang et al. 2016, arXiv:1608.00859, and TDN, Wang et al. 2021, arXiv:2012.10071). Each
stream has a batch norm of its own, so that motion, which is faint beside appearance, is as loud as appearance from the
first step on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .clip_spec import clip_spec, halved, head_size
from .registry import register_network
from .spec import NetworkSpec

__all__ = ["CHANNELS", "map_shape", "small3d"]

CHANNELS = {"layer1": 64, "layer2": 128}


def map_shape(layer: str, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(T', H', W') of a layer: padded symmetrically, every stride divides and rounds up."""
    t, s = (2, 8) if layer == "layer1" else (4, 16)
    return halved(frames, t), halved(height, s), halved(width, s)


def _fit(state: Mapping[str, Any]) -> dict[str, Any]:
    return head_size(state, "fc.bias")


@register_network("small3d", fit=_fit)
def small3d(
    *,
    layer: str = "layer2",
    clip_len: int = 16,
    stride: int = 1,
    fps: float = 15.0,
    resize: dict[str, Any] | None = None,
    classes: int = 400,
    unit_rows: int = 64,
    batch_size: int = 16,
) -> NetworkSpec:
    """Small 3D network on RGB clips; nobody publishes weights for it: train it (train-backbone), or random:SEED.

    Args:
        layer: layer2 (map T/4, H/16, W/16, 128), layer1 (T/2, H/8, W/8, 64), all rounded up, or logits (the clip's
            scores before the softmax, from the mean over the map of layer2).
        clip_len, stride, fps: frames of a clip, grid steps between two of them, the grid's rate.
        resize: {"mode", "size", "crop"}; default squashed to 112 x 112.
        classes: outputs of the last layer.
    """
    return clip_spec(
        "small3d",
        channels=CHANNELS,
        map_shape=map_shape,
        head_cells=(1, 1, 1),
        layer=layer,
        clip_len=clip_len,
        resize=resize,
        default_resize={"mode": "squash", "size": 112},
        classes=classes,
        reads="rgb_clip",
        builder="extract.networks.small3d_model:Small3d",
        family="small3d",
        options={"classes": classes},
        stride=stride,
        fps=float(fps),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights="small3d.none",
        licence="Apache-2.0",
        source="this project",
    )
