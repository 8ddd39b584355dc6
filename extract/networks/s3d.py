"""Separable 3D Inception, S3D (Xie et al. 2018, arXiv:1712.04851): entries of the registry, no torch.

Two published sets of weights for the same network, each with its own preprocessing:

- "kylemin": x/255*2-1, 25 fps, short side 256, centre crop 224;
- "torchvision": mean .43216 .394666 .37645, std .22803 .22145 .216989, 15 fps, the frame squashed to 256 x 256, then
  centre crop 224.

Both pad symmetrically. The "s3d" motion expert of MMT and collaborative experts is TensorFlow's S3D, with SAME padding
and other weights: features of this network are a stand-in for its published ones, not a reproduction.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errors import UserError

from ..weights import KINETICS400, Weights, add_weights
from .clip_spec import clip_spec, halved, head_size
from .registry import register_network
from .spec import NetworkSpec

__all__ = ["CHANNELS", "PREPROCESSING", "map_shape", "s3d"]

CHANNELS = {"Mixed_4f": 832, "Mixed_5c": 1024}
PREPROCESSING = {  # name: (mean, std, fps, resize)
    "kylemin": ((0.5,) * 3, (0.5,) * 3, 25.0, {"mode": "short_side", "size": 256, "crop": 224}),
    "torchvision": (
        (0.43216, 0.394666, 0.37645),
        (0.22803, 0.22145, 0.216989),
        15.0,
        {"mode": "squash", "size": 256, "crop": 224},
    ),
}

add_weights(
    Weights(
        name="s3d.kinetics400",
        architecture="s3d",
        filename="S3D_kinetics400.pt",
        page="https://drive.google.com/file/d/1IysdsJI7UuWazoxFyYvrbO97Lz_EP5H-/view",
        licence="MIT",
        trained_on=(KINETICS400,),
        accuracy={"kinetics400 validation top-1": 72.08, "kinetics400 validation top-5": 90.35},
        options={"preprocessing": "kylemin"},
    ),
    Weights(
        name="s3d.torchvision",
        architecture="s3d",
        filename="s3d-d76dad2f.pth",
        url="https://download.pytorch.org/models/s3d-d76dad2f.pth",
        hash="sha256:d76dad2f",
        licence="BSD-3-Clause",
        trained_on=(KINETICS400,),
        accuracy={"kinetics400 validation clip top-1": 68.368, "kinetics400 validation clip top-5": 88.05},
        options={"preprocessing": "torchvision"},
    ),
)


def map_shape(layer: str, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(T', H', W') of a layer: stages halve and round up, but the last pooling (after Mixed_4f) rounds down."""
    t, h, w = halved(frames, 4), halved(height, 16), halved(width, 16)
    return (t, h, w) if layer == "Mixed_4f" else (t // 2, h // 2, w // 2)


def _fit(state: Mapping[str, Any]) -> dict[str, Any]:
    """torchvision's files are told by their keys."""
    own = any(key.startswith("features.") for key in state)
    return {"preprocessing": "torchvision" if own else "kylemin"} | (
        head_size(state, "classifier.1.bias") or head_size(state, "fc.0.bias")
    )


@register_network("s3d", fit=_fit)
def s3d(
    *,
    layer: str = "Mixed_5c",
    clip_len: int = 64,
    stride: int = 1,
    fps: float | None = None,
    resize: dict[str, Any] | None = None,
    preprocessing: str = "kylemin",
    classes: int = 400,
    unit_rows: int = 64,
    batch_size: int = 4,
) -> NetworkSpec:
    """S3D on RGB clips.

    Args:
        layer: Mixed_5c (map T/8, H/32, W/32, 1024), Mixed_4f (T/4, H/16, W/16, 832; rounded up, and for Mixed_5c
            halved once more rounding down), or logits (the clip's scores before the softmax: from the mean over space,
            over pairs of neighbouring steps, then over time; at least 13 frames).
        clip_len, stride, fps: frames of a clip, grid steps between two of them, the grid's rate; fps defaults to the
            preprocessing's (25 or 15).
        resize: {"mode", "size", "crop"}; default the preprocessing's.
        preprocessing: "kylemin" or "torchvision" (see the module); read from the checkpoint unless given.
        classes: outputs of the last layer, for checkpoints trained on something else than Kinetics-400.
    """
    if preprocessing not in PREPROCESSING:
        raise UserError(f"s3d: preprocessing must be one of {', '.join(PREPROCESSING)}, got {preprocessing!r}")
    mean, std, own_fps, own_resize = PREPROCESSING[preprocessing]
    return clip_spec(
        "s3d",
        channels=CHANNELS,
        map_shape=map_shape,
        head_cells=(2, 1, 1),
        layer=layer,
        clip_len=clip_len,
        resize=resize,
        default_resize=own_resize,
        classes=classes,
        reads="rgb_clip",
        builder="extract.networks.s3d_model:S3DBackbone",
        family="s3d",
        options={"preprocessing": preprocessing, "classes": classes},
        stride=stride,
        fps=float(own_fps if fps is None else fps),
        mean=mean,
        std=std,
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights="s3d.kinetics400",
        licence="MIT",
        source="Xie et al. 2018 (arXiv:1712.04851); checkpoints of kylemin/S3D and of torchvision",
    )
