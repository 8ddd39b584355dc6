"""Growth: rows, clips, videos and arrays that come after a store's creation. Nothing that is finished moves.

What is new is planned against the store as it is, written as one extension (`stores.extensions`), and planned again
if another process extended the store first. New arrays are filled in a side store of the same rows, which any number
of processes may compute and resume like any other; only when it holds every row that is ok do its shards become an
extension, so no reader ever sees a half-filled array.
"""

import functools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError

from .columns import no_values, with_length
from .extensions import Extension, applied, finish_growth, same_values, write_extension
from .manifest import ArraySpec, Manifest, readable_json, write_durable
from .plan import check_size, plan_layout
from .reader import Store, create_store, open_store
from .zarr_store import STATUS, create_data, encode_shard, pad_rows, shard_key, write_column

TableLike = Mapping[str, np.ndarray]
KEY = ("video", "clip", "draw", "k")
RESIZABLE = ("texts", "labels", "events")
"""Tables that nothing else counts by: they may be replaced by shorter or longer ones."""

SIDE = ".adding"
"""Folder beside the stores, in which new arrays are filled."""


@dataclass(frozen=True)
class Growth:
    """What a store lacks: {table: {column: values}} in the store's own numbering; tables without new rows are not
    there. `facts`: what its manifest's `dataset` will say."""

    tables: Mapping[str, Mapping[str, np.ndarray]]
    facts: Mapping[str, Any]

    @property
    def empty(self) -> bool:
        return not self.tables


