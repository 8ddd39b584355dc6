"""`flow_images` and `frames`: no computation, so no device either."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.io import encode_jpeg

from errors import UserError

from .base import Network

__all__ = ["FrameStore"]

LOWER = (90, 80, 70, 50, 30, 10, 1)  # qualities tried for a frame that does not fit


class FrameStore(Network):
    """Its one output is its input, or that as a JPEG."""

    def run(self, batch: dict[str, list]) -> dict[str, np.ndarray]:
        """As `Network.run`: a failed row returns zeros."""
        rows = self.rows_of(batch)
        out = self.blank(len(rows))
        (values,) = out.values()
        for slot, frame in enumerate(rows):
            if frame is None:
                continue
            self._check(slot, frame)
            if "jpeg" in out:
                coded = self._jpeg(frame)
                values[slot, : len(coded)] = coded
            else:
                values[slot] = frame
        return out

    def _jpeg(self, frame: np.ndarray) -> np.ndarray:
        """The frame as a JPEG file, uint8 (n,), n at most what a row holds."""
        best, most = self.spec.options["quality"], self.spec.outputs["jpeg"][0][0]
        picture = torch.from_numpy(np.ascontiguousarray(frame.transpose(2, 0, 1)))
        for quality in (best, *(q for q in LOWER if q < best)):
            coded = encode_jpeg(picture, quality=quality)
            if len(coded) <= most:
                return coded.numpy()
        raise UserError(
            f"frames: a frame of {frame.shape[1]} x {frame.shape[0]} pixels has no JPEG of {most} bytes or fewer:"
            f" resize it, or allow more with --option most_bytes={4 * most}"
        )
