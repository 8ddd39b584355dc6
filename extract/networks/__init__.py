"""Networks: a registry from names to specs, and one file per network.

Importing this package, listing networks and looking up a spec need no torch; creating a network does.
"""

from . import (  # importing them registers them
    efficientnet_lite0,  # noqa: F401
    faster_rcnn,  # noqa: F401
    i3d,  # noqa: F401
    small,  # noqa: F401
)
from .registry import (
    create_backbone,
    create_network,
    list_networks,
    network_spec,
    register_library,
    register_network,
    weights_options,
)
from .spec import NetworkSpec

__all__ = [
    "Network",
    "NetworkSpec",
    "create_backbone",
    "create_network",
    "list_networks",
    "network_spec",
    "register_library",
    "register_network",
    "weights_options",
]


def __getattr__(name: str):
    if name == "Network":
        from .base import Network

        return Network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
