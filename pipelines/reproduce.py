"""A training done again: the same stores by recipe, the same seed and settings, and are the figures the same?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from errors import MachineError, UserError
from pipelines.evaluation import Place
from pipelines.provenance import run_facts
from pipelines.request import feature_roots
from pipelines.run_folder import AnotherTraining, Run, load_tensors, open_run, rows_chosen
from pipelines.runs_table import figures_in
from stores import Store, open_store
from stores.files import is_url
from stores.manifest import storage_errors

__all__ = ["Comparison", "compare_runs", "find_by_recipe", "reproduce"]


@dataclass(frozen=True)
class Comparison:
    """Figures of a run and of the one that did it again."""

    again: Path
    tolerance: float
    figures: Mapping[str, tuple[float | None, float | None]]  # {name: (then, now)}; None: it has no such figure
    identical: bool  # the best checkpoints, to the bit

    @property
    def different(self) -> list[str]:
        """Figures that are further apart than the tolerance."""
        return [
            name
            for name, (then, now) in self.figures.items()
            if then is None or now is None or not abs(then - now) <= self.tolerance
        ]


def reproduce(
    run: str | Path,
    *,
    out: str | Path | None = None,
    stores: Mapping[str, object] | None = None,
    weights: str | None = None,
    place: Place = Place(),  # noqa: B008  frozen
    features: Iterable[str | Path] = (),
    tolerance: float = 0.005,
    device: str | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Train a run again in a new folder, and compare the figures of both.

    The stores are those of the run's recipes: where they were, else under the feature roots, else where `stores`
    ({role: path}) says. Settings, seed and everything else that run.json names must come out the same before anything
    is trained.

    out: the new folder [<run>-again]; what was stopped there goes on. weights: what the training began with, where that
    was another run or a file. place: where the dataset is, of runs that read more than stores. tolerance: largest
    difference of a figure (shares: 0.005 is half a point).

    Raises UserError: a store that is not there, weights that have to be given, another training in `out`, and what the
    training raises.
    """
    from pipelines.devices import pick_device

    original = open_run(run)
    facts = original.facts
    if not (original.path / "metrics.json").is_file():
        raise UserError(f"{original.path} has no metrics.json: its training has not ended; run it again first")
    if original.kind not in _TRAININGS:
        raise UserError(f"{original.path} is a {original.kind} run: what can be done again are {', '.join(_TRAININGS)}")
    found = {}
    for role in facts["stores"]:
        given = (stores or {}).get(role)
        found[role] = find_by_recipe(original, role, features) if given is None else open_store(given)
        original.check_store(role, found[role])
        if not _same_rows(original, role, found[role]):
            raise UserError(
                f"{found[role].path} has other rows than the {role} store that {original.path} was trained on; say"
                f" where that is with {original.moved_option(role)}"
            )
        say(f"{role}: {found[role].path}")
        if found[role].manifest.seal != facts["stores"][role]["seal"]:
            say(f"warning: {found[role].path} has grown or changed since: figures may differ for that reason alone")
    out = Path(out) if out is not None else original.path.with_name(f"{original.path.name}-again")
    if out.resolve() == original.path.resolve():
        raise UserError(f"--out {out} is the run itself: give another folder")
    fresh = not (out / "run.json").is_file()
    if fresh:
        # The run's own facts are put there first, so that the training compares what it is asked with all of them.
        with storage_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            started = Run(out, {**facts, "made": run_facts(pick_device(device))})
            started.write_json("run.json", started.facts)
    options = {"fit": facts["fit"], "seed": facts["seed"], "device": device, "progress": progress, "say": say}
    try:
        _TRAININGS[original.kind](original, found, weights, place, {"out": out, "set": facts["training"], **options})
    except UserError as error:
        if not fresh:
            raise
        _take_back(out)
        if not isinstance(error, AnotherTraining):
            raise
        raise UserError(
            f"with what is here this would be another training than {original.path}: " + "; ".join(error.lines)
        ) from error
    return compare_runs(original, open_run(out), tolerance)


def _take_back(out: Path) -> None:
    """Removes the folder of a training that was refused before it left anything in it."""
    with storage_errors(out):
        if [path.name for path in out.iterdir()] == ["run.json"]:
            (out / "run.json").unlink()
            out.rmdir()


def compare_runs(then: Run, now: Run, tolerance: float) -> Comparison:
    """The figures of two runs side by side."""
    one, other = (figures_in(json.loads((run.path / "metrics.json").read_bytes())) for run in (then, now))
    names = dict.fromkeys([*one, *other])
    tensors, again = (load_tensors(run.path / "best.safetensors")[0] for run in (then, now))
    identical = tensors.keys() == again.keys() and all(value.equal(again[key]) for key, value in tensors.items())
    return Comparison(now.path, tolerance, {name: (one.get(name), other.get(name)) for name in names}, identical)


def find_by_recipe(run: Run, role: str, features: Iterable[str | Path] = ()) -> Store:
    """A run's store: where it was, else the first under the feature roots with its recipe, dataset and choice of rows.

    Raises UserError where there is none.
    """
    fact, dataset = run.facts["stores"][role], run.facts["dataset"]["name"]
    roots = feature_roots(tuple(features))
    places = [fact["path"]] + [p for root in roots for end in ("zarr", "h5") for p in sorted(root.glob(f"*/*.{end}"))]
    for path in places:
        if not (is_url(str(path)) or Path(path).exists()):
            continue
        try:
            store = open_store(path)
        except (UserError, MachineError):  # not a store, or damaged: not the one that is looked for
            continue
        same = store.manifest.recipe_hash == fact["recipe"] and store.manifest.dataset.get("name") == dataset
        if same and _same_rows(run, role, store):
            return store
    where = ", ".join(str(root) for root in roots)
    raise UserError(
        f"{run.path}: its {role} store is not at {fact['path']}, and no store of {dataset} under {where} has its"
        f" recipe and rows; say where it is with {run.moved_option(role)}, or extract it again"
    )


