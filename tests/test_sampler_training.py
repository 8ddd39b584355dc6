"""PSN's training: which frames two stores share, what a batch shows, figures beside the baselines, what it leaves."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from run_files import curve, metrics_of
from safetensors.torch import load_file

from cli import main
from errors import UserError
from heads import frame_sampling as fs
from pipelines import evaluate, loop, train_head
from pipelines.recogniser_clips import ClipRows, Targets, VectorInputs
from pipelines.run_folder import open_run
from pipelines.sampler_clips import Candidates, SharedFrames
from pipelines.sampler_training import JointSamplerConfig, SamplerConfig, SamplerTask
from stores import ArraySpec, Manifest, create_store, open_store, plan_layout

pytestmark = [
    pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning"),
    pytest.mark.usefixtures("one_thread"),
]

VIDEOS, CLASSES, WIDTH = 24, 4, 8
QUICK = {"frames": 8, "sampled": 2, "width": 16, "batch_size": 6, "lr": 0.1, "last_lr": 0.02, "workers": 1}


# --- stores in which two frames of each video say what it is ---


def clips_table():
    """A clip a video, without a stop: the first 18 to train, the others to validate."""
    return {
        "id": np.array([f"c{i}" for i in range(VIDEOS)], object),
        "video": np.arange(VIDEOS, dtype=np.int32),
        "start_s": np.zeros(VIDEOS),
        "stop_s": np.full(VIDEOS, np.nan),
        "noun": np.arange(VIDEOS, dtype=np.int32) % CLASSES,
        "split": np.array(["train"] * 18 + ["val"] * 6, object),
    }


def grid_store(
    path, array, *, seconds=10.0, fps=2.0, order=None, status=None, labels=None, lineage=(), dataset="grid", clip=-1,
    clips=None, classes=CLASSES, created_with=None,
):  # fmt: skip
    """A store on the frame axis. `vector`: channel 0 says whether a frame tells, channels 1 and 2 are video and second.
    `logits`: the video's class on frames that tell, on all others another one. A frame tells for 2 of 10 seconds,
    beginning at second `video % 8`. order: the videos' order in this store; status {(video, k): code}."""
    order = np.arange(VIDEOS) if order is None else order
    n = round(seconds * fps)
    video, k = np.repeat(np.arange(VIDEOS), n), np.tile(np.arange(n), VIDEOS)
    real, time = order[video], k / fps
    rows = {"video": video.astype(np.int32), "clip": np.full(len(k), clip, np.int32), "k": k.astype(np.int32)}
    rows |= {"draw": np.zeros(len(k), np.int16), "start_s": time, "stop_s": time}
    tells = (time >= real % 8) & (time < real % 8 + 2)
    rng = np.random.default_rng(3)
    if array == "vector":
        values = rng.normal(size=(len(k), WIDTH)).astype(np.float32)
        values[:, 0] = np.where(tells, 2, -2)
        values[:, 1], values[:, 2] = real / VIDEOS, time / 10
    else:
        values = rng.normal(size=(len(k), classes)).astype(np.float32) * 0.1
        named = np.where(tells, real % CLASSES, (real + 1 + k % 3) % CLASSES)
        values[np.arange(len(k)), named % classes] += np.where(tells, 4, 3)
    arrays = {array: ArraySpec(values.shape[1:], "float32")}
    manifest = Manifest(
        arrays=arrays,
        layout=plan_layout(arrays, 64, batch_size=4),
        recipe={"network": {"name": array}, "sampling": {"axis": "frame", "fps": fps}, "seconds": seconds},
        spec={"name": array} | ({"created_with": created_with} if created_with else {}),
        dataset={"name": dataset, "classes": {"noun": CLASSES}},
        lineage=list(lineage),
    )
    names = {"name": np.array([f"v{i}" for i in order], object), "path": np.array([f"v{i}.mp4" for i in order], object)}
    clips = clips or clips_table()
    place = np.argsort(order)
    clips = {**clips, "video": place[clips["video"]].astype(np.int32)}
    store = create_store(path, manifest, rows, clips, names, labels=labels)
    state = np.ones(len(k), np.uint8)
    for (of, at), code in (status or {}).items():
        state[place[of] * n + at] = code
    for unit in store.units:
        part = slice(unit.start, unit.stop)
        failed = {unit.start + int(i): ("damaged", "made to fail") for i in np.flatnonzero(state[part] == 2)}
        store.commit(unit, {array: values[part]}, state[part], failed)
    return open_store(store.path)


