"""A store in one HDF5 file, `NAME.h5`: the Zarr tree packed whole, to hand on and to read; never written in place.

Groups and datasets are named as in the folder: `rows/`, `clips/`, `videos/`, ..., `data/NAME`, `rows/status`. The
attribute `clipbank` of the root is the manifest (JSON) with a sha256 of every dataset. Strings are UTF-8 of fixed
length: they lie in chunks, under checksums, like all other values. `probes/` and `failures/` are tables, and `folder/`
keeps the small files of the Zarr folder as they are, so that `unpack` gives back the same folder.

HDF5 returns fill values for chunks that are not there. What is lost is noticed by the checksums of the file's own
structures (file format 1.10), by fletcher32 of every chunk, by the value that every ok row must begin with, and by
`zeros/NAME`, which says what chunks of an array are zero: zeros are what a copy leaves that is not finished.
"""

import functools
import hashlib
import math
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from errors import MachineError

from .limits import CHUNK_BYTES, COLUMN_CHUNK_BYTES, NotBelievable
from .manifest import DamagedStore, Manifest, NotAStore, parse_json, parse_manifest
from .plan import Unit
from .zarr_store import ATTRIBUTE, STATUS, DamagedShard, safe_name

MOST_EXPANSION = 1100
"""Deflate makes of a byte at most 1,032: a dataset that holds more for its stored bytes is not believed."""

_FILTERS = ([3], [1, 3], [2, 1, 3], [32000, 3], [2, 32000, 3])
"""HDF5 numbers: 3 fletcher32, 1 deflate, 2 shuffle, 32000 lzf. Others, or stacks of them, are not read."""

_FEW_ROWS = 8
"""Fewer rows of a chunk are read one by one: it stays in HDF5's cache meanwhile."""

_REMEDY = "copy the file again from its source"


def open_hdf5(path: Path) -> "Hdf5Files":
    """Reads the manifest of a packed store. Raises NotAStore, DamagedStore (a file cut short), UserError."""
    return Hdf5Files(path)


