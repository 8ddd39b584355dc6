"""Extensions: what was added to a store after another, each a complete folder that never changes.

`extensions/<k>/` holds the rows and clips that growth k appended (k = 0: those the store was created with), whole
columns that it replaced, shards of arrays that it added, and a record of all that changes in the store when it is
applied. The record is there twice, as the attributes of `zarr.json` and as `record.json`: either restores the other.

The folders are the truth, the store's own tables a copy for plain readers. An extension is renamed into place
first, by whoever is first; then anybody applies it: arrays grow, tables are appended, the root manifest comes
last. Nothing ever shrinks, so it may be applied twice, halfway, or by two processes at once.
"""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from errors import MachineError

from .columns import chunk_rows, encode_column
from .limits import is_safe_name
from .manifest import (
    DamagedStore,
    Manifest,
    canonical_json,
    make_folder,
    readable_json,
    sha256,
    storage_errors,
    sync_folder,
    temporary_beside,
)
from .zarr_store import (
    STATUS,
    TABLES,
    ZarrFiles,
    open_files,
    read_manifest,
    read_plain,
    root_json,
    sync_tree,
    write_column,
)

RECORD = "clipbank_extension"
FOLDER = "extensions"


@dataclass(frozen=True)
class Extension:
    """What applying extension `k` does.

    first, count: the rows that it appends, [first, first + count); count 0: none.
    starts: {table: its rows before}. replaced: columns ("clips/verb") that it holds whole.
    arrays: names of the arrays that it adds, whose shards lie in its folder until they are moved into place.
    metadata: {file name: content} of every zarr.json that it makes or changes.
    manifest: the root manifest afterwards, without hashes and seal.
    files: {name in the folder: sha256} of the columns; the record itself and the shards are not among them.
    """

    k: int
    first: int
    count: int
    starts: Mapping[str, int]
    metadata: Mapping[str, Mapping]
    manifest: Mapping[str, Any]
    replaced: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Path of the folder inside the store."""
        return f"{FOLDER}/{self.k}"

    def to_json(self) -> dict:
        body = json.loads(readable_json(asdict(self)))
        return {**body, "sha256": sha256(canonical_json(body))}

    @classmethod
    def from_json(cls, data: Mapping) -> "Extension":
        """Raises ValueError if the record does not match its own hash."""
        body = {key: value for key, value in data.items() if key != "sha256"}
        if data.get("sha256") != sha256(canonical_json(body)):
            raise ValueError("the record does not match its own sha256")
        names = [*body["files"], *body["metadata"], *body["arrays"], *body["replaced"]]
        if not all(map(is_safe_name, names)):
            raise ValueError("the record names files outside the store")
        return cls(**{**body, "replaced": tuple(body["replaced"]), "arrays": tuple(body["arrays"])})

    def record_files(self) -> dict[str, bytes]:
        """{file name inside the store: content} of the record's two copies."""
        group = {"attributes": {RECORD: self.to_json()}, "zarr_format": 3, "node_type": "group"}
        return {
            f"{self.name}/zarr.json": readable_json(group),
            f"{self.name}/record.json": readable_json(self.to_json()),
        }

    def hashes(self) -> dict[str, str]:
        """What the manifest says of the files that it makes or changes."""
        changed = {name: sha256(readable_json(content)) for name, content in self.metadata.items()}
        return changed | {name: sha256(data) for name, data in self.record_files().items()}

    def columns(self) -> list[str]:
        """The columns of its folder, `clips/id`; of `replaced` ones too."""
        suffix = "/zarr.json"
        return [name.removesuffix(suffix) for name in self.files if name.endswith(suffix) and name.count("/") == 2]


# ------------------------------------------------------------------------------------------------- reading


