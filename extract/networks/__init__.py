"""Networks: a registry from names to specs, and one file per network.

Importing this package, listing networks and looking up a spec need no torch; creating a network does.
"""

from . import efficientnet_lite0, faster_rcnn, i3d, small
from .registry import create_backbone, create_network, list_networks, network_spec, register_network
from .spec import NetworkSpec

__all__ = [
    "Network",
    "NetworkSpec",
    "create_backbone",
    "create_network",
    "list_networks",
    "network_spec",
    "register_network",
]

_BUILT_IN = (efficientnet_lite0, faster_rcnn, i3d, small)  # importing them registers them


def __getattr__(name: str):
    if name == "Network":
        from .base import Network

        return Network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
