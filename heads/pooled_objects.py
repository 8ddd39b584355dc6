"""Pooled objects: what the detector's features say without attention, alone or beside the clip's (thesis table 3.2)."""

from dataclasses import dataclass

import torch
from torch import nn

from errors import UserError
from heads import register_head
from heads.layers import linear_probe, masked_max, masked_mean_weights, verb_noun_loss

__all__ = ["PooledObjects", "PooledObjectsConfig"]

POOLS = ("max", "mean")


@dataclass(frozen=True)
class PooledObjectsConfig:
    """Sizes and switches of the baseline."""

    # sizes, from the dataset and the stores
    verbs: int  # verb classes
    nouns: int  # noun classes
    verb_channels: int  # width of the verb feature
    noun_channels: int  # width of the noun feature
    object_channels: int  # width of the object features

    # what it looks at, as SAOA
    noun_window_s: float = 6.0  # seconds of objects around the clip's centre, for nouns
    verb_window_s: float = 4.0  # the same for verbs
    boxes_per_frame: int = 5  # the first by score

    # how
    pool: str = "max"  # over all objects of a list: max | mean
    clip: bool = False  # the stream's clip feature beside the pooled objects: "Noun + Det Feat"
    normalise: bool = True  # a batch norm without scale and shift before each classifier, as linear probes have

    def __post_init__(self):
        sizes = ("verbs", "nouns", "verb_channels", "noun_channels", "object_channels", "boxes_per_frame")
        for name in sizes:
            if getattr(self, name) < 1:
                raise UserError(f"pooled_objects: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("noun_window_s", "verb_window_s"):
            if not getattr(self, name) > 0:
                raise UserError(f"pooled_objects: {name} must be more than 0 seconds, got {getattr(self, name)}")
        if self.pool not in POOLS:
            raise UserError(f"pooled_objects: pool must be one of {', '.join(POOLS)}, got {self.pool!r}")

    @property
    def windows(self) -> dict[str, float]:
        """The two object lists, in seconds around the clip's centre."""
        return {"objects_noun": self.noun_window_s, "objects_verb": self.verb_window_s}


@register_head("pooled_objects")
class PooledObjects(nn.Module):
    """batch -> {"verb": (B, verbs), "noun": (B, nouns)}.

    batch["objects_noun"], batch["objects_verb"]: roi (B, N, C1), mask (B, N) bool; with clip=True also
    batch["verb"], batch["noun"]: vector (B, C). Masked objects count for nothing; a clip without any object has the
    pooled feature 0.
    """

    Config = PooledObjectsConfig
    reads = {"verb": ("vector",), "noun": ("vector",), "objects": ("roi", "boxes")}
    loss = staticmethod(verb_noun_loss)

    def __init__(self, config: PooledObjectsConfig):
        super().__init__()
        self.config = config
        verb, noun = (config.verb_channels, config.noun_channels) if config.clip else (0, 0)
        self.verb = linear_probe(verb + config.object_channels, config.verbs, config.normalise)
        self.noun = linear_probe(noun + config.object_channels, config.nouns, config.normalise)

    @staticmethod
    def dims(shapes: dict) -> dict:
        """The widths of all features from the stores' row shapes."""
        return {
            "verb_channels": shapes["verb"]["vector"][-1],
            "noun_channels": shapes["noun"]["vector"][-1],
            "object_channels": shapes["objects"]["roi"][-1],
        }

    def forward(self, batch: dict) -> dict:
        return {name: getattr(self, name)(self._feature(name, batch)) for name in ("verb", "noun")}

    def _feature(self, name: str, batch: dict) -> torch.Tensor:
        listed = batch[f"objects_{name}"]
        mask = listed["mask"]
        objects = torch.where(mask[..., None], listed["roi"].float(), 0.0)
        if self.config.pool == "max":
            pooled = masked_max(objects, mask)
        else:
            pooled = (masked_mean_weights(mask)[:, None] @ objects).squeeze(1)
        return torch.cat((batch[name]["vector"].float(), pooled), dim=-1) if self.config.clip else pooled
