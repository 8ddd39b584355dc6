"""What the text-video retrieval heads have in common: their batches, their face and their loss.

A batch is what `stores.SequenceDataset` gives: per expert (a role of one's own naming) its tokens, and the text's.

    batch["text"]:   tokens (B, L, C) of a text network, mask (B, L) bool; the first token is [CLS]
    batch[expert]:   vector, tokens or roi (B, L, C_n), mask (B, L) bool: all False where the video has no such expert

Text i belongs to video i. Gradients reach batch["text"]["tokens"], for fine-tuning the text network too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from errors import UserError
from heads.experts import renormalised
from heads.layers import masked_max
from heads.ranking_losses import hardest_margin, max_margin

__all__ = ["ARRAYS", "RetrievalConfig", "TextVideoHead", "pooled_experts", "present_of", "tokens_of"]

ARRAYS = ("vector", "tokens", "roi")
"""Arrays of a store that may be an expert's tokens: one a row, words, or boxes."""

Experts = Sequence[tuple[torch.Tensor, torch.Tensor]]
"""Of N experts: (tokens (B, L_n, C_n), mask (B, L_n) bool)."""


@dataclass(frozen=True)
class RetrievalConfig:
    """Sizes, from the stores, and the loss; the defaults are the thesis's (section 6.3.1)."""

    # sizes, from the stores
    text_channels: int  # of the text network's tokens
    experts: tuple[str, ...]  # their names, in the order of the mixture
    expert_channels: tuple[int, ...]  # widths of their features

    # how
    width: int = 0  # C of the common space; 0: as wide as the text's tokens (BERT's 768 in the thesis)
    margin: float = 0.02
    negatives: int = 0  # of the loss: the hardest so many of each text and video; 0: the mean over all

    def __post_init__(self):
        for name, kind in (("experts", str), ("expert_channels", int)):  # lists, where a config comes from JSON
            object.__setattr__(self, name, tuple(map(kind, getattr(self, name))))
        self.check(self.text_channels >= 1, f"text_channels must be at least 1, got {self.text_channels}")
        self.check(len(self.experts) >= 1, "it needs at least one expert")
        self.check(len(set(self.experts)) == len(self.experts), f"an expert is there twice: {', '.join(self.experts)}")
        self.check(
            len(self.experts) == len(self.expert_channels) and min(self.expert_channels) >= 1,
            f"expert_channels must be one width from 1 on for each of {', '.join(self.experts)}, got"
            f" {self.expert_channels}",
        )
        self.check(self.width >= 0, f"width must be at least 0, got {self.width}")
        self.check(0 <= self.margin < float("inf"), f"margin must be a number from 0 on, got {self.margin}")
        self.check(self.negatives >= 0, f"negatives must be at least 0, got {self.negatives}")

    def check(self, right: bool, what: str) -> None:
        """Raise UserError with `what` unless `right`."""
        if not right:
            raise UserError(f"{type(self).__name__.removesuffix('Config').lower()}: {what}")

    @property
    def common(self) -> int:
        """C, the width of the common space."""
        return self.width or self.text_channels

    @property
    def windows(self) -> dict[str, float]:
        """They see no lists of objects around a clip."""
        return {}


