"""Committing one unit: whole shards, then the reasons of failures, then the status, then a look back.

Any number of processes may commit the same unit without locks. Rows that are ok keep what is stored, and an
ok row never becomes failed: each file is replaced only if it is still the one that was read, and otherwise
the commit begins again from what is there now. Two workers who disagree can thus cost a recomputation, never
a wrong value.
"""

import random
import time
from collections.abc import Mapping

import numpy as np

from errors import MachineError, UserError

from .manifest import ABSENT, FAILED, OK, PADDED, PENDING, ArraySpec, readable_json, write_durable
from .plan import Unit
from .zarr_store import STATUS, StoreSealed, ZarrFiles, decode_shard, encode_shard, held_rows, read_manifest

TRIES = 10
"""How often a commit begins again before it gives up."""
LONGEST_PAUSE_S = 10.0

Failures = Mapping[int, tuple[str, str]]


def commit_unit(
    files: ZarrFiles,
    unit: Unit,
    arrays: Mapping[str, np.ndarray],
    status: np.ndarray,
    failures: Failures,
    verify: bool = True,
) -> np.ndarray:
    """Writes a unit and returns its status as it is then, (len(unit),) uint8. See `Store.commit`."""
    status, failures = _checked_status(unit, status, failures)
    arrays, status, failures = fit_rows(files.manifest.arrays, unit, arrays, status, failures)
    was_ok = np.zeros(len(unit), bool)
    for attempt in range(TRIES):
        begun = time.monotonic()
        now = read_manifest(files.path)
        if now.seal:
            raise StoreSealed(f"{files.path} was sealed in the meantime: unit {unit.index} is discarded")
        if set(now.arrays) != set(files.manifest.arrays):
            raise UserError(f"{files.path} got other arrays in the meantime: run the same command again to go on")
        final = _write_once(files, unit, arrays, status, failures, was_ok)
        if final is not None and (not verify or _reads_back(files, unit, final)):
            return final
        # Somewhere in a time that doubles, measured by what an attempt takes here: in the end one is alone for so long.
        time.sleep(random.uniform(0, min((time.monotonic() - begun) * 2**attempt, LONGEST_PAUSE_S)))
    raise MachineError(
        f"unit {unit.index} of {files.path} did not read back as written after {TRIES} tries: "
        "another process keeps changing it, or the disk loses writes"
    )


# ------------------------------------------------------------------------------------- what may be stored


def _checked_status(unit: Unit, status: np.ndarray, failures: Failures) -> tuple[np.ndarray, dict]:
    status = np.array(status)
    if status.shape != (len(unit),) or not np.isin(status, (PENDING, OK, FAILED, ABSENT)).all():
        raise ValueError(f"status must be ({len(unit)},) of codes 0 to 3, got {status.shape}: {status}")
    failures = {int(row): (str(code), " ".join(str(line).split())) for row, (code, line) in failures.items()}
    failed = {unit.start + int(j) for j in np.flatnonzero(status == FAILED)}
    if failed != set(failures):
        raise ValueError(
            f"failures must name every failed row of unit {unit.index}, and no other, by its index in the store: "
            f"failed rows {sorted(failed)}, failures {sorted(failures)}"
        )
    return status.astype(np.uint8), failures


def fit_rows(
    specs: Mapping[str, ArraySpec],
    unit: Unit,
    arrays: Mapping[str, np.ndarray],
    status: np.ndarray,
    failures: Failures,
) -> tuple[dict[str, np.ndarray], np.ndarray, dict]:
    """What a store can hold: its dtypes, fill values in rows that are not ok, and the others failed.

    Reasons: "nan_output" (an output holds NaN), "overflow" (a value that the dtype cannot hold, or infinity),
    "no_value" (the row begins with the value that marks a row without one).
    """
    arrays = {PADDED: np.zeros(len(unit), np.int16), **arrays}
    if set(arrays) != set(specs):
        raise ValueError(f"arrays must be {sorted(specs)}, got {sorted(arrays)}")
    status, failures, out = status.copy(), dict(failures), {}
    for name, spec in specs.items():
        given = np.asarray(arrays[name])
        if given.shape != (len(unit), *spec.row_shape):
            raise ValueError(f"{name} must be {(len(unit), *spec.row_shape)}, got {given.shape}")
        if (given.dtype.kind == "f") != (np.dtype(spec.dtype).kind == "f"):
            raise ValueError(f"{name} is stored as {spec.dtype}, got {given.dtype}")
        out[name], reasons = _convert(given, spec)
        for j, (code, line) in reasons.items():
            if status[j] == OK:
                status[j] = FAILED
                failures[unit.start + j] = (code, f"{name}: {line}")
    for name, spec in specs.items():
        out[name][status != OK] = spec.fill
    return out, status, failures


