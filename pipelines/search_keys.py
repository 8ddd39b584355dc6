"""The first step of a search: every row of an index in a short form that stays in memory.

A similarity is made of inner products of long vectors (`heads.text_video`, `text_parts` and `video_parts`). Here the
indexed side of each part is projected onto its first principal directions, float16; what is short by itself (mixture
weights, which experts there are) is kept as it is. So the head's own `combined` gives an approximate score of every
row, weights of missing experts renormalised: without that, the best rows would not be among the first thousand.

Keys follow from an index. They lie beside it, NAME.keys.safetensors, and are made again where they are not its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from errors import UserError
from pipelines.retrieval_embeddings import VIDEOS, read_embeddings
from pipelines.run_folder import load_tensors, save_tensors
from stores import Store

__all__ = ["DIMENSIONS", "Keys", "keys_path", "make_keys"]

DIMENSIONS = 512  # of a part
WHOLE_BYTES = 64 << 20  # an index with parts of no more than this, all together, is kept as it is, float32
SHORT = 64  # values of a row that are short by themselves
_SAMPLE = 4096  # rows, evenly spaced, whose principal directions are taken
_AT_ONCE = 1024


@dataclass(frozen=True)
class Keys:
    """Rows of an index that have embeddings, in short.

    rows: (n,) int64, their numbers in the index. parts: {part: (n, d)}, float16, or float32 as they are. bases: {part:
    ((D, d) float32, (D,) their mean)} of those that are projected. short: {embedding: (n, ...)}, as they are.
    """

    rows: np.ndarray
    parts: Mapping[str, torch.Tensor]
    bases: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    short: Mapping[str, torch.Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes that stay in memory."""
        held = [
            *self.parts.values(),
            *self.short.values(),
            *(tensor for pair in self.bases.values() for tensor in pair),
        ]
        return self.rows.nbytes + sum(tensor.nbytes for tensor in held)

    def dots(self, query: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{part: (n,) float32} inner products with the parts (1, D) of one query."""
        out = {}
        for name, part in self.parts.items():
            vector, offset = query[name][0], 0.0
            if name in self.bases:
                basis, mean = self.bases[name]
                vector, offset = vector @ basis, vector @ mean
            # To length 1 first: what is told apart in float16 is a share of the largest.
            length = vector.norm().clamp(min=1e-12)
            out[name] = (part @ (vector / length).to(part.dtype)).float() * length + offset
        return out


def make_keys(store: Store, head, of: str, say: Callable[[str], object] = lambda line: None) -> Keys:
    """The keys of a sealed index: those that lie beside it, else made now and written there."""
    path, facts = keys_path(store), _facts(store)
    if path.is_file():
        keys, metadata = _read(path)
        if metadata == facts:
            return keys
    say(f"making the keys of {store.path}")
    keys = _made(store, head.video_parts if of == VIDEOS else head.text_parts)
    tensors = {"rows": torch.from_numpy(keys.rows)}
    tensors |= {f"parts/{name}": value for name, value in keys.parts.items()}
    tensors |= {f"short/{name}": value for name, value in keys.short.items()}
    for name, (basis, mean) in keys.bases.items():
        tensors |= {f"basis/{name}": basis, f"mean/{name}": mean}
    save_tensors(path, tensors, facts)
    return keys


def keys_path(store: Store) -> Path:
    """NAME.keys.safetensors beside NAME.zarr."""
    return Path(store.path).with_suffix(".keys.safetensors")


def _facts(store: Store) -> dict:
    """What keys follow from."""
    seal = store.manifest.seal
    return {"index": store.manifest.recipe_hash, "digests": seal["digests"], "dimensions": DIMENSIONS}


def _read(path: Path) -> tuple[Keys | None, dict | None]:
    """(keys, what they follow from); of a file that cannot be read, (None, None): it is made again."""
    try:
        tensors, facts = load_tensors(path)
    except UserError:
        return None, None
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}  # in memory now, not when first asked

    def group(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    means = group("mean/")
    bases = {name: (basis, means[name]) for name, basis in group("basis/").items()}
    return Keys(tensors["rows"].numpy(), group("parts/"), bases, group("short/")), facts


def _made(store: Store, parts_of: Callable[[Mapping], dict[str, torch.Tensor]]) -> Keys:
    rows = store.ok
    if not len(rows):
        raise UserError(f"{store.path} has no row with an embedding: there is nothing to look through")
    arrays = store.manifest.arrays
    short = [name for name in store.manifest.spec["embeddings"] if np.prod(arrays[name].row_shape) <= SHORT]
    sample = rows[np.unique(np.linspace(0, len(rows) - 1, min(_SAMPLE, len(rows))).astype(int))]
    drawn = {name: torch.cat(found) for name, found in _columns(store, sample, parts_of).items()}
    width = sum(part.shape[1] for part in drawn.values())
    whole = len(rows) * width * 4 <= WHOLE_BYTES
    bases = {} if whole else {n: _basis(part) for n, part in drawn.items() if part.shape[1] > DIMENSIONS}
    del drawn
    kept: dict[str, list[torch.Tensor]] = {}
    held: dict[str, list[torch.Tensor]] = {name: [] for name in short}
    for embeddings in _blocks(store, rows):
        for name in short:
            held[name].append(embeddings[name])
        for name, part in parts_of(embeddings).items():
            if name in bases:
                basis, mean = bases[name]
                part = (part - mean) @ basis
            kept.setdefault(name, []).append(part if whole else part.half())
    joined = [{name: torch.cat(values) for name, values in found.items()} for found in (kept, held)]
    return Keys(rows, joined[0], bases, joined[1])


def _columns(store: Store, rows: np.ndarray, parts_of: Callable) -> dict[str, list[torch.Tensor]]:
    found: dict[str, list[torch.Tensor]] = {}
    for embeddings in _blocks(store, rows):
        for name, part in parts_of(embeddings).items():
            found.setdefault(name, []).append(part)
    return found


def _blocks(store: Store, rows: np.ndarray) -> Iterator[dict[str, torch.Tensor]]:
    for start in range(0, len(rows), _AT_ONCE):
        yield read_embeddings(store, rows[start : start + _AT_ONCE])


def _basis(sample: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """((D, d) principal directions, (D,) mean) of rows (n, D)."""
    mean = sample.mean(dim=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the directions are found by random probes (Halko et al. 2011)
        _, _, directions = torch.pca_lowrank(sample, min(DIMENSIONS, *sample.shape), center=True, niter=1)
    return directions.contiguous(), mean
