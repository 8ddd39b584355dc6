"""Embeddings of a retrieval run, computed once and kept as a store: what `search` looks through.

A row is a clip of the run's expert stores, or a caption of their dataset. Its arrays are what the head's
`encode_video`, or `encode_text`, gives: float32, flags as int8. A clip of which no expert has anything, and a caption
without tokens, are absent. Beside the store lie its keys (`pipelines.search_keys`), which follow from it.
"""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from errors import MachineError, UserError
from extract.weights import file_hash
from pipelines.devices import pick_device
from pipelines.find_stores import stores_of_datasets
from pipelines.lineage import descent
from pipelines.request import feature_roots
from pipelines.retrieval_clips import expert_array, max_tokens_of, read_captions, video_ends
from pipelines.retrieval_embeddings import CAPTIONS, VIDEOS
from pipelines.retrieval_training import TEXT, RetrievalSchedule
from pipelines.run_folder import Run, open_run, whereabouts
from pipelines.search_keys import make_keys
from stores import (
    ABSENT,
    OK,
    PENDING,
    ArraySpec,
    Layout,
    Manifest,
    SequenceDataset,
    Store,
    create_store,
    open_store,
    plan_layout,
    recipe_difference,
    verify,
)
from stores.joining import positions, same_dataset
from stores.manifest import canonical_json
from stores.splits import split_mask

__all__ = [
    "ALL",
    "build_index",
    "index_layout",
    "index_path",
    "open_index",
    "opened_stores",
]

ALL = "all"  # every clip, whatever split
UNIT_ROWS = 1024
_AT_ONCE = 64
_ALONE_BYTES = 4096  # rows from here on have a chunk each: a search reads them from all over the store


def build_index(
    run: str | Path | Run,
    *,
    of: str = VIDEOS,
    stores: Mapping[str, object] | None = None,
    dataset: str | None = None,
    features: Iterable[str | Path] = (),
    split: str = ALL,
    out: str | Path | None = None,
    device: str | None = None,
    allow_incomplete: bool = False,
    progress: Callable[[str, int], object] | None = None,
    say: Callable[[str], object] = print,
) -> Path:
    """Write the index of a run's clips (or captions), its keys beside it, and return its path.

    Killed at any moment, the same call goes on: what is committed stays. What is finished is left as it is.

    Args:
        of: VIDEOS or CAPTIONS.
        stores: {role: store or path} of those that have moved since the training, or of the same recipes and another
            dataset.
        dataset, features: look for stores of the same names and recipes there instead, of this dataset.
        split: `[scheme:]part`; ALL: every clip.
        out: NAME.zarr [`index_path`].
        allow_incomplete: rows of the stores that are pending are masked.
        progress: makes a bar from (title, total), as `pipelines.extract` takes it.

    Raises:
        UserError: no retrieval run, or one that has no checkpoint yet; stores that are not found, of other recipes, or
            incomplete; a dataset without captions; another index in the way (the message lists the fields that differ).
        MachineError: a write failed; what was committed stays.
    """
    from pipelines.retrieval_model import embedded, trained_model

    run = _retrieval_run(run)
    device = pick_device(device)
    model, network, _ = trained_model(run)
    schedule = RetrievalSchedule(**run.facts["training"])
    opened = _stores_of(run, of, stores, dataset, tuple(features), say)
    name = same_dataset(opened)
    if of == VIDEOS:
        source = _videos(model, opened, split, schedule, run.facts["seed"], allow_incomplete)
    else:
        source = _captions(model, network, opened, split, allow_incomplete)
    path = Path(out) if out is not None else index_path(run, name, of)
    store = _create(path, run, of, opened, source, split, schedule)
    if store.sealed and (damage := [found for found in verify(path) if found.severity == "error"]):
        raise MachineError(
            f"{path} is damaged ({damage[0].path}: {damage[0].what}): remove it, and make it anew with"
            f" {_command(run, path, of, name)}"
        )
    if not store.sealed:
        model.to(device)
        bar = progress(f"index of {of}", store.manifest.n_rows) if progress else None
        try:
            for unit in store.units:
                if (store.status(unit) == PENDING).any():
                    items = np.arange(unit.start, unit.stop)
                    values = embedded(
                        lambda part, items=items: source.read(items[part]), source.encode, len(items), device,
                        schedule.precision,
                    )  # fmt: skip
                    status = np.where(source.there(items, values), OK, ABSENT)
                    store.commit(unit, {name: _stored(value) for name, value in values.items()}, status)
                if bar is not None:
                    bar.update(len(unit))
        finally:
            if bar is not None:
                bar.close()
        store.seal()
    make_keys(store, model.head, of, say)
    return path


