"""What an extraction would cost, for `plan`: rows left, bytes, and network time by one timed forward pass."""

from __future__ import annotations

import time
import warnings

import numpy as np

from extract.networks import create_network
from extract.networks.spec import READS
from extract.weights import RandomWeightsWarning
from pipelines.extraction import choose_device
from pipelines.planning import Job
from pipelines.request import readable_bytes
from pipelines.reuse import plan_reuse
from pipelines.row_choice import clips_gone, mine_of, on_disk, rows_asked, rows_lacking
from stores import FAILED, PENDING, open_store, units

__all__ = ["describe_job", "seconds_a_row"]

PLAIN_FRAME = (720, 1280)  # height, width assumed where the network takes frames of any size


def describe_job(job: Job, device: str | None = "auto") -> dict:
    """Facts of one store: rows, units, bytes, what this run would compute, and how long the network takes for it.

    device: where one forward pass is timed; None: no time is given.
    """
    todo = rows_of_this_run(job)
    copied = plan_reuse(job, todo)
    left = int(todo.sum()) + rows_to_add(job) - sum(copied.values())
    seconds = seconds_a_row(job, device) if device is not None else None
    gone = clips_gone(open_store(job.path), job) if (job.path / "zarr.json").exists() else []
    return {
        "store": str(job.path),
        "network": job.spec.name,
        "axis": job.sampling.axis,
        "frames": job.frames.facts if job.frames else "all",
        "rows": len(job.rows["video"]),
        "rows_now": int(todo.sum()),
        "rows_to_add": rows_to_add(job),
        "rows_copied_from": copied,
        "units": job.n_units,
        "unit_rows": job.layout.unit_rows,
        "arrays": {name: [*array.row_shape, array.dtype] for name, array in job.arrays.items()},
        "size": readable_bytes(job.bytes),
        "bytes": job.bytes,
        "videos": len(job.dataset.videos["name"]),
        "videos_missing": len(job.missing),
        "videos_without_rows": job.videos_without_rows,
        "clips_gone": len(gone),
        "clips_gone_such_as": gone[:10],
        "seconds_a_row": seconds,
        "network_hours": None if seconds is None else round(seconds * left / 3600, 3),
    }


def rows_of_this_run(job: Job) -> np.ndarray:
    """(N,) bool: the rows that `extract` would compute now, of the store on disk if there is one."""
    request = job.request
    if not (job.path / "zarr.json").exists():
        wanted = job.wanted & on_disk(job, job.dataset.videos["name"], job.rows["video"])
        return mine_of(request, units((0, len(wanted)), job.layout.unit_rows), wanted)
    store = open_store(job.path)
    there = on_disk(job, store.videos["name"], store.rows["video"])
    undone = np.isin(store.status(), (PENDING, FAILED) if request.retry_failed else (PENDING,))
    return mine_of(request, store.units, rows_asked(store, job)[0] & undone & there)


def rows_to_add(job: Job) -> int:
    """Rows by which `extract` would extend the store on disk, and then compute."""
    return int(rows_lacking(open_store(job.path), job).sum()) if (job.path / "zarr.json").exists() else 0


def seconds_a_row(job: Job, device: str = "auto") -> float:
    """Seconds of network time a row: one warm forward pass of plain rows with random weights, one row on a CPU.

    Decoding overlaps with it; where it takes longer, extraction takes as long as decoding.
    """
    weights = job.weights or ("random:0" if job.spec.weights else None)  # time does not depend on their values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)  # nothing is kept of what it computes
        network = create_network(job.network, weights=weights, **job.options)
    network.keep = job.keep
    network.to(choose_device(device), job.request.precision)
    size = 1 if network.device.type == "cpu" else job.layout.batch_size
    whole = np.array([[0, 0, 1, 1]], np.float32)
    batch = {READS[job.spec.reads][3]: [plain_row(job)] * size, "boxes": [whole if job.boxes else None] * size}
    network.run(batch)
    start = time.perf_counter()
    network.run(batch)
    return (time.perf_counter() - start) / size


def plain_row(job: Job) -> np.ndarray | str:
    """A grey clip or frame, faint noise, or a sentence: what the network reads of one row."""
    if job.spec.reads == "text":
        return "a person takes a plate out of the cupboard and puts it on the table"
    if job.spec.reads == "waveform":
        return np.random.default_rng(0).normal(0, 0.1, job.spec.clip_len).astype(np.float32)
    height, width = job.spec.input_size or PLAIN_FRAME
    frame = np.full((height, width, job.spec.channels), 128, np.uint8)
    return np.stack([frame] * job.spec.clip_len) if job.reading.clips else frame
