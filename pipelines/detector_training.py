"""Base training of the detector: Faster R-CNN fine-tuned on a dataset's boxes, from a store of frames.

The thesis fine-tunes it on EPIC-55's object labels before anything is extracted (section 3.3.2); what comes out is a
run folder that `extract --detector NETWORK --weights RUN` takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError, count_of
from extract.datasets import Dataset, load_dataset
from extract.datasets.epic_csv import find_csv
from extract.networks import create_network, network_spec, weights_options
from extract.networks.packages import need_package
from extract.sampling import counter_uniform
from pipelines.boxes import GivenBoxes, dataset_boxes, read_boxes
from pipelines.detection_figures import MOST_BOXES, coco_figures
from pipelines.frame_reader import FrameReader
from pipelines.lineage import descent, seen_by, without_random
from pipelines.loop import Loop, Schedule, check_fit, seeded, train
from pipelines.provenance import run_facts
from pipelines.request import feature_roots
from pipelines.request import parse_settings as parse_options
from pipelines.run_folder import Run, start_run, store_facts
from pipelines.settings import parse_settings, settings_of
from pipelines.world import take_place
from stores import OK, PENDING, open_store
from stores.splits import split_mask

__all__ = [
    "BoxedFrames",
    "DetectorConfig",
    "DetectorTask",
    "FramesOfSplit",
    "boxes_of",
    "detection_figures",
    "join_boxes",
    "readable_frames",
    "train_detector",
    "validated_network",
]

FRAMES = "frames_detector"  # the store of frames that is looked for
OBJECT_LABELS = "EPIC_train_object_labels.csv"
_SAME_S = 1e-6  # seconds that are none


@dataclass(frozen=True)
class DetectorConfig(Schedule):
    """How a detector is fine-tuned; the defaults are the thesis's for train/val (section 3.3.2).

    An epoch is `epoch_steps` steps, whatever the number of frames: validation and the log come after each.
    """

    epochs: int = 30
    epoch_steps: int = 5000  # 30 times: 150,000 steps
    batch_size: int = 12
    lr: float = 0.005
    last_epochs: int = 0
    first_decay: int = 116_000  # steps after which the rate is a tenth; 0: never
    second_decay: int = 133_000  # and a hundredth; 0: never
    warmup: int = 1000
    # what a frame looks like
    flip: float = 0.5  # share of frames that are mirrored
    least_side: int = 0  # the short side is drawn from least_side to most_side; 0: the network's own
    most_side: int = 0
    # which frames
    within: float = 0.0  # seconds that boxes may lie from the frame they are taken for; 0: half a step of the frames
    val_frames: int = 0  # validation frames, evenly spread; 0: all

    def __post_init__(self):
        super().__post_init__()
        least = {"epoch_steps": 1, "first_decay": 0, "second_decay": 0, "least_side": 0, "most_side": 0, "within": 0}
        for name, low in (least | {"val_frames": 0, "flip": 0}).items():
            if not getattr(self, name) >= low:
                raise UserError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.flip > 1:
            raise UserError(f"flip is a share from 0 to 1, got {self.flip}")
        if self.least_side > self.most_side or bool(self.least_side) != bool(self.most_side):
            raise UserError(f"least_side {self.least_side} and most_side {self.most_side}: give both, the lesser first")

    def lr_of(self, epoch: int, step: int = 1 << 62) -> float:
        passed = sum(0 < at <= step for at in (self.first_decay, self.second_decay))
        return super().lr_of(epoch, step) * 0.1**passed


# --fit -> what the thesis changes: 180,000 steps for trainval/test.
THESIS = {"train": {}, "trainval": {"epochs": 36, "first_decay": 140_000, "second_decay": 160_000}}


@dataclass(frozen=True)
class Preset:
    """What a dataset's detector is by default: network, its starting weights and options, and the schedule."""

    detector: str
    weights: str | None = None  # None: the network's published ones
    options: Mapping[str, object] | None = None
    schedule: Mapping[str, object] | None = None


# By `Dataset.family`. Toy kitchen: 224 x 168 frames, objects of 55 pixels, a few minutes on two cores.
PRESETS = {
    "": Preset("faster_rcnn_r50_fpn"),
    "toykitchen": Preset(
        "faster_rcnn_lite0_fpn",
        "imagenet",
        {"resize": {"mode": "detector", "size": 168, "max_size": 224}, "proposals": 100},
        {"epochs": 4, "epoch_steps": 100, "batch_size": 8, "lr": 0.02, "first_decay": 300, "second_decay": 0,
         "warmup": 50, "val_frames": 200, "clip_norm": 10.0},
    ),
}  # fmt: skip


