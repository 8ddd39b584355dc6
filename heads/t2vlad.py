"""T2VLAD: global-local sequence alignment for text-video retrieval (thesis chapter 6, eq. 6.1 to 6.4).

Words of a text and segments of a video, of all its experts, are softly assigned to the same few centres, topics that
both can speak of; what gathers at each centre is compared (local). Beside it, each expert's maximum over time is
compared with a vector that the gathered text has for it (global). Half of each is the similarity.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from heads import register_head
from heads.experts import ExpertMixture, Projection
from heads.layers import masked_max
from heads.netvlad import NORMS, NetVLAD
from heads.text_video import RetrievalConfig, TextVideoHead, pooled_experts, present_of, tokens_of

__all__ = ["PRESETS", "T2VLAD", "T2VLADConfig"]

PRESETS = {
    "thesis": {
        "margin": 0.02,
        "negatives": 0,
        "dropout": 0.1,
        "assignment": "bias",
        "separate_norms": False,
        "video_trains_centres": True,
        "mask_padding": True,
    },
    "released": {
        "margin": 0.2,
        "negatives": 1,
        "dropout": 0.0,
        "assignment": "batch_norm",
        "separate_norms": True,
        "video_trains_centres": False,
        "mask_padding": False,
    },
}
"""What the thesis says, and what the authors' group released (PaddleVideo@ed245e9 applications/T2VLAD) where that
differs. A setting that is given wins over the preset's."""

VLADS = ("shared", "separate", "text")
SCORES = ("both", "local", "global")


