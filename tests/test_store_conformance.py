"""One suite for every backend: a Zarr folder, the same store packed in HDF5, and the folder served over HTTP.

What a store says is compared with what was put in, and with plain zarr-python and h5py, which know nothing of ours.
"""

import os
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from errors import UserError
from stores import ArraySpec, Manifest, RowNotReady, create_store, extend, open_store, pack, plan_layout
from stores.serve import make_server
from tests.store_samples import ARRAYS, VIDEOS, fill, new_store, sample_clips, sample_rows, sent_to_a_worker, values

ROOT = Path(__file__).resolve().parents[1]
BACKENDS = ("zarr", "h5", "http")
FAILED_ROWS = (2, 5)
ROWS = 11


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(root folder, URL): whatever is put into the folder is served."""
    root = tmp_path_factory.mktemp("served")
    server = make_server(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield root, server.url
    server.shutdown()
    server.server_close()


class Place:
    """Where the stores of one backend lie, and how plain libraries read them."""

    def __init__(self, backend: str, root: Path, url: str):
        self.backend, self.root, self.url = backend, root, url

    def publish(self, name: str) -> str:
        """The address of a store that was made as root/name.zarr."""
        folder = self.root / f"{name}.zarr"
        if self.backend == "h5" and not folder.with_suffix(".h5").exists():
            pack(folder, folder.with_suffix(".h5"))
        return {"zarr": str(folder), "h5": str(folder.with_suffix(".h5")), "http": f"{self.url}{name}.zarr"}[
            self.backend
        ]

    def raw(self, name: str, array: str) -> np.ndarray:
        """A whole array of root/name, read by plain zarr-python or h5py."""
        if self.backend == "h5":
            with h5py.File(self.root / f"{name}.h5") as file:
                found = file[array]
                return found.asstr()[:] if h5py.check_string_dtype(found.dtype) else found[:]
        source = (
            f"{self.url}{name}.zarr" if self.backend == "http" and has_fsspec_http() else self.root / f"{name}.zarr"
        )
        return np.asarray(zarr.open_group(str(source), mode="r")[array][:])


def has_fsspec_http() -> bool:
    try:
        import aiohttp  # noqa: F401
        import fsspec  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.fixture(scope="module", params=BACKENDS)
def place(request, served) -> Place:
    return Place(request.param, *served)


@pytest.fixture(scope="module")
def address(place) -> str:
    """A sealed store of 11 rows in three units, two of them failed; its source is root/full.zarr."""
    if not (place.root / "full.zarr").exists():
        store = new_store(place.root / "full.zarr", ROWS)
        store.write_probe("a/b ü", {"fps": 25.0, "n_frames": 9, "geometry": [1.0, 2.0, 3.0, 4.0]})
        fill(store, failed=FAILED_ROWS)
        store.seal()
    return place.publish("full")


@pytest.fixture
def store(address):
    return open_store(address)


@pytest.fixture(scope="module")
def partial(place):
    """A store with one unit committed of three; not sealed."""
    if not (place.root / "partial.zarr").exists():
        store = new_store(place.root / "partial.zarr", ROWS)
        fill(store, store.units[:1], failed=(1,))
    return open_store(place.publish("partial"))


# ------------------------------------------------------------------------------------------------- content


def test_what_it_is(store, address):
    assert str(store.path) == address and store.sealed and len(store) == ROWS
    assert set(store.manifest.arrays) == {*ARRAYS, "n_padded"}
    assert store.manifest.recipe["dtype"] == "float16"
    assert [len(unit) for unit in store.units] == [4, 4, 3]
    assert store.path.name.startswith("full.")


def test_values_order_and_dtype(store):
    rows = np.array([10, 0, 0, 7, 3, 1])
    expected = values(store, rows)
    for name, spec in store.manifest.arrays.items():
        read = store.read(name, rows)
        assert read.dtype == spec.dtype and read.shape == (6, *spec.row_shape)
        np.testing.assert_array_equal(read, expected[name].astype(spec.dtype))
        np.testing.assert_array_equal(store.read(name, [8, 9, 10]), store.read(name, [10, 9, 8])[::-1])
        assert store.read(name, []).shape == (0, *spec.row_shape)
        assert read.flags.c_contiguous and read.flags.writeable


def test_plain_libraries_read_the_same(store, place):
    status = place.raw("full", "rows/status")
    ok = np.flatnonzero(status == 1)
    assert ok.tolist() == store.ok.tolist() and len(status) == 12, "padded to whole units"
    for name, spec in store.manifest.arrays.items():
        raw = place.raw("full", f"data/{name}")
        assert raw.dtype == spec.dtype and raw.shape == (12, *spec.row_shape)
        np.testing.assert_array_equal(raw[ok], store.read(name, ok))
        blank = np.isnan(raw) if raw.dtype.kind == "f" else raw == spec.fill
        assert blank[[2, 5, 11]].all(), "rows that are not ok hold no value"
        assert np.isnan(spec.fill) or (raw[[2, 5, 11]] == spec.fill).all()
    assert place.raw("full", "clips/id").tolist() == store.clips["id"].tolist()
    assert place.raw("full", "videos/name").tolist() == store.videos["name"].tolist()


def test_tables(store):
    for table, given in (("rows", sample_rows(ROWS)), ("clips", sample_clips(ROWS)), ("videos", VIDEOS)):
        read = getattr(store, table)
        assert set(read) == set(given)
        for name, column in given.items():
            np.testing.assert_array_equal(read[name], column)
            assert read[name].dtype == column.dtype
            assert not read[name].flags.writeable
    assert store.texts is None and store.events is None
    with pytest.raises(KeyError, match="no column 'noun'"):
        store.clips["noun"]


def test_status_and_failures(store, partial):
    assert store.status().tolist() == [1, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1]
    assert store.status(1).tolist() == [1, 2, 1, 1] and store.status(2).tolist() == [1, 1, 1]
    assert store.failures() == {row: ("damaged", "line one line two") for row in FAILED_ROWS}
    assert partial.status().tolist() == [1, 2, 1, 1, *[0] * 7] and partial.failures().keys() == {1}
    assert partial.status(1).tolist() == [0] * 4 and not partial.sealed
    assert partial.ok.tolist() == [0, 2, 3]


def test_rows_that_are_not_ready(store, partial):
    with pytest.raises(RowNotReady, match=r"2 of 3 rows .*first row 2, failed \(damaged: line one line two\)"):
        store.read("vector", [0, 2, 5])
    with pytest.raises(RowNotReady, match="first row 4, pending"):
        partial.read("spatial", [0, 4])
    with pytest.raises(UserError, match="there is no row 11"):
        store.read("vector", [11])
    with pytest.raises(UserError, match="no array 'x'"):
        store.read("x", [0])
    for name, spec in store.manifest.arrays.items():
        read = partial.read(name, [9, 0, 1, 3], missing="nan")
        np.testing.assert_array_equal(read[[1, 3]], partial.read(name, [0, 3]))
        blank = np.isnan(read[[0, 2]]) if read.dtype.kind == "f" else read[[0, 2]] == spec.fill
        assert blank.all()


def test_rows_by_time(store):
    assert store.rows_between("P01_01", 1.0, 3.0).tolist() == [1, 2]
    assert store.rows_between("a/b ü", 0, 99).tolist() == [4, 5, 6, 7]
    rows, offsets = store.rows_between_many(["..", 0], [0, 0], [2, 1])
    assert rows.tolist() == [8, 9, 0] and offsets.tolist() == [0, 2, 3]
    with pytest.raises(UserError, match="no video 'P09'"):
        store.rows_between("P09", 0, 1)


def test_probes_and_geometry(store):
    assert store.probe("a/b ü") == {"fps": 25.0, "n_frames": 9, "geometry": [1.0, 2.0, 3.0, 4.0]}
    assert store.probe("P01_01") is None and store.probe("..") is None
    assert store.geometry(1) == [1.0, 2.0, 3.0, 4.0]
    with pytest.raises(RowNotReady, match="no geometry of video"):
        store.geometry("..")


def test_other_tables_strings_and_empty_stores(place):
    arrays = {"vector": ArraySpec((2,), "float32"), "picture": ArraySpec((2, 3), "uint8")}
    manifest = Manifest(arrays, plan_layout(arrays, 4, batch_size=1), {"a": [1, None, "ü"]})
    texts = {"clip": np.arange(3, dtype=np.int32), "caption": np.array(["put 人 down", "", "a" * 5000], object)}
    labels = {"clip": np.zeros(0, np.int32), "label": np.array([], object)}
    for n in (0, 2):
        if not (place.root / f"texts{n}.zarr").exists():
            made = create_store(
                place.root / f"texts{n}.zarr", manifest, sample_rows(n), sample_clips(n), VIDEOS, texts, labels
            )
            for unit in made.units:  # a picture may be all black
                black = {"vector": np.ones((2, 2), np.float32), "picture": np.zeros((2, 2, 3), np.uint8)}
                made.commit(unit, black, [1, 1])
        store = open_store(place.publish(f"texts{n}"))
        assert len(store) == n and store.manifest.recipe == {"a": [1, None, "ü"]}
        assert store.texts["caption"].tolist() == texts["caption"].tolist()
        assert store.labels["label"].tolist() == [] and store.labels["clip"].dtype == np.int32
        assert store.read("picture", range(n)).tolist() == [[[0] * 3] * 2] * n
        np.testing.assert_array_equal(place.raw(f"texts{n}", "texts/caption"), texts["caption"])


def test_ragged_text(place):
    """UTF-8 JSON in uint8 rows, padded by zeros."""
    words = ["[]", '["put", "人"]', '{"a": 1}']
    if not (place.root / "ragged.zarr").exists():
        made = new_store(place.root / "ragged.zarr", 3, arrays={"text": ArraySpec((24,), "uint8")})
        held = np.zeros((3, 24), np.uint8)
        for row, word in enumerate(words):
            held[row, : len(word.encode())] = np.frombuffer(word.encode(), np.uint8)
        made.commit(0, {"text": held}, [1, 1, 1])
    read = open_store(place.publish("ragged")).read("text", [2, 0, 1])
    assert [bytes(row).rstrip(b"\0").decode() for row in read] == [words[2], words[0], words[1]]


def test_a_store_that_has_grown(place):
    """Padding between extents is hidden, and rows keep their numbers."""
    if not (place.root / "grown.zarr").exists():
        made = new_store(place.root / "grown.zarr", 3, arrays={"vector": ArraySpec((3,), "float32")})
        fill(made)
        rows, clips = sample_rows(6), sample_clips(6)
        for table in (rows, clips):
            table["video"] = np.array([0, 1, 2, 0, 1, 2], np.int32)
        fill(extend(made.path, rows, clips, VIDEOS))
    store = open_store(place.publish("grown"))
    assert store.manifest.extents == ((0, 3), (4, 3)) and len(store) == 7
    assert store.status().tolist() == [1, 1, 1, 0, 1, 1, 1]
    rows = [0, 1, 2, 4, 5, 6]
    np.testing.assert_array_equal(store.read("vector", rows), values(store, rows)["vector"].astype(np.float32))
    assert len(store.rows["video"]) == 7 and sorted(store.rows_between("P01_01", 0, 99).tolist()) == [0, 4]
    assert store.clips["id"].tolist() == sample_clips(6)["id"].tolist()


# ------------------------------------------------------------------------------------- writing, processes


def test_only_a_folder_is_written(place, store):
    if place.backend == "zarr":
        return
    for write in (
        lambda: store.commit(0, values(store, range(4)), [1] * 4),
        lambda: store.write_probe(0, {"fps": 1.0}),
        lambda: store.write_provenance("run", {}),
        store.seal,
        store.unseal,
    ):
        with pytest.raises(UserError, match="cannot be written"):
            write()
    with pytest.raises(UserError, match="NAME.zarr"):
        create_store(str(store.path), store.manifest, sample_rows(3), sample_clips(3), VIDEOS)


def test_pickle(store):
    store.read("vector", [0])
    again = sent_to_a_worker(store)
    assert str(again.path) == str(store.path)
    np.testing.assert_array_equal(again.read("vector", [3]), store.read("vector", [3]))


def test_threads(store):
    expected, problems = store.read("spatial", store.ok), []

    def work(seed):
        try:
            for _ in range(5):
                order = np.random.default_rng(seed).permutation(len(store.ok))
                np.testing.assert_array_equal(store.read("spatial", store.ok[order]), expected[order])
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_a_forked_process_reads_or_is_told_what_to_do(store, address):
    """Handles are never used across a fork: HDF5 opens its own, tensorstore refuses. Nothing hangs."""
    code = (
        "import os, sys, stores\n"
        "s = stores.open_store(sys.argv[1]); want = s.read('vector', [0, 7]).tolist()\n"
        "pid = os.fork()\n"
        "if not pid:\n"
        "    try: os._exit(0 if s.read('vector', [0, 7]).tolist() == want else 9)\n"
        "    except stores.reader.UserError as e: os._exit(7 if 'spawn' in str(e) else 8)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "assert s.read('vector', [0, 7]).tolist() == want\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, address], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == (0 if address.endswith(".h5") else 7), done.stderr


def test_reading_loads_no_torch(address):
    code = (
        "import sys, stores; s = stores.open_store(sys.argv[1]); s.read('vector', [0]); s.clips['id']\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, address], cwd=ROOT, env=os.environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_clip_dataset_reads_any_backend(store, address):
    from stores import ClipDataset

    for given in (address, store):
        dataset = ClipDataset({"verb": given}, arrays={"verb": ["vector"]})
        batch = dataset.batch([6, 0])
        np.testing.assert_array_equal(batch["verb"]["vector"], store.read("vector", dataset_rows(dataset, [6, 0])))


def dataset_rows(dataset, items) -> np.ndarray:
    return dataset._rows["verb"][items]
