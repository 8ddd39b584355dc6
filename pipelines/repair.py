"""Repair: exactly the rows that are damaged, missing or failed are computed again, as the store's manifest says."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from errors import MachineError, UserError, count_of
from extract.datasets import Dataset, missing_videos
from extract.networks import network_spec
from extract.sampling import GRID_AXES, ClipSampling, sampling_from
from pipelines.boxes import dataset_boxes, read_boxes
from pipelines.extraction import Report, choose_device, compute_rows, probe_again
from pipelines.flow_source import flow_source
from pipelines.inspection import dataset_of
from pipelines.known_weights import network_behind
from pipelines.planning import Job, find_durations
from pipelines.request import Extraction
from pipelines.row_choice import differences, grown, on_disk
from pipelines.videos import changed_videos
from stores import (
    FAILED,
    PENDING,
    DamagedStore,
    Store,
    open_store,
    repair_store,
    reset_rows,
    seal_repaired,
    verify,
)
from stores.files import local_folder

__all__ = ["RepairReport", "job_of_store", "repair"]

NOT_SEALED = (
    "the store was sealed and is not now: what it lost is pending, which readers are told, and all else is as it was."
    " Run store repair again, or the extract that made it: either goes on and seals it"
)


@dataclass
class RepairReport:
    """What a repair did: files restored from their second copy, rows whose values were lost and why, rows computed."""

    store: str
    rebuilt: list[str] = field(default_factory=list)
    lost: int = 0
    computed: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # reason code -> rows that cannot be computed
    pending: int = 0  # rows that still wait for their video
    missing_videos: list[str] = field(default_factory=list)
    changed_videos: list[str] = field(default_factory=list)  # computed anew, or found and left alone
    left: list[str] = field(default_factory=list)  # what nobody can make again
    sealed: int | None = None
    lost_its_seal: bool = False  # it was sealed before, and could not be sealed again
    seconds: float = 0.0

    def summary(self) -> str:
        """A few lines for a person."""
        did = self.rebuilt or self.lost or self.computed or self.sealed
        if not (did or self.left or self.changed_videos or self.pending or self.failed):
            return f"{self.store}: nothing to repair"
        lines = [
            f"{self.store}: {count_of(len(self.rebuilt), 'file')} restored, {count_of(self.lost, 'row')} had lost"
            f" their values, {count_of(self.computed, 'row')} computed"
            + (f"; sealed as version {self.sealed}" if self.sealed else "")
        ]
        lines += [f"  {count_of(count, 'row fails', 'rows fail')}: {reason}" for reason, count in self.failed.items()]
        if self.pending:
            pending = count_of(self.pending, "row is", "rows are")
            missing = count_of(len(self.missing_videos), "video is", "videos are")
            lines.append(f"  {pending} pending; {missing} not on disk")
        if self.changed_videos:
            lines.append(f"  videos that changed: {', '.join(self.changed_videos[:10])}")
        lines += [f"  cannot be made again: {what}" for what in self.left[:10]]
        if self.lost_its_seal:
            lines.append(f"  {NOT_SEALED}")
        return "\n".join(lines)


def repair(
    path: str | Path,
    *,
    dataset: str | None = None,
    data: str | Path | None = None,
    videos: str | Path | None = None,
    weights: str | None = None,
    boxes: str | None = None,
    changed: bool = False,
    failed: bool = True,
    device: str = "auto",
    decode_workers: int | None = None,
    stop: threading.Event | None = None,
    announce: Callable[[str], None] = lambda line: None,
    progress: Callable[[str, int], object] | None = None,
) -> RepairReport:
    """Bring a store back to what it was: restore what has a second copy, compute what has none, seal it again.

    A sealed store that is whole again byte for byte is the version it was. Where there is nothing to compute, neither
    videos nor weights are looked for. dataset, videos: where the videos are, if the store's dataset is a CSV.
    changed: rows of videos that are other files now are blanked and computed from these; the grid of a longer video
    is extended. failed: rows that failed are tried again.
    Raises `UserError` (dataset, weights or boxes that are not those of the store), `MachineError`; the message says
    so where this leaves a store unsealed that was sealed.
    """
    path, stop = local_folder(path), stop or threading.Event()
    with _unsealed_is_said(path):
        restored = repair_store(path)
        report = RepairReport(str(path), list(restored.rebuilt), len(restored.pending))
        store = open_store(path)
        todo = _todo(store, set(restored.pending), failed)
        if todo.any() or changed or restored.probes or _probes_lost(store):
            source = dataset_of(store, dataset, data, videos)
            job = job_of_store(store, source, weights=weights, boxes=boxes, retry_failed=failed)
            network = _network_of(job, store, device)
            report.missing_videos = job.missing
            report.changed_videos = changed_videos(job, store)
            if changed and report.changed_videos:
                store, reset = _renew(job, store, report.changed_videos, announce, progress, stop)
                todo = np.append(todo, np.zeros(len(store) - len(todo), bool)) | reset
            elif report.changed_videos:
                todo &= ~_of_videos(store, report.changed_videos)
            report.computed, report.seconds = _compute(
                job, network, store, todo, decode_workers, stop, announce, progress
            )
            probe_again(job, store)
        status = store.status()[store.visible]
        report.failed = dict(Counter(code for code, _ in store.failures().values()))
        report.pending = int((status == PENDING).sum())
        if not store.sealed and not report.pending and (changed or not report.changed_videos):
            announce(f"{path}: verifying and sealing")
            try:
                report.sealed = (seal_repaired(path, restored.seal).seal or {}).get("k")
            except DamagedStore:
                errors = [finding for finding in verify(path) if finding.severity == "error"]
                if not errors:
                    raise
                report.left = [f"{finding.path} {finding.what}; {finding.remedy}" for finding in errors]
        elif not store.sealed:
            left = [finding for finding in restored.left if (store.path / finding.path).exists()]
            report.left = [f"{finding.path} {finding.what}" for finding in left]
    report.lost_its_seal = _lost_its_seal(path)
    return report


@contextlib.contextmanager
def _unsealed_is_said(path: Path) -> Iterator[None]:
    """Adds to an error that the store is left unsealed, and what to do, if it was sealed."""
    try:
        yield
    except (UserError, MachineError) as error:
        if not _lost_its_seal(path):
            raise
        raise type(error)(f"{error.message}\n{path}: {NOT_SEALED}") from error


def _lost_its_seal(path: Path) -> bool:
    try:
        return (path / "sealed").is_dir() and not open_store(path).sealed
    except (UserError, MachineError):  # what is raised already says why
        return False


def job_of_store(
    store: Store,
    dataset: Dataset,
    *,
    weights: str | None = None,
    boxes: str | None = None,
    retry_failed: bool = False,
) -> Job:
    """The job that made a store, from what the store says of itself; its rows are the store's, not planned again.

    Raises `UserError`: an imported store, or one of given boxes that are not found.
    """
    manifest = store.manifest
    made, recipe, facts = manifest.spec.get("created_with"), manifest.recipe, manifest.dataset
    if made is None:
        raise UserError(f"{store.path} was imported, not extracted: its rows cannot be computed again")
    spec, origin = network_spec(made["name"], **made["options"]), manifest.spec["weights_origin"]
    weights = weights or (origin if origin.startswith("random:") else None)
    sampling = sampling_from(recipe["sampling"])
    request = Extraction(
        dataset=dataset.name,
        **{"detector" if spec.kind == "detector" else "backbone": made["name"]},
        features=(store.path.parent.parent,),
        weights=(weights,) if weights else (),
        draws=facts["draws"] if isinstance(sampling, ClipSampling) else None,
        test_clips=facts.get("test_clips", 0),
        seed=facts["seed"],
        dtype=recipe["dtype"],
        precision=recipe["precision"],
        decoder=recipe.get("decoder", {"family": "pyav"})["family"],
        missing="skip",
        retry_failed=retry_failed,
    )
    given = None
    if "boxes" in recipe:
        if boxes is None and dataset.boxes is None:
            raise UserError(f"{store.path} has features of given boxes: say which, --boxes FILE")
        own = boxes in (None, "dataset")
        given = dataset_boxes(dataset) if own else read_boxes(Path(boxes), dataset, sampling.fps)
    return Job(
        request=request,
        path=store.path,
        network=made["name"],
        options=made["options"],
        weights=weights,
        spec=spec,
        keep=tuple(name for name in manifest.arrays if name != "n_padded"),
        dataset=dataset,
        sampling=sampling,
        draws=facts["draws"],
        boxes=given,
        flow=flow_source(recipe["flow"]["method"]) if "flow" in recipe else None,
        durations=np.full(len(dataset.videos["name"]), np.nan),
        missing=missing_videos(dataset) if spec.reads != "text" else [],
        videos_without_rows={},
    )


def _network_of(job: Job, store: Store, device: str):
    """The store's network; refused if it would not compute the same."""
    network = network_behind(store, job.weights)
    if differing := differences(store, job, network):
        raise UserError(
            f"{store.path} cannot be repaired with what is here: it differs in\n  "
            + "\n  ".join(differing)
            + "\nGive the weights (--weights) or boxes (--boxes) it was made with"
        )
    network.keep = list(job.keep)
    network.to(choose_device(device), job.request.precision)
    return network


