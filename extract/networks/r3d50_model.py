"""3D ResNet-50 in torch, with the key names of Hara's published checkpoints."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .clip_model import ClipBackbone, ClipModule, logits_map
from .spec import NetworkSpec

__all__ = ["R3D50", "ResNet3d50"]

_BLOCKS = (3, 4, 6, 3)


class Bottleneck(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolutions (64, 64 and 256 wide in the first stage) around a shortcut."""

    def __init__(self, channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out = 4 * width
        self.conv1 = nn.Conv3d(channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, out, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(out)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv3d(channels, out, 1, stride, bias=False), nn.BatchNorm3d(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.bn1(self.conv1(x)))
        y = F.relu_(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu_(y)


class ResNet3d50(ClipModule):
    """Stages: stem, stem_pool, layer1 ... layer4, pooled (B, 2048, 1, 1, 1), logits."""

    def __init__(self, in_channels: int, layer: str, classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.conv1 = nn.Conv3d(in_channels, 64, 7, (1, 2, 2), 3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        channels = 64
        for stage, blocks in enumerate(_BLOCKS):
            width = 64 << stage
            made = [Bottleneck(channels, width, 2 if stage else 1)]
            channels = 4 * width
            made += [Bottleneck(channels, width) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*made))
        if layer == "logits":
            self.fc = nn.Linear(channels, classes)

    def stages(self, x: Tensor):
        x = F.relu_(self.bn1(self.conv1(x)))
        yield "stem", x
        x = F.max_pool3d(x, 3, 2, 1)
        yield "stem_pool", x
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, name)(x)
            yield name, x
        pooled = x.float().mean((2, 3, 4))
        yield "pooled", logits_map(pooled)
        yield "logits", logits_map(self.fc(pooled))


class R3D50(ClipBackbone):
    """3D ResNet-50, RGB or flow by the spec's channels."""

    stem, head = "conv1.weight", "fc."

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, ResNet3d50(spec.channels, spec.layer, spec.options["classes"]))
        self._inflated = False

    def load_weights(self, weights: str | None) -> None:
        self._inflated = False
        super().load_weights(weights)
        if self._inflated:
            self.weights_origin += " (conv1 inflated: its mean over R, G, B for u and for v)"

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        first = state.get(self.stem)
        if self.spec.reads == "flow" and first is not None and first.dim() == 5 and first.shape[1] == 3:
            state = state | {self.stem: first.mean(1, keepdim=True).expand(-1, 2, -1, -1, -1)}
            self._inflated = True
        return super().adapt_to(state)
