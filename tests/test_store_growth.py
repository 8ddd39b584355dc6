"""Stores that grow: by rows, clips, videos, draws, columns and arrays; killed anywhere, by two at once, sealed."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import stores.extensions
import stores.manifest
from errors import UserError
from stores import (
    OK,
    PENDING,
    ArraySpec,
    add_arrays,
    begin_arrays,
    copy_store,
    extend,
    finish_growth,
    info,
    limits,
    match_rows,
    open_store,
    plan_growth,
    plan_layout,
    replace_columns,
    verify,
)
from stores.zarr_store import ZarrFiles
from tests.store_samples import VIDEOS, fill, new_store, same_tree, sample_clips, sample_rows, values

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"spatial": ArraySpec((2, 16400), "float16"), "vector": ArraySpec((3,), "float32")}


def small_store(path, n=6):
    return new_store(path, n, unit_rows=4, arrays=SMALL)


def grown_tables(n: int, name: str = "new") -> dict:
    """The sample's six clips and n more, of which every second is of a video that is new; two draws of each."""
    clips, rows = sample_clips(6), sample_rows(6)
    videos = {c: np.append(VIDEOS[c], f"{name}.mp4" if c == "path" else name) for c in VIDEOS}
    more = {
        "id": np.array([f"{name} {i}" for i in range(n)], object),
        "video": np.array([3 if i % 2 else 1 for i in range(n)], np.int32),
        "start_s": np.arange(n) + 50.0,
        "stop_s": np.arange(n) + 51.0,
        "verb": np.full(n, 4, np.int32),
        "split": np.array(["train"] * n, object),
    }
    clips = {c: np.concatenate([clips[c], more[c]]) for c in clips}
    clip = np.repeat(np.arange(n), 2) + 6
    new = {
        "video": clips["video"][clip],
        "clip": clip.astype(np.int32),
        "k": np.zeros(2 * n, np.int32),
        "draw": np.tile(np.array([0, 1], np.int16), n),
        "start_s": clips["start_s"][clip],
        "stop_s": clips["stop_s"][clip],
    }
    return {"rows": {c: np.concatenate([rows[c], new[c]]) for c in rows}, "clips": clips, "videos": videos}


def errors_of(path, **options) -> set[str]:
    return {finding.path for finding in verify(path, **options) if finding.severity == "error"}


def row_names(store) -> list[tuple]:
    rows, seen = store.rows, np.flatnonzero(store.visible)
    return [
        (store.videos["name"][rows["video"][i]], store.clips["id"][rows["clip"][i]], int(rows["draw"][i])) for i in seen
    ]


# ---------------------------------------------------------------------------------------------- what grows


def test_growth_appends_and_leaves_finished_rows_alone(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    fill(store, failed=(2,))
    shards = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in store.path.glob("data/*/c.*")}
    grown = extend(store.path, **grown_tables(5), facts={"name": "more"})
    assert grown.manifest.extents == ((0, 6), (8, 10)) and len(grown) == 18 and grown.manifest.n_rows == 16
    assert grown.manifest.dataset == {"name": "more"}
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in store.path.glob("data/*/c.*")} == shards
    assert grown.status()[grown.visible].tolist() == [OK, OK, 2, OK, OK, OK] + [PENDING] * 10
    assert grown.videos["name"].tolist() == [*VIDEOS["name"], "new"]
    assert grown.clips["id"].tolist()[6:] == [f"new {i}" for i in range(5)]
    video = grown.rows["video"][8:]
    assert video.tolist() == sorted(video.tolist()), "in (video, time) order within the extension"
    assert verify(store.path) == []
    assert extend(store.path, **grown_tables(5)).manifest == grown.manifest, "nothing is new"
    fill(grown, [unit for unit in grown.units if unit.start >= 8])
    assert grown.visible.sum() == 16 and len(grown.ok) == 15
    np.testing.assert_array_equal(grown.read("vector", [9])[0], values(grown, [9])["vector"][0])
    assert info(store.path)["rows"]["total"] == 16 and info(store.path)["rows"]["pending"] == 0
    assert verify(store.path) == []
    assert grown.rows_between("new", 0, 99).tolist() == [14, 15, 16, 17]
    with pytest.raises(UserError, match="hold no value"):
        grown.read("vector", [6])


