"""Evenly spaced test clips: where they lie, that they are planned, and that a head which averages is tested on them."""

from dataclasses import replace
from types import SimpleNamespace

import media
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from frame_samples import frames_request
from safetensors.torch import load_file
from synthetic_stores import NOUNS, VERBS, C, clips_table, codes, videos_table

import heads
from cli import main
from errors import UserError
from extract.networks import create_network
from extract.sampling import ClipSampling, clip_rows
from pipelines import Extraction, evaluate, extract, train_head
from pipelines.base_training import train_backbone
from pipelines.evaluation import clip_dataset, predict_scores, scores_at_test, spaced_clips
from pipelines.frame_reader import FrameReader
from pipelines.labelled_clips import LabelledClips, clip_input
from pipelines.prediction import fuse, predict
from pipelines.request import AVERAGING_HEADS, KEEP_FOR_HEAD
from pipelines.run_folder import open_run
from stores import ArraySpec, Manifest, create_store, open_store, plan_layout, verify

MAP = (2, 3, 3)
SPACED = 3


def clips(**columns):
    table = {
        "id": np.array(["a", "b", "c"], object),
        "video": np.zeros(3, np.int32),
        "start_s": np.array([0.0, 10.0, 20.0]),
        "stop_s": np.array([4.0, 12.0, 20.02]),
        "split": np.array(["train", "val", "test"], object),
    }
    return table | columns


def test_they_are_centred_in_equal_parts_of_every_clip_that_is_not_for_training():
    sampling = ClipSampling(16, stride=2, fps=60.0)
    rows = clip_rows(clips(), sampling, draws=1, test_clips=4)
    centres = (rows["start_s"] + rows["stop_s"]) / 2
    by = {(int(c), int(d)): at for c, d, at in zip(rows["clip"], rows["draw"], centres, strict=True)}
    assert sorted(by) == [(0, 0), (0, 1), *((c, d) for c in (1, 2) for d in (-4, -3, -2, -1, 0))]
    for part in range(4):  # of [10, 12): middles at 10.25, 10.75, ...
        assert abs(by[1, -1 - part] - (10.25 + 0.5 * part)) <= 1 / 60
        assert abs(by[2, -1 - part] - 20.01) <= 1 / 60  # shorter than they are many: all the same
    one = clip_rows(clips(), sampling, test_clips=1)
    assert (
        abs(one["start_s"][one["draw"] == -1][0] - one["start_s"][(one["draw"] == 0) & (one["clip"] == 1)][0]) <= 1 / 60
    )


def test_they_move_no_other_row():
    sampling = ClipSampling(16, stride=2, fps=60.0)
    with_them, without = (clip_rows(clips(), sampling, draws=2, seed=3, test_clips=n) for n in (5, 0))
    kept = with_them["draw"] >= 0
    assert all(np.array_equal(with_them[name][kept], without[name]) for name in without)
    with pytest.raises(UserError, match="--test-clips -1"):
        clip_rows(clips(), sampling, test_clips=-1)


