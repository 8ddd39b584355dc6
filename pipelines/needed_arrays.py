"""The arrays that training reads of a store, and what makes one that is not there."""

from __future__ import annotations

from errors import UserError
from extract.networks import network_spec
from pipelines.find_stores import own_dataset
from stores import ArraySpec, Store

__all__ = ["array_of", "no_array"]

_RECOGNISER = "tsn_resnet50"  # named where a store's own network cannot be trained to give logits


def array_of(store: Store, name: str) -> ArraySpec:
    """What a store says of an array. Raises the `UserError` of `no_array` where it has none of this name."""
    if name not in store.manifest.arrays:
        raise no_array(store, name)
    return store.manifest.arrays[name]


def no_array(store: Store, name: str) -> UserError:
    """The error to raise for an array that a store lacks, with how to come by it."""
    return UserError(
        f"{store.path} has no array {name!r} (it has {', '.join(store.manifest.arrays)}); {_way(store, name)}"
    )


def _way(store: Store, name: str) -> str:
    made = store.manifest.spec.get("created_with")
    if made is None:
        return "it was not extracted here, so nothing here can add it: extract a network that gives it"
    network = made["name"]
    try:
        given = network_spec(network, **made["options"]).outputs
    except UserError:  # its file or its library is not here
        return f"if {network} gives it, the extract that made it adds it, run again with --keep {name}"
    if name in given:
        return f"the extract that made it adds it, run again with --keep {name}"
    if name == "logits":
        trained = f"--backbone {network if _gives_logits(network) else _RECOGNISER}"
        dataset = store.manifest.dataset["name"]
        asked = f"--dataset {dataset}" if store.manifest.dataset.get("family") else own_dataset(dataset)
        return (
            "a network must be trained to name labels first: cli.py train-recogniser"
            f" --dataset {dataset} {trained} --target LABEL --out RUN,"
            f" and then cli.py extract {asked} {trained} --weights RUN --name NAME --only"
        )
    return f"{network} gives {', '.join(given)}: extract a network that gives it"


def _gives_logits(network: str) -> bool:
    """Whether `train-recogniser` can give a network a classifier that extraction runs."""
    try:
        return "logits" in network_spec(network, logits=True).outputs
    except UserError:
        return False
