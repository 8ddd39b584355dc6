"""Faster R-CNN with FPN as in detectron2, on torchvision's parts: its checkpoints load, its rules decide the boxes."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from errors import UserError

from .base import Network
from .faster_rcnn_steps import (
    ASPECT_RATIOS,
    anchors_of,
    decode,
    detections,
    pool_boxes,
    resize_frames,
    select_proposals,
    to_source,
)
from .roi import pack_boxes, source_size
from .spec import NetworkSpec

__all__ = ["Detectron2FasterRcnn", "FasterRcnnFpn", "from_detectron2"]

_BODIES = {  # blocks a stage, groups, width of a group
    "faster_rcnn_r50_fpn": ((3, 4, 6, 3), 1, 64),
    "faster_rcnn_x101_fpn": ((3, 4, 23, 3), 32, 8),
}
_CHANNELS = 256  # of every FPN map
_DIVISOR = 32  # images are padded to multiples of it
_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class FasterRcnnFpn(nn.Module):
    """The layers: `backbone` (ResNet, FPN), `rpn.head`, `roi_heads.box_head`, `roi_heads.box_predictor`."""

    def __init__(
        self,
        blocks: tuple[int, ...],
        groups: int,
        width: int,
        outputs: int,
        box_head: tuple[int, ...],
        *,
        stride_in_1x1: bool = False,
        class_agnostic: bool = False,
    ) -> None:
        super().__init__()
        body = ResNet(
            Bottleneck, list(blocks), groups=groups, width_per_group=width,
            norm_layer=partial(FrozenBatchNorm2d, eps=1e-5),
        )  # fmt: skip
        if stride_in_1x1:  # the original ResNet, as MSRA trained it, downsamples in a block's first convolution
            for stage in (body.layer2, body.layer3, body.layer4):
                stage[0].conv1.stride, stage[0].conv2.stride = stage[0].conv2.stride, stage[0].conv1.stride
        layers = {f"layer{i}": name for i, name in enumerate(("p2", "p3", "p4", "p5"), start=1)}
        self.backbone = BackboneWithFPN(body, layers, [256, 512, 1024, 2048], _CHANNELS)
        self.rpn = nn.ModuleDict({"head": RPNHead(_CHANNELS, len(ASPECT_RATIOS))})
        self.roi_heads = nn.ModuleDict(
            {
                "box_head": BoxHead(_CHANNELS * 49, box_head),
                "box_predictor": BoxPredictor(
                    (_CHANNELS * 49, *box_head)[-1], outputs, 1 if class_agnostic else outputs - 1
                ),
            }
        )

    def maps(self, x: Tensor) -> list[Tensor]:
        """Normalised RGB (B, 3, H, W), sides multiples of 32 -> p2 to p6 in float32."""
        return [fmap.float() for fmap in self.backbone(x).values()]

    def regions(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level objectness (B, 3, H, W) and deltas (B, 12, H, W)."""
        logits, deltas = self.rpn["head"](maps)
        return [v.float() for v in logits], [v.float() for v in deltas]

    def describe(self, pooled: Tensor) -> Tensor:
        """RoIs (M, 256, 7, 7) -> (M, C) of the box head."""
        return self.roi_heads["box_head"](pooled).float()

    def predict(self, described: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (M, classes + 1), the background last, and deltas (M, 4 classes)."""
        logits, deltas = self.roi_heads["box_predictor"](described)
        return logits.float(), deltas.float()


class BoxHead(nn.Sequential):
    """Fully connected layers fc1, fc2, ... with ReLU."""

    def __init__(self, channels: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        for i, width in enumerate(widths, start=1):
            self.add_module(f"fc{i}", nn.Linear(channels, width))
            channels = width

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self:
            x = F.relu_(layer(x))
        return x


class BoxPredictor(nn.Module):
    """Class logits with the background last, and four deltas a class."""

    def __init__(self, channels: int, outputs: int, boxes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(channels, outputs)
        self.bbox_pred = nn.Linear(channels, 4 * boxes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x)


class Detectron2FasterRcnn(Network):
    """Frames in; the best boxes, their scores, classes (from 0, no background) and RoI features out."""

    def __init__(self, spec: NetworkSpec) -> None:
        options = spec.options
        super().__init__(
            spec,
            FasterRcnnFpn(
                *_BODIES[spec.name],
                options["classes"],
                tuple(options["box_head"]),
                stride_in_1x1=options["stride_in_1x1"],
                class_agnostic=options["class_agnostic"],
            ),
        )

    # -- weights -----------------------------------------------------------------------------------------------

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """detectron2's names to torchvision's; the first convolution to RGB where it was trained on BGR."""
        return from_detectron2(state, bgr=self.spec.options["channels"] == "BGR")

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        # both counts include the background
        self.check_classes(state.get("roi_heads.box_predictor.cls_score.bias"), self.spec.options["classes"])
        return state

    # -- running -----------------------------------------------------------------------------------------------

    def feature_map(self, x: Tensor) -> Tensor:
        raise TypeError(f"{self.spec.name} is a detector: use run(), which returns {', '.join(self.spec.outputs)}")

    def _upload(self, stacked: np.ndarray) -> Tensor:
        """Frames are resized as 8-bit images, on the CPU, as they were in training."""
        return super()._upload(resize_frames(stacked, self.spec.resize["size"], self.spec.resize["max_size"]))

    def normalise(self, x: Tensor) -> Tensor:
        """uint8 RGB (B, H, W, 3) -> float32 (B, 3, H', W'), zeros at the right and below to multiples of 32."""
        mean, std = (x.new_tensor(v, dtype=torch.float64).mul(255).float() for v in (self.spec.mean, self.spec.std))
        x = ((x.float() - mean) / std).movedim(-1, 1)
        return F.pad(x, (0, -x.shape[3] % _DIVISOR, 0, -x.shape[2] % _DIVISOR))

    def compute(self, x: Tensor, slots: list[int], batch: dict[str, list]) -> dict[str, Tensor]:
        """uint8 (B, H, W, 3) of one shape, resized already; boxes are scaled to the pixels of the frame read."""
        size = (x.shape[1], x.shape[2])
        sources = []
        for slot in slots:
            frame = batch["frames"][slot]
            sources.append((float(size[1]), float(size[0])) if frame is None else source_size(batch, slot, frame))
        rows = self.detect(self.normalise(x), size, sources)
        return pack_boxes(rows, self.spec.options["top"], self.spec.outputs["roi"][0][1])

    def detect(
        self, images: Tensor, size: tuple[int, int], sources: list[tuple[float, float]]
    ) -> list[dict[str, Tensor]]:
        """Normalised, padded images (B, 3, H', W') whose content is `size` (height, width) -> a table of boxes each.

        Each has boxes (n, 4) in its source's pixels, scores, classes, roi (n, C), n <= `top`, and n_boxes.
        """
        options, net = self.spec.options, self.module
        maps = net.maps(images)
        proposals = self.propose(maps, size)
        logits, deltas = net.predict(net.describe(pool_boxes(maps[:4], proposals)))
        scores, counts = logits.softmax(-1), [len(p) for p in proposals]
        rows, final = [], []
        for box, score, delta, source in zip(
            proposals, scores.split(counts), deltas.split(counts), sources, strict=True
        ):
            boxes, score, label = detections(
                decode(delta, box, _BOX_WEIGHTS), score, size, options["score_threshold"], options["nms_threshold"]
            )
            placed, good = to_source(boxes, size, source)
            best = good.nonzero()[: options["top"], 0]
            final.append(boxes[best])
            rows.append({"boxes": placed[best], "scores": score[best], "classes": label[best], "n_boxes": good.sum()})
        pooled = pool_boxes(maps[:4], final)
        roi = pooled.amax((2, 3)) if self.spec.layer == "pooled" else net.describe(pooled)
        for row, values in zip(rows, roi.split([len(b) for b in final]), strict=True):
            row["roi"] = values
        return rows

    def propose(self, maps: list[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """The first stage's boxes (n, 4) of every image, by falling objectness."""
        logits, deltas = self.module.regions(maps)
        anchors = anchors_of([tuple(fmap.shape[-2:]) for fmap in maps], maps[0].device)
        logits = [v.permute(0, 2, 3, 1).flatten(1) for v in logits]
        deltas = [v.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for v in deltas]
        keep = self.spec.options["proposals"]
        return [
            select_proposals(anchors, [v[i] for v in logits], [v[i] for v in deltas], size, keep)
            for i in range(len(maps[0]))
        ]


# -- detectron2's names ------------------------------------------------------------------------------------------------

_RENAMED = (
    (r"^backbone\.bottom_up\.stem\.", "backbone.body."),
    (r"^backbone\.bottom_up\.res(\d)\.", lambda m: f"backbone.body.layer{int(m[1]) - 1}."),
    (r"\.shortcut\.norm\.", ".downsample.1."),
    (r"\.shortcut\.", ".downsample.0."),
    (r"\.conv(\d)\.norm\.", r".bn\1."),
    (r"^backbone\.fpn_lateral(\d)\.", lambda m: f"backbone.fpn.inner_blocks.{int(m[1]) - 2}.0."),
    (r"^backbone\.fpn_output(\d)\.", lambda m: f"backbone.fpn.layer_blocks.{int(m[1]) - 2}.0."),
    (r"^proposal_generator\.rpn_head\.conv\.", "rpn.head.conv.0.0."),
    (r"^proposal_generator\.rpn_head\.objectness_logits\.", "rpn.head.cls_logits."),
    (r"^proposal_generator\.rpn_head\.anchor_deltas\.", "rpn.head.bbox_pred."),
)
# Constants that older files hold, and branches beside the boxes (Mask R-CNN, Keypoint R-CNN).
_NOT_NEEDED = re.compile(
    r"pixel_(mean|std)$|proposal_generator\.anchor_generator\.|roi_heads\.(mask|keypoint)_head\.|.*num_batches_tracked$"
)
_OTHER_DETECTORS = {
    "roi_heads.box_predictor.0.": "a Cascade R-CNN",
    "roi_heads.res5.": "a Faster R-CNN without FPN (C4)",
    "head.cls_subnet.": "a RetinaNet",
}


def from_detectron2(state: dict[str, Tensor], *, bgr: bool = True) -> dict[str, Tensor]:
    """A detectron2 state dict by the names of `FasterRcnnFpn`; one with those names already is returned as it is.

    Raises:
        UserError: it belongs to another kind of detector, or to Caffe2's Detectron.
    """
    if any(key.startswith("backbone.body.") for key in state):
        return state
    for prefix, kind in _OTHER_DETECTORS.items():
        if any(key.startswith(prefix) for key in state):
            raise UserError(f"this is {kind}: run it with --detector d2:CONFIG:WEIGHTS, which needs detectron2")
    if any(key.startswith("res2_0_branch2a") for key in state):
        raise UserError(
            "this is a Caffe2 file (Detectron, or weights for ImageNet): give a Faster R-CNN trained with detectron2"
        )
    renamed = {}
    for key, value in state.items():
        if _NOT_NEEDED.match(key):
            continue
        for pattern, name in _RENAMED:
            key = re.sub(pattern, name, key)
        renamed[key] = value
    stem = renamed.get("backbone.body.conv1.weight")
    if bgr and stem is not None:
        renamed["backbone.body.conv1.weight"] = stem.flip(1)
    return renamed
