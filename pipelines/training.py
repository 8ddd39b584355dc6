"""Stage two: train a small head on stores of cached features.

An epoch shows every training clip once, as one of its draws. Batches are read ahead by threads; after every epoch the
validation split is scored; the loop (`pipelines.loop`) keeps what an interrupted training goes on from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract.sampling import object_windows
from heads import get_head
from heads.metrics import action_prior
from pipelines.evaluation import clip_dataset, figures, predict_scores
from pipelines.find_stores import find_stores
from pipelines.lineage import is_random, lineage_of, refuse_random, seen_by, unknown_ancestors, unknown_line
from pipelines.loop import Loop, Schedule, batches_of, check_fit, train
from pipelines.needed_arrays import array_of
from pipelines.provenance import run_facts
from pipelines.run_folder import Run, head_facts, opened_once, start_run, store_facts
from pipelines.settings import parse_settings, part_of, settings_of, with_sizes
from pipelines.world import take_place
from stores import ClipDataset

__all__ = ["KEEP_BYTES", "TrainingConfig", "given_stores", "train_head"]

# Arrays read once and kept, the smallest first: at EPIC-55's size vectors, boxes and the RoI features of 5 boxes a
# frame (1.2 GB). Shuffled reads of them would cost as much again as those of the maps, which stay on disk.
KEEP_BYTES = 3 << 29
PRIORS = ("joint", "noun_given_verb", "none")


@dataclass(frozen=True)
class TrainingConfig(Schedule):
    """How a head is trained; the defaults are SAOA's on I3D features (thesis section 3.3.2)."""

    # what it sees of a clip that was extracted at several random centres (--draws)
    draws: int = 0  # only the first so many; 0: all
    in_turn: bool = False  # epoch 1 shows draw 1, epoch 2 draw 2, ...; False: any of them at random

    # actions
    prior: str = "joint"  # mu of eq. 3.14: joint | noun_given_verb | none

    def __post_init__(self):
        super().__post_init__()
        if self.draws < 0:
            raise UserError(f"draws must be at least 0, got {self.draws}")
        if self.prior not in PRIORS:
            raise UserError(f"prior must be one of {', '.join(PRIORS)}, got {self.prior!r}")


# What the thesis changes with head and backbone, {(head, family or "" for any other): settings}. SAOA: R-50 features go
# in unscaled, at a constant rate (section 3.3.2). IPL: section 4.2.4.
SCHEDULES: dict[tuple[str, str], dict[str, object]] = {
    ("saoa", "r3d50"): {"lr": 1e-4, "last_lr": 1e-4, "rescale": False},
    ("ipl", ""): {"epochs": 30, "lr": 6e-3, "last_lr": 6e-4, "last_epochs": 10, "weight_decay": 5e-4},
    ("ipl", "r2plus1d34"): {"epochs": 20, "lr": 4e-4, "decay_every": 9, "last_epochs": 0, "weight_decay": 5e-4},
}


