"""Copies, merges, comparisons and relabelling of stores: values, bytes, recipes, stops in between, refusals."""

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from store_samples import ARRAYS, VIDEOS, fill, new_store, same_tree, sample_clips, sample_rows, values

from errors import UserError
from stores import FAILED, OK, PENDING, ArraySpec, Manifest, create_store, open_store, plan_layout, verify
from stores.compare import Tolerance, agreement, compare, tolerance_of
from stores.copy import DIFFER, copy_store
from stores.merge import merge
from stores.relabel import relabel

SMALL = {"vector": ArraySpec((7,), "float32"), "boxes": ArraySpec((3, 4), "float32"), "text": ArraySpec((16,), "uint8")}
RECIPE = {"network": {"name": "test"}, "precision": "fp32", "dtype": "float32"}


def make(path, rows=None, n=12, unit_rows=4, arrays=None, recipe=None, clips=None, videos=None, tables=None, **facts):
    """A store of the sample rows whose numbers are `rows` (all), of clips and videos as given (all)."""
    arrays = arrays or SMALL
    manifest = Manifest(
        arrays, plan_layout(arrays, 64, batch_size=2, unit_rows=unit_rows), recipe or RECIPE, dataset=facts
    )
    all_rows = sample_rows(n)
    chosen = np.arange(n) if rows is None else np.asarray(rows)
    picked = {name: column[chosen] for name, column in all_rows.items()}
    return create_store(path, manifest, picked, clips or sample_clips(n), videos or VIDEOS, **(tables or {}))


def probe_all(store, content="a"):
    for name in store.videos["name"]:
        store.write_probe(name, {"fps": 25.0, "content_hash": f"{name}{content}", "geometry": [1.0, 1.0, 0.0, 0.0]})


def fill_by_clip(store, todo=None, noise=0.0, failed=()):
    """Values that depend on a row's clip alone, so that any store with the row computes the same."""
    for unit in store.units:
        rows = np.arange(unit.start, unit.stop)
        clip_ids = store.clips["id"][store.rows["clip"][rows]]
        numbers = np.array([int(str(name).split()[1]) for name in clip_ids])
        out = values(store, numbers)
        out = {name: v + noise * (name == "vector") if v.dtype.kind == "f" else v for name, v in out.items()}
        status = np.where(np.isin(numbers, failed), FAILED, OK)
        if todo is not None:
            status = np.where(np.isin(numbers, todo), status, PENDING)
        why = {int(row): ("damaged", "no frame") for row in rows[status == FAILED]}
        store.commit(unit, out, status, why)
    return store


def errors(path):
    return [finding for finding in verify(path) if finding.severity == "error"]


# -- copy --------------------------------------------------------------------------------------------------------------


def test_a_plain_copy_is_the_same_store(tmp_path):
    source = new_store(tmp_path / "a.zarr", n=9)
    probe_all(source)
    fill(source, failed=(3,))
    source.seal()
    source.write_provenance("run 1", {"host": "there"})
    copied = copy_store(source.path, tmp_path / "b.zarr")
    assert copied.sealed and not same_tree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    (told,) = [json.loads(p.read_text()) for p in (copied.path / "provenance").glob("*.json")]
    assert told["sources"][0]["runs"] == {"run%201": {"host": "there"}}
    before = (copied.path / "zarr.json").read_bytes()
    copy_store(source, copied.path)  # finished: nothing happens
    assert (copied.path / "zarr.json").read_bytes() == before


@pytest.mark.parametrize("unit_rows, chunks, level", [(3, {}, None), (8, {"vector": 2}, 9), (4, {}, 0)])
def test_reshard_and_recompress_keep_values_and_recipe(tmp_path, unit_rows, chunks, level):
    source = new_store(tmp_path / "a.zarr", n=9)
    fill(source, failed=(3,))
    seen = []
    how = {"unit_rows": unit_rows, "chunk_rows": chunks, "level": level}
    copied = copy_store(source, tmp_path / "b.zarr", **how, progress=lambda *x: seen.append(x))
    assert copied.sealed and not errors(copied.path) and seen[-1] == (9, 9)
    assert copied.manifest.layout.unit_rows == unit_rows and copied.manifest.recipe == source.manifest.recipe
    assert {name: copied.manifest.layout.chunk_rows[name] for name in chunks} == chunks
    assert np.array_equal(copied.status(), source.status()) and copied.failures() == source.failures()
    for name in ARRAYS:
        assert np.array_equal(copied.read(name, source.ok), source.read(name, source.ok)), name
    with pytest.raises(UserError, match="cut otherwise|compressed at level"):
        copy_store(source, copied.path, unit_rows=unit_rows, level=3)
    with pytest.raises(UserError, match="divides the unit's"):
        copy_store(source, tmp_path / "c.zarr", unit_rows=4, chunk_rows={"vector": 3})


