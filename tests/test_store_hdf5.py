"""Packed stores: made whole or not at all, given back byte for byte, and damage to them noticed."""

import os
import random
import time

import h5py
import numpy as np
import pytest

import stores.hdf5_pack
from errors import MachineError, UserError
from stores import ArraySpec, DamagedStore, NotAStore, open_store, pack, unpack, verify
from tests.store_samples import fill, new_store, same_tree

SMALL = {
    "spatial": ArraySpec((2, 16400), "float16"),  # one row a chunk
    "vector": ArraySpec((3,), "float32"),
    "text": ArraySpec((16,), "uint8"),
}


def finished(path, failed=(2,), sealed=True):
    store = new_store(path, 7, unit_rows=4, arrays=SMALL)
    store.write_probe("a/b ü", {"fps": 25.0, "geometry": [1.0, 2.0, 3.0, 4.0]})
    store.write_provenance("run 1", {"host": "here"})
    fill(store, failed=failed)
    if sealed:
        store.seal()
    return store


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("source") / "s.zarr")


@pytest.fixture
def packed(source, tmp_path):
    pack(source.path, tmp_path / "s.h5")
    return tmp_path / "s.h5"


def errors_of(path, **options) -> list[str]:
    return [finding.path for finding in verify(path, **options) if finding.severity == "error"]


# --------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("compression", ["none", "gzip", "lzf"])
def test_a_packed_store_comes_back_byte_for_byte(source, tmp_path, compression):
    calls = []
    pack(source.path, tmp_path / "s.h5", compression, progress=lambda *done: calls.append(done))
    assert calls == [(1, 2), (2, 2)] and os.listdir(tmp_path) == ["s.h5"]
    assert verify(tmp_path / "s.h5") == [] and verify(tmp_path / "s.h5", quick=True) == []
    unpack(tmp_path / "s.h5", tmp_path / "back.zarr")
    assert same_tree(source.path, tmp_path / "back.zarr") == []
    assert open_store(tmp_path / "back.zarr").manifest == source.manifest
    assert verify(tmp_path / "back.zarr") == []
    assert sorted(os.listdir(tmp_path)) == ["back.zarr", "s.h5"]
    assert list((tmp_path / "back.zarr/provenance").iterdir())


def test_packing_twice_gives_the_same_bytes(source, tmp_path):
    for name in "ab":
        pack(source.path, tmp_path / f"{name}.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_unfinished_units_stay_pending(tmp_path):
    store = new_store(tmp_path / "s.zarr", 7, unit_rows=4, arrays=SMALL)
    fill(store, store.units[:1], failed=(1,))
    pack(store.path, tmp_path / "s.h5")
    assert open_store(tmp_path / "s.h5").status().tolist() == [1, 2, 1, 1, 0, 0, 0]
    assert verify(tmp_path / "s.h5") == []
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["data/spatial"].id.get_num_chunks() == 3, "rows that are not ok are not stored"
        assert np.isnan(file["data/spatial"][4:]).all()
    unpack(tmp_path / "s.h5", tmp_path / "back.zarr")
    fill(open_store(tmp_path / "back.zarr"))
    assert len(open_store(tmp_path / "back.zarr").ok) == 7


def test_a_folder_that_cannot_be_the_same_bytes_is_sealed_anew(packed, source, tmp_path, monkeypatch):
    """Another version of the compressor: the values are the same, the digests of the old seal are not."""
    encode = stores.hdf5_pack.encode_shard

    def encode_otherwise(metadata, values, held):
        return encode(metadata, values, np.ones_like(held)) if values.ndim == 3 else encode(metadata, values, held)

    monkeypatch.setattr(stores.hdf5_pack, "encode_shard", encode_otherwise)
    unpack(packed, tmp_path / "back.zarr")
    back = open_store(tmp_path / "back.zarr")
    assert back.manifest.seal["k"] == 2 and verify(back.path) == []
    np.testing.assert_array_equal(back.read("spatial", back.ok), source.read("spatial", source.ok))


# --------------------------------------------------------------------------------------------- whole or not


def test_what_cannot_be_packed_says_so(source, packed, tmp_path):
    with pytest.raises(UserError, match="exists: move it away"):
        pack(source.path, packed)
    with pytest.raises(UserError, match="named NAME.h5"):
        pack(source.path, tmp_path / "s.zip")
    with pytest.raises(UserError, match="only a folder"):
        pack(packed, tmp_path / "t.h5")
    with pytest.raises(UserError, match="--compression"):
        pack(source.path, tmp_path / "t.h5", "zstd")
    with pytest.raises(NotAStore):
        pack(tmp_path / "none.zarr", tmp_path / "t.h5")
    with pytest.raises(UserError, match="named NAME.zarr"):
        unpack(packed, tmp_path / "t.h5")
    unpack(packed, tmp_path / "back.zarr")
    with pytest.raises(UserError, match="exists: move it away"):
        unpack(packed, tmp_path / "back.zarr")
    assert sorted(os.listdir(tmp_path)) == ["back.zarr", "s.h5"]


@pytest.mark.parametrize("work", ["pack", "unpack"])
def test_an_error_midway_leaves_nothing(packed, source, tmp_path, monkeypatch, work):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stores.hdf5_pack, "little_endian" if work == "pack" else "sync_tree", fail)
    with pytest.raises(MachineError, match="no space left"):
        if work == "pack":
            pack(source.path, tmp_path / "t.h5")
        else:
            unpack(packed, tmp_path / "t.zarr")
    assert os.listdir(tmp_path) == ["s.h5"]


