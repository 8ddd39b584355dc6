"""S3D on torchvision's own, with kylemin's checkpoints renamed to its keys."""

from __future__ import annotations

import re

import torch.nn.functional as F
from torch import Tensor
from torchvision.models.video.s3d import S3D

from .clip_model import ClipBackbone, ClipModule
from .spec import NetworkSpec

__all__ = ["S3DBackbone", "S3DNetwork"]

_NAMES = {  # position in torchvision's `features`: stage
    0: "Conv3d_1a_7x7",
    3: "Conv3d_2c_3x3",
    5: "Mixed_3b",
    6: "Mixed_3c",
    8: "Mixed_4b",
    9: "Mixed_4c",
    10: "Mixed_4d",
    11: "Mixed_4e",
    12: "Mixed_4f",
    14: "Mixed_5b",
    15: "Mixed_5c",
}


class S3DNetwork(ClipModule, S3D):
    """Stages: Conv3d_1a_7x7, Conv3d_2c_3x3, the Mixed blocks, logits."""

    def __init__(self, layer: str, classes: int) -> None:
        super().__init__(num_classes=classes)
        self.layer = layer
        if layer != "logits":
            del self.classifier

    def stages(self, x: Tensor):
        for i, part in enumerate(self.features):
            x = part(x)
            if i in _NAMES:
                yield _NAMES[i], x
        # As kylemin's: torchvision's fixed 7 x 7 window is the same at 224 pixels, the size it was trained at.
        pooled = F.avg_pool3d(x.float(), (2, *x.shape[3:]), stride=1)
        yield "logits", self.classifier(pooled).mean(2, keepdim=True)


class S3DBackbone(ClipBackbone):
    """S3D on RGB clips."""

    stem, head = "features.0.0.0.weight", "classifier.1."

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, S3DNetwork(spec.layer, spec.options["classes"]))

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """kylemin's names (`base.5.branch1.1.conv_s.weight`) to torchvision's (`features.5.branch1.1.0.0.weight`)."""
        return {_from_kylemin(key): value for key, value in state.items()}


_PARTS = {"conv": "0", "bn": "1", "conv_s": "0.0", "bn_s": "0.1", "conv_t": "1.0", "bn_t": "1.1"}


def _from_kylemin(key: str) -> str:
    if key.startswith("fc.0."):
        return key.replace("fc.0.", "classifier.1.", 1)
    if not key.startswith("base."):
        return key
    key = key.replace("base.", "features.", 1).replace(".branch0.0.", ".branch0.", 1)
    return re.sub(r"\.((?:conv|bn)(?:_[st])?)\.(?=\w+$)", lambda m: f".{_PARTS[m[1]]}.", key)
