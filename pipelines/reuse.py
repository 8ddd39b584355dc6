"""Rows that the lab has already: found through all feature roots by their recipe, and copied instead of computed.

A row of another store is a row of ours when the recipe, the content of the video and the window are the same,
whatever the dataset and the video are called there. Imported features have no such recipe, and are never taken.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from errors import MachineError, UserError
from extract.decode import VideoError, stat_video
from extract.networks import create_network
from pipelines.frame_choice import other_choice
from pipelines.planning import Job
from pipelines.provenance import run_facts, run_name
from pipelines.reading import captions_of
from pipelines.row_choice import on_disk, rows_asked
from pipelines.videos import Videos, changed_videos
from stores import ABSENT, FAILED, OK, PENDING, NotAStore, Store, StoreSealed, open_store, recipe_hash

__all__ = ["finished_elsewhere", "plan_reuse", "reuse_rows"]

SAME_WINDOW_S = 1e-3  # windows are the same to this, and to a quarter of a step of a finer grid
SAME_VIDEO = ("content_hash", "kind", "fps", "times", "n_frames")  # of a probe; a frame folder has the dataset's fps
PROBE_THREADS = 8

Announce = Callable[[str], None]
Rows = Mapping[str, np.ndarray]


def finished_elsewhere(job: Job, network, announce: Announce) -> tuple[Store, np.ndarray] | None:
    """(the store of this dataset and name in a later feature root, the rows of it that are asked for, bool), if it
    holds all that the job would compute: it is used as it is, and nothing is written."""
    for store in _lab_stores(job, recipe_hash(job.recipe(network)), job.arrays, announce):
        same = (job.dataset.name, job.dataset.annotation_hash, job.sampling.axis, *job.path.parts[-2:])
        about = store.manifest.dataset
        if other_choice(store, job):
            continue
        if (about.get("name"), about.get("annotation_hash"), about.get("axis"), *store.path.parts[-2:]) != same:
            continue
        try:
            asked, new_videos = rows_asked(store, job)
            there = on_disk(job, store.videos["name"], store.rows["video"])
            done = (OK, ABSENT) if job.request.retry_failed else (OK, ABSENT, FAILED)
            if not new_videos and np.isin(store.status()[asked & there], done).all() and not changed_videos(job, store):
                return store, asked
        except (UserError, MachineError):  # of other rows, or damaged: it is looked at again row by row
            continue
    return None


def reuse_rows(job: Job, network, store: Store, todo: np.ndarray, announce: Announce) -> dict[str, int]:
    """Copy what rows of `todo` (bool, one a row of `store`) other stores have; takes them out of `todo`.

    Returns {store: rows copied}. A store that is damaged or cannot be read is passed over, and that is announced.
    """
    copied: dict[str, int] = {}
    videos = Videos(job, store, threads=1)
    for source in _lab_stores(job, recipe_hash(job.recipe(network)), store.manifest.arrays, announce):
        if not todo.any():
            break
        try:
            if job.spec.reads == "text":
                mine, theirs = _same_captions(job, store.rows, store.clips["id"], todo, source)
            else:
                videos_of = np.unique(store.rows["video"][todo]).tolist()
                same = _same_videos(job, store.videos["name"], videos_of, source, _exact)
                same = {video: other for video, other in same.items() if videos.probed(video) is not None}
                mine, theirs = _same_windows(job, store.rows, todo, same, source)
        except (UserError, MachineError, VideoError, OSError) as error:
            announce(f"warning: {source.path} has rows of this recipe and is passed over: {error}")
            continue
        if len(mine) and (count := _copy(store, source, mine, theirs, todo, announce)):
            copied[str(source.path)] = count
    if copied:
        facts = run_facts("none")
        store.write_provenance(f"{run_name(facts)}-copied", {**facts, "copied": copied})
    return copied


def plan_reuse(job: Job, todo: np.ndarray, announce: Announce = lambda line: None) -> dict[str, int]:
    """{store: rows that `extract` would copy from it} of `todo`, rows of the store on disk or else of the planned one.

    Videos are compared by size (frame folders: by name) only: their content is read when it comes to copying.
    """
    unnamed = recipe_hash(job.recipe(SimpleNamespace(spec=job.spec, weights_hash="")))
    likely = [
        store
        for store in _lab_stores(job, None, job.arrays, announce)
        if recipe_hash({**store.manifest.recipe, "weights": ""}) == unnamed
    ]
    if not likely:
        return {}
    try:
        weights = create_network(job.network, weights=job.weights, **job.options).weights_hash
    except UserError:  # extract says what is lacking
        return {}
    if (job.path / "zarr.json").exists():
        own = open_store(job.path)
        rows, names, clips = own.rows, own.videos["name"], own.clips["id"]
    else:
        rows, names, clips = job.rows, job.dataset.videos["name"], job.dataset.clips["id"]
    todo = todo.copy()
    found: dict[str, int] = {}
    for source in likely:
        if source.manifest.recipe.get("weights") != weights:
            continue
        try:
            if job.spec.reads == "text":
                mine, _ = _same_captions(job, rows, clips, todo, source)
            else:
                same = _same_videos(job, names, np.unique(rows["video"][todo]).tolist(), source, _rough)
                mine, _ = _same_windows(job, rows, todo, same, source)
        except (UserError, MachineError, VideoError, OSError) as error:
            announce(f"warning: {source.path} has rows of this recipe and is passed over: {error}")
            continue
        todo[mine] = False
        found |= {str(source.path): len(mine)} if len(mine) else {}
    return found


# ---- which stores ------------------------------------------------------------------------------------------------


def _lab_stores(job: Job, recipe: str | None, arrays: Mapping, announce: Announce) -> Iterator[Store]:
    """The stores under the feature roots with this recipe and at least these arrays; not the job's own."""
    for path in store_paths(job.request.feature_roots, announce):
        try:
            if path.resolve() == job.path.resolve():
                continue
            store = open_store(path)
        except NotAStore:  # a copy that is not finished
            continue
        except (UserError, MachineError, OSError) as error:
            announce(f"warning: {path} cannot be read and is passed over: {error}")
            continue
        manifest = store.manifest
        if "imported" in manifest.recipe or recipe not in (None, manifest.recipe_hash):
            continue
        if all(manifest.arrays.get(name) == spec for name, spec in arrays.items()):
            yield store


