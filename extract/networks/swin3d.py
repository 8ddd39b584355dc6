"""Video Swin-T (Liu et al. 2021, arXiv:2106.13230) as in Omnivore (Girdhar et al. 2022, arXiv:2201.08377), no torch.

RGB clips, optical flow and spectrograms, the three inputs of query fusion. No weights were published for the last
two: they start from the RGB weights, whose first convolution is adapted to their channels (noted in
`weights_origin`). Preprocessing of RGB: ImageNet mean and std; short side 256, centre crop 224.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from errors import UserError

from ..weights import IMAGENET, KINETICS400, Weights, add_weights
from .clip_spec import clip_spec, flow_gain, halved, head_size
from .registry import register_network
from .spec import NetworkSpec

__all__ = ["CHANNELS", "WINDOW_SAMPLES", "map_shape", "swin3d_t", "swin3d_t_audio", "swin3d_t_flow"]

CHANNELS = {"norm": 768}
WINDOW_SAMPLES = 30696  # 1.279 s at 24 kHz: one spectrogram of 256 x 256
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_FLOW_STD = 0.226  # the mean of ImageNet's three: 8-bit flow for weights that were trained on RGB, as in TSN's release
_SOURCE = (
    "Liu et al. 2021 (arXiv:2106.13230), Girdhar et al. 2022 (arXiv:2201.08377); "
    "checkpoints of facebookresearch/omnivore and torchvision"
)
_SUN_RGBD = {"dataset": "sun_rgbd", "split": "train", "classes": 19}

for _name in ("swin3d_t", "swin3d_t_flow", "swin3d_t_audio"):
    add_weights(
        Weights(
            name=f"{_name}.omnivore",
            architecture=_name,
            filename="swinT_checkpoint.torch",
            url="https://dl.fbaipublicfiles.com/omnivore/models/swinT_checkpoint.torch",
            licence="CC-BY-NC-4.0",
            trained_on=(KINETICS400, IMAGENET, _SUN_RGBD),
            accuracy={"kinetics400 val top-1": 78.9, "imagenet val top-1": 81.2, "sun_rgbd val top-1": 62.3},
        ),
        Weights(
            name=f"{_name}.kinetics400",
            architecture=_name,
            filename="swin3d_t-7615ae03.pth",
            url="https://download.pytorch.org/models/swin3d_t-7615ae03.pth",
            hash="sha256:7615ae03",
            licence="BSD-3-Clause",
            trained_on=(KINETICS400, IMAGENET),
            accuracy={"kinetics400 val top-1": 77.715, "kinetics400 val top-5": 93.519},
            options={"fps": 15.0, "stride": 1} if _name == "swin3d_t" else {},
        ),
    )


def map_shape(layer: str, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(T', H', W'): patches of 2 x 4 x 4 and three mergings, each padded with zeros to whole patches."""
    return halved(frames, 2), halved(height, 32), halved(width, 32)


def _fit(state: Mapping[str, Any]) -> dict[str, int]:
    """The class count, under Omnivore's name or torchvision's."""
    return head_size(state, "heads.video.1.bias") or head_size(state, "head.bias")


@register_network("swin3d_t", fit=_fit)
def swin3d_t(
    *,
    layer: str = "norm",
    clip_len: int = 32,
    stride: int = 2,
    fps: float = 30.0,
    resize: dict[str, Any] | None = None,
    classes: int = 400,
    unit_rows: int = 64,
    batch_size: int = 4,
) -> NetworkSpec:
    """Video Swin-T on RGB clips.

    Args:
        layer: norm (map ceil(T/2), ceil(H/32), ceil(W/32), 768, after the last norm) or logits (the clip's scores).
        clip_len, stride, fps: frames of a clip, grid steps between two of them, the grid's rate. An odd number of
            frames gets one frame of zeros at its end, after the normalisation.
        resize: {"mode", "size", "crop"}; default short side 256, centre crop 224.
        classes: outputs of the last layer, for checkpoints trained on something else than Kinetics-400.
    """
    return _spec("swin3d_t", "rgb_clip", layer, clip_len, stride, fps, resize, classes, unit_rows, batch_size,
                 mean=_MEAN, std=_STD, options={"classes": classes})  # fmt: skip