def _convert(given: np.ndarray, spec: ArraySpec) -> tuple[np.ndarray, dict[int, tuple[str, str]]]:
    rows = given.reshape(len(given), -1)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = np.array(given, spec.dtype, order="C")
    empty = np.flatnonzero(~spec.has_value(stored)).tolist()
    reasons = {j: ("no_value", f"begins with {spec.fill}, the mark of a row without a value") for j in empty}
    if given.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(stored.reshape(rows.shape)).all(axis=1))
        for j in bad.tolist():
            count = int(np.isnan(rows[j]).sum())
            largest = float(np.nanmax(np.abs(rows[j]))) if count < rows.shape[1] else float("nan")
            reasons[j] = (
                ("nan_output", f"{count} of {rows.shape[1]} values are NaN")
                if count
                else ("overflow", f"{largest:g} does not fit {spec.dtype}")
            )
    else:
        for j in np.flatnonzero((stored.reshape(rows.shape) != rows).any(axis=1)).tolist():
            reasons[j] = ("overflow", f"a value does not fit {spec.dtype}")
    return stored, reasons


# ---------------------------------------------------------------------------------------------- one attempt


def _write_once(
    files: ZarrFiles,
    unit: Unit,
    arrays: Mapping[str, np.ndarray],
    status: np.ndarray,
    failures: Failures,
    was_ok: np.ndarray,
) -> np.ndarray | None:
    """Steps 0 to 3; None if another process wrote the unit in between.

    was_ok: rows that any attempt found ok, (len(unit),) bool, kept up to date here: none of them becomes failed.
    """
    specs, unit_rows = files.manifest.arrays, files.manifest.layout.unit_rows
    now, generation = files.unit_status(unit)
    known = files.read_json(files.failures_name(unit.index)) or {}
    shards = {name: files.get(files.shard_name(name, unit.index)) for name in specs}

    stored, keep = _stored_rows(files, unit, shards, now, status)
    take = (status == OK) & ~keep
    was_ok |= now == OK
    lost = was_ok & ~keep & ~take  # its value is gone and not in our hand: to be computed again
    final = np.where(keep | take, OK, np.where(lost, PENDING, np.where(status == PENDING, now, status)))
    final = final.astype(np.uint8)

    for name, spec in specs.items():
        whole = np.full((unit_rows, *spec.row_shape), spec.fill, spec.dtype)
        part = whole[: len(unit)]
        part[take] = arrays[name][take]
        if keep.any():
            part[keep] = stored[name][keep]
        has_value = np.zeros(unit_rows, bool)
        has_value[: len(unit)] = final == OK
        data = encode_shard(files.metadata(f"data/{name}"), whole, has_value)
        before, shard_generation = shards[name]
        if data != before and not files.put(files.shard_name(name, unit.index), data, shard_generation):
            return None

    _write_failures(files, unit, final, known, failures)
    if not np.array_equal(final, now) and not _write_status(files, unit, final, generation):
        return None
    return final


def _stored_rows(
    files: ZarrFiles, unit: Unit, shards: Mapping, now: np.ndarray, status: np.ndarray
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """({array: (len(unit), ...)} of what the shards hold if any row is ok, fill values where they hold nothing;
    (len(unit),) bool: rows that are ok and have a value in every one)."""
    out, keep, unit_rows = {}, now == OK, files.manifest.layout.unit_rows
    for name, (data, _) in shards.items() if (now == OK).any() else ():
        spec = files.manifest.arrays[name]
        out[name] = np.full((len(unit), *spec.row_shape), spec.fill, spec.dtype)
        if data is None:
            keep[:] = False
            continue
        try:
            metadata = files.metadata(f"data/{name}")
            out[name] = decode_shard(metadata, data, unit_rows)[: len(unit)]
            keep &= spec.has_value(out[name]) & held_rows(metadata, data, unit_rows)[: len(unit)]
        except ValueError as error:
            keep[:] = False
            if (status[now == OK] != OK).any():  # damage may only be replaced by the same rows computed again
                raise files.shard_damage(name, unit.index, error) from error
    return out, keep


def _write_failures(
    files: ZarrFiles, unit: Unit, final: np.ndarray, known: Mapping[str, list], failures: Failures
) -> None:
    reasons = {**known, **{str(row): list(why) for row, why in failures.items()}}
    rows = [str(unit.start + int(j)) for j in np.flatnonzero(final == FAILED)]
    reasons = {row: reasons.get(row, ["unknown", "the reason was lost"]) for row in rows}
    path = files.path / files.failures_name(unit.index)
    if reasons and reasons != known:
        write_durable(path, readable_json(reasons))
    elif known and not reasons:
        path.unlink(missing_ok=True)


def _write_status(files: ZarrFiles, unit: Unit, status: np.ndarray, generation: object) -> bool:
    whole = np.zeros(files.manifest.layout.unit_rows, np.uint8)
    whole[: len(status)] = status
    data = encode_shard(files.metadata(STATUS), whole, np.ones(len(whole), bool))
    return files.put(files.status_name(unit.index), data, generation)


def _reads_back(files: ZarrFiles, unit: Unit, final: np.ndarray) -> bool:
    """Step 4: every row that was marked ok is still ok, and every array holds its first value."""
    now, _ = files.unit_status(unit)
    if (now[final == OK] != OK).any():
        return False
    rows = unit.start + np.flatnonzero(now == OK)
    for name, spec in files.manifest.arrays.items() if len(rows) else ():
        array = files.array(name)
        first = array[(slice(None), *(0 for _ in spec.row_shape))]
        try:
            values = first.oindex[rows].read().result()
        except ValueError:
            return False
        if not spec.is_picture and not ArraySpec((), spec.dtype).has_value(values).all():
            return False
    return True