def store_paths(roots: Iterable[Path], announce: Announce) -> Iterator[Path]:
    for root in roots:
        try:
            yield from sorted([*root.glob("[!.]*/[!.]*.zarr"), *root.glob("[!.]*/[!.]*.h5")])
        except OSError as error:
            announce(f"warning: {root} cannot be listed and is passed over: {error.strerror}")


# ---- which rows --------------------------------------------------------------------------------------------------


def _same_videos(job: Job, names: np.ndarray, wanted: list[int], source: Store, key: Callable) -> dict[int, int]:
    """{our video: theirs} of the videos in `wanted` that are the same by `key`."""
    theirs: dict[Hashable, int] = {}
    sizes = set()
    videos = np.unique(source.rows["video"][source.ok]).tolist()
    with ThreadPoolExecutor(PROBE_THREADS) as pool:
        for video, probe in zip(videos, pool.map(source.probe, videos), strict=True):
            if probe is not None:
                theirs.setdefault(key(job, probe, str(source.videos["name"][video])), video)
                sizes.add(probe["size_bytes"])
    ours = _probes(job, names, wanted, sizes, full=key is _exact)
    return {v: theirs[k] for v, probe in ours.items() if (k := key(job, probe, str(names[v]))) in theirs}


def _probes(job: Job, names: np.ndarray, wanted: list[int], sizes: set[int], full: bool) -> dict[int, Mapping]:
    """{video: its probe, or if not `full` its kind and size} of those that can be read and may be among `sizes`."""
    if not job.needs_videos:
        known = set(job.flow.store.videos["name"])
        found = {v: job.flow.store.probe(str(names[v])) for v in wanted if names[v] in known}
        return {v: probe for v, probe in found.items() if probe is not None}
    place = {name: i for i, name in enumerate(job.dataset.videos["name"])}
    likely: dict[int, Path] = {}
    stats: dict[int, Mapping] = {}
    for v in wanted:
        path = job.dataset.video_path(place[names[v]]) if names[v] in place else None
        if path is None:
            continue
        try:
            size = stat_video(path).st_size
        except VideoError:  # said when it is to be computed
            continue
        if path.is_dir() or size in sizes:
            likely[v] = path
            stats[v] = {"kind": "frames" if path.is_dir() else "file", "size_bytes": size}
    if not full:
        return stats
    grids = [job.dataset.grid_fps_of(place[names[v]]) for v in likely]
    probes = job.probe_cache.get_many(list(likely.values()), grid_fps=grids, reads=job.reads)
    return {v: p.to_json() for v, p in zip(likely, probes, strict=True) if not isinstance(p, VideoError)}


