"""Windows of a training clip's frames: the same for all of them, decided by the caller's random numbers."""

from __future__ import annotations

import numpy as np

__all__ = ["centre_window", "cut", "random_window", "resized"]

Window = tuple[int, int, int, int]
"""top, left, height, width in pixels."""


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
