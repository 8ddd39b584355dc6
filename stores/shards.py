"""Shards as bytes: what one file of an array holds, made and read in memory by tensorstore."""

import os
from typing import Any

import numpy as np

from errors import UserError

from .manifest import ArraySpec

_process: int | None = None


def tensorstore() -> Any:
    """The module, imported on use. Raises UserError in a process forked after an earlier use."""
    global _process
    if _process not in (None, os.getpid()):
        raise UserError(
            "this process was forked after its parent had read a store, and tensorstore's threads do not survive a "
            'fork: start workers by "spawn" or "forkserver" (DataLoader(..., multiprocessing_context="spawn"))'
        )
    import tensorstore

    _process = os.getpid()
    return tensorstore


def encode_shard(metadata: dict, values: np.ndarray, stored: np.ndarray) -> bytes | None:
    """One shard (or unsharded chunk) of an array, as its file holds it; None if no row is stored.

    metadata: the array's zarr.json. values: (unit_rows, ...). stored: (unit_rows,) bool; a chunk without any
    such row is left out of the shard. The same input gives the same bytes.
    """
    ts = tensorstore()
    chunk = metadata["codecs"][0].get("configuration", {}).get("chunk_shape", [len(values)])[0]
    kept = stored.reshape(-1, chunk).any(axis=1)
    edges = np.flatnonzero(np.diff(kept, prepend=False, append=False)) * chunk
    if not len(edges):
        return None
    array = _in_memory(metadata, len(values))
    with ts.Transaction() as transaction:
        part = array.with_transaction(transaction)
        writes = [part[start:stop].write(values[start:stop]) for start, stop in edges.reshape(-1, 2).tolist()]
        for write in writes:
            write.copy.result()
    return array.kvstore.read(chunk_key(0, values.ndim)).result().value


def decode_shard(metadata: dict, data: bytes, unit_rows: int) -> np.ndarray:
    """(unit_rows, ...) from the bytes of a shard file, fill values where no chunk is stored.

    Raises whatever tensorstore raises on a checksum that does not match.
    """
    array = _in_memory(metadata, unit_rows)
    array.kvstore.write(chunk_key(0, len(metadata["shape"])), data).result()
    return array.read(order="C").result()


def held_rows(metadata: dict, data: bytes, unit_rows: int) -> np.ndarray:
    """(unit_rows,) bool: rows whose chunk is in the shard, by its index of (offset, length) pairs at the end."""
    chunk = metadata["codecs"][0]["configuration"]["chunk_shape"][0]
    count = unit_rows // chunk
    offsets = np.frombuffer(data, "<u8", 2 * count, len(data) - 16 * count - 4)[::2]
    return np.repeat(offsets != np.iinfo(np.uint64).max, chunk)


def _in_memory(metadata: dict, rows: int) -> Any:
    ts = tensorstore()
    metadata = {**metadata, "shape": [rows, *metadata["shape"][1:]]}
    spec = {"driver": "zarr3", "kvstore": {"driver": "memory"}, "metadata": metadata}
    spec |= {"store_data_equal_to_fill_value": True}
    return ts.open(spec, create=True, context=ts.Context()).result()


def decode_chunks(metadata: dict, data: bytes, unit_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """((unit_rows, ...) values, (unit_rows,) bool: which rows could be read) of a shard file that may be damaged."""
    array = _in_memory(metadata, unit_rows)
    array.kvstore.write(chunk_key(0, len(metadata["shape"])), data).result()
    chunk = metadata["codecs"][0].get("configuration", {}).get("chunk_shape", [unit_rows])[0]
    values = np.empty(array.shape, array.dtype.numpy_dtype)
    readable = np.zeros(unit_rows, bool)
    for start in range(0, unit_rows, chunk):
        try:
            values[start : start + chunk] = array[start : start + chunk].read(order="C").result()
            readable[start : start + chunk] = True
        except ValueError:
            continue  # its rows stay unreadable
    return values, readable


def shard_key(unit: int, spec: ArraySpec) -> str:
    """File name of a unit's shard in its array's folder."""
    return chunk_key(unit, 1 + len(spec.row_shape))


def chunk_key(unit: int, dimensions: int) -> str:
    return ".".join(["c", str(unit), *["0"] * (dimensions - 1)])
