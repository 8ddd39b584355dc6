"""Pieces that heads share. All plain functions over tensors; shapes are in the docstrings."""

import torch
import torch.nn.functional as F

__all__ = ["l2_rescale", "masked_softmax", "place_boxes", "roi_align_max", "verb_noun_loss"]

# Bytes of one block of RoIAlign's bins: small enough to stay in a CPU's cache, large enough to keep a GPU busy.
_BLOCK_BYTES = {"cpu": 16 << 20, "cuda": 512 << 20}


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
    """RoIAlign to size x size followed by a spatial maximum, for cached maps (no gradient flows back).

    maps (B, H, W, C); boxes (B, N, 4) XYXY in cells. Returns (B, N, C) float32. Equals torchvision's `roi_align`
    with sampling_ratio=0 and aligned=False, then max over the bins. Bilinear sampling is linear and separable, so the
    bins of all boxes of a clip are one matrix product with its map, several times faster on a CPU than sampling each.
    """
    with torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
        b, h, w, c = maps.shape
        n = boxes.shape[1]
        maps, boxes = maps.float(), boxes.float()
        rows = _bilinear_bins(boxes[..., 1], boxes[..., 3], h, size)
        columns = _bilinear_bins(boxes[..., 0], boxes[..., 2], w, size)
        flat = maps.reshape(b, h * w, c)
        out = maps.new_empty(b, n, c)
        at_once = max(1, _BLOCK_BYTES.get(maps.device.type, 64 << 20) // (4 * max(1, n * size * size * c)))
        for i in range(0, b, at_once):
            part = slice(i, i + at_once)
            weights = (
                rows[part, :, :, None, :, None] * columns[part, :, None, :, None, :]
            )  # (b, n, 7, 7, h, w)
            bins = weights.reshape(-1, n * size * size, h * w) @ flat[part]
            out[part] = bins.view(-1, n, size * size, c).amax(dim=2)
        return out


def masked_softmax(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Softmax over the last axis where mask is True; masked places get exactly 0, a row without any True all zeros."""
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights * mask


def l2_rescale(clip: torch.Tensor, objects: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Thesis section 3.3.2: both features l2-normalised, then multiplied by the norm of the clip's feature.

    clip (..., C), objects (..., C1), leading axes broadcastable. Returns both parts; the clip's is itself.
    """
    return clip, F.normalize(objects, dim=-1) * clip.norm(dim=-1, keepdim=True)


def verb_noun_loss(out: dict, labels: dict) -> torch.Tensor:
    """Eq. 3.12 + 3.13: CrossEntropy of the verb logits plus CrossEntropy of the noun logits."""
    return F.cross_entropy(out["verb"], labels["verb"]) + F.cross_entropy(out["noun"], labels["noun"])
