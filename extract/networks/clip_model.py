"""What clip backbones share in torch: a folded copy for inference, and checkpoints with another classifier or none."""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from errors import UserError

from .base import Network
from .layers import conv3d, fold_batch_norm

__all__ = ["ClipBackbone", "ClipModule", "FoldedConv3d", "folded_copy", "logits_map"]


class FoldedConv3d(nn.Module):
    """A convolution with the batch norm after it folded in; casts its input to the dtype of its weights."""

    def __init__(self, conv: nn.Conv3d, norm: nn.BatchNorm3d, dtype: torch.dtype) -> None:
        super().__init__()
        self.folded = fold_batch_norm(conv, norm, dtype)
        self.stride, self.padding = conv.stride, conv.padding

    def forward(self, x: Tensor) -> Tensor:
        return conv3d(x.to(self.folded[0].dtype), *self.folded, self.stride, self.padding)


def folded_copy(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy for inference in which every convolution takes in the batch norm registered right after it.

    A Sequential that ends in a convolution counts as that convolution (torchvision's Conv2Plus1D).
    """
    made = copy.deepcopy(module)
    with torch.no_grad():
        for part in list(made.modules()):
            for (name, _), (norm_name, norm) in pairwise(list(part.named_children())):
                owner, last = _last_of(part, name)
                conv = owner._modules[last]
                if isinstance(conv, nn.Conv3d) and isinstance(norm, nn.BatchNorm3d):
                    owner._modules[last] = FoldedConv3d(conv, norm, dtype)
                    part._modules[norm_name] = nn.Identity()
    return made


def _last_of(owner: nn.Module, name: str) -> tuple[nn.Module, str]:
    """Where a child ends: (its owner, its name), through nested Sequentials."""
    while isinstance(owner._modules[name], nn.Sequential) and len(owner._modules[name]):
        owner = owner._modules[name]
        name = next(reversed(owner._modules))
    return owner, name


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
        name, own = self.spec.name, self.spec.channels
        first = state.get(self.stem)
        if first is not None and first.dim() == 5 and first.shape[1] != own:
            kinds = {2: "a flow", 3: "an RGB"}
            is_a = kinds.get(first.shape[1], f"a {first.shape[1]}-channel")
            raise UserError(
                f"this is {is_a} checkpoint (its first convolution reads {first.shape[1]} channels); {name} reads {own}"
            )
        if self.spec.layer != "logits":
            return {key: value for key, value in state.items() if not key.startswith(self.head)}
        bias = state.get(f"{self.head}bias")
        if bias is not None and len(bias) != self.spec.options["classes"]:
            raise UserError(
                f"the checkpoint has {len(bias)} classes, {name} was asked for {self.spec.options['classes']}: "
                f"pass classes={len(bias)}"
            )
        return state
