"""Annotated clips as frames: what base training reads, around random instants to train, at the middle to validate, and
at evenly spaced instants to test."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError
from extract.datasets import list_datasets, load_dataset
from extract.networks import NetworkSpec, network_spec
from extract.networks.spec import READS
from extract.sampling import ClipSampling, clip_rows, preset_for, window_starts
from extract.transforms import Resize
from pipelines.augment import centre_window, cut, random_crops
from pipelines.find_stores import own_dataset, stored_name
from pipelines.frame_reader import FrameReader, VideoFrames
from pipelines.lineage import seen_by
from pipelines.protocols import dataset_family
from pipelines.request import feature_roots
from stores import Store, open_store
from stores.splits import split_mask

__all__ = [
    "ClipInput",
    "ClipSource",
    "LabelledClips",
    "SplitOf",
    "check_frames",
    "clip_input",
    "clip_source",
    "input_options",
    "labels_of",
    "own_options",
    "source_of",
    "validation_clips",
]

STORES = {"flow": "flow_images"}  # by what a network reads: the name of its frames store; else "frames"
_INPUT = ("clip_len", "stride", "fps", "resize")  # options that the dataset's preset decides


@dataclass(frozen=True)
class ClipSource:
    """A dataset's clips, wherever their frames come from."""

    name: str
    family: str
    videos: np.ndarray  # names, as `clips` numbers them
    clips: dict[str, np.ndarray]  # id, video, start_s, stop_s (NaN: not known), split..., labels
    classes: dict[str, int]  # outputs of label columns that have a fixed set of classes
    frames: FrameReader | VideoFrames | None  # None: of a store of features
    where: str  # for messages

    def split(self, part: str) -> np.ndarray:
        """Numbers of the clips of `[scheme:]part`, empty where there is no such split."""
        try:
            return np.flatnonzero(split_mask(self.clips, part, self.where))
        except UserError:
            if part == "val":
                return np.empty(0, np.int64)
            raise


def clip_source(
    reads: str,
    *,
    dataset: str | None,
    frames: str | Path | None = None,
    data: str | Path | None = None,
    videos: str | Path | None = None,
    features: Iterable[str | Path] = (),
    resize: Resize | None = None,
) -> ClipSource:
    """The clips and frames of a dataset.

    frames: a store of frames or its path; None: `frames` (or `flow_images`) of the dataset under the feature roots;
    "decode": the dataset's videos, brought to size by `resize` (by default as the dataset's frames store would be).

    Raises:
        UserError: no such store or dataset.
    """
    if frames == "decode":
        return _decoded(reads, dataset, data, videos, resize)
    store = (
        open_store(frames if frames is not None else _find_store(reads, dataset, features))
        if not hasattr(frames, "manifest")
        else frames
    )
    reader = FrameReader(store)
    source = source_of(store, reader)
    clips = dict(source.clips)
    clips["stop_s"] = np.where(
        np.isnan(clips["stop_s"]), np.maximum(reader.duration_s(clips["video"]), clips["start_s"]), clips["stop_s"]
    )
    return replace(source, clips=clips)


def source_of(store: Store, frames: FrameReader | None = None) -> ClipSource:
    """The clips that a store knows; `frames` where it holds frames."""
    facts = store.manifest.dataset
    return ClipSource(
        name=facts.get("name", ""),
        family=facts.get("family", ""),
        videos=store.videos["name"],
        clips={name: store.clips[name] for name in store.clips},
        classes=dict(facts.get("classes") or {}),
        frames=frames,
        where=str(store.path),
    )


def validation_clips(
    source: ClipSource, fit: str, lineage: list[dict], say: Callable[[str], None], known: np.ndarray | None = None
) -> np.ndarray:
    """Numbers of the clips of split val; none (with a line that says why) where figures on them would mean nothing.

    lineage: of the weights that a training starts from; clips that one of them was trained on give no figures.
    known: (n_clips,) bool: only these clips.
    """
    which = source.split("val") if fit == "train" else np.empty(0, np.int64)
    which = which if known is None else which[known[which]]
    labelled = "" if known is None else " with labels"
    why = f"fitting on {fit}" if fit != "train" else f"the dataset has no clips{labelled} in split val"
    if len(which):
        why = seen_by(SplitOf(source, which), lineage)
    if why:
        say(f"no validation: {why}")
        return which[:0]
    return which