KNOWS = ({"dataset": "grid", "split": "train", "classes": CLASSES, "targets": ["noun"]},)
SAW = ({"dataset": "imagenet", "split": "train", "classes": 1000},)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """(sampler, recogniser), their videos in different order."""
    folder = tmp_path_factory.mktemp("stores")
    order = np.random.default_rng(1).permutation(VIDEOS)
    return (
        grid_store(folder / "light.zarr", "vector", lineage=SAW),
        grid_store(folder / "heavy.zarr", "logits", lineage=KNOWS, order=order),
    )


def train(stores, out, name="psn", **options):
    said = []
    set_ = {**QUICK, **options.pop("set", {})}
    set_ = {key: value for key, value in set_.items() if name == "psn" or key != "width"}
    given = {"sampler": stores[0], "recogniser": stores[1], "epochs": 2, **options}
    return train_head(name, out=out, set=set_, progress=False, say=said.append, **given), said


@pytest.fixture(scope="module")
def trained(stores, tmp_path_factory):
    return train(stores, tmp_path_factory.mktemp("runs") / "psn", epochs=12)


# --- the frames of two stores ---


def middles(n, segments):
    return np.full((n, segments), 0.5)


def instants(shared, which, u):
    """(video names and seconds of the sampler's rows, of the recogniser's, mask)."""
    rows, mask = shared.at(np.asarray(which), u)
    found = []
    for side, store in enumerate(shared.stores):
        names = store.videos["name"][store.rows["video"][rows[..., side]]]
        found.append((names.astype(str), store.rows["start_s"][rows[..., side]]))
    return *found, mask


def test_frames_are_the_very_same_instants_of_the_same_video(stores):
    shared = SharedFrames(*stores, stores[0].clips)
    assert shared.count.tolist() == [20] * VIDEOS and shared.usable.all()
    u = np.random.default_rng(0).uniform(size=(VIDEOS, 8))
    light, heavy, mask = instants(shared, np.arange(VIDEOS), u)
    assert mask.all() and (light[0] == heavy[0]).all() and (light[1] == heavy[1]).all()
    assert (light[0] == np.array([f"v{i}" for i in range(VIDEOS)])[:, None]).all()
    # One frame in each of 8 segments of 20 frames, 2.5 frames long.
    place = np.round(light[1] * 2)
    assert ((place >= np.floor(np.arange(8) * 2.5)) & (place < np.arange(1, 9) * 2.5)).all()


def test_without_failures_they_are_the_frames_of_one_store(stores):
    clips = {**clips_table(), "start_s": np.linspace(0, 9.9, VIDEOS), "stop_s": np.linspace(0.2, 12, VIDEOS)}
    clips["stop_s"][3], clips["start_s"][4] = np.nan, 99.0
    clips["stop_s"][4] = np.nan
    clips["start_s"][5:7], clips["stop_s"][5:7] = (4.1, 4.5), (4.3, 4.5)  # between two instants, and one of them alone
    store = stores[0]
    own = ClipRows(replace_clips(store, clips))
    shared = SharedFrames(*stores, clips)
    assert shared.count.tolist() == own.count.tolist() and shared.count.min() == 1
    short = shared.at(np.array([4, 5, 6]), middles(3, 1))[0][:, 0, 0] - 20 * np.array([4, 5, 6])
    assert short.tolist() == [19, 8, 9]
    of_many = np.flatnonzero(own.count >= 3)
    for u in (middles(len(of_many), 3), np.random.default_rng(0).uniform(size=(len(of_many), 3))):
        rows, mask = shared.at(of_many, u)
        assert mask.all() and rows[..., 0].tolist() == own.at(of_many, u).tolist()


def replace_clips(store, clips):
    """A store as it is read, with another clips table."""

    class Other:
        def __getattr__(self, name):
            return clips if name == "clips" else getattr(store, name)

    return Other()


