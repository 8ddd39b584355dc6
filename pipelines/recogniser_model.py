"""What recogniser training trains: a frame network with a classifier on its pooled feature, or that classifier alone.

Both map segments (B, S, ...) to logits (B, S, classes), whose mean over S is the consensus, and give their classifier
as weights for the network's raw `vector`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from errors import UserError
from extract.networks import network_spec
from pipelines.trained_models import thaw

__all__ = ["LinearRecogniser", "Recogniser", "TrainedRecogniser", "own_classifier"]

_INIT_STD = 0.001  # of a new classifier, as TSN's authors have it


class Recogniser(nn.Module):
    """uint8 frames (B, S, H, W, C) -> logits (B, S, classes): the network's `vector`, dropout, a linear classifier.

    Args:
        network: `extract.networks.Network` with the output `vector`; its module is trained in place.
        target: name of the classifier among the tensors.
        dropout: before the classifier.
        partial_norms: all batch norms but the first stay as they came, statistics and weights (Wang et al. 2016).
    """

    def __init__(self, network, target: str, classes: int, *, dropout: float, partial_norms: bool):
        super().__init__()
        network.keep = ("vector",)
        self.network, self.module, self.dropout = network, network.module, dropout
        thaw(network)
        norms = [part for part in self.module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        self._still = tuple(norms[1:]) if partial_norms else ()
        for norm in self._still:
            norm.requires_grad_(False)
        width = network.spec.outputs["vector"][0][-1]
        self.classifier = nn.ModuleDict({target: _linear(width, classes)}).to(network.device)

    def train(self, mode: bool = True) -> Recogniser:
        super().train(mode)
        for norm in self._still:
            norm.eval()
        return self

    def forward(self, frames: Tensor) -> Tensor:
        flat = frames.flatten(0, 1)
        vector = self.network.compute(flat, list(range(len(flat))), {})["vector"]
        (layer,) = self.classifier.values()
        return layer(nn.functional.dropout(vector, self.dropout, self.training)).unflatten(0, frames.shape[:2])

    def prepare(self) -> None:
        """For `row_logits`: the network as extraction runs it, its folded weights those trained so far."""
        self.eval()
        self.network.prepare()

    def row_logits(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, C) -> float32 (n, classes)."""
        return TrainedRecogniser(*self.linear(), self.network).row_logits(frames)

    def linear(self) -> tuple[Tensor, Tensor]:
        """(weight (classes, C), bias (classes,)) float32 on the CPU: logits = weight @ vector + bias."""
        (layer,) = self.classifier.values()
        return layer.weight.detach().cpu().float(), layer.bias.detach().cpu().float()


class LinearRecogniser(nn.Module):
    """Cached features (B, S, C) -> logits (B, S, classes): standardised channels, dropout, a linear classifier.

    Args:
        mean, std: (C,) float32 of the training features. A step of gradient descent then has one size for all channels
            and networks; `linear` takes them into the weights.
    """

    def __init__(self, mean: np.ndarray, std: np.ndarray, target: str, classes: int, *, dropout: float):
        super().__init__()
        self.register_buffer("mean", torch.from_numpy(mean))
        self.register_buffer("std", torch.from_numpy(std))
        self.dropout = dropout
        self.classifier = nn.ModuleDict({target: _linear(len(mean), classes)})

    def forward(self, vectors: Tensor) -> Tensor:
        (layer,) = self.classifier.values()
        return layer(nn.functional.dropout((vectors - self.mean) / self.std, self.dropout, self.training))

    def prepare(self) -> None:
        """For `row_logits`."""
        self.eval()

    def row_logits(self, vectors: np.ndarray) -> np.ndarray:
        """float32 (n, C) -> float32 (n, classes)."""
        return TrainedRecogniser(*self.linear()).row_logits(vectors)

    def linear(self) -> tuple[Tensor, Tensor]:
        """As `Recogniser.linear`."""
        (layer,) = self.classifier.values()
        weight = (layer.weight.detach() / self.std).cpu().float()
        return weight, layer.bias.detach().cpu().float() - weight @ self.mean.cpu()


class TrainedRecogniser:
    """A recogniser to be evaluated: the classifier that training left, on a network's `vector` or on cached features.

    Args:
        weight (classes, C), bias (classes,): float32 on the CPU.
        network: `extract.networks.Network`; None: rows are features.
    """

    def __init__(self, weight: Tensor, bias: Tensor, network=None):
        self.weight, self.bias, self.network = weight, bias, network

    def prepare(self) -> None:
        """For `row_logits`: a network out of a checkpoint is prepared already."""

    def row_logits(self, rows: np.ndarray) -> np.ndarray:
        """uint8 (n, H, W, C), or features float32 (n, C) -> float32 (n, classes)."""
        vectors = rows if self.network is None else self.network.run({"frames": list(rows)})["vector"]
        return (torch.from_numpy(vectors) @ self.weight.T + self.bias).numpy()


def _linear(width: int, classes: int) -> nn.Linear:
    layer = nn.Linear(width, classes)
    nn.init.normal_(layer.weight, std=_INIT_STD)
    nn.init.zeros_(layer.bias)
    return layer


def own_classifier(name: str, options: Mapping[str, Any], classes: int) -> tuple[dict[str, Any], dict[str, tuple]]:
    """How a network of the registry is asked for `logits` of so many classes, where its entry offers them.

    Returns (options for `create_network`, {key: shape} of its classifier's weight and bias); ({}, {}) where it does
    not.
    """

    def shapes(classes: int) -> tuple[dict[str, Any], dict[str, tuple]]:
        wanted = {**options, "logits": True, "classes": classes}
        spec = network_spec(name, **wanted)
        if spec.outputs.get("logits", ((),))[0] != (classes,):
            raise UserError(f"{name} gives no logits of {classes} classes")
        with torch.device("meta"):
            state = spec.build().module.state_dict()
        return wanted, {key: tuple(value.shape) for key, value in state.items()}

    try:
        wanted, own = shapes(classes)
        _, other = shapes(classes + 1)
    except UserError:
        return {}, {}
    return wanted, {key: shape for key, shape in own.items() if other[key] != shape}