def test_dtype_is_another_recipe_and_overflow_fails_its_row(tmp_path):
    source = fill_by_clip(make(tmp_path / "a.zarr", n=5))
    big = make(tmp_path / "big.zarr", n=5)
    for unit in big.units:
        rows = np.arange(unit.start, unit.stop)
        out = values(big, rows)
        out["vector"][rows == 2] = 1e6
        big.commit(unit, out, np.full(len(rows), OK))
    half = copy_store(source, tmp_path / "half.zarr", dtype="float16")
    assert half.manifest.arrays["vector"].dtype == "float16" and half.manifest.arrays["boxes"].dtype == "float32"
    assert half.manifest.recipe["dtype"] == "float16" and half.manifest.recipe_hash != source.manifest.recipe_hash
    derived = half.manifest.recipe["derived"]
    assert derived == {"from": source.manifest.recipe_hash, "change": "vector float32 to float16"}
    assert np.array_equal(half.read("vector", half.ok), source.read("vector", source.ok).astype(np.float16))
    back = copy_store(half, tmp_path / "back.zarr", dtype="float32")
    assert back.manifest.recipe["derived"]["from"] == half.manifest.recipe_hash
    assert back.manifest.recipe_hash != source.manifest.recipe_hash
    lossy = copy_store(big, tmp_path / "lossy.zarr", dtype="float16")
    assert lossy.failures()[2][0] == "overflow" and lossy.ok.tolist() == [0, 1, 3, 4]
    with pytest.raises(UserError, match="float16 or float32"):
        copy_store(source, tmp_path / "x.zarr", dtype="int8")


def test_subsets(tmp_path):
    texts = {"clip": np.array([0, 1, 1, 11], np.int32), "caption": np.array(["a", "b", "c", "d"], object)}
    source = fill_by_clip(make(tmp_path / "a.zarr", tables={"texts": texts}, name="d"), failed=(3,))
    train = copy_store(source, tmp_path / "train.zarr", split="train", arrays=["vector"])
    assert [str(i) for i in train.clips["id"]] == [f"clip {i} é" for i in range(1, 12, 2)]
    assert train.texts["caption"].tolist() == ["b", "c", "d"] and train.texts["clip"].tolist() == [0, 0, 5]
    assert set(train.manifest.arrays) == {"vector", "n_padded"} and not errors(train.path)
    assert train.manifest.dataset == {"name": "d", "subset": {"rows": 6, "of": 12, "split": "train"}}
    assert train.failures() == {1: ("damaged", "no frame")}
    assert np.array_equal(train.read("vector", train.ok), source.read("vector", [1, 5, 7, 9, 11]))
    last = copy_store(source, tmp_path / "last.zarr", rows=lambda s: s.rows["video"] == 2)
    assert last.videos["name"].tolist() == [".."] and last.rows["video"].tolist() == [0] * 4
    assert last.texts["caption"].tolist() == ["d"] and last.clips["video"].tolist() == [0] * 4
    with pytest.raises(UserError, match="no clip is in split 'test'"):
        copy_store(source, tmp_path / "x.zarr", split="test")
    with pytest.raises(UserError, match="nothing to copy"):
        copy_store(source, tmp_path / "x.zarr", rows=np.zeros(12, bool))
    with pytest.raises(UserError, match="has no array map"):
        copy_store(source, tmp_path / "x.zarr", arrays=["map"])
    with pytest.raises(UserError, match="is the store to copy from"):
        copy_store(source, tmp_path / "a.zarr")
    with pytest.raises(UserError, match="is another store: it has other rows"):
        copy_store(source, tmp_path / "last.zarr")