@dataclass(frozen=True)
class T2VLADConfig(RetrievalConfig):
    """Sizes and switches of T2VLAD; None: as the preset says."""

    preset: str = "thesis"  # thesis | released
    margin: float | None = None
    negatives: int | None = None

    # sizes
    clusters: int = 9  # K; 16 for long videos (ActivityNet Captions)
    background: int = 1  # centres whose features are dropped
    attention_heads: int = 4

    # rows of tables 6.4 to 6.6
    local: bool = True  # False, "w/o Local Alignment": [CLS] for the text, global similarity alone
    score: str = "both"  # of the test: "local" is "w/o Global Alignment", trained with both
    vlad: str = "shared"  # separate: "two separate VLAD"; text: "only text VLAD", the video max-pooled and projected
    self_attention: bool = True  # False: "w/o Visual Att"

    # details
    dropout: float | None = None  # of the self-attention layer
    assignment: str | None = None  # before eq. 6.1's softmax: bias (b_j) | batch_norm | none
    separate_norms: bool | None = None  # words and segments have a bias or batch norm each
    video_trains_centres: bool | None = None  # False: only words move the centres of eq. 6.1
    mask_padding: bool | None = None  # False: padding is a token like any other, as zeros
    padded: tuple[int, ...] = ()  # tokens that the text and each expert then have; (): as many as the batch

    def __post_init__(self):
        self.check(self.preset in PRESETS, f"preset must be one of {', '.join(PRESETS)}, got {self.preset!r}")
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        object.__setattr__(self, "padded", tuple(int(n) for n in self.padded))  # a list, where a config comes from JSON
        super().__post_init__()
        for name in ("clusters", "attention_heads"):
            self.check(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.check(self.background >= 0, f"background must be at least 0, got {self.background}")
        self.check(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        self.check(
            not self.local or self.common % self.attention_heads == 0,
            f"attention_heads={self.attention_heads} must divide the width {self.common}",
        )
        for name, choices in (("vlad", VLADS), ("score", SCORES), ("assignment", tuple(NORMS))):
            got = getattr(self, name)
            self.check(got in choices, f"{name} must be one of {', '.join(choices)}, got {got!r}")
        self.check(
            len(self.padded) in (0, 1 + len(self.experts)),
            "padded must be a number for the text and one for each expert",
        )
        self.check(self.local or self.score != "local", "score=local needs the local alignment (local=true)")


class VideoContext(nn.Module):
    """Z^video: every expert's segments projected to one space, related to each other by one layer of self-attention.

    N pairs (tokens (B, L_n, C_n), mask (B, L_n)) -> (B, sum L_n, width), mask. The layer is pre-norm, without
    positions; the layer norm that ends it stays where the layer is left out, so that segments enter the clustering at
    the same scale.
    """

    def __init__(self, config: T2VLADConfig):
        super().__init__()
        width = config.common
        self.project = nn.ModuleList(Projection(channels, width) for channels in config.expert_channels)
        self.layer = None
        if config.self_attention:
            self.layer = nn.TransformerEncoderLayer(
                width, config.attention_heads, width, config.dropout, batch_first=True, norm_first=True
            )
        self.norm = nn.LayerNorm(width)

    def forward(self, experts) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.cat([project(x) for project, (x, _) in zip(self.project, experts, strict=True)], dim=1)
        mask = torch.cat([mask for _, mask in experts], dim=1)
        if self.layer is not None:
            # A video without any segment attends to its padding, of which nothing is used: a softmax over nothing
            # would be NaN.
            hidden = ~mask & mask.any(dim=1, keepdim=True)
            tokens = self.layer(tokens, src_key_padding_mask=hidden)
        return self.norm(tokens), mask


@register_head("t2vlad")
class T2VLAD(TextVideoHead):
    """Global and local alignment. Embeddings have "local" beside those of `TextVideoHead`: (B, K C), of which the dot
    product of a text's and a video's is s_local, the mean over the centres of the cosines of eq. 6.2 and 6.3."""

    Config = T2VLADConfig
    pictures = ("assignment", "ranking")

    def __init__(self, config: T2VLADConfig):
        super().__init__(config)
        width = config.common
        if not config.local or config.vlad != "shared":
            self.pictures = ("ranking",)  # words and segments meet at no centres
        if not config.local:
            self.mixture = ExpertMixture(config.text_channels, config.expert_channels, width)
            return
        same = config.text_channels == width
        self.text_project = nn.Identity() if same else nn.Linear(config.text_channels, width)
        self.context = VideoContext(config)
        kinds = ("text", "video") if config.separate_norms and config.vlad == "shared" else ("all",)

        def vlad(kinds):
            return NetVLAD(width, config.clusters, config.background, config.assignment, kinds)

        self.vlad = vlad(kinds)
        self.video_vlad = vlad(("all",)) if config.vlad == "separate" else None
        gathered = config.clusters * width
        self.video_project = nn.Linear(width, gathered) if config.vlad == "text" else None
        self.mixture = ExpertMixture(gathered, config.expert_channels, width)

    # --- embeddings ---

    def embed_text(self, tokens, mask) -> dict[str, torch.Tensor]:
        if not self.config.local:
            return self.mixture.text(tokens[:, 0])
        tokens, mask = self._filled(tokens, mask, 0)
        tokens = self.text_project(tokens)
        gathered = _one_vector(self.vlad(tokens, mask, self._kind("text")))  # G^text, concatenated
        return {**self.mixture.text(gathered), "local": gathered}

    def embed_video(self, experts) -> dict[str, torch.Tensor]:
        present = present_of(experts)
        experts = [self._filled(tokens, mask, i) for i, (tokens, mask) in enumerate(experts, 1)]
        pooled, counted = pooled_experts(experts)
        out = {"experts": self.mixture.video(pooled, counted), "present": present}
        return {**out, "local": self._video_local(experts)} if self.config.local else out

    def _video_local(self, experts) -> torch.Tensor:
        tokens, mask = self.context(experts)
        if self.video_project is not None:
            pooled = F.normalize(self.video_project(masked_max(tokens, mask)), dim=-1)
            return pooled * mask.any(dim=1, keepdim=True)
        if self.video_vlad is not None:
            return _one_vector(self.video_vlad(tokens, mask))
        return _one_vector(self.vlad(tokens, mask, self._kind("video"), not self.config.video_trains_centres))

    # --- similarity ---

    def text_parts(self, text) -> dict[str, torch.Tensor]:
        return self._parts(super().text_parts(text), text)

    def video_parts(self, video) -> dict[str, torch.Tensor]:
        return self._parts(super().video_parts(video), video)

    def combined(self, dots, text, video) -> torch.Tensor:
        """s = (s_global + s_local) / 2; at test what the config's `score` says."""
        if "experts" not in dots:
            return dots["local"]
        mixture = super().combined(dots, text, video)
        return (mixture + dots["local"]) / 2 if "local" in dots else mixture

    def _parts(self, parts: dict[str, torch.Tensor], embedded) -> dict[str, torch.Tensor]:
        score = "both" if self.training else self.config.score
        if not self.config.local or score == "global":
            return parts
        local = {"local": embedded["local"]}
        return local if score == "local" else parts | local

    def assignments(self, batch) -> dict[str, torch.Tensor]:
        """a of eq. 6.1 for pictures (figure 6.3): {"text" or expert: (B, L, K + background)} as the embeddings gather
        by, 0 where no token counts; of vlad=separate, words and segments each have centres of their own. Raises
        UserError where the config gathers no segments at centres (local=False, vlad=text)."""
        self.config.check(self.config.local and self.config.vlad != "text", "words and segments share no centres here")
        names = ("text", *self.config.experts)
        text, *experts = (self._filled(*tokens_of(batch[name]), i) for i, name in enumerate(names))
        words = self.vlad.assign(self.text_project(text[0]), text[1], self._kind("text"))
        tokens, mask = self.context(experts)
        vlad = self.video_vlad or self.vlad
        segments = vlad.assign(tokens, mask, "all" if self.video_vlad else self._kind("video"))
        parts = words, *segments.split([tokens.shape[1] for tokens, _ in experts], dim=1)
        # Padding that `_filled` added is of no token of the batch.
        return {name: part[:, : batch[name]["mask"].shape[1]] for name, part in zip(names, parts, strict=True)}

    def _kind(self, kind: str) -> str:
        return kind if kind in self.vlad.norms else "all"

    def _filled(self, tokens: torch.Tensor, mask: torch.Tensor, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (B, L, C) of the text (i = 0) or of expert i - 1, and which of them count (B, L). Where padding counts
        there is always as much of it: an embedding does not depend on what else is in its batch."""
        if not self.config.mask_padding and self.config.padded:
            tokens = F.pad(tokens, (0, 0, 0, max(0, self.config.padded[i] - tokens.shape[1])))
            mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        return tokens, self._seen(mask)

    def _seen(self, mask: torch.Tensor) -> torch.Tensor:
        return mask if self.config.mask_padding else torch.ones_like(mask)


def _one_vector(centres: torch.Tensor) -> torch.Tensor:
    """(B, K, C) of length 1 each -> (B, K C) of length 1: the dot product of two is the mean of K cosines."""
    return centres.flatten(1) / centres.shape[1] ** 0.5
