"""R(2+1)D-34 on torchvision's video ResNet, with the widths of the Caffe2 network that IG-65M trained."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.video.resnet import BasicBlock, Conv2Plus1D, R2Plus1dStem, VideoResNet

from .clip_model import ClipBackbone, ClipModule, logits_map
from .spec import NetworkSpec

__all__ = ["R2Plus1D34", "VideoResNet34"]


class VideoResNet34(ClipModule, VideoResNet):
    """Stages: stem, layer1 ... layer4, pooled (B, 512, 1, 1, 1), logits."""

    def __init__(self, layer: str, classes: int) -> None:
        super().__init__(BasicBlock, [Conv2Plus1D] * 4, [3, 4, 6, 3], R2Plus1dStem, num_classes=classes)
        self.layer = layer
        # Caffe2 counts the middle planes of a block's second convolution from the block's output width, torchvision
        # from its input width; the two differ where the width doubles.
        for stage, width in ((self.layer2, 128), (self.layer3, 256), (self.layer4, 512)):
            stage[0].conv2[0] = Conv2Plus1D(width, width, width * 9 // 4)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.eps, module.momentum = 1e-3, 0.9
        if layer != "logits":
            del self.fc

    def stages(self, x: Tensor):
        for name in ("stem", "layer1", "layer2", "layer3", "layer4"):
            x = getattr(self, name)(x)
            yield name, x
        pooled = x.float().mean((2, 3, 4))
        yield "pooled", logits_map(pooled)
        yield "logits", logits_map(self.fc(pooled))


class R2Plus1D34(ClipBackbone):
    """R(2+1)D-34 on RGB clips."""

    stem, head = "stem.0.weight", "fc."

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(spec, VideoResNet34(spec.layer, spec.options["classes"]))
