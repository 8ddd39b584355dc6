"""ClipDataset: joins, windows, masks, batched reads, what it refuses, and travelling to other processes."""

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from store_samples import sent_to_a_worker
from synthetic_stores import FRAME, PER_VIDEO, K, all_stores, clip_store, clips_table, object_store

from errors import UserError
from stores import ClipDataset, Store, open_store
from stores.splits import split_mask

WINDOWS = {"objects_noun": 6, "objects_verb": 4}
READS = {"verb": ("spatial", "vector"), "noun": ("vector",), "objects": ("roi", "boxes")}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return all_stores(tmp_path_factory.mktemp("features"))


def make(stores, split="train", **options):
    return ClipDataset(stores, split, **{"windows": WINDOWS, "arrays": READS, **options})


def test_items_are_clips_and_draws(stores):
    train, val = make(stores, "train"), make(stores, "val")
    assert len(train) == 3 * PER_VIDEO * 2 and set(train.draws) == {1, 2}
    assert len(val) == PER_VIDEO and set(val.draws) == {0}
    assert len(make(stores, "train", draws=[0])) == 3 * PER_VIDEO
    assert len(make(stores, None)) == 4 * PER_VIDEO
    both = make(stores, "trainval")
    assert Counter(both.draws.tolist()) == {1: 30, 2: 30, 0: 10}  # validation clips have no random draw
    assert len(make(stores, "train+val")) == 40


def test_values_are_the_stores_values(stores):
    data = make(stores)
    batch = data.batch([5, 0, 5, 17])
    clip, objects = stores["verb"], stores["objects"]
    rows = [
        np.flatnonzero((clip.rows["clip"] == c) & (clip.rows["draw"] == d))[0]
        for c, d in zip(data.clips, data.draws, strict=True)
    ]
    for i, item in enumerate([5, 0, 5, 17]):
        row = rows[item]
        assert np.array_equal(batch["verb"]["spatial"][i], clip.read("spatial", [row])[0])
        assert np.array_equal(batch["noun"]["vector"][i], clip.read("vector", [row])[0])
        video = clip.videos["name"][clip.rows["video"][row]]
        assert np.allclose(batch["verb"]["geometry"][i], clip.geometry(video))
        centre = (clip.rows["start_s"][row] + clip.rows["stop_s"][row]) / 2
        for name, seconds in WINDOWS.items():
            frames = objects.rows_between(video, centre - seconds / 2, centre + seconds / 2)
            assert len(frames) == 2 * seconds == data.frames(name)
            boxes = objects.read("boxes", frames)[:, :5]
            mask = np.arange(5) < objects.read("n_boxes", frames)[:, None]
            part = {k: v[i].reshape(len(frames), 5, *v.shape[2:]) for k, v in batch[name].items()}
            assert np.array_equal(part["mask"], mask)
            assert np.allclose(part["boxes"], boxes / [*FRAME, *FRAME])
            assert np.array_equal(part["roi"], objects.read("roi", frames)[:, :5])
            times = np.broadcast_to(objects.rows["start_s"][frames][:, None], mask.shape)
            assert np.array_equal(part["time_s"][mask], times[mask])
        assert batch["labels"]["verb"][i] == clip.clips["verb"][data.clips[item]]
    assert batch["objects_noun"]["roi"].shape == (4, 60, 12) and batch["objects_verb"]["mask"].shape == (4, 40)
    assert batch["ok"].all() and batch["item"].tolist() == [5, 0, 5, 17]


def test_one_item_equals_its_place_in_a_batch(stores):
    data = make(stores)
    one, many = data[7], data.__getitems__([3, 7])[1]
    assert np.array_equal(one["objects_noun"]["roi"], many["objects_noun"]["roi"])
    assert np.array_equal(one["verb"]["spatial"], many["verb"]["spatial"]) and one["item"] == 7
    assert np.array_equal(data[-1]["verb"]["vector"], data[len(data) - 1]["verb"]["vector"])
    with pytest.raises(IndexError):
        data[len(data)]
    assert data.batch([])["verb"]["vector"].shape == (0, 16)


