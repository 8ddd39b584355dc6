"""Every image and video classifier of torchvision as "tv:NAME" or "tv:NAME.TAG": the entry.

Preprocessing, clip length, frame rate, classes, accuracy and licence come from the metadata of torchvision's weights;
shapes of map and vector from one forward pass on the meta device. The weights enter the table when a model is named.
"""

from __future__ import annotations

import difflib
import functools
import re
from typing import Any

from errors import UserError

from ..weights import IMAGENET, KINETICS400, TABLE, Weights, add_weights
from .registry import register_library
from .spec import NetworkSpec, clip_input_size, resize_dict

__all__ = ["LAYERS", "model_names", "torchvision_network", "weights_entry"]

LAYERS = ("features", "logits")
# Built for one size of input; for another one their weights do not fit.
_ONE_SIZE = ("vit_", "maxvit_", "mvit_")
_REFUSED = {
    "detection": "a detector: use faster_rcnn_r50_fpn, or d2:CONFIG with detectron2",
    "segmentation": "a segmentation model",
    "optical_flow": "an optical-flow model: it makes the input of flow networks (--flow raft)",
    "quantization": "a quantised model: use its unquantised twin",
}
_DATASETS = (  # what a tag says about the data, last trained on first
    ("KINETICS400", KINETICS400),
    ("IMAGENET22K", {"dataset": "imagenet22k", "split": "train", "classes": 21841}),
    ("IMAGENET1K", IMAGENET),
    ("SWAG", {"dataset": "instagram3.6b", "split": "train", "classes": 27000}),
)
# random:SEED on top of the common rule: the last norm of a residual block, so that many blocks do not explode.
_RANDOM_SCALE = {
    "resnet": (("*.bn3.weight", 0.2),),
    "resnext": (("*.bn3.weight", 0.2),),
    "wide_resnet": (("*.bn3.weight", 0.2),),
    "regnet": (("*.f.c.1.weight", 0.2),),
    "efficientnet_v2": (("features.*.block.3.1.weight", 0.7), ("features.[123].*.block.1.1.weight", 0.5)),
}


def _fit(model: str, weights: str) -> dict[str, Any]:
    """The preprocessing that goes with a named set of weights; a path leaves the model's own."""
    name = _known(model.partition(".")[0])
    tag = weights.removeprefix(f"tv:{name}.")
    return {"tag": tag} if tag in _enum(name).__members__ else {}


@register_library("tv", fit=_fit)
def torchvision_network(
    model: str,
    *,
    tag: str | None = None,
    layer: str = "features",
    classes: int | None = None,
    clip_len: int | None = None,
    stride: int = 1,
    fps: float | None = None,
    resize: dict[str, Any] | None = None,
    unit_rows: int | None = None,
    batch_size: int | None = None,
) -> NetworkSpec:
    """One classifier of torchvision, on frames or clips.

    `map` (clips: T', H', W', C) and `spatial` (H', W', C) are the last grid of features: what the final pooling
    reads, or the patch tokens of a transformer. `vector` is what the last linear layer reads, which may be wider
    (VGG: 4096) or the class token.

    Args:
        model: torchvision's name, with a tag of its weights (IMAGENET1K_V2) or without (torchvision's default).
        tag: the same tag as an option.
        layer: "features", or "logits": `vector` alone, the classifier's output.
        classes: of the classifier; default that of the weights. Only with layer "logits" do they have to agree.
        clip_len, stride, fps: frames of a clip, grid steps between two of them, the grid's rate; defaults are those
            that torchvision evaluates the weights with (frames: 2 a second).
        resize: default torchvision's evaluation. Its video size of 128 x 171 becomes short side 128.

    Raises:
        UserError: no such model or weights (near matches are listed), a model that is no classifier, or an input on
            which it cannot run.
    """
    stem, _, written = model.partition(".")
    name = _known(stem)
    entry = _entry(name, tag or written)
    if layer not in LAYERS:
        raise UserError(f"tv:{name}: layer must be one of {', '.join(LAYERS)}, got {layer!r}")
    for value in _enum(name):
        if f"tv:{name}.{value.name}" not in TABLE:
            add_weights(weights_entry(name, value))
    video = _kind(name) == "video"
    transform = entry.transforms()
    resize = resize_dict(resize, _resize(transform))
    size = clip_input_size(resize)
    if size is None and name.startswith(_ONE_SIZE):
        raise UserError(f"tv:{name} takes frames of one size: give resize a crop, or squash")
    published = _published_clip(entry) if video else (1, 2.0)
    clip_len = clip_len or published[0]
    if clip_len != 1 and not video:
        raise UserError(f"tv:{name} reads single frames, not clips of {clip_len}")
    classes = classes or len(entry.meta["categories"] or ()) or 1000

    from .torchvision_library_model import output_shapes

    grid, vector = output_shapes(name, classes, clip_len, size or _default_size(transform), layer)
    outputs: dict[str, tuple[tuple[int, ...], str]] = {"vector": ((vector,), "feature")}
    if grid is not None and size is not None and layer != "logits":
        outputs = {"spatial": (grid[-3:], "feature"), **outputs}
        if video:
            outputs = {"map": (grid, "feature"), **outputs}
    return NetworkSpec(
        name=f"tv:{name}",
        kind="backbone",
        reads="rgb_clip" if video else "rgb_frame",
        outputs=outputs,
        builder="extract.networks.torchvision_library_model:TorchvisionNetwork",
        family="torchvision_video" if video else "frame",
        layer=layer,
        options={"classes": classes} if layer == "logits" else {},
        clip_len=clip_len,
        stride=stride,
        fps=float(fps or published[1]),
        resize=resize,
        mean=tuple(float(v) for v in transform.mean),
        std=tuple(float(v) for v in transform.std),
        unit_rows=unit_rows or (64 if video else 1024),
        batch_size=batch_size or (4 if video else 32),
        weights=f"tv:{name}.{entry.name}",
        random_scale=next((v for k, v in _RANDOM_SCALE.items() if name.startswith(k)), ()),
        licence=_licence(entry),
        source=_source(name, entry, transform),
    )


