"""The whole-frame baseline: what the clip features alone can say. SAOA is measured against it."""

from dataclasses import dataclass

from torch import nn

from errors import UserError
from heads import register_head
from heads.layers import verb_noun_loss

__all__ = ["WholeFrame", "WholeFrameConfig"]


@dataclass(frozen=True)
class WholeFrameConfig:
    """Sizes of the two linear classifiers."""

    verbs: int  # verb classes
    nouns: int  # noun classes
    verb_channels: int  # width of the verb feature
    noun_channels: int  # width of the noun feature

    # how
    normalise: bool = True  # a batch norm without scale and shift before each classifier, as linear probes have

    def __post_init__(self):
        for name in ("verbs", "nouns", "verb_channels", "noun_channels"):
            if getattr(self, name) < 1:
                raise UserError(f"whole_frame: {name} must be at least 1, got {getattr(self, name)}")

    @property
    def windows(self) -> dict[str, float]:
        """It sees no objects."""
        return {}


@register_head("whole_frame")
class WholeFrame(nn.Module):
    """batch["verb"]["vector"] (B, Cv), batch["noun"]["vector"] (B, Cn) -> {"verb": (B, verbs), "noun": (B, nouns)}."""

    Config = WholeFrameConfig
    reads = {"verb": ("vector",), "noun": ("vector",)}
    loss = staticmethod(verb_noun_loss)

    def __init__(self, config: WholeFrameConfig):
        super().__init__()
        self.config = config
        self.verb = _classifier(config.verb_channels, config.verbs, config.normalise)
        self.noun = _classifier(config.noun_channels, config.nouns, config.normalise)

    @staticmethod
    def dims(shapes: dict) -> dict:
        """The widths of the two features from the stores' row shapes."""
        return {"verb_channels": shapes["verb"]["vector"][-1], "noun_channels": shapes["noun"]["vector"][-1]}

    def forward(self, batch: dict) -> dict:
        return {
            "verb": self.verb(batch["verb"]["vector"].float()),
            "noun": self.noun(batch["noun"]["vector"].float()),
        }


def _classifier(channels: int, classes: int, normalise: bool) -> nn.Module:
    """A linear probe. Features of different networks differ in scale and offset by orders of magnitude; with them
    normalised (He et al. 2022, Masked Autoencoders, appendix A.1) one learning rate serves all, and the baseline is
    as strong as a linear classifier can be."""
    linear = nn.Linear(channels, classes)
    return nn.Sequential(nn.BatchNorm1d(channels, affine=False), linear) if normalise else linear
