"""Which frames of a video a recogniser looks at, and what its answers on them add up to (thesis chapter 5).

Pieces that PSN and its baselines share. Of B videos with N candidate frames each: `mask` (B, N) bool says which there
are, `picked` (B, N) bool which the recogniser sees. Samplers that learn nothing are functions here; those that score
the frames, PSN and SCSampler, are heads.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from errors import UserError

__all__ = [
    "AGGREGATES",
    "READS",
    "SamplingConfig",
    "adaptive_m",
    "calibrate",
    "dense",
    "frame_dims",
    "label_loss",
    "predict_sampled",
    "random_frames",
    "recogniser_logits",
    "sampler_features",
    "select",
    "uniform",
    "video_logits",
]

AGGREGATES = ("mean", "sum")
"""What eq. 5.4 may make of the weighted logits."""


@dataclass(frozen=True)
class SamplingConfig:
    """What every head that scores frames must know; the defaults are the thesis's."""

    # sizes, from the stores
    channels: int  # C of the sampler's feature
    classes: int  # K of the recogniser's logits

    # what it looks at
    frames: int = 25  # N candidates of a video
    sampled: int = 10  # M that the recogniser sees at test
    multi_label: bool = False  # labels are multi-hot rows

    def __post_init__(self):
        for name in ("channels", "classes", "frames", "sampled"):
            self.check(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.check(
            self.sampled <= self.frames,
            f"sampled={self.sampled} is more than the frames={self.frames} it samples from",
        )

    def check(self, right: bool, what: str) -> None:
        """Raise UserError with `what` unless `right`."""
        if not right:
            raise UserError(f"{type(self).__name__.removesuffix('Config').lower()}: {what}")

    @property
    def windows(self) -> dict[str, float]:
        """They see no objects."""
        return {}


READS = {"sampler": ("vector",), "recogniser": ("logits",)}
"""Role -> arrays: the light network's feature and the heavy network's class logits of the same frames."""


def frame_dims(shapes: dict) -> dict:
    """Feature width and number of classes from the stores' row shapes."""
    return {"channels": shapes["sampler"]["vector"][-1], "classes": shapes["recogniser"]["logits"][-1]}


# --- what a batch holds ---


def sampler_features(batch: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """batch["sampler"]: vector (B, N, C), and mask (B, N) bool where videos have fewer frames.

    Returns vector in float32, zero where there is no frame and open to gradients elsewhere, and mask, all True if the
    batch has none.
    """
    vector = batch["sampler"]["vector"].float()
    mask = batch["sampler"].get("mask")
    if mask is None:
        mask = torch.ones(vector.shape[:2], dtype=torch.bool, device=vector.device)
    return torch.where(mask[..., None], vector, 0.0), mask


def recogniser_logits(batch: dict, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """batch["recogniser"]: logits (B, N, classes) of the sampler's frames, one by one, and mask if it lacks some.

    Returns logits in float32, zero where there is no frame, and the mask of frames that both networks saw. Raises
    ValueError when the numbers of frames differ: frame i would not be the same frame for both.
    """
    logits = batch["recogniser"]["logits"].float()
    if logits.shape[:2] != mask.shape:
        raise ValueError(
            f"sampler and recogniser must see the same frames: got {tuple(mask.shape)} (videos, frames) of the sampler"
            f" and {tuple(logits.shape[:2])} of the recogniser"
        )
    mask = mask & batch["recogniser"].get("mask", mask)
    return torch.where(mask[..., None], logits, 0.0), mask


# --- which frames ---


def select(scores: torch.Tensor, m: int | torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Top-M sampling (section 5.2.4): the m frames of the highest scores, or all where a video has fewer.

    scores (B, N); m: how many, one number or (B,) one a video; mask (B, N) bool or None: all are there. Returns
    picked (B, N) bool. Of equal scores the earlier frame is taken.
    """
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    place = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    picked = place < _each(m, scores)
    return picked if mask is None else picked & mask


def uniform(mask: torch.Tensor, m: int | torch.Tensor) -> torch.Tensor:
    """The middle frames of m equal parts of every video, or all its frames where it has fewer. Returns picked."""
    there = mask.sum(dim=1, keepdim=True)
    parts = torch.minimum(_each(m, mask), there)
    part = torch.arange(mask.shape[1], device=mask.device)[None]
    middle = (2 * part + 1) * there // (2 * parts).clamp(min=1)  # of the frames that are there, counted from 0
    number = mask.cumsum(dim=1) - 1
    wanted = (middle[:, None] == number[..., None]) & (part < parts)[:, None]  # (B, N frames, N parts)
    return wanted.any(dim=2) & mask


def adaptive_m(scores: torch.Tensor, mask: torch.Tensor, threshold: float) -> torch.Tensor:
    """How many frames of each video to look at: one for every `threshold` that its scores add up to, rounded.

    The sum of a video's scores is PSN's own count of the frames worth looking at: eq. 5.6 holds it to M on average and
    leaves it to the videos. Few frames, or few that tell anything, add up to little. The thesis leaves an M of each
    video open (sections 5.3.5 and 7).

    scores (B, N), not negative; mask (B, N) bool. Returns (B,) int64, at least one and at most those that are there:
    what `select` takes as m.
    """
    total = torch.where(mask, scores, 0.0).sum(dim=1)
    earned = (total / threshold).clamp(max=mask.shape[1]).round().long()
    return torch.minimum(earned, mask.sum(dim=1)).clamp(min=1)


def calibrate(scores: torch.Tensor, mask: torch.Tensor, mean_m: float) -> float:
    """The threshold with which `adaptive_m` looks at `mean_m` frames of a video on average, or as near to it as it can.

    scores (V, N) of many videos and mask (V, N) bool; no labels are needed.
    """
    total = torch.where(mask, scores, 0.0).sum(dim=1)
    if not (total > 0).any():
        return 1.0  # whatever it is, a frame of each
    # The mean falls as the threshold grows: from all frames that have any score, down to one of each video.
    low, high = (float(x) for x in (total[total > 0].min() / (2 * mask.shape[1]), 2 * total.max()))
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _mean(scores, mask, middle) >= mean_m else (low, middle)
    return min(low, high, key=lambda threshold: abs(_mean(scores, mask, threshold) - mean_m))


def _mean(scores: torch.Tensor, mask: torch.Tensor, threshold: float) -> float:
    return adaptive_m(scores, mask, threshold).double().mean().item()


def random_frames(mask: torch.Tensor, m: int | torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """m frames of every video at random, or all where it has fewer. Returns picked. The draw is made on the
    generator's device, so a CPU generator gives the same frames everywhere."""
    device = "cpu" if generator is None else generator.device
    return select(torch.rand(mask.shape, generator=generator, device=device).to(mask.device), m, mask)


def dense(mask: torch.Tensor) -> torch.Tensor:
    """Every frame there is: what the recogniser costs and reaches without a sampler. Returns picked."""
    return mask.clone()


def _each(m: int | torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """(B, 1) or (1, 1) numbers of frames. Raises ValueError for fewer than one frame."""
    m = torch.as_tensor(m, device=like.device)
    if (m < 1).any():
        raise ValueError(f"at least one frame of a video must be looked at, got m={m.min().item()}")
    return m.reshape(-1, 1)


# --- what they say of the video ---


def video_logits(
    logits: torch.Tensor,
    weights: torch.Tensor,
    picked: torch.Tensor,
    aggregate: str = "mean",
    over: int | None = None,
) -> torch.Tensor:
    """q^T l_m of eq. 5.4, before the softmax, over the frames that are picked.

    logits (B, N, classes), weights (B, N), picked (B, N) bool. aggregate: "sum" as eq. 5.4 prints it, or "mean" as
    its text and figure 5.1 say, over the number of frames picked, or `over`. Returns (B, classes); zeros where no frame
    is.
    """
    weights = torch.where(picked, weights, 0.0)
    total = (weights[:, None] @ torch.where(picked[..., None], logits, 0.0)).squeeze(1)
    if aggregate == "sum":
        return total
    return total / (picked.sum(dim=1, keepdim=True).clamp(min=1) if over is None else over)


def predict_sampled(
    scores: torch.Tensor, batch: dict, m: int | torch.Tensor, *, weighting: bool = True, aggregate: str = "mean"
) -> dict:
    """The inference of section 5.2.4 on cached logits: top-M frames, their logits weighted by the scores, or averaged.

    scores (B, N), as a head gives them. Returns {"class": (B, classes) logits, "score": (B, N), "picked": (B, N)}.
    """
    _, mask = sampler_features(batch)
    logits, mask = recogniser_logits(batch, mask)
    picked = select(scores, m, mask)
    weights = scores if weighting else torch.ones_like(scores)
    return {"class": video_logits(logits, weights, picked, aggregate), "score": scores, "picked": picked}


def label_loss(logits: torch.Tensor, labels: torch.Tensor, multi_label: bool) -> torch.Tensor:
    """Cross-entropy of eq. 5.5, the mean over the videos.

    logits (B, classes). labels: (B,) class numbers, or with `multi_label` (B, classes) multi-hot, normalised to sum 1;
    a video of which no label is known then adds nothing. Raises ValueError for labels of another shape.
    """
    shape = logits.shape if multi_label else logits.shape[:1]
    if labels.shape != shape:
        raise ValueError(f"labels must be {tuple(shape)} with multi_label={multi_label}, got {tuple(labels.shape)}")
    if multi_label:
        labels = labels.float()
        labels = labels / labels.sum(dim=1, keepdim=True).clamp(min=1)
    return F.cross_entropy(logits.float(), labels)
