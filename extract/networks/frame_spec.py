"""The spec of a network that reads single frames, whole or at given boxes: what such networks share, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from errors import UserError

from .spec import NetworkSpec, box_outputs, clip_input_size, resize_dict

__all__ = ["frame_spec"]


def frame_spec(
    name: str,
    *,
    channels: Mapping[str, int],
    cells: Callable[[str, int], int],
    layer: str | None,
    layers: tuple[str, str],
    boxes: bool,
    resize: dict[str, Any] | None,
    fps: float,
    top: int,
    roi_size: int,
    roi_pool: str,
    unit_rows: int | None,
    batch_size: int,
    builders: tuple[str, str],
    default_resize: dict[str, Any] | None = None,
    classes: int = 0,
    **values: Any,
) -> NetworkSpec:
    """The `NetworkSpec` of a frame network: a backbone, or with `boxes` a roi network that reads boxes with each frame.

    Args:
        name: registered name, for messages.
        channels: width of every layer.
        cells: (layer, pixels) -> cells of its map along one side.
        layer: as the user chose; `layers` are the defaults for frames and for boxes.
        resize: as the user chose; the default for frames is `default_resize` or short side 256, centre crop 224; for
            boxes squash to 320 (a crop is refused: boxes are relative to the whole frame).
        top, roi_size, roi_pool: boxes kept a frame; RoIAlign's cells a side; "max" or "mean" over them.
        unit_rows: None: 1024 frames, or 256 with boxes.
        builders: for frames, for boxes.
        classes: size of the output "logits" of a backbone; 0 = none.
        values: further fields of the spec.

    Raises:
        UserError: no such layer, pooling, or a crop with boxes.
    """
    layer = layer or layers[boxes]
    if layer not in channels:
        raise UserError(f"{name}: layer must be one of {', '.join(channels)}, got {layer!r}")
    if roi_pool not in ("max", "mean"):
        raise UserError(f"{name}: roi_pool must be max or mean, got {roi_pool!r}")
    if roi_size < 1:
        raise UserError(f"{name}: roi_size must be at least 1, got {roi_size}")
    default = default_resize or {"mode": "short_side", "size": 256, "crop": 224}
    resize = resize_dict(resize, {"mode": "squash", "size": 320} if boxes else default)
    if boxes and resize.get("crop"):
        raise UserError(f"{name} with boxes: resize={resize!r} crops, but boxes are relative to the whole frame")
    size = clip_input_size(resize)
    outputs: dict[str, tuple[tuple[int, ...], str]] = {"vector": ((channels[layer],), "feature")}
    if boxes:
        outputs = box_outputs(top, channels[layer])
    elif size is not None:
        outputs = {"spatial": ((*(cells(layer, n) for n in size), channels[layer]), "feature"), **outputs}
    options = {"boxes": True, "top": top, "roi_size": roi_size, "roi_pool": roi_pool} if boxes else {}
    if classes and not boxes:
        outputs["logits"] = ((classes,), "feature")
        options["classes"] = classes
    return NetworkSpec(
        name=name,
        kind="roi" if boxes else "backbone",
        reads="rgb_frame",
        outputs=outputs,
        builder=builders[boxes],
        family="frame",
        layer=layer,
        options=options,
        fps=float(fps),
        resize=resize,
        unit_rows=unit_rows or (256 if boxes else 1024),
        batch_size=batch_size,
        **values,
    )
