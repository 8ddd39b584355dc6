"""PSN: the parallel sampling network (thesis chapter 5, eq. 5.1 to 5.7).

A light network looks at N frames of a video at once; from its features, each seen in the context of the others, every
frame gets a score. In training the scores weigh the logits of a frozen heavy recogniser on all N frames, so its
gradients say which frames are worth looking at; at test it looks at the M best only.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from heads import register_head
from heads.frame_sampling import (
    AGGREGATES,
    READS,
    SamplingConfig,
    frame_dims,
    label_loss,
    predict_sampled,
    recogniser_logits,
    sampler_features,
    video_logits,
)
from heads.layers import masked_softmax
from heads.tcn import EDTCN, TCN, MaskedBatchNorm

__all__ = ["PSN", "PSNConfig"]


@dataclass(frozen=True)
class PSNConfig(SamplingConfig):
    """Sizes and switches of PSN; the defaults are the thesis's. `sampled` is the margin M of eq. 5.6 too."""

    # how
    context: str = "ed_tcn"  # relations between the frames: ed_tcn | tcn | nonlocal | none
    width: int = 256  # of the context module
    sparsity: float = 0.1  # lambda of eq. 5.7
    aggregate: str = "mean"  # eq. 5.4: "sum" as printed, "mean" as its text and figure 5.1 say

    def __post_init__(self):
        super().__post_init__()
        self.check(self.width >= 1, f"width must be at least 1, got {self.width}")
        self.check(0 <= self.sparsity < math.inf, f"sparsity must be a number from 0 on, got {self.sparsity}")
        for name, choices in (("context", tuple(CONTEXTS)), ("aggregate", AGGREGATES)):
            got = getattr(self, name)
            self.check(got in choices, f"{name} must be one of {', '.join(choices)}, got {got!r}")


class NonLocal(nn.Module):
    """A non-local block (Wang et al. 2018, embedded Gaussian): every frame attends to all. (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.out_channels = channels
        self.query, self.key, self.value = (nn.Linear(channels, width) for _ in range(3))
        self.out = nn.Linear(width, channels)
        self.norm = MaskedBatchNorm(channels)
        nn.init.zeros_(self.norm.weight)  # the block begins as the identity (their section 4.1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        similarity = self.query(x) @ self.key(x).transpose(1, 2)
        attention = masked_softmax(similarity.float(), mask[:, None]).to(x.dtype)
        seen = self.out(attention @ self.value(x))
        return x + self.norm(seen.transpose(1, 2), mask).transpose(1, 2)


class NoContext(nn.Module):
    """Every frame by itself ("Sampler w/o CRM", table 5.1)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.out_channels = channels

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x


CONTEXTS = {"ed_tcn": EDTCN, "tcn": TCN, "nonlocal": NonLocal, "none": NoContext}


class Sampler(nn.Module):
    """What follows the light network: features (B, N, C) and mask (B, N) -> scores q (B, N) in (0, 1).

    A frame that is not there has score 0.
    """

    def __init__(self, config: PSNConfig):
        super().__init__()
        self.context = CONTEXTS[config.context](config.channels, config.width)  # CRM of eq. 5.1
        self.score = nn.Linear(self.context.out_channels, 1, bias=False)  # W_s of eq. 5.2

    def forward(self, vector: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = torch.sigmoid(self.score(self.context(vector, mask)).squeeze(-1).float())
        return torch.where(mask, scores, 0.0)


@register_head("psn")
class PSN(nn.Module):
    """batch -> {"score": (B, N) sampling scores q, "class": (B, classes) score-weighted logits of eq. 5.4}.

    batch["sampler"]:    vector (B, N, C) of the light network; mask (B, N) bool where videos have fewer frames
    batch["recogniser"]: logits (B, N, classes) of the heavy network on the same frames; mask likewise

    This is the form for training: "class" takes in all N frames. `predict` is the form for test. Frames that are not
    there have score 0 and no influence, on batch statistics neither. Gradients reach batch["sampler"]["vector"], for
    training the light network too. Labels: {"class": (B,) class numbers, or (B, classes) multi-hot}.

    The baselines of table 5.3 are switches: "sampling only" is `predict(weighting=False)`, "weighting only" a head
    with frames = sampled = 10.
    """

    Config = PSNConfig
    reads = READS
    pictures = ("sampler",)
    dims = staticmethod(frame_dims)
    weighting = True  # the scores weigh the recogniser's logits at test

    def __init__(self, config: PSNConfig):
        super().__init__()
        self.config = config
        self.sampler = Sampler(config)

    def scores(self, batch: dict) -> torch.Tensor:
        """q (B, N) from batch["sampler"] alone: what is known before the recogniser runs."""
        return self.sampler(*sampler_features(batch))

    def forward(self, batch: dict) -> dict:
        vector, there = sampler_features(batch)
        logits, mask = recogniser_logits(batch, there)
        scores = torch.where(mask, self.sampler(vector, there), 0.0)
        return {"score": scores, "class": video_logits(logits, scores, mask, self.config.aggregate)}

    def loss(self, out: dict, labels: dict) -> torch.Tensor:
        """L_c + lambda L_r of eq. 5.5 to 5.7, the mean over the videos."""
        over = F.relu(out["score"].sum(dim=1) - self.config.sampled).mean()
        return label_loss(out["class"], labels["class"], self.config.multi_label) + self.config.sparsity * over

    def predict(self, batch: dict, m: int | torch.Tensor | None = None, *, weighting: bool = True) -> dict:
        """The recogniser on the m frames of the highest scores (M of the config if None, (B,): one a video).

        Returns {"class": (B, classes) logits, "score": (B, N), "picked": (B, N) bool}.
        """
        m = self.config.sampled if m is None else m
        return predict_sampled(self.scores(batch), batch, m, weighting=weighting, aggregate=self.config.aggregate)
