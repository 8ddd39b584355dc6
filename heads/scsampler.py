"""SCSampler as PSN's baseline (Korbar et al. 2019; thesis section 5.3.3).

A light classifier is trained on single frames with the video's label; a frame is as salient as the classifier is
certain of any class on it. The recogniser's logits on the most salient frames are averaged. It hears nothing of the
recogniser, and each frame is judged alone.
"""

from dataclasses import dataclass

import torch
from torch import nn

from heads import register_head
from heads.frame_sampling import (
    READS,
    SamplingConfig,
    frame_dims,
    label_loss,
    predict_sampled,
    sampler_features,
)
from heads.tcn import MaskedBatchNorm

__all__ = ["SCSampler", "SCSamplerConfig"]


@dataclass(frozen=True)
class SCSamplerConfig(SamplingConfig):
    """Sizes of the light classifier, and how many frames it leaves to the recogniser."""


@register_head("scsampler")
class SCSampler(nn.Module):
    """batch -> {"score": (B, N) the largest class probability, "frame": (B, N, classes) logits, "mask": (B, N) bool}.

    batch and labels are PSN's; logits of the recogniser are read by `predict` alone.
    """

    Config = SCSamplerConfig
    reads = READS
    pictures = ("sampler",)
    dims = staticmethod(frame_dims)
    weighting = False  # the recogniser's logits are averaged at test

    def __init__(self, config: SCSamplerConfig):
        super().__init__()
        self.config = config
        self.norm = MaskedBatchNorm(config.channels, affine=False)  # a linear probe, as strong as one can be
        self.classify = nn.Linear(config.channels, config.classes)

    def scores(self, batch: dict) -> torch.Tensor:
        """(B, N) from batch["sampler"] alone: what is known before the recogniser runs."""
        return self(batch)["score"]

    def forward(self, batch: dict) -> dict:
        vector, mask = sampler_features(batch)
        frame = self.classify(self.norm(vector.transpose(1, 2), mask).transpose(1, 2)).float()
        return {"score": torch.where(mask, frame.softmax(dim=-1).amax(dim=-1), 0.0), "frame": frame, "mask": mask}

    def loss(self, out: dict, labels: dict) -> torch.Tensor:
        """Cross-entropy of every frame with its video's label, the mean over the frames."""
        mask = out["mask"]
        of_video = mask.nonzero()[:, 0]
        return label_loss(out["frame"][mask], labels["class"][of_video], self.config.multi_label)

    def predict(self, batch: dict, m: int | torch.Tensor | None = None) -> dict:
        """The recogniser's mean over the m most salient frames (M of the config if None, (B,): one a video).

        Returns {"class": (B, classes) logits, "score": (B, N), "picked": (B, N) bool}.
        """
        m = self.config.sampled if m is None else m
        return predict_sampled(self.scores(batch), batch, m, weighting=False)