def test_plain_zarr_reads_a_grown_store(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    fill(store)
    store = extend(store.path, **grown_tables(5))
    fill(store)
    group = zarr.open_group(str(store.path), mode="r")
    ok = np.flatnonzero(group["rows/status"][:] == 1)
    assert ok.tolist() == store.ok.tolist() and len(ok) == 16
    for name in SMALL:
        np.testing.assert_array_equal(group[f"data/{name}"].oindex[ok], store.read(name, ok))
        assert np.isnan(group[f"data/{name}"].oindex[[6, 7, 18, 19]]).all()
    assert list(group["clips/id"][:]) == store.clips["id"].tolist()
    assert group["rows/clip"][:].tolist() == [*range(6), -1, -1, *store.rows["clip"][8:].tolist(), -1, -1]


def test_growth_of_draws_texts_labels_and_events(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    rows, clips = sample_rows(6), sample_clips(6)
    drawn = {name: np.concatenate([column, column]) for name, column in rows.items()}
    drawn["draw"] = np.repeat(np.array([0, 3], np.int16), 6)
    texts = {"clip": np.array([0, 0, 1], np.int32), "caption": np.array(["a", "a", "ü"], object)}
    events = {"video": np.zeros(2, np.int32), "start_s": np.array([1.0, np.nan]), "label": np.arange(2, dtype=np.int32)}
    grown = extend(store.path, drawn, clips, VIDEOS, texts=texts, events=events)
    assert [draw for *_, draw in row_names(grown)] == [0] * 6 + [3] * 6
    assert grown.texts["caption"].tolist() == ["a", "a", "ü"] and grown.labels is None
    texts = {"clip": np.array([1, 0, 0, 0], np.int32), "caption": np.array(["ü", "a", "a", "a"], object)}
    grown = extend(store.path, drawn, clips, VIDEOS, texts=texts, events=events)
    assert grown.texts["clip"].tolist() == [0, 0, 1, 0] and len(grown.events["label"]) == 2
    assert len(grown.manifest.extents) == 2 and verify(store.path) == []


def test_new_rows_are_known_by_name_whatever_their_numbers(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    tables = grown_tables(3)
    order, videos = np.array([8, 3, 1, 0, 7, 5, 2, 4, 6]), np.array([3, 1, 0, 2])
    place = np.argsort(order).astype(np.int32)
    clips = {c: v[order] for c, v in tables["clips"].items()}
    clips["video"] = np.argsort(videos)[clips["video"]].astype(np.int32)
    rows = {**tables["rows"], "clip": place[tables["rows"]["clip"]]}
    rows["video"] = np.argsort(videos)[rows["video"]].astype(np.int32)
    growth = plan_growth(store, rows, clips, {c: v[videos] for c, v in tables["videos"].items()})
    assert sorted(growth.tables["clips"]["id"]) == ["new 0", "new 1", "new 2"]
    assert len(growth.tables["rows"]["video"]) == 6 and growth.tables["videos"]["name"].tolist() == ["new"]
    known = {name: np.array([3, 1, 3, -1]) for name in ("video", "clip", "draw", "k")}
    wanted = {name: np.array([1, 2, 3]) for name in known}
    assert match_rows(known, wanted).tolist()[:2] == [1, -1] and match_rows(known, wanted)[2] in (0, 2)


def test_a_large_table_grows_chunk_by_chunk(tmp_path, monkeypatch):
    import stores.zarr_store as zarr_store

    monkeypatch.setattr(zarr_store, "LEAST_CHUNK", 4)
    store = small_store(tmp_path / "s.zarr")
    for n in (1, 2, 9, 30):
        store = extend(store.path, **grown_tables(n))
        assert verify(store.path) == []
    assert len(store.clips["id"]) == 36 and store.clips["id"][-1] == "new 29"
    assert len(list((store.path / "clips/id").glob("c.*"))) == 6
    assert [name for *_, name in [row[:2] for row in row_names(store)]].count("new 29") == 2


def test_columns_are_replaced_and_added(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    fill(store)
    store.seal()
    noun = np.arange(6, dtype=np.int32)
    store = replace_columns(store.path, {"clips": {"verb": noun + 10, "noun": noun}})
    assert store.clips["verb"].tolist() == [10, 11, 12, 13, 14, 15] and store.clips["noun"].tolist() == noun.tolist()
    assert not store.sealed and verify(store.path) == []
    tables = grown_tables(2)
    store = extend(store.path, **tables)
    assert store.clips["noun"].tolist() == [*range(6), -1, -1] and store.clips["verb"].tolist()[-1] == 4
    with pytest.raises(UserError, match="has no column colour.*relabel"):
        more = grown_tables(3)
        more["clips"]["colour"] = np.zeros(9, np.int32)
        extend(store.path, **more)
    with pytest.raises(ValueError, match="must have 8 values"):
        replace_columns(store.path, {"clips": {"verb": noun}})
    assert verify(store.path) == []


def test_sealed_versions(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    fill(store)
    store.seal()
    first = {p: p.read_bytes() for p in (store.path / "sealed/1").rglob("*") if p.is_file()}
    reader = open_store(store.path)
    grown = extend(store.path, **grown_tables(5))
    assert not grown.sealed
    assert reader.sealed and reader.read("vector", [5]).shape == (1, 3), "a reader of the version before reads on"
    assert len(reader.clips["id"]) == 6 and reader.status().tolist() == [OK] * 6
    fill(grown)
    grown.seal()
    assert grown.manifest.seal["k"] == 2 and len(open_store(store.path).ok) == 16
    assert {p: p.read_bytes() for p in (store.path / "sealed/1").rglob("*") if p.is_file()} == first
    assert verify(store.path) == []


def test_a_worker_from_before_the_growth_goes_on(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    worker, reader = open_store(store.path), open_store(store.path)
    extend(store.path, **grown_tables(5))
    fill(worker)
    assert len(open_store(store.path).ok) == 6
    assert reader.read("vector", [1]).shape == (1, 3) and len(reader.status()) == 6
    assert len(reader.rows["video"]) == len(reader.clips["id"]) == 6 and verify(store.path) == []


def test_damage_between_tables_and_extensions_is_named(tmp_path):
    store = extend(small_store(tmp_path / "s.zarr").path, **grown_tables(5))
    other = small_store(tmp_path / "o.zarr", 7)
    shutil.copy(other.path / "clips/verb/c.0", store.path / "clips/verb/c.0")
    assert errors_of(store.path) == {"clips/verb"}
    (store.path / "extensions/1/rows/clip/c.0").unlink()
    assert "extensions/1/rows/clip/c.0" in errors_of(store.path, quick=True)


# ------------------------------------------------------------------------------------------------- killed


class Killed(BaseException):
    """Stands for the end of the process."""


def count_writes(monkeypatch, limit: int | None = None) -> list[str]:
    """Lists what is made durable, and ends the process (as far as a test can) just before write number `limit`."""
    seen: list[str] = []

    def watched(call, name_of):
        def write(*arguments, **options):
            if len(seen) == limit:
                raise Killed
            seen.append(name_of(*arguments))
            return call(*arguments, **options)

        return write

    monkeypatch.setattr(ZarrFiles, "put", watched(ZarrFiles.put, lambda files, name, *_: name))
    monkeypatch.setattr(os, "rename", watched(os.rename, lambda a, b: f"rename {Path(b).name}"))
    return seen


def test_killed_at_every_write_and_finished_by_another(tmp_path, monkeypatch):
    tables = grown_tables(5)
    base = new_store(tmp_path / "base.zarr", 6, unit_rows=4, arrays={"vector": SMALL["vector"]})
    fill(base, failed=(1,))
    base.seal()
    (tmp_path / "whole").mkdir()
    whole = shutil.copytree(base.path, tmp_path / "whole" / "s.zarr")
    with monkeypatch.context() as patch:
        writes = count_writes(patch)
        extend(whole, **tables)
    assert writes[0] == "rename 1" and writes[-1] == "zarr.json" and len(writes) > 15
    for limit in range(len(writes)):
        path = tmp_path / str(limit) / "s.zarr"
        shutil.copytree(base.path, path)
        with monkeypatch.context() as patch:
            count_writes(patch, limit)
            with pytest.raises(Killed):
                extend(path, **tables)
        between = open_store(path)
        assert between.read("vector", between.ok[between.ok < 6]).shape == (5, 3), writes[limit]
        assert len(between.clips["id"]) in (6, 11) and len(between.rows["clip"]) in (6, 18)
        assert errors_of(path, quick=limit % 3 > 0) == set(), writes[limit]
        group = zarr.open_group(str(path), mode="r")
        assert list(group["clips/id"][:6]) == list(sample_clips(6)["id"]) and not (group["clips/id"][:] == "").any()
        if limit % 2 and limit:
            finish_growth(path)
        else:
            extend(path, **tables)
        assert same_tree(path, whole) == [], writes[limit]
        shutil.rmtree(path.parent)
    assert verify(whole) == []


EXTEND = """
import os, sys
from pathlib import Path
from stores import extend
from stores.zarr_store import ZarrFiles
from tests.test_store_growth import grown_tables
path, name, n, kill = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
put, seen = ZarrFiles.put, []
def counted(*arguments):
    seen.append(1)
    if len(seen) == kill: os._exit(9)
    return put(*arguments)
ZarrFiles.put = counted
print("ready", flush=True); sys.stdin.readline()
extend(path, **grown_tables(n, name))
"""


def run_extend(path, name: str, n: int, kill: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", EXTEND, str(path), name, str(n), str(kill)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, cwd=ROOT, **pipes)
    child.stdout.readline()
    return child


def test_processes_that_extend_at_once_and_one_that_dies(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    fill(store)
    children = [run_extend(store.path, "a", 5), run_extend(store.path, "b", 3), run_extend(store.path, "c", 2, kill=7)]
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    codes = [child.wait(60) for child in children]
    assert codes[:2] == [0, 0] and codes[2] in (0, 9)
    store = extend(store.path, **grown_tables(2, "c"))
    assert len(store.manifest.extents) == 4 and store.manifest.n_rows == 26
    names = row_names(store)
    assert len(set(names)) == len(names) == 26
    assert sorted(store.videos["name"]) == sorted([*VIDEOS["name"], "a", "b", "c"])
    assert verify(store.path) == []
    fill(store)
    store.seal()
    assert verify(store.path) == []


def test_more_units_than_a_store_may_have_are_refused_before_anything_is_written(tmp_path, monkeypatch):
    """A reader believes only so many: a store that outgrew them could not be opened any more."""
    store = new_store(tmp_path / "s.zarr", 6, unit_rows=4, arrays=SMALL)
    fill(store)
    before = {p: p.stat().st_mtime_ns for p in store.path.rglob("*")}
    monkeypatch.setattr(limits, "MOST_UNITS", 3)
    with pytest.raises(UserError, match=r"s\.zarr: 28 rows in units of 4 are more than the 3 units.*--unit-rows 10 or"):
        extend(store.path, **grown_tables(10))
    with pytest.raises(UserError, match=r"6 rows in units of 1 are more than the 3 units.*--unit-rows 2 or"):
        copy_store(store.path, tmp_path / "c.zarr", unit_rows=1)
    assert {p: p.stat().st_mtime_ns for p in store.path.rglob("*")} == before and not (tmp_path / "c.zarr").exists()
    monkeypatch.setattr(limits, "MOST_ROWS", 27)
    with pytest.raises(UserError, match="28 rows in whole units are more than the 27 that a store may have"):
        extend(store.path, **grown_tables(10))
    monkeypatch.undo()
    assert len(extend(store.path, **grown_tables(10))) == 28
    with pytest.raises(UserError, match=r"--unit-rows 100000: units of 6,560,000,000 bytes.*at most 65472"):
        plan_layout(SMALL, 64, batch_size=1, unit_rows=100_000)


def test_who_loses_the_race_for_a_number_plans_again(tmp_path, monkeypatch):
    store = small_store(tmp_path / "s.zarr")
    write, lost = stores.grow.write_extension, []

    def beaten(*arguments):
        if not lost:
            lost.append(1)
            extend(store.path, **grown_tables(3, "first"))
        return write(*arguments)

    monkeypatch.setattr(stores.grow, "write_extension", beaten)
    grown = extend(store.path, **grown_tables(2, "second"))
    assert grown.videos["name"].tolist()[3:] == ["first", "second"] and len(grown.manifest.extents) == 3
    assert sorted(os.listdir(store.path / "extensions")) == ["0", "1", "2"] and verify(store.path) == []


def test_a_growth_that_was_killed_is_finished_by_a_seal_and_by_the_next_creation(tmp_path, monkeypatch):
    for finish in (lambda path: open_store(path).seal(), lambda path: small_store(path)):
        path = tmp_path / "s.zarr"
        store = small_store(path)
        fill(store)
        with monkeypatch.context() as patch:
            count_writes(patch, 9)
            with pytest.raises(Killed):
                extend(path, **grown_tables(5))
        assert any(finding.severity == "note" for finding in verify(path)) and errors_of(path) == set()
        try:
            finish(path)
        except UserError as error:
            assert "10 of 16 rows are pending" in error.message
        assert open_store(path).manifest.n_rows == 16 and verify(path) == []
        shutil.rmtree(path)


def test_no_space_to_grow_leaves_the_store_as_it_was(tmp_path, monkeypatch):
    store = small_store(tmp_path / "s.zarr")
    before = same_tree(store.path, store.path)
    with monkeypatch.context() as patch:
        patch.setattr(stores.extensions, "sync_tree", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
        with pytest.raises(stores.manifest.MachineError, match="no space left"):
            extend(store.path, **grown_tables(5))
    assert same_tree(store.path, store.path) == before and os.listdir(store.path / "extensions") == ["0"]
    assert verify(store.path) == []


# ------------------------------------------------------------------------------------------------- arrays


def test_an_array_is_added_when_all_its_values_are_there(tmp_path, monkeypatch):
    store = small_store(tmp_path / "s.zarr")
    fill(store, failed=(2,))
    store = extend(store.path, **grown_tables(5))
    fill(store, failed=(2, 9))
    store.seal()
    shards = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in store.path.glob("data/*/c.*")}
    side = begin_arrays(store.path, {"map": ArraySpec((2, 5), "float16")})
    assert side.path == tmp_path / ".adding" / "s+map.zarr" and len(side) == 16
    fill(side, side.units[:2])
    with pytest.raises(UserError, match=r"cannot have map yet: 8 rows .* first row 10 \(pending"):
        add_arrays(store.path, side)
    side = begin_arrays(store.path, {"map": ArraySpec((2, 5), "float16")})
    assert len(side.ok) == 8, "what was computed is still there"
    fill(side)
    expected = dict(zip(row_names(side), side.read("map", np.arange(16)), strict=True))
    base = tmp_path / "base"
    shutil.copytree(tmp_path, base, ignore=shutil.ignore_patterns("base"))
    with monkeypatch.context() as patch:
        writes = count_writes(patch)
        added = add_arrays(store.path, side)
    assert set(added.manifest.arrays) == {*SMALL, "n_padded", "map"} and not (tmp_path / ".adding/s+map.zarr").exists()
    for row in added.ok:
        name = (added.videos["name"][added.rows["video"][row]], added.clips["id"][added.rows["clip"][row]])
        np.testing.assert_array_equal(added.read("map", [row])[0], expected[(*name, int(added.rows["draw"][row]))])
    assert np.isnan(zarr.open_group(str(store.path), mode="r")["data/map"].oindex[[2, 6, 9]]).all()
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in shards} == shards and verify(store.path) == []
    added.seal()
    assert added.manifest.seal["k"] == 2 and verify(store.path) == []
    for limit in range(len(writes)):
        path = tmp_path / "k" / "s.zarr"
        shutil.copytree(base, path.parent)
        with monkeypatch.context() as patch:
            count_writes(patch, limit)
            with pytest.raises(Killed):
                add_arrays(path, open_store(path.parent / ".adding" / "s+map.zarr"))
        between = open_store(path)
        assert "map" not in between.manifest.arrays and between.read("vector", between.ok).shape == (14, 3)
        assert errors_of(path) == set(), writes[limit]
        again = add_arrays(path, begin_arrays(path, {"map": ArraySpec((2, 5), "float16")}))
        again.seal()
        assert same_tree(path, store.path) == [], writes[limit]
        shutil.rmtree(path.parent)


def test_a_worker_that_does_not_know_a_new_array_stops(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    fill(store, store.units[:1])
    side = begin_arrays(store.path, {"map": ArraySpec((5,), "float16")})
    fill(side, side.units[:1])
    add_arrays(store.path, side)
    with pytest.raises(UserError, match="other arrays in the meantime"):
        fill(store)
    store = open_store(store.path)
    fill(store)
    assert len(store.ok) == 6 and verify(store.path) == []


def test_extending_from_a_pool(tmp_path):
    """Spawned workers find what the others added."""
    store = small_store(tmp_path / "s.zarr")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(_extend, [(str(store.path), name) for name in "abcd"])
    assert sorted(open_store(store.path).videos["name"][3:]) == list("abcd") and verify(store.path) == []


def _extend(path: str, name: str) -> None:
    extend(path, **grown_tables(2, name))
