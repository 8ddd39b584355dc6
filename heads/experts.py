"""Global alignment of a text with a video's experts: one vector an expert on both sides, and mixture weights.

MEE (Miech et al. 2018) with its gated embedding units, as CE, MMT and T2VLAD's global branch use it (thesis section
6.2.5, eq. 6.4). An expert that has nothing to say about a video is masked: its weight goes to the others, its zeros
take no part in batch statistics.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from heads.tcn import MaskedBatchNorm

__all__ = [
    "ExpertMixture",
    "GatedEmbedding",
    "Projection",
    "batch_normed",
    "renormalised",
]


class Projection(nn.Module):
    """A linear layer, then length 1 over the last axis ("ReduceDim"). (..., C) -> (..., width)."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.fc = nn.Linear(channels, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.fc(x), dim=-1)


class GatedEmbedding(nn.Module):
    """Gated embedding unit: y = W x + b, y * sigmoid(batch norm(W' y + b')), of length 1. (B, C) -> (B, width).

    there (B,) bool: rows that count in batch statistics; None: all.
    """

    def __init__(self, channels: int, width: int, norm: bool = True, normalise: bool = True):
        super().__init__()
        self.fc = nn.Linear(channels, width)
        self.gate = nn.Linear(width, width)
        self.norm = MaskedBatchNorm(width) if norm else None
        self.normalise = normalise

    def forward(self, x: torch.Tensor, there: torch.Tensor | None = None) -> torch.Tensor:
        x = self.fc(x)
        gate = self.gate(x)
        if self.norm is not None:
            gate = batch_normed(self.norm, gate, there)
        x = x * torch.sigmoid(gate)
        return F.normalize(x, dim=-1) if self.normalise else x


def batch_normed(norm: MaskedBatchNorm, x: torch.Tensor, there: torch.Tensor | None) -> torch.Tensor:
    """Batch norm of (B, C) with statistics over the rows of there (B,) bool; None: all."""
    if there is None:
        there = torch.ones(len(x), dtype=torch.bool, device=x.device)
    return norm(x[..., None], there[:, None])[..., 0]


class ExpertMixture(nn.Module):
    """F^text, F^video and w of eq. 6.4, from one vector of the text and one of each of N experts.

    expert_channels: width of each expert's vector. video_units=False: the head embeds the videos itself, as CE does.
    """

    def __init__(self, text_channels: int, expert_channels: Sequence[int], width: int, *, video_units: bool = True):
        super().__init__()
        self.text_units = nn.ModuleList(GatedEmbedding(text_channels, width) for _ in expert_channels)
        self.weigh = nn.Linear(text_channels, len(expert_channels))
        units = expert_channels if video_units else ()
        self.video_units = nn.ModuleList(GatedEmbedding(channels, width) for channels in units)

    def text(self, vector: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, text_channels) -> {"experts": (B, N, width) of length 1, "weights": (B, N), of sum 1}."""
        embedded = torch.stack([unit(vector) for unit in self.text_units], dim=1)
        return {"experts": embedded, "weights": self.weigh(vector).softmax(dim=-1)}

    def video(self, vectors: Sequence[torch.Tensor], counted: torch.Tensor) -> torch.Tensor:
        """N vectors (B, C_n), counted (B, N) bool: in batch statistics -> (B, N, width) of length 1."""
        pairs = zip(self.video_units, vectors, counted.unbind(dim=1), strict=True)
        return torch.stack([unit(vector, there) for unit, vector, there in pairs], dim=1)


def renormalised(dots: torch.Tensor, weights: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Eq. 6.4: weighted sums of cosines (T, V) over the sums of the weights (T, N) whose experts are present (V, N):
    0 over 0 is 0, of a video without any expert."""
    total = weights @ present.to(weights.dtype).T
    return dots / torch.where(total == 0, 1.0, total)
