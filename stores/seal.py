"""Sealing: a complete, verified store becomes a fixed version with a digest of every file.

A seal is a folder `sealed/<k>`, never rewritten, and a root `zarr.json` that names it.
"""

import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from errors import MachineError, UserError

from .maintain import digests_hash, file_sha256, files_of, is_hidden, sweep, verify, versioned_files
from .manifest import PENDING, DamagedStore, Manifest, canonical_json, storage_errors, sync_folder, temporary_beside
from .reader import open_store
from .zarr_store import read_manifest, read_plain, sync_tree, write_column, write_manifest


def seal(path: Path) -> Manifest:
    """Verifies a complete store and fixes it; returns its new manifest. A sealed store stays as it is.

    Raises UserError if a row is pending, DamagedStore if `verify` finds an error.
    """
    store = open_store(path)
    if store.sealed:
        return store.manifest
    pending = np.flatnonzero(store.status() == PENDING)
    if len(pending):
        raise UserError(
            f"{path} cannot be sealed: {len(pending)} of {len(store)} rows are pending, first row {pending[0]}; "
            "run extract again"
        )
    sweep(path)
    errors = [finding for finding in verify(path) if finding.severity == "error"]
    if errors:
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise DamagedStore(f"{path} cannot be sealed: {errors[0].path} {errors[0].what}{more}; {errors[0].remedy}")
    names = versioned_files(store)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(names, pool.map(lambda name: file_sha256(path / name), names), strict=True))
    probes = [store.probe(i) for i in range(len(store.videos["name"]))]
    videos = _probe_columns(store.videos["name"], probes)
    try:
        k = _write_folder(path, store._files.status(), digests, videos)
    except (MachineError, UserError):
        if read_manifest(path).seal:  # another process was first, and swept ours away
            return read_manifest(path)
        raise
    manifest = replace(read_manifest(path), seal={"k": k, "digests": digests_hash(digests)})
    write_manifest(path, manifest)
    return manifest


def unseal(path: Path) -> Manifest:
    """Lets a sealed store change again; returns its new manifest. The next seal has the next number."""
    manifest = read_manifest(path)
    if manifest.seal:
        manifest = replace(manifest, seal=None)
        write_manifest(path, manifest)
    return manifest


def _write_folder(path: Path, status: np.ndarray, digests: Mapping[str, str], videos: Mapping) -> int:
    """Writes sealed/<k> whole and returns k: the next number, or the last one if it says just the same."""
    import zarr

    parent = path / "sealed"
    temporary = temporary_beside(parent / "seal")
    with storage_errors(parent):
        parent.mkdir(exist_ok=True)
        try:
            root = zarr.create_group(str(temporary), zarr_format=3)
            write_column(root, "status", status, chunk=max(1, len(status)))
            tables = {"digests": {"path": [*digests], "sha256": [*digests.values()]}, "videos": videos}
            for table, columns in tables.items():
                group = root.create_group(table)
                for name, column in columns.items():
                    write_column(group, name, column)
            sync_tree(temporary)
            k = _last(parent)
            while not (k and _same(temporary, parent / str(k))):
                k += 1
                if not (parent / str(k)).exists():
                    os.rename(temporary, parent / str(k))
                    break
            sync_folder(parent)
            written = read_plain(parent / str(k) / "digests" / "path")
            if written.tolist() != [*digests]:
                raise DamagedStore(f"{parent / str(k)} does not read back as written")
            return k
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _last(parent: Path) -> int:
    return max((int(name) for name in os.listdir(parent) if name.isdigit()), default=0)


def _same(one: Path, other: Path) -> bool:
    """A run killed just after the rename left a seal that no root names yet: the next run takes it up."""
    names, others = ([n for n in files_of(folder) if not is_hidden(n)] for folder in (one, other))
    return names == others and all((one / n).read_bytes() == (other / n).read_bytes() for n in names)


def _probe_columns(names: np.ndarray, probes: list[Mapping | None]) -> dict[str, Any]:
    """The probes as columns {name, fps, ...}: NaN, -1 or '' where a video has none."""
    keys = dict.fromkeys(key for probe in probes for key in probe or ())
    columns = {key: _column([(probe or {}).get(key) for probe in probes]) for key in keys if key != "name"}
    return {"name": names, **columns}


def _column(values: list) -> Any:
    given = [value for value in values if value is not None]
    kinds = {type(value) for value in given}
    if kinds <= {int}:
        return np.array([-1 if value is None else value for value in values], np.int64)
    if kinds <= {int, float}:
        return np.array([np.nan if value is None else value for value in values], np.float64)
    if kinds == {list} and len({len(value) for value in given}) == 1 and np.array(given).dtype.kind in "if":
        blank = [np.nan] * len(given[0])
        return np.array([blank if value is None else value for value in values], np.float64)
    as_text = [value if isinstance(value, str) else canonical_json(value).decode() for value in given]
    texts = iter(as_text)
    return ["" if value is None else next(texts) for value in values]