class Hdf5Files:
    """The datasets of one packed store. A handle is opened on use, once a process, and never inherited by a fork."""

    read_only = (
        "an HDF5 store is packed whole and then only read. Unpack it into a NAME.zarr (`store unpack`), change that, "
        "and pack it again"
    )

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.RLock()
        self._handle: tuple[int, Any] | None = None
        self._datasets: dict[str, Any] = {}
        self._rows: dict[str, _Rows] = {}
        body = self._manifest()
        self.manifest: Manifest = parse_manifest(body, str(path))
        try:
            self.digests: dict[str, str] = dict(body["packed"]["digests"])
        except (KeyError, TypeError, ValueError) as error:
            raise NotAStore(f"{path} is not a store that clipbank packed: its manifest has no digests") from error

    # -- the file

    def file(self) -> Any:
        """The open file of this process."""
        with self._lock:
            if self._handle is None or self._handle[0] != os.getpid():
                self._datasets, self._rows = {}, {}
                self._handle = os.getpid(), _open(self.path)
            return self._handle[1]

    def _manifest(self) -> dict:
        file = self.file()
        try:
            text = file.attrs.get(ATTRIBUTE)
            if isinstance(text, str | bytes):
                return parse_json(text)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise NotAStore(f"{self.path} is not a store of clipbank: its manifest cannot be read ({error})") from error
        raise NotAStore(f"{self.path} is not a store of clipbank: it has no attribute {ATTRIBUTE!r}")

    def dataset(self, name: str) -> Any:
        """An h5py dataset that lies in this file and is stored as ours are. Raises DamagedStore."""
        file = self.file()
        if name not in self._datasets:
            try:
                self._datasets[name] = _checked(file, name)
            except NotBelievable as error:
                raise NotBelievable(f"{self.path}, {name}: {error.message}") from None
            except KeyError as error:
                raise DamagedStore(f"{self.path} has no dataset {name}: it is damaged; {_REMEDY}") from error
            except (OSError, RuntimeError, ValueError, TypeError) as error:
                raise self.damage(name, error) from error
        return self._datasets[name]

    def damage(self, name: str, error: Exception) -> DamagedStore:
        """The error to raise when HDF5 could not read a dataset."""
        return DamagedShard(f"{self.path}, {name} is damaged ({_short(error)}): {_REMEDY}")

    def names(self) -> list[str]:
        """Every dataset that the manifest names."""
        return list(self.digests)

    # -- tables and status

    def columns(self, table: str) -> list[str]:
        prefix = f"{table}/"
        return [name.removeprefix(prefix) for name in self.digests if name.startswith(prefix) and name != STATUS]

    def column(self, name: str) -> np.ndarray:
        """A whole column, checked against its digest; strings as objects."""
        dataset = self.dataset(name)
        try:
            values = dataset[...] if dataset.size else np.empty(dataset.shape, dataset.dtype)
        except (OSError, RuntimeError) as error:
            raise self.damage(name, error) from error
        if digest(values) != self.digests.get(name):
            raise DamagedStore(f"{self.path}, {name} does not match the manifest's sha256: {_REMEDY}")
        return _text(values) if values.dtype.kind == "S" else values

    def sealed_column(self, name: str) -> np.ndarray | None:
        if name == "status":
            return self.status()
        packed = f"sealed/{name}"
        return self.column(packed) if packed in self.digests else None

    @functools.cached_property
    def _status(self) -> np.ndarray:
        status = self.column(STATUS)
        if status.shape != (self.manifest.array_rows,) or status.dtype != np.uint8:
            raise DamagedStore(f"{self.path}, {STATUS} has shape {status.shape}: {_REMEDY}")
        return status

    def status(self) -> np.ndarray:
        return self._status.copy()

    def unit_status(self, unit: Unit) -> tuple[np.ndarray, Any]:
        return self._status[unit.start : unit.stop].copy(), None

    # -- small things

    def read_json(self, name: str) -> Any:
        """What probes/<video>.json says; failures are a table here."""
        text = self._probes.get(name)
        try:
            return None if text is None else parse_json(text)
        except ValueError as error:
            raise DamagedStore(f"{self.path}, {name} is not valid JSON: {_REMEDY}") from error

    @functools.cached_property
    def _probes(self) -> dict[str, str]:
        if "probes/json" not in self.digests:
            return {}
        videos, texts = self.column("probes/video"), self.column("probes/json")
        return {f"probes/{safe_name(video)}.json": text for video, text in zip(videos, texts, strict=True)}

    def failures(self) -> dict[int, tuple[str, str]]:
        if "failures/row" not in self.digests:
            return {}
        columns = [self.column(f"failures/{name}") for name in ("row", "code", "line")]
        return {int(row): (code, line) for row, code, line in zip(*columns, strict=True)}

    # -- data

    def place(self, name: str, row: int) -> str:
        return f"{self.path}, data/{name} rows {row} on"

    def array(self, name: str) -> Any:
        """The dataset of a data array, checked against the manifest."""
        dataset, spec, manifest = self.dataset(f"data/{name}"), self.manifest.arrays[name], self.manifest
        shape, chunk = (manifest.array_rows, *spec.row_shape), (manifest.layout.chunk_rows[name], *spec.row_shape)
        if dataset.shape != shape or dataset.dtype != spec.dtype or (shape[0] and dataset.chunks != chunk):
            found = f"{dataset.dtype} of shape {dataset.shape} in chunks of {dataset.chunks}"
            raise DamagedStore(f"{self.path}, data/{name} is {found}, the manifest says {spec.dtype} of {shape}")
        return dataset

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(len(rows), *row_shape), each chunk read once."""
        spec = self.manifest.arrays[name]
        out = np.empty((len(rows), *spec.row_shape), spec.dtype)
        self.file()  # forgets what was opened before a fork
        if name not in self._rows:
            zeros = self.column(f"zeros/{name}")
            self._rows[name] = _Rows(self.array(name), self.manifest.layout.chunk_rows[name], zeros)
        try:
            self._rows[name].read(rows, out)
        except NotBelievable as error:
            raise NotBelievable(f"{self.path}, data/{name}: {error.message}") from None
        except (OSError, RuntimeError) as error:
            raise self._read_damage(name, rows, error) from error
        return out

    def _read_damage(self, name: str, rows: np.ndarray, error: Exception) -> Exception:
        """Which row made a read fail."""
        spec, chunk = self.manifest.arrays[name], self.manifest.layout.chunk_rows[name]
        for row in np.unique(rows // chunk) * chunk:
            try:
                self._rows[name].read(np.array([row]), np.empty((1, *spec.row_shape), spec.dtype))
            except (OSError, RuntimeError) as alone:
                return DamagedShard(f"{self.place(name, int(row))}: damaged ({_short(alone)}): {_REMEDY}")
        return MachineError(f"reading {self.path}, data/{name} failed: {_short(error)}")


# ------------------------------------------------------------------------------------------------------ reading


def _open(path: Path) -> Any:
    """The file, for reading."""
    import h5py

    if path.is_dir():
        raise NotAStore(f"{path} is a folder; an HDF5 store is a file NAME.h5")
    try:
        with open(path, "rb") as file:
            start = file.read(8)
    except FileNotFoundError:
        raise NotAStore(f"there is no store at {path}") from None
    except OSError as error:
        raise MachineError(f"cannot read {path}: {error.strerror}") from error
    refused = None
    for locking in (None, False):  # as plain h5py opens it, for both to be open at once; where locks fail, without
        try:
            return h5py.File(path, "r", locking=locking)
        except (OSError, RuntimeError) as error:
            refused = refused or error
    if start == b"\x89HDF\r\n\x1a\n" or not start.strip(b"\0"):
        raise DamagedStore(
            f"{path} is cut short or damaged ({_short(refused)}). If it is being copied, wait until that is done; "
            f"else {_REMEDY}"
        ) from refused
    raise NotAStore(f"{path} is not an HDF5 file")


def _checked(file: Any, name: str) -> Any:
    """A dataset, reached through hard links only, stored in this file, within the limits of ours."""
    import h5py

    group = file
    for part in name.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            raise KeyError(name)
        if not isinstance(link, h5py.HardLink):
            raise NotBelievable("it is a link to somewhere else. Get the store from its source again")
        group = group[part]
    if not isinstance(group, h5py.Dataset):
        raise KeyError(name)
    dataset, kind = group, group.dtype.kind
    created = dataset.id.get_create_plist()
    filters = [created.get_filter(i)[0] for i in range(created.get_nfilters())]
    chunk, size = (math.prod(shape) * dataset.dtype.itemsize for shape in (dataset.chunks or (0,), dataset.shape))
    is_data, stored = name.startswith("data/"), dataset.id.get_storage_size()
    for wrong, claim in (
        (dataset.external or dataset.is_virtual, "values in another file"),
        (kind not in "biufS" or not dataset.shape, f"values of dtype {dataset.dtype} and shape {dataset.shape}"),
        (dataset.size and filters not in _FILTERS, f"filters {filters}"),
        (dataset.size and not dataset.chunks, "no chunks"),
        (chunk > (CHUNK_BYTES if is_data else COLUMN_CHUNK_BYTES), f"chunks of {chunk:,} bytes"),
        (not is_data and size > MOST_EXPANSION * stored, f"{size:,} bytes in {stored:,}"),
    ):
        if wrong:
            raise NotBelievable(f"it claims {claim}: no store of clipbank does. Get it from its source again")
    return dataset


class _Rows:
    """Reads rows of a dataset in any order, the rows of one chunk together: it is fetched and unpacked once.

    zeros: numbers of the chunks that were packed as zeros. Any other that reads so was lost: fletcher32 of zeros is 0.
    """

    def __init__(self, dataset: Any, chunk: int, zeros: np.ndarray):
        self.dataset, self.chunk, self.zeros = dataset, chunk, set(zeros.tolist())
        self.rest = dataset.shape[1:]
        self.row_bytes = dataset.dtype.itemsize * math.prod(self.rest)
        self.is_bounded = dataset.compression is None

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Fills `out`. Raises OSError or RuntimeError for a damaged chunk, NotBelievable."""
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        numbers = ordered // self.chunk
        if not self.is_bounded:
            self._check_expansion()
        many = numbers[_FEW_ROWS - 1 :] == numbers[: 1 - _FEW_ROWS]
        if many.any():
            alone = np.ones(len(rows), bool)
            for number in np.unique(numbers[: 1 - _FEW_ROWS][many]).tolist():
                mine = slice(*np.searchsorted(numbers, (number, number + 1)))
                out[order[mine]] = self._chunk(number)[ordered[mine] - number * self.chunk]
                alone[mine] = False
            order, ordered = order[alone], ordered[alone]
        dataset = self.dataset
        for row, place in zip(ordered.tolist(), order.tolist(), strict=True):
            out[place] = dataset[row]
        self._check_zeros(rows, out)

    def _check_zeros(self, rows: np.ndarray, out: np.ndarray) -> None:
        """A row of zeros is looked at together with its chunk."""
        flat = out.reshape(len(rows), math.prod(self.rest))
        for place in np.flatnonzero(~flat[:, :: max(1, flat.shape[1] // 16)].any(axis=1)).tolist():
            if is_zero(flat[place]):
                self._chunk(int(rows[place]) // self.chunk)

    def _chunk(self, number: int) -> np.ndarray:
        values = self.dataset[number * self.chunk : (number + 1) * self.chunk]
        if number not in self.zeros and not values.reshape(-1)[:1].any() and is_zero(values):
            raise OSError("holds zeros where others were packed")
        return values

    def _check_expansion(self) -> None:
        """A compressed chunk is stored in no more than it holds, so that it cannot unpack without bound.

        All are looked at at once, in a second for a million: HDF5 finds a single one by going through the others.
        """
        stored: list[int] = []
        self.dataset.id.chunk_iter(lambda chunk: stored.append(chunk.size))
        plain, most = self.chunk * self.row_bytes, max(stored, default=0)
        if most > plain + plain // 100 + 4096:
            claim = f"a chunk of {plain:,} bytes that is stored in {most:,}"
            raise NotBelievable(f"it has {claim}. Get the store from its source again")
        self.is_bounded = True


def is_zero(values: np.ndarray) -> bool:
    """Whether every byte is zero."""
    return not np.ascontiguousarray(values).reshape(-1).view(np.uint8).any()


def _text(values: np.ndarray) -> np.ndarray:
    """Fixed-length UTF-8 -> objects."""
    return np.array([value.decode() for value in values.ravel().tolist()], object).reshape(values.shape)


def digest(values: np.ndarray) -> str:
    """sha256 of an array's dtype, shape and little-endian bytes in C order."""
    found = new_digest(values.dtype, values.shape)
    found.update(little_endian(values))
    return found.hexdigest()


def new_digest(dtype: Any, shape: tuple[int, ...]) -> Any:
    """A digest to which the values are added, part by part."""
    return hashlib.sha256(f"{np.dtype(dtype).newbyteorder('<').str} {list(shape)}\n".encode())


def little_endian(values: np.ndarray) -> memoryview:
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    return memoryview(values.reshape(-1).view(np.uint8))


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
