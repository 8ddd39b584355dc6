"""torchvision's frame networks cut at a layer, with torchvision's key names."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.shufflenetv2 import InvertedResidual

from .base import Network
from .layers import folded_copy
from .roi import RoiNetwork
from .spec import NetworkSpec
from .torchvision_frames import FAMILIES, NETWORKS

__all__ = ["FrameBoxes", "FrameModule", "Frames"]

# Stages in the order of the forward pass: layer that ends with them: names of torchvision's modules.
STAGES = {
    "resnet": {
        "layer1": ("conv1", "bn1", "relu", "maxpool", "layer1"),
        "layer2": ("layer2",),
        "layer3": ("layer3",),
        "layer4": ("layer4",),
    },
    "shufflenet": {
        "stage2": ("conv1", "maxpool", "stage2"),
        "stage3": ("stage3",),
        "stage4": ("stage4",),
        "conv5": ("conv5",),
    },
    "densenet": {
        "denseblock2": ("conv0", "norm0", "relu0", "pool0", "denseblock1", "transition1", "denseblock2"),
        "denseblock3": ("transition2", "denseblock3"),
        "norm5": ("transition3", "denseblock4", "norm5"),
    },
}


class FrameModule(nn.Module):
    """(B, 3, H, W) -> the map of `layer`; `classify` goes on from there. Stages after the layer are not built.

    `parts` are named as in torchvision; DenseNet's lie under `features`.
    """

    def __init__(self, model: str, layer: str, classes: int = 0) -> None:
        super().__init__()
        made = get_model(model, weights=None, num_classes=classes or 1)
        family = FAMILIES[model]
        self.last_norm = layer == "norm5"  # DenseNet's final ReLU is no module
        self.prefix = "features." if hasattr(made, "features") else ""
        inner = getattr(made, "features", made)
        stages = STAGES[model.partition("_")[0].rstrip("0123456789")]
        names = list(stages)
        self.order = [part for name in names[: names.index(layer) + 1] for part in stages[name]]
        self.unused = [part for name in names[names.index(layer) + 1 :] for part in stages[name]]
        owner = nn.Module() if self.prefix else self
        for part in self.order:
            owner.add_module(part, getattr(inner, part))
        if self.prefix:
            self.features = owner
        self.head = family.head.removesuffix(".")
        if classes:
            self.add_module(self.head, getattr(made, self.head))
        self._fast: tuple[FrameModule, ...] = ()  # in a tuple: a bare module would be registered as a part

    def fuse(self, dtype: torch.dtype) -> None:
        """Prepare folded weights of this dtype; used unless in training mode."""
        self._fast = ()
        fast = folded_copy(self, dtype)
        for part in list(fast.modules()):
            for name, unit in part.named_children():
                if isinstance(unit, InvertedResidual):
                    setattr(part, name, Interleaved(unit))
        self._fast = (fast,)

    def forward(self, x: Tensor) -> Tensor:
        active = self if self.training or not self._fast else self._fast[0]
        parts = active.features if self.prefix else active
        for name in self.order:
            x = getattr(parts, name)(x)
        return F.relu(x) if self.last_norm else x

    def classify(self, pooled: Tensor) -> Tensor:
        """(B, C), the mean of the last map -> logits (B, classes)."""
        return getattr(self, self.head)(pooled)


class Interleaved(nn.Module):
    """torchvision's unit of ShuffleNet V2 for inference, which shuffles two groups of channels by interleaving them.

    The branches' outputs are written where the shuffle puts them, and stay channels last: torchvision's joins, moves
    and transposes them, a fifth of the network's time on a CPU.
    """

    def __init__(self, unit: InvertedResidual) -> None:
        super().__init__()
        self.halves = unit.stride == 1  # of the channels: the first half goes by
        self.branch1, self.branch2 = unit.branch1, unit.branch2

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1) if self.halves else (x, x)
        first, second = self.branch1(first), self.branch2(second)
        made = first.new_empty(first.shape[0], *first.shape[2:], first.shape[1], 2)
        made[..., 0], made[..., 1] = first.movedim(1, -1), second.movedim(1, -1)
        return made.flatten(-2).movedim(-1, 1)


class Frames(Network):
    """The whole frame: `spatial`, `vector` and, where asked for, `logits`."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, _module(spec))

    def _pool(self, feature_map: Tensor) -> dict[str, Tensor]:
        values = super()._pool(feature_map)
        if "logits" in self._keep:
            values["logits"] = self.module.classify(feature_map.flatten(1, -2).mean(1)).float()
        return values

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names of old DenseNet files (`denselayer1.norm.1.weight`) to today's (`denselayer1.norm1.weight`)."""
        return {re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", k): v for k, v in state.items()}

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        module, classes = self.module, self.spec.options.get("classes")
        if classes:
            self.check_classes(state.get(f"{module.head}.bias"), classes)
        unused = tuple(f"{module.prefix}{part}." for part in module.unused)
        unused = unused if classes else (*unused, f"{module.head}.")
        return {key: value for key, value in state.items() if not key.startswith(unused)}


class FrameBoxes(RoiNetwork):
    """Given boxes on the frame's map."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, _module(spec))

    convert_state = Frames.convert_state
    adapt_to = Frames.adapt_to


def _module(spec: NetworkSpec) -> FrameModule:
    return FrameModule(NETWORKS[spec.name].model, spec.layer, spec.options.get("classes", 0))