def train_detector(
    dataset: str | None,
    *,
    detector: str | None = None,
    weights: str | None = None,
    option: Iterable[str] = (),
    frames: str | Path | None = None,
    boxes: str | Path | None = None,
    data: str | Path | None = None,
    videos: str | Path | None = None,
    features: Iterable[str | Path] = (),
    out: str | Path | None = None,
    set: Mapping[str, object] | Iterable[str] = (),  # noqa: A002  the command line's --set
    fit: str = "train",
    seed: int = 0,
    epochs: int | None = None,
    device: str | None = None,
    allow_incomplete: bool = False,
    progress: bool = True,
    say=print,
) -> Path:
    """Fine-tune a detector on boxes and return its run folder; `best.safetensors` has the best validation mAP@0.5.

    Args:
        dataset, data, videos: as for `extract`.
        detector: a `faster_rcnn_*` network, by default the dataset's preset, else faster_rcnn_r50_fpn.
        weights: what it starts from, as for `create_network`; by default the published ones.
        option: KEY=VALUE for the network, such as 'resize={"mode":"detector","size":600}'.
        frames: a store of the dataset's frames; by default `frames_detector` under `features`.
        boxes: a file that `extract.box_files` reads; by default the dataset's own, or EPIC-55's published labels.
        set: settings by name: fields of DetectorConfig.
        fit: part of the dataset to train on; with "trainval" there is no validation, the last epoch counts as best.

    A video belongs to a split as its clips do; of a video with clips of several, only instants within them do.

    Raises:
        UserError: no frames (the message has the command that makes them), no boxes in a split, unknown settings, a
            network that cannot be trained here, another training in `out`.
        MachineError: the loss is no longer finite, or the store is damaged.
    """
    import torch

    check_fit(fit)
    if dataset is None:
        raise UserError("say whose boxes: --dataset NAME")
    loaded = load_dataset(dataset, data_root=data, videos=videos)
    preset = PRESETS.get(loaded.family, PRESETS[""])
    name = detector or preset.detector
    own = preset if name == preset.detector else Preset(name)
    known = settings_of(DetectorConfig)
    config = DetectorConfig(**THESIS[fit] | dict(own.schedule or {}) | parse_settings(set, known, epochs))

    store = open_store(frames) if frames is not None else _find_frames(loaded, dataset, features)
    reader = FrameReader(store)
    if store.manifest.spec["resize"].get("crop"):
        raise UserError(f"{store.path} holds cropped frames, and boxes are relative to whole ones: {_command(dataset)}")
    given = boxes_of(loaded, boxes, reader)
    device, world, say = take_place(device, say)
    labelled = readable_frames(join_boxes(given, loaded, reader, config.within), reader, allow_incomplete, say)
    classes = _class_count(given, loaded)
    say(labelled.line(reader.step_s))

    torch.manual_seed(seed)
    options = dict(own.options or {}) | parse_options(tuple(option))
    net, kept = _network(name, weights or own.weights, options, classes)
    fitted = labelled.of_split(loaded, fit)
    validation = _validation_frames(labelled, loaded, config, fit, net.lineage, say)
    facts = {
        "kind": "detector",
        "network": {"name": name, "options": kept, "weights": net.weights_hash, "origin": net.weights_origin},
        "training": config.facts(),
        "seed": seed,
        "fit": fit,
        "dataset": {"name": loaded.name, "classes": {"boxes": classes - 1}},
        "trained_on": {"name": f"this {name}", "dataset": loaded.name, "split": fit, "classes": classes - 1},
        "lineage": without_random(net.lineage),
        "boxes": {"file": None if boxes is None else Path(boxes).name, "digest": given.digest},
        "allow_incomplete": allow_incomplete,
        "stores": {"frames": store_facts(store)},
        "made": run_facts(device),
    }
    run, resumed = start_run(Path(out or Path("runs") / f"{name}-{loaded.name.replace(':', '-')}-s{seed}"), facts)
    task = DetectorTask(run, net.to(device), config, reader, fitted, validation, seed)
    boxes = f"{count_of(len(fitted.boxes), 'box', 'boxes')} of {count_of(classes - 1, 'class', 'classes')}"
    say(f"training: {count_of(len(fitted), 'frame')} with {boxes}")
    if validation is not None:
        boxes = count_of(len(validation.boxes), "box", "boxes")
        say(f"validation: {count_of(len(validation), 'frame')} with {boxes}")
    train(Loop(run, task, config, seed=seed, device=device, world=world, progress=progress), resumed, say)
    return run.path


# --- frames with boxes ---


