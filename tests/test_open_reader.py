"""A reader that is open while its store changes: it stays the version it opened, or says that it cannot."""

import shutil
import threading

import numpy as np
import pytest

from stores import ArraySpec, DamagedStore, RowNotReady, extend, extensions, open_store, pack, reset_rows
from stores import version as version_module
from stores.relabel import relabel
from stores.row_cache import RowCache
from stores.serve import make_server
from stores.version import StoreChanged
from tests.store_samples import VIDEOS, fill, new_store, sample_clips, sample_rows, values

ARRAYS = {"spatial": ArraySpec((2, 16400), "float16"), "vector": ArraySpec((3,), "float32")}
FACTS = {"fps": 25.0, "geometry": [1.0, 2.0, 3.0, 4.0]}
ROWS = 12
REPLACED = VIDEOS["name"][1]


@pytest.fixture(params=("zarr", "http"))
def place(request, tmp_path):
    """(path of a store to make, its address for a reader)."""
    server = make_server(tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    path = tmp_path / "s.zarr"
    yield path, str(path) if request.param == "zarr" else f"{server.url}s.zarr"
    server.shutdown()
    server.server_close()


@pytest.fixture
def watchful(monkeypatch):
    """Readers look at every read whether the store has changed."""
    monkeypatch.setattr(version_module, "LOOK_S", 0)


def made(path, sealed=True, failed=(2,), salt=0, recipe=None):
    store = new_store(path, ROWS, unit_rows=4, arrays=ARRAYS, recipe=recipe)
    for name in VIDEOS["name"]:
        store.write_probe(name, {**FACTS, "content_hash": f"sha256:{salt}"})
    fill(store, failed=failed, salt=salt)
    if sealed:
        store.seal()
    return store


def captions(n):
    return {"clip": np.arange(n, dtype=np.int32) % ROWS, "caption": np.array([f"{n} {i}" for i in range(n)], object)}


def new_labels(path):
    clips = {"id": sample_clips(ROWS)["id"], "verb": np.arange(ROWS, dtype=np.int32) + 100}
    relabel(path, clips, texts=captions(5))


def opened(store):
    """The columns as a relabelling before did not leave them; an error that says so counts as well."""
    found = []
    for table, column in (("clips", "verb"), ("texts", "clip"), ("texts", "caption")):
        try:
            found.append(getattr(store, table)[column].tolist())
        except StoreChanged as error:
            assert "open it again" in str(error).lower()
            found.append(None)
    return found


# ------------------------------------------------------------------------------------------ labels and growth


def test_labels_replaced_under_a_reader_are_never_mixed(place):
    path, address = place
    made(path)
    relabel(path, {"id": sample_clips(ROWS)["id"]}, texts=captions(9))
    first = open_store(address)
    old, sealed_as = opened(first), first.manifest.seal["k"]
    reader, half = open_store(address), open_store(address)
    assert half.clips["verb"].tolist() == old[0]
    new_labels(path)
    for store in (reader, half):
        for was, now in zip(old, opened(store), strict=True):
            assert now in (was, None)
        assert now == was or address != str(path), "a folder has all that it needs"
        assert store.rows["start_s"].tolist() == sample_rows(ROWS)["start_s"].tolist(), "what was not replaced stays"
        assert store.manifest.seal["k"] == sealed_as and store.ok.tolist() == [0, 1, *range(3, ROWS)]
    assert half.clips["verb"].tolist() == old[0]
    again = open_store(address)
    assert opened(again)[0] == list(range(100, 100 + ROWS)) and len(again.texts["clip"]) == 5


@pytest.mark.parametrize("sealed", (True, False))
def test_labels_half_replaced_are_never_read(place, monkeypatch, sealed):
    """Whatever write of a relabelling was the last so far."""
    path, address = place
    made(path, sealed)
    relabel(path, {"id": sample_clips(ROWS)["id"]}, texts=captions(9))
    kept, steps, done = path.with_name("kept"), extensions._steps, []
    shutil.copytree(path, kept)
    old = opened(open_store(address))
    monkeypatch.setattr(extensions, "_steps", lambda *a: (done.append(1) or step for step in steps(*a)))
    new_labels(path)
    new = opened(open_store(address))
    assert None not in old + new and all(a != b for a, b in zip(old, new, strict=True))
    for last in range(len(done)):
        shutil.rmtree(path)
        shutil.copytree(kept, path)
        reader, left = open_store(address), iter(range(last))

        def some(*args, left=left):
            for step in steps(*args):
                if next(left, None) is None:
                    raise KeyboardInterrupt
                yield step

        monkeypatch.setattr(extensions, "_steps", some)
        with pytest.raises(KeyboardInterrupt):
            new_labels(path)
        for store in (reader, open_store(address)):
            assert all(now in (was, None) for was, now in zip(old, opened(store), strict=True)), last


def test_growth_under_a_reader_changes_nothing_of_it(place, watchful):
    path, address = place
    made(path)
    reader = open_store(address)
    expected = reader.read("vector", [0, 11])
    grown = extend(path, sample_rows(20), sample_clips(20), VIDEOS)
    fill(grown, grown.units[3:])
    assert len(reader) == ROWS and reader.clips["id"].tolist() == sample_clips(ROWS)["id"].tolist()
    assert reader.rows["start_s"].tolist() == sample_rows(ROWS)["start_s"].tolist()
    np.testing.assert_array_equal(reader.read("vector", [0, 11]), expected)
    grown.seal()
    assert reader.ok.tolist() == [0, 1, *range(3, ROWS)] and reader.rows["video"].shape == (ROWS,)
    np.testing.assert_array_equal(reader.read("vector", [0, 11]), expected)
    assert len(open_store(address)) > ROWS


# ------------------------------------------------------------------------------------------------------ values


def test_a_shard_replaced_under_a_reader_is_read_by_its_own_index(place, watchful):
    """Chunks of equal length one place further on: by the old index, every row would be another's."""
    path, address = place
    store = new_store(path, 4, unit_rows=4, arrays={"spatial": ArraySpec((2, 16400), "float16")})
    noise = np.random.default_rng(0).integers(0, 2**16, (4, 2, 16400)).astype(np.uint16) & 0xBBFF
    noise = noise.view(np.float16)
    assert np.isfinite(noise).all()
    store.commit(0, {"spatial": noise}, [1, 2, 1, 1], {1: ("damaged", "x")})
    reader = open_store(address)
    np.testing.assert_array_equal(reader.read("spatial", [0]), noise[:1])
    store.commit(0, {"spatial": noise}, [1] * 4)
    for rows in ([2], [3, 1], [0, 1, 2, 3]):
        np.testing.assert_array_equal(reader.read("spatial", rows), noise[rows])


@pytest.mark.parametrize("sealed", (True, False))
def test_rows_that_failed_are_extracted_again_under_a_reader(place, watchful, sealed):
    path, address = place
    store = made(path, sealed)
    reader = open_store(address)
    for name in ARRAYS:
        reader.read(name, [0])
    if sealed:
        store.unseal()
    fill(store)
    wanted = values(store, range(4))
    for name, spec in ARRAYS.items():
        np.testing.assert_array_equal(reader.read(name, [1, 3]), wanted[name][[1, 3]].astype(spec.dtype))
        if sealed:
            with pytest.raises(RowNotReady):
                reader.read(name, [2])
        else:
            np.testing.assert_array_equal(reader.read(name, [2]), wanted[name][[2]].astype(spec.dtype))
    if sealed:
        store.seal()
        for name, spec in ARRAYS.items():
            np.testing.assert_array_equal(reader.read(name, [1, 3]), wanted[name][[1, 3]].astype(spec.dtype))
        assert open_store(address).ok.tolist() == list(range(ROWS))


def test_a_video_that_was_replaced_under_a_reader(place, watchful):
    path, address = place
    store = made(path, failed=())
    reader, later = open_store(address), open_store(address)
    theirs = np.flatnonzero(store.rows["video"] == 1)
    others = np.flatnonzero(store.rows["video"] == 0)
    expected = reader.read("vector", others)
    later.status()
    store.unseal()
    reset_rows(store, theirs, "the video changed")
    with pytest.raises(StoreChanged, match="opened as version 1: open it again"):
        later.read("spatial", theirs)
    store.write_probe(REPLACED, {**FACTS, "content_hash": "sha256:other"}, replace=True)
    fill(store, salt=1)
    store.seal()
    for one in (reader, later):
        with pytest.raises(StoreChanged, match="opened as version 1: open it again"):
            one.read("vector", theirs[:1])
        np.testing.assert_array_equal(one.read("vector", others), expected)
    again = open_store(address)
    np.testing.assert_array_equal(again.read("vector", theirs), values(store, theirs, 1)["vector"].astype(np.float32))


def test_rows_that_were_reset_in_a_store_at_work(place):
    path, address = place
    store = made(path, sealed=False, failed=())
    reader = open_store(address)
    reader.status()
    reset_rows(store, [5], "damaged")
    with pytest.raises(RowNotReady, match="first row 5, pending"):
        reader.read("spatial", [4, 5])


def test_another_store_in_the_place_of_this_one(place, watchful):
    path, address = place
    made(path)
    reader = open_store(address)
    reader.read("vector", [0])
    shutil.rmtree(path)
    made(path, recipe={"network": {"name": "another"}, "dtype": "float16"}, salt=3)
    with pytest.raises(StoreChanged, match="another store lies at .*s.zarr"):
        reader.read("vector", [1])


def test_damage_is_still_damage(place, watchful):
    path, address = place
    store = made(path)
    reader = open_store(address)
    reader.read("vector", [0])
    (path / store._files.shard_name("vector", 1)).unlink()
    with pytest.raises(DamagedStore, match=r"c\.1\.0 is missing"):
        reader.read("vector", [5])


def test_readers_look_now_and_then(place, monkeypatch):
    """Not at every read: over a network that is a request."""
    path, address = place
    made(path)
    reader, looks = open_store(address), []
    look = version_module.Watch._look
    monkeypatch.setattr(version_module.Watch, "_look", lambda self: looks.append(1) or look(self))
    for _ in range(5):
        reader.read("vector", [0])
    assert not looks
    monkeypatch.setattr(version_module, "LOOK_S", 0)
    reader.read("vector", [0])
    assert looks == [1]


def test_an_hdf5_store_stays_what_it_is_while_it_is_open(tmp_path, watchful):
    store = made(tmp_path / "s.zarr")
    pack(store.path, tmp_path / "s.h5")
    reader = open_store(tmp_path / "s.h5")
    expected = reader.read("vector", [1])
    other = made(tmp_path / "other.zarr", salt=2)
    pack(other.path, tmp_path / "s.h5.new.h5")
    (tmp_path / "s.h5.new.h5").replace(tmp_path / "s.h5")
    np.testing.assert_array_equal(reader.read("vector", [1, 3])[:1], expected)
    np.testing.assert_array_equal(reader.read("spatial", [4]), store.read("spatial", [4]))
    assert (open_store(tmp_path / "s.h5").read("vector", [1]) != expected).any()


def test_rows_kept_in_memory_are_those_of_the_version_opened(place, watchful):
    path, address = place
    store = made(path)
    reader = open_store(address)
    cache = RowCache([(reader, "vector", None)], 1 << 20)
    assert cache.nbytes == ROWS * 12
    expected = reader.read("vector", [4, 5])
    store.unseal()
    fill(store)
    store.seal()
    np.testing.assert_array_equal(cache.read(reader, "vector", np.array([4, 5])), expected)
    with pytest.raises(RowNotReady):
        cache.read(reader, "vector", np.array([2]))
    fresh = open_store(address)
    again = RowCache([(fresh, "vector", None)], 1 << 20).read(fresh, "vector", np.array([2]))
    np.testing.assert_array_equal(again, values(store, [2])["vector"].astype(np.float32))