@dataclass(frozen=True)
class SplitOf:
    """Clips as `seen_by` asks for them."""

    source: ClipSource
    which: np.ndarray

    @property
    def dataset_name(self) -> str:
        return self.source.name

    def in_split(self, split: str | None) -> np.ndarray:
        """(n,) bool; all where it is not a split here: then nobody can say which it did not see."""
        try:
            return np.isin(self.which, self.source.split(split or ""))
        except UserError:
            return np.ones(len(self.which), bool)


def _decoded(reads: str, dataset, data, videos, resize: Resize | None) -> ClipSource:
    if dataset is None:
        raise UserError("--frames decode needs --dataset: the frames come out of its videos")
    media = "flow" if reads == "flow" else "rgb"
    found = load_dataset(dataset, data_root=data, videos=videos, media=media)
    if resize is None:
        resize = Resize(**preset_for(found.family, network_spec("frames")).resize)
    reader = VideoFrames(found, resize, READS[reads][1])
    clips = {name: np.asarray(column) for name, column in found.clips.items()}
    names, classes = np.asarray(found.videos["name"]), dict(found.classes)
    return ClipSource(found.name, found.family, names, clips, classes, reader, str(found.root))


def _find_store(reads: str, dataset: str | None, features: Iterable[str | Path]) -> Path:
    name = STORES.get(reads, "frames")
    roots = feature_roots(tuple(features))
    under = stored_name(dataset) if dataset else "*"
    found = [path for root in roots for path in sorted(Path(root).glob(f"{under}/{name}.zarr"))]
    by_dataset = {path.parent.name: path for path in reversed(found)}  # the first root that has one wins
    if len(by_dataset) == 1:
        return next(iter(by_dataset.values()))
    where = ", ".join(str(root) for root in roots)
    if by_dataset:
        raise UserError(f"several datasets under {where} have frames: say --dataset {' or '.join(sorted(by_dataset))}")
    extra = " --axis segment --option clip_len=1" if reads == "flow" else ""
    raise UserError(
        f"no {name}.zarr of {dataset or 'any dataset'} under {where}. Run:"
        f" cli.py extract {_asked(dataset or 'DATASET')} --backbone {name}{extra} --only"
    )


def _asked(dataset: str) -> str:
    """How `extract` is asked for a dataset by the name that its stores bear."""
    known = dataset == "DATASET" or dataset_family(dataset) in list_datasets()
    return f"--dataset {dataset}" if known else own_dataset(dataset)


@dataclass(frozen=True)
class ClipInput:
    """What the network is given of a clip, at training and at extraction alike."""

    spec: NetworkSpec
    sampling: ClipSampling
    resize: Resize

    @property
    def size(self) -> int:
        """Side of the square that the network sees at extraction, in pixels."""
        return self.resize.crop or self.resize.size

    def instants(self, starts_s: np.ndarray) -> np.ndarray:
        """(n, T) seconds of the frames of windows that start at (n,) seconds."""
        steps = np.arange(self.sampling.frames) * self.sampling.stride / self.sampling.fps
        return np.asarray(starts_s)[:, None] + steps


