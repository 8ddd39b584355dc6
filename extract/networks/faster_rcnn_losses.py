"""The losses of Faster R-CNN's two stages by detectron2's rules, for `FasterRcnnFpn`; boxes are XYXY in pixels.

Ren et al. 2015 (section 3.1.2) and Fast R-CNN (Girshick 2015, section 2.3) with detectron2's details: absolute errors
of box deltas (smooth L1 with beta 0), normalised by the number of sampled regions, objects found or not; an object's
best anchor is always its own; the labelled boxes join the proposals. What torchvision's losses do otherwise is written
in `faster_rcnn_steps`; its matching, sampling and encoding are the same and are used here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import box_iou

__all__ = ["box_losses", "region_losses", "sample_regions"]

_REGIONS = 256  # anchors of an image that count, at most half of them objects
_BOXES = 512  # proposals of an image that count, at most a quarter of them objects
_BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def region_losses(anchors: Tensor, logits: Tensor, deltas: Tensor, boxes: list[Tensor]) -> dict[str, Tensor]:
    """The first stage: is there an object at an anchor, and where.

    Args:
        anchors: (A, 4) of all levels.
        logits, deltas: (B, A) and (B, A, 4) float32.
        boxes: B tensors (n, 4), n may be 0.
    """
    matcher = Matcher(0.7, 0.3, allow_low_quality_matches=True)
    sampler = BalancedPositiveNegativeSampler(_REGIONS, 0.5)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    objectness, place = logits.sum() * 0.0, deltas.sum() * 0.0
    for logit, delta, own in zip(logits, deltas, boxes, strict=True):
        matched = _match(matcher, own, anchors)
        labels = torch.where(matched >= 0, 1.0, torch.where(matched == Matcher.BELOW_LOW_THRESHOLD, 0.0, -1.0))
        (positive,), (negative,) = sampler([labels])
        positive, negative = positive.nonzero()[:, 0], negative.nonzero()[:, 0]
        chosen = torch.cat([positive, negative])
        objectness = objectness + F.binary_cross_entropy_with_logits(logit[chosen], labels[chosen], reduction="sum")
        if len(positive):
            wanted = coder.encode_single(own[matched[positive]], anchors[positive])
            place = place + F.l1_loss(delta[positive], wanted, reduction="sum")
    counted = _REGIONS * len(boxes)
    return {"objectness": objectness / counted, "region_boxes": place / counted}


def sample_regions(
    proposals: list[Tensor], boxes: list[Tensor], labels: list[Tensor], background: int
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """The regions that the second stage learns from, per image: (regions (m, 4), classes (m,), box deltas (m, 4)).

    The labelled boxes join the proposals; a region that overlaps none of them by half is background.
    """
    matcher = Matcher(0.5, 0.5, allow_low_quality_matches=False)
    sampler = BalancedPositiveNegativeSampler(_BOXES, 0.25)
    coder = BoxCoder(_BOX_WEIGHTS)
    regions, classes, deltas = [], [], []
    for proposed, own, label in zip(proposals, boxes, labels, strict=True):
        proposed = torch.cat([proposed, own])
        matched = _match(matcher, own, proposed)
        (positive,), (negative,) = sampler([torch.where(matched >= 0, 1, 0)])
        chosen = torch.cat([positive.nonzero()[:, 0], negative.nonzero()[:, 0]])
        matched, region = matched[chosen], proposed[chosen]
        found = matched >= 0
        kind = torch.full_like(matched, background)
        kind[found] = label[matched[found]]
        delta = torch.zeros_like(region)
        if found.any():
            delta[found] = coder.encode_single(own[matched[found]], region[found])
        regions.append(region)
        classes.append(kind)
        deltas.append(delta)
    return regions, classes, deltas


def box_losses(logits: Tensor, deltas: Tensor, classes: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """The second stage: which class a region is of, and where its box is.

    Args:
        logits: (M, K + 1), the background last.
        deltas: (M, 4K), or (M, 4) for all classes alike.
        classes: (M,), K for the background.
        wanted: (M, 4) deltas of the regions that are objects.
    """
    found = (classes < logits.shape[1] - 1).nonzero()[:, 0]
    deltas = deltas.unflatten(1, (-1, 4))
    column = classes[found] if deltas.shape[1] > 1 else torch.zeros_like(found)
    place = F.l1_loss(deltas[found, column], wanted[found], reduction="sum")
    return {"classes": F.cross_entropy(logits, classes), "boxes": place / max(1, len(classes))}


def _match(matcher: Matcher, own: Tensor, regions: Tensor) -> Tensor:
    """(N,) which of the boxes (n, 4) each region (N, 4) is of; negative: of none."""
    if not len(own):
        return torch.full((len(regions),), Matcher.BELOW_LOW_THRESHOLD, device=regions.device)
    return matcher(box_iou(own, regions))
