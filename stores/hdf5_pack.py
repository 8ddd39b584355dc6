"""Zarr folder -> one HDF5 file, and back."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from errors import MachineError, UserError

from .extensions import unapplied
from .files import HDF5, is_url
from .hdf5_store import Hdf5Files, digest, is_zero, little_endian, new_digest, open_hdf5
from .limits import NotBelievable, is_safe_name
from .maintain import files_of, is_hidden, listed_digests, versioned_files
from .manifest import (
    OK,
    DamagedStore,
    canonical_json,
    is_temporary,
    make_folder,
    readable_json,
    sha256,
    storage_errors,
    sync_folder,
    temporary_beside,
)
from .reader import Store, open_store
from .zarr_store import (
    ATTRIBUTE,
    STATUS,
    TABLES,
    ZarrFiles,
    encode_shard,
    open_files,
    parse_root,
    read_manifest,
    sync_tree,
    write_manifest,
)

COMPRESSIONS = ("none", "gzip", "lzf")
"""What a packed store may be compressed by [half-zero float16 maps, one core: none 1,600 MB/s and 100 % of the size,
lzf 240 and 79 %, gzip 115 and 62 %]. All HDF5 reads none and gzip, h5py reads all three; zstd needs a plugin."""

COLUMN_BYTES = 1024 * 1024
"""A chunk of a column of a packed store holds about this much."""

Progress = Callable[[int, int], None]


# --------------------------------------------------------------------------------------------------------- pack


def pack(
    zarr_path: str | os.PathLike,
    h5_path: str | os.PathLike,
    compression: str = "none",
    progress: Progress | None = None,
) -> None:
    """Packs a store into one new HDF5 file, whole or not at all; rows that are not ok hold no value.

    h5_path: NAME.h5, which must not exist. compression: "none" (the fastest to read), "gzip" (the smallest), "lzf".
    progress: called as progress(units done, units). Raises UserError, DamagedStore, MachineError.
    """
    target = Path(h5_path)
    if compression not in COMPRESSIONS:
        raise UserError(f"--compression is one of {', '.join(COMPRESSIONS)}, got {compression!r}")
    if target.suffix not in HDF5:
        raise UserError(f"an HDF5 store is named NAME.h5, got {target}")
    if is_url(zarr_path) or not isinstance((store := open_store(zarr_path))._files, ZarrFiles):
        raise UserError(f"only a folder NAME.zarr can be packed, got {zarr_path}")
    if unapplied(store.path, store.manifest) is not None:
        raise UserError(f"{store.path} is growing just now: run extract to the end, then pack it")
    if target.exists():
        raise UserError(f"{target} exists: move it away, or choose another name")
    temporary = temporary_beside(target)
    with storage_errors(target):
        try:
            make_folder(target.parent)
            _write_file(temporary, store, compression, progress)
            if read_manifest(store.path) != store.manifest:
                raise MachineError(f"{store.path} changed while it was packed: run the same command again")
            sync_file(temporary)
            os.link(temporary, target)  # unlike a rename this never replaces what another process made meanwhile
            sync_folder(target.parent)
        except FileExistsError:
            raise UserError(f"{target} exists: another process made it") from None
        except RuntimeError as error:  # h5py, of a file that could not be closed
            raise OSError(errno.EIO, str(error)) from error
        finally:
            temporary.unlink(missing_ok=True)


def sync_file(path: Path) -> None:
    """fsync of a file."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_file(path: Path, store: Store, compression: str, progress: Progress | None) -> None:
    import h5py

    with open(path, "x+b", buffering=0) as plain, h5py.File(disk := _Disk(plain), "w", libver=("v110", "v110")) as file:
        writer = _Writer(file, compression, disk)
        status = store._files.status()
        writer.column(STATUS, status)
        for name, values in _small(store):
            writer.column(name, values)
        writer.arrays(store, status, progress)
        packed = {"compression": compression, "digests": writer.digests}
        body = {key: value for key, value in store.manifest.to_json().items() if key != "sha256"} | {"packed": packed}
        file.attrs[ATTRIBUTE] = readable_json({**body, "sha256": sha256(canonical_json(body))}).decode()
        file.flush()
    disk.check()


class _Disk:
    """A file that HDF5 writes to. It learns nothing of a full disk, since its library may crash on closing a file that
    could not be written: the first error is kept, nothing more is written, and `check` raises it."""

    def __init__(self, file: Any):
        self._file, self._error = file, None

    def check(self) -> None:
        """Raises what went wrong, OSError."""
        if self._error:
            raise self._error

    def _try(self, act: Callable[[], Any], instead: Any) -> Any:
        if self._error is None:
            try:
                return act()
            except OSError as error:
                self._error = error
        return instead

    def write(self, data: Any) -> int:
        return self._try(lambda: self._write(memoryview(data)), len(data))

    def _write(self, data: memoryview) -> int:
        left = data
        while len(left):
            left = left[self._file.write(left) :]
        return len(data)

    def truncate(self, size: int) -> int:
        return self._try(lambda: self._file.truncate(size), size)

    def seek(self, *where: int) -> int:
        return self._file.seek(*where)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1) -> bytes:
        return self._file.read(size)

    def readinto(self, data: Any) -> int:
        return self._file.readinto(data)

    def flush(self) -> None:
        """Nothing is held back."""