def index_path(run: Run, dataset: str, of: str = VIDEOS) -> Path:
    """Where the index of a run lies if nobody says: `<run>/index/<dataset>.zarr`, of captions
    `<run>/index/<dataset>.captions.zarr`."""
    return run.path / "index" / f"{dataset.replace(':', '-')}{'' if of == VIDEOS else f'.{of}'}.zarr"


def _command(run: Run, path: Path, of: str, dataset: str) -> str:
    """The command that makes it."""
    words = ["cli.py", "index", str(run.path), *([f"--{of}"] if of != VIDEOS else [])]
    words += ["--dataset", dataset] if dataset != run.facts["dataset"]["name"] else []
    words += ["--out", str(path)] if path != index_path(run, dataset, of) else []
    return shlex.join(words)


def open_index(run: Run, path: str | Path | None = None, of: str = VIDEOS, dataset: str | None = None) -> Store:
    """The finished index of a run [that of its own dataset], made of clips or captions of `dataset`.

    Raises UserError: there is none, or it is unfinished, of another run or checkpoint, of the other kind, or of stores
    that have changed since.
    """
    run = _retrieval_run(run)
    dataset = dataset or run.facts["dataset"]["name"]
    path = Path(path) if path is not None else index_path(run, dataset, of)
    command = _command(run, path, of, dataset)
    if not path.exists():
        beside = sorted(path.parent.glob("*.zarr")) if of == VIDEOS else []
        others = ", ".join(str(one) for one in beside if not one.stem.endswith(f".{CAPTIONS}"))
        raise UserError(
            f"there is no index of {of} at {path}: make it with {command}"
            + (f"; or name one of {others} with --index" if others else "")
        )
    try:
        store = open_store(path)
    except UserError as error:
        raise UserError(
            f"{error.message}. If it is a damaged index: remove it, and make it anew with {command}"
        ) from error
    recipe = store.manifest.recipe
    if recipe.get("index") != of:
        kind = f"an index of {recipe['index']}" if "index" in recipe else "no index"
        raise UserError(f"{path} is {kind}, where one of {of} is looked for: {command} makes it")
    if lines := recipe_difference(recipe["run"], _run_recipe(run), "the index has", "the run has"):
        raise UserError(f"{path} is the index of another run than {run.path} ({'; '.join(lines)}): {command} makes it")
    if not store.sealed:
        raise UserError(f"{path} is not finished: {command} goes on with it")
    changed = [role for role, fact in recipe["stores"].items() if _changed(store.manifest.spec["stores"][role], fact)]
    if changed:
        raise UserError(
            f"{path} was made before its stores changed ({', '.join(changed)}): remove it, and make it anew with"
            f" {command}"
        )
    return store


# --- what is embedded ---


@dataclass(frozen=True)
class _Source:
    """Items in the order of the index's rows.

    read: numbers of items -> arrays; encode: those as tensors -> embeddings; there: (numbers, embeddings) -> (n,) bool,
    which of them there is anything to compare of.
    """

    first: Store  # whose dataset it is
    rows: Mapping[str, np.ndarray]
    read: Callable[[np.ndarray], dict]
    encode: Callable[[dict], dict]
    there: Callable[[np.ndarray, Mapping], np.ndarray]
    shapes: Mapping[str, ArraySpec]


def _videos(model, experts: Mapping[str, Store], split: str, schedule, seed: int, allow_incomplete: bool) -> _Source:
    arrays = {role: expert_array(store) for role, store in experts.items()}
    data = SequenceDataset(
        experts, by="clip", split=None if split == ALL else split, arrays={r: [array] for r, array in arrays.items()},
        max_tokens=max_tokens_of(list(experts), schedule.max_tokens), seed=seed, allow_incomplete=allow_incomplete,
    )  # fmt: skip
    order = np.lexsort((data.clips, data.start_s, data.videos))
    first = next(iter(experts.values()))

    def read(items: np.ndarray) -> dict:
        batch = data.batch(order[items])
        return {role: {array: batch[role][array], "mask": batch[role]["mask"]} for role, array in arrays.items()}

    rows = _rows(
        experts, data.video_names, data.videos[order], data.clips[order], np.zeros(len(order)), data.start_s[order],
        data.stop_s[order],
    )  # fmt: skip
    encode = model.head.encode_video
    return _Source(
        first, rows, read, encode, lambda items, values: values["present"].any(dim=1).numpy(), _shapes(read, encode)
    )


