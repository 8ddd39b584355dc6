"""Which rows of a store a run computes: those asked for, of videos that are there, in its share, up to its limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from errors import UserError
from extract.sampling import GRID_AXES
from pipelines.planning import Job
from pipelines.request import Extraction
from stores import Store, Unit, shard_units

__all__ = ["mine_of", "on_disk", "rows_asked"]


def rows_asked(store: Store, job: Job) -> tuple[np.ndarray, list[str]]:
    """((N,) bool over the store's rows: those that the job wants; videos of which the store has no row at all).

    Rows are known by (video, clip id, draw, k). A store of a grid axis has no rows of videos that were missing
    or unreadable when it was planned. Raises `UserError` for other rows that it lacks, and for annotations that moved.
    """
    mine, theirs = job.rows, store.rows
    columns = ("video", "clip", "k", "draw", "start_s")
    if (
        len(theirs["video"]) == len(mine["video"])
        and all(np.array_equal(theirs[c], mine[c]) for c in columns)
        and np.array_equal(store.videos["name"], job.dataset.videos["name"])
        and np.array_equal(store.clips["id"], job.dataset.clips["id"])
    ):
        return job.wanted, []
    if job.draws and store.manifest.dataset.get("seed") != job.request.seed:
        raise UserError(
            f"{job.path} was made with --seed {store.manifest.dataset.get('seed')}, which places its random centres;"
            f" asked for {job.request.seed}. Give that seed, or another --name"
        )
    known = {key: row for row, key in enumerate(_keys(theirs, store.videos["name"], store.clips["id"]))}
    keys = _keys(mine, job.dataset.videos["name"], job.dataset.clips["id"])
    found = np.array([known.get(key, -1) for key in keys], np.int64)
    lacking = [keys[i] for i in np.flatnonzero((found < 0) & job.wanted)]
    planned = {key[0] for key in known}
    new_videos = sorted({video for video, *_ in lacking} - planned) if job.sampling.axis in GRID_AXES else []
    lacking = [key for key in lacking if key[0] not in new_videos]
    if lacking:
        video, clip, draw, k = lacking[0]
        raise UserError(
            f"{job.path} was planned without {len(lacking):,} of these rows (first: video {video!r}, clip {clip!r},"
            f" draw {draw}, k {k}): its annotations or draws were fewer, or a video was shorter then. Use the --draws"
            " it was made with, extract under another --name, or delete the store to make it anew"
        )
    there = np.flatnonzero(found >= 0)
    moved = there[np.abs(theirs["start_s"][found[there]] - mine["start_s"][there]) > 1e-3]
    if len(moved):
        raise UserError(
            f"{job.path}: {len(moved):,} annotations moved under the same clip id (such as"
            f" {', '.join(repr(keys[i][1]) for i in moved[:10])}); its rows are true to the old ones. Extract under"
            " another --name"
        )
    asked = np.zeros(len(theirs["video"]), bool)
    asked[found[there[job.wanted[there]]]] = True
    return asked, new_videos


def _keys(rows: Mapping[str, np.ndarray], videos: Sequence[str], clips: Sequence[str]) -> list[tuple]:
    of_clip = [clips[i] if i >= 0 else "" for i in rows["clip"]]
    of_video = [videos[i] for i in rows["video"]]
    return list(zip(of_video, of_clip, rows["draw"].tolist(), rows["k"].tolist(), strict=True))


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