def map_store(folder, failed=(), pending=(), spaced=SPACED):
    """Maps of clips with draws 0 and, for validation clips, -1 to -`spaced`: noisy versions of both labels' codes."""
    table = clips_table(4)
    rows = [
        (table["video"][i], i, draw)
        for i, split in enumerate(table["split"])
        for draw in (*(range(-spaced, 0) if split == "val" else ()), 0)
    ]
    video, clip, draw = (np.array(column) for column in zip(*rows, strict=True))
    arrays = {"map": ArraySpec((*MAP, C), "float32")}
    manifest = Manifest(
        arrays=arrays,
        layout=plan_layout(arrays, 8, batch_size=4),
        recipe={"network": {"name": "tiny"}, "weights": "abc"},
        spec={"name": "tiny", "family": "tiny"},
        dataset={"name": "toy", "classes": {"verb": VERBS, "noun": NOUNS}},
    )
    start = table["start_s"][clip] + 0.2 * draw
    columns = {
        "video": video.astype(np.int32), "clip": clip.astype(np.int32), "k": np.zeros(len(clip), np.int32),
        "draw": draw.astype(np.int16), "start_s": start, "stop_s": start + 2,
    }  # fmt: skip
    store = create_store(folder / "maps.zarr", manifest, columns, table, videos_table(4))
    for i in range(4):
        store.write_probe(f"V{i:02d}", {"fps": 30.0, "width": 320, "height": 240, "geometry": [3.0, 3.0, 0.0, 0.0]})
    rng = np.random.default_rng(0)
    signal = codes(VERBS, C, 1)[table["verb"][clip]] + 1.0 * codes(NOUNS, C, 2)[table["noun"][clip]]
    values = (signal[:, None, None, None] + rng.normal(0, 2.0, (len(clip), *MAP, C))).astype(np.float32)
    status = np.ones(len(clip), np.uint8)
    status[list(failed)], status[list(pending)] = 2, 0
    for unit in store.units:
        part = slice(unit.start, unit.stop)
        bad = {unit.start + int(i): ("damaged", "made to fail") for i in np.flatnonzero(status[part] == 2)}
        store.commit(unit, {"map": values[part]}, status[part], bad)
    return open_store(store.path), values


def trained(store, out, **settings):
    quick = {"epochs": 3, "lr": 0.05, "batch_size": 8, "top_k": 2, **settings}
    return train_head("ipl", verb=store, out=out, set=quick, progress=False, say=lambda line: None)


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    """(store, its maps, a run of IPL trained on it)."""
    folder = tmp_path_factory.mktemp("maps")
    store, values = map_store(folder)
    return store, values, trained(store, folder / "run")


def test_ipl_averages_the_predictions_of_spaced_clips(maps):
    store, values, run = maps
    found = evaluate(run, progress=False)

    head, _ = open_run(run).best_head()
    rows, table = store.rows, store.clips
    val = np.flatnonzero(np.asarray(table["split"]) == "val")
    right = {"verb": [], "noun": []}
    differs = 0
    for clip in val:
        of_clip = [np.flatnonzero((rows["clip"] == clip) & (rows["draw"] == draw))[0] for draw in (-1, -2, -3)]
        centre = np.flatnonzero((rows["clip"] == clip) & (rows["draw"] == 0))[0]
        with torch.inference_mode():
            out = head({"verb": {"map": torch.from_numpy(values[of_clip])}})
            alone = head({"verb": {"map": torch.from_numpy(values[[centre]])}})
        for name in right:
            mean = out[name].softmax(-1).mean(0)
            right[name].append(int(mean.argmax()) == int(table[name][clip]))
            differs += int(mean.argmax()) != int(alone[name].argmax())
    assert differs  # or the test could not tell them apart
    assert {name: found[name]["top1"] for name in right} == {name: np.mean(hits) for name, hits in right.items()}
    assert found["clips_averaged"] == {"min": SPACED, "mean": SPACED}


def test_a_clip_whose_spaced_clips_failed_keeps_its_centre_clip(maps, tmp_path):
    store, _, run = maps
    of_val = np.flatnonzero(store.rows["draw"] < 0)[:SPACED]  # of the first validation clip
    failed, _ = map_store(tmp_path, failed=of_val)
    head, _ = open_run(run).best_head()
    dataset = clip_dataset(head, {"verb": failed}, "val", draws=(0,))
    averaged, centre = (
        scores_at_test(head, dataset, spaced_clips(head, dataset, "val"), "cpu"),
        predict_scores(head, dataset, "cpu"),
    )
    same = (averaged["noun"] == centre["noun"]).all(axis=1)
    assert same[0] and not same[1:].any() and np.isfinite(averaged["noun"]).all()


def test_spaced_clips_that_wait_are_refused_like_centre_clips(maps, tmp_path):
    store, _, run = maps
    first = np.flatnonzero(store.rows["draw"] < 0)[0]  # one of the first validation clip
    waiting, _ = map_store(tmp_path, pending=[first])
    with pytest.raises(
        UserError, match="1 of 30 wanted clips wait for rows that are still pending .first: clip clip30"
    ):
        evaluate(run, stores={"verb": waiting}, progress=False)
    found = evaluate(run, stores={"verb": waiting}, allow_incomplete=True, progress=False)
    assert found["clips_averaged"] == {"min": SPACED - 1, "mean": pytest.approx(SPACED - 0.1)}
    assert found["coverage"] == 1.0


