"""Text-video retrieval: T2VLAD and its baselines, trained from the stores of experts (thesis chapter 6).

The text network is trained with the head (`text` names a network: "end-to-end", as published), or its token features
come out of a store (`text` is one: "frozen", fast). An epoch shows every clip once, with one of its captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from errors import MachineError, UserError
from extract.experts import EXPERTS
from extract.networks import create_network, network_spec
from extract.weights import TRAINED_BESIDE
from heads import get_head
from pipelines.devices import pick_device
from pipelines.evaluated_clips import EvaluatedClips
from pipelines.find_stores import stores_of_datasets
from pipelines.lineage import (
    descent,
    is_random,
    lineage_of,
    refuse_random,
    seen_by,
    unknown_ancestors,
    unknown_line,
    without_random,
)
from pipelines.loop import Loop, Schedule, batches_of, check_fit, seeded, train
from pipelines.needed_arrays import no_array
from pipelines.provenance import run_facts
from pipelines.request import feature_roots
from pipelines.retrieval_clips import Pairs, expert_array, max_tokens_of, read_captions
from pipelines.run_folder import Run, head_facts, start_run, store_facts
from pipelines.settings import parse_settings, part_of, settings_of, with_sizes
from pipelines.world import take_place
from stores import Store, open_store
from stores.joining import same_dataset
from stores.splits import split_column

__all__ = ["FROM_STORES", "RetrievalSchedule", "evaluate_retrieval", "train_retrieval"]

KEEP_BYTES = 4 << 30  # of experts' features, and as many of words', read once: the experts of MSR-VTT fit
TEXT = "text"  # the role of a store of token features
FROM_STORES = ("text_channels", "experts", "expert_channels", "padded")  # fields of a head's config that stores decide


@dataclass(frozen=True)
class RetrievalSchedule(Schedule):
    """How a retrieval head is trained; the defaults are the thesis's (section 6.3.1), which does not state how long."""

    epochs: int = 50
    batch_size: int = 64
    optimiser: str = "ranger"
    momentum: float = 0.95  # of Ranger
    lr: float = 1e-4
    last_epochs: int = 0
    decay_every: int = 5
    decay_by: float = 0.9  # what the rate is multiplied by after so many epochs

    # what is seen
    scheme: str = ""  # of the splits: 1ka has MSR-VTT's 1k-A, for instance
    max_tokens: int = 0  # of an expert and clip; 0: as many as the release, expert by expert
    text_tokens: int = 0  # of a caption, where the text network is trained too; 0: the network's own (37)

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.decay_by <= 1:
            raise UserError(f"decay_by must be above 0 and at most 1, got {self.decay_by}")
        if self.micro_batch:
            raise UserError("micro_batch: the ranking loss compares all pairs of a batch; choose a smaller batch_size")
        for name in ("max_tokens", "text_tokens"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")

    def split(self, part: str) -> str:
        """`[scheme:]part`."""
        return f"{self.scheme}:{part}" if self.scheme else part


# What T2VLAD's presets change beside the head.
SCHEDULES: dict[str, dict[str, object]] = {"released": {"optimiser": "adamw", "momentum": 0.9}}


def train_retrieval(
    name: str,
    *,
    text: str | Path | Store | None = None,
    experts: Mapping[str, object] | Iterable[str] = (),
    weights: str | None = None,
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
    """Train head `name` (t2vlad, mee, ce, global_only) and return its run folder.

    Args:
        text: a store of token features (or its path), or the name of a text network, which is trained too. None: bert.
        experts: {name: store or path} or ["name=path"]; those of `extract --expert` that the dataset has under
            `features`, if none is given.
        weights: of the text network, as for extraction.
        set: settings by name: fields of RetrievalSchedule and of the head's config.
        dataset, features, fit, seed, epochs, out, ...: as for `pipelines.train_head`.

    Raises:
        UserError: no experts, several datasets that have some, stores of different datasets, a dataset without
            captions, unknown settings, random or incomplete features that were not allowed, another training in `out`.
        MachineError: the loss is no longer finite, or a store is damaged.
    """
    import torch

    from pipelines.retrieval_model import RetrievalModel

    check_fit(fit)
    head_class = get_head(name)
    stores = _expert_stores(experts, dataset, features, say)
    network, text_store = _text(text)
    if text_store is not None:
        stores = {TEXT: text_store, **stores}
    if (own := same_dataset(stores)) != (dataset or own):
        raise UserError(f"--dataset {dataset}: the stores are of {own}")
    refuse_random(stores, allow_random)
    for line in _declared(stores):
        say(line)
    chosen = parse_settings(set, settings_of(RetrievalSchedule) | settings_of(head_class.Config, FROM_STORES), epochs)
    if name == "t2vlad" and own.startswith("activitynet_captions"):
        chosen.setdefault("clusters", 16)  # long videos (section 6.3.1)
    chosen = SCHEDULES.get(chosen.get("preset"), {}) | chosen
    schedule = RetrievalSchedule(**part_of(chosen, RetrievalSchedule))
    (device, world, say), module = take_place(device, say), None
    if world.size > 1:
        raise UserError(
            f"{name} is trained by one process: its loss compares every caption of a batch with every clip of it"
        )
    if network is not None:
        options = {"max_tokens": schedule.text_tokens} if schedule.text_tokens else {}
        try:
            module = create_network(network, weights, **options).to(device, "fp32")
        except (UserError, MachineError) as error:
            raise type(error)(
                f"{error.message}. A text network that is not trained too needs no download here: make a store of its"
                f" tokens (extract --backbone minilm, for one) and give it by --text STORE"
            ) from error
        if any(is_random(entry) for entry in module.lineage) and not allow_random:
            raise UserError(f"{network} with random weights: pass --allow-random if that is what you want")
    shapes = {role: _shapes(role, store) for role, store in stores.items()}
    if module is not None:
        shapes = {TEXT: {"tokens": module.spec.outputs["tokens"][0]}, **shapes}
    config = head_class.Config(**with_sizes(chosen, head_class.Config, head_class.dims(shapes)))
    if not getattr(config, "mask_padding", True) and hasattr(config, "padded"):
        most = max_tokens_of(config.experts, schedule.max_tokens)
        config = replace(config, padded=(shapes[TEXT]["tokens"][0], *most.values()))
    torch.manual_seed(seed)
    model = RetrievalModel(head_class(config), module).to(device)

    lineage = lineage_of(stores) + ([] if module is None else without_random(module.lineage))
    data = _Data(stores, module, schedule, seed, allow_incomplete)
    fitted = data.pairs(schedule.split(fit), pick="random", keep_bytes=KEEP_BYTES)
    unknown = unknown_ancestors(lineage)
    if unknown:
        say(unknown_line(unknown))
    validation = _validation(data, fit, lineage, say)
    facts = {
        "kind": "retrieval",
        "features": "frozen" if module is None else "end-to-end",
        "head": head_facts(name, config),
        **({} if module is None else {"network": _network_facts(network, module, options)}),
        "training": schedule.facts(),
        "seed": seed,
        "fit": fit,
        "dataset": {"name": own, "classes": {}},
        "trained_on": {"name": f"this {name}", "dataset": own, "split": schedule.split(fit)},
        "lineage": lineage,
        "unknown_ancestors": unknown,
        "random_features": any(is_random(entry) for entry in [*lineage, *(module.lineage if module else ())]),
        "allow_incomplete": allow_incomplete,
        "stores": {role: store_facts(store) for role, store in stores.items()},
        "made": run_facts(device),
    }
    out = Path(out or Path("runs") / f"{name.rpartition(':')[2]}-{own.replace(':', '-')}-s{seed}")
    run, resumed = start_run(out, facts)
    say(f"training: {len(fitted.columns)} clips with {len(fitted)} captions; experts: {', '.join(config.experts)}")
    for role in (role for role, n in fitted.videos.coverage()["present"].items() if not n):
        say(f"warning: {stores[role].path} ({role}) has nothing of any clip of split {schedule.split(fit)}")
    task = RetrievalTask(run, model, schedule, fitted, validation, seed, device)
    train(Loop(run, task, schedule, seed=seed, device=device, progress=progress), resumed, say)
    return run.path


class RetrievalTask:
    """A retrieval head on captions and clips; see `pipelines.loop.Task`. Items are captions of `fitted`."""

    def __init__(self, run: Run, model, schedule: RetrievalSchedule, fitted: Pairs, validation, seed: int, device: str):
        self.run, self.model, self.schedule = run, model, schedule
        self.fitted, self.validation, self.seed, self.device = fitted, validation, seed, device
        self.usable = fitted.usable()
        if not len(self.usable):
            raise UserError(f"no caption of split {fitted.split!r} has features")

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Every clip once, with one of its captions at random."""
        self.fitted.epoch(epoch)
        rng = np.random.default_rng(seeded(self.seed, epoch))
        return batches_of(self.fitted.one_each(rng.permutation(self.usable)), self.schedule.batch_size)

    def batch(self, items: np.ndarray, epoch: int) -> dict:
        return self.fitted.batch(items)

    def loss(self, batch: Mapping):
        return self.model.loss(batch)

    def validate(self) -> dict | None:
        """`pipelines.retrieval_model.ranked` of the validation split."""
        from pipelines.retrieval_model import ranked

        if self.validation is None:
            return None
        return ranked(self.model, self.validation, self.device, self.schedule.precision)

    def columns(self, figures: dict) -> dict[str, float]:
        """Recalls as shares, as every log has them."""
        recalls = {f"val_{way}_R{k}": figures[way][f"R@{k}"] / 100 for way in ("t2v", "v2t") for k in (1, 5, 10)}
        return recalls | {f"{way}_MdR": figures[way]["MdR"] for way in ("t2v", "v2t")}

    def score(self, figures: dict) -> float:
        """The sum of R@1, R@5 and R@10 both ways."""
        return sum(figures[way][f"R@{k}"] for way in ("t2v", "v2t") for k in (1, 5, 10))

    def checkpoint(self) -> tuple[dict, dict]:
        """The head alone; or the text network's tensors by their own names, the head's beside them."""
        facts = self.run.facts
        head = self.model.head.state_dict()
        if self.model.text is None:
            return head, facts["head"]
        beside = {f"{TRAINED_BESIDE}head.{name}": value for name, value in head.items()}
        return {**self.model.text.state_dict(), **beside}, {
            "network": facts["network"]["name"],
            "options": facts["network"]["options"],
            "targets": {},
            "head": facts["head"],
            "lineage": descent(facts),
        }

    def finish(self, best: dict, history: list[dict]) -> None:
        found = {key: value for key, value in best.items() if key != "score"}
        trained = {"trained_clips": len(self.fitted.columns), "trained_captions": len(self.usable)}
        extra = {"loss": history[best["epoch"] - 1]["loss"], "features": self.run.facts["features"]}
        extra["unknown_ancestors"] = unknown_ancestors(self.run.facts["lineage"])
        self.run.write_json("metrics.json", found | trained | extra)


def open_retrieval(run: Run, stores: Mapping[str, object] | None, device: str, allow_incomplete: bool):
    """(RetrievalModel of a run's best checkpoint, its `_Data`, the checkpoint's metadata)."""
    from pipelines.retrieval_model import trained_model

    opened = run.open_stores(stores)
    model, network, metadata = trained_model(run)
    schedule = RetrievalSchedule(**run.facts["training"])
    data = _Data(opened, network, schedule, run.facts["seed"], allow_incomplete)
    return model.to(device), data, metadata


def evaluate_retrieval(
    run: Run,
    split: str = "val",
    *,
    stores: Mapping[str, object] | None = None,
    place=None,
    device: str | None = None,
    allow_incomplete: bool = False,
    allow_seen: bool = False,
    progress: bool = True,
) -> dict:
    """`pipelines.evaluate` of a run that `train_retrieval` made; the figures of `retrieval_model.ranked`.

    Texts and videos are embedded in the precision of the run's schedule, as its validation embedded them, and compared
    in float32: on the same clips the figures are the same.
    """
    from pipelines.evaluation import check_lineage, write_figures
    from pipelines.retrieval_model import ranked

    device = pick_device(device)
    model, data, metadata = open_retrieval(run, stores, device, allow_incomplete)
    pairs = data.pairs(split)
    check_lineage(run, _clips_of(pairs), split, allow_seen)
    return write_figures(run, split, metadata["epoch"], ranked(model, pairs, device, data.schedule.precision))


# --- what is trained on what ---


class _Data:
    """Stores of a run, and splits of them."""

    def __init__(self, stores: Mapping[str, Store], network, schedule: RetrievalSchedule, seed, allow_incomplete):
        self.experts = {role: store for role, store in stores.items() if role != TEXT}
        self.network, self.schedule, self.seed, self.allow_incomplete = network, schedule, seed, allow_incomplete
        first = stores[TEXT] if network is None else next(iter(self.experts.values()))
        self.captions, self.text = read_captions(first, network, allow_incomplete, KEEP_BYTES)

    def pairs(self, split: str, pick: str = "even", keep_bytes: int = 0) -> Pairs:
        return Pairs(
            self.experts, self.captions, self.text, split, most=self.schedule.max_tokens, pick=pick, seed=self.seed,
            allow_incomplete=self.allow_incomplete, keep_bytes=keep_bytes,
        )  # fmt: skip


def _network_facts(name: str, network, options: Mapping) -> dict:
    facts = {"name": name, "options": dict(options), "weights": network.weights_hash}
    return facts | {"origin": network.weights_origin}


def _clips_of(pairs: Pairs) -> EvaluatedClips:
    """The clips of some pairs, for what their ancestors saw."""
    store = next(iter(pairs.videos.stores.values()))
    table = {name: np.asarray(store.clips[name]) for name in store.clips}
    which = pairs.videos.clips[pairs.columns]
    return EvaluatedClips(pairs.videos.dataset_name, table, {}, which, str(store.path))


def _validation(data: _Data, fit: str, lineage, say) -> Pairs | None:
    """The validation pairs, or None (with a line that says why) where figures on them would mean nothing."""
    split = data.schedule.split("val")
    first = next(iter(data.experts.values()))
    if fit != "train" or "val" not in {str(part) for part in first.clips.get(split_column(split), ())}:
        say("no validation: " + (f"fitting on {fit}" if fit != "train" else f"the dataset has no split {split}"))
        return None
    pairs = data.pairs(split)
    seen = seen_by(_clips_of(pairs), lineage)
    if seen:
        say(f"no validation: {seen}")
        return None
    return pairs


def _declared(stores: Mapping[str, Store]) -> list[str]:
    """A line for each store of features that others made: what they say of them."""
    lines = []
    for role, store in stores.items():
        if made := store.manifest.recipe.get("imported"):
            said = ", ".join(f"{name} {value}" for name, value in made["declared"].items() if name != "content")
            lines.append(f"{role}: imported from {made['from']} ({made['expert']}; {said}): declared, not verified")
    return lines


def _shapes(role: str, store: Store) -> dict[str, tuple[int, ...]]:
    """{array: row shape} of what a role reads. Raises UserError for a store that has nothing of it."""
    there = store.manifest.arrays
    for name in ("tokens", "n_tokens") if role == TEXT else ():
        if name not in there:
            raise no_array(store, name)
    array = "tokens" if role == TEXT else expert_array(store)
    return {array: there[array].row_shape}


def _text(text: str | Path | Store | None) -> tuple[str | None, Store | None]:
    """(name of a text network, None) or (None, store)."""
    if text is None:
        text = "bert"
    if isinstance(text, (str, Path)):
        said = str(text)
        if not (said.endswith((".zarr", ".h5")) or "://" in said or Path(said).exists()):
            if network_spec(said).reads != "text":
                raise UserError(f"--text {said} is no text network, such as bert or minilm, and no store")
            return said, None
        text = open_store(text)
    return None, text


def _expert_stores(experts, dataset: str | None, features, say) -> dict[str, Store]:
    """{expert: store}: those given, else the experts of one dataset under the feature roots, in their usual order."""
    if not isinstance(experts, Mapping):
        pairs = [str(text).partition("=") for text in experts]
        wrong = next((text for text, equals, path in pairs if not (equals and path)), None)
        if wrong is not None:
            raise UserError(f"--expert {wrong}: write NAME=STORE, for example rgb=features/mine/rgb.zarr")
        experts = {name: path for name, _, path in pairs}
    if TEXT in experts:
        raise UserError(f"--expert {TEXT}: the text is no expert; give it with --text")
    if experts:
        opened = {name: store if isinstance(store, Store) else open_store(store) for name, store in experts.items()}
        for name, store in opened.items():
            if store.manifest.spec.get("reads") == "text":
                raise UserError(f"--expert {name}: {store.path} holds captions: no expert; give it with --text")
        return opened
    found, lines = stores_of_datasets(feature_roots(tuple(features)), dataset)
    having = {name: [e for e in EXPERTS if e in stores] for name, stores in found.items()}
    having = {name: those for name, those in having.items() if those}
    if len(having) > 1:
        commands = " or ".join(f"--dataset {name}" for name in sorted(having))
        raise UserError(f"several datasets have stores of experts: say {commands}")
    if not having:
        raise UserError(
            "no store of an expert was found: run extract --expert rgb (motion, audio, ...) first, or give --expert"
            " NAME=STORE"
        )
    name, those = next(iter(having.items()))
    for line in [*(f"{expert}: {found[name][expert]}" for expert in those), *lines]:
        say(line)
    return {expert: open_store(found[name][expert]) for expert in those}
