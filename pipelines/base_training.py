"""Base training: a network of the registry, trained on a dataset's own labels from cached frames, to be frozen then.

The thesis fine-tunes its VerbNet and NounNet on EPIC-KITCHENS before it caches their features (section 3.3.2). The
frames come out of a store (`extract --backbone frames`), so that all epochs together decode a video once; what
extraction is given as `--weights RUN` is the run folder of this training.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract.networks import create_network, network_spec, trained_options, weights_options
from extract.sampling import object_windows
from extract.weights import TRAINED_BESIDE, RandomWeightsWarning
from heads import get_head
from heads.metrics import action_prior
from pipelines.augment import Crops
from pipelines.evaluation import covered_accuracies
from pipelines.find_stores import find_stores
from pipelines.frame_reader import FrameReader
from pipelines.labelled_clips import (
    ClipSource,
    LabelledClips,
    check_frames,
    clip_input,
    clip_source,
    input_options,
    labels_of,
    own_options,
    validation_clips,
)
from pipelines.lineage import descent, without_random
from pipelines.loop import Loop, Schedule, check_fit, shuffled_batches, train
from pipelines.provenance import run_facts
from pipelines.request import parse_settings as parse_options
from pipelines.run_folder import Run, head_facts, start_run, store_facts
from pipelines.settings import parse_settings, part_of, settings_of, with_sizes
from pipelines.training import KEEP_BYTES
from pipelines.training import SCHEDULES as OF_HEADS
from pipelines.world import World, take_place
from stores import ObjectWindows, open_store
from stores.row_cache import RowCache

__all__ = ["BackboneConfig", "object_reader", "prior_of", "train_backbone"]

TARGETS = {"both": ("verb", "noun")}  # any other name is a label column of its own


@dataclass(frozen=True)
class BackboneConfig(Crops, Schedule):
    """How a network is trained on clips; the defaults are the thesis's for I3D (section 3.3.2)."""

    epochs: int = 35
    lr: float = 3e-3
    last_lr: float = 3e-4
    last_epochs: int = 5

    # what it sees of a clip
    draws: int = 0  # random centres a clip, taken in turn by the epochs; 0: a fresh one every epoch

    # what is trained
    dropout: float = 0.5  # before the classifiers
    freeze_norms: bool = False  # batch norms keep the statistics they came with

    def __post_init__(self):
        super().__post_init__()
        if self.draws < 0:
            raise UserError(f"draws must be at least 0, got {self.draws}")
        self.check_crops()
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be from 0 to below 1, got {self.dropout}")

    @property
    def at_once(self) -> int:
        """Clips of a forward pass."""
        return self.micro_batch or self.batch_size


# What differs from the thesis's I3D, by (head, family of the network); of "" for any head.
SCHEDULES: dict[tuple[str, str], dict[str, object]] = {
    ("", "small3d"): {
        "epochs": 8,
        "optimiser": "adamw",
        "lr": 3e-3,
        "last_lr": 3e-4,
        "last_epochs": 2,
        "warmup": 50,
        "weight_decay": 0.02,
        "batch_size": 16,
        "precision": "bf16",
        "dropout": 0.0,
    },  # fmt: skip
    # Thesis section 4.3.2: random scaling, cropping and horizontal flipping.
    ("ipl", "i3d"): OF_HEADS["ipl", ""] | {"flip": True},
    ("ipl", "r2plus1d34"): OF_HEADS["ipl", "r2plus1d34"] | {"flip": True},
}


def _schedule(head: str | None, family: str) -> dict[str, object]:
    return SCHEDULES.get((head or "", family)) or SCHEDULES.get(("", family), {})