def test_a_frame_that_failed_in_one_store_is_masked_and_shifts_nothing(tmp_path, stores):
    light = grid_store(tmp_path / "light.zarr", "vector", status={(0, 6): 2, (1, 0): 2})
    heavy = grid_store(tmp_path / "heavy.zarr", "logits", status={(0, 11): 2, (1, 0): 2})
    shared, whole = SharedFrames(light, heavy, light.clips), SharedFrames(*stores, stores[0].clips)
    u = middles(2, 20)
    rows, mask = shared.at(np.array([0, 1]), u)
    assert np.flatnonzero(~mask[0]).tolist() == [6, 11] and np.flatnonzero(~mask[1]).tolist() == [0]
    expected, _ = whole.at(np.array([0, 1]), u)
    assert (rows[..., 0][mask] == expected[..., 0][mask]).all()
    assert np.isin(rows[..., 0], light.ok).all() and np.isin(rows[..., 1], heavy.ok).all()  # all can be read
    assert "3 of them without a value in one" in shared.line()


def test_a_clip_whose_shown_frames_failed_shows_another_one(tmp_path):
    light = grid_store(tmp_path / "light.zarr", "vector", status={(2, k): 2 for k in range(20) if k != 13})
    heavy = grid_store(tmp_path / "heavy.zarr", "logits", status={(5, k): 2 for k in range(20)})
    shared = SharedFrames(light, heavy, light.clips)
    assert np.flatnonzero(~shared.usable).tolist() == [5]
    rows, mask = shared.at(np.array([2]), middles(1, 2))
    assert mask.tolist() == [[True, False]] and rows[0, 0].tolist() == [2 * 20 + 13] * 2


def test_a_video_of_fewer_frames_than_segments_shows_each_once(tmp_path):
    clips = clips_table()
    clips["stop_s"] = np.where(np.arange(VIDEOS) == 0, 1.5, 0.1)
    light = grid_store(tmp_path / "light.zarr", "vector", clips=clips)
    shared = SharedFrames(light, grid_store(tmp_path / "heavy.zarr", "logits"), light.clips)
    rows, mask = shared.at(np.array([0, 1]), np.random.default_rng(0).uniform(size=(2, 8)))
    assert mask.sum(axis=1).tolist() == [3, 1]
    assert rows[0, :3, 0].tolist() == [0, 1, 2] and rows[1, 0, 0] == 20


def test_instants_of_one_store_alone_are_no_candidates(tmp_path):
    light = grid_store(tmp_path / "light.zarr", "vector", fps=6.0, seconds=8)
    heavy = grid_store(tmp_path / "heavy.zarr", "logits", fps=2.0, seconds=10)
    shared = SharedFrames(light, heavy, light.clips)
    assert shared.count.tolist() == [16] * VIDEOS
    light_at, heavy_at, _ = instants(shared, [7], middles(1, 16))
    assert light_at[1].tolist() == heavy_at[1].tolist() == [(np.arange(16) / 2).tolist()]
    assert f"{16 * VIDEOS} instants are in both stores (of {48 * VIDEOS} and {20 * VIDEOS})" in shared.line()
    apart = grid_store(tmp_path / "apart.zarr", "logits", order=np.arange(VIDEOS) + 100)
    with pytest.raises(UserError, match="have no instant of a video in common.*--hop"):
        SharedFrames(light, apart, light.clips)


def test_rounding_makes_no_two_instants_of_one(tmp_path):
    light = grid_store(tmp_path / "light.zarr", "vector", fps=30.0, seconds=2)
    for name, fps in (("early", np.nextafter(10, 11)), ("late", np.nextafter(10, 9))):
        heavy = grid_store(tmp_path / f"{name}.zarr", "logits", fps=fps, seconds=2)
        assert not np.isin(heavy.rows["start_s"], light.rows["start_s"]).all()
        shared = SharedFrames(light, heavy, light.clips)
        assert shared.count.tolist() == [20] * VIDEOS
        rows, _ = shared.at(np.array([3]), middles(1, 20))
        assert rows[0].tolist() == [[3 * 60 + 3 * k, 3 * 20 + k] for k in range(20)]