def test_split_of_a_grid_store_takes_whole_videos(tmp_path):
    rows = {**sample_rows(12), "clip": np.full(12, -1, np.int32), "k": np.tile(np.arange(4, dtype=np.int32), 3)}
    clips = {**sample_clips(3), "split": np.array(["train", "val", "train"], object)}
    clips["video"] = np.arange(3, dtype=np.int32)
    manifest = Manifest(SMALL, plan_layout(SMALL, 64, batch_size=2, unit_rows=4), RECIPE)
    source = create_store(tmp_path / "a.zarr", manifest, rows, clips, VIDEOS)
    fill(source)
    val = copy_store(source, tmp_path / "val.zarr", split="val")
    assert val.videos["name"].tolist() == ["a/b ü"] and val.rows["clip"].tolist() == [-1] * 4
    assert np.array_equal(val.read("vector", val.ok), source.read("vector", np.arange(4, 8)))


def test_a_copy_of_a_grown_store_is_one_extent_in_order(tmp_path):
    from stores import extend

    source = make(tmp_path / "a.zarr", rows=[0, 3, 5, 7, 11])
    extend(source.path, sample_rows(12), sample_clips(12), VIDEOS)
    source = fill_by_clip(open_store(source.path))
    copied = copy_store(source, tmp_path / "b.zarr")
    assert copied.manifest.extents == ((0, 12),) and np.array_equal(copied.rows["clip"], np.arange(12))
    assert np.array_equal(copied.read("vector", range(12)), values(copied, range(12))["vector"].astype(np.float32))


def test_copies_go_on_after_a_stop_and_take_what_came_later(tmp_path):
    source = fill_by_clip(make(tmp_path / "a.zarr"), todo=range(8))
    whole = fill_by_clip(make(tmp_path / "whole.zarr"))
    whole.seal()

    def stop(done, total):
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_store(source, tmp_path / "b.zarr", progress=stop)
    assert open_store(tmp_path / "b.zarr").status().tolist() == [OK] * 4 + [PENDING] * 8
    assert not copy_store(source, tmp_path / "b.zarr").sealed
    fill_by_clip(source)
    assert copy_store(source, tmp_path / "b.zarr").sealed
    assert not same_tree(tmp_path / "whole.zarr", tmp_path / "b.zarr")


