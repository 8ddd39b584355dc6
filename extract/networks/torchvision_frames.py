"""Frame networks of torchvision under names of their own: ResNet, ShuffleNet V2, DenseNet; entries, no torch.

`tsn_resnet*` are the recognisers of PSN (thesis ch. 5): pooled feature and class logits. `densenet161` is the scene
expert, with the Places365 weights of CSAIL. Every other model of torchvision is there as "tv:NAME".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from errors import UserError

from ..weights import IMAGENET, Weights, add_weights
from .clip_spec import halved, head_size
from .frame_spec import frame_spec
from .registry import register_network
from .spec import NetworkSpec

__all__ = ["FAMILIES", "NETWORKS", "Family", "FrameEntry", "cells"]

_URL = "https://download.pytorch.org/models"
_PLACES365 = {"dataset": "places365", "split": "train", "classes": 365}
_V2_RESIZE = {"mode": "short_side", "size": 232, "crop": 224}  # of torchvision's second ImageNet recipe


@dataclass(frozen=True)
class Family:
    """What networks of one architecture share."""

    layers: dict[str, tuple[int, int]]  # layer: (stride, channels)
    default_layers: tuple[str, str]  # for frames, for boxes
    head: str  # prefix of the classifier's keys
    source: str
    random_scale: tuple[tuple[str, float], ...] = ()
    floor_after: int = 1 << 30  # strides beyond this one come from poolings that drop an odd last cell


_RESNET = Family(
    {"layer1": (4, 256), "layer2": (8, 512), "layer3": (16, 1024), "layer4": (32, 2048)},
    ("layer4", "layer3"),
    "fc.",
    "He et al. 2016 (arXiv:1512.03385); torchvision",
    (("*.bn3.weight", 0.2),),  # bottlenecks grow the residual stream
)
FAMILIES = {
    "resnet50": _RESNET,
    "resnet101": _RESNET,
    "resnet152": _RESNET,
    "shufflenet_v2_x1_0": Family(
        {"stage2": (8, 116), "stage3": (16, 232), "stage4": (32, 464), "conv5": (32, 1024)},
        ("conv5", "stage3"),
        "fc.",
        "Ma et al. 2018 (arXiv:1807.11164), width 1.0; torchvision",
    ),
    "densenet161": Family(
        {"denseblock2": (8, 768), "denseblock3": (16, 2112), "norm5": (32, 2208)},
        ("norm5", "denseblock3"),
        "classifier.",
        "Huang et al. 2017 (arXiv:1608.06993), Zhou et al. 2017 (Places365); CSAILVision/places365 and torchvision",
        floor_after=4,
    ),
}


@dataclass(frozen=True)
class FrameEntry:
    """A registered name: its architecture, its default weights, and whether it gives class logits."""

    model: str  # key of FAMILIES, torchvision's name
    weights: str
    logits: bool = False
    licence: str = "BSD-3-Clause"
    classes: int = 1000
    resize: dict[str, Any] | None = None  # of the default weights; None = short side 256, centre crop 224


_PLACES_RESIZE = {"mode": "squash", "size": 256, "crop": 224}
NETWORKS = {
    "tsn_resnet50": FrameEntry("resnet50", "imagenet", logits=True),
    "tsn_resnet101": FrameEntry("resnet101", "imagenet", logits=True),
    "tsn_resnet152": FrameEntry("resnet152", "imagenet", logits=True),
    "resnet50": FrameEntry("resnet50", "imagenet"),
    "resnet101": FrameEntry("resnet101", "imagenet"),
    "resnet152": FrameEntry("resnet152", "imagenet"),
    "shufflenet_v2": FrameEntry("shufflenet_v2_x1_0", "imagenet"),
    "densenet161": FrameEntry("densenet161", "places365", licence="CC-BY-4.0", classes=365, resize=_PLACES_RESIZE),
}
# model: {tag: (file, hash, ImageNet val top-1, top-5, options)}
_IMAGENET_FILES: dict[str, dict[str, tuple[str, str, float, float, dict[str, Any]]]] = {
    "resnet50": {
        "imagenet": ("resnet50-0676ba61.pth", "0676ba61", 76.13, 92.862, {}),
        "imagenet_v2": ("resnet50-11ad3fa6.pth", "11ad3fa6", 80.858, 95.434, {"resize": _V2_RESIZE}),
    },
    "resnet101": {
        "imagenet": ("resnet101-63fe2227.pth", "63fe2227", 77.374, 93.546, {}),
        "imagenet_v2": ("resnet101-cd907fc2.pth", "cd907fc2", 81.886, 95.78, {"resize": _V2_RESIZE}),
    },
    "resnet152": {
        "imagenet": ("resnet152-394f9c45.pth", "394f9c45", 78.312, 94.046, {}),
        "imagenet_v2": ("resnet152-f82ba261.pth", "f82ba261", 82.284, 96.002, {"resize": _V2_RESIZE}),
    },
    "shufflenet_v2_x1_0": {
        "imagenet": ("shufflenetv2_x1-5666bf0f80.pth", "5666bf0f80", 69.362, 88.316, {}),
    },
    "densenet161": {
        "imagenet": (
            "densenet161-8d451a50.pth",
            "8d451a50",
            77.138,
            93.56,
            {"classes": 1000, "resize": {"mode": "short_side", "size": 256, "crop": 224}},
        ),
    },
}  # fmt: skip

for _name, _entry in NETWORKS.items():
    for _tag, (_file, _hash, _top1, _top5, _options) in _IMAGENET_FILES[_entry.model].items():
        add_weights(
            Weights(
                name=f"{_name}.{_tag}",
                architecture=_name,
                filename=_file,
                url=f"{_URL}/{_file}",
                hash=f"sha256:{_hash}",
                licence="BSD-3-Clause",
                trained_on=(IMAGENET,),
                accuracy={"imagenet val top-1": _top1, "imagenet val top-5": _top5},
                options=_options,
            )
        )
add_weights(
    Weights(
        name="densenet161.places365",
        architecture="densenet161",
        filename="densenet161_places365.pth.tar",
        url="http://places2.csail.mit.edu/models_places365/densenet161_places365.pth.tar",
        licence="CC-BY-4.0",
        trained_on=(_PLACES365,),
        options={"classes": 365, "resize": _PLACES_RESIZE},
    )
)


def cells(model: str, layer: str, pixels: int) -> int:
    """Cells of a layer's map along one side: convolutions round up, DenseNet's transitions down."""
    family = FAMILIES[model]
    stride = family.layers[layer][0]
    up = min(stride, family.floor_after)
    return halved(pixels, up) // (stride // up)


def _register(name: str, entry: FrameEntry) -> None:
    family = FAMILIES[entry.model]

    def fit(state: Mapping[str, Any]) -> dict[str, int]:
        return head_size(state, f"{family.head}bias")

    def spec(
        *,
        boxes: bool = False,
        layer: str | None = None,
        logits: bool | None = None,
        classes: int | None = None,
        resize: dict[str, Any] | None = None,
        fps: float = 2.0,
        top: int = 10,
        roi_size: int = 7,
        roi_pool: str = "max",
        unit_rows: int | None = None,
        batch_size: int = 32,
    ) -> NetworkSpec:
        wanted = entry.logits and not boxes if logits is None else logits
        classes = entry.classes if classes is None else classes
        if not isinstance(classes, int) or classes < 1:
            raise UserError(f"{name}: classes must be a positive whole number, got {classes!r}")
        last = family.default_layers[0]
        if wanted and (boxes or layer not in (None, last)):
            raise UserError(f"{name}: logits are computed from the layer {last} of whole frames")
        return frame_spec(
            name,
            channels={layer: channels for layer, (_, channels) in family.layers.items()},
            cells=lambda layer, pixels: cells(entry.model, layer, pixels),
            layer=layer,
            layers=family.default_layers,
            boxes=boxes,
            resize=resize,
            default_resize=entry.resize,
            fps=fps,
            top=top,
            roi_size=roi_size,
            roi_pool=roi_pool,
            unit_rows=unit_rows,
            batch_size=batch_size,
            builders=tuple(f"extract.networks.torchvision_frames_model:{kind}" for kind in ("Frames", "FrameBoxes")),
            classes=classes if wanted else 0,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            weights=f"{name}.{entry.weights}",
            random_scale=family.random_scale,
            licence=entry.licence,
            source=family.source,
        )

    spec.__name__ = name
    spec.__doc__ = f"""{name}: {entry.model} of torchvision on single frames.

    Args:
        boxes: False: a backbone with `spatial` (H', W', C), `vector` (C) and, where asked for, `logits` (classes).
            True: a roi network that reads boxes with each frame and returns RoIAlign of the map at each, pooled.
        layer: one of {", ".join(family.layers)}; default {family.default_layers[0]} for frames,
            {family.default_layers[1]} for boxes.
        logits: also give the classifier's output, before the softmax; default {entry.logits}.
        classes: outputs of the classifier; default {entry.classes}, or the checkpoint's own.
        resize: default that of the weights for frames, squash to 320 for boxes.
        fps: of the frame grid.
        top, roi_size, roi_pool: boxes kept a frame; RoIAlign's cells a side, and "max" or "mean" over them.
    """
    register_network(name, fit=fit)(spec)


for _name, _entry in NETWORKS.items():
    _register(_name, _entry)