class LabelledClips:
    """Annotated clips with their labels, and frames of them: at random places to train, at the middle to validate,
    evenly spaced to test.

    clips: table of a store or dataset (id, video, start_s, stop_s, splits, labels); labels: {target: (n_clips,) int64,
    -1 for none}. Every random number follows from (seed, clip id, epoch).
    """

    def __init__(self, clips: Mapping, labels: Mapping[str, np.ndarray], frames, given: ClipInput, seed: int):
        self.clips, self.labels, self.frames, self.given, self.seed = clips, labels, frames, given, seed
        self.objects = None  # (videos (n,), centres (n,) seconds) -> {list: arrays}, where a head looks at objects

    def usable(self, which: np.ndarray) -> np.ndarray:
        """Of clips `which`, those with all labels and all frames of their centre window."""
        return self.readable(which[np.all([column[which] >= 0 for column in self.labels.values()], axis=0)])

    def readable(self, which: np.ndarray) -> np.ndarray:
        """Of clips `which`, those with all frames of their centre window."""
        which = which[~np.isnan(self.clips["stop_s"][which])]
        return which[self._have_frames(which, self.centre_starts(which))]

    def middle(self, which: np.ndarray) -> dict:
        """The clips as extraction shows them. With n = len(which):

        {"frames": uint8 (n, T, S, S, C), (n, S, S, C) for frame networks; "seen": float32 (n, 4), left, top, width and
        height of what is shown, relative to the frame; "labels": {target: (n,) int64}; and the object lists, if any}
        """
        return self.window(which, self.centre_starts(which))

    def window(self, which: np.ndarray, starts_s: np.ndarray) -> dict:
        """As `middle`, of the windows of clips `which` (n,) that start at (n,) seconds."""
        shown = self.frames.read(self.clips["video"][which], self.given.instants(starts_s))
        crop = self.given.resize.crop
        windows = [centre_window(*clip.shape[1:3], crop) for clip in shown]
        return self._batch(which, starts_s, shown, windows, [cut(*pair) for pair in zip(shown, windows, strict=True)])

    def random(self, which: np.ndarray, epoch: int, config) -> dict:
        """As `middle`, around a random instant, randomly scaled and cropped, smaller by `config.crop`."""
        starts = self._starts(which, epoch % config.draws + 1 if config.draws else epoch + 1)
        shown = self.frames.read(self.clips["video"][which], self.given.instants(starts))
        ids = np.asarray(self.clips["id"], dtype=object)[which]
        size = max(1, round(config.crop * self.given.size))
        windows, out = random_crops(shown, ids, epoch, self.seed, size, config, None)
        return self._batch(which, starts, shown, windows, out)

    def centre_starts(self, which: np.ndarray) -> np.ndarray:
        """(n,) float64: seconds at which the centre windows of clips `which` (n,) start."""
        return self._starts(which, 0)

    def spaced_starts(self, which: np.ndarray, count: int) -> np.ndarray:
        """(n, count) float64: seconds at which `count` evenly spaced windows of clips `which` (n,) start: those of the
        rows -1..-count that `extract --test-clips` plans. All these clips must have a stop."""
        which = np.asarray(which, np.int64)
        some = {name: np.asarray(self.clips[name])[which] for name in ("id", "video", "start_s", "stop_s")}
        rows = clip_rows(some, self.given.sampling, training=np.zeros(len(which), bool), test_clips=count)
        spaced = rows["draw"] < 0
        starts = np.empty((len(which), count))
        starts[rows["clip"][spaced], -1 - rows["draw"][spaced]] = rows["start_s"][spaced]
        return starts

    def test_windows(self, which: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(places in `which` (m,) int64 ascending, (m,) seconds at which a window starts): what a clip is tested on.

        Those of `count` evenly spaced windows that have all their frames; where none has, the centre window. A clip
        without frames is not among them.
        """
        known = np.flatnonzero(~np.isnan(self.clips["stop_s"][which]))
        starts = np.column_stack((self.spaced_starts(which[known], count), self.centre_starts(which[known])))
        there = np.stack([self._have_frames(which[known], of_part) for of_part in starts.T], axis=1)
        there[:, -1] &= ~there[:, :-1].any(axis=1)
        clip, part = np.nonzero(there)
        return known[clip], starts[clip, part]

    def _have_frames(self, which: np.ndarray, starts_s: np.ndarray) -> np.ndarray:
        """(n,) bool: whether all frames of the windows of clips `which` that start at (n,) seconds are there."""
        if not len(which):
            return np.zeros(0, bool)
        return self.frames.usable(self.clips["video"][which], self.given.instants(starts_s))

    def _starts(self, which: np.ndarray, draw: int) -> np.ndarray:
        return window_starts(self.clips, self.given.sampling, which, draw, self.seed)

    def _batch(self, which: np.ndarray, starts: np.ndarray, shown: list, windows: list, cuts: list) -> dict:
        sizes = np.array([(clip.shape[1], clip.shape[2]) for clip in shown], np.float32).reshape(-1, 2)
        top, left, height, width = np.array(windows, np.float32).reshape(-1, 4).T
        seen = np.stack((left / sizes[:, 1], top / sizes[:, 0], width / sizes[:, 1], height / sizes[:, 0]), axis=1)
        frames = np.stack(cuts)
        out = {
            "frames": frames[:, 0] if READS[self.given.spec.reads][0] == "HWC" else frames,
            "seen": seen,
            "labels": {name: column[which] for name, column in self.labels.items()},
        }
        if self.objects is not None:
            centres = starts + self.given.sampling.seconds / 2
            out |= self.objects(self.clips["video"][which], centres)
        return out


def clip_input(backbone: str, family: str, options: Mapping[str, Any], own: Collection[str] = ()) -> ClipInput:
    """How a network is given a clip of a dataset of this family: by the preset that extraction follows.

    own: those of the options that the user chose; they count before the preset.

    Raises:
        UserError: a network that reads no frames.
    """
    plain = network_spec(backbone, **options)
    axes = READS[plain.reads][0]
    if "H" not in axes:
        raise UserError(f"{backbone} reads {plain.reads}, not frames")
    preset = preset_for(family, plain, own=own)
    resize = dict(preset.resize)
    if axes == "HWC":
        return ClipInput(plain, ClipSampling(1, 1, 1000.0), Resize(**resize))  # one frame at the drawn millisecond
    return ClipInput(plain, preset.sampling, Resize(**resize))


def input_options(options: Mapping[str, Any], given: ClipInput) -> dict[str, Any]:
    """A network's options with those that say what it is given."""
    sampled = {"resize": {k: v for k, v in asdict(given.resize).items() if v}}
    if READS[given.spec.reads][0] == "THWC":
        sampled |= {"clip_len": given.sampling.frames, "stride": given.sampling.stride, "fps": given.sampling.fps}
    return {**options, **sampled}


def own_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A network's options without those."""
    return {name: value for name, value in options.items() if name not in _INPUT}


def check_frames(source: ClipSource, given: ClipInput) -> None:
    """Refuse frames that are not what the network is given at extraction.

    Raises:
        UserError: another resize, channels or a coarser grid; the message has the command that makes the right store.
    """
    if not isinstance(source.frames, FrameReader):
        return
    stored = {k: v for k, v in source.frames.store.manifest.spec["resize"].items() if v}
    wanted = {k: v for k, v in asdict(given.resize).items() if v and k != "crop"}
    step = given.sampling.stride / given.sampling.fps
    lines = []
    if source.frames.channels != READS[given.spec.reads][1]:
        lines.append(f"it has {source.frames.channels} channels, {given.spec.name} reads {READS[given.spec.reads][1]}")
    if stored != wanted:
        lines.append(f"its frames are resized by {stored}, {given.spec.name} is given {wanted} at extraction")
    if given.sampling.frames > 1 and source.frames.step_s > step * (1 + 1e-6):
        lines.append(
            f"it has a frame every {source.frames.step_s:.4f} s, {given.spec.name} is given one every {step:.4f}"
        )
    if lines:
        hop = f" --hop {step!r}" if given.sampling.frames > 1 else ""
        raise UserError(
            f"{source.where}: {'; '.join(lines)}. Make frames for it: cli.py extract {_asked(source.name)} --backbone"
            f" {STORES.get(given.spec.reads, 'frames')} --name frames_{given.spec.name}"
            f" --option 'resize={json.dumps(wanted)}'{hop}"
        )


def labels_of(source: ClipSource, targets: Iterable[str], fit: str) -> tuple[dict, dict[str, int]]:
    """({target: (n_clips,) int64, -1 for none}, {target: number of classes}).

    "action" without such a column is the pair of verb and noun: those that occur among the clips to fit, in order of
    verb, then noun; other pairs have no class and count as wrong.

    Raises:
        UserError: a target that is no label column.
    """
    labels, classes = {}, {}
    for target in targets:
        if target == "action" and target not in source.clips and {"verb", "noun"} <= set(source.clips):
            labels[target], classes[target] = _pairs(source, fit)
            continue
        column = source.clips.get(target)
        if target in ("id", "video") or column is None or np.asarray(column).dtype.kind not in "iu":
            there = [name for name, c in source.clips.items() if name != "video" and np.asarray(c).dtype.kind in "iu"]
            raise UserError(f"{source.where}: no label column {target!r}; it has {', '.join(there) or 'none'}")
        labels[target] = np.asarray(column).astype(np.int64)
        classes[target] = max(int(source.classes.get(target, 0)), int(labels[target].max(initial=-1)) + 1)
    return labels, classes


def _pairs(source: ClipSource, fit: str) -> tuple[np.ndarray, int]:
    verb, noun = (np.asarray(source.clips[name]).astype(np.int64) for name in ("verb", "noun"))
    width = int(noun.max(initial=0)) + 1
    code = np.where((verb >= 0) & (noun >= 0), verb * width + noun, -1)
    known = np.unique(code[source.split(fit)])
    known = known[known >= 0]
    place = np.searchsorted(known, code).clip(0, max(0, len(known) - 1))
    return np.where(np.isin(code, known), place, -1), len(known)
