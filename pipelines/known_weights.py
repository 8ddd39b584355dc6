"""The network that made a store, with its weights looked for where they came from and checked by their hash."""

from __future__ import annotations

from pathlib import Path

from errors import UserError
from extract.networks import create_network
from extract.weights import TABLE, weights_folders
from stores import Store

__all__ = ["network_behind"]


def network_behind(store: Store, weights: str | None = None, *, beside: Path | None = None, role: str = ""):
    """The network of `store.manifest.spec`, whose weights have the hash that the store names.

    Weights that a training made (origin run:NAME) are looked for in the run folder NAME among those of the folder
    `beside`, then in runs/NAME of the working folder. weights: look there only. role: which of several networks, for
    the message: its option is --weights ROLE=PATH.

    Raises:
        UserError: they are not found, or what is there are others.
    """
    spec, wanted = store.manifest.spec, store.manifest.recipe["weights"]
    made, origin = spec["created_with"], spec["weights_origin"]
    why = ""
    for place in [weights] if weights else _places(spec["name"], origin, beside):
        try:
            network = create_network(made["name"], place, **made["options"])
        except UserError as error:
            why = f" ({error})"
            continue
        if network.weights_hash == wanted:
            return network
        why = f" ({place or network.weights_origin} are others)"
    option = f"{role}=PATH" if role else "RUN" if origin.startswith("run:") else "PATH"
    raise UserError(
        f"the weights of the {role or 'network'}, {made['name']} ({origin}), that made {store.path} are not found: say"
        f" where they are, --weights {option}{why}"
    )


def _places(network: str, origin: str, beside: Path | None) -> list[str | None]:
    """Where weights of this origin may be, as `create_network` takes them."""
    kind, _, name = origin.partition(":")
    if kind == "random":
        return [origin]
    if kind == "run":
        folders = dict.fromkeys((folder / name).resolve() for folder in (beside, Path("runs")) if folder is not None)
        return [str(folder) for folder in folders if folder.is_dir()]
    files = [str(folder / name) for folder in weights_folders() if kind == "file" and (folder / name).is_file()]
    entries = [
        entry.name
        for entry in TABLE.values()
        if entry.architecture == network
        and origin in (f"file:{entry.filename}", f"url:{entry.url}", f"package:{entry.package}")
    ]
    return [*files, *entries] or ([] if kind == "file" else [None])