def train_backbone(
    backbone: str,
    *,
    dataset: str | None = None,
    target: str = "both",
    head: str | None = None,
    objects: object = None,
    recogniser: object = None,
    frames: str | Path | None = None,
    data: str | Path | None = None,
    videos: str | Path | None = None,
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
    """Train a network on a dataset's labels and return the run folder, which `extract --weights` takes.

    Args:
        backbone: a network that reads clips or frames, RGB or flow.
        dataset: its frames store is looked for under `features`; with frames="decode", where its videos are.
        target: verb, noun, both, action, or any label column: one classifier each on the pooled feature.
        head: a head of stage two on the network's maps, trained with it, instead of the classifiers; "psn-sampler":
            PSN on a frame network, by what a recogniser says (`pipelines.sampler_training.train_joint_sampler`).
        objects: store of boxes and RoI features that this head looks at; None: found beside the frames.
        recogniser, allow_random, allow_incomplete: of psn-sampler: the store of logits, and what it may be.
        frames: the frames store, or "decode": out of the videos, each time anew.
        weights: what to start from, as for extraction; None for the published ones, random:SEED for none.
        out: run folder, default runs/<backbone>-<target or head>-<dataset>-s<seed>. The same training there goes on.
        set: settings by name: fields of BackboneConfig and of the head's config.
        fit: clips to train on; with "trainval" there is no validation, and the last epoch counts as best.

    Raises:
        UserError: no such store, network, head, label or setting; frames of another size; another training in `out`.
        MachineError: the loss is no longer finite, or a store is damaged.
    """
    import torch

    check_fit(fit)
    if head == "psn-sampler":
        if objects is not None:
            say(f"psn-sampler reads no objects store: {objects} is left out")
        from pipelines.sampler_training import train_joint_sampler

        return train_joint_sampler(
            backbone,
            recogniser=recogniser,
            target=None if target == "both" else target,
            dataset=dataset,
            frames=frames,
            features=features,
            weights=weights,
            option=option,
            out=out,
            set=set,
            fit=fit,
            seed=seed,
            epochs=epochs,
            device=device,
            allow_random=allow_random,
            allow_incomplete=allow_incomplete,
            progress=progress,
            say=say,
        )
    if recogniser is not None:
        raise UserError("--recogniser is read by --head psn-sampler alone")
    own = trained_options(weights) | parse_options(tuple(option))
    options = weights_options(backbone, weights) | own
    plain = network_spec(backbone, **options)
    if plain.kind != "backbone":
        raise UserError(f"{backbone} is a {plain.kind} network; train-backbone trains backbones")
    source = clip_source(plain.reads, dataset=dataset, frames=frames, data=data, videos=videos, features=features)
    given = clip_input(backbone, source.family, options, own)
    check_frames(source, given)
    head_class = get_head(head) if head else None
    known = settings_of(BackboneConfig) | (settings_of(head_class.Config) if head else {})
    chosen = _schedule(head, plain.family) | parse_settings(set, known, epochs)
    config = BackboneConfig(**part_of(chosen, BackboneConfig))
    labels, classes = labels_of(source, ("verb", "noun") if head else TARGETS.get(target, (target,)), fit)
    with warnings.catch_warnings():  # to begin with random weights is what training is for
        warnings.simplefilter("ignore", RandomWeightsWarning)
        network = create_network(backbone, weights, **input_options(options, given))

    clips = LabelledClips(source.clips, labels, source.frames, given, seed)
    which = source.split(fit)
    fitted = clips.usable(which)
    if not len(fitted):
        raise UserError(f"{source.name}: no clip of {fit} has labels and frames")
    device, world, say = take_place(device, say)
    validation = validation_clips(source, fit, network.lineage, say)
    say(f"training: {len(fitted)} of {len(which)} clips have labels and frames")
    torch.manual_seed(seed)
    network.to(device, config.precision)
    facts = _facts(network, given, source, own_options(options) | own, config, classes, seed, fit, device)
    if head:
        if "objects" in head_class.reads:
            objects = _object_store(objects, source, features, say)
            facts["stores"]["objects"] = store_facts(objects)
        else:
            objects = None
        model, clips.objects = _joint_model(head, network, source, classes, chosen, objects, config)
        facts["head"] = head_facts(head, model.head.config)
    else:
        from pipelines.trained_models import ClassifiedBackbone

        model = ClassifiedBackbone(network, classes, dropout=config.dropout, freeze_norms=config.freeze_norms)
    name = backbone.rpartition(":")[2].rpartition("/")[2]
    name = f"{name}-{head or target}-{source.name.replace(':', '-')}-s{seed}"
    run, resumed = start_run(Path(out or Path("runs") / name), facts)
    prior = prior_of(labels, which, classes)
    task = BackboneTask(run, model, clips, fitted, validation, prior, config, device, world)
    train(Loop(run, task, config, seed=seed, device=device, world=world, progress=progress), resumed, say)
    return run.path


def _facts(network, given, source: ClipSource, options, config, classes, seed, fit, device) -> dict:
    """What run.json says."""
    trained_on = {"dataset": source.name, "split": fit, "classes": sum(classes.values()), "targets": list(classes)}
    return {
        "kind": "backbone",
        "network": {
            "name": network.spec.name,
            "options": options,
            "weights": network.weights_hash,
            "origin": network.weights_origin,
            "sampling": asdict(given.sampling),
            "resize": asdict(given.resize),
        },
        "training": config.facts(),
        "targets": classes,
        "seed": seed,
        "fit": fit,
        "features": "end-to-end",
        "dataset": {"name": source.name, "classes": classes},
        "trained_on": {"name": f"this {network.spec.name}", **trained_on},
        "lineage": without_random(network.lineage),
        "stores": {"frames": store_facts(source.frames.store)} if isinstance(source.frames, FrameReader) else {},
        "made": run_facts(device),
    }


def _object_store(given, source: ClipSource, features, say):
    if given is not None:
        return given if hasattr(given, "manifest") else open_store(given)
    found, lines = find_stores({"objects": ("roi", "boxes")}, dataset=source.name, features=features)
    for line in lines:
        say(line)
    return found["objects"]


def _joint_model(head: str, network, source: ClipSource, classes, chosen, objects, config: BackboneConfig):
    """(JointModel, what gives the head its objects (`LabelledClips.objects`) or None)."""
    from pipelines.trained_models import JointModel

    head_class, outputs = get_head(head), network.spec.outputs
    if not {*head_class.reads} <= {"verb", "noun", "objects"}:
        raise UserError(f"--head {head}: it reads {', '.join(head_class.reads)}, not one network's maps of clips")
    if "map" not in outputs or len(outputs["map"][0]) != 4:
        raise UserError(f"--head {head}: {network.spec.name} has no map of clips of a fixed size")
    shapes = {role: {name: shape for name, (shape, _) in outputs.items()} for role in ("verb", "noun")}
    if objects is not None:
        shapes["objects"] = {name: spec.row_shape for name, spec in objects.manifest.arrays.items()}
    sizes = {"verbs": classes["verb"], "nouns": classes["noun"], **head_class.dims(shapes)}
    windows = object_windows(source.family)
    defaults = {f"{name}_window_s": seconds for name, seconds in windows.items()}
    head_config = head_class.Config(**with_sizes(defaults | chosen, head_class.Config, sizes))
    model = JointModel(network, head_class(head_config), freeze_norms=config.freeze_norms)
    return model, None if objects is None else object_reader(objects, head_class.reads["objects"], head_config, source)


def object_reader(store, arrays, config, source: ClipSource):
    """(videos (n,), centres (n,) in seconds) -> the object lists that a head's config asks for."""
    k = config.boxes_per_frame
    cache = RowCache([(store, name, k) for name in arrays], KEEP_BYTES)
    read = functools.partial(cache.read, store)
    windows = ObjectWindows(store, config.windows, source.videos, boxes_per_frame=k, arrays=arrays)

    def objects(videos: np.ndarray, centres_s: np.ndarray) -> dict:
        return windows.read(windows.spans(videos, centres_s), np.arange(len(videos)), videos, read)

    return objects


def prior_of(labels: Mapping[str, np.ndarray], part: np.ndarray, targets: Mapping[str, int]) -> np.ndarray | None:
    """mu(verb, noun) of eq. 3.14 of the clips `part`, with frames or without; None where not both are named."""
    if not {"verb", "noun"} <= {*targets}:
        return None
    return action_prior(labels["verb"][part], labels["noun"][part], targets["verb"], targets["noun"])


class BackboneTask:
    """A network and what is trained on its maps, on clips; see `pipelines.loop.Task`."""

    def __init__(self, run: Run, model, clips, fitted, validation, prior, config, device: str, world: World):
        self.run, self.model, self.clips, self.prior, self.config = run, model, clips, prior, config
        self.fitted, self.validation, self.device = fitted, validation, device
        self.processes = world.size
        self.targets = run.facts["targets"]

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Every usable clip once, shuffled."""
        return shuffled_batches(self.fitted, self.config.batch_size, self.clips.seed, epoch, self.processes)

    def batch(self, items: np.ndarray, epoch: int) -> dict:
        return self.clips.random(items, epoch, self.config)

    def loss(self, batch: dict):
        return self.model.loss(batch)

    def validate(self) -> dict | None:
        """Top-1 and top-5 of centre clips; clips without frames or labels count as wrong."""
        from pipelines.trained_models import centre_scores

        if not len(self.validation):
            return None
        scores = centre_scores(self.model, self.clips, self.validation, self.targets, self.config.at_once)
        return covered_accuracies(scores, {k: v[self.validation] for k, v in self.clips.labels.items()}, self.prior)

    def columns(self, figures: dict) -> dict[str, float]:
        names = [*self.targets, *(["action"] if self.prior is not None else [])]
        return {f"val_{name}_top{k}": figures[name][f"top{k}"] for name in names for k in (1, 5)}

    def score(self, figures: dict) -> float:
        of = ["action"] if self.prior is not None else list(self.targets)
        return float(np.mean([figures[name]["top1"] for name in of]))

    def checkpoint(self) -> tuple[dict, dict]:
        """The network's own tensors by their own names, and what was trained on it beside them."""
        facts = self.run.facts
        beside = {f"{TRAINED_BESIDE}{name}": value for name, value in self.model.beside().items()}
        return {**self.model.network.module.state_dict(), **beside}, {
            "network": facts["network"]["name"],
            "options": facts["network"]["options"],
            "targets": facts["targets"],
            "lineage": descent(facts),
        }

    def finish(self, best: dict, history: list[dict]) -> None:
        figures = {key: value for key, value in best.items() if key != "score"}
        extra = {"trained_clips": len(self.fitted), "loss": history[best["epoch"] - 1]["loss"]}
        self.run.write_json("metrics.json", figures | extra | {"features": "end-to-end"})
