"""transformers' vision models in torch."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import inspect
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from errors import UserError

from .. import weights as weights_module
from .base import Network
from .calibrate import calibrate_norms
from .hf_library import CLIPS, trained_on
from .model_folder import model_folder, short_name
from .spec import NetworkSpec

__all__ = ["HfNetwork", "output_shapes"]


def model_class(folder: Path, clip_len: int, size: int, attention: str | None = None) -> tuple[type, Any]:
    """(class, configuration) of the vision model in these files, for clips or frames of this size.

    A checkpoint with a classifier keeps it; of CLIP and SigLIP the vision tower and its projection are built.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_MAPPING

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    named = next(iter(getattr(config, "architectures", None) or []), "")
    kind = config.model_type
    if kind == "clip":
        config.vision_config.projection_dim = config.projection_dim
    if kind in ("clip", "siglip"):
        config = config.vision_config
    if attention:
        config._attn_implementation = attention
    clip = CLIPS.get(kind)
    for field, value in ((clip.frames, clip_len), (clip.size, size)) if clip else ():
        if field in clip.rebuild:
            setattr(config, field, value)
    if kind == "clip" or named == "CLIPVisionModelWithProjection":
        return transformers.CLIPVisionModelWithProjection, config
    if kind in ("clip_vision_model", "siglip"):
        return {"siglip": transformers.SiglipVisionModel}.get(kind, transformers.CLIPVisionModel), config
    if named.endswith(("ForVideoClassification", "ForImageClassification")) and hasattr(transformers, named):
        return getattr(transformers, named), config
    if kind == "vjepa2":
        return transformers.VJEPA2Model, config
    if type(config) not in MODEL_FOR_IMAGE_MAPPING:
        raise UserError(f"{folder}: {kind} is no image or video model of transformers")
    found = MODEL_FOR_IMAGE_MAPPING[type(config)]
    return (found[0] if isinstance(found, tuple) else found), config


class Reader:
    """Runs a model and reads its last hidden state and its own pooled feature.

    Args:
        model: a transformers model.
        grid: (T', H', W') of a clip model's tokens; None for frames.
    """

    def __init__(self, model: nn.Module, kind: str, size: int, grid: tuple[int, int, int] | None) -> None:
        self.model, self.kind, self.size, self.grid = model, kind, size, grid
        self.seen: dict[str, Any] = {}
        self.classifies = model.base_model is not model and isinstance(getattr(model, "classifier", None), nn.Module)
        if self.classifies:
            model.base_model.register_forward_hook(lambda _m, _a, out: self.seen.update(base=out))
            model.classifier.register_forward_pre_hook(lambda _m, a: self.seen.update(pooled=a[0]))
        # most models know one size, and resample their position embeddings only when told
        asks = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        own = getattr(model.config, "image_size", size)
        other = asks and (own if isinstance(own, int) else own[0]) != size
        self.extra = {"interpolate_pos_encoding": True} if other else {}
        if kind == "vjepa2" and not self.classifies:
            self.extra = {"skip_predictor": True}

    def __call__(self, x: Tensor, layer: str = "") -> tuple[Tensor | None, Tensor]:
        """Normalised (B, 3, T, H, W) or (B, 3, H, W) -> (map (B, [T',] H', W', C) or None, vector (B, C'))."""
        if self.grid is not None:
            x = x.transpose(1, 2)
        out = self.model(**{self.model.main_input_name: x}, **self.extra)
        base, pooled = (self.seen.pop("base"), self.seen.pop("pooled")) if self.classifies else (out, None)
        if layer == "logits":
            return None, out.logits
        tokens = base.last_hidden_state
        found, prefix = self._as_map(tokens)
        for name in ("image_embeds", "pooler_output"):
            pooled = getattr(base, name, None) if pooled is None else pooled
        if pooled is None:
            pooled = tokens[:, 0] if prefix else tokens.mean(1) if tokens.dim() == 3 else tokens.mean((2, 3))
        return found, pooled.flatten(1)

    def _as_map(self, tokens: Tensor) -> tuple[Tensor | None, int]:
        """(map or None, number of class and register tokens)."""
        if self.grid is not None:
            clip = CLIPS[self.kind]
            t, h, w = self.grid
            tokens = tokens[:, clip.prefix :]
            order = (t, h, w) if clip.time_first else (h, w, t)
            found = tokens.unflatten(1, order)
            return (found if clip.time_first else found.movedim(3, 1)), clip.prefix
        if tokens.dim() == 4:
            return tokens.movedim(1, -1), 0
        side = self.size // _one(getattr(self.model.config, "patch_size", None) or self.size)
        prefix = tokens.shape[1] - side * side
        if side < 2 or not 0 <= prefix <= 16:  # hierarchical models: fewer tokens than patches
            side, prefix = math.isqrt(tokens.shape[1]), 0
        if side < 2 or side * side + prefix != tokens.shape[1]:
            return None, 0
        return tokens[:, prefix:].unflatten(1, (side, side)), prefix