@functools.cache
def model_names() -> tuple[str, ...]:
    """Every model that "tv:" serves."""
    from torchvision import models

    return tuple(models.list_models(module=models) + models.list_models(module=models.video))


def weights_entry(name: str, value: Any) -> Weights:
    """One entry of torchvision's weights enum as an entry of the table."""
    filename = value.url.rpartition("/")[2]
    prefix = re.search(r"-([0-9a-f]{8,})\.pth$", filename)
    figures = {
        f"{dataset} {metric}": float(number)
        for dataset, metrics in value.meta.get("_metrics", {}).items()
        for metric, number in metrics.items()
        if number == number  # the features-only VGG has NaN
    }
    return Weights(
        name=f"tv:{name}.{value.name}",
        architecture=f"tv:{name}",
        filename=filename,
        url=value.url,
        hash=f"sha256:{prefix[1]}" if prefix else "",
        licence=_licence(value),
        trained_on=tuple(dataset for word, dataset in _DATASETS if word in value.name),
        accuracy=figures,
        options={"tag": value.name},
    )


def _licence(entry: Any) -> str:
    stated = entry.meta.get("license", "")
    return f"CC-BY-NC-4.0 ({stated})" if "SWAG" in stated else stated or "BSD-3-Clause"


def _source(name: str, entry: Any, transform: Any) -> str:
    import torchvision

    how = getattr(transform, "interpolation", None)
    text = f"torchvision {torchvision.__version__} {name}, {entry.name}, {entry.meta.get('recipe', '')}"
    return text + (f"; torchvision evaluates it with {how.value} resizing" if how else "")


def _kind(name: str) -> str:
    """The part of torchvision.models that a model is in: "" for image classifiers, else video, detection ..."""
    from torchvision import models

    module = models.get_model_builder(name).__module__.split(".")
    return module[2] if len(module) > 3 else ""


def _known(name: str) -> str:
    """The name, if it is a classifier of torchvision."""
    from torchvision import models

    names = model_names()
    if name in names:
        return name
    if name in models.list_models():
        raise UserError(
            f"tv:{name} is {_REFUSED.get(_kind(name), 'no classifier')}; tv: serves torchvision's image and video "
            "classifiers"
        )
    near = difflib.get_close_matches(name.lower(), names, n=4)
    hint = f"did you mean {', '.join(f'tv:{n}' for n in near)}?" if near else f"it has {', '.join(names)}"
    raise UserError(f"torchvision has no model {name!r}: {hint}")


def _enum(name: str) -> Any:
    from torchvision import models

    return models.get_model_weights(name)


def _entry(name: str, tag: str) -> Any:
    """The member of the weights enum that a tag names; without one, torchvision's default."""
    enum = _enum(name)
    tag = tag or "DEFAULT"
    if tag not in enum.__members__:
        known = ", ".join(f"tv:{name}.{value.name}" for value in enum)
        raise UserError(f"torchvision has no weights {tag!r} of {name}: it has {known}")
    return enum[tag]


def _published_clip(entry: Any) -> tuple[int, float]:
    """(frames, frames a second) that torchvision evaluates a video model with, as its notes say."""
    found = dict(re.findall(r"(frame_rate|clip_len)=([0-9.]*[0-9])", entry.meta.get("_docs", "")))
    return int(found.get("clip_len", 16)), float(found.get("frame_rate", 15))


def _resize(transform: Any) -> dict[str, Any]:
    scaled, crop = list(transform.resize_size), transform.crop_size[0]
    mode = "squash" if len(scaled) == 2 and scaled[0] == scaled[1] else "short_side"
    return {"mode": mode, "size": min(scaled), "crop": crop}


def _default_size(transform: Any) -> tuple[int, int]:
    return (transform.crop_size[0],) * 2
