"""One store of several: the same recipe, extracted in parts, on several machines, perhaps with rows in common."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from errors import UserError

from .columns import no_values
from .compare import Tolerance, identity, tolerance_of
from .copy import LINKED, Gathering, Progress, all_tables, gather, in_order
from .grow import in_numbering, match_rows
from .manifest import recipe_difference
from .reader import Store, open_store

MOVED_S = 1e-3
"""Two windows are the same if they differ by at most this, in seconds."""


def merge(
    sources: Sequence[str | os.PathLike | Store],
    target: str | os.PathLike,
    *,
    tolerance: Tolerance | None = None,
    progress: Progress | None = None,
) -> Store:
    """Unites stores of one recipe, or goes on with a merge that was begun; seals it when no row is pending.

    Rows are known by (video name, clip id, draw, k); a row that several have is taken from the first where it is ok.
    Its values there must agree within `tolerance` (None: by the recipe's precision); a row that differs holds no value:
    it is failed, with the reason "sources_differ" (`store.failures()` lists them, `store repair` computes them anew).
    Rows that no source has computed are pending. Stores planned alike and filled in parts give, byte for byte, the
    store of one run; otherwise rows are put in (video, time) order, videos and clips in that of the sources.

    progress: called as progress(rows done, rows in all). Returns the target.
    Raises UserError: other recipes or arrays, videos whose files differ, clips or rows that moved, labels or captions
    that differ (all listed), another store at `target`. MachineError (disk full: run again to go on), DamagedStore.
    """
    stores = tuple(source if isinstance(source, Store) else open_store(source) for source in sources)
    if not stores:
        raise UserError("say which stores to merge")
    first = stores[0]
    for other in stores[1:]:
        _refuse_other_kinds(first, other)
    _refuse_other_videos(stores)
    tables, places = _unite(stores)
    lineage = [entry for store in stores for entry in store.manifest.lineage]
    manifest = replace(
        first.manifest,
        dataset=_dataset(stores),
        lineage=[entry for i, entry in enumerate(lineage) if entry not in lineage[:i]],
        seal=None,
    )
    tolerance = tolerance or tolerance_of(first.manifest.recipe)
    return gather(target, Gathering(manifest, tables, stores, places, tolerance), progress, keep_cut=True)


# --------------------------------------------------------------------------------------- what is refused


def _refuse_other_kinds(first: Store, other: Store) -> None:
    pair = f"{first.path} and {other.path} cannot be merged"
    mine, theirs = first.manifest, other.manifest
    if differs := recipe_difference(mine.recipe, theirs.recipe, "the first has", "the second has"):
        raise UserError(f"{pair}, their recipes differ: {'; '.join(differs)}")
    if mine.arrays != theirs.arrays:
        raise UserError(
            f"{pair}: the first has the arrays {', '.join(mine.arrays)}, the second {', '.join(theirs.arrays)}, or"
            " their rows differ in shape. Copy them first with the arrays to keep (`store copy --arrays`)"
        )
    for key in ("axis", "seed", "classes", "class_names", "frames"):
        one, two = mine.dataset.get(key), theirs.dataset.get(key)
        if one != two:
            raise UserError(f"{pair}: {key} of their datasets differ: {str(one)[:100]} and {str(two)[:100]}")


def _refuse_other_videos(stores: Sequence[Store]) -> None:
    """Videos of which two stores hold values, of files that were not the same."""
    known: dict[str, tuple[Store, Mapping]] = {}
    conflicts = []
    for store in stores:
        for index in np.unique(store.rows["video"][store.ok]).tolist():
            name, probe = str(store.videos["name"][index]), store.probe(index)
            if probe is None:
                continue
            if name in known and (what := _probe_conflict(known[name][1], probe)):
                conflicts.append(f"{name} ({what} in {known[name][0].path} and {store.path})")
            known.setdefault(name, (store, probe))
    _refuse(
        conflicts, "videos that were not the same file everywhere", "extract them anew from one file in one of them"
    )


def _probe_conflict(one: Mapping, other: Mapping) -> str:
    keys = ("content_hash",) if "content_hash" in one and "content_hash" in other else ()
    keys = keys or ("fps", "n_frames", "duration_s", "width", "height", "geometry")
    differs = [key for key in keys if key in one and key in other and one[key] != other[key]]
    return f"{differs[0]} {one[differs[0]]} and {other[differs[0]]}" if differs else ""


def _refuse(found: Sequence[str], what: str, remedy: str) -> None:
    if found:
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise UserError(f"these stores cannot be merged, {len(found)} {what}: {', '.join(found[:10])}{more}. {remedy}")


# ------------------------------------------------------------------------------------------------- uniting


def _unite(stores: Sequence[Store]) -> tuple[dict[str, dict[str, np.ndarray] | None], np.ndarray]:
    """(tables of all, (rows, stores) place of each row in each store)."""
    first = stores[0]
    here = np.flatnonzero(first.visible)
    tables, places = all_tables(first, here), np.full((len(here), len(stores)), -1, np.int64)
    places[:, 0] = here
    mixed = len(first.manifest.extents) > 1
    for i, store in enumerate(stores[1:], 1):
        known_clips, known_videos = len(tables["clips"]["id"]), len(tables["videos"]["name"])
        video_of = _add_named(tables, "videos", "name", store, dict(store.videos))
        theirs = {**store.clips, "video": video_of[store.clips["video"]].astype(store.clips["video"].dtype)}
        clip_of = _add_named(tables, "clips", "id", store, theirs)
        _check_clips(tables["clips"], store, theirs, clip_of, known_clips)
        for name, of in LINKED.items():
            number, known = (clip_of, known_clips) if of == "clip" else (video_of, known_videos)
            _add_linked(tables, name, of, store, number, known)
        before = len(places)
        places = _place_rows(tables, places, store, i, clip_of, video_of)
        mixed |= len(places) > before
    if mixed:
        order = in_order(tables["rows"])
        tables["rows"] = {name: column[order] for name, column in tables["rows"].items()}
        places = places[order]
    return tables, places


def _add_named(tables: dict, table: str, key: str, store: Store, theirs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Appends what is new by its name; returns the united index of each of theirs."""
    mine = tables[table]
    if table == "clips" and set(mine) != set(theirs):
        odd = ", ".join(sorted(set(mine) ^ set(theirs)))
        raise UserError(
            f"{store.path} and the first store do not have the same label columns ({odd}): relabel one first"
        )
    number = {str(name): i for i, name in enumerate(mine[key])}
    fresh = [i for i, name in enumerate(theirs[key]) if str(name) not in number]
    number |= {str(theirs[key][i]): len(number) + j for j, i in enumerate(fresh)}
    if fresh:
        tables[table] = {
            name: np.concatenate(
                [column, theirs[name][fresh].astype(column.dtype) if name in theirs else no_values(column, len(fresh))]
            )
            for name, column in mine.items()
        }
    return np.array([number[str(name)] for name in theirs[key]], np.int64)


def _check_clips(united: Mapping, store: Store, theirs: Mapping, clip_of: np.ndarray, known: int) -> None:
    """Refuses clips of one id with other windows, or other labels, than an earlier store's."""
    both = np.flatnonzero(clip_of < known)
    moved = united["video"][clip_of[both]] != theirs["video"][both]
    for name in ("start_s", "stop_s"):
        moved |= ~np.isclose(united[name][clip_of[both]], theirs[name][both], rtol=0, atol=MOVED_S, equal_nan=True)
    names = [str(store.clips["id"][i]) for i in both[moved]]
    _refuse(names, f"clips moved under the same id (in {store.path})", "Extract them anew under one annotation")
    for name in (n for n in theirs if n not in ("id", "video", "start_s", "stop_s")):
        one, other = united[name][clip_of[both]], theirs[name][both]
        differs = (one != other) & ~((one != one) & (other != other))
        names = [str(store.clips["id"][i]) for i in both[differs]]
        _refuse(names, f"clips differ in {name} (in {store.path})", "Relabel one store first (`store relabel`)")


def _add_linked(tables: dict, name: str, of: str, store: Store, number: np.ndarray, known: int) -> None:
    """Captions, labels, events: those of new clips (videos) are appended, those of known ones must be the same."""
    theirs = getattr(store, name)
    if theirs is None:
        return
    theirs = {**theirs, of: number[theirs[of]].astype(theirs[of].dtype)}
    mine = tables[name]
    if mine is None:
        tables[name] = theirs
        return
    old = theirs[of] < known
    shared = np.unique(number[number < known])
    asked, said = _by_owner(theirs, of, old), _by_owner(mine, of, np.isin(mine[of], shared))
    differs = [owner for owner in shared.tolist() if asked.get(owner, []) != said.get(owner, [])]
    owners = tables["clips"]["id"] if of == "clip" else tables["videos"]["name"]
    found = [str(owners[owner]) for owner in differs]
    _refuse(found, f"{of}s differ in {name} (in {store.path})", "Relabel one store first (`store relabel`)")
    tables[name] = {column: np.concatenate([values, theirs[column][~old]]) for column, values in mine.items()}


def _by_owner(table: Mapping[str, np.ndarray], of: str, rows: np.ndarray) -> dict[int, list[tuple]]:
    found: dict[int, list[tuple]] = {}
    columns = [table[name][rows].tolist() for name in sorted(table) if name != of]
    for owner, *values in zip(table[of][rows].tolist(), *columns, strict=True):
        found.setdefault(owner, []).append(tuple(values))
    return found


def _place_rows(
    tables: dict, places: np.ndarray, store: Store, i: int, clip_of: np.ndarray, video_of: np.ndarray
) -> np.ndarray:
    """Finds the rows of store i among those of all so far, and appends those that are new; returns the places then."""
    here = np.flatnonzero(store.visible)
    mine = in_numbering({name: store.rows[name][here] for name in store.rows}, clip_of, video_of)
    found = match_rows(tables["rows"], mine)
    both, fresh = np.flatnonzero(found >= 0), np.flatnonzero(found < 0)
    moved = np.zeros(len(both), bool)
    for name in ("start_s", "stop_s"):
        one, other = tables["rows"][name][found[both]], mine[name][both]
        moved |= ~np.isclose(one, other, rtol=0, atol=MOVED_S, equal_nan=True)
    names = [_name(identity(store, int(row))) for row in here[both[moved]]]
    _refuse(names, f"rows have other times (in {store.path})", "Extract them anew under one annotation and sampling")
    places[found[both], i] = here[both]
    tables["rows"] = {name: np.concatenate([column, mine[name][fresh]]) for name, column in tables["rows"].items()}
    new = np.full((len(fresh), places.shape[1]), -1, np.int64)
    new[:, i] = here[fresh]
    return np.concatenate([places, new])


def _name(facts: Mapping[str, Any]) -> str:
    return f"{facts['video']} {facts['clip']} draw {facts['draw']} k {facts['k']}"


def _dataset(stores: Iterable[Store]) -> Mapping[str, Any]:
    """The first store's facts; where annotations differ, which they were."""
    found = [store.manifest.dataset for store in stores]
    facts = {key: value for key, value in found[0].items() if key != "subset"}
    for name in ("draws", "test_clips"):
        if any(name in one for one in found):
            facts[name] = max(int(one.get(name) or 0) for one in found)
    hashes = list(dict.fromkeys(str(one.get("annotation_hash", "")) for one in found))
    return facts if len(hashes) == 1 else {**facts, "annotation_hash": hashes[0], "merged_annotations": hashes}
