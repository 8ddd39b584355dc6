"""Which stores a head should read when nobody said: the one dataset that has them all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from errors import UserError
from pipelines.planning import feature_roots
from stores import open_store

__all__ = ["find_stores"]

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
    earlier root hides stores of the same name in later ones. `given` roles need not be found.

    Returns ({role: store}, lines that say what was taken). Raises UserError when no dataset has them, or several.
    """
    roots, given = feature_roots(tuple(features)), given or {}
    datasets = _datasets(roots, dataset)
    whole, partial, why = {}, [], []
    for name, stores in datasets.items():
        found, lacking = _match(stores, reads, given)
        if lacking:
            partial.append(name)
            why.append(f"{name}: {'; '.join(lacking)}")
        else:
            whole[name] = found
    where = ", ".join(str(root) for root in roots)
    if len(whole) > 1:
        commands = " or ".join(f"--dataset {name}" for name in sorted(whole))
        raise UserError(f"several datasets under {where} have the stores this head reads: say {commands}")
    if not whole:
        wanted = dataset or (partial[0] if len(partial) == 1 else "DATASET")
        detail = " (" + " | ".join(why) + ")" if why else ""
        raise UserError(
            f"no dataset under {where} has the stores this head reads: {', '.join(reads)}{detail}."
            f" Run: cli.py extract --dataset {wanted} --backbone i3d"
        )
    name, found = next(iter(whole.items()))
    opened = {path: open_store(path) for path in set(found.values())}
    return {role: opened[path] for role, path in found.items()}, [f"{role}: {path}" for role, path in found.items()]


def _datasets(roots: list[Path], dataset: str | None) -> dict[str, dict[str, Path]]:
    """{dataset: {store name: path}}; the first root that has a store wins."""
    found: dict[str, dict[str, Path]] = {}
    for root in roots:
        for path in sorted(root.glob("*/*.zarr")) if root.is_dir() else ():
            if dataset is None or path.parent.name == dataset:
                found.setdefault(path.parent.name, {}).setdefault(path.stem, path)
    return found


def _match(stores: Mapping[str, Path], reads: Mapping, given: Mapping) -> tuple[dict[str, Path], list[str]]:
    """({role: path}, what is lacking) within one dataset's folder."""
    found, lacking = {}, []
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
            names = " or ".join(str(path) for path in holders)
            lacking.append(f"several stores hold objects: say which with --objects {names}")
        else:
            lacking.append("no store holds roi")
    return found, lacking
