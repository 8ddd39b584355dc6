"""3D CNN backbones: golden vectors, published checkpoint layouts, preprocessing, sizes known before the first frame."""

import json

import numpy as np
import pytest
import torch
from network_cases import golden, inputs
from tolerances import TOLERANCES

from errors import UserError
from extract.networks import create_network, network_spec, r2plus1d34, r3d50, s3d, slow_r50, weights_options
from extract.weights import TABLE, random_value

pytestmark = pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning")

GOLDEN = {  # network: (golden file, our name of a tensor where it differs, smallest clip of its logits at 64 pixels)
    "r3d50": ("r3d50_hara", {}),
    "slow_r50": ("slow_r50_pytorchvideo", {"out": "logits"}),
    "r2plus1d34": ("r2plus1d34_ig65m", {}),
    "s3d": ("s3d_kylemin", {"base.0": "Conv3d_1a_7x7", "base.3": "Conv3d_2c_3x3"}),
}
TOP = {"r3d50": "layer4", "slow_r50": "blocks.4", "r2plus1d34": "layer4", "s3d": "Mixed_5c"}
WRAPPED = {  # network: how its published file wraps the tensors
    "r3d50": lambda state: {"epoch": 200, "arch": "resnet-50", "state_dict": state},
    "slow_r50": lambda state: {"model_state": state},
    "r2plus1d34": lambda state: state,
    "s3d": lambda state: {f"module.{key}": value for key, value in state.items()},
}


def meta(shared, name):
    return json.loads((shared / "golden" / f"{GOLDEN[name][0]}.json").read_text())


def published_state(shared, name, skip=""):
    """Exactly the keys and shapes of a published checkpoint, filled by the golden rule."""
    return {
        key: torch.from_numpy(random_value(key, shape)) if dtype.startswith("float") else torch.tensor(3)
        for key, shape, dtype in meta(shared, name)["state_dict"]
        if not (skip and key.startswith(skip))
    }


@pytest.fixture(scope="module", params=GOLDEN)
def published(request, shared, tmp_path_factory):
    """(name, the network with its classifier, loaded from a file laid out as the published one). Tests re-cut it."""
    name = request.param
    path = tmp_path_factory.mktemp(name) / "published.pth"
    torch.save(WRAPPED[name](published_state(shared, name)), path)
    net = create_network(name, str(path), layer="logits")
    path.unlink()
    return name, net


def cut(net, layer, **options):
    """Another layer and input for a network that has all of them; it keeps the vector."""
    net.spec = network_spec(net.spec.name, layer=layer, classes=net.spec.options["classes"], **options)
    net.module.layer = layer
    net.to("cpu", "fp32").keep = "vector"


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["small", "full"])
def test_golden(published, shared, case):
    name, net = published
    file, names = GOLDEN[name]
    x, wanted, tolerance = golden(shared, file, case)
    assert tolerance == TOLERANCES["fp32"]["golden"]
    ours = {tensor: names.get(tensor, tensor) for tensor in wanted}
    with net.inference():
        found = net.module.endpoints(x, tuple(set(ours.values()) - {"conv1", "gap"}))
        if "conv1" in wanted:
            found["conv1"] = net.module.conv1(x)  # before its norm: the folded network has no such value
    if "gap" in wanted:
        found["gap"] = found.get("blocks.4", torch.zeros(1)).mean((2, 3, 4))
    for tensor, (values, index, std, shape) in wanted.items():
        y = found[ours[tensor]].numpy().reshape(shape).reshape(-1)
        error = np.abs((y if index is None else y[index]) - values).max() / std
        assert error <= tolerance, f"{tensor}: {error:.2g} of std"


def test_folded_norms_equal_the_plain_layers(published):
    """Odd sizes, with and without the batch norms folded in; an earlier stage's map is left as it was."""
    name, net = published
    x = torch.randn(1, 3, 9, 45, 51)
    with torch.inference_mode():
        stages = net.module.stages(x)
        plain = {}
        while TOP[name] not in plain:
            key, value = next(stages)
            plain[key] = value
        fast = net.module.endpoints(x, tuple(plain))
    for key, value in plain.items():
        assert (fast[key] - value).abs().max() <= 1e-4 * value.std(), key
    first = next(iter(plain))
    net.module.training = True  # of the network alone: its norms keep their statistics
    with torch.inference_mode():
        assert torch.equal(net.module.endpoints(x, (first,))[first], plain[first])
    net.module.training = False


def test_bf16_stays_close(published):
    name, net = published
    cut(net, layer=TOP[name], clip_len=8, resize={"mode": "squash", "size": 64})
    batch = inputs(net.spec, 2)
    full = net.run(batch)["vector"]
    half = net.to("cpu", "bf16").run(batch)["vector"]
    net.to("cpu", "fp32")
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() >= TOLERANCES["bf16"]["cosine"]


