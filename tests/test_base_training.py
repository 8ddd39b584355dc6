"""Base training: networks trained on cached frames, their checkpoints as weights of extraction, several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from frame_samples import colour_frames, frames_request
from run_files import metrics_of, same_figures
from safetensors.torch import load_file
from two_processes import run_in_two_processes

from cli import main
from errors import UserError
from extract.networks import create_network, trained_options
from extract.sampling import clip_rows
from pipelines import evaluate, extract, plan_extraction
from pipelines.base_training import BackboneConfig, train_backbone
from pipelines.evaluation import Place
from pipelines.labelled_clips import LabelledClips, clip_input, clip_source, labels_of
from stores import open_store

ROOT = Path(__file__).resolve().parents[1]
SIZE = 'resize={"mode":"squash","size":32}'
QUICK = {"epochs": 3, "batch_size": 6, "lr": 0.02, "dropout": 0.0, "last_epochs": 1, "workers": 1}


@pytest.fixture(scope="module")
def folder(colours):
    return colours


def train(folder, out, **options):
    settings = QUICK | options.pop("set", {})
    values = {"target": "both", "weights": "random:0", "option": [SIZE, "clip_len=8", "fps=12.5"], "progress": False}
    said = []
    path = train_backbone(
        options.pop("backbone", "tiny3d"),
        features=[folder / "features"],
        out=out,
        set=settings,
        say=said.append,
        **{**values, **options},
    )
    return path, said


def curve(run):
    """The log without what a clock says."""
    rows = [line.split(",") for line in (run / "log.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(rows[0]) if name not in ("seconds", "waited")]
    return [[row[i] for i in kept] for row in rows]


def same_tensors(one, other):
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def whole(folder):
    return train(folder, folder / "runs" / "whole")[0]


# --- what it sees ---


def test_a_draw_shows_what_the_row_of_that_draw_shows(folder):
    source = clip_source("rgb_clip", dataset=None, features=[folder / "features"])
    given = clip_input("tiny3d", "", {"clip_len": 8, "fps": 12.5, "resize": {"mode": "squash", "size": 32}})
    clips = LabelledClips(source.clips, {}, source.frames, given, seed=5)
    rows = clip_rows(source.clips, given.sampling, draws=3, seed=5)
    for draw in (0, 2, 3):
        of_draw = {rows["clip"][i]: rows["start_s"][i] for i in np.flatnonzero(rows["draw"] == draw)}
        which = np.array(sorted(of_draw))
        expected = np.array([of_draw[i] for i in which])[:, None] + np.arange(8) / 12.5
        assert np.allclose(given.instants(clips._starts(which, draw)), expected, atol=1e-9)


def test_training_clips_follow_from_seed_epoch_and_clip_alone(folder):
    source = clip_source("rgb_clip", dataset=None, features=[folder / "features"])
    given = clip_input("tiny3d", "", {"clip_len": 8, "fps": 12.5, "resize": {"mode": "squash", "size": 32}})
    labels, _ = labels_of(source, ("verb", "noun"), "train")
    clips, config = LabelledClips(source.clips, labels, source.frames, given, seed=1), BackboneConfig()
    one = clips.random(np.array([3, 4, 7]), 2, config)
    again = clips.random(np.array([7, 3]), 2, config)
    assert one["frames"].shape == (3, 8, 28, 28, 3) and one["frames"].dtype == np.uint8
    assert np.array_equal(one["frames"][[2, 0]], again["frames"])
    assert not np.array_equal(one["frames"], clips.random(np.array([3, 4, 7]), 3, config)["frames"])
    assert clips.middle(np.array([3]))["frames"].shape == (1, 8, 32, 32, 3)
    assert one["labels"]["noun"].tolist() == source.clips["noun"][[3, 4, 7]].tolist()
    assert one["seen"].shape == (3, 4) and (one["seen"][:, :2] + one["seen"][:, 2:] <= 1).all()


def test_cached_draws_are_shown_in_turn(folder, monkeypatch):
    source = clip_source("rgb_clip", dataset=None, features=[folder / "features"])
    given = clip_input("tiny3d", "", {"clip_len": 8, "fps": 12.5, "resize": {"mode": "squash", "size": 32}})
    clips, asked = LabelledClips(source.clips, {}, source.frames, given, seed=1), []
    monkeypatch.setattr(clips, "_starts", lambda which, draw: asked.append(draw) or np.zeros(len(which)))
    for config in (BackboneConfig(), BackboneConfig(draws=2)):
        for epoch in range(4):
            clips.random(np.arange(2), epoch, config)
    assert asked == [1, 2, 3, 4, 1, 2, 1, 2]


# --- what it leaves ---


def test_it_learns_and_says_so(folder, tmp_path):
    run, said = train(folder, tmp_path / "run", set={"epochs": 12})
    figures = json.loads((run / "metrics.json").read_text())
    assert figures["noun"]["top1"] == 1.0 and figures["coverage"] == 1.0 and figures["features"] == "end-to-end"
    assert said[0] == "training: 18 of 18 clips have labels and frames"
    assert sum(line.startswith("epoch ") for line in said) == 12 and "waited for data" in said[-1]
    first, last = (row[2] for row in (curve(run)[1], curve(run)[-1]))
    assert float(last) < 0.7 * float(first)


def test_its_curve_is_drawn_and_there_is_no_head(whole):
    from pipelines.plotting import plot_run
    from pipelines.run_folder import open_run

    (curve,) = plot_run(whole)
    assert curve.name == "training_curve.png" and curve.stat().st_size > 5000
    with pytest.raises(UserError, match="is a base training .tiny3d., without a head; extract features"):
        open_run(whole).best_head()


def test_evaluate_gives_the_figures_of_the_best_epoch(folder, whole, tmp_path):
    found = evaluate(whole, progress=False)
    assert same_figures(found, whole) and {"verb", "noun", "action", "clips", "coverage"} <= set(found)
    assert json.loads((whole / "metrics_val.json").read_text()) == found
    with pytest.raises(UserError, match="this tiny3d was trained on colours train, which holds 18 of these clips"):
        evaluate(whole, "train", progress=False)
    assert evaluate(whole, "train", allow_seen=True, progress=False)["clips"] == 18
    with pytest.raises(UserError, match="no clip is in split 'test'"):
        evaluate(whole, "test", progress=False)
    other = colour_frames(folder, name="frames_other", option=('resize={"mode":"squash","size":48}',))
    with pytest.raises(UserError, match="is not what .* was trained on .frames."):
        evaluate(whole, stores={"frames": other}, progress=False)
    with pytest.raises(UserError, match="tiny3d reads no verb store"):
        evaluate(whole, stores={"verb": other}, progress=False)


def test_evaluate_of_a_moved_store_and_the_command(folder, tmp_path):
    run, _ = train(folder, tmp_path / "run", target="action", set={"epochs": 2})
    place = shutil.copytree(folder / "features" / "colours" / "frames.zarr", tmp_path / "moved.zarr")
    facts = json.loads((run / "run.json").read_text())
    facts["stores"]["frames"]["path"] = str(tmp_path / "gone.zarr")
    (run / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="its frames store is not at .*gone.zarr any more; say where it is now"):
        evaluate(run, progress=False)
    result = CliRunner().invoke(main, ["evaluate", str(run), "--frames", str(place), "--json"], catch_exceptions=False)
    assert result.exit_code == 0 and same_figures(json.loads(result.stdout), run)


def test_the_checkpoint_is_weights_for_extraction(folder, whole, tmp_path):
    request = replace(
        frames_request(folder),
        backbone="tiny3d",
        weights=(str(whole),),
        option=(SIZE, "clip_len=8", "fps=12.5"),
        draws=0,
        only=True,
        features=(tmp_path,),
    )
    (report,) = extract(request)
    store = open_store(report.store)
    assert store.manifest.lineage == [
        {"dataset": "colours", "split": "train", "classes": 5, "targets": ["verb", "noun"]}
    ]
    assert store.manifest.spec["weights_origin"] == "run:whole"
    import hashlib

    digest = hashlib.sha256((whole / "best.safetensors").read_bytes()).hexdigest()
    assert store.manifest.recipe["weights"] == f"sha256:{digest}"
    tensors = load_file(whole / "best.safetensors")
    net = create_network("tiny3d", str(whole / "best.safetensors"), clip_len=8)
    for key, value in net.module.state_dict().items():
        assert torch.equal(value, tensors[key])
    assert {key for key in tensors if key.startswith("beside/")} == {
        f"beside/classifier.{name}.{part}" for name in ("verb", "noun") for part in ("weight", "bias")
    }
    untrained = create_network("tiny3d", "random:0").module.state_dict()
    assert all(not torch.equal(value, tensors[key]) for key, value in untrained.items())


def test_weights_of_other_networks_and_folders_are_refused(whole, tmp_path):
    with pytest.raises(UserError, match="whole: it is a training of tiny3d; r3d50 needs a training of its own"):
        create_network("r3d50", str(whole))
    with pytest.raises(UserError, match="this folder has no best.safetensors; expected a checkpoint, or the folder of"):
        create_network("tiny3d", str(tmp_path))


def test_validation_figures_are_those_of_the_extracted_features(folder, whole, tmp_path):
    request = replace(
        frames_request(folder),
        backbone="tiny3d",
        weights=(str(whole),),
        option=(SIZE, "clip_len=8", "fps=12.5"),
        draws=0,
        only=True,
        features=(tmp_path,),
        dtype="float32",
    )
    (report,) = extract(request)
    store = open_store(report.store)
    tensors = load_file(whole / "best.safetensors")
    val = np.flatnonzero((store.clips["split"] == "val")[store.rows["clip"][: len(store)]])
    vectors = torch.from_numpy(store.read("vector", val))
    figures = json.loads((whole / "metrics.json").read_text())
    for name in ("verb", "noun"):
        logits = vectors @ tensors[f"beside/classifier.{name}.weight"].T + tensors[f"beside/classifier.{name}.bias"]
        right = logits.argmax(1).numpy() == store.clips[name][store.rows["clip"][val]]
        assert right.mean() == pytest.approx(figures[name]["top1"], abs=1 / len(val) + 1e-9)  # JPEGs differ a little


@pytest.mark.parametrize("target, names", [("verb", ["verb"]), ("action", ["action"])])
def test_targets(folder, tmp_path, target, names):
    run, _ = train(folder, tmp_path / "run", target=target, set={"epochs": 1})
    assert list(json.loads((run / "run.json").read_text())["targets"]) == names


def test_a_frame_network_and_frozen_norms(folder, tmp_path):
    frames = colour_frames(folder, name="frames_small", option=('resize={"mode":"squash","size":64}',))
    run, _ = train(
        folder,
        tmp_path / "run",
        backbone="efficientnet_lite0",
        frames=frames,
        option=['resize={"mode":"squash","size":64}'],
        set={"epochs": 1, "freeze_norms": True},
        target="noun",
    )
    trained = load_file(run / "best.safetensors")
    before = create_network("efficientnet_lite0", "random:0").module.state_dict()
    means = [key for key in before if key.endswith("running_mean")]
    assert means and all(torch.equal(trained[key], before[key]) for key in means)
    assert any(not torch.equal(trained[key], before[key]) for key in before if key.endswith("weight"))


TINY_FLOW = """
from torch import nn
from extract.networks.base import Network
from extract.networks.spec import NetworkSpec

