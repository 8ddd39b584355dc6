"""Small stores killed, damaged, half copied, cut from power and out of space, thousands of times.

    python benchmarks/torture.py [--seed 0] [--n N] [--only kill ...] [--first 0]

Torch-free: the network is a fake (torture_jobs.py). Prints for every campaign how many trials held, and of each that
did not its number; `--seed S --only CAMPAIGN --first NUMBER --n 1` repeats it (but for the moment of a kill, which the
machine decides too). Exit 1 if anything broke.

kill      kill -9 at random moments of extract, merge, copy, extend, relabel, pack and repair: no row lost, there twice
          or wrong, and in the end every file is that of an uninterrupted run.
flip      one random bit of a sealed store; truncate: to any length, zero too; delete: one file. `verify` names this
          very file, whatever bit it was (`verify --quick` if it is missing or resized); reads of rows and tables
          raise, and never give other values; repair makes the store what it was, byte for byte.
rsync     a copy, or an update of another version, in random order, that stopped, one file cut: every file that is not
          as the root's seal says is named, reads as for flip; repair makes the store what it was, byte for byte, or
          says that it cannot.
mixed     some files of another version of the store, one with other values or this one before it grew: as rsync.
power     the writer's system calls, recorded by strace, played to a disk that drops all that was not fsynced: the
          store is valid, units whose commit had returned are there, and run again it ends in the same bytes.
full      a limit on files' sizes, a small disk, one without inodes, a quota, failing calls, a read-only disk or folder,
          both from the beginning and midway: MachineError or UserError that names the place, the store is valid, and
          run again it ends in the same bytes. What cannot be had without strace or unshare is skipped, and said so.

Damage is done to what the current version of a store consists of; not to older seals and provenance, which no reader
reads.
"""

import argparse
import random
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import power_loss
import torture_jobs as jobs
from machine import print_machine
from measuring import work_folder

from errors import MachineError, UserError
from stores import Store, open_store, verify

RAISED = "raised"
WHOLE = ("data/", "status", "rows/", "clips/", "videos/")
"""What must never be read with other values; probes and failures are plain JSON, whose damage `verify` names."""


@dataclass
class Outcome:
    """What a campaign found: trials done, those in which something broke (in words), and remarks."""

    name: str
    trials: int = 0
    broken: list[str] = field(default_factory=list)
    remarks: dict[str, int] = field(default_factory=dict)

    def remark(self, what: str) -> None:
        self.remarks[what] = self.remarks.get(what, 0) + 1

    def line(self) -> str:
        remarks = "".join(f", {count} {what}" for what, count in self.remarks.items())
        held = self.trials - len({line.partition(":")[0] for line in self.broken})
        return f"{self.name:9} {self.trials:5} trials, {held:5} held{remarks}"


def trials(name: str, seed: int, n: int, first: int, outcome: Outcome) -> Iterator[tuple[int, random.Random]]:
    """(number, its own source of random numbers): any trial can be repeated alone."""
    for number in range(first, first + n):
        outcome.trials += 1
        yield number, random.Random(f"{seed}/{name}/{number}")


# ----------------------------------------------------------------------------------------- what a reader is given


