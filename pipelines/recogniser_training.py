"""PSN's recogniser: a frame network trained to name a video from a few of its frames (thesis section 5.3.1).

TSN (Wang et al. 2016, arXiv:1608.00859) shows it one random frame of each of a few equal segments and averages their
logits before the loss; frame-based training (Wu et al. 2019) shows it one random frame. The frames come out of a store
(`extract --backbone frames`), or the classifier alone is trained on a store of pooled features. `extract --weights RUN`
takes what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from errors import UserError
from extract.networks import create_network, network_spec, weights_options
from extract.sampling import counter_uniform
from extract.weights import TRAINED_BESIDE, resolve
from pipelines.augment import Crops
from pipelines.labelled_clips import ClipSource, clip_source, source_of, validation_clips
from pipelines.lineage import descent, refuse_random, without_random
from pipelines.loop import Loop, Schedule, check_fit, shuffled_batches, train
from pipelines.needed_arrays import array_of
from pipelines.provenance import run_facts
from pipelines.recogniser_clips import ClipRows, FrameInputs, Targets, VectorInputs, middles, targets_of
from pipelines.request import parse_settings as parse_options
from pipelines.run_folder import Run, start_run, store_facts
from pipelines.settings import parse_settings, settings_of
from pipelines.world import take_place
from stores import Store, open_store, prefetch

__all__ = ["RecogniserConfig", "segment_scores", "train_recogniser"]

ROWS_AT_ONCE = 64  # frames of a forward pass of validation
MOMENT_ROWS = 1 << 16  # features that mean and deviation are taken from


@dataclass(frozen=True)
class RecogniserConfig(Crops, Schedule):
    """How a recogniser is trained; the defaults are the thesis's TSN, what it leaves open that of TSN's authors.

    Their crops have one of four sizes, 1 to 0.66 of the short side, in two directions that may differ by one, at one of
    13 places. Here the size is any between those two, the crop square and anywhere: one dial in place of three lists.
    """

    epochs: int = 50
    batch_size: int = 32
    lr: float = 2e-3
    last_epochs: int = 0
    decay_every: int = 20

    # what it sees of a clip
    segments: int = 3  # frames a clip in training, one at random in each segment
    test_segments: int = 25  # frames whose logits are averaged in validation, the middle of each segment
    scale_max: float = 0.875 / 0.66

    # what is trained
    dropout: float = 0.5  # before the classifier
    partial_norms: bool = True  # all batch norms but the first stay as they came

    def __post_init__(self):
        super().__post_init__()
        for name in ("segments", "test_segments"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.check_crops()
        if not 0 <= self.dropout < 1:
            raise UserError(f"dropout must be from 0 to below 1, got {self.dropout}")


STRATEGIES: dict[str, dict[str, object]] = {
    "tsn": {},
    "frame": {"segments": 1, "batch_size": 64, "lr": 1e-3, "dropout": 0.0, "partial_norms": False},
}
"""Thesis section 5.3.1, as differences from RecogniserConfig."""


def train_recogniser(
    backbone: str | None = None,
    *,
    target: str,
    strategy: str = "tsn",
    dataset: str | None = None,
    frames=None,
    vectors=None,
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
    """Train a recogniser on clips or whole videos and return its run folder.

    Args:
        backbone: a network of the registry that reads single RGB frames; not with `vectors`.
        target: a label column of the clips (verb, noun, action, ...), or "labels": the dataset's table of any number of
            labels a clip, of which each has an equal share.
        strategy: tsn, or frame: one random frame of a clip.
        dataset: its frames store is looked for under `features`, unless `frames` says which.
        frames: a store of frames: the network is trained, on what is to be seen at extraction too.
        vectors: a store with `vector` on a grid: only a classifier is trained, in seconds.
        weights: what to start from, as for extraction; with `vectors`, where the network's own weights are.
        out: run folder, default runs/<network>[-frozen]-<strategy>-<target>-<dataset>-s<seed>; the same one goes on.
        set: settings by name: fields of RecogniserConfig.
        fit: clips to train on; with "trainval" there is no validation, and the last epoch counts as best.

    Raises:
        UserError: no such store, network, label or setting; rows still pending or features of random weights that were
            not allowed; another training in `out`.
        MachineError: the loss is no longer finite, or a store is damaged.
    """
    import torch

    check_fit(fit)
    if strategy not in STRATEGIES:
        raise UserError(f"--strategy must be one of {', '.join(STRATEGIES)}, got {strategy!r}")
    if (backbone is None) == (vectors is None):
        raise UserError("say which network to train (--backbone), or a store of its features (--vectors)")
    if vectors is not None and (frames is not None or tuple(option)):
        raise UserError("--frames and --option are for training a network; --vectors is what one has said already")
    config = RecogniserConfig(**STRATEGIES[strategy] | parse_settings(set, settings_of(RecogniserConfig), epochs))
    options = _frame_options(backbone, weights, option) if vectors is None else {}

    # The clips, their labels and their rows.
    if vectors is None:
        source = clip_source("rgb_frame", dataset=dataset, frames=frames, features=features)
        store = source.frames.store
    else:
        store = vectors if isinstance(vectors, Store) else open_store(vectors)
        array_of(store, "vector")
        refuse_random({"vectors": store}, allow_random)
        source = source_of(store)
    targets = targets_of(source, store, target, fit)
    rows = ClipRows(store, allow_incomplete)
    which = source.split(fit)
    fitted = which[targets.known[which] & (rows.count[which] > 0)]
    if not len(fitted):
        raise UserError(f"{source.where}: no clip of {fit} has {target} labels and rows")

    # What is trained.
    device, world, say = take_place(device, say)
    torch.manual_seed(seed)
    if vectors is None:
        inputs, model, made = _frame_model(backbone, source, targets, config, seed, device, weights, options)
    else:
        inputs, model, made = _vector_model(store, rows, fitted, targets, config, device, weights, say)

    trained_on = {"dataset": source.name, "split": fit, "classes": targets.classes, "targets": [target]}
    validation = validation_clips(source, fit, made.lineage, say, targets.known)
    say(f"training: {len(fitted)} of {len(which)} clips have {target} labels and rows")
    facts = {
        "kind": "recogniser",
        "network": made.facts,
        "strategy": strategy,
        "features": "end-to-end" if vectors is None else "frozen",
        "training": config.facts(),
        "targets": {target: targets.classes},
        "seed": seed,
        "fit": fit,
        "dataset": {"name": source.name, "classes": {target: targets.classes}},
        "trained_on": {"name": f"this {made.facts['name']}", **trained_on},
        "lineage": made.lineage,
        "allow_incomplete": allow_incomplete,
        "stores": {("frames" if vectors is None else "vectors"): store_facts(store)},
        "made": run_facts(device),
    }
    short = made.facts["name"].rpartition(":")[2].rpartition("/")[2]
    short += "" if vectors is None else "-frozen"
    name = f"{short}-{strategy}-{target}-{source.name.replace(':', '-')}-s{seed}"
    run, resumed = start_run(Path(out or Path("runs") / name), facts)
    task = RecogniserTask(run, model, inputs, made, rows, targets, fitted, validation, config, seed, world.size)
    train(Loop(run, task, config, seed=seed, device=device, world=world, progress=progress), resumed, say)
    return run.path


class RecogniserTask:
    """A recogniser on clips; see `pipelines.loop.Task`. Items are numbers of clips."""

    def __init__(
        self, run: Run, model, inputs, made, rows, targets, fitted, validation, config, seed: int, processes: int
    ):
        self.run, self.model, self.inputs, self.made = run, model, inputs, made
        self.rows, self.targets, self.config, self.seed = rows, targets, config, seed
        self.fitted, self.validation, self.processes = fitted, validation, processes

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Every usable clip once, shuffled."""
        return shuffled_batches(self.fitted, self.config.batch_size, self.seed, epoch, self.processes)

    def batch(self, items: np.ndarray, epoch: int) -> dict:
        ids = self.rows.ids[items]
        u = counter_uniform(self.seed, ids[:, None], "segment", epoch, np.arange(self.config.segments))
        shown = self.inputs.random(self.rows.at(items, u), ids, epoch)
        return {"input": shown, "labels": self.targets.of(items)}

    def loss(self, batch: Mapping[str, Any]):
        from heads.frame_sampling import label_loss

        consensus = self.model(batch["input"]).float().mean(dim=1)
        return label_loss(consensus, batch["labels"], self.targets.multi)

    def validate(self) -> dict | None:
        if not len(self.validation):
            return None
        return self.targets.figures(self.scores(self.validation), self.validation)

    def scores(self, which: np.ndarray) -> np.ndarray:
        """`segment_scores` of clips `which`."""
        return segment_scores(self.model, self.inputs, self.rows, which, self.targets.classes, self.config)

    def columns(self, figures: dict) -> dict[str, float]:
        name = self.targets.name
        return {f"val_{name}_{figure}": value for figure, value in figures[name].items()}

    def score(self, figures: dict) -> float:
        return figures[self.targets.name]["mAP" if self.targets.multi else "top1"]

    def checkpoint(self) -> tuple[dict, dict]:
        """The tensors of the network that gives `logits`, where the registry has it; else the network's own, the
        classifier beside them. The metadata's options make that network."""
        return self.made.tensors(self.model, self.targets.name), {
            "network": self.made.facts["name"],
            "options": self.made.options,
            "targets": self.run.facts["targets"],
            "lineage": descent(self.run.facts),
        }

    def finish(self, best: dict, history: list[dict]) -> None:
        figures = {key: value for key, value in best.items() if key != "score"}
        extra = {"trained_clips": len(self.fitted), "loss": history[best["epoch"] - 1]["loss"]}
        self.run.write_json("metrics.json", figures | extra | {"features": self.run.facts["features"]})


