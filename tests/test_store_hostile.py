"""Stores that were made to do harm: refused with a clear error, in bounded memory, and nothing outside is touched."""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import google_crc32c
import h5py
import numcodecs.zstd
import numpy as np
import pytest

from errors import MachineError, UserError
from stores import ArraySpec, DamagedStore, NotAStore, open_store, pack, unpack, verify
from stores.limits import is_safe_name, zstd_content_size
from stores.manifest import canonical_json, readable_json, sha256
from tests.store_samples import fill, new_store, same_tree

ROOT = Path(__file__).resolve().parents[1]
ARRAYS = {"map": ArraySpec((64, 64), "float32"), "vector": ArraySpec((3,), "float32")}
MOST_MIB = 300
"""What a process may take more than one that opens an honest store."""


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    """(NAME.zarr, NAME.h5) of one sealed store."""
    store = new_store(tmp_path_factory.mktemp("honest") / "s.zarr", 7, unit_rows=4, arrays=ARRAYS)
    store.write_probe(0, {"fps": 25.0})
    fill(store, failed=(2,))
    store.seal()
    pack(store.path, store.path.with_suffix(".h5"))
    return store.path, store.path.with_suffix(".h5")


@pytest.fixture(params=["zarr", "h5"])
def victim(request, honest, tmp_path) -> Path:
    """A copy of the store in either backend, to be changed."""
    source = honest[request.param == "h5"]
    copy = tmp_path / "place" / source.name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, make_parent(copy))
    return copy


def make_parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def read_body(path: Path) -> dict:
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return json.loads(file.attrs["clipbank"])
    return json.loads((path / "zarr.json").read_bytes())["attributes"]["clipbank"]


def write_body(path: Path, body, signed: bool = True) -> None:
    """Puts a manifest into a store, with the right hash of itself."""
    if signed:
        body = {key: value for key, value in body.items() if key != "sha256"}
        body["sha256"] = sha256(canonical_json(body))
    text = body if isinstance(body, bytes) else readable_json(body)
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            file.attrs["clipbank"] = np.void(text) if b"\0" in text else text.decode(errors="replace")
    else:
        root = b'{"attributes": {"clipbank": ' + text + b'}, "zarr_format": 3, "node_type": "group"}'
        (path / "zarr.json").write_bytes(root)


def use(path: Path) -> None:
    """All that a reader does with a store."""
    store = open_store(path)
    store.status(), store.units, store.failures()
    for table in (store.rows, store.clips, store.videos):
        for column in table:
            table[column]
    for video in range(len(store.videos["name"])):
        store.probe(video)
    for name in store.manifest.arrays:
        store.read(name, store.ok)
        store.read(name, [0], missing="nan")


def refused_in_bounded_memory(path: Path, kind: str = "use") -> str:
    """What a fresh process says when it uses the store; asserts that it took little memory and did not crash."""
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from tests.test_store_hostile import use, verify\n"
        "from errors import MachineError, UserError\n"
        "import h5py, tensorstore, zarr, numcodecs\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "said = ''\n"
        "try:\n"
        "    if sys.argv[2] == 'use': use(Path(sys.argv[1]))\n"
        "    else: said = ' '.join(f.what for f in verify(sys.argv[1]) if f.severity == 'error')\n"
        "except (UserError, MachineError) as error: said = error.message\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024); print(said)\n"
    )
    command = [sys.executable, "-c", code, str(path), kind]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    grown, _, said = done.stdout.partition("\n")
    assert int(grown) < MOST_MIB, f"{grown} MiB"
    assert said.strip(), "nothing was refused"
    return said


# ------------------------------------------------------------------------------------------------ manifests


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"not JSON",
        b"[]",
        b"null",
        b"7",
        b'"manifest"',
        b"{}",
        b'{"format": 1}',
        b'{"format": "1"}',
        b'{"format": true}',
        b'{"format": -1}',
        b'{"format": 1, "sha256": 3}',
        b"[" * 100_000,
        b'{"format": 1e999}',
        b"\xff\xfe\x00",
        b'{"format": ' + b"9" * 10_000 + b"}",
    ],
)
def test_manifests_that_are_none(victim, text):
    write_body(victim, text, signed=False)
    with pytest.raises((NotAStore, DamagedStore, UserError)) as error:
        open_store(victim)
    assert str(victim) in str(error.value)


def test_a_newer_format_is_refused(victim):
    write_body(victim, {**read_body(victim), "format": 2})
    with pytest.raises(UserError, match="format 2, this clipbank reads up to 1: update clipbank"):
        open_store(victim)


