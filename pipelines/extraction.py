"""Stage one: `plan -> for each unit: decode -> transform -> network -> pack -> commit`.

Units are independent: any number of processes may run this on one store, be killed at any moment, and go on
later. What is done is what the store's status says, so starting again is all that resuming needs.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from errors import UserError, count_of
from extract.cores import usable_cores
from extract.decode import VideoError
from extract.networks import create_network
from pipelines.added_arrays import with_arrays
from pipelines.batches import Batch, decode_unit
from pipelines.frame_choice import FrameSampler, other_choice, settled
from pipelines.overlap import BehindWriter, in_threads
from pipelines.planning import Job, plan_extraction
from pipelines.provenance import run_facts, run_name
from pipelines.request import Extraction, some_of
from pipelines.reuse import finished_elsewhere, reuse_rows
from pipelines.row_choice import clips_gone, differences, grown, mine_of, on_disk, rows_asked
from pipelines.videos import Videos, changed_videos
from stores import (
    ABSENT,
    FAILED,
    OK,
    PENDING,
    Leases,
    Store,
    StoreSealed,
    Unit,
    create_store,
    finish_growth,
    open_store,
)

__all__ = ["Report", "extract"]

Announce = Callable[[str], None]

LEASED_POLL_S = 0.5  # how often units that others have in hand are looked at, once there is nothing else to do


@dataclass
class Report:
    """What one run did to one store, and where the store stands; counts are of the rows asked for."""

    store: str
    rows: int
    done_before: int
    computed: int = 0
    copied: dict[str, int] = field(default_factory=dict)  # store of the lab that had the rows already -> how many
    failed_now: dict[int, tuple[str, str]] = field(default_factory=dict)  # row -> reason code, line
    failed: dict[str, int] = field(default_factory=dict)  # reason code -> rows, of all runs
    absent: int = 0  # rows whose video has no such modality
    pending: int = 0
    left: int = 0  # of the pending rows, those that --limit, --shard or a stop left for another run
    missing_videos: list[str] = field(default_factory=list)  # not on disk
    videos_without_rows: dict[str, str] = field(default_factory=dict)  # frame axis: video -> why it has no row here
    changed_videos: list[str] = field(default_factory=list)
    clips_gone: list[str] = field(default_factory=list)  # in the store, and in the annotations no more: they stay
    lacking_arrays: int = 0  # rows that are there, and lack arrays that were asked for
    seconds: float = 0.0
    sealed: int | None = None
    stopped: bool = False

    @property
    def complete(self) -> bool:
        """Everything asked for is there: nothing failed, nothing waits for its video."""
        unmet = self.failed or self.changed_videos or self.videos_without_rows
        return not unmet and (self.pending <= self.left if self.pending or not self.lacking_arrays else self.stopped)

    def to_json(self) -> dict:
        return {**asdict(self), "complete": self.complete}

    def summary(self) -> str:
        """A few lines for a person."""
        if not (self.computed or self.copied or self.failed_now or self.pending) and self.complete:
            lines = [
                f"{self.store}: nothing to do, all {count_of(self.rows - self.absent, 'row is', 'rows are')} there"
            ]
        else:
            rate = f" ({self.computed / self.seconds:.1f} rows/s)" if self.seconds and self.computed else ""
            there = count_of(self.done_before, "was there", "were there")
            lines = [f"{self.store}: computed {count_of(self.computed, 'row')}{rate}, {there}"]
        if self.sealed is not None:
            lines[0] += f"; sealed as version {self.sealed}"
        lines += [f"  {count_of(count, 'row')} copied from {source}" for source, count in self.copied.items()]
        if self.absent:
            absent = count_of(self.absent, "row is absent: its video has", "rows are absent: their videos have")
            lines.append(f"  {absent} nothing of the kind there")
        for reason, count in self.failed.items():
            example = next((line for code, line in self.failed_now.values() if code == reason), None)
            lines.append(f"  {count_of(count, 'row')} failed: {reason}" + (f" (such as: {example})" if example else ""))
        if self.failed and not self.failed_now:
            lines.append("  they are not tried again; after mending the videos use --retry-failed")
        if self.missing_videos and self.pending:
            missing = count_of(len(self.missing_videos), "video is", "videos are")
            lines.append(f"  {missing} not on disk: {some_of(self.missing_videos)}")
        if self.videos_without_rows:
            without = count_of(len(self.videos_without_rows), "video has", "videos have")
            lines.append(f"  {without} no rows in this store:")
            lines += [f"    {video}: {why}" for video, why in list(self.videos_without_rows.items())[:10]]
            lines.append("    once they can be read, run again: the store is extended by their rows")
        if self.changed_videos:
            changed = count_of(len(self.changed_videos), "video")
            lines.append(
                f"  {changed} changed since their rows were computed, which are left as"
                f" they are: {some_of(self.changed_videos)}. To compute them from the new files:"
                f" store repair --changed {self.store}"
            )
        if self.clips_gone:
            gone = count_of(len(self.clips_gone), "clip of the store is", "clips of the store are")
            lines.append(
                f"  {gone} not in the annotations any more; they stay, with their rows:"
                f" {some_of(self.clips_gone)}. For a store without them give another --name"
            )
        if self.lacking_arrays:
            waiting = count_of(self.lacking_arrays, "row waits", "rows wait")
            lines.append(f"  {waiting} for the arrays that are being added; run again to go on")
        if self.pending:
            pending = count_of(self.pending, "row is", "rows are")
            lines.append(f"  {pending} pending" + ("; run again to go on" if self.left else ""))
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
    """Compute every store that the request needs; returns one report a store, in the order they were made in.

    device: "auto" (CUDA when there is one), "cpu", "cuda", "cuda:1" ...
    stop: when set, the batches in work are finished and what there is of their units is committed.
    announce: takes lines meant for a person. progress: makes a bar from (title, total), with
    `update(rows)`, `set_postfix_str(text)` and `close()` as tqdm has them.
    Raises `UserError` before anything is computed when the request cannot be met as it stands (weights that are
    not there, another recipe), and `MachineError` when a write fails; what was committed until then stays.
    """
    stop = stop or threading.Event()
    if decode_workers is not None and decode_workers < 1:
        raise UserError(f"--decode-workers must be at least 1, got {decode_workers}")
    jobs = plan_extraction(request, announce=announce, progress=progress, stop=stop)
    networks = [prepare(job, device) for job in jobs]
    reports = []

    def run(job: Job, network) -> None:
        reports.append(run_job(job, network, decode_workers, stop, announce, progress))

    for job, network in zip(jobs, networks, strict=True):
        if job.frames is not None and job.frames.wants is not None and not stop.is_set():
            sampler = FrameSampler(request.sampler, request.sampled)
            (features,) = plan_extraction(job.frames.wants, announce=announce, progress=progress, stop=stop)
            run(features, prepare_features(sampler, features, device))
            if not stop.is_set():
                job = replace(job, frames=sampler.choice_by(job, open_store(reports[-1].store)))
                announce(f"{job.path}: {count_of(len(job.rows['video']), 'row is', 'rows are')} picked")
        if stop.is_set():
            break
        run(job, network)
    return reports


def prepare_features(sampler: FrameSampler, job: Job, device: str):
    """`prepare` of what a sampler looks at; refuses other features than those that it was trained on."""
    network = prepare(job, device)
    sampler.check(job.recipe(network))
    return network


def prepare(job: Job, device: str):
    """The job's network with its weights, on its device; refuses a store on disk that another recipe made."""
    network = create_network(job.network, weights=job.weights, **job.options)
    network.keep = job.keep
    network.to(choose_device(device), job.request.precision)
    if (job.path / "zarr.json").exists():
        open_checked(job, network)
    return network