def test_a_batch_is_one_read_a_store_and_array(stores, monkeypatch):
    reads = []
    original = Store.read

    def counted(self, name, rows, missing=None):
        reads.append((self.path.name, name))
        return original(self, name, rows, missing)

    monkeypatch.setattr(Store, "read", counted)
    make(stores).batch(range(32))
    assert sorted(Counter(reads).items()) == [
        (("faster_rcnn.zarr", "boxes"), 1),
        (("faster_rcnn.zarr", "roi"), 1),
        (("i3d_rgb.zarr", "spatial"), 1),
        (("i3d_rgb.zarr", "vector"), 1),
    ]
    by_path = {"verb": stores["verb"].path, "noun": str(stores["verb"].path)}
    reads.clear()
    ClipDataset(by_path, "val", arrays={"verb": ["vector"], "noun": ["vector"]}).batch([0, 1])
    assert len(reads) == 1


def test_all_arrays_by_default_and_a_plain_window(stores):
    data = ClipDataset({"verb": stores["verb"], "objects": stores["objects"]}, "val", windows={"objects": 3})
    batch = data.batch([0, 1])
    assert set(batch["verb"]) == {"spatial", "vector", "geometry"}
    assert set(batch["objects"]) == {"roi", "boxes", "scores", "time_s", "mask"}
    assert batch["objects"]["scores"].shape == (2, 30)


def test_windows_past_the_ends_of_a_video_are_masked(tmp_path):
    clips = clips_table(1)
    clips["start_s"] = clips["start_s"].copy()
    clips["start_s"][0], clips["stop_s"][0] = 0.0, 1.0
    store = clip_store(tmp_path, videos=1, draws=0, clips=clips)
    data = make({"verb": store, "noun": store, "objects": object_store(tmp_path, videos=1)}, None)
    mask = data.batch([0])["objects_noun"]["mask"].reshape(12, 5)
    assert mask[:9].any(1).all() and not mask[9:].any()  # centre 1.5 s: the window begins 1.5 s before the video


def test_joined_stores_must_agree(tmp_path, stores):
    kwargs = {"windows": None, "arrays": {"verb": ["vector"], "noun": ["vector"]}}
    shifted = clip_store(tmp_path, "late", shift_s=0.0015)
    with pytest.raises(UserError, match="different windows of 60 clips; first: clip clip0 draw 1"):
        make({"verb": stores["verb"], "noun": shifted}, **kwargs)
    near = clip_store(tmp_path, "near", shift_s=0.0009, seed=3)
    batch = make({"verb": stores["verb"], "noun": near}, **kwargs).batch([4])
    assert not np.array_equal(batch["verb"]["vector"], batch["noun"]["vector"])
    with pytest.raises(UserError, match="different datasets"):
        make({"verb": stores["verb"], "noun": clip_store(tmp_path, "other", dataset="else")}, **kwargs)


def test_stores_with_other_row_orders_are_joined_by_clip_and_draw(tmp_path, stores):
    clips = clips_table(4)
    order = np.random.default_rng(0).permutation(len(clips["id"]))
    mixed = clip_store(tmp_path, "mixed", clips={name: column[order] for name, column in clips.items()}, draws=3)
    data = make({"verb": stores["verb"], "noun": mixed}, windows=None, arrays={"verb": ["vector"], "noun": ["vector"]})
    for i in (0, 13, 40):
        row = np.flatnonzero(
            (mixed.clips["id"][mixed.rows["clip"]] == data.clip_ids[data.clips[i]])
            & (mixed.rows["draw"] == data.draws[i])
        )
        assert np.array_equal(data[i]["noun"]["vector"], mixed.read("vector", row)[0])


