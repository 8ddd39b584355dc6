"""Pieces that heads share. All plain functions over tensors; shapes are in the docstrings."""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "cosine_logits",
    "l2_rescale",
    "linear_probe",
    "masked_max",
    "masked_mean_weights",
    "masked_softmax",
    "norm_of_probe",
    "place_boxes",
    "roi_align_max",
    "verb_noun_loss",
    "vlad",
]

# Bytes of one strip of RoIAlign: on a CPU one clip at a time stays in the cache, a GPU wants many.
_BLOCK_BYTES = {"cuda": 512 << 20}


def place_boxes(boxes: torch.Tensor, geometry: torch.Tensor) -> torch.Tensor:
    """Boxes from the source frame to cells of a feature map.

    boxes (B, N, 4) XYXY relative to the frame's width and height, in [0, 1]; geometry (B, 4) = (sx, sy, ox, oy) of
    the store that holds the map: x_map = sx * x + ox. Returns (B, N, 4) in cells, unclipped.
    """
    sx, sy, ox, oy = geometry.unbind(-1)
    scale = torch.stack((sx, sy, sx, sy), dim=-1)[:, None]
    offset = torch.stack((ox, oy, ox, oy), dim=-1)[:, None]
    return boxes * scale + offset


def _bilinear_bins(low: torch.Tensor, high: torch.Tensor, cells: int, bins: int) -> torch.Tensor:
    """RoIAlign along one axis as a matrix: (...,) box borders -> (..., bins, cells), each row averaging its samples."""
    extent = (high - low).clamp(min=1.0)  # aligned=False: a box is at least one cell
    samples = torch.ceil(extent / bins)  # sampling_ratio=0: as many as fit
    step = extent / bins
    bin_index = torch.arange(bins, device=low.device, dtype=low.dtype)
    cell_index = torch.arange(cells, device=low.device, dtype=low.dtype)
    weights = low.new_zeros(*low.shape, bins, cells)
    for i in range(int(samples.max()) if samples.numel() else 0):
        at = low[..., None] + (bin_index + ((i + 0.5) / samples)[..., None]) * step[..., None]
        used = (at >= -1) & (at <= cells) & (i < samples)[..., None]
        hat = 1 - (at.clamp(0, cells - 1)[..., None] - cell_index).abs()
        weights += hat.clamp(min=0) * used[..., None]
    return weights / samples[..., None, None]


def roi_align_max(maps: torch.Tensor, boxes: torch.Tensor, size: int = 7) -> torch.Tensor:
    """RoIAlign to size x size followed by a spatial maximum; gradients flow into the maps, not the boxes.

    maps (B, H, W, C); boxes (B, N, 4) XYXY in cells. Returns (B, N, C) float32. Equals torchvision's
    `roi_align` with sampling_ratio=0 and aligned=False, then the maximum over the bins. Bilinear sampling is
    linear and separable, so a row of bins of all boxes is two matrix products, and the running maximum never
    leaves the cache: a third of torchvision's time on a CPU.
    """
    with torch.autocast(maps.device.type, enabled=False):
        b, h, w, c = maps.shape
        n = boxes.shape[1]
        boxes = boxes.detach().float()
        rows = _bilinear_bins(boxes[..., 1], boxes[..., 3], h, size)  # (B, N, size, H)
        columns = _bilinear_bins(boxes[..., 0], boxes[..., 2], w, size)  # (B, N, size, W)
        out = []
        at_once = max(1, _BLOCK_BYTES.get(maps.device.type, 0) // (4 * max(1, n * w * c)))
        for i in range(0, b, at_once):
            part = slice(i, i + at_once)
            flat = maps[part].float().reshape(-1, h, w * c)
            across = columns[part].reshape(-1, size, w)
            best = None
            for y in range(size):
                strip = (rows[part, :, y] @ flat).view(-1, w, c)  # one row of bins, still every column of cells
                values = (across @ strip).amax(dim=1)
                best = values if best is None else torch.maximum(best, values)
            out.append(best.view(-1, n, c))
        return torch.cat(out) if out else maps.new_empty(0, n, c, dtype=torch.float32)


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Softmax over the last axis where mask is True; masked places get exactly 0, a row without any True all zeros."""
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights * mask


def masked_mean_weights(mask: torch.Tensor) -> torch.Tensor:
    """The weights of a mean over the last axis where mask is True, float32; a row without any True all zeros."""
    return mask / mask.sum(dim=-1, keepdim=True).clamp(min=1)


def masked_max(features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Maximum over the objects, or tokens, where mask is True: (B, N, C), (B, N) bool -> (B, C); 0 where none is."""
    lowest = torch.finfo(features.dtype).min
    best = features.masked_fill(~mask[..., None], lowest).amax(dim=1)
    return torch.where(mask.any(dim=1)[:, None], best, 0.0)


def l2_rescale(clip: torch.Tensor, objects: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Thesis section 3.3.2: both features l2-normalised, then multiplied by the norm of the clip's feature.

    clip (..., C), objects (..., C1), leading axes broadcastable. Returns both parts; the clip's is itself.
    """
    return clip, F.normalize(objects, dim=-1) * clip.norm(dim=-1, keepdim=True)


def cosine_logits(features: torch.Tensor, weights: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Cosine classifier, thesis eq. 4.2 before its softmax: features (..., C), weights (classes, C), scale = 1 / tau.

    Returns (..., classes) logits in [-scale, scale].
    """
    return scale * (F.normalize(features, dim=-1) @ F.normalize(weights, dim=-1).T)


def vlad(features: torch.Tensor, assignment: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Residuals of softly assigned features from their centres (NetVLAD, Arandjelovic et al. 2016, eq. 4; thesis
    eq. 4.4 and 4.5): sum_l a_lk (f_l - c_k), not normalised.

    features (B, L, C), assignment (B, L, K), centres (K, C) or one set a row, (B, K, C). Returns (B, K, C).
    """
    return assignment.mT @ features - assignment.sum(dim=1)[..., None] * centres


def verb_noun_loss(out: dict, labels: dict) -> torch.Tensor:
    """Eq. 3.12 + 3.13: CrossEntropy of the verb logits plus CrossEntropy of the noun logits."""
    return F.cross_entropy(out["verb"], labels["verb"]) + F.cross_entropy(out["noun"], labels["noun"])


def linear_probe(channels: int, classes: int, normalise: bool) -> nn.Module:
    """A linear classifier on frozen features (B, channels) -> (B, classes). Features of different networks differ in
    scale and offset by orders of magnitude; with them normalised (He et al. 2022, Masked Autoencoders, appendix A.1)
    one learning rate serves all, and the baseline is as strong as a linear classifier can be."""
    linear = nn.Linear(channels, classes)
    return nn.Sequential(norm_of_probe(channels, True), linear) if normalise else linear


def norm_of_probe(channels: int, normalise: bool) -> nn.Module:
    """A probe's batch norm, without scale and shift; or nothing."""
    return nn.BatchNorm1d(channels, affine=False) if normalise else nn.Identity()
