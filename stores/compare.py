"""Two stores side by side: are these features the same as those?

Rows are matched by what they are (video name, clip id, draw, k) or, for stores whose rows were cut differently, by
time. Of every array that both have, each pair of rows that is ok in both gives a cosine and a ratio of lengths (or,
where values are integers, equal or not). Values are read batch by batch; a few numbers a row stay in memory.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from errors import UserError, count_of

from .grow import in_numbering, match_rows, numbers_in
from .manifest import OK, PADDED, ArraySpec, recipe_difference
from .reader import Store, open_store

BATCH_BYTES = 8 * 1024 * 1024
"""What the rows of a batch take, in float64, of each of the two stores."""

QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Tolerance:
    """How far two computations of one row may be apart: its least cosine, its largest |length ratio - 1|."""

    cosine: float
    length: float


TOLERANCES = {
    "fp32": Tolerance(0.99999, 1e-3),
    "fp16": Tolerance(0.9999, 1e-2),
    "bf16": Tolerance(0.999, 2e-2),
}
"""By the precision that a network ran in: what machines of different kinds differ by, and a margin. Between processors
float32 changes 0.4 % of float16 values by their last bit, bfloat16 37 % of them; either result is valid."""


@dataclass(frozen=True)
class ArrayReport:
    """What one array says. `rows`: pairs compared; `beyond`: of these, how many are not within the tolerance.

    cosine, length_ratio: {quantile: value}, ratio = length in b / length in a; empty for integers, whose pairs are
    equal or not. worst: the pairs farthest apart, each {"video", "clip", "draw", "k", "row_a", "row_b", ...}.
    """

    rows: int
    beyond: int
    cosine: Mapping[str, float]
    length_ratio: Mapping[str, float]
    worst: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    matched: rows that both have; compared: of these, those ok in both. only_a, only_b: rows that one lacks, of which
    `examples` names a few. not_compared: {array: why}. recipe_differences: one line a field; empty: equal recipes.
    notes: anything else to know, such as a recipe that was only declared.
    """

    a: str
    b: str
    by: str
    tolerance: Tolerance
    matched: int
    compared: int
    not_ok_a: int
    not_ok_b: int
    only_a: int
    only_b: int
    examples: Mapping[str, tuple[str, ...]]
    arrays: Mapping[str, ArrayReport]
    not_compared: Mapping[str, str]
    recipe_differences: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def agree(self) -> bool:
        """Something was compared, and every value is within the tolerance. Rows that one lacks are no difference."""
        return bool(self.arrays) and self.compared > 0 and not any(report.beyond for report in self.arrays.values())

    def to_json(self) -> dict:
        """The whole as plain data; numbers that are not finite as None."""
        return _plain({**asdict(self), "agree": self.agree})

    def lines(self) -> list[str]:
        """The report for people."""
        out = [
            f"A {self.a}",
            f"B {self.b}",
            f"{count_of(self.matched, 'row')} matched by {self.by}, {self.compared:,} of them ok in both (not ok:"
            f" {self.not_ok_a:,} in A, {self.not_ok_b:,} in B); only in A {self.only_a:,}, only in B {self.only_b:,}",
        ]
        out += [f"  only in {side}: {', '.join(names)}" for side, names in self.examples.items() if names]
        out += [f"note: {line}" for line in self.notes]
        out += [f"recipe: {line}" for line in self.recipe_differences] or ["recipe: the same"]
        for name, report in self.arrays.items():
            out.append(f"{name}: {report.rows - report.beyond:,} of {report.rows:,} rows agree")
            for what, found in (("cosine", report.cosine), ("length B/A", report.length_ratio)):
                if found:
                    out.append(f"  {what:10} " + "  ".join(f"{q} {value:.6f}" for q, value in found.items()))
            shown = report.worst if report.beyond else ()
            out += ["  " + "  ".join(f"{key} {_short(value)}" for key, value in row.items()) for row in shown]
        out += [f"{name}: not compared, {why}" for name, why in self.not_compared.items()]
        bounds = f"cosine at least {self.tolerance.cosine}, lengths within {self.tolerance.length:g}"
        return [*out, f"the stores {'agree' if self.agree else 'DIFFER'} ({bounds})"]


