"""Looking after a store: whether it is whole, and what may be swept away. What is in it: `stores.summary`."""

import functools
import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from errors import MachineError, UserError, count_of

from .extensions import FOLDER, applied, check_extensions, read_extension
from .files import HDF5, is_url
from .lease import FOLDER as LEASES
from .limits import is_safe_name
from .manifest import (
    ABSENT,
    FAILED,
    OK,
    PADDED,
    PENDING,
    DamagedStore,
    canonical_json,
    is_temporary,
    sha256,
)
from .plan import Unit
from .reader import Store, open_store
from .zarr_store import STATUS, TABLES, decode_shard, held_rows, read_plain, safe_name

REMEDY = "run `store repair`, or copy it again from another copy of this store"
_OK_ROWS = ("row that is ok", "rows that are ok")


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    severity: "error" (something is lost or wrong) or "note" (harmless, for example left by a killed run).
    path: of the object, inside the store.
    """

    severity: str
    path: str
    what: str
    remedy: str


# --------------------------------------------------------------------------------------------------- verify


def verify(
    path: str | os.PathLike, quick: bool = False, progress: Callable[[int, int], None] | None = None
) -> list[Finding]:
    """Checks a store and lists what is wrong with it; no error in the list means that it is whole.

    Reads every byte: checksums of all chunks, sha256 of all metadata and (of a sealed store) of all files,
    lengths, status against data, NaN in rows that are ok, failures, probes, files that do not belong.
    quick: looks at names, sizes, tables and status only, and reads no data.
    progress: called as progress(done, total).
    """
    if is_url(path):
        raise UserError(f"{path}: a check reads every byte. Run it where the store lies, or on a copy")
    path = Path(path)
    try:
        store = open_store(path)
    except (UserError, MachineError) as error:
        where = "zarr.json" if path.suffix not in HDF5 else path.name
        return [Finding("error", where, error.message, "copy the store again from its source")]
    if path.suffix in HDF5:
        from .hdf5_verify import verify_hdf5

        return in_order(verify_hdf5(store, quick, progress))
    checks = list(_checks(store, quick))
    findings: list[Finding] = []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for done, found in enumerate(pool.map(lambda check: check(), checks), 1):
            findings += found
            if progress:
                progress(done, len(checks))
    return in_order(findings)


def _checks(store: Store, quick: bool) -> Iterator[Callable[[], list[Finding]]]:
    arrays = [name for name in store.manifest.arrays if not _errors(_check_metadata(store, f"data/{name}/zarr.json"))]
    for name in store.manifest.hashes:
        yield functools.partial(_check_metadata, store, name)
    for table in TABLES:
        yield functools.partial(_check_table, store, table)
    sealed = None
    if store.sealed:
        try:
            sealed = store.status()
        except DamagedStore as error:
            found = [Finding("error", f"sealed/{store.manifest.seal['k']}/status", error.message, REMEDY)]
            yield lambda: found
    if not _errors(_check_metadata(store, f"{STATUS}/zarr.json")):
        for unit in store.units:
            yield functools.partial(_check_unit, store, unit, sealed, arrays, quick)
    yield functools.partial(_check_extensions, store, quick)
    yield functools.partial(_check_probes, store)
    yield functools.partial(_check_names, store)
    if store.sealed:
        yield functools.partial(_check_seal, store)
        for name, digest in () if quick else (sealed_digests(store) or {}).items():
            yield functools.partial(_check_digest, store, name, digest)


def _errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def in_order(findings: list[Finding]) -> list[Finding]:
    """Errors first; of several of one object the most telling one, and of a folder and a file in it the file's."""
    first: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        first.setdefault((finding.severity, finding.path), finding)
    above = {(kind, str(folder)) for kind, path in first for folder in PurePosixPath(path).parents}
    first = {key: finding for key, finding in first.items() if key not in above}
    return sorted(first.values(), key=lambda finding: (finding.severity != "error", finding.path))


def _check_metadata(store: Store, name: str) -> list[Finding]:
    try:
        data = store._files.read_file(name)
        if sha256(data) == store.manifest.hashes.get(name):
            return []
        if not name.startswith(FOLDER) and store._files.has_grown(name, data):
            return [Finding("note", name, "is of a growth that was not finished", "the next extract finishes it")]
        what = "does not match the sha256 in the manifest"
    except MachineError as error:
        what = error.message
    return [Finding("error", name, what, REMEDY)]


def _check_extensions(store: Store, quick: bool) -> list[Finding]:
    remedy = f"run `store repair {store.path}`, which makes the one of the other"
    return [Finding("error", name, what, remedy) for name, what in check_extensions(store._files, quick)]