def reading(path: Path, rows: int) -> dict[str, Any]:
    """{what: value, or RAISED} of everything that a store of so many rows gives; errors that are not ours go on."""

    def attempt(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (MachineError, UserError):
            return RAISED

    store = attempt(lambda: open_store(path))
    if store is RAISED:
        return {"open": RAISED}
    found: dict[str, Any] = {"status": attempt(store.status), "failures": attempt(store.failures)}
    for name in ("rows", "clips", "videos"):
        table = attempt(lambda name=name: getattr(store, name))
        for column in table if table is not RAISED else ():
            found[f"{name}/{column}"] = attempt(lambda table=table, column=column: table[column].copy())
    for video in (*jobs.VIDEOS, "later"):
        found[f"probes/{video}"] = attempt(lambda video=video: store.probe(video))
        found[f"geometry/{video}"] = attempt(lambda video=video: store.geometry(video))
    for name in store.manifest.arrays:
        for row in range(rows):
            found[f"data/{name}/{row}"] = attempt(lambda name=name, row=row: store.read(name, [row])[0])
    return found


def equal(one: Any, other: Any) -> bool:
    """Whether two readings of one thing are the same, bit for bit."""
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same_kind = one.dtype == other.dtype and one.shape == other.shape
        return same_kind and (
            one.tolist() == other.tolist() if one.dtype == object else one.tobytes() == other.tobytes()
        )
    return type(one) is type(other) and not isinstance(one, np.ndarray) and one == other


def changed(expected: dict, now: dict) -> list[str]:
    """What is not given any more as it was."""
    return [name for name in expected if name not in now or not equal(expected[name], now[name])]


def wrong(now: dict, *allowed: dict) -> list[str]:
    """What is given as no version of the store has it."""
    return [
        name
        for name, value in now.items()
        if name.startswith(WHOLE) and not equal(value, RAISED) and not any(equal(value, of.get(name)) for of in allowed)
    ]


def errors(path: Path, quick: bool = False) -> list[str]:
    """The objects that `verify` calls damaged."""
    return [finding.path for finding in verify(path, quick=quick) if finding.severity == "error"]


def unnamed(path: Path, now: dict[str, bytes], was: dict[str, bytes], quick: bool = False) -> list[str]:
    """Files that are not what they were and that `verify` does not name. quick: that are missing or of another size.

    A file that was there has to be an error, one that was not any finding.

    What is let off, here and nowhere else: where the seal's own list of digests is harmed, and named, nobody can tell
    a whole file of another version from the right one, or say which failures and probes there were. Then of the rest
    what is missing has to be named, be it by the folder that it is missing from or the status without which it cannot
    be read, and reads of rows and tables are held to what a version of the store says all the same.
    """
    found = verify(path, quick=quick)
    named, wrong = ({f.path for f in found if f.severity in kinds} for kinds in (("error", "note"), ("error",)))
    listed = {name for name in was if name.startswith("sealed/") and "/digests/" in name}
    length = len if quick else bytes
    lost = [name for name, data in was.items() if name not in now or length(now[name]) != length(data)]
    if any(now.get(name) != was[name] for name in listed):
        missing = [name for name in lost if name in listed or name not in now]
        missing = [name for name in missing if not name.startswith(("failures/", "probes/"))]
        missed = [name for name in missing if wrong.isdisjoint(_itself_and_what_holds(name))]
    else:
        missed = [name for name in lost if name not in wrong]
    return missed + [name for name in now if name not in named | was.keys()]


def _itself_and_what_holds(name: str) -> set[str]:
    """`a/b/c.0`: itself, the folders `a/b` and `a`, the `zarr.json` of these; of a shard also its unit's status."""
    folders = [str(folder) for folder in PurePosixPath(name).parents][:-1]
    holders = {name, *folders, *(f"{folder}/zarr.json" for folder in folders)}
    if name.startswith("data/") and "/c." in name:
        holders |= {f"rows/status/c.{name.split('/c.')[1].partition('.')[0]}", "rows/status/zarr.json"}
    return holders


def contents(path: Path, current: int | None = None) -> dict[str, bytes]:
    """{file: bytes} of a store but its provenance, and (current: number of the seal) but other seals."""
    if path.is_file():
        return {path.name: path.read_bytes()}
    files = {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*")) if p.is_file()}
    kept = f"sealed/{current}/" if current else ""
    return {
        name: p.read_bytes()
        for name, p in files.items()
        if not name.startswith("provenance/") and (name.startswith(kept) or not name.startswith("sealed/"))
    }


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def ok_rows(store: Store) -> dict[tuple, int]:
    """{(video, clip, draw, k): row} of the rows that are ok. Raises ValueError if a row is there twice."""
    rows = {name: store.rows[name] for name in ("video", "clip", "draw", "k")}
    keys = {}
    for row in np.flatnonzero(store.visible).tolist():
        video, clip = store.videos["name"][rows["video"][row]], store.clips["id"][rows["clip"][row]]
        key = (str(video), str(clip), int(rows["draw"][row]), int(rows["k"][row]))
        if key in keys:
            raise ValueError(f"row {key} is there twice")
        keys[key] = row
    ok = set(store.ok.tolist())
    return {key: row for key, row in keys.items() if row in ok}


def untrue(path: Path, before: dict[tuple, int]) -> tuple[str, dict[tuple, int]]:
    """(what is not as it should be in a store that may be unfinished, "" if nothing; its rows that are ok)."""
    if not path.exists():
        return ("the store is gone" if before else ""), {}
    if found := errors(path):
        return f"verify names {', '.join(found[:3])}", {}
    store = open_store(path)
    try:
        ok = ok_rows(store)
    except ValueError as error:
        return str(error), {}
    if lost := set(before) - set(ok):
        return f"{len(lost)} rows were ok and are not, one is {min(lost)}", ok
    for name, spec in jobs.ARRAYS.items():
        values = store.read(name, sorted(ok.values()))
        clips = [clip for (_, clip, *_), _ in sorted(ok.items(), key=lambda item: item[1])]
        for clip, value in zip(clips, values, strict=True):
            if not np.array_equal(value, jobs.row_values(clip, name, spec)):
                return f"{name} of {clip} has another value", ok
    return "", ok


# -------------------------------------------------------------------------------------------- jobs interrupted


@dataclass
class Bench:
    """Where jobs begin and how they end, made once: {job: {file: bytes}}, {job: seconds}, {job: `_room`}."""

    folder: Path
    workers: jobs.Workers
    ends: dict[str, dict[str, bytes]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    rooms: dict[str, tuple[int, int]] = field(default_factory=dict)

    def start(self, job: str) -> Path:
        """The folder that a job begins with; never changed."""
        folder = self.folder / "starts" / job
        if job not in self.ends:
            folder.mkdir(parents=True)
            jobs.JOBS[job][0](folder)
            reference = self.fresh(job, "reference")
            begun = time.monotonic()
            if code := self.workers.run(job, reference):
                raise RuntimeError(f"{job} ended with {code}: {self.workers.last_words()}")
            self.seconds[job] = time.monotonic() - begun
            self.ends[job] = contents(reference / jobs.target_of(job))
            self.rooms[job] = _room(reference)
        return folder

    def fresh(self, job: str, name: str) -> Path:
        """A folder of its own with what the job begins with."""
        folder = self.folder / "trials" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / "starts" / job, folder)
        return folder

    def finish(self, job: str, folder: Path) -> str:
        """Runs the job to its end; what is not as after an uninterrupted run, "" if nothing."""
        if code := self.workers.run(job, folder):
            return f"run again it ended with {code}: {self.workers.last_words()}"
        found = differing(contents(folder / jobs.target_of(job)), self.ends[job])
        return f"{len(found)} files differ in the end, first {found[0]}" if found else ""


def kill(bench: Bench, seed: int, n: int, first: int = 0, names: Sequence[str] = tuple(jobs.JOBS)) -> Outcome:
    """Kills; half of the time a killed job is run again and killed again, in the end it is run to its end."""
    outcome = Outcome("kill")
    for number, rng in trials("kill", seed, n, first, outcome):
        job = names[number % len(names)]
        bench.start(job)
        folder, ok = bench.fresh(job, "killed"), {}
        target = folder / jobs.target_of(job)
        while True:
            code = bench.workers.run(job, folder, "kill", rng.uniform(0.0001, bench.seconds[job]))
            outcome.remark({-9: f"kills of {job}", 0: "runs that were over before"}.get(code, "failures"))
            if code not in (0, -9):
                outcome.broken.append(f"{number}: {job} ended with {code}: {bench.workers.last_words()}")
            elif job != "repair":  # a store that is being repaired is damaged
                found, ok = untrue(target, ok)
                outcome.broken += [f"{number}: {job} killed: {found}"] if found else []
            if code != -9 or rng.random() < 0.5:
                break
        if found := bench.finish(job, folder):
            outcome.broken.append(f"{number}: {job}: {found}")
    return outcome


REFUSALS = ("limit", "disk", "inodes", "quota", "error", "read-only", "turned", "permission", "withdrawn")


def full(bench: Bench, seed: int, n: int, first: int = 0, names: Sequence[str] = tuple(jobs.JOBS)) -> Outcome:
    """The disk refuses, in each of the ways of REFUSALS that can be had here."""
    outcome, has_strace = Outcome("full"), power_loss.has_strace()
    for number, rng in trials("full", seed, n, first, outcome):
        how, job = REFUSALS[number % len(REFUSALS)], names[number % len(names)]
        if not (has_strace if how in ("quota", "error") else bench.workers.own_mounts or how == "limit"):
            outcome.trials -= 1
            outcome.remark(f"of {how} skipped: {'strace' if how in ('quota', 'error') else 'unshare'} is missing")
            continue
        bench.start(job)
        folder, before = bench.fresh(job, "full"), {}
        target = folder / jobs.target_of(job)
        if target.exists() and job != "repair":
            before = ok_rows(open_store(target))
        code, words = _refused(bench, how, job, folder, rng), bench.workers.last_words()
        outcome.remark(f"refused by {how}" if code else "had what they needed")
        if code not in (0, 1, 2) or (code and str(folder) not in words):
            outcome.broken.append(f"{number}: {how}: {job} ended with {code}: {words}")
        found = "" if job == "repair" else untrue(target, before)[0]
        if found := found or bench.finish(job, folder):
            outcome.broken.append(f"{number}: {how}: {job}: {found}")
    return outcome


def _refused(bench: Bench, how: str, job: str, folder: Path, rng: random.Random) -> int:
    """Runs a job on a disk that refuses; its exit code.

    limit: no file may be larger than some size. disk, inodes: there is room for some more bytes, or files. quota,
    error: EDQUOT, EIO. read-only, permission: from the beginning; turned, withdrawn: at some moment.
    """
    run, moment = bench.workers.run, rng.uniform(0.001, bench.seconds[job])
    if how == "limit":
        largest = max(map(len, bench.ends[job].values()))
        return run(job, folder, limit=rng.choice([rng.randrange(largest), rng.randrange(3000)]))
    if how in ("quota", "error"):
        error, script = {"quota": "EDQUOT", "error": "EIO"}[how], Path(jobs.__file__)
        return power_loss.run_refused(script, job, folder, bench.workers.log, error, int(2 ** rng.uniform(0, 7)))
    if how in ("disk", "inodes"):
        pages, files = _room(folder)
        more_pages, more_files = (
            after - before for after, before in zip(bench.rooms[job], (pages, files), strict=True)
        )
        room = {"disk": f"size={4 * (pages + rng.randint(1, more_pages))}k", "inodes": ""}
        room["inodes"] = f"nr_inodes={files + rng.randint(1, more_files)}"
        return run(job, folder, disk=room[how])
    then = "permission" if how in ("permission", "withdrawn") else "read-only"
    disk = "size=100m" if then == "read-only" else None
    return run(job, folder, then, 0 if how == then else moment, disk=disk)


def _room(folder: Path) -> tuple[int, int]:
    """(pages of 4 KiB, inodes) that a folder takes."""
    names = [folder, *folder.rglob("*")]
    return sum(-(-name.stat().st_size // 4096) for name in names if name.is_file()), len(names) + 1


def power(bench: Bench, seed: int, n: int, first: int = 0, names: Sequence[str] = tuple(jobs.JOBS)) -> Outcome:
    """Cuts at random points of recorded jobs; in a third of them names had reached the disk before contents."""
    outcome = Outcome("power")
    if not power_loss.has_strace():
        outcome.remark("skipped: strace is not there, or may not trace")
        return outcome
    numbers = range(first, first + n)
    for i, job in enumerate(names):
        mine = [number for number in numbers if number % len(names) == i]
        if mine:
            bench.start(job)
            _cut_job(bench, job, seed, mine, outcome)
    return outcome


def _cut_job(bench: Bench, job: str, seed: int, numbers: list[int], outcome: Outcome) -> None:
    folder = bench.fresh(job, "recorded")
    calls = power_loss.record_job(Path(jobs.__file__), job, folder, bench.folder / "calls.strace")
    start = bench.folder / "starts" / job
    count = power_loss.cut_points(calls, power_loss.Disk(folder, start))
    outcome.remarks[f"calls of {job} that can be lost"] = count
    chosen = sorted((random.Random(f"{seed}/power/{number}").randint(0, count), number) for number in numbers)
    disk = power_loss.Disk(folder, start)
    for point, (_, number) in zip(power_loss.cuts(calls, disk, [at for at, _ in chosen]), chosen, strict=True):
        outcome.trials += 1
        left = bench.folder / "trials" / "left"
        shutil.rmtree(left, ignore_errors=True)
        disk.rebuild(left, keep_names=number % 3 == 0)
        target = left / jobs.target_of(job)
        where = f"{number}: {job} cut before call {point} of {count}"
        found = "" if job == "repair" else untrue(target, {})[0] or _not_kept(target, disk.said)
        if found := found or bench.finish(job, left):
            outcome.broken.append(f"{where}: {found}")


def _not_kept(target: Path, said: list[str]) -> str:
    """What of that which a job said to be done is not there."""
    if not said:
        return ""
    if not target.exists():
        return f"the store is gone after {said[-1]!r}"
    store = open_store(target)
    if "sealed" in said and not (store.sealed or target.suffix == ".h5"):
        return "it was sealed and is not"
    units = [int(line.split()[1]) for line in said if line.startswith("committed")]
    lost = [unit for unit in units if (store.status(unit) == 0).any()]
    return f"units {lost} were committed and are pending" if lost else ""


# ------------------------------------------------------------------------------------------------- damage


class Sealed:
    """A sealed store that is damaged and repaired again and again.

    version: of the values. grown: as it was sealed after it had grown, else before.
    """

    def __init__(self, folder: Path, version: int = 0, grown: bool = True):
        self.path = folder / f"sealed-{version}{'' if grown else '-before'}.zarr"
        if not self.path.exists():
            jobs.sealed_store(self.path, version, grown)
        store = open_store(self.path)
        self.version, self.rows, self.seal = version, len(store), store.manifest.seal["k"]
        self.expected, self.files = reading(self.path, self.rows), contents(self.path, self.seal)

    def copy(self, target: Path) -> Path:
        shutil.rmtree(target, ignore_errors=True)
        return shutil.copytree(self.path, target)

    def problems(self, path: Path, outcome: Outcome, *others: "Sealed") -> Iterator[str]:
        """What is not as promised of a store at `path` that should be this one; others: versions mixed into it."""
        try:
            now = reading(path, self.rows)
        except Exception as error:
            yield f"a read ended in {type(error).__name__}: {error}"
            return
        allowed = (self.expected, *(other.expected for other in others))
        if found := wrong(now, *allowed):
            yield f"{found[0]} was read with another value ({len(found)} so)"
        files = contents(path, self.seal)
        for how, quick in (("verify", False), ("verify --quick", True)):
            if missed := unnamed(path, files, self.files, quick):
                yield f"{how} does not name {', '.join(missed[:3])} ({len(missed)} so)"
        outcome.remark("changed no read") if not changed(self.expected, now) else None

    def not_repaired(self, path: Path) -> str:
        """Repairs a store; what is not as it was, "" if nothing."""
        try:
            jobs.repair(path, self.version)
        except (MachineError, UserError, ValueError) as error:
            return f"repair: {type(error).__name__}: {error}"
        found = differing(contents(path, self.seal), self.files)
        return f"after repair {len(found)} files differ, first {found[0]}" if found else ""


def put(path: Path, data: bytes) -> None:
    """Writes a file anew, as another inode: no cache can take it for the old one."""
    path.unlink()
    path.write_bytes(data)


def flip_bit(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    at, bit = rng.randrange(len(data)), rng.randrange(8)
    data[at] ^= 1 << bit
    put(path, bytes(data))
    return f"bit {bit} of byte {at}"


def cut(path: Path, rng: random.Random) -> str:
    data = path.read_bytes()
    size = rng.choice([0, len(data) - 1, rng.randrange(len(data))])
    put(path, data[:size])
    return f"cut to {size} of {len(data)}"


def delete(path: Path, rng: random.Random) -> str:
    path.unlink()
    return "deleted"


def damage(name: str, harm: Callable, folder: Path, seed: int, n: int, first: int = 0) -> Outcome:
    """Harms one file a trial."""
    outcome, sealed = Outcome(name), Sealed(folder)
    path = sealed.copy(folder / "harmed.zarr")
    for number, rng in trials(name, seed, n, first, outcome):
        file = rng.choice(sorted(sealed.files))
        what = f"{number}: {file}, {harm(path / file, rng)}"
        found = [*sealed.problems(path, outcome), sealed.not_repaired(path)]
        outcome.broken += [f"{what}: {problem}" for problem in found if problem]
        if any(found):
            path = sealed.copy(path)
    return outcome


def rsync(folder: Path, seed: int, n: int, first: int = 0) -> Outcome:
    """Copies that stopped: half of them into an empty folder, a quarter each over the store as it was before it grew
    and over one with other values; half of them in any order, half as rsync goes: files of a folder, then its folders.
    """
    outcome, sealed = Outcome("rsync"), Sealed(folder)
    older = Sealed(folder, grown=False), Sealed(folder, 1)
    source, path = contents(sealed.path), folder / "copied.zarr"
    for number, rng in trials("rsync", seed, n, first, outcome):
        shutil.rmtree(path, ignore_errors=True)
        over = [older[number // 2 % 2]] if number % 2 else []
        for other in over:
            other.copy(path)
        names = sorted(source)
        if rng.random() < 0.5:
            rng.shuffle(names)
        else:
            names.sort(key=lambda name: [(i < name.count("/"), part) for i, part in enumerate(name.split("/"))])
        stop = rng.randrange(len(names))
        for i, name in enumerate(names[: stop + 1]):
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            target.write_bytes(source[name][: rng.randrange(len(source[name])) if i == stop else None])
        outcome.broken += [f"{number}: {found}" for found in _partly(path, outcome, sealed, *over)]
    return outcome


def mixed(folder: Path, seed: int, n: int, first: int = 0) -> Outcome:
    """Some files of another version: every other time one with other values, or this store before it grew."""
    outcome, sealed = Outcome("mixed"), Sealed(folder)
    versions = Sealed(folder, 1), Sealed(folder, grown=False)
    path = folder / "mixed.zarr"
    for number, rng in trials("mixed", seed, n, first, outcome):
        other = versions[number % 2]
        sealed.copy(path)
        names = [name for name, data in other.files.items() if sealed.files.get(name) != data]
        for name in rng.sample(names, rng.randint(1, len(names) - 1)):
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).unlink(missing_ok=True)
            (path / name).write_bytes(other.files[name])
        outcome.broken += [f"{number}: {found}" for found in _partly(path, outcome, sealed, other)]
    return outcome


def _partly(path: Path, outcome: Outcome, *versions: Sealed) -> Iterator[str]:
    """Problems of a store that is partly one of several versions: the one that its root says it is counts."""
    root = (path / "zarr.json").read_bytes() if (path / "zarr.json").exists() else b""
    first = next((version for version in versions if version.files["zarr.json"] == root), None)
    if first is None:
        outcome.remark("without a root")
        if "zarr.json" not in errors(path):
            yield "verify does not name zarr.json, which is not whole"
        return
    yield from first.problems(path, outcome, *(version for version in versions if version is not first))
    left = first.not_repaired(path)
    if left and not errors(path) and open_store(path).manifest.seal == open_store(first.path).manifest.seal:
        yield f"{left}, and it is said to be the version that it was"
    outcome.remark("not repaired without a source" if left else "repaired")


# ---------------------------------------------------------------------------------------------------- main

TRIALS = {
    "kill": 200,
    "flip": 1000,
    "truncate": 200,
    "delete": 200,
    "rsync": 50,
    "mixed": 50,
    "power": 100,
    "full": 126,
}
"""Campaigns, and how many trials each has without --n."""


def campaign(name: str, folder: Path, seed: int, n: int, first: int = 0, only: Sequence[str] = ()) -> Outcome:
    """Runs one campaign in a folder of its own. only: these jobs ("kill", "full", "power"; none: all that it has)."""
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    if name in ("flip", "truncate", "delete"):
        harm = {"flip": flip_bit, "truncate": cut, "delete": delete}[name]
        return damage(name, harm, folder, seed, n, first)
    if name in ("rsync", "mixed"):
        return {"rsync": rsync, "mixed": mixed}[name](folder, seed, n, first)
    with jobs.Workers(folder / "log.txt", own_mounts=name == "full" and jobs.has_own_mounts()) as workers:
        bench = Bench(folder, workers)
        names = {"names": tuple(only)} if only else {}
        return {"kill": kill, "power": power, "full": full}[name](bench, seed, n, first, **names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder to work in, kept [a temporary one]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--n", type=int, help=f"trials of each campaign [{', '.join(f'{k} {v}' for k, v in TRIALS.items())}]"
    )
    parser.add_argument("--first", type=int, default=0, help="number of the first trial, to repeat one")
    parser.add_argument("--only", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    args = parser.parse_args()
    print_machine()
    broken = 0
    with work_folder(args.root) as folder:
        for name in args.only:
            begun = time.monotonic()
            outcome = campaign(name, folder, args.seed, TRIALS[name] if args.n is None else args.n, args.first)
            print(f"{outcome.line()}; {time.monotonic() - begun:.0f} s", flush=True)
            for line in outcome.broken:
                print(f"  broke: seed {args.seed}, trial {line}", flush=True)
            broken += len(outcome.broken)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