def token_grid(config: Any, clip_len: int, size: int) -> tuple[int, int, int] | None:
    """(T', H', W') of a clip model's tokens; None for a model of frames."""
    if config.model_type not in CLIPS:
        return None
    tubelet = getattr(config, "tubelet_size", 1)
    t, patch = (tubelet[0], tubelet[1]) if isinstance(tubelet, list | tuple) else (tubelet, _one(config.patch_size))
    if clip_len < t or clip_len % t or size < patch:
        raise UserError(
            f"{config.model_type} cuts clips into tubes of {t} frames and {patch} pixels: "
            f"{clip_len} frames of {size} pixels do not fit"
        )
    return clip_len // t, size // patch, size // patch


@functools.cache
def output_shapes(
    folder: Path, config_hash: str, name: str, clip_len: int, size: int, layer: str
) -> dict[str, tuple[int, ...]]:
    """Row shape of every output, without weights: a pass on the meta device (`config_hash` keeps answers apart).

    Raises:
        UserError: no such layer, or a size that the model cannot run on.
    """
    if layer not in ("last_hidden_state", "logits"):
        raise UserError(f"{name}: layer must be last_hidden_state or logits, not {layer!r}")
    kind, config = model_class(folder, clip_len, size)
    grid = token_grid(config, clip_len, size)
    shape = (1, 3, size, size) if grid is None else (1, 3, clip_len, size, size)
    try:
        with torch.device("meta"):
            model = kind._from_config(config).eval()
        reader = Reader(model.to("meta"), config.model_type, size, grid)
        if layer == "logits" and not reader.classifies:
            raise UserError(f"{name} is a {kind.__name__}: it has no classifier, so no logits")
        with torch.inference_mode():
            found, vector = reader(torch.empty(shape, device="meta"), layer)
    except UserError:
        raise
    except Exception as error:  # whatever a model raises for an input it was not made for
        frames = "" if grid is None else f"{clip_len} frames of "
        raise UserError(
            f"{name} ({kind.__name__}) does not run on {frames}{size} x {size} pixels: "
            f"{type(error).__name__}: {str(error).strip()[:300]}"
        ) from error
    shapes = {} if found is None else {"spatial": tuple(found.shape[-3:])}
    if found is not None and grid is not None:
        shapes = {"map": tuple(found.shape[1:]), **shapes}
    return {**shapes, "vector": tuple(vector.shape[1:])}


