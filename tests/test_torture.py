"""A seeded sample of every campaign of benchmarks/torture.py: stores killed, damaged, half copied, cut from power.

The whole campaigns are the benchmark's.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import power_loss  # noqa: E402
import torture  # noqa: E402

SAMPLE = {"kill": 7, "flip": 6, "truncate": 5, "delete": 5, "rsync": 4, "mixed": 4, "full": 9}


@pytest.mark.parametrize("name", SAMPLE)
def test_campaign(tmp_path, name):
    outcome = torture.campaign(name, tmp_path, seed=1, n=SAMPLE[name])
    assert outcome.broken == [] and outcome.trials == SAMPLE[name]


@pytest.mark.skipif(not power_loss.has_strace(), reason="strace is not there, or may not trace")
@pytest.mark.parametrize("job, cuts", [("extract", 5), ("relabel", 5)])
def test_power_cuts(tmp_path, job, cuts):
    outcome = torture.campaign("power", tmp_path, seed=1, n=cuts, only=(job,))
    assert outcome.broken == [] and outcome.trials == cuts


def test_without_strace_the_campaign_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = torture.campaign("power", tmp_path, seed=1, n=5)
    assert outcome.trials == 0 and "strace" in outcome.line()


def test_a_disk_without_a_journal_keeps_what_was_synced(tmp_path):
    """The model itself: of two files and a rename only what was fsynced, folder included, is left."""
    log = tmp_path / "calls"
    (root := tmp_path / "root").mkdir()
    script = (
        "import os, sys\nos.chdir(sys.argv[1])\nroot = os.getcwd()\n"
        "def put(name, data, sync):\n"
        "    with open(f'{root}/{name}', 'wb') as file:\n"
        "        file.write(data); file.flush(); sync and os.fsync(file.fileno())\n"
        "def sync():\n    fd = os.open(root, os.O_RDONLY); os.fsync(fd); os.close(fd)\n"
        "put('kept', b'one', True); put('hollow', b'two', False); sync()\n"
        "put('kept', b'other', False); put('nameless', b'three', True); os.rename(f'{root}/hollow', f'{root}/later')\n"
    )
    (before := tmp_path / "before").mkdir()
    calls = power_loss.record([sys.executable, "-c", script, str(root)], log) if power_loss.has_strace() else None
    if calls is None:
        pytest.skip("strace is not there, or may not trace")
    disk = power_loss.Disk(root, before)
    for call in calls:
        disk.apply(call)
    disk.rebuild(tmp_path / "left")
    assert {p.name: p.read_bytes() for p in (tmp_path / "left").iterdir()} == {"kept": b"one", "hollow": b""}
    disk.rebuild(tmp_path / "names", keep_names=True)
    left = {p.name: p.read_bytes() for p in (tmp_path / "names").iterdir()}
    assert left == {"kept": b"one", "later": b"", "nameless": b"three"}


def test_a_number_that_is_closed_and_opened_at_once_is_the_new_file(tmp_path):
    """Two threads: the number is free when `close` begins, and the other's file has it before `close` returns."""
    name = {letter: "".join(f"\\x{byte:02x}" for byte in f"/disk/{letter}".encode()) for letter in "ab"}
    top = "".join(f"\\x{byte:02x}" for byte in b"/disk")
    log = [
        f'1 openat(AT_FDCWD, "{name["a"]}", O_WRONLY|O_CREAT, 0666) = 7',
        "1 close(7 <unfinished ...>",
        f'2 openat(AT_FDCWD, "{name["b"]}", O_WRONLY|O_CREAT, 0666) = 7',
        "1 <... close resumed>) = 0",
        '2 write(7, "\\x78", 1) = 1',
        "2 fsync(7 <unfinished ...>",
        f'1 openat(AT_FDCWD, "{top}", O_RDONLY) = 8',
        "2 <... fsync resumed>) = 0",
        "1 fsync(8) = 0",
    ]
    (before := tmp_path / "before").mkdir()
    disk = power_loss.Disk(Path("/disk"), before)
    for _, call in power_loss._calls(log):
        disk.apply(call)
    disk.rebuild(tmp_path / "left")
    assert {p.name: p.read_bytes() for p in (tmp_path / "left").iterdir()} == {"a": b"", "b": b"x"}
