"""What a store says about itself, and the one way its small files are written.

The manifest is a JSON object, kept as the attribute `clipbank` of the store's root `zarr.json`. It holds
nothing that differs between two runs of the same extraction (no date, no host): those go to `provenance/`.
"""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from errors import MachineError, UserError

FORMAT = 1
"""Version of the store format that this code writes, and the newest that it reads."""

PENDING, OK, FAILED, ABSENT = 0, 1, 2, 3
"""Values of `rows/status`. ABSENT: the video has no such modality, which is not a failure."""

PADDED = "n_padded"
"""The array that every store has: how many of a row's frames lay outside the video, int16."""


ESSENTIAL = ("rows/video", "rows/start_s", "rows/stop_s", "videos/name")
"""The columns without which there is no store."""


class DamagedStore(MachineError):
    """Something stored is not there any more, or is not what was written."""


class NotAStore(UserError, FileNotFoundError):
    """There is no store at this path, or only part of one."""


# ---------------------------------------------------------------------------------------------- the manifest


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store: what a row of it looks like.

    row_shape: shape of one row, `()` for a number a row.
    dtype: numpy name; float16, float32, float64, a signed integer, or uint8 (text).
    """

    row_shape: tuple[int, ...]
    dtype: str

    def __post_init__(self):
        object.__setattr__(self, "row_shape", tuple(int(n) for n in self.row_shape))
        object.__setattr__(self, "dtype", np.dtype(self.dtype).name)
        if any(n < 1 for n in self.row_shape):
            raise ValueError(f"row_shape must have positive sides, got {self.row_shape}")
        if np.dtype(self.dtype).kind not in "fi" and self.dtype != "uint8":
            raise ValueError(f"dtype must be a float, a signed integer or uint8, got {self.dtype}")

    @property
    def fill(self) -> float | int:
        """What a row without a value holds: NaN, -1, or 0 for uint8. No ok row starts with it, but pictures may."""
        return {"f": math.nan, "i": -1, "u": 0}[np.dtype(self.dtype).kind]

    @property
    def is_picture(self) -> bool:
        """uint8 of two or more dimensions: every value is a value, none marks an empty row."""
        return self.dtype == "uint8" and len(self.row_shape) >= 2

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row_shape) * np.dtype(self.dtype).itemsize

    def has_value(self, values: np.ndarray) -> np.ndarray:
        """(N, *row_shape) -> (N,) bool: the first value of the row is not the fill value.

        Pictures (uint8 of two or more dimensions) may begin with black: theirs always counts as a value.
        """
        if self.is_picture:
            return np.ones(len(values), bool)
        first = values[(slice(None), *(0 for _ in self.row_shape))]
        return ~np.isnan(first) if first.dtype.kind == "f" else first != self.fill


@dataclass(frozen=True)
class Layout:
    """How rows are cut: fixed when the store is created, wins on resume, no part of the recipe.

    unit_rows: rows of a unit = rows of a shard of every array.
    batch_size: row j of a unit is slot j % batch_size of batch j // batch_size.
    chunk_rows: {array: rows of an inner chunk}; each divides unit_rows.
    """

    unit_rows: int
    batch_size: int
    chunk_rows: Mapping[str, int]


@dataclass(frozen=True)
class Manifest:
    """All that is known about a store without opening an array.

    arrays, layout: what each row holds, and how rows are cut.
    recipe: everything that determines a row's values from its window; its hash decides whether to resume.
    spec, dataset, lineage: facts for the reader (network, dataset and annotations, what the weights saw).
    extents: ((first row, count), ...), one an extension; rows outside are padding and hidden.
    tables: {table: its rows}, of every table but `rows/`, whose length the extents say.
    hashes: {path inside the store: sha256} of every zarr.json, and of the record of every extension.
    seal: None, or {"k": number of the seal, "digests": sha256 of its list of digests, "files": {file of its folder:
    sha256}}.
    """

    arrays: Mapping[str, ArraySpec]
    layout: Layout
    recipe: Mapping[str, Any]
    spec: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)
    lineage: Any = field(default_factory=list)
    extents: tuple[tuple[int, int], ...] = ()
    tables: Mapping[str, int] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)
    seal: Mapping[str, Any] | None = None

    @property
    def recipe_hash(self) -> str:
        return recipe_hash(self.recipe)

    @property
    def n_rows(self) -> int:
        """Rows in the extents (padding not counted)."""
        return sum(count for _, count in self.extents)

    @property
    def array_rows(self) -> int:
        """Length of every row array: the extents, padded to whole units."""
        unit = self.layout.unit_rows
        return max((-(-(first + count) // unit) * unit for first, count in self.extents), default=0)

    def to_json(self) -> dict:
        body = {
            "format": FORMAT,
            "n_rows": self.n_rows,
            "extents": [list(extent) for extent in self.extents],
            "tables": dict(self.tables),
            "recipe_hash": self.recipe_hash,
            "recipe": self.recipe,
            "layout": asdict(self.layout),
            "arrays": {name: asdict(spec) for name, spec in self.arrays.items()},
            "spec": self.spec,
            "dataset": self.dataset,
            "lineage": self.lineage,
            "seal": self.seal,
            "hashes": dict(self.hashes),
        }
        body = json.loads(readable_json(body))  # tuples become lists: what is hashed is what is read back
        return {**body, "sha256": sha256(canonical_json(body))}

    @classmethod
    def from_json(cls, data: Mapping) -> "Manifest":
        """Raises UserError for a newer format, DamagedStore if the manifest does not match its own hash.

        NotBelievable (a DamagedStore) for one that no store has: names that leave it, 10^12 rows.
        """
        from .limits import check_manifest

        version = data.get("format")
        if not isinstance(version, int) or version < 1:
            raise NotAStore(f"the manifest has no format number (format = {version!r})")
        if version > FORMAT:
            raise UserError(f"the store has format {version}, this clipbank reads up to {FORMAT}: update clipbank")
        body = {key: value for key, value in data.items() if key != "sha256"}
        if data.get("sha256") != sha256(canonical_json(body)):
            raise DamagedStore("the manifest does not match its own sha256: zarr.json was damaged or edited")
        manifest = cls(
            arrays={name: ArraySpec(**spec) for name, spec in data["arrays"].items()},
            layout=Layout(**data["layout"]),
            recipe=data["recipe"],
            spec=data["spec"],
            dataset=data["dataset"],
            lineage=data["lineage"],
            extents=tuple((first, count) for first, count in data["extents"]),
            tables=data.get("tables", {}),
            hashes=data["hashes"],
            seal=data["seal"],
        )
        check_manifest(manifest)
        return manifest


def parse_manifest(data: Any, where: str) -> Manifest:
    """`Manifest.from_json`, with messages that name the store; NotAStore for anything but a manifest."""
    try:
        manifest = Manifest.from_json(data)
        lacks = [name for name in ESSENTIAL if f"{name}/zarr.json" not in manifest.hashes]
        if lacks:
            raise NotAStore(f"its manifest names no {', '.join(lacks)}: it is not one of clipbank")
        return manifest
    except (UserError, MachineError) as error:
        raise type(error)(f"{where}: {error.message}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise NotAStore(f"{where}: its manifest is not one of clipbank ({error!r})") from None


def with_padding_count(manifest: Manifest) -> Manifest:
    """The same manifest with the array `n_padded`, which every store has."""
    if PADDED in manifest.arrays:
        return manifest
    layout = manifest.layout
    chunks = {**layout.chunk_rows, PADDED: layout.unit_rows}
    arrays = {**manifest.arrays, PADDED: ArraySpec((), "int16")}
    return replace(manifest, arrays=arrays, layout=replace(layout, chunk_rows=chunks))


def recipe_hash(recipe: Mapping) -> str:
    """sha256 (hex) of the recipe's canonical JSON: the order of keys does not matter, any value does."""
    return sha256(canonical_json(recipe))