def train_head(
    name: str,
    *,
    verb=None,
    noun=None,
    objects=None,
    sampler=None,
    recogniser=None,
    text=None,
    weights: str | None = None,
    experts=(),
    target: str | None = None,
    dataset: str | None = None,
    features: Iterable[str | Path] = (),
    out: str | Path | None = None,
    set: Mapping[str, object] | Iterable[str] = (),  # noqa: A002  the command line's --set
    fit: str = "train",
    seed: int = 0,
    epochs: int | None = None,
    device: str | None = None,
    allow_random: bool = False,
    allow_incomplete: bool = False,
    progress: bool = True,
    say=print,
) -> Path:
    """Train head `name` on stores and return its run folder (pipelines.run_folder says what is in it).

    Args:
        verb, noun, objects: stores or their paths; those not given are looked for under `features` (of `dataset`
            if that is given), see `find_stores`.
        sampler, recogniser, target: of heads that sample frames, see `pipelines.sampler_training`.
        text, weights, experts: of heads that find videos by texts, see `pipelines.retrieval_training`.
        out: run folder, default runs/<head>-<dataset>-s<seed>. The same training there goes on where it stopped.
        set: settings by name, {"lr": 0.01} or ["lr=0.01"]: fields of TrainingConfig and of the head's config.
        fit: clips to train on; with "trainval" there is no validation, and the last epoch counts as best.
        seed: of initial weights, order and draws.
        say: called with each line for the user.

    Raises:
        UserError: unknown settings, random or incomplete features that were not allowed, another training in `out`.
        MachineError: the loss is no longer finite, or a store is damaged.
    """
    import torch

    check_fit(fit)
    head_class = get_head(name)
    given = {"verb": verb, "noun": noun, "objects": objects, "sampler": sampler, "recogniser": recogniser}
    shared = {
        "dataset": dataset,
        "out": out,
        "set": set,
        "fit": fit,
        "seed": seed,
        "epochs": epochs,
        "device": device,
        "allow_random": allow_random,
        "allow_incomplete": allow_incomplete,
        "progress": progress,
        "say": say,
    }
    if "experts" in head_class.reads:
        from pipelines.retrieval_training import train_retrieval

        for role in (role for role, store in given.items() if store is not None):
            say(f"{name} reads no {role} store: {given[role]} is left out")
        return train_retrieval(name, text=text, weights=weights, experts=experts, features=features, **shared)
    if text is not None or weights is not None or experts:
        raise UserError(
            f"--text, --weights and --expert are for retrieval heads; {name} reads {', '.join(head_class.reads)}"
        )
    if {*head_class.reads} == {"sampler", "recogniser"}:
        from pipelines.sampler_training import train_sampler

        return train_sampler(name, given, target=target, **shared)
    if target is not None:
        raise UserError(f"--target is for heads that sample frames; {name} learns verbs and nouns")
    device, world, say = take_place(device, say)
    stores = given_stores(name, head_class.reads, given, dataset, features, say)
    refuse_random(stores, allow_random)

    # Settings, from the thesis's defaults for these features to what the user says.
    family = SCHEDULES.get((name, _family(stores["verb"])), SCHEDULES.get((name, ""), {}))
    known = {**settings_of(TrainingConfig), **settings_of(head_class.Config)}
    windows = object_windows(stores["verb"].manifest.dataset.get("family", ""))
    defaults = {**family, **{f"{name}_window_s": seconds for name, seconds in windows.items()}}
    chosen = {key: value for key, value in defaults.items() if key in known} | parse_settings(set, known, epochs)
    training = TrainingConfig(**part_of(chosen, TrainingConfig))
    shapes = {
        role: {array: array_of(store, array).row_shape for array in head_class.reads[role]}
        for role, store in stores.items()
    }
    classes = _classes(stores["verb"])
    sizes = {"verbs": classes["verb"], "nouns": classes["noun"], **head_class.dims(shapes)}
    config = head_class.Config(**with_sizes(chosen, head_class.Config, sizes))

    torch.manual_seed(seed)
    head = head_class(config)
    drawn = {"draws": range(1, training.draws + 1)} if training.draws else {}
    fitted = clip_dataset(head, stores, fit, allow_incomplete=allow_incomplete, keep_bytes=KEEP_BYTES, **drawn)
    lineage = lineage_of(stores)
    if training.draws > fitted.draws.max():
        raise UserError(
            f"--set draws={training.draws}: {stores[next(iter(stores))].path} has {fitted.draws.max()} random draws a"
            " clip; extract more with --draws"
        )
    unknown = unknown_ancestors(lineage)
    if unknown:
        say(unknown_line(unknown))
    validation = _validation(head, stores, fit, lineage, allow_incomplete, say)
    facts = {
        "head": head_facts(name, config),
        "training": training.facts(),
        "seed": seed,
        "fit": fit,
        "dataset": {"name": fitted.dataset_name, "classes": classes},
        "trained_on": {"name": f"this {name}", "dataset": fitted.dataset_name, "split": fit},
        "lineage": lineage,
        "unknown_ancestors": unknown,
        "random_features": any(is_random(entry) for entry in lineage),
        "allow_incomplete": allow_incomplete,
        "stores": {role: store_facts(store) for role, store in stores.items()},
        "made": run_facts(device),
    }
    out = Path(out or Path("runs") / f"{name.rpartition(':')[2]}-{fitted.dataset_name.replace(':', '-')}-s{seed}")
    run, resumed = start_run(out, facts)
    say(_coverage_line("training", fitted))
    if validation is not None:
        say(_coverage_line("validation", validation))
    task = HeadTask(run, head.to(device), training, fitted, validation, seed, device, progress, max(2, world.size))
    train(Loop(run, task, training, seed=seed, device=device, world=world, progress=progress), resumed, say)
    return run.path


