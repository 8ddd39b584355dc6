"""Any classifier of torchvision, read at its last grid of features and at its last linear layer."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision import models

from errors import UserError

from .base import Network
from .spec import NetworkSpec

__all__ = ["TorchvisionNetwork", "Taps", "build_model", "output_shapes"]


def build_model(name: str, classes: int, size: tuple[int, int]) -> nn.Module:
    """A model without weights, for frames of this size where it is built for one (MViT: always 16 x 224 x 224)."""
    options: dict[str, Any] = {"num_classes": classes}
    if name.startswith("vit_"):
        options["image_size"] = size[0]
    elif name.startswith("maxvit_"):
        options["input_size"] = size
    elif name in ("googlenet", "inception_v3"):
        # as with published weights: inputs are renormalised inside, the training heads are cut off
        options |= {"transform_input": True, "aux_logits": False, "init_weights": False}
    return models.get_model(name, weights=None, **options).eval()


class _EmptyOnMeta(TorchFunctionMode):
    """Parameters take no memory, while what a constructor computes (RegNet's widths) is computed."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        extra = {"device": "meta"} if function is torch.empty else {}
        return function(*args, **((kwargs or {}) | extra))


@functools.lru_cache(maxsize=64)
def output_shapes(
    name: str, classes: int, clip_len: int, size: tuple[int, int], layer: str
) -> tuple[tuple[int, ...] | None, int]:
    """(row shape of the map, channels last, or None; width of the vector), from a pass without data.

    Raises:
        UserError: the model cannot run on this input.
    """
    shape = (1, 3, clip_len, *size) if name in models.list_models(module=models.video) else (1, 3, *size)
    try:
        with _EmptyOnMeta():
            model = build_model(name, classes, size).to("meta")
        with torch.device("meta"), torch.inference_mode():
            grid, vector = Taps(model, layer)(torch.empty(shape))
    except Exception as error:  # models refuse a size in their own ways: asserts, shape errors of single operations
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        frames = f"{clip_len} frames of " if len(shape) == 5 else ""
        raise UserError(f"tv:{name} cannot run on {frames}{size[0]} x {size[1]} pixels: {line[:200]}") from error
    return None if grid is None else tuple(grid.shape[1:]), vector.shape[1]


class Taps:
    """Runs a model and returns (map, channels last, or None; vector (B, C)), caught on their way through it."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        self.model, self.layer = model, layer
        self.seen: dict[str, Any] = {}
        self.linear = next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)), None)
        if self.linear is not None:
            self.linear.register_forward_pre_hook(self._input("vector"))
        if isinstance(model, models.VisionTransformer):
            model.encoder.register_forward_hook(self._output("tokens"))
        elif isinstance(model, models.video.MViT):
            model.norm.register_forward_hook(self._output("tokens"))
            model.blocks[-1].register_forward_hook(self._output("block"))
        elif isinstance(model, models.MaxVit):
            model.classifier[0].register_forward_pre_hook(self._input("map"))
        elif hasattr(model, "avgpool"):
            model.avgpool.register_forward_pre_hook(self._input("map"))
        else:  # pooled by a function (DenseNet, MobileNetV2, MNASNet, ShuffleNetV2) or after a convolution (SqueezeNet)
            part = next(getattr(model, n) for n in ("features", "layers", "conv5") if hasattr(model, n))
            part.register_forward_hook(self._output("map"))

    def __call__(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        self.seen.clear()
        logits = self.model(x)
        grid = self._grid(x)
        if self.layer == "logits":
            return grid, logits.float()
        vector = self.seen["vector"] if self.linear is not None else grid.flatten(1, -2).mean(1)
        return grid, vector.float()

    def _grid(self, x: Tensor) -> Tensor:
        if "map" in self.seen:
            grid = self.seen["map"].float().movedim(1, -1)
            return grid.relu() if isinstance(self.model, models.DenseNet) else grid
        tokens = self.seen["tokens"][:, 1:].float()  # without the class token
        if isinstance(self.model, models.VisionTransformer):
            cells = [n // self.model.patch_size for n in x.shape[-2:]]
        else:
            cells = self.seen["block"][1]
        return tokens.unflatten(1, tuple(cells))

    def _input(self, name: str):
        return lambda _module, args: self.seen.update({name: args[0]})

    def _output(self, name: str):
        return lambda _module, _args, output: self.seen.update({name: output})


class TorchvisionNetwork(Network):
    """A classifier of torchvision: `map` and `spatial` where it has a grid, `vector`."""

    def __init__(self, spec: NetworkSpec) -> None:
        name = spec.name.removeprefix("tv:")
        self.classes = spec.options.get("classes", 1)
        size = spec.input_size or (224, 224)
        super().__init__(spec, build_model(name, self.classes, size))
        self.taps = Taps(self.module, spec.layer)

    def feature_map(self, x: Tensor) -> Tensor:
        return self.taps(x)[0]

    def compute(self, x: Tensor, slots: list[int], batch: dict[str, list]) -> dict[str, Tensor]:
        parts = []
        for rows in x.split(self._rows_at_once(x)):
            grid, vector = self.taps(self.normalise(rows))
            parts.append({"vector": vector} | ({} if grid is None else self._maps(grid)))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _maps(self, grid: Tensor) -> dict[str, Tensor]:
        return {name: value for name, value in self._pool(grid).items() if name != "vector"}

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Drops the training heads of GoogLeNet and Inception, and a classifier of another size unless asked for."""
        state = {k: v for k, v in state.items() if not k.startswith(("AuxLogits.", "aux1.", "aux2."))}
        head = _classifier(self.module)
        bias = state.get(f"{head}.bias", state.get(f"{head}.weight"))
        if bias is None or len(bias) == self.classes:
            return state
        if self.spec.layer == "logits":
            self.check_classes(bias, self.classes)
        own = self.module.get_submodule(head).state_dict()
        return state | {f"{head}.{key}": value for key, value in own.items()}


def _classifier(model: nn.Module) -> str:
    """Name of the layer that makes the logits: the last linear layer, else (SqueezeNet, S3D) the last convolution."""
    names = {
        kind: name
        for name, m in model.named_modules()
        for kind in (nn.Linear, nn.Conv2d, nn.Conv3d)
        if isinstance(m, kind)
    }
    return next(names[kind] for kind in (nn.Linear, nn.Conv3d, nn.Conv2d) if kind in names)
