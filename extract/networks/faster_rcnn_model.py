"""torchvision's Faster R-CNN, run stage by stage so that the final boxes get features of their own."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from errors import UserError

from .base import Network
from .roi import pack_boxes, source_size
from .spec import NetworkSpec

__all__ = ["FasterRcnn"]


class FasterRcnn(Network):
    """Frames in; the best boxes, their scores, classes and RoI features out.

    model: torchvision's detector; by default the one of its COCO weights.
    """

    def __init__(self, spec: NetworkSpec, model: FasterRCNN | None = None) -> None:
        model = model or _coco_model(spec)
        super().__init__(spec, model)
        # Under autocast the convolutions and the box head run in half precision, boxes and scores never do.
        for part in (model.backbone, model.rpn.head, model.roi_heads.box_head, model.roi_heads.box_predictor):
            part.register_forward_hook(lambda _module, _args, output: _to_float(output))

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if any(key.startswith("backbone.bottom_up.") for key in state):
            raise UserError(
                f"this is a checkpoint of detectron2, {self.spec.name} was asked for torchvision's: pass "
                'layout="detectron2", or create the network with these weights, which tells by itself'
            )
        # both counts include the background
        self.check_classes(state.get("roi_heads.box_predictor.cls_score.bias"), self.spec.options["classes"])
        return state

    def feature_map(self, x: Tensor) -> Tensor:
        raise TypeError(f"{self.spec.name} is a detector: use run(), which returns {', '.join(self.spec.outputs)}")

    def compute(self, x: Tensor, slots: list[int], batch: dict[str, list]) -> dict[str, Tensor]:
        """uint8 (B, H, W, 3) of one shape; boxes are scaled from it to the pixels of the frame read."""
        height, width = x.shape[1:3]
        rows = self.detect(x.permute(0, 3, 1, 2).float() / 255.0)
        for slot, row in zip(slots, rows, strict=True):
            frame = batch["frames"][slot]
            if frame is not None:
                w, h = source_size(batch, slot, frame)
                row["boxes"] = row["boxes"] * row["boxes"].new_tensor([w / width, h / height] * 2)
        return pack_boxes(rows, self.spec.options["top"], self.spec.outputs["roi"][0][1])

    def detect(self, images: Tensor) -> list[dict[str, Tensor]]:
        """(B, 3, H, W) in [0, 1] -> per image boxes (n, 4) in its pixels, scores, classes, roi (n, C), n_boxes.

        The stages of torchvision's `GeneralizedRCNN.forward`; n <= `top`.
        """
        model, top = self.module, self.spec.options["top"]
        size = tuple(images.shape[-2:])
        resized, _ = model.transform(list(images))
        features = model.backbone(resized.tensors)
        proposals, _ = model.rpn(ImageList(resized.tensors, resized.image_sizes), features)
        head = model.roi_heads
        logits, deltas = head.box_predictor(head.box_head(self._roi_align(features, proposals, resized)))
        boxes, scores, labels = head.postprocess_detections(logits, deltas, proposals, resized.image_sizes)
        found = [len(s) for s in scores]
        boxes = [b[:top] for b in boxes]
        roi = self._roi_align(features, boxes, resized)
        roi = roi.amax((2, 3)) if self.spec.layer == "pooled" else head.box_head(roi)
        rows = [
            {"boxes": b, "scores": s[:top], "classes": c[:top], "roi": r, "n_boxes": torch.tensor(n)}
            for b, s, c, r, n in zip(boxes, scores, labels, roi.split([len(b) for b in boxes]), found, strict=True)
        ]
        return model.transform.postprocess(rows, resized.image_sizes, [size] * len(rows))

    def _roi_align(self, features: dict[str, Tensor], boxes: list[Tensor], images: ImageList) -> Tensor:
        """RoIAlign 7 x 7 at each box's own level. The padded size makes each level's scale exact for small images."""
        padded = tuple(images.tensors.shape[-2:])
        pool = self.module.roi_heads.box_roi_pool
        pool.scales = pool.map_levels = None  # torchvision keeps those of the first image it ever saw
        return pool(features, boxes, [padded] * len(boxes))


def _coco_model(spec: NetworkSpec) -> FasterRCNN:
    """As torchvision builds it for its COCO weights, whose frozen batch norms have eps 0 (`overwrite_eps`)."""
    options, norm = spec.options, partial(FrozenBatchNorm2d, eps=0.0)
    return FasterRCNN(
        resnet_fpn_backbone(backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=0),
        num_classes=options["classes"],
        min_size=spec.resize["size"],
        max_size=spec.resize["max_size"],
        image_mean=list(spec.mean),
        image_std=list(spec.std),
        rpn_pre_nms_top_n_test=options["proposals"],
        rpn_post_nms_top_n_test=options["proposals"],
        box_score_thresh=options["score_threshold"],
        box_nms_thresh=options["nms_threshold"],
        box_detections_per_img=2**31 - 1,  # `top` cuts later, so that n_boxes can count them all
    )


def _to_float(output):
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return type(output)((key, value.float()) for key, value in output.items())
    return type(output)(_to_float(value) for value in output)
