"""`null` and `tiny3d` in torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .base import Network
from .spec import NetworkSpec

__all__ = ["Null", "Tiny3d", "tiny3d_network"]


class Null(Network):
    """Reads every frame a little, computes no network."""

    def compute(self, x: Tensor, slots: list[int], batch: dict[str, list]) -> dict[str, Tensor]:
        return {"vector": x[:, :, ::16, ::16].float().mean((2, 3, 4)) / 255.0}


class Tiny3d(nn.Module):
    """(B, 3, T, H, W) -> (B, channels, ceil(T/8), ceil(H/32), ceil(W/32))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 16, (2, 8, 8), (2, 8, 8))
        self.body = nn.Conv3d(16, channels, (4, 4, 4), (4, 4, 4))

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = x.shape[2:]
        x = F.pad(x, (0, -w % 32, 0, -h % 32, 0, -t % 8))
        return F.relu(self.body(F.relu(self.stem(x))))


def tiny3d_network(spec: NetworkSpec) -> Network:
    return Network(spec, Tiny3d(spec.options["channels"]))
