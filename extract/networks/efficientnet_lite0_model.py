"""EfficientNet-Lite0 in torch: inverted bottlenecks without squeeze-and-excitation, ReLU6, SAME padding."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network
from .layers import fold_batch_norm, fuse_all, pad_same
from .roi import RoiNetwork
from .spec import NetworkSpec

__all__ = ["EfficientNetLite0", "FrameNetwork", "frame_network", "roi_network"]

# (expansion, kernel, stride, channels, repeats)
_STAGES = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)
_CUT = {"stride8": 4, "stride16": 10, "stride16_wide": 10, "stride32": 15, "head": 15}  # last block that is run


class ConvNorm(nn.Module):
    """Convolution with SAME padding, batch norm (eps 1e-3), optional ReLU6."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1, act: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, kernel, stride, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3, momentum=0.01)
        self.act = act
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self, dtype: torch.dtype) -> None:
        self.folded = fold_batch_norm(self.conv, self.bn, dtype)

    def forward(self, x: Tensor) -> Tensor:
        stride, groups = self.conv.stride, self.conv.groups
        x, padding = pad_same(x, self.conv.kernel_size, stride)
        if self.training or self.folded is None:
            x = self.bn(F.conv2d(x, self.conv.weight, None, stride, padding, 1, groups))
        else:
            x = F.conv2d(x, *self.folded, stride, padding, 1, groups)
        return F.relu6(x) if self.act else x


class Block(nn.Module):
    """Expand, depthwise, project; with the input added where shapes agree."""

    def __init__(self, channels: int, out: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        self.expand = ConvNorm(channels, wide) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, out, act=False)
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Normalised (B, 3, H, W) -> the map of `layer` (B, C, ceil(H/stride), ceil(W/stride))."""

    def __init__(self, layer: str = "head", classes: int = 1000) -> None:
        super().__init__()
        self.layer = layer
        self.stem = ConvNorm(3, 32, 3, 2)
        blocks, channels = [], 32
        for expansion, kernel, stride, out, repeats in _STAGES:
            for repeat in range(repeats):
                blocks.append(Block(channels, out, expansion, kernel, stride if repeat == 0 else 1))
                channels = out
        self.blocks = nn.ModuleList(blocks)
        self.head = ConvNorm(320, 1280)
        self.fc = nn.Linear(1280, classes)

    def fuse(self, dtype: torch.dtype) -> None:
        fuse_all(self, dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks[: _CUT[self.layer] + 1]:
            x = block(x)
        if self.layer == "stride16_wide":
            return self.blocks[11].expand(x)
        return self.head(x) if self.layer == "head" else x

    def classify(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> ImageNet logits (B, classes); only with layer "head"."""
        return self.fc(self(x).float().mean((2, 3)))


def _own_key(key: str) -> str:
    """Keys of the packaged file (`_blocks.3._bn0.weight`) to this module's (`blocks.3.expand.bn.weight`)."""
    if key.startswith("_blocks."):
        parts = {"_expand_conv": "expand.conv", "_bn0": "expand.bn", "_depthwise_conv": "depthwise.conv",
                 "_bn1": "depthwise.bn", "_project_conv": "project.conv", "_bn2": "project.bn"}  # fmt: skip
    else:
        parts = {
            "_conv_stem": "stem.conv",
            "_bn0": "stem.bn",
            "_conv_head": "head.conv",
            "_bn1": "head.bn",
            "_fc": "fc",
        }
    key = re.sub(r"(?<![a-z])_[a-z]+(_[a-z]+)?[0-9]?(?=\.)", lambda m: parts.get(m[0], m[0]), key)
    return key.removeprefix("_")


class FrameNetwork(Network):
    """The whole frame: `spatial`, `vector` and, where asked for, `logits`."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, EfficientNetLite0(spec.layer, spec.options.get("classes", 1000)))

    def _pool(self, feature_map: Tensor) -> dict[str, Tensor]:
        values = super()._pool(feature_map)
        if "logits" in self._keep:
            values["logits"] = self.module.fc(feature_map.flatten(1, -2).mean(1)).float()
        return values

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if "logits" in self.spec.outputs:
            self.check_classes(state.get("fc.bias"), self.spec.options["classes"])
        return state

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {_own_key(key): value for key, value in state.items()}


class GivenBoxes(RoiNetwork):
    """Given boxes on the frame's map."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, EfficientNetLite0(spec.layer))

    convert_state = FrameNetwork.convert_state


def frame_network(spec: NetworkSpec) -> Network:
    return FrameNetwork(spec)


def roi_network(spec: NetworkSpec) -> Network:
    return GivenBoxes(spec)