def test_a_store_that_changes_meanwhile_is_not_packed(tmp_path, monkeypatch):
    store = finished(tmp_path / "s.zarr", sealed=False)
    arrays = stores.hdf5_pack._Writer.arrays

    def seal_meanwhile(*arguments):
        store.seal()
        return arrays(*arguments)

    monkeypatch.setattr(stores.hdf5_pack._Writer, "arrays", seal_meanwhile)
    with pytest.raises(MachineError, match="changed while it was packed"):
        pack(store.path, tmp_path / "s.h5")
    assert os.listdir(tmp_path) == ["s.zarr"]


def test_damage_to_the_source_is_not_packed(tmp_path):
    store = finished(tmp_path / "s.zarr", sealed=False)
    (store.path / "data/vector/c.1.0").unlink()
    with pytest.raises(DamagedStore, match=r"c\.1\.0 is missing"):
        pack(store.path, tmp_path / "s.h5")
    assert os.listdir(tmp_path) == ["s.zarr"]


# ------------------------------------------------------------------------------------------------- damage


def readable(path):
    """Everything that a reader would get, or the error that it gets."""
    try:
        store = open_store(path)
        arrays = {name: store.read(name, store.ok).tobytes() for name in store.manifest.arrays}
        probes = [store.probe(i) for i in range(3)]
        columns = {name: store.clips[name].tolist() for name in store.clips}
        return store.manifest, store.status().tolist(), arrays, probes, columns, store.failures()
    except (UserError, MachineError) as error:
        return error


def test_flipped_bits_never_change_what_is_read(packed, tmp_path):
    """200 bits anywhere: an error, or the truth; and `verify` names every one that a reader would meet."""
    rng, whole, truth = random.Random(0), packed.read_bytes(), readable(packed)
    path = tmp_path / "flipped.h5"
    for n in range(200):
        data = bytearray(whole)
        at = rng.randrange(len(whole)) if n % 2 else rng.randrange(12000)  # the structures are at the beginning
        data[at] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        found, got = errors_of(path), readable(path)
        assert isinstance(got, Exception) or got == truth, f"byte {at}"
        assert found or got == truth, f"byte {at}"