def _check_table(store: Store, table: str) -> list[Finding]:
    found, lengths = [], {}
    for column in store._files.columns(table):
        name = f"{table}/{column}"
        try:
            lengths[column] = len(store._files.own_column(name))
        except DamagedStore as error:
            found.append(Finding("error", name, error.message, REMEDY))
    expected = store.manifest.array_rows if table == "rows" else store.manifest.tables.get(table)
    if set(lengths.values()) - {expected}:
        found.append(Finding("error", table, f"columns have lengths {lengths}", "copy the store again"))
    return found


def _check_unit(store: Store, unit: Unit, sealed: np.ndarray | None, arrays: list[str], quick: bool) -> list[Finding]:
    """A unit's status, and what there should be by it: by the sealed status, (len(store),), if there is one."""
    found, status = _check_status(store, unit)
    if sealed is not None:
        if status is not None and not np.array_equal(sealed[unit.start : unit.stop], status):
            found.append(_other_status(store, unit))
        status = sealed[unit.start : unit.stop]
    elif store.sealed and status is not None and (status == PENDING).any():
        found.append(_other_status(store, unit))
    if status is None:
        return found
    found += _check_failures(store, unit, status)
    for array in arrays:
        found += _check_shard(store, array, unit, status, quick)
    return found


def _check_status(store: Store, unit: Unit) -> tuple[list[Finding], np.ndarray | None]:
    """(what is wrong with a unit's chunk of status, the status in it if it can be read)."""
    name, remedy = store._files.status_name(unit.index), store._files.recompute(unit.index)
    try:
        status, _ = store._files.unit_status(unit)
    except MachineError as error:
        return [Finding("error", name, error.message, remedy)], None
    if not np.isin(status, (PENDING, OK, FAILED, ABSENT)).all():
        return [Finding("error", name, f"holds codes {np.unique(status)}", remedy)], status
    return [], status


def _other_status(store: Store, unit: Unit) -> Finding:
    name = store._files.status_name(unit.index)
    there = (store.path / name).exists()
    return Finding("error", name, "differs from the sealed status" if there else "is missing", REMEDY)


def _check_failures(store: Store, unit: Unit, status: np.ndarray) -> list[Finding]:
    name = store._files.failures_name(unit.index)
    try:
        listed = {int(row) for row in store._files.read_json(name) or {}}
    except (MachineError, ValueError) as error:
        return [Finding("error", name, f"cannot be read: {error}", store._files.recompute(unit.index))]
    failed = {unit.start + int(j) for j in np.flatnonzero(status == FAILED)}
    if failed - listed:
        what = f"gives no reason for {len(failed - listed)} failed rows, first {min(failed - listed)}"
        return [Finding("error", name, what, store._files.recompute(unit.index))]
    if listed - failed:
        return [Finding("note", name, "lists rows that are not failed", "left by a killed run; harmless")]
    return []


