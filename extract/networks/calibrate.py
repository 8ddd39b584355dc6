"""Random weights of library models: batch norms that fit what they see."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..weights import uniform01

__all__ = ["calibrate_norms"]


def calibrate_norms(module: nn.Module, size: int, forward: Callable[[Tensor], Any]) -> None:
    """Give batch norms filled at random the statistics of a fixed batch (8, 3, size, size) of blocks and noise.

    Random kernels double the variance at every residual sum, and no fixed factor suits every architecture.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        return
    blocks, noise = (
        torch.from_numpy(uniform01(f"calibration {side}", 8 * 3 * side * side)).reshape(8, 3, side, side)
        for side in (-(-size // 16), size)
    )
    x = nn.functional.interpolate(blocks, size=(size, size)) * 3.2 + noise * 0.8 - 2
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over what it sees
        norm.train()
    with torch.no_grad():
        forward(x.float())
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