def changed(body: dict, *path, to) -> dict:
    body = json.loads(json.dumps(body))
    at = body
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = to
    return body


CLAIMS = {
    "a trillion rows": lambda body: changed(body, "extents", to=[[0, 10**12]]),
    "a trillion units": lambda body: changed(
        changed(body, "extents", to=[[0, 2**29]]), "layout", to={"unit_rows": 1, "batch_size": 1, "chunk_rows": ONES}
    ),
    "a negative row": lambda body: changed(body, "extents", to=[[-4, 8]]),
    "rows that overlap": lambda body: changed(body, "extents", to=[[0, 7], [4, 7]]),
    "rows between units": lambda body: changed(body, "extents", to=[[1, 7]]),
    "half a row": lambda body: changed(body, "extents", to=[[0, 7.5]]),
    "a million extents": lambda body: changed(body, "extents", to=[[4 * i, 1] for i in range(100_000)]),
    "units of no rows": lambda body: changed(body, "layout", "unit_rows", to=0),
    "units of rows without end": lambda body: changed(body, "layout", "unit_rows", to=2**62),
    "a chunk that divides no unit": lambda body: changed(body, "layout", "chunk_rows", "map", to=3),
    "no chunk": lambda body: changed(body, "layout", "chunk_rows", to={}),
    "a row of an exabyte": lambda body: changed(body, "arrays", "map", "row_shape", to=[2**30, 2**30]),
    "a row without sides": lambda body: changed(body, "arrays", "map", "row_shape", to=[0]),
    "a row of many sides": lambda body: changed(body, "arrays", "map", "row_shape", to=[1] * 100_000),
    "objects": lambda body: changed(body, "arrays", "map", "dtype", to="O"),
    "a file above": lambda body: changed(body, "hashes", "../../x/zarr.json", to="0" * 64),
    "a column above": lambda body: changed(body, "hashes", "clips/../../zarr.json", to="0" * 64),
    "a file anywhere": lambda body: changed(body, "hashes", "/etc/passwd", to="0" * 64),
    "a seal above": lambda body: changed(body, "seal", to={"k": "../../x", "digests": ""}),
    "a table of nothing": lambda body: changed(body, "tables", to={"clips": -1}),
    "an array above": lambda body: renamed(body, "../../map"),
    "an array anywhere": lambda body: renamed(body, "/tmp/map"),
    "an array that is hidden": lambda body: renamed(body, ".map"),
    "an array of a NUL": lambda body: renamed(body, "map\0"),
}
ONES = {"map": 1, "vector": 1, "n_padded": 1}


def renamed(body: dict, name: str) -> dict:
    body = json.loads(json.dumps(body))
    body["arrays"][name] = body["arrays"].pop("map")
    body["layout"]["chunk_rows"][name] = body["layout"]["chunk_rows"].pop("map")
    return body


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_that_cannot_be_so(victim, claim):
    write_body(victim, CLAIMS[claim](read_body(victim)))
    with pytest.raises((DamagedStore, NotAStore)) as error:
        open_store(victim)
    assert str(victim) in str(error.value) and len(str(error.value)) < 2000
    assert [finding.severity for finding in verify(victim)] == ["error"]


def test_a_trillion_rows_take_no_memory(victim):
    write_body(victim, CLAIMS["a trillion rows"](read_body(victim)))
    assert "1,000,000,000,000 rows" in refused_in_bounded_memory(victim)


def test_a_billion_rows_that_are_not_there_take_no_memory(victim):
    """As many as a store may have, and tables that agree."""
    rows = 2**29
    body = read_body(victim)
    body = changed(body, "extents", to=[[0, rows]])
    body = changed(body, "layout", "unit_rows", to=2**17)
    body = changed(body, "layout", "chunk_rows", to=dict.fromkeys(ONES, 4))
    if victim.suffix == ".zarr":
        for file in victim.glob("rows/*/zarr.json"):
            metadata = {**json.loads(file.read_bytes()), "shape": [rows]}
            file.write_bytes(readable_json(metadata))
            body["hashes"][file.relative_to(victim).as_posix()] = sha256(file.read_bytes())
    else:
        with h5py.File(victim, "r+") as file:
            for name in list(file["rows"]):
                dtype = file["rows"][name].dtype
                del file["rows"][name]
                file["rows"].create_dataset(name, (rows,), dtype, chunks=(2**20,), fletcher32=True)
    write_body(victim, body)
    refused_in_bounded_memory(victim)


