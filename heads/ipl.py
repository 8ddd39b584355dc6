"""IPL: Interactive Prototype Learning (thesis chapter 4, eq. 4.1 to 4.5), active objects without a detector.

One feature map of one clip. The weights of its cosine classifier of verbs are *verb prototypes*, and they serve the
nouns too: every position of the map is softly *assigned* to them (or to a background that is thrown away), what is
assigned to one prototype is *grouped*, and the groups of the K best-scored verbs are *selected* to name the noun.

The thesis trains IPL together with its network; gradients flow into the map when it asks for them. On cached maps the
same head is the cheaper `frozen` method.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from errors import UserError
from heads import register_head
from heads.layers import cosine_logits, verb_noun_loss, vlad

__all__ = ["IPL", "IPLConfig", "assign"]


@dataclass(frozen=True)
class IPLConfig:
    """Sizes and switches of IPL; the defaults are the thesis's."""

    # sizes, from the dataset and the store
    verbs: int  # verb classes (M of the thesis)
    nouns: int  # noun classes (N)
    channels: int  # C of the map

    # how; the rows of tables 4.5 to 4.7
    top_k: int = 5  # K: groups that name the noun, those of the best-scored verbs (table 4.7)
    background: bool = True  # a background prototype takes part in the assignment (table 4.6)
    independent: bool = False  # centres of the assignment's own, and all groups name the noun (table 4.5, "Indep.")

    # cosine classifiers
    scale: float = 10.0  # 1 / tau of eq. 4.2 before training; one for verbs and one for nouns, both are learned

    def __post_init__(self):
        for name in ("verbs", "nouns", "channels", "top_k"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UserError(f"ipl: {name} must be a whole number from 1 on, got {value!r}")
        for name in ("background", "independent"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(f"ipl: {name} must be true or false, got {getattr(self, name)!r}")
        if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)) or not 0 < self.scale < math.inf:
            raise UserError(f"ipl: scale must be a number above 0, got {self.scale!r}")
        if self.top_k > self.verbs and not self.independent:
            raise UserError(
                f"ipl: top_k={self.top_k} groups cannot be selected, because there is one a verb and only {self.verbs}"
                f" verbs; set top_k to {self.verbs} or fewer"
            )

    @property
    def groups(self) -> int:
        """How many groups name the noun: `top_k`, or all of them with independent centres (top_k is unused then)."""
        return self.verbs if self.independent else self.top_k

    @property
    def windows(self) -> dict[str, float]:
        """It sees no objects."""
        return {}


def assign(features: torch.Tensor, centres: torch.Tensor, background: torch.Tensor | None = None) -> torch.Tensor:
    """Soft assignment by raw dot products, eq. 4.3: A, without the background's column.

    features (B, L, C), centres (M, C), background (1, C) or None. Returns (B, L, M), each row summing to one less what
    the background took.
    """
    everything = centres if background is None else torch.cat((centres, background))
    return (features @ everything.T).softmax(dim=-1)[..., : len(centres)]


@register_head("ipl")
class IPL(nn.Module):
    """batch -> {"verb": (B, verbs), "noun": (B, nouns), "assignment": (B, T, H, W, verbs), "selected": (B, T, H, W)}.

    batch["verb"]: map (B, T, H, W, C), of any T, H and W, in any floating dtype; other arrays are not looked at.

    Everything is float32, under autocast too: exponentials of raw dot products and sums over all positions have no
    room for bfloat16, and the head is a small part of an end-to-end step. `assignment` is A of eq. 4.3 and `selected`
    what figure 4.3 shows, its sum over the selected groups; both are detached, for pictures. With independent centres
    the last axis of `assignment` counts these.

    Decided where the thesis is silent:

    - Prototypes, background, centres and noun classifier start from N(0, 2 / C), as the cosine classifier that the
      thesis cites does (Gidaris and Komodakis 2018).
    - p_i of eq. 4.5 is the prototype as it is: what the text calls its normalisation is the factor sum_k a_ki.
    - The convolution of f_w has no bias, since the batch norm behind it would take it away.
    - There are as many independent centres as verbs, each is taken off its own group as in eq. 4.5, the `background`
      switch applies to them, and the groups stay in the order of the centres.
    """

    Config = IPLConfig
    reads = {"verb": ("map",)}
    pictures = ("assignment",)
    averages = True  # the scores of evenly spaced test clips, where the store has them (section 4.3.2)
    loss = staticmethod(verb_noun_loss)

    def __init__(self, config: IPLConfig):
        super().__init__()
        self.config = config
        # What a switch can take away is drawn last: runs of one seed that differ in a switch start from the same rest.
        self.prototypes = _vectors(config.verbs, config.channels)  # P of eq. 4.2 and 4.3
        self.noun_weights = _vectors(config.nouns, config.channels)
        self.verb_scale = nn.Parameter(torch.tensor(float(config.scale)))
        self.noun_scale = nn.Parameter(torch.tensor(float(config.scale)))
        self.background = _vectors(1, config.channels) if config.background else None  # b of eq. 4.3
        self.centres = _vectors(config.verbs, config.channels) if config.independent else None
        # f_w: one weight a group, shared by all channels, and a batch norm over clips and channels.
        self.reduce = nn.Sequential(nn.Conv1d(config.groups, 1, 1, bias=False), nn.BatchNorm1d(1), nn.ReLU())

    @staticmethod
    def dims(shapes: dict) -> dict:
        """C from the store's row shape."""
        return {"channels": shapes["verb"]["map"][-1]}

    def forward(self, batch: dict) -> dict:
        maps = batch["verb"]["map"]
        with torch.autocast(maps.device.type, enabled=False):
            z = maps.to(self.prototypes.dtype).flatten(1, -2)  # Z, (B, L, C)
            verb = cosine_logits(z.mean(dim=1), self.prototypes, self.verb_scale)  # eq. 4.1, 4.2
            centres = self.prototypes if self.centres is None else self.centres
            assignment = assign(z, centres, self.background)
            chosen, centres = (assignment, centres) if self.config.independent else self._select(verb, assignment)
            # Groups are independent of one another, so only the selected ones are formed.
            groups = F.normalize(vlad(z, chosen, centres), dim=-1)  # eq. 4.4, 4.5: n', (B, K, C)
            noun = cosine_logits(self.reduce(groups).squeeze(1), self.noun_weights, self.noun_scale)
        return {
            "verb": verb,
            "noun": noun,
            "assignment": assignment.detach().unflatten(1, maps.shape[1:-1]),
            "selected": chosen.detach().sum(dim=-1).unflatten(1, maps.shape[1:-1]),
        }

    def _select(self, verb: torch.Tensor, assignment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Columns of the assignment (B, L, K) and prototypes (B, K, C) of the K best verbs, the best first."""
        best = verb.detach().topk(self.config.top_k, dim=-1).indices
        columns = best[:, None].expand(-1, assignment.shape[1], -1)
        return assignment.gather(-1, columns), self.prototypes[best]


def _vectors(n: int, channels: int) -> nn.Parameter:
    """(n, channels) of N(0, 2 / channels): length about the square root of 2, whatever the width."""
    return nn.Parameter(torch.randn(n, channels) * math.sqrt(2 / channels))
