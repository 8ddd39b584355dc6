"""RAFT (Teed and Deng 2020, arXiv:2003.12039) as torchvision has it, for computing flow on CUDA."""

from __future__ import annotations

import threading

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.optical_flow import raft_large

from errors import MachineError

from .flow import PARAMETERS, RAFT_WEIGHTS, FlowMethod
from .networks.base import Network
from .networks.spec import NetworkSpec

__all__ = ["Raft"]

_MIN_SIZE = 128  # the smallest input whose correlation pyramid has four levels

_SPEC = NetworkSpec(
    name="raft_large",
    kind="track",
    reads="rgb_clip",
    clip_len=2,
    outputs={"flow": ((2,), "float32")},  # of every pixel
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    weights=RAFT_WEIGHTS,
    random_scale=(("update_block.flow_head.conv2.*", 0.05),),  # steps of pixels, not of the whole frame
    licence="BSD-3-Clause",
    source="Teed and Deng 2020 (arXiv:2003.12039); torchvision's raft_large",
)


class Raft(FlowMethod):
    """RAFT in float32: frames scaled to [-1, 1] and padded by their edges to multiples of 8, 128 at least."""

    name = "raft"

    def __init__(self, device: str = "cpu", weights: str | None = None) -> None:
        self.network = Network(_SPEC, raft_large(weights=None))
        self.network.load_weights(weights)
        self.network.to(device, "fp32")
        self._lock = threading.Lock()  # torchvision's module keeps the correlation pyramid of the pair in work
        self.pairs_at_once = 1 if self.network.device.type == "cpu" else 8

    def compute(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        pad = _padding(*first.shape[1:3])
        try:
            with self._lock, self.network.inference():
                images = [F.pad(self._normalised(frames), pad, mode="replicate") for frames in (first, second)]
                flow = self.network.module(*images, num_flow_updates=PARAMETERS["raft"]["updates"])[-1]
                left, _, top, _ = pad
                flow = flow[:, :, top : top + first.shape[1], left : left + first.shape[2]]
                return flow.movedim(1, -1).cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise MachineError(
                f"{self.network.device} ran out of memory on the flow of {len(first)} pairs of "
                f"{first.shape[2]} x {first.shape[1]} pixels: resize the frames to a smaller size, or use --flow dis"
            ) from error

    def _normalised(self, frames: np.ndarray) -> Tensor:
        """uint8 (n, h, w, 3) -> float32 (n, 3, h, w) on the device."""
        x = torch.from_numpy(np.ascontiguousarray(frames)).to(self.network.device)
        return self.network.normalise(x).contiguous()


def _padding(height: int, width: int) -> tuple[int, int, int, int]:
    """(left, right, top, bottom) that centre a frame in the next size RAFT takes."""
    sides = []
    for n in (width, height):
        extra = max(_MIN_SIZE, -(-n // 8) * 8) - n
        sides += [extra // 2, extra - extra // 2]
    return tuple(sides)
