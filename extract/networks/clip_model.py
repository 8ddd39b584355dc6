"""What clip backbones share in torch: stages, folding, and checkpoints with another classifier or none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .base import Network
from .layers import folded_copy

__all__ = ["ClipBackbone", "ClipModule", "logits_map"]


def logits_map(logits: Tensor) -> Tensor:
    """(B, classes) as a map of one cell (B, classes, 1, 1, 1), so that a classifier is pooled like any layer."""
    return logits[:, :, None, None, None]


class ClipModule(nn.Module):
    """(B, C, T, H, W) -> the map of `layer` (B, C', T', H', W'); the layer "logits" -> (B, classes, 1, 1, 1).

    A subclass computes its stages in `stages`; only with the layer "logits" does it own a classifier.
    """

    layer = ""
    _fast: tuple[nn.Module, ...] = ()  # in a tuple: torch would register a bare module as a part of this one

    def fuse(self, dtype: torch.dtype) -> None:
        """Prepare folded weights of this dtype; used unless in training mode."""
        self._fast = ()
        self._fast = (folded_copy(self, dtype),)

    def forward(self, x: Tensor) -> Tensor:
        return self.endpoints(x, (self.layer,))[self.layer]

    def endpoints(self, x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Maps of the named stages; nothing is computed after the last one."""
        active = self if self.training or not self._fast else self._fast[0]
        wanted, found = set(names), {}
        for name, value in active.stages(x):
            if name in wanted:
                found[name] = value
                if len(found) == len(wanted):
                    break
        return found

    def stages(self, x: Tensor):
        """Yield (name, map) of one stage after the other, "logits" last; no stage may change an earlier one's map."""
        raise TypeError(f"{type(self).__name__} must define stages")


class ClipBackbone(Network):
    """A clip backbone whose checkpoints may carry any classifier, or none, unless the classifier is asked for."""

    stem = ""  # key of the first convolution
    head = ""  # prefix of the classifier's keys; its bias is `head` + "bias"

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        self.check_channels(state.get(self.stem))
        if self.spec.layer != "logits":
            return {key: value for key, value in state.items() if not key.startswith(self.head)}
        self.check_classes(state.get(f"{self.head}bias"), self.spec.options["classes"])
        return state