def test_labels_that_differ(tmp_path, stores):
    clips = clips_table(4)
    clips["noun"] = (clips["noun"] + 1) % 4
    other = clip_store(tmp_path, "relabelled", clips=clips)
    pair, kwargs = {"verb": stores["verb"], "noun": other}, {"windows": None, "arrays": None}
    with pytest.raises(UserError, match="disagree on noun of 40 clips"):
        make(pair, **kwargs)
    assert np.array_equal(make(pair, "val", labels="noun", **kwargs).labels["noun"], clips["noun"][30:])
    assert np.array_equal(make(pair, "val", labels="verb", **kwargs).labels["noun"], (clips["noun"][30:] - 1) % 4)
    with pytest.raises(UserError, match="no clip store"):
        make(pair, labels="objects", **kwargs)


def test_pending_rows_are_refused_or_masked(tmp_path):
    store = clip_store(tmp_path, pending=range(3, 9))
    trio = {"verb": store, "noun": store, "objects": object_store(tmp_path)}
    with pytest.raises(UserError, match=r"4 of 60 wanted clips .* pending .*clip1"):
        make(trio)
    data = make(trio, allow_incomplete=True)
    assert data.coverage() == {
        "items": 60, "ok": 56, "failed": {}, "pending": {"verb": 4, "noun": 4}, "without_objects": {},
    }  # fmt: skip
    bad = np.flatnonzero(~data.ok)
    batch = data.batch([*bad, 20])
    assert not batch["verb"]["spatial"][:-1].any() and batch["verb"]["spatial"][-1].any()
    assert batch["ok"].tolist() == [False] * 4 + [True]
    make(trio, "val")  # those rows are not wanted here


def test_pending_objects_are_refused_only_where_they_would_be_read(tmp_path):
    store = clip_store(tmp_path)
    objects = object_store(tmp_path, pending=[0])  # 0 s of video 0: before every window
    assert len(make({"verb": store, "noun": store, "objects": objects}))
    objects = object_store(tmp_path, "second", pending=range(0, 64))
    with pytest.raises(UserError, match="second.zarr.*pending"):
        make({"verb": store, "noun": store, "objects": objects})
    data = make({"verb": store, "noun": store, "objects": objects}, allow_incomplete=True)
    assert data.coverage()["without_objects"] == {"objects_noun": 6, "objects_verb": 6}
    assert data.ok.all() and not data.batch([0])["objects_noun"]["mask"].any()


def test_failed_rows_are_masked_and_counted(tmp_path):
    store = clip_store(tmp_path, failed=[1, 90 + 2])
    trio = {"verb": store, "noun": store, "objects": object_store(tmp_path, failed=range(4, 8))}
    data = make(trio)
    assert data.coverage()["failed"] == {"verb": 1, "noun": 1} and data.ok.sum() == 59
    first = data.batch([1])  # clip 0, draw 2: centre 3.65 s, frames from 1 s on; rows 4..7 are 2 to 3.5 s
    mask = first["objects_noun"]["mask"].reshape(12, 5)
    assert not mask[2:6].any() and mask[:2].any() and mask[6:].any()
    assert not first["objects_noun"]["roi"].reshape(12, 5, -1)[2:6].any()


def test_clips_missing_from_a_store_wait(tmp_path):
    full = clip_store(tmp_path, "full")
    fewer = {name: column[:35] for name, column in clips_table(4).items()}
    part = clip_store(tmp_path, "part", clips=fewer, draws=2)
    pair, kwargs = {"verb": full, "noun": part}, {"windows": None, "arrays": None}
    assert len(make(pair, "train", **kwargs)) == 60
    with pytest.raises(UserError, match="part.zarr: 5 of 10"):
        make(pair, "val", **kwargs)
    assert make(pair, "val", allow_incomplete=True, **kwargs).ok.sum() == 5