@pytest.mark.parametrize("size", [(7, 49, 49), (18, 65, 65), (9, 33, 33)])
def test_maps_have_the_size_the_spec_promised(published, size):
    name, net = published
    frames, side, _ = size
    module = {"r3d50": r3d50, "slow_r50": slow_r50, "r2plus1d34": r2plus1d34, "s3d": s3d}[name]
    layers = tuple(module.CHANNELS)
    with torch.inference_mode():
        found = net.module.endpoints(torch.randn(1, 3, frames, side, side), layers)
    for layer in layers:
        cells = module.map_shape(layer, *size)
        assert found[layer].shape == (1, module.CHANNELS[layer], *cells)
        if min(cells):
            spec = network_spec(name, layer=layer, clip_len=frames, resize={"mode": "squash", "size": side})
            assert spec.outputs["map"] == ((*cells, module.CHANNELS[layer]), "feature")


def test_logits_are_a_vector(published):
    name, net = published
    frames, size = (8, 193) if name == "slow_r50" else (13, 65)
    cut(net, layer="logits", clip_len=frames, resize={"mode": "squash", "size": size})
    assert net.spec.outputs == {"vector": ((net.spec.options["classes"],), "feature")}
    assert net.run(inputs(net.spec, 1))["vector"].std() > 0.1


# -- what is known before the first frame ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, options, shape",
    [
        ("r3d50", {"clip_len": 64, "resize": {"mode": "squash", "size": 256}}, (4, 8, 8, 2048)),
        ("r3d50_flow", {"clip_len": 64, "resize": {"mode": "squash", "size": 256}}, (4, 8, 8, 2048)),
        ("r3d50", {}, (1, 4, 4, 2048)),
        ("r2plus1d34", {"resize": {"mode": "squash", "size": 128}}, (4, 8, 8, 512)),
        ("r2plus1d34", {}, (4, 7, 7, 512)),
        ("s3d", {"resize": {"mode": "squash", "size": 256}}, (8, 8, 8, 1024)),
        ("s3d", {}, (8, 7, 7, 1024)),
        ("slow_r50", {}, (8, 8, 8, 2048)),
    ],
)
def test_shapes_of_the_methods_table(name, options, shape):
    assert network_spec(name, **options).outputs["map"] == (shape, "feature")


def test_published_protocols():
    spec = {name: network_spec(name) for name in (*GOLDEN, "r3d50_flow")}
    assert {n: (s.clip_len, s.stride, s.fps, s.resize["size"], s.resize["crop"]) for n, s in spec.items()} == {
        "r3d50": (16, 1, 25.0, 112, 112),
        "r3d50_flow": (16, 1, 25.0, 112, 112),
        "slow_r50": (8, 8, 30.0, 256, 256),
        "r2plus1d34": (32, 1, 25.0, 128, 112),
        "s3d": (64, 1, 25.0, 256, 224),
    }
    assert spec["r3d50"].family == spec["r3d50_flow"].family == "r3d50"
    assert all(network_spec(name, layer="logits").outputs["vector"][0][0] >= 359 for name in spec)


def test_too_small_an_input_is_refused():
    with pytest.raises(UserError, match="at least 8 x 7 x 7 cells, but 8 frames of 192 x 192 give 8 x 6 x 6"):
        network_spec("slow_r50", layer="logits", resize={"mode": "squash", "size": 192})
    with pytest.raises(UserError, match="layer Mixed_5c needs a map of at least 1 x 1 x 1"):
        network_spec("s3d", clip_len=4)
    with pytest.raises(UserError, match="at least 2 x 1 x 1"):
        network_spec("s3d", layer="logits", clip_len=12)
    for name in GOLDEN:
        with pytest.raises(UserError, match="layer must be one of"):
            network_spec(name, layer="layer9")
        with pytest.raises(UserError, match="classes"):
            network_spec(name, classes=0)


# -- preprocessing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry, name, options",
    [
        ("r3d50_hara_k700", "r3d50", {}),
        ("r3d50_hara_cvpr2018", "r3d50", {"layout": "2018"}),
        ("r2plus1d34_ig65m", "r2plus1d34", {}),
        ("slow_r50", "slow_r50", {}),
        ("s3d", "s3d", {}),
    ],
)
def test_values_as_published(shared, entry, name, options):
    table = json.loads((shared / "golden" / "preprocess_values.json").read_text())[entry]
    pixels = np.array([[[[[int(v)] * 3 for v in table]]]], np.uint8)
    np.testing.assert_allclose(normalised(pixels, name, **options)[0, :, 0, 0].T, list(table.values()), atol=1e-5)


