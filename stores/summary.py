"""`info`: what is in a store, for people: sizes, coverage, values, failures, who computed it."""

import os
import re
from collections import Counter

import numpy as np

from errors import MachineError

from .files import is_url
from .maintain import files_of
from .manifest import ABSENT, FAILED, OK, PENDING
from .plan import store_bytes
from .reader import STATUS_NAMES, Store, open_store

SAMPLE_ROWS = 256
SAMPLE_BYTES = 32 * 1024 * 1024
"""Of each array `info` reads at most so many rows, and at most so many bytes."""

MOST_CLIPS = 2_000_000
"""Of stores of more clips `info` gives no coverage by split, which takes a look at every clip."""

QUANTILES = (0.0, 0.01, 0.25, 0.5, 0.75, 0.99, 1.0)
BINS = 20


def info(path: str | os.PathLike, seed: int = 0) -> dict:
    """What is in a store, as plain data that JSON holds: rows by status, sizes, values, recipe, failures, runs.

    Of a store that was imported the first thing said is that its recipe is declared and not verified.
    seed: of the sample of rows whose values are looked at.
    """
    store = open_store(path)
    manifest, visible = store.manifest, store.visible
    status = store.status()
    counts = counts_by_status(status[visible])
    stored_bytes, of_arrays = stored_sizes(store)
    plain = store_bytes(manifest.arrays, counts["ok"])
    arrays = {}
    for name, spec in manifest.arrays.items():
        stored = of_arrays.get(name)
        arrays[name] = {
            "row_shape": list(spec.row_shape),
            "dtype": spec.dtype,
            "stored_bytes": stored,
            "plain_bytes": plain[name],
            "ratio": round(plain[name] / stored, 3) if stored else None,
        }
        if np.dtype(spec.dtype).kind == "f":
            arrays[name]["values"] = values_of(store, name, np.flatnonzero(status == OK), seed)
    body = manifest.to_json()
    facts = ("format", "recipe_hash", "recipe", "layout", "spec", "dataset", "lineage", "seal")
    total, failures = int(visible.sum()), store.failures()
    return {
        **({"origin": origin} if (origin := declared_origin(manifest.recipe)) else {}),
        "path": str(store.path),
        **{key: body[key] for key in facts},
        "rows": {"total": total, **counts, "coverage": round(counts["ok"] / total, 6) if total else None},
        "coverage": coverage_by_split(store, status),
        "units": len(store.units),
        "videos": len(store.videos["name"]),
        "arrays": arrays,
        "stored_bytes": stored_bytes,
        "failures": dict(Counter(code for code, _ in failures.values()).most_common()),
        "failure_examples": failure_examples(store, failures),
        "provenance": provenance_of(store),
    }


def counts_by_status(status: np.ndarray) -> dict[str, int]:
    """{"ok": rows, "failed": ..., "absent": ..., "pending": ...} of status codes (N,)."""
    counts = np.bincount(status, minlength=len(STATUS_NAMES)).tolist()
    return {STATUS_NAMES[code]: counts[code] for code in (OK, FAILED, ABSENT, PENDING)}


def declared_origin(recipe: dict) -> str | None:
    """One line on a store that was imported; None of one whose recipe is what was computed."""
    imported = recipe.get("imported")
    if imported is None:
        return None
    source = imported.get("from", "elsewhere") if isinstance(imported, dict) else imported
    return f"imported from {source}: its recipe is declared, unverified"


def stored_sizes(store: Store) -> tuple[int | None, dict[str, int]]:
    """(bytes of the whole store, {array: bytes of its values as they are stored}); of one at a URL None and {}."""
    if is_url(store.path):
        return None, {}
    if store.path.is_file():
        arrays = {name: store._files.dataset(f"data/{name}").id.get_storage_size() for name in store.manifest.arrays}
        return store.path.stat().st_size, arrays
    sizes = {name: (store.path / name).stat().st_size for name in files_of(store.path)}
    arrays = {
        name: sum(size for file, size in sizes.items() if file.startswith(f"data/{name}/c."))
        for name in store.manifest.arrays
    }
    return sum(sizes.values()), arrays


