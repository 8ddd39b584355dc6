"""Arrays that a finished store lacks: computed in a side store of the same rows, taken over when all are there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from errors import count_of
from pipelines.planning import Job
from pipelines.row_choice import mine_of, on_disk
from stores import OK, PENDING, Store, add_arrays, begin_arrays, match_rows

__all__ = ["with_arrays"]


def with_arrays(
    job: Job,
    network,
    store: Store,
    changed: list[str],
    compute: Callable[[Store, np.ndarray], None],
    announce: Callable[[str], None],
) -> tuple[Store, int]:
    """(the store with the arrays that the job asks for, 0), or (the store as it is, rows that still lack them).

    Rows that are ok get the new arrays from the same windows; what they hold is neither computed again nor moved.
    Rows that are not ok yet are left to be computed with all arrays. changed: videos that are no longer the files
    these rows came from. compute(side store, rows to do): the loop over units.
    """
    lacking = {name: spec for name, spec in job.arrays.items() if name not in store.manifest.arrays}
    if not lacking:
        return store, 0
    side = begin_arrays(store.path, lacking)
    needed = _ok_in(store, side)
    same_file = ~np.isin(side.videos["name"], changed)[side.rows["video"]]
    there = on_disk(job, side.videos["name"], side.rows["video"]) & same_file & side.visible
    todo = mine_of(job.request, side.units, needed & there & (side.status() == PENDING))
    if todo.any():
        announce(f"{job.path}: adding {', '.join(lacking)} to {count_of(needed.sum(), 'row')}")
        network.keep = list(lacking)
        compute(side, todo)
    left = int((needed & (side.status() != OK)).sum())
    if left:
        reasons = sorted({code for row, (code, _) in side.failures().items() if needed[row]})
        announce(
            f"{job.path}: {count_of(left, 'row still lacks', 'rows still lack')} {', '.join(lacking)}"
            + (f" ({', '.join(reasons)})" if reasons else "")
            + f"; the store gets them when all have them. What is there so far is in {side.path}"
        )
        return store, left
    return add_arrays(store.path, side), 0


def _ok_in(store: Store, side: Store) -> np.ndarray:
    """(len(side),) bool: rows of the side store that are ok in the store. Both have the same rows, in extents of
    their own, and number clips and videos alike."""
    found = match_rows(store.rows, side.rows)
    ok = np.zeros(len(store) + 1, bool)  # the last is for rows that the store does not have
    ok[store.ok] = True
    return ok[found] & side.visible
