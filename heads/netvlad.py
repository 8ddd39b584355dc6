"""NetVLAD over sequences of unequal length (Arandjelovic et al. 2016; thesis eq. 6.1 to 6.3), padding masked."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn

from heads.layers import vlad
from heads.tcn import MaskedBatchNorm

__all__ = ["NORMS", "NetVLAD"]


class Bias(nn.Module):
    """b_j of eq. 6.1. (B, K, L) -> (B, K, L)."""

    def __init__(self, centres: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(centres))

    def forward(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return logits + self.bias[:, None]


class NoNorm(nn.Module):
    """Dot products as they are."""

    def __init__(self, centres: int):
        super().__init__()

    def forward(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return logits


NORMS = {"bias": Bias, "batch_norm": MaskedBatchNorm, "none": NoNorm}
"""What is done to the dot products of features and centres before the softmax."""


class NetVLAD(nn.Module):
    """(B, L, C) local features, mask (B, L) -> (B, K, C): per centre the sum of residuals, of length 1 (0 if empty).

    K centres and `background` more, whose part of the softmax is dropped. Features are assigned by `centres`, the
    residuals are taken to the second set, `residual_centres`. `kinds` of features share both sets and have a norm of
    their own each. Features where mask is False mean nothing, but must be finite.
    """

    def __init__(self, channels: int, clusters: int, background: int, norm: str, kinds: Iterable[str] = ("all",)):
        super().__init__()
        self.clusters = clusters
        self.centres = nn.Parameter(torch.randn(clusters + background, channels) / math.sqrt(channels))
        self.residual_centres = nn.Parameter(torch.randn(clusters, channels) / math.sqrt(channels))
        self.norms = nn.ModuleDict({kind: NORMS[norm](clusters + background) for kind in kinds})

    def assign(
        self, features: torch.Tensor, mask: torch.Tensor, kind: str = "all", detach: bool = False
    ) -> torch.Tensor:
        """Eq. 6.1: (B, L, K + background), 0 where mask is False. detach: no gradients to `centres`."""
        centres = self.centres.detach() if detach else self.centres
        logits = self.norms[kind]((features @ centres.T).mT, mask).mT
        return logits.softmax(dim=-1) * mask[..., None]

    def forward(
        self, features: torch.Tensor, mask: torch.Tensor, kind: str = "all", detach: bool = False
    ) -> torch.Tensor:
        assignment = self.assign(features, mask, kind, detach)[..., : self.clusters]
        return F.normalize(vlad(features, assignment, self.residual_centres), dim=-1)
