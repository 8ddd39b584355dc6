"""Stage one: `plan -> for each unit: decode -> transform -> network -> pack -> commit`.

Units are independent: any number of processes may run this on one store, be killed at any moment, and go on
later. What is done is what the store's status says, so starting again is all that resuming needs.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from errors import UserError
from extract.networks import create_network
from pipelines.frames import DecodedRow, decode_rows
from pipelines.overlap import BehindWriter, in_threads
from pipelines.planning import Extraction, Job, plan_extraction
from pipelines.provenance import run_facts, run_name
from pipelines.videos import Opened, Videos
from stores import (
    FAILED,
    OK,
    PENDING,
    Store,
    StoreSealed,
    Unit,
    create_store,
    open_store,
    recipe_difference,
    shard_units,
)

__all__ = ["Report", "extract", "run_job"]

Announce = Callable[[str], None]


@dataclass
class Report:
    """What one run did to one store, and where the store stands; counts are of the rows asked for."""

    store: str
    rows: int
    done_before: int
    computed: int = 0
    failed_now: dict[int, tuple[str, str]] = field(default_factory=dict)  # row -> reason code, line
    failed: dict[str, int] = field(default_factory=dict)  # reason code -> rows, of all runs
    pending: int = 0
    beyond_limit: int = 0  # pending rows that --limit, --shard or a stop left for another run
    missing_videos: list[str] = field(default_factory=list)
    changed_videos: list[str] = field(default_factory=list)
    seconds: float = 0.0
    sealed: int | None = None
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """Everything asked for is there: nothing failed, nothing waits for its video."""
        return not self.failed and not self.changed_videos and self.pending <= self.beyond_limit

    def to_json(self) -> dict:
        return {**asdict(self), "complete": self.complete}

    def summary(self) -> str:
        """A few lines for a person."""
        if not self.computed and not self.failed_now and self.complete and not self.beyond_limit:
            lines = [f"{self.store}: nothing to do, all {self.rows:,} rows are there"]
        else:
            rate = f" ({self.computed / self.seconds:.1f} rows/s)" if self.seconds and self.computed else ""
            lines = [f"{self.store}: computed {self.computed:,} rows{rate}, {self.done_before:,} were there"]
        if self.sealed is not None:
            lines[0] += f"; sealed as version {self.sealed}"
        for reason, count in self.failed.items():
            example = next((line for code, line in self.failed_now.values() if code == reason), None)
            lines.append(f"  {count:,} rows failed: {reason}" + (f" (such as: {example})" if example else ""))
        if self.failed and not self.failed_now:
            lines.append("  they are not tried again; after mending the videos use --retry-failed")
        if self.missing_videos and self.pending:
            lines.append(f"  {len(self.missing_videos)} videos are not on disk: {_some(self.missing_videos)}")
        if self.changed_videos:
            lines.append(
                f"  {len(self.changed_videos)} videos changed since their rows were computed, which are left as"
                f" they are: {_some(self.changed_videos)}. Extract under another --name to use the new files"
            )
        if self.pending:
            lines.append(f"  {self.pending:,} rows are pending" + ("; run again to go on" if self.beyond_limit else ""))
        return "\n".join(lines)


def extract(
    request: Extraction,
    *,
    device: str = "auto",
    decode_workers: int | None = None,
    stop: threading.Event | None = None,
    announce: Announce = lambda line: None,
    progress: Callable[[str, int], object] | None = None,
) -> list[Report]:
    """Compute every store that the request needs; returns one report a store.

    device: "auto" (CUDA when there is one), "cpu", "cuda", "cuda:1" ...
    stop: when set, the units in work are finished and committed and nothing more is begun.
    announce: takes lines meant for a person. progress: makes a bar from (title, total), with
    `update(rows)`, `set_postfix_str(text)` and `close()` as tqdm has them.
    Raises `UserError` before anything is written when the request cannot be met as it stands, and
    `MachineError` when a write fails; what was committed until then stays.
    """
    stop = stop or threading.Event()
    reports = []
    for job in plan_extraction(request, announce=announce, progress=progress):
        if stop.is_set():
            break
        reports.append(run_job(job, device, decode_workers, stop, announce, progress))
    return reports


def run_job(
    job: Job, device: str, decode_workers: int | None, stop: threading.Event, announce: Announce, progress=None
) -> Report:
    """Bring one store as far as the job asks."""
    network = create_network(job.network, weights=job.weights, **job.options)
    network.keep = job.keep
    network.to(choose_device(device), job.request.precision)
    store = open_or_create(job, network)
    asked = rows_asked(store, job)
    status = store.status()
    report = Report(str(job.path), int(asked.sum()), int((asked & (status == OK)).sum()), missing_videos=job.missing)

    todo = rows_todo(store, job, asked & np.isin(status, (PENDING, FAILED) if job.request.retry_failed else (PENDING,)))
    units = [unit for unit in store.units if todo[unit.start : unit.stop].any()]
    if units:
        if store.sealed:
            store.unseal()
        compute_units(job, network, store, units, todo, report, decode_workers, stop, announce, progress)

    status = store.status()
    report.failed = dict(Counter(reason for row, (reason, _) in store.failures().items() if asked[row]))
    report.pending = int((asked & (status == PENDING)).sum())
    report.beyond_limit = int((asked & (status == PENDING) & ~todo & job_on_disk(store, job)).sum())
    if report.stopped:
        report.beyond_limit = report.pending
    if not store.sealed and not (status == PENDING).any() and not report.changed_videos:
        store.seal()
        report.sealed = store.manifest.seal["k"]
    return report


def open_or_create(job: Job, network) -> Store:
    """The job's store, new or as it is on disk; refused if it was made by another recipe."""
    if not (job.path / "zarr.json").exists():
        clips, videos = job.dataset.clips, {column: job.dataset.videos[column] for column in ("name", "path")}
        return create_store(
            job.path,
            job.manifest(network),
            rows=job.rows,
            clips=clips,
            videos=videos,
            texts=job.dataset.texts,
            labels=job.dataset.labels,
            events=job.dataset.events,
        )
    store = open_store(job.path)
    differing = recipe_difference(store.manifest.recipe, job.recipe(network))
    lacking = [name for name in job.arrays if name not in store.manifest.arrays]
    if differing or lacking:
        lines = differing + [f"arrays: the store has no {name}" for name in lacking]
        raise UserError(
            f"{job.path} holds other features than these; it differs in\n  "
            + "\n  ".join(lines)
            + "\nGive these another --name, or ask for what the store holds"
        )
    return store


