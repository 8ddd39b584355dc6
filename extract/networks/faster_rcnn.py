"""Faster R-CNN with FPN (Ren et al. 2015, Lin et al. 2017) as in torchvision and in detectron2: entries, no torch.

Boxes and features for SAOA (thesis ch. 3): final boxes after NMS without a score threshold, the best by score, and for
each the FPN level of its size, RoIAlign 7 x 7 and the spatial maximum.

Two layouts, told apart by the checkpoint: "torchvision" (its COCO weights) and "detectron2" (its model zoo and whatever
was trained with it, read without detectron2). They are the same network with other details (frozen norms' epsilon,
where a block downsamples, resizing, anchors, RoIAlign), and each is run by the rules of the library it comes from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from errors import UserError

from ..weights import IMAGENET, Weights, add_weights
from .registry import register_network
from .spec import NetworkSpec, box_outputs, resize_dict

__all__ = ["faster_rcnn_r50_fpn", "faster_rcnn_x101_fpn", "fit_detector"]

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
_PIXEL_MEAN = (103.53, 116.28, 123.675)  # of ImageNet, BGR
# defaults of the options that mean nothing to torchvision's network, in the order of its entry
_DETECTRON2_ONLY = ((1024, 1024), False, True, "BGR", _PIXEL_MEAN, (1.0, 1.0, 1.0))
_ZOO = "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection"
_COCO80 = {"dataset": "coco2017", "split": "train", "classes": 80}

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
    ),
    # The zoo publishes no hashes; the six digits in its file names name a commit.
    Weights(
        name="faster_rcnn_r50_fpn.coco_detectron2",
        architecture="faster_rcnn_r50_fpn",
        filename="model_final_280758.pkl",
        url=f"{_ZOO}/faster_rcnn_R_50_FPN_3x/137849458/model_final_280758.pkl",
        licence="CC-BY-SA-3.0",
        trained_on=(_COCO80, IMAGENET),
        accuracy={"coco val2017 box mAP": 40.2},
        options={"layout": "detectron2"},
    ),
    Weights(
        name="faster_rcnn_x101_fpn.coco",
        architecture="faster_rcnn_x101_fpn",
        filename="model_final_68b088.pkl",
        url=f"{_ZOO}/faster_rcnn_X_101_32x8d_FPN_3x/139173657/model_final_68b088.pkl",
        licence="CC-BY-SA-3.0",
        trained_on=(_COCO80, IMAGENET),
        accuracy={"coco val2017 box mAP": 43.0},
    ),
)


def fit_detector(state: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a checkpoint asks for: layout, outputs, box head and, where older files hold them, pixel values.

    A network trained on pixels of unit standard deviation descends from Caffe2's ResNets, which downsample in the
    1 x 1 convolution; one trained on normalised pixels from torch's, which do so in the 3 x 3. The file says no more:
    where it holds no `pixel_std`, the model zoo's setting is the default, and `stride_in_1x1` the user's word.
    """
    options: dict[str, Any] = {}
    head = "roi_heads.box_predictor"
    if f"{head}.cls_score.bias" in state:
        options["classes"] = len(state[f"{head}.cls_score.bias"])
    if not any(key.startswith("backbone.bottom_up.") for key in state):
        return options
    options["layout"] = "detectron2"
    widths = []
    while (weight := state.get(f"roi_heads.box_head.fc{len(widths) + 1}.weight")) is not None:
        widths.append(int(weight.shape[0]))
    options["box_head"] = widths
    if f"{head}.bbox_pred.bias" in state and "classes" in options:
        options["class_agnostic"] = len(state[f"{head}.bbox_pred.bias"]) == 4 < 4 * (options["classes"] - 1)
    if "pixel_mean" in state and "pixel_std" in state:
        mean, std = ([round(float(v), 4) for v in state[key].flatten()] for key in ("pixel_mean", "pixel_std"))
        options |= {"pixel_mean": mean, "pixel_std": std, "channels": "RGB" if mean[0] > mean[2] else "BGR"}
        options["stride_in_1x1"] = std == [1.0, 1.0, 1.0]
    return options


def _fit_x101(state: Mapping[str, Any]) -> dict[str, Any]:
    options = fit_detector(state)
    return {k: v for k, v in options.items() if k not in ("layout", "stride_in_1x1")}


