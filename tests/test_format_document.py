"""docs/format.md is true: a reader written from it alone equals `Store`, and its tables name what the code writes.

The reader uses json, zstd and crc32c (and h5py for a packed store): no Zarr library, nothing of clipbank.
"""

import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import google_crc32c
import h5py
import numcodecs.zstd
import numpy as np
import pytest
from store_samples import VIDEOS, fill, sample_clips, sample_rows, values

from extract.decode import Probe
from stores import OK, STATUS_NAMES, ArraySpec, Manifest, create_store, extend, limits, open_store, pack, plan_layout
from stores.extensions import Extension
from stores.manifest import canonical_json
from stores.zarr_store import safe_name

DOCUMENT = (Path(__file__).resolve().parents[1] / "docs" / "format.md").read_text()

# ----------------------------------------------------------------- the reader of the document


class Damaged(Exception):
    pass


def canonical_hash(value):  # section 3
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def checked(data):  # crc32c
    if len(data) < 4 or google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
        raise Damaged("checksum")
    return data[:-4]


class Folder:
    def __init__(self, path):
        self.path = path
        self.manifest = json.loads(self.file("zarr.json"))["attributes"]["clipbank"]
        if self.manifest["format"] != 1:
            raise Damaged("a newer format")
        if canonical_hash({k: v for k, v in self.manifest.items() if k != "sha256"}) != self.manifest["sha256"]:
            raise Damaged("the manifest")
        unit = self.unit = self.manifest["layout"]["unit_rows"]
        self.array_rows = max((-(-(first + n) // unit) * unit for first, n in self.manifest["extents"]), default=0)

    def file(self, name):
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            raise Damaged(f"{name} is missing") from None

    def metadata(self, name):
        data = self.file(f"{name}/zarr.json")
        if (
            not name.startswith("sealed/")
            and hashlib.sha256(data).hexdigest() != self.manifest["hashes"][f"{name}/zarr.json"]
        ):
            raise Damaged(f"{name}/zarr.json")
        return json.loads(data)

    def columns(self, table):
        found = (re.fullmatch(rf"{table}/([^/]+)/zarr\.json", name) for name in self.manifest["hashes"])
        return [match[1] for match in found if match and match[1] != "status"]

    def column(self, name):  # section 4
        about = self.metadata(name)
        shape, (rows, *rest) = about["shape"], about["chunk_grid"]["configuration"]["chunk_shape"]
        out = []
        for i in range(-(-shape[0] // rows)):
            data = numcodecs.zstd.decompress(checked(self.file(f"{name}/c.{i}" + ".0" * len(rest))))
            if about["data_type"] == "string":
                out += strings(data)
            else:
                out += np.frombuffer(data, np.dtype(about["data_type"]).newbyteorder("<")).reshape(rows, *rest).tolist()
        table = name.split("/")[0]
        length = self.array_rows if table == "rows" else self.manifest["tables"].get(table, shape[0])
        return out[: min(length, shape[0])]

    def status(self):  # section 5
        if self.manifest["seal"]:
            return self.column(f"sealed/{self.manifest['seal']['k']}/status")
        out = []
        for u in range(self.array_rows // self.unit):
            there = (self.path / f"rows/status/c.{u}").exists()
            out += list(checked(self.file(f"rows/status/c.{u}"))) if there else [0] * self.unit
        return out

    def visible(self):
        return [row for first, n in self.manifest["extents"] for row in range(first, first + n)]

    def row(self, array, i):  # section 6
        about = self.manifest["arrays"][array]
        shape, dtype = about["row_shape"], np.dtype(about["dtype"]).newbyteorder("<")
        per_chunk = self.manifest["layout"]["chunk_rows"][array]
        shard = self.file(f"data/{array}/c.{i // self.unit}" + ".0" * len(shape))
        return row_of_shard(shard, self.unit, per_chunk, i % self.unit, shape, dtype)

    def probe(self, video):  # section 7
        return json.loads(self.file(f"probes/{name_of(video)}.json"))


def strings(data):
    count, at, out = int.from_bytes(data[:4], "little"), 4, []
    for _ in range(count):
        size = int.from_bytes(data[at : at + 4], "little")
        out.append(data[at + 4 : at + 4 + size].decode())
        at += 4 + size
    return out


def row_of_shard(shard, unit, per_chunk, i, shape, dtype):
    index = checked(shard[-(16 * unit // per_chunk + 4) :])
    offset, size = (
        int.from_bytes(index[p : p + 8], "little") for p in (16 * (i // per_chunk), 16 * (i // per_chunk) + 8)
    )
    if offset == size == 2**64 - 1:
        raise Damaged("no value is stored")
    content = numcodecs.zstd.decompress(checked(shard[offset : offset + size]))
    return np.frombuffer(content, dtype).reshape(per_chunk, *shape)[i % per_chunk]


def name_of(video):
    kept = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-"
    name = "".join(chr(b) if chr(b) in kept else f"%{b:02X}" for b in video.encode())
    return name if len(name) <= 180 else f"{name[:110]}~{hashlib.sha256(video.encode()).hexdigest()}"


# ------------------------------------------------------------------------------------- against `Store`

ARRAYS = {
    "vector": ArraySpec((7, 3), "float16"),
    "large": ArraySpec((4, 4, 1200), "float16"),  # two rows a chunk
    "times": ArraySpec((), "float64"),
    "classes": ArraySpec((3,), "int32"),
    "text": ArraySpec((16,), "uint8"),
    "picture": ArraySpec((2, 2), "uint8"),
}
PROBE = {"fps": 25.0, "n_frames": 100, "geometry": [7.0, 7.0, -0.5, 0.0]}


@pytest.fixture(scope="module", params=["open", "sealed", "grown"])
def made(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("format") / "s.zarr"
    arrays, n = ARRAYS, 1100
    layout = plan_layout(arrays, 64, batch_size=2, unit_rows=550)
    recipe = {"network": {"name": "tést", "scale": 1e-05}, "weights": 2.5, "dtype": "float16"}
    texts = {"clip": np.array([0, 0, 5], np.int32), "caption": np.array(["ein Ü", "", "日本"], object)}
    store = create_store(path, Manifest(arrays, layout, recipe), sample_rows(n), sample_clips(n), VIDEOS, texts)
    for video in VIDEOS["name"]:
        store.write_probe(video, PROBE)
    units = store.units[:1] if request.param == "open" else store.units
    fill(store, units, failed=(3, 8))
    if request.param == "grown":
        more = {name: np.concatenate([column, column[-5:]]) for name, column in sample_rows(n).items()}
        more["k"][-5:] += 7
        store = extend(path, more, sample_clips(n), VIDEOS)
        fill(store, store.units[-1:])
    if request.param != "open":
        store.seal()
    return open_store(path)


def test_a_reader_from_the_document_equals_the_store(made):
    reader = Folder(made.path)
    assert reader.manifest["recipe_hash"] == canonical_hash(reader.manifest["recipe"]) == made.manifest.recipe_hash
    rows = reader.visible()
    assert rows == np.flatnonzero(made.visible).tolist() and len(rows) == reader.manifest["n_rows"]
    status = reader.status()
    assert [status[i] for i in rows] == made.status()[rows].tolist()
    for table in ("rows", "clips", "videos", "texts"):
        assert sorted(reader.columns(table)) == sorted(getattr(made, table))
        for name in reader.columns(table):
            column = reader.column(f"{table}/{name}")
            shown = [column[i] for i in rows] if table == "rows" else column
            own = getattr(made, table)[name]
            assert shown == (own[rows] if table == "rows" else own).tolist(), name
    ok = [i for i in rows if status[i] == 1]
    assert ok == made.ok.tolist() and 3 not in ok
    for array in made.manifest.arrays:
        some = ok[:: max(1, len(ok) // 40)] + ok[-3:]
        assert np.array_equal([reader.row(array, i) for i in some], made.read(array, some)), array
    if not (made.path / "rows/status/c.1").exists() or reader.array_rows > len(made):
        with pytest.raises(Damaged, match="missing|no value is stored"):
            reader.row("large", reader.array_rows - 1)  # pending, or padding: no value, and no chunk
    assert np.isnan(reader.row("vector", 3)).all()  # failed, in a chunk with rows that are ok
    assert reader.probe("a/b ü") == made.probe("a/b ü") == PROBE


def test_seals_and_failures(made):
    reader = Folder(made.path)
    assert json.loads(reader.file("failures/0.json")) == {
        "3": ["damaged", "line one line two"],
        "8": ["damaged", "line one line two"],
    }
    if not made.sealed:
        return
    seal = reader.manifest["seal"]
    folder = f"sealed/{seal['k']}"
    listed = dict(zip(reader.column(f"{folder}/digests/path"), reader.column(f"{folder}/digests/sha256"), strict=True))
    assert canonical_hash(listed) == seal["digests"]
    for names, at in ((listed, ""), (seal["files"], f"{folder}/")):
        assert all(hashlib.sha256(reader.file(at + name)).hexdigest() == digest for name, digest in names.items())
    there = {p.relative_to(made.path).as_posix() for p in made.path.rglob("*") if p.is_file()}
    assert {n for n in there if not n.startswith(("sealed/", "provenance/"))} == {*listed, "zarr.json"}
    assert reader.column(f"{folder}/videos/geometry") == [PROBE["geometry"]] * 3
    assert reader.column(f"{folder}/videos/name") == VIDEOS["name"].tolist()


def test_tables_are_the_sum_of_the_extensions(made):
    reader = Folder(made.path)
    ks = [k for k in range(9) if f"extensions/{k}/record.json" in reader.manifest["hashes"]]
    records = [json.loads(reader.file(f"extensions/{k}/record.json")) for k in ks]
    for record in records:
        assert record["sha256"] == canonical_hash({k: v for k, v in record.items() if k != "sha256"})
        for name, digest in record["files"].items():
            assert hashlib.sha256(reader.file(f"extensions/{record['k']}/{name}")).hexdigest() == digest
    sizes = [json.loads(reader.file(f"extensions/{k}/rows/k/zarr.json"))["shape"][0] for k in ks]
    assert sum(sizes) == reader.array_rows and [r["first"] for r in records] == np.cumsum([0, *sizes[:-1]]).tolist()


@pytest.mark.parametrize("lost", ["clips/id/c.0", "data/vector/c.0.0.0", "rows/start_s/c.0", "zarr.json"])
def test_it_notices_what_is_lost_or_damaged(made, tmp_path, lost):
    copy = tmp_path / "copy.zarr"
    shutil.copytree(made.path, copy)
    data = bytearray((copy / lost).read_bytes())

    def read():
        reader = Folder(copy)
        return reader.column("clips/id"), reader.column("rows/start_s"), [reader.row("vector", i) for i in range(5)]

    read()
    data[len(data) // 2] ^= 1
    (copy / lost).write_bytes(data)
    with pytest.raises((Damaged, ValueError)):
        read()
    (copy / lost).unlink()
    with pytest.raises(Damaged, match="missing"):
        read()


def test_a_packed_store(made, tmp_path):
    pack(made.path, tmp_path / "s.h5", "gzip")
    with h5py.File(tmp_path / "s.h5") as file:
        manifest = json.loads(file.attrs["clipbank"])
        assert canonical_hash({k: v for k, v in manifest.items() if k != "sha256"}) == manifest["sha256"]
        for name, digest in manifest["packed"]["digests"].items():
            stored = file[name][...]
            line = f"{stored.dtype.newbyteorder('<').str} {list(stored.shape)}\n"
            assert hashlib.sha256(line.encode() + stored.tobytes()).hexdigest() == digest, name
        ok = np.flatnonzero(file["rows/status"][...] == 1)
        assert np.array_equal(file["data/large"][...][ok], made.read("large", ok))
        assert [text.decode() for text in file["texts/caption"][...]] == made.texts["caption"].tolist()
        assert [int(row) for row in file["failures/row"][...]] == [3, 8]
        assert json.loads(file["probes/json"][0]) == PROBE


# --------------------------------------------------------------------------- the document against the code


def test_the_worked_example():
    block = next(block for block in re.findall(r"```\n(.*?)```", DOCUMENT, re.DOTALL) if "28 b5 2f fd" in block)
    shard = bytes.fromhex("".join(re.split(r"   ", line)[0] for line in block.splitlines()))
    rows = [row_of_shard(shard, 4, 2, i, [3], np.dtype("<f2")).tolist() for i in (0, 1)]
    assert rows == [[1, 2, 3], [0.5, -0.5, 0.25]] and len(shard) == 61
    with pytest.raises(Damaged, match="no value"):
        row_of_shard(shard, 4, 2, 2, [3], np.dtype("<f2"))


def test_the_example_of_a_hash():
    source, text, digest = re.search(
        r"Example: `(.*?)` has the canonical text `(.*?)` and the hash\n`(\w+)`", DOCUMENT
    ).groups()
    assert canonical_json(json.loads(source)).decode() == text and canonical_hash(json.loads(source)) == digest
    for number, spelling in ((25.0, "25.0"), (0.001, "0.001"), (1e-5, "1e-05"), (1e16, "1e+16")):
        assert canonical_json(number).decode() == spelling and f"`{spelling}`" in DOCUMENT


def test_names_of_probes():
    for name in ("P01_01", "a/b ü", "..", "~", "x" * 181, "é" * 61, "\0\n", "A-z_0.9"):
        assert name_of(name) == safe_name(name)


def table_keys(section: str) -> set[str]:
    """Names in the first column of the tables of a section."""
    text = re.search(rf"^## {section}\b.*?(?=^## |\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)[0]
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_tables_name_every_key(made):
    assert table_keys("2") == set(json.loads((made.path / "zarr.json").read_text())["attributes"]["clipbank"])
    assert table_keys("7") == {field.name for field in dataclasses.fields(Probe)} | {"geometry"}
    written = {f"{table}/{name}" for table in ("rows", "clips", "videos", "texts") for name in getattr(made, table)}
    assert written - {"clips/verb"} <= table_keys("4")
    growth = DOCUMENT[DOCUMENT.index("## 9.") : DOCUMENT.index("## 10.")]
    for field in dataclasses.fields(Extension):
        assert f"`{field.name}`" in growth


def test_the_status_codes_are_those_of_the_code():
    codes = re.findall(r"^\| (\d) \| (\w+) \|", DOCUMENT, re.MULTILINE)
    assert codes == [(str(code), name) for code, name in enumerate(STATUS_NAMES)]


def test_the_limits_are_those_of_the_code():
    stated = re.search(r"At most 2\^(\d+) rows, 2\^(\d+) units, ([\d,]+) extents", DOCUMENT).groups()
    assert (1 << int(stated[0]), 1 << int(stated[1])) == (limits.MOST_ROWS, limits.MOST_UNITS)
    assert int(stated[2].replace(",", "")) == limits.MOST_EXTENTS
    stated = re.search(r"at most 2\^(\d+) bytes, one of a column 2\^(\d+), the root `zarr.json` 2\^(\d+)", DOCUMENT)
    sizes = limits.CHUNK_BYTES, limits.COLUMN_CHUNK_BYTES, limits.MANIFEST_BYTES
    assert tuple(1 << int(power) for power in stated.groups()) == sizes


def test_the_same_values_as_any_process_computes(made):
    """The sample's values reach the files: what is compared above is not a store of fill values."""
    row = made.ok[5]
    assert np.array_equal(Folder(made.path).row("vector", row), values(made, [row])["vector"][0].astype(np.float16))
    assert made.status()[row] == OK