def rows_asked(store: Store, job: Job) -> np.ndarray:
    """(N,) bool over the store's rows: those that the job wants, found by (video, clip id, draw, k)."""
    mine, theirs = job.rows, store.rows
    columns = ("video", "clip", "k", "draw", "start_s")
    if (
        len(theirs["video"]) == len(mine["video"])
        and all(np.array_equal(theirs[c], mine[c]) for c in columns)
        and np.array_equal(store.videos["name"], job.dataset.videos["name"])
        and np.array_equal(store.clips["id"], job.dataset.clips["id"])
    ):
        return job.wanted
    known = {key: row for row, key in enumerate(_row_keys(theirs, store.videos["name"], store.clips["id"]))}
    keys = _row_keys(mine, job.dataset.videos["name"], job.dataset.clips["id"])
    found = np.array([known.get(key, -1) for key in keys], np.int64)
    lacking = np.flatnonzero((found < 0) & job.wanted)
    if len(lacking):
        raise UserError(
            f"{job.path} was planned without {len(lacking):,} of these rows (first: video {keys[lacking[0]][0]!r}, clip"
            f" {keys[lacking[0]][1]!r}, draw {keys[lacking[0]][2]}, k {keys[lacking[0]][3]}): its annotations, draws or"
            " videos were fewer then. Use the --draws it was made with, or extract under another --name"
        )
    there = found >= 0
    moved = np.flatnonzero(np.abs(theirs["start_s"][found[there]] - mine["start_s"][there]) > 1e-3)
    if len(moved):
        clips = [keys[i][1] for i in np.flatnonzero(there)[moved[:10]]]
        raise UserError(
            f"{job.path}: {len(moved):,} annotations moved under the same clip id (such as {', '.join(clips)});"
            " its rows are true to the old ones. Extract under another --name"
        )
    asked = np.zeros(len(theirs["video"]), bool)
    asked[found[there & job.wanted]] = True
    return asked