def run_job(job: Job, network, decode_workers: int | None, stop, announce: Announce, progress) -> Report:
    """Bring one store as far as the job asks."""
    if not (job.path / "zarr.json").exists():
        finished = finished_elsewhere(job, network, announce)
        if finished is not None:
            announce(f"{finished[0].path} has these features: it is used as it is")
            return report_of_finished(*finished)
        create_store(
            job.path,
            job.manifest(network),
            rows=job.rows,
            clips=job.dataset.clips,
            videos={column: job.dataset.videos[column] for column in ("name", "path")},
            texts=job.dataset.texts,
            labels=job.dataset.labels,
            events=job.dataset.events,
        )
    store = open_checked(job, network)  # of a new store too: another process may have been first
    job = settled(job, store)
    if job.request.unit_rows not in (None, store.manifest.layout.unit_rows):
        announce(
            f"{job.path}: units have {store.manifest.layout.unit_rows} rows since it was made; --unit-rows is not used"
        )
    changed = changed_videos(job, store)
    store = grown(store, job, announce, leave_out=changed)
    report = Report(str(job.path), rows=0, done_before=0, missing_videos=job.missing, changed_videos=changed)
    report.clips_gone = clips_gone(store, job)

    def compute(into: Store, todo: np.ndarray) -> None:
        compute_rows(job, network, into, todo, report, decode_workers, stop, announce, progress)

    store, report.lacking_arrays = with_arrays(job, network, store, changed, compute, announce)
    network.keep = [name for name in store.manifest.arrays if name != "n_padded"]
    asked, longer = rows_asked(store, job)
    status = store.status()
    there = on_disk(job, store.videos["name"], store.rows["video"])
    codes = to_compute(job)
    todo = mine_of(job.request, store.units, asked & there & np.isin(status, codes))
    report.rows, report.done_before = int(asked.sum()), int((asked & (status == OK)).sum())
    report.videos_without_rows = job.videos_without_rows | dict.fromkeys(longer, "changed, and longer now")
    if todo.any() and not stop.is_set():
        if store.sealed:
            store.unseal()
        report.copied = reuse_rows(job, network, store, todo, announce)
        compute(store, todo)

    status = store.status()
    report.failed = dict(Counter(reason for row, (reason, _) in store.failures().items() if asked[row]))
    report.absent = int((asked & (status == ABSENT)).sum())
    report.pending = int((asked & (status == PENDING)).sum())
    report.left = int((asked & (status == PENDING) & ((there & ~todo) | report.stopped)).sum())
    unfinished = ((status == PENDING) & store.visible).any() or report.changed_videos or report.videos_without_rows
    if not store.sealed and not unfinished:
        probe_again(job, store)
        announce(f"{job.path}: verifying and sealing")
        store.seal()
        report.sealed = (store.manifest.seal or {}).get("k")  # none: another process extended it meanwhile
    return report


