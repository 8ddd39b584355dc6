"""Which stores a head should read when nobody said: the one dataset that has them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from errors import MachineError, UserError
from pipelines.request import feature_roots
from stores import NotAStore, open_store

__all__ = ["find_stores", "own_dataset", "stored_name", "stores_of_datasets"]

CLIP_STORES = (("i3d_rgb_verb", "i3d_rgb_noun"), ("i3d_rgb", "i3d_rgb"))  # (verb, noun), in this order of preference


def find_stores(
    reads: Mapping[str, Iterable[str]],
    *,
    dataset: str | None = None,
    features: Iterable[str | Path] = (),
    given: Mapping[str, object] | None = None,
) -> tuple[dict, list[str]]:
    """Look through the feature roots for the stores that a head reads.

    In each dataset's folder: i3d_rgb_verb and i3d_rgb_noun, else i3d_rgb, and the one store that holds `roi`. An
    earlier root hides stores of the same name in later ones; what is no store (a copy that is not finished, say) is
    left out. `given` roles need not be found.

    Returns ({role: store}, lines that say what was taken and left out). Raises UserError when no dataset has them, or
    several, or several stores hold objects.
    """
    roots, given = feature_roots(tuple(features)), given or {}
    datasets, left_out = stores_of_datasets(roots, dataset)
    whole, partial, why, choices = {}, [], [], []
    for name, stores in datasets.items():
        found, lacking, holders = _match(stores, reads, given)
        if lacking:
            partial.append(name)
            why.append(f"{name}: {'; '.join(lacking)}")
        elif holders:
            choices.append(f"{name}: several stores hold objects: say which with --objects {' or '.join(holders)}")
        else:
            whole[name] = found
    where = ", ".join(str(root) for root in roots)
    if len(whole) > 1:
        commands = " or ".join(f"--dataset {name}" for name in sorted(whole))
        raise UserError(f"several datasets under {where} have the stores this head reads: say {commands}")
    if choices and not whole:  # nothing is lacking here, so there is nothing to extract
        raise UserError(" | ".join(choices))
    if not whole:
        wanted = dataset or (partial[0] if len(partial) == 1 else "DATASET")
        why += left_out
        detail = " (" + " | ".join(why) + ")" if why else ""
        raise UserError(
            f"no dataset under {where} has the stores this head reads: {', '.join(reads)}{detail}."
            f" Run: {_command(wanted, datasets.get(stored_name(wanted), {}), reads)}"
        )
    name, found = next(iter(whole.items()))
    opened = {path: open_store(path) for path in set(found.values())}
    lines = [f"{role}: {path}" for role, path in found.items()] + left_out
    return {role: opened[path] for role, path in found.items()}, lines


def stored_name(dataset: str) -> str:
    """The name that stores bear of a dataset asked for by its name or its CSV."""
    return Path(dataset).stem if dataset.endswith(".csv") else dataset


def own_dataset(dataset: str) -> str:
    """How `extract` is asked for a dataset of one's own, by the name that its stores bear or its CSV."""
    return f"--dataset {dataset if dataset.endswith('.csv') else f'{dataset}.csv'} --videos DIR"


def stores_of_datasets(roots: list[Path], dataset: str | None) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """({dataset: {store name: path}}, lines about what is no store); the first root that has a store wins."""
    found: dict[str, dict[str, Path]] = {}
    left_out = []
    for root in roots:
        for path in sorted(root.glob("*/*.zarr")) if root.is_dir() else ():
            if dataset is not None and path.parent.name != stored_name(dataset):
                continue
            try:
                open_store(path)
            except NotAStore as error:
                left_out.append(f"left out: {error}")
                continue
            except (UserError, MachineError):  # damaged: it is opened again, and the error raised, if it is needed
                pass
            found.setdefault(path.parent.name, {}).setdefault(path.stem, path)
    return found, left_out


def _command(dataset: str, stores: Mapping[str, Path], reads: Mapping) -> str:
    """The command that makes the stores a head reads. A dataset from a CSV is known by its empty family."""
    families = {_family(path) for path in stores.values()}
    maps = " --for ipl" if any("map" in arrays for arrays in reads.values()) else ""
    if "" not in families and not dataset.endswith(".csv"):
        return f"cli.py extract --dataset {dataset} --backbone i3d{maps}"
    which = " --for saoa" if "objects" in reads else maps or " --only"
    return f"cli.py extract {own_dataset(dataset)} --backbone i3d{which}"


def _family(path: Path) -> str | None:
    try:
        return open_store(path).manifest.dataset.get("family")
    except (UserError, MachineError):  # damaged, and not needed to say what is lacking
        return None


def _match(stores: Mapping[str, Path], reads: Mapping, given: Mapping) -> tuple[dict[str, Path], list[str], list[str]]:
    """({role: path}, what is lacking, stores of objects if there are several) within one dataset's folder."""
    found, lacking, several = {}, [], []
    need = [role for role in reads if role not in given]
    if {"verb", "noun"} & set(need):
        pair = next((pair for pair in CLIP_STORES if set(pair) <= set(stores)), None)
        if pair is None:
            lacking.append("no i3d_rgb_verb and i3d_rgb_noun, nor i3d_rgb")
        else:
            chosen = dict(zip(("verb", "noun"), pair, strict=True))
            found |= {role: stores[chosen[role]] for role in need if role in chosen}
    if "objects" in need:
        holders = [path for path in stores.values() if "roi" in open_store(path).manifest.arrays]
        if len(holders) == 1:
            found["objects"] = holders[0]
        elif holders:
            several = [str(path) for path in holders]
            if lacking:
                lacking.append(f"several stores hold objects: say which with --objects {' or '.join(several)}")
        else:
            lacking.append("no store holds roi")
    return found, lacking, several