def read_extension(path: Path, k: int) -> Extension | None:
    """The record of extension k of the store at `path`, None if there is no such folder.

    Raises DamagedStore if neither copy of the record can be read.
    """
    folder = path / FOLDER / str(k)
    if not folder.is_dir():
        return None
    for name in ("record.json", "zarr.json"):
        try:
            data = json.loads((folder / name).read_bytes())
            found = Extension.from_json(data if name == "record.json" else data["attributes"][RECORD])
        except FileNotFoundError:
            continue
        except OSError as error:
            raise MachineError(f"cannot read {folder / name}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError):
            continue
        if found.k == k:
            return found
    raise DamagedStore(f"{folder} is damaged: its record cannot be read. Copy it again from another copy of this store")


def unapplied(path: Path, manifest: Manifest) -> Extension | None:
    """The next extension of a store, if its folder is there and its manifest does not count it yet."""
    return read_extension(path, applied(manifest)) if (path / FOLDER).is_dir() else None


def applied(manifest: Manifest) -> int:
    """How many extensions a manifest counts (0, the store's creation, always): the number of the next one."""
    names = (re.fullmatch(rf"{FOLDER}/(\d+)/record\.json", name) for name in manifest.hashes)
    return max((int(name[1]) + 1 for name in names if name), default=1)


def root_of(path: Path) -> Manifest:
    """The manifest that a store had at its creation; `finish_growth` brings it to what came since.

    Raises DamagedStore if extension 0 cannot be read.
    """
    first = read_extension(path, 0)
    if first is None:
        raise DamagedStore(f"{path / FOLDER / '0'} is missing: this store is not whole")
    return replace(Manifest.from_json(first.manifest), hashes=dict(sorted(first.hashes().items())))


def extension_column(path: Path, extension: Extension, name: str) -> np.ndarray:
    """A column of an extension's folder, `clips/id`. Raises DamagedStore."""
    return read_plain(path / extension.name / name)


def _applied(files: ZarrFiles, k: int) -> Extension:
    extension = read_extension(files.path, k)
    if extension is None:
        raise DamagedStore(f"{files.path / FOLDER / str(k)} is missing: this store is not whole")
    return extension


def table_column(files: ZarrFiles, name: str) -> np.ndarray:
    """A column as the extensions say it is, `rows/` with its padding. Raises DamagedStore."""
    parts: list[np.ndarray] = []
    for k in range(applied(files.manifest)):
        extension = _applied(files, k)
        if name in extension.columns():
            values = extension_column(files.path, extension, name)
            parts = [values] if name in extension.replaced else [*parts, values]
    if not parts:
        raise DamagedStore(f"no extension of {files.path} has column {name}")
    return np.concatenate(parts)


def check_joints(files: ZarrFiles, name: str, values: np.ndarray) -> None:
    """Raises DamagedStore where a chunk of a column is one of before a growth: of what came since it holds fill values.

    A chunk that was not full when the store grew was written again; such a one is compared with the extension.
    """
    grown = [
        extension for k in range(1, applied(files.manifest)) if name in (extension := _applied(files, k)).columns()
    ]
    whole = max((i for i, extension in enumerate(grown) if name in extension.replaced), default=0)
    chunk = chunk_rows(files.metadata(name)) if grown else 1
    for extension in grown[whole:]:
        table = name.partition("/")[0]
        start = extension.first if table == "rows" else extension.starts.get(table, 0)
        start = 0 if name in extension.replaced else start
        added = extension_column(files.path, extension, name)
        stop = len(values) if name in extension.replaced else start + -start % chunk
        added = added[: min(stop, len(values)) - start]
        if len(added) and not same_values(values[start : start + len(added)], added):
            raise DamagedStore(
                f"{files.path / name} is not as extension {extension.k} says, which added to it: two versions of the"
                " store are mixed. Copy it again from its source, or run `store repair`"
            )


def check_extensions(files: ZarrFiles, quick: bool = False) -> Iterator[tuple[str, str]]:
    """(path inside the store, what is wrong with it) of the applied extensions, and of tables that differ from them.

    quick: whether their files are there, and no more.
    """
    columns: set[str] = set()
    whole = True
    for k in range(applied(files.manifest)):
        if f"{FOLDER}/{k}/record.json" not in files.manifest.hashes:
            return  # a store of before there were any: nothing to compare with
        try:
            extension = read_extension(files.path, k)
        except DamagedStore as error:
            extension = None
            yield f"{FOLDER}/{k}", error.message
        whole &= extension is not None
        for name, digest in extension.files.items() if extension else ():
            file = files.path / extension.name / name
            if not file.is_file():
                whole = False
                yield f"{extension.name}/{name}", "is missing"
            elif not quick and sha256(file.read_bytes()) != digest:
                whole = False
                yield f"{extension.name}/{name}", "does not match the sha256 in its record"
        columns |= set(extension.columns()) if extension else set()
    for name in sorted(columns) if whole and not quick else ():
        try:
            values, expected = files.own_column(name), table_column(files, name)
        except DamagedStore:
            continue  # said by the check of the table
        if not same_values(values, expected) and not _is_being_replaced(files, name, values, expected):
            yield name, "differs from what the extensions say"


def _is_being_replaced(files: ZarrFiles, name: str, values: np.ndarray, before: np.ndarray) -> bool:
    """Whether a column is partly, or all, what an extension that is not applied yet replaces it by."""
    try:
        extension = unapplied(files.path, files.manifest)
        after = extension_column(files.path, extension, name) if extension and name in extension.replaced else None
    except DamagedStore:
        return False
    if after is None or files.manifest.seal:
        return False
    n = min(len(values), len(before), len(after))
    return all(same_values(v, b) or same_values(v, a) for v, b, a in _each(n, values, before, after))


def _each(n: int, *columns: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    return zip(*([column[i : i + 1] for i in range(n)] for column in columns), strict=True)


def same_values(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two columns are equal, NaN equal to NaN."""
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


# ------------------------------------------------------------------------------------------------- writing


def write_extension(
    path: Path,
    extension: Extension,
    tables: Mapping[str, Mapping[str, np.ndarray]],
    shards: Callable[[Path], None] | None = None,
) -> bool:
    """Writes an extension's folder whole and renames it into place; False if another process was first.

    tables: {table: {column: values}} that it holds (rows padded to whole units). shards: writes the arrays that it
    adds under the folder that it is given.
    """
    import zarr

    parent = path / FOLDER
    temporary = temporary_beside(parent / "extension")
    with storage_errors(parent):
        try:
            make_folder(parent)
            root = zarr.create_group(str(temporary), zarr_format=3)
            for table, columns in tables.items():
                group = root.create_group(table)
                for name, values in columns.items():
                    write_column(group, name, values)
            if shards is not None:
                shards(temporary / "data")
            finish_folder(temporary, extension)
            sync_tree(temporary)
            if (parent / str(extension.k)).exists():
                return False
            try:
                os.rename(temporary, parent / str(extension.k))
            except OSError as error:
                if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                    return False
                raise
            sync_folder(parent)
            sync_folder(path)
            return True
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def finish_folder(folder: Path, extension: Extension) -> Extension:
    """Spells the metadata of an extension's folder our way, and writes its record; returns what it says."""
    files = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        if name.startswith("data/") or name == "zarr.json":
            continue
        if file.name == "zarr.json":
            file.write_bytes(readable_json(json.loads(file.read_bytes())))
        files[name] = sha256(file.read_bytes())
    extension = replace(extension, files=files)
    for name, data in extension.record_files().items():
        (folder / Path(name).name).write_bytes(data)
    return extension


# ------------------------------------------------------------------------------------------------ applying


def finish_growth(path: str | os.PathLike) -> Manifest:
    """Applies every extension that a killed run left unapplied; returns the manifest as it is then.

    For whoever opens a store to write. A sealed store is unsealed by what is applied.
    Raises UserError (may not write there), MachineError, DamagedStore (an extension that does not fit).
    """
    path = Path(path)
    while True:
        files = open_files(path)
        extension = unapplied(path, files.manifest)
        if extension is None:
            return files.manifest
        for step in _steps(files, extension):
            if applied(read_manifest(path)) > extension.k:
                break
            if not step():
                break  # another process writes the same: begin again from what is there


def _steps(files: ZarrFiles, extension: Extension) -> Iterator[Callable[[], bool]]:
    """The writes that apply an extension, in order; each says whether it went through."""
    manifest = files.manifest
    if extension.first != manifest.array_rows or dict(extension.starts) != dict(manifest.tables):
        raise DamagedStore(
            f"{files.path / extension.name} does not fit this store: it begins at row {extension.first}, the store ends"
            f" at {manifest.array_rows}. Two versions of the store are mixed: copy it again from its source"
        )
    if manifest.seal:
        yield lambda: change_manifest(files, lambda now: replace(now, seal=None), extension.k)
    metadata = {name.removesuffix("/zarr.json"): content for name, content in extension.metadata.items()}
    for name, content in metadata.items():
        if content["node_type"] == "group":
            yield lambda name=name, content=content: _put_new(files, f"{name}/zarr.json", readable_json(content))
    for name in extension.columns():
        yield from _column_steps(files, extension, name, metadata[name])
    for name in extension.arrays:
        yield lambda name=name: _move_array(files, extension, name)
    for name, content in metadata.items():
        if content["node_type"] == "array":
            yield lambda name=name, content=content: _lengthen(files, name, content, extension)
    for name in extension.replaced:
        yield lambda name=name: _drop_chunks(files.path / name, metadata[name])
    yield lambda: _put_root(files, extension)


def _column_steps(files: ZarrFiles, extension: Extension, name: str, metadata: Mapping) -> Iterator[Callable]:
    """The chunks of a column that hold something new."""
    values, chunk = extension_column(files.path, extension, name), chunk_rows(metadata)
    table = name.partition("/")[0]
    start = 0 if name in extension.replaced else extension.first if table == "rows" else extension.starts.get(table, 0)
    first_chunk = start // chunk
    if start % chunk:  # the last chunk so far is not full
        before = read_plain(files.path / name)[first_chunk * chunk : start]
        values = np.concatenate([before, values])
    for key, data in encode_column(metadata, values, first_chunk).items():
        held, generation = files.get(f"{name}/{key}")
        if held != data:
            yield lambda key=key, data=data, generation=generation: files.put(f"{name}/{key}", data, generation)


def _lengthen(files: ZarrFiles, name: str, metadata: Mapping, extension: Extension) -> bool:
    held, generation = files.get(f"{name}/zarr.json")
    data = readable_json(metadata)
    if held == data:
        return True
    if held is not None and name not in extension.replaced:
        if json.loads(held)["shape"][0] >= metadata["shape"][0]:
            return True
    return files.put(f"{name}/zarr.json", data, generation)


def _drop_chunks(folder: Path, metadata: Mapping) -> bool:
    """Removes the chunks that a column which was replaced by a shorter one has no more."""
    last = -(-metadata["shape"][0] // chunk_rows(metadata))
    numbers = {file: file.name.split(".")[1] for file in folder.glob("c.*")}  # not of "c.0_8f...": a writer's temporary
    stale = [file for file, number in numbers.items() if number.isdigit() and int(number) >= last]
    with storage_errors(folder):
        for file in stale:
            file.unlink(missing_ok=True)
        if stale:
            sync_folder(folder)
    return True


def _put_new(files: ZarrFiles, name: str, data: bytes) -> bool:
    held, generation = files.get(name)
    return held is not None or files.put(name, data, generation)


def _move_array(files: ZarrFiles, extension: Extension, name: str) -> bool:
    """Moves the shards of an added array to where readers will look for them."""
    source, target = files.path / extension.name / "data" / name, files.path / "data" / name
    with storage_errors(target):
        try:
            os.rename(source, target)
        except FileNotFoundError:
            return target.is_dir()  # moved before
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            return True
        sync_folder(source.parent)
        sync_folder(target.parent)
    return True


def _put_root(files: ZarrFiles, extension: Extension) -> bool:
    def grow(now: Manifest) -> Manifest:
        after = Manifest.from_json(extension.manifest)
        return replace(after, hashes=dict(sorted({**now.hashes, **extension.hashes()}.items())), seal=None)

    return change_manifest(files, grow, extension.k)


def change_manifest(files: ZarrFiles, change: Callable[[Manifest], Manifest], k: int | None = None) -> bool:
    """Durably replaces the root manifest by what `change` makes of it; False if another process replaced it meanwhile.

    k: only if extension k is not applied yet; where it is, nothing is done and True returned.
    """
    held, generation = files.get("zarr.json")
    now = read_manifest(files.path)
    if held is None or root_json(now) != held:
        return False
    if k is not None and applied(now) > k:
        return True
    after = change(now)
    return after == now or files.put("zarr.json", root_json(after), generation)


def first_extension(folder: Path, manifest: Manifest, metadata: Mapping[str, Mapping]) -> Manifest:
    """Writes extension 0 of a store that is being created: a copy of its tables. Returns the store's manifest.

    folder: of the new store, whose arrays are there. metadata: {file name: content} of every zarr.json.
    """
    target = folder / FOLDER / "0"
    target.mkdir(parents=True)
    for table in (table for table in TABLES if (folder / table).is_dir()):
        for column in sorted(p.parent for p in (folder / table).glob("*/zarr.json")):
            if f"{table}/{column.name}" != STATUS:
                shutil.copytree(column, target / table / column.name)
        shutil.copy(folder / table / "zarr.json", target / table)
    extension = Extension(0, 0, manifest.n_rows, {}, metadata, manifest.to_json())
    extension = finish_folder(target, extension)
    return replace(manifest, hashes=dict(sorted(extension.hashes().items())))
