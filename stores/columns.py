"""Table columns as bytes: what the files of a one-dimensional array hold, whoever writes them and in whatever order.

Columns only ever grow: chunks first, then the `zarr.json` with the new length, so that any reader at any moment
sees the old column or the new one.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .limits import COLUMN_CHUNK_BYTES, NotBelievable, check_column, zstd_content_size
from .manifest import DamagedStore

_BATCH = 256
"""Chunks that are asked for at once."""

Fetch = Callable[[Sequence[str]], Sequence[bytes | None]]
"""Names of chunk files of a column -> their content, None where there is no such file."""


def decode_column(metadata: Mapping[str, Any], fetch: Fetch, where: str, may_lack_chunks: bool = False) -> np.ndarray:
    """(n, ...) of a column, strings as objects. metadata: its zarr.json. where: its folder, for messages.

    Raises DamagedStore for a chunk that is missing (unless `may_lack_chunks`: then it is zero) or damaged, and
    NotBelievable for one that would take more memory than any column of ours.
    """
    try:
        check_column(metadata)
        shape, (rows, *rest) = metadata["shape"], metadata["chunk_grid"]["configuration"]["chunk_shape"]
    except NotBelievable as error:
        raise NotBelievable(f"{where}: {error.message}") from None
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        raise DamagedStore(f"{where} is damaged: its zarr.json is not one of a column ({error!r})") from None
    names = [f"c.{i}{'.0' * len(rest)}" for i in range(-(-shape[0] // rows))]
    dtype = np.dtype(object if metadata["data_type"] == "string" else metadata["data_type"])
    parts = []
    for first in range(0, len(names), _BATCH):
        batch = names[first : first + _BATCH]
        for name, data in zip(batch, fetch(batch), strict=True):
            if data is None and not may_lack_chunks:
                raise DamagedStore(f"{where}/{name} is missing: the copy of this store is not whole")
            try:
                chunk = np.zeros((rows, *rest), dtype) if data is None else _decode_chunk(metadata, data)
                parts.append(chunk.reshape(rows, *rest))
            except NotBelievable as error:
                raise NotBelievable(f"{where}/{name}: {error.message}") from None
            except (ValueError, RuntimeError, struct.error) as error:
                raise DamagedStore(f"{where} is damaged: {name}: {error}") from error
    return np.concatenate(parts)[: shape[0]] if parts else np.empty((0, *rest), dtype)


def _decode_chunk(metadata: Mapping[str, Any], data: bytes) -> np.ndarray:
    """The values of one chunk file, flat. Raises ValueError or RuntimeError if it is not what was written."""
    import google_crc32c
    from numcodecs.vlen import VLenUTF8
    from numcodecs.zstd import decompress

    first, *codecs = metadata["codecs"]
    values = int(np.prod(metadata["chunk_grid"]["configuration"]["chunk_shape"]))
    is_text = first["name"] == "vlen-utf8"
    dtype = np.dtype("u1" if is_text else metadata["data_type"])
    for codec in reversed(codecs):
        if codec["name"] == "crc32c":
            if len(data) < 4 or google_crc32c.value(data[:-4]) != int.from_bytes(data[-4:], "little"):
                raise ValueError("its checksum does not match")
            data = data[:-4]
        else:
            size = zstd_content_size(data)
            if size > (COLUMN_CHUNK_BYTES if is_text else values * dtype.itemsize):
                raise NotBelievable(f"it unpacks to {size:,} bytes. Get the store from its source again")
            data = decompress(data)
    if not is_text:
        order = first.get("configuration", {}).get("endian", "little")
        stored = np.frombuffer(data, dtype.newbyteorder("<" if order == "little" else ">"))
        if len(stored) != values:
            raise ValueError(f"holds {len(stored)} values where {values} belong")
        return stored.astype(dtype)
    if struct.unpack("<I", data[:4]) != (values,):
        raise ValueError(f"does not hold {values} strings")
    return VLenUTF8().decode(data)


def encode_column(metadata: Mapping[str, Any], values: np.ndarray, first_chunk: int = 0) -> dict[str, bytes]:
    """{chunk file: bytes} of a column, exactly as zarr-python writes them.

    metadata: the column's zarr.json. values: its rows from chunk `first_chunk` on.
    """
    import zarr
    from zarr.core.buffer import cpu
    from zarr.storage import MemoryStore

    from .manifest import readable_json

    if not len(values):
        return {}
    body = readable_json({**metadata, "shape": [len(values), *metadata["shape"][1:]]})
    held: dict[str, Any] = {"zarr.json": cpu.Buffer.from_bytes(body)}
    array = zarr.open_array(MemoryStore(held), mode="r+").with_config({"write_empty_chunks": True})
    array[...] = values
    tail = ".0" * (len(metadata["shape"]) - 1)
    length = chunk_rows(metadata)
    names = {i: f"c.{i}{tail}" for i in range(-(-len(values) // length))}
    return {f"c.{first_chunk + i}{tail}": held[name].to_bytes() for i, name in names.items()}


def chunk_rows(metadata: Mapping[str, Any]) -> int:
    """Rows of a chunk of an array."""
    return int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])


def with_length(metadata: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The same zarr.json of an array of another length."""
    return {**metadata, "shape": [rows, *metadata["shape"][1:]]}


def no_values(like: np.ndarray, rows: int) -> np.ndarray:
    """What a column holds of rows that nobody said anything about: '' for strings, -1, NaN, False, 0 for unsigned."""
    blank = {"O": "", "i": -1, "u": 0, "f": np.nan, "b": False}[like.dtype.kind]
    return np.full((rows, *like.shape[1:]), blank, like.dtype)
