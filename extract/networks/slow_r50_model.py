"""Slow R50 in torch, with the key names of PyTorchVideo's checkpoints."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from .clip_model import ClipBackbone, ClipModule, logits_map
from .spec import NetworkSpec

__all__ = ["SlowR50", "SlowResNet50"]

_STAGES = ((3, 1), (4, 1), (6, 3), (3, 3))  # (blocks, temporal kernel of their first convolution)


class Stem(nn.Module):
    """1x7x7 convolution of spatial stride 2, then 1x3x3 max-pooling of stride 2."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.conv = nn.Conv3d(3, channels, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False)
        self.norm = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(F.relu_(self.norm(self.conv(x))), (1, 3, 3), (1, 2, 2), (0, 1, 1))


class Block(nn.Module):
    """Kx1x1, 1x3x3 and 1x1x1 convolutions (branch2) around a shortcut (branch1)."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.branch1_conv = None
        if channels != out:
            self.branch1_conv = nn.Conv3d(channels, out, 1, (1, stride, stride), bias=False)
            self.branch1_norm = nn.BatchNorm3d(out)
        parts = {
            "conv_a": nn.Conv3d(channels, width, (kernel, 1, 1), 1, (kernel // 2, 0, 0), bias=False),
            "norm_a": nn.BatchNorm3d(width),
            "act_a": nn.ReLU(inplace=True),
            "conv_b": nn.Conv3d(width, width, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False),
            "norm_b": nn.BatchNorm3d(width),
            "act_b": nn.ReLU(inplace=True),
            "conv_c": nn.Conv3d(width, out, 1, bias=False),
            "norm_c": nn.BatchNorm3d(out),
        }
        self.branch2 = nn.Sequential(OrderedDict(parts))

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch2(x)
        y += x if self.branch1_conv is None else self.branch1_norm(self.branch1_conv(x))
        return F.relu_(y)


class Stage(nn.Module):
    def __init__(self, channels: int, width: int, blocks: int, kernel: int, stride: int) -> None:
        super().__init__()
        made = [Block(channels, width, kernel, stride)]
        made += [Block(4 * width, width, kernel, 1) for _ in range(blocks - 1)]
        self.res_blocks = nn.Sequential(*made)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_blocks(x)


class Head(nn.Module):
    """Mean over all 8 x 7 x 7 windows, then one linear layer (the projection of the mean is the mean projection)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.proj = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(F.avg_pool3d(x.float(), (8, 7, 7), stride=1).mean((2, 3, 4)))


class SlowResNet50(ClipModule):
    """Stages: blocks.0 (the stem) to blocks.4, logits."""

    def __init__(self, layer: str, classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.blocks = nn.ModuleList([Stem()])
        channels = 64
        for stage, (blocks, kernel) in enumerate(_STAGES):
            width = 64 << stage
            self.blocks.append(Stage(channels, width, blocks, kernel, 2 if stage else 1))
            channels = 4 * width
        if layer == "logits":
            self.blocks.append(Head(channels, classes))

    def stages(self, x: Tensor):
        for i, block in enumerate(self.blocks[: 1 + len(_STAGES)]):
            x = block(x)
            yield f"blocks.{i}", x
        yield "logits", logits_map(self.blocks[-1](x))


class SlowR50(ClipBackbone):
    """Slow R50 on RGB clips."""

    stem, head = "blocks.0.conv.weight", "blocks.5.proj."

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, SlowResNet50(spec.layer, spec.options["classes"]))
