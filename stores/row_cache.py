"""Rows that are read over and over, from memory as far as a budget reaches."""

from collections.abc import Iterable

import numpy as np

from .reader import Store

_ROWS_AT_ONCE = 4096


class RowCache:
    """Reads rows of several stores; the smallest of their arrays are read once and kept.

    A vector or a box is far smaller than the chunk that a read of it fetches, so shuffled epochs would fetch and
    unpack each chunk many times over.

    arrays: (store, array, first) of what will be read; of rows (M, ...), only the first `first` of M are kept (None:
    all). most: bytes that may be kept. Safe to share between threads. Kept rows are not sent to other processes:
    those read what they need. Like the stores given, which stay the version that was opened, it follows nothing that
    happens to them later: for a new seal, open them again and make another.
    """

    def __init__(self, arrays: Iterable[tuple[Store, str, int | None]], most: int):
        wanted: dict[tuple[str, str], tuple] = {}
        for store, name, first in arrays:
            key, spec = (str(store.path), name), store.manifest.arrays[name]
            shape = [len(store), *spec.row_shape]
            if first is not None and len(shape) > 1:
                shape[1] = min(first, shape[1])
            if key not in wanted or wanted[key][1] < shape:
                wanted[key] = store, shape, np.dtype(spec.dtype)
        sizes = {key: int(np.prod(shape, dtype=np.int64)) * dtype.itemsize for key, (_, shape, dtype) in wanted.items()}
        self._kept: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}  # values, (N,) bool: rows that were ok
        for key in sorted(sizes, key=sizes.get):
            most -= sizes[key]
            if most < 0:
                break
            self._kept[key] = _read_all(wanted[key][0], key[1], *wanted[key][1:])

    def __getstate__(self) -> dict:
        return {"_kept": {}}

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        return sum(values.nbytes for values, _ in self._kept.values())

    def read(self, store: Store, name: str, rows: np.ndarray) -> np.ndarray:
        """(len(rows), ...) of rows that are ok; those that were not when the cache was filled are read anew."""
        values, held = self._kept.get((str(store.path), name), (None, None))
        return store.read(name, rows) if values is None or not held[rows].all() else values[rows]


def _read_all(store: Store, name: str, shape: list[int], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(an array whole, zeros in rows that are not ok; (N,) bool: rows that are)."""
    values, held, rows = np.zeros(shape, dtype), np.zeros(shape[0], bool), store.ok
    held[rows] = True
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        part = rows[start : start + _ROWS_AT_ONCE]
        read = store.read(name, part)
        values[part] = read[:, : shape[1]] if len(shape) > 1 else read
    return values, held
