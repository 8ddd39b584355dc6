"""Leases keep workers from computing a unit twice, and never decide what is right."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import media
import numpy as np
import pytest

from errors import UserError
from pipelines import Extraction, extract
from stores import ArraySpec, Leases, open_store, verify
from tests.store_samples import fill, new_store

pytestmark = pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning")
ROOT = Path(__file__).resolve().parents[1]


def leave(store: Path, unit: int, *, age_s: float = 0, **facts) -> Path:
    """The lease of a worker that is gone, or of one on another machine."""
    path = store / "leases" / f"{unit}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "time": "", "process": "x", **facts}))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


# ---- one unit ----------------------------------------------------------------------------------------------------


def test_a_unit_is_had_by_one_living_worker(tmp_path):
    left = leave(tmp_path, 3)
    with Leases(tmp_path, stale_s=60) as leases:
        assert leases.take(2) and leases.take(2) and not leases.take(3)
        assert {p.name for p in (tmp_path / "leases").iterdir()} == {"2.json", "3.json"}
        facts = json.loads((tmp_path / "leases" / "2.json").read_text())
        assert facts["pid"] == os.getpid() and {"host", "time"} <= set(facts)
    assert {p.name for p in (tmp_path / "leases").iterdir()} == {"3.json"}
    left.unlink()
    with Leases(tmp_path, stale_s=60) as leases:
        assert leases.take(3)
        leases.release(3)
        leases.release(3)
        assert leases.take(3)
    assert not (tmp_path / "leases").exists()


def test_without_a_sign_of_life_it_is_taken_over(tmp_path):
    leave(tmp_path, 0, age_s=61)
    leave(tmp_path, 1, age_s=59)
    with Leases(tmp_path, stale_s=60) as leases:
        assert leases.take(0) and not leases.take(1)


def test_work_keeps_a_lease_alive(tmp_path):
    with Leases(tmp_path, stale_s=0.2) as leases:
        leases.take(0)
        path = tmp_path / "leases" / "0.json"
        os.utime(path, (0, 0))
        leases.refresh()
        assert path.stat().st_mtime == 0, "not at every call"
        time.sleep(0.03)
        leases.refresh()
        assert path.stat().st_mtime > time.time() - 10


def test_a_process_that_ended_here_holds_nothing(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with Leases(tmp_path) as leases:
        leave(tmp_path, 0, host=os.uname().nodename, pid=child.pid)
        assert leases.take(0)
        leave(tmp_path, 1, host=os.uname().nodename, pid=os.getppid())
        assert not leases.take(1)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', '{"pid": "x"}'])
def test_an_unreadable_lease_is_judged_by_its_age(tmp_path, text):
    path = leave(tmp_path, 0)
    path.write_text(text)
    with Leases(tmp_path, stale_s=60) as leases:
        assert not leases.take(0)
        os.utime(path, (0, 0))
        assert leases.take(0)


def test_another_worker_in_this_process_is_not_waited_for(tmp_path):
    with Leases(tmp_path) as one, Leases(tmp_path) as other:
        assert one.take(0) and other.take(0)


def test_a_lease_that_was_taken_over_is_not_given_back(tmp_path):
    with Leases(tmp_path, stale_s=60) as leases:
        leases.take(0)
        leave(tmp_path, 0)
    assert (tmp_path / "leases" / "0.json").exists()


def test_where_no_lease_can_be_written_work_goes_on(tmp_path):
    (tmp_path / "leases").write_text("a file where the folder should be")
    with Leases(tmp_path) as leases:
        assert leases.take(0)
        leases.refresh()


def test_the_time_to_wait_is_a_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIPBANK_LEASE_S", "12.5")
    assert Leases(tmp_path).stale_s == 12.5
    for wrong in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("CLIPBANK_LEASE_S", wrong)
        with pytest.raises(UserError, match="CLIPBANK_LEASE_S"):
            Leases(tmp_path)


# ---- a store with leases left in it ------------------------------------------------------------------------------


def test_what_is_left_is_noted_and_swept_by_a_seal(tmp_path):
    store = new_store(tmp_path / "s.zarr")
    leave(store.path, 1)
    fill(store)
    (found,) = verify(store.path)
    assert (found.severity, found.path) == ("note", "leases/1.json") and "harmless" in found.remedy
    assert len(open_store(store.path).read("vector", range(7))) == 7
    store.seal()
    assert not (store.path / "leases").exists() and verify(store.path) == []
    leave(store.path, 0)
    assert [f.severity for f in verify(store.path)] == ["note"]


# ---- many processes ----------------------------------------------------------------------------------------------


WORKER = """
import sys, time, warnings
warnings.simplefilter("ignore")
sys.path[:0] = [sys.argv[1]]
from extract.networks.base import Network
from pipelines import Extraction, extract
run = Network.run
def slow(self, batch):
    time.sleep(float(sys.argv[5]))
    return run(self, batch)