def plan_growth(
    store: Store,
    rows: TableLike,
    clips: TableLike,
    videos: TableLike,
    texts: TableLike | None = None,
    labels: TableLike | None = None,
    events: TableLike | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Growth:
    """What of these tables a store does not have yet; whatever else it has stays.

    rows: (n,) columns video, clip, k, draw, start_s, stop_s, with indices into `clips` and `videos` as given here.
    Rows are known by (video name, clip id, draw, k), clips by id, videos by name, the others by all their columns.
    facts: replaces the manifest's `dataset` if the store grows.
    Raises UserError for columns that the store's tables lack.
    """
    new: dict[str, Mapping[str, np.ndarray]] = {}
    video_of, fresh = _numbers(store.videos["name"], videos["name"])
    new["videos"] = _new_rows(store, "videos", videos, fresh)
    clip_of, fresh = _numbers(store.clips["id"], clips["id"])
    new["clips"] = _new_rows(store, "clips", {**clips, "video": video_of[clips["video"]]}, fresh)
    for table, given, index in (("texts", texts, "clip"), ("labels", labels, "clip"), ("events", events, "video")):
        if given is not None:
            of = {"clip": clip_of, "video": video_of}[index]
            given = {**given, index: of[given[index]].astype(np.int32)}
            new[table] = _new_rows(store, table, given, _not_in(getattr(store, table), given))
    mine = in_numbering(rows, clip_of, video_of)
    fresh = np.flatnonzero(match_rows(store.rows, mine) < 0)
    fresh = fresh[np.lexsort((mine["start_s"][fresh], mine["video"][fresh]))]  # in (video, time) order; ties as given
    new["rows"] = _new_rows(store, "rows", mine, fresh)
    tables = {table: columns for table, columns in new.items() if columns and len(next(iter(columns.values())))}
    return Growth(tables, store.manifest.dataset if facts is None else facts)


def in_numbering(rows: TableLike, clip_of: np.ndarray, video_of: np.ndarray) -> dict[str, np.ndarray]:
    """Rows with other numbers for their clips and videos; clip -1 (none) stays."""
    clip = np.asarray(rows["clip"])
    renumbered = np.append(clip_of, -1)[clip].astype(clip.dtype)
    video = video_of[rows["video"]].astype(np.asarray(rows["video"]).dtype)
    return {**rows, "clip": renumbered, "video": video}


def match_rows(known: TableLike, wanted: TableLike) -> np.ndarray:
    """(n wanted,) int64: the known row with the video, clip, draw and k of each wanted one; -1: there is none.

    Both in one numbering of clips and videos. Sorts, and holds a few numbers a row: 10 million rows are fine.
    """
    n = len(known["video"])
    columns = [np.concatenate([known[name], wanted[name]]).astype(np.int64) for name in KEY]
    order = np.lexsort(columns)
    differs = np.ones(len(order), bool)
    if len(order):
        differs[1:] = np.any([column[order][1:] != column[order][:-1] for column in columns], axis=0)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(differs) - 1
    row_of = np.full(int(differs.sum()), -1, np.int64)
    row_of[group[:n]] = np.arange(n)
    return row_of[group[n:]]


def numbers_in(store: Store, clip_ids: Sequence[str], video_names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(clip number, video number) in the store of each id and name; those it lacks are numbered on from its last."""
    return _numbers(store.clips["id"], clip_ids)[0], _numbers(store.videos["name"], video_names)[0]


def _numbers(known: Sequence[str], given: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(number of each given name, indices of the given ones that are not known)."""
    number = {str(name): i for i, name in enumerate(known)}
    fresh = np.array([i for i, name in enumerate(given) if str(name) not in number], np.int64)
    number |= {str(given[i]): len(number) + j for j, i in enumerate(fresh.tolist())}
    return np.array([number[str(name)] for name in given], np.int64), fresh


def _not_in(table: TableLike | None, given: TableLike) -> np.ndarray:
    """Indices of the given rows that a table does not have; of equal ones it takes as many as there are more."""
    left = Counter(_tuples({name: table[name] for name in given if name in table}) if table else ())
    fresh = []
    for i, row in enumerate(_tuples(given)):
        if left[row] > 0:
            left[row] -= 1
        else:
            fresh.append(i)
    return np.array(fresh, np.int64)


def _tuples(table: TableLike) -> Iterator[tuple]:
    """The rows of a table, by column name; NaN as None, which is equal to itself."""
    columns = [np.asarray(table[name]).tolist() for name in sorted(table)]
    return zip(*([None if value != value else value for value in column] for column in columns), strict=True)


def _new_rows(store: Store, table: str, given: TableLike, fresh: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of the new rows, in the store's dtypes; what is not given is empty."""
    held = getattr(store, table)
    if not len(fresh):
        return {}
    if held is None:
        return {name: np.asarray(values)[fresh] for name, values in given.items()}
    unknown = [name for name in given if name not in held]
    if unknown and table != "videos":  # of videos a store keeps what it was created with
        raise UserError(
            f"{store.path} cannot grow by these rows: its {table}/ has no column {', '.join(unknown)}. Add the labels"
            f" to the clips it has first (`store relabel`), or leave them out"
        )
    return {
        name: np.asarray(given[name])[fresh].astype(held[name].dtype)
        if name in given
        else no_values(held[name], len(fresh))
        for name in held
    }


# --------------------------------------------------------------------------------------------------- rows


def extend(
    path: str | os.PathLike,
    rows: TableLike,
    clips: TableLike,
    videos: TableLike,
    texts: TableLike | None = None,
    labels: TableLike | None = None,
    events: TableLike | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Store:
    """Gives a store the rows, clips, videos, ... that it lacks (see `plan_growth`); returns it open.

    New rows are pending, no other row moves or changes; a sealed store that grows is unsealed, and what was sealed
    stays in sealed/<k>. Killed anywhere, the store is as before or another call finishes it; any number of
    processes may extend one store at once. Raises UserError, MachineError, DamagedStore.
    """
    path = Path(path)
    while True:
        finish_growth(path)
        store = open_store(path)
        growth = plan_growth(store, rows, clips, videos, texts, labels, events, facts)
        if growth.empty:
            return store
        manifest = store.manifest
        tables = dict(growth.tables)
        count = len(tables["rows"]["video"]) if "rows" in tables else 0
        extents = (*manifest.extents, (manifest.array_rows, count)) if count else manifest.extents
        lengths = {name: len(next(iter(columns.values()))) for name, columns in tables.items() if name != "rows"}
        lengths = {name: manifest.tables.get(name, 0) + n for name, n in lengths.items()}
        after = replace(
            manifest, extents=extents, tables={**manifest.tables, **lengths}, dataset=growth.facts, seal=None
        )
        check_size(after.array_rows, after.layout.unit_rows, path)
        if count:
            padded = after.array_rows - manifest.array_rows
            tables["rows"] = {name: pad_rows(values, padded) for name, values in tables["rows"].items()}
        _write(store, after, tables, count, _grown_metadata(store, after, tables))


def _write(store, after: Manifest, tables: Mapping, count: int, metadata: Mapping, **more) -> bool:
    before = store.manifest
    shards = more.pop("shards", None)
    extension = Extension(
        applied(before),
        before.array_rows,
        count,
        dict(before.tables),
        metadata,
        replace(after, hashes={}, seal=None).to_json(),
        **more,
    )
    return write_extension(store.path, extension, tables, shards)


def _grown_metadata(store: Store, after: Manifest, tables: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """{file name: content} of the zarr.json of every array that becomes longer, and of new tables."""
    files, out = store._files, {}
    for table, columns in tables.items():
        length = after.array_rows if table == "rows" else after.tables[table]
        if not files.columns(table):
            out[f"{table}/zarr.json"] = {"attributes": {}, "zarr_format": 3, "node_type": "group"}
            out |= {f"{table}/{name}/zarr.json": _column_metadata(values) for name, values in columns.items()}
            continue
        for name in columns:
            out[f"{table}/{name}/zarr.json"] = with_length(files.metadata(f"{table}/{name}"), length)
    for name in (STATUS, *(f"data/{array}" for array in store.manifest.arrays)) if "rows" in tables else ():
        out[f"{name}/zarr.json"] = with_length(files.metadata(name), after.array_rows)
    return out


def _column_metadata(values: np.ndarray) -> dict:
    """The zarr.json of a new column."""
    return _made_in_memory(lambda group: write_column(group, "made", values))


def _made_in_memory(create: Callable[[Any], Any]) -> dict:
    """The zarr.json of the array "made" that `create` makes in a zarr group."""
    import zarr

    held: dict[str, Any] = {}
    create(zarr.create_group(zarr.storage.MemoryStore(held), zarr_format=3))
    return json.loads(held["made/zarr.json"].to_bytes())


def replace_columns(
    path: str | os.PathLike, tables: Mapping[str, TableLike], facts: Mapping[str, Any] | None = None
) -> Store:
    """Gives tables other whole columns, or new ones; returns the store open. For labels, never for `rows/`.

    tables: {"clips": {column: values of every clip}, ...}; texts/, labels/ and events/ given with all their columns
    may have any length. facts: what the manifest's `dataset` will say if anything changes; None: as before.
    A sealed store is unsealed. The values before stay in the extensions before. Raises ValueError for a wrong length
    or a dtype that is not the stored column's.
    """
    path = Path(path)
    while True:
        finish_growth(path)
        store = open_store(path)
        changed: dict[str, dict[str, np.ndarray]] = {}
        metadata: dict[str, Mapping] = {}
        lengths = dict(store.manifest.tables)
        for table, columns in tables.items():
            held = getattr(store, table)
            if table == "rows" or held is None:
                raise ValueError(f"{table}/ has no columns that can be replaced")
            whole = table in RESIZABLE and set(columns) == set(held) and len({len(v) for v in columns.values()}) == 1
            length = len(next(iter(columns.values()))) if whole else store.manifest.tables[table]
            resized = length != store.manifest.tables[table]
            lengths[table] = length
            for name, values in columns.items():
                values = np.asarray(values, object if np.asarray(values).dtype.kind in "OUT" else None)
                if len(values) != length or (name in held and held[name].dtype != values.dtype):
                    raise ValueError(
                        f"{table}/{name} must have {length} values of the dtype it has, got {len(values)} of"
                        f" {values.dtype}"
                    )
                if name not in held or resized or not same_values(held[name], values):
                    changed.setdefault(table, {})[name] = values
                    known = f"{table}/{name}"
                    metadata[f"{known}/zarr.json"] = (
                        with_length(store._files.metadata(known), length) if name in held else _column_metadata(values)
                    )
        if not changed:
            return store
        names = tuple(f"{table}/{name}" for table, columns in changed.items() for name in columns)
        dataset = store.manifest.dataset if facts is None else facts
        after = replace(store.manifest, tables=lengths, dataset=dataset)
        _write(store, after, changed, 0, metadata, replaced=names)


# ------------------------------------------------------------------------------------------------- arrays


def begin_arrays(path: str | os.PathLike, arrays: Mapping[str, ArraySpec]) -> Store:
    """The side store in which arrays that a store lacks are filled: the same rows, units and recipe; made or found.

    Extract into it until every row that is ok in the store is ok there, then call `add_arrays`.
    """
    path = Path(path)
    finish_growth(path)
    store = open_store(path)
    side = path.parent / SIDE / f"{path.stem}+{'+'.join(sorted(arrays))}.zarr"
    if side.exists() and open_store(side).manifest.recipe_hash != store.manifest.recipe_hash:
        shutil.rmtree(side)  # of another store that had this name
    before = store.manifest
    layout = plan_layout(
        arrays, before.layout.unit_rows, batch_size=before.layout.batch_size, unit_rows=before.layout.unit_rows
    )
    manifest = Manifest(arrays, layout, before.recipe, before.spec, before.dataset, before.lineage)
    visible = store.visible
    tables = {
        "rows": {name: store.rows[name][visible] for name in store.rows},
        **{name: dict(getattr(store, name)) for name in ("clips", "videos")},
    }
    if not side.exists():
        create_store(side, manifest, **tables)
    return extend(side, **tables)


def add_arrays(path: str | os.PathLike, side: Store) -> Store:
    """Takes over the arrays of a finished side store, and removes it; returns the store, unsealed and open.

    Readers see the store without these arrays until every value is in place. Rows that hold no value in the store
    hold none in its new arrays. Raises UserError if a row that is ok in the store is not ok in `side`.
    """
    path = Path(path)
    while True:
        finish_growth(path)
        store = open_store(path)
        names = [name for name in side.manifest.arrays if name not in store.manifest.arrays]
        if not names:
            for file in sorted((side.path / "provenance").glob("[!.]*.json")):
                write_durable(
                    path / "provenance" / f"{file.stem}+{side.path.stem.rpartition('+')[2]}.json", file.read_bytes()
                )
            shutil.rmtree(side.path, ignore_errors=True)
            return store
        ok, row_in_side = store.ok, _rows_in(side, store)
        lacking = ok[(row_in_side[ok] < 0) | ~np.isin(row_in_side[ok], side.ok)]
        if len(lacking):
            raise UserError(_lacking(store, side, names, lacking, row_in_side))
        before = store.manifest
        chunks = {name: side.manifest.layout.chunk_rows[name] for name in names}
        layout = replace(before.layout, chunk_rows={**before.layout.chunk_rows, **chunks})
        after = replace(before, arrays={**before.arrays, **{n: side.manifest.arrays[n] for n in names}}, layout=layout)
        metadata = {f"data/{name}/zarr.json": _array_metadata(after, name) for name in names}

        gather = functools.partial(_gather, store, side, metadata, ok, row_in_side)
        try:
            _write(store, after, {}, 0, metadata, arrays=tuple(names), shards=gather)
        except _RowsChanged:
            continue  # another worker finished rows meanwhile: see what they lack


class _RowsChanged(Exception):
    """Rows became ok while their new arrays were put together."""


def _rows_in(side: Store, store: Store) -> np.ndarray:
    """(len(store),) int64: the row of the side store with each row's key, -1 for none."""
    clip_of, video_of = numbers_in(side, store.clips["id"], store.videos["name"])
    hidden = ~store.visible
    rows = {name: np.where(hidden, -1 if name == "clip" else 0, store.rows[name]) for name in KEY}
    found = match_rows(side.rows, in_numbering(rows, clip_of, video_of))
    return np.where(hidden, -1, found)


def _lacking(store: Store, side: Store, names: list[str], lacking: np.ndarray, row_in_side: np.ndarray) -> str:
    row = int(row_in_side[lacking[0]])
    why = ": ".join(side.failures().get(row, ("pending", "run extract again")))
    return (
        f"{store.path} cannot have {', '.join(names)} yet: {len(lacking)} rows that are ok hold no value of them, first"
        f" row {int(lacking[0])} ({why}). What is computed stays in {side.path}"
    )


def _array_metadata(manifest: Manifest, name: str) -> dict:
    spec, layout = manifest.arrays[name], manifest.layout
    sizes = (manifest.array_rows, layout.unit_rows, layout.chunk_rows[name])
    return _made_in_memory(lambda group: create_data(group, "made", spec, *sizes))


def _gather(
    store: Store, side: Store, metadata: Mapping, ok: np.ndarray, row_in_side: np.ndarray, folder: Path
) -> None:
    """The folders of added arrays: zarr.json, and a shard of every unit that has a row that is ok."""
    for file, content in metadata.items():
        name = file.split("/")[1]
        spec = side.manifest.arrays[name]
        (folder / name).mkdir(parents=True)
        (folder / name / "zarr.json").write_bytes(readable_json(content))
        for unit in store.units:
            rows = ok[(ok >= unit.start) & (ok < unit.stop)]
            values = np.full((store.manifest.layout.unit_rows, *spec.row_shape), spec.fill, spec.dtype)
            values[rows - unit.start] = side.read(name, row_in_side[rows])
            has_value = np.zeros(len(values), bool)
            has_value[rows - unit.start] = True
            data = encode_shard(content, values, has_value)
            if data is not None:
                (folder / name / shard_key(unit.index, spec)).write_bytes(data)
    if not np.array_equal(open_store(store.path).ok, ok):
        raise _RowsChanged