def test_wrong_arguments(stores):
    with pytest.raises(UserError, match="no clip is in split 'test'; there are train, val"):
        make(stores, "test")
    with pytest.raises(UserError, match="no split scheme 'three'; say --split train$"):
        make(stores, "three:train")
    parts = {"split": np.array(["val"]), "split_a": np.array(["val"]), "split_b": np.array(["val"])}
    ways = "mine: no split scheme 'split'; say --split val, or --split SCHEME:val with scheme a or b$"
    with pytest.raises(UserError, match=ways):
        split_mask(parts, "split:val", "mine")
    with pytest.raises(UserError, match="no split without a scheme; say --split SCHEME:val with scheme a$"):
        split_mask({"split_a": parts["split_a"]}, "val", "mine")
    with pytest.raises(UserError, match="no array 'map'"):
        make(stores, arrays={"verb": ["map"]})
    with pytest.raises(UserError, match="names no store"):
        make(stores, windows={"things": 6})
    with pytest.raises(UserError, match="holds no boxes"):
        make(stores, windows={"noun": 6})
    with pytest.raises(UserError, match="at least one clip store"):
        ClipDataset({"objects": stores["objects"]}, windows={"objects": 6})
    with pytest.raises(UserError, match="an entry 'clip' of its own"):
        ClipDataset({"clip": stores["verb"]})
    with pytest.raises(UserError, match="draws"):
        make(stores, "val", draws=[7])


def test_a_video_without_objects_has_none(tmp_path):
    store = clip_store(tmp_path, videos=4)
    data = make({"verb": store, "noun": store, "objects": object_store(tmp_path, videos=2, clips=clips_table(2))})
    assert data.coverage()["without_objects"] == {"objects_noun": 20, "objects_verb": 20}
    assert not data.batch([len(data) - 1])["objects_verb"]["mask"].any()


def test_fewer_boxes_than_the_store_has(stores):
    assert make(stores, boxes_per_frame=2).batch([0])["objects_noun"]["roi"].shape == (1, 24, 12)
    assert make(stores, boxes_per_frame=K).batch([0])["objects_noun"]["roi"].shape == (1, 12 * K, 12)


def test_pickle_and_reopen(stores):
    data = make(stores)
    data.batch([1])
    again = sent_to_a_worker(data)
    assert np.array_equal(again.batch([1, 2])["objects_noun"]["roi"], data.batch([1, 2])["objects_noun"]["roi"])
    assert again.stores["verb"] is again.stores["noun"]


def test_a_spawning_data_loader(stores):
    torch = pytest.importorskip("torch")
    data = make(stores)
    loader = torch.utils.data.DataLoader(data, batch_size=16, num_workers=1, multiprocessing_context="spawn")
    first = next(iter(loader))
    assert np.array_equal(first["verb"]["spatial"].numpy(), data.batch(range(16))["verb"]["spatial"])
    assert first["objects_noun"]["mask"].dtype == torch.bool


def test_it_knows_no_torch(stores):
    code = (
        "import sys; from stores import ClipDataset; "
        f"ClipDataset({{'verb': {str(stores['verb'].path)!r}}}, 'val').batch([0]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_split_helpers(stores):
    data = make(stores, "trainval")
    assert data.in_split("val").sum() == 10 and data.in_split("train").sum() == 60 and data.in_split("other").all()
    assert len(data.split_labels("val")["verb"]) == 10 and open_store(stores["verb"].path).path


@pytest.mark.parametrize("keep", [0, 20_000, 1 << 30])
def test_kept_arrays_change_no_value(tmp_path, keep):
    store = clip_store(tmp_path, failed=[3], pending=[8])
    trio = {"verb": store, "noun": store, "objects": object_store(tmp_path, failed=[6])}
    plain = make(trio, allow_incomplete=True).batch(range(60))
    kept = make(trio, allow_incomplete=True, keep_bytes=keep)
    batch = sent_to_a_worker(kept).batch(range(60)) if keep == 20_000 else kept.batch(range(60))
    for role in ("verb", "noun", "objects_noun", "objects_verb"):
        assert all(np.array_equal(plain[role][name], batch[role][name]) for name in plain[role])