def probe_again(job: Job, store: Store) -> None:
    """Probes that a store lost, of videos that have rows: written as soon as a video is read, so otherwise there."""
    if not job.needs_videos or store.sealed:
        return
    there = {name for name, path in zip(job.dataset.videos["name"], job.dataset.videos["path"], strict=True) if path}
    videos = Videos(job, store, threads=1)
    for video in np.unique(store.rows["video"][store.ok]).tolist():
        if store.probe(video) is None and store.videos["name"][video] in there:
            try:
                videos.probed(video)
            except VideoError:
                continue  # it has rows, and cannot be read any more: they are true to what it was


def report_of_finished(store: Store, asked: np.ndarray) -> Report:
    """What a store of the lab holds that is used as it is; nothing was computed."""
    status = store.status()
    return Report(
        store=str(store.path),
        rows=int(asked.sum()),
        done_before=int((asked & (status == OK)).sum()),
        failed=dict(Counter(reason for row, (reason, _) in store.failures().items() if asked[row])),
        absent=int((asked & (status == ABSENT)).sum()),
        pending=int((asked & (status == PENDING)).sum()),
    )


def open_checked(job: Job, network) -> Store:
    """The store on disk, its growth finished if that was killed; refused if another recipe made it."""
    finish_growth(job.path)
    store = open_store(job.path)
    if differing := differences(store, job, network) + other_choice(store, job):
        raise UserError(
            f"{job.path} holds other features than these; it differs in\n  "
            + "\n  ".join(differing)
            + "\nGive these another --name, or ask for what the store holds"
        )
    return store


def to_compute(job: Job) -> tuple[int, ...]:
    """The statuses of rows that are computed."""
    return (PENDING, FAILED) if job.request.retry_failed else (PENDING,)


# ---- the loop over units ---------------------------------------------------------------------------------------------


