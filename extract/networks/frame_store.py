"""Two identity networks: what they store is their input, so that computed flow or resized frames are cached."""

from __future__ import annotations

from typing import Any

from errors import UserError

from .registry import register_network
from .spec import READS, NetworkSpec, clip_input_size, resize_dict

__all__ = ["flow_images", "frames"]


@register_network("flow_images")
def flow_images(
    *,
    clip_len: int = 64,
    stride: int = 1,
    fps: float = 25.0,
    resize: dict[str, Any] | None = None,
    unit_rows: int = 64,
    batch_size: int = 4,
) -> NetworkSpec:
    """The flow images themselves: `flow` (clip_len, H, W, 2) uint8, u then v, published or computed.

    Args: as for `i3d_rgb`; the resize must give frames of one size.
    """
    return _spec("flow_images", "flow", "flow", clip_len, stride, fps, resize, unit_rows, batch_size)


@register_network("frames")
def frames(
    *,
    clip_len: int = 64,
    stride: int = 1,
    fps: float = 25.0,
    resize: dict[str, Any] | None = None,
    unit_rows: int = 64,
    batch_size: int = 4,
) -> NetworkSpec:
    """The decoded frames themselves: `frames` (clip_len, H, W, 3) uint8 RGB. Args: as for `flow_images`."""
    return _spec("frames", "rgb_clip", "frames", clip_len, stride, fps, resize, unit_rows, batch_size)


def _spec(
    name: str,
    reads: str,
    output: str,
    clip_len: int,
    stride: int,
    fps: float,
    resize: dict[str, Any] | None,
    unit_rows: int,
    batch_size: int,
) -> NetworkSpec:
    resize = resize_dict(resize, {"mode": "short_side", "size": 256, "crop": 224})
    size = clip_input_size(resize)
    if size is None:
        raise UserError(f"{name} stores frames of one size: choose a resize with a crop, or squash, not {resize!r}")
    channels = READS[reads][1]
    return NetworkSpec(
        name=name,
        kind="backbone",
        reads=reads,
        outputs={output: ((clip_len, *size, channels), "uint8")},
        builder="extract.networks.frame_store_model:FrameStore",
        family="i3d",
        clip_len=clip_len,
        stride=stride,
        fps=float(fps),
        resize=resize,
        mean=(0.0,) * channels,
        std=(1.0 / 255.0,) * channels,  # values as they are
        unit_rows=unit_rows,
        batch_size=batch_size,
        licence="Apache-2.0",
        source="this project",
    )