Network.run = slow
import torch
torch.set_num_threads(1)
(report,) = extract(Extraction(dataset=sys.argv[2], videos=sys.argv[3], features=(sys.argv[4],), backbone="tiny3d",
    weights=("random:0",), draws=0, unit_rows=2))
print(report.computed, report.complete, report.pending)
"""


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kitchen")
    (folder / "videos").mkdir()
    media.make_video(folder / "videos" / "one.mp4", "libx264", 90, options=media.x264(keyint=20))
    lines = [f"one,{i / 10:.1f},{i / 10 + 1:.1f}" for i in range(24)]
    (folder / "small.csv").write_text("\n".join(["video,start,stop", *lines]) + "\n")
    return folder


def start(kitchen: Path, features: Path, seconds: float, **environment) -> subprocess.Popen:
    arguments = [ROOT, kitchen / "small.csv", kitchen / "videos", features, seconds]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def single(kitchen: Path, features: Path):
    return extract(
        Extraction(
            dataset=str(kitchen / "small.csv"),
            videos=kitchen / "videos",
            features=(features,),
            backbone="tiny3d",
            weights=("random:0",),
            draws=0,
            unit_rows=2,
        )
    )[0]


def runs_of(store: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in (store / "provenance").iterdir()]


def test_three_processes_compute_each_unit_once(kitchen, tmp_path):
    (expected) = open_store(single(kitchen, tmp_path / "alone").store)
    workers = []
    for _ in range(3):
        workers.append(start(kitchen, tmp_path / "many", 0.2))
        time.sleep(0.3)
    outputs = [worker.communicate(timeout=120) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0, 0], outputs
    assert all(out.split()[1:] == ["True", "0"] for out, _ in outputs), outputs
    store = open_store(tmp_path / "many" / "small" / "tiny3d.zarr")
    assert store.sealed and not (store.path / "leases").exists()
    runs = runs_of(store.path)
    assert sum(run["units"] for run in runs) == len(store.units) == 12 and sum(run["rows"] for run in runs) == 24
    assert len(runs) > 1, "they shared the work"
    for name in store.manifest.arrays:
        np.testing.assert_allclose(store.read(name, store.ok), expected.read(name, expected.ok), atol=2e-3)
    assert [f for f in verify(store.path) if f.severity == "error"] == []


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_units_of_a_killed_worker_are_taken_over(kitchen, tmp_path, monkeypatch, elsewhere):
    """On this host at once; of another machine, whose processes nobody sees, when its leases are stale."""
    path = tmp_path / "f" / "small" / "tiny3d.zarr"
    worker = start(kitchen, tmp_path / "f", 1.0)
    while worker.poll() is None and not list((path / "leases").glob("*.json")):
        time.sleep(0.05)
    worker.kill()
    worker.communicate()
    left = sorted((path / "leases").glob("*.json"))
    assert left
    if elsewhere:
        for file in left:
            leave(path, int(file.stem))
    monkeypatch.setenv("CLIPBANK_LEASE_S", "2")
    began = time.monotonic()
    report = single(kitchen, tmp_path / "f")
    assert report.complete and report.sealed == 1 and time.monotonic() - began < 60
    assert not (path / "leases").exists()


def test_a_stop_is_not_kept_waiting_by_the_units_of_others(kitchen, tmp_path):
    import threading

    whole = single(kitchen, tmp_path / "whole")
    path = Path(shutil.copytree(tmp_path / "whole", tmp_path / "f")) / "small" / "tiny3d.zarr"
    store = open_store(path)
    store.unseal()
    (path / "rows" / "status" / "c.5").unlink()
    leave(path, 5)
    stop = threading.Event()
    timer = threading.Timer(2, stop.set)
    timer.start()
    request = Extraction(
        dataset=str(kitchen / "small.csv"),
        videos=kitchen / "videos",
        features=(tmp_path / "f",),
        backbone="tiny3d",
        weights=("random:0",),
        draws=0,
    )
    (report,) = extract(request, stop=stop)
    timer.cancel()
    assert report.stopped and report.pending == report.left == 2 and report.computed == 0 and whole.complete


def test_workers_that_finish_together_seal_together(tmp_path):
    """They all see the last row done at the same moment: each sweeps what the others have half written."""
    from concurrent.futures import ThreadPoolExecutor

    for number in range(3):
        store = new_store(tmp_path / f"{number}.zarr", arrays={"vector": ArraySpec((3,), "float32")})
        fill(store)
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(open_store(store.path).seal) for _ in range(4)]:
                done.result()
        assert open_store(store.path).manifest.seal["k"] == 1
        assert os.listdir(store.path / "sealed") == ["1"] and verify(store.path) == []
