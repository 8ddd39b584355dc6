"""A damaged store becomes what it was, byte for byte; what killed writers leave is collected."""

import importlib
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

import stores.manifest
from errors import MachineError
from pipelines.exporting import export_features
from stores import (
    FAILED,
    OK,
    PENDING,
    ArraySpec,
    Leases,
    begin_arrays,
    collect_garbage,
    extend,
    open_store,
    pack,
    repair_store,
    reset_rows,
    seal_repaired,
    verify,
    write_durable,
)
from stores.manifest import is_temporary
from tests.store_samples import VIDEOS, fill, new_store, same_tree
from tests.test_store_growth import SMALL, errors_of, grown_tables

BAD = (3, 9)
PROBE = {"fps": 25.0, "n_frames": 100, "kind": "file", "geometry": [7.0, 7.0, -0.5, 0.0]}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    """A sealed store that has grown once, with failed rows: the one that all damage is done to."""
    path = tmp_path_factory.mktemp("sealed") / "s.zarr"
    store = new_store(path, 6, unit_rows=4, arrays=SMALL)
    fill(store, failed=BAD)
    store.seal()
    store = extend(path, **grown_tables(5))
    for video in (*VIDEOS["name"], "new"):
        store.write_probe(video, PROBE)
    fill(store, failed=BAD)
    store.seal()
    assert store.manifest.seal["k"] == 2 and verify(path) == []
    return path


def compute(path: Path) -> None:
    """What the extraction does with rows that are pending, and with probes that are not there."""
    store = open_store(path)
    if not store.sealed:
        for video in store.videos["name"]:
            store.write_probe(video, PROBE)
        fill(store, [unit for unit in store.units if (store.status(unit) == PENDING).any()], failed=BAD)


def mended(path: Path):
    restored = repair_store(path)
    compute(path)
    if not open_store(path).sealed:
        seal_repaired(path, restored.seal)
    return restored


def files_in(path: Path) -> list[str]:
    names = sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file())
    return [name for name in names if not name.startswith(("provenance", "sealed/1/"))]


