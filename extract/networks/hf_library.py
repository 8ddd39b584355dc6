"""Vision models of transformers as "hf:NAME" (Hugging Face): clips (VideoMAE, ViViT, TimeSformer, V-JEPA 2) and frames
(ViT, DINOv2, CLIP, SigLIP, ConvNeXt, Swin, ResNet ...): the entry.

NAME is a folder with config.json, preprocessor_config.json and model.safetensors, as `save_pretrained` leaves them; or
a hub id "organisation/model", found as such a folder below one of CLIPBANK_WEIGHTS, in the hub's cache, or downloaded.
Everything in the spec is read from these files; code that comes with a model is never run.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from errors import UserError

from ..weights import file_hash
from .model_folder import CARD, model_folder, short_name
from .packages import need_package
from .registry import register_library
from .spec import NetworkSpec, clip_input_size, resize_dict

__all__ = ["CLIPS", "Builder", "ClipModel", "hf_network", "trained_on"]


@dataclass(frozen=True)
class ClipModel:
    """How a video model takes its clips and orders its tokens."""

    frames: str = "num_frames"  # the configuration's field
    size: str = "image_size"
    rebuild: tuple[str, ...] = ()  # which of the two are set to what is asked for; else the model resamples by itself
    prefix: int = 0  # class tokens before the patches
    time_first: bool = True  # tokens run over time, rows, columns; else over rows, columns, time


CLIPS = {
    "timesformer": ClipModel(prefix=1, time_first=False),
    "videomae": ClipModel(rebuild=("num_frames", "image_size")),
    "vivit": ClipModel(rebuild=("num_frames",), prefix=1),  # its table of positions is learned: one length fits
    "vjepa2": ClipModel("frames_per_clip", "crop_size", rebuild=("frames_per_clip", "crop_size")),
}


@dataclass(frozen=True)
class Builder:
    """Makes the network of a model named by folder or hub id, which the spec must not say (it is this machine's)."""

    model: str

    def __call__(self, spec: NetworkSpec) -> Any:
        from .hf_library_model import HfNetwork

        return HfNetwork(spec, self.model)


@register_library("hf")
def hf_network(
    model: str,
    *,
    layer: str | None = None,
    clip_len: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    resize: dict[str, Any] | None = None,
    attention: str | None = None,
    unit_rows: int | None = None,
    batch_size: int | None = None,
) -> NetworkSpec:
    """One transformers model on clips or frames, as its configuration says.

    `map` (T', H', W', C) of clips and `spatial` (H', W', C) are the patch tokens of the last hidden state, class and
    register tokens dropped (`spatial` of clips: the mean over T'). `vector` is what the model itself pools: the
    classifier's input where the checkpoint has a classifier; CLIP's projected image embedding (`get_image_features`),
    SigLIP's attention-pooled one; else the pooler's output, the class token, or the mean over the tokens.

    Args:
        model: a folder, or a hub id.
        layer: "logits": `vector` alone, the classifier's output.
        clip_len, stride, fps: default the configuration's frames, consecutive, at 25 a second (frames: 2 a second).
        resize: default the processor's: short side and centre crop, or squash.
        attention: "sdpa" or "eager"; default the library's choice for the model.

    Raises:
        UserError: transformers is missing; no such folder or repository; a configuration without code in the library,
            or of a model that reads no images; sizes that do not fit.
    """
    name = f"hf:{short_name(model)}"
    need_package("transformers", name)
    folder = model_folder(model, weights=False)
    config = _config(folder, name)
    clip = CLIPS.get(config.model_type)
    if clip is None:
        if clip_len not in (None, 1) or stride != 1:
            raise UserError(f"{name} ({config.model_type}) reads single frames: it takes no clip_len and no stride")
        clip_len = 1
    else:
        clip_len = clip_len or getattr(config, clip.frames)
    native = _native_size(config)
    stated, mean, std = _preprocessing(folder, name, clip is not None)
    resize = resize_dict(resize, stated or {"mode": "squash", "size": native})
    size = clip_input_size(resize)
    if size is None:
        raise UserError(f"{name} takes frames of one size: give resize a crop, or squash (resize={resize!r})")

    from .hf_library_model import output_shapes

    config_hash = file_hash(folder / "config.json")
    shapes = output_shapes(folder, config_hash, name, clip_len, size[0], layer or "last_hidden_state")
    card = _card(folder)
    return NetworkSpec(
        name=name,
        kind="backbone",
        reads="rgb_frame" if clip is None else "rgb_clip",
        outputs={output: (shape, "feature") for output, shape in shapes.items()},
        builder=Builder(model),
        family="frame" if clip is None else config.model_type,
        layer=layer or "last_hidden_state",
        options={
            "config": config_hash,  # heads, activations, eps: not seen in the weights
            **({} if stated else {"preprocessing": "assumed"}),
            **({"attention": attention} if attention else {}),
        },
        clip_len=clip_len,
        stride=stride,
        fps=float(fps or (2.0 if clip is None else 25.0)),
        resize=resize,
        mean=mean,
        std=std,
        unit_rows=unit_rows or (1024 if clip is None else 64),
        batch_size=batch_size or (32 if clip is None else 4),
        weights=name,
        licence=str(card.get("license_name") or card.get("license") or f"not stated: see the model card of {name}"),
        source=f"transformers {config.model_type}, {name.removeprefix('hf:')}",
        requires=("transformers",),
    )


def _config(folder: Path, name: str) -> Any:
    """The checked configuration; nothing but the library's own classes is ever used for it."""
    from transformers import AutoConfig, __version__
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    path = folder / "config.json"
    try:
        raw = json.loads(path.read_text())
        model_type = str(raw.get("model_type", ""))
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a model configuration: {error}") from error
    if model_type not in CONFIG_MAPPING_NAMES:
        own = (
            "; it wants code of its own (auto_map), which is never run: trust_remote_code is off"
            if "auto_map" in raw
            else ""
        )
        near = difflib.get_close_matches(model_type, CONFIG_MAPPING_NAMES, n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise UserError(
            f"{name}: transformers {__version__} has no model_type {model_type!r}, which {path} names{hint}{own}"
        )
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the library raises many kinds for a damaged configuration
        raise UserError(f"{path}: transformers {__version__} cannot read it: {error}") from error


def _native_size(config: Any) -> int:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None) or getattr(config, "crop_size", None) or 224
    return int(size if isinstance(size, int) else size[0])


def _preprocessing(folder: Path, name: str, clip: bool) -> tuple[dict | None, tuple, tuple]:
    """(resize, mean, std) of the model's processor; (None, 0.5s, 0.5s) where the folder has none."""
    from transformers import AutoImageProcessor, AutoVideoProcessor

    kinds = [("preprocessor_config.json", AutoImageProcessor), ("processor_config.json", AutoImageProcessor)]
    if clip:
        kinds = [("video_preprocessor_config.json", AutoVideoProcessor), *kinds]
    for file, auto in kinds:
        if not (folder / file).is_file():
            continue
        try:
            made = auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except Exception as error:  # the library raises many kinds here
            raise UserError(f"{name}: {folder / file} is not a processor that transformers knows: {error}") from error
        return _resize_of(made, name), *_mean_std(made)
    return None, (0.5,) * 3, (0.5,) * 3


def _resize_of(made: Any, name: str) -> dict[str, Any]:
    """A processor's resize and crop as an `extract.transforms.Resize`."""

    def of(value: Any, key: str) -> int | None:
        if isinstance(value, int):
            return value
        return value.get(key) if isinstance(value, dict) else getattr(value, key, None)

    size, crop = getattr(made, "size", None), getattr(made, "crop_size", None)
    cropped = of(crop, "height") if getattr(made, "do_center_crop", False) and crop is not None else None
    if cropped is not None and cropped != of(crop, "width"):
        raise UserError(f"{name} crops to {crop}: only squares are supported; give resize")
    crops = {} if cropped is None else {"crop": cropped}
    part = getattr(made, "crop_pct", None)
    if part and (edge := of(size, "shortest_edge")):  # ConvNeXt's: from 384 pixels on it squashes
        return (
            {"mode": "squash", "size": edge}
            if edge >= 384
            else ({"mode": "short_side", "size": int(edge / part), "crop": edge})
        )
    if not getattr(made, "do_resize", True) or size is None:
        return {"mode": "none"}
    if of(size, "shortest_edge") and not isinstance(size, int):
        return {"mode": "short_side", "size": of(size, "shortest_edge"), **crops}
    if of(size, "height") is None or of(size, "height") != of(size, "width"):
        raise UserError(f"{name} resizes to {size}: only squares and short sides are supported; give resize")
    return {"mode": "squash", "size": of(size, "height"), **crops}


def _mean_std(made: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of values scaled to [0, 1] that do what the processor does: v * scale (- 1) - mean, over std."""
    scale = 255.0 * (made.rescale_factor if getattr(made, "do_rescale", True) else 1.0)
    # ViViT's image processor says whether it shifts to [-1, 1], its video processor always does
    shift = float(getattr(made, "offset", type(made).__name__ == "VivitVideoProcessor"))
    normalises = getattr(made, "do_normalize", True)
    mean, std = (made.image_mean, made.image_std) if normalises else (0.0, 1.0)
    mean, std = ([v] * 3 if isinstance(v, int | float) else v for v in (mean, std))
    return tuple((m + shift) / scale for m in mean), tuple(s / scale for s in std)


def _card(folder: Path) -> dict[str, Any]:
    """What the model card (README.md) states at its head: licence, data sets."""
    from huggingface_hub import metadata_load

    path = folder / CARD
    try:
        return (metadata_load(path) or {}) if path.is_file() else {}
    except ValueError:  # a card whose head is not YAML states nothing
        return {}


def trained_on(folder: Path) -> list[dict[str, Any]]:
    """Data sets that the model card names; [] where it names none."""
    names = _card(folder).get("datasets") or []
    names = [names] if isinstance(names, str) else names
    known = {"imagenet-1k": "imagenet", "imagenet": "imagenet", "imagenet-21k": "imagenet21k"}
    steps = [known.get(n.lower(), re.sub(r"[^a-z0-9]", "", n.lower().rpartition("/")[2])) for n in names]
    return [{"dataset": name, "split": "train", "classes": 0} for name in steps]
