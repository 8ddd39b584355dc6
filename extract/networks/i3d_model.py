"""I3D in torch, with the key names of the published piergiaj checkpoints."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network
from .layers import conv3d, fold_batch_norm, fuse_all, pad_same, same_max_pool
from .spec import NetworkSpec

__all__ = ["I3D", "InceptionI3d"]

# name: (1x1 branch, 3x3x3 branch: reduce and out, second 3x3x3 branch: reduce and out, pool branch)
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Stages in the order of the forward pass; pools: (kernel, stride).
_STAGES: tuple[tuple[str, tuple | None], ...] = (
    ("Conv3d_1a_7x7", None),
    ("MaxPool3d_2a_3x3", ((1, 3, 3), (1, 2, 2))),
    ("Conv3d_2b_1x1", None),
    ("Conv3d_2c_3x3", None),
    ("MaxPool3d_3a_3x3", ((1, 3, 3), (1, 2, 2))),
    ("Mixed_3b", None),
    ("Mixed_3c", None),
    ("MaxPool3d_4a_3x3", ((3, 3, 3), (2, 2, 2))),
    ("Mixed_4b", None),
    ("Mixed_4c", None),
    ("Mixed_4d", None),
    ("Mixed_4e", None),
    ("Mixed_4f", None),
    ("MaxPool3d_5a_2x2", ((2, 2, 2), (2, 2, 2))),
    ("Mixed_5b", None),
    ("Mixed_5c", None),
)


class Unit3D(nn.Module):
    """Convolution with SAME padding, batch norm (eps 1e-3), ReLU; at inference one convolution with folded weights."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(channels, out, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(out, eps=1e-3, momentum=0.01)
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self, dtype: torch.dtype) -> None:
        self.folded = fold_batch_norm(self.conv3d, self.bn, dtype)

    def forward(self, x: Tensor) -> Tensor:
        stride = self.conv3d.stride
        x, padding = pad_same(x, self.conv3d.kernel_size, stride)
        if self.training or self.folded is None:
            return F.relu(self.bn(F.conv3d(x, self.conv3d.weight, None, stride, padding)))
        return conv3d(x.to(self.folded[0].dtype), *self.folded, stride, padding).relu_()


class Mixed(nn.Module):
    """Inception block: four branches, concatenated."""

    def __init__(self, channels: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int) -> None:
        super().__init__()
        self.b0 = Unit3D(channels, b0)
        self.b1a = Unit3D(channels, b1a)
        self.b1b = Unit3D(b1a, b1b, 3)
        self.b2a = Unit3D(channels, b2a)
        self.b2b = Unit3D(b2a, b2b, 3)
        self.b3b = Unit3D(channels, b3b)
        self.channels = b0 + b1b + b2b + b3b

    def forward(self, x: Tensor) -> Tensor:
        pooled = same_max_pool(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class Logits(nn.Module):
    """1x1x1 convolution with bias, under the published key `logits.conv3d`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(1024, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class InceptionI3d(nn.Module):
    """(B, C, T, H, W) -> the map of `layer` (B, C', T', H', W'); "logits" -> (B, classes, T'-1, H'-6, W'-6)."""

    def __init__(self, in_channels: int = 3, classes: int = 400, layer: str = "Mixed_5c") -> None:
        super().__init__()
        self.layer = layer
        self.Conv3d_1a_7x7 = Unit3D(in_channels, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit3D(64, 64)
        self.Conv3d_2c_3x3 = Unit3D(64, 192, 3)
        channels = 192
        for name, widths in _MIXED.items():
            block = Mixed(channels, *widths)
            self.add_module(name, block)
            channels = block.channels
        self.logits = Logits(classes)

    def fuse(self, dtype: torch.dtype) -> None:
        """Fold batch norms into convolutions of this dtype; used by `forward` unless in training mode."""
        fuse_all(self, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.endpoints(x, (self.layer,))[self.layer]

    def endpoints(self, x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        """Maps of the named stages ("avg_pool" and "logits" come last); nothing is computed after the last one."""
        wanted, found = set(names), {}
        for name, pool in _STAGES:
            x = getattr(self, name)(x) if pool is None else same_max_pool(x, *pool)
            if name in wanted:
                found[name] = x
                if len(found) == len(wanted):
                    return found
        pooled = F.avg_pool3d(x, (2, 7, 7), stride=1)
        if "avg_pool" in wanted:
            found["avg_pool"] = pooled
        if "logits" in wanted:
            found["logits"] = self.logits(pooled)
        return found


class I3D(Network):
    """I3D RGB or flow, by the spec's channels."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, InceptionI3d(spec.channels, spec.options["classes"], spec.layer))

    def replace_logits(self, classes: int) -> None:
        """A fresh last layer with another number of classes; every other weight stays."""
        self.module.logits = Logits(classes).eval().requires_grad_(False)

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """hassony2's names (`mixed_3b.branch_1.0.batch3d.weight`) to piergiaj's (`Mixed_3b.b1a.bn.weight`)."""
        if not any(".batch3d." in key for key in state):
            return state
        return {_from_hassony2(key): value for key, value in state.items()}

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        self.check_channels(state.get("Conv3d_1a_7x7.conv3d.weight"))
        bias = state.get("logits.conv3d.bias")
        if self.spec.layer == "logits":
            self.check_classes(bias, self.spec.options["classes"])
        elif bias is None:
            # a backbone-only checkpoint: the last layer is not reached
            return state | {f"logits.{k}": v for k, v in self.module.logits.state_dict().items()}
        elif len(bias) != self.module.logits.conv3d.out_channels:
            self.replace_logits(len(bias))
        return state


_BRANCH = {"0": "b0", "1.0": "b1a", "1.1": "b1b", "2.0": "b2a", "2.1": "b2b", "3.1": "b3b"}


def _from_hassony2(key: str) -> str:
    key = re.sub(r"\.branch_(0|[123]\.[01])\.", lambda m: f".{_BRANCH.get(m[1], m[0])}.", key)
    key = key.replace(".batch3d.", ".bn.").replace("conv3d_0c_1x1.", "logits.", 1)
    return re.sub(r"^(conv3d|mixed)_", lambda m: m[0].capitalize(), key)
