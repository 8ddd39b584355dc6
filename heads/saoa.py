"""SAOA: Symbiotic Attention with Object-centric feature Alignment (thesis chapter 3, eq. 3.1 to 3.14).

Two cached features of one clip, one of a network trained for verbs and one of a network trained for nouns, and the
objects a detector found in the seconds around it. Every object is first *aligned* with both features (globally for
nouns, at its own place on the map for verbs); each branch is then *gated* and *attended* by the other's global
feature. What survives is classified.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from errors import UserError
from heads import register_head
from heads.layers import l2_rescale, masked_mean_weights, masked_softmax, place_boxes, roi_align_max, verb_noun_loss

__all__ = ["SAOA", "SAOAConfig"]

CHOICES = {
    "gate": ("cross", "same", "none"),
    "attend": ("cross", "same", "mean"),
    "verb_alignment": ("local", "global", "none"),
    "noun_alignment": ("local", "global", "none"),
}


@dataclass(frozen=True)
class SAOAConfig:
    """Sizes and switches of SAOA; the defaults are the thesis's."""

    # sizes, from the dataset and the stores
    verbs: int  # verb classes
    nouns: int  # noun classes
    channels: int  # C of both clip features
    object_channels: int  # C1 of the object features

    # what it looks at
    noun_window_s: float = 6.0  # seconds of objects around the clip's centre, for nouns (12 frames at 2 a second)
    verb_window_s: float = 4.0  # the same for verbs (8 frames)
    boxes_per_frame: int = 5  # the first by score

    # how
    rescale: bool = True  # l2 rescaling before the alignment: on for I3D, off for R-50
    roi_size: int = 7  # RoIAlign's bins along each side
    reduction: int = 4  # the attention compares C / reduction wide projections

    # the rows of tables 3.1 to 3.3 and of SAP's table 2 (heads.ablations has them by name)
    gate: str = "cross"  # whose global feature gates a branch, eq. 3.4 / 3.7: cross | same | none
    attend: str = "cross"  # whose attends, eq. 3.9 / 3.11: cross | same | mean (nobody's: all objects count alike)
    verb_alignment: str = "local"  # objects go with the clip at their place, eq. 3.2 (local), with the mean over the
    noun_alignment: str = "global"  # whole clip, eq. 3.1 (global), or with nothing: detection features only (none)

    def __post_init__(self):
        for name in ("verbs", "nouns", "channels", "object_channels", "boxes_per_frame", "roi_size", "reduction"):
            if getattr(self, name) < 1:
                raise UserError(f"saoa: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("noun_window_s", "verb_window_s"):
            if not getattr(self, name) > 0:
                raise UserError(f"saoa: {name} must be more than 0 seconds, got {getattr(self, name)}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(f"saoa: {name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.channels % self.reduction:
            raise UserError(f"saoa: reduction={self.reduction} does not divide channels={self.channels}")

    @property
    def windows(self) -> dict[str, float]:
        """The two object lists, in seconds around the clip's centre."""
        return {"objects_noun": self.noun_window_s, "objects_verb": self.verb_window_s}


class Branch(nn.Module):
    """One branch, from object-centric features to logits. The other branch's global feature gates and attends."""

    def __init__(self, config: SAOAConfig, classes: int, alignment: str):
        super().__init__()
        c = config.channels
        self.gated_by, self.attended_by = config.gate, config.attend
        together = config.object_channels + (0 if alignment == "none" else c)
        self.align = nn.Linear(together, c)  # [W, W_o] and b of eq. 3.1 / 3.2
        self.gate = nn.Linear(c, c)  # W_g and b_g of eq. 3.4 / 3.7
        self.query = nn.Linear(c, c // config.reduction, bias=False)  # W_v^a of eq. 3.9, W_n^a of eq. 3.11
        self.key = nn.Linear(c, c // config.reduction, bias=False)  # W_cn^a of eq. 3.9, W_cv^a of eq. 3.11
        self.classify = nn.Linear(c, classes)
        # Taken away after all is drawn: runs of one seed that differ in a switch start from the same rest.
        if config.gate == "none":
            self.gate = None
        if config.attend == "mean":
            self.query = self.key = None

    def forward(self, clip, objects, mask, streams):
        """clip (B, 1 or N, C) or None, objects (B, N, C1), mask (B, N) bool; streams {"cross": (B, C), "same": (B, C)}:
        the global features of the other stream and of this one.

        Returns logits (B, classes) and attention (B, N).
        """
        gated = self._align(clip, objects)
        if self.gate is not None:
            gated = torch.sigmoid(self.gate(streams[self.gated_by]))[:, None] * gated  # eq. 3.4, 3.5 / 3.7, 3.8
        if self.query is None:
            attention = masked_mean_weights(mask)
        else:
            # Eq. 3.9 / 3.11, multiplied from the left: the query goes through both projections, the N objects through
            # none.
            query = self.query(streams[self.attended_by]) @ self.key.weight
            attention = masked_softmax((gated @ query[..., None]).squeeze(-1).float(), mask)
        attended = (attention.to(gated.dtype)[:, None] @ gated).squeeze(1)  # eq. 3.10 / 3.11
        return self.classify(attended), attention

    def _align(self, clip, objects):
        """Eq. 3.1 / 3.2. One Linear on the concatenation, in its two summands: what all objects of a clip share (the
        global feature) is multiplied once."""
        if clip is None:
            return F.relu(self.align(objects))
        w_clip, w_object = self.align.weight.split((clip.shape[-1], objects.shape[-1]), dim=1)
        return F.relu(F.linear(clip, w_clip, self.align.bias) + F.linear(objects, w_object))


@register_head("saoa")
class SAOA(nn.Module):
    """batch -> {"verb": (B, verbs), "noun": (B, nouns), "attention_verb": (B, Nv), "attention_noun": (B, Nn)}.

    batch["verb"]:         spatial (B, H, W, C), the verb map's mean over time; vector (B, C), its mean over all;
                           geometry (B, 4), where the frame lies on the map
    batch["noun"]:         vector (B, C); with noun_alignment="local" also spatial and geometry, as of the verb
    batch["objects_noun"]: roi (B, Nn, C1), mask (B, Nn) bool
    batch["objects_verb"]: roi (B, Nv, C1), boxes (B, Nv, 4) XYXY relative to the frame, mask (B, Nv) bool

    Masked objects have attention 0 and no influence. A clip without any object attends to nothing: f_a = 0, so its
    logits are the classifiers' biases, and nothing is NaN.

    Decided where the thesis is silent: without a global feature (alignment "none") objects are not rescaled, since
    there is nothing whose scale they should have.
    """

    Config = SAOAConfig
    reads = {"verb": ("spatial", "vector"), "noun": ("vector",), "objects": ("roi", "boxes")}
    pictures = ("attention",)
    loss = staticmethod(verb_noun_loss)

    def __init__(self, config: SAOAConfig):
        super().__init__()
        self.config = config
        self.verb = Branch(config, config.verbs, config.verb_alignment)
        self.noun = Branch(config, config.nouns, config.noun_alignment)
        maps = {"local": ("spatial", "vector")}
        self.reads = {
            "verb": maps.get(config.verb_alignment, ("vector",)),
            "noun": maps.get(config.noun_alignment, ("vector",)),
            "objects": ("roi", "boxes"),
        }

    @staticmethod
    def dims(shapes: dict) -> dict:
        """C and C1 from the stores' row shapes. Raises UserError when the two clip features differ in width."""
        verb, noun = shapes["verb"]["vector"][-1], shapes["noun"]["vector"][-1]
        if verb != noun:
            raise UserError(
                f"saoa: the verb feature has {verb} channels and the noun feature {noun}; eq. 3.4 needs equal ones"
            )
        return {"channels": verb, "object_channels": shapes["objects"]["roi"][-1]}

    def forward(self, batch: dict) -> dict:
        # f_g^v of eq. 3.3, f_g^n of eq. 3.6
        pooled = {name: batch[name]["vector"].float() for name in ("verb", "noun")}
        noun_logits, attention_noun = self.noun(
            *self._candidates("noun", batch, pooled), {"cross": pooled["verb"], "same": pooled["noun"]}
        )
        verb_logits, attention_verb = self.verb(
            *self._candidates("verb", batch, pooled), {"cross": pooled["noun"], "same": pooled["verb"]}
        )
        return {
            "verb": verb_logits,
            "noun": noun_logits,
            "attention_verb": attention_verb,
            "attention_noun": attention_noun,
        }

    def _candidates(self, name: str, batch: dict, pooled: dict):
        """A branch's own feature (B, 1 or N, C) or None, its objects (B, N, C1) and their mask (B, N)."""
        listed = batch[f"objects_{name}"]
        mask = listed["mask"]
        objects = torch.where(mask[..., None], listed["roi"].float(), 0.0)
        alignment = getattr(self.config, f"{name}_alignment")
        if alignment == "none":
            return None, objects, mask
        if alignment == "global":
            clip = pooled[name][:, None]
        else:
            # f_i = RoIAlign(f, l_i) of eq. 3.2: what the clip shows at the place of each object.
            boxes = torch.where(mask[..., None], listed["boxes"].float(), 0.0)
            on_map = place_boxes(boxes, batch[name]["geometry"].float())
            clip = roi_align_max(batch[name]["spatial"], on_map, self.config.roi_size)
        if self.config.rescale:
            clip, objects = l2_rescale(clip, objects)
        return clip, objects, mask