def normalised(pixels, name, **options):
    """uint8 (B, T, H, W, C) -> the network's input, by its spec alone."""
    net = create_network("tiny3d", "random:0")
    net.spec = network_spec(name, **options)
    return net.normalise(torch.from_numpy(pixels)).numpy()


def test_torchvision_s3d_values_are_torchvisions():
    from torchvision.models.video import S3D_Weights

    spec = network_spec("s3d", preprocessing="torchvision")
    theirs = S3D_Weights.KINETICS400_V1.transforms()
    assert (spec.mean, spec.std) == (tuple(theirs.mean), tuple(theirs.std))
    assert spec.resize == {"mode": "squash", "size": theirs.resize_size[0], "crop": theirs.crop_size[0]}
    assert spec.fps == 15.0 and network_spec("s3d", preprocessing="torchvision", fps=25).fps == 25.0
    assert S3D_Weights.KINETICS400_V1.url == TABLE["s3d.torchvision"].url
    with pytest.raises(UserError, match="kylemin, torchvision"):
        network_spec("s3d", preprocessing="tf")


@pytest.mark.parametrize("layout, std", [("current", (0.2768 + 0.2713 + 0.2737) / 3), ("2018", 1 / 255)])
def test_flow_mapping(layout, std):
    q = np.array([0, 10, 127, 128, 200, 255], np.uint8)
    clip = np.stack([q, q], -1)[None, None, None]
    pixels = (q / 255 * 2 - 1) * 25
    for scale in (0.8, 1.0):  # EPIC's published flow on I3D's scale, and its pixels as they are
        got = normalised(clip, "r3d50_flow", layout=layout, flow_scale=scale)[0, 0, 0, 0]
        np.testing.assert_allclose(got, np.clip(pixels * scale, -20, 20) / 40 / std, rtol=1e-5, atol=1e-5)
    got = normalised(clip, "r3d50_flow", layout=layout, flow_norm="hara", flow_scale=0.4)[0, :, 0, 0]
    _, mean, stds = r3d50.LAYOUTS[layout]
    for channel in (0, 1):
        wanted = (0.5 + pixels * 0.4 / 40 - mean[channel]) / stds[channel]
        np.testing.assert_allclose(got[channel], wanted, rtol=1e-4, atol=1e-4)


def test_flow_options_are_checked():
    for options, message in (
        ({"flow_bound": 0}, "must be positive"),
        ({"flow_norm": "zscore"}, "centred or hara"),
        ({"flow_norm": "hara", "flow_scale": 1.0}, "must not exceed 20"),
        ({"layout": "2017"}, "current, 2018"),
    ):
        with pytest.raises(UserError, match=message):
            network_spec("r3d50_flow", **options)


# -- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, keys, options",
    [
        ("r3d50", {"fc.bias": 700, "bn1.num_batches_tracked": 1}, {"layout": "current", "classes": 700}),
        ("r3d50", {"fc.bias": 1039, "bn1.num_batches_tracked": 1}, {"layout": "current", "classes": 1039}),
        ("r3d50", {"module.fc.bias": 400, "module.bn1.bias": 64}, {"layout": "2018", "classes": 400}),
        ("r3d50_flow", {"fc.bias": 400}, {"layout": "2018", "classes": 400}),
        ("r3d50", {"bn1.bias": 64, "bn1.num_batches_tracked": 1}, {"layout": "current"}),
        ("slow_r50", {"blocks.5.proj.bias": 174}, {"classes": 174}),
        ("r2plus1d34", {"fc.bias": 359}, {"classes": 359}),
        ("r2plus1d34", {"fc.bias": 400}, {"classes": 400}),
        ("r2plus1d34", {"fc.bias": 487}, {"classes": 487, "clip_len": 8}),
        ("s3d", {"base.0.bn_s.bias": 64, "fc.0.bias": 400}, {"preprocessing": "kylemin", "classes": 400}),
        ("s3d", {"features.0.0.1.bias": 64, "classifier.1.bias": 9}, {"preprocessing": "torchvision", "classes": 9}),
    ],
)
def test_a_checkpoint_tells_its_options(tmp_path, name, keys, options):
    path = tmp_path / "some.pth"
    torch.save({key: torch.zeros(n) for key, n in keys.items()}, path)
    assert weights_options(name, str(path)) == options
    network_spec(name, **options)


