"""Where a frame goes: how its source is scaled and cropped, and how that places boxes on a feature map.

Everything here is arithmetic on sizes; the pixels are moved by the decoder (swscale, bilinear), which
scales to `Placed.width` x `Placed.height` and then slices the crop.
"""

from dataclasses import dataclass

__all__ = ["MODES", "Placed", "Resize", "geometry", "plan_resize"]

MODES = ("squash", "short_side", "detector", "none")


@dataclass(frozen=True)
class Resize:
    """How a frame is brought to the size that a network reads.

    mode      "squash": size x size, aspect ratio not kept (SAOA: thesis section 3.4);
              "short_side": the shorter side becomes `size`, the longer one keeps the aspect ratio,
              rounded half up; "detector", "none": the source's own size, for networks that resize
              by themselves
    size      pixels; not used by "detector" and "none" (a detector may note its own short side here)
    max_size  pixels; the detector's own limit of the long side, a note for the network
    crop      pixels: a centred crop x crop window of the scaled frame; an odd pixel is left at the end
    """

    mode: str = "none"
    size: int = 0
    max_size: int = 0
    crop: int | None = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"resize mode {self.mode!r}: choose one of {', '.join(MODES)}")
        scales = self.mode in ("squash", "short_side")
        if scales and self.size < 1:
            raise ValueError(f"resize mode {self.mode!r} needs a size in pixels, got {self.size}")
        if self.crop is not None and not scales:
            raise ValueError(f"resize mode {self.mode!r} takes no crop, got crop={self.crop}")
        if self.crop is not None and not 1 <= self.crop <= self.size:
            raise ValueError(f"crop {self.crop} does not fit a frame whose short side is {self.size}")


@dataclass(frozen=True)
class Placed:
    """A resize worked out for one source size: scale to (width, height), then cut out the crop. Pixels."""

    width: int
    height: int
    left: int
    top: int
    crop_w: int
    crop_h: int


def plan_resize(r: Resize, width: int, height: int) -> Placed:
    """The scaled size and the crop for a source of width x height pixels (display orientation)."""
    if width < 1 or height < 1:
        raise ValueError(f"a frame of {width} x {height} pixels cannot be resized")
    if r.mode == "squash":
        w = h = r.size
    elif r.mode == "short_side":
        short = min(width, height)
        w, h = (max(1, (2 * side * r.size + short) // (2 * short)) for side in (width, height))
    else:
        w, h = width, height
    if r.crop is None:
        return Placed(w, h, 0, 0, w, h)
    return Placed(w, h, (w - r.crop) // 2, (h - r.crop) // 2, r.crop, r.crop)


def geometry(r: Resize, width: int, height: int, map_h: int, map_w: int) -> tuple[float, float, float, float]:
    """(sx, sy, ox, oy) with map_x = sx * x_rel + ox and map_y = sy * y_rel + oy (DESIGN section 3).

    x_rel, y_rel in [0, 1] are relative to the source frame; map coordinates run from 0 to map_w (map_h)
    over the cropped frame that the network saw, so a point outside the crop falls outside the map.
    """
    p = plan_resize(r, width, height)
    return (
        p.width * map_w / p.crop_w,
        p.height * map_h / p.crop_h,
        -p.left * map_w / p.crop_w,
        -p.top * map_h / p.crop_h,
    )