def _captions(model, network, stores: Mapping[str, Store], split: str, allow_incomplete: bool) -> _Source:
    first = next(iter(stores.values()))
    captions, text = read_captions(first, network, allow_incomplete)
    clips = first.clips
    clip = positions(captions.clip, np.asarray(clips["id"]).astype(object))
    wanted = np.ones(len(clip), bool)
    if split != ALL:
        parts = {name: np.asarray(clips[name]).astype(object) for name in clips if name.startswith("split")}
        wanted = split_mask(parts, split, first.path)[clip] & captions.count_in(split, first.path)
    video = np.asarray(clips["video"])[clip]
    order = np.lexsort((captions.k, clip, video))
    order = order[wanted[order]]
    if not len(order):
        raise UserError(f"{first.path}: no caption of split {split!r}")
    start, stop = (np.asarray(clips[name])[clip[order]] for name in ("start_s", "stop_s"))

    def encode(batch: dict) -> dict:
        return model.head.encode_text(model.tokens(batch))

    def read(items: np.ndarray) -> dict:
        return text.batch(order[items])

    names = np.asarray(first.videos["name"]).astype(object)
    rows = _rows(stores, names, video[order], clip[order], captions.k[order], start, stop)
    return _Source(first, rows, read, encode, lambda items, _: text.there[order[items]], _shapes(read, encode))


def _rows(stores: Mapping[str, Store], names, video, clip, k, start, stop) -> dict[str, np.ndarray]:
    """The table of an index. names: (videos,), which `video` counts; where a clip is a whole video, the stores say when
    it ends."""
    whole = ~np.isfinite(stop)
    asked, of = np.unique(video[whole], return_inverse=True)
    stop = stop.copy()
    stop[whole] = video_ends(stores.values(), names[asked])[of]
    return {
        "video": video.astype(np.int32),
        "clip": clip.astype(np.int32),
        "k": k.astype(np.int32),
        "draw": np.zeros(len(clip), np.int16),
        "start_s": np.where(np.isfinite(start), start, 0.0),
        "stop_s": stop,
    }


def _shapes(read: Callable, encode: Callable) -> dict[str, ArraySpec]:
    """The arrays of an index: those of the embeddings of one item."""
    import torch

    from pipelines.devices import to_device

    with torch.inference_mode():
        one = encode(to_device(read(np.zeros(1, np.int64)), "cpu"))
    dtypes = {name: "int8" if value.dtype == torch.bool else "float32" for name, value in one.items()}
    return {name: ArraySpec(tuple(value.shape[1:]), dtypes[name]) for name, value in one.items()}


def _stored(value) -> np.ndarray:
    """A tensor as the store holds it."""
    array = value.numpy()
    return array.astype(np.int8 if array.dtype == bool else np.float32)


# --- the store ---


def _create(path: Path, run: Run, of: str, stores: Mapping[str, Store], source: _Source, split: str, schedule) -> Store:
    facts = source.first.manifest.dataset
    manifest = Manifest(
        arrays=source.shapes,
        layout=index_layout(source.shapes),
        recipe={
            "index": of,
            "run": _run_recipe(run),
            "stores": {role: _content(store) for role, store in stores.items()},
            "split": split,
            "max_tokens": schedule.max_tokens,
            "precision": schedule.precision,
        },
        spec={
            "name": f"{run.head_name}:{of}",
            "kind": "index",
            "reads": "",
            "weights_origin": f"run:{run.path.name}",
            "embeddings": list(source.shapes),
            "stores": {role: whereabouts(store.path) for role, store in stores.items()},
        },
        dataset={
            **{name: facts[name] for name in ("name", "family", "annotation_hash") if name in facts},
            "axis": "clip" if of == VIDEOS else "text",
            "draws": 0,
            "seed": 0,
        },
        lineage=descent(run.facts),
    )  # fmt: skip
    first = source.first
    tables = [{name: table[name] for name in table} for table in (first.clips, first.videos, first.texts or {})]
    videos = {name: tables[1][name] for name in ("name", "path")}
    store = create_store(path, manifest, source.rows, tables[0], videos, texts=tables[2] or None)
    if lines := recipe_difference(store.manifest.recipe, manifest.recipe):
        raise UserError(f"{path} is another index: {'; '.join(lines)}. Remove it, or give another --out")
    return store


def index_layout(arrays: Mapping[str, ArraySpec]) -> Layout:
    """How an index is cut: long rows have a chunk each, so that a few hundred from all over fetch no others."""
    layout = plan_layout(arrays, UNIT_ROWS, batch_size=_AT_ONCE)
    alone = {name: 1 for name, spec in arrays.items() if spec.row_bytes >= _ALONE_BYTES}
    return replace(layout, chunk_rows={**layout.chunk_rows, **alone})