def _check_shard(store: Store, array: str, unit: Unit, status: np.ndarray, quick: bool) -> list[Finding]:
    """One shard against its checksums and against the status of its rows."""
    files = store._files
    name, remedy = files.shard_name(array, unit.index), files.recompute(unit.index)
    ok = status == OK
    problem = functools.partial(Finding, "error", name, remedy=remedy)
    try:
        data = None if quick else (files.path / name).read_bytes()
        size = (files.path / name).stat().st_size
    except FileNotFoundError:
        return [problem(f"is missing, and {ok.sum()} of its rows are ok")] if ok.any() else []
    except OSError as error:
        return [problem(f"cannot be read: {error.strerror}")]
    unit_rows = store.manifest.layout.unit_rows
    index_bytes = 16 * (unit_rows // store.manifest.layout.chunk_rows[array]) + 4
    if size <= index_bytes:
        return [problem(f"is cut short: {count_of(size, 'byte')}")]
    if quick:
        return []
    try:
        metadata = files.metadata(f"data/{array}")
        values = decode_shard(metadata, data, unit_rows)
    except Exception as error:
        return [problem(files.shard_damage(array, unit.index, error).message)]
    lost = ok & ~held_rows(metadata, data, unit_rows)[: len(unit)]
    if lost.any():
        return [problem(f"holds no value of {count_of(lost.sum(), *_OK_ROWS)}, {_rows(unit, lost)}")]
    return value_findings(store, array, unit, status, values[: len(unit)], name, remedy)


def value_findings(
    store: Store, array: str, unit: Unit, status: np.ndarray, values: np.ndarray, name: str, remedy: str
) -> list[Finding]:
    """What is wrong with the values of a unit, (len(unit), ...), given the status of its rows."""
    found, spec, ok = [], store.manifest.arrays[array], status == OK
    problem = functools.partial(Finding, "error", name, remedy=remedy)
    flat = values.reshape(len(unit), -1)
    blank = np.isnan(flat) if flat.dtype.kind == "f" else flat == spec.fill
    empty = ok & ~spec.has_value(values)
    if empty.any():
        found.append(problem(f"holds no value of {count_of(empty.sum(), *_OK_ROWS)}, {_rows(unit, empty)}"))
    elif flat.dtype.kind == "f" and (nan := ok & blank.any(axis=1)).any():
        found.append(problem(f"holds NaN in {count_of(nan.sum(), *_OK_ROWS)}, {_rows(unit, nan)}"))
    if array == PADDED:
        most = store.manifest.spec.get("clip_len") or np.inf
        wrong = ok & ((flat[:, 0] < 0) | (flat[:, 0] > most))
        if wrong.any():
            found.append(problem(f"counts less than 0 or more than {most} padded frames, {_rows(unit, wrong)}"))
    stray = ~ok & ~blank.all(axis=1)
    if stray.any():
        severity = "note" if (status[stray] == PENDING).all() else "error"
        rows = count_of(stray.sum(), "row that is not ok", "rows that are not ok")
        what = f"holds values of {rows}, {_rows(unit, stray)}"
        found.append(Finding(severity, name, what, "left by a killed run; the next extract writes them anew"))
    return found


def _rows(unit: Unit, where: np.ndarray) -> str:
    return f"first row {unit.start + int(np.flatnonzero(where)[0])}"


def _check_probes(store: Store) -> list[Finding]:
    found = []
    try:
        names = store.videos["name"]
    except DamagedStore:
        return found  # said by the check of the table
    for video in names:
        name = f"probes/{safe_name(video)}.json"
        try:
            probe = store._files.read_json(name)
            geometry = (probe or {}).get("geometry")
            if geometry is not None and len([float(x) for x in geometry]) != 4:
                what = f"geometry is not 4 numbers: {geometry}"
                found.append(Finding("error", name, what, "delete it and run extract again"))
        except (MachineError, TypeError, ValueError, AttributeError) as error:
            found.append(Finding("error", name, f"cannot be read: {error}", "delete it and run extract again"))
    return found


def _check_names(store: Store) -> list[Finding]:
    """Files that the format does not know, and temporaries of runs that were killed.

    Unknown dot-files are no error: file systems and desktops put them anywhere (.nfs0000..., .DS_Store).
    """
    found = []
    known = _known_names(store)
    for name in files_of(store.path):
        top = name.partition("/")[0]
        if any(map(is_temporary, name.split("/"))):
            what, remedy = "left by a killed run", "extract removes it when it seals the store"
            found.append(Finding("note", name, what, remedy))
        elif name not in known and is_hidden(name):
            found.append(Finding("note", name, "does not belong to a store", "harmless: it is passed over"))
        elif name not in known and _of_growth(store, name):
            what, remedy = "is of a growth that was not finished", "the next extract finishes it"
            found.append(Finding("note", name, what, remedy))
        elif top == LEASES:
            what, remedy = (
                "is a lease of a worker",
                "harmless: its worker removes it, or else the next seal",
            )
            found.append(Finding("note", name, what, remedy))
        elif name not in known and top not in ("provenance", "sealed"):
            found.append(Finding("error", name, "does not belong to a store", "move it away"))
    for folder in beside(store.path):
        what, remedy = "left by a killed run that was creating the store", "extract removes it when it seals the store"
        found.append(Finding("note", f"../{folder.name}", what, remedy))
    return found


def _of_growth(store: Store, name: str) -> bool:
    """Whether a file is of an extension that is there and not applied, or of what it does to the store."""
    try:
        extension = read_extension(store.path, applied(store.manifest))
    except DamagedStore:
        return False
    if extension is None:
        return False
    parent = name.rpartition("/")[0]
    return name.startswith(f"{extension.name}/") or f"{parent}/zarr.json" in extension.metadata


def _known_names(store: Store) -> set[str]:
    files, known = store._files, {"zarr.json", *store.manifest.hashes}
    for k in range(applied(store.manifest)):
        try:
            extension = read_extension(store.path, k)
        except DamagedStore:  # said by the check of its record
            known |= {name for name in files_of(store.path) if name.startswith(f"{FOLDER}/{k}/")}
            continue
        known |= {f"{extension.name}/{name}" for name in extension.files} if extension else set()
    for unit in store.units:
        known |= {files.status_name(unit.index), files.failures_name(unit.index)}
        known |= {files.shard_name(array, unit.index) for array in store.manifest.arrays}
    # where a table is damaged nobody can say what belongs to it; it has a finding of its own
    try:
        known |= {f"probes/{safe_name(video)}.json" for video in store.videos["name"]}
    except DamagedStore:
        known |= _files_below(store.path, "probes")
    for name in (f"{table}/{column}" for table in TABLES for column in files.columns(table)):
        try:
            metadata = files.metadata(name)
        except DamagedStore:
            known |= _files_below(store.path, name)
            continue
        chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        known |= {f"{name}/c.{i}" for i in range(-(-metadata["shape"][0] // chunk))}
    return known


def _files_below(path: Path, folder: str) -> set[str]:
    return {f"{folder}/{name}" for name in files_of(path / folder)}


def files_of(path: Path) -> list[str]:
    """Every file below a folder, as names with `/`, sorted."""
    return sorted(
        Path(parent, name).relative_to(path).as_posix() for parent, _, names in os.walk(path) for name in names
    )


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, has a name with a dot in front."""
    return any(part.startswith(".") for part in name.split("/"))


def versioned_files(store: Store) -> list[str]:
    """The files that a seal fixes: all that the format knows, but for the root. Provenance and seals are no part."""
    return sorted((_known_names(store) - {"zarr.json"}).intersection(files_of(store.path)))


def sweep(path: Path) -> None:
    """Removes what killed runs left half written in a store and beside it.

    A live process that loses its temporary so notices, and writes again what is still needed.
    """
    folders = [Path(parent, name) for parent, names, _ in os.walk(path) for name in names if is_temporary(name)]
    for folder in [*folders, *beside(path), path / LEASES]:
        shutil.rmtree(folder, ignore_errors=True)
    for name in files_of(path):
        if is_temporary(name.rpartition("/")[2]):
            (path / name).unlink(missing_ok=True)


def beside(path: Path) -> list[Path]:
    """Half created stores of this name."""
    return sorted(p for p in path.parent.glob(f".{glob.escape(path.name)}.*.tmp") if is_temporary(p.name))


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests_hash(digests: dict[str, str]) -> str:
    """What the manifest of a sealed store says about its list of digests."""
    return sha256(canonical_json(digests))


def sealed_digests(store: Store) -> dict[str, str] | None:
    """{file: sha256} of the current seal, if the list is what the manifest says it is."""
    digests = listed_digests(store)
    return digests if digests_hash(digests) == store.manifest.seal["digests"] else None


def seal_files(folder: Path) -> dict[str, str]:
    """{file: sha256} of the folder of a seal, as the manifest lists them."""
    return {name: file_sha256(folder / name) for name in files_of(folder) if not is_hidden(name)}


def listed_digests(store: Store) -> dict[str, str]:
    """{file: sha256} of the current seal; empty if the list cannot be read (`_check_seal` says so)."""
    folder = store.path / "sealed" / str(store.manifest.seal["k"]) / "digests"
    try:
        return dict(zip(read_plain(folder / "path"), read_plain(folder / "sha256"), strict=True))
    except (DamagedStore, ValueError):
        return {}


def _listed_sizes(store: Store) -> dict[str, int]:
    """{file: bytes} of the current seal; empty if the list cannot be read, or is of before sizes were kept."""
    folder = store.path / "sealed" / str(store.manifest.seal["k"]) / "digests"
    try:
        sizes = read_plain(folder / "size").tolist() if (folder / "size").exists() else []
        return dict(zip(read_plain(folder / "path"), sizes, strict=bool(sizes)))
    except (DamagedStore, ValueError):
        return {}


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return True  # `_check_seal` says so of a file that is not there


def _check_seal(store: Store) -> list[Finding]:
    """The seal's own files against the manifest, and all others against what of the seal's list is whole."""
    name, found = f"sealed/{store.manifest.seal['k']}", []
    for file, digest in store.manifest.seal["files"].items():
        found += _check_digest(store, f"{name}/{file}", digest)
    harmed = {finding.path.rpartition("/")[0] for finding in found}
    digests = sealed_digests(store)
    if digests is None and not found:
        found.append(Finding("error", f"{name}/digests", "does not match the manifest", REMEDY))
    sizes = _listed_sizes(store) if harmed.isdisjoint({f"{name}/digests/path", f"{name}/digests/size"}) else {}
    listed = digests or sizes
    strays = sorted(set(versioned_files(store)) - set(listed)) if listed else []
    lost = sorted(set(listed) - set(files_of(store.path)))
    resized = [file for file, size in sizes.items() if is_safe_name(file) and not _has_size(store.path / file, size)]
    found += [Finding("error", file, "is not part of the seal", "move it away") for file in strays]
    found += [Finding("error", file, "is missing", REMEDY) for file in lost]
    found += [Finding("error", file, "is not as long as it was when sealed", REMEDY) for file in resized]
    return found


def _check_digest(store: Store, name: str, digest: str) -> list[Finding]:
    remedy = REMEDY
    if not is_safe_name(name):
        return [Finding("error", "sealed", f"names a file {name!r}", "the seal was not made by clipbank")]
    try:
        same = file_sha256(store.path / name) == digest
    except OSError as error:
        return [Finding("error", name, f"cannot be read: {error.strerror}", remedy)]
    return [] if same else [Finding("error", name, "does not match the sha256 of the seal", remedy)]