def test_table_entries_can_be_asked_for():
    ours = {name: entry for name, entry in TABLE.items() if entry.architecture in (*GOLDEN, "r3d50_flow")}
    assert len(ours) == 11
    for name, entry in ours.items():
        assert (entry.url or entry.page) and entry.licence and entry.trained_on, name
        spec = network_spec(entry.architecture, **weights_options(entry.architecture, name))
        assert spec.weights in ours
    # known before the file is on this machine, under either name
    for asked in (("r3d50.kinetics400_2018",), ("r3d50", "kinetics400_2018"), ("r3d50", "r3d50.kinetics400_2018")):
        assert weights_options(*asked) == {"layout": "2018", "classes": 400}
    assert weights_options("r3d50") == {"layout": "current", "classes": 700}
    assert weights_options("r3d50", "random:1") == {}


def test_a_missing_checkpoint_says_where_to_fetch_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPBANK_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"fetch https://drive.google.com\S+ as r3d50_K_200ep.pth"):
        create_network("r3d50")


def test_the_2018_layout_loads_and_inflates(shared, tmp_path):
    """One file of 2018 (`module.` keys, no counters, 400 classes) for the RGB and, inflated, for the flow network."""
    state = published_state(shared, "r3d50", skip="fc.")
    state = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    state |= {"fc.weight": torch.ones(400, 2048), "fc.bias": torch.arange(400.0)}
    path = tmp_path / "old.pth"
    torch.save({"arch": "resnet-50", "state_dict": {f"module.{key}": value for key, value in state.items()}}, path)

    rgb = create_network("r3d50", str(path), layer="logits")
    assert rgb.spec.options == {"layout": "2018", "classes": 400} and rgb.spec.std == (1 / 255,) * 3
    assert torch.equal(rgb.module.fc.bias, torch.arange(400.0)) and rgb.weights_origin == "file:old.pth"
    with pytest.raises(UserError, match="has 400 classes, r3d50 was asked for 10: pass classes=400"):
        create_network("r3d50", str(path), layer="logits", classes=10)

    flow = create_network("r3d50_flow", str(path), clip_len=4, resize={"mode": "squash", "size": 32})
    conv1 = flow.module.conv1.weight
    assert conv1.shape == (64, 2, 7, 7, 7)
    for channel in (0, 1):
        torch.testing.assert_close(conv1[:, channel], state["conv1.weight"].mean(1))
    assert "inflated" in flow.weights_origin and flow.weights_hash == rgb.weights_hash
    assert flow.run(inputs(flow.spec, 1))["vector"].std() > 0.1

    # a checkpoint trained on flow goes in as it is, and is refused by the RGB network
    own = {key: value for key, value in flow.module.state_dict().items()} | {"conv1.weight": conv1 + 1}
    torch.save(own, path)
    trained = create_network("r3d50_flow", str(path), layout="2018")
    assert torch.equal(trained.module.conv1.weight, conv1 + 1) and trained.weights_origin == "file:old.pth"
    with pytest.raises(UserError, match="this is a flow checkpoint"):
        create_network("r3d50", str(path))


def test_another_architecture_is_named_key_by_key(shared, tmp_path):
    state = published_state(shared, "s3d")
    state["extra.weight"] = state.pop("base.5.branch1.1.bn_s.weight")
    state["base.0.conv_s.weight"] = torch.zeros(64, 3, 1, 5, 5)
    path = tmp_path / "wrong.pt"
    torch.save(state, path)
    with pytest.raises(UserError) as error:
        create_network("s3d", str(path))
    for part in (
        "1 key missing: features.5.branch1.1.0.1.weight",
        "1 key unexpected: extra.weight",
        "features.0.0.0.weight is (64, 3, 1, 5, 5), expected (64, 3, 1, 7, 7)",
    ):
        assert part in str(error.value)
    with pytest.raises(UserError, match="not a checkpoint of slow_r50"):
        create_network("slow_r50", str(path))


def test_s3d_key_rule_and_torchvision_weights(shared, tmp_path):
    from torchvision.models.video.s3d import S3D

    from extract.networks.s3d_model import _from_kylemin

    table = json.loads((shared / "golden" / "s3d_keymap_torchvision.json").read_text())["key_map"]
    assert {key: _from_kylemin(key) for key in table} == table

    path = tmp_path / "torchvision.pth"  # torchvision's own network, saved as it publishes it
    theirs = S3D().eval()
    with torch.no_grad():
        for key, value in theirs.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.from_numpy(random_value(key, tuple(value.shape))))
    torch.save(theirs.state_dict(), path)
    net = create_network("s3d", str(path), layer="logits", clip_len=16)
    assert net.spec.options["preprocessing"] == "torchvision" and net.spec.fps == 15.0
    x = torch.randn(1, 3, 16, 224, 224)
    with torch.inference_mode():
        wanted, got = theirs(x), net.module(x)[:, :, 0, 0, 0]
    assert (wanted - got).abs().max() <= 1e-4 * wanted.std()