@register_network("swin3d_t_flow", fit=_fit)
def swin3d_t_flow(
    *,
    layer: str = "norm",
    clip_len: int = 32,
    stride: int = 2,
    fps: float = 30.0,
    resize: dict[str, Any] | None = None,
    classes: int = 400,
    unit_rows: int = 64,
    batch_size: int = 4,
    flow_bound: float = 25.0,
    flow_scale: float = 0.8,
) -> NetworkSpec:
    """Video Swin-T on optical flow stored as 8-bit images, channels u then v.

    `flow_bound` and `flow_scale` as for `i3d_flow`: a stored value becomes pixels between two frames at 25 fps, clipped
    to +-20, and 20 pixels become 0.5 / 0.226, the range of normalised RGB. An RGB checkpoint's first convolution is
    averaged over R, G and B, for u and for v (TSN's cross-modality initialisation: Wang et al. 2016, section 3.2);
    `weights_origin` says so. One with 2 input channels loads as it is.

    Other arguments as for `swin3d_t`.
    """
    gain = flow_gain("swin3d_t_flow", flow_bound, flow_scale)
    return _spec("swin3d_t_flow", "flow", layer, clip_len, stride, fps, resize, classes, unit_rows, batch_size,
                 mean=(0.5,) * 2, std=(_FLOW_STD / gain,) * 2, value_clip=0.5 / _FLOW_STD,
                 options={"classes": classes, "flow_bound": flow_bound, "flow_scale": flow_scale})  # fmt: skip


@register_network("swin3d_t_audio", fit=_fit)
def swin3d_t_audio(
    *,
    layer: str = "norm",
    clip_len: int = WINDOW_SAMPLES,
    frames: int = 8,
    size: int = 224,
    hop: int = 0,
    classes: int = 400,
    unit_rows: int = 256,
    batch_size: int = 4,
) -> NetworkSpec:
    """Video Swin-T on log spectrograms (TBN's: 24 kHz mono, 1.279 s -> 256 x 256, ln(|X|^2 + 1e-6)).

    Each of the clip's `frames` is the spectrogram of one 1.279 s window, resized to `size` x `size`, frequencies
    upwards in rows and time in columns; the windows are spread evenly over the waveform. The default waveform is one
    window, which is repeated. Values stay as they are: the norm after the first convolution takes their scale away.
    An RGB checkpoint's first convolution is averaged over R, G and B; one with 1 input channel loads as it is.

    Args:
        layer, classes: as for `swin3d_t`; the map is (ceil(frames/2), ceil(size/32), ceil(size/32), 768).
        clip_len: samples of a row's waveform, at least 30696.
        hop: segment axis: samples from one row to the next; 0 = clip_len.
    """
    if clip_len < WINDOW_SAMPLES:
        raise UserError(f"swin3d_t_audio: clip_len must be at least {WINDOW_SAMPLES} samples (1.279 s), got {clip_len}")
    if frames < 1 or size < 32:
        raise UserError(f"swin3d_t_audio: frames must be at least 1 and size at least 32, got {frames} and {size}")
    square = {"mode": "squash", "size": size}
    spec = clip_spec(
        "swin3d_t_audio",
        channels=CHANNELS,
        map_shape=map_shape,
        head_cells=(1, 1, 1),
        layer=layer,
        clip_len=frames,
        resize=square,
        default_resize=square,
        classes=classes,
        reads="waveform",
        builder="extract.networks.swin3d_model:SpectrogramSwin",
        options={"classes": classes, "frames": frames, "size": size},
        hop=hop,
        fps=24000.0,
        unit_rows=unit_rows,
        batch_size=batch_size,
        **_origin("swin3d_t_audio"),
    )
    return replace(spec, clip_len=clip_len, resize={"mode": "none"})  # the row is a waveform, its clip made from it


def _spec(
    name: str,
    reads: str,
    layer: str,
    clip_len: int,
    stride: int,
    fps: float,
    resize: dict[str, Any] | None,
    classes: int,
    unit_rows: int,
    batch_size: int,
    **values: Any,
) -> NetworkSpec:
    return clip_spec(
        name,
        channels=CHANNELS,
        map_shape=map_shape,
        head_cells=(1, 1, 1),
        layer=layer,
        clip_len=clip_len,
        resize=resize,
        default_resize={"mode": "short_side", "size": 256, "crop": 224},
        classes=classes,
        reads=reads,
        builder="extract.networks.swin3d_model:Swin3d",
        stride=stride,
        fps=float(fps),
        unit_rows=unit_rows,
        batch_size=batch_size,
        **_origin(name),
        **values,
    )


def _origin(name: str) -> dict[str, Any]:
    return {"family": "swin3d_t", "weights": f"{name}.omnivore", "licence": "CC-BY-NC-4.0", "source": _SOURCE}
