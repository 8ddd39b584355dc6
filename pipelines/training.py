"""Stage two: train a small head on stores of cached features.

An epoch shows every training clip once, as one of its draws. Batches are read ahead by threads; after every epoch the
validation split is scored, and the head, the optimiser and the log are on disk, so that an interrupted training goes
on from there and ends as if nothing had happened.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from errors import MachineError, UserError
from extract.sampling import object_windows
from heads import get_head
from heads.metrics import action_prior
from pipelines.evaluation import (
    autocast,
    clip_dataset,
    figures,
    pick_device,
    predict_scores,
    prefetch,
    seen_by,
    to_device,
    unknown_ancestors,
    unknown_line,
)
from pipelines.find_stores import find_stores
from pipelines.provenance import run_facts
from pipelines.run_folder import Run, head_facts, load_tensors, save_tensors, start_run, store_facts
from pipelines.settings import parse_settings, settings_of
from stores import ClipDataset, open_store

__all__ = ["TrainingConfig", "train_head"]

# Arrays read once and kept, the smallest first: at EPIC-55's size vectors, boxes and the RoI features of 5 boxes a
# frame (1.2 GB). Shuffled reads of them would cost as much again as those of the maps, which stay on disk.
KEEP_BYTES = 3 << 29
FITS = ("train", "trainval")
PRIORS = ("joint", "noun_given_verb", "none")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class TrainingConfig:
    """How a head is trained; the defaults are SAOA's on I3D features (thesis section 3.3.2)."""

    # budget
    epochs: int = 15
    batch_size: int = 32  # clips

    # SGD
    lr: float = 1e-3
    last_lr: float = 1e-4  # learning rate of the last epochs
    last_epochs: int = -1  # how many those are; -1: a third of all (5 of 15)
    momentum: float = 0.9
    weight_decay: float = 1e-4

    # actions
    prior: str = "joint"  # mu of eq. 3.14: joint | noun_given_verb | none

    # the machine
    precision: str = "fp32"  # fp32 | bf16
    workers: int = 2  # threads that read batches ahead
    ahead: int = 4  # batches they may be ahead

    def __post_init__(self):
        for name, least in (("epochs", 1), ("batch_size", 1), ("last_epochs", -1), ("workers", 1), ("ahead", 1)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("lr", "last_lr", "momentum", "weight_decay"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UserError(f"{name} must be a number from 0 on, got {getattr(self, name)}")
        for name, choices in (("prior", PRIORS), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def lr_of(self, epoch: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        last = self.epochs // 3 if self.last_epochs < 0 else self.last_epochs
        return self.last_lr if epoch >= self.epochs - last else self.lr


# What the thesis changes with the backbone: R-50 features go in unscaled, at a constant rate (section 3.3.2).
FAMILIES = {"r3d50": {"lr": 1e-4, "last_lr": 1e-4, "rescale": False}}


def train_head(
    name: str,
    *,
    verb=None,
    noun=None,
    objects=None,
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

    if fit not in FITS:
        raise UserError(f"--fit must be one of {', '.join(FITS)}, got {fit!r}")
    head_class = get_head(name)
    given = {"verb": verb, "noun": noun, "objects": objects}
    stores = _stores(name, head_class.reads, given, dataset, features, say)
    _refuse_random(stores, allow_random)

    # Settings, from the thesis's defaults for these features to what the user says.
    family = next((v for k, v in FAMILIES.items() if str(_family(stores["verb"])).startswith(k)), {})
    known = {**settings_of(TrainingConfig), **settings_of(head_class.Config)}
    windows = object_windows(stores["verb"].manifest.dataset.get("family", ""))
    defaults = {**family, **{f"{name}_window_s": seconds for name, seconds in windows.items()}}
    chosen = {key: value for key, value in defaults.items() if key in known} | parse_settings(set, known)
    if epochs is not None:
        chosen["epochs"] = epochs
    training = TrainingConfig(**_part(chosen, TrainingConfig))
    shapes = {
        role: {array: _array(store, array).row_shape for array in head_class.reads[role]}
        for role, store in stores.items()
    }
    classes = _classes(stores["verb"])
    sizes = {"verbs": classes["verb"], "nouns": classes["noun"], **head_class.dims(shapes)}
    config = head_class.Config(**{**sizes, **_part(chosen, head_class.Config)})

    torch.manual_seed(seed)
    head = head_class(config)
    fitted = clip_dataset(head, stores, fit, allow_incomplete=allow_incomplete, keep_bytes=KEEP_BYTES)
    lineage = _lineage(stores)
    unknown = unknown_ancestors(lineage)
    if unknown:
        say(unknown_line(unknown))
    validation = _validation(head, stores, fit, lineage, allow_incomplete, say)
    device = pick_device(device)
    facts = {
        "head": head_facts(name, config),
        "training": {k: v for k, v in asdict(training).items() if k not in ("workers", "ahead")},
        "seed": seed,
        "fit": fit,
        "dataset": {"name": fitted.dataset_name, "classes": classes},
        "trained_on": {"name": f"this {name}", "dataset": fitted.dataset_name, "split": fit},
        "lineage": lineage,
        "unknown_ancestors": unknown,
        "random_features": any(_is_random(entry) for entry in lineage),
        "allow_incomplete": allow_incomplete,
        "stores": {role: store_facts(store) for role, store in stores.items()},
        "made": run_facts(device),
    }
    out = Path(out or Path("runs") / f"{name.rpartition(':')[2]}-{fitted.dataset_name.replace(':', '-')}-s{seed}")
    run, resumed = start_run(out, facts)
    say(_coverage_line("training", fitted))
    if validation is not None:
        say(_coverage_line("validation", validation))
    loop = _Loop(run, head.to(device), training, fitted, validation, seed, device, progress)
    if resumed and loop.resume():
        if loop.epoch == training.epochs and (run.path / "metrics.json").is_file():
            say(f"{run.path}: already trained for {training.epochs} epochs, nothing to do")
            return run.path
        say(f"{run.path}: going on after epoch {loop.epoch} of {training.epochs}")
    loop.run_all(say)
    return run.path


class _Loop:
    """The training loop and its state between epochs."""

    def __init__(self, run: Run, head, config: TrainingConfig, fitted, validation, seed, device, progress):
        import torch

        self.run, self.head, self.config = run, head, config
        self.fitted, self.validation = fitted, validation
        self.seed, self.device, self.progress = seed, device, progress
        labels = fitted.labels
        self.usable = np.flatnonzero(fitted.ok & (labels["verb"] >= 0) & (labels["noun"] >= 0))
        if not len(self.usable):
            raise UserError("no training clip has features and labels")
        self.prior = _prior(fitted.split_labels(run.facts["fit"]), head.config, config.prior)
        self.optimiser = torch.optim.SGD(
            head.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        self.epoch = 0  # epochs done
        self.history: list[dict] = []
        self.best: dict | None = None  # figures of the best epoch

    # --- epochs ---

    def run_all(self, say) -> None:
        self.run.write_prior(self.prior)
        while self.epoch < self.config.epochs:
            row = self.train_epoch()
            result = None
            if self.validation is not None:
                scores = predict_scores(
                    self.head, self.validation, self.device, precision=self.config.precision, progress=self.progress
                )
                result = figures(scores, self.validation, self.prior)
                row |= {f"val_{k}_top{n}": result[k][f"top{n}"] for k in ("verb", "noun", "action") for n in (1, 5)}
            self.history.append(row)
            self.epoch += 1
            self.keep(result)
            say(_epoch_line(row, self.config.epochs))
        rows = self.fitted.coverage()
        self.run.write_json(
            "metrics.json",
            {
                **{key: value for key, value in self.best.items() if key != "score"},  # no figure of its own
                "trained_clips": len(np.unique(self.fitted.clips[self.usable])),
                "training_coverage": rows["ok"] / rows["items"],
                "training_rows": rows,
                "loss": self.history[self.best["epoch"] - 1]["loss"],
                "unknown_ancestors": unknown_ancestors(self.run.facts["lineage"]),
            },
        )

    def order(self) -> np.ndarray:
        """Items of this epoch: every usable clip once, as one of its draws, shuffled. Depends on seed and epoch."""
        rng = np.random.Generator(np.random.Philox(key=[self.seed, self.epoch]))
        shuffled = rng.permutation(self.usable)
        _, first = np.unique(self.fitted.clips[shuffled], return_index=True)
        return shuffled[np.sort(first)]

    def train_epoch(self) -> dict:
        import torch
        from tqdm import tqdm

        config, started = self.config, time.perf_counter()
        torch.manual_seed(self.seed * 1_000_003 + self.epoch)  # for heads that draw, dropout say
        lr = config.lr_of(self.epoch)
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        order = self.order()
        # Within a batch the order means nothing to the loss, and ascending rows are read without a copy.
        batches = [np.sort(order[i : i + config.batch_size]) for i in range(0, len(order), config.batch_size)]
        if len(batches) > 1 and len(batches[-1]) == 1:  # a single clip has no batch statistics for a batch norm
            batches[-2:] = [np.sort(np.concatenate(batches[-2:]))]
        total = torch.zeros((), device=self.device)
        self.head.train()
        stream = prefetch(self.fitted, batches, config.workers, config.ahead)
        name = f"epoch {self.epoch + 1}/{config.epochs}"
        for arrays in tqdm(stream, total=len(batches), desc=name, disable=not self.progress, leave=False):
            total += train_step(self.head, self.optimiser, arrays, self.device, config.precision) * len(arrays["item"])
        loss = float(total) / len(order)
        if not np.isfinite(loss):
            raise MachineError(
                f"the loss of epoch {self.epoch + 1} is {loss}: try a smaller lr than {lr} (--set lr=...)"
            )
        return {"epoch": self.epoch + 1, "lr": lr, "loss": loss, "seconds": round(time.perf_counter() - started, 3)}

    # --- checkpoints ---

    def keep(self, result: dict | None) -> None:
        """Write the best head if this epoch is it, the log, and last of all what a rerun goes on from.

        A kill in between is harmless: the rerun does this epoch again, with the same result.
        """
        score = result["action"]["top1"] if result else self.epoch
        if self.best is None or score > self.best["score"]:
            self.best = {"epoch": self.epoch, "score": score, **(result or {})}
            metadata = {**self.run.facts["head"], "epoch": self.epoch}
            save_tensors(self.run.path / "best.safetensors", self.head.state_dict(), metadata)
        self.run.write_log(self.history)
        tensors = {f"head.{key}": value for key, value in self.head.state_dict().items()}
        for key, parameter in self.head.named_parameters():
            momentum = (
                self.optimiser.state[parameter].get("momentum_buffer") if parameter in self.optimiser.state else None
            )
            if momentum is not None:
                tensors[f"momentum.{key}"] = momentum
        state = {"epoch": self.epoch, "history": self.history, "best": self.best}
        save_tensors(self.run.path / "last.safetensors", tensors, state)

    def resume(self) -> bool:
        """Take up the state after the last finished epoch, if there is one."""
        path = self.run.path / "last.safetensors"
        if not path.is_file():
            return False
        tensors, state = load_tensors(path)
        self.head.load_state_dict({k[5:]: v for k, v in tensors.items() if k.startswith("head.")})
        for key, parameter in self.head.named_parameters():
            if f"momentum.{key}" in tensors:
                self.optimiser.state[parameter] = {"momentum_buffer": tensors[f"momentum.{key}"].to(self.device)}
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
        return True


def train_step(head, optimiser, arrays: dict, device: str, precision: str = "fp32"):
    """One step of SGD on one batch of `ClipDataset.batch`. Returns the loss, detached."""
    batch = to_device(arrays, device)
    with autocast(device, precision):
        loss = head.loss(head(batch), batch["labels"])
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return loss.detach().float()


# --- what is trained on what ---


def _stores(name: str, reads: Mapping, given: Mapping, dataset, features, say) -> dict:
    """An open store for every role the head reads; what was not given is looked for."""
    by_path: dict[Path, object] = {}  # a store given for two roles is opened, and later read, once

    def opened(store):
        if not isinstance(store, (str, Path)):
            return store
        path = Path(store).resolve()
        if path not in by_path:
            by_path[path] = open_store(path)
        return by_path[path]

    stores = {role: opened(store) for role, store in given.items() if store is not None and role in reads}
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


def _array(store, name: str):
    arrays = store.manifest.arrays
    if name not in arrays:
        has = ", ".join(arrays)
        raise UserError(f"{store.path} has no array {name!r} (it has {has}); extract it with --keep {name}")
    return arrays[name]


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


def _is_random(entry: Mapping) -> bool:
    return str(entry.get("dataset", "")).startswith("random:")


def _refuse_random(stores: Mapping, allowed: bool) -> None:
    for role, store in stores.items():
        for entry in store.manifest.lineage:
            if _is_random(entry) and not allowed:
                raise UserError(
                    f"{store.path} ({role}) was made by a network with {entry['dataset']} weights: its figures mean"
                    " nothing about the method. Pass --allow-random if that is what you want"
                )


def _lineage(stores: Mapping) -> list[dict]:
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


def _prior(labels: Mapping[str, np.ndarray], config, kind: str) -> np.ndarray:
    """mu of eq. 3.14: annotations say how often an action occurs, so clips whose features failed count as well."""
    known = (labels["verb"] >= 0) & (labels["noun"] >= 0)
    return action_prior(labels["verb"][known], labels["noun"][known], config.verbs, config.nouns, kind)


def _part(chosen: Mapping, config) -> dict:
    names = {field.name for field in fields(config)}
    return {key: value for key, value in chosen.items() if key in names}


def _coverage_line(what: str, dataset: ClipDataset) -> str:
    rows = dataset.coverage()
    line = f"{what}: {rows['ok']} of {rows['items']} clips and draws have features ({rows['ok'] / rows['items']:.1%})"
    for code in ("failed", "pending"):
        line += "".join(f", {n} {code} in {role}" for role, n in rows[code].items())
    return line + "".join(f", {n} without {name}" for name, n in rows["without_objects"].items())


def _epoch_line(row: dict, epochs: int) -> str:
    line = f"epoch {row['epoch']:.0f}/{epochs}  loss {row['loss']:.4f}  {row['seconds']:.1f} s"
    for name in ("verb", "noun", "action"):
        if f"val_{name}_top1" in row:
            line += f"  {name} {row[f'val_{name}_top1']:.1%}"
    return line
