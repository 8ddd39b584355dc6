"""Rows of arrays on disk. Knows no network, imports no torch (except `ClipDataset`, when it is asked for)."""

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
    "plan": ("Unit", "plan_layout", "shard_units", "store_bytes", "units"),
    "zarr_store": ("DamagedRow", "DamagedShard", "StoreSealed"),
    "reader": ("STATUS_NAMES", "RowNotReady", "Store", "create_store", "open_store"),
    "maintain": ("Finding", "info", "verify"),
    "clip_dataset": ("ClipDataset",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
_MODULES = (*_EXPORTS, "commit", "seal")

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