def recipe_difference(
    stored: Mapping, asked: Mapping, one: str = "the store has", other: str = "asked for"
) -> list[str]:
    """One line a field that differs, in dotted names, with both values; empty when the recipes are equal.

    one, other: how a line introduces the value of `stored` and of `asked`.
    """
    a, b = (dict(_flatten(json.loads(canonical_json(recipe)))) for recipe in (stored, asked))
    names = [*a, *(name for name in b if name not in a)]
    return [
        f"{name}: {one} {_show(a, name)}, {other} {_show(b, name)}"
        for name in names
        if name not in a or name not in b or a[name] != b[name]
    ]


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _show(fields: Mapping, name: str) -> str:
    return json.dumps(fields[name], ensure_ascii=False) if name in fields else "nothing"


# ------------------------------------------------------------------------------------------------ small files


def canonical_json(value: Any) -> bytes:
    """One spelling for equal values: sorted keys, no spaces, UTF-8, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def parse_json(data: bytes | str) -> Any:
    """The value in a JSON text. Raises ValueError, for one that is nested without end too."""
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def readable_json(value: Any) -> bytes:
    """JSON for people, in the order given; also one spelling for equal input."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_durable(path: str | os.PathLike, data: bytes) -> None:
    """Writes a file so that, whatever happens, its readers see the old content or the new one, whole.

    A unique temporary name, fsync, rename, fsync of the folder; the umask decides the permissions.
    Raises MachineError (disk full, I/O) or UserError (may not write there); no temporary is left then.
    """
    path = Path(path)
    with storage_errors(path):
        make_folder(path.parent)
        try:
            _replace(path, data)
        except FileNotFoundError:  # another process swept the temporary away: it takes it for a dead run's
            _replace(path, data)
        sync_folder(path.parent)


def _replace(path: Path, data: bytes) -> None:
    temporary = temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """A unique name in the same folder; `is_temporary` knows it."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:16]}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file or folder name is that of something half written, by us or by tensorstore."""
    return re.fullmatch(r".*_[0-9a-f]{1,16}\.__lock|\..*\.[0-9a-f]{16}\.tmp", name, re.DOTALL) is not None


def make_folder(path: Path) -> None:
    """Makes a folder and those above it where they lack, so that their names survive a power cut."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: str | os.PathLike) -> None:
    """fsync of a folder: makes the names in it survive a power cut."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_REFUSED = {errno.EACCES, errno.EEXIST, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns the operating system's errors while writing `path` into messages that say what to do."""
    try:
        yield
    except (UserError, MachineError):
        raise
    except OSError as error:
        raise storage_error(path, error.errno, error.strerror or str(error)) from error


def storage_error(path: str | os.PathLike, code: int | None, reason: str) -> MachineError | UserError:
    """The error to raise when writing `path` failed with this errno."""
    if code in _REFUSED:
        remedy = "name a file in it" if code == errno.EISDIR else "choose a folder that you may write to"
        return UserError(f"cannot write {path}: {reason}; {remedy}")
    if code in _FULL:
        return MachineError(
            f"no space left to write {path} ({reason}). All that was committed before is safe: "
            "free some space (or raise the quota) and run the same command again to go on"
        )
    return MachineError(
        f"writing {path} failed: {reason}. All that was committed before is safe: "
        "check the disk and run the same command again to go on"
    )