def _small(store: Store) -> Iterator[tuple[str, np.ndarray]]:
    """(name, values) of everything but status and data."""
    files = store._files
    for table in TABLES:
        for column in files.columns(table):
            yield f"{table}/{column}", files.column(f"{table}/{column}")
    if store.sealed:
        for folder in sorted((store.path / "sealed" / str(store.manifest.seal["k"]) / "videos").glob("*/zarr.json")):
            name = f"videos/{folder.parent.name}"
            yield f"sealed/{name}", files.sealed_column(name)
    names = store.videos["name"]
    probes = [files.read_json(store._probe_name(i)) for i in range(len(names))]
    known = [i for i, probe in enumerate(probes) if probe is not None]
    yield "probes/video", np.array([names[i] for i in known], object)
    yield "probes/json", np.array([canonical_json(probes[i]).decode() for i in known], object)
    failures = store.failures()
    yield "failures/row", np.array(list(failures), np.int64)
    yield "failures/code", np.array([code for code, _ in failures.values()], object)
    yield "failures/line", np.array([line for _, line in failures.values()], object)
    yield from _folder(store)


def _folder(store: Store) -> Iterator[tuple[str, np.ndarray]]:
    """The files of the folder that are neither shards nor status chunks, as they are."""
    keep = {"zarr.json", *(name for name in versioned_files(store) if not _is_bulk(name))}
    for name in files_of(store.path):
        if name.startswith(("sealed/", "provenance/")) and not is_hidden(name) and not is_temporary(name):
            keep.add(name)
    names = sorted(name for name in keep if not any(map(is_temporary, name.split("/"))))
    held = [store._files.read_file(name) for name in names]
    yield "folder/name", np.array(names, object)
    yield "folder/size", np.array([len(data) for data in held], np.int64)
    yield "folder/bytes", np.frombuffer(b"".join(held), np.uint8)


def _is_bulk(name: str) -> bool:
    """Whether a file holds rows: these are packed as datasets."""
    return name.startswith(("data/", f"{STATUS}/")) and not name.endswith("/zarr.json")