def test_files_of_other_places_are_not_read_or_written(honest, tmp_path):
    """A seal and a packed folder that name files outside."""
    store = tmp_path / "s.zarr"
    shutil.copytree(honest[0], store)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    packed = tmp_path / "s.h5"
    with h5py.File(shutil.copy(honest[1], packed), "r+") as file:
        names = file["folder/name"][:]
        digests = json.loads(file.attrs["clipbank"])["packed"]["digests"]
        for bad in (b"../secret", b"/tmp/secret", b"rows/../../secret", b"data/map/c.0.0.0"):
            changed_names = names.copy()
            changed_names[0] = bad
            file["folder/name"][...] = changed_names
            digest = sha256(f"|S{names.itemsize} {[len(names)]}\n".encode() + changed_names.tobytes())
            body = json.loads(file.attrs["clipbank"])
            body["packed"]["digests"] = {**digests, "folder/name": digest}
            body.pop("sha256")
            file.attrs["clipbank"] = readable_json({**body, "sha256": sha256(canonical_json(body))}).decode()
            file.flush()
            with pytest.raises(DamagedStore, match="was not packed by clipbank"):
                unpack(packed, tmp_path / "out.zarr")
    assert secret.read_text() == "secret" and sorted(os.listdir(tmp_path)) == ["s.h5", "s.zarr", "secret"]


def test_videos_may_have_any_name(tmp_path):
    """They are quoted in file names, in every backend."""
    from stores import create_store
    from tests.store_samples import sample_clips, sample_rows

    names = ["../../etc/passwd", "/etc/passwd", "a\\b"]
    manifest = new_store(tmp_path / "x.zarr", arrays=ARRAYS).manifest
    videos = {"name": np.array(names, object)}
    store = create_store(tmp_path / "place/s.zarr", manifest, sample_rows(3), sample_clips(3), videos)
    for i, name in enumerate(names):
        store.write_probe(name, {"n": i})
    pack(store.path, tmp_path / "place/s.h5")
    unpack(tmp_path / "place/s.h5", tmp_path / "place/t.zarr")
    for path in ("s.zarr", "s.h5", "t.zarr"):
        assert [open_store(tmp_path / "place" / path).probe(name)["n"] for name in names] == [0, 1, 2]
    assert same_tree(store.path, tmp_path / "place/t.zarr") == []
    assert sorted(os.listdir(tmp_path)) == ["place", "x.zarr"]


def test_names():
    for good in ("rows/video/c.0", "probes/...json", "data/a.b/c.0.0", "probes/%2E%2E.json", "clips/id é/zarr.json"):
        assert is_safe_name(good), good
    for bad in ("", "/", "a//b", "../a", "a/..", "./a", "a\0b", "a\\..\\b", "/a", "a/", "a\nb", "x" * 300, None, 3):
        assert not is_safe_name(bad), bad


# -------------------------------------------------------------------------------------------------- chunks


def with_checksum(data: bytes) -> bytes:
    return data + struct.pack("<I", google_crc32c.value(data))


def zeros_of(size: int) -> bytes:
    """A zstd frame of so many zeros that says so; made of pieces, as no such buffer is made here."""
    frame = bytearray(b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + struct.pack("<Q", size))
    left = size
    while left:
        block = min(left, 128 * 1024)
        left -= block
        frame += struct.pack("<I", (block << 3) | (1 << 1) | (not left))[:3] + b"\0"  # one byte, repeated
    return bytes(frame)


def test_the_bomb_is_one():
    bomb = zeros_of(2**20)
    assert len(bomb) < 100 and zstd_content_size(bomb) == 2**20
    assert numcodecs.zstd.decompress(bomb) == bytes(2**20)


@pytest.mark.parametrize("column", ["clips/verb", "clips/id", "rows/start_s", "sealed/1/status"])
def test_a_chunk_of_a_column_that_inflates_without_bound(honest, tmp_path, column):
    store = tmp_path / "s.zarr"
    shutil.copytree(honest[0], store)
    (store / column / "c.0").write_bytes(with_checksum(zeros_of(3 * 2**30)))
    assert f"{column}/c.0" in refused_in_bounded_memory(store)
    refused_in_bounded_memory(store, "verify")
    headless = bytearray(zeros_of(2**20))
    headless[4:13] = bytes([0, 0x88])  # a window, and no word of the size
    (store / column / "c.0").write_bytes(with_checksum(bytes(headless)))
    assert "does not say how much" in refused_in_bounded_memory(store)


def test_strings_that_claim_to_be_many(honest, tmp_path):
    store = tmp_path / "s.zarr"
    shutil.copytree(honest[0], store)
    body = struct.pack("<I", 2**32 - 1) + bytes(100)
    (store / "clips/id/c.0").write_bytes(with_checksum(numcodecs.zstd.compress(body, 1)))
    assert "strings" in refused_in_bounded_memory(store)


