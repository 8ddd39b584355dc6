"""Faster R-CNN on EfficientNet-Lite0 in torch: torchvision's stages around a small body."""

from __future__ import annotations

import warnings
from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign

from errors import UserError

from ..weights import RandomWeightsWarning
from .base import PRECISIONS
from .efficientnet_lite0 import LAYERS
from .efficientnet_lite0_model import EfficientNetLite0, FrameNetwork
from .faster_rcnn_lite0 import CHANNELS, HEAD_WIDTH, STRIDES
from .faster_rcnn_model import FasterRcnn
from .layers import fuse_all
from .spec import NetworkSpec

__all__ = ["FasterRcnnLite0", "Lite0Fpn"]

_TAPS = (4, 10, 15)  # the last block of each stride in STRIDES
_CELLS = 7
_BODY = "backbone.body."


class Lite0Fpn(nn.Module):
    """Normalised (B, 3, H, W) -> {"0", "1", "2": (B, CHANNELS, H/s, W/s)} at STRIDES."""

    out_channels = CHANNELS

    def __init__(self) -> None:
        super().__init__()
        self.body = EfficientNetLite0()
        del self.body.head, self.body.fc  # of the classifier
        channels = [LAYERS[f"stride{stride}"][1] for stride in STRIDES]
        self.fpn = FeaturePyramidNetwork(channels, CHANNELS)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        x, maps = self.body.stem(x), OrderedDict()
        for number, block in enumerate(self.body.blocks):
            x = block(x)
            if number in _TAPS:
                maps[str(len(maps))] = x
        return self.fpn(maps)


class FasterRcnnLite0(FasterRcnn):
    """Frames in; the best boxes, their scores, classes and RoI features out."""

    def __init__(self, spec: NetworkSpec) -> None:
        options = spec.options
        levels = [str(i) for i in range(len(STRIDES))]
        model = FasterRCNN(
            Lite0Fpn(),
            min_size=spec.resize["size"],
            max_size=spec.resize["max_size"],
            image_mean=list(spec.mean),
            image_std=list(spec.std),
            rpn_anchor_generator=AnchorGenerator(
                tuple((side,) for side in options["anchors"]), ((0.5, 1.0, 2.0),) * len(STRIDES)
            ),
            rpn_pre_nms_top_n_train=options["proposals"],
            rpn_post_nms_top_n_train=options["proposals"],
            rpn_pre_nms_top_n_test=options["proposals"],
            rpn_post_nms_top_n_test=options["proposals"],
            box_roi_pool=MultiScaleRoIAlign(levels, _CELLS, 2),
            box_head=TwoMLPHead(CHANNELS * _CELLS**2, HEAD_WIDTH),
            box_predictor=FastRCNNPredictor(HEAD_WIDTH, options["classes"]),
            box_score_thresh=options["score_threshold"],
            box_nms_thresh=options["nms_threshold"],
            box_batch_size_per_image=64,  # regions a training image, a quarter of them objects
            box_detections_per_img=2**31 - 1,  # `top` cuts later, so that n_boxes can count them all
        )
        super().__init__(spec, model)

    def prepare(self) -> None:
        super().prepare()
        fuse_all(self.module, PRECISIONS[self.precision])

    # -- weights -----------------------------------------------------------------------------------------------

    def load_weights(self, weights: str | None) -> None:
        if weights is None:
            raise UserError(
                f"{self.spec.name} has no published weights that detect anything: train it on a dataset's boxes"
                " (train-detector) and give --weights RUN, or random:SEED"
            )
        super().load_weights(weights)

    def convert_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The classifier's published names to those of the body; its last layers are left out."""
        if not any(key.startswith("_blocks.") for key in state):
            return state
        named = FrameNetwork.convert_state(self, state)
        return {_BODY + key: value for key, value in named.items() if not key.startswith(("head.", "fc."))}

    def adapt_to(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Around the weights of a body alone, everything else stays as it was initialised: to be trained."""
        if all(key.startswith(_BODY) for key in state):
            warnings.warn(
                f"{self.spec.name} starts from the weights of its body: untrained, it finds nothing",
                RandomWeightsWarning,
                stacklevel=5,
            )
            own = self.module.state_dict()
            return {key: value for key, value in own.items() if not key.startswith(_BODY)} | state
        return super().adapt_to(state)
