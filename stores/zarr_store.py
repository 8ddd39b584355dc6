"""A store's folder: the Zarr v3 tree of format version 1, created whole and read piece by piece.

Data arrays go through tensorstore (fast, durable writes); tables and status through zarr-python and plain
files, so that opening a store starts no threads and a process may still be forked. Handles are made on use,
once a process.
"""

import errno
import functools
import json
import os
import re
import shutil
import urllib.parse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from errors import MachineError, UserError

from .columns import decode_column
from .files import is_url
from .limits import MANIFEST_BYTES, NotBelievable, check_array
from .manifest import (
    ArraySpec,
    DamagedStore,
    Manifest,
    NotAStore,
    make_folder,
    parse_json,
    parse_manifest,
    readable_json,
    sha256,
    storage_error,
    storage_errors,
    sync_folder,
    temporary_beside,
    with_padding_count,
    write_durable,
)
from .plan import Unit
from .shards import decode_chunks as decode_chunks
from .shards import decode_shard, shard_key, tensorstore
from .shards import encode_shard as encode_shard
from .shards import held_rows as held_rows

ATTRIBUTE = "clipbank"
STATUS = "rows/status"
TABLES = ("rows", "clips", "texts", "labels", "events", "videos")
ROW_PADDING = {"i": -1, "u": 0, "f": np.nan, "b": False}
"""What the columns of `rows/` hold in the padding after the last row."""

CACHE_BYTES = 32 * 1024 * 1024
"""Bound of tensorstore's cache (shard indexes, and small chunks that hold many rows), one a process."""

ZSTD_LEVEL = 1
"""Of new stores: higher levels save little of features, and cost much."""

TABLE_CHUNK = 65536
"""Rows of a table's chunk."""

LEAST_CHUNK = 1024
"""Rows of the chunk of a smaller table: it may grow, and its chunks are as small for ever."""


class DamagedShard(DamagedStore):
    """A stored file is missing, short, empty or does not match its checksum; the message names it."""


class DamagedRow(DamagedStore):
    """A row is marked ok and holds no value; the message names the shard file."""


class StoreSealed(UserError):
    """A sealed store does not change: what was to be committed is discarded."""


# ------------------------------------------------------------------------------------------- tensorstore


@functools.cache
def _context() -> Any:
    """File writes without lock files (unique temporary name, fsync, rename, fsync of the folder)."""
    return tensorstore().Context(
        {"file_io_locking": {"mode": "none"}, "cache_pool": {"total_bytes_limit": CACHE_BYTES}}
    )


def _kvstore(path: Path) -> dict:
    return {"driver": "file", "path": f"{path}/"}


# --------------------------------------------------------------------------------------------- the folder


