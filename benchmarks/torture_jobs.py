"""What torture.py does to small stores: one job each for extraction, growth, labels, repair, merge, copy and packing.

    python benchmarks/torture_jobs.py JOB FOLDER     one job, as strace records it
    python benchmarks/torture_jobs.py --serve        jobs in forked children, killed when told (see `Workers`)

The network is a fake: a row's values come from a hash of its clip, so every store that has the row holds the same, and
any value that is read can be checked. A job that was stopped anywhere is run again until it is done.
"""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from errors import MachineError, UserError
from stores import (
    ABSENT,
    FAILED,
    OK,
    PENDING,
    ArraySpec,
    Manifest,
    Store,
    create_store,
    extend,
    open_store,
    pack,
    plan_layout,
    repair_store,
    seal_repaired,
)
from stores.copy import copy_store
from stores.merge import merge
from stores.relabel import relabel

ROWS, MORE, UNIT_ROWS = 10, 5, 4
ARRAYS = {
    "spatial": ArraySpec((2, 16400), "float16"),  # one row a chunk
    "vector": ArraySpec((7,), "float32"),  # a chunk holds a whole unit
    "text": ArraySpec((12,), "uint8"),
}
VIDEOS = ("P01_01", "a/b ü", "..")
PROBE = {"fps": 25.0, "n_frames": 100, "kind": "file", "content_hash": "x", "geometry": [7.0, 7.0, -0.5, 0.0]}


# ---------------------------------------------------------------------------------------------- a fake network