def flip(path: Path, rng) -> None:
    data = bytearray(path.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def cut(path: Path, rng) -> None:
    path.write_bytes(path.read_bytes()[: int(rng.integers(path.stat().st_size))])


def delete(path: Path, rng) -> None:
    path.unlink()


HARMS = {"flip": flip, "cut": cut, "delete": delete}


def kind_of(name: str) -> str:
    """One of each kind of file is harmed in every way."""
    parts = name.split("/")
    where = "/".join(part for part in parts[:-1] if not part.isdigit())
    return f"{where}/{'c' if parts[-1].startswith('c.') else parts[-1]}"


def some_of_each_kind(path: Path, rng, most: int) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for name in files_in(path):
        kinds.setdefault(kind_of(name), []).append(name)
    chosen = [str(rng.choice(names)) for names in kinds.values()]
    first = [name for name in chosen if not name.startswith(("extensions/", "clips/", "rows/", "videos/", "sealed/"))]
    rest = [name for name in chosen if name not in first]
    return first + sorted(rng.choice(rest, min(most, len(rest)), replace=False).tolist())


@pytest.mark.parametrize("harm", HARMS)
def test_any_damaged_file_of_a_sealed_store_is_restored(sealed, tmp_path, harm):
    """A seeded sample: every kind of data file, and some of each kind of table, extension and seal."""
    rng = np.random.default_rng([1, len(harm)])
    for name in some_of_each_kind(sealed, rng, 4):
        path = tmp_path / "s.zarr"
        shutil.copytree(sealed, path)
        HARMS[harm](path / name, rng)
        mended(path)
        assert same_tree(path, sealed) == [], name
        shutil.rmtree(path)


@pytest.mark.parametrize("harm", ["start", "middle", "end", "cut", "empty", "delete"])
def test_verify_names_the_harmed_file_and_nothing_else(sealed, tmp_path, harm):
    """Of a file of each kind of a sealed store, however it was harmed; `quick` where its size is another."""
    path, kinds = shutil.copytree(sealed, tmp_path / "s.zarr"), {}
    for name in files_in(path):
        kinds.setdefault((name.partition("/")[0], kind_of(name).rpartition("/")[2]), []).append(name)
    rng = np.random.default_rng([2, *map(ord, harm)])
    for name in ["rows/status/c.0", "sealed/2/digests/path/c.0", *(str(rng.choice(names)) for names in kinds.values())]:
        whole = (path / name).read_bytes()
        body = bytearray(whole)
        if harm in ("start", "middle", "end"):
            body[{"start": 0, "middle": len(body) // 2, "end": -1}[harm]] ^= 1
        (path / name).unlink()
        if harm != "delete":
            (path / name).write_bytes(body[: {"cut": len(body) // 2, "empty": 0}.get(harm, len(body))])
        looks = [verify(path)] + ([verify(path, quick=True)] if harm in ("cut", "empty", "delete") else [])
        for found in looks:
            assert [(one.severity, one.path) for one in found] == [("error", name)], [harm, name, found]
        (path / name).unlink(missing_ok=True)
        (path / name).write_bytes(whole)
    assert verify(path) == []


def test_many_damages_at_once_are_restored(sealed, tmp_path):
    rng = np.random.default_rng(7)
    path = tmp_path / "s.zarr"
    shutil.copytree(sealed, path)
    names = ["data/spatial/c.0.0.0", "data/spatial/c.2.0.0", "data/vector/c.3.0", "rows/status/c.1", "clips/verb/c.0",
             "extensions/1/clips/id/c.0", "failures/0.json", "probes/new.json", "rows/zarr.json"]  # fmt: skip
    for i, name in enumerate(names):
        list(HARMS.values())[i % 3](path / name, rng)
    restored = mended(path)
    assert restored.left == [] or open_store(path).sealed
    assert restored.pending and same_tree(path, sealed) == [] and verify(path) == []


def test_a_whole_store_is_left_alone(sealed):
    before = {p: p.stat().st_mtime_ns for p in sealed.rglob("*")}
    assert repair_store(sealed).nothing and open_store(sealed).sealed
    assert {p: p.stat().st_mtime_ns for p in sealed.rglob("*")} == before


def test_only_rows_whose_values_are_lost_are_computed_again(sealed, tmp_path):
    path = shutil.copytree(sealed, tmp_path / "s.zarr")
    data = bytearray((path / "data/spatial/c.0.0.0").read_bytes())
    data[5] ^= 1  # in the chunk of row 0
    (path / "data/spatial/c.0.0.0").write_bytes(data)
    restored = repair_store(path)
    assert list(restored.pending) == [0] and restored.seal["k"] == 2
    store = open_store(path)
    assert not store.sealed and store.status()[:6].tolist() == [PENDING, OK, OK, FAILED, OK, OK]
    assert store.read("spatial", [1, 2, 4]).shape == (3, 2, 16400) and errors_of(path) == set()
    compute(path)
    seal_repaired(path, restored.seal)
    assert same_tree(path, sealed) == []


def test_a_shard_of_another_version_is_not_believed(sealed, tmp_path):
    path = shutil.copytree(sealed, tmp_path / "s.zarr")
    other = new_store(tmp_path / "o.zarr", 6, unit_rows=4, arrays=SMALL)
    fill(other, failed=BAD, salt=5)
    shutil.copy(other.path / "data/vector/c.0.0", path / "data/vector/c.0.0")
    restored = mended(path)
    assert set(restored.pending) == {0, 1, 2} and same_tree(path, sealed) == []


def test_a_store_that_was_never_sealed_keeps_what_is_good(tmp_path):
    store = new_store(tmp_path / "s.zarr", 8, unit_rows=4, arrays=SMALL)
    fill(store, store.units[:1])
    (store.path / "data/vector/c.0.0").unlink()
    (store.path / "probes").mkdir()
    (store.path / "probes/P01_01.json").write_text("{")
    restored = repair_store(store.path)
    assert set(restored.pending) == {0, 1, 2, 3} and restored.probes == ["P01_01"] and restored.seal is None
    assert errors_of(store.path) == set() and open_store(store.path).status().tolist() == [PENDING] * 8
    fill(open_store(store.path))
    assert verify(store.path) == []


def test_a_damaged_root_is_made_of_the_extensions(sealed, tmp_path):
    path = shutil.copytree(sealed, tmp_path / "s.zarr")
    (path / "zarr.json").write_bytes(b"")
    restored = mended(path)
    assert restored.rebuilt == ["zarr.json"] and same_tree(path, sealed) == []
    shutil.rmtree(path / "extensions/0")
    (path / "zarr.json").unlink()
    with pytest.raises((MachineError, FileNotFoundError)):
        repair_store(path)


def test_a_repair_that_is_killed_goes_on(sealed, tmp_path, monkeypatch):
    from stores.zarr_store import ZarrFiles

    put = ZarrFiles.put
    for limit in range(8):
        path = shutil.copytree(sealed, tmp_path / str(limit) / "s.zarr")
        for name in ("data/vector/c.0.0", "data/spatial/c.3.0.0"):
            (path / name).write_bytes(b"")
        seen = []

        def counted(*arguments, limit=limit, seen=seen):
            seen.append(1)
            if len(seen) > limit:
                raise KeyboardInterrupt
            return put(*arguments)

        monkeypatch.setattr(ZarrFiles, "put", counted)
        try:
            repair_store(path)
        except KeyboardInterrupt:
            assert len(seen) == limit + 1
        monkeypatch.setattr(ZarrFiles, "put", put)
        mended(path)
        assert same_tree(path, sealed) == [], limit


def test_reset_rows_keeps_the_others(sealed, tmp_path):
    path = shutil.copytree(sealed, tmp_path / "s.zarr")
    store = open_store(path)
    store.unseal()
    kept = store.read("vector", [0, 4, 5])
    assert sorted(reset_rows(store, [1, 9, 8], "the video changed")) == [1, 8, 9]
    assert store.status()[[0, 1, 2, 3, 8, 9]].tolist() == [OK, PENDING, OK, FAILED, PENDING, PENDING]
    np.testing.assert_array_equal(open_store(path).read("vector", [0, 4, 5]), kept)
    assert errors_of(path) == set() and list(store.failures()) == [3]
    compute(path)
    open_store(path).seal()
    assert same_tree(path, sealed) == [], "and sealed again it is the version it was"


# ------------------------------------------------------------------------------------------------- orphans


def old(path: Path, seconds: float = 7200) -> None:
    for one in [path, *path.rglob("*")] if path.is_dir() else [path]:
        os.utime(one, (time.time() - seconds,) * 2)


def test_orphans_are_collected_and_live_writers_left_alone(tmp_path):
    store = new_store(tmp_path / "s.zarr", 8, unit_rows=4, arrays=SMALL)
    fill(store, store.units[:1], failed=(1,))
    other = new_store(tmp_path / "o.zarr", 8, unit_rows=4, arrays=SMALL)
    fill(other)
    fresh = [store.path / "data/vector/c.0.0_123456789abcde.__lock", tmp_path / ".s.zarr.0123456789abcdee.tmp"]
    stale = [store.path / ".zarr.json.0123456789abcdef.tmp", tmp_path / ".s.zarr.0123456789abcdef.tmp",
             store.path / "extensions/.extension.0123456789abcdef.tmp"]  # fmt: skip
    fresh[0].write_bytes(b"12345")
    stale[0].write_bytes(b"123")
    for folder in (fresh[1], *stale[1:]):
        folder.mkdir()
        (folder / "x").write_bytes(b"1234567")
    shutil.copytree(extend(other.path, **grown_tables(5)).path / "extensions/1", store.path / "extensions/2")
    shutil.copy(other.path / "data/vector/c.1.0", store.path / "data/vector/c.1.0")  # nobody marked its rows
    (store.path / "failures/1.json").write_text('{"5": ["damaged", "x"]}')
    for path in (*stale, store.path / "extensions/2", store.path / "data/vector/c.1.0", store.path / "failures/1.json"):
        old(path)
    before = open_store(store.path).status()
    garbage = collect_garbage(store.path)
    assert (
        garbage.removed["../.s.zarr.0123456789abcdef.tmp"] == 7
        and garbage.removed[".zarr.json.0123456789abcdef.tmp"] == 3
    )
    assert {"extensions/2", "data/vector/c.1.0", "failures/1.json"} < set(garbage.removed)
    assert garbage.bytes == sum(garbage.removed.values()) > 100
    assert all(path.exists() for path in fresh) and not any(path.exists() for path in stale)
    assert open_store(store.path).status().tolist() == before.tolist() and errors_of(store.path) == set()
    assert collect_garbage(store.path).removed == {}
    fill(store)
    assert len(store.ok) == 8


def test_every_temporary_name_is_collected_as_a_file_and_as_a_folder(tmp_path, monkeypatch):
    """Whatever writers call what they have half written: each name they make is left behind, as the one and the other,
    wherever they make it."""
    made: list[Path] = []
    beside = stores.manifest.temporary_beside

    def noted(path):
        made.append(beside(path))
        return made[-1]

    for module in ("manifest", "zarr_store", "extensions", "seal", "lease", "hdf5_pack"):
        monkeypatch.setattr(importlib.import_module(f"stores.{module}"), "temporary_beside", noted)
    monkeypatch.setattr(importlib.import_module("pipelines.exporting"), "temporary_beside", noted)
    path = tmp_path / "f" / "s.zarr"
    store = new_store(path, 6, unit_rows=4, arrays=SMALL)
    store.write_probe("P01_01", PROBE)
    with Leases(path, 1e-9) as one, Leases(path, 1e-9) as other:  # who looks at another's lease asks what time it is
        assert one.take(0)
        (path / "leases/0.json").write_text('{"host": "elsewhere"}')
        other.take(0)
    fill(store, failed=BAD)
    store.seal()
    pack(path, path.with_suffix(".h5"))
    export_features("npy", store, tmp_path / "f" / "npy", missing="skip")
    extend(path, **grown_tables(5))
    fill(open_store(path), failed=BAD)
    begin_arrays(path, {"map": ArraySpec((5,), "float16")})
    write_durable(tmp_path / "f" / ".probes" / "0123.json", b"{}")
    left = [one for one in made if not any(map(is_temporary, one.parts[:-1]))]
    folders = {one.parent.relative_to(tmp_path / "f").as_posix() for one in left}
    assert {".", ".adding", ".probes"} | {f"s.zarr/{name}" for name in ("sealed", "extensions", "leases")} <= folders
    written = ("zarr.json", "rows/status/c.0", "data/vector/c.0.0", "rows/start_s/zarr.json")  # by tensorstore
    left += [(path / name).with_name(f"{Path(name).name}_0123abc.__lock") for name in written]
    before = same_tree(path, tmp_path / "nothing")
    for kind in ("file", "folder"):
        for one in left:
            one.parent.mkdir(exist_ok=True, parents=True)
            one.mkdir() if kind == "folder" else one.write_bytes(b"12")
            (one / "x").write_bytes(b"123") if kind == "folder" else None
            old(one)
        assert not [f for f in verify(path) if f.severity == "error"]
        collect_garbage(path)
        assert [one for one in left if one.exists()] == []
        assert same_tree(path, tmp_path / "nothing") == before


def test_side_stores_and_seals_that_nobody_needs(sealed, tmp_path):
    path = shutil.copytree(sealed, tmp_path / "s.zarr")
    side = begin_arrays(path, {"map": ArraySpec((5,), "float16")})
    gone = begin_arrays(path, {"vector": SMALL["vector"]})
    for one in (side.path, gone.path):
        old(one)
    shutil.copytree(path / "sealed/2", path / "sealed/3")
    old(path / "sealed/3")
    removed = set(collect_garbage(path).removed)
    assert removed == {"../.adding/s+vector.zarr", "sealed/3"} and side.path.exists() and verify(path) == []