# --- what a batch shows ---


def candidates_of(stores, frames=8, seed=5, targets=None):
    targets = targets or Targets("noun", stores[0].clips["noun"].astype(np.int64)[:, None], CLASSES, multi=False)
    shared = SharedFrames(*stores, stores[0].clips)
    return Candidates(shared, VectorInputs(stores[0]), targets, frames, seed)


def test_a_batch_follows_from_seed_epoch_and_clip_alone(stores):
    candidates = candidates_of(stores)
    one, again = candidates.random(np.array([3, 8, 1]), 4), candidates.random(np.array([1, 3]), 4)
    vector, logits = one["sampler"]["vector"], one["recogniser"]["logits"]
    assert vector.shape == (3, 8, WIDTH) and logits.shape == (3, 8, CLASSES) and logits.dtype == np.float32
    assert np.array_equal(vector[[2, 0]], again["sampler"]["vector"])
    assert not np.array_equal(vector, candidates.random(np.array([3, 8, 1]), 5)["sampler"]["vector"])
    assert not np.array_equal(vector, candidates_of(stores, seed=6).random(np.array([3, 8, 1]), 4)["sampler"]["vector"])
    np.testing.assert_allclose(vector[:, :, 1], np.array([[3], [8], [1]]) / VIDEOS + np.zeros(8), rtol=1e-6)
    # The recogniser's answer is that of the very frame: where it tells, the class is right.
    tells = vector[..., 0] > 0
    assert (logits.argmax(-1) == one["labels"]["class"][:, None])[tells].all() and tells.any()
    assert not (logits.argmax(-1) == one["labels"]["class"][:, None])[~tells].any()


def test_validation_shows_the_middles_and_reads_each_frame_once(stores):
    candidates = candidates_of(stores, frames=25)  # more than the 20 there are
    batch = candidates.batch(np.array([4, 9]))
    assert batch["input"].shape == (40, WIDTH) and batch["mask"].sum(axis=1).tolist() == [20, 20]
    candidates = candidates_of(stores)
    batch = candidates.batch(np.array([9, 4]))
    seconds = batch["input"][batch["place"]][..., 2] * 10
    np.testing.assert_allclose(seconds, np.tile(np.floor((np.arange(8) + 0.5) * 2.5) / 2, (2, 1)), atol=1e-5)


# --- whole trainings ---


def test_psn_learns_which_frames_tell(trained):
    run, said = trained
    figures = metrics_of(run)
    assert figures["noun"]["top1"] == 1.0 and figures["clips"] == 6 and figures["coverage"] == 1.0
    assert figures["features"] == "frozen" and figures["trained_clips"] == 18 and figures["frames"] == 2.0
    base = figures["baselines"]
    assert set(base) == {"uniform", "random", "dense"} and base["dense"]["frames"] == 8.0
    assert base["uniform"]["frames"] == base["random"]["frames"] == 2.0
    assert base["uniform"]["top1"] < 0.7 and base["random"]["top1"] < 0.8
    assert said[0] == f"frames: {20 * VIDEOS} instants are in both stores (of {20 * VIDEOS} and {20 * VIDEOS})"
    assert said[1] == "training: 18 of 18 clips have noun labels and frames"
    log = open_run(run).log()
    assert {"frames", "val_noun_top1", "val_noun_mAP"} <= set(log[-1])
    assert figures["epoch"] == 1 + int(np.argmax([row["val_noun_top1"] for row in log]))


def test_what_a_run_says_of_itself(trained):
    facts = open_run(trained[0]).facts
    assert (
        facts["kind"] == "sampler"
        and facts["features"] == "frozen"
        and set(facts["stores"])
        == {
            "sampler",
            "recogniser",
        }
    )
    assert [(e["name"], e["dataset"]) for e in facts["lineage"]] == [("light.zarr", "imagenet"), ("heavy.zarr", "grid")]
    own = {"dataset": "grid", "split": "train", "classes": CLASSES, "targets": ["noun"]}
    assert facts["trained_on"] == {"name": "this psn", **own}
    config = facts["head"]["config"]
    assert (config["channels"], config["classes"], config["frames"], config["sampled"]) == (WIDTH, CLASSES, 8, 2)


