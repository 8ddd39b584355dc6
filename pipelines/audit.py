"""Are these the features they claim to be: rows computed once more and compared, and rows that look wrong."""

from __future__ import annotations

import hashlib
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from errors import UserError, count_of
from extract.sampling import GRID_AXES
from pipelines.inspection import Seen, compare, dataset_of, look, network_of, reading_of
from pipelines.reading import captions_of
from stores import Store, open_store

__all__ = ["Suspect", "audit"]

SCAN_BYTES = 1 << 30  # of all arrays together: larger stores are looked at in evenly spaced pieces
PIECE_ROWS = 256
FAR = 10.0  # spreads (median absolute deviations) of the logarithm of the norm that an extreme row lies off the median
LEAST_FACTOR = 4.0  # and at least so many times larger or smaller than the median
DARK = 16  # grey levels: a frame with nothing brighter (of studio-range black, too) is black
SAME_FRAME = 0.5  # mean difference in grey levels of a frame that equals the one before
SILENT = 1e-4  # of full scale
LISTED = 50  # suspects of one kind that the report lists; all are counted


@dataclass(frozen=True)
class Suspect:
    """A row to look at. kind: differs | constant | duplicate | extreme_norm | black | frozen | silent | unreadable."""

    kind: str
    row: int
    video: str
    time_s: tuple[float, float]
    what: str
    look: str  # the command that shows it


def audit(
    path: str | Path,
    sample: int = 50,
    seed: int = 0,
    *,
    dataset: str | None = None,
    data: str | Path | None = None,
    videos: str | Path | None = None,
    weights: str | None = None,
    scan_bytes: int = SCAN_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Compute `sample` random ok rows again and compare them; look at all ok rows for values that cannot be right.

    dataset, data, videos, weights: as for `inspect_clip`. scan_bytes: of larger stores only so much is looked at.
    progress: called as progress(done, total) over the sample.

    Returns plain data: {"store", "origin" (a line on stores that were imported), "rows" ok, "scanned", "compared",
    "unreadable", "largest_difference" (in standard deviations of a row; None where nothing was compared), "counts":
    {kind: rows}, "suspects": [`Suspect` as dict], "differs": bool}. Only a row that computes to something else than
    what is stored makes it differ: the other kinds may be true of the video. Rows of a store that was imported are
    scanned and not compared. Raises UserError: no ok row, a dataset or weights that cannot be found, no row of the
    sample that can be read; DamagedStore if a row's bytes are not those that were written.
    """
    store = open_store(path)
    ok = store.ok
    if not len(ok):
        raise UserError(f"{store.path} has no row that is ok: there is nothing to audit")
    if sample < 0:
        raise UserError(f"--sample must be 0 or more, got {sample}")
    imported = "imported" in store.manifest.recipe
    suspects, scanned = scan(store, ok, scan_bytes)
    compared, unreadable, largest = 0, 0, None
    chosen = np.sort(np.random.default_rng(seed).choice(ok, min(sample, len(ok)), replace=False))
    if len(chosen) and not imported:
        source, network = dataset_of(store, dataset, data, videos), network_of(store, weights)
        captions = captions_of(source) if reading_of(store).reads == "text" else None
        for done, row in enumerate(chosen.tolist(), 1):
            try:
                seen = look(store, source, row, captions)
                facts = compare(store, row, seen, network)
            except UserError as error:
                unreadable += 1
                suspects.append(suspect(store, row, "unreadable", error.message))
                continue
            finally:
                if progress is not None:
                    progress(done, len(chosen))
            compared += 1
            difference = facts["largest_difference"]
            largest = difference if largest is None or not difference <= largest else largest
            if facts["differs"]:
                worst = max(facts["differences_in_std"].items(), key=lambda item: (np.isnan(item[1]), item[1]))
                what = f"{worst[0]} computes to values {worst[1]:.3g} standard deviations off"
                suspects.append(suspect(store, row, "differs", what))
            suspects += [suspect(store, row, kind, what) for kind, what in odd_input(seen)]
        if not compared:
            raise UserError(
                f"{store.path}: none of {len(chosen)} rows can be computed again, so nothing was compared"
                f" (first: {next(one.what for one in suspects if one.kind == 'unreadable')})"
            )
    counts = Counter(one.kind for one in suspects)
    listed: Counter = Counter()
    shown = [one for one in suspects if (listed.update([one.kind]), listed[one.kind] <= LISTED)[1]]
    return {
        "store": str(store.path),
        "origin": "imported: its recipe is declared, unverified, and rows cannot be computed again"
        if imported
        else None,
        "rows": len(ok),
        "scanned": scanned,
        "compared": compared,
        "unreadable": unreadable,
        "largest_difference": largest,
        "counts": dict(counts),
        "suspects": [asdict(one) for one in shown],
        "differs": counts["differs"] > 0,
    }


def suspect(store: Store, row: int, kind: str, what: str) -> Suspect:
    """The row with its place and the command that shows it."""
    rows = store.rows
    video = str(store.videos["name"][rows["video"][row]])
    start, stop = float(rows["start_s"][row]), float(rows["stop_s"][row])
    command = f"clipbank store inspect {shlex.quote(str(store.path))} "
    axis = store.manifest.dataset.get("axis")
    if axis in GRID_AXES or rows["clip"][row] < 0:
        command += shlex.quote(f"{video}@{start:g}")
    else:
        number = int(rows["k" if axis == "text" else "draw"][row])
        clip = shlex.quote(str(store.clips["id"][rows["clip"][row]]))
        command += clip + (f" --draw {number}" if number else "")
    return Suspect(kind, row, video, (start, stop), what, command)


# ---- what is stored ----------------------------------------------------------------------------------------------


def scan(store: Store, ok: np.ndarray, scan_bytes: int) -> tuple[list[Suspect], int]:
    """(suspects, rows looked at): rows of float arrays that are constant, duplicate or far off the others.

    A detector's row without a box, and captions or windows that are there twice, are as they should be.
    """
    arrays = [n for n, s in store.manifest.arrays.items() if np.dtype(s.dtype).kind == "f" and np.prod(s.row_shape) > 1]
    arrays = [name for name in arrays if name != "boxes"]
    row_bytes = sum(store.manifest.arrays[name].row_bytes for name in arrays) or 1
    pieces = [ok[at : at + PIECE_ROWS] for at in range(0, len(ok), PIECE_ROWS)]
    most = max(1, scan_bytes // (row_bytes * PIECE_ROWS))
    if len(pieces) > most:
        pieces = [pieces[i] for i in np.linspace(0, len(pieces) - 1, most).astype(int).tolist()]
    rows = np.concatenate(pieces)
    empty = _rows_without_items(store, rows)
    found = []
    for name in arrays:
        parts = [_measures(store.read(name, piece)) for piece in pieces]
        constant, norm, digest = (np.concatenate(part) for part in zip(*parts, strict=True))
        found += [
            suspect(store, int(row), "constant", f"all values of {name} are {'0' if zero else 'the same'}")
            for row, zero in zip(rows[constant & ~empty], norm[constant & ~empty] == 0, strict=True)
        ]
        left = ~constant & ~empty
        if store.manifest.dataset.get("axis") != "text":
            found += _duplicates(store, name, rows[left], digest[left])
        found += _far_off(store, name, rows[left], norm[left])
    return found, len(rows)


def _measures(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of rows (n, ...): is it constant (bool), its norm (float64), a hash of its bytes (uint64)."""
    flat = values.reshape(len(values), -1)
    hashes = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in np.ascontiguousarray(flat)]
    norm = np.sqrt(np.einsum("ij,ij->i", flat, flat, dtype=np.float64, casting="unsafe"))
    return (flat == flat[:, :1]).all(axis=1), norm, np.frombuffer(b"".join(hashes), np.uint64)