def segment_scores(
    model, inputs, rows: ClipRows, which: np.ndarray, classes: int, config, progress: bool = False
) -> np.ndarray:
    """(n, classes) float32: logits of clips `which`, averaged over the middles of their `config.test_segments`
    segments; NaN of clips without rows. A row that several segments or clips show is computed once.

    model: has `prepare` and `row_logits`, such as `recogniser_model.Recogniser`.
    """
    model.prepare()
    out = np.full((len(which), classes), np.nan, np.float32)
    there = np.flatnonzero(rows.count[which] > 0)
    if not len(there):
        return out
    u = middles(len(there), config.test_segments)
    wanted, place = np.unique(rows.at(which[there], u), return_inverse=True)
    parts = [wanted[i : i + ROWS_AT_ONCE] for i in range(0, len(wanted), ROWS_AT_ONCE)]
    shown = prefetch(inputs, parts, config.workers, config.ahead)
    bar = tqdm(shown, total=len(parts), desc="scoring", disable=not progress, leave=False)
    logits = np.concatenate([model.row_logits(arrays) for arrays in bar])
    out[there] = logits[place.reshape(u.shape)].mean(axis=1)
    return out


# --- the network that it makes ---


@dataclass(frozen=True)
class _Made:
    """The network that a checkpoint makes, and where in it the classifier goes."""

    facts: dict  # how the run names it
    options: dict  # for create_network
    lineage: list[dict]  # of the weights it started from
    classifier: dict[str, tuple]  # {key: shape} of its weight and bias in the network; {}: it has none
    network: Any = None  # extract.networks.Network; None: the features' network is not here

    def tensors(self, model, target: str) -> dict:
        """What best.safetensors holds."""
        weight, bias = model.linear()
        tensors = dict(self.network.module.state_dict()) if self.network is not None else {}
        if self.network is not None and self.classifier:
            return tensors | {key: weight if len(shape) == 2 else bias for key, shape in self.classifier.items()}
        beside = f"{TRAINED_BESIDE}classifier.{target}"
        return tensors | {f"{beside}.weight": weight, f"{beside}.bias": bias}


