"""Rows of arrays on disk. Knows no network, imports no torch."""

import importlib

_EXPORTS = {
    "manifest": (
        "ABSENT",
        "FAILED",
        "FORMAT",
        "OK",
        "PENDING",
        "ArraySpec",
        "DamagedStore",
        "Layout",
        "Manifest",
        "NotAStore",
        "recipe_difference",
        "recipe_hash",
        "write_durable",
    ),
    "plan": ("Unit", "check_size", "plan_layout", "shard_units", "store_bytes", "units"),
    "zarr_store": ("DamagedRow", "DamagedShard", "StoreSealed"),
    "reader": ("STATUS_NAMES", "RowNotReady", "Store", "create_store", "open_store"),
    "extensions": ("finish_growth",),
    "grow": (
        "add_arrays",
        "begin_arrays",
        "extend",
        "match_rows",
        "numbers_in",
        "in_numbering",
        "plan_growth",
        "replace_columns",
    ),
    "repair": ("Repaired", "repair_store", "reset_rows", "seal_repaired"),
    "garbage": ("Garbage", "collect_garbage"),
    "maintain": ("Finding", "verify"),
    "summary": ("info",),
    "lease": ("Leases",),
    "copy": ("copy_store",),
    "hdf5_pack": ("pack", "unpack"),
    "serve": ("list_stores", "serve"),
    "clip_dataset": ("ClipDataset",),
    "object_windows": ("ObjectWindows",),
    "version": ("StoreChanged",),
    "sequences": ("SequenceDataset", "pad_sequences", "unpack_text"),
    "read_ahead": ("prefetch",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_MODULES = (*_EXPORTS, "catalogue", "commit", "compare", "limits", "merge", "relabel", "seal")

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
