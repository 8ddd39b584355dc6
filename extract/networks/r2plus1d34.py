"""R(2+1)D-34 of IG-65M (Tran et al. 2018, arXiv:1711.11248; Ghadiyaram et al. 2019, arXiv:1905.00561): no torch.

Preprocessing: x/255, mean .43216 .394666 .37645, std .22803 .22145 .216989; 32 (or 8) successive frames; short side
128, centre crop 112.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..weights import KINETICS400, Weights, add_weights
from .clip_spec import clip_spec, halved, head_size
from .registry import register_network
from .spec import NetworkSpec

__all__ = ["CHANNELS", "map_shape", "r2plus1d34"]

CHANNELS = {"layer3": 256, "layer4": 512}
_URL = "https://github.com/moabitcoin/ig65m-pytorch/releases/download/v1.0.0"
_LICENCE = "MIT (converted from facebookresearch/VMZ, Apache-2.0)"


def _weights(tag: str, file: str, sha256: str, clip_len: int, classes: int, *trained_on: dict[str, Any]) -> Weights:
    """`sha256` is the head of the file's hash, which torch.hub reads in its name and checks."""
    filename = f"r2plus1d_34_{file}-{sha256}.pth"
    return Weights(
        name=f"r2plus1d34.{tag}",
        architecture="r2plus1d34",
        filename=filename,
        url=f"{_URL}/{filename}",
        hash=f"sha256:{sha256}",
        licence=_LICENCE,
        trained_on=trained_on,
        options={"clip_len": clip_len, "classes": classes},
    )


def _ig65m(classes: int) -> dict[str, Any]:
    return {"dataset": "ig65m", "split": "train", "classes": classes}


add_weights(
    _weights("ig65m", "clip32_ig65m_from_scratch", "449a7af9", 32, 359, _ig65m(359)),
    _weights("ig65m_clip8", "clip8_ig65m_from_scratch", "9bae36ae", 8, 487, _ig65m(487)),
    _weights("kinetics400", "clip32_ft_kinetics_from_ig65m", "ade133f1", 32, 400, KINETICS400, _ig65m(359)),
    _weights("kinetics400_clip8", "clip8_ft_kinetics_from_ig65m", "0aa0550b", 8, 400, KINETICS400, _ig65m(487)),
)


def map_shape(layer: str, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(T', H', W') of a layer: every stride-2 stage is padded symmetrically, halves and rounds up."""
    t, s = (4, 8) if layer == "layer3" else (8, 16)
    return halved(frames, t), halved(height, s), halved(width, s)


def _fit(state: Mapping[str, Any]) -> dict[str, Any]:
    """The class count; 487 classes are the head of the network trained on clips of 8 frames."""
    head = head_size(state, "fc.bias")
    return head | {"clip_len": 8} if head.get("classes") == 487 else head


@register_network("r2plus1d34", fit=_fit)
def r2plus1d34(
    *,
    layer: str = "layer4",
    clip_len: int = 32,
    stride: int = 1,
    fps: float = 25.0,
    resize: dict[str, Any] | None = None,
    classes: int = 359,
    unit_rows: int = 64,
    batch_size: int = 4,
) -> NetworkSpec:
    """R(2+1)D-34 on RGB clips.

    Args:
        layer: layer4 (map T/8, H/16, W/16, 512), layer3 (T/4, H/8, W/8, 256), both rounded up, or logits (the clip's
            scores before the softmax, from the mean over the map of layer4).
        clip_len, stride, fps: frames of a clip, grid steps between two of them, the grid's rate.
        resize: {"mode", "size", "crop"}; default short side 128, centre crop 112.
        classes: outputs of the last layer: 359 (IG-65M, clips of 32), 487 (IG-65M, clips of 8), 400 (Kinetics-400);
            read from the checkpoint unless given.
    """
    return clip_spec(
        "r2plus1d34",
        channels=CHANNELS,
        map_shape=map_shape,
        head_cells=(1, 1, 1),
        layer=layer,
        clip_len=clip_len,
        resize=resize,
        default_resize={"mode": "short_side", "size": 128, "crop": 112},
        classes=classes,
        reads="rgb_clip",
        builder="extract.networks.r2plus1d34_model:R2Plus1D34",
        family="r2plus1d34",
        options={"classes": classes},
        stride=stride,
        fps=float(fps),
        mean=(0.43216, 0.394666, 0.37645),
        std=(0.22803, 0.22145, 0.216989),
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights="r2plus1d34.ig65m",
        licence=_LICENCE,
        source="Ghadiyaram et al. 2019 (arXiv:1905.00561); checkpoints of moabitcoin/ig65m-pytorch",
    )
