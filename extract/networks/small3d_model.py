"""The small 3D network in torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .clip_model import ClipBackbone, ClipModule, logits_map
from .spec import NetworkSpec

__all__ = ["Small3d", "SmallConv3d"]


class Unit(nn.Module):
    """Convolution without bias, padded symmetrically, batch norm, ReLU."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.conv = nn.Conv3d(channels, out, kernel, stride, tuple(n // 2 for n in kernel), bias=False)
        self.bn = nn.BatchNorm3d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.bn(self.conv(x)))


class Stem(nn.Module):
    """(B, 3, T, H, W) -> (B, 48, T, H/4, W/4): 16 channels of the frames, 32 of their differences to the next frame.

    The last frame has no next one: its differences are zeros.
    """

    def __init__(self, frames: int = 16, differences: int = 32) -> None:
        super().__init__()
        self.frames = Unit(3, frames, (1, 5, 5), (1, 4, 4))
        self.differences = Unit(3, differences, (1, 5, 5), (1, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((self.frames(x), self.differences(x.diff(dim=2, append=x[:, :, -1:]))), dim=1)


def layer(channels: int, out: int) -> nn.Sequential:
    """Halves time, height and width, then looks at the result once more."""
    return nn.Sequential(Unit(channels, out, (3, 3, 3), (2, 2, 2)), Unit(out, out, (3, 3, 3), (1, 1, 1)))


class SmallConv3d(ClipModule):
    """Stages: stem, layer1, layer2, pooled (B, 128, 1, 1, 1), logits."""

    def __init__(self, layer_name: str, classes: int) -> None:
        super().__init__()
        self.layer = layer_name
        self.stem = Stem()
        self.layer1 = layer(48, 64)
        self.layer2 = layer(64, 128)
        if layer_name == "logits":
            self.fc = nn.Linear(128, classes)

    def stages(self, x: Tensor):
        x = self.stem(x)
        yield "stem", x
        x = self.layer1(x)
        yield "layer1", x
        x = self.layer2(x)
        yield "layer2", x
        pooled = x.float().mean((2, 3, 4))
        yield "pooled", logits_map(pooled)
        yield "logits", logits_map(self.fc(pooled))


class Small3d(ClipBackbone):
    """The small 3D network on RGB clips."""

    stem, head = "stem.frames.conv.weight", "fc."

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, SmallConv3d(spec.layer, spec.options["classes"]))
