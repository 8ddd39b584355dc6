"""Windows of a training clip's frames: the same for all of them, decided by the caller's random numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from errors import UserError
from extract.sampling import counter_uniform

__all__ = ["Crops", "centre_window", "cut", "random_crops", "random_window", "resized"]

Window = tuple[int, int, int, int]
"""top, left, height, width in pixels."""


@dataclass(frozen=True)
class Crops:
    """Settings of random crops, part of a training's config; at 256 pixels scales 224 to 288, crops of 224."""

    crop: float = 0.875  # of the short side
    scale_min: float = 0.875
    scale_max: float = 1.125
    flip: bool = False  # half of the clips mirrored; not where labels have a direction

    def check_crops(self) -> None:
        """Raises UserError where a crop would not fit."""
        if not 0 < self.crop <= self.scale_min <= self.scale_max or self.crop > 1:
            raise UserError(
                "a crop must fit the frame and every scale: 0 < crop <= 1 and crop <= scale_min <= scale_max, got"
                f" {self.crop}, {self.scale_min}, {self.scale_max}"
            )


def random_crops(
    clips: Sequence[np.ndarray], ids: np.ndarray, epoch: int, seed: int, size: int, crops: Crops, share: float | None
) -> tuple[list[Window], list[np.ndarray]]:
    """(windows, uint8 (T, size, size, C) each) of clips (T, h, w, C), decided by (seed, id, epoch) alone.

    share: of the short side that a crop has at scale 1; None: what makes it `size` pixels there.
    """
    u = [counter_uniform(seed, ids, name, epoch) for name in ("scale", "x", "y", "flip")]
    windows, out = [], []
    for clip, scale, x, y, flip in zip(clips, *u, strict=True):
        scale = crops.scale_min + scale * (crops.scale_max - crops.scale_min)
        height, width = clip.shape[1:3]
        windows.append(random_window(height, width, share or size / min(height, width), scale, x, y))
        out.append(resized(cut(clip, windows[-1]), size, bool(crops.flip and flip < 0.5)))
    return windows, out


def random_window(height: int, width: int, share: float, scale: float, u_x: float, u_y: float) -> Window:
    """A square window; u_x, u_y in [0, 1) place it.

    Scaling a frame by `scale` and cropping `share` of its unscaled short side is cropping share / scale of the frame
    and resizing that: one resize instead of two.
    """
    side = min(round(share / scale * min(height, width)), height, width)
    return int(u_y * (height - side + 1)), int(u_x * (width - side + 1)), side, side


def centre_window(height: int, width: int, crop: int | None) -> Window:
    """The centred crop x crop window, placed as extraction places it; the whole frame for None."""
    return (0, 0, height, width) if crop is None else ((height - crop) // 2, (width - crop) // 2, crop, crop)


def cut(clip: np.ndarray, window: Window) -> np.ndarray:
    """(T, h, w, C) -> what lies in the window."""
    top, left, height, width = window
    return clip[:, top : top + height, left : left + width]


def resized(clip: np.ndarray, size: int, flip: bool = False) -> np.ndarray:
    """uint8 (T, h, w, C) -> (T, size, size, C), bilinear, antialiased.

    A flipped flow clip (C = 2) moves the other way: its u is mirrored about zero (127.5).
    """
    import torch
    from torchvision.transforms.v2.functional import resize

    if clip.shape[1:3] != (size, size):
        tensor = torch.from_numpy(np.ascontiguousarray(clip)).permute(0, 3, 1, 2)
        clip = resize(tensor, [size, size], antialias=True).permute(0, 2, 3, 1).numpy()
    if flip:
        clip = clip[:, :, ::-1]
        if clip.shape[-1] == 2:
            clip = np.stack((255 - clip[..., 0], clip[..., 1]), axis=-1)
    return clip
