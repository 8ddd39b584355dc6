"""The store through its public face, and beside it through plain zarr-python and plain files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import stores
from errors import UserError
from stores import (
    ABSENT,
    FAILED,
    OK,
    PENDING,
    ArraySpec,
    DamagedStore,
    Manifest,
    NotAStore,
    RowNotReady,
    StoreSealed,
    create_store,
    info,
    open_store,
    plan_layout,
    recipe_difference,
    recipe_hash,
    shard_units,
    store_bytes,
    units,
    verify,
    write_durable,
)
from tests.store_samples import (
    ARRAYS,
    VIDEOS,
    fill,
    new_store,
    same_tree,
    sample_clips,
    sample_rows,
    sent_to_a_worker,
    values,
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def store(tmp_path):
    return new_store(tmp_path / "s.zarr")


# ---------------------------------------------------------------------------------------------------- plan


def test_layout_follows_the_largest_array_and_the_network():
    arrays = {"map": ArraySpec((8, 7, 7, 1024), "float16"), "vector": ArraySpec((1024,), "float16")}
    layout = plan_layout(arrays, 1024, batch_size=4)
    assert layout.unit_rows == 128 * 2**20 // (8 * 7 * 7 * 1024 * 2)
    assert layout.chunk_rows["map"] == 1
    assert plan_layout(arrays, 64, batch_size=4).unit_rows == 64
    assert plan_layout(arrays, 64, batch_size=4, unit_rows=2).unit_rows == 2
    assert plan_layout(arrays, 64, batch_size=4).chunk_rows == {"map": 1, "vector": 32, "n_padded": 64}
    huge = {"map": ArraySpec((2**28,), "float16")}
    assert plan_layout(huge, 64, batch_size=4).unit_rows == 1


@pytest.mark.parametrize("unit_rows", [1, 13, 37, 60, 64, 1000])
def test_chunks_divide_a_unit_and_reach_64_kib(unit_rows):
    arrays = {"a": ArraySpec((10, 256), "float16"), "b": ArraySpec((70000,), "uint8")}
    layout = plan_layout(arrays, unit_rows, batch_size=1)
    assert layout.chunk_rows["b"] == 1
    rows = layout.chunk_rows["a"]
    assert unit_rows % rows == 0
    assert rows == unit_rows or rows * 5120 >= 65536


def test_units_and_their_blocks():
    whole = units((0, 10), 4)
    assert [(u.index, u.start, u.stop, len(u)) for u in whole] == [(0, 0, 4, 4), (1, 4, 8, 4), (2, 8, 10, 2)]
    assert units((0, 0), 4) == []
    assert units((12, 1), 4)[0].index == 3
    blocks = [shard_units(units((0, 100), 3), i, 7) for i in range(7)]
    assert sum(blocks, []) == units((0, 100), 3)
    assert {len(block) for block in blocks} <= {4, 5}
    with pytest.raises(UserError):
        shard_units(whole, 3, 3)
    assert store_bytes({"a": ArraySpec((3,), "int32")}, 5) == {"a": 60}


def test_status_names():
    codes = {"pending": PENDING, "ok": OK, "failed": FAILED, "absent": ABSENT}
    assert {name: code for code, name in enumerate(stores.STATUS_NAMES)} == codes


def test_recipe_difference_names_fields():
    a = {"network": {"name": "i3d", "layer": "Mixed_5c"}, "size": (224, 224), "dtype": "float16"}
    b = {"dtype": "float16", "size": [224, 224], "network": {"layer": "Mixed_4f", "name": "i3d"}, "flow": None}
    assert recipe_difference(a, a) == []
    lines = recipe_difference(a, b)
    assert len(lines) == 2
    assert lines[0].startswith("network.layer:") and "Mixed_5c" in lines[0] and "Mixed_4f" in lines[0]
    assert lines[1].startswith("flow:")
    assert recipe_hash(a) != recipe_hash(b)
    assert recipe_hash({"x": 1, "y": 2}) == recipe_hash({"y": 2, "x": 1})


def test_write_durable_respects_the_umask_and_leaves_no_temporary(tmp_path):
    old = os.umask(0o027)
    try:
        write_durable(tmp_path / "a" / "f.json", b"1")
        write_durable(tmp_path / "a" / "f.json", b"22")
    finally:
        os.umask(old)
    assert (tmp_path / "a" / "f.json").read_bytes() == b"22"
    assert (tmp_path / "a" / "f.json").stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path / "a") == ["f.json"]


# --------------------------------------------------------------------------------------- creation, opening


def test_tables_come_back(store):
    assert len(store) == 7
    for table, given in (("rows", sample_rows(7)), ("clips", sample_clips(7)), ("videos", VIDEOS)):
        read = getattr(store, table)
        assert set(read) == set(given)
        for name, column in given.items():
            np.testing.assert_array_equal(read[name], column)
            assert read[name].dtype == column.dtype
    assert store.texts is None and store.events is None
    with pytest.raises(KeyError, match="no column 'noun'"):
        store.clips["noun"]
    assert store.status().tolist() == [PENDING] * 7 and store.ok.tolist() == []


def test_optional_and_empty_tables(tmp_path):
    arrays = {"vector": ArraySpec((2,), "float32")}
    manifest = Manifest(arrays, plan_layout(arrays, 4, batch_size=1), {})
    texts = {"clip": np.zeros(2, np.int32), "caption": np.array(["put 人 down", ""], object)}
    labels = {"clip": np.zeros(0, np.int32), "label": np.array([], object)}
    rows, clips = sample_rows(0), sample_clips(0)
    store = create_store(tmp_path / "e.zarr", manifest, rows, clips, VIDEOS, texts=texts, labels=labels)
    assert len(store) == 0 and store.units == []
    assert store.texts["caption"].tolist() == ["put 人 down", ""]
    assert store.labels["label"].tolist() == []
    assert store.read("vector", []).shape == (0, 2)
    store.seal()
    assert verify(store.path) == []


def test_creation_keeps_the_first_store_and_leaves_nothing_beside_it(tmp_path):
    first = new_store(tmp_path / "s.zarr")
    fill(first)
    second = new_store(tmp_path / "s.zarr", recipe={"other": 1})
    assert second.manifest.recipe == first.manifest.recipe
    assert len(second.ok) == 7
    assert os.listdir(tmp_path) == ["s.zarr"]


def test_unfit_tables_are_refused(tmp_path):
    arrays = {"vector": ArraySpec((2,), "float32")}
    manifest = Manifest(arrays, plan_layout(arrays, 4, batch_size=1), {})
    with pytest.raises(ValueError, match="equal lengths"):
        create_store(tmp_path / "a.zarr", manifest, {**sample_rows(3), "k": np.zeros(2)}, sample_clips(3), VIDEOS)
    with pytest.raises(ValueError, match="mixes strings"):
        create_store(tmp_path / "a.zarr", manifest, sample_rows(1), {"id": np.array([1, "a"], object)}, VIDEOS)
    with pytest.raises(UserError, match="NAME.zarr"):
        create_store(tmp_path / "a.h5", manifest, sample_rows(3), sample_clips(3), VIDEOS)
    assert os.listdir(tmp_path) == []


def test_two_stores_of_one_recipe_are_equal_byte_for_byte(tmp_path):
    for name in "ab":
        store = new_store(tmp_path / f"{name}.zarr")
        order = store.units if name == "a" else store.units[::-1]
        fill(store, order, failed=(2, 5))
        store.write_provenance(f"run {name}", {"host": name})
        store.seal()
    assert same_tree(tmp_path / "a.zarr", tmp_path / "b.zarr") == []


def test_what_is_not_a_store_says_so(tmp_path):
    with pytest.raises(NotAStore, match="no store at"):
        open_store(tmp_path / "none.zarr")
    (tmp_path / "folder.zarr").mkdir()
    with pytest.raises(NotAStore, match="no zarr.json"):
        open_store(tmp_path / "folder.zarr")
    (tmp_path / "file.zarr").write_text("x")
    with pytest.raises(NotAStore, match="is a file"):
        open_store(tmp_path / "file.zarr")
    zarr.create_group(str(tmp_path / "other.zarr"))
    with pytest.raises(NotAStore, match="no manifest"):
        open_store(tmp_path / "other.zarr")
    (tmp_path / "other.zarr" / "x").write_text("x")
    (tmp_path / "other.zarr" / "zarr.json").unlink()
    with pytest.raises(NotAStore, match="is not empty"):
        new_store(tmp_path / "other.zarr")


def test_newer_format_and_edited_manifest_are_refused(store):
    root = json.loads((store.path / "zarr.json").read_text())
    root["attributes"]["clipbank"]["recipe"]["dtype"] = "float32"
    (store.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(DamagedStore, match="sha256"):
        open_store(store.path)
    root["attributes"]["clipbank"]["format"] = 2
    (store.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(UserError, match="update clipbank"):
        open_store(store.path)


def test_place_that_cannot_hold_a_store(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose a folder") as error:
        new_store(tmp_path / "file" / "s.zarr")
    assert error.value.exit_code == 2
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder: Is a directory; name a file in it"):
        write_durable(tmp_path / "folder", b"a file")
    assert list((tmp_path / "folder").iterdir()) == [] and len(list(tmp_path.iterdir())) == 2


# --------------------------------------------------------------------------------------- commit and read


def test_round_trip_of_every_dtype(store):
    fill(store, failed=(2,))
    rows = np.array([6, 0, 0, 5, 1])
    expected = values(store, rows)
    for name, spec in store.manifest.arrays.items():
        read = store.read(name, rows)
        assert read.dtype == spec.dtype and read.shape == (5, *spec.row_shape)
        np.testing.assert_array_equal(read, expected[name].astype(spec.dtype))
        np.testing.assert_array_equal(store.read(name, [3, 4, 5]), store.read(name, [5, 4, 3])[::-1])
    assert store.ok.tolist() == [0, 1, 3, 4, 5, 6]
    assert store.failures() == {2: ("damaged", "line one line two")}


def test_plain_zarr_reads_the_same(store):
    fill(store, failed=(2, 5))
    group = zarr.open_group(str(store.path), mode="r")
    ok = np.flatnonzero(group["rows/status"][:] == 1)
    assert ok.tolist() == store.ok.tolist()
    for name, spec in store.manifest.arrays.items():
        array = group[f"data/{name}"]
        np.testing.assert_array_equal(array.oindex[ok], store.read(name, ok))
        held = array[:]
        blank = np.isnan(held) if held.dtype.kind == "f" else held == spec.fill
        assert held.shape[0] == 8
        assert blank[[2, 5, 7]].all()
    assert list(group["videos/name"][:]) == VIDEOS["name"].tolist()
    assert group.attrs["clipbank"]["format"] == 1


def test_files_are_one_shard_a_unit_and_failed_rows_hold_no_chunk(store):
    fill(store, failed=(2,))
    for name, spec in ARRAYS.items():
        shards = sorted(path.name for path in (store.path / "data" / name).glob("c.*"))
        assert shards == [".".join(["c", str(i), *["0"] * len(spec.row_shape)]) for i in range(2)]
    shard = (store.path / "data/spatial/c.0.0.0.0").read_bytes()
    lengths = np.frombuffer(shard[-68:-4], "<u8")[1::2]
    assert (lengths == 2**64 - 1).tolist() == [False, False, True, False]
    metadata = json.loads((store.path / "data/spatial/zarr.json").read_text())
    assert metadata["fill_value"] == "NaN" and metadata["chunk_key_encoding"]["configuration"]["separator"] == "."
    codecs = metadata["codecs"][0]["configuration"]
    assert [codec["name"] for codec in codecs["codecs"]] == ["bytes", "zstd", "crc32c"]
    assert [codec["name"] for codec in codecs["index_codecs"]] == ["bytes", "crc32c"]
    for path in store.path.glob("*/*/zarr.json"):
        assert "crc32c" in path.read_text(), path


def test_rows_without_a_value_are_not_read(store):
    fill(store, store.units[:1], failed=(2,))
    with pytest.raises(RowNotReady, match=r"3 of 4 rows .* first row 6, pending.*run the extract command"):
        store.read("vector", [0, 6, 2, 5])
    with pytest.raises(LookupError, match=r"failed \(damaged: line one line two\)"):
        store.read("vector", [2])
    for name, spec in store.manifest.arrays.items():
        read = store.read(name, [5, 1, 2, 1], missing="nan")
        np.testing.assert_array_equal(read[1], store.read(name, [1])[0])
        blank = np.isnan(read) if read.dtype.kind == "f" else read == spec.fill
        assert blank[[0, 2]].all() and not blank[[1, 3]].all()
    with pytest.raises(UserError, match="no array 'map'"):
        store.read("map", [0])
    with pytest.raises(UserError, match="there is no row 7"):
        store.read("vector", [7])
    with pytest.raises(UserError, match="there is no row -1"):
        store.read("vector", [-1])


def test_a_reader_sees_rows_that_another_process_finished_later(store):
    fill(store, store.units[:1])
    reader = open_store(store.path)
    with pytest.raises(RowNotReady):
        reader.read("vector", [5])
    fill(store, store.units[1:])
    assert reader.read("vector", [5]).shape == (1, 7)


def test_outputs_that_cannot_be_stored_fail_their_row(store):
    arrays = values(store, range(4))
    arrays["vector"][0, 3] = np.nan
    arrays["vector"][1, 6] = 65520.0  # rounds to infinity; 65519 is the last that does not
    arrays["vector"][2, 6] = 65519.0
    arrays["boxes"][3, 1, 1] = np.inf
    assert store.commit(0, arrays, np.ones(4, int)).tolist() == [FAILED, FAILED, OK, FAILED]
    assert {row: code for row, (code, _) in store.failures().items()} == {
        0: "nan_output",
        1: "overflow",
        3: "overflow",
    }
    assert store.read("vector", [2])[0, 6] == 65504
    arrays = values(store, range(4, 7))
    arrays["classes"][0, 0] = -1
    arrays["classes"] = arrays["classes"].astype(np.int64)
    arrays["classes"][1, 2] = 2**40
    assert store.commit(1, arrays, np.ones(3, int)).tolist() == [FAILED, FAILED, OK]
    assert store.failures()[4][0] == "no_value" and store.failures()[5][0] == "overflow"
    assert verify(store.path) == []


def test_padding_counts_are_zero_unless_given(store):
    arrays = values(store, range(4))
    del arrays["n_padded"]
    store.commit(0, arrays, np.ones(4, int))
    assert store.read("n_padded", range(4)).tolist() == [0, 0, 0, 0]


def test_commit_refuses_what_does_not_fit(store):
    arrays, ok = values(store, range(4)), np.ones(4, int)
    with pytest.raises(ValueError, match="vector must be"):
        store.commit(0, {**arrays, "vector": arrays["vector"][:3]}, ok)
    with pytest.raises(ValueError, match="arrays must be"):
        store.commit(0, {k: v for k, v in arrays.items() if k != "vector"}, ok)
    with pytest.raises(ValueError, match="stored as int32"):
        store.commit(0, {**arrays, "classes": arrays["classes"].astype(float)}, ok)
    with pytest.raises(ValueError, match="failures must name"):
        store.commit(0, arrays, [1, 2, 1, 1])
    with pytest.raises(ValueError, match="status must be"):
        store.commit(0, arrays, [1, 1, 1])
    with pytest.raises(IndexError):
        store.commit(2, arrays, ok)
    assert store.status().tolist() == [PENDING] * 7


def test_ok_rows_keep_their_bytes_and_never_fail(store):
    fill(store, store.units[:1], failed=(1,))
    before = store.read("spatial", [0, 2, 3])
    other = values(store, range(4), salt=9)
    status = store.commit(0, other, [2, 1, 3, 0], {0: ("late", "x")})
    assert status.tolist() == [OK, OK, OK, OK]
    np.testing.assert_array_equal(store.read("spatial", [0, 2, 3]), before)
    np.testing.assert_array_equal(store.read("spatial", [1])[0], other["spatial"][1].astype(np.float16))
    assert store.failures() == {}
    assert not (store.path / "failures/0.json").exists()
    assert verify(store.path) == []


def test_commit_of_a_finished_unit_writes_nothing(store):
    fill(store)
    before = {path: path.stat().st_mtime_ns for path in store.path.rglob("*")}
    fill(store, salt=1)
    assert {path: path.stat().st_mtime_ns for path in store.path.rglob("*")} == before


# --------------------------------------------------------------------------------------------- rows by time


def test_rows_between_equals_a_plain_search(tmp_path):
    rng = np.random.default_rng(0)
    n = 200
    rows = sample_rows(n)
    rows["video"] = rng.integers(0, 3, n).astype(np.int32)
    rows["start_s"] = np.round(rng.random(n) * 20, 1)
    rows["stop_s"] = rows["start_s"] + np.round(rng.random(n) * 3, 1)
    arrays = {"vector": ArraySpec((2,), "float32")}
    manifest = Manifest(arrays, plan_layout(arrays, 16, batch_size=1), {})
    store = create_store(tmp_path / "t.zarr", manifest, rows, sample_clips(n), VIDEOS)
    centre = (rows["start_s"] + rows["stop_s"]) / 2
    video, t0 = rng.integers(0, 3, 50), np.round(rng.random(50) * 22, 1)
    t1 = t0 + rng.integers(-1, 6, 50)
    t0[0], t1[0] = centre[video[0] == rows["video"]][:1].item(), 30.0  # an edge that is exactly a centre
    found, offsets = store.rows_between_many(video, t0, t1)
    for q in range(50):
        inside = np.flatnonzero((rows["video"] == video[q]) & (centre >= t0[q]) & (centre < t1[q]))
        expected = inside[np.argsort(centre[inside], kind="stable")]
        assert found[offsets[q] : offsets[q + 1]].tolist() == expected.tolist()
        assert store.rows_between(VIDEOS["name"][video[q]], t0[q], t1[q]).tolist() == expected.tolist()
    with pytest.raises(UserError, match="no video 'P09'"):
        store.rows_between("P09", 0, 1)


def test_frame_rows_are_points(tmp_path):
    rows = sample_rows(12)
    rows["start_s"] = rows["stop_s"] = np.arange(12) * 0.5
    rows["video"][:] = 1
    arrays = {"vector": ArraySpec((2,), "float32")}
    manifest = Manifest(arrays, plan_layout(arrays, 16, batch_size=1), {})
    store = create_store(tmp_path / "f.zarr", manifest, rows, sample_clips(12), VIDEOS)
    assert store.rows_between(1, 1.0, 2.0).tolist() == [2, 3]
    assert store.rows_between("a/b ü", 5.5, 99).tolist() == [11]
    assert store.rows_between(0, 0, 99).tolist() == []


# ------------------------------------------------------------------------------------------ probes, seals


def test_probes_lie_inside_the_store_whatever_the_video_is_called(tmp_path):
    names = ["..", "/etc/passwd", "a/b", "a%2Fb", "a~b", "x" * 300, "x" * 299 + "y", "ü" * 100, "", " ", "A", "a"]
    arrays = {"vector": ArraySpec((2,), "float32")}
    manifest = Manifest(arrays, plan_layout(arrays, 16, batch_size=1), {})
    videos = {"name": np.array(names, object)}
    store = create_store(tmp_path / "p.zarr", manifest, sample_rows(3), sample_clips(3), videos)
    for i, name in enumerate(names):
        assert store.probe(name) is None
        store.write_probe(name, {"n": i, "geometry": [i, 1, 2, 3]})
    assert [store.probe(name)["n"] for name in names] == list(range(len(names)))
    assert len(list((store.path / "probes").iterdir())) == len(names)
    assert os.listdir(tmp_path) == ["p.zarr"]
    assert store.geometry("a/b") == [2.0, 1.0, 2.0, 3.0]
    assert store.write_probe("a", {"n": 99})["n"] == 11, "the first probe stays"


def test_seal_needs_every_row_and_fixes_the_store(store):
    fill(store, store.units[:1], failed=(2,))
    with pytest.raises(UserError, match="3 of 7 rows are pending, first row 4"):
        store.seal()
    fill(store, store.units[1:])
    store.write_probe("a/b ü", {"fps": 25.0, "n_frames": 3, "times": "container", "geometry": [1, 2, 3, 4]})
    assert store.geometry("a/b ü") == [1, 2, 3, 4]
    other = open_store(store.path)
    store.seal()
    assert store.sealed and store.manifest.seal["k"] == 1
    with pytest.raises(StoreSealed):
        other.commit(0, values(store, range(4)), np.ones(4, int))
    group = zarr.open_group(str(store.path), mode="r")
    assert group["sealed/1/status"][:7].tolist() == store.status().tolist() == [1, 1, 2, 1, 1, 1, 1]
    assert group["sealed/1/videos/n_frames"][:].tolist() == [-1, 3, -1]
    assert list(group["sealed/1/videos/times"][:]) == ["", "container", ""]
    listed = list(group["sealed/1/digests/path"][:])
    assert "data/vector/c.1.0" in listed and "failures/0.json" in listed and "zarr.json" not in listed
    fresh = open_store(store.path)
    assert fresh.geometry("a/b ü") == [1, 2, 3, 4]
    with pytest.raises(RowNotReady):
        fresh.geometry("..")
    np.testing.assert_array_equal(fresh.read("vector", [6]), store.read("vector", [6]))
    assert verify(store.path) == []


def test_unseal_and_seal_again(store):
    fill(store, failed=(2,))
    store.seal()
    before = (store.path / "zarr.json").read_bytes()
    store.unseal()
    assert not open_store(store.path).sealed
    store.seal()
    assert (store.path / "zarr.json").read_bytes() == before, "nothing changed: it is the same version"
    store.unseal()
    store.commit(0, values(store, range(4)), np.ones(4, int))
    store.seal()
    assert store.manifest.seal["k"] == 2 and len(store.ok) == 7
    assert sorted(os.listdir(store.path / "sealed")) == ["1", "2"]
    assert verify(store.path) == []


def test_dot_files_of_others_are_noted_and_no_part_of_a_seal(store):
    fill(store, failed=(2,))
    store.write_probe("..", {"fps": 25.0})  # of a video called "..": a dot-file that is ours
    strays = [".nfs0000001", "rows/.nfs0000002", "failures/._0.json", "provenance/.DS_Store", ".Trash/data/c.0"]
    for name in strays:
        (store.path / name).parent.mkdir(parents=True, exist_ok=True)
        (store.path / name).write_bytes(b"\x00not ours")
    store.seal()
    before = (store.path / "zarr.json").read_bytes()
    listed = list(zarr.open_group(str(store.path), mode="r")["sealed/1/digests/path"][:])
    assert "probes/...json" in listed and not set(strays) & set(listed)
    late = ["data/vector/.nfs0000003", "sealed/1/.DS_Store"]
    for name in late:
        (store.path / name).write_bytes(b"not ours")
    for quick in (False, True):
        assert {(f.severity, f.path) for f in verify(store.path, quick)} == {("note", n) for n in strays + late}
    for name in strays[1:]:
        (store.path / name).unlink()
    store.unseal()
    store.seal()
    assert (store.path / "zarr.json").read_bytes() == before, "it is the same version, whatever lies beside it"
    assert list(store.failures()) == [2]
    store.unseal()
    (store.path / "rows/notes.txt").write_bytes(b"a file that somebody put there")
    with pytest.raises(DamagedStore, match="rows/notes.txt does not belong to a store"):
        store.seal()


def test_info(store):
    fill(store, store.units[:1], failed=(2,))
    store.write_provenance("2026 run/1", {"host": "here"})
    facts = json.loads(json.dumps(info(store.path)))
    assert facts["rows"] == {"total": 7, "ok": 3, "failed": 1, "absent": 0, "pending": 3, "coverage": 0.428571}
    assert facts["failures"] == {"damaged": 1}
    assert facts["arrays"]["spatial"]["plain_bytes"] == 3 * 4 * 4 * 2048 * 2
    assert facts["arrays"]["spatial"]["stored_bytes"] == (store.path / "data/spatial/c.0.0.0.0").stat().st_size
    assert list(facts["provenance"].values()) == [{"host": "here"}]


# ---------------------------------------------------------------------------------------------- processes


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_importing_and_reading_loads_no_torch_and_opens_nothing(store):
    fill(store)
    code = (
        "import sys, stores; import stores.reader, stores.maintain\n"
        "assert not {'torch', 'tensorstore', 'zarr'} & set(sys.modules), 'import opens something'\n"
        "s = stores.open_store(sys.argv[1]); s.status(); s.clips['id']; s.rows_between(0, 0, 9)\n"
        "assert 'tensorstore' not in sys.modules, 'tables need no threads'\n"
        "s.read('vector', [0]); stores.verify(sys.argv[1])\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = run_python(code, str(store.path))
    assert done.returncode == 0, done.stderr


def test_a_fork_after_a_read_is_told_what_to_do_and_before_it_works(store):
    fill(store)
    code = (
        "import os, sys, stores\n"
        "s = stores.open_store(sys.argv[1]); s.status(); s.clips['id']\n"
        "def child():\n"
        "    pid = os.fork()\n"
        "    if pid: return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "    try: s.read('vector', [0])\n"
        "    except stores.reader.UserError as e: os._exit(7 if 'spawn' in str(e) else 8)\n"
        "    os._exit(0)\n"
        "assert child() == 0\n"
        "s.read('vector', [0])\n"
        "assert child() == 7\n"
    )
    done = run_python(code, str(store.path))
    assert done.returncode == 0, done.stderr


def test_a_store_can_be_sent_to_another_process(store):
    fill(store)
    store.read("vector", [0])
    again = sent_to_a_worker(store)
    np.testing.assert_array_equal(again.read("vector", [3]), store.read("vector", [3]))


def test_public_names_exist():
    for name in set(stores.__all__) - {"ClipDataset"}:
        assert getattr(stores, name) is not None
    with pytest.raises(AttributeError):
        stores.no_such_name  # noqa: B018
