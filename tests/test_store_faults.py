"""What happens to a store when files are lost, disks fill up, processes die and writers disagree."""

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import stores.commit
import stores.manifest
from errors import MachineError, UserError
from stores import (
    FAILED,
    OK,
    PENDING,
    ArraySpec,
    DamagedRow,
    DamagedShard,
    DamagedStore,
    StoreSealed,
    open_store,
    verify,
)
from stores.maintain import sweep
from stores.zarr_store import ZarrFiles, encode_shard
from tests.store_samples import fill, new_store, same_tree, values, work

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"spatial": ArraySpec((2, 16400), "float16"), "vector": ArraySpec((3,), "float32")}


def small_store(path, n=8) -> stores.Store:
    return new_store(path, n, unit_rows=4, arrays=SMALL)


def errors_of(path, **options) -> set[str]:
    return {finding.path for finding in verify(path, **options) if finding.severity == "error"}


# -------------------------------------------------------------------------------------------------- damage


def flip(path: Path, at: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def delete(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_index(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("name", ["spatial", "vector", "n_padded"])
@pytest.mark.parametrize("harm", [delete, empty, cut, cut_index, flip])
def test_damaged_shard_is_named_and_never_read(tmp_path, name, harm):
    store = small_store(tmp_path / "s.zarr")
    fill(store)
    assert verify(store.path) == []
    shard = store._files.shard_name(name, 1)
    if harm is flip:
        flip(store.path / shard, 5)
    else:
        harm(store.path / shard)
    assert errors_of(store.path) == {shard}
    if harm in (delete, empty):
        assert errors_of(store.path, quick=True) == {shard}
    for reader in (store, open_store(store.path)):
        assert reader.read(name, [0, 3]).shape[0] == 2, "the other shard is whole"
        with pytest.raises(DamagedShard, match=r"c\.1.*store verify"):
            reader.read(name, [0, 4, 5, 6, 7])
        with pytest.raises(DamagedShard):
            reader.read(name, [4, 5, 6, 7], missing="nan")
    with pytest.raises(DamagedStore, match="cannot be sealed"):
        store.seal()


def test_every_flipped_bit_of_a_shard_is_found(tmp_path):
    """Any byte: of each row's payload, its checksum, the index, the index's checksum."""
    store = new_store(tmp_path / "s.zarr", 4, 2, {"vector": ArraySpec((3,), "float32")})
    fill(store)
    shard = store.path / "data/vector/c.1.0"
    whole = shard.read_bytes()
    for at in range(len(whole)):
        flip(shard, at, at % 8)
        assert errors_of(store.path) == {"data/vector/c.1.0"}, f"byte {at} of {len(whole)}"
        with pytest.raises(DamagedStore):
            open_store(store.path).read("vector", [2, 3])
        shard.write_bytes(whole)
    assert verify(store.path) == []


def test_damage_to_a_sealed_store_is_found_in_every_file(tmp_path):
    path = tmp_path / "s.zarr"
    work(str(path), 3, SMALL)
    assert verify(path) == []
    for file in sorted(p for p in path.rglob("*") if p.is_file() and "provenance" not in p.parts):
        name, whole = file.relative_to(path).as_posix(), file.read_bytes()
        if name.startswith("sealed/1/") and name.endswith("zarr.json"):
            continue  # the seal's own metadata: what it describes is checked, not its spelling
        flip(file, len(whole) // 2)
        assert any(name.startswith(where) for where in errors_of(path)), name
        file.unlink()
        assert any(name.startswith(where) for where in errors_of(path, quick=True)), name
        file.write_bytes(whole)
    assert verify(path) == []


def test_a_lost_chunk_of_a_table_is_an_error_not_an_empty_string(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    for column in ("clips/id", "clips/verb", "rows/start_s", "videos/name"):
        (store.path / column / "c.0").rename(tmp_path / "kept")
        with pytest.raises(DamagedStore, match="is missing"):
            table, name = column.split("/")
            getattr(open_store(store.path), table)[name]
        assert column in errors_of(store.path)
        (tmp_path / "kept").rename(store.path / column / "c.0")
        flip(store.path / column / "c.0", 3)
        with pytest.raises(DamagedStore, match="is damaged"):
            getattr(open_store(store.path), table)[name]
        assert column in errors_of(store.path)
        flip(store.path / column / "c.0", 3)
    assert verify(store.path) == []


def test_a_row_marked_ok_without_a_value_is_an_error(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    fill(store)
    files = store._files
    held = np.ones(4, bool)
    whole = {name: store.read(name, range(4)) for name in SMALL}
    held[2] = False  # the row's own chunk is gone
    shard = encode_shard(files.metadata("data/spatial"), whole["spatial"], held)
    (store.path / files.shard_name("spatial", 0)).write_bytes(shard)
    vector = whole["vector"].copy()
    vector[1] = np.nan  # a chunk of several rows: this one is blank
    shard = encode_shard(files.metadata("data/vector"), vector, np.ones(4, bool))
    (store.path / files.shard_name("vector", 0)).write_bytes(shard)
    store = open_store(store.path)
    for name, row in (("spatial", 2), ("vector", 1)):
        with pytest.raises(DamagedRow, match=r"no value in .*c\.0"):
            store.read(name, [0, row, 5])
        assert len(store.read(name, [0, 3, 5])) == 3
        assert files.shard_name(name, 0) in errors_of(store.path)


def test_damaged_status_metadata_and_strays_are_found(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    fill(store)
    flip(store.path / "rows/status/c.1", 1)
    with pytest.raises(DamagedStore):
        open_store(store.path).status()
    assert errors_of(store.path) == {"rows/status/c.1"}
    flip(store.path / "rows/status/c.1", 1)
    flip(store.path / "data/vector/zarr.json", 40)
    with pytest.raises(DamagedStore):
        open_store(store.path).read("vector", [0])
    assert "data/vector/zarr.json" in errors_of(store.path)
    flip(store.path / "data/vector/zarr.json", 40)
    (store.path / "data/vector/c.7.0").write_bytes(b"x")
    (store.path / "data/vector/c.0.0_123456789abcde.__lock").write_bytes(b"x")
    (store.path / ".zarr.json.0123456789abcdef.tmp").write_bytes(b"x")
    found = {finding.path: finding.severity for finding in verify(store.path)}
    assert found == {
        "data/vector/c.7.0": "error",
        "data/vector/c.0.0_123456789abcde.__lock": "note",
        ".zarr.json.0123456789abcdef.tmp": "note",
    }


def test_a_damaged_unit_is_computed_again_without_its_status(tmp_path):
    """The remedy that every message about a shard names."""
    store = small_store(tmp_path / "s.zarr")
    fill(store)
    good = (store.path / "data/spatial/c.1.0.0").read_bytes()
    cut(store.path / "data/spatial/c.1.0.0")
    (store.path / "rows/status/c.1").unlink()
    assert store.status().tolist() == [OK] * 4 + [PENDING] * 4
    fill(store, store.units[1:])
    assert (store.path / "data/spatial/c.1.0.0").read_bytes() == good
    assert verify(store.path) == []


def test_commit_does_not_overwrite_damage_that_it_cannot_replace(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    fill(store, store.units[:1], failed=(1,))
    cut(store.path / "data/spatial/c.0.0.0")
    with pytest.raises(DamagedShard):
        store.commit(0, values(store, range(4)), [PENDING, OK, PENDING, PENDING])
    fill(store, store.units[:1])
    fill(store, store.units[1:])
    assert verify(store.path) == []


# ---------------------------------------------------------------------------------------------- two writers


def interleave(monkeypatch, step: int, other) -> None:
    """Runs `other()` just before the step-th file that a commit replaces (shards first, then the status)."""
    put, seen = ZarrFiles.put, []

    def put_after_the_other(self, name, data, generation):
        seen.append(name)
        if len(seen) == step:
            monkeypatch.setattr(ZarrFiles, "put", put)
            other()
        return put(self, name, data, generation)

    monkeypatch.setattr(ZarrFiles, "put", put_after_the_other)


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize("loser", ["first", "second"])
def test_an_ok_row_never_becomes_failed(tmp_path, monkeypatch, step, loser):
    """Two workers disagree about row 1, one commits in the middle of the other's commit."""
    first, second = small_store(tmp_path / "s.zarr"), open_store(tmp_path / "s.zarr")
    good, bad = [OK] * 4, [OK, FAILED, OK, OK]
    why = {1: ("damaged", "x")}
    arrays = values(first, range(4))

    def commit(store, fails):
        store.commit(0, arrays, bad if fails else good, why if fails else {})

    interleave(monkeypatch, step, lambda: commit(second, loser == "second"))
    commit(first, loser == "first")
    status = open_store(first.path).status(0)
    assert status.tolist() == good
    np.testing.assert_array_equal(first.read("spatial", [1])[0], arrays["spatial"][1].astype(np.float16))
    assert errors_of(first.path) == set()
    assert first.failures() == {}


def test_a_lost_write_is_committed_again(tmp_path, monkeypatch):
    """A shard that vanishes after it was written (an old NFS server) is noticed by the read back."""
    store = small_store(tmp_path / "s.zarr")
    write_status = stores.commit._write_status
    lost = []

    def lose_a_shard(files, *arguments):
        if not lost:
            lost.append(1)
            (files.path / "data/vector/c.0.0").unlink()
        return write_status(files, *arguments)

    monkeypatch.setattr(stores.commit, "_write_status", lose_a_shard)
    fill(store)
    assert lost and verify(store.path) == []


def test_a_disk_that_keeps_losing_writes_ends_in_an_error(tmp_path, monkeypatch):
    store = small_store(tmp_path / "s.zarr")
    monkeypatch.setattr(stores.commit, "_reads_back", lambda *_: False)
    monkeypatch.setattr(stores.commit.time, "sleep", lambda _: None)
    with pytest.raises(MachineError, match="did not read back") as error:
        fill(store)
    assert error.value.exit_code == 1


def test_a_row_whose_value_nobody_has_is_pending_again(tmp_path):
    store = small_store(tmp_path / "s.zarr")
    fill(store, store.units[:1])
    (store.path / "data/vector/c.0.0").unlink()
    status = store.commit(0, values(store, range(4)), [OK, OK, FAILED, PENDING], {2: ("damaged", "x")})
    assert status.tolist() == [OK, OK, PENDING, PENDING]
    fill(store)
    assert verify(store.path) == []


def test_many_writers_of_one_store(tmp_path):
    path = tmp_path / "s.zarr"
    small_store(path)
    problems = []

    def worker(number):
        try:
            store = open_store(path)
            for _ in range(3):
                fill(store, failed=(number,))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert open_store(path).status().tolist() == [OK] * 8
    assert verify(path) == []


def test_commit_after_a_seal_is_discarded(tmp_path):
    store, other = small_store(tmp_path / "s.zarr"), open_store(tmp_path / "s.zarr")
    fill(store, failed=(1,))
    store.seal()
    before = (store.path / "data/vector/c.0.0").read_bytes()
    with pytest.raises(StoreSealed):
        fill(other, salt=3)
    assert (store.path / "data/vector/c.0.0").read_bytes() == before


def test_a_live_process_survives_the_sweep_of_temporaries(tmp_path, monkeypatch):
    """Sealing removes half written files: one that is being written is written again."""
    store = small_store(tmp_path / "s.zarr")
    replace, swept = os.replace, []

    def replace_after_a_sweep(source, target):
        if not swept:
            swept.append(1)
            sweep(store.path)
        replace(source, target)

    monkeypatch.setattr(stores.manifest.os, "replace", replace_after_a_sweep)
    store.write_provenance("run", {"host": "here"})
    assert swept and verify(store.path) == []
    (store.path / "data/vector/c.0.0_123456789abcde.__lock").write_bytes(b"x")
    (store.path / "sealed/.seal.0123456789abcdef.tmp").mkdir(parents=True)
    (tmp_path / ".s.zarr.0123456789abcdef.tmp").mkdir()
    fill(store)
    store.seal()
    assert os.listdir(tmp_path) == ["s.zarr"] and verify(store.path) == []


def test_race_on_creation(tmp_path):
    path, made, problems = tmp_path / "s.zarr", [], []
    barrier = threading.Barrier(4)

    def create(number):
        try:
            barrier.wait()
            made.append(new_store(path, arrays=SMALL, recipe={"number": number}))
        except Exception as error:
            problems.append(error)

    threads = [threading.Thread(target=create, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert len({store.manifest.recipe["number"] for store in made}) == 1
    assert os.listdir(tmp_path) == ["s.zarr"]


# ------------------------------------------------------------------------------------------------- machines


def test_disk_full_says_so_and_loses_nothing(tmp_path):
    """A file size limit is what the operating system says of a full quota; shards here are larger, status not."""
    store = small_store(tmp_path / "s.zarr")
    fill(store, store.units[:1])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20000, hard))
    try:
        with pytest.raises(MachineError, match="no space left.*spatial.*safe.*run the same command again") as error:
            fill(store, store.units[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.exit_code == 1
    assert store.status().tolist() == [OK] * 4 + [PENDING] * 4
    assert verify(store.path) == []
    fill(store)
    assert verify(store.path) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_small_files_that_cannot_be_written(tmp_path, monkeypatch, code):
    store = small_store(tmp_path / "s.zarr")
    monkeypatch.setattr(stores.manifest.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    expected = UserError if code == errno.EACCES else MachineError
    with pytest.raises(expected):
        store.write_probe(0, {"fps": 1})
    with pytest.raises(expected):
        small_store(tmp_path / "t.zarr")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["s.zarr"] and store.probe(0) is None
    assert verify(store.path) == []


def test_killed_at_random_moments_and_run_again_gives_the_same_bytes(tmp_path):
    """kill -9 while the store is created, filled, sealed."""
    n, reference, path = 9, tmp_path / "reference.zarr", tmp_path / "out" / "s.zarr"
    command = [sys.executable, "-m", "tests.store_samples"]
    work(str(reference), n)
    rng = np.random.default_rng()
    began = time.monotonic()
    longest = _run_until_ready(command, tmp_path / "timed.zarr", n)
    kills = 0
    while kills < 10 and time.monotonic() - began < 15:
        child = subprocess.Popen([*command, str(path), str(n)], cwd=ROOT, stdout=subprocess.PIPE)
        child.stdout.readline()
        try:
            child.wait(rng.uniform(0, longest * 0.6))
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
            kills += 1
            if path.exists():
                assert errors_of(path) == set(), verify(path)
        else:
            assert same_tree(reference, path) == []
            shutil.rmtree(path)
    work(str(path), n)
    assert kills >= 3
    assert same_tree(reference, path) == []
    assert os.listdir(path.parent) == ["s.zarr"]
    assert verify(path) == []


def _run_until_ready(command, path, n) -> float:
    """Seconds that the work takes in a process of its own, start of Python apart."""
    child = subprocess.Popen([*command, str(path), str(n)], cwd=ROOT, stdout=subprocess.PIPE)
    child.stdout.readline()
    began = time.monotonic()
    assert child.wait() == 0
    return time.monotonic() - began