def tables(n: int = ROWS, verbs: int = 5) -> dict[str, dict[str, np.ndarray]]:
    """n clips of one second, one row each; the first ROWS are of three videos, those that come later of a fourth."""
    names = [*VIDEOS, "later"] if n > ROWS else list(VIDEOS)
    index = np.arange(n, dtype=np.int32)
    video = np.where(index < ROWS, index * 3 // ROWS, 3).astype(np.int32)
    start = np.arange(n, dtype=np.float64)
    rows = {"video": video, "clip": index, "k": 0 * index, "draw": (0 * index).astype(np.int16)}
    clips = {"id": np.array([f"clip {i} é" for i in range(n)], object), "video": video, "verb": index % verbs}
    clips["split"] = np.array(["train" if i % 2 else "val" for i in range(n)], object)
    times = {"start_s": start, "stop_s": start + 1}
    videos = {"name": np.array(names, object), "path": np.array([f"{name}.mp4" for name in names], object)}
    return {"rows": {**rows, **times}, "clips": {**clips, **times}, "videos": videos}


def row_values(clip: str, name: str, spec: ArraySpec, version: int = 0) -> np.ndarray:
    """What the fake network says of a clip; half of it zero, as after a ReLU."""
    rng = np.random.default_rng([zlib.crc32(f"{clip}/{name}".encode()), version])
    if np.dtype(spec.dtype).kind != "f":
        return rng.integers(1, 100, spec.row_shape).astype(spec.dtype)
    return np.maximum(rng.normal(size=spec.row_shape), 0).astype(spec.dtype)


def row_status(clip: str) -> int:
    """Some clips always fail, some have no such modality."""
    return {3: FAILED, 8: ABSENT}.get(int(clip.split()[1]), OK)


def compute(store: Store, units: list[int] | None = None, version: int = 0) -> None:
    """Commits what is pending, of these units (all)."""
    for video in store.videos["name"]:
        store.write_probe(video, PROBE)
    for unit in store.units:
        if (units is None or unit.index in units) and (store.status(unit) == PENDING).any():
            clips = [str(store.clips["id"][store.rows["clip"][row]]) for row in range(unit.start, unit.stop)]
            status = np.array([row_status(clip) for clip in clips])
            arrays = {
                name: np.array([row_values(clip, name, spec, version) for clip in clips])
                for name, spec in store.manifest.arrays.items()
                if name in ARRAYS
            }
            why = {unit.start + int(j): ("damaged", "no frame") for j in np.flatnonzero(status == FAILED)}
            store.commit(unit, arrays, status, why)
            say(f"committed {unit.index}")


def say(line: str) -> None:
    """A line that strace records; only jobs say something, not what makes their beginnings."""
    if _is_job:
        os.write(1, f"{line}\n".encode())


def new_store(path: Path, n: int = ROWS) -> Store:
    layout = plan_layout(ARRAYS, UNIT_ROWS, batch_size=2, unit_rows=UNIT_ROWS)
    manifest = Manifest(ARRAYS, layout, {"network": {"name": "fake"}, "dtype": "float16"})
    return create_store(path, manifest, **tables(n))


def finish(path: Path) -> None:
    """Computes what is pending, and seals."""
    store = open_store(path)
    if not store.sealed:
        compute(store)
        store.seal()
    say("sealed")


# ----------------------------------------------------------------------------------------------------- the jobs


def sealed_store(path: Path, version: int = 0, grow: bool = True) -> None:
    """Sealed, grown, and sealed again; or but the first. version: of the fake network."""
    store = new_store(path)
    compute(store, version=version)
    store.seal()
    if not grow:
        return
    grown = extend(path, **tables(ROWS + MORE))
    compute(grown, version=version)
    grown.seal()


def _one_sealed(name: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        compute(store := new_store(folder / name))
        store.seal()

    return prepare


def _two_parts(folder: Path) -> None:
    for name, units in (("a", [0]), ("b", [1, 2])):
        compute(new_store(folder / f"{name}.zarr"), units)


def _damaged(folder: Path) -> None:
    path = folder / "s.zarr"
    sealed_store(path)
    (path / "data/spatial/c.0.0.0").write_bytes(b"")
    (path / "data/vector/c.2.0").unlink()
    for name in ("rows/status/c.1", "clips/verb/c.0", "probes/later.json", "rows/zarr.json"):
        (path / name).write_bytes((path / name).read_bytes()[:-3])


def _extract(folder: Path) -> None:
    new_store(folder / "s.zarr")
    finish(folder / "s.zarr")


def _extend(folder: Path) -> None:
    extend(folder / "s.zarr", **tables(ROWS + MORE))
    finish(folder / "s.zarr")


def _relabel(folder: Path) -> None:
    clips = tables(verbs=3)["clips"]
    relabel(folder / "s.zarr", {"id": clips["id"], "verb": clips["verb"], "noun": clips["verb"] + 1})
    finish(folder / "s.zarr")


def _repair(folder: Path) -> None:
    repair(folder / "s.zarr")


def repair(path: Path, version: int = 0) -> None:
    """What `store repair` does, with the fake network of this version."""
    restored = repair_store(path)
    store = open_store(path)
    if not store.sealed:
        compute(store, version=version)
        seal_repaired(path, restored.seal)
    say("sealed")


def _merge(folder: Path) -> None:
    merge([folder / "a.zarr", folder / "b.zarr"], folder / "s.zarr")
    say("sealed")


def _copy(folder: Path) -> None:
    copy_store(folder / "a.zarr", folder / "s.zarr", unit_rows=3, level=3)
    say("sealed")


def _pack(folder: Path) -> None:
    if not (folder / "s.h5").exists():
        pack(folder / "a.zarr", folder / "s.h5")
    say("sealed")


def _nothing(folder: Path) -> None:
    folder.mkdir(exist_ok=True)


JOBS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "extract": (_nothing, _extract),
    "merge": (_two_parts, _merge),
    "copy": (_one_sealed("a.zarr"), _copy),
    "extend": (_one_sealed("s.zarr"), _extend),
    "relabel": (_one_sealed("s.zarr"), _relabel),
    "pack": (_one_sealed("a.zarr"), _pack),
    "repair": (_damaged, _repair),
}
"""{name: (makes what a job begins with in a folder, the job itself)}. What a job makes is `target_of` it."""


def target_of(job: str) -> str:
    """The store that a job makes or changes, in its folder."""
    return "s.h5" if job == "pack" else "s.zarr"


# -------------------------------------------------------------------------------------------------- processes

EXITS = {MachineError: 1, UserError: 2}
UNEXPECTED = 70
_is_job = False


def _run(job: str, folder: Path, limit: int | None = None) -> int:
    """Exit code of a job, in this process. limit: bytes that no file may exceed."""
    global _is_job
    _is_job = True
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        JOBS[job][1](folder)
        return 0
    except (MachineError, UserError) as error:
        print(f"{job}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return next(code for kind, code in EXITS.items() if isinstance(error, kind))
    except BaseException:
        traceback.print_exc()
        return UNEXPECTED


def _serve() -> int:
    """Lines of what `Workers.run` was given in, exit codes out (-9: killed), each job in a forked child."""
    answers = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    for line in sys.stdin:
        asked = json.loads(line)
        with _disk(Path(asked["folder"]), asked["disk"]):
            status = _attend(asked)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    return 0


def _attend(asked: dict) -> int:
    """Runs a job and, at its moment, does what was asked; the status of its process."""
    folder, interrupt = Path(asked["folder"]), INTERRUPTS.get(asked["then"])
    if interrupt and asked["after"] == 0:
        interrupt(0, folder)
    pid = os.fork()
    if not pid:
        os._exit(_run(asked["job"], folder, asked["limit"]))
    began, done, status = time.monotonic(), 0, 0
    while interrupt and asked["after"] and not done:
        done, status = os.waitpid(pid, os.WNOHANG)
        if not done and time.monotonic() - began >= asked["after"] and interrupt(pid, folder):
            break
        time.sleep(0.0005)
    if not done:
        _, status = os.waitpid(pid, 0)
    if asked["then"] == "permission":
        _set_folders(folder, 0o755)
    return status


def _kill(pid: int, _: Path) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


def _take_permission(_: int, folder: Path) -> bool:
    _set_folders(folder, 0o555)
    return True


def _make_read_only(_: int, folder: Path) -> bool:
    """False where a file is open for writing just now: to be tried again."""
    return not subprocess.run(["mount", "-o", "remount,ro", folder], capture_output=True).returncode


INTERRUPTS: dict[str | None, Callable[[int, Path], bool]] = {
    "kill": _kill,
    "permission": _take_permission,
    "read-only": _make_read_only,
}
"""{what may happen to a job at some moment: does it to (process, folder) and says whether it is done}."""


def _set_folders(folder: Path, mode: int) -> None:
    for parent, _, _ in os.walk(folder):
        os.chmod(parent, mode)


@contextlib.contextmanager
def _disk(folder: Path, options: str | None) -> Iterator[None]:
    """A file system of its own for the folder, in memory, made with these mount options; None: where it is."""
    if options is None:
        yield
        return
    beside = folder.rename(folder.with_name(f"{folder.name}-beside"))
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    try:
        shutil.copytree(beside, folder, dirs_exist_ok=True)
        yield
        shutil.rmtree(beside)
        shutil.copytree(folder, beside)
    finally:
        subprocess.run(["umount", folder], check=True)
        folder.rmdir()
        beside.rename(folder)


OWN_MOUNTS = ["unshare", "--user", "--map-root-user", "--mount"]
NO_OVERRIDE = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]
"""Without these capabilities root, too, may write only where the permissions say so."""


def has_own_mounts() -> bool:
    """Whether a user may have file systems of his own here."""
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        return False
    try_one = ["sh", "-c", "mount -t tmpfs none /mnt"]
    return not subprocess.run([*OWN_MOUNTS, *NO_OVERRIDE, *try_one], capture_output=True).returncode


class Workers:
    """Runs jobs in processes forked by a server that has imported everything and used nothing: a few ms each.

    own_mounts: they may have disks of their own, and root has no more rights than its permissions give.
    """

    def __init__(self, log: Path, own_mounts: bool = False):
        self.log, self.own_mounts = log, own_mounts
        before = [*OWN_MOUNTS, *NO_OVERRIDE] if own_mounts else []
        with log.open("ab") as errors:
            self._server = subprocess.Popen(
                [*before, sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors,
            )  # fmt: skip

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def run(
        self,
        job: str,
        folder: Path,
        then: str | None = None,
        after: float = 0,
        limit: int | None = None,
        disk: str | None = None,
    ) -> int:
        """The job's exit code: 0 done, -9 killed, 1 MachineError, 2 UserError, UNEXPECTED anything else.

        then, after: one of INTERRUPTS, and seconds after which (0: before it begins) it happens. limit: bytes that no
        file may exceed. disk: mount options of a file system that the folder lies in meanwhile.
        """
        asked = {"job": job, "folder": str(folder), "then": then, "after": after, "limit": limit, "disk": disk}
        self._server.stdin.write(f"{json.dumps(asked)}\n".encode())
        self._server.stdin.flush()
        return int(self._server.stdout.readline())

    def last_words(self) -> str:
        """The end of what the jobs have complained of."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


if __name__ == "__main__":
    sys.exit(_serve() if sys.argv[1] == "--serve" else _run(sys.argv[1], Path(sys.argv[2])))