def tokens_of(part: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """An expert's or a text's part of a batch -> (tokens (B, L, C) float32, zero where there is none; mask (B, L))."""
    array = next(part[name] for name in ARRAYS if name in part)
    return torch.where(part["mask"][..., None], _in_full(array), 0.0), part["mask"]


def _in_full(array: torch.Tensor) -> torch.Tensor:
    """Floats of at least 32 bits; anything else as it is."""
    return array.float() if array.is_floating_point() and array.element_size() < 4 else array


def present_of(experts: Experts) -> torch.Tensor:
    """(B, N) bool: the experts that have at least one token."""
    return torch.stack([mask.any(dim=1) for _, mask in experts], dim=1)


def pooled_experts(experts: Experts) -> tuple[list[torch.Tensor], torch.Tensor]:
    """(N max-pooled vectors (B, C_n), zeros where there is no token; present (B, N) bool)."""
    return [masked_max(*expert) for expert in experts], present_of(experts)


class TextVideoHead(nn.Module):
    """Base of the heads: texts and videos are embedded apart, and any block of texts is compared with any of videos.

    A subclass implements `embed_text(tokens, mask)` and `embed_video(experts)`, which return dicts of tensors with B
    rows: at least "experts" (B, N, C) and "weights" (B, N) of texts, "experts" and "present" (B, N) of videos; a
    subclass that adds others extends `text_parts`, `video_parts` and `combined`.
    """

    reads = {"text": ("tokens",), "experts": ARRAYS}  # one store a role; any number of roles may be experts
    pictures: tuple[str, ...] = ("ranking",)

    def __init__(self, config: RetrievalConfig):
        super().__init__()
        self.config = config

    @staticmethod
    def dims(shapes: Mapping[str, Mapping[str, tuple[int, ...]]]) -> dict:
        """Widths from the row shapes of the text's store and of the experts', in their order."""
        experts = [role for role in shapes if role != "text"]
        widths = [next(shapes[role][name] for name in ARRAYS if name in shapes[role])[-1] for role in experts]
        return {
            "text_channels": shapes["text"]["tokens"][-1],
            "experts": tuple(experts),
            "expert_channels": tuple(widths),
        }

    # --- embeddings: what a search index holds ---

    def encode_text(self, text: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """batch["text"] -> embeddings of B texts, a row each."""
        return {name: _in_full(value) for name, value in self.embed_text(*tokens_of(text)).items()}

    def encode_video(self, batch: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """A batch, of which the text is not looked at -> embeddings of B videos, a row each."""
        embedded = self.embed_video([tokens_of(batch[name]) for name in self.config.experts])
        return {name: _in_full(value) for name, value in embedded.items()}

    def similarity(self, text: Mapping[str, torch.Tensor], video: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(T, V) from the embeddings of T texts and of V videos: any blocks of a matrix equal the whole."""
        videos = self.video_parts(video)
        dots = {name: part @ videos[name].T for name, part in self.text_parts(text).items()}
        return self.combined(dots, text, video)

    # What a similarity is made of: inner products of long vectors, and how they are combined. A search has the long
    # ones of millions of videos in a short form.

    def text_parts(self, text: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{part: (T, D)} from the embeddings of texts, with the names and widths of `video_parts`."""
        return {"experts": (text["experts"] * text["weights"][..., None]).flatten(1)}

    def video_parts(self, video: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{part: (V, D)} from the embeddings of videos."""
        return {"experts": (video["experts"] * video["present"][..., None]).flatten(1)}

    def combined(
        self, dots: Mapping[str, torch.Tensor], text: Mapping[str, torch.Tensor], video: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """`similarity` from {part: (T, V) inner products} and, of the embeddings, "weights" and "present" alone."""
        return renormalised(dots["experts"], text["weights"], video["present"])

    # --- training ---

    def forward(self, batch: Mapping) -> dict[str, torch.Tensor]:
        """{"similarity": (B, B) texts along rows, "weights": (B, N) of the experts by the text alone}."""
        text, video = self.encode_text(batch["text"]), self.encode_video(batch)
        # Margins are smaller than bfloat16 tells apart.
        with torch.autocast(text["experts"].device.type, enabled=False):
            return {"similarity": self.similarity(text, video), "weights": text["weights"]}

    def loss(self, out: Mapping[str, torch.Tensor], labels: Mapping[str, torch.Tensor] | None = None) -> torch.Tensor:
        """The ranking loss. labels: {"video": (B,) integers}: texts of one video are no negatives of each other; by
        default all videos of a batch are different ones."""
        video = (labels or {}).get("video")
        negative = None if video is None else video[:, None] != video[None]
        if self.config.negatives:
            return hardest_margin(out["similarity"], self.config.margin, self.config.negatives, negative)
        return max_margin(out["similarity"], self.config.margin, negative)