def _rows_without_items(store: Store, rows: np.ndarray) -> np.ndarray:
    """(n,) bool: rows whose count (n_boxes, n_tokens, ...) is 0."""
    empty = np.zeros(len(rows), bool)
    for name, spec in store.manifest.arrays.items():
        if name.startswith("n_") and name != "n_padded" and not spec.row_shape:
            empty |= store.read(name, rows) == 0
    return empty


def _duplicates(store: Store, name: str, rows: np.ndarray, digest: np.ndarray) -> list[Suspect]:
    """Rows whose bytes are those of an earlier row of another window."""
    if not len(rows):
        return []
    order = np.argsort(digest, kind="stable")
    rows, digest = rows[order], digest[order]
    first = np.flatnonzero(np.concatenate([[True], digest[1:] != digest[:-1]]))
    earlier = np.repeat(rows[first], np.diff(np.append(first, len(rows))))
    same = [store.rows[column][rows] == store.rows[column][earlier] for column in ("video", "start_s", "stop_s")]
    twice = (rows != earlier) & ~np.logical_and.reduce(same)
    return [
        suspect(store, int(row), "duplicate", f"{name} is byte for byte that of row {other}")
        for row, other in sorted(zip(rows[twice].tolist(), earlier[twice].tolist(), strict=True))
    ]


def _far_off(store: Store, name: str, rows: np.ndarray, norm: np.ndarray) -> list[Suspect]:
    """Rows whose norm lies far from the others', above or below."""
    if len(rows) < 8:
        return []
    with np.errstate(divide="ignore"):
        logarithm = np.log(norm)
    median = np.median(logarithm)
    spread = np.median(np.abs(logarithm - median))
    far = ~(np.abs(logarithm - median) <= max(FAR * spread, np.log(LEAST_FACTOR)))
    return [
        suspect(store, int(row), "extreme_norm", f"{name} has norm {value:.3g}, the median is {np.exp(median):.3g}")
        for row, value in zip(rows[far], norm[far], strict=True)
    ]


# ---- what the network saw ----------------------------------------------------------------------------------------


def odd_input(seen: Seen) -> list[tuple[str, str]]:
    """(kind, what) of an input that shows nothing: black, frozen, silent. Flow and captions are not judged."""
    value = seen.read.value
    if seen.reading.reads == "waveform":
        return [("silent", "no sample of its sound is louder than 0.0001")] if np.abs(value).max() < SILENT else []
    if isinstance(value, str) or value.shape[-1] != 3:
        return []
    frames = value if seen.reading.clips else value[None]
    black = int((frames.reshape(len(frames), -1).max(axis=1) <= DARK).sum())
    found = [("black", f"{black} of {count_of(len(frames), 'frame')} black")] if 2 * black >= len(frames) else []
    shown = len(seen.read.indices) == len(frames)
    other = np.diff(seen.read.indices) != 0 if shown else np.ones(len(frames) - 1, bool)  # else one frame, shown again
    change = np.abs(np.diff(frames.astype(np.int16), axis=0)).reshape(len(frames) - 1, -1) if len(frames) > 1 else None
    if change is not None and other.any():
        still = int((change[other].mean(axis=1) < SAME_FRAME).sum())
        if 2 * still >= other.sum():
            found.append(("frozen", f"{still} of {count_of(other.sum(), 'frame')} like the one before"))
    return found
