"""Which rows of a store a run computes: those asked for, of videos that are there, in its share, up to its limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from errors import UserError, count_of
from pipelines.planning import Job
from pipelines.reading import captions_of
from pipelines.request import Extraction
from stores import Store, Unit, extend, in_numbering, match_rows, numbers_in, recipe_difference, shard_units

__all__ = ["clips_gone", "differences", "grown", "mine_of", "on_disk", "rows_asked", "rows_lacking"]


def rows_asked(store: Store, job: Job) -> tuple[np.ndarray, list[str]]:
    """((N,) bool over the store's rows: those that the job wants; videos of which it lacks rows that the job wants).

    Raises `UserError` for annotations that moved, and for draws of another seed.
    """
    found = _found(store, job)
    lacking = np.unique(job.rows["video"][(found < 0) & job.wanted])
    asked = np.zeros(len(store), bool)
    asked[found[(found >= 0) & job.wanted]] = True
    return asked, [str(job.dataset.videos["name"][video]) for video in lacking]


def clips_gone(store: Store, job: Job) -> list[str]:
    """Ids of the store's clips that the annotations no longer have. They stay, with their rows, and are used on."""
    known = set(job.dataset.clips["id"])
    return [str(clip) for clip in store.clips["id"] if clip not in known]


def rows_lacking(store: Store, job: Job, leave_out: Sequence[str] = ()) -> np.ndarray:
    """(n,) bool over the job's rows: those that the store does not have; none if it has all that are wanted.

    leave_out: videos whose rows are left as they are.
    """
    names = np.asarray(job.dataset.videos["name"], object)
    fresh = (_found(store, job) < 0) & ~np.isin(names, list(leave_out))[job.rows["video"]]
    return fresh & (fresh & job.wanted).any()


def grown(store: Store, job: Job, announce: Callable[[str], None], leave_out: Sequence[str] = ()) -> Store:
    """The store, extended by the rows that the job wants and it lacks: of new clips, draws, videos, longer videos.

    Rows are known by (video, clip id, draw, k); none that is there moves. leave_out: videos that changed since their
    rows were computed: they get no rows of the new file beside those of the old one.
    """
    fresh = rows_lacking(store, job, leave_out)
    if not fresh.any():
        return store
    videos = len(set(job.dataset.videos["name"]) - set(store.videos["name"]))
    new = count_of(videos, "video is", "videos are")
    announce(f"{job.path}: extending by {count_of(fresh.sum(), 'row')}" + (f", {new} new" if videos else ""))
    facts = {**job.dataset_facts, "draws": max(job.draws, store.manifest.dataset.get("draws") or 0)}
    if "test_clips" in store.manifest.dataset:
        facts["test_clips"] = store.manifest.dataset["test_clips"]
    return extend(
        store.path,
        {name: column[fresh] for name, column in job.rows.items()},
        job.dataset.clips,
        {column: job.dataset.videos[column] for column in ("name", "path")},
        job.dataset.texts,
        job.dataset.labels,
        job.dataset.events,
        facts=facts,
    )


def _found(store: Store, job: Job) -> np.ndarray:
    """(n,) int64: the store's row of each row of the job, -1 where it has none."""
    mine, theirs = job.rows, store.rows
    if job.draws and store.manifest.dataset.get("seed") != job.request.seed:
        raise UserError(
            f"{job.path} was made with --seed {store.manifest.dataset.get('seed')}, which places its random centres;"
            f" asked for {job.request.seed}. Give that seed, or another --name"
        )
    there = store.manifest.dataset.get("test_clips", 0)
    if there and job.request.test_clips not in (0, there):
        raise UserError(
            f"{job.path} has --test-clips {there}, whose places depend on their number; asked for"
            f" {job.request.test_clips}. Give that number, or another --name"
        )
    clip_of, video_of = numbers_in(store, job.dataset.clips["id"], job.dataset.videos["name"])
    found = match_rows(theirs, in_numbering(mine, clip_of, video_of))
    there = np.flatnonzero(found >= 0)
    moved = there[np.abs(theirs["start_s"][found[there]] - mine["start_s"][there]) > 1e-3]
    if len(moved):
        ids = [job.dataset.clips["id"][i] if i >= 0 else "" for i in mine["clip"][moved[:10]]]
        raise UserError(
            f"{job.path}: {count_of(len(moved), 'annotation')} moved under the same clip id (such as"
            f" {', '.join(map(repr, ids))}); its rows are true to the old ones. Extract under another --name"
        )
    return found


def differences(store: Store, job: Job, network) -> list[str]:
    """Why a store does not hold what the job would compute, one line a field of the recipe; empty: it does."""
    differing = recipe_difference(store.manifest.recipe, job.recipe(network))
    if job.spec.reads == "text" and not _keeps_captions(job, store):
        differing.append("captions: some of those that the store holds are others now")
    return differing


def _keeps_captions(job: Job, store: Store) -> bool:
    """Whether every caption of a store of the text axis is still the same, whatever others came since."""
    known = captions_of(store)
    return all(job.captions.get(clip, [])[: len(captions)] == captions for clip, captions in known.items())


def on_disk(job: Job, videos: Sequence[str], video_of_row: np.ndarray) -> np.ndarray:
    """(N,) bool: rows whose video is on disk; `videos` are the names that `video_of_row` counts."""
    if not job.needs_videos:
        return np.ones(len(video_of_row), bool)
    there = {name for name, path in zip(job.dataset.videos["name"], job.dataset.videos["path"], strict=True) if path}
    return np.array([name in there for name in videos], bool)[video_of_row]


def mine_of(request: Extraction, units: Sequence[Unit], todo: np.ndarray) -> np.ndarray:
    """Of the rows to do, those of this run: --shard's units, then the first --limit."""
    todo = todo.copy()
    if request.shard is not None:
        mine = np.zeros(len(todo), bool)
        for unit in shard_units(units, *request.shard):
            mine[unit.start : unit.stop] = True
        todo &= mine
    if request.limit is not None:
        todo &= np.cumsum(todo) <= request.limit
    return todo
