"""Looking after a packed store: every dataset against its digest, and the values against the status of their rows."""

from collections.abc import Callable

import numpy as np

from errors import MachineError

from .hdf5_store import Hdf5Files, little_endian, new_digest
from .maintain import Finding, value_findings
from .manifest import ABSENT, FAILED, OK, PENDING, DamagedStore
from .plan import Unit
from .reader import Store
from .zarr_store import STATUS, TABLES

REMEDY = "copy the file again from its source, or pack the store again"


def verify_hdf5(store: Store, quick: bool, progress: Callable[[int, int], None] | None) -> list[Finding]:
    """Findings of a packed store; `quick` reads no data. See `maintain.verify`."""
    files: Hdf5Files = store._files
    found = _check_columns(files)
    try:
        status = files.status()
    except DamagedStore:  # said by the check of its column
        return found
    found += _check_lengths(store, files)
    found += _check_status(store, files, status)
    found += [_problem(name, "is in no list of arrays") for name in _stray_arrays(files)]
    for done, name in enumerate(store.manifest.arrays, 1):
        found += _check_chunks(files, name, status) if quick else _check_array(store, files, name, status)
        if progress:
            progress(done, len(store.manifest.arrays))
    return found


def _problem(name: str, what: str) -> Finding:
    return Finding("error", name, what, REMEDY)


def _check_columns(files: Hdf5Files) -> list[Finding]:
    found = []
    for name in files.names():
        if not name.startswith("data/"):
            try:
                files.column(name)
            except MachineError as error:
                found.append(_problem(name, error.message))
    return found


def _check_lengths(store: Store, files: Hdf5Files) -> list[Finding]:
    found = []
    for table in TABLES:
        rows = store.manifest.array_rows if table == "rows" else store.manifest.tables.get(table)
        for column in files.columns(table):
            try:
                length = len(files.dataset(f"{table}/{column}"))
            except DamagedStore:
                continue  # said by the check of the column
            if rows is not None and length != rows:
                found.append(_problem(f"{table}/{column}", f"has {length} rows, the manifest says {rows}"))
    return found


def _check_status(store: Store, files: Hdf5Files, status: np.ndarray) -> list[Finding]:
    found = []
    if not np.isin(status, (PENDING, OK, FAILED, ABSENT)).all():
        found.append(_problem(STATUS, f"holds codes {np.unique(status)}"))
    try:
        lost = set(np.flatnonzero(status == FAILED).tolist()) - set(files.failures())
        if lost:
            found.append(_problem("failures/row", f"gives no reason for {len(lost)} failed rows, first {min(lost)}"))
        for video in range(len(store.videos["name"])):
            probe = store.probe(video)
            if probe is not None and len(probe.get("geometry", range(4))) != 4:
                found.append(_problem("probes/json", f"geometry of video {video} is not 4 numbers"))
    except (DamagedStore, TypeError, AttributeError, ValueError) as error:
        found.append(_problem("probes/json", f"cannot be read: {error}"))
    return found


def _stray_arrays(files: Hdf5Files) -> list[str]:
    return [n for n in files.names() if n.startswith("data/") and n.removeprefix("data/") not in files.manifest.arrays]


def _check_chunks(files: Hdf5Files, name: str, status: np.ndarray) -> list[Finding]:
    """As many chunks as there are with rows that are ok."""
    try:
        dataset = files.array(name)
        stored = dataset.id.get_num_chunks() if dataset.chunks else 0
    except (MachineError, OSError, RuntimeError) as error:
        return [_problem(f"data/{name}", str(error))]
    needed = len(np.unique(np.flatnonzero(status == OK) // files.manifest.layout.chunk_rows[name]))
    if stored == needed:
        return []
    return [_problem(f"data/{name}", f"has {stored} chunks where {needed} hold rows that are ok")]


def _check_array(store: Store, files: Hdf5Files, name: str, status: np.ndarray) -> list[Finding]:
    """Every unit of an array: its checksums, its values; and at the end the array against its digest."""
    manifest, label, found = files.manifest, f"data/{name}", []
    step, spec = manifest.layout.unit_rows, manifest.arrays[name]
    digest = new_digest(spec.dtype, (manifest.array_rows, *spec.row_shape))
    for start in range(0, manifest.array_rows, step):
        unit = Unit(start // step, start, start + step)
        try:
            values = files.read(name, np.arange(start, start + step))
        except MachineError as error:
            found.append(_problem(f"{label} unit {unit.index}", error.message))
            continue
        digest.update(little_endian(values))
        now = status[start : start + step]
        found += value_findings(store, name, unit, now, values, f"{label} unit {unit.index}", REMEDY)
    if not found and digest.hexdigest() != files.digests.get(label):
        found.append(_problem(label, "does not match the manifest's sha256"))
    return found
