"""Faster R-CNN with FPN on EfficientNet-Lite0: a detector that is trained and run on a CPU in minutes. No torch here.

The method is Ren et al. 2015 and Lin et al. 2017 as in torchvision; the body is Tan and Le 2019 (`efficientnet_lite0`),
whose ImageNet weights come with a Python package. There are no published weights of the whole: `train-detector` makes
them from a dataset's boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from errors import UserError

from ..weights import TABLE, add_weights
from . import efficientnet_lite0  # noqa: F401  registers the weights of the body
from .registry import register_network
from .spec import NetworkSpec, box_outputs, resize_dict

__all__ = ["CHANNELS", "HEAD_WIDTH", "STRIDES", "faster_rcnn_lite0_fpn"]

STRIDES = (8, 16, 32)  # of the FPN's maps
CHANNELS = 128  # of every FPN map
HEAD_WIDTH = 256  # of the box head's two layers

# random:SEED on top of the common rule: maps of order 1, offsets and logits below it, as for `faster_rcnn_r50_fpn`.
_RANDOM_SCALE = (
    ("backbone.body.*.project.bn.weight", 0.5),
    ("backbone.fpn.layer_blocks.*.weight", 0.25),
    ("rpn.head.cls_logits.weight", 0.2),
    ("rpn.head.bbox_pred.weight", 0.08),
    ("roi_heads.box_predictor.cls_score.weight", 0.2),
    ("roi_heads.box_predictor.bbox_pred.weight", 0.2),
)

add_weights(
    replace(
        TABLE["efficientnet_lite0.imagenet"],
        name="faster_rcnn_lite0_fpn.imagenet",
        architecture="faster_rcnn_lite0_fpn",
        accuracy={},
    )
)


def _fit(state: Mapping[str, Any]) -> dict[str, Any]:
    bias = state.get("roi_heads.box_predictor.cls_score.bias")
    return {} if bias is None else {"classes": len(bias)}


@register_network("faster_rcnn_lite0_fpn", fit=_fit)
def faster_rcnn_lite0_fpn(
    *,
    roi_feature: str = "pooled",
    top: int = 10,
    score_threshold: float = 0.0,
    nms_threshold: float = 0.5,
    proposals: int = 200,
    classes: int = 91,
    anchors: Sequence[int] = (32, 64, 128),
    resize: dict[str, Any] | None = None,
    fps: float = 2.0,
    unit_rows: int = 256,
    batch_size: int = 8,
) -> NetworkSpec:
    """Faster R-CNN, FPN of EfficientNet-Lite0's maps at strides 8, 16 and 32.

    Args:
        roi_feature: "pooled" (128: RoIAlign 7 x 7 at the box's level, spatial max) or "fc" (256: the box head's).
        top, score_threshold, nms_threshold: as for `faster_rcnn_r50_fpn`.
        proposals: regions that the first stage keeps, before NMS a level and after it in all; in training too.
        classes: outputs, background (0) included.
        anchors: sides in pixels of the resized frame of the anchors at strides 8, 16 and 32; each has three shapes.
        resize: {"mode": "detector", "size", "max_size"}: short side 320, long side at most 533.
        fps: of the frame grid.
    """
    name = "faster_rcnn_lite0_fpn"
    if roi_feature not in ("pooled", "fc"):
        raise UserError(f"{name}: roi_feature must be pooled or fc, got {roi_feature!r}")
    for option, value, least in (("top", top, 1), ("proposals", proposals, 1), ("classes", classes, 2)):
        if value < least:
            raise UserError(f"{name}: {option} must be at least {least}, got {value}")
    for option, value in (("score_threshold", score_threshold), ("nms_threshold", nms_threshold)):
        if not 0 <= value <= 1:
            raise UserError(f"{name}: {option} must be between 0 and 1, got {value}")
    if len(anchors) != len(STRIDES) or any(not isinstance(side, int) or side < 1 for side in anchors):
        raise UserError(f"{name}: anchors must be three whole numbers of pixels, got {anchors!r}")
    resize = resize_dict(resize, {"mode": "detector", "size": 320, "max_size": 533})
    if resize["mode"] != "detector":
        raise UserError(f"{name}: resize must be of mode detector, got {resize!r}")
    resize.setdefault("max_size", round(resize["size"] * 533 / 320))
    return NetworkSpec(
        name=name,
        kind="detector",
        reads="rgb_frame",
        outputs=box_outputs(top, CHANNELS if roi_feature == "pooled" else HEAD_WIDTH),
        builder="extract.networks.faster_rcnn_lite0_model:FasterRcnnLite0",
        family="detector",
        layer=roi_feature,
        options={
            "top": top,
            "score_threshold": score_threshold,
            "nms_threshold": nms_threshold,
            "proposals": proposals,
            "classes": classes,
            "anchors": list(anchors),
        },
        fps=float(fps),
        resize=resize,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights=f"{name}.imagenet",
        random_scale=_RANDOM_SCALE,
        licence="Apache-2.0",
        source="Ren et al. 2015 (arXiv:1506.01497), Lin et al. 2017 (arXiv:1612.03144); torchvision",
    )
