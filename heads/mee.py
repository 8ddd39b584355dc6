"""MEE: a mixture of embedding experts (Miech et al. 2018), on the features that T2VLAD reads."""

from dataclasses import dataclass

import torch

from heads import register_head
from heads.experts import ExpertMixture
from heads.netvlad import NORMS, NetVLAD
from heads.text_video import RetrievalConfig, TextVideoHead, pooled_experts

__all__ = ["MEE", "MEEConfig", "TextVLADConfig", "text_vlad"]


@dataclass(frozen=True)
class TextVLADConfig(RetrievalConfig):
    """How MEE and CE pool the text: a NetVLAD of its own, with batch norm (CE's released code)."""

    clusters: int = 20  # of the text's NetVLAD (CE)
    assignment: str = "batch_norm"  # bias | batch_norm | none

    def __post_init__(self):
        super().__post_init__()
        self.check(self.clusters >= 1, f"clusters must be at least 1, got {self.clusters}")
        self.check(self.assignment in NORMS, f"assignment must be one of {', '.join(NORMS)}, got {self.assignment!r}")


def text_vlad(pooling: NetVLAD, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, L, C), mask -> (B, K C) of length 1: all centres' residuals as one vector (Arandjelovic et al. 2016)."""
    return torch.nn.functional.normalize(pooling(tokens, mask).flatten(1), dim=-1)


@dataclass(frozen=True)
class MEEConfig(TextVLADConfig):
    """Sizes and switches of MEE."""


@register_head("mee")
class MEE(TextVideoHead):
    """Text pooled by NetVLAD, experts by their maximum over time; gated embeddings and mixture weights (no locals)."""

    Config = MEEConfig

    def __init__(self, config: MEEConfig):
        super().__init__(config)
        self.pooling = NetVLAD(config.text_channels, config.clusters, 0, config.assignment)
        self.mixture = ExpertMixture(config.clusters * config.text_channels, config.expert_channels, config.common)

    def embed_text(self, tokens, mask) -> dict[str, torch.Tensor]:
        return self.mixture.text(text_vlad(self.pooling, tokens, mask))

    def embed_video(self, experts) -> dict[str, torch.Tensor]:
        pooled, present = pooled_experts(experts)
        return {"experts": self.mixture.video(pooled, present), "present": present}
