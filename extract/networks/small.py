"""Two hidden networks that cost next to nothing: `null` for benchmarks, `tiny3d` for tests."""

from __future__ import annotations

from typing import Any

from .registry import register_network
from .spec import NetworkSpec, clip_input_size, resize_dict

__all__ = ["null", "tiny3d"]


@register_network("null", hidden=True)
def null(
    *,
    clip_len: int = 64,
    stride: int = 1,
    fps: float = 25.0,
    resize: dict[str, Any] | None = None,
    unit_rows: int = 64,
    batch_size: int = 4,
) -> NetworkSpec:
    """No network: `vector` (clip_len) = mean of every 16th pixel of each frame, in [0, 1]. For measuring the rest."""
    return NetworkSpec(
        name="null",
        kind="backbone",
        reads="rgb_clip",
        outputs={"vector": ((clip_len,), "feature")},
        builder="extract.networks.small_model:Null",
        family="i3d",
        clip_len=clip_len,
        stride=stride,
        fps=float(fps),
        resize=resize_dict(resize, {"mode": "short_side", "size": 256, "crop": 224}),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        unit_rows=unit_rows,
        batch_size=batch_size,
        licence="Apache-2.0",
        source="this project",
    )


@register_network("tiny3d", hidden=True)
def tiny3d(
    *,
    clip_len: int = 16,
    stride: int = 1,
    fps: float = 25.0,
    resize: dict[str, Any] | None = None,
    channels: int = 64,
    unit_rows: int = 64,
    batch_size: int = 4,
) -> NetworkSpec:
    """Two strided convolutions with random weights: map (T/8, H/32, W/32, channels), shaped like I3D's. For tests."""
    resize = resize_dict(resize, {"mode": "squash", "size": 64})
    size = clip_input_size(resize)
    outputs: dict[str, tuple[tuple[int, ...], str]] = {"vector": ((channels,), "feature")}
    if size is not None:
        t, h, w = -(-clip_len // 8), -(-size[0] // 32), -(-size[1] // 32)
        outputs = {
            "map": ((t, h, w, channels), "feature"),
            "spatial": ((h, w, channels), "feature"),
            "vector": ((channels,), "feature"),
        }
    return NetworkSpec(
        name="tiny3d",
        kind="backbone",
        reads="rgb_clip",
        outputs=outputs,
        builder="extract.networks.small_model:tiny3d_network",
        family="i3d",
        options={"channels": channels},
        clip_len=clip_len,
        stride=stride,
        fps=float(fps),
        resize=resize,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights="tiny3d.none",
        licence="Apache-2.0",
        source="this project",
    )
