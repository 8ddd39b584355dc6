"""Faster R-CNN with ResNet-50 and FPN (Ren et al. 2015, Lin et al. 2017) as in torchvision: the entry, no torch.

Boxes and features for SAOA (thesis ch. 3): final boxes after NMS without a score threshold, the best by score, and for
each the FPN level of its size, RoIAlign 7 x 7 and the spatial maximum.
"""

from __future__ import annotations

from typing import Any

from errors import UserError

from ..weights import IMAGENET, Weights, add_weights
from .registry import register_network
from .spec import NetworkSpec, box_outputs, resize_dict

__all__ = ["faster_rcnn_r50_fpn"]

# random:SEED on top of the common rule. Bottlenecks grow the residual stream: their last norm is multiplied by 0.2
# (the golden vectors' rule). The rest brings the maps to order 1 and offsets and logits below it: otherwise every
# box is the whole image and every score 0 or 1.
_RANDOM_SCALE = (
    ("backbone.body.*.bn3.weight", 0.2),
    ("backbone.fpn.layer_blocks.*.weight", 0.25),
    ("rpn.head.cls_logits.weight", 0.2),
    ("rpn.head.bbox_pred.weight", 0.08),
    ("roi_heads.box_predictor.cls_score.weight", 0.2),
    ("roi_heads.box_predictor.bbox_pred.weight", 0.2),
)

add_weights(
    Weights(
        name="faster_rcnn_r50_fpn.coco",
        architecture="faster_rcnn_r50_fpn",
        filename="fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        url="https://download.pytorch.org/models/fasterrcnn_resnet50_fpn_coco-258fb6c6.pth",
        hash="sha256:258fb6c6",
        licence="BSD-3-Clause",
        trained_on=({"dataset": "coco2017", "split": "train", "classes": 91}, IMAGENET),
        accuracy={"coco val2017 box mAP": 37.0},
    )
)


@register_network("faster_rcnn_r50_fpn")
def faster_rcnn_r50_fpn(
    *,
    roi_feature: str = "pooled",
    top: int = 10,
    score_threshold: float = 0.0,
    nms_threshold: float = 0.5,
    proposals: int = 1000,
    classes: int = 91,
    resize: dict[str, Any] | None = None,
    fps: float = 2.0,
    unit_rows: int = 256,
    batch_size: int = 4,
) -> NetworkSpec:
    """Faster R-CNN R50-FPN (torchvision, COCO).

    Args:
        roi_feature: "pooled" (256: RoIAlign 7 x 7 at the box's level, spatial max) or "fc" (1024: the box head's).
        top: boxes kept a frame, the best by score after NMS; `n_boxes` counts all that NMS left.
        score_threshold, nms_threshold: of the final detections; NMS is done per class.
        proposals: regions that the first stage keeps, before NMS a level and after it in all.
        classes: outputs, background included.
        resize: {"mode": "detector", "size", "max_size"}: short side 800, long side at most 1333. Frames that arrive
            in another size are resized here as torchvision does; the two agree, so a decoder may do it first.
        fps: of the frame grid.
    """
    if roi_feature not in ("pooled", "fc"):
        raise UserError(f"faster_rcnn_r50_fpn: roi_feature must be pooled or fc, got {roi_feature!r}")
    resize = resize_dict(resize, {"mode": "detector", "size": 800, "max_size": 1333})
    if resize["mode"] != "detector" or resize.get("crop"):
        raise UserError(f"faster_rcnn_r50_fpn: resize must be of mode detector without a crop, got {resize!r}")
    resize.setdefault("max_size", round(resize["size"] * 1333 / 800))
    return NetworkSpec(
        name="faster_rcnn_r50_fpn",
        kind="detector",
        reads="rgb_frame",
        outputs=box_outputs(top, 256 if roi_feature == "pooled" else 1024),
        builder="extract.networks.faster_rcnn_model:FasterRcnn",
        family="detector",
        layer=roi_feature,
        options={
            "top": top,
            "score_threshold": score_threshold,
            "nms_threshold": nms_threshold,
            "proposals": proposals,
            "classes": classes,
        },
        fps=float(fps),
        resize=resize,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights="faster_rcnn_r50_fpn.coco",
        random_scale=_RANDOM_SCALE,
        licence="BSD-3-Clause",
        source="Ren et al. 2015 (arXiv:1506.01497), Lin et al. 2017 (arXiv:1612.03144); torchvision",
    )
