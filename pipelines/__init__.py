"""What the command line calls, usable from a notebook: only this package knows `extract`, `stores` and `heads`."""

import importlib

_EXPORTS = {
    "Extraction": "pipelines.request",
    "plan_extraction": "pipelines.planning",
    "extract": "pipelines.extraction",
    "export_features": "pipelines.exporting",
    "import_features": "pipelines.importing",
    "inspect_clip": "pipelines.inspection",
    "train_head": "pipelines.training",
    "train_backbone": "pipelines.base_training",
    "train_detector": "pipelines.detector_training",
    "train_recogniser": "pipelines.recogniser_training",
    "evaluate": "pipelines.evaluation",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
