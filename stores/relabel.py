"""Other labels for the same features: annotations that were corrected, captions, splits.

Features say what was seen in a window; which verb it is called is another matter. Relabelling replaces the columns
of `clips/`, the captions and the multi-labels of a store, and no value: clips whose windows moved are refused,
because their features are of the old windows.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from errors import UserError, count_of

from .columns import no_values
from .extensions import finish_growth
from .files import local_folder
from .grow import extend, replace_columns
from .manifest import PENDING
from .reader import Store, open_store

WINDOW = ("id", "video", "start_s", "stop_s")
MOVED_S = 1e-3
TableLike = Mapping[str, np.ndarray]


def relabel(
    path: str | os.PathLike,
    clips: TableLike,
    texts: TableLike | None = None,
    labels: TableLike | None = None,
    videos: TableLike | None = None,
    facts: Mapping[str, Any] | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Store:
    """Replaces the labels of a store by those of other annotations of the same clips; returns the store.

    clips: `id` and any columns: labels (integers), `split`, `split_<scheme>` (strings); columns that the store lacks
    are added, those not given stay. With `start_s`, `stop_s` (seconds) or `video` (an index into `videos["name"]`)
    each clip is checked to be where it was. Clips that the store does not have are passed over, and so are, unchanged,
    those that are not given. texts (clip, caption), labels (clip, label): `clip` is an index into `clips`; they replace
    all that the store has of the clips that are given. facts: entries of the manifest's `dataset` that change with
    them (annotation_hash, class_names). announce: takes a line about what changes.

    A store that was sealed is sealed again, as the next k, if every row is done; killed anywhere, run again.
    Raises UserError: a clip moved (listed), no clip in common, a column that is no label; MachineError, DamagedStore.
    """
    path = local_folder(path)
    finish_growth(path)  # of a relabelling that was killed: its columns are half old, half new
    store = open_store(path)
    was_sealed = store.sealed or any(path.glob("sealed/*"))
    given, held = _common(store, clips)
    _refuse_moved(store, clips, videos, given, held)
    tables: dict[str, dict[str, np.ndarray]] = {}
    if columns := _columns(store, clips, given, held):
        tables["clips"] = columns
    fresh: dict[str, dict[str, np.ndarray]] = {}
    for name, table in (("texts", texts), ("labels", labels)):
        if table is not None:
            _check_linked(name, table, clips, getattr(store, name))
            united = _united(getattr(store, name), table, len(clips["id"]), given, held)
            if getattr(store, name) is None:
                fresh[name] = united
            else:
                tables[name] = united
    for name, columns in tables.items():
        announce(f"{path}: {name}/{', '.join(columns)} of {count_of(len(given), 'clip')}")
    k = (store.manifest.seal or {}).get("k")
    dataset = {**store.manifest.dataset, **(facts or {})}
    store = replace_columns(path, tables, dataset)
    if fresh:
        no_rows = {name: store.rows[name][:0] for name in store.rows}
        store = extend(path, no_rows, store.clips, store.videos, **fresh, facts=dataset)
    if was_sealed and not store.sealed and not (store.status()[store.visible] == PENDING).any():
        store.seal()
        announce(f"{path}: sealed as {store.manifest.seal['k']}" + (f", before as {k}" if k else ""))
    return store


def _common(store: Store, clips: TableLike) -> tuple[np.ndarray, np.ndarray]:
    """(indices of the given clips, indices of the same clips in the store)."""
    ids = [str(name) for name in clips["id"]]
    if len(set(ids)) != len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise UserError(f"clip {twice!r} is there twice in the new labels")
    for name, column in clips.items():
        if len(column) != len(ids):
            raise ValueError(f"columns of clips must have equal lengths: id {len(ids)}, {name} {len(column)}")
    number = {str(name): i for i, name in enumerate(store.clips["id"])}
    held = np.array([number.get(name, -1) for name in ids], np.int64)
    given = np.flatnonzero(held >= 0)
    if not len(given):
        raise UserError(
            f"{store.path} and the new labels have no clip in common: the store has {_some(store.clips['id'])}, the"
            f" labels {_some(clips['id'])}"
        )
    return given, held[given]


def _some(names: np.ndarray) -> str:
    return ", ".join(repr(str(name)) for name in names[:3])


def _refuse_moved(
    store: Store, clips: TableLike, videos: TableLike | None, given: np.ndarray, held: np.ndarray
) -> None:
    moved = np.zeros(len(given), bool)
    if "video" in clips and videos is not None:
        old = store.videos["name"][store.clips["video"][held]].astype(object)
        moved |= old != np.asarray(videos["name"]).astype(object)[np.asarray(clips["video"])[given]]
    for name in ("start_s", "stop_s"):
        if name in clips:
            new = np.asarray(clips[name], np.float64)[given]
            moved |= ~np.isclose(store.clips[name][held], new, rtol=0, atol=MOVED_S, equal_nan=True)
    if moved.any():
        at = np.flatnonzero(moved)
        lines = [_moved_line(store, clips, int(given[i]), int(held[i])) for i in at[:10]]
        more = f" and {len(at) - 10} more" if len(at) > 10 else ""
        raise UserError(
            f"{count_of(len(at), 'clip')} of {store.path} moved under the same id: {'; '.join(lines)}{more}. Their"
            " features are true to the old windows: extract under another --name, or leave these clips out"
        )


def _moved_line(store: Store, clips: TableLike, given: int, held: int) -> str:
    old = [f"{store.clips[name][held]:g}" for name in ("start_s", "stop_s")]
    new = [f"{clips[name][given]:g}" if name in clips else "?" for name in ("start_s", "stop_s")]
    return f"{str(clips['id'][given])!r} from [{', '.join(old)}) to [{', '.join(new)}) s"


def _columns(store: Store, clips: TableLike, given: np.ndarray, held: np.ndarray) -> dict[str, np.ndarray]:
    """{column: values of every clip of the store}; those of clips that are not given stay, or are empty."""
    out = {}
    for name in (name for name in clips if name not in WINDOW):
        values = np.asarray(clips[name])
        text = values.dtype.kind in "OUT"
        if not text and values.dtype.kind not in "iub":
            raise UserError(f"clips.{name} is {values.dtype}: labels are integers, splits are strings")
        if name in store.clips:
            column = store.clips[name].copy()
            if (column.dtype.kind == "O") != text:
                raise UserError(f"clips.{name} is {values.dtype}, the store's is {column.dtype}")
        else:
            column = no_values(np.empty(0, object if text else np.int32), len(store.clips["id"]))
        column[held] = values[given]
        out[name] = column
    return out


def _check_linked(name: str, table: TableLike, clips: TableLike, held: TableLike | None) -> None:
    if held is not None and set(table) != set(held):
        raise UserError(f"{name} must have the columns {', '.join(held)}, got {', '.join(table)}")
    index = np.asarray(table["clip"])
    if len(index) and (index.dtype.kind not in "iu" or index.min() < 0 or index.max() >= len(clips["id"])):
        raise UserError(f"{name}.clip must be indices into the {len(clips['id'])} clips given with it")


def _united(
    mine: TableLike | None, theirs: TableLike, n_given: int, given: np.ndarray, held: np.ndarray
) -> dict[str, np.ndarray]:
    """The store's rows of clips that are not given, and all new ones of those that are, by clip."""
    number = np.full(n_given, -1, np.int64)
    number[given] = held
    clip = number[np.asarray(theirs["clip"], np.int64)]
    known = clip >= 0
    mine = mine or {name: np.asarray(column)[:0] for name, column in theirs.items()} | {"clip": np.empty(0, np.int32)}
    stays = ~np.isin(mine["clip"], held)
    clips = np.concatenate([mine["clip"][stays], clip[known]])
    order = np.argsort(clips, kind="stable")
    columns = {"clip": clips[order].astype(mine["clip"].dtype)}
    for name in (name for name in mine if name != "clip"):
        new = np.asarray(theirs[name])[known].astype(mine[name].dtype)
        columns[name] = np.concatenate([mine[name][stays], new])[order]
    return columns
