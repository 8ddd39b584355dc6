"""Repair: what is damaged is made of its second copy where it has one, and computed again where it has none.

Tables and metadata are restored from the extensions, and these from the tables. Of a unit, rows whose values cannot be
read any more become pending, and the others keep what they have. Afterwards the normal extraction computes what is
pending (`pipelines.repair`), and the store is sealed again: as the version it was, if every byte is what it was.
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from errors import MachineError, UserError

from .columns import encode_column
from .extensions import (
    Extension,
    applied,
    change_manifest,
    finish_growth,
    read_extension,
    root_of,
    table_column,
)
from .files import local_folder
from .maintain import Finding, sealed_digests, verify
from .manifest import (
    ABSENT,
    FAILED,
    OK,
    PADDED,
    PENDING,
    DamagedStore,
    Manifest,
    readable_json,
    sha256,
    storage_errors,
    write_durable,
)
from .plan import Unit
from .reader import Store, open_store
from .zarr_store import (
    STATUS,
    TABLE_CHUNK,
    ZarrFiles,
    decode_chunks,
    encode_shard,
    open_files,
    read_manifest,
    read_plain,
    row_chunk,
    safe_name,
    write_column,
    write_manifest,
)

LOST = "the value was damaged or missing"


@dataclass
class Repaired:
    """What `repair_store` did.

    rebuilt: files made again of their second copy. pending: {row: why} of rows that lost their value. probes: videos
    to be probed again. seal: the one that the store had ({"k", "digests"}), None if it was not sealed. left: what
    cannot be made again here.
    """

    rebuilt: list[str] = field(default_factory=list)
    pending: dict[int, str] = field(default_factory=dict)
    probes: list[str] = field(default_factory=list)
    seal: Mapping[str, Any] | None = None
    left: list[Finding] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        return not (self.rebuilt or self.pending or self.probes or self.left)


def repair_store(path: str | os.PathLike) -> Repaired:
    """Makes a store fit to be completed: whatever `verify` finds is restored, or its rows are pending afterwards.

    A store that is whole stays as it is; another one is unsealed first. `left` lists what nobody can make again.
    Run again after a kill. Raises UserError (not a store, may not write there), MachineError.
    """
    path, done = local_folder(path), Repaired()
    if _root_is_damaged(path):
        write_manifest(path, root_of(path))
        done.rebuilt.append("zarr.json")
    elif not [finding for finding in verify(path) if finding.severity == "error"]:
        finish_growth(path)
        return done
    seal = done.seal = read_manifest(path).seal
    digests = sealed_digests(open_store(path)) if seal else None
    status = _sealed_status(open_store(path)) if digests else None
    probes = _sealed_probes(path, seal) if digests else {}
    while not change_manifest(open_files(path), lambda now: replace(now, seal=None)):
        pass  # another process replaced it between our look and our write
    _restore_records(open_files(path), done)
    finish_growth(path)
    files = open_files(path)
    _restore_metadata(files, done)
    _restore_extensions(files, done)
    _restore_tables(files, done)
    store = open_store(path)
    for unit in store.units:
        known = None if status is None else status[unit.start : unit.stop]
        done.pending |= _mend_unit(store, unit, known, digests)
    _mend_probes(store, digests, probes, done)
    done.left = [finding for finding in verify(path) if finding.severity == "error"]
    return done


def seal_repaired(path: str | os.PathLike, seal: Mapping[str, Any] | None) -> Manifest:
    """Seals a store again; as the version it was before (`Repaired.seal`), if it is that byte for byte."""
    from .seal import seal as fix

    return fix(Path(path), seal)


def reset_rows(store: Store, rows: Iterable[int], why: str) -> dict[int, str]:
    """Makes these rows of an unsealed store pending and removes their values; returns {row: why} of them."""
    rows = np.asarray(list(rows), np.int64)
    reset: dict[int, str] = {}
    for unit in store.units:
        chosen = rows[(rows >= unit.start) & (rows < unit.stop)]
        if len(chosen):
            _mend_unit(store, unit, None, None, chosen - unit.start)
            reset |= dict.fromkeys(chosen.tolist(), why)
    return reset


# ---------------------------------------------------------------------------------------- root and metadata


def _root_is_damaged(path: Path) -> bool:
    try:
        read_manifest(path)
    except (DamagedStore, UserError):
        if not (path / "extensions" / "0").is_dir():
            raise
        return True
    return False


def _extensions(files: ZarrFiles) -> list[Extension]:
    """Those of the store that can be read, in order."""
    found = []
    for k in range(applied(files.manifest)):
        try:
            extension = read_extension(files.path, k)
        except DamagedStore:
            extension = None
        found += [extension] if extension else []
    return found


def _put(files: ZarrFiles, name: str, data: bytes, done: Repaired) -> None:
    """Writes a file that has to be just this, if it is not."""
    path = files.path / name
    if not path.is_file() or path.read_bytes() != data:
        write_durable(path, data)
        done.rebuilt.append(name)


def _restore_records(files: ZarrFiles, done: Repaired) -> None:
    for extension in _extensions(files):
        for name, data in extension.record_files().items():
            if sha256(data) == files.manifest.hashes.get(name):
                _put(files, name, data, done)


def _restore_metadata(files: ZarrFiles, done: Repaired) -> None:
    contents = {name: content for extension in _extensions(files) for name, content in extension.metadata.items()}
    for name, content in contents.items():
        data = readable_json(content)
        if sha256(data) == files.manifest.hashes.get(name):
            _put(files, name, data, done)


def _restore_extensions(files: ZarrFiles, done: Repaired) -> None:
    """Files of the extensions, from the tables: only what has the sha256 that the record says."""
    for extension in _extensions(files):
        harmed = [name for name, digest in extension.files.items() if _differs(files.path, extension, name, digest)]
        for name in harmed:
            if name.count("/") == 1:
                candidate = {name: readable_json({"attributes": {}, "zarr_format": 3, "node_type": "group"})}
            else:
                candidate = _column_files(files, extension, name.rpartition("/")[0])
            data = candidate.get(name)
            if data is not None and sha256(data) == extension.files[name]:
                _put(files, f"{extension.name}/{name}", data, done)


def _differs(path: Path, extension: Extension, name: str, digest: str) -> bool:
    file = path / extension.name / name
    return not file.is_file() or sha256(file.read_bytes()) != digest


def _column_files(files: ZarrFiles, extension: Extension, column: str) -> dict[str, bytes]:
    """{file: bytes} of a column of an extension's folder, of what the store's own table holds of these rows."""
    import zarr

    after, table = Manifest.from_json(extension.manifest), column.partition("/")[0]
    before = extension.first if table == "rows" else extension.starts.get(table, 0)
    start = 0 if column in extension.replaced or not extension.k else before
    stop = after.array_rows if table == "rows" else after.tables.get(table, 0)
    chunk = row_chunk(after.layout.unit_rows) if table == "rows" and not extension.k else TABLE_CHUNK
    try:
        values = files.own_column(column)[start:stop]
    except DamagedStore:
        return {}
    held: dict[str, Any] = {}
    write_column(zarr.create_group(zarr.storage.MemoryStore(held), zarr_format=3), "made", values, chunk)
    made = {name.removeprefix("made/"): data.to_bytes() for name, data in held.items() if name.startswith("made/")}
    made["zarr.json"] = readable_json(json.loads(made["zarr.json"]))
    return {f"{column}/{name}": data for name, data in made.items()}


def _restore_tables(files: ZarrFiles, done: Repaired) -> None:
    """Columns that are not what the extensions say, chunk by chunk."""
    columns = {name for extension in _extensions(files) for name in extension.columns()}
    for column in sorted(columns):
        try:
            expected = encode_column(files.metadata(column), table_column(files, column))
        except DamagedStore:
            continue  # neither copy is whole: `verify` goes on naming it
        for key, data in expected.items():
            _put(files, f"{column}/{key}", data, done)


# --------------------------------------------------------------------------------------------------- units


def _sealed_status(store: Store) -> np.ndarray | None:
    try:
        return store.status()
    except DamagedStore:
        return None


def _mend_unit(
    store: Store,
    unit: Unit,
    known: np.ndarray | None,
    digests: Mapping[str, str] | None,
    reset: np.ndarray | None = None,
) -> dict[int, str]:
    """Rows of a unit that hold no value any more become pending; returns {row: why} of them.

    known: the status as sealed, (len(unit),). digests: {file: sha256} as sealed. reset: rows of the unit (from 0) that
    become pending whatever they hold.
    """
    for _ in range(8):
        pending = _mend_once(store._files, unit, known, digests, reset)
        if pending is not None:
            return pending
    raise MachineError(f"unit {unit.index} of {store.path} keeps being changed by another process: run repair again")


def _mend_once(files: ZarrFiles, unit: Unit, known, digests, reset) -> dict[int, str] | None:
    """None if another process wrote the unit in between."""
    unit_rows, specs = files.manifest.layout.unit_rows, files.manifest.arrays
    status_data, generation = files.get(files.status_name(unit.index))
    now = _status(files, unit) if known is None else known
    now = np.where(now > ABSENT, PENDING, now).astype(np.uint8)
    reasons, reasons_good = _reasons(files, unit, digests)
    good = np.ones(len(unit), bool)
    held: dict[str, tuple] = {}
    dirty = reset is not None
    for name, spec in specs.items():
        data, shard_generation = files.get(files.shard_name(name, unit.index))
        values, readable = _read_shard(files, name, unit, data, digests)
        value_there = readable & spec.has_value(values)
        if values.dtype.kind == "f":
            value_there &= ~np.isnan(values.reshape(len(values), -1)).any(axis=1)
        if name == PADDED:
            value_there &= (values >= 0) & (values <= (files.manifest.spec.get("clip_len") or np.inf))
        blank = _is_blank(values, spec.fill) | ~readable
        good &= value_there[: len(unit)]
        dirty |= not readable.all() or bool((~blank[: len(unit)] & (now != OK)).any())
        held[name] = (data, shard_generation, values)
    lost = (now == OK) & ~good
    if not reasons_good:
        lost |= now == FAILED
    else:
        lost |= (now == FAILED) & ~np.isin(np.arange(unit.start, unit.stop), [int(row) for row in reasons])
    if reset is not None:
        lost[reset] = True
    final = np.where(lost, PENDING, now).astype(np.uint8)

    whole = np.zeros(unit_rows, np.uint8)
    whole[: len(unit)] = final
    encoded = encode_shard(files.metadata(STATUS), whole, np.ones(unit_rows, bool))
    if status_data is None and not final.any():
        encoded = None
    if encoded != status_data and not files.put(files.status_name(unit.index), encoded, generation):
        return None
    for name, (data, shard_generation, values) in held.items() if dirty or lost.any() else ():
        keep = np.zeros(unit_rows, bool)
        keep[: len(unit)] = final == OK
        values[~keep] = specs[name].fill
        shard = encode_shard(files.metadata(f"data/{name}"), values, keep)
        if shard != data and not files.put(files.shard_name(name, unit.index), shard, shard_generation):
            return None
    _put_reasons(files, unit, reasons, final)
    return {unit.start + int(j): LOST for j in np.flatnonzero(lost)}


def _status(files: ZarrFiles, unit: Unit) -> np.ndarray:
    try:
        return files.unit_status(unit)[0]
    except DamagedStore:
        return np.zeros(len(unit), np.uint8)


def _read_shard(
    files: ZarrFiles, name: str, unit: Unit, data: bytes | None, digests: Mapping[str, str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """((unit_rows, ...), (unit_rows,) bool: readable) of a shard's file.

    A file that reads well and is not what was sealed is of another version of the store: none of it counts.
    """
    spec, unit_rows = files.manifest.arrays[name], files.manifest.layout.unit_rows
    if data is None:
        return np.full((unit_rows, *spec.row_shape), spec.fill, spec.dtype), np.zeros(unit_rows, bool)
    values, readable = decode_chunks(files.metadata(f"data/{name}"), data, unit_rows)
    if digests and readable.all() and sha256(data) != digests.get(files.shard_name(name, unit.index)):
        readable[:] = False
    return values, readable


def _is_blank(values: np.ndarray, fill: float) -> np.ndarray:
    flat = values.reshape(len(values), -1)
    return (np.isnan(flat) if flat.dtype.kind == "f" else flat == fill).all(axis=1)


def _reasons(files: ZarrFiles, unit: Unit, digests: Mapping[str, str] | None) -> tuple[dict, bool]:
    """({row: why} of the failed rows, whether the file is what it should be)."""
    name = files.failures_name(unit.index)
    try:
        listed = files.read_json(name) or {}
        listed = {str(int(row)): [str(code), str(line)] for row, (code, line) in listed.items()}
    except (MachineError, ValueError, TypeError, AttributeError):
        return {}, False
    data = (files.path / name).read_bytes() if (files.path / name).is_file() else None
    return listed, digests is None or (data and sha256(data)) == digests.get(name)


def _put_reasons(files: ZarrFiles, unit: Unit, reasons: Mapping, final: np.ndarray) -> None:
    path = files.path / files.failures_name(unit.index)
    failed = [str(unit.start + int(j)) for j in np.flatnonzero(final == FAILED)]
    kept = {row: reasons[row] for row in failed if row in reasons}
    if kept and not (path.is_file() and path.read_bytes() == readable_json(kept)):
        write_durable(path, readable_json(kept))
    elif not kept and path.exists():
        with storage_errors(path):
            path.unlink()


# -------------------------------------------------------------------------------------------------- probes


def _sealed_probes(path: Path, seal: Mapping) -> dict[str, dict]:
    """{file name: probe} as the seal has them in columns; whether one is right, its sha256 says."""
    folder = path / "sealed" / str(seal["k"]) / "videos"
    try:
        columns = {file.parent.name: read_plain(file.parent) for file in sorted(folder.glob("*/zarr.json"))}
    except DamagedStore:
        return {}
    names = columns.pop("name", [])
    return {
        f"probes/{safe_name(name)}.json": {key: _plain(values[i]) for key, values in columns.items()}
        for i, name in enumerate(names)
    }


def _plain(value: Any) -> Any:
    """A column's value as JSON had it."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


def _mend_probes(store: Store, digests: Mapping | None, sealed: Mapping[str, dict], done: Repaired) -> None:
    """A damaged probe is made of the seal's columns if that gives the sealed file, else it is removed."""
    for video in store.videos["name"]:
        name = f"probes/{safe_name(video)}.json"
        path = store.path / name
        data = path.read_bytes() if path.is_file() else None
        if digests is not None and (data and sha256(data)) == digests.get(name):
            continue
        if digests is None and (data is None or _is_probe(data)):
            continue
        made = readable_json(sealed[name]) if name in sealed else b""
        if digests is not None and sha256(made) == digests.get(name):
            _put(store._files, name, made, done)
            continue
        if data is not None:
            with storage_errors(path):
                path.unlink()
        if digests is None or name in digests:
            done.probes.append(str(video))


def _is_probe(data: bytes) -> bool:
    try:
        probe = json.loads(data)
        return probe.get("geometry") is None or len([float(x) for x in probe["geometry"]]) == 4
    except (ValueError, TypeError, AttributeError):
        return False
