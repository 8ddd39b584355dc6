"""How the detectors of this package are trained: what is frozen, how frames go in, which losses come out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from errors import UserError

from .base import Network
from .faster_rcnn_detectron2_model import FasterRcnnFpn
from .faster_rcnn_losses import box_losses, region_losses, sample_regions
from .faster_rcnn_steps import anchors_of, pool_boxes, resize_frames, select_proposals

__all__ = ["TrainedDetector", "renew_predictor"]

# As everywhere in fine-tuning detectors, the first stages of a pretrained body, to stride 4, keep their weights.
_FROZEN = (
    "backbone.body.conv1.",
    "backbone.body.layer1.",
    "backbone.body.stem.",
    *(f"backbone.body.blocks.{i}." for i in range(3)),
)
_BEFORE_NMS, _PROPOSED = 2000, 1000  # regions in training, a level and in all (detectron2's FPN configuration)
_DIVISOR = 32  # images are padded to multiples of it
_LEAST_SIDE = 1.0  # pixels: thinner boxes have no logarithm worth learning


class TrainedDetector(nn.Module):
    """A detector network, unfrozen but for its first stages; batch norms keep their statistics.

    `net` itself runs with the weights as they are after `fold`.

    Raises:
        UserError: a network that is no Faster R-CNN of this package.
    """

    def __init__(self, net: Network) -> None:
        super().__init__()
        if not isinstance(net.module, FasterRCNN | FasterRcnnFpn):
            raise UserError(f"{net.spec.name} cannot be trained here: give a faster_rcnn_* network")
        self.net, self.module = net, net.module
        self.first_class = int(isinstance(net.module, FasterRCNN))  # of the network's numbers: 0 is the background
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(not name.startswith(_FROZEN))

    def train(self, mode: bool = True) -> TrainedDetector:
        super().train(mode)
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.eval()
        return self

    def fold(self) -> Network:
        """The network ready to `run` with the weights as they are now."""
        self.eval()
        self.net.prepare()
        return self.net

    def prepare(self, frame: np.ndarray, boxes: np.ndarray, size: int) -> dict[str, np.ndarray]:
        """One image of a batch, resized and normalised as the network's own rules say.

        Args:
            frame: uint8 (H, W, 3).
            boxes: (n, 4) XYXY relative to the frame.
            size: its short side; the long one stays within the network's `max_size`.

        Returns:
            image float32 (3, H', W'), boxes float32 (n, 4) in its pixels, and kept (n,) bool: the boxes that are at
            least a pixel wide and high; only they are returned.
        """
        spec = self.net.spec
        if self.first_class:
            resize = GeneralizedRCNNTransform(size, spec.resize["max_size"], list(spec.mean), list(spec.std)).eval()
            image = resize.normalize(torch.from_numpy(frame).movedim(-1, 0).float() / 255.0)
            image = resize.resize(image)[0]
        else:
            resized = resize_frames(frame[None], size, spec.resize["max_size"])
            height, width = resized.shape[1:3]
            image = self.net.normalise(torch.from_numpy(resized))[0, :, :height, :width]
        height, width = image.shape[-2:]
        placed = boxes * np.array([width, height] * 2, np.float32)
        kept = ((placed[:, 2:] - placed[:, :2]) >= _LEAST_SIDE).all(axis=1)
        return {"image": image.numpy(), "boxes": placed[kept], "kept": kept}

    def losses(self, images: list[Tensor], boxes: list[Tensor], labels: list[Tensor]) -> dict[str, Tensor]:
        """The four losses of a batch, each a mean over its images.

        images: (3, H, W) as `prepare` made them, of any sizes; boxes (n, 4) in their pixels; labels (n,) from 0.
        """
        sizes = [tuple(image.shape[-2:]) for image in images]
        stacked = _stack(images)
        if self.first_class:
            return self._torchvision_losses(stacked, sizes, boxes, labels)
        return self._detectron2_losses(stacked, sizes, boxes, labels)

    def _torchvision_losses(self, images, sizes, boxes, labels) -> dict[str, Tensor]:
        """The stages of torchvision's `GeneralizedRCNN.forward`."""
        model = self.module
        targets = [{"boxes": b, "labels": kind + 1} for b, kind in zip(boxes, labels, strict=True)]
        features = model.backbone(images)
        proposals, of_regions = model.rpn(ImageList(images, sizes), features, targets)
        pool = model.roi_heads.box_roi_pool
        pool.scales = pool.map_levels = None  # torchvision keeps those of the first image it ever saw
        _, of_boxes = model.roi_heads(features, proposals, [tuple(images.shape[-2:])] * len(sizes), targets)
        return {**of_regions, **of_boxes}

    def _detectron2_losses(self, images, sizes, boxes, labels) -> dict[str, Tensor]:
        net = self.module
        maps = net.maps(images)
        logits, deltas = net.regions(maps)
        anchors = anchors_of([tuple(fmap.shape[-2:]) for fmap in maps], images.device)
        logits = [v.permute(0, 2, 3, 1).flatten(1) for v in logits]
        deltas = [v.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for v in deltas]
        with torch.no_grad():
            proposals = [
                select_proposals(anchors, [v[i] for v in logits], [v[i] for v in deltas], size, _BEFORE_NMS)[:_PROPOSED]
                for i, size in enumerate(sizes)
            ]
            background = self.net.spec.options["classes"] - 1
            regions, classes, wanted = sample_regions(proposals, boxes, labels, background)
        found = net.predict(net.describe(pool_boxes(maps[:4], regions)))
        return {
            **region_losses(torch.cat(anchors), torch.cat(logits, 1), torch.cat(deltas, 1), boxes),
            **box_losses(*found, torch.cat(classes), torch.cat(wanted)),
        }


def _stack(images: list[Tensor]) -> Tensor:
    """Images (3, h, w) -> (B, 3, H, W), zeros at the right and below, H and W multiples of 32."""
    height, width = (-(-max(image.shape[axis] for image in images) // _DIVISOR) * _DIVISOR for axis in (1, 2))
    return torch.stack([F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])


def renew_predictor(net: Network, state: dict[str, Any]) -> None:
    """Load another network's weights where they fit; the last layers, for other classes, start anew.

    They are drawn as Fast R-CNN's are (Girshick 2015, section 2.3): normal, of deviation 0.01 for classes and 0.001
    for boxes, with biases of 0. Draws from torch's generator.
    """
    own = net.module.state_dict()
    same = {key: value for key, value in state.items() if own[key].shape == value.shape}
    net.module.load_state_dict(same, strict=False)
    for name, deviation in (("cls_score", 0.01), ("bbox_pred", 0.001)):
        key = f"roi_heads.box_predictor.{name}"
        if f"{key}.weight" not in same:
            layer = net.module.get_submodule(key)
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)
