"""Copies of stores: cut otherwise, compressed otherwise, in another dtype, or a part of one.

A copy is planned whole (which row comes from where), created whole, filled unit by unit like any other store, and
sealed when nothing is pending. Run again after a stop it goes on. `stores.merge` fills stores the same way.
"""

import json
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError

from .compare import Tolerance, agreement, within
from .manifest import FAILED, OK, PADDED, PENDING, ArraySpec, Layout, Manifest, recipe_difference
from .plan import Unit, check_size, plan_layout
from .reader import Store, create_store, open_store
from .splits import split_mask
from .zarr_store import ZSTD_LEVEL

DIFFER = "sources_differ"
"""Reason code of a merged row whose values in two sources are farther apart than the tolerance."""

LINKED = {"texts": "clip", "labels": "clip", "events": "video"}
"""The optional tables, and what their rows belong to."""

KEPT_FLOATS = ("boxes", "scores", "gaze")
"""Arrays that are no features, and float32 whatever the dtype of the features is."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Gathering:
    """A store to be, and where its rows come from.

    manifest, tables, level: as `create_store` takes them. sources: the stores that have the rows.
    places: (rows, sources) int64: the row in each source, -1 where it has none.
    tolerance: what values of one row in two sources may differ by. level: None: that of new stores.
    """

    manifest: Manifest
    tables: Mapping[str, Mapping[str, np.ndarray] | None]
    sources: tuple[Store, ...]
    places: np.ndarray
    tolerance: Tolerance
    level: int | None = None


def copy_store(
    source: str | os.PathLike | Store,
    target: str | os.PathLike,
    *,
    unit_rows: int | None = None,
    chunk_rows: Mapping[str, int] | None = None,
    level: int | None = None,
    dtype: str | None = None,
    split: str | None = None,
    rows: np.ndarray | Callable[[Store], np.ndarray] | None = None,
    arrays: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> Store:
    """Copies a store, or goes on with a copy that was begun; seals it when no row is pending, and returns it.

    unit_rows, chunk_rows ({array: rows of a chunk, a divisor of unit_rows}): how the copy is cut; None: as the source.
    level: of zstd, 0 to 22; None: that of new stores. dtype: float16 or float32, of the features (boxes, scores and
    times stay); the copy then has a recipe of its own, which says what it was derived from. split:
    `[scheme:]part[+part]`. rows: (len(source),) bool, or a function that gives it for the store. A copy of some rows
    keeps only their clips, captions and videos. arrays: those to keep (and n_padded).
    progress: called as progress(rows done, rows in all).

    A row that float16 cannot hold becomes failed, "overflow". A source that has grown becomes one extent, in
    (video, time) order.
    Raises UserError (nothing selected, another store at `target`), MachineError (disk full: run again to go on),
    DamagedStore (the source cannot be read; the message names the file).
    """
    source = source if isinstance(source, Store) else open_store(source)
    if dtype not in (None, "float16", "float32"):
        raise UserError(f"--dtype must be float16 or float32, got {dtype!r}")
    if level is not None and not 0 <= level <= 22:
        raise UserError(f"--level must be 0 to 22, got {level}")
    chosen, tables = _choose(source, split, rows)
    specs = _specs(source, dtype, arrays)
    manifest = replace(
        source.manifest,
        arrays=specs,
        layout=_layout(source.manifest.layout, specs, unit_rows, chunk_rows),
        recipe=_recipe(source, specs),
        dataset=_subset_facts(source, chosen, split),
        seal=None,
    )
    plan = Gathering(manifest, tables, (source,), chosen[:, None], Tolerance(-1.0, np.inf), level)
    return gather(target, plan, progress, keep_cut=unit_rows is None and chunk_rows is None)


# ---------------------------------------------------------------------------------------- what is copied


def _choose(
    source: Store, split: str | None, rows: np.ndarray | Callable | None
) -> tuple[np.ndarray, dict[str, dict[str, np.ndarray] | None]]:
    """(rows of the source in the copy's order, its tables)."""
    mask, clip_of_row, video_of_row = source.visible.copy(), source.rows["clip"], source.rows["video"]
    clips = np.ones(len(source.clips["id"]), bool)
    if split is not None:
        clips = split_mask(source.clips, split, source.path)
        videos = np.isin(np.arange(len(source.videos["name"])), source.clips["video"][clips])
        mask &= np.where(clip_of_row >= 0, np.append(clips, False)[clip_of_row], np.append(videos, False)[video_of_row])
    if rows is not None:
        wanted = np.asarray(rows(source) if callable(rows) else rows)
        if wanted.dtype != bool or wanted.shape != (len(source),):
            raise ValueError(f"rows must be ({len(source)},) bool, got {wanted.dtype} {wanted.shape}")
        mask &= wanted
        of_grid = np.unique(video_of_row[mask & (clip_of_row < 0)])
        kept = np.isin(source.clips["video"], of_grid)
        kept[clip_of_row[mask & (clip_of_row >= 0)]] = True
        clips &= kept
    chosen = np.flatnonzero(mask)
    if not len(chosen):
        raise UserError(f"nothing to copy: no row of {source.path} is in the split and rows asked for")
    if len(source.manifest.extents) > 1:
        chosen = chosen[in_order({name: source.rows[name][chosen] for name in source.rows})]
    if split is None and rows is None:
        return chosen, all_tables(source, chosen)
    return chosen, _some_tables(source, chosen, clips)


def in_order(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    """The order of rows by (video, time), then clip, draw and k: as an extraction plans them."""
    return np.lexsort((rows["k"], rows["draw"], rows["clip"], rows["start_s"], rows["video"]))


def all_tables(source: Store, chosen: np.ndarray) -> dict[str, dict[str, np.ndarray] | None]:
    """The tables of a store, as `create_store` takes them, with these of its rows."""
    tables = {name: getattr(source, name) for name in ("clips", "videos", *LINKED)}
    plain = {name: None if table is None else dict(table) for name, table in tables.items()}
    return {"rows": {name: source.rows[name][chosen] for name in source.rows}, **plain}


def _some_tables(source: Store, chosen: np.ndarray, clips: np.ndarray) -> dict[str, dict[str, np.ndarray] | None]:
    """The same with only the clips asked for, and the videos of these and of the rows."""
    tables = all_tables(source, chosen)
    videos = np.zeros(len(source.videos["name"]), bool)
    videos[tables["rows"]["video"]] = True
    videos[source.clips["video"][clips]] = True
    number = {"clip": _numbering(clips), "video": _numbering(videos)}
    kept = {"clips": clips, "videos": videos}
    for name, of in LINKED.items():
        if tables[name] is not None:
            kept[name] = {"clip": clips, "video": videos}[of][tables[name][of]]
    for name, mask in kept.items():
        tables[name] = {column: values[mask] for column, values in tables[name].items()}
    for name, columns in (
        ("rows", ("clip", "video")),
        ("clips", ("video",)),
        *((n, (of,)) for n, of in LINKED.items()),
    ):
        table = tables[name]
        for column in columns if table is not None else ():
            table[column] = number[column][table[column]].astype(table[column].dtype)
    return {name: table if table is None or len(table[next(iter(table))]) else None for name, table in tables.items()}


def _numbering(kept: np.ndarray) -> np.ndarray:
    """Old index -> new index; -1 (none, and the last entry) stays -1."""
    return np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)


def _specs(source: Store, dtype: str | None, arrays: Iterable[str] | None) -> dict[str, ArraySpec]:
    held = source.manifest.arrays
    wanted = list(held) if arrays is None else list(arrays)
    if unknown := [name for name in wanted if name not in held]:
        raise UserError(f"{source.path} has no array {', '.join(unknown)}, only {', '.join(held)}")
    if not set(wanted) - {PADDED}:
        raise UserError(f"say which arrays to keep, of {', '.join(name for name in held if name != PADDED)}")
    outputs = source.manifest.spec.get("outputs") or {}
    specs = {}
    for name in (name for name in held if name in wanted or name == PADDED):
        spec = held[name]
        known = outputs[name][1] == "feature" if name in outputs else name not in KEPT_FLOATS
        feature = known and spec.dtype in ("float16", "float32")
        specs[name] = replace(spec, dtype=dtype) if feature and dtype else spec
    return specs


def _layout(
    before: Layout, specs: Mapping[str, ArraySpec], unit_rows: int | None, chunk_rows: Mapping[str, int] | None
) -> Layout:
    rows = unit_rows or before.unit_rows
    layout = plan_layout(specs, rows, batch_size=before.batch_size, unit_rows=rows if unit_rows is None else unit_rows)
    if unit_rows is None:
        layout = replace(
            layout, chunk_rows={name: before.chunk_rows[name] for name in before.chunk_rows if name in specs}
        )
    for name, chunk in (chunk_rows or {}).items():
        if name not in specs or chunk < 1 or rows % chunk:
            raise UserError(
                f"--chunk-rows {name}={chunk}: name an array ({', '.join(specs)}) and a number of rows that divides"
                f" the unit's {rows}"
            )
        layout = replace(layout, chunk_rows={**layout.chunk_rows, name: chunk})
    return layout


def _recipe(source: Store, specs: Mapping[str, ArraySpec]) -> Mapping[str, Any]:
    """The source's, unless values change."""
    before = source.manifest
    changed = {name: spec.dtype for name, spec in specs.items() if spec.dtype != before.arrays[name].dtype}
    if not changed:
        return before.recipe
    dtype = next(iter(changed.values()))
    change = ", ".join(f"{name} {before.arrays[name].dtype} to {new}" for name, new in changed.items())
    return {**before.recipe, "dtype": dtype, "derived": {"from": before.recipe_hash, "change": change}}


def _subset_facts(source: Store, chosen: np.ndarray, split: str | None) -> Mapping[str, Any]:
    facts = source.manifest.dataset
    if len(chosen) == source.manifest.n_rows:
        return facts
    return {**facts, "subset": {"rows": len(chosen), "of": source.manifest.n_rows, "split": split}}


# ------------------------------------------------------------------------------------------------ gathering


def gather(
    target: str | os.PathLike, plan: Gathering, progress: Progress | None = None, keep_cut: bool = False
) -> Store:
    """Creates the store that a plan says, or takes up one that was begun; fills and seals it. See `copy_store`.

    keep_cut: a store that is there may be cut otherwise than the plan says.
    """
    store = _begin(Path(target), plan, keep_cut)
    if store.sealed:
        return store
    _write_probes(store, plan)
    store.write_provenance(*_facts(plan))
    statuses = [source.status() for source in plan.sources]
    failures = [source.failures() for source in plan.sources]
    for unit in store.units:
        _fill(store, unit, plan, statuses, failures)
        if progress:
            progress(unit.stop, len(plan.places))
    if not (store.status() == PENDING).any():
        store.seal()
    return store


def _begin(target: Path, plan: Gathering, keep_cut: bool) -> Store:
    if any(_same_place(target, source.path) for source in plan.sources):
        raise UserError(f"{target} is the store to copy from: give the copy another name")
    tables = dict(plan.tables)
    check_size(len(tables["rows"]["video"]), plan.manifest.layout.unit_rows, target)
    optional = {name: tables[name] for name in LINKED}
    level = ZSTD_LEVEL if plan.level is None else plan.level
    store = create_store(
        target, plan.manifest, tables["rows"], tables["clips"], tables["videos"], **optional, level=level
    )
    differs = recipe_difference(store.manifest.recipe, plan.manifest.recipe)
    if not differs and store.manifest.arrays != plan.manifest.arrays:
        differs = [f"it has the arrays {_arrays(store.manifest)}, asked for {_arrays(plan.manifest)}"]
    if not differs and not keep_cut and store.manifest.layout != plan.manifest.layout:
        differs = [f"it is cut otherwise: units of {store.manifest.layout.unit_rows} rows"]
    if not differs and plan.level not in (None, _level(store)):
        differs = [f"it is compressed at level {_level(store)}"]
    if not differs and not _same_rows(store, tables):
        differs = ["it has other rows"]
    if differs:
        raise UserError(f"{target} is another store: {'; '.join(differs)}. Move it away, or give the copy another name")
    return store


def _arrays(manifest: Manifest) -> str:
    return ", ".join(f"{name} {spec.dtype}{list(spec.row_shape)}" for name, spec in manifest.arrays.items())


def _level(store: Store) -> int:
    """The zstd level of a store in a folder."""
    shards = store._files.metadata(f"data/{PADDED}")["codecs"][0]["configuration"]
    return next(codec["configuration"]["level"] for codec in shards["codecs"] if codec["name"] == "zstd")


def _same_place(one: Path, other: object) -> bool:
    return os.path.realpath(one) == os.path.realpath(str(other))


def _same_rows(store: Store, tables: Mapping[str, Mapping[str, np.ndarray]]) -> bool:
    rows = tables["rows"]
    return (
        len(store) == len(rows["video"])
        and all(np.array_equal(store.rows[name], rows[name]) for name in ("video", "clip", "draw", "k"))
        and np.array_equal(store.clips["id"], tables["clips"]["id"])
        and np.array_equal(store.videos["name"], tables["videos"]["name"])
    )


def _write_probes(store: Store, plan: Gathering) -> None:
    """Every video's probe: of the first source that has it, and before those of sources without a value of it."""
    with_values = [
        {str(source.videos["name"][i]) for i in np.unique(source.rows["video"][source.ok])} for source in plan.sources
    ]
    known = [set(source.videos["name"].tolist()) for source in plan.sources]
    for name in map(str, store.videos["name"]):
        having = [i for i in range(len(plan.sources)) if name in known[i]]
        for i in sorted(having, key=lambda i: name not in with_values[i]):
            probe = plan.sources[i].probe(name)
            if probe is not None:
                store.write_probe(name, probe)
                break


def _facts(plan: Gathering) -> tuple[str, dict]:
    """Who gathered this from where; what the sources say of their own runs is kept."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    sources = [
        {
            "path": str(source.path),
            "recipe_hash": source.manifest.recipe_hash,
            "seal": source.manifest.seal,
            "runs": _runs(source),
        }
        for source in plan.sources
    ]
    facts = {"what": "copied from other stores", "started": started, "host": socket.gethostname(), "sources": sources}
    return f"{started.replace(':', '').replace('+0000', 'Z')}-{facts['host']}-{os.getpid()}-copy", facts


def _runs(source: Store) -> dict[str, Any]:
    """The provenance of a store in a folder, run by run; one that cannot be read is left out: it is no part of it."""
    found = {}
    for path in sorted(Path(str(source.path)).glob("provenance/[!.]*.json")):
        try:
            found[path.stem] = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
    return found


def _fill(store: Store, unit: Unit, plan: Gathering, statuses: list[np.ndarray], failures: list[Mapping]) -> None:
    """Commits what the sources have of a unit, unless it is there already."""
    places = plan.places[unit.start : unit.stop]
    status, chosen = _best(places, statuses)
    now = store.status(unit)
    if not ((now != OK) & (status != PENDING) & (status != now)).any():
        return
    values = {
        name: np.full((len(unit), *spec.row_shape), spec.fill, spec.dtype)
        for name, spec in _as_read(plan, store.manifest.arrays).items()
    }
    for i, source in enumerate(plan.sources):
        mine = np.flatnonzero((status == OK) & (chosen == i))
        for name in values if len(mine) else ():
            values[name][mine] = source.read(name, places[mine, i])
    why = {}
    for j in np.flatnonzero(status == FAILED).tolist():
        known = failures[chosen[j]].get(int(places[j, chosen[j]]), ("unknown", "the reason was lost"))
        why[unit.start + j] = known
    for j, line in _differing(plan, places, statuses, status, chosen, values).items():
        status[j] = FAILED
        why[unit.start + j] = (DIFFER, line)
    store.commit(unit, values, status, why)


def _as_read(plan: Gathering, specs: Mapping[str, ArraySpec]) -> dict[str, ArraySpec]:
    """The arrays as the sources hold them: what float16 cannot hold is found out when the unit is committed."""
    return {name: plan.sources[0].manifest.arrays[name] for name in specs}


def _best(places: np.ndarray, statuses: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(status, source) of each row: of the first source where it is ok, else failed or absent, else pending."""
    found = np.full(places.shape, PENDING, np.uint8)
    for i, status in enumerate(statuses):
        there = places[:, i] >= 0
        found[there, i] = status[places[there, i]]
    rank = np.where(found == OK, 0, np.where(found == PENDING, 2, 1))
    chosen = rank.argmin(axis=1)
    return found[np.arange(len(found)), chosen], chosen


def _differing(
    plan: Gathering,
    places: np.ndarray,
    statuses: list[np.ndarray],
    status: np.ndarray,
    chosen: np.ndarray,
    values: Mapping[str, np.ndarray],
) -> dict[int, str]:
    """{row of the unit: why} where another source has the row too, with values beyond the tolerance."""
    found: dict[int, str] = {}
    for i, source in enumerate(plan.sources):
        there = (places[:, i] >= 0) & (status == OK) & (chosen != i)
        there[there] = statuses[i][places[there, i]] == OK
        both = np.flatnonzero(there)
        for name in values if len(both) else ():
            spec = source.manifest.arrays[name]
            cosine, ratio = agreement(spec, values[name][both], source.read(name, places[both, i]))
            for j in np.flatnonzero(~within(cosine, ratio, plan.tolerance)).tolist():
                first = plan.sources[chosen[both[j]]].path
                apart = f"cosine {cosine[j]:.6f}, length ratio {ratio[j]:.6f}"
                what = apart if np.dtype(spec.dtype).kind == "f" else "not equal"
                found.setdefault(int(both[j]), f"{name} in {first} and {source.path}: {what}")
    return found