def compute_rows(job, network, store, todo, report, decode_workers, stop, announce, progress) -> None:
    """Compute the rows of `todo`, unit by unit. Decode threads, the network and the writer overlap.

    A unit that another worker has in hand is left for the end: by then it is done, or its worker is gone.
    """
    if not todo.any():
        return
    batch_size = job.request.batch_size or store.manifest.layout.batch_size
    workers = decode_workers or default_decode_workers(network.device)
    videos = Videos(job, store, threads=decoder_threads(workers))
    facts = run_facts(str(network.device))
    seconds: Counter = Counter()
    began = time.monotonic()
    bar = progress(job.name, int(todo.sum())) if progress else None

    leases = Leases(store.path)
    committed: list[int] = []

    def units() -> Iterator[Unit | None]:
        waiting = [unit for unit in store.units if todo[unit.start : unit.stop].any()]
        while waiting:
            leased = []
            for unit in waiting:
                if stop.is_set():
                    report.stopped = True
                    return
                if leases.take(unit.index):
                    yield unit
                elif still_to_do(unit):
                    leased.append(unit)
            waiting = leased
            if waiting:
                stop.wait(LEASED_POLL_S)
                yield None

    def still_to_do(unit: Unit) -> bool:
        """Another process may have been here since."""
        todo[unit.start : unit.stop] &= np.isin(store.status(unit), to_compute(job))
        return bool(todo[unit.start : unit.stop].any())

    def decode(unit: Unit) -> Iterator[Batch]:
        if not still_to_do(unit):
            leases.release(unit.index)
            return
        for batch in decode_unit(job, store, unit, todo, batch_size, videos):
            yield batch
            if stop.is_set():
                report.stopped = True
                return

    def commit(results: UnitResults) -> None:
        start = time.monotonic()
        try:
            results.commit_to(store)
        except StoreSealed:
            if not job.request.retry_failed:
                raise
            store.unseal()  # sealed by one who had nothing to retry
            results.commit_to(store)
        finally:
            leases.release(results.unit.index)
        seconds["write"] += time.monotonic() - start
        committed.append(results.unit.index)

    open_units: dict[int, UnitResults] = {}
    try:
        with leases, BehindWriter() as writer:
            for batch in in_threads(decode, units(), workers, ahead=workers + 1):
                if batch.unit.index not in open_units:
                    open_units[batch.unit.index] = UnitResults(store, batch.unit, todo, batch_size)
                results = open_units[batch.unit.index]
                start = time.monotonic()
                outputs = network.run(batch.inputs) if batch.decoded else {}
                seconds["network"] += time.monotonic() - start
                results.take(batch, outputs)
                leases.refresh()
                report.computed += batch.decoded
                report.failed_now |= failures_of(batch)
                if bar is not None:
                    bar.update(batch.decoded + len(batch.failures))
                    bar.set_postfix_str(f"{len(report.failed_now):,} failed")
                if results.complete:
                    writer.submit(commit, open_units.pop(batch.unit.index))
            for results in open_units.values():  # stopped within a unit: its other rows stay pending
                writer.submit(commit, results)
    except StoreSealed:
        announce(f"{job.path}: another process has finished and sealed this store")
    finally:
        if bar is not None:
            bar.close()
        report.seconds = time.monotonic() - began
        report.changed_videos = sorted({*report.changed_videos, *videos.changed})
        if report.computed or report.failed_now:
            store.write_provenance(
                run_name(facts),
                {
                    **facts,
                    "rows": report.computed,
                    "units": len(committed),
                    "failed": len(report.failed_now),
                    "seconds": round(report.seconds, 3),
                    "seconds_network": round(seconds["network"], 3),
                    "seconds_write": round(seconds["write"], 3),
                    "decode_workers": workers,
                    "batch_size": batch_size,
                    "weights": network.weights_origin,
                    **({"sampler": str(job.request.sampler)} if job.request.sampler is not None else {}),
                },
            )


class UnitResults:
    """The arrays of one unit while its batches come in."""

    def __init__(self, store: Store, unit: Unit, todo: np.ndarray, batch_size: int):
        self.unit = unit
        self.batch_size = batch_size
        self.arrays = {
            name: np.zeros((len(unit), *array.row_shape), np.float32 if array.dtype == "float16" else array.dtype)
            for name, array in store.manifest.arrays.items()
        }
        self.status = np.full(len(unit), PENDING, np.uint8)
        self.failures: dict[int, tuple[str, str]] = {}
        self.missing = len(np.unique(np.flatnonzero(todo[unit.start : unit.stop]) // batch_size))

    def take(self, batch: Batch, outputs: dict[str, np.ndarray]) -> None:
        """Place one batch and what the network made of it."""
        first = batch.number * self.batch_size
        for slot, value in enumerate(batch.values):
            if value is not None:
                for name, values in outputs.items():
                    self.arrays[name][first + slot] = values[slot]
                self.arrays["n_padded"][first + slot] = batch.n_padded[slot]
                self.status[first + slot] = OK
        for row, (reason, _) in batch.failures.items():
            self.status[row - self.unit.start] = ABSENT if reason == "absent" else FAILED
        self.failures |= failures_of(batch)
        self.missing -= 1

    @property
    def complete(self) -> bool:
        return self.missing == 0

    def commit_to(self, store: Store) -> None:
        store.commit(self.unit, self.arrays, self.status, self.failures)


def failures_of(batch: Batch) -> dict[int, tuple[str, str]]:
    """The failed rows of a batch: a modality that the video does not have is not among them."""
    return {row: failure for row, failure in batch.failures.items() if failure[0] != "absent"}


def choose_device(device: str) -> str:
    """The device asked for; for "auto", CUDA when there is one."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def default_decode_workers(device) -> int:
    """On a CPU the network wants the cores; a GPU waits for half of them to decode."""
    return max(1, usable_cores() // 2) if str(device).startswith("cuda") else 1


def decoder_threads(workers: int) -> int:
    """Threads of each decoder, so that all decode workers together have the cores."""
    return max(1, usable_cores() // workers)