def compare(
    a: str | os.PathLike | Store,
    b: str | os.PathLike | Store,
    *,
    by: str = "identity",
    arrays: Iterable[str] | None = None,
    tolerance: Tolerance | None = None,
    within_s: float | None = None,
    worst: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Compares two stores row by row; the first is the one that lengths are relative to.

    by: "identity" (video name, clip id, draw, k) or "time": the row of the same video (of draw 0) whose centre is
    nearest, each the other's nearest and at most `within_s` seconds away (None: half the usual step of b's rows);
    rows of a video without times are matched in their order.
    arrays: those to compare; None: all that both have. tolerance: None: by the looser precision of the two recipes.
    worst: how many rows are named an array. progress: called as progress(pairs done, pairs in all).
    Raises UserError (an array that is not in both), DamagedStore.
    """
    a, b = (store if isinstance(store, Store) else open_store(store) for store in (a, b))
    rows_a, rows_b = matched_rows(a, b, by, within_s)
    ok_a, ok_b = (store.status()[rows] == OK for store, rows in ((a, rows_a), (b, rows_b)))
    both = ok_a & ok_b
    wanted, not_compared = _arrays(a, b, arrays, by)
    tolerance = tolerance or tolerance_of(a.manifest.recipe, b.manifest.recipe)
    reports, done, total = {}, 0, int(both.sum()) * len(wanted)
    for name in wanted:

        def advance(count: int, before: int = done) -> None:
            if progress:
                progress(before + count, total)

        reports[name] = _compare_array(a, b, name, rows_a[both], rows_b[both], tolerance, worst, advance)
        done += int(both.sum())
    lacking = {side: _lacking(store, rows) for side, store, rows in (("A", a, rows_a), ("B", b, rows_b))}
    return Comparison(
        a=str(a.path),
        b=str(b.path),
        by=by,
        tolerance=tolerance,
        matched=len(rows_a),
        compared=int(both.sum()),
        not_ok_a=int((~ok_a).sum()),
        not_ok_b=int((~ok_b).sum()),
        only_a=len(lacking["A"]),
        only_b=len(lacking["B"]),
        examples={
            side: tuple(_row_name(store, int(row)) for row in lacking[side][:5]) for side, store in (("A", a), ("B", b))
        },
        arrays=reports,
        not_compared=not_compared,
        recipe_differences=tuple(recipe_difference(a.manifest.recipe, b.manifest.recipe, "A has", "B has")),
        notes=tuple(_notes(a, b)),
    )


def tolerance_of(*recipes: Mapping[str, Any]) -> Tolerance:
    """The loosest tolerance of the precisions that recipes name; float32's where they name none."""
    found = [TOLERANCES.get(str(recipe.get("precision")), TOLERANCES["fp32"]) for recipe in recipes]
    return Tolerance(min(t.cosine for t in found), max(t.length for t in found))


