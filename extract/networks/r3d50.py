"""3D ResNet-50 (Hara et al. 2018, arXiv:1711.09577; Kataoka et al. 2020, arXiv:2004.04968): entries, no torch.

Two generations of checkpoints share the architecture (shortcut B, 7x7x7 stem) and differ in what they were fed:

- layout "current", `r3d50_K_200ep.pth` (700 classes): x/255, mean .4345 .4051 .3775, std .2768 .2713 .2737;
- layout "2018", `resnet-50-kinetics.pth` (400 classes, keys under `module.`): 0..255 minus 114.7748 107.7354 99.4750,
  no std.

Both: 16 frames, short side 112, centre crop 112.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from errors import UserError

from ..weights import KINETICS400, Weights, add_weights
from .clip_spec import clip_spec, flow_gain, halved, head_size
from .registry import register_network
from .spec import NetworkSpec

__all__ = ["CHANNELS", "LAYOUTS", "map_shape", "r3d50", "r3d50_flow"]

CHANNELS = {"layer3": 1024, "layer4": 2048}
LAYOUTS = {  # layout: (classes, mean, std), of values scaled to [0, 1]
    "current": (700, (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)),
    "2018": (400, (114.7748 / 255, 107.7354 / 255, 99.4750 / 255), (1 / 255,) * 3),
}
_KINETICS700 = {"dataset": "kinetics700", "split": "train", "classes": 700}
_DRIVE = "https://drive.google.com/drive/folders"

for _name in ("r3d50", "r3d50_flow"):  # the flow network starts from the RGB files
    add_weights(
        Weights(
            name=f"{_name}.kinetics700",
            architecture=_name,
            filename="r3d50_K_200ep.pth",
            page=f"{_DRIVE}/1xbYbZ7rpyjftI_KCk6YuL-XrfQDz7Yd4",
            licence="MIT",
            trained_on=(_KINETICS700,),
            options={"layout": "current", "classes": 700},
        ),
        Weights(
            name=f"{_name}.kinetics400_2018",
            architecture=_name,
            filename="resnet-50-kinetics.pth",
            page=f"{_DRIVE}/1zvl89AgFAApbH0At-gMuZSeQB_LpNP-M",
            licence="MIT",
            trained_on=(KINETICS400,),
            accuracy={"kinetics400 validation mean of top-1 and top-5": 72.2} if _name == "r3d50" else {},
            options={"layout": "2018", "classes": 400},
        ),
    )


def map_shape(layer: str, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(T', H', W') of a layer: every stride-2 stage is padded symmetrically, halves and rounds up."""
    t, s = (8, 16) if layer == "layer3" else (16, 32)
    return halved(frames, t), halved(height, s), halved(width, s)


def _fit(state: Mapping[str, Any]) -> dict[str, Any]:
    """The layout and the class count of a checkpoint.

    The 2018 files were written before torch counted batches (no `num_batches_tracked`) and have 400 classes; no
    current file has either. For one's own training on Kinetics-400 with the current code, give layout="current".
    """
    head = head_size(state, "fc.bias")
    old = head.get("classes") == 400 or not any(key.endswith("num_batches_tracked") for key in state)
    return {"layout": "2018" if old else "current"} | head


@register_network("r3d50", fit=_fit)
def r3d50(
    *,
    layer: str = "layer4",
    clip_len: int = 16,
    stride: int = 1,
    fps: float = 25.0,
    resize: dict[str, Any] | None = None,
    layout: str = "current",
    classes: int | None = None,
    unit_rows: int = 64,
    batch_size: int = 4,
) -> NetworkSpec:
    """3D ResNet-50 on RGB clips.

    Args:
        layer: layer4 (map T/16, H/32, W/32, 2048), layer3 (T/8, H/16, W/16, 1024), all rounded up, or logits (the
            clip's scores before the softmax, from the mean over the map of layer4).
        clip_len, stride, fps: frames of a clip, grid steps between two of them, the grid's rate.
        resize: {"mode", "size", "crop"}; default short side 112, centre crop 112.
        layout: generation of the checkpoint, "current" or "2018", which decides the preprocessing (see the module);
            read from the checkpoint unless given.
        classes: outputs of the last layer; default the layout's own (700 or 400).
    """
    _, mean, std = _layout("r3d50", layout)
    return _spec("r3d50", "rgb_clip", layer, clip_len, stride, fps, resize, layout, classes, unit_rows, batch_size,
                 mean=mean, std=std)  # fmt: skip


