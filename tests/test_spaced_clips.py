"""Evenly spaced test clips: where they lie, that they are planned, and that a head which averages is tested on them."""

from dataclasses import replace

import media
import numpy as np
import pytest
import torch
from synthetic_stores import NOUNS, VERBS, C, clips_table, codes, videos_table

from errors import UserError
from extract.sampling import ClipSampling, clip_rows
from pipelines import Extraction, evaluate, extract, train_head
from pipelines.evaluation import clip_dataset, predict_scores, scores_at_test
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


def map_store(folder, failed=()):
    """Maps of clips with draws 0 and, for validation clips, -1 to -3: noisy versions of the verb's and noun's code."""
    table = clips_table(4)
    rows = [
        (table["video"][i], i, draw)
        for i, split in enumerate(table["split"])
        for draw in (*(range(-SPACED, 0) if split == "val" else ()), 0)
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
    status[list(failed)] = 2
    for unit in store.units:
        part = slice(unit.start, unit.stop)
        bad = {unit.start + int(i): ("damaged", "made to fail") for i in np.flatnonzero(status[part] == 2)}
        store.commit(unit, {"map": values[part]}, status[part], bad)
    return open_store(store.path), values


def trained(store, out, **settings):
    quick = {"epochs": 3, "lr": 0.05, "batch_size": 8, "top_k": 2, **settings}
    return train_head("ipl", verb=store, out=out, set=quick, progress=False, say=lambda line: None)


def test_ipl_averages_the_predictions_of_spaced_clips(tmp_path):
    store, values = map_store(tmp_path)
    run = trained(store, tmp_path / "run")
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


def test_a_clip_whose_spaced_clips_failed_keeps_its_centre_clip(tmp_path):
    store, _ = map_store(tmp_path)
    of_val = np.flatnonzero(store.rows["draw"] < 0)[:SPACED]  # of the first validation clip
    (tmp_path / "other").mkdir()
    failed, _ = map_store(tmp_path / "other", failed=of_val)
    run = open_run(trained(store, tmp_path / "run"))
    head, _ = run.best_head()
    dataset = clip_dataset(head, {"verb": failed}, "val", draws=(0,))
    averaged, centre = scores_at_test(head, dataset, "val", "cpu"), predict_scores(head, dataset, "cpu")
    same = (averaged["noun"] == centre["noun"]).all(axis=1)
    assert same[0] and not same[1:].any() and np.isfinite(averaged["noun"]).all()


def test_other_heads_are_tested_on_the_centre_clip(tmp_path):
    store, _ = map_store(tmp_path)
    run = open_run(trained(store, tmp_path / "run"))
    head, _ = run.best_head()
    dataset = clip_dataset(head, {"verb": store}, "val", draws=(0,))
    averaged = scores_at_test(head, dataset, "val", "cpu")
    head.averages = False
    centre = scores_at_test(head, dataset, "val", "cpu")
    alone = predict_scores(head, dataset, "cpu")
    assert all(np.array_equal(centre[name], alone[name]) for name in alone)
    assert not np.allclose(averaged["verb"], alone["verb"])
    on_train = clip_dataset(head, {"verb": store}, "train", draws=(0,))
    head.averages = True  # training clips have none
    assert np.array_equal(
        scores_at_test(head, on_train, "train", "cpu")["noun"], predict_scores(head, on_train, "cpu")["noun"]
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
