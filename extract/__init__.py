"""Videos to arrays: datasets, decoding, sampling, frozen networks. Names are imported when first used."""

from importlib import import_module

_HOME = {
    "create_network": "extract.networks",
    "create_backbone": "extract.networks",
    "list_networks": "extract.networks",
    "load_dataset": "extract.datasets",
    "open_source": "extract.decode",
    "probe": "extract.decode",
}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__():
    return sorted({*globals(), *__all__})
