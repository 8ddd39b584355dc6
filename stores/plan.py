"""How rows become units: pure functions, no files.

A unit is a run of consecutive rows that is planned, computed, written, checked and resumed as one; it is
exactly one shard of every array. Everything else (who computes what, what is left to do, how large it will
be) is arithmetic on the list of units.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from errors import UserError

from . import limits
from .manifest import PADDED, ArraySpec, Layout

CHUNK_BYTES = 64 * 1024
"""A chunk, the least that a read can fetch, holds one row or the fewest rows that reach this."""

UNIT_BYTES = 128 * 1024 * 1024
"""A unit of the largest array holds at most this (but one row at least): what a worker keeps in memory."""


@dataclass(frozen=True)
class Unit:
    """Rows [start, stop) of a store: shard number `index` of every array."""

    index: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __index__(self) -> int:
        return self.index


def plan_layout(
    arrays: Mapping[str, ArraySpec], spec_unit_rows: int, *, batch_size: int, unit_rows: int | None = None
) -> Layout:
    """The layout of a new store.

    arrays: {name: ArraySpec}; the array `n_padded`, which every store has, is added if it is not there.
    spec_unit_rows: the network's constant (64 for clip networks, 256 detectors, 1024 frame networks).
    unit_rows: `--unit-rows`, used as it is.
    """
    if unit_rows is not None and unit_rows < 1:
        raise UserError(f"--unit-rows must be 1 or more, got {unit_rows}")
    arrays = {PADDED: ArraySpec((), "int16"), **arrays}
    largest = max(spec.row_bytes for spec in arrays.values())
    if (unit_rows or 1) * largest > limits.UNIT_BYTES:
        most = limits.UNIT_BYTES // largest
        raise UserError(
            f"--unit-rows {unit_rows or 1}: units of {(unit_rows or 1) * largest:,} bytes of one array, and whoever"
            f" checks one holds it in memory: take at most {most}"
            if most
            else f"a row of {largest:,} bytes is too long"
        )
    rows = unit_rows or max(1, min(UNIT_BYTES // largest, spec_unit_rows))
    return Layout(rows, batch_size, {name: _chunk_rows(spec, rows) for name, spec in arrays.items()})


def check_size(n_rows: int, unit_rows: int, where: object) -> None:
    """Raises UserError for more rows or units than a reader of stores believes; it says which `--unit-rows` would do.

    n_rows: of a store, with the padding between its extents. where: whose they are, for the message.
    """
    count = -(-n_rows // unit_rows)
    if n_rows > limits.MOST_ROWS or (count * unit_rows > limits.MOST_ROWS and count <= limits.MOST_UNITS):
        raise UserError(
            f"{where}: {n_rows:,} rows in whole units are more than the {limits.MOST_ROWS:,} that a store may have:"
            " take a longer step (--hop), fewer draws, or part of the videos"
        )
    if count > limits.MOST_UNITS:
        raise UserError(
            f"{where}: {n_rows:,} rows in units of {unit_rows:,} are more than the {limits.MOST_UNITS:,} units that a"
            f" store may have; a new store holds them with --unit-rows {-(-n_rows // limits.MOST_UNITS)} or more"
        )


def _chunk_rows(spec: ArraySpec, unit_rows: int) -> int:
    """The fewest rows that reach CHUNK_BYTES and divide a unit (a shard holds whole chunks only).

    One of pictures: in a chunk of several nothing would tell an empty row from a black one.
    """
    least = 1 if spec.is_picture else min(-(-CHUNK_BYTES // spec.row_bytes), unit_rows)
    return next(rows for rows in range(least, unit_rows + 1) if unit_rows % rows == 0)


def units(extent: tuple[int, int], unit_rows: int) -> list[Unit]:
    """The units of one extent (first row, count): whole ones, and a shorter last one.

    An extent begins at a unit's first row; the rows that the last unit lacks are padding.
    """
    first, count = extent
    if first % unit_rows:
        raise ValueError(f"an extent begins at a multiple of {unit_rows} rows, got {first}")
    end = first + count
    return [Unit(row // unit_rows, row, min(row + unit_rows, end)) for row in range(first, end, unit_rows)]


def shard_units(units: Sequence[Unit], i: int, n: int) -> list[Unit]:
    """The i-th (from 0) of n contiguous blocks, equal to within one unit: neighbours share videos."""
    if n < 1 or not 0 <= i < n:
        raise UserError(f"--shard i/n needs 0 <= i < n, got {i}/{n}")
    return list(units[len(units) * i // n : len(units) * (i + 1) // n])


def store_bytes(arrays: Mapping[str, ArraySpec], n_rows: int) -> dict[str, int]:
    """{array: bytes before compression}; features after a ReLU compress to roughly half of it."""
    return {name: spec.row_bytes * n_rows for name, spec in arrays.items()}