def test_the_defaults_are_the_thesis():
    config = SamplerConfig()
    assert (config.epochs, config.batch_size, config.momentum, config.weight_decay) == (15, 32, 0.9, 1e-4)
    assert [config.lr_of(epoch) for epoch in (0, 9, 10, 14)] == [2e-3, 2e-3, 2e-4, 2e-4]
    assert config.optimiser == "sgd" and JointSamplerConfig().lr_of(12) == 2e-4


def test_figures_are_those_of_the_head_and_the_samplers(stores, trained):
    """By hand from the stores, in one batch."""
    run, _ = trained
    head, _ = open_run(run).best_head()
    val = np.arange(18, 24)
    k = np.floor((np.arange(8) + 0.5) * 2.5).astype(int)
    light, heavy = stores
    place = [list(heavy.videos["name"]).index(f"v{v}") for v in val]
    vector = light.read("vector", (val[:, None] * 20 + k).ravel()).reshape(6, 8, -1)
    logits = torch.from_numpy(heavy.read("logits", (np.array(place)[:, None] * 20 + k).ravel()).reshape(6, 8, -1))
    batch = {"sampler": {"vector": torch.from_numpy(vector)}, "recogniser": {"logits": logits}}
    labels = torch.from_numpy(val % CLASSES)
    figures, mask = metrics_of(run), torch.ones(6, 8, dtype=torch.bool)
    with torch.no_grad():
        right = head.predict(batch)["class"].argmax(1) == labels
    assert right.float().mean().item() == pytest.approx(figures["noun"]["top1"])
    for name, picked in (("uniform", fs.uniform(mask, 2)), ("dense", fs.dense(mask))):
        mean = (logits * picked[..., None]).sum(1) / picked.sum(1, keepdim=True)
        assert (mean.argmax(1) == labels).float().mean().item() == pytest.approx(figures["baselines"][name]["top1"])


def test_scsampler_trains_by_the_same_task(stores, tmp_path):
    run, _ = train(stores, tmp_path / "run", "scsampler", epochs=3)
    figures = metrics_of(run)
    assert 0 <= figures["noun"]["top1"] <= 1 and figures["frames"] == 2.0
    assert open_run(run).facts["head"]["name"] == "scsampler"