def test_metadata_that_the_manifest_does_not_bear_out(honest, tmp_path):
    """An array's zarr.json, hashed as it should be, of another shape, other chunks or other codecs."""
    for change in (
        {"shape": [8, 2**40, 64]},
        {"data_type": "float64"},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2**40, 64, 64]}}},
        {"codecs": [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}, {"name": "zstd"}]},
        {"codecs": []},
        {"shape": "x"},
        {"shape": [10**400, 64, 64]},
    ):
        store = tmp_path / f"{abs(hash(str(change)))}.zarr"
        shutil.copytree(honest[0], store)
        file, body = store / "data/map/zarr.json", read_body(store)
        file.write_bytes(readable_json({**json.loads(file.read_bytes()), **change}))
        body["hashes"]["data/map/zarr.json"] = sha256(file.read_bytes())
        write_body(store, body)
        with pytest.raises(DamagedStore, match="data/map"):
            open_store(store).read("map", [0])


def test_a_chunk_of_an_array_that_inflates_without_bound(honest, tmp_path):
    """tensorstore stops where the chunk should end."""
    store = tmp_path / "s.zarr"
    shutil.copytree(honest[0], store)
    shard = store / "data/map/c.1.0.0"
    bomb = with_checksum(zeros_of(3 * 2**30))
    layout = open_store(store).manifest.layout
    index = struct.pack("<QQ", 0, len(bomb)) * (layout.unit_rows // layout.chunk_rows["map"])
    shard.write_bytes(bomb + with_checksum(index))
    assert "data/map/c.1.0.0" in refused_in_bounded_memory(store)


def test_hdf5_that_reaches_elsewhere(honest, tmp_path):
    """Links to other files, values in other files, virtual datasets, other filters: none is followed."""
    (tmp_path / "secret").write_bytes(bytes(range(64)))
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(8, np.uint8)

    def external_link(file):
        del file["rows/status"]
        file["rows/status"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "/x")

    def soft_link(file):
        del file["rows/status"]
        file["rows/status"] = h5py.SoftLink("/rows/draw")

    def external_values(file):
        del file["rows/status"]
        file.create_dataset("rows/status", (8,), "u1", external=[(str(tmp_path / "secret"), 0, 8)])

    def virtual(file):
        del file["rows/status"]
        layout = h5py.VirtualLayout((8,), "u1")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "x", (8,))
        file.create_virtual_dataset("rows/status", layout)

    def no_checksum(file):
        del file["rows/status"]
        file.create_dataset("rows/status", data=np.ones(8, np.uint8), chunks=(8,))

    def objects(file):
        del file["clips/id"]
        file.create_dataset("clips/id", data=["x"] * 7, dtype=h5py.string_dtype(), chunks=(7,))

    def group(file):
        del file["rows/status"]
        file.create_group("rows/status")

    for change in (external_link, soft_link, external_values, virtual, no_checksum, objects, group):
        path = tmp_path / f"{change.__name__}.h5"
        with h5py.File(shutil.copy(honest[1], path), "r+") as file:
            change(file)
        with pytest.raises(DamagedStore, match="rows/status|clips/id"):
            use(path)
        assert any(finding.severity == "error" for finding in verify(path))


def test_hdf5_chunks_that_inflate_without_bound(honest, tmp_path):
    """Deflate makes a thousand bytes of one, and HDF5 unpacks whatever a chunk holds."""
    import zlib

    for name in ("data/map", "clips/verb"):
        path = tmp_path / f"{name.replace('/', '_')}.h5"
        shutil.copy(honest[1], path)
        with h5py.File(path, "r+") as file:
            old = file[name]
            shape, dtype, chunks = old.shape, old.dtype, old.chunks
            del file[name]
            options = {"compression": "gzip", "fletcher32": True}
            dataset = file.create_dataset(name, shape, dtype, chunks=chunks, **options)
            packer = zlib.compressobj(9)
            bomb = b"".join(packer.compress(bytes(2**24)) for _ in range(64)) + packer.flush()
            dataset.id.write_direct_chunk((0,) * len(shape), bomb + bytes(4))
        said = refused_in_bounded_memory(path)
        assert name in said


def test_whatever_happens_it_is_an_error_of_ours(victim):
    """No traceback reaches a user."""
    body = read_body(victim)
    for key in body:
        for value in (None, [], {}, "x", -1, 1e308, [[]], {"a": {"b": 1}}):
            write_body(victim, {**body, key: value})
            try:
                use(victim)
            except (UserError, MachineError):
                continue