class HeadTask:
    """A head on clips with verb and noun labels."""

    def __init__(self, run: Run, head, config: TrainingConfig, fitted, validation, seed, device, progress, least=2):
        self.run, self.model, self.config = run, head, config
        self.fitted, self.validation = fitted, validation
        self.seed, self.device, self.progress, self.least = seed, device, progress, least
        labels = fitted.labels
        self.usable = np.flatnonzero(fitted.ok & (labels["verb"] >= 0) & (labels["noun"] >= 0))
        if not len(self.usable):
            raise UserError("no training clip has features and labels")
        annotated = fitted.split_labels(run.facts["fit"])  # mu counts clips whose features failed too
        classes = head.config.verbs, head.config.nouns
        self.prior = action_prior(annotated["verb"], annotated["noun"], *classes, config.prior)
        run.write_prior(self.prior)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Every usable clip once, as one of its draws, shuffled."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        usable = self.usable
        if self.config.in_turn:
            draws = np.unique(self.fitted.draws[usable])
            usable = usable[self.fitted.draws[usable] == draws[epoch % len(draws)]]
        shuffled = rng.permutation(usable)
        _, first = np.unique(self.fitted.clips[shuffled], return_index=True)
        batches = batches_of(shuffled[np.sort(first)], self.config.batch_size, self.least)
        # Within a batch the order means nothing to the loss, and ascending rows are read without a copy.
        return [np.sort(items) for items in batches]

    def batch(self, items: np.ndarray, epoch: int) -> dict:
        return self.fitted.batch(items)

    def loss(self, batch: dict):
        return self.model.loss(self.model(batch), batch["labels"])

    def validate(self) -> dict | None:
        if self.validation is None:
            return None
        scores = predict_scores(
            self.model, self.validation, self.device, precision=self.config.precision, progress=self.progress
        )
        return figures(scores, self.validation, self.prior)

    def columns(self, figures: dict) -> dict[str, float]:
        return {f"val_{k}_top{n}": figures[k][f"top{n}"] for k in ("verb", "noun", "action") for n in (1, 5)}

    def score(self, figures: dict) -> float:
        return figures["action"]["top1"]

    def checkpoint(self) -> tuple[dict, dict]:
        return self.model.state_dict(), self.run.facts["head"]

    def finish(self, best: dict, history: list[dict]) -> None:
        rows = self.fitted.coverage()
        self.run.write_json(
            "metrics.json",
            {
                **{key: value for key, value in best.items() if key != "score"},  # no figure of its own
                "trained_clips": len(np.unique(self.fitted.clips[self.usable])),
                "training_coverage": rows["ok"] / rows["items"],
                "training_rows": rows,
                "loss": history[best["epoch"] - 1]["loss"],
                "unknown_ancestors": unknown_ancestors(self.run.facts["lineage"]),
            },
        )


# --- what is trained on what ---


def given_stores(name: str, reads: Mapping, given: Mapping, dataset, features, say) -> dict:
    """An open store for every role the head reads; what was not given is looked for."""
    stores = opened_once({role: store for role, store in given.items() if store is not None and role in reads})
    for role in given:
        if given[role] is not None and role not in reads:
            say(f"{name} reads no {role} store: {given[role]} is left out")
    lacking = [role for role in reads if role not in stores]
    if lacking:
        found, lines = find_stores(reads, dataset=dataset, features=features, given=stores)
        stores |= {role: found[role] for role in lacking}
        for line in lines:
            say(line)
    return {role: stores[role] for role in reads}


def _classes(store) -> dict[str, int]:
    """Outputs a label column: as the dataset says, or one more than the largest label of any clip."""
    said = dict(store.manifest.dataset.get("classes") or {})
    for name in ("verb", "noun"):
        if name not in store.clips:
            raise UserError(f"{store.path}: its clips have no {name} labels (columns: {', '.join(store.clips)})")
        said[name] = max(int(said.get(name, 0)), int(np.max(store.clips[name], initial=-1)) + 1)
    return {name: said[name] for name in ("verb", "noun")}


def _family(store) -> str:
    spec = store.manifest.spec
    return spec.get("family") or spec.get("name") or ""


def _validation(head, stores, fit: str, lineage, allow_incomplete: bool, say) -> ClipDataset | None:
    """The validation clips, or None (with a line that says why) where figures on them would mean nothing."""
    first = stores[next(iter(head.reads))]
    if fit != "train" or "val" not in {str(part) for part in first.clips.get("split", ())}:
        say("no validation: " + (f"fitting on {fit}" if fit != "train" else "the dataset has no split val"))
        return None
    dataset = clip_dataset(head, stores, "val", draws=(0,), allow_incomplete=allow_incomplete)
    seen = seen_by(dataset, lineage)
    if seen:
        say(f"no validation: {seen}")
        return None
    return dataset


def _coverage_line(what: str, dataset: ClipDataset) -> str:
    rows = dataset.coverage()
    line = f"{what}: {rows['ok']} of {rows['items']} clips and draws have features ({rows['ok'] / rows['items']:.1%})"
    for code in ("failed", "pending"):
        line += "".join(f", {n} {code} in {role}" for role, n in rows[code].items())
    return line + "".join(f", {n} without {name}" for name, n in rows["without_objects"].items())