def tiny(clip_len=8, stride=1, fps=12.5, resize=None):
    return NetworkSpec(
        name="tiny", kind="backbone", reads="flow", outputs={"vector": ((8,), "feature")}, clip_len=clip_len,
        stride=stride, fps=fps, resize=resize or {"mode": "squash", "size": 32}, mean=(0.5,) * 2, std=(0.5,) * 2,
        builder=lambda spec: Network(spec, nn.Conv3d(2, 8, (4, 16, 16), (4, 16, 16))),
    )
"""


def test_flow_networks_are_trained_on_flow_images_one_by_one(folder, tmp_path):
    pytest.importorskip("cv2")
    (tmp_path / "net.py").write_text(TINY_FLOW)
    request = replace(
        frames_request(folder, option=(SIZE, "clip_len=1", "fps=12.5")),
        backbone="flow_images",
        flow="dis",
        axis="segment",
        only=True,
    )
    (report,) = extract(request)
    store = open_store(report.store)
    assert store.manifest.arrays["flow"].row_shape == (1, 32, 32, 2)
    run, said = train(
        folder, tmp_path / "run", backbone=f"py:{tmp_path}/net.py:tiny", weights=None, option=[], set={"epochs": 2}
    )
    assert said[0] == "training: 18 of 18 clips have labels and frames"
    facts = json.loads((run / "run.json").read_text())
    assert facts["network"]["name"] == "py:net.py:tiny" and facts["stores"]["frames"]["path"] == str(store.path)
    with pytest.raises(UserError, match="it has 2 channels, tiny3d reads 3"):
        train(folder, tmp_path / "other", frames=store)


def test_trainval_has_no_validation(folder, tmp_path):
    run, said = train(folder, tmp_path / "run", fit="trainval", set={"epochs": 2})
    assert "no validation: fitting on trainval" in said
    assert json.loads((run / "metrics.json").read_text())["epoch"] == 2
    facts = json.loads((run / "run.json").read_text())
    assert facts["trained_on"]["split"] == "trainval"


def test_no_figures_on_clips_that_the_first_weights_were_trained_on(folder, tmp_path):
    seen, _ = train(folder, tmp_path / "seen", fit="trainval", set={"epochs": 1})
    run, said = train(folder, tmp_path / "run", weights=str(seen), set={"epochs": 1})
    assert any("no validation: an ancestor" in line or "was trained on colours trainval" in line for line in said)
    assert "verb" not in json.loads((run / "metrics.json").read_text())
    lineage = json.loads((run / "run.json").read_text())["lineage"]
    assert [entry["split"] for entry in lineage] == ["trainval"]


def test_what_the_user_chose_of_a_clip_stays_with_the_weights(folder, whole, tmp_path):
    assert trained_options(str(whole)) == {"resize": {"mode": "squash", "size": 32}, "clip_len": 8, "fps": 12.5}
    request = replace(
        frames_request(folder), backbone="tiny3d", weights=(str(whole),), option=(), draws=0, only=True,
        features=(tmp_path,),
    )  # fmt: skip
    (job,) = plan_extraction(request, headers_only=True)
    assert (job.sampling.frames, job.sampling.fps, job.spec.input_size) == (8, 12.5, (32, 32))


def test_decoding_on_the_fly_trains_the_same_clips(folder, tmp_path):
    options = {"dataset": str(folder / "colours.csv"), "videos": folder / "videos", "set": {"epochs": 1}}
    one, _ = train(folder, tmp_path / "one", frames="decode", **options)
    other, _ = train(folder, tmp_path / "other", set={"epochs": 1})
    place = Place(str(folder / "colours.csv"), videos=folder / "videos")
    assert same_figures(evaluate(one, place=place, progress=False), one)
    store = folder / "features" / "colours" / "frames.zarr"
    assert evaluate(one, stores={"frames": store}, progress=False)["clips"] == 6
    losses = [float(curve(run)[1][2]) for run in (one, other)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)  # frames as JPEGs differ a little


# --- again, and killed ---


def test_killed_in_the_middle_of_an_epoch_it_ends_as_if_nothing_had_happened(folder, whole, tmp_path):
    code = (
        f"import torch; torch.set_num_threads({torch.get_num_threads()})\n"
        "import pipelines.loop; pipelines.loop.SAVE_SECONDS = 0.0\n"
        "from pipelines.base_training import train_backbone\n"
        f"train_backbone('tiny3d', features=[{str(folder / 'features')!r}], out={str(tmp_path / 'killed')!r},"
        f" weights='random:0', option={[SIZE, 'clip_len=8', 'fps=12.5']!r}, set={QUICK!r}, progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL)
    last = tmp_path / "killed" / "last.safetensors"
    deadline = time.monotonic() + 60
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert last.exists()
    killed, said = train(folder, tmp_path / "killed")
    assert curve(killed) == curve(whole)
    assert same_tensors(killed / "best.safetensors", whole / "best.safetensors")
    assert same_tensors(killed / "last.safetensors", whole / "last.safetensors")


def test_stopped_at_every_step(folder, whole, tmp_path, monkeypatch):
    from pipelines import loop

    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    count, loss = [0], loop.Loop._take_step

    def cut(self, *args):
        count[0] += 1
        if count[0] % 2 == 0:
            raise KeyboardInterrupt
        return loss(self, *args)

    monkeypatch.setattr(loop.Loop, "_take_step", cut)
    for _ in range(20):
        try:
            run, said = train(folder, tmp_path / "cut")
            break
        except KeyboardInterrupt:
            continue
    assert any("going on after epoch 2 of 3 and 2 steps" in line for line in said)
    assert curve(run) == curve(whole) and same_tensors(run / "last.safetensors", whole / "last.safetensors")
    again, said = train(folder, tmp_path / "cut")
    assert any("already trained for 3 epochs, nothing to do" in line for line in said)


def test_accumulated_gradients_are_those_of_the_whole_batch(folder, whole, tmp_path):
    pieces, _ = train(folder, tmp_path / "pieces", set={"micro_batch": 4})
    assert np.allclose([float(row[2]) for row in curve(pieces)[1:]], [float(row[2]) for row in curve(whole)[1:]], 1e-4)


def test_two_processes_take_the_steps_of_one(folder, whole, tmp_path):
    code = (
        "from pipelines.base_training import train_backbone\n"
        f"train_backbone('tiny3d', features=[{str(folder / 'features')!r}], out={str(tmp_path / 'two')!r},"
        f" weights='random:0', option={[SIZE, 'clip_len=8', 'fps=12.5']!r}, set={QUICK!r}, progress=False,"
        " device='cpu')"
    )
    run_in_two_processes(code, tmp_path)
    one, two = load_file(whole / "last.safetensors"), load_file(tmp_path / "two" / "last.safetensors")
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value, two[key], rtol=1e-4, atol=1e-5), key
    assert [row[0] for row in curve(tmp_path / "two")] == [row[0] for row in curve(whole)]


# --- wrong use ---


def test_wrong_use(folder, tmp_path):
    def refused(message, **options):
        with pytest.raises(UserError, match=message):
            train(folder, tmp_path / "run", **options)
        assert not (tmp_path / "run").exists()

    refused(
        "no frames.zarr of nothing under .* Run: cli.py extract --dataset nothing.csv --videos DIR --backbone frames",
        dataset="nothing",
    )
    refused("Run: cli.py extract --dataset some/mine.csv --videos DIR --backbone frames", dataset="some/mine.csv")
    refused("no label column 'colour'; it has .*verb", target="colour")
    refused("no such setting; near it are", set={"lrr": 1})
    refused("a crop must fit the frame and every scale", set={"crop": 1.1})
    refused("--fit must be one of", fit="test")
    refused(
        r"its frames are resized by \{'mode': 'squash', 'size': 32\}.*Make frames for it: .*--name frames_tiny3d",
        option=["clip_len=8"],
    )
    refused("it has a frame every 0.0400 s", option=[SIZE, "clip_len=8", "fps=50"])
    refused("is a detector network; train-backbone trains backbones", backbone="faster_rcnn_r50_fpn", option=[])
    refused("reads waveform, not frames", backbone="vggish", option=[])
    refused("decay_every divides the rate again and again", set={"decay_every": 2})


def test_another_training_in_the_same_folder_is_refused(folder, whole):
    with pytest.raises(UserError, match="holds another training; choose another --out"):
        train(folder, whole, set={"lr": 0.5})


def test_the_command_line(folder, tmp_path):
    arguments = ["--backbone", "tiny3d", "--features", folder / "features", "--weights", "random:0", "--out"]
    arguments += [tmp_path / "run", "--option", SIZE, "--option", "clip_len=8", "--option", "fps=12.5", "--json"]
    arguments += [part for pair in QUICK.items() for part in ("--set", "=".join(map(str, pair)))]
    command = [sys.executable, str(ROOT / "cli.py"), "train-backbone"]
    done = subprocess.run([*command, *map(str, arguments), "--epochs", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["epoch"] == 1
    wrong = subprocess.run([*command, *map(str, arguments), "--target", "x"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "no label column 'x'" in wrong.stderr and "Traceback" not in wrong.stderr


# --- with a head ---


def test_ipl_and_its_network_are_trained_together(folder, tmp_path):
    run, _ = train(folder, tmp_path / "run", head="ipl", set={"epochs": 2, "top_k": 2})
    facts = json.loads((run / "run.json").read_text())
    assert (
        facts["head"]["name"] == "ipl" and facts["head"]["config"]["top_k"] == 2 and facts["features"] == "end-to-end"
    )
    tensors = load_file(run / "best.safetensors")
    before = create_network("tiny3d", "random:0").module.state_dict()
    assert all(not torch.equal(tensors[key], value) for key, value in before.items())
    assert any(key.startswith("beside/head.") for key in tensors)
    assert {"verb", "noun", "action"} <= set(metrics_of(run))
    assert evaluate(run, progress=False)["clips_averaged"] == {"min": 10, "mean": 10}  # validation took centre clips


def test_saoa_with_cached_objects_and_its_network(folder, tmp_path):
    boxes = tmp_path / "boxes.csv"
    lines = ["video,time,x1,y1,x2,y2"]
    lines += [f"v{v},{t / 2},0.1,0.1,0.6,0.7" for v in range(4) for t in range(10)]
    boxes.write_text("\n".join(lines) + "\n")
    request = replace(
        frames_request(folder),
        backbone="efficientnet_lite0",
        boxes=str(boxes),
        weights=("random:0",),
        option=('resize={"mode":"squash","size":64}',),
        features=(tmp_path,),
    )
    (report,) = extract(request)
    options = {"head": "saoa", "objects": report.store, "set": {"epochs": 1, "reduction": 4, "roi_size": 3}}
    run, _ = train(folder, tmp_path / "run", **options)
    facts = json.loads((run / "run.json").read_text())
    assert set(facts["stores"]) == {"frames", "objects"}
    assert same_figures(evaluate(run, progress=False), run)
    tensors = load_file(run / "best.safetensors")
    before = create_network("tiny3d", "random:0").module.state_dict()
    assert all(not torch.equal(tensors[key], value) for key, value in before.items())
    with pytest.raises(UserError, match="reads .*, not one network's maps of clips"):
        train(folder, tmp_path / "other", head="psn")


def test_boxes_follow_a_crop():
    from extract.transforms import Resize
    from extract.transforms import geometry as of_extraction
    from pipelines.trained_models import geometry

    seen = torch.tensor([[0.0, 0.0, 1.0, 1.0], [(340 - 224) / 2 / 340, 16 / 256, 224 / 340, 224 / 256]])
    whole = of_extraction(Resize("squash", 224), 340, 256, 7, 7)
    crop = of_extraction(Resize("short_side", 256, crop=224), 340, 256, 7, 7)
    assert torch.allclose(geometry(seen, 7, 7), torch.tensor([whole, crop]), atol=1e-5)
