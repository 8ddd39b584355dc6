"""d2:CONFIG: detectron2's own networks, where it is installed, against ours from the same checkpoint, box for box."""

import importlib.util
import json
import warnings

import numpy as np
import pytest
import torch
from network_cases import natural

from errors import UserError
from extract.networks import create_network, network_spec
from extract.weights import RandomWeightsWarning, random_value

warnings.simplefilter("ignore", RandomWeightsWarning)
INSTALLED = importlib.util.find_spec("detectron2") is not None


@pytest.mark.skipif(INSTALLED, reason="detectron2 is installed")
def test_without_detectron2_the_way_out_is_named():
    with pytest.raises(UserError, match=r"pip install .*detectron2.*faster_rcnn_r50_fpn, faster_rcnn_x101_fpn"):
        network_spec("d2:COCO-Detection/faster_rcnn_R_50_FPN_3x")


@pytest.mark.skipif(not INSTALLED, reason="detectron2 is not installed")
@pytest.mark.parametrize("feature", ["pooled", "fc"])
def test_detectron2_agrees_box_for_box(tmp_path, shared, feature):
    state = {}
    for key, shape in json.loads((shared / "golden" / "faster_rcnn_r50_fpn.json").read_text())["state_dict"].items():
        factor = next((f for end, f in TAMED if key.endswith(end)), 1.0) * (0.25 if "fpn_output" in key else 1.0)
        state[key] = torch.from_numpy(random_value(key, tuple(shape)) * np.float32(factor))
    torch.save({"model": state, "iteration": 1}, tmp_path / "model.pth")
    config = tmp_path / "own.yaml"
    config.write_text(OWN_CONFIG)
    ours = create_network(
        "faster_rcnn_r50_fpn", str(tmp_path / "model.pth"), roi_feature=feature, top=50,
        proposals=200, resize={"mode": "detector", "size": 160, "max_size": 266},
    )  # fmt: skip
    theirs = create_network(f"d2:{config}:{tmp_path / 'model.pth'}", roi_feature=feature, top=50, proposals=200)
    assert theirs.spec.name == "d2:own.yaml" and theirs.spec.outputs == ours.spec.outputs
    np.testing.assert_allclose(theirs.spec.mean, ours.spec.mean)
    batch = {"frames": [natural((150, 253, 3), 1), None, natural((101, 90, 3), 2)]}
    a, b = ours.run(batch), theirs.run(batch)
    assert np.array_equal(a["n_boxes"], b["n_boxes"]) and np.array_equal(a["classes"], b["classes"])
    np.testing.assert_allclose(a["boxes"], b["boxes"], atol=1e-2)
    np.testing.assert_allclose(a["scores"], b["scores"], atol=1e-5)
    np.testing.assert_allclose(a["roi"], b["roi"], atol=1e-3 * b["roi"].std())


TAMED = (
    ("conv3.norm.weight", 0.2), ("objectness_logits.weight", 0.2), ("anchor_deltas.weight", 0.08),
    ("cls_score.weight", 0.2), ("bbox_pred.weight", 0.2), ("stem.conv1.weight", 1 / 57),
)  # fmt: skip
OWN_CONFIG = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6]}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5]}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 2, POOLER_RESOLUTION: 7}
INPUT: {MIN_SIZE_TEST: 160, MAX_SIZE_TEST: 266}
"""


@pytest.mark.skipif(not INSTALLED, reason="detectron2 is not installed")
def test_detectron2_configs(tmp_path):
    with pytest.raises(UserError, match="did you mean .*faster_rcnn_R_50_FPN_3x"):
        network_spec("d2:COCO-Detection/faster_rcnn_R_50_FPN_3y")
    with pytest.raises(UserError, match="only networks of type GeneralizedRCNN"):
        network_spec("d2:COCO-Detection/retinanet_R_50_FPN_1x")
    own = tmp_path / "evil.yaml"
    own.write_text('MODEL:\n  WEIGHTS: !!python/object/apply:os.system ["touch hacked"]\n')
    with pytest.raises(UserError, match="not a config"):
        network_spec(f"d2:{own}")
    spec = network_spec("d2:COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", roi_feature="fc")
    assert spec.outputs["roi"] == ((10, 2048), "feature") and spec.weights.endswith(".zoo")
