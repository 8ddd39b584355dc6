"""Networks: a registry from names to specs, and one file per network.

Importing this package, listing networks and looking up a spec need no torch; creating a network does.
"""

from . import (  # importing them registers them
    detectron2_library,  # noqa: F401
    efficientnet_lite0,  # noqa: F401
    face,  # noqa: F401
    faster_rcnn,  # noqa: F401
    faster_rcnn_lite0,  # noqa: F401
    frame_store,  # noqa: F401
    hf_library,  # noqa: F401
    i3d,  # noqa: F401
    ocr,  # noqa: F401
    r2plus1d34,  # noqa: F401
    r3d50,  # noqa: F401
    s3d,  # noqa: F401
    slow_r50,  # noqa: F401
    small,  # noqa: F401
    small3d,  # noqa: F401
    speech,  # noqa: F401
    swin3d,  # noqa: F401
    text,  # noqa: F401
    timm_library,  # noqa: F401
    torchvision_frames,  # noqa: F401
    torchvision_library,  # noqa: F401
    vggish,  # noqa: F401
)
from .registry import (
    create_backbone,
    create_network,
    list_networks,
    network_spec,
    register_library,
    register_network,
    trained_options,
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
    "trained_options",
    "weights_options",
]


def __getattr__(name: str):
    if name == "Network":
        from .base import Network

        return Network
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
