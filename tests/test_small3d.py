"""small3d: sizes, folding, its two streams, and that it learns motion which single frames do not show."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from errors import UserError
from extract.networks import create_network, network_spec
from extract.networks.small3d import CHANNELS, map_shape

pytestmark = pytest.mark.filterwarnings("ignore:small3d runs with random weights")


def clips_of_a_square(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 (n, 8, 32, 32, 3): a square on noise that goes right (1) or left (0); any one frame says nothing."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    clips = np.repeat(rng.integers(60, 200, (n, 1, 32, 32, 3), dtype=np.uint8), 8, axis=1)
    for clip, goes_right, top in zip(clips, label, rng.integers(0, 22, n), strict=True):
        start = rng.integers(0, 8)
        for t, frame in enumerate(clip if goes_right else clip[::-1]):
            left = start + 2 * t
            frame[top : top + 10, left : left + 10] = 255
    return torch.from_numpy(clips), torch.from_numpy(label)


@pytest.mark.parametrize("frames, height, width", [(16, 112, 112), (7, 49, 50), (9, 33, 65)])
def test_maps_have_the_size_the_spec_promised(frames, height, width):
    net = create_network("small3d", "random:0", clip_len=frames)
    with torch.inference_mode():
        found = net.module.endpoints(torch.randn(1, 3, frames, height, width), tuple(CHANNELS))
    for layer, channels in CHANNELS.items():
        assert found[layer].shape == (1, channels, *map_shape(layer, frames, height, width))


def test_its_map_suits_a_head_that_places_boxes():
    assert network_spec("small3d").outputs["map"] == ((4, 7, 7, 128), "feature")
    assert network_spec("small3d", layer="layer1").outputs["spatial"] == ((14, 14, 64), "feature")
    assert network_spec("small3d", layer="logits", classes=6).outputs == {"vector": ((6,), "feature")}
    with pytest.raises(UserError, match="layer must be one of layer1, layer2, logits"):
        network_spec("small3d", layer="layer3")


def test_folded_norms_equal_the_plain_layers():
    net = create_network("small3d", "random:0", layer="logits", classes=5)
    net.to("cpu")
    x = torch.randn(1, 3, 9, 45, 51)
    with torch.inference_mode():
        plain = dict(net.module.stages(x))
        fast = net.module.endpoints(x, tuple(plain))
    assert list(plain) == ["stem", "layer1", "layer2", "pooled", "logits"]
    for name, value in plain.items():
        assert (fast[name] - value).abs().max() <= 1e-4 * value.std(), name


def test_the_stream_of_differences_is_blind_to_still_pictures():
    net = create_network("small3d", "random:0")
    still = torch.randn(2, 3, 1, 32, 32).expand(-1, -1, 6, -1, -1)
    with torch.inference_mode():
        frames, differences = net.module.stem(still).split([16, 32], dim=1)
    assert torch.equal(differences[0], differences[1]) and not torch.allclose(frames[0], frames[1])
    moved = still.clone()
    moved[:, :, 3] += 1
    with torch.inference_mode():
        change = net.module.stem(moved)[:, 16:] - differences
    changed = change.abs().amax((0, 1, 3, 4)) > 0
    assert changed.tolist() == [False, False, True, True, False, False]


def test_it_learns_which_way_a_square_goes():
    torch.manual_seed(0)
    net = create_network("small3d", "random:0", layer="logits", classes=2, clip_len=8)
    module = net.module.requires_grad_(True).train()
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for step in range(16):
        clips, label = clips_of_a_square(16, seed=step)
        loss = F.cross_entropy(module(net.normalise(clips)).flatten(1), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    module.eval()
    net.prepare()
    clips, label = clips_of_a_square(40, seed=1000)
    with torch.inference_mode():
        found = module(net.normalise(clips)).flatten(1).argmax(1)
    assert (found == label).float().mean() >= 0.9
