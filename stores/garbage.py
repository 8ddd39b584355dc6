"""What killed writers leave behind, removed: never anything that is younger than an hour, a live writer's perhaps."""

import glob
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from errors import MachineError

from .extensions import FOLDER, applied, finish_growth, read_extension
from .files import local_folder, require_writable
from .grow import SIDE
from .lease import FOLDER as LEASES
from .maintain import files_of
from .manifest import FAILED, OK, PENDING, DamagedStore, is_temporary, storage_errors
from .reader import Store, open_store
from .repair import reset_rows
from .zarr_store import decode_chunks

HOUR_S = 3600.0

BESIDE = ("", SIDE, ".probes")
"""Folders beside a store in which writers make temporaries: stores half created or packed, exports, side stores, and
what was found in the videos (`pipelines.probes`)."""


@dataclass
class Garbage:
    """What was removed: {path: bytes}; relative to the store, `../` beside it."""

    store: str
    removed: dict[str, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(self.removed.values())


def collect_garbage(path: str | os.PathLike, older_than_s: float = HOUR_S) -> Garbage:
    """Removes the orphans of killed writers from a store and beside it; says which, and how many bytes.

    Temporaries, in the store, in its side stores and beside it, whichever store of the folder they are of (half
    created or packed ones, exports, probes of videos); side stores whose arrays the store has by now; extensions that
    another version of the store left and that do not fit it; seals that no root ever named; values and reasons of rows
    that nobody marked. An extension that does fit is applied. older_than_s: younger ones may be a live writer's, and
    stay.
    Raises UserError (may not write there), MachineError.
    """
    path, before = local_folder(path), time.time() - older_than_s
    garbage = Garbage(str(path))
    store = open_store(path)
    require_writable(store._files)
    leases = [path / LEASES / name for name in files_of(path / LEASES)]
    for orphan in [*_temporaries(path), *leases, *_superseded_sides(store)]:
        _remove(orphan, path, before, garbage)
    _collect_extensions(store, before, garbage)
    store = open_store(path)
    if store.sealed:
        for folder in (path / "sealed").iterdir():
            if folder.name.isdigit() and int(folder.name) > store.manifest.seal["k"]:
                _remove(folder, path, before, garbage)
    else:
        _collect_values(store, before, garbage)
    return garbage


def _temporaries(path: Path) -> Iterator[Path]:
    """Files and folders with names of half-written ones (`is_temporary`), whichever of the two they are."""
    for root in [path, *_sides(path)]:
        for parent, folders, files in os.walk(root):
            yield from (Path(parent, name) for name in sorted([*folders, *files]) if is_temporary(name))
            folders[:] = [name for name in folders if not is_temporary(name)]
    for folder in map(path.parent.joinpath, BESIDE):
        names = sorted(os.listdir(folder)) if folder.is_dir() else []
        yield from (folder / name for name in names if is_temporary(name))


def _sides(path: Path) -> list[Path]:
    """The side stores of a store."""
    folder = path.parent / SIDE
    return sorted(folder.glob(f"{glob.escape(path.stem)}+*.zarr")) if folder.is_dir() else []


def _remove(path: Path, store: Path, before: float, garbage: Garbage) -> None:
    files = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    try:
        stats = [file.lstat() for file in files]
    except FileNotFoundError:
        return  # its writer lives, and has just finished it
    if max(stat.st_mtime for stat in stats) > before:
        return
    with storage_errors(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    size = sum(stat.st_size for stat, file in zip(stats, files, strict=True) if file != path or len(files) == 1)
    garbage.removed[os.path.relpath(path, store)] = size


def _superseded_sides(store: Store) -> list[Path]:
    """Side stores of arrays that the store has, or of another store that had its name."""
    found = []
    for side in _sides(store.path):
        try:
            manifest = open_store(side).manifest
        except (DamagedStore, OSError):
            continue
        if manifest.recipe_hash != store.manifest.recipe_hash or not set(manifest.arrays) - set(store.manifest.arrays):
            found.append(side)
    return found


def _collect_extensions(store: Store, before: float, garbage: Garbage) -> None:
    """Applies an extension that fits; removes those that cannot ever be applied."""
    folder = store.path / FOLDER
    for name in sorted(os.listdir(folder), key=len) if folder.is_dir() else ():
        if not name.isdigit() or int(name) < applied(store.manifest):
            continue
        try:
            fits = _fits(store, int(name))
        except MachineError:
            fits = False
        if fits:
            finish_growth(store.path)
            return
        _remove(folder / name, store.path, before, garbage)


def _fits(store: Store, k: int) -> bool:
    extension, manifest = read_extension(store.path, k), store.manifest
    return (
        k == applied(manifest)
        and extension.first == manifest.array_rows
        and dict(extension.starts) == dict(manifest.tables)
    )


def _collect_values(store: Store, before: float, garbage: Garbage) -> None:
    """Values of rows that are not ok, and reasons of rows that did not fail: of a commit that was killed midway."""
    for unit in store.units:
        files = store._files
        try:
            status, _ = files.unit_status(unit)
            listed = {int(row) - unit.start for row in files.read_json(files.failures_name(unit.index)) or {}}
        except MachineError:
            continue  # `repair` is for that
        if not (status == PENDING).any() and not any(status[row] != FAILED for row in listed):
            continue
        names = [
            files.failures_name(unit.index),
            *(files.shard_name(name, unit.index) for name in files.manifest.arrays),
        ]
        there = {name: (store.path / name).stat() for name in names if (store.path / name).is_file()}
        if not there or max(stat.st_mtime for stat in there.values()) > before:
            continue
        if not any(status[row] != FAILED for row in listed) and not _holds_more(store, unit, status):
            continue
        reset_rows(store, unit.start + np.flatnonzero(status == PENDING), "nobody marked it")
        for name, stat in there.items():
            now = (store.path / name).stat().st_size if (store.path / name).is_file() else 0
            if now < stat.st_size:
                garbage.removed[name] = stat.st_size - now


def _holds_more(store: Store, unit, status: np.ndarray) -> bool:
    for name, spec in store.manifest.arrays.items():
        data, _ = store._files.get(store._files.shard_name(name, unit.index))
        if data is None:
            continue
        values, readable = decode_chunks(store._files.metadata(f"data/{name}"), data, store.manifest.layout.unit_rows)
        blank = ~spec.has_value(values[: len(unit)])
        if (readable[: len(unit)] & ~blank & (status != OK)).any():
            return True
    return False
