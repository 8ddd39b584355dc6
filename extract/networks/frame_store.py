"""Two identity networks: what they store is their input, so that resized frames or computed flow are cached."""

from __future__ import annotations

from typing import Any

from errors import UserError

from .registry import register_network
from .spec import READS, NetworkSpec, clip_input_size, resize_dict

__all__ = ["flow_images", "frames"]

CAP_SHARE = 4  # a JPEG may have at most this part of its picture's bytes: of video at quality 95 it has a seventh
CAP_OF_ANY_SIZE = 512 << 10  # bytes, where pictures may have any size


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
    return _spec(
        "flow_images",
        reads="flow",
        outputs={"flow": ((clip_len, *_size("flow_images", resize), 2), "uint8")},
        family="i3d",
        resize=_resize(resize),
        clip_len=clip_len,
        stride=stride,
        fps=float(fps),
        unit_rows=unit_rows,
        batch_size=batch_size,
    )


@register_network("frames")
def frames(
    *,
    quality: int = 95,
    most_bytes: int | None = None,
    resize: dict[str, Any] | None = None,
    unit_rows: int = 1024,
    batch_size: int = 32,
) -> NetworkSpec:
    """The decoded frames themselves, so that training decodes each video once (`pipelines.frame_reader` reads them).

    As JPEG by default: `jpeg` (most_bytes,) uint8, one file a row, zeros behind it. A fifth to a seventh of the bytes
    of raw frames, read about as fast (benchmarks/frame_formats.py). Raw with quality 0: `frame` (H, W, 3) uint8 RGB.

    Args:
        quality: of the JPEGs, 1 to 100; 0: raw frames, which must all have one size. A frame that would not fit is
            stored in the highest lower quality in which it does.
        most_bytes: of one JPEG; by default a quarter of the raw frame, or 512 KiB where frames may have any size.
        resize: default squash to 256 x 256; {"mode": "none"} keeps each video's own size (for detectors).

    Raises:
        UserError: raw frames without one size, or values out of range.
    """
    resize = _resize(resize)
    if not 0 <= quality <= 100:
        raise UserError(f"frames: quality must be from 1 to 100, or 0 for raw frames, got {quality}")
    if quality == 0 and most_bytes is not None:
        raise UserError("frames: most_bytes is of JPEGs; raw frames (quality=0) have one size")
    if quality == 0:
        outputs = {"frame": ((*_size("frames", resize), 3), "uint8")}
    else:
        most_bytes = most_bytes or _most_bytes(resize)
        if most_bytes < 1024:
            raise UserError(f"frames: most_bytes must be at least 1024, got {most_bytes}")
        outputs = {"jpeg": ((most_bytes,), "uint8")}
    return _spec(
        "frames",
        reads="rgb_frame",
        outputs=outputs,
        family="frames",
        resize=resize,
        options={"quality": quality},
        unit_rows=unit_rows,
        batch_size=batch_size,
    )


def _most_bytes(resize: dict[str, Any]) -> int:
    """A quarter of a raw frame, of one of 2:1 where only its short side is known."""
    height, width = clip_input_size(resize) or (resize.get("size", 0), 2 * resize.get("size", 0))
    known = resize["mode"] in ("squash", "short_side")
    return max(4096, 3 * height * width // CAP_SHARE) if known else CAP_OF_ANY_SIZE


def _resize(resize: dict[str, Any] | None) -> dict[str, Any]:
    return resize_dict(resize, {"mode": "squash", "size": 256})


def _size(name: str, resize: dict[str, Any] | None) -> tuple[int, int]:
    size = clip_input_size(_resize(resize))
    if size is None:
        raise UserError(f"{name} stores frames of one size: choose a resize with a crop, or squash, not {resize!r}")
    return size


def _spec(name: str, reads: str, **values: Any) -> NetworkSpec:
    channels = READS[reads][1]
    return NetworkSpec(
        name=name,
        kind="backbone",
        reads=reads,
        builder="extract.networks.frame_store_model:FrameStore",
        mean=(0.0,) * channels,
        std=(1.0 / 255.0,) * channels,  # values as they are
        licence="Apache-2.0",
        source="this project",
        **values,
    )