def _row_keys(rows, videos: Sequence[str], clips: Sequence[str]) -> list[tuple]:
    clip_ids = [clips[i] if i >= 0 else "" for i in rows["clip"]]
    return list(
        zip([videos[i] for i in rows["video"]], clip_ids, rows["draw"].tolist(), rows["k"].tolist(), strict=True)
    )


def job_on_disk(store: Store, job: Job) -> np.ndarray:
    """(N,) bool: rows whose video is on disk."""
    there = {name for name, path in zip(job.dataset.videos["name"], job.dataset.videos["path"], strict=True) if path}
    return np.array([name in there for name in store.videos["name"]], bool)[store.rows["video"]]


def rows_todo(store: Store, job: Job, todo: np.ndarray) -> np.ndarray:
    """Of the rows that lack, those that this run computes: videos on disk, then --shard, then --limit."""
    todo = todo & job_on_disk(store, job)
    if job.request.shard is not None:
        mine = np.zeros(len(todo), bool)
        for unit in shard_units(store.units, *job.request.shard):
            mine[unit.start : unit.stop] = True
        todo &= mine
    if job.request.limit is not None:
        todo &= np.cumsum(todo) <= job.request.limit
    return todo


# ---- the loop over units -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """One batch of a unit: slot i holds row `unit.start + number * batch_size + i`, None where it has no frames."""

    unit: Unit
    number: int
    frames: list[np.ndarray | None]
    boxes: list[np.ndarray | None]
    sizes: list[tuple[int, int] | None]  # (width, height) of the source: boxes are in its pixels
    n_padded: list[int]
    failures: dict[int, tuple[str, str]]

    @property
    def inputs(self) -> dict[str, list]:
        """What the network's `run` takes."""
        return {"frames": self.frames, "boxes": self.boxes, "sizes": self.sizes}

    @property
    def decoded(self) -> int:
        return sum(frames is not None for frames in self.frames)