def _run_recipe(run: Run) -> dict:
    """What of a run decides what it makes of a clip."""
    best = run.path / "best.safetensors"
    if not best.is_file():
        run.best_checkpoint()  # says so
    stat = best.stat()
    return {"head": run.facts["head"], "checkpoint": _hash_of(best, stat.st_size, stat.st_mtime_ns)}


@functools.lru_cache(maxsize=8)
def _hash_of(path: Path, size: int, mtime_ns: int) -> str:
    """A file's hash, taken once while the file is the same."""
    return file_hash(path)


def _content(store: Store) -> dict:
    """Which values a store has now: by its recipe and dataset, and by its seal; where it has none, by which rows have
    values, and by what was found in their videos, which a repair of changed videos writes anew."""
    seal, name = store.manifest.seal, store.manifest.dataset.get("name")
    rows = {"seal": seal["digests"]} if seal else {"rows": store.manifest.n_rows, **_unsealed_content(store)}
    return {"dataset": name, "recipe": store.manifest.recipe_hash, **rows}


def _unsealed_content(store: Store) -> dict[str, str]:
    seen = np.unique(store.rows["video"][store.ok])
    probes = canonical_json([store.probe(int(video)) for video in seen])
    return {
        "status": hashlib.sha256(store.status().tobytes()).hexdigest(),
        "probes": hashlib.sha256(probes).hexdigest(),
    }


def _changed(path: str, fact: Mapping) -> bool:
    """Whether a store is another than an index was made of; one that is not there has not changed."""
    return Path(path).exists() and _content(open_store(path)) != fact


# --- the stores that it is made of ---


def _retrieval_run(run: str | Path | Run) -> Run:
    run = run if isinstance(run, Run) else open_run(run)
    if run.kind != "retrieval":
        raise UserError(
            f"{run.path} is a {run.kind} ({run.trained}): search and index are for runs of retrieval heads, such as"
            " train-head t2vlad, mee, ce or global_only"
        )
    return run


def opened_stores(run: Run, roles: Sequence[str], moved: Mapping[str, object] | None, reader: str) -> dict[str, Store]:
    """{role: store} of some of a run's stores. moved: as of `Run.open_stores`; reader: what reads them, for messages.

    Raises UserError as `Run.open_stores`, and for a moved store of another role, which nothing would read.
    """
    for role in moved or {}:
        if role not in roles:
            raise UserError(
                f"--store {role}: {reader} of {run.path} reads no {role} store; it reads {', '.join(roles)}"
            )
    some = Run(run.path, {**run.facts, "stores": {role: run.facts["stores"][role] for role in roles}})
    return some.open_stores(moved)


def _roles(run: Run, of: str) -> list[str]:
    """The roles of the stores that are read: all experts, or those of the captions, or whose dataset has captions."""
    experts = [role for role in run.facts["stores"] if role != TEXT]
    if of == VIDEOS:
        return experts
    return [TEXT] if TEXT in run.facts["stores"] else experts[:1]


def _stores_of(
    run: Run, of: str, moved: Mapping[str, object] | None, dataset: str | None, features: tuple, say
) -> dict[str, Store]:
    """{role: store}: those given, else of `dataset` under `features`, else those that the run was trained on."""
    given, roles = dict(moved or {}), _roles(run, of)
    if dataset or features:
        given = _found(run, [role for role in roles if role not in given], dataset, features, say) | given
    return opened_stores(run, roles, given, f"the index of {of}")


def _found(run: Run, roles: list[str], dataset: str | None, features: tuple, say) -> dict[str, Path]:
    """{role: path} of stores with the names that the run's have, all of one dataset."""
    names = {role: Path(run.facts["stores"][role]["path"]).stem for role in roles}
    roots = feature_roots(features)
    found, left_out = stores_of_datasets(roots, dataset)
    whole = {name: stores for name, stores in found.items() if set(names.values()) <= set(stores)}
    where = ", ".join(map(str, roots))
    if len(whole) > 1:
        commands = " or ".join(f"--dataset {name}" for name in sorted(whole))
        raise UserError(f"several datasets under {where} have the stores that {run.path} reads: say {commands}")
    if not whole:
        lacking = [f"{name} lacks {', '.join(sorted(set(names.values()) - set(found[name])))}" for name in found]
        raise UserError(
            f"no dataset under {where} has the stores that {run.path} reads ({', '.join(names.values())})"
            + "".join(f"; {line}" for line in [*lacking, *left_out])
        )
    stores = next(iter(whole.values()))
    for role, name in names.items():
        say(f"{role}: {stores[name]}")
    return {role: stores[name] for role, name in names.items()}
