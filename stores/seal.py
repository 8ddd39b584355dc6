"""Sealing: a complete, verified store becomes a fixed version with a digest of every file.

A seal is a folder `sealed/<k>`, never rewritten, and a root `zarr.json` that names it.
"""

import errno
import os
import random
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from errors import MachineError, UserError

from .extensions import applied, change_manifest, finish_growth
from .maintain import digests_hash, file_sha256, files_of, is_hidden, seal_files, sweep, verify, versioned_files
from .manifest import (
    PENDING,
    DamagedStore,
    Manifest,
    canonical_json,
    make_folder,
    storage_errors,
    sync_folder,
    temporary_beside,
)
from .reader import open_store
from .zarr_store import open_files, read_manifest, read_plain, sync_tree, write_column

TRIES = 8
"""How often a seal's folder is begun again because another process seals the store at the same time."""

_ANOTHER_SEALS = (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)  # it swept our folder away, or took its number


def seal(path: Path, repaired: Mapping[str, Any] | None = None) -> Manifest:
    """Verifies a complete store and fixes it; returns its new manifest. A sealed store stays as it is.

    repaired: the seal that the store had before it was repaired; if every file is again as it was then, it is that
    version, and its folder is put right.
    Raises UserError if a row is pending, DamagedStore if `verify` finds an error.
    """
    finish_growth(path)
    store = open_store(path)
    if store.sealed:
        return store.manifest
    pending = np.flatnonzero((store.status() == PENDING) & store.visible)
    if len(pending):
        raise UserError(
            f"{path} cannot be sealed: {len(pending)} of {store.manifest.n_rows} rows are pending, first row"
            f" {pending[0]}; "
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
    same = repaired is not None and digests_hash(digests) == repaired["digests"]
    for attempt in range(TRIES):
        try:
            k = _write_folder(path, store._files.status(), digests, videos, int(repaired["k"]) if same else None)
            break
        except (MachineError, UserError) as error:
            if read_manifest(path).seal:  # another process was first, and swept ours away
                return read_manifest(path)
            if getattr(error.__cause__, "errno", None) not in _ANOTHER_SEALS or attempt == TRIES - 1:
                raise
            time.sleep(random.uniform(0, 0.1))
    fixed = {"k": k, "digests": digests_hash(digests), "files": seal_files(path / "sealed" / str(k))}
    while applied(read_manifest(path)) == applied(store.manifest):  # else it has grown meanwhile: that is no damage
        if change_manifest(store._files, lambda now: replace(now, seal=fixed), applied(store.manifest)):
            break
    return read_manifest(path)


def unseal(path: Path) -> Manifest:
    """Lets a sealed store change again; returns its new manifest. The next seal has the next number."""
    files = open_files(path)
    while not change_manifest(files, lambda now: replace(now, seal=None)):
        pass  # another process replaced it between our look and our write
    return read_manifest(path)


def _write_folder(
    path: Path, status: np.ndarray, digests: Mapping[str, str], videos: Mapping, damaged: int | None = None
) -> int:
    """Writes sealed/<k> whole and returns k: the next number, or the last one if it says just the same.

    damaged: the number of a folder that is to say this, and is replaced if it does not.
    """
    import zarr

    parent = path / "sealed"
    temporary = temporary_beside(parent / "seal")
    with storage_errors(parent):
        make_folder(parent)
        try:
            root = zarr.create_group(str(temporary), zarr_format=3)
            write_column(root, "status", status, chunk=max(1, len(status)))
            sizes = np.array([(path / name).stat().st_size for name in digests], np.int64)
            listed = {"path": [*digests], "sha256": [*digests.values()], "size": sizes}
            tables = {"digests": listed, "videos": videos}
            for table, columns in tables.items():
                group = root.create_group(table)
                for name, column in columns.items():
                    write_column(group, name, column)
            sync_tree(temporary)
            if damaged is not None:
                _replace_folder(temporary, parent / str(damaged))
                return damaged
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


def _replace_folder(temporary: Path, folder: Path) -> None:
    if folder.is_dir() and not _same(temporary, folder):
        os.rename(folder, temporary_beside(folder))  # `sweep` removes it
    if not folder.is_dir():
        os.rename(temporary, folder)
    sync_folder(folder.parent)
    sweep(folder.parent)


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