class ZarrFiles:
    """The files of one store: where each thing lies, and reads that never mistake a lost file for a value."""

    read_only = None

    def __init__(self, path: Path, manifest: Manifest):
        self.path = path
        self.manifest = manifest
        self._arrays: dict[tuple[str, bool], Any] = {}

    # -- names

    def shard_name(self, array: str, unit: int) -> str:
        """Path of a shard inside the store."""
        return f"data/{array}/{shard_key(unit, self.manifest.arrays[array])}"

    def status_name(self, unit: int) -> str:
        return f"{STATUS}/c.{unit}"

    def place(self, name: str, row: int) -> str:
        """The shard that holds a row."""
        return str(self.path / self.shard_name(name, row // self.manifest.layout.unit_rows))

    def recompute(self, unit: int) -> str:
        """What makes the lost rows of a unit be computed again."""
        return f"run `store repair {self.path}`, which computes anew what unit {unit} lost"

    def failures_name(self, unit: int) -> str:
        return f"failures/{unit}.json"

    # -- metadata

    def metadata(self, name: str) -> dict:
        """The zarr.json of an array, checked against the manifest's sha256."""
        name = f"{name}/zarr.json"
        data = self.read_file(name)
        if sha256(data) != self.manifest.hashes.get(name) and not self.has_grown(name, data):
            raise DamagedStore(f"{self.path / name} does not match the manifest's sha256")
        return json.loads(data)

    def has_grown(self, name: str, data: bytes) -> bool:
        """Whether a zarr.json is not this manifest's because the store has grown since, or grows just now."""
        from .extensions import applied, read_extension

        now, found = read_manifest(self.path), sha256(data)
        if now.hashes.get(name) == found:
            return applied(now) > applied(self.manifest)
        k = applied(self.manifest)
        while (extension := read_extension(self.path, k)) is not None:
            if extension.hashes().get(name) == found:
                return True
            k += 1
        return False

    def read_file(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError as error:
            raise DamagedStore(f"{self.path / name} is missing: this store is not whole") from error
        except OSError as error:
            raise MachineError(f"cannot read {self.path / name}: {error.strerror}") from error

    def read_json(self, name: str) -> Any:
        """A JSON file of the store, or None if there is none."""
        if not (self.path / name).exists():
            return None
        try:
            return parse_json(self.read_file(name))
        except ValueError as error:
            raise DamagedStore(f"{self.path / name} is not valid JSON: the file was damaged") from error

    # -- tables and status

    def columns(self, table: str) -> list[str]:
        """Names of a table's columns, by name (`rows/status` is no column)."""
        pattern = re.compile(rf"{re.escape(table)}/([^/]+)/zarr\.json")
        names = [match[1] for match in map(pattern.fullmatch, self.manifest.hashes) if match]
        return [name for name in names if f"{table}/{name}" != STATUS]

    def column(self, name: str) -> np.ndarray:
        """A whole column (`clips/verb`), strings as objects. Raises DamagedStore for a chunk lost or wrong.

        Of a column that has grown: also for a chunk of before, which holds fill values for what was added.
        """
        from .extensions import check_joints

        values = self.own_column(name)
        check_joints(self, name, values)
        return values

    def own_column(self, name: str) -> np.ndarray:
        """A whole column as the table's own files say it is."""
        table = name.partition("/")[0]
        length = self.manifest.array_rows if table == "rows" else self.manifest.tables.get(table)
        try:  # its files may have grown since the manifest was read
            values = read_plain(self.path / name, self.metadata(name))[:length]
        except DamagedStore:
            if not self._was_replaced(name):
                raise
            values = None
        if values is None or self._was_replaced(name):  # looked at after reading: what was read may be half of each
            from .extensions import table_column

            return table_column(self, name)[:length]
        return values

    def _was_replaced(self, name: str) -> bool:
        """Whether a growth that this manifest does not count gives the column other values: relabelled, or just now."""
        from .extensions import applied, read_extension

        k = applied(self.manifest)
        while (extension := read_extension(self.path, k)) is not None:
            if name in extension.replaced:
                return True
            k += 1
        return False

    def status(self) -> np.ndarray:
        """(array rows,) uint8; a chunk that is not there means pending."""
        if not self.manifest.seal:
            return read_plain(self.path / STATUS, self.metadata(STATUS), may_lack_chunks=True)
        return self.sealed_column("status")

    def sealed_column(self, name: str) -> np.ndarray | None:
        """A column of the current seal, `videos/geometry`; None if it has none (the status it always has)."""
        folder = self.path / "sealed" / str(self.manifest.seal["k"]) / name
        return read_plain(folder) if name == "status" or folder.exists() else None

    def unit_status(self, unit: Unit) -> tuple[np.ndarray, Any]:
        """((len(unit),) uint8, generation of the chunk), as they are on disk now, sealed or not."""
        data, generation = self.get(self.status_name(unit.index))
        if data is None:
            return np.zeros(len(unit), np.uint8), generation
        try:
            chunk = decode_shard(self.metadata(STATUS), data, self.manifest.layout.unit_rows)
        except ValueError as error:
            chunk_file = self.path / self.status_name(unit.index)
            raise DamagedShard(f"{chunk_file} is damaged: {self.recompute(unit.index)}") from error
        return chunk[: len(unit)], generation

    def failures(self) -> dict[int, tuple[str, str]]:
        """{row: (reason code, one line)} of every failed row, by row."""
        folder, found = self.path / "failures", {}
        names = sorted(folder.glob("[!.]*.json")) if folder.is_dir() else []  # "._0.json" is macOS's, not ours
        for path in names:
            listed = self.read_json(f"failures/{path.name}") or {}
            found.update({int(row): (code, line) for row, (code, line) in listed.items()})
        return dict(sorted(found.items()))

    # -- data

    def storage(self, array: str) -> dict:
        """Where tensorstore finds an array's shards, and how."""
        return {"kvstore": _kvstore(self.path / "data" / array), "open": True}

    def context(self) -> Any:
        """What tensorstore reads and writes within: its cache, its locks."""
        return _context()

    def array_metadata(self, name: str) -> dict:
        """The zarr.json of a data array. Raises NotBelievable if it is not one of the manifest's array."""
        metadata, manifest = self.metadata(f"data/{name}"), self.manifest
        chunk_rows = manifest.layout.chunk_rows[name]
        try:
            check_array(metadata, manifest.arrays[name], manifest.layout.unit_rows, chunk_rows, manifest.array_rows)
        except NotBelievable as error:
            raise NotBelievable(f"{self.path / 'data' / name}: {error.message}") from None
        return metadata

    def array(self, name: str, fill_missing: bool = False) -> Any:
        """tensorstore handle of a data array; what is not stored is an error unless `fill_missing`."""
        key = (name, fill_missing)
        ts = tensorstore()
        if key not in self._arrays:
            spec = {"driver": "zarr3", **self.storage(name), "fill_missing_data_reads": fill_missing}
            spec["metadata"] = self.array_metadata(name)
            try:
                self._arrays[key] = ts.open(spec, context=self.context()).result()
            except ValueError as error:
                raise DamagedStore(f"cannot open {self.path / 'data' / name}: {error}") from error
        return self._arrays[key]

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(len(rows), *row_shape) in one batched read. Raises DamagedShard or DamagedRow, never fills in."""
        array = self.array(name)
        if not len(rows):
            return np.empty((0, *array.shape[1:]), array.dtype.numpy_dtype)
        try:
            return self.result(_read(array, rows))
        except Exception as error:
            raise self._damage(name, rows, error) from error

    def result(self, read: Any) -> np.ndarray:
        """What a read of tensorstore's gives."""
        return read.result()

    def _damage(self, name: str, rows: np.ndarray, error: Exception) -> Exception:
        """Which file made a read fail: every shard of the batch is read alone."""
        array, of_unit = self.array(name), rows // self.manifest.layout.unit_rows
        for unit in np.unique(of_unit).tolist():
            try:
                self.result(_read(array, rows[of_unit == unit]))
            except Exception as alone:
                return self.shard_damage(name, unit, alone)
        return MachineError(f"reading {self.path / 'data' / name} failed: {error}")

    def shard_damage(self, name: str, unit: int, error: Exception) -> Exception:
        """The error to raise when tensorstore could not read a shard."""
        shard = self.path / self.shard_name(name, unit)
        remedy = f"run `store verify {self.path}` to see what else is; copy the file again, or {self.recompute(unit)}"
        code = _errno(error)
        if code not in (None, errno.ENOENT, errno.EIO):  # too many open files, permissions: no damage is known
            return MachineError(f"cannot read {shard}: {os.strerror(code)}")
        if not shard.exists():
            return DamagedShard(f"{shard} is missing though its rows are marked ok: {remedy}")
        if str(error).startswith("NOT_FOUND"):
            return DamagedRow(f"a row marked ok has no value in {shard}: {remedy}")
        return DamagedShard(f"{shard} is damaged ({_short(error)}): {remedy}")

    # -- whole objects with a generation: writes that notice another writer

    @functools.cached_property
    def objects(self) -> Any:
        """The store as key -> bytes, written by tensorstore's file driver."""
        return tensorstore().KvStore.open(_kvstore(self.path), context=_context()).result()

    def get(self, name: str) -> tuple[bytes | None, Any]:
        """(bytes or None, generation) of a file of the store."""
        try:
            result = self.objects.read(name).result()
        except ValueError as error:
            raise MachineError(f"cannot read {self.path / name}: {_short(error)}") from error
        return (result.value if result.state == "value" else None), result.stamp.generation

    def put(self, name: str, data: bytes | None, generation: Any) -> bool:
        """Durably replaces (None: removes) a file; False if that was not to be: begin again from what is there."""
        if data is not None:
            with storage_errors(self.path / name):
                make_folder((self.path / name).parent)  # tensorstore makes it too, and does not fsync where it lies
        try:
            return bool(self.objects.write(name, data, if_equal=generation).result().generation)
        except ValueError as error:
            code = _errno(error)
            if code == errno.ENOENT:  # its temporary was swept away
                return False
            reason = os.strerror(code) if code else _short(error)
            raise storage_error(self.path / name, code, reason) from error


def _read(array: Any, rows: np.ndarray) -> Any:
    """A read of rows that has begun."""
    if rows[-1] - rows[0] == len(rows) - 1 and (np.diff(rows) == 1).all():
        return array[int(rows[0]) : int(rows[-1]) + 1].read(order="C")
    return array.oindex[rows].read(order="C")


def _errno(error: Exception) -> int | None:
    match = re.search(r"os_error_code='(\d+)'", str(error))
    return int(match[1]) if match else None


def _short(error: Exception) -> str:
    """tensorstore's message without the address of its source file and the spec it ends with."""
    return re.sub(r"\s*\[.*", "", str(error), flags=re.DOTALL).strip()[:300]


def read_plain(folder: Path, metadata: dict | None = None, may_lack_chunks: bool = False) -> np.ndarray:
    """A column in a folder. Raises DamagedStore for a chunk that is not there (unless it may lack) or damaged."""
    try:
        metadata = metadata or parse_json((folder / "zarr.json").read_bytes())
        present = set(os.listdir(folder))
        fetch = lambda names: [(folder / name).read_bytes() if name in present else None for name in names]  # noqa: E731
        return decode_column(metadata, fetch, str(folder), may_lack_chunks)
    except OSError as error:
        raise DamagedStore(f"cannot read {folder}: {error}") from error
    except ValueError as error:
        raise DamagedStore(f"{folder} is damaged: {error}") from error


# ------------------------------------------------------------------------------------------------ creation


def create_folder(
    path: str | os.PathLike,
    manifest: Manifest,
    tables: Mapping[str, Mapping[str, np.ndarray] | None],
    level: int = ZSTD_LEVEL,
) -> None:
    """Writes a new store, whole, and renames it into place; leaves alone a store that is there already.

    tables: {"rows": {column: (n,) array}, "clips": ..., "videos": ..., "texts": None or ..., ...}.
    level: of zstd, of the data arrays.
    Raises UserError for a name that does not end in .zarr or a place that cannot be written, MachineError.
    """
    if is_url(path) or Path(path).suffix != ".zarr":
        raise UserError(f"a store that is written is a folder NAME.zarr, got {path}")
    path = Path(path)
    if (path / "zarr.json").exists():
        return
    manifest = with_padding_count(manifest)
    lengths = {table: _length(table, columns) for table, columns in tables.items() if columns is not None}
    extents, counts = ((0, lengths["rows"]),), {name: lengths[name] for name in TABLES[1:] if name in lengths}
    manifest = replace(manifest, extents=extents, tables=counts, hashes={}, seal=None)
    temporary = temporary_beside(path)
    with storage_errors(path):
        make_folder(path.parent)
        try:
            temporary.mkdir()
            _write_tree(temporary, manifest, tables, level)
            sync_tree(temporary)
            _rename_new(temporary, path)
            sync_folder(path.parent)
        except OSError:
            if not (path / "zarr.json").exists():  # else another process was first: what is ours is not needed
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _length(table: str, columns: Mapping[str, np.ndarray]) -> int:
    lengths = {name: len(column) for name, column in columns.items()}
    if not lengths or len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of {table}/ must have equal lengths, got {lengths}")
    return next(iter(lengths.values()))


def _write_tree(folder: Path, manifest: Manifest, tables: Mapping, level: int) -> None:
    import zarr

    from .extensions import first_extension

    root = zarr.create_group(str(folder), zarr_format=3)
    unit, padded = manifest.layout.unit_rows, manifest.array_rows
    for table, columns in tables.items():
        if columns is None:
            continue
        group = root.create_group(table)
        for name, column in columns.items():
            if table == "rows":
                write_column(group, name, pad_rows(np.asarray(column), padded), row_chunk(unit))
            else:
                write_column(group, name, column)
    _create(root["rows"], "status", (padded,), (unit,), "uint8", 0, compress=False)
    data = root.create_group("data")
    for name, spec in manifest.arrays.items():
        create_data(data, name, spec, padded, unit, manifest.layout.chunk_rows[name], level)
    (folder / "zarr.json").unlink()
    metadata = {}
    for file in sorted(folder.rglob("zarr.json")):
        name = file.relative_to(folder).as_posix()
        metadata[name] = json.loads(file.read_bytes())
        file.write_bytes(readable_json(metadata[name]))
    (folder / "zarr.json").write_bytes(root_json(first_extension(folder, manifest, metadata)))


def root_json(manifest: Manifest) -> bytes:
    """The root zarr.json."""
    return readable_json({"attributes": {ATTRIBUTE: manifest.to_json()}, "zarr_format": 3, "node_type": "group"})


def row_chunk(unit_rows: int) -> int:
    """Rows of a chunk of the columns of `rows/`: whole units."""
    return max(1, TABLE_CHUNK // unit_rows) * unit_rows


def pad_rows(column: np.ndarray, length: int) -> np.ndarray:
    """A column of `rows/` with the padding after its last row."""
    if column.dtype.kind not in ROW_PADDING:
        raise ValueError(f"the columns of rows/ are numbers, got dtype {column.dtype}")
    out = np.full(length, ROW_PADDING[column.dtype.kind], column.dtype)
    out[: len(column)] = column
    return out


def write_column(group: Any, name: str, column: Any, chunk: int = TABLE_CHUNK) -> None:
    """Writes a column of numbers or strings into a zarr group."""
    column = np.asarray(column)
    if column.dtype.kind in "OUT":
        column = column.astype(object)
        wrong = next((item for item in column if not isinstance(item, str)), None)
        if wrong is not None:
            raise ValueError(f"column {group.path}/{name} mixes strings and {type(wrong).__name__}")
        dtype, fill = str, ""
    else:
        dtype, fill = column.dtype, column.dtype.type(0)
    chunks = (min(chunk, max(LEAST_CHUNK, len(column))), *column.shape[1:])
    array = _create(group, name, column.shape, chunks, dtype, fill)
    if len(column):
        array[...] = column


def _create(group: Any, name: str, shape: tuple, chunks: tuple, dtype: Any, fill: Any, compress=True) -> Any:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return group.create_array(
        name,
        shape=shape,
        chunks=chunks,
        dtype=dtype,
        fill_value=fill,
        compressors=[ZstdCodec(level=1), Crc32cCodec()] if compress else [Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        config={"write_empty_chunks": True},
    )


def create_data(
    group: Any, name: str, spec: ArraySpec, rows: int, unit: int, chunk: int, level: int = ZSTD_LEVEL
) -> None:
    """An empty data array in a zarr group: one shard a unit, compressed by zstd at this level."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    group.create_array(
        name,
        shape=(rows, *spec.row_shape),
        shards=(unit, *spec.row_shape),
        chunks=(chunk, *spec.row_shape),
        dtype=spec.dtype,
        fill_value=spec.fill,
        compressors=[ZstdCodec(level=level), Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=None,
    )


def sync_tree(folder: Path) -> None:
    """fsync of every file and folder below, and of the folder itself."""
    for parent, _, files in os.walk(folder):
        for name in files:
            handle = os.open(os.path.join(parent, name), os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(parent)


def _rename_new(temporary: Path, path: Path) -> None:
    try:
        os.rename(temporary, path)
    except OSError:
        if path.is_dir() and not (path / "zarr.json").exists():
            raise NotAStore(
                f"{path} exists, is not empty and is not a store (it has no zarr.json): move it away"
            ) from None
        raise


# ------------------------------------------------------------------------------------------------- opening


def open_files(path: str | os.PathLike) -> ZarrFiles:
    """Reads the manifest of a store. Raises NotAStore, DamagedStore, or UserError for a newer format."""
    path = Path(path)
    return ZarrFiles(path, read_manifest(path))


def read_manifest(path: Path) -> Manifest:
    """The manifest in the root zarr.json as it is now."""
    try:
        with open(path / "zarr.json", "rb") as file:
            data = file.read(MANIFEST_BYTES + 1)
    except FileNotFoundError:
        if not path.exists():
            raise NotAStore(f"there is no store at {path}") from None
        raise NotAStore(
            f"{path} is not a store: it has no zarr.json. If it was being copied, the copy is not finished"
        ) from None
    except NotADirectoryError:
        raise NotAStore(
            f"{path} is a file; what changes a store needs a folder NAME.zarr (`store unpack` makes one of NAME.h5)"
        ) from None
    except OSError as error:
        raise MachineError(f"cannot read {path / 'zarr.json'}: {error.strerror}") from error
    return parse_root(data, str(path))


def parse_root(data: bytes, where: str) -> Manifest:
    """The manifest in the bytes of a root zarr.json. Raises NotAStore, DamagedStore, UserError (a newer format)."""
    try:
        manifest = parse_json(data)["attributes"][ATTRIBUTE]
    except (ValueError, KeyError, TypeError):
        raise NotAStore(f"{where} is not a store of clipbank: its zarr.json has no manifest") from None
    return parse_manifest(manifest, where)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Durably replaces the root zarr.json."""
    write_durable(path / "zarr.json", root_json(manifest))


def safe_name(name: str) -> str:
    """A file name (without suffix) for any string: injective, no separators, at most 200 characters."""
    quoted = urllib.parse.quote(name, safe="").replace("~", "%7E")
    return quoted if len(quoted) <= 180 else f"{quoted[:110]}~{sha256(name.encode())}"