@dataclass(frozen=True)
class BoxedFrames:
    """Rows of a store of frames, each with the boxes annotated there: boxes[first[i] : stop[i]] are frame i's."""

    rows: np.ndarray  # int64 (n,): of the store
    video: np.ndarray  # int32 (n,): of the dataset
    time_s: np.ndarray  # float64 (n,): when the boxes were annotated
    offset_s: np.ndarray  # float64 (n,): that time minus the row's
    first: np.ndarray  # int64 (n,)
    stop: np.ndarray  # int64 (n,)
    boxes: np.ndarray  # float32 (m, 4) XYXY relative to the frame
    classes: np.ndarray  # int32 (m,), from 0

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        """(boxes (n, 4), classes (n,)) of one frame."""
        own = slice(self.first[frame], self.stop[frame])
        return self.boxes[own], self.classes[own]

    def take(self, chosen: np.ndarray) -> BoxedFrames:
        """Some of the frames, by number or mask, with their boxes alone."""
        chosen = np.arange(len(self))[chosen]
        count = self.stop[chosen] - self.first[chosen]
        stop = np.cumsum(count)
        index = np.repeat(self.first[chosen] - (stop - count), count) + np.arange(count.sum())
        return BoxedFrames(
            self.rows[chosen], self.video[chosen], self.time_s[chosen], self.offset_s[chosen],
            stop - count, stop, self.boxes[index], self.classes[index],
        )  # fmt: skip

    def spread(self, most: int) -> BoxedFrames:
        """At most so many frames, evenly spread; 0: all."""
        if not most or len(self) <= most:
            return self
        return self.take(np.linspace(0, len(self) - 1, most).round().astype(np.int64))

    def of_split(self, dataset: Dataset, split: str) -> BoxedFrames:
        """The frames of `[scheme:]part`, or of trainval. Raises UserError if there are none."""
        chosen = self.inside(dataset, split)
        if not chosen.any():
            raise UserError(f"dataset {dataset.name}: no frame with boxes is in split {split!r}")
        return self.take(chosen)

    def inside(self, dataset: Dataset, split: str) -> np.ndarray:
        """(n,) bool: which frames are in a split. Raises UserError for one that the dataset does not have."""
        clips = dataset.clips
        inside = split_mask(clips, split, f"dataset {dataset.name}")
        count = len(dataset.videos["name"])
        own, other = (np.bincount(clips["video"][mask], minlength=count) for mask in (inside, ~inside))
        chosen = (own > 0)[self.video] & (other == 0)[self.video]
        for i in np.flatnonzero(((own > 0) & (other > 0))[self.video]):
            here = clips["video"] == self.video[i]
            here &= (clips["start_s"] <= self.time_s[i]) & ~(self.time_s[i] >= clips["stop_s"])
            chosen[i] = here.any() and inside[here].all()
        return chosen

    def line(self, step_s: float) -> str:
        """What to tell the person about how boxes and frames meet."""
        away = np.abs(self.offset_s)
        line = (
            f"{count_of(len(self), 'frame')} with boxes, {1000 * away.mean():.0f} ms from their annotation on average"
        )
        if away.mean() > step_s / 20:
            line += (
                f", at most {1000 * away.max():.0f}: a store of frames with a smaller --hop than {step_s:g} s would"
                " bring them nearer, --set within=SECONDS leaves the farther ones out"
            )
        return line


@dataclass(frozen=True)
class FramesOfSplit:
    """Frames with boxes as `lineage.seen_by` asks for them."""

    frames: BoxedFrames
    dataset: Dataset

    @property
    def dataset_name(self) -> str:
        return self.dataset.name

    def in_split(self, split: str | None) -> np.ndarray:
        """(n,) bool; all where it is not a split here: then nobody can say which it left out."""
        try:
            return self.frames.inside(self.dataset, split or "")
        except UserError:
            return np.ones(len(self.frames), bool)


