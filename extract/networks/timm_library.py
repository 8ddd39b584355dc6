"""Every image model of timm as "timm:NAME" (Wightman, github.com/huggingface/pytorch-image-models): the entry.

"timm:resnet18.a1_in1k" names an architecture and a set of weights, "timm:resnet18" timm's own choice of weights, which
the spec's name then says. Preprocessing, licence and source come from timm's `pretrained_cfg`; map and vector shapes
from one forward pass on the meta device.

Weights: `NAME.safetensors` in a folder of CLIPBANK_WEIGHTS, the hub's cache, a download, or a path of one's own, with
the conversions that timm has for checkpoints of the original authors.
"""

from __future__ import annotations

import difflib
import functools
import math
from typing import Any

from errors import UserError

from .packages import need_package
from .registry import register_library
from .spec import NetworkSpec, clip_input_size, resize_dict

__all__ = ["timm_network", "trained_on"]

# What a tag such as "laion2b_ft_in12k_in1k" says about the data. Parts that are not here name recipes or authors.
_DATASETS = {
    "in1k": ("imagenet", 1000),
    "in12k": ("imagenet12k", 11821),
    "in21k": ("imagenet21k", 21843),
    "in22k": ("imagenet22k", 21841),
    "inw21k": ("imagenet21k_winter21", 19167),
    "jft": ("jft300m", 0),
    "openai": ("openai_wit400m", 0),
    "wsl": ("ig1b", 0),
    "swsl": ("ig1b", 0),
} | {
    name: (name, 0)
    for name in (
        "cc12m datacomp1b datacompxl dfn2b dfn5b dfndr2b ig1b laion2b laion400m laiona lvd142m lvd1689m m30m m38m "
        "merged2b metaclip metaclip2 sa1b sat493m webli yfcc15m yfcc100m"
    ).split()
}


@register_library("timm")
def timm_network(
    model: str,
    *,
    layer: str | None = None,
    resize: dict[str, Any] | None = None,
    fps: float = 2.0,
    unit_rows: int = 1024,
    batch_size: int = 32,
) -> NetworkSpec:
    """One timm model on single frames.

    `spatial` (H', W', C) is what `forward_features` returns, of token models the patch tokens alone (class and register
    tokens dropped); models whose last stage keeps no grid have none. `vector` is the model's own pooled feature,
    `forward_head(pre_logits=True)`; its width may differ from the map's.

    Args:
        model: timm's name, with a tag or without.
        layer: default the last map; "0", "1" ...: the map of that stage or block (timm's `forward_intermediates`),
            `vector` being its mean; "logits": `vector` alone, the classifier's output.
        resize: default that of timm's evaluation: short side floor(size / crop_pct), centre crop `size`. Models of a
            fixed input size are built for another one where they can be (their position embeddings are resampled).
        fps: of the frame grid.

    Raises:
        UserError: timm is missing, knows no such model or tag (near matches are listed), or the model cannot run on
            this input size.
    """
    name = f"timm:{model}"
    need_package("timm", name)
    import timm

    cfg = _pretrained_cfg(model)
    name = f"timm:{cfg.architecture}" + (f".{cfg.tag}" if cfg.has_weights else "")
    if cfg.input_size[0] != 3 or cfg.input_size[1] != cfg.input_size[2]:
        raise UserError(f"{name} reads {cfg.input_size} images; clipbank gives it square RGB frames")
    native = cfg.input_size[1]
    scaled = math.floor(native / cfg.crop_pct)
    mode = "squash" if cfg.crop_mode == "squash" else "short_side"
    default = {"mode": mode, "size": scaled, **({"crop": native} if (mode, scaled) != ("squash", native) else {})}
    resize = resize_dict(resize, default)
    size = clip_input_size(resize)
    if size is None and cfg.fixed_input_size:
        raise UserError(f"{name} takes frames of one size: give resize a crop, or squash ({default!r} is its own)")

    from .timm_library_model import output_shapes

    layer = layer or "features"
    grid, channels, vector = output_shapes(name.removeprefix("timm:"), size[0] if size else native, layer)
    outputs: dict[str, tuple[tuple[int, ...], str]] = {"vector": ((vector,), "feature")}
    if grid is not None and size is not None:
        outputs = {"spatial": ((*grid, channels), "feature"), **outputs}
    papers = ", ".join([cfg.paper_ids] if isinstance(cfg.paper_ids, str) else cfg.paper_ids or ())
    return NetworkSpec(
        name=name,
        kind="backbone",
        reads="rgb_frame",
        outputs=outputs,
        builder="extract.networks.timm_library_model:TimmNetwork",
        family="frame",
        layer=layer,
        fps=float(fps),
        resize=resize,
        mean=tuple(float(v) for v in cfg.mean),
        std=tuple(float(v) for v in cfg.std),
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights=name,
        random_scale=(("*conv3.gain", 0.1), ("*skipinit_gain", 0.1)),  # NFNets have no norms to calibrate
        licence=cfg.license or "not stated by timm",
        source=(
            f"timm {timm.__version__} {cfg.architecture}"
            + "".join(f", {text}" for text in (papers, cfg.origin_url) if text)
            + f"; timm evaluates it with {cfg.interpolation} resizing, crop mode {cfg.crop_mode}"
        ),
        requires=("timm",),
    )


def trained_on(tag: str) -> list[dict[str, Any]]:
    """What a timm tag says the weights were trained on, last first; [] where it says nothing."""
    steps = [_DATASETS[part] for part in reversed(tag.split("_")) if part in _DATASETS]
    return [{"dataset": name, "split": "train", "classes": classes} for name, classes in dict.fromkeys(steps)]


@functools.cache
def _pretrained_cfg(model: str) -> Any:
    """timm's PretrainedCfg of a model with or without a tag, `architecture` and `tag` filled."""
    from timm.models import get_pretrained_cfg, is_model, list_models, list_pretrained, split_model_name_tag

    architecture, tag = split_model_name_tag(model)
    if not is_model(architecture):
        near = difflib.get_close_matches(architecture, list_models(), n=4)
        hint = f"did you mean {', '.join(near)}?" if near else "see timm.list_models()"
        raise UserError(f"timm has no model {architecture!r}: {hint}")
    tags = [name.partition(".")[2] for name in list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        tags.sort(key=lambda known: -difflib.SequenceMatcher(None, tag, known).ratio())
        known = ", ".join(f"{architecture}.{t}" for t in tags[:5]) or "none: it is untrained, use random:SEED"
        raise UserError(f"timm has no weights {model!r}; of {architecture} it knows {known}")
    cfg = get_pretrained_cfg(model)
    if cfg is None:
        raise UserError(f"timm says nothing about the input of {model!r}, so it cannot be fed")
    return cfg