def _frame_options(backbone: str, weights: str | None, option: Iterable[str]) -> dict[str, Any]:
    """A frame network's options, all but its resize. Raises UserError for one that cannot be trained here."""
    given = parse_options(tuple(option))
    if "resize" in given:
        raise UserError("what the network sees is the frames store's resize, cropped: say --set crop=SHARE")
    options = weights_options(backbone, weights) | given
    spec = network_spec(backbone, **options)
    if spec.reads != "rgb_frame" or "vector" not in spec.outputs:
        raise UserError(f"{backbone} is no frame network: a recogniser reads single RGB frames and gives a vector")
    return options


def _frame_model(backbone, source: ClipSource, targets: Targets, config, seed: int, device: str, weights, options):
    """(inputs, model, what it makes) of a network that is trained."""
    from pipelines.recogniser_model import Recogniser, own_classifier

    store = source.frames.store
    resize = {key: value for key, value in store.manifest.spec["resize"].items() if value and key != "max_size"}
    if resize["mode"] not in ("squash", "short_side"):
        raise UserError(
            f"{source.where}: its frames have any size; make some with --option resize=... of squash or short_side"
        )
    resize["crop"] = max(1, round(config.crop * (resize.get("crop") or resize["size"])))
    options = options | {"resize": resize}
    if source.frames.channels != network_spec(backbone, **options).channels:
        raise UserError(f"{source.where} holds flow, {backbone} reads RGB frames")
    network = create_network(backbone, weights, **options).to(device, config.precision)
    model = Recogniser(
        network, targets.name, targets.classes, dropout=config.dropout, partial_norms=config.partial_norms
    )
    facts = {"name": network.spec.name, "weights": network.weights_hash, "origin": network.weights_origin}
    named = network.spec.name if not backbone.startswith("py:") else backbone
    with_logits, classifier = own_classifier(named, options, targets.classes)
    lineage = without_random(network.lineage)
    made = _Made({**facts, "options": with_logits or options}, with_logits or options, lineage, classifier, network)
    return FrameInputs(source.frames, resize["crop"], config, seed), model, made


