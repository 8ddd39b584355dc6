"""torchvision's networks: Video Swin against its reference, the frame networks, and everything as "tv:NAME"."""

import json

import numpy as np
import pytest
import torch
from network_cases import CASES, golden, inputs, natural, row_of, waveform
from tolerances import TOLERANCES

from errors import UserError
from extract.networks import create_network, network_spec, weights_options
from extract.networks.torchvision_frames import NETWORKS
from extract.networks.torchvision_library import model_names
from extract.weights import TABLE, fill_random, random_value

pytestmark = pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning")


@pytest.fixture(scope="module")
def networks():
    made = {}

    def get(case):
        if case not in made:
            made[case] = create_network(case.partition("+")[0], "random:0", **CASES[case])
        return made[case]

    return get


def published_state(shared, name):
    """A checkpoint with exactly the published keys and shapes, filled by the golden rule."""
    entries = json.loads((shared / "golden" / f"{name}.json").read_text())["state_dict"]
    return {
        key: torch.from_numpy(random_value(key, shape)) if dtype.startswith("float") else torch.zeros(shape).long()
        for key, shape, dtype in entries
    }


def error_of(found, wanted):
    """Largest |found - golden| over the golden tensor's std."""
    values, index, std, shape = wanted
    assert found.shape == shape
    found = found.reshape(-1)
    return np.abs((found if index is None else found[index]) - values).max() / std


# -- Video Swin ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def omnivore(shared, tmp_path_factory):
    """Path of a file {trunk, heads} as Omnivore publishes it."""
    trunk = published_state(shared, "swin3d_t_omnivore")
    index = torch.zeros(392, 392).long()
    trunk = {key: index if key.endswith("relative_position_index") else value for key, value in trunk.items()}
    heads = {f"{name}.{key}": torch.from_numpy(random_value(f"{name}.{key}", shape))
             for name, classes in (("image", 1000), ("video.1", 400), ("rgbd", 19))
             for key, shape in (("weight", (classes, 768)), ("bias", (classes,)))}  # fmt: skip
    path = tmp_path_factory.mktemp("omnivore") / "swinT_checkpoint.torch"
    torch.save({"trunk": trunk, "heads": heads}, path)
    return path


@pytest.mark.parametrize("case", ["small", "full"])
def test_swin_golden(shared, omnivore, case):
    """Published keys, through a file, then every stage."""
    x, wanted, tolerance = golden(shared, "swin3d_t_omnivore", case)
    net = create_network("swin3d_t", str(omnivore))
    index = net.module.features[0][0].attn
    index.define_relative_position_index()  # the golden file leaves integers out
    for block in (b for part in net.module.features for b in getattr(part, "children", list)() if hasattr(b, "attn")):
        block.attn.relative_position_index.copy_(index.relative_position_index)
    module, found = net.module, {}
    with net.inference():
        y = module.patch_embed(x)
        found["patch_embed"] = y.movedim(-1, 1)
        for i, part in enumerate(module.features):
            y = part(y)
            found[f"stage{(i + 1) // 2}" if i % 2 else f"stage{i // 2 + 1}"] = y.movedim(-1, 1)
        found["norm_last"] = module.norm(y)
        assert torch.equal(module(x).movedim(1, -1), found["norm_last"])
    found["pooled"] = found["norm_last"].mean((1, 2, 3))
    for tensor, expected in wanted.items():
        error = error_of(found[tensor].contiguous().numpy(), expected)
        assert error <= min(tolerance, TOLERANCES["fp32"]["golden"]), f"{tensor}: {error:.2g} of std"


def test_swin_loads_both_layouts(shared, omnivore, tmp_path):
    keys = json.loads((shared / "golden" / "swin3d_keymap_torchvision.json").read_text())["key_map"]
    ours = create_network("swin3d_t", str(omnivore), layer="logits").module.state_dict()
    state = torch.load(omnivore, weights_only=True)
    assert set(keys.values()) | {"head.weight", "head.bias"} == set(ours)
    for theirs, own in keys.items():
        assert torch.equal(state["trunk"][theirs], ours[own])
    assert torch.equal(state["heads"]["video.1.bias"], ours["head.bias"])
    assert weights_options("swin3d_t", str(omnivore)) == {"classes": 400}
    path = tmp_path / "torchvision.pth"
    torch.save(ours, path)
    again = create_network("swin3d_t", str(path), layer="logits")
    assert all(torch.equal(value, ours[key]) for key, value in again.module.state_dict().items())
    assert weights_options("swin3d_t", "swin3d_t.kinetics400") == {"fps": 15.0, "stride": 1}
    del ours["norm.bias"], ours["head.weight"], ours["head.bias"]
    torch.save(ours, path)
    with pytest.raises(UserError, match="1 key missing: norm.bias"):
        create_network("swin3d_t", str(path))
    with pytest.raises(UserError, match="head.bias"):
        create_network("swin3d_t", str(path), layer="logits")