def test_a_clip_without_its_centre_clip_has_the_scores_of_the_others(maps, tmp_path):
    store, _, run = maps
    of_first = np.flatnonzero((store.rows["clip"] == 30) & (store.rows["draw"] == 0))
    of_second = np.flatnonzero(store.rows["clip"] == 31)  # none of it
    failed, _ = map_store(tmp_path, failed=[*of_first, *of_second])
    found = evaluate(run, stores={"verb": failed}, progress=False)
    assert found["coverage"] == 0.9 and found["clips_averaged"] == {"min": SPACED, "mean": SPACED}
    assert predict(run, stores={"verb": failed}, progress=False)["filled"] == ["clip31"]


def test_a_store_without_spaced_clips_is_used_and_that_is_said(maps, tmp_path):
    _, _, run = maps
    store, _ = map_store(tmp_path, spaced=0)
    with pytest.warns(UserWarning, match="maps.zarr has no evenly spaced clips of split 'val': scores are of centre"):
        found = evaluate(run, stores={"verb": store}, progress=False)
    assert found["clips_averaged"] == {"min": 1, "mean": 1.0}
    head, _ = open_run(run).best_head()
    dataset = clip_dataset(head, {"verb": store}, "val", draws=(0,))
    alone = predict_scores(head, dataset, "cpu")
    scores = scores_in(predict(run, stores={"verb": store}, progress=False)["file"])
    assert all(np.array_equal(scores[name], alone[name]) for name in alone)
    shown = CliRunner().invoke(main, ["evaluate", str(run), "--verb", str(store.path)])
    assert shown.exit_code == 0 and "clips_averaged:\n  min: 1\n  mean: 1\n" in shown.stdout


def test_other_heads_are_tested_on_the_centre_clip(maps):
    store, _, run = maps
    head, _ = open_run(run).best_head()
    dataset = clip_dataset(head, {"verb": store}, "val", draws=(0,))
    averaged = scores_at_test(head, dataset, spaced_clips(head, dataset, "val"), "cpu")
    head.averages = False
    centre = scores_at_test(head, dataset, spaced_clips(head, dataset, "val"), "cpu")
    alone = predict_scores(head, dataset, "cpu")
    assert all(np.array_equal(centre[name], alone[name]) for name in alone)
    assert not np.allclose(averaged["verb"], alone["verb"])
    on_train = clip_dataset(head, {"verb": store}, "train", draws=(0,))
    head.averages = True  # training clips have none
    assert np.array_equal(
        scores_at_test(head, on_train, spaced_clips(head, on_train, "train"), "cpu")["noun"],
        predict_scores(head, on_train, "cpu")["noun"],
    )


def test_extract_adds_them_to_a_store_that_is_there(tmp_path):
    (tmp_path / "videos").mkdir()
    media.make_video(tmp_path / "videos" / "one.mp4", "libx264", 72, options=media.x264(keyint=20))
    lines = ["video,start,stop,split", "one,0.0,1.0,train", "one,0.5,2.0,val", "one,1.0,2.2,val"]
    (tmp_path / "small.csv").write_text("\n".join(lines) + "\n")
    request = Extraction(
        dataset=str(tmp_path / "small.csv"), videos=tmp_path / "videos", features=(tmp_path,), backbone="tiny3d",
        weights=("random:0",), draws=1, unit_rows=2,
    )  # fmt: skip
    (first,) = extract(request)
    assert (first.rows, first.computed) == (4, 4)
    (grown,) = extract(replace(request, test_clips=3))
    assert grown.complete and (grown.rows, grown.computed) == (10, 6)
    store = open_store(grown.store)
    assert sorted(store.rows["draw"].tolist()) == [-3, -3, -2, -2, -1, -1, 0, 0, 0, 1] and not verify(store.path)
    assert store.manifest.dataset["test_clips"] == 3
    (again,) = extract(request)  # fewer are there
    assert again.complete and not again.computed
    assert open_store(grown.store).manifest.dataset["test_clips"] == 3
    with pytest.raises(UserError, match="--test-clips 3, whose places depend on their number"):
        extract(replace(request, test_clips=4))
    with pytest.raises(UserError, match="--test-clips must be at least 0"):
        replace(request, test_clips=-1)