def compute_units(job, network, store, units, todo, report, decode_workers, stop, announce, progress) -> None:
    """Compute the rows of `todo` in these units. Decode threads, the network and the writer overlap."""
    device = str(network.device)
    batch_size = job.request.batch_size or store.manifest.layout.batch_size
    workers = decode_workers or default_decode_workers(device)
    videos = Videos(job, store, threads=max(1, (os.cpu_count() or 1) // workers))
    facts = run_facts(device)
    seconds: Counter = Counter()
    began = time.monotonic()
    bar = progress(job.name, int(todo.sum())) if progress else None

    def until_stopped() -> Iterator[Unit]:
        for unit in units:
            if stop.is_set():
                report.stopped = True
                return
            yield unit

    def decode(unit: Unit) -> Iterator[Batch]:
        return decode_unit(job, store, unit, todo, batch_size, videos)

    def commit(results: UnitResults) -> None:
        start = time.monotonic()
        store.commit(results.unit, results.arrays, results.status, results.failures)
        seconds["write"] += time.monotonic() - start

    open_units: dict[int, UnitResults] = {}
    try:
        with BehindWriter() as writer:
            for batch in in_threads(decode, until_stopped(), workers, ahead=workers + 1):
                if batch.unit.index not in open_units:
                    open_units[batch.unit.index] = UnitResults(job, batch.unit, todo, batch_size)
                results = open_units[batch.unit.index]
                start = time.monotonic()
                outputs = network.run(batch.inputs) if batch.decoded else {}
                seconds["network"] += time.monotonic() - start
                results.take(batch, outputs)
                report.computed += batch.decoded
                report.failed_now |= batch.failures
                if bar is not None:
                    bar.update(batch.decoded + len(batch.failures))
                    bar.set_postfix_str(f"{len(report.failed_now):,} failed")
                if results.complete:
                    writer.submit(commit, open_units.pop(batch.unit.index))
    except StoreSealed:
        announce(f"{job.path}: another process has finished and sealed this store")
    finally:
        if bar is not None:
            bar.close()
        report.seconds = time.monotonic() - began
        report.changed_videos = videos.changed
        if report.computed or report.failed_now:
            store.write_provenance(
                run_name(facts),
                {
                    **facts,
                    "rows": report.computed,
                    "failed": len(report.failed_now),
                    "seconds": round(report.seconds, 3),
                    "seconds_network": round(seconds["network"], 3),
                    "seconds_write": round(seconds["write"], 3),
                    "decode_workers": workers,
                    "batch_size": batch_size,
                    "weights": network.weights_origin,
                },
            )


class UnitResults:
    """The arrays of one unit while its batches come in."""

    def __init__(self, job: Job, unit: Unit, todo: np.ndarray, batch_size: int):
        self.unit = unit
        self.batch_size = batch_size
        self.arrays = {
            name: np.zeros((len(unit), *array.row_shape), np.float32 if array.dtype == "float16" else array.dtype)
            for name, array in job.arrays.items()
        }
        self.status = np.full(len(unit), PENDING, np.uint8)
        self.failures: dict[int, tuple[str, str]] = {}
        self.missing = len(np.unique(np.flatnonzero(todo[unit.start : unit.stop]) // batch_size))

    def take(self, batch: Batch, outputs: dict[str, np.ndarray]) -> None:
        """Place one batch and what the network made of it."""
        first = batch.number * self.batch_size
        for slot, frames in enumerate(batch.frames):
            if frames is not None:
                for name, values in outputs.items():
                    self.arrays[name][first + slot] = values[slot]
                self.arrays["n_padded"][first + slot] = batch.n_padded[slot]
                self.status[first + slot] = OK
        for row in batch.failures:
            self.status[row - self.unit.start] = FAILED
        self.failures |= batch.failures
        self.missing -= 1

    @property
    def complete(self) -> bool:
        return self.missing == 0


def decode_unit(
    job: Job, store: Store, unit: Unit, todo: np.ndarray, batch_size: int, videos: Videos
) -> Iterator[Batch]:
    """The batches of one unit, each as soon as its last row is decoded; slots of rows not in `todo` stay empty."""
    rows = unit.start + np.flatnonzero(todo[unit.start : unit.stop])
    waiting = Counter(((rows - unit.start) // batch_size).tolist())
    batches = {}
    for number in waiting:
        size = min(batch_size, len(unit) - number * batch_size)
        batches[number] = Batch(unit, number, [None] * size, [None] * size, [None] * size, [0] * size, {})
    video_of = store.rows["video"][rows]
    for same_video in np.split(rows, np.flatnonzero(np.diff(video_of)) + 1):
        opened = videos.open(int(store.rows["video"][same_video[0]]))
        for decoded in decode_video(job, store, same_video, opened):
            number, slot = divmod(decoded.row - unit.start, batch_size)
            batch = batches[number]
            if decoded.failure is not None:
                batch.failures[decoded.row] = decoded.failure
            elif decoded.frames is not None:
                batch.frames[slot] = decoded.frames if job.sampling.axis == "clip" else decoded.frames[0]
                batch.n_padded[slot] = decoded.n_padded
                batch.boxes[slot] = job.boxes_of(store.rows, decoded.row)
                batch.sizes[slot] = opened.source.width, opened.source.height
            waiting[number] -= 1
            if waiting[number] == 0:
                yield batches.pop(number)


def decode_video(job: Job, store: Store, rows: np.ndarray, opened: Opened) -> Iterator[DecodedRow]:
    """Rows of one video; without frames and without a failure if the video cannot be used now (they stay pending)."""
    if opened.source is None:
        for row in rows:
            yield DecodedRow(int(row), None, np.empty(0, np.int64), failure=opened.failure)
        return
    instants = job.instants({column: store.rows[column][rows] for column in ("start_s", "stop_s")})
    yield from decode_rows(opened.source, rows, instants, job.resize)


def choose_device(device: str) -> str:
    """ "auto" is CUDA when there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_decode_workers(device: str) -> int:
    """On a CPU the network wants the cores; a GPU waits for half of them to decode."""
    return max(1, (os.cpu_count() or 1) // 2) if device.startswith("cuda") else 1


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
