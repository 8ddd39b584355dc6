"""What recognising a video costs, in GFLOPs as the literature counts them: multiply-adds.

The networks of stage one and the heads of stage two are counted together here, because neither may know the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["VideoCost", "gflops", "multiply_adds"]


def multiply_adds(module: nn.Module, *inputs) -> int:
    """Multiply-adds of one evaluation pass: torch's flop counter, which counts two for each, halved.

    Convolutions, matrix products and attention count; norms, activations and poolings do not.
    Module and inputs on the meta device are counted without computing anything. The module is left as it was.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            module.eval()(*inputs)
    finally:
        for part, training in modes.items():
            part.training = training
    return counter.get_total_flops() // 2


def gflops(module: nn.Module, *inputs) -> float:
    """`multiply_adds` in units of 1e9: the GFLOPs of the thesis's tables."""
    return multiply_adds(module, *inputs) / 1e9


@dataclass(frozen=True)
class VideoCost:
    """GFLOPs of one video by component. Uniform and dense sampling have a sampler and a context of 0."""

    recogniser: float  # of one frame
    sampler: float = 0.0  # of one frame
    context: float = 0.0  # of one video
    candidates: int = 0  # frames the sampler looks at

    def total(self, sampled: float) -> float:
        """GFLOPs when the recogniser sees `sampled` frames, which may be a mean over videos."""
        return self.candidates * self.sampler + self.context + sampled * self.recogniser