def _exact(job: Job, probe: Mapping, name: str) -> tuple:
    """What makes a video the same; given boxes are of videos by name."""
    return (*(probe.get(field) for field in SAME_VIDEO), name if job.boxes is not None else None)


def _rough(job: Job, probe: Mapping, name: str) -> tuple:
    frames = probe["kind"] == "frames"
    return frames, name if frames or job.boxes is not None else None, None if frames else probe["size_bytes"]


def _same_windows(
    job: Job, rows: Rows, todo: np.ndarray, same: Mapping[int, int], source: Store
) -> tuple[np.ndarray, np.ndarray]:
    """(rows of ours in `todo`, the rows of `source` that are the same and ok), both int64 (n,)."""
    tolerance = min(SAME_WINDOW_S, 0.25 / job.sampling.fps)
    ok = source.ok
    ok = ok[np.argsort(source.rows["start_s"][ok], kind="stable")]
    video_of, wanted = source.rows["video"][ok], np.flatnonzero(todo)
    mine, theirs = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for video, other in same.items():
        a, b = wanted[rows["video"][wanted] == video], ok[video_of == other]
        start = source.rows["start_s"][b]
        at = np.searchsorted(start, rows["start_s"][a] - tolerance)
        a, at = a[at < len(b)], at[at < len(b)]
        near = np.abs(start[at] - rows["start_s"][a]) <= tolerance
        near &= np.abs(source.rows["stop_s"][b[at]] - rows["stop_s"][a]) <= tolerance
        mine.append(a[near])
        theirs.append(b[at[near]])
    return np.concatenate(mine), np.concatenate(theirs)


def _same_captions(
    job: Job, rows: Rows, clips: np.ndarray, todo: np.ndarray, source: Store
) -> tuple[np.ndarray, np.ndarray]:
    """As `_same_windows` of the text axis, where a row is its caption and no video is looked at."""

    def captions(told: Mapping[str, list[str]], rows: Rows, ids: np.ndarray, which: np.ndarray) -> list[str]:
        places = zip(rows["clip"][which].tolist(), rows["k"][which].tolist(), strict=True)
        return [told[str(ids[clip])][k] for clip, k in places]

    ok, wanted = source.ok, np.flatnonzero(todo)
    known = dict(zip(captions(captions_of(source), source.rows, source.clips["id"], ok), ok.tolist(), strict=True))
    theirs = np.array([known.get(text, -1) for text in captions(job.captions, rows, clips, wanted)], np.int64)
    return wanted[theirs >= 0], theirs[theirs >= 0]


# ---- copying -----------------------------------------------------------------------------------------------------


def _copy(
    store: Store, source: Store, mine: np.ndarray, theirs: np.ndarray, todo: np.ndarray, announce: Announce
) -> int:
    """Commit rows `theirs` of `source` as rows `mine` of `store`, unit by unit; returns how many."""
    count, warned = 0, False
    for unit in store.units:
        here = (mine >= unit.start) & (mine < unit.stop)
        if not here.any():
            continue
        here[here] = store.status(unit)[mine[here] - unit.start] != OK  # another process may copy, too
        rows, slots = mine[here], mine[here] - unit.start
        good = np.ones(len(rows), bool)
        arrays = {}
        try:
            for name, spec in store.manifest.arrays.items():
                values = source.read(name, theirs[here])
                if values.dtype.kind == "f":
                    good &= np.isfinite(values.reshape(len(rows), -1)).all(axis=1)
                arrays[name] = np.zeros((len(unit), *spec.row_shape), spec.dtype)
                arrays[name][slots] = values
        except (UserError, MachineError, OSError) as error:
            if not warned:
                announce(f"warning: rows of {source.path} cannot be copied, and are computed: {error}")
            warned = True
            continue
        status = np.full(len(unit), PENDING, np.uint8)
        status[slots[good]] = OK
        try:
            store.commit(unit, arrays, status)
        except StoreSealed:  # another process has finished it
            break
        todo[unit.start : unit.stop] &= store.status(unit) != OK
        count += int(good.sum())
    return count