def test_a_file_cut_short_or_still_being_copied_is_an_error(packed, tmp_path):
    whole, truth, path = packed.read_bytes(), readable(packed), tmp_path / "cut.h5"
    for length in [*range(0, 64, 7), 512, 4096, len(whole) // 2, len(whole) - 1]:
        for rest in (b"", bytes(len(whole) - length)):  # written from the front, or into a file of full length
            path.write_bytes(whole[:length] + rest)
            got = readable(path)
            assert isinstance(got, DamagedStore | NotAStore) or got == truth, f"{length} bytes"
            assert errors_of(path) or got == truth, f"{length} bytes"
    path.write_bytes(whole[:-1])
    with pytest.raises(DamagedStore, match="being copied, wait"):
        open_store(path)


def damaged_chunk(path, name: str, row: int) -> None:
    with h5py.File(path, "r") as file:
        where = file[name].id.get_chunk_info_by_coord((row, *[0] * (file[name].ndim - 1)))
    data = bytearray(path.read_bytes())
    data[where.byte_offset + 5] ^= 4
    path.write_bytes(data)


def test_a_damaged_chunk_is_named_and_the_rest_is_read(packed):
    damaged_chunk(packed, "data/spatial", 5)
    store = open_store(packed)
    assert len(store.read("spatial", [0, 1, 3, 4, 6])) == 5
    for options in ({}, {"missing": "nan"}):
        with pytest.raises(DamagedStore, match="data/spatial rows 5 on.*copy the file again"):
            store.read("spatial", [0, 5, 6], **options)
    assert errors_of(packed) == ["data/spatial unit 1"]


def test_zeros_in_place_of_a_chunk_are_an_error_and_zeros_that_were_packed_are_not(packed):
    """The checksum of zeros is zero: what a copy leaves where it has not been yet would pass it."""
    for name, row in (("data/spatial", 5), ("data/vector", 4)):
        with h5py.File(packed, "r") as file:
            where = file[name].id.get_chunk_info_by_coord((row, *[0] * (file[name].ndim - 1)))
        data = packed.read_bytes()
        packed.write_bytes(data[: where.byte_offset] + bytes(where.size) + data[where.byte_offset + where.size :])
        with h5py.File(packed, "r") as file:
            assert not file[name][row].any(), "plain h5py takes them for values"
    store = open_store(packed)
    for name in ("spatial", "vector"):
        for rows in ([5], [0, 4, 5, 6]):
            with pytest.raises(DamagedStore, match="zeros where others were packed"):
                store.read(name, rows)
    assert errors_of(packed) == ["data/spatial unit 1", "data/vector unit 1"]


def test_lost_chunks_and_changed_values_are_found(packed):
    """A chunk that is not there reads as the fill value in plain HDF5; a value that was edited has a good checksum."""
    with h5py.File(packed, "r+") as file:
        assert file["data/vector"][0, 0] != 7
        file["data/vector"][0, 0] = 7
        held = file["data/spatial"][:]
        del file["data/spatial"]
        options = {"chunks": (1, 2, 16400), "fletcher32": True, "fillvalue": np.float16(np.nan)}
        again = file.create_dataset("data/spatial", held.shape, held.dtype, **options)
        again[:3], again[4:] = held[:3], held[4:]
    assert errors_of(packed) == ["data/spatial unit 0", "data/vector"]
    assert errors_of(packed, quick=True) == ["data/spatial"]
    with pytest.raises(DamagedStore, match="no value in"):
        open_store(packed).read("spatial", [0, 3])
    with h5py.File(packed, "r+") as file:
        file["clips/verb"][2] = 4
        del file["videos/path"]
    assert {"clips/verb", "videos/path"} <= set(errors_of(packed, quick=True))
    with pytest.raises(DamagedStore, match="clips/verb does not match"):
        open_store(packed).clips["verb"]


def test_what_is_no_packed_store_says_so(tmp_path):
    with pytest.raises(NotAStore, match="no store at"):
        open_store(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("hello, this is no HDF5 file")
    with pytest.raises(NotAStore, match="not an HDF5 file"):
        open_store(tmp_path / "text.h5")
    (tmp_path / "folder.h5").mkdir()
    with pytest.raises(NotAStore, match="is a folder"):
        open_store(tmp_path / "folder.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(NotAStore, match="no attribute 'clipbank'"):
        open_store(tmp_path / "other.h5")


# -------------------------------------------------------------------------------------------------- speed


def test_random_batches_are_as_fast_as_plain_h5py(tmp_path):
    """Median of alternating batches of 32 rows of 128 KiB; the benchmark asks for 0.9, a busy machine for 0.7."""
    arrays = {"map": ArraySpec((4, 4, 4096), "float16")}
    store = new_store(tmp_path / "s.zarr", 96, unit_rows=32, arrays=arrays)
    rng = np.random.default_rng(0)
    for unit in store.units:
        store.commit(unit, {"map": rng.random((32, 4, 4, 4096), np.float32) + 1}, [1] * 32)
    pack(store.path, tmp_path / "s.h5")
    packed, ours, plain = open_store(tmp_path / "s.h5"), [], []
    with h5py.File(tmp_path / "s.h5", "r") as file:
        dataset = file["data/map"]
        for turn in range(40):  # HDF5 keeps what it has read in a cache: each reads rows of its own
            rows = rng.integers(0, 96, 32)
            start = time.perf_counter()
            if turn % 2:
                values = packed.read("map", rows)
            else:
                values = np.stack([dataset[int(row)] for row in rows])
            (ours if turn % 2 else plain).append(time.perf_counter() - start)
            np.testing.assert_array_equal(values, store.read("map", rows))
    assert np.median(ours) < np.median(plain) / 0.7