@pytest.mark.parametrize("name, channels, frames", [("swin3d_t_flow", 2, 5), ("swin3d_t_audio", 1, 8)])
def test_swin_for_other_inputs_starts_from_rgb(omnivore, name, channels, frames):
    rgb = create_network("swin3d_t", str(omnivore)).module.patch_embed.proj.weight
    net = create_network(name, str(omnivore))
    own = net.module.patch_embed.proj.weight
    assert own.shape[1] == channels and torch.allclose(own, rgb.mean(1, keepdim=True).expand_as(own))
    assert net.weights_origin.startswith("file:swinT_checkpoint.torch (first convolution")
    assert [step["dataset"] for step in net.lineage] == ["unknown"]
    spec = network_spec(name, **({"clip_len": 8} if name == "swin3d_t_flow" else {}))
    assert spec.outputs["map"] == ((4, 7, 7, 768), "feature")  # the tokens of query fusion


@pytest.mark.parametrize("shape", [(1, 7, 90, 60), (2, 18, 50, 33), (1, 1, 65, 64)])
def test_swin_equals_torchvision_at_odd_sizes(networks, shape):
    from torchvision.models.video import swin3d_t

    net = networks("swin3d_t")
    theirs = swin3d_t(weights=None).eval()
    theirs.head = torch.nn.Identity()
    theirs.load_state_dict(net.module.state_dict())
    b, t, h, w = shape
    x = torch.randn(b, 3, t, h, w, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = theirs(x)
    fmap = net(x)
    assert fmap.shape == (b, -(-t // 2), -(-h // 32), -(-w // 32), 768)
    assert (fmap.mean((1, 2, 3)) - expected).abs().max() <= 1e-4 * expected.std()


def test_swin_values_as_published(shared, networks):
    table = json.loads((shared / "golden" / "preprocess_values.json").read_text())["swin3d_omnivore"]
    pixels = np.array([int(v) for v in table], np.uint8)
    x = torch.from_numpy(np.repeat(pixels[None, None, None, :, None], 3, axis=4))
    got = networks("swin3d_t").normalise(x)[0, :, 0, 0].numpy()
    np.testing.assert_allclose(got.T, list(table.values()), atol=1e-6)


def test_swin_flow_values(networks):
    net = networks("swin3d_t_flow")
    q = torch.tensor([0, 127, 128, 255], dtype=torch.uint8)
    got = net.normalise(torch.stack([q, q], -1)[None, None, None])[0, 0, 0, 0]
    np.testing.assert_allclose(got, (q.numpy() / 255 - 0.5) / 0.226, atol=1e-5)
    wide = network_spec("swin3d_t_flow", flow_scale=1.0)  # 25 pixels are clipped to 20
    assert wide.std[0] == pytest.approx(0.226 / 1.25) and wide.value_clip == pytest.approx(0.5 / 0.226)


def test_spectrogram_windows():
    """One window is repeated; of a longer waveform every frame sees its own part."""
    one = create_network("swin3d_t_audio", "random:0", frames=3, size=64)
    x = torch.from_numpy(np.stack([waveform(30696, 24000, 1)]))
    clip = one.normalise(x)
    assert clip.shape == (1, 1, 3, 64, 64) and torch.equal(clip[:, :, 0], clip[:, :, 2])
    long = create_network("swin3d_t_audio", "random:0", frames=3, size=64, clip_len=2 * 30696)
    both = torch.cat([x, torch.zeros_like(x)], 1)
    spread = long.normalise(both)
    assert torch.equal(spread[:, :, 0], clip[:, :, 0]) and not torch.equal(spread[:, :, 1], clip[:, :, 0])
    assert torch.allclose(spread[:, :, 2], torch.tensor(1e-6).log())  # silence
    with pytest.raises(UserError, match="at least 30696"):
        network_spec("swin3d_t_audio", clip_len=24000)


# -- frame networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tsn_resnet50", "shufflenet_v2", "densenet161"])
def test_frames_equal_torchvision(name):
    """Folded norms and cut layers: the logits are those of torchvision's own forward, at an odd size too."""
    from torchvision import models

    options = {"logits": True, "classes": 7, "resize": {"mode": "squash", "size": 75}}
    net = create_network(name, "random:0", **options)
    net.keep = tuple(net.spec.outputs)
    assert list(net.spec.outputs) == ["spatial", "vector", "logits"]
    batch = inputs(net.spec, 2)
    out = net.run(batch)
    theirs = models.get_model(NETWORKS[name].model, weights=None, num_classes=7).eval()
    theirs.load_state_dict(net.module.state_dict())
    with torch.inference_mode():
        expected = theirs(net.normalise(torch.from_numpy(np.stack(batch["frames"])))).numpy()
    assert np.abs(out["logits"] - expected).max() <= 1e-4 * expected.std()
    assert out["spatial"].shape[1:] == net.spec.outputs["spatial"][0]
    np.testing.assert_allclose(out["spatial"].mean((1, 2)), out["vector"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name, layers",
    [
        ("resnet50", {"layer1": (17, 256), "layer2": (9, 512), "layer3": (5, 1024)}),
        ("shufflenet_v2", {"stage2": (9, 116), "stage3": (5, 232), "stage4": (3, 464)}),
        ("densenet161", {"denseblock2": (8, 768), "denseblock3": (4, 2112)}),
    ],
)
def test_frame_layers(name, layers):
    for layer, (cells, channels) in layers.items():
        net = create_network(name, "random:0", layer=layer, resize={"mode": "squash", "size": 65})
        assert net.spec.outputs["spatial"] == ((cells, cells, channels), "feature")
        assert net.run(inputs(net.spec, 1))["spatial"].shape[1:] == (cells, cells, channels)


def test_places365_checkpoint(tmp_path):
    """CSAIL's file: DataParallel prefix, names of old torchvision, no batch counters, 365 classes."""
    net = create_network("densenet161", "random:0", logits=True)
    assert net.spec.options == {"classes": 365} and net.spec.resize == {"mode": "squash", "size": 256, "crop": 224}
    state = {}
    for key, value in net.module.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            for part in ("norm", "conv"):
                for i in "12":
                    key = key.replace(f".{part}{i}.", f".{part}.{i}.") if "denselayer" in key else key
            state[f"module.{key}"] = value
    assert "module.features.denseblock1.denselayer1.norm.1.running_var" in state
    path = tmp_path / "densenet161_places365.pth.tar"
    torch.save({"epoch": 90, "arch": "densenet161", "state_dict": state, "best_prec1": 56.1}, path)
    loaded = create_network("densenet161", str(path), logits=True)
    for key, value in net.module.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[key], value)
    assert weights_options("densenet161", str(path)) == {"classes": 365}
    assert weights_options("densenet161", "densenet161.imagenet")["classes"] == 1000


def test_frame_checkpoints(tmp_path):
    """Only the layers that run are loaded; the class count is read; what does not fit is named."""
    net = create_network("tsn_resnet50", "random:0", classes=5)
    state = net.module.state_dict()
    path = tmp_path / "recogniser.pt"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, path)
    again = create_network("tsn_resnet50", str(path))
    assert again.spec.outputs["logits"] == ((5,), "feature")
    assert torch.equal(again.module.fc.weight, state["fc.weight"])
    cut = create_network("resnet50", str(path), layer="layer2")
    assert set(cut.module.state_dict()) < set(state) and not hasattr(cut.module, "layer3")
    with pytest.raises(UserError, match="5 classes.*pass classes=5"):
        create_network("tsn_resnet50", str(path), classes=6)
    with pytest.raises(UserError, match="keys missing"):
        create_network("tsn_resnet101", str(path))
    with pytest.raises(UserError, match="logits are computed from the layer layer4"):
        network_spec("resnet50", logits=True, layer="layer3")
    boxes = network_spec("tsn_resnet50", boxes=True)
    assert boxes.kind == "roi" and boxes.outputs["roi"] == ((10, 1024), "feature") and "logits" not in boxes.outputs


def test_published_files_are_torchvisions():
    """URL, hash and figures of the table against torchvision's own metadata."""
    from torchvision import models

    for name, entry in NETWORKS.items():
        for tag, member in (("imagenet", "IMAGENET1K_V1"), ("imagenet_v2", "IMAGENET1K_V2")):
            ours = TABLE.get(f"{name}.{tag}")
            if ours is not None:
                theirs = models.get_model_weights(entry.model)[member]
                assert ours.url == theirs.url and ours.hash.removeprefix("sha256:") in ours.filename
                assert ours.accuracy["imagenet val top-1"] == theirs.meta["_metrics"]["ImageNet-1K"]["acc@1"]
                spec = network_spec(name, **ours.options)
                transform = theirs.transforms()
                assert [spec.resize["size"], spec.resize["crop"]] == [*transform.resize_size, *transform.crop_size]


# -- tv: -----------------------------------------------------------------------------------------------------------

SQUARE = {"resize": {"mode": "squash", "size": 64}}
LIBRARY = {
    "tv:resnet18": SQUARE,
    "tv:mobilenet_v3_small": SQUARE,
    "tv:vit_b_32": SQUARE,
    "tv:convnext_tiny": SQUARE,
    "tv:swin_t": SQUARE,
    "tv:squeezenet1_1": SQUARE,
    "tv:densenet121": SQUARE,
    "tv:r3d_18": {"clip_len": 4, **SQUARE},
    "tv:mc3_18": {"clip_len": 4, **SQUARE},
}


@pytest.mark.parametrize("name", LIBRARY)
def test_library(name, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("it must not download"))
    net = create_network(name, "random:0", **LIBRARY[name])
    spec = net.spec
    net.keep = tuple(spec.outputs)
    batch = inputs(spec, 3)
    out = net.run(batch)
    for array, (shape, _) in spec.outputs.items():
        assert out[array].shape == (3, *shape) and np.isfinite(out[array]).all()
        assert out[array].std() > 0.1 and np.abs(out[array]).max() < 1e4
    alone = net.run(row_of(batch, 1))
    for array in out:
        assert np.abs(alone[array][0] - out[array][1]).max() <= TOLERANCES["fp32"]["neighbour"] * out[array].std()
    batch["frames"][0] = None
    assert not net.run(batch)["vector"][0].any()
    assert spec.licence and spec.source and spec.weights in TABLE and spec.name == name


def test_library_logits_are_torchvisions(tmp_path):
    """The published key layout through a file; the classifier's output; another class count."""
    from torchvision import models

    theirs = models.mobilenet_v3_small(weights=None, num_classes=11).eval()
    fill_random(theirs, 0)
    path = tmp_path / "own.pth"
    torch.save(theirs.state_dict(), path)
    net = create_network("tv:mobilenet_v3_small", str(path), layer="logits", classes=11, **SQUARE)
    frame = natural((64, 64, 3), 0)
    with torch.inference_mode():
        expected = theirs(net.normalise(torch.from_numpy(frame)[None])).numpy()
    np.testing.assert_allclose(net.run({"frames": [frame]})["vector"], expected, rtol=1e-4, atol=1e-5)
    assert create_network("tv:mobilenet_v3_small", str(path), **SQUARE).spec.outputs["vector"] == ((1024,), "feature")
    with pytest.raises(UserError, match="pass classes=11"):
        create_network("tv:mobilenet_v3_small", str(path), layer="logits", **SQUARE)
    with pytest.raises(UserError, match="not a checkpoint of tv:resnet18"):
        create_network("tv:resnet18", str(path), **SQUARE)


def test_library_reads_torchvisions_metadata():
    spec = network_spec("tv:r3d_18")
    assert (spec.clip_len, spec.fps, spec.resize) == (16, 15.0, {"mode": "short_side", "size": 128, "crop": 112})
    assert spec.mean == (0.43216, 0.394666, 0.37645) and spec.outputs["map"] == ((2, 7, 7, 512), "feature")
    assert network_spec("tv:mvit_v2_s").outputs["map"] == ((8, 7, 7, 768), "feature")
    entry = TABLE["tv:r3d_18.KINETICS400_V1"]
    assert entry.hash == "sha256:b3b3357e" and entry.trained_on[0]["dataset"] == "kinetics400"
    assert entry.accuracy["Kinetics-400 acc@1"] == 63.2
    default, old = network_spec("tv:resnet50"), network_spec("tv:resnet50.IMAGENET1K_V1")
    assert default.weights == "tv:resnet50.IMAGENET1K_V2" and default.resize["size"] == 232
    assert old.weights == "tv:resnet50.IMAGENET1K_V1" and old.resize["size"] == 256
    for weights in ("IMAGENET1K_V1", "tv:resnet50.IMAGENET1K_V1"):
        assert network_spec("tv:resnet50", **weights_options("tv:resnet50", weights)) == old
    swag = network_spec("tv:vit_b_16.IMAGENET1K_SWAG_E2E_V1")
    assert swag.licence.startswith("CC-BY-NC-4.0") and swag.outputs["spatial"] == ((24, 24, 768), "feature")
    assert json.loads(json.dumps(swag.recipe())) == swag.recipe()


def test_library_refuses():
    for name, message in (
        ("resnet_18", "did you mean .*tv:resnet18"),
        ("resnet18.IMAGENET1K_V9", "it has tv:resnet18.IMAGENET1K_V1"),
        ("fcn_resnet50", "a segmentation model"),
        ("fasterrcnn_resnet50_fpn", "a detector: use"),
        ("raft_small", "--flow raft"),
        ("quantized_resnet18", "unquantised"),
    ):
        with pytest.raises(UserError, match=message):
            network_spec(f"tv:{name}")
    with pytest.raises(UserError, match="cannot run on 20 x 20 pixels"):
        network_spec("tv:inception_v3", resize={"mode": "squash", "size": 20})
    with pytest.raises(UserError, match="frames of one size"):
        network_spec("tv:vit_b_16", resize={"mode": "short_side", "size": 224})
    with pytest.raises(UserError, match="single frames"):
        network_spec("tv:resnet18", clip_len=4)
    assert {"resnet18", "swin_t", "r3d_18", "mvit_v2_s"} <= set(model_names())
