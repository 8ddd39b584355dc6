"""`text` arrays: a list of words with their places or times as one row of bytes, UTF-8 JSON padded with zeros."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

__all__ = ["TEXT_BYTES", "pack_items", "unpack_items"]

TEXT_BYTES = 8192  # of a `text` row, unless an option says otherwise


def pack_items(items: list[dict[str, Any]], limit: int = TEXT_BYTES) -> np.ndarray:
    """uint8 (limit,): compact JSON of as many of the first items as fit whole, then zeros. No items give "[]".

    Order the items by importance first (score, time): those at the end are dropped.

    Raises:
        ValueError: a limit below 2 bytes, or a value that JSON cannot hold (NaN, infinity).
    """
    if limit < 2:
        raise ValueError(f"a text row needs at least 2 bytes, got {limit}")
    parts: list[bytes] = []
    size = 2
    for item in items:
        part = json.dumps(item, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        size += len(part) + bool(parts)
        if size > limit:
            break
        parts.append(part)
    packed = b"[" + b",".join(parts) + b"]"
    row = np.zeros(limit, np.uint8)
    row[: len(packed)] = np.frombuffer(packed, np.uint8)
    return row


def unpack_items(row: np.ndarray) -> list[dict[str, Any]]:
    """The items of a `text` row; [] for a row that holds none (all zeros)."""
    packed = np.asarray(row, np.uint8).tobytes().rstrip(b"\0")
    return json.loads(packed) if packed else []