def test_stopped_at_every_other_step_it_ends_as_if_nothing_had_happened(stores, tmp_path, monkeypatch):
    whole, _ = train(stores, tmp_path / "whole", epochs=3)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0)
    loss, steps = SamplerTask.loss, iter(range(100))

    def stops(self, batch):
        if next(steps) % 3 == 2:
            raise KeyboardInterrupt
        return loss(self, batch)

    monkeypatch.setattr(SamplerTask, "loss", stops)
    for _ in range(20):
        try:
            run, said = train(stores, tmp_path / "run", epochs=3)
            break
        except KeyboardInterrupt:
            continue
    assert any("going on after epoch 2 of 3" in line for line in said)
    assert curve(run) == curve(whole) and metrics_of(run) == metrics_of(whole)
    for name in ("last.safetensors", "best.safetensors"):
        one, other = load_file(run / name), load_file(whole / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    _, said = train(stores, tmp_path / "run", epochs=3)
    assert any("already trained for 3 epochs" in line for line in said)


def test_several_labels_a_clip(tmp_path):
    clip = np.repeat(np.arange(VIDEOS), 2).astype(np.int32)
    label = np.stack([np.arange(VIDEOS) % CLASSES, (np.arange(VIDEOS) + 1) % CLASSES], 1).ravel().astype(np.int32)
    labels = {"clip": clip, "label": label}
    pair = (
        grid_store(tmp_path / "light.zarr", "vector", labels=labels),
        grid_store(tmp_path / "heavy.zarr", "logits", labels=labels, classes=6),  # it knows some that occur nowhere
    )
    run, _ = train(pair, tmp_path / "run", target="labels")
    figures = metrics_of(run)
    assert set(figures["labels"]) == {"top1", "mAP", "mAP_first_label"}
    assert set(figures["baselines"]["dense"]) == {"top1", "mAP", "mAP_first_label", "frames"}
    assert open_run(run).facts["head"]["config"]["multi_label"] is True
    assert evaluate(run, "val", progress=False)["labels"] == figures["labels"]


def test_clips_without_frames_count_as_wrong(tmp_path, stores):
    failed = {(v, k): 2 for v in (0, 20) for k in range(20)}
    heavy = grid_store(tmp_path / "heavy.zarr", "logits", status=failed, lineage=KNOWS)
    run, said = train((stores[0], heavy), tmp_path / "run", epochs=12)
    figures = metrics_of(run)
    assert "training: 17 of 18 clips have noun labels and frames" in said
    assert (
        figures["coverage"] == pytest.approx(5 / 6)
        and figures["clips"] == 6
        and figures["noun"]["top1"] == pytest.approx(5 / 6)
    )
    assert figures["frames"] == 2.0  # of the clips that have some


# --- evaluation ---


def test_evaluate_gives_the_figures_of_the_best_epoch(stores, trained):
    run, _ = trained
    figures = metrics_of(run)
    result = evaluate(run, "val", progress=False)
    for name in ("noun", "baselines", "frames", "coverage", "clips", "epoch"):
        assert result[name] == figures[name], name
    assert json.loads((run / "metrics_val.json").read_text())["features"] == "frozen"
    with pytest.raises(UserError, match="no figures on split 'train': this psn was trained on grid train"):
        evaluate(run, "train", progress=False)
    assert evaluate(run, "train", allow_seen=True, progress=False)["clips"] == 18
    says = r"not what .* was trained on \(recogniser\): network.name: trained on \"logits\", this store has \"vector\"$"
    with pytest.raises(UserError, match=says):
        evaluate(run, "val", stores={"recogniser": stores[0].path}, progress=False)


def test_the_fields_of_another_recipe_are_named(tmp_path, trained):
    run, _ = trained
    other = grid_store(tmp_path / "other.zarr", "logits", fps=4.0, seconds=5.0, lineage=KNOWS)
    says = "sampling.fps: trained on 2.0, this store has 4.0; seconds: trained on 10.0, this store has 5.0$"
    with pytest.raises(UserError, match=says):
        evaluate(run, "val", stores={"recogniser": other}, progress=False)


def test_evaluate_finds_moved_stores_and_refuses_pending_rows(stores, tmp_path):
    folder = tmp_path / "stores"
    folder.mkdir()
    for store in stores:
        shutil.copytree(store.path, folder / store.path.name)
    pair = (folder / "light.zarr", folder / "heavy.zarr")
    run, _ = train(pair, tmp_path / "run", epochs=1)
    (folder / "heavy.zarr").rename(folder / "other.zarr")
    with pytest.raises(UserError, match="recogniser store is not at"):
        evaluate(run, "val", progress=False)
    moved = CliRunner().invoke(main, ["evaluate", str(run), "--recogniser", str(folder / "other.zarr"), "--json"])
    assert moved.exit_code == 0, moved.output
    assert json.loads(moved.stdout)["noun"] == metrics_of(run)["noun"]
    half = grid_store(tmp_path / "half.zarr", "logits", lineage=KNOWS, status={(20, 4): 0})
    with pytest.raises(UserError, match="half.zarr: 1 frame of these clips is still pending"):
        evaluate(run, "val", stores={"recogniser": half}, progress=False)
    some = evaluate(run, "val", stores={"recogniser": half}, allow_incomplete=True, progress=False)
    assert some["coverage"] == 1.0


# --- wrong use ---


def test_pending_rows_are_refused_unless_allowed(tmp_path, stores):
    half = grid_store(tmp_path / "heavy.zarr", "logits", lineage=KNOWS, status={(3, 4): 0, (19, 2): 0, (3, 6): 2})
    with pytest.raises(UserError, match="heavy.zarr: 2 frames of these clips are still pending: run extract again"):
        train((stores[0], half), tmp_path / "run")
    some = {**clips_table(), "stop_s": np.full(VIDEOS, 0.9)}  # in which no row is pending
    train((grid_store(tmp_path / "light.zarr", "vector", clips=some), half), tmp_path / "some", epochs=1)
    run, _ = train((stores[0], half), tmp_path / "run", allow_incomplete=True, epochs=1)
    assert open_run(run).facts["allow_incomplete"] is True


def test_random_features_are_refused_unless_allowed(tmp_path, stores):
    light = grid_store(tmp_path / "light.zarr", "vector", lineage=[{"dataset": "random:0", "split": "", "classes": 0}])
    with pytest.raises(UserError, match=r"light.zarr \(sampler\) was made by a network with random:0 weights"):
        train((light, stores[1]), tmp_path / "run")
    run, _ = train((light, stores[1]), tmp_path / "run", allow_random=True, epochs=1)
    assert open_run(run).facts["random_features"] is True


def test_a_recogniser_that_saw_the_validation_clips_gives_no_figures(tmp_path, stores):
    heavy = grid_store(tmp_path / "heavy.zarr", "logits", lineage=[{**KNOWS[0], "split": "trainval"}])
    run, said = train((stores[0], heavy), tmp_path / "run")
    assert any(line.startswith("no validation: heavy.zarr was trained on grid trainval") for line in said)
    assert metrics_of(run)["epoch"] == 2 and "noun" not in metrics_of(run)
    with pytest.raises(UserError, match="no figures on split 'val': heavy.zarr was trained on grid trainval"):
        evaluate(run, "val", progress=False)


def test_wrong_use_is_told(tmp_path, stores):
    light, heavy = stores
    plain = grid_store(tmp_path / "plain.zarr", "logits")
    six = grid_store(tmp_path / "six.zarr", "logits", classes=6)
    foreign = grid_store(tmp_path / "foreign.zarr", "logits", dataset="others")
    of_clips = grid_store(tmp_path / "clips.zarr", "logits", clip=0, lineage=KNOWS)
    for pair, options, match in (
        ((light, None), {}, "psn reads two stores of the frame axis: say --sampler STORE"),
        ((heavy, heavy), {}, "has no array 'vector'"),
        ((light, light), {"target": "noun"}, "has no array 'logits'"),
        ((light, plain), {}, r"does not say which labels of grid its logits name: say --target \(noun, labels\)"),
        ((light, six), {"target": "noun"}, "logits of 6 classes, noun of grid has 4"),
        ((light, heavy), {"target": "verb"}, "no label column 'verb'"),
        ((light, heavy), {"target": "labels"}, "no table of labels"),
        ((light, heavy), {"dataset": "epic55"}, "--dataset epic55: .* is of grid"),
        ((light, heavy), {"fit": "test"}, "--fit must be one of"),
        ((light, heavy), {"set": {"channels": 3}}, "--set channels: no such setting"),
        ((light, heavy), {"set": {"sampled": 9}}, "sampled=9 is more than the frames=8"),
        ((light, foreign), {"target": "noun"}, "stores of different datasets"),
        ((light, of_clips), {}, "its rows belong to clips"),
    ):
        with pytest.raises(UserError, match=match):
            train(pair, tmp_path / "no", **options)
    with pytest.raises(UserError, match="--target is for heads that sample frames"):
        train_head("saoa", target="noun", progress=False)
    assert not (tmp_path / "no").exists()


def test_another_training_in_the_same_folder_is_refused(stores, trained):
    with pytest.raises(UserError, match="holds another training; choose another --out"):
        train(stores, trained[0], epochs=12, set={"sparsity": 0.5})


def test_the_command_line(stores, tmp_path):
    arguments = ["--sampler", stores[0].path, "--recogniser", stores[1].path, "--out", tmp_path / "run", "--json"]
    arguments += [part for pair in QUICK.items() for part in ("--set", "=".join(map(str, pair)))]
    result = CliRunner().invoke(main, ["train-head", "psn", *map(str, arguments), "--epochs", "1"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["baselines"]["dense"]["frames"] == 8
    wrong = CliRunner().invoke(main, ["train-head", "psn", "--sampler", str(stores[0].path)])
    assert wrong.exit_code == 2 and "--recogniser STORE" in wrong.output