class HfNetwork(Network):
    """Patch tokens and pooled feature of a transformers model."""

    def __init__(self, spec: NetworkSpec, model: str) -> None:
        self.model, self.folder, self.size = model, model_folder(model, weights=False), spec.input_size[0]
        self.kind, self.config = model_class(self.folder, spec.clip_len, self.size, spec.options.get("attention"))
        self.grid = token_grid(self.config, spec.clip_len, self.size)
        super().__init__(spec)

    def prepare(self) -> None:
        self.module.to(device=self.device)  # transformers' layers choose their own memory layout

    def feature_map(self, x: Tensor) -> Tensor:
        found, _ = self.reader(x, self.spec.layer)
        if found is None:
            raise TypeError(f"{self.spec.name} has no map: use run, whose outputs are {', '.join(self.spec.outputs)}")
        return found.float()

    def compute(self, x: Tensor, slots: list[int], batch: dict[str, list]) -> dict[str, Tensor]:
        parts = [self.reader(self.normalise(p), self.spec.layer) for p in x.split(self._rows_at_once(x))]
        values = {"vector": torch.cat([vector.float() for _, vector in parts])}
        if {"map", "spatial"} & set(self.keep):
            found = torch.cat([found.float() for found, _ in parts])
            values |= {"map": found, "spatial": found.mean(1)} if self.grid is not None else {"spatial": found}
        return values

    # -- weights -----------------------------------------------------------------------------------------------

    def load_weights(self, weights: str | None) -> None:
        """Args: weights: None for the model's own files, a folder or .safetensors file of the same architecture, or
        "random:SEED"."""
        if weights is not None and weights.startswith("random:"):
            self._adopt(self.kind._from_config(copy.deepcopy(self.config), dtype=torch.float32))
            super().load_weights(weights)
            if self.grid is None:
                calibrate_norms(self.module, self.size, self.reader)
            return
        if weights is None and self.spec.options.get("preprocessing") == "assumed":
            raise UserError(
                f"{self.spec.name} has no preprocessor_config.json in {self.folder}: its mean, std and size belong "
                "to the weights; fetch it from where the weights come from"
            )
        paths, origin = self._weight_files(weights)
        state: dict[str, Tensor] = {}
        for path in paths:
            state |= weights_module.read_state(path)[0]
        self._load(state, paths[0])
        self.weights_hash, self.weights_origin = hash_of(paths), origin
        unknown = [{"dataset": "unknown", "split": "unknown", "classes": 0, "file": paths[0].name}]
        self.lineage = (trained_on(self.folder) if weights is None else []) or unknown

    def _adopt(self, model: nn.Module) -> None:
        self.module = model.eval().requires_grad_(False)
        self.reader = Reader(self.module, self.config.model_type, self.size, self.grid)

    def _weight_files(self, weights: str | None) -> tuple[list[Path], str]:
        """(files, origin) of the weights: safetensors only."""
        if weights is None:
            folder = model_folder(self.model)
            return weight_files(folder), f"{'folder' if Path(self.model).is_dir() else 'hub'}:{short_name(self.model)}"
        path = Path(weights).expanduser()
        if path.is_dir():
            return weight_files(path), f"folder:{path.resolve().name}"
        if not path.is_file():
            raise UserError(f"weights {weights!r} for {self.spec.name}: no such file or folder (or random:SEED)")
        if path.suffix != ".safetensors":
            raise UserError(f"{path}: {_WHY_SAFETENSORS}")
        return [path], f"file:{path.name}"

    def _load(self, state: dict[str, Tensor], path: Path) -> None:
        try:
            with quiet():
                model, info = self.kind.from_pretrained(
                    None,
                    config=copy.deepcopy(self.config),
                    state_dict=state,
                    dtype=torch.float32,
                    ignore_mismatched_sizes=True,  # they are named below
                    output_loading_info=True,
                )
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(f"{path}: not a checkpoint of {self.spec.name} ({self.kind.__name__}): {error}") from error
        missing = {key for key in info["missing_keys"] if not key.startswith("pooler.")}
        shapes = {key: (theirs, ours) for key, theirs, ours in info["mismatched_keys"]}
        if missing or shapes:
            report = weights_module.key_report(missing, info["unexpected_keys"] if missing else (), shapes)
            raise UserError(f"{path}: not a checkpoint of {self.spec.name} ({self.kind.__name__}); {report}")
        if info["missing_keys"]:
            model.pooler = None  # a pooler nobody trained: the class token stands for the image
        self._adopt(model)


@contextlib.contextmanager
def quiet():
    """transformers without its progress bar and its report on keys, which clipbank makes itself."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


_WHY_SAFETENSORS = (
    "only .safetensors weights are read: a .bin is a pickle, which runs code of its author when it is opened. "
    "Convert it where you trust it: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder: one file, or the shards that its index names."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        raise UserError(f"{folder} has no model.safetensors: {_WHY_SAFETENSORS}; --weights random:0 runs without")
    shards = [folder / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if lost := [shard.name for shard in shards if not shard.is_file()]:
        raise UserError(f"{index} names {', '.join(lost)}, which {folder} does not hold")
    return shards


def hash_of(paths: list[Path]) -> str:
    """sha256 of one file's bytes; of several, of their names and hashes."""
    if len(paths) == 1:
        return weights_module.file_hash(paths[0])
    text = "\n".join(f"{path.name} {weights_module.file_hash(path)}" for path in paths)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _one(value: Any) -> int:
    return int(value[-1] if isinstance(value, list | tuple) else value)
