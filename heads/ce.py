"""CE-style: collaborative experts (Liu et al. 2019), on the features that T2VLAD reads.

MEE, but every expert of a video is gated by what the others say: for each, the relations to every other expert that is
there are averaged and modulate it. The released code gates one expert after the other and lets later ones see earlier
ones gated; here all see what the experts said, as the paper's equations do. Experts are pooled by their maximum over
time, as in all heads here.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from heads import register_head
from heads.experts import ExpertMixture, Projection, batch_normed
from heads.mee import TextVLADConfig, text_vlad
from heads.netvlad import NetVLAD
from heads.tcn import MaskedBatchNorm
from heads.text_video import TextVideoHead, pooled_experts

__all__ = ["CE", "CEConfig", "CollaborativeGate"]


@dataclass(frozen=True)
class CEConfig(TextVLADConfig):
    """Sizes and switches of CE."""

    def __post_init__(self):
        super().__post_init__()
        self.check(len(self.experts) >= 2, "experts collaborate with others: it needs at least two")


class CollaborativeGate(nn.Module):
    """x * sigmoid(batch norm(relation) + batch norm(W x + b)), of length 1 ("ContextGatingReasoning"). All (B, C)."""

    def __init__(self, width: int):
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.norm_relation = MaskedBatchNorm(width)
        self.norm_own = MaskedBatchNorm(width)

    def forward(self, x: torch.Tensor, relation: torch.Tensor, there: torch.Tensor | None = None) -> torch.Tensor:
        gate = batch_normed(self.norm_relation, relation, there) + batch_normed(self.norm_own, self.fc(x), there)
        return F.normalize(x * torch.sigmoid(gate), dim=-1)


@register_head("ce")
class CE(TextVideoHead):
    """MEE with collaborative gating of the experts."""

    Config = CEConfig

    def __init__(self, config: CEConfig):
        super().__init__(config)
        width = config.common
        self.pooling = NetVLAD(config.text_channels, config.clusters, 0, config.assignment)
        text_channels = config.clusters * config.text_channels
        self.mixture = ExpertMixture(text_channels, config.expert_channels, width, video_units=False)
        self.project = nn.ModuleList(Projection(channels, width) for channels in config.expert_channels)
        self.relate = nn.Sequential(nn.Linear(2 * width, width), nn.ReLU(), nn.Linear(width, width))  # g of a pair
        self.attend = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))  # h of their mean
        self.gates = nn.ModuleList(CollaborativeGate(width) for _ in config.experts)

    def embed_text(self, tokens, mask) -> dict[str, torch.Tensor]:
        return self.mixture.text(text_vlad(self.pooling, tokens, mask))

    def embed_video(self, experts) -> dict[str, torch.Tensor]:
        pooled, present = pooled_experts(experts)
        own = torch.stack([project(vector) for project, vector in zip(self.project, pooled, strict=True)], dim=1)
        relations = self.relations(own, present)
        gated = [gate(own[:, i], relations[:, i], present[:, i]) for i, gate in enumerate(self.gates)]
        return {"experts": torch.stack(gated, dim=1), "present": present}

    def relations(self, own: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """h(mean over j != i that are there of g(own_i, own_j)): own (B, N, C), present (B, N) -> (B, N, C)."""
        n = own.shape[1]
        pairs = torch.cat([own[:, :, None].expand(-1, -1, n, -1), own[:, None].expand(-1, n, -1, -1)], dim=-1)
        others = present[:, None] & ~torch.eye(n, dtype=torch.bool, device=own.device)  # (B, i, j)
        summed = (self.relate(pairs) * others[..., None]).sum(dim=2)
        return self.attend(summed / others.sum(dim=2, keepdim=True).clamp(min=1))