@register_network("faster_rcnn_r50_fpn", fit=fit_detector)
def faster_rcnn_r50_fpn(
    *,
    layout: str = "torchvision",
    roi_feature: str = "pooled",
    top: int = 10,
    score_threshold: float = 0.0,
    nms_threshold: float = 0.5,
    proposals: int = 1000,
    classes: int | None = None,
    box_head: Sequence[int] = (1024, 1024),
    class_agnostic: bool = False,
    stride_in_1x1: bool = True,
    channels: str = "BGR",
    pixel_mean: Sequence[float] = _PIXEL_MEAN,
    pixel_std: Sequence[float] = (1.0, 1.0, 1.0),
    resize: dict[str, Any] | None = None,
    fps: float = 2.0,
    unit_rows: int = 256,
    batch_size: int = 4,
) -> NetworkSpec:
    """Faster R-CNN R50-FPN (torchvision's COCO weights, or a checkpoint of detectron2).

    Args:
        layout: "torchvision" or "detectron2": whose checkpoint it is and whose rules make the boxes. `classes` of the
            boxes are torchvision's labels (1 to 90 for COCO; 0 is the background) or detectron2's (from 0, without
            the background, which comes last).
        roi_feature: "pooled" (256: RoIAlign 7 x 7 at the box's level, spatial max) or "fc" (the box head's, 1024
            or the last of `box_head`).
        top: boxes kept a frame, the best by score after NMS; `n_boxes` counts all that NMS left.
        score_threshold, nms_threshold: of the final detections; NMS is done per class.
        proposals: regions that the first stage keeps, before NMS a level and after it in all.
        classes: outputs, background included: 91 in torchvision's COCO weights, 81 in detectron2's, 353 for EPIC-55.
        box_head: widths of its fully connected layers.
        class_agnostic: one box for all classes instead of one each.
        stride_in_1x1: a block downsamples in its first convolution (MSRA's ResNet-50 in the model zoo), not its second.
        channels, pixel_mean, pixel_std: order and normalisation (0 to 255) of the pixels it was trained on.
        resize: {"mode": "detector", "size", "max_size"}: short side 800, long side at most 1333. Frames arrive in the
            source's size and are resized here, as the layout's library does it.
        fps: of the frame grid.

    The options from `box_head` to `pixel_std` belong to layout detectron2 and are read from the checkpoint.
    """
    name = "faster_rcnn_r50_fpn"
    common = {
        "top": top,
        "score_threshold": score_threshold,
        "nms_threshold": nms_threshold,
        "proposals": proposals,
    }
    running = {"resize": resize, "fps": fps, "unit_rows": unit_rows, "batch_size": batch_size}
    if layout == "torchvision":
        given = (tuple(box_head), class_agnostic, stride_in_1x1, channels, tuple(pixel_mean), tuple(pixel_std))
        if given != _DETECTRON2_ONLY:
            raise UserError(f"{name}: box_head to pixel_std are options of layout='detectron2'")
        return _spec(
            name,
            roi_feature,
            1024,
            common | {"classes": 91 if classes is None else classes},
            builder="extract.networks.faster_rcnn_model:FasterRcnn",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            random_scale=_RANDOM_SCALE,
            licence="BSD-3-Clause",
            source="Ren et al. 2015 (arXiv:1506.01497), Lin et al. 2017 (arXiv:1612.03144); torchvision",
            **running,
        )
    if layout != "detectron2":
        raise UserError(f"{name}: layout must be torchvision or detectron2, got {layout!r}")
    return _detectron2_spec(
        name, roi_feature, common, classes, box_head, class_agnostic, stride_in_1x1,
        channels, pixel_mean, pixel_std, **running,
    )  # fmt: skip


