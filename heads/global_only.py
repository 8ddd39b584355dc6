"""The global alignment alone: T2VLAD "w/o Local Alignment" (thesis table 6.4), the text told by BERT's [CLS]."""

from dataclasses import dataclass

import torch

from heads import register_head
from heads.experts import ExpertMixture
from heads.text_video import RetrievalConfig, TextVideoHead, pooled_experts

__all__ = ["GlobalOnly", "GlobalOnlyConfig"]


@dataclass(frozen=True)
class GlobalOnlyConfig(RetrievalConfig):
    """Sizes and loss of the baseline."""


@register_head("global_only")
class GlobalOnly(TextVideoHead):
    """[CLS] of the text, experts by their maximum over time; gated embeddings and mixture weights of eq. 6.4."""

    Config = GlobalOnlyConfig

    def __init__(self, config: GlobalOnlyConfig):
        super().__init__(config)
        self.mixture = ExpertMixture(config.text_channels, config.expert_channels, config.common)

    def embed_text(self, tokens, mask) -> dict[str, torch.Tensor]:
        return self.mixture.text(tokens[:, 0])

    def embed_video(self, experts) -> dict[str, torch.Tensor]:
        pooled, present = pooled_experts(experts)
        return {"experts": self.mixture.video(pooled, present), "present": present}