# --- what extraction makes without being asked ---


def test_they_are_made_for_heads_that_average():
    assert {name for name in KEEP_FOR_HEAD if getattr(heads.get_head(name), "averages", False)} == set(AVERAGING_HEADS)
    asked = {"dataset": "toykitchen", "backbone": "tiny3d"}
    assert Extraction(**asked, for_head="ipl").test_clips == 10
    assert Extraction(**asked, for_head="ipl", test_clips=0).test_clips == 0
    assert Extraction(**asked, for_head="ipl", axis="segment").test_clips == 0
    assert Extraction(**asked, for_head="saoa").test_clips == Extraction(**asked).test_clips == 0
    shown = CliRunner().invoke(main, ["extract", "--help"])
    assert "[0; 10 with --for ipl]" in " ".join(shown.stdout.split())


# --- end to end ---

GIVEN = {"clip_len": 8, "fps": 12.5, "resize": {"mode": "squash", "size": 32}}
OPTION = ['resize={"mode":"squash","size":32}', "clip_len=8", "fps=12.5"]


@pytest.fixture(scope="module")
def together(colours):
    """A run of IPL with its network, and one of linear classifiers."""
    settings = {"epochs": 2, "batch_size": 6, "lr": 0.02, "dropout": 0.0, "last_epochs": 1, "workers": 1}
    common = {"features": [colours / "features"], "weights": "random:0", "option": OPTION, "progress": False}
    common["say"] = lambda line: None
    ipl = train_backbone("tiny3d", head="ipl", out=colours / "ipl", set=settings | {"top_k": 2}, **common)
    return ipl, train_backbone("tiny3d", out=colours / "linear", set=settings, **common)


def scores_in(file) -> dict:
    with np.load(file) as scores:
        return {name: scores[name] for name in ("verb", "noun")}


def probabilities(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits).double().softmax(-1).numpy()


def test_end_to_end_and_frozen_average_the_same_clips(colours, together, tmp_path):
    run, _ = together
    request = replace(frames_request(colours), backbone="tiny3d", weights=(str(run),), option=(), draws=0,
                      keep=("map",), only=True, test_clips=10, features=(tmp_path,))  # fmt: skip
    (report,) = extract(request)
    store = open_store(report.store)
    rows = store.rows
    source = FrameReader(open_store(colours / "features" / "colours" / "frames.zarr"))
    clips = LabelledClips(source.store.clips, {}, source, clip_input("tiny3d", "", GIVEN), seed=0)
    val = np.flatnonzero(np.asarray(source.store.clips["split"]) == "val")
    place = {str(clip): i for i, clip in enumerate(store.clips["id"])}
    for clip, starts in zip(val, clips.spaced_starts(val, 10), strict=True):
        own = rows["clip"] == place[str(source.store.clips["id"][clip])]
        planned = [rows["start_s"][own & (rows["draw"] == -1 - part)][0] for part in range(10)]
        assert np.array_equal(starts, planned) and len(set(planned)) > 5
    # The frames of the store are JPEGs, those of the extraction are not: scores differ a little.
    head = trained_head(run)
    found = scores_in(predict(run, progress=False)["file"])
    for i, clip in enumerate(val):
        own = np.flatnonzero((rows["clip"] == place[str(source.store.clips["id"][clip])]) & (rows["draw"] < 0))
        with torch.inference_mode():
            out = head({"verb": {"map": torch.from_numpy(store.read("map", own))}})
        for name in found:
            mean = out[name].double().softmax(-1).mean(0).numpy()
            assert np.abs(probabilities(found[name][i]) - mean).max() < 0.05


