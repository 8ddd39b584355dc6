"""GFLOPs: counted as multiply-adds, and the thesis's own figures (tables 5.4 and 5.5)."""

import pytest
import torch
from torchvision.models import get_model

from heads.psn import PSN, PSNConfig
from pipelines.cost import VideoCost, gflops, multiply_adds, network_cost, random_network


def test_multiply_adds_by_hand():
    assert multiply_adds(torch.nn.Linear(7, 5), torch.zeros(3, 7)) == 3 * 7 * 5
    conv = torch.nn.Conv2d(4, 6, 3, padding=1, groups=2)
    assert multiply_adds(conv, torch.zeros(2, 4, 8, 9)) == 2 * 8 * 9 * 6 * 2 * 9
    part = torch.nn.Sequential(torch.nn.Conv1d(4, 6, 3), torch.nn.BatchNorm1d(6), torch.nn.ReLU())
    assert gflops(part, torch.zeros(1, 4, 10)) == 8 * 4 * 6 * 3 / 1e9


@pytest.mark.parametrize("name, model", [("tsn_resnet50", "resnet50"), ("shufflenet_v2", "shufflenet_v2_x1_0")])
def test_a_network_costs_what_its_architecture_costs(name, model):
    """With batch norms folded in, and convolutions called by the name of the library that computes them."""
    network = random_network(name, {"resize": {"mode": "squash", "size": 64}})
    assert "logits" not in network.keep
    with torch.device("meta"):
        made = get_model(model)
        made.fc = torch.nn.Identity()  # logits are not kept
        expected = gflops(made, torch.empty(1, 3, 64, 64))
    assert network_cost(network, 2).gflops == pytest.approx(expected)


def test_counting_leaves_the_module_as_it_was():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout())
    module[2].eval()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    multiply_adds(module, torch.randn(5, 4))
    assert [part.training for part in module] == [True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    with pytest.raises(RuntimeError):
        multiply_adds(module, torch.randn(5, 3))
    assert module.training


@pytest.fixture(scope="module")
def cost():
    """GFLOPs of one frame by network, and of the context module on 25 frames; on the meta device, in a second."""
    with torch.device("meta"):
        frame = torch.empty(1, 3, 224, 224)
        names = ("resnet50", "resnet101", "shufflenet_v2_x1_0")
        found = {name: gflops(get_model(name), frame) for name in names}
        sampler = PSN(PSNConfig(channels=1024, classes=200)).sampler
        found["context"] = gflops(sampler, torch.empty(1, 25, 1024), torch.ones(1, 25, dtype=torch.bool))
    return found


def test_context_by_hand(cost):
    """A layer of the ED-TCN costs its shorter side: 13, 7 and 4 of the 25 frames, then 4, 7 and 13."""
    wide = 3 * 256 * 256
    assert cost["context"] * 1e9 == pytest.approx(13 * 3 * 1024 * 256 + (7 + 4 + 4 + 7 + 13) * wide + 25 * 256)


@pytest.mark.parametrize(
    "recogniser, sampled, printed", [("resnet101", 10, 82.3), ("resnet50", 6, 28.6), ("resnet50", 8, 36.8)]
)
def test_psn_costs_what_the_thesis_prints(cost, recogniser, sampled, printed):
    whole = VideoCost(cost[recogniser], cost["shufflenet_v2_x1_0"], cost["context"], candidates=25)
    assert whole.total(sampled) == pytest.approx(printed, rel=0.02)


def test_uniform_frames_cost_what_the_thesis_prints(cost):
    assert VideoCost(cost["resnet101"]).total(25) == pytest.approx(195.8, rel=0.02)