def agreement(spec: ArraySpec, one: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(cosine, length ratio other / one) of each pair of rows, float64 (N,).

    one, other: (N, *row_shape). Integers: 1 and 1 where the whole rows are equal, 0 and 0 where not. Rows of zeros
    only: cosine 1 and ratio 1 if both are, else 0 and 0 or infinity.
    """
    one, other = one.reshape(len(one), -1), other.reshape(len(other), -1)
    if np.dtype(spec.dtype).kind != "f":
        equal = (one == other).all(axis=1).astype(np.float64)
        return equal, equal
    one, other = one.astype(np.float64), other.astype(np.float64)
    length, other_length = (np.sqrt(np.einsum("ij,ij->i", x, x)) for x in (one, other))
    with np.errstate(divide="ignore", invalid="ignore"):
        cosine = np.einsum("ij,ij->i", one, other) / (length * other_length)
        ratio = other_length / length
    both_zero = (length == 0) & (other_length == 0)
    cosine = np.where(both_zero, 1.0, np.where((length == 0) | (other_length == 0), 0.0, cosine))
    return np.minimum(cosine, 1.0), np.where(both_zero, 1.0, ratio)


def within(cosine: np.ndarray, ratio: np.ndarray, tolerance: Tolerance) -> np.ndarray:
    """(N,) bool: the pairs that are within the tolerance."""
    return (cosine >= tolerance.cosine) & (np.abs(ratio - 1) <= tolerance.length)


# ------------------------------------------------------------------------------------------------ matching


def matched_rows(a: Store, b: Store, by: str, within_s: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(rows of a, rows of b), int64 (M,) each, pair by pair, ascending in a."""
    if by == "identity":
        rows_a, rows_b = (np.flatnonzero(store.visible) for store in (a, b))
        numbers = numbers_in(a, b.clips["id"], b.videos["name"])
        found = match_rows(_some(a, rows_a), in_numbering(_some(b, rows_b), *numbers))
        there = found >= 0
        order = np.argsort(found[there], kind="stable")
        return rows_a[found[there][order]], rows_b[there][order]
    if by != "time":
        raise UserError(f'rows are matched by "identity" or by "time", not by {by!r}')
    return _by_time(a, b, within_s)


def _some(store: Store, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: store.rows[name][rows] for name in ("video", "clip", "draw", "k")}


def _by_time(a: Store, b: Store, within_s: float | None) -> tuple[np.ndarray, np.ndarray]:
    found_a, found_b = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    theirs = {str(name): i for i, name in enumerate(b.videos["name"])}
    rows_of = [_rows_of_videos(store) for store in (a, b)]
    for video, name in enumerate(a.videos["name"]):
        if str(name) not in theirs:
            continue
        rows, others = rows_of[0](video), rows_of[1](theirs[str(name)])
        if not len(rows) or not len(others):
            continue
        time, other_time = _centre(a, rows), _centre(b, others)
        if np.isnan(time).any() or np.isnan(other_time).any():
            n = min(len(rows), len(others))
            rows, others = (r[np.argsort(s.rows["k"][r], kind="stable")][:n] for s, r in ((a, rows), (b, others)))
        else:
            i, j = _mutual_nearest(time, other_time, within_s)
            rows, others = rows[i], others[j]
        found_a.append(rows)
        found_b.append(others)
    rows, others = np.concatenate(found_a), np.concatenate(found_b)
    order = np.argsort(rows, kind="stable")
    return rows[order], others[order]


def _rows_of_videos(store: Store) -> Callable[[int], np.ndarray]:
    """video index -> its visible rows of draw 0."""
    rows = np.flatnonzero(store.visible)
    rows = rows[store.rows["draw"][rows] == 0]
    video = store.rows["video"][rows]
    order = np.argsort(video, kind="stable")
    first = np.searchsorted(video[order], np.arange(len(store.videos["name"]) + 1))
    return lambda index: rows[order[first[index] : first[index + 1]]]


def _centre(store: Store, rows: np.ndarray) -> np.ndarray:
    return (store.rows["start_s"][rows] + store.rows["stop_s"][rows]) / 2


def _mutual_nearest(time: np.ndarray, other: np.ndarray, within_s: float | None) -> tuple[np.ndarray, np.ndarray]:
    if within_s is None:
        steps = np.diff(np.sort(other))
        within_s = float(np.median(steps)) / 2 if len(steps) else np.inf
    there, back = _nearest(time, other), _nearest(other, time)
    i = np.arange(len(time))
    good = (back[there] == i) & (np.abs(time - other[there]) <= within_s + 1e-9)
    return i[good], there[good]


def _nearest(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """For each wanted time the index of the nearest of `among`; of two equally near ones the earlier."""
    order = np.argsort(among, kind="stable")
    values = among[order]
    right = np.clip(np.searchsorted(values, wanted), 1, max(len(values) - 1, 1))
    left = right - 1
    right = np.minimum(right, len(values) - 1)
    return order[np.where(wanted - values[left] <= values[right] - wanted, left, right)]


# ----------------------------------------------------------------------------------------------- comparing


def _arrays(a: Store, b: Store, asked: Iterable[str] | None, by: str) -> tuple[list[str], dict[str, str]]:
    mine, theirs = a.manifest.arrays, b.manifest.arrays
    wanted, why_not = [], {}
    for name in [*mine, *(n for n in theirs if n not in mine)] if asked is None else list(asked):
        if name not in mine or name not in theirs:
            why_not[name] = f"it is not in {'A' if name not in mine else 'B'}"
        elif mine[name].row_shape != theirs[name].row_shape:
            why_not[name] = f"its rows are {mine[name].row_shape} in A and {theirs[name].row_shape} in B"
        elif {np.dtype(s[name].dtype).kind for s in (mine, theirs)} not in ({"f"}, {"i"}, {"u"}):
            why_not[name] = f"it is {mine[name].dtype} in A and {theirs[name].dtype} in B"
        elif name == PADDED and by == "time":
            why_not[name] = "rows that were cut differently are padded differently"
        else:
            wanted.append(name)
    if asked is not None and why_not:
        name, why = next(iter(why_not.items()))
        raise UserError(f"{name} of {a.path} (A) and {b.path} (B) cannot be compared: {why}")
    return wanted, why_not


def _compare_array(
    a: Store,
    b: Store,
    name: str,
    rows_a: np.ndarray,
    rows_b: np.ndarray,
    tolerance: Tolerance,
    worst: int,
    advance: Callable[[int], None],
) -> ArrayReport:
    spec, n = a.manifest.arrays[name], len(rows_a)
    cosine, ratio = np.empty(n), np.empty(n)
    for batch in batches(n, math.prod(spec.row_shape) * 8):
        one, other = a.read(name, rows_a[batch]), b.read(name, rows_b[batch])
        cosine[batch], ratio[batch] = agreement(spec, one, other)
        advance(batch.stop)
    good = within(cosine, ratio, tolerance)
    apart = np.maximum(1 - cosine, np.abs(ratio - 1) * (1 - tolerance.cosine) / (tolerance.length or 1.0))
    named = np.argsort(-apart, kind="stable")[:worst]
    floats = np.dtype(spec.dtype).kind == "f"
    return ArrayReport(
        rows=n,
        beyond=int((~good).sum()),
        cosine=_quantiles(cosine) if floats else {},
        length_ratio=_quantiles(ratio) if floats else {},
        worst=tuple(_pair(a, rows_a[i], rows_b[i], cosine[i], ratio[i], floats) for i in named),
    )


def batches(n: int, row_bytes: int) -> Iterable[slice]:
    """Runs of rows that take at most BATCH_BYTES (one row at least)."""
    step = max(1, BATCH_BYTES // max(1, row_bytes))
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _quantiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    found = np.quantile(values, QUANTILES)
    names = ["min", *(f"{100 * q:g}%" for q in QUANTILES[1:-1]), "max"]
    return dict(zip(names, found.tolist(), strict=True))


def _pair(a: Store, row_a: int, row_b: int, cosine: float, ratio: float, floats: bool) -> dict[str, Any]:
    facts = {**identity(a, int(row_a)), "row_a": int(row_a), "row_b": int(row_b)}
    values = {"cosine": float(cosine), "length_ratio": float(ratio)} if floats else {"equal": bool(cosine == 1)}
    return facts | values


def identity(store: Store, row: int) -> dict[str, Any]:
    """What a row is: {"video", "clip", "draw", "k"}; clip "" where it has none."""
    clip = int(store.rows["clip"][row])
    return {
        "video": str(store.videos["name"][store.rows["video"][row]]),
        "clip": str(store.clips["id"][clip]) if clip >= 0 else "",
        "draw": int(store.rows["draw"][row]),
        "k": int(store.rows["k"][row]),
    }


def _row_name(store: Store, row: int) -> str:
    facts = identity(store, row)
    clip = f" clip {facts['clip']!r}" if facts["clip"] else ""
    return f"{facts['video']!r}{clip} draw {facts['draw']} k {facts['k']}"


def _lacking(store: Store, matched: np.ndarray) -> np.ndarray:
    """Visible rows that the other store does not have."""
    left = store.visible.copy()
    left[matched] = False
    return np.flatnonzero(left)


def _notes(a: Store, b: Store) -> Iterable[str]:
    for side, store in (("A", a), ("B", b)):
        recipe = store.manifest.recipe
        if "imported" in recipe:
            yield f"{side} was imported from {recipe['imported'].get('from')}: its recipe is declared, not verified"
        if "derived" in recipe:
            yield f"{side} was derived from another store: {recipe['derived'].get('change')}"
        if not store.sealed:
            yield f"{side} is not sealed: it may change"


def _short(value: Any) -> str:
    return f"{value:.6f}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
