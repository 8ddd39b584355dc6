"""detectron2's own networks behind our face: its resizing, preprocessing, proposals, heads and postprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import Tensor

from errors import UserError

from .base import Network
from .roi import pack_boxes, source_size
from .spec import NetworkSpec

__all__ = ["Detectron2Detector", "roi_channels"]


def roi_channels(cfg: Any, roi_feature: str) -> int:
    """Channels of a config's RoI features, worked out without allocating the network."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    heads = model.roi_heads
    if isinstance(heads, Res5ROIHeads):
        return heads.box_predictor.cls_score.in_features
    if roi_feature == "fc":
        return _last(heads.box_head).output_shape.channels
    return model.backbone.output_shape()[heads.box_in_features[0]].channels


class Detectron2Detector(Network):
    """Frames in; the best boxes, their scores, classes (from 0, no background) and RoI features out."""

    def __init__(self, spec: NetworkSpec, cfg: Any, weights: str = "") -> None:
        super().__init__(spec, build_model(cfg))
        self._weights = weights
        self._format = cfg.INPUT.FORMAT
        self._resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def load_weights(self, weights: str | None) -> None:
        """`weights`, else those named after the config, else the model zoo's."""
        weights = weights or self._weights or None
        if weights is None and not self.spec.weights:
            raise UserError(f"{self.spec.name} has no published weights: give {self.spec.name}:PATH, or --weights")
        super().load_weights(weights)

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Without constants that older files hold and without branches beside the boxes, which are not built."""
        own = self.module.state_dict()
        beside = ("roi_heads.mask_", "roi_heads.keypoint_", "proposal_generator.anchor_generator.", "pixel_")
        return {k: v for k, v in state.items() if k in own or not k.startswith(beside)}

    def feature_map(self, x: Tensor) -> Tensor:
        raise TypeError(f"{self.spec.name} is a detector: use run(), which returns {', '.join(self.spec.outputs)}")

    def _upload(self, stacked: np.ndarray) -> Tensor:
        """Frames in the network's channel order, resized as 8-bit images."""
        if self._format == "BGR":
            stacked = np.ascontiguousarray(stacked[..., ::-1])
        resized = [self._resize.get_transform(frame).apply_image(frame) for frame in stacked]
        return super()._upload(np.stack(resized))

    def compute(self, x: Tensor, slots: list[int], batch: dict[str, list]) -> dict[str, Tensor]:
        """uint8 (B, H, W, 3) of one shape, resized already; boxes are scaled to the pixels of the frame read."""
        model, top = self.module, self.spec.options["top"]
        images = model.preprocess_image([{"image": image} for image in x.permute(0, 3, 1, 2).float()])
        maps = {name: fmap.float() for name, fmap in model.backbone(images.tensor).items()}
        proposals, _ = model.proposal_generator(images, maps, None)
        found, _ = model.roi_heads(images, maps, proposals, None)
        rows, final = [], []
        for slot, instances in zip(slots, found, strict=True):
            frame = batch["frames"][slot]
            width, height = (x.shape[2], x.shape[1]) if frame is None else source_size(batch, slot, frame)
            instances.seen = instances.pred_boxes.clone()  # as the network saw them, for pooling
            placed = detector_postprocess(instances, height, width)
            best = placed[:top]
            final.append(best.seen)
            rows.append(
                {
                    "boxes": best.pred_boxes.tensor,
                    "scores": best.scores,
                    "classes": best.pred_classes,
                    "n_boxes": torch.tensor(len(placed)),
                }
            )
        roi = self._describe(maps, final).float()
        for row, values in zip(rows, roi.split([len(b) for b in final]), strict=True):
            row["roi"] = values
        return pack_boxes(rows, top, self.spec.outputs["roi"][0][1])

    def _describe(self, maps: dict[str, Tensor], boxes: list) -> Tensor:
        """RoI features (M, C) of boxes per image."""
        heads, pooled_only = self.module.roi_heads, self.spec.layer == "pooled"
        if isinstance(heads, Res5ROIHeads):
            pooled = heads._shared_roi_transform([maps[name] for name in heads.in_features], boxes)
            return pooled.amax((2, 3)) if pooled_only else pooled.mean((2, 3))
        pooled = heads.box_pooler([maps[name] for name in heads.box_in_features], boxes)
        return pooled.amax((2, 3)) if pooled_only else _last(heads.box_head)(pooled)


def _last(box_head: Any) -> Any:
    """The box head; a cascade's last one."""
    return box_head[-1] if isinstance(box_head, torch.nn.ModuleList) else box_head
