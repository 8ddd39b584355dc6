"""PSN and SCSampler: heads that score a video's frames, trained with a frozen recogniser's logits (thesis chapter 5).

On cached features of a light network (`train_sampler`, "frozen"), or together with that network, from a store of
frames (`train_joint_sampler`, "end-to-end"); the recogniser's logits come out of a store either way. The candidates of
a clip, or of a whole untrimmed video, are one random frame of each of N segments, the middle ones in validation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract.networks import create_network, network_spec, trained_options, weights_options
from extract.weights import TRAINED_BESIDE
from heads import get_head
from pipelines.augment import Crops
from pipelines.labelled_clips import (
    ClipSource,
    check_frames,
    clip_input,
    clip_source,
    input_options,
    own_options,
    validation_clips,
)
from pipelines.lineage import (
    descent,
    is_random,
    lineage_of,
    refuse_random,
    unknown_ancestors,
    unknown_line,
    without_random,
)
from pipelines.loop import Loop, Schedule, check_fit, shuffled_batches, train
from pipelines.needed_arrays import array_of
from pipelines.provenance import run_facts
from pipelines.recogniser_clips import TABLE, FrameInputs, Targets, targets_of
from pipelines.request import parse_settings as parse_options
from pipelines.run_folder import Run, head_facts, start_run, store_facts
from pipelines.sampler_clips import Candidates, SharedFrames
from pipelines.sampler_evaluation import cached_inputs, calibrate_run, figures
from pipelines.settings import parse_settings, part_of, settings_of
from pipelines.training import given_stores
from pipelines.world import World, take_place
from stores import Store, open_store
from stores.joining import label_columns, same_dataset

__all__ = [
    "FROM_DATA",
    "JOINT_HEAD",
    "JointSamplerConfig",
    "SamplerConfig",
    "train_joint_sampler",
    "train_sampler",
]

JOINT_HEAD = "psn-sampler"  # what train-backbone --head calls PSN and its light network
FROM_DATA = ("channels", "classes", "multi_label")  # fields of a head's config that stores and labels decide


@dataclass(frozen=True)
class SamplerConfig(Schedule):
    """How a sampler is trained; the defaults are the thesis's (section 5.3.1), whose batch size is not stated."""

    lr: float = 2e-3
    last_lr: float = 2e-4  # of the last third: from epoch 10 of 15


@dataclass(frozen=True)
class JointSamplerConfig(Crops, SamplerConfig):
    """How a sampler is trained with its light network; one crop for all frames of a clip."""

    freeze_norms: bool = False  # the network's batch norms keep the statistics they came with

    def __post_init__(self):
        super().__post_init__()
        self.check_crops()


