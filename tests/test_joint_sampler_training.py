"""PSN and its light network trained together from frames: what reaches the network, what it leaves, what is told."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from frame_samples import frames_request
from run_files import curve, metrics_of
from safetensors.torch import load_file

from cli import main
from errors import UserError
from extract.networks import create_network
from heads import create_head
from pipelines import evaluate, extract, loop, train_backbone
from pipelines.recogniser_clips import Targets, VectorInputs
from pipelines.run_folder import load_tensors, open_run
from pipelines.sampler_clips import Candidates, SharedFrames
from pipelines.sampler_training import SamplerTask
from stores import ArraySpec, Manifest, create_store, open_store, plan_layout

pytestmark = [
    pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning"),
    pytest.mark.usefixtures("one_thread"),
]


NET = "shufflenet_v2"
SIZE = 'resize={"mode":"squash","size":32}'
JOINT = {"frames": 6, "sampled": 2, "width": 16, "batch_size": 6, "lr": 0.02, "workers": 1}


@pytest.fixture(scope="module")
def folder(colours):
    return colours


@pytest.fixture(scope="module")
def logits(folder):
    """A recogniser that knows the noun on every other frame of the grid of 25 a second, extracted at 12.5."""
    frames = open_store(folder / "features" / "colours" / "frames.zarr")
    keep = np.flatnonzero(frames.rows["k"] % 2 == 0)
    rows = {name: frames.rows[name][keep] for name in frames.rows}
    rows["k"] = rows["k"] // 2
    clips = {name: frames.clips[name] for name in frames.clips}
    at = np.minimum((rows["start_s"] / 0.8 + 1e-6).astype(int), 5)
    noun = clips["noun"][rows["video"] * 6 + at]
    values = np.random.default_rng(0).normal(size=(len(keep), 3)).astype(np.float32)
    values[np.arange(len(keep)), noun] += 3
    arrays = {"logits": ArraySpec((3,), "float32")}
    own = {"dataset": "colours", "split": "train", "classes": 3, "targets": ["noun"]}
    manifest = Manifest(
        arrays=arrays,
        layout=plan_layout(arrays, 64, batch_size=4),
        recipe={"network": {"name": "made"}, "sampling": {"axis": "frame", "fps": 12.5}},
        spec={"name": "made"},
        dataset=frames.manifest.dataset,
        lineage=[own],
    )
    videos = {name: frames.videos[name] for name in ("name", "path")}
    store = create_store(folder / "features" / "colours" / "made.zarr", manifest, rows, clips, videos)
    for unit in store.units:
        part = slice(unit.start, unit.stop)
        store.commit(unit, {"logits": values[part]}, np.ones(unit.stop - unit.start, np.uint8))
    return store.path


def train_joint(folder, logits, out, **options):
    said = []
    values = {"weights": "random:0", "option": [SIZE], "recogniser": logits, "head": "psn-sampler", "epochs": 2}
    run = train_backbone(
        NET,
        features=[folder / "features"],
        out=out,
        set={**JOINT, **options.pop("set", {})},
        progress=False,
        say=said.append,
        **{**values, **options},
    )
    return run, said


@pytest.fixture(scope="module")
def joint(folder, logits):
    return train_joint(folder, logits, folder / "runs" / "joint")


def test_network_and_head_are_trained_together(joint):
    run, said = joint
    figures, facts = metrics_of(run), open_run(run).facts
    assert figures["features"] == facts["features"] == "end-to-end" and facts["kind"] == "sampler"
    assert set(facts["stores"]) == {"frames", "recogniser"} and figures["frames"] == 2.0
    assert [entry["targets"] for entry in facts["lineage"]] == [["noun"]]  # random initial weights are no ancestor
    tensors, metadata = load_tensors(run / "best.safetensors")
    before = create_network(NET, "random:0").module.state_dict()
    assert all(not torch.equal(tensors[key], value) for key, value in before.items() if key.endswith("weight"))
    head = {key for key in tensors if key.startswith("beside/head.")}
    assert head | before.keys() == tensors.keys()
    expected = create_head("psn", channels=1024, classes=3, frames=6, sampled=2, width=16).state_dict()
    assert {key.removeprefix("beside/head.") for key in head} == expected.keys()
    own = {"dataset": "colours", "split": "train", "classes": 3, "targets": ["noun"]}
    assert metadata["lineage"] == [own, own] and metadata["targets"] == {"noun": 3} and metadata["network"] == NET


def test_a_gradient_reaches_the_network_from_frames_that_are_there_alone(folder, logits):
    from pipelines.sampler_model import JointSampler

    torch.manual_seed(0)
    network = create_network(NET, "random:0", resize={"mode": "squash", "size": 32})
    head = create_head("psn", channels=1024, classes=3, frames=6, sampled=2, width=16)
    model = JointSampler(network, head, freeze_norms=False).train()
    frames = torch.randint(0, 255, (2, 6, 32, 32, 3), dtype=torch.uint8)
    mask = torch.tensor([[True, False, True, True, False, True], [True] * 3 + [False] * 3])
    batch = {
        "sampler": {"frames": frames, "mask": mask},
        "recogniser": {"logits": torch.randn(2, 6, 3), "mask": mask},
        "labels": {"class": torch.tensor([0, 2])},
    }
    loss = model.loss(batch)
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert model.module.conv1[0].weight.grad.abs().max() > 0
    frames[~mask] = 0
    assert torch.equal(model.loss(batch), loss)


def test_extraction_takes_the_run_and_gives_the_features_of_its_figures(folder, logits, joint, tmp_path):
    run, _ = joint
    request = replace(
        frames_request(folder), option=(SIZE,), backbone=NET, weights=(str(run),), keep=("vector",), hop=0.08,
        only=True, dtype="float32", features=(tmp_path,),
    )  # fmt: skip
    (report,) = extract(request)
    store = open_store(report.store)
    assert report.complete and store.manifest.lineage == load_tensors(run / "best.safetensors")[1]["lineage"]
    head = open_run(run).create_head()
    tensors = load_file(run / "best.safetensors")
    head.load_state_dict({k[len("beside/head.") :]: v for k, v in tensors.items() if k.startswith("beside/head.")})
    shared = SharedFrames(store, open_store(logits), store.clips)
    targets = Targets("noun", store.clips["noun"].astype(np.int64)[:, None], 3, multi=False)
    val = np.flatnonzero(store.clips["split"] == "val")
    batch = Candidates(shared, VectorInputs(store), targets, 6, 0).batch(val)
    with torch.no_grad():
        given = {"sampler": torch.from_numpy(batch["input"][batch["place"]]), "mask": torch.from_numpy(batch["mask"])}
        out = head.eval().predict(
            {
                "sampler": {"vector": given["sampler"], "mask": given["mask"]},
                "recogniser": {"logits": torch.from_numpy(batch["logits"])},
            }
        )
    right = (out["class"].argmax(1).numpy() == store.clips["noun"][val]).mean()
    assert right == pytest.approx(metrics_of(run)["noun"]["top1"], abs=1 / len(val) + 1e-9)  # JPEGs differ a little


def test_evaluate_of_a_joint_run(joint):
    run, _ = joint
    figures, result = metrics_of(run), evaluate(run, "val", progress=False)
    for name in ("noun", "baselines", "frames", "epoch"):
        assert result[name] == figures[name], name
    assert result["features"] == "end-to-end"


def test_a_joint_training_goes_on_where_it_stopped(folder, logits, joint, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    loss, steps = SamplerTask.loss, iter(range(100))

    def stops(self, batch):
        if next(steps) == 4:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(SamplerTask, "loss", stops)
    with pytest.raises(KeyboardInterrupt):
        train_joint(folder, logits, tmp_path / "run")
    monkeypatch.setattr(SamplerTask, "loss", loss)
    run, said = train_joint(folder, logits, tmp_path / "run")
    assert any("going on after epoch 1 of 2 and 1 step" in line for line in said)
    assert curve(run) == curve(joint[0])
    one, other = (load_file(path / "last.safetensors") for path in (run, joint[0]))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_wrong_use_of_the_joint_training(folder, logits, tmp_path):
    refused = partial(train_joint, folder, logits, tmp_path / "no")
    for options, match in (
        ({"recogniser": None}, "learns from a recogniser: say --recogniser STORE"),
        ({"frames": "decode"}, "reads a store of frames"),
        ({"option": []}, "its frames are resized by .* Make frames for it"),
        ({"set": {"crop": 0.9}}, "a crop must fit the frame and every scale"),
        ({"target": "colour"}, "no label column 'colour'"),
        ({"target": "verb"}, "logits of 3 classes|names something else"),
        ({"head": "ipl"}, "--recogniser is read by --head psn-sampler alone"),
        ({"fit": "test"}, "--fit must be one of"),
    ):
        with pytest.raises(UserError, match=match):
            refused(**options)
    with pytest.raises(UserError, match="tiny3d is no frame network"):
        train_backbone("tiny3d", weights="random:0", head="psn-sampler", recogniser=logits, progress=False)
    assert not (tmp_path / "no").exists()


def test_the_command_line_of_the_joint_training(folder, logits, tmp_path):
    arguments = ["--backbone", NET, "--head", "psn-sampler", "--recogniser", logits, "--weights", "random:0"]
    arguments += ["--features", folder / "features", "--option", SIZE, "--out", tmp_path / "run", "--json"]
    arguments += [part for pair in JOINT.items() for part in ("--set", "=".join(map(str, pair)))]
    result = CliRunner().invoke(main, ["train-backbone", *map(str, arguments), "--epochs", "1"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["features"] == "end-to-end"
    wrong = CliRunner().invoke(main, ["train-backbone", "--backbone", NET, "--head", "psn-sampler"])
    assert wrong.exit_code == 2 and "say --recogniser STORE" in wrong.output