@register_network("faster_rcnn_x101_fpn", fit=_fit_x101)
def faster_rcnn_x101_fpn(
    *,
    roi_feature: str = "pooled",
    top: int = 10,
    score_threshold: float = 0.0,
    nms_threshold: float = 0.5,
    proposals: int = 1000,
    classes: int | None = None,
    box_head: Sequence[int] = (1024, 1024),
    class_agnostic: bool = False,
    channels: str = "BGR",
    pixel_mean: Sequence[float] = _PIXEL_MEAN,
    pixel_std: Sequence[float] = (57.375, 57.12, 58.395),
    resize: dict[str, Any] | None = None,
    fps: float = 2.0,
    unit_rows: int = 256,
    batch_size: int = 4,
) -> NetworkSpec:
    """Faster R-CNN with ResNeXt-101 32x8d and FPN, the thesis's detector (section 3.4), from detectron2's checkpoints.

    Args: as for `faster_rcnn_r50_fpn` in layout "detectron2". LFB's detector, which SAOA took, has
    box_head=[2048, 2048] and, for EPIC-55, classes=353.
    """
    return _detectron2_spec(
        "faster_rcnn_x101_fpn",
        roi_feature,
        {
            "top": top,
            "score_threshold": score_threshold,
            "nms_threshold": nms_threshold,
            "proposals": proposals,
        },
        classes,
        box_head,
        class_agnostic,
        False,
        channels,
        pixel_mean,
        pixel_std,
        resize=resize,
        fps=fps,
        unit_rows=unit_rows,
        batch_size=batch_size,
    )


def _detectron2_spec(
    name: str,
    roi_feature: str,
    common: dict[str, Any],
    classes: int | None,
    box_head: Sequence[int],
    class_agnostic: bool,
    stride_in_1x1: bool,
    channels: str,
    pixel_mean: Sequence[float],
    pixel_std: Sequence[float],
    **running: Any,
) -> NetworkSpec:
    if channels not in ("BGR", "RGB"):
        raise UserError(f"{name}: channels must be BGR or RGB, got {channels!r}")
    for option, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
        if len(values) != 3:
            raise UserError(f"{name}: {option} needs three values in the order {channels}, got {values!r}")
    if any(not isinstance(width, int) or width < 1 for width in box_head):
        raise UserError(f"{name}: box_head must list the widths of its layers, such as [2048, 2048], got {box_head!r}")
    if roi_feature == "fc" and not box_head:
        raise UserError(f"{name}: roi_feature fc needs a box head, this one has no layers")
    order = -1 if channels == "BGR" else 1
    options = {
        "layout": "detectron2",
        "classes": 81 if classes is None else classes,
        "box_head": list(box_head),
        "class_agnostic": class_agnostic,
        "stride_in_1x1": stride_in_1x1,
        "channels": channels,
    }
    std = tuple(float(v) / 255 for v in pixel_std[::order])
    return _spec(
        name,
        roi_feature,
        (1024, *box_head)[-1],
        common | options,
        builder="extract.networks.faster_rcnn_detectron2_model:Detectron2FasterRcnn",
        mean=tuple(float(v) / 255 for v in pixel_mean[::order]),
        std=std,
        # pixels that are not normalised are about 1 / std times larger
        random_scale=(*_RANDOM_SCALE, ("backbone.body.conv1.weight", std[0] / 0.229)),
        licence="CC-BY-SA-3.0",
        source="Ren et al. 2015 (arXiv:1506.01497), Lin et al. 2017 (arXiv:1612.03144); facebookresearch/detectron2",
        **running,
    )


def _spec(
    name: str,
    roi_feature: str,
    head_width: int,
    options: dict[str, Any],
    *,
    resize: dict[str, Any] | None,
    **values: Any,
) -> NetworkSpec:
    if roi_feature not in ("pooled", "fc"):
        raise UserError(f"{name}: roi_feature must be pooled or fc, got {roi_feature!r}")
    for option, least in (("top", 1), ("proposals", 1), ("classes", 2)):
        if options[option] < least:
            raise UserError(f"{name}: {option} must be at least {least}, got {options[option]}")
    for option in ("score_threshold", "nms_threshold"):
        if not 0 <= options[option] <= 1:
            raise UserError(f"{name}: {option} must be between 0 and 1, got {options[option]}")
    resize = resize_dict(resize, {"mode": "detector", "size": 800, "max_size": 1333})
    if resize["mode"] != "detector" or resize.get("crop"):
        raise UserError(f"{name}: resize must be of mode detector without a crop, got {resize!r}")
    resize.setdefault("max_size", round(resize["size"] * 1333 / 800))
    values["fps"] = float(values["fps"])
    return NetworkSpec(
        name=name,
        kind="detector",
        reads="rgb_frame",
        outputs=box_outputs(options["top"], 256 if roi_feature == "pooled" else head_width),
        family="detector",
        layer=roi_feature,
        options=options,
        resize=resize,
        weights=f"{name}.coco",
        **values,
    )
