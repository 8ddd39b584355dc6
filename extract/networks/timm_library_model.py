"""timm models in torch."""

from __future__ import annotations

import functools
import inspect
import math
import sys
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from errors import UserError

from .. import weights as weights_module
from .base import Network
from .calibrate import calibrate_norms
from .hub import hub_file
from .spec import NetworkSpec
from .timm_library import trained_on

__all__ = ["TimmNetwork", "output_shapes"]


def build(model: str, size: int) -> nn.Module:
    """The untrained model for square frames of `size` pixels; classifier included, so that checkpoints fit whole."""
    cfg = timm.models.get_pretrained_cfg(model)
    resized = cfg.fixed_input_size and size != cfg.input_size[1]
    try:
        return timm.create_model(model, pretrained=False, **({"img_size": size} if resized else {}))
    except (TypeError, ValueError, AssertionError) as error:
        if not resized:
            raise
        raise UserError(
            f"timm:{model} cannot be built for {size} x {size} pixels: its size is {cfg.input_size[1]} ({error})"
        ) from error


def features(model: nn.Module, x: Tensor, layer: str) -> tuple[Tensor | None, Tensor]:
    """(map (B, H', W', C) or None, vector (B, C')) of normalised images (B, 3, H, W)."""
    if layer.isdigit():
        (found,) = model.forward_intermediates(
            x, indices=[int(layer)], output_fmt="NCHW", intermediates_only=True, stop_early=True
        )
        found = found.movedim(1, -1)
        return found, found.float().mean((1, 2))
    last = model.forward_features(x)
    if layer == "logits":
        return None, model.forward_head(last)
    found = as_map(model, last)
    vector = pooled(model, last)
    return found, found.float().mean((1, 2)) if vector is None else vector


def pooled(model: nn.Module, last: Tensor) -> Tensor | None:
    """timm's own pooled feature (B, C); None where there is none: the encoders of language models refuse it, or their
    forward_head does not know the question."""
    if "pre_logits" not in inspect.signature(model.forward_head).parameters:
        return None
    try:
        return model.forward_head(last, pre_logits=True)
    except NotImplementedError:
        return None


def as_map(model: nn.Module, last: Tensor) -> Tensor | None:
    """What `forward_features` returned as (B, H', W', C); None where it holds no grid."""
    if not isinstance(last, Tensor):
        return None
    if last.dim() == 4:
        return last if getattr(model, "output_fmt", "NCHW") == "NHWC" else last.movedim(1, -1)
    if last.dim() != 3:
        return None
    # models that do not say how many class tokens precede the patches have none, one, or one and a distilled one
    known = getattr(model, "num_prefix_tokens", None)
    for prefix in (0, 1, 2) if known is None else (known,):
        side = math.isqrt(max(last.shape[1] - prefix, 0))
        if side > 1 and side * side == last.shape[1] - prefix:
            return last[:, prefix:].unflatten(1, (side, side))
    return None


@functools.cache
def output_shapes(model_name: str, size: int, layer: str) -> tuple[tuple[int, int] | None, int, int]:
    """((H', W') or None, the map's channels, the vector's width), without weights: a pass on the meta device.

    Raises:
        UserError: no such layer, or a size that the model cannot run on.
    """
    with torch.device("meta"), torch.inference_mode():
        model = build(model_name, size).eval()
        if layer.isdigit() and not hasattr(model, "forward_intermediates"):
            raise UserError(f"timm:{model_name} offers no intermediate maps: leave out the layer, or layer=logits")
        if layer not in ("features", "logits") and not layer.isdigit():
            raise UserError(
                f"timm:{model_name}: layer must be features, logits or the number of a stage, not {layer!r}"
            )
        if layer == "logits" and not model.num_classes:
            raise UserError(f"timm:{model_name} was trained without a classifier: it has no logits")
        try:
            grid, vector = features(model, torch.empty(1, 3, size, size), layer)
        except Exception as error:  # whatever a model raises for an input it was not made for
            raise UserError(
                f"timm:{model_name} does not run on {size} x {size} pixels (layer {layer}): "
                f"{type(error).__name__}: {str(error).strip()[:200]}"
            ) from error
    if vector.dim() != 2:
        raise UserError(f"timm:{model_name} gives no pooled feature (its shape is {tuple(vector.shape)})")
    return (None, 0, vector.shape[1]) if grid is None else (tuple(grid.shape[1:3]), grid.shape[3], vector.shape[1])


