"""Training, resuming, evaluating and finding stores, on small synthetic stores that hold the answer."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_stores import CLIP_ARRAYS, NOUNS, VERBS, all_stores, clip_store, clips_table, object_store

from errors import MachineError, UserError
from heads.metrics import action_prior
from pipelines.devices import pick_device
from pipelines.evaluation import evaluate, predict_scores
from pipelines.run_folder import load_tensors, open_run
from pipelines.settings import parse_settings
from pipelines.training import HeadTask, TrainingConfig, train_head
from stores import ClipDataset, open_store
from stores.zarr_store import write_manifest

QUICK = {"lr": 0.1, "last_lr": 0.01, "batch_size": 8}


def train(stores, out, name="saoa", **options):
    said = []
    options = {"epochs": 2, "set": QUICK, "progress": False, "say": said.append, **options}
    return train_head(name, **stores, out=out, **options), said


def metrics_of(run: Path) -> dict:
    return json.loads((run / "metrics.json").read_text())


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return all_stores(tmp_path_factory.mktemp("features"), videos=8)


@pytest.fixture(scope="module")
def trained(stores, tmp_path_factory):
    """SAOA and the baseline, trained long enough to learn."""
    out = tmp_path_factory.mktemp("runs")
    runs = {}
    for name in ("saoa", "whole_frame"):
        runs[name], _ = train(stores, out / name, name, epochs=30, set={**QUICK, "lr": 0.2 if name == "saoa" else 0.1})
    return runs


def test_it_learns_what_only_objects_show(trained):
    saoa, whole = metrics_of(trained["saoa"]), metrics_of(trained["whole_frame"])
    assert saoa["verb"]["top1"] > 0.9 and whole["verb"]["top1"] > 0.9
    assert saoa["noun"]["top1"] > 0.8  # the noun is in one box of five
    assert whole["noun"]["top1"] < 0.7
    assert saoa["action"]["top1"] > 0.7
    assert saoa["clips"] == 20 and saoa["coverage"] == 1 and saoa["trained_clips"] == 60
    assert all(saoa[k]["top5"] >= saoa[k]["top1"] for k in ("verb", "noun", "action"))


def test_no_run_keeps_its_features_for_the_next(trained, stores, tmp_path):
    """A sweep trains many heads in one process: what one has kept in memory goes with it, not when garbage is found."""

    def datasets() -> int:
        return sum(type(one) is ClipDataset for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = datasets()
        train(stores, tmp_path / "run", epochs=1)
        assert datasets() == before
    finally:
        gc.enable()


def test_what_a_run_folder_says(trained, stores):
    run = open_run(trained["saoa"])
    assert run.facts["stores"]["verb"]["recipe"] == stores["verb"].manifest.recipe_hash
    assert run.facts["dataset"] == {"name": "toy", "classes": {"verb": 3, "noun": 4}}
    assert run.facts["head"]["config"]["channels"] == 16 and run.facts["head"]["config"]["object_channels"] == 12
    assert run.facts["trained_on"]["split"] == "train" and run.facts["made"]["versions"]["torch"]
    log = run.log()
    assert [row["epoch"] for row in log] == list(range(1, 31)) and log[-1]["loss"] < log[0]["loss"]
    assert log[0]["lr"] == 0.2 and log[-1]["lr"] == 0.01
    assert np.isclose(run.prior().sum(), 1) and run.prior().shape == (3, 4)
    best = max(log, key=lambda row: row["val_action_top1"])
    assert metrics_of(trained["saoa"])["epoch"] == best["epoch"] == run.best_head()[1]["epoch"]


def test_evaluate_gives_the_figures_of_training(trained):
    for run in trained.values():
        ours, kept = evaluate(run, "val", progress=False), metrics_of(run)
        for name in ("verb", "noun", "action", "coverage", "clips"):
            assert ours[name] == kept[name]
        assert json.loads((run / "metrics_val.json").read_text())["split"] == "val"


def test_evaluate_refuses_clips_it_was_trained_on(trained):
    with pytest.raises(UserError, match="this saoa was trained on toy train, which holds 60 of these clips"):
        evaluate(trained["saoa"], "train", progress=False)
    assert evaluate(trained["saoa"], "train", allow_seen=True, progress=False)["clips"] == 60


def test_evaluate_refuses_other_features(trained, tmp_path, stores):
    other = clip_store(tmp_path, videos=8, weights="other")
    with pytest.raises(UserError, match='weights: trained on "abc", this store has "other"'):
        evaluate(trained["saoa"], stores={"verb": other, "noun": other, "objects": stores["objects"]})
    with pytest.raises(UserError, match="no run folder"):
        evaluate(tmp_path)


def test_features_that_saw_the_validation_clips_give_no_figures(tmp_path):
    lineage = [{"dataset": "toy", "split": "trainval", "classes": 3}, {"dataset": "kinetics400", "split": "train"}]
    store = clip_store(tmp_path, lineage=lineage)
    run, said = train({"verb": store, "noun": store, "objects": object_store(tmp_path)}, tmp_path / "run", epochs=1)
    assert any("no validation: i3d_rgb.zarr was trained on toy trainval, which holds 10" in line for line in said)
    assert "action" not in metrics_of(run)
    with pytest.raises(UserError, match="i3d_rgb.zarr was trained on toy trainval"):
        evaluate(run, "val", progress=False)
    assert open_run(run).facts["lineage"][0] == {"name": "i3d_rgb.zarr", **lineage[0]}


def test_weights_of_unknown_training_are_told(tmp_path):
    lineage = [{"dataset": "unknown", "split": "unknown", "classes": 0, "file": "mine.pt"}]
    store = clip_store(tmp_path, lineage=lineage)
    objects = object_store(tmp_path)
    spec = {**objects.manifest.spec, "weights_origin": "my detector"}  # a plug-in that brings its own weights
    write_manifest(objects.path, replace(objects.manifest, spec=spec))
    trio = {"verb": store, "noun": store, "objects": open_store(objects.path)}
    run, said = train(trio, tmp_path / "run", epochs=1)
    names = ["i3d_rgb.zarr (mine.pt)", "faster_rcnn.zarr (my detector)"]
    assert sum("nobody said what the weights behind " + ", ".join(names) in line for line in said) == 1
    assert open_run(run).facts["unknown_ancestors"] == metrics_of(run)["unknown_ancestors"] == names
    with pytest.warns(UserWarning, match="mine.pt"):
        assert evaluate(run, progress=False)["unknown_ancestors"] == names
    assert json.loads((run / "metrics_val.json").read_text())["unknown_ancestors"] == names


def test_known_weights_are_not_warned_of(trained):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert evaluate(trained["saoa"], progress=False)["unknown_ancestors"] == []
    assert metrics_of(trained["saoa"])["unknown_ancestors"] == []


def test_the_prior_counts_clips_without_features(tmp_path):
    clips = clips_table(4)
    clips["noun"] = clips["noun"].copy()
    clips["noun"][7] = -1  # without a label it cannot count
    store = clip_store(tmp_path, failed=range(9), clips=clips)  # all draws of the first three clips
    run, _ = train({"verb": store, "noun": store}, tmp_path / "run", "whole_frame", epochs=1)
    counted = np.delete(np.arange(30), 7)
    assert metrics_of(run)["trained_clips"] == 26
    assert np.array_equal(
        open_run(run).prior(), action_prior(clips["verb"][counted], clips["noun"][counted], VERBS, NOUNS)
    )


def test_trainval_has_no_validation(stores, tmp_path):
    run, said = train(stores, tmp_path / "run", fit="trainval", epochs=2)
    figures = metrics_of(run)
    assert figures["epoch"] == 2 and not {"score", "verb", "action", "clips"} & set(figures)
    assert np.isclose(open_run(run).prior().sum(), 1) and "val_verb_top1" not in open_run(run).log()[0]
    _, again = train(stores, run, fit="trainval", epochs=2)
    assert any("nothing to do" in line for line in again)
    assert metrics_of(run)["trained_clips"] == 80 and any("no validation: fitting on trainval" in s for s in said)
    with pytest.raises(UserError, match="trainval"):
        evaluate(run, "val", progress=False)


def test_missing_rows_count_as_wrong(tmp_path):
    store = clip_store(tmp_path, failed=[91, 92, 93], pending=[95])
    trio = {"verb": store, "noun": store, "objects": object_store(tmp_path)}
    with pytest.raises(UserError, match="pending"):
        train(trio, tmp_path / "no")
    run, said = train(trio, tmp_path / "run", allow_incomplete=True)
    result = metrics_of(run)
    assert result["clips"] == 10 and result["coverage"] == pytest.approx(0.6) and result["verb"]["top5"] == 0.6
    assert any("6 of 10 clips and draws have features (60.0%), 3 failed in verb" in line for line in said)


def test_predicted_scores_are_nan_where_there_are_no_features(tmp_path):
    from pipelines.evaluation import clip_dataset

    store = clip_store(tmp_path, failed=[90])
    trio = {"verb": store, "noun": store, "objects": object_store(tmp_path)}
    run, _ = train(trio, tmp_path / "run", epochs=1)
    head, _ = open_run(run).best_head()
    scores = predict_scores(head, clip_dataset(head, trio, "val"), "cpu")
    assert np.isnan(scores["verb"][0]).all() and np.isfinite(scores["noun"][1:]).all()


# --- stopping and going on ---


def same_tensors(a: Path, b: Path) -> bool:
    ours, theirs = load_tensors(a)[0], load_tensors(b)[0]
    return set(ours) == set(theirs) and all((ours[k] == theirs[k]).all() for k in ours)


def test_a_rerun_does_nothing_and_another_training_is_refused(stores, tmp_path):
    run, _ = train(stores, tmp_path / "run")
    before = (run / "last.safetensors").stat().st_mtime_ns
    _, said = train(stores, run)
    assert any("nothing to do" in line for line in said)
    assert (run / "last.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="another training.*seed: it has 0, asked for 1"):
        train(stores, run, seed=1)
    with pytest.raises(UserError, match="training.lr"):
        train(stores, run, set={**QUICK, "lr": 0.3})
    facts = json.loads((run / "run.json").read_text())
    del facts["training"]["decay"], facts["head"]["config"]["roi_size"]  # as in a run from before there were these
    (run / "run.json").write_text(json.dumps(facts))
    assert any("nothing to do" in line for line in train(stores, run)[1])
    with pytest.raises(UserError, match="training.decay"):
        train(stores, run, set={**QUICK, "decay": "cosine"})


def test_interrupted_training_goes_on_as_if_nothing_happened(stores, tmp_path, monkeypatch):
    whole, _ = train(stores, tmp_path / "whole", epochs=3)
    loss, calls = HeadTask.loss, []

    def interrupted(task, batch):
        calls.append(1)
        if len(calls) == 12:  # in the second epoch
            raise KeyboardInterrupt
        return loss(task, batch)

    monkeypatch.setattr(HeadTask, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(stores, tmp_path / "cut", epochs=3)
    monkeypatch.undo()
    cut, said = train(stores, tmp_path / "cut", epochs=3)
    assert any("going on after epoch 1 of 3" in line for line in said)
    assert same_tensors(whole / "last.safetensors", cut / "last.safetensors")
    assert same_tensors(whole / "best.safetensors", cut / "best.safetensors")
    assert metrics_of(whole) == metrics_of(cut)


def test_killed_with_9_and_rerun(stores, tmp_path):
    whole, _ = train(stores, tmp_path / "whole", epochs=6)
    code = (
        "import torch; torch.set_num_threads(1); from pipelines.training import train_head\n"
        f"train_head('saoa', verb={str(stores['verb'].path)!r}, noun={str(stores['noun'].path)!r},"
        f" objects={str(stores['objects'].path)!r}, out={str(tmp_path / 'killed')!r}, epochs=6, set={QUICK!r},"
        " progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL)
    last = tmp_path / "killed" / "last.safetensors"
    deadline = time.monotonic() + 60
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert last.exists()
    killed, _ = train(stores, tmp_path / "killed", epochs=6)
    assert same_tensors(whole / "last.safetensors", killed / "last.safetensors")
    assert same_tensors(whole / "best.safetensors", killed / "best.safetensors")


def test_stores_that_moved(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "new"
    trio = all_stores(old)
    run, _ = train(trio, tmp_path / "run", epochs=1)
    kept = evaluate(run, progress=False)
    new.mkdir()
    place = shutil.move(trio["objects"].path, new / "boxes.zarr")
    with pytest.raises(UserError, match="objects store is not at .*--objects PATH .of evaluate, predict, fuse, plot"):
        evaluate(run, progress=False)
    assert evaluate(run, stores={"objects": place, "verb": None}, progress=False) == kept
    from pipelines import plotting

    monkeypatch.setattr(plotting, "load_dataset", lambda *_, **__: None)
    monkeypatch.setattr(plotting, "frames_of", lambda _: frame_at)
    assert len(plotting.plot_run(run, clips=2, stores={"objects": str(place)})) == 3
    with pytest.raises(UserError, match="no things store"):
        evaluate(run, stores={"objects": place, "things": place}, progress=False)
    other = clip_store(tmp_path / "third", weights="other")
    with pytest.raises(UserError, match=r"not what .* was trained on \(verb\)"):
        evaluate(run, stores={"objects": place, "verb": other}, progress=False)
    # Training again, all done already, notes the new place and nothing else.
    before = json.loads((run / "run.json").read_text())
    train({**trio, "objects": open_store(place)}, run, epochs=1)
    after = json.loads((run / "run.json").read_text())
    assert after["stores"]["objects"].pop("path") == str(place)
    before["stores"]["objects"].pop("path")
    assert after == before and evaluate(run, progress=False) == kept


def test_damaged_checkpoint(stores, tmp_path):
    run, _ = train(stores, tmp_path / "run", "whole_frame")
    (run / "best.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="damaged"):
        evaluate(run, progress=False)
    (run / "best.safetensors").unlink()
    with pytest.raises(UserError, match="no best.safetensors"):
        evaluate(run, progress=False)


def test_seeds_differ_and_repeat(stores, tmp_path):
    runs = [train(stores, tmp_path / str(i), "whole_frame", seed=seed)[0] for i, seed in enumerate((0, 0, 1))]
    assert same_tensors(runs[0] / "last.safetensors", runs[1] / "last.safetensors")
    assert not same_tensors(runs[0] / "last.safetensors", runs[2] / "last.safetensors")


def test_an_epoch_shows_every_clip_once(stores, tmp_path, monkeypatch):
    seen, loss = [], HeadTask.loss

    def recorded(task, batch):
        seen.append(batch["item"].numpy())
        return loss(task, batch)

    monkeypatch.setattr(HeadTask, "loss", recorded)
    train(stores, tmp_path / "run", "whole_frame", epochs=2)
    first, second = np.concatenate(seen[:8]), np.concatenate(seen[8:])
    assert len(first) == len(second) == 60
    assert (np.sort(first // 2) == np.arange(60)).all()  # two draws a clip, one of them each epoch
    assert not np.array_equal(first, second) and 10 < (first % 2).sum() < 50


def test_draws_limited_and_in_turn(stores, tmp_path, monkeypatch):
    seen, loss = [], HeadTask.loss

    def recorded(task, batch):
        seen.append(task.fitted.draws[batch["item"].numpy()])
        return loss(task, batch)

    monkeypatch.setattr(HeadTask, "loss", recorded)
    train(stores, tmp_path / "one", "whole_frame", epochs=2, set={**QUICK, "draws": 1})
    assert (np.concatenate(seen) == 1).all()
    seen.clear()
    train(stores, tmp_path / "turns", "whole_frame", epochs=4, set={**QUICK, "in_turn": True})
    per_epoch = np.concatenate(seen).reshape(4, -1)
    assert (per_epoch == np.array([1, 2, 1, 2])[:, None]).all()
    with pytest.raises(UserError, match="draws=3: .* has 2 random draws a clip; extract more with --draws"):
        train(stores, tmp_path / "many", "whole_frame", set={**QUICK, "draws": 3})


def test_a_last_batch_of_one_clip_joins_the_one_before(stores, tmp_path, monkeypatch):
    sizes, loss = [], HeadTask.loss

    def recorded(task, batch):
        sizes.append(len(batch["item"]))
        return loss(task, batch)

    monkeypatch.setattr(HeadTask, "loss", recorded)
    train(stores, tmp_path / "run", "whole_frame", epochs=1, set={**QUICK, "batch_size": 59})
    assert sizes == [60]


# --- wrong use ---


def test_random_features_need_permission(tmp_path):
    store = clip_store(tmp_path, lineage=[{"dataset": "random:0", "split": "", "classes": 0}])
    trio = {"verb": store, "noun": store, "objects": object_store(tmp_path)}
    with pytest.raises(UserError, match=r"i3d_rgb.zarr \(verb\) was made by a network with random:0.*--allow-random"):
        train(trio, tmp_path / "run")
    run, _ = train(trio, tmp_path / "run", allow_random=True, epochs=1)
    assert open_run(run).facts["random_features"] is True and "action" in metrics_of(run)


def test_settings():
    known = {"lr": float, "epochs": int, "rescale": bool, "prior": str}
    parsed = parse_settings(["lr=1", "epochs=3", "rescale=no", "prior=joint"], known)
    assert parsed == {"lr": 1.0, "epochs": 3, "rescale": False, "prior": "joint"} and type(parsed["lr"]) is float
    for wrong, says in (
        ("epoch=3", "near it are epochs"),
        ("epochs=2.5", "epochs is a whole number"),
        ("lr=fast", "lr is a number"),
        ("lr=nan", "lr must be finite"),
        ("rescale=perhaps", "true or false"),
        ("lr", "write key=value"),
        ("qqqq=1", "there are epochs, lr, prior, rescale"),
    ):
        with pytest.raises(UserError, match=says):
            parse_settings([wrong], known)
    for wrong in ({"epochs": True}, {"epochs": 1.5}, {"rescale": 3}):
        with pytest.raises(UserError):
            parse_settings(wrong, known)


def test_training_config_is_the_thesis():
    config = TrainingConfig()
    assert [config.lr_of(e) for e in (0, 9, 10, 14)] == [1e-3, 1e-3, 1e-4, 1e-4]
    assert (config.epochs, config.batch_size, config.momentum, config.weight_decay) == (15, 32, 0.9, 1e-4)
    wrong = ({"epochs": 0}, {"lr": float("nan")}, {"prior": "some"}, {"precision": "fp8"}, {"ahead": 0}, {"decay": "x"})
    for given in (*wrong, {"decay": "cosine", "decay_every": 2, "last_epochs": 0}):
        with pytest.raises(UserError):
            TrainingConfig(**given)


def test_backbone_presets(tmp_path, stores):
    run, _ = train(stores, tmp_path / "i3d", set={"boxes_per_frame": 3}, epochs=1)
    config = open_run(run).facts
    assert config["head"]["config"]["rescale"] is True and config["training"]["lr"] == 1e-3
    assert config["head"]["config"]["boxes_per_frame"] == 3


def test_wrong_use(stores, tmp_path):
    with pytest.raises(UserError, match="no head is called"):
        train(stores, tmp_path / "run", "saoo")
    with pytest.raises(UserError, match="--fit"):
        train(stores, tmp_path / "run", fit="val")
    with pytest.raises(UserError, match="near it are lr"):
        train(stores, tmp_path / "run", set=["l_r=1"])
    for setting, size in (("verbs", VERBS), ("nouns", NOUNS), ("channels", CLIP_ARRAYS["vector"].row_shape[-1])):
        with pytest.raises(UserError, match=f"--set {setting}=512: the data decide it, and it is {size} here"):
            train(stores, tmp_path / "run", set=[f"{setting}=512"])
    with pytest.raises(UserError, match="noun_window_s must be finite"):
        train(stores, tmp_path / "run", set=["noun_window_s=inf"])
    with pytest.raises(UserError, match="CUDA"):
        import torch

        if torch.cuda.is_available():
            pytest.skip("there is a GPU here")
        train(stores, tmp_path / "run", device="cuda")
    with pytest.raises(UserError, match="no array 'spatial' .it has vector, n_padded.; it was not extracted here"):
        slim = clip_store(tmp_path, videos=8, arrays={"vector": CLIP_ARRAYS["vector"]})
        train({**stores, "verb": slim}, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_place_that_cannot_be_written(stores, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for out in (file, file / "x"):
        with pytest.raises(UserError, match="cannot write .*file"):
            train(stores, out, "whole_frame")
        with pytest.raises(UserError, match="no run folder"):
            evaluate(out)


def test_pick_device(monkeypatch):
    import torch

    assert pick_device("auto") == pick_device(None) and pick_device("cpu") == "cpu"
    for wrong in ("meta", "mps", "gpu", ""):
        with pytest.raises(UserError, match="not one of auto, cpu, cuda"):
            pick_device(wrong)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda") == pick_device("auto") == "cuda" and pick_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="cuda:9: there are 2 CUDA devices here, the last is cuda:1"):
        pick_device("cuda:9")


def test_a_loss_that_explodes_is_an_error(stores, tmp_path):
    with pytest.raises(MachineError, match="smaller lr"):
        train(stores, tmp_path / "run", set={"lr": 1e30, "batch_size": 8})


def test_bf16(stores, tmp_path):
    run, _ = train(stores, tmp_path / "run", set={**QUICK, "precision": "bf16"}, epochs=1)
    assert np.isfinite(open_run(run).log()[0]["loss"])


def test_a_store_of_another_role_is_left_out(stores, tmp_path):
    _, said = train(stores, tmp_path / "run", "whole_frame", epochs=1)
    assert any("reads no objects store" in line for line in said)


# --- pictures ---


def frame_at(video: str, time_s: float) -> np.ndarray:
    return np.full((120, 160, 3), 60 + int(10 * time_s) % 100, np.uint8)


def test_pictures(trained):
    from pipelines.pictures import attention_pictures, training_curve

    names = {"verb": ["take", "put", "turn"], "noun": ["cup", "pan", "tap", "egg"]}
    paths = attention_pictures(trained["saoa"], 2, frame_at=frame_at, class_names=names)
    paths += attention_pictures(trained["saoa"], frame_at=frame_at, clips=["clip65"])
    paths.append(training_curve(trained["saoa"]))
    assert [path.name for path in paths[:3]] == ["attention_clip60.png", "attention_clip79.png", "attention_clip65.png"]
    for path in paths:
        assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000
    with pytest.raises(UserError, match="no attention"):
        attention_pictures(trained["whole_frame"], frame_at=frame_at)
    with pytest.raises(UserError, match="clip 'x' is not in this split"):
        attention_pictures(trained["saoa"], frame_at=frame_at, clips=["x"])


def test_pictures_of_what_there_is(tmp_path, monkeypatch):
    from pipelines import plotting

    asked = []
    monkeypatch.setattr(plotting, "load_dataset", lambda *_, **__: None)
    monkeypatch.setattr(plotting, "frames_of", lambda _: frame_at)
    pictures = plotting.attention_pictures
    monkeypatch.setattr(plotting, "attention_pictures", lambda *a, **k: asked.append(k) or pictures(*a, **k))
    clips = {**clips_table(1), "split": np.array(["train"] * 10, object)}  # no val, as in most CSVs
    store = clip_store(tmp_path, videos=1, clips=clips, pending=[0])
    trio = {"verb": store, "noun": store, "objects": object_store(tmp_path, videos=1)}
    run, _ = train(trio, tmp_path / "run", epochs=1, allow_incomplete=True)
    paths = plotting.plot_run(run, clips=2)
    assert [path.name for path in paths] == ["training_curve.png", "attention_clip1.png", "attention_clip9.png"]
    assert asked[-1]["split"] == "train" and asked[-1]["allow_incomplete"] is True
    with pytest.raises(UserError, match="no clip is in split 'val'"):
        plotting.plot_run(run, split="val")
    with pytest.raises(UserError, match="--clips must be at least 1"):
        plotting.plot_run(run, clips=0)
    shutil.rmtree(run / "pictures")
    (run / "pictures").write_text("in the way")
    with pytest.raises(UserError, match="cannot write .*training_curve.png"):
        plotting.plot_run(run)


def test_a_split_without_features_has_no_pictures(tmp_path):
    from pipelines.pictures import attention_pictures

    store = clip_store(tmp_path, failed=range(90, 100))
    trio = {"verb": store, "noun": store, "objects": object_store(tmp_path)}
    run, _ = train(trio, tmp_path / "run", epochs=1)
    with pytest.raises(UserError, match="no clip of split 'val' has features"):
        attention_pictures(run, frame_at=frame_at)