@register_network("r3d50_flow", fit=_fit)
def r3d50_flow(
    *,
    layer: str = "layer4",
    clip_len: int = 16,
    stride: int = 1,
    fps: float = 25.0,
    resize: dict[str, Any] | None = None,
    layout: str = "current",
    classes: int | None = None,
    unit_rows: int = 64,
    batch_size: int = 4,
    flow_bound: float = 25.0,
    flow_scale: float = 0.8,
    flow_norm: str = "centred",
) -> NetworkSpec:
    """3D ResNet-50 on optical flow stored as 8-bit images, channels u then v.

    No flow weights of this network are published. An RGB checkpoint is inflated as in TSN's cross-modality
    initialisation (Wang et al. 2016, section 3.2): the first convolution's kernels are averaged over R, G and B, and
    the average stands for u and for v, not rescaled; `weights_origin` says so. It is a start for training: as a
    frozen network it knows no motion. A checkpoint whose first convolution reads 2 channels is loaded as it is.

    A stored value q is (q / 255 * 2 - 1) * `flow_bound` pixels; times `flow_scale` it is pixels between two frames at
    25 fps, clipped to +-20 and put on the scale of an 8-bit flow image, 0.5 + pixels / 40 in [0, 1]: flow images as
    TSN stores them. The defaults are those of EPIC's published flow, as for `i3d_flow`; they keep the full range.

    Args:
        flow_bound, flow_scale: see above.
        flow_norm: "centred" (default, TSN's): minus 0.5, so that no motion is 0, divided by the mean of the layout's
            three stds (current 0.2739, 2018 1/255): the range the inflated kernels were trained on.
            "hara": minus the mean and by the std of R and G, as the current code does with flow (no motion becomes
            +0.24 and +0.35): for 2-channel checkpoints trained with that code.

    Other arguments as for `r3d50`.
    """
    _, mean, std = _layout("r3d50_flow", layout)
    gain = flow_gain("r3d50_flow", flow_bound, flow_scale)
    if flow_norm == "centred":
        shared = sum(std) / 3
        norm = {"mean": (0.5,) * 2, "std": (shared / gain,) * 2, "value_clip": 0.5 / shared}
    elif flow_norm == "hara":
        if gain > 1:
            raise UserError(
                f"r3d50_flow: with flow_norm='hara', flow_bound * flow_scale must not exceed 20 pixels (the clipping "
                f"would not be centred on zero), got {flow_bound * flow_scale:g}"
            )
        norm = {"mean": tuple(0.5 - (0.5 - m) / gain for m in mean[:2]), "std": tuple(s / gain for s in std[:2])}
    else:
        raise UserError(f"r3d50_flow: flow_norm must be centred or hara, got {flow_norm!r}")
    return _spec("r3d50_flow", "flow", layer, clip_len, stride, fps, resize, layout, classes, unit_rows, batch_size,
                 flow={"flow_bound": flow_bound, "flow_scale": flow_scale, "flow_norm": flow_norm}, **norm)  # fmt: skip


def _layout(name: str, layout: str) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    if layout not in LAYOUTS:
        raise UserError(f"{name}: layout must be one of {', '.join(LAYOUTS)}, got {layout!r}")
    return LAYOUTS[layout]


def _spec(
    name: str,
    reads: str,
    layer: str,
    clip_len: int,
    stride: int,
    fps: float,
    resize: dict[str, Any] | None,
    layout: str,
    classes: int | None,
    unit_rows: int,
    batch_size: int,
    flow: dict[str, Any] | None = None,
    **values: Any,
) -> NetworkSpec:
    classes = LAYOUTS[layout][0] if classes is None else classes
    return clip_spec(
        name,
        channels=CHANNELS,
        map_shape=map_shape,
        head_cells=(1, 1, 1),
        layer=layer,
        clip_len=clip_len,
        resize=resize,
        default_resize={"mode": "short_side", "size": 112, "crop": 112},
        classes=classes,
        reads=reads,
        builder="extract.networks.r3d50_model:R3D50",
        family="r3d50",
        options={"layout": layout, "classes": classes} | (flow or {}),
        stride=stride,
        fps=float(fps),
        unit_rows=unit_rows,
        batch_size=batch_size,
        weights=f"{name}.kinetics700",
        licence="MIT",
        source="Hara et al. 2018 (arXiv:1711.09577); checkpoints of kenshohara/3D-ResNets-PyTorch",
        **values,
    )
