"""The experts that T2VLAD reads (thesis section 6.3): each a network slid over whole videos, one store each. Data only.

Where the published features are older networks than these (METHODS of MMT and collaborative-experts), the network here
is the one whose weights are published for PyTorch; `NAME:NETWORK` puts any other in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from errors import UserError
from extract.networks import network_spec

__all__ = ["EXPERTS", "Expert", "find_expert"]


@dataclass(frozen=True)
class Expert:
    """A network and how it is slid over a video; its store has the expert's name."""

    name: str
    network: str
    keep: tuple[str, ...]  # arrays stored, of those that the network has
    hop_s: float | None = None  # seconds from one row to the next; None: the network's own
    options: dict[str, Any] = field(default_factory=dict)  # of the network
    packaged: str = ""  # a network whose weights come with a Python package, for machines that cannot download


_TABLE = (
    Expert("rgb", "resnet152", ("vector",), hop_s=1.0, packaged="efficientnet_lite0"),
    Expert("motion", "s3d", ("vector",), hop_s=1.0),
    Expert("flow", "i3d_flow", ("vector",), hop_s=1.0),
    Expert("audio", "vggish", ("vector",)),
    Expert("scene", "densenet161", ("vector",), hop_s=1.0),
    Expert("ocr", "ocr", ("text", "n_text", "tokens", "n_tokens"), hop_s=1.0),
    Expert("face", "face", ("roi", "boxes", "scores", "classes", "n_boxes"), hop_s=1.0),
    Expert("speech", "speech", ("text", "n_text", "tokens", "n_tokens")),
)
EXPERTS: dict[str, Expert] = {expert.name: expert for expert in _TABLE}


def find_expert(name: str) -> Expert:
    """The expert of a name, or of "NAME:NETWORK" with another network in its place.

    Raises:
        UserError: no such expert, or no such network.
    """
    expert_name, _, network = name.partition(":")
    expert = EXPERTS.get(expert_name)
    if expert is None:
        raise UserError(f"--expert {name}: the experts are {', '.join(EXPERTS)}, or NAME:NETWORK")
    if not network:
        return expert
    keep = tuple(array for array in network_spec(network).outputs if array not in ("map", "spatial", "logits"))
    return Expert(expert.name, network, keep, expert.hop_s)