def _vector_model(store: Store, rows: ClipRows, fitted, targets: Targets, config, device: str, weights, say):
    """(inputs, model, what it makes) of a classifier on cached features."""
    from pipelines.recogniser_model import LinearRecogniser

    inputs = VectorInputs(store)
    seen = rows.of(fitted)
    seen = seen[:: -(-len(seen) // MOMENT_ROWS)]
    values = inputs.batch(seen)
    mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
    std[std < 1e-6 * max(std.max(), 1e-30)] = 1  # a channel that never changes says nothing
    model = LinearRecogniser(
        mean.astype(np.float32), std.astype(np.float32), targets.name, targets.classes, dropout=config.dropout
    ).to(device)
    return inputs, model, _network_behind(store, targets.classes, weights, say)


def _network_behind(store: Store, classes: int, weights: str | None, say) -> _Made:
    """The network that made a store, with its weights where they are on this machine."""
    from pipelines.recogniser_model import own_classifier

    manifest = store.manifest
    name, origin = manifest.spec["name"], manifest.spec.get("weights_origin", "")
    options = {"layer": manifest.spec["layer"], "resize": dict(manifest.spec["resize"])}
    facts = {"name": name, "weights": manifest.recipe["weights"], "origin": origin}
    asked = weights or (origin if origin.startswith("random:") else None)
    network = None
    try:
        spec = network_spec(name, **options)
        there = resolve(name, spec.weights, asked, download=False, missing_ok=weights is None) is not None
        if there and spec.recipe() == manifest.recipe["network"]:
            network = create_network(name, asked, **options)
    except UserError:
        if weights is not None:
            raise
    if network is not None and network.weights_hash != manifest.recipe["weights"]:
        if weights is not None:
            raise UserError(f"--weights {weights} are not those that made {store.path}")
        network = None
    if network is None:
        say(
            f"the weights of {name} that made {store.path} are not here (--weights says where): the run will hold the"
            " classifier alone, and extract --weights cannot take it"
        )
        return _Made({**facts, "options": options}, options, list(manifest.lineage), {})
    with_logits, classifier = own_classifier(name, options, classes)
    chosen = with_logits or options
    return _Made({**facts, "options": chosen}, chosen, list(manifest.lineage), classifier, network)