@pytest.mark.parametrize("made", ["at once", "one begun before"])
def test_two_copies_into_one_target_at_once(tmp_path, made):
    """Whoever is first with a file, the store is that of one copy."""
    source = new_store(tmp_path / "s.zarr", 12, unit_rows=2, arrays=SMALL)
    fill(source, failed=(3,))
    whole = copy_store(source.path, tmp_path / "whole" / "c.zarr")
    target, start, found = tmp_path / "c.zarr", threading.Barrier(2), []

    def copy(source, progress=None):
        start.wait()
        found.append(copy_store(source.path, target, progress=progress))

    if made == "one begun before":

        def stop(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            copy_store(source.path, target, progress=stop)
    threads = [threading.Thread(target=copy, args=(open_store(source.path),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2 and open_store(target).sealed and verify(target) == []
    assert same_tree(target, whole.path) == []
    with pytest.raises(UserError, match="is another store: .*cut otherwise"):
        copy_store(source.path, target, unit_rows=3)


def test_a_damaged_source_is_named_and_nothing_of_it_is_copied(tmp_path):
    from stores import DamagedStore

    source = fill_by_clip(make(tmp_path / "a.zarr"))
    shard = source.path / "data" / "vector" / "c.1.0"
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(DamagedStore, match=r"a\.zarr/data/vector/c\.1\.0"):
        copy_store(source.path, tmp_path / "b.zarr")
    assert open_store(tmp_path / "b.zarr").ok.tolist() == [0, 1, 2, 3]


# -- merge -------------------------------------------------------------------------------------------------------------


def test_parts_of_one_plan_become_the_store_of_one_run(tmp_path):
    whole = fill_by_clip(make(tmp_path / "whole.zarr"), failed=(5,))
    parts = [
        fill_by_clip(make(tmp_path / f"{i}.zarr"), todo, failed=(5,)) for i, todo in enumerate((range(7), range(5, 12)))
    ]
    for store in (whole, *parts):
        probe_all(store)
    whole.seal()
    merged = merge([p.path for p in parts], tmp_path / "m.zarr")
    assert merged.sealed and not same_tree(tmp_path / "whole.zarr", tmp_path / "m.zarr")
    assert merged.failures() == {5: ("damaged", "no frame")}


def test_parts_of_different_videos_are_united(tmp_path):
    """Clips, captions, videos and rows of each; rows in (video, time) order whoever had them."""
    clips, rows, parts = sample_clips(12), sample_rows(12), []
    for i, videos in enumerate(([2, 0], [0, 1])):
        mask = np.isin(clips["video"], videos)
        back = {video: j for j, video in enumerate(videos)}
        mine = {name: column[mask] for name, column in clips.items()}
        mine["video"] = np.array([back[v] for v in mine["video"]], np.int32)
        picked = {name: column[mask] for name, column in rows.items()}
        picked |= {"video": mine["video"], "clip": np.arange(mask.sum(), dtype=np.int32)}
        manifest = Manifest(SMALL, plan_layout(SMALL, 64, batch_size=2, unit_rows=4 + i), RECIPE, lineage=[{"d": i}])
        texts = {"clip": np.array([0], np.int32), "caption": np.array([f"first of {mine['id'][0]}"], object)}
        names = {name: column[videos] for name, column in VIDEOS.items()}
        store = create_store(tmp_path / f"{i}.zarr", manifest, picked, mine, names, texts)
        probe_all(fill_by_clip(store))
        parts.append(store)
    with pytest.raises(UserError, match="clips differ in texts .*clip 0 é"):
        merge(parts[:1] + [relabelled(parts[1], tmp_path)], tmp_path / "x.zarr")
    merged = merge(parts, tmp_path / "m.zarr")
    assert merged.videos["name"].tolist() == ["..", "P01_01", "a/b ü"] and len(merged) == 12
    assert np.array_equal(np.lexsort((merged.rows["start_s"], merged.rows["video"])), np.arange(12))
    number = [int(str(merged.clips["id"][c]).split()[1]) for c in merged.rows["clip"]]
    assert sorted(number) == list(range(12)) and merged.manifest.lineage == [{"d": 0}, {"d": 1}]
    assert np.array_equal(merged.read("vector", range(12)), values(merged, number)["vector"].astype(np.float32))
    assert merged.probe("a/b ü")["content_hash"] == "a/b üa" and not errors(merged.path)
    assert merged.texts["caption"].tolist() == ["first of clip 0 é"]


def relabelled(store, tmp_path):
    other = copy_store(store, tmp_path / "relabelled.zarr")
    texts = {"clip": np.array([0], np.int32), "caption": np.array(["another"], object)}
    return relabel(other.path, {"id": store.clips["id"][:1]}, texts=texts)


def test_values_that_differ_are_failed_and_listed(tmp_path):
    a = fill_by_clip(make(tmp_path / "a.zarr"), todo=range(8))
    b = fill_by_clip(make(tmp_path / "b.zarr"), todo=range(4, 12), noise=1e-6)
    assert merge([a, b], tmp_path / "near.zarr").ok.tolist() == list(range(12))
    c = fill_by_clip(make(tmp_path / "c.zarr"), todo=range(6, 12), noise=0.5)
    merged = merge([a, c], tmp_path / "far.zarr")
    assert merged.sealed and set(merged.failures()) == {6, 7}
    code, line = merged.failures()[6]
    assert code == DIFFER and "a.zarr and" in line and "cosine 0." in line
    assert merged.ok.tolist() == [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]
    assert merge([a, c], tmp_path / "loose.zarr", tolerance=Tolerance(0.0, 10.0)).ok.tolist() == list(range(12))


def test_merges_that_are_refused(tmp_path):
    a = fill_by_clip(make(tmp_path / "a.zarr", name="d", axis="clip"))
    probe_all(a)

    def other(name, content="a", **how):
        store = fill_by_clip(make(tmp_path / f"{name}.zarr", **{"name": "d", "axis": "clip", **how}))
        probe_all(store, content)
        return store

    moved, verbs = sample_clips(12), sample_clips(12)
    moved["start_s"] = moved["start_s"] + np.where(np.arange(12) == 5, 0.1, 0)
    verbs["verb"] = verbs["verb"] + 1
    cases = {
        r"recipes differ: precision: the first has \"fp32\", the second has \"bf16\"": {
            "recipe": {**RECIPE, "precision": "bf16"}
        },
        "the first has the arrays vector, boxes": {"arrays": {"vector": ArraySpec((7,), "float32")}},
        "axis of their datasets differ": {"axis": "segment"},
        r"1 clips moved under the same id .*: clip 5 é\.": {"clips": moved},
        r"12 clips differ in verb .*clip 9 é and 2 more\. Relabel": {"clips": verbs},
        "3 videos that were not the same file everywhere: P01_01": {"content": "b"},
    }
    for i, (message, how) in enumerate(cases.items()):
        with pytest.raises(UserError, match=message):
            merge([a, other(f"o{i}", **how)], tmp_path / "m.zarr")
    rows = open_store(tmp_path / "o5.zarr")
    manifest = replace(rows.manifest, recipe=RECIPE)
    shifted = {**sample_rows(12), "start_s": sample_rows(12)["start_s"] + 0.5}
    shifted = create_store(tmp_path / "shifted.zarr", manifest, shifted, sample_clips(12), VIDEOS)
    with pytest.raises(UserError, match="12 rows have other times"):
        merge([a, shifted], tmp_path / "m.zarr")
    assert not (tmp_path / "m.zarr").exists()


def test_merges_go_on_after_a_stop(tmp_path):
    parts = [fill_by_clip(make(tmp_path / f"{i}.zarr"), todo) for i, todo in enumerate((range(7), range(7, 12)))]
    whole = merge(parts, tmp_path / "whole.zarr")

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(parts, tmp_path / "m.zarr", progress=stop)
    merge(parts, tmp_path / "m.zarr")
    assert not same_tree(whole.path, tmp_path / "m.zarr")


# -- compare -----------------------------------------------------------------------------------------------------------


def test_agreement_of_rows():
    a = np.array([[1.0, 0], [0, 0], [0, 0], [3, 4]])
    b = np.array([[0, 2.0], [0, 0], [1, 0], [6, 8]])
    cosine, ratio = agreement(ArraySpec((2,), "float32"), a, b)
    assert cosine.tolist() == [0, 1, 0, 1] and ratio.tolist() == [2, 1, np.inf, 2]
    cosine, _ = agreement(ArraySpec((2,), "int32"), np.array([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]]))
    assert cosine.tolist() == [1, 0]
    assert tolerance_of({"precision": "bf16"}, {"precision": "fp32"}).cosine == 0.999


def test_compare_the_same_and_the_different(tmp_path, monkeypatch):
    a = fill_by_clip(make(tmp_path / "a.zarr"), failed=(3,))
    b = fill_by_clip(make(tmp_path / "b.zarr", rows=[11, 1, 3, 7, 5, 2], unit_rows=2))
    same = compare(a.path, b.path)
    assert same.agree and (same.matched, same.compared, same.not_ok_a, same.only_a, same.only_b) == (6, 5, 1, 6, 0)
    assert same.arrays["vector"].cosine["min"] == pytest.approx(1) and not same.recipe_differences
    assert "'P01_01' clip 'clip 0 é' draw 0 k 0" in same.examples["A"][0]
    c = make(tmp_path / "c.zarr", recipe={**RECIPE, "weights": "x"})
    fill_by_clip(c, todo=[i for i in range(12) if i != 6])
    for unit in c.units:
        if (c.status(unit) == PENDING).any():
            out = values(c, np.arange(unit.start, unit.stop))
            out["vector"] *= -2
            c.commit(unit, out, np.full(len(unit), OK))
    differs = compare(a, c)
    report = differs.arrays["vector"]
    assert not differs.agree and report.beyond == 1 and differs.arrays["text"].beyond == 0
    assert (report.worst[0]["clip"], report.worst[0]["row_a"]) == ("clip 6 é", 6)
    assert report.worst[0]["cosine"] == pytest.approx(-1) and report.worst[0]["length_ratio"] == pytest.approx(2)
    assert differs.recipe_differences == ('weights: A has nothing, B has "x"',)
    assert any("DIFFER" in line for line in differs.lines()) and json.dumps(differs.to_json())
    from stores import compare as module

    monkeypatch.setattr(module, "BATCH_BYTES", 100)  # one row a batch
    assert compare(a, c).arrays["vector"] == report
    with pytest.raises(UserError, match="map of .* cannot be compared: it is not in A"):
        compare(a, c, arrays=["map"])


def test_compare_by_time(tmp_path):
    """A store cut at other times and numbered otherwise: nearest centres, one to one; without times, in order."""
    n, fine = 6, 12
    rows = {
        "video": np.repeat(np.arange(2, dtype=np.int32), fine),
        "clip": np.full(2 * fine, -1, np.int32),
        "k": np.tile(np.arange(fine, dtype=np.int32), 2),
        "draw": np.zeros(2 * fine, np.int16),
        "start_s": np.tile(np.arange(fine) * 0.5, 2),
    }
    rows["stop_s"] = rows["start_s"] + 0.5
    coarse = {name: column[::2] for name, column in rows.items()} | {"k": np.tile(np.arange(n, dtype=np.int32), 2)}
    coarse["start_s"] = coarse["start_s"] + 0.1
    coarse["stop_s"] = coarse["stop_s"] + 0.1
    arrays = {"vector": ArraySpec((3,), "float32")}
    feature = np.random.default_rng(0).normal(size=(2 * fine, 3))
    clips, videos = sample_clips(3), {"name": np.array(["v", "w"], object), "path": np.array(["", ""], object)}
    clips = {name: column[:1] for name, column in clips.items()}
    blank = {**coarse, "start_s": np.full(2 * n, np.nan), "stop_s": np.full(2 * n, np.nan)}
    for name, table, held in (("a", rows, feature), ("b", coarse, feature[::2]), ("c", blank, feature[::2])):
        layout = plan_layout(arrays, 64, batch_size=2, unit_rows=64)
        store = create_store(tmp_path / f"{name}.zarr", Manifest(arrays, layout, RECIPE), table, clips, videos)
        store.commit(0, {"vector": held}, np.full(len(held), OK))
    found = compare(tmp_path / "a.zarr", tmp_path / "b.zarr", by="time")
    assert found.agree and (found.matched, found.only_a, found.only_b) == (12, 12, 0)
    assert found.not_compared == {"n_padded": "rows that were cut differently are padded differently"}
    assert not compare(tmp_path / "a.zarr", tmp_path / "b.zarr", by="time", within_s=0.05).agree  # nothing is near
    ordered = compare(tmp_path / "b.zarr", tmp_path / "c.zarr", by="time")
    assert ordered.agree and ordered.matched == 12
    with pytest.raises(UserError, match='by "identity" or by "time", not by \'name\''):
        compare(tmp_path / "a.zarr", tmp_path / "b.zarr", by="name")


# -- relabel -----------------------------------------------------------------------------------------------------------


def test_relabel_replaces_labels_captions_and_splits(tmp_path):
    texts = {"clip": np.array([0, 1, 1, 7], np.int32), "caption": np.array(["a", "b", "c", "d"], object)}
    store = fill_by_clip(make(tmp_path / "a.zarr", tables={"texts": texts}, annotation_hash="old"))
    store.seal()
    shards = {p: p.read_bytes() for p in (store.path / "data").rglob("c.*")}
    wanted = [7, 1, 30]  # 30: not in the store
    clips = {
        "id": np.array([f"clip {i} é" for i in wanted], object),
        "start_s": np.append(store.clips["start_s"][[7, 1]], 0.0),
        "verb": np.array([90, 91, 92], np.int64),
        "noun": np.array([5, 6, 7], np.int32),
        "split_mine": np.array(["x", "y", "z"], object),
    }
    new = {"clip": np.array([0, 1, 2], np.int32), "caption": np.array(["seven", "one", "thirty"], object)}
    lines = []
    relabel(store.path, clips, texts=new, labels={"clip": new["clip"], "label": np.arange(3, dtype=np.int32)},
            facts={"annotation_hash": "new"}, announce=lines.append)  # fmt: skip
    after = open_store(store.path)
    assert after.sealed and after.manifest.seal["k"] == 2 and not errors(after.path)
    assert after.manifest.dataset["annotation_hash"] == "new"
    assert after.clips["verb"].tolist() == [0, 91, 2, 3, 4, 0, 1, 90, 3, 4, 0, 1]
    assert after.clips["noun"].tolist() == [-1, 6] + [-1] * 5 + [5] + [-1] * 4
    assert after.clips["split_mine"].tolist() == ["", "y"] + [""] * 5 + ["x"] + [""] * 4
    assert (after.texts["clip"].tolist(), after.texts["caption"].tolist()) == ([0, 1, 7], ["a", "one", "seven"])
    assert (after.labels["clip"].tolist(), after.labels["label"].tolist()) == ([1, 7], [1, 0])
    assert {p: p.read_bytes() for p in shards} == shards
    assert "sealed as 2" in lines[-1]
    again = (store.path / "zarr.json").read_bytes()
    relabel(store.path, clips, texts=new, labels={"clip": new["clip"], "label": np.arange(3, dtype=np.int32)},
            facts={"annotation_hash": "new"})  # fmt: skip
    assert (store.path / "zarr.json").read_bytes() == again
    with pytest.raises(UserError, match="have no clip in common"):
        relabel(store.path, {"id": np.array(["other"], object), "verb": np.array([1])})


def test_many_captions_may_become_few(tmp_path):
    """Chunks that a shorter table has no more are gone, so that the store stays whole."""
    n = 3000
    texts = {"clip": np.arange(n, dtype=np.int32) % 12, "caption": np.array([f"c{i}" for i in range(n)], object)}
    store = fill_by_clip(make(tmp_path / "a.zarr", tables={"texts": texts}))
    store.seal()
    folder = store.path / "texts" / "caption"
    chunks = sorted(p.name for p in folder.glob("c.*"))
    few = {"clip": np.arange(12, dtype=np.int32), "caption": np.array([f"one {i}" for i in range(12)], object)}
    relabel(store.path, {"id": store.clips["id"]}, texts=few)
    after = open_store(store.path)
    assert after.texts["caption"].tolist() == few["caption"].tolist() and not errors(store.path)
    assert len(sorted(p.name for p in folder.glob("c.*"))) <= len(chunks)
    relabel(store.path, {"id": store.clips["id"]}, texts=texts)
    assert sorted(open_store(store.path).texts["caption"].tolist()) == sorted(texts["caption"].tolist())
    assert not errors(store.path)
    none = {"clip": np.empty(0, np.int32), "caption": np.empty(0, object)}
    relabel(store.path, {"id": store.clips["id"]}, texts=none)
    assert len(open_store(store.path).texts["clip"]) == 0 and not errors(store.path)


def test_a_relabelling_that_was_killed_is_finished(tmp_path, monkeypatch):
    """Whichever of its writes is the last that goes through, another run makes the store of an undisturbed one."""
    from stores import extensions

    def begin(name):
        n = 2000
        texts = {"clip": np.arange(n, dtype=np.int32) % 12, "caption": np.array([f"c{i}" for i in range(n)], object)}
        store = fill_by_clip(make(tmp_path / f"{name}.zarr", tables={"texts": texts}))
        store.seal()
        return store.path

    def run(path):
        few = {"clip": np.arange(12, dtype=np.int32), "caption": np.array([f"one {i}" for i in range(12)], object)}
        clips = {"id": sample_clips(12)["id"], "verb": np.arange(12, dtype=np.int32)}
        relabel(path, clips, texts=few)

    whole, steps, done = begin("whole"), extensions._steps, []
    monkeypatch.setattr(extensions, "_steps", lambda *a: (done.append(1) or step for step in steps(*a)))
    run(whole)
    for last in range(len(done)):
        path, left = begin(f"killed{last}"), iter(range(last))

        def some(*args, left=left):
            for step in steps(*args):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                yield step

        monkeypatch.setattr(extensions, "_steps", some)
        with pytest.raises(KeyboardInterrupt):
            run(path)
        monkeypatch.setattr(extensions, "_steps", steps)
        run(path)
        assert not same_tree(whole, path), last


def test_relabel_refuses_moved_clips_and_wrong_columns(tmp_path):
    store = fill_by_clip(make(tmp_path / "a.zarr"))
    store.seal()
    before = (store.path / "zarr.json").read_bytes()
    clips = {name: store.clips[name].copy() for name in ("id", "start_s", "stop_s", "video")}
    clips["stop_s"][4] += 2
    with pytest.raises(
        UserError, match=r"1 clip of .* moved under the same id: 'clip 4 é' from \[0, 1\) to \[0, 3\) s"
    ):
        relabel(store.path, clips)
    clips["stop_s"][4] -= 2
    with pytest.raises(UserError, match="12 clips .* moved"):
        relabel(store.path, clips, videos={"name": np.array(["x", "y", "z"], object)})
    for column, message in (
        ({"verb": np.zeros(12)}, "labels are integers"),
        ({"verb": np.array(["a"] * 12, object)}, r"clips\.verb is object, the store's is int32"),
    ):
        with pytest.raises(UserError, match=message):
            relabel(store.path, {**clips, **column})
    with pytest.raises(UserError, match=r"texts\.clip must be indices into the 12 clips"):
        relabel(store.path, clips, texts={"clip": np.array([12]), "caption": np.array(["a"], object)})
    assert (store.path / "zarr.json").read_bytes() == before
