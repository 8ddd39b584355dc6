"""The spec of a backbone that reads clips, from its table of layers: what such networks share, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from errors import UserError

from .spec import NetworkSpec, clip_input_size, resize_dict

__all__ = ["clip_spec", "flow_gain", "halved", "head_size"]

MapShape = Callable[[str, int, int, int], tuple[int, int, int]]


def halved(size: int, stride: int) -> int:
    """Cells that are left of `size` after stride-2 stages which each round up (their strides multiply to `stride`)."""
    return -(-size // stride)


def head_size(state: Mapping[str, Any], key: str) -> dict[str, int]:
    """{"classes": n} of a checkpoint whose classifier has the bias `key`; {} where it has none."""
    return {"classes": int(state[key].shape[0])} if key in state else {}


def flow_gain(name: str, flow_bound: float, flow_scale: float) -> float:
    """Pixels between two frames at 25 fps of a stored flow value of 1 (of -1..1), over I3D's clipping of 20.

    Raises:
        UserError: one of them is not positive.
    """
    if not (flow_bound > 0 and flow_scale > 0):
        raise UserError(f"{name}: flow_bound and flow_scale must be positive, got {flow_bound} and {flow_scale}")
    return flow_bound * flow_scale / 20.0


def clip_spec(
    name: str,
    *,
    channels: Mapping[str, int],
    map_shape: MapShape,
    head_cells: tuple[int, int, int],
    layer: str,
    clip_len: int,
    resize: dict[str, Any] | None,
    default_resize: dict[str, Any],
    classes: int,
    **values: Any,
) -> NetworkSpec:
    """The `NetworkSpec` of a clip backbone cut at `layer`.

    Args:
        name: registered name, for messages.
        channels: width of every layer that has a map; "logits" is offered besides.
        map_shape: (layer, frames, height, width) -> (T', H', W'); asked with "logits" for the map it is computed from.
        head_cells: the fewest cells (T', H', W') that the classifier's pooling needs.
        layer, clip_len, resize, classes: as the user chose; `default_resize` where resize is None.
        values: further fields of the spec.

    Raises:
        UserError: no such layer, or an input too small for it.
    """
    if layer != "logits" and layer not in channels:
        raise UserError(f"{name}: layer must be one of {', '.join([*channels, 'logits'])}, got {layer!r}")
    if not isinstance(classes, int) or isinstance(classes, bool) or classes < 1:
        raise UserError(f"{name}: classes must be a positive whole number, got {classes!r}")
    resize = resize_dict(resize, default_resize)
    size = clip_input_size(resize)
    width = classes if layer == "logits" else channels[layer]
    outputs: dict[str, tuple[tuple[int, ...], str]] = {"vector": ((width,), "feature")}
    if size is not None:
        cells = map_shape(layer, clip_len, *size)
        needed = head_cells if layer == "logits" else (1, 1, 1)
        if any(n < least for n, least in zip(cells, needed, strict=True)):
            raise UserError(
                f"{name}: layer {layer} needs a map of at least {_times(needed)} cells, but {clip_len} frames of "
                f"{_times(size)} give {_times(cells)}: use longer clips or larger frames"
            )
        if layer != "logits":
            t, h, w = cells
            outputs = {"map": ((t, h, w, width), "feature"), "spatial": ((h, w, width), "feature")} | outputs
    return NetworkSpec(
        name=name, kind="backbone", outputs=outputs, layer=layer, clip_len=clip_len, resize=resize, **values
    )


def _times(numbers: tuple[int, ...]) -> str:
    return " x ".join(map(str, numbers))
