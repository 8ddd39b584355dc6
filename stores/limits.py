"""What a store from somewhere else may claim: checked before memory is taken or a path is made of it.

A manifest and the metadata that it vouches for may say anything. Beyond these limits nothing is believed.
"""

import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from .manifest import ArraySpec, DamagedStore, Manifest

MOST_ROWS = 2**30
"""Rows of a store, a hundred times a lab's archive: their status takes a byte each."""

MOST_UNITS = 2**22
MOST_EXTENTS = 2**16

CHUNK_BYTES = 2**31
"""Of a chunk of an array, and so of a row."""

UNIT_BYTES = 2**32
"""Of a unit of an array, which whoever checks or repairs it holds in memory."""

MOST_SIDES = 30

COLUMN_CHUNK_BYTES = 2**30
"""Of a chunk of a column, unpacked; ours have 65,536 rows, or as many as the store where they say its status."""

MANIFEST_BYTES = 2**28


class NotBelievable(DamagedStore):
    """A store says something of itself that cannot be so; nothing was read or allocated for it."""


def is_safe_part(name: Any) -> bool:
    """Whether a string may be one part of a path inside a store: no way up, no hidden or unprintable names."""
    return isinstance(name, str) and 0 < len(name) <= 255 and name[0] != "." and not set(name) & _UNSAFE


_UNSAFE = {"/", "\\", "\x7f", *map(chr, range(32))}


def is_safe_name(name: Any) -> bool:
    """Whether a string is a path that stays inside the store's folder."""
    if not isinstance(name, str):
        return False
    parts = name.split("/")
    return all(part not in ("", ".", "..") and not set(part) & _UNSAFE and len(part) <= 255 for part in parts)


def check_manifest(manifest: Manifest) -> None:
    """Raises NotBelievable: names that leave the store, more rows, units or bytes a row than any store has."""
    layout, unit = manifest.layout, manifest.layout.unit_rows
    _refuse(not _is_count(unit) or unit < 1, f"units of {unit!r} rows")
    for name, spec in manifest.arrays.items():
        chunk = layout.chunk_rows.get(name)
        _refuse(not is_safe_part(name), f"an array named {name!r}")
        _refuse(not _is_count(chunk) or chunk < 1 or unit % chunk != 0, f"chunks of {chunk!r} rows of {name}")
        _refuse(len(spec.row_shape) > MOST_SIDES, f"rows of {len(spec.row_shape):,} sides of {name}")
        _refuse(spec.row_bytes * chunk > CHUNK_BYTES, f"chunks of {spec.row_bytes * chunk:,} bytes of {name}")
        _refuse(spec.row_bytes * unit > UNIT_BYTES, f"units of {spec.row_bytes * unit:,} bytes of {name}")
    _refuse(len(manifest.extents) > MOST_EXTENTS, f"{len(manifest.extents):,} extents")
    end = 0
    for first, count in manifest.extents:
        wrong = not (_is_count(first) and _is_count(count)) or first % unit or first < end
        _refuse(wrong, f"rows [{first!r}, {first!r} + {count!r}) after row {end}")
        end = first + count
    _refuse(end > MOST_ROWS, f"{end:,} rows, more than the {MOST_ROWS:,} that a store may have")
    _refuse(end // unit > MOST_UNITS, f"{end // unit:,} units, more than the {MOST_UNITS:,} that a store may have")
    for table, rows in manifest.tables.items():
        _refuse(not is_safe_part(table) or not _is_count(rows), f"a table {table!r} of {rows!r} rows")
    wrong = next((name for name in manifest.hashes if not is_safe_name(name)), None)
    _refuse(wrong is not None, f"a file named {wrong!r}")
    if manifest.seal is not None:
        k = manifest.seal.get("k")
        _refuse(not _is_count(k) or k < 1, f"a seal number {k!r}")


def check_array(metadata: Mapping, spec: ArraySpec, unit_rows: int, chunk_rows: int, rows: int) -> None:
    """Raises NotBelievable if the zarr.json of a data array is not that of the manifest's array."""
    try:
        shape, shard = _sides(metadata["shape"]), _sides(metadata["chunk_grid"]["configuration"]["chunk_shape"])
        first, *more = metadata["codecs"]
        sharding = first.get("configuration", {}) if first["name"] == "sharding_indexed" else None
        inner = metadata["codecs"] if sharding is None else sharding["codecs"]
        chunk = shard if sharding is None else _sides(sharding["chunk_shape"])
        names = [codec["name"] for codec in inner]
        index = ["bytes"] if sharding is None else [codec["name"] for codec in sharding["index_codecs"]]
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise NotBelievable(f"its zarr.json is not one of an array ({error!r})") from None
    _refuse(metadata.get("data_type") != spec.dtype, f"dtype {metadata.get('data_type')!r} where it has {spec.dtype}")
    _refuse(shape[1:] != list(spec.row_shape) or shape[0] < rows or shape[0] > MOST_ROWS, f"the shape {shape}")
    _refuse(shard != [unit_rows, *spec.row_shape], f"shards of {shard}")
    _refuse(chunk != [chunk_rows if sharding is not None else unit_rows, *spec.row_shape], f"chunks of {chunk}")
    known = [["bytes", *tail] for tail in _TAILS]
    _refuse(names not in known or index not in known or (sharding is not None and more != []), f"codecs {names}")


def check_column(metadata: Mapping) -> None:
    """Raises NotBelievable if a column's zarr.json asks for more memory, or other codecs, than any column of ours."""
    shape, chunk = _sides(metadata["shape"]), _sides(metadata["chunk_grid"]["configuration"]["chunk_shape"])
    names = [codec["name"] for codec in metadata["codecs"]]
    kind = metadata["data_type"]
    _refuse(not shape or len(chunk) != len(shape) or chunk[1:] != shape[1:] or 0 in chunk, f"chunks {chunk} of {shape}")
    _refuse(names not in ([_FIRST.get(kind, "bytes"), *tail] for tail in _TAILS), f"codecs {names}")
    width = 8 if kind == "string" else np.dtype(kind).itemsize
    _refuse(kind != "string" and np.dtype(kind).kind not in "biuf", f"dtype {kind!r}")
    _refuse(math.prod(chunk) * width > COLUMN_CHUNK_BYTES, f"chunks of {math.prod(chunk):,} values")
    _refuse(shape[0] > MOST_ROWS, f"{shape[0]:,} rows")


_FIRST = {"string": "vlen-utf8"}
_TAILS = ([], ["crc32c"], ["zstd"], ["zstd", "crc32c"])


def zstd_content_size(data: bytes) -> int:
    """Bytes that a zstd frame says it holds. Raises ValueError if it is no frame, or does not say."""
    if len(data) < 6 or data[:4] != b"\x28\xb5\x2f\xfd":
        raise ValueError("not a zstd frame")
    descriptor = data[4]
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    width = (single, 2, 4, 8)[flag]
    if not width or len(data) < start + width:
        raise ValueError("a zstd frame that does not say how much it holds")
    (size,) = struct.unpack({1: "<B", 2: "<H", 4: "<I", 8: "<Q"}[width], data[start : start + width])
    return size + 256 if width == 2 else size


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _sides(shape: Any) -> list[int]:
    _refuse(not isinstance(shape, list) or not all(map(_is_count, shape)), f"the shape {shape!r}")
    return shape


def _refuse(wrong: bool, claim: str) -> None:
    if wrong:
        raise NotBelievable(f"it claims {claim[:300]}: no store of clipbank does. Get it from its source again")
