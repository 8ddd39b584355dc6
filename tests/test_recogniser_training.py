"""Recognisers for PSN: which frames stand for a clip, consensus, labels, training, what extraction takes of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from frame_samples import frames_request
from run_files import metrics_of, same_figures
from safetensors.torch import load_file

from commands.train_recogniser import train_recogniser as command
from errors import UserError
from extract.networks import create_network
from pipelines import evaluate, extract, loop, recogniser_training
from pipelines.frame_reader import FrameReader
from pipelines.labelled_clips import ClipSource
from pipelines.recogniser_clips import ClipRows, FrameInputs, Targets, VectorInputs, segment_positions, targets_of
from pipelines.recogniser_model import LinearRecogniser, Recogniser, own_classifier
from pipelines.recogniser_training import RecogniserConfig, RecogniserTask, train_recogniser
from pipelines.run_folder import load_tensors, open_run
from stores import ArraySpec, Manifest, create_store, open_store, plan_layout

pytestmark = [
    pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning"),
    pytest.mark.usefixtures("one_thread"),
]

NET = "shufflenet_v2"
QUICK = {"batch_size": 6, "lr": 0.02, "dropout": 0.0, "partial_norms": True, "test_segments": 5, "workers": 1}
FRAMES = {"backbone": NET, "weights": "random:0", "target": "noun"}


@pytest.fixture(scope="module")
def folder(colours):
    return colours


@pytest.fixture(scope="module")
def frames(folder):
    return open_store(folder / "features" / "colours" / "frames.zarr")


def train(out, **options):
    said = []
    settings = QUICK | options.pop("set", {})
    run = train_recogniser(out=out, set=settings, progress=False, say=said.append, **{"epochs": 2, **options})
    return run, said


@pytest.fixture(scope="module")
def trained(folder, frames):
    """(run, what was said) of TSN, long enough to learn three colours."""
    return train(folder / "runs" / "tsn", frames=frames, epochs=8, **FRAMES)


# --- which frames ---


def test_segments_are_shown_at_their_middles_or_at_random_within():
    middle = segment_positions(np.array([10, 4, 1]), np.full((3, 5), 0.5))
    assert middle.tolist() == [[1, 3, 5, 7, 9], [0, 1, 2, 2, 3], [0] * 5]
    u = np.random.default_rng(0).uniform(size=(2000, 3))
    found = segment_positions(np.full(2000, 10), u)
    assert [sorted(set(column)) for column in found.T.tolist()] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    shares = np.bincount(found.ravel(), minlength=10) / found.size
    assert np.allclose(shares, 0.1, atol=0.02)  # every frame of a clip is as likely as any other
    assert segment_positions(np.array([7]), np.array([[1 - 1e-12]])).tolist() == [[6]]


def grid_store(path, *, status=None, labels=None, clip=-1, fps=2.0, seconds=10, seed=0):
    """A store of vectors on a grid, two videos: `vector` holds video, k and noise; clips as the tests need them."""
    n = int(fps * seconds)
    video, k = np.repeat(np.arange(2), n).astype(np.int32), np.tile(np.arange(n), 2).astype(np.int32)
    rows = {"video": video, "clip": np.full(2 * n, clip, np.int32), "k": k, "draw": np.zeros(2 * n, np.int16)}
    rows |= {"start_s": k / fps, "stop_s": k / fps}
    clips = {
        "id": np.array(["whole", "second", "short", "late", "other"], object),
        "video": np.array([0, 0, 0, 0, 1], np.int32),
        "start_s": np.array([0.0, 2.0, 4.1, 99.0, 0.0]),
        "stop_s": np.array([np.nan, 4.0, 4.3, np.nan, 3.0]),
        "noun": np.array([0, 1, 2, -1, 1], np.int32),
        "split": np.array(["train", "train", "train", "train", "val"], object),
    }
    arrays = {"vector": ArraySpec((6,), "float32")}
    manifest = Manifest(
        arrays=arrays,
        layout=plan_layout(arrays, 64, batch_size=4),
        recipe={"network": {"name": NET}, "weights": "sha256:ab", "sampling": {"axis": "frame", "fps": fps}},
        spec={"name": NET, "layer": "conv5", "resize": {"mode": "squash", "size": 32}, "weights_origin": "file:a"},
        dataset={"name": "grid", "classes": {"noun": 4}},
    )
    table = {"name": np.array(["a", "b"], object), "path": np.array(["a.mp4", "b.mp4"], object)}
    store = create_store(path, manifest, rows, clips, table, labels=labels)
    values = np.random.default_rng(seed).normal(size=(2 * n, 6)).astype(np.float32)
    values[:, 0], values[:, 1] = video, k
    state = np.ones(2 * n, np.uint8) if status is None else status
    for unit in store.units:
        part = slice(unit.start, unit.stop)
        failures = {
            int(i): ("damaged", "made to fail") for i in np.flatnonzero(state == 2) if i in range(*part.indices(2 * n))
        }
        store.commit(unit, {"vector": values[part]}, state[part], failures)
    return open_store(store.path)


def test_rows_of_whole_videos_and_of_short_clips(tmp_path):
    rows = ClipRows(grid_store(tmp_path / "grid.zarr"))
    assert rows.count.tolist() == [20, 4, 1, 1, 6]
    assert rows.at(np.array([0]), np.full((1, 4), 0.5)).tolist() == [[2, 7, 12, 17]]
    assert rows.at(np.array([1, 4]), np.full((2, 2), 0.5)).tolist() == [[5, 7], [21, 24]]
    assert rows.at(np.array([2]), np.full((1, 2), 0.5)).tolist() == [[8, 8]]  # on screen at 4.2 s is the row of 4.0
    assert rows.of(np.array([1, 2, 0])).tolist() == list(range(20))


def test_failed_rows_are_left_out_and_pending_ones_refused(tmp_path):
    status = np.ones(40, np.uint8)
    status[[5, 6]] = 2
    rows = ClipRows(grid_store(tmp_path / "failed.zarr", status=status))
    assert rows.count[:2].tolist() == [18, 2] and rows.of(np.array([1])).tolist() == [4, 7]
    status[5] = 0
    store = grid_store(tmp_path / "pending.zarr", status=status)
    with pytest.raises(UserError, match="2 rows of its clips are still pending"):  # two clips show it
        ClipRows(store)
    assert ClipRows(store, allow_incomplete=True).count[1] == 2
    with pytest.raises(UserError, match="rows belong to clips"):
        ClipRows(grid_store(tmp_path / "clips.zarr", clip=0))


# --- labels ---


def test_several_labels_share_the_target_evenly(tmp_path):
    labels = {"clip": np.array([4, 0, 1, 0], np.int32), "label": np.array([2, 4, 0, 1], np.int32)}
    store = grid_store(tmp_path / "multi.zarr", labels=labels)
    clips = {name: store.clips[name] for name in store.clips}
    source = ClipSource(
        name="grid", family="", videos=store.videos["name"], clips=clips, classes={}, frames=None, where="here"
    )
    targets = targets_of(source, store, "labels", "train")
    assert targets.multi and targets.classes == 5 and targets.known.tolist() == [True, True, False, False, True]
    assert targets.labels.tolist() == [[4, 1], [0, -1], [-1, -1], [-1, -1], [2, -1]]
    hot = targets.of(np.array([0, 1]))
    assert hot.tolist() == [[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]]

    logits = torch.tensor([[[1.0, 0, 2, 0, 0], [0, 1, 0, 0, 3]], [[0.5, 0, 0, 0, 1], [2.5, 0, 0, 0, 0]]])
    task = object.__new__(RecogniserTask)
    task.model, task.targets = (lambda x: x), targets
    found = task.loss({"input": logits, "labels": torch.from_numpy(hot)})
    # consensus of clip 0: .5 .5 1 0 1.5, of clip 1: 1.5 0 0 0 .5
    sums = [np.log(np.exp([0.5, 0.5, 1, 0, 1.5]).sum()), np.log(np.exp([1.5, 0, 0, 0, 0.5]).sum())]
    by_hand = ((sums[0] - 0.5) / 2 + (sums[0] - 1.5) / 2 + (sums[1] - 1.5)) / 2
    assert float(found) == pytest.approx(by_hand, abs=1e-6)


def test_figures_count_clips_without_scores_as_wrong():
    scores = np.array([[3.0, 0, 0], [0, 1, 2], [np.nan] * 3, [0, 0, 5]], np.float32)
    one = Targets("noun", np.array([[0], [1], [1], [2]]), 3, multi=False)
    figures = one.figures(scores, np.arange(4))
    assert figures["noun"]["top1"] == 0.5 and figures["noun"]["top5"] == 0.75 and figures["coverage"] == 0.75
    many = Targets("labels", np.array([[0, 1], [1, -1], [1, -1], [2, -1]]), 3, multi=True)
    assert set(many.figures(scores, np.arange(4))["labels"]) == {"mAP", "mAP_first_label"}
    assert many.figures(scores, np.arange(4))["labels"]["mAP"] < 1


# --- what is trained ---


def frame_task(frames, seed=3, **settings):
    """A TSN task on random weights, outside a run."""
    config = RecogniserConfig(**QUICK | settings)
    size = round(config.crop * 32)
    network = create_network(NET, "random:0", resize={"mode": "squash", "size": 32, "crop": size})
    torch.manual_seed(0)
    model = Recogniser(network, "noun", 3, dropout=config.dropout, partial_norms=config.partial_norms)
    targets = Targets("noun", frames.clips["noun"].astype(np.int64)[:, None], 3, multi=False)
    inputs = FrameInputs(FrameReader(frames), size, config, seed)
    which = np.arange(len(frames.clips["id"]))
    return RecogniserTask(None, model, inputs, None, ClipRows(frames), targets, which, which, config, seed, 1)


def test_consensus_is_the_mean_of_the_segments_logits(frames):
    task = frame_task(frames)
    torch.nn.init.normal_(task.model.classifier["noun"].weight)  # logits that differ
    batch = task.batch(np.array([2, 9]), epoch=1)
    task.model.prepare()
    net = create_network(NET, "random:0", resize={"mode": "squash", "size": 32, "crop": 28})
    layer = task.model.classifier["noun"]
    each = []
    for clip in batch["input"]:  # one segment at a time, through the face of extraction
        vectors = [net.run({"frames": [frame]})["vector"][0] for frame in clip]
        each.append(
            np.mean([v @ layer.weight.detach().numpy().T + layer.bias.detach().numpy() for v in vectors], axis=0)
        )
    expected = F.cross_entropy(torch.from_numpy(np.stack(each)), torch.from_numpy(batch["labels"]))
    with torch.no_grad():
        found = task.loss({"input": torch.from_numpy(batch["input"]), "labels": torch.from_numpy(batch["labels"])})
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


def test_what_is_shown_follows_from_seed_epoch_and_clip_alone(frames):
    task = frame_task(frames, flip=True)
    one, again = task.batch(np.array([3, 8, 1]), 4), task.batch(np.array([1, 3]), 4)
    assert one["input"].shape == (3, 3, 28, 28, 3) and one["input"].dtype == np.uint8
    assert np.array_equal(one["input"][[2, 0]], again["input"])
    assert not np.array_equal(one["input"], task.batch(np.array([3, 8, 1]), 5)["input"])
    assert not np.array_equal(
        one["input"], frame_task(frames, seed=4, flip=True).batch(np.array([3, 8, 1]), 4)["input"]
    )
    still = frame_task(frames, crop=1.0, scale_min=1.0, scale_max=1.0)
    rows = np.array([[0, 7]])
    shown = still.inputs.random(rows, still.rows.ids[:1], 0)[0]
    assert np.array_equal(shown[1, 0, 0], still.inputs.reader.images([7])[0][0, 0])


def test_scores_average_the_middles_of_all_segments(frames):
    task = frame_task(frames)
    torch.nn.init.normal_(task.model.classifier["noun"].weight)
    which = np.array([5, 0])
    scores = task.scores(which)
    weight, bias = task.model.linear()
    for clip, found in zip(which, scores, strict=True):
        rows = frames.rows_between(
            int(frames.clips["video"][clip]), frames.clips["start_s"][clip], frames.clips["stop_s"][clip]
        )
        picked = rows[[int((i + 0.5) * len(rows) / 5) for i in range(5)]]
        images = [image[2:30, 2:30] for image in task.inputs.reader.images(picked)]
        vectors = task.model.network.run({"frames": images})["vector"]
        np.testing.assert_allclose(
            found, (vectors @ weight.numpy().T + bias.numpy()).mean(axis=0), rtol=1e-4, atol=1e-5
        )


def test_partial_norms_leave_all_but_the_first_as_they_came(frames):
    task = frame_task(frames, partial_norms=True)
    before = {name: value.clone() for name, value in task.model.module.state_dict().items()}
    task.model.train()
    batch = task.batch(np.arange(4), 0)
    optimiser = torch.optim.SGD([p for p in task.model.parameters() if p.requires_grad], lr=0.1)
    task.loss({"input": torch.from_numpy(batch["input"]), "labels": torch.from_numpy(batch["labels"])}).backward()
    optimiser.step()
    after = task.model.module.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    norms = {n for n, part in task.model.module.named_modules() if isinstance(part, torch.nn.BatchNorm2d)}
    first = next(n for n, part in task.model.module.named_modules() if isinstance(part, torch.nn.BatchNorm2d))
    assert {name.rpartition(".")[0] for name in moved} & norms == {first}
    assert f"{first}.running_mean" in moved and f"{first}.weight" in moved and "conv5.0.weight" in moved


def test_only_what_the_feature_depends_on_is_thawed():
    network = create_network("efficientnet_lite0", "random:1", resize={"mode": "squash", "size": 32})
    before = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
    model = Recogniser(network, "noun", 3, dropout=0.0, partial_norms=False)
    frozen = {name for name, p in model.module.named_parameters() if not p.requires_grad}
    assert frozen == {"fc.weight", "fc.bias"}  # ImageNet's classifier, which nothing here reads
    assert all(torch.equal(buffer, before[name]) for name, buffer in network.module.named_buffers())


def test_networks_with_a_classifier_of_their_own():
    options, shapes = own_classifier("resnet50", {"layer": "layer4"}, 7)
    assert options == {"layer": "layer4", "logits": True, "classes": 7}
    assert shapes == {"fc.weight": (7, 2048), "fc.bias": (7,)}
    assert own_classifier("densenet161", {}, 5)[1] == {"classifier.weight": (5, 2208), "classifier.bias": (5,)}
    assert own_classifier("timm:resnet18", {}, 5) == ({}, {})


def test_a_linear_recogniser_gives_weights_for_raw_features():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(9, 6)) * 40 + 100).astype(np.float32)
    model = LinearRecogniser(values.mean(0), values.std(0), "noun", 4, dropout=0.5)
    torch.nn.init.normal_(model.classifier["noun"].weight)
    model.prepare()
    with torch.no_grad():
        standardised = model(torch.from_numpy(values)[:, None])[:, 0].numpy()
    np.testing.assert_allclose(model.row_logits(values), standardised, atol=2e-4)


# --- whole trainings ---


def test_tsn_learns_colours_and_says_so(trained):
    run, said = trained
    figures = metrics_of(run)
    assert figures["noun"]["top1"] == 1.0 and figures["coverage"] == 1.0 and figures["features"] == "end-to-end"
    assert figures["clips"] == 6 and figures["trained_clips"] == 18
    assert said[0] == "training: 18 of 18 clips have noun labels and rows"
    facts = open_run(run).facts
    assert facts["kind"] == "recogniser" and facts["strategy"] == "tsn" and facts["targets"] == {"noun": 3}
    assert facts["stores"]["frames"]["recipe"] and facts["lineage"] == []  # it began with random weights


def test_evaluate_gives_the_figures_of_the_best_epoch(trained):
    run, _ = trained
    found = evaluate(run, progress=False)
    assert same_figures(found, run) and set(found["noun"]) == {"top1", "top5", "mAP"}
    with pytest.raises(UserError, match="was trained on colours train, which holds 18 of these clips"):
        evaluate(run, "train", progress=False)
    assert evaluate(run, "train", allow_seen=True, progress=False)["clips"] == 18


def test_extraction_takes_the_run_and_gives_logits(folder, frames, trained, tmp_path):
    run, _ = trained
    tensors, metadata = load_tensors(run / "best.safetensors")
    assert tensors["fc.weight"].shape == (3, 1024) and not any(key.startswith("beside/") for key in tensors)
    assert metadata["options"] == {"resize": {"mode": "squash", "size": 32, "crop": 28}, "logits": True, "classes": 3}
    own = {"dataset": "colours", "split": "train", "classes": 3, "targets": ["noun"]}
    assert metadata["lineage"] == [own] and metadata["targets"] == {"noun": 3}
    request = replace(
        frames_request(folder), option=(), backbone=NET, weights=(str(run),), keep=("vector", "logits"), hop=0.04,
        only=True, dtype="float32", features=(tmp_path,),
    )  # fmt: skip
    (report,) = extract(request)
    store = open_store(report.store)
    assert report.complete and store.manifest.lineage == [own]
    rows = np.arange(0, len(store), 7)
    vector, logits = store.read("vector", rows), store.read("logits", rows)
    np.testing.assert_allclose(
        logits, vector @ tensors["fc.weight"].numpy().T + tensors["fc.bias"].numpy(), rtol=1e-4, atol=1e-4
    )
    # The frames that extraction shows are those of validation, which came as JPEG: the answers agree.
    val = np.flatnonzero(store.clips["split"] == "val")
    at = ClipRows(store).at(val, np.full((len(val), 5), 0.5))
    answers = store.read("logits", at.ravel()).reshape(*at.shape, 3).mean(axis=1).argmax(axis=1)
    assert answers.tolist() == store.clips["noun"][val].tolist()


def test_frame_based_training_shows_one_frame(folder, frames, tmp_path):
    run, _ = train(tmp_path / "run", frames=frames, strategy="frame", epochs=1, **FRAMES)
    config = open_run(run).facts["training"]
    assert config["segments"] == 1 and config["decay_every"] == 20 and config["weight_decay"] == 1e-4
    assert RecogniserConfig().lr_of(0) == 0.002 and RecogniserConfig().lr_of(45) == pytest.approx(2e-5)
    thesis = RecogniserConfig(**recogniser_training.STRATEGIES["frame"])
    assert (thesis.batch_size, thesis.lr, thesis.epochs, thesis.segments) == (64, 0.001, 50, 1)


def curve(run):
    return [{k: v for k, v in row.items() if k not in ("seconds", "waited")} for row in open_run(run).log()]


def test_an_interrupted_training_ends_as_if_it_had_not_been(frames, tmp_path, monkeypatch):
    options = {**FRAMES, "frames": frames, "set": {"dropout": 0.3, "partial_norms": False, "flip": True}}
    whole, _ = train(tmp_path / "whole", **options)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    loss, steps = RecogniserTask.loss, iter(range(100))

    def stops(self, batch):
        if next(steps) == 4:  # the second step of the second epoch
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(RecogniserTask, "loss", stops)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "run", **options)
    monkeypatch.setattr(RecogniserTask, "loss", loss)
    run, said = train(tmp_path / "run", **options)
    assert any("going on after epoch 1 of 2 and 1 step" in line for line in said)
    assert curve(run) == curve(whole)
    one, other = (load_file(path / "last.safetensors") for path in (run, whole))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_is_where_another_one_starts(frames, trained, tmp_path):
    run, _ = train(
        tmp_path / "verbs", frames=frames, epochs=1, **{**FRAMES, "weights": str(trained[0]), "target": "verb"}
    )
    facts = open_run(run).facts
    assert facts["network"]["origin"] == "run:tsn" and facts["lineage"][0]["targets"] == ["noun"]
    tensors, metadata = load_tensors(run / "best.safetensors")
    assert tensors["fc.weight"].shape == (2, 1024) and metadata["options"]["classes"] == 2
    assert [entry["targets"] for entry in metadata["lineage"]] == [["verb"], ["noun"]]


def test_a_classifier_of_cached_features_is_a_network_again(folder, tmp_path):
    small = 'resize={"mode":"squash","size":32}'
    request = replace(
        frames_request(folder), option=(small,), backbone=NET, weights=("random:0",), keep=("vector",), hop=0.08,
        only=True, dtype="float32", features=(tmp_path / "features",),
    )  # fmt: skip
    store = extract(request)[0].store
    with pytest.raises(UserError, match="by a network with random:0 weights"):
        train(tmp_path / "run", vectors=store, target="noun")
    run, said = train(tmp_path / "run", vectors=store, target="noun", epochs=10, allow_random=True, set={"lr": 0.002})
    figures = metrics_of(run)
    assert figures["features"] == "frozen" and figures["noun"]["top1"] == 1.0 and len(said) == 12
    assert same_figures(evaluate(run, progress=False), run)
    tensors, metadata = load_tensors(run / "best.safetensors")
    net = create_network(NET, str(run))
    vectors = open_store(store)
    rows = [3, 30]
    images = [np.full((32, 32, 3), 90, np.uint8), np.zeros((32, 32, 3), np.uint8)]
    net.keep = ("vector", "logits")
    found = net.run({"frames": images})
    expected = found["vector"] @ tensors["fc.weight"].numpy().T + tensors["fc.bias"].numpy()
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-4)
    plain = create_network(NET, "random:0", resize={"mode": "squash", "size": 32})
    np.testing.assert_allclose(found["vector"], plain.run({"frames": images})["vector"], rtol=1e-5)
    assert vectors.read("vector", rows).shape == (2, 1024) and metadata["network"] == NET


def test_features_whose_network_is_not_here_give_a_classifier_alone(tmp_path):
    labels = {"clip": np.array([0, 0, 1, 4], np.int32), "label": np.array([0, 2, 1, 1], np.int32)}
    store = grid_store(tmp_path / "grid.zarr", labels=labels)
    run, said = train(tmp_path / "run", vectors=store, target="labels", epochs=3)
    assert any("the weights of shufflenet_v2 that made" in line for line in said)
    figures = metrics_of(run)
    assert same_figures(evaluate(run, stores={"vectors": store}, progress=False), run)
    assert figures["clips"] == 1 and figures["trained_clips"] == 2 and 0 <= figures["labels"]["mAP"] <= 1
    tensors, _ = load_tensors(run / "best.safetensors")
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {
        "beside/classifier.labels.weight": (3, 6),
        "beside/classifier.labels.bias": (3,),
    }
    inputs = VectorInputs(store)
    assert inputs.random(np.array([[3, 21]]), None, 0)[0, :, :2].tolist() == [[0, 3], [1, 1]]


def test_weights_that_are_asked_for_and_are_not_there_are_refused(tmp_path):
    labels = {"clip": np.array([0, 0, 1, 4], np.int32), "label": np.array([0, 2, 1, 1], np.int32)}
    store = grid_store(tmp_path / "grid.zarr", labels=labels)
    with pytest.raises(UserError, match="nothere.*no such file"):
        train(tmp_path / "run", vectors=store, target="labels", weights=str(tmp_path / "nothere"))
    assert not (tmp_path / "run").exists()


def test_trainval_and_features_that_saw_val_have_no_validation(frames, trained, tmp_path):
    run, said = train(tmp_path / "all", frames=frames, fit="trainval", epochs=1, **FRAMES)
    assert "no validation: fitting on trainval" in said and metrics_of(run)["trained_clips"] == 24
    _, said = train(tmp_path / "again", frames=frames, epochs=1, **{**FRAMES, "weights": str(run)})
    assert any(line.startswith("no validation: ") and "colours trainval" in line for line in said)


def test_wrong_use_is_told(frames, tmp_path):
    for options, match in (
        ({"target": "noun"}, "which network to train"),
        ({"target": "noun", "backbone": NET, "vectors": frames}, "which network to train"),
        ({**FRAMES, "frames": frames, "target": "colour"}, "no label column 'colour'"),
        ({**FRAMES, "frames": frames, "target": "labels"}, "no table of labels"),
        ({**FRAMES, "frames": frames, "option": ['resize={"mode":"squash","size":64}']}, "--set crop"),
        ({**FRAMES, "frames": frames, "backbone": "tiny3d"}, "is no frame network"),
        (
            {**FRAMES, "features": [tmp_path], "backbone": "nonesuch"},
            "no network is called 'nonesuch': see .*weights list",
        ),
        ({**FRAMES, "features": [tmp_path / "typo"]}, "--features .*typo: no such folder"),
        ({**FRAMES, "frames": frames, "strategy": "tsm"}, "--strategy must be one of tsn, frame"),
        ({"target": "noun", "vectors": frames}, "has no array 'vector'"),
        ({**FRAMES, "frames": frames, "set": {"crop": 0.9}}, "a crop must fit"),
    ):
        with pytest.raises(UserError, match=match):
            train(tmp_path / "no", **options)
    assert not (tmp_path / "no").exists()


def test_the_command_prints_figures(tmp_path):
    store = grid_store(tmp_path / "grid.zarr")
    arguments = ["--vectors", str(store.path), "--target", "noun", "--epochs", "1", "--out", str(tmp_path / "run")]
    result = CliRunner().invoke(command, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["trained_clips"] == 3