def join_boxes(given: GivenBoxes, dataset: Dataset, reader: FrameReader, within_s: float = 0) -> BoxedFrames:
    """Boxes and the frames they belong to: the row nearest in time, if it is within `within_s` (0: half the store's
    step); of several annotated instants near one row the nearest counts.

    Raises:
        UserError: no box lies near a frame of the store.
    """
    number_of = {name: i for i, name in enumerate(reader.store.videos["name"])}
    video_of = np.array([number_of.get(name, -1) for name in dataset.videos["name"]], np.int64)
    new = np.flatnonzero(np.r_[True, (np.diff(given.video) != 0) | (np.diff(given.time_s) > 0)][: len(given.video)])
    stop = np.r_[new[1:], len(given.video)].astype(np.int64)
    video, time_s = given.video[new], given.time_s[new]
    rows = np.full(len(new), -1, np.int64)
    here = video_of[video] >= 0
    nearest = np.rint(time_s[here] / reader.step_s) * reader.step_s
    rows[here] = reader.rows(video_of[video[here]], nearest)[:, 0]
    offset = np.where(rows >= 0, time_s - reader.store.rows["start_s"][rows], np.inf)
    # One instant a row, the nearest: sorted by row, then by distance, the first of each.
    order = np.lexsort((np.abs(offset), rows))
    within_s = within_s or reader.step_s / 2
    order = order[np.abs(offset[order]) <= within_s + _SAME_S]
    order = np.sort(order[np.unique(rows[order], return_index=True)[1]])
    if not len(order):
        raise UserError(
            f"{reader.store.path}: no box of {dataset.name} lies within {within_s:g} s of a frame of these videos"
        )
    whole = BoxedFrames(
        rows[order], video[order], time_s[order], offset[order], new[order], stop[order], given.boxes, given.classes
    )
    return whole.take(np.arange(len(whole)))


def readable_frames(frames: BoxedFrames, reader: FrameReader, allow_incomplete: bool, say) -> BoxedFrames:
    """Those whose row holds an image."""
    status = reader.store.status()[frames.rows]
    good, pending = status == OK, int((status == PENDING).sum())
    if pending and not allow_incomplete:
        raise UserError(
            f"{reader.store.path}: {pending} of {len(frames)} frames with boxes are still pending; run extract again,"
            " or leave them out: --allow-incomplete"
        )
    if not good.all():
        say(f"left out: {count_of((~good).sum(), 'frame')} with boxes without an image in the store")
    return frames.take(good)


def boxes_of(dataset: Dataset, boxes: str | Path | None, reader: FrameReader) -> GivenBoxes:
    """The boxes of a file, or a dataset's own."""
    annotations = dataset.root / "annotations"
    if boxes is None and dataset.boxes is None and annotations.is_dir():
        boxes = find_csv(annotations, OBJECT_LABELS, needed=False)
    return dataset_boxes(dataset) if boxes is None else read_boxes(Path(boxes), dataset, 1 / reader.step_s)


def _validation_frames(labelled: BoxedFrames, dataset: Dataset, config, fit: str, lineage, say) -> BoxedFrames | None:
    """The frames of split val; None (with a line that says why) where figures on them would mean nothing."""
    why = f"fitting on {fit}" if fit != "train" else ""
    if not why and "val" not in dataset.clips.get("split", ()):
        why = "the dataset has no split val"
    if not why:
        need_package("pycocotools", "the validation of train-detector")
        frames = labelled.of_split(dataset, "val").spread(config.val_frames)
        why = seen_by(FramesOfSplit(frames, dataset), lineage)
    if why:
        say(f"no validation: {why}")
        return None
    return frames


def _class_count(given: GivenBoxes, dataset: Dataset) -> int:
    """Outputs, the background included: nouns where boxes have classes, else one class, objects."""
    largest = int(given.classes.max(initial=0))
    return 1 + (max(largest + 1, dataset.classes.get("noun", 0)) if largest else 1)


def _find_frames(dataset: Dataset, asked: str, features: Iterable[str | Path]):
    roots = feature_roots(tuple(features))
    for root in roots:
        for suffix in (".zarr", ".h5"):
            if (path := root / dataset.name / f"{FRAMES}{suffix}").exists():
                return open_store(path)
    where = ", ".join(str(root / dataset.name) for root in roots)
    raise UserError(f"no store {FRAMES} under {where}: give --frames STORE, or make it: {_command(asked)}")


def _command(dataset: str) -> str:
    return (
        f"cli.py extract --dataset {dataset} --backbone frames --name {FRAMES} --hop 0.5 --option"
        ' \'resize={"mode":"none"}\''
    )


def _network(name: str, weights: str | None, options: dict, classes: int):
    """(network to train, the options that its checkpoint needs); the last layers are new where class counts differ."""
    from extract.networks.faster_rcnn_training import renew_predictor

    asked = weights_options(name, weights) | options
    if network_spec(name, **asked).kind != "detector":
        raise UserError(f"{name} cannot be trained here: give a faster_rcnn_* network")
    source = create_network(name, weights, **asked)
    kept = asked | {"classes": classes, "resize": dict(source.spec.resize)}
    net = validated_network(name, kept)
    renew_predictor(net, source.module.state_dict())
    net.weights_hash, net.weights_origin, net.lineage = source.weights_hash, source.weights_origin, source.lineage
    return net, kept