class TimmNetwork(Network):
    """Map and pooled feature of a timm model."""

    def __init__(self, spec: NetworkSpec) -> None:
        self.cfg = timm.models.get_pretrained_cfg(spec.name.removeprefix("timm:"))
        self.size = spec.input_size[0] if spec.input_size else self.cfg.input_size[1]
        super().__init__(spec, build(spec.name.removeprefix("timm:"), self.size))

    def prepare(self) -> None:
        # not the base class's: some timm models have a `fuse` of their own, which means another thing
        self.module.to(device=self.device, memory_format=torch.channels_last)

    def feature_map(self, x: Tensor) -> Tensor:
        found, _ = features(self.module, x, self.spec.layer)
        if found is None:
            raise TypeError(f"{self.spec.name} has no map: use run, whose outputs are {', '.join(self.spec.outputs)}")
        return found.float()

    def compute(self, x: Tensor, slots: list[int], batch: dict[str, list]) -> dict[str, Tensor]:
        parts = [features(self.module, self.normalise(p), self.spec.layer) for p in x.split(self._rows_at_once(x))]
        values = {"vector": torch.cat([vector.float() for _, vector in parts])}
        if "spatial" in self.keep:
            values["spatial"] = torch.cat([found.float() for found, _ in parts])
        return values

    # -- weights -----------------------------------------------------------------------------------------------

    def load_weights(self, weights: str | None) -> None:
        if weights is not None:
            super().load_weights(weights)
            if weights.startswith("random:"):
                calibrate_norms(self.module, self.size, lambda x: features(self.module, x, self.spec.layer))
            return
        path, origin = self._published()
        super().load_weights(str(path))
        self.weights_origin = origin
        self.lineage = trained_on(self.cfg.tag) or self.lineage

    def _published(self) -> tuple[Path, str]:
        """(file, origin) of the weights that the tag names."""
        cfg, name = self.cfg, self.spec.name.removeprefix("timm:")
        if not cfg.has_weights:
            raise UserError(f"timm has no weights of {name}: give a path or random:SEED (--weights)")
        own = weights_module.Weights(
            name=self.spec.name,
            architecture=cfg.architecture,
            filename=f"{name}.safetensors" if cfg.hf_hub_id else f"{name}.pth",
        )
        url = f"https://huggingface.co/{cfg.hf_hub_id}/resolve/main/model.safetensors" if cfg.hf_hub_id else cfg.url
        advice = (
            f"fetch {url} as {own.filename} and put it into a folder named by CLIPBANK_WEIGHTS, or pass its path with "
            "--weights; --weights random:0 runs without (features mean nothing)"
        )
        if (found := weights_module.find_local(own)) is not None:
            return found[1], found[0]
        path = hub_file(cfg.hf_hub_id, cfg.hf_hub_filename or "model.safetensors", advice) if cfg.hf_hub_id else None
        if path is None:
            raise UserError(f"weights of {self.spec.name} are not on the hub as safetensors: {advice}")
        return path, f"hub:{cfg.hf_hub_id}"

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """timm's own conversion of original checkpoints and resampling of position embeddings, where it is needed."""
        own = self.module.state_dict()
        if {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in own.items()}:
            return state
        convert = getattr(sys.modules[type(self.module).__module__], "checkpoint_filter_fn", None)
        if convert is None:
            return state
        try:
            return dict(convert(dict(state), self.module))
        except Exception:  # a foreign checkpoint: the check that follows names its keys
            return state