def train_sampler(
    name: str,
    given: Mapping[str, object],
    *,
    target: str | None = None,
    dataset: str | None = None,
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
    """Train head `name` (psn, scsampler) on two stores of the frame axis and return its run folder.

    Args:
        given: stores or their paths: "sampler" (array `vector`) and "recogniser" (array `logits`).
        target: a label column of the clips, or "labels": the dataset's table of any number of labels a clip. None: what
            the recogniser was trained to name.
        dataset: refuse stores of any other.
        set: settings by name: fields of SamplerConfig and of the head's config.
        fit, seed, epochs, out, ...: as for `pipelines.train_head`.

    Raises:
        UserError: a store that is not given, of another dataset or without instants in common with the other; logits of
            other classes than the labels; unknown settings; random or incomplete features that were not allowed;
            another training in `out`.
        MachineError: the loss is no longer finite, or a store is damaged.
    """
    head_class = get_head(name)
    lacking = [role for role in head_class.reads if given.get(role) is None]
    if lacking:
        raise UserError(
            f"{name} reads two stores of the frame axis: say --sampler STORE (`vector` of a light network) and"
            " --recogniser STORE (`logits` of the network that names the video, see train-recogniser)"
        )
    stores = given_stores(name, head_class.reads, given, dataset, (), say)
    if same_dataset(stores) != (dataset or same_dataset(stores)):
        raise UserError(f"--dataset {dataset}: {stores['sampler'].path} is of {same_dataset(stores)}")
    refuse_random(stores, allow_random)
    source, inputs = cached_inputs(stores["sampler"])
    config, chosen = _settings(SamplerConfig, head_class, set, epochs)
    targets = _targets(source, stores, target, fit)
    head_config = _head_config(head_class, chosen, array_of(stores["sampler"], "vector").row_shape[-1], targets)
    data = _Data(source, stores, targets, Candidates(
        SharedFrames(stores["sampler"], stores["recogniser"], source.clips), inputs, targets, head_config.frames, seed
    ))  # fmt: skip
    facts = {"head": head_facts(name, head_config), "features": "frozen", "lineage": lineage_of(stores)}
    out = out or Path("runs") / f"{name.rpartition(':')[2]}-{source.name.replace(':', '-')}-s{seed}"

    def model(device: str):
        from pipelines.sampler_model import CachedSampler

        return CachedSampler(head_class(head_config)).to(device)

    return _train(model, data, config, facts, f"this {name}", out, fit, seed, device, allow_incomplete, progress, say)


def train_joint_sampler(
    backbone: str,
    *,
    recogniser,
    target: str | None = None,
    dataset: str | None = None,
    frames=None,
    features: Iterable[str | Path] = (),
    weights: str | None = None,
    option: Iterable[str] = (),
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
    """Train a light frame network and PSN on its features, together, and return the run folder, which
    `extract --backbone BACKBONE --weights RUN` takes.

    Args:
        backbone: a network of the registry that reads single RGB frames.
        recogniser: store of the frame axis with `logits`, or its path.
        frames: store of frames or its path; None: that of `dataset` under `features`.
        weights, option: of the network, as for extraction.
        set: settings by name: fields of JointSamplerConfig and of PSN's config.
        target, fit, ...: as for `train_sampler`.

    Raises:
        UserError: as `train_sampler`; a network that reads no frames, frames of another size.
        MachineError: the loss is no longer finite, or a store is damaged.
    """
    head_class = get_head("psn")
    if recogniser is None:
        raise UserError(f"--head {JOINT_HEAD} learns from a recogniser: say --recogniser STORE (array `logits`)")
    if frames == "decode":
        raise UserError(f"--head {JOINT_HEAD} reads a store of frames (extract --backbone frames), not the videos")
    own = trained_options(weights) | parse_options(tuple(option))
    options = weights_options(backbone, weights) | own
    plain = network_spec(backbone, **options)
    if plain.reads != "rgb_frame" or plain.kind != "backbone" or "vector" not in plain.outputs:
        raise UserError(f"{backbone} is no frame network: a sampler's reads single RGB frames and gives a vector")
    source = clip_source("rgb_frame", dataset=dataset, frames=frames, features=features)
    stores = {
        "frames": source.frames.store,
        "recogniser": recogniser if isinstance(recogniser, Store) else open_store(recogniser),
    }
    same_dataset(stores)
    refuse_random(stores, allow_random)
    network_input = clip_input(backbone, source.family, options, own)
    check_frames(source, network_input)
    config, chosen = _settings(JointSamplerConfig, head_class, set, epochs)
    targets = _targets(source, stores, target, fit)
    head_config = _head_config(head_class, chosen, plain.outputs["vector"][0][-1], targets)
    network = create_network(backbone, weights, **input_options(options, network_input))
    if network.spec.input_size is None:
        raise UserError(
            f"{source.where}: its frames have different shapes; show {backbone} a square of them:"
            ' --option \'resize={"mode":"short_side","size":256,"crop":224}\''
        )
    inputs = FrameInputs(source.frames, network_input.size, config, seed)
    data = _Data(source, stores, targets, Candidates(
        SharedFrames(stores["frames"], stores["recogniser"], source.clips), inputs, targets, head_config.frames, seed
    ))  # fmt: skip
    facts = {
        "network": {
            "name": network.spec.name,
            "options": own_options(options) | own,
            "weights": network.weights_hash,
            "origin": network.weights_origin,
            "resize": {key: value for key, value in dataclasses.asdict(network_input.resize).items() if value},
        },
        "head": head_facts("psn", head_config),
        "features": "end-to-end",
        "lineage": without_random(network.lineage) + lineage_of({"recogniser": stores["recogniser"]}),
    }
    short = backbone.rpartition(":")[2].rpartition("/")[2]
    out = out or Path("runs") / f"{short}-{JOINT_HEAD}-{source.name.replace(':', '-')}-s{seed}"

    def model(device: str):
        from pipelines.sampler_model import JointSampler

        network.to(device, config.precision)
        return JointSampler(network, head_class(head_config), freeze_norms=config.freeze_norms)

    who = f"this {network.spec.name}"
    return _train(model, data, config, facts, who, out, fit, seed, device, allow_incomplete, progress, say)


class SamplerTask:
    """A sampler on clips; see `pipelines.loop.Task`. Items are numbers of clips."""

    def __init__(self, run: Run, model, candidates: Candidates, fitted, validation, config, device: str, world: World):
        self.run, self.model, self.candidates, self.config = run, model, candidates, config
        self.fitted, self.validation, self.device = fitted, validation, device
        self.seed, self.processes = candidates.seed, world.size

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Every usable clip once, shuffled."""
        return shuffled_batches(self.fitted, self.config.batch_size, self.seed, epoch, self.processes)

    def batch(self, items: np.ndarray, epoch: int) -> dict:
        return self.candidates.random(items, epoch)

    def loss(self, batch: Mapping):
        return self.model.loss(batch)

    def validate(self) -> dict | None:
        """`figures` of the validation clips."""
        if not len(self.validation):
            return None
        return figures(
            self.model,
            self.candidates,
            self.validation,
            name=self.run.head_name,
            device=self.device,
            precision=self.config.precision,
            seed=self.seed,
        )

    def columns(self, figures: dict) -> dict[str, float]:
        name = self.candidates.targets.name
        columns = {f"val_{name}_{figure}": value for figure, value in figures[name].items()}
        return columns | {"frames": figures["frames"]}

    def score(self, figures: dict) -> float:
        targets = self.candidates.targets
        return figures[targets.name]["mAP" if targets.multi else "top1"]

    def checkpoint(self) -> tuple[dict, dict]:
        """The head alone; or the network's tensors by their own names, the head's beside them."""
        facts = self.run.facts
        if facts["features"] == "frozen":
            return self.model.checkpoint(), facts["head"]
        beside = {f"{TRAINED_BESIDE}{name}": value for name, value in self.model.beside().items()}
        return {**self.model.network.module.state_dict(), **beside}, {
            "network": facts["network"]["name"],
            "options": facts["network"]["options"],
            "targets": facts["targets"],
            "head": facts["head"],
            "lineage": descent(facts),
        }

    def finish(self, best: dict, history: list[dict]) -> None:
        from pipelines.sampler_model import load_sampler

        found = {key: value for key, value in best.items() if key != "score"}
        extra = {"trained_clips": len(self.fitted), "loss": history[best["epoch"] - 1]["loss"]}
        extra |= {"features": self.run.facts["features"]}
        extra["unknown_ancestors"] = unknown_ancestors(self.run.facts["lineage"])
        self.run.write_json("metrics.json", found | extra)
        model, _ = load_sampler(self.run, self.device)
        calibrate_run(self.run, model, self.candidates, self.fitted, self.device)


# --- what is trained on what ---


@dataclass(frozen=True)
class _Data:
    """What a sampler is trained on."""

    source: ClipSource
    stores: Mapping[str, Store]
    targets: Targets
    candidates: Candidates


def _train(make, data: _Data, config, facts, who, out, fit, seed, device, allow_incomplete, progress, say) -> Path:
    """Make the model (`make(device)`) and train it in the run folder `out`, which is returned."""
    import torch

    check_fit(fit)
    source, targets, shared = data.source, data.targets, data.candidates.shared
    which = source.split(fit)
    fitted = which[targets.known[which] & shared.usable[which]]
    if not len(fitted):
        raise UserError(f"{source.where}: no clip of {fit} has {targets.name} labels and frames")
    device, world, say = take_place(device, say)
    say(shared.line())
    unknown = unknown_ancestors(facts["lineage"])
    if unknown:
        say(unknown_line(unknown))
    validation = validation_clips(source, fit, facts["lineage"], say, targets.known)
    if len(validation) and not shared.usable[validation].any():
        say("no validation: none of its clips has frames in both stores")
        validation = validation[:0]
    if not allow_incomplete:
        shared.check_pending(np.union1d(which[targets.known[which]], validation))
    say(f"training: {len(fitted)} of {len(which)} clips have {targets.name} labels and frames")
    torch.manual_seed(seed)
    model = make(device)
    classes = {targets.name: targets.classes}
    facts = {
        "kind": "sampler",
        **facts,
        "training": config.facts(),
        "targets": classes,
        "seed": seed,
        "fit": fit,
        "dataset": {"name": source.name, "classes": classes},
        "trained_on": {
            "name": who,
            "dataset": source.name,
            "split": fit,
            "classes": targets.classes,
            "targets": [targets.name],
        },
        "unknown_ancestors": unknown,
        "random_features": any(is_random(entry) for entry in facts["lineage"]),
        "allow_incomplete": allow_incomplete,
        "stores": {role: store_facts(store) for role, store in data.stores.items()},
        "made": run_facts(device),
    }
    run, resumed = start_run(Path(out), facts)
    task = SamplerTask(run, model, data.candidates, fitted, validation, config, device, world)
    train(Loop(run, task, config, seed=seed, device=device, world=world, progress=progress), resumed, say)
    return run.path


def _settings(config: type, head_class, given, epochs: int | None):
    """(the training's config, settings of the head)."""
    chosen = parse_settings(given, settings_of(config) | settings_of(head_class.Config, FROM_DATA), epochs)
    return config(**part_of(chosen, config)), part_of(chosen, head_class.Config)


def _head_config(head_class, chosen: Mapping, channels: int, targets: Targets):
    return head_class.Config(**chosen, channels=channels, classes=targets.classes, multi_label=targets.multi)


def _targets(source: ClipSource, stores: Mapping[str, Store], target: str | None, fit: str) -> Targets:
    """The labels, with the recogniser's number of classes."""
    recogniser = stores["recogniser"]
    classes = array_of(recogniser, "logits").row_shape[-1]
    if target is None:
        target = _named_by(recogniser, source, classes)
    targets = targets_of(source, next(iter(stores.values())), target, fit)
    if targets.classes > classes or (target in source.classes and targets.classes != classes):
        raise UserError(
            f"{recogniser.path} has logits of {classes} classes, {target} of {source.name} has {targets.classes}: this"
            " recogniser names something else"
        )
    return dataclasses.replace(targets, classes=classes)


def _named_by(recogniser: Store, source: ClipSource, classes: int) -> str:
    """What a recogniser was trained to name, as its lineage says."""
    for entry in recogniser.manifest.lineage:
        if (
            entry.get("dataset") == source.name
            and entry.get("classes") == classes
            and len(entry.get("targets", ())) == 1
        ):
            return entry["targets"][0]
    columns = ", ".join([*label_columns(source.clips), TABLE])
    raise UserError(
        f"{recogniser.path} does not say which labels of {source.name} its logits name: say --target ({columns})"
    )
