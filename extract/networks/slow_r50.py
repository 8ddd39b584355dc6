"""Slow R50 (the slow pathway of SlowFast, Feichtenhofer et al. 2019, arXiv:1812.03982), PyTorchVideo's: no torch.

Preprocessing (PyTorchVideo's model zoo): x/255, mean .45, std .225; 8 frames, 8 apart, at 30 fps; short side 256,
centre crop 256.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..weights import KINETICS400, Weights, add_weights
from .clip_spec import clip_spec, halved, head_size
from .registry import register_network
from .spec import NetworkSpec

__all__ = ["CHANNELS", "map_shape", "slow_r50"]

CHANNELS = {"blocks.3": 1024, "blocks.4": 2048}

add_weights(
    Weights(
        name="slow_r50.kinetics400",
        architecture="slow_r50",
        filename="SLOW_8x8_R50.pyth",
        url="https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/SLOW_8x8_R50.pyth",
        licence="Apache-2.0",
        trained_on=(KINETICS400,),
        accuracy={"kinetics400 validation top-1": 74.58, "kinetics400 validation top-5": 91.63},
    ),
)


def map_shape(layer: str, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(T', H', W') of a layer: no temporal stride; every spatial stride-2 stage halves and rounds up."""
    s = 16 if layer == "blocks.3" else 32
    return frames, halved(height, s), halved(width, s)


def _fit(state: Mapping[str, Any]) -> dict[str, Any]:
    return head_size(state, "blocks.5.proj.bias")


@register_network("slow_r50", fit=_fit)
def slow_r50(
    *,
    layer: str = "blocks.4",
    clip_len: int = 8,
    stride: int = 8,
    fps: float = 30.0,
    resize: dict[str, Any] | None = None,
    classes: int = 400,
    unit_rows: int = 64,
    batch_size: int = 4,
) -> NetworkSpec:
    """Slow R50 on RGB clips.

    Args:
        layer: blocks.4 (map T, H/32, W/32, 2048), blocks.3 (T, H/16, W/16, 1024), both rounded up, or logits (the
            clip's scores before the softmax: the mean over 8 x 7 x 7 windows of blocks.4, so at least 8 frames of
            193 x 193).
        clip_len, stride, fps: frames of a clip, grid steps between two of them, the grid's rate.
        resize: {"mode", "size", "crop"}; default short side 256, centre crop 256.
        classes: outputs of the last layer, for checkpoints trained on something else than Kinetics-400.
    """
    return clip_spec(
        "slow_r50",
        channels=CHANNELS,
        map_shape=map_shape,
        head_cells=(8, 7, 7),
        layer=layer,
        clip_len=clip_len,
        resize=resize,
        default_resize={"mode": "short_side", "size": 256, "crop": 256},
        classes=classes,
        reads="rgb_clip",
        builder="extract.networks.slow_r50_model:SlowR50",
        family="slow_r50",
        options={"classes": classes},
        stride=stride,
        fps=float(fps),
        mean=(0.45,) * 3,
        std=(0.225,) * 3,
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights="slow_r50.kinetics400",
        licence="Apache-2.0",
        source="Feichtenhofer et al. 2019 (arXiv:1812.03982); checkpoints of facebookresearch/pytorchvideo",
    )
