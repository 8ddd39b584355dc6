"""From a decoded frame to the uint8 array a network reads: orientation, colour, size, crop.

One conversion by swscale: to RGB24 (colour matrix and range as the frame says; swscale's default, ITU-R
BT.601, where it says nothing) and to the wanted size at once, bilinear. Flags are fixed, and one thread
scales, so that the same frame always gives the same pixels.
"""

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from extract.transforms import Placed

__all__ = ["SWS_FLAGS", "UPRIGHT", "Converter", "Orientation", "orientation"]

SWS_FLAGS = Interpolation.BILINEAR

Orientation = tuple[bool, bool, bool]  # swap x and y, then mirror x, then mirror y
UPRIGHT: Orientation = (False, False, False)


def orientation(frame) -> Orientation:
    """How the frame's display matrix turns it: one of the eight turns and mirrors, the nearest.

    The matrix (nine int32: a b u c d v x y w) maps (p, q) to (a p + c q, b p + d q). Ask it of a video's
    first frame only: PyAV ties a frame to its side data in a cycle, so every frame asked stays in memory
    until the garbage collector comes by.
    """
    matrix = next((d for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return UPRIGHT
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return (True, c < 0, b < 0)
    return (False, a < 0, d < 0)


class Converter:
    """Turns decoded frames, all of one orientation, into arrays; keeps its swscale context between frames."""

    def __init__(self, turn: Orientation = UPRIGHT):
        self._turn = turn
        self._scale = VideoReformatter()

    def __call__(self, frame, place: Placed, pixel_format: str = "rgb24") -> np.ndarray:
        """uint8 (crop_h, crop_w, 3), or (crop_h, crop_w) for pixel_format "gray"; contiguous."""
        swap, mirror_x, mirror_y = self._turn
        width, height = (place.height, place.width) if swap else (place.width, place.height)
        image = self._scale.reformat(
            frame, width=width, height=height, format=pixel_format, interpolation=SWS_FLAGS, threads=1
        ).to_ndarray()
        if swap:
            image = image.swapaxes(0, 1)
        if mirror_x:
            image = image[:, ::-1]
        if mirror_y:
            image = image[::-1]
        image = image[place.top : place.top + place.crop_h, place.left : place.left + place.crop_w]
        return np.ascontiguousarray(image)
