"""Stores as the files that other tools read: see `pipelines.formats.list_formats()` for which.

An export is one folder, made whole beside its final name and renamed into place: what is there is complete. It says
in `clipbank.json` what it was made of.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError, count_of
from pipelines.formats import Context, Sequence, check_options, find_format
from stores import ABSENT, OK, STATUS_NAMES, Store, open_store
from stores.manifest import PADDED, readable_json, storage_errors, sync_folder, temporary_beside
from stores.zarr_store import sync_tree

__all__ = ["export_features"]

MISSING = ("error", "skip", "nan")


def export_features(
    target_format: str,
    stores: str | Path | Store | Mapping[str, str | Path | Store],
    out: str | Path,
    *,
    array: str | None = None,
    draw: int = 0,
    missing: str = "error",
    options: Mapping[str, Any] | None = None,
    announce: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes the features of one store (of several, where the format holds several) as a folder of files.

    Args:
        target_format: one of `list_formats()` that has a writer: npy, rulstm, webdataset, mmt, ego4d, ...
        stores: a store, or {feature: store}; the feature of a single one is the store's name.
        out: the folder to make; it may not exist yet.
        array: the array to export, of floats; None: `vector`, or the only one that has one vector a row.
        draw: of the clip axis: which draw's rows. Others take 0.
        missing: rows that are not ok: "error" refuses them, "skip" leaves them out, "nan" writes NaN. Rows of an
            absent modality are always left out, and so is a video that has no row.
        options: of the format (see `Format.options`).
        announce: takes a line for people. progress: called as progress(videos done, videos in all).

    Returns:
        `out`. Rows of a video are in time order, values float32; one video at a time is in memory.

    Raises:
        UserError: no such format, array or option, rows that are not ok, a store that the format cannot hold, `out`
            is there. MachineError: disk full. Whatever is raised, nothing is left under the name `out`.
    """
    chosen = find_format(target_format, "write")
    check_options(chosen, chosen.write, options or {})
    if missing not in MISSING:
        raise UserError(f"missing must be {', '.join(MISSING)}, not {missing!r}")
    opened = _opened(stores)
    if len(opened) > 1 and not chosen.several:
        raise UserError(
            f"format {chosen.name} holds one feature, asked for {', '.join(opened)}: export them one by one"
        )
    arrays = {feature: _array(store, array) for feature, store in opened.items()}
    rows = {feature: _rows(store, draw, missing) for feature, store in opened.items()}
    out = Path(out)
    if out.exists():
        raise UserError(f"{out} exists: give the export a new folder, or remove that one first")
    for feature, store in opened.items():
        if "imported" in store.manifest.recipe:
            announce(f"{feature}: {store.path} was imported: its recipe is declared, not verified")
    names = list(dict.fromkeys(name for found in rows.values() for name in found))
    context = Context(tuple(opened), lambda video: _captions(opened, video), announce)
    temporary = temporary_beside(out)
    with storage_errors(out):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            chosen.write(temporary, _videos(opened, arrays, rows, names, missing, progress), context, **(options or {}))
            (temporary / "clipbank.json").write_bytes(readable_json(_facts(chosen.name, opened, arrays, missing)))
            sync_tree(temporary)
            temporary.rename(out)
            sync_folder(out.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    n = sum(len(r) for found in rows.values() for r in found.values())
    announce(f"{out}: {count_of(len(names), 'video')}, {count_of(n, 'row')}")
    return out


def _opened(stores: Any) -> dict[str, Store]:
    if not isinstance(stores, Mapping):
        store = stores if isinstance(stores, Store) else open_store(stores)
        stores = {Path(str(store.path)).stem: store}
    if not stores:
        raise UserError("say which store to export")
    return {name: one if isinstance(one, Store) else open_store(one) for name, one in stores.items()}


def _array(store: Store, asked: str | None) -> str:
    arrays = store.manifest.arrays
    vectors = [n for n, spec in arrays.items() if len(spec.row_shape) == 1 and np.dtype(spec.dtype).kind == "f"]
    if asked is None:
        found = ["vector"] if "vector" in vectors else vectors
        if len(found) != 1:
            raise UserError(f"{store.path} has no one array of vectors: say which, of {', '.join(arrays)}")
        return found[0]
    if asked not in vectors or asked == PADDED:
        raise UserError(
            f"{store.path}: {asked!r} has no float vector a row, which these formats hold; there are"
            f" {', '.join(vectors) or 'none'}"
        )
    return asked


def _rows(store: Store, draw: int, missing: str) -> dict[str, np.ndarray]:
    """{video: its rows in time order}; videos in the store's order."""
    status, rows = store.status(), np.flatnonzero(store.visible)
    rows = rows[(store.rows["draw"][rows] == draw) & (status[rows] != ABSENT)]
    if not len(rows):
        raise UserError(f"{store.path} has no rows of draw {draw} to export")
    lacking = rows[status[rows] != OK]
    if len(lacking) and missing == "error":
        state = STATUS_NAMES[status[lacking[0]]]
        raise UserError(
            f"{store.path}: {len(lacking):,} of {len(rows):,} rows hold no value, first row {lacking[0]} ({state}):"
            ' extract or repair them first, or say what to do with them: missing="skip" or "nan"'
        )
    if missing == "skip":
        rows = rows[status[rows] == OK]
    start, video = store.rows["start_s"][rows], store.rows["video"][rows]
    order = np.lexsort((store.rows["k"][rows], start, video))
    rows, video = rows[order], video[order]
    edges = np.flatnonzero(np.diff(video, prepend=-1))
    parts = np.split(rows, edges[1:]) if len(rows) else []
    return {str(store.videos["name"][video[edge]]): part for edge, part in zip(edges, parts, strict=True)}


def _videos(
    stores: Mapping[str, Store],
    arrays: Mapping[str, str],
    rows: Mapping[str, Mapping[str, np.ndarray]],
    names: list[str],
    missing: str,
    progress: Callable[[int, int], None] | None,
) -> Iterator[tuple[str, dict[str, Sequence]]]:
    for done, name in enumerate(names, 1):
        found = {}
        for feature, store in stores.items():
            mine = rows[feature].get(name)
            if mine is not None:
                values = store.read(arrays[feature], mine, missing="nan" if missing == "nan" else None)
                times = (store.rows[column][mine].astype(np.float64) for column in ("start_s", "stop_s"))
                found[feature] = Sequence(np.ascontiguousarray(values, np.float32), *times)
        yield name, found
        if progress:
            progress(done, len(names))


def _captions(stores: Mapping[str, Store], video: str) -> list[str]:
    """Captions of a video's clips, of the first store that has captions."""
    for store in stores.values():
        if store.texts is None or video not in store.videos["name"]:
            continue
        clips = store.clips["video"][store.texts["clip"]]
        return [str(text) for text in store.texts["caption"][clips == store.video_index(video)]]
    return []


def _facts(name: str, stores: Mapping[str, Store], arrays: Mapping[str, str], missing: str) -> dict[str, Any]:
    """What the folder says it was made of."""
    features = {
        feature: {
            "store": Path(str(store.path)).name,
            "array": arrays[feature],
            "dataset": store.manifest.dataset.get("name", ""),
            "recipe_hash": store.manifest.recipe_hash,
            "recipe": store.manifest.recipe,
            "lineage": store.manifest.lineage,
            "seal": store.manifest.seal,
        }
        for feature, store in stores.items()
    }
    return {"format": name, "values": "float32", "missing": missing, "features": features}