def trained_head(run):
    facts = open_run(run).facts
    tensors = load_file(run / "best.safetensors")
    head = heads.create_head(facts["head"]["name"], **facts["head"]["config"])
    head.load_state_dict(
        {k.removeprefix("beside/head."): v for k, v in tensors.items() if k.startswith("beside/head.")}
    )
    return head.eval()


def test_end_to_end_ipl_averages_ten_clips(colours, together):
    run, _ = together
    found = evaluate(run, progress=False)
    assert found["clips_averaged"] == {"min": 10, "mean": 10.0}
    scores = scores_in(predict(run, progress=False)["file"])
    network, head = create_network("tiny3d", str(run), **GIVEN), trained_head(run)
    network.keep = ("map",)
    store = open_store(colours / "features" / "colours" / "frames.zarr")
    reader, table = FrameReader(store), store.clips
    differs, right = 0, {"verb": [], "noun": []}
    for i, clip in enumerate(np.flatnonzero(np.asarray(table["split"]) == "val")):
        # Frames lie on a grid of 12.5 a second; the clip's are those in [start, stop), cut into ten equal parts.
        grid = np.arange(np.ceil(table["start_s"][clip] * 12.5 - 1e-6), np.ceil(table["stop_s"][clip] * 12.5 - 1e-6))
        total = {"verb": 0.0, "noun": 0.0}
        for centre in [grid[int((part + 0.5) / 10 * len(grid))] for part in range(10)] + [grid[len(grid) // 2]]:
            alone = {name: value / 10 for name, value in total.items()}  # before the last, the centre clip
            (frames,) = reader.read(table["video"][[clip]], ((centre - 4 + np.arange(8)) / 12.5)[None])
            maps = network.run({"frames": [frames]})["map"]
            with torch.inference_mode():
                out = head({"verb": {"map": torch.from_numpy(maps)}})
            total = {name: total[name] + out[name][0].double().softmax(-1).numpy() for name in total}
        for name, mean in alone.items():
            assert np.abs(probabilities(scores[name][i]) - mean).max() < 1e-5
            differs += np.abs(total[name] - 11 * mean).max() > 1e-3  # the centre clip alone says something else
            right[name].append(mean.argmax() == table[name][clip])
    assert differs
    assert {name: found[name]["top1"] for name in right} == {name: np.mean(hits) for name, hits in right.items()}


def test_fusion_takes_the_mean_of_ten_clips(together, tmp_path):
    runs = list(together)
    own = [scores_in(predict(run, progress=False)["file"]) for run in runs]
    fuse(runs, out=tmp_path / "fused.npz", progress=False)
    fused = scores_in(tmp_path / "fused.npz")
    for name in fused:
        mean = np.mean([probabilities(scores[name]) for scores in own], axis=0)
        assert np.allclose(probabilities(fused[name]), mean, atol=1e-6)
    assert "clips_averaged" not in evaluate(runs[1], progress=False)  # linear classifiers: the centre clip


def test_windows_without_frames_are_left_out():
    table = clips(stop_s=np.array([4.0, 12.0, np.nan])) | {"id": np.array(["a", "b", "c"], object)}
    given = clip_input("tiny3d", "", GIVEN)
    lost = {}

    def usable(videos, times_s):
        return np.array([not lost.get("before", -1) > times[0] for times in times_s])

    of = LabelledClips(table, {}, SimpleNamespace(usable=usable), given, seed=0)
    which = np.array([1, 2, 0])
    starts = of.spaced_starts(which[[0, 2]], 10)
    places, at = of.test_windows(which, 10)
    assert places.tolist() == [0] * 10 + [2] * 10 and np.array_equal(at, starts.ravel())  # "c" has no end
    lost["before"] = starts[0, 3] - 1e-3  # none of "a", seven of "b"
    places, at = of.test_windows(which, 10)
    assert places.tolist() == [0] * 7 and np.array_equal(at, starts[0, 3:])

    (centre,) = of.centre_starts(np.array([1]))  # where all else is lost, it is tested on this one
    of.frames = SimpleNamespace(usable=lambda videos, times_s: times_s[:, 0] == centre)
    places, at = of.test_windows(which, 4)
    assert places.tolist() == [0] and at.tolist() == [centre]