def validated_network(name: str, options: Mapping[str, object]):
    """A detector with any weights that gives what COCO's figures count: the 100 best boxes a frame, and by custom those
    that score at least 0.05."""
    return network_spec(name, **{**options, "top": MOST_BOXES, "score_threshold": 0.05}).build()


# --- training ---


def detection_figures(model, reader: FrameReader, frames: BoxedFrames) -> dict:
    """COCO's figures (`coco_figures`) of a TrainedDetector with its weights of now, with "frames" and "boxes"."""
    truth, found = [], []
    net = model.fold()
    at_once = net.spec.batch_size
    for first in range(0, len(frames), at_once):
        numbers = range(first, min(first + at_once, len(frames)))
        images = reader.images(frames.rows[numbers])
        out = net.run({"frames": images})
        for i, (number, image) in enumerate(zip(numbers, images, strict=True)):
            boxes, classes = frames.of(number)
            scale = np.float32([image.shape[1], image.shape[0]] * 2)
            truth.append({"boxes": boxes * scale, "classes": classes})
            n = min(int(out["n_boxes"][i]), MOST_BOXES)
            own = {name: out[name][i, :n] for name in ("boxes", "scores", "classes")}
            found.append({**own, "classes": own["classes"] - model.first_class})
    return {**coco_figures(truth, found), "frames": len(truth), "boxes": len(frames.boxes)}


class DetectorTask:
    """A detector on frames with boxes."""

    def __init__(
        self,
        run: Run,
        net,
        config: DetectorConfig,
        reader: FrameReader,
        fitted: BoxedFrames,
        validation: BoxedFrames | None,
        seed: int,
    ):
        from extract.networks.faster_rcnn_training import TrainedDetector

        self.run, self.config, self.reader, self.seed = run, config, reader, seed
        self.fitted, self.validation = fitted, validation
        self.model = TrainedDetector(net).to(net.device)
        side = net.spec.resize["size"]
        self.sides = (config.least_side or side, config.most_side or side)

    def batches(self, epoch: int) -> list[np.ndarray]:
        """`epoch_steps` batches out of an endless stream that shows every frame once before any comes again."""
        size, n = self.config.batch_size, len(self.fitted)
        place = np.arange(epoch * self.config.epoch_steps * size, (epoch + 1) * self.config.epoch_steps * size)
        passes = place // n
        order = {
            number: np.random.default_rng(seeded(self.seed, number)).permutation(n) for number in np.unique(passes)
        }
        items = np.array([order[number][p % n] for number, p in zip(passes.tolist(), place.tolist(), strict=True)])
        return list(items.reshape(-1, size))

    def batch(self, items: np.ndarray, epoch: int) -> dict:
        """Images of different sizes as a list; flips and sizes are drawn from seed, epoch and frame alone."""
        mirrored = counter_uniform(self.seed, "flip", epoch, items) < self.config.flip
        low, high = self.sides
        drawn = counter_uniform(self.seed, "side", epoch, items) * (high - low + 1)
        batch = {"images": [], "boxes": [], "labels": []}
        images = self.reader.images(self.fitted.rows[items])
        for item, image, flip, more in zip(items.tolist(), images, mirrored, drawn.astype(int).tolist(), strict=True):
            boxes, classes = self.fitted.of(item)
            if flip:
                image = np.ascontiguousarray(image[:, ::-1])
                boxes = boxes[:, [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1]) + np.float32([1, 0, 1, 0])
            ready = self.model.prepare(image, boxes, low + more)
            batch["images"].append(ready["image"])
            batch["boxes"].append(ready["boxes"])
            batch["labels"].append(classes[ready["kept"]].astype(np.int64))
        return batch

    def loss(self, batch: dict):
        return sum(self.model.losses(**batch).values())

    def validate(self) -> dict | None:
        return None if self.validation is None else detection_figures(self.model, self.reader, self.validation)

    def columns(self, figures: dict) -> dict[str, float]:
        return {f"val_{name}": figures[name] for name in ("mAP50", "any_class_mAP50", "mAP")}

    def score(self, figures: dict) -> float:
        return figures["mAP50"]

    def checkpoint(self) -> tuple[dict, dict]:
        facts = self.run.facts
        return self.model.module.state_dict(), {
            "network": facts["network"]["name"],
            "options": facts["network"]["options"],
            "lineage": descent(facts),
        }

    def finish(self, best: dict, history: list[dict]) -> None:
        figures = {key: value for key, value in best.items() if key != "score"}
        rest = {"trained_frames": len(self.fitted), "loss": history[best["epoch"] - 1]["loss"]}
        self.run.write_json("metrics.json", figures | rest)