def _todo(store: Store, lost: set[int], failed: bool) -> np.ndarray:
    """(N,) bool: rows whose value was lost and, if they are to be tried again, those that failed.

    A store that was sealed once had no pending row: what is pending in it was lost too, in a repair that was killed.
    """
    status = store.status()
    todo = np.isin(np.arange(len(store)), list(lost))
    if (store.path / "sealed").is_dir():
        todo |= status == PENDING
    return ((todo & (status == PENDING)) | (failed & (status == FAILED))) & store.visible


def _probes_lost(store: Store) -> bool:
    """Whether a repair that was killed removed a probe; a store that was sealed once had them all."""
    made = store.manifest.spec.get("created_with") and store.manifest.spec.get("reads") != "text"
    if store.sealed or not made or not (store.path / "sealed").is_dir():
        return False
    return any(store.probe(video) is None for video in np.unique(store.rows["video"][store.ok]).tolist())


def _of_videos(store: Store, names: list[str]) -> np.ndarray:
    numbers = [store.video_index(name) for name in names]
    return np.isin(store.rows["video"], numbers) & store.visible


def _renew(job: Job, store: Store, names: list[str], announce, progress, stop) -> tuple[Store, np.ndarray]:
    """Blanks the rows of changed videos, and extends the grid where they are longer now: (store, rows to compute)."""
    store.unseal()
    reset_rows(store, np.flatnonzero(_of_videos(store, names)), "the video changed")
    if job.sampling.axis in GRID_AXES and "frames" not in store.manifest.dataset:  # chosen frames stay those chosen
        find_durations(job, False, progress, stop)
        others = [str(name) for name in job.dataset.videos["name"] if name not in names]
        store = grown(store, job, announce, leave_out=others)
    return store, _of_videos(store, names)


def _compute(job: Job, network, store: Store, todo, workers, stop, announce, progress) -> tuple[int, float]:
    todo = todo & on_disk(job, store.videos["name"], store.rows["video"])
    if not todo.any():
        return 0, 0.0
    if store.sealed:
        store.unseal()
    report = Report(str(store.path), rows=int(todo.sum()), done_before=0)
    compute_rows(job, network, store, todo, report, workers, stop, announce, progress)
    return report.computed, report.seconds