class _Writer:
    """Writes datasets, and keeps the digest of each."""

    def __init__(self, file: Any, compression: str, disk: _Disk):
        self.file, self.disk = file, disk
        self.options = {"fletcher32": True, **({} if compression == "none" else {"compression": compression})}
        if compression == "gzip":
            self.options["compression_opts"] = 1
        self.digests: dict[str, str] = {}

    def column(self, name: str, values: np.ndarray) -> None:
        """Numbers of any shape; strings (objects) become fixed-length UTF-8."""
        values = _fixed_length(name, values) if values.dtype.kind == "O" else values
        row = max(1, values[:1].nbytes)
        options = {"chunks": (max(1, min(len(values), COLUMN_BYTES // row)), *values.shape[1:]), **self.options}
        if values.dtype.kind == "S" and "compression" not in options:
            options |= {"compression": "gzip", "compression_opts": 1}  # most of it is padding
        dataset = self.file.create_dataset(name, values.shape, values.dtype, **(options if values.size else {}))
        if values.size:
            dataset.write_direct(np.ascontiguousarray(values))
        self.disk.check()
        self.digests[name] = digest(values)

    def arrays(self, store: Store, status: np.ndarray, progress: Progress | None) -> None:
        """Data arrays, unit by unit: the rows that are ok, in the chunks that hold any."""
        manifest = store.manifest
        rows, step = manifest.array_rows, manifest.layout.unit_rows
        datasets, digests = {}, {}
        zeros: dict[str, list[int]] = {name: [] for name in manifest.arrays}
        for name, spec in manifest.arrays.items():
            shape = (rows, *spec.row_shape)
            options = {"chunks": (manifest.layout.chunk_rows[name], *spec.row_shape), **self.options} if rows else {}
            fill = np.dtype(spec.dtype).type(spec.fill)
            datasets[name] = self.file.create_dataset(f"data/{name}", shape, spec.dtype, fillvalue=fill, **options)
            digests[name] = new_digest(spec.dtype, shape)
        for done, start in enumerate(range(0, rows, step), 1):
            ok = np.flatnonzero(status[start : start + step] == OK)
            for name, spec in manifest.arrays.items():
                whole = np.full((step, *spec.row_shape), spec.fill, spec.dtype)
                if len(ok):
                    whole[ok] = store._values(name, start + ok)
                digests[name].update(little_endian(whole))
                for first, last in _runs(ok, step, manifest.layout.chunk_rows[name]):
                    datasets[name][start + first : start + last] = whole[first:last]
                    self.disk.check()
                chunk = manifest.layout.chunk_rows[name]
                zeros[name] += [
                    (start + at) // chunk for at in range(0, step, chunk) if is_zero(whole[at : at + chunk])
                ]
            if progress:
                progress(done, rows // step)
        for name, chunks in zeros.items():
            self.column(f"zeros/{name}", np.array(chunks, np.int64))
        self.digests |= {f"data/{name}": found.hexdigest() for name, found in digests.items()}


def _runs(ok: np.ndarray, step: int, chunk: int) -> list[list[int]]:
    """[first, last) of the runs of chunks that hold one of these rows."""
    kept = np.zeros(step // chunk, bool)
    kept[ok // chunk] = True
    return (np.flatnonzero(np.diff(kept, prepend=False, append=False)) * chunk).reshape(-1, 2).tolist()


def _fixed_length(name: str, values: np.ndarray) -> np.ndarray:
    import h5py

    texts = [text.encode() for text in values.ravel().tolist()]
    wrong = next((text for text in texts if text.endswith(b"\0")), None)
    if wrong is not None:
        raise UserError(f"{name} holds a string that ends in NUL, {wrong[:40]!r}, which HDF5 cannot keep")
    length = max(1, max(map(len, texts), default=1))
    return np.array(texts, h5py.string_dtype("utf-8", length)).reshape(values.shape)


# ------------------------------------------------------------------------------------------------------- unpack


def unpack(h5_path: str | os.PathLike, zarr_path: str | os.PathLike, progress: Progress | None = None) -> None:
    """Makes the folder NAME.zarr of a packed store again: the same rows, values, probes, failures and seals.

    Made by the same versions of the libraries, it is the folder that was packed, byte for byte; by others it is
    sealed anew. zarr_path must not exist. Raises UserError, DamagedStore, MachineError.
    """
    target = Path(zarr_path)
    files = open_hdf5(Path(h5_path))
    if target.suffix != ".zarr":
        raise UserError(f"a store is named NAME.zarr, got {target}")
    if target.exists():
        raise UserError(f"{target} exists: move it away, or choose another name")
    temporary = temporary_beside(target)
    with storage_errors(target):
        try:
            make_folder(target.parent)
            temporary.mkdir()
            _write_small(files, temporary)
            reseal = _write_units(Store(files.path), open_files(temporary), progress)
            if reseal:
                write_manifest(temporary, replace(files.manifest, seal=None))
            sync_tree(temporary)
            if target.exists():
                raise UserError(f"{target} exists: another process made it")
            os.rename(temporary, target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    if reseal:
        open_store(target).seal()


def _write_small(files: Hdf5Files, folder: Path) -> None:
    names, sizes, data = (files.column(f"folder/{part}") for part in ("name", "size", "bytes"))
    wrong = next((name for name in names.tolist() if not is_safe_name(name) or _is_bulk(name)), None)
    if wrong is not None:
        raise NotBelievable(f"{files.path} holds a file named {wrong!r}: it was not packed by clipbank")
    if (sizes < 0).any() or sizes.sum() != len(data) or len(names) != len(sizes):
        raise DamagedStore(f"{files.path}, folder/ does not fit together: copy the file again from its source")
    ends = np.cumsum(sizes).tolist()
    for name, size, end in zip(names.tolist(), sizes.tolist(), ends, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data[end - size : end].tobytes())
    root = folder / "zarr.json"
    if not root.exists() or parse_root(root.read_bytes(), str(files.path)) != files.manifest:
        raise DamagedStore(f"{files.path}, folder/zarr.json is not this store's: copy the file again from its source")


def _write_units(packed: Store, files: ZarrFiles, progress: Progress | None) -> bool:
    """Writes shards and status chunks; whether the folder must be sealed anew."""
    manifest, status = packed.manifest, packed._files.status()
    sealed = dict(listed_digests(open_store(files.path))) if manifest.seal else {}
    step, differs = manifest.layout.unit_rows, False
    metadata = {name: files.array_metadata(name) for name in manifest.arrays}
    for unit in range(manifest.array_rows // step):
        now = status[unit * step : (unit + 1) * step]
        ok = np.flatnonzero(now == OK)
        made: dict[str, bytes | None] = {}
        for name, spec in manifest.arrays.items():
            whole = np.full((step, *spec.row_shape), spec.fill, spec.dtype)
            if len(ok):
                whole[ok] = packed._values(name, unit * step + ok)
            made[files.shard_name(name, unit)] = encode_shard(metadata[name], whole, now == OK)
        if now.any():
            made[files.status_name(unit)] = encode_shard(files.metadata(STATUS), now, np.ones(step, bool))
        for name, data in made.items():
            if data is not None:
                (files.path / name).parent.mkdir(parents=True, exist_ok=True)
                (files.path / name).write_bytes(data)
                differs |= bool(sealed) and sealed.get(name) != sha256(data)
        if progress:
            progress(unit + 1, manifest.array_rows // step)
    return differs
