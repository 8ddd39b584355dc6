"""What recognising a video costs: GFLOPs as the literature counts them (multiply-adds), and seconds on this machine.

The networks of stage one and the heads of stage two are counted together here, because neither may know the other.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from extract.networks import create_network
from extract.weights import RandomWeightsWarning

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Cost", "VideoCost", "counted", "gflops", "head_cost", "multiply_adds", "network_cost", "random_network"]

_TIMES = 3  # passes timed after one that is not; the median counts


def multiply_adds(module: nn.Module, *inputs) -> int:
    """Multiply-adds of one evaluation pass: torch's flop counter, which counts two for each, halved.

    Convolutions, matrix products and attention count; norms, activations and poolings do not.
    Module and inputs on the meta device are counted without computing anything. The module is left as it was.
    """
    import torch

    modes = {part: part.training for part in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            return counted(lambda: module(*inputs))[1]
    finally:
        for part, training in modes.items():
            part.training = training


def gflops(module: nn.Module, *inputs) -> float:
    """`multiply_adds` in units of 1e9: the GFLOPs of the thesis's tables."""
    return multiply_adds(module, *inputs) / 1e9


@dataclass(frozen=True)
class VideoCost:
    """GFLOPs, or seconds, of one video by component. Uniform and dense sampling have a sampler and a context of 0."""

    recogniser: float  # of one frame
    sampler: float = 0.0  # of one frame
    context: float = 0.0  # of one video
    candidates: float = 0  # frames the sampler looks at, which may be a mean over videos

    def parts(self, sampled: float) -> dict[str, float]:
        """{"sampler", "context", "recogniser"} when the recogniser sees `sampled` frames, a mean likewise."""
        return {
            "sampler": self.candidates * self.sampler,
            "context": self.context,
            "recogniser": sampled * self.recogniser,
        }

    def total(self, sampled: float) -> float:
        """Their sum."""
        return sum(self.parts(sampled).values())


# --- counted and timed ---


@dataclass(frozen=True)
class Cost:
    """Of one pass: a frame's through a network, a video's through a head."""

    gflops: float
    seconds: float  # the median of some passes, on the device where it ran

    def of(self, n: int) -> Cost:
        """The n-th part."""
        return Cost(**{name: value / n for name, value in asdict(self).items()})


def random_network(name: str, options: Mapping[str, object]):
    """A network with weights of no meaning: what a pass costs does not depend on them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)
        return create_network(name, "random:0", **options)


def network_cost(network, frames: int) -> Cost | None:
    """Of one frame, when `frames` go through a frame network (extract.networks.Network) at once, on its device.

    None where the frames' size depends on the video.
    """
    import torch

    size = network.spec.input_size
    if size is None:
        return None
    shown = torch.zeros((frames, *size, network.spec.channels), dtype=torch.uint8, device=network.device)

    def forward():
        with network.inference():
            network.compute(shown, list(range(frames)), {})

    return _measured(forward, network.device).of(frames)


def head_cost(head: nn.Module, device: str) -> Cost:
    """Of what follows the light network on one video: a sampler's scores of its N candidates."""
    import torch

    config = head.config
    vector = torch.zeros((1, config.frames, config.channels), device=device)

    def forward():
        with torch.inference_mode():
            head.scores({"sampler": {"vector": vector}})

    head.eval()
    return _measured(forward, torch.device(device))


def _measured(forward: Callable[[], None], device) -> Cost:
    import torch

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    (_, multiplied), seconds = counted(forward), []
    for _ in range(_TIMES):
        begun = finished()
        forward()
        seconds.append(finished() - begun)
    return Cost(multiplied / 1e9, sorted(seconds)[_TIMES // 2])


def counted(forward: Callable[[], object]) -> tuple:
    """(what `forward` returns, the multiply-adds of doing it)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

    def convolution(x_shape, w_shape, *rest, out_shape=None, **options) -> int:
        return conv_flop_count(x_shape, w_shape, out_shape)

    # Networks call oneDNN's convolution by name (`extract.networks.layers`), which torch's counter does not know.
    known = {torch.ops.aten.mkldnn_convolution: convolution}
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        found = forward()
    return found, counter.get_total_flops() // 2
