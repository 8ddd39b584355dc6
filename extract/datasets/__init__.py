"""Datasets: annotations -> tables of videos and clips. One file per dataset, found by its name.

Names are re-exported lazily (PEP 562), so importing this package costs nothing.
"""

from importlib import import_module

_HOME = {
    "Dataset": "base",
    "Table": "base",
    "check_dataset": "base",
    "missing_videos": "base",
    "select_split": "base",
    "list_datasets": "registry",
    "load_dataset": "registry",
    "register_dataset": "registry",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__():
    return __all__