def _same_rows(run: Run, role: str, store: Store) -> bool:
    """Whether a store's rows were chosen as those that the run was trained on."""
    fact = run.facts["stores"][role]
    if fact["seal"] is not None and store.manifest.seal == fact["seal"]:
        return True
    if "rows" not in fact:  # of a run before that was written down: all frames, as is the rule
        return store.manifest.dataset.get("frames") is None
    return rows_chosen(store) == fact["rows"]


# --- how each kind of run is trained ---


def _head(run: Run, stores: Mapping[str, Store], weights, place: Place, options: dict) -> None:
    from pipelines.training import train_head

    options["set"] = {**options["set"], **run.facts["head"]["config"]}
    train_head(run.head_name, **stores, **options, **_leave(run), allow_random=True)


def _sampler(run: Run, stores: Mapping[str, Store], weights, place: Place, options: dict) -> None:
    from pipelines.sampler_training import train_joint_sampler
    from pipelines.training import train_head

    (target,) = run.facts["targets"]
    decided = ("channels", "classes", "multi_label")
    config = {k: v for k, v in run.facts["head"]["config"].items() if k not in decided}
    options |= {"set": {**options["set"], **config}, "target": target, "allow_random": True, **_leave(run)}
    if run.features == "frozen":
        train_head(run.head_name, **stores, **options)
        return
    network = run.facts["network"]
    train_joint_sampler(
        network["name"], **stores, weights=_weights(run, weights), option=_option(network["options"]), **options
    )


def _backbone(run: Run, stores: Mapping[str, Store], weights, place: Place, options: dict) -> None:
    from pipelines.base_training import train_backbone

    facts, own = run.facts, dict(options["set"])
    if "head" in facts:
        options |= {"head": facts["head"]["name"]}
        own |= facts["head"]["config"]
    else:
        targets = list(facts["targets"])
        options |= {"target": "both" if targets == ["verb", "noun"] else targets[0]}
    frames = stores.get("frames", "decode")
    train_backbone(
        facts["network"]["name"],
        **{**options, "set": own},
        dataset=place.dataset or facts["dataset"]["name"],
        frames=frames,
        objects=stores.get("objects"),
        data=place.data,
        videos=place.videos,
        weights=_weights(run, weights),
        option=_option(facts["network"]["options"]),
    )


def _recogniser(run: Run, stores: Mapping[str, Store], weights, place: Place, options: dict) -> None:
    from pipelines.recogniser_training import train_recogniser

    facts, own = run.facts, {}
    if "frames" in stores:
        kept = {k: v for k, v in facts["network"]["options"].items() if k not in ("resize", "logits", "classes")}
        own = {"backbone": facts["network"]["name"], "option": _option(kept)}
    train_recogniser(
        target=next(iter(facts["targets"])),
        strategy=facts["strategy"],
        weights=_weights(run, weights) if "frames" in stores else weights,
        allow_random=True,
        **stores,
        **own,
        **options,
        **_leave(run),
    )


def _detector(run: Run, stores: Mapping[str, Store], weights, place: Place, options: dict) -> None:
    from pipelines.detector_training import train_detector

    facts = run.facts
    kept = {k: v for k, v in facts["network"]["options"].items() if k != "classes"}
    train_detector(
        place.dataset or facts["dataset"]["name"],
        detector=facts["network"]["name"],
        weights=_weights(run, weights),
        option=_option(kept),
        boxes=place.boxes,
        data=place.data,
        videos=place.videos,
        frames=stores["frames"].path,
        **options,
        **_leave(run),
    )


def _retrieval(run: Run, stores: Mapping[str, Store], weights, place: Place, options: dict) -> None:
    from pipelines.retrieval_training import FROM_STORES, TEXT, train_retrieval

    config = {k: v for k, v in run.facts["head"]["config"].items() if k not in FROM_STORES}
    end_to_end = "network" in run.facts
    train_retrieval(
        run.head_name,
        text=run.facts["network"]["name"] if end_to_end else stores[TEXT],
        weights=_weights(run, weights) if end_to_end else None,
        experts={role: store for role, store in stores.items() if role != TEXT},
        allow_random=True,
        **{**options, "set": {**options["set"], **config}},
        **_leave(run),
    )


_TRAININGS = {
    "head": _head,
    "sampler": _sampler,
    "retrieval": _retrieval,
    "backbone": _backbone,
    "recogniser": _recogniser,
    "detector": _detector,
}


def _leave(run: Run) -> dict:
    return {"allow_incomplete": run.facts["allow_incomplete"]}


def _option(options: Mapping[str, object]) -> list[str]:
    """A network's options as the command line has them."""
    return [f"{key}={json.dumps(value)}" for key, value in options.items()]


def _weights(run: Run, given: str | None) -> str | None:
    """What to start from: what was given, else what run.json names (a run: beside this one), None for the published
    weights. Whether they are the same, by their hash, the training finds out before it begins."""
    kind, _, name = run.facts["network"]["origin"].partition(":")
    if given is not None or kind == "random":
        return given or f"{kind}:{name}"
    if kind != "run":
        return None
    beside = run.path.resolve().parent / name
    if not (beside / "run.json").is_file():
        raise UserError(f"{run.path} began with the weights of the run {name}: say where it is with --weights PATH")
    return str(beside)
