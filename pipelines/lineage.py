"""What the networks and heads behind a figure were trained on, and what that allows to be said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from errors import UserError

__all__ = [
    "descent",
    "is_random",
    "lineage_of",
    "refuse_random",
    "seen_by",
    "unknown_ancestors",
    "unknown_line",
    "without_random",
]


def is_random(entry: Mapping) -> bool:
    """Whether an ancestor is random weights."""
    return str(entry.get("dataset", "")).startswith("random:")


def without_random(lineage: list[dict]) -> list[dict]:
    """Ancestors of weights that were trained on: random initial ones say nothing of what the trained ones have seen."""
    return [entry for entry in lineage if not is_random(entry)]


def descent(facts: Mapping) -> list[dict]:
    """The lineage of the weights that a training leaves, from its run.json: that training, then its ancestors."""
    return [{k: v for k, v in entry.items() if k != "name"} for entry in (facts["trained_on"], *facts["lineage"])]


def refuse_random(stores: Mapping, allowed: bool) -> None:
    """Raises UserError for a store of random features, unless that is allowed."""
    for role, store in stores.items():
        for entry in store.manifest.lineage:
            if is_random(entry) and not allowed:
                raise UserError(
                    f"{store.path} ({role}) was made by a network with {entry['dataset']} weights: its figures mean"
                    " nothing about the method. Pass --allow-random if that is what you want"
                )


def lineage_of(stores: Mapping) -> list[dict]:
    """What every network behind these stores was trained on: {"name": store, "dataset", "split", ...}."""
    entries = []
    for store in stores.values():
        said, origin = store.manifest.lineage, store.manifest.spec.get("weights_origin", "none")
        if not said and origin != "none":  # a network of one's own that brings its weights along
            said = [{"dataset": "unknown", "split": "unknown", "file": origin}]
        for entry in said:
            named = {"name": Path(store.path).name, **entry}
            if named not in entries:
                entries.append(named)
    return entries


def seen_by(dataset, lineage: list[dict]) -> str:
    """Which ancestor was trained on clips of `dataset` ("" if none was): dataset and split of each are compared.

    dataset: a ClipDataset, or whatever has `dataset_name` and `in_split(split) -> (n,) bool`.
    """
    own = dataset.dataset_name
    for ancestor in lineage:
        if str(ancestor.get("dataset", "")) != own:
            continue
        overlap = int(dataset.in_split(ancestor.get("split") or None).sum())
        if overlap:
            who = ancestor.get("name", "an ancestor of its features")
            return (
                f"{who} was trained on {own} {ancestor.get('split') or '(all)'}, which holds {overlap} of these clips"
            )
    return ""


def unknown_ancestors(lineage: list[dict]) -> list[str]:
    """Ancestors of which nobody said what they were trained on, such as a local .pt without metadata."""
    names = []
    for entry in lineage:
        if str(entry.get("dataset") or "unknown") == "unknown":
            name, file = entry.get("name", "an ancestor of its features"), entry.get("file")
            names.append(f"{name} ({file})" if file else name)
    return list(dict.fromkeys(names))


def unknown_line(names: list[str]) -> str:
    """What to tell the person about `unknown_ancestors`."""
    return (
        f"nobody said what the weights behind {', '.join(names)} were trained on: if they saw the clips that are"
        " evaluated, the figures are too good"
    )
