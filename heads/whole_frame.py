"""The whole-frame baselines: what the clip features alone can say. SAOA is measured against them."""

from dataclasses import dataclass

import torch
from torch import nn

from errors import UserError
from heads import register_head
from heads.layers import linear_probe, norm_of_probe, verb_noun_loss

__all__ = ["WholeFrame", "WholeFrameConfig"]

STREAMS = ("own", "both", "gated")


@dataclass(frozen=True)
class WholeFrameConfig:
    """Sizes and switches of the two linear classifiers."""

    verbs: int  # verb classes
    nouns: int  # noun classes
    verb_channels: int  # width of the verb feature
    noun_channels: int  # width of the noun feature

    # how
    # own: "Baseline"; both: "Verb+Noun Fusion" of table 3.3; gated: "Noun + Verb" of SAP's table 2
    streams: str = "own"  # own | both | gated
    normalise: bool = True  # a batch norm without scale and shift of each feature, as linear probes have

    def __post_init__(self):
        for name in ("verbs", "nouns", "verb_channels", "noun_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"whole_frame: {name} must be at least 1, got {getattr(self, name)}")
        if self.streams not in STREAMS:
            raise UserError(f"whole_frame: streams must be one of {', '.join(STREAMS)}, got {self.streams!r}")

    @property
    def windows(self) -> dict[str, float]:
        """It sees no objects."""
        return {}


@register_head("whole_frame")
class WholeFrame(nn.Module):
    """batch["verb"]["vector"] (B, Cv), batch["noun"]["vector"] (B, Cn) -> {"verb": (B, verbs), "noun": (B, nouns)}.

    streams="own": a linear classifier on the feature of each stream. "both": on the concatenation of the two features.
    "gated": on the stream's own feature, gated by the other's as in eq. 3.4 and 3.5 (without any object).
    """

    Config = WholeFrameConfig
    reads = {"verb": ("vector",), "noun": ("vector",)}
    loss = staticmethod(verb_noun_loss)

    def __init__(self, config: WholeFrameConfig):
        super().__init__()
        self.config = config
        widths = {"verb": config.verb_channels, "noun": config.noun_channels}
        classes = {"verb": config.verbs, "noun": config.nouns}
        for name, other in (("verb", "noun"), ("noun", "verb")):
            if config.streams == "gated":
                made = Gated(widths[name], widths[other], classes[name], config.normalise)
            else:
                width = sum(widths.values()) if config.streams == "both" else widths[name]
                made = linear_probe(width, classes[name], config.normalise)
            setattr(self, name, made)

    @staticmethod
    def dims(shapes: dict) -> dict:
        """The widths of the two features from the stores' row shapes."""
        return {"verb_channels": shapes["verb"]["vector"][-1], "noun_channels": shapes["noun"]["vector"][-1]}

    def forward(self, batch: dict) -> dict:
        verb, noun = (batch[name]["vector"].float() for name in ("verb", "noun"))
        if self.config.streams == "gated":
            return {"verb": self.verb(verb, noun), "noun": self.noun(noun, verb)}
        if self.config.streams == "both":
            verb = noun = torch.cat((verb, noun), dim=-1)
        return {"verb": self.verb(verb), "noun": self.noun(noun)}


class Gated(nn.Module):
    """A linear classifier on a feature that another stream's feature gates."""

    def __init__(self, channels: int, other_channels: int, classes: int, normalise: bool):
        super().__init__()
        self.norm, self.norm_other = (norm_of_probe(width, normalise) for width in (channels, other_channels))
        self.gate = nn.Linear(other_channels, channels)  # W_g and b_g of eq. 3.4 / 3.7
        self.classify = nn.Linear(channels, classes)

    def forward(self, own, other):
        """own (B, channels), other (B, other_channels) -> logits (B, classes)."""
        return self.classify(torch.sigmoid(self.gate(self.norm_other(other))) * self.norm(own))