def provenance_of(store: Store) -> dict[str, dict]:
    """{run: its facts} of every run that wrote its provenance, by name (which begins with the time).

    A store that was packed has left it behind, and at a URL nothing says which there are: {}.
    """
    if is_url(store.path) or not (store.path / "provenance").is_dir():
        return {}
    names = sorted(os.listdir(store.path / "provenance"))
    runs = [name.removesuffix(".json") for name in names if re.fullmatch(r"[^.].*\.json", name)]
    return {run: store._files.read_json(f"provenance/{run}.json") for run in runs}


def values_of(store: Store, name: str, ok: np.ndarray, seed: int) -> dict:
    """Quantiles and a histogram of a float array, from a bounded sample of the rows `ok`; NaN and infinity apart.

    {"rows", "finite" and "zero" (shares of all values), "mean", "std", "quantiles": {"0.5": ...},
    "histogram": {"edges": BINS + 1, "counts": BINS}}; fewer of them where there is nothing to say.
    """
    most = min(SAMPLE_ROWS, max(1, SAMPLE_BYTES // store.manifest.arrays[name].row_bytes))
    rows = ok if len(ok) <= most else np.sort(np.random.default_rng(seed).choice(ok, most, replace=False))
    if not len(rows):
        return {"rows": 0}
    try:
        values = store.read(name, rows).astype(np.float64).ravel()
    except MachineError as error:  # damaged: `verify` says more
        return {"rows": 0, "error": error.message}
    finite = values[np.isfinite(values)]
    facts = {"rows": len(rows), "finite": len(finite) / len(values), "zero": float((values == 0).mean())}
    if not len(finite):
        return facts
    counts, edges = np.histogram(finite, BINS)
    quantiles = zip(QUANTILES, np.quantile(finite, QUANTILES).tolist(), strict=True)
    return facts | {
        "mean": float(finite.mean()),
        "std": float(finite.std()),
        "quantiles": {f"{q:g}": value for q, value in quantiles},
        "histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
    }


def coverage_by_split(store: Store, status: np.ndarray) -> dict[str, dict[str, dict[str, int]]]:
    """{split column: {part: rows by status}}. Rows without a clip count in every part that a clip of their video is in.

    Empty where the clips have no splits, or are too many to look at (MOST_CLIPS).
    """
    columns = [name for name in store.clips if name == "split" or name.startswith("split_")]
    if not columns or store.manifest.tables.get("clips", 0) > MOST_CLIPS:
        return {}
    clip, video, visible = store.rows["clip"], store.rows["video"], store.visible
    of_clip = visible & (clip >= 0)
    found = {}
    for column in columns:
        parts: dict[str, int] = {}
        codes = np.array([parts.setdefault(part, len(parts)) for part in store.clips[column].tolist()], np.int64)
        found[column] = {}
        for part, code in parts.items():
            if not part:
                continue
            inside = np.zeros(len(status), bool)
            inside[of_clip] = codes[clip[of_clip]] == code
            with_part = np.zeros(len(store.videos["name"]) + 1, bool)  # one more: -1, of padding, finds it
            with_part[store.clips["video"][codes == code]] = True
            inside |= visible & (clip < 0) & with_part[video]
            found[column][part] = counts_by_status(status[inside])
    return {column: parts for column, parts in found.items() if parts}


def failure_examples(store: Store, failures: dict[int, tuple[str, str]]) -> dict[str, str]:
    """{reason code: "row 5, video P01_01: its line"}, the first row of each."""
    found = {}
    for row, (code, line) in failures.items():
        if code not in found:
            found[code] = f"row {row}, video {store.videos['name'][store.rows['video'][row]]}: {line}"
    return found
