"""From what was asked to what will be done: which stores, which rows, which recipe. Reads headers, never frames.

`plan_extraction` turns one `Extraction` (the options of the command line) into a list of `Job`s, one a store.
A job is everything decided before the first frame is read; `pipelines.extraction` carries it out.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from errors import UserError, count_of
from extract.audio import AUDIO_RULE
from extract.datasets import Dataset, load_dataset, missing_videos, select_split
from extract.decode import DECODE_RULE, VideoError, quick_probe
from extract.experts import find_expert
from extract.networks import NetworkSpec, list_networks, network_spec, trained_options, weights_options
from extract.networks.registry import ALIASES
from extract.networks.spec import READS
from extract.sampling import (
    GRID_AXES,
    ClipSampling,
    GridSampling,
    Sampling,
    SegmentSampling,
    clip_rows,
    frame_rows,
    preset_for,
    segment_rows,
    text_rows,
)
from extract.transforms import Resize, geometry
from pipelines.boxes import GivenBoxes, dataset_boxes, read_boxes
from pipelines.flow_source import FlowSource, flow_source
from pipelines.probes import ProbeCache
from pipelines.reading import Reading, captions_of
from pipelines.request import KEEP_FOR_HEAD, SAMPLER_HEADS, Extraction, readable_bytes, some_of
from stores import ArraySpec, Layout, Manifest, check_size, plan_layout, store_bytes, units

if TYPE_CHECKING:
    from pipelines.frame_choice import FrameChoice, FrameSampler

__all__ = ["Extraction", "Job", "plan_extraction"]

DEFAULT_KEEP = ("spatial", "vector", "logits")
DEFAULT_DRAWS = 2  # the fewest that came within seed noise of fresh draws every epoch: benchmarks/caching_cost.py
LIGHT, RECOGNISER = "shufflenet_v2", "tsn_resnet50"  # what --for psn puts beside the network that is named
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.=-]+")


# ---- jobs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One store, decided whole before its first frame is read."""

    request: Extraction
    path: Path  # of the store
    network: str
    options: dict  # of the network
    weights: str | None
    spec: NetworkSpec
    keep: tuple[str, ...]  # arrays of the network that are stored
    dataset: Dataset
    sampling: Sampling
    draws: int
    boxes: GivenBoxes | None
    flow: FlowSource | None  # where computed flow comes from; None: the network reads none, or published images
    durations: np.ndarray  # seconds a video, NaN where unknown (only grid axes and open-ended clips ask)
    missing: list[str]  # videos that are not on disk
    videos_without_rows: dict[str, str]  # grid axes: video -> why its length is not known, so it has no rows
    frames: FrameChoice | None = None  # frame axis: which instants of the grid are rows; None: all

    @property
    def name(self) -> str:
        """The store's."""
        return self.path.stem

    @cached_property
    def probe_cache(self) -> ProbeCache:
        return ProbeCache(self.path.parent / ".probes")

    @cached_property
    def reading(self) -> Reading:
        return Reading(self.spec.reads, self.sampling, self.resize, self.flow)

    @property
    def reads(self) -> str:
        """The frames that are decoded: "rgb" or "flow"."""
        return self.reading.frames

    @property
    def needs_videos(self) -> bool:
        """Captions and stored flow are read without them."""
        return self.spec.reads != "text" and (self.flow is None or self.flow.store is None)

    @cached_property
    def resize(self) -> Resize:
        return Resize(**self.spec.resize)

    @cached_property
    def arrays(self) -> dict[str, ArraySpec]:
        """What the store keeps of every row; "feature" arrays in the asked dtype."""
        return {
            name: ArraySpec(shape, self.request.dtype if dtype == "feature" else dtype)
            for name, (shape, dtype) in self.spec.outputs.items()
            if name in self.keep
        } | {"n_padded": ArraySpec((), "int16")}

    @cached_property
    def rows(self) -> dict[str, np.ndarray]:
        """Every row that the store has, whatever part of it is computed now: video, clip, k, draw, start_s, stop_s."""
        if self.frames is not None:
            return self.frames.rows
        if isinstance(self.sampling, GridSampling):
            return frame_rows(self.durations, self.sampling)
        if isinstance(self.sampling, SegmentSampling):
            return segment_rows(self.durations, self.sampling)
        if self.spec.reads == "text":
            return text_rows(self.dataset.clips, self.dataset.texts)
        return clip_rows(
            self.dataset.clips,
            self.sampling,
            self.draws,
            self.request.seed,
            durations=self.durations,
            test_clips=self.request.test_clips,
        )

    @cached_property
    def layout(self) -> Layout:
        return plan_layout(
            self.arrays,
            self.spec.unit_rows,
            unit_rows=self.request.unit_rows,
            batch_size=self.request.batch_size or self.spec.batch_size,
        )

    @property
    def n_units(self) -> int:
        return len(units((0, len(self.rows["video"])), self.layout.unit_rows))

    @property
    def bytes(self) -> int:
        """Size of all arrays before compression (features after a ReLU compress to about half)."""
        return sum(store_bytes(self.arrays, len(self.rows["video"])).values())

    @cached_property
    def wanted_clips(self) -> np.ndarray:
        """(n_clips,) bool: the clips of --split."""
        return select_split(self.dataset.clips, self.request.split)

    @cached_property
    def wanted(self) -> np.ndarray:
        """(N,) bool: the rows of --split."""
        if self.request.split is None:
            return np.ones(len(self.rows["video"]), bool)
        clips = self.wanted_clips
        if self.sampling.axis not in GRID_AXES:
            return clips[self.rows["clip"]]
        return np.isin(self.rows["video"], self.dataset.clips["video"][clips])

    @cached_property
    def captions(self) -> dict[str, list[str]]:
        """{clip id: its captions in order}."""
        return captions_of(self.dataset)

    def boxes_of(self, rows: dict[str, np.ndarray], row: int) -> dict[str, np.ndarray] | None:
        """The given boxes of a row, with scores and classes (see `GivenBoxes.at`); None for networks that take none."""
        if self.boxes is None:
            return None
        within = 0.5 / self.sampling.fps
        return self.boxes.at(int(rows["video"][row]), float(rows["start_s"][row]), within)

    def geometry(self, width: int, height: int) -> list[float]:
        """(sx, sy, ox, oy) from relative frame coordinates to cells of this store's map (relative for detectors)."""
        if self.spec.map_size is None:
            return [1.0, 1.0, 0.0, 0.0]
        return [float(value) for value in geometry(self.resize, width, height, *self.spec.map_size)]

    def recipe(self, network) -> dict:
        """Everything that determines a row's values from its window (DESIGN section 3)."""
        return {
            "network": network.spec.recipe(),
            "weights": network.weights_hash,
            "sampling": {"axis": self.sampling.axis, **asdict(self.sampling)},
            **self._reading(),
            "precision": self.request.precision,
            "dtype": self.request.dtype,
            **({"boxes": self.boxes.digest} if self.boxes else {}),
        }

    def _reading(self) -> dict:
        """The part of the recipe that says how a row's input is read."""
        if self.spec.reads == "text":
            return {}  # a caption is to its row what a window is to others: rows are matched by it
        if self.spec.reads == "waveform":
            return {"audio": {"rule": AUDIO_RULE}}
        decoder = {"decoder": {"family": self.request.decoder, "rule": DECODE_RULE}}
        return decoder | ({"flow": self.flow.recipe} if self.flow is not None else {})

    @property
    def dataset_facts(self) -> dict:
        """What the store says about the dataset and how it is sampled."""
        return {
            "name": self.dataset.name,
            "family": self.dataset.family,
            "annotation_hash": self.dataset.annotation_hash,
            "classes": self.dataset.classes,
            "class_names": self.dataset.class_names,
            "axis": self.sampling.axis,
            "draws": self.draws,
            "seed": self.request.seed,
            **({"test_clips": self.request.test_clips} if self.request.test_clips else {}),
            **({"frames": self.frames.facts} if self.frames else {}),
        }

    def manifest(self, network) -> Manifest:
        """What the new store will say about itself."""
        return Manifest(
            arrays=self.arrays,
            layout=self.layout,
            recipe=self.recipe(network),
            spec={
                **network.spec.to_json(),
                "weights_origin": network.weights_origin,
                "created_with": {"name": self.network, "options": self.options},
            },
            dataset=self.dataset_facts,
            lineage=[*network.lineage, *(self.frames.lineage if self.frames else ())],
            extents=((0, len(self.rows["video"])),),
        )


def plan_extraction(
    request: Extraction,
    *,
    headers_only: bool = False,
    announce: Callable[[str], None] = lambda line: None,
    progress: Callable[[str, int], object] | None = None,
    stop: threading.Event | None = None,
) -> list[Job]:
    """The stores that a request makes, the one it names first.

    headers_only: durations come from headers (`plan`: fast, and nothing is written); otherwise videos whose
    duration matters are probed in full, which is cached. Where a sampler picks the frames and the features that it
    looks at are nowhere yet, the job's rows are as many as it may pick (`FrameChoice.wants` says what to extract
    first; with headers_only that job comes behind). Raises `UserError` for anything that cannot work,
    KeyboardInterrupt if `stop` is set while videos are probed.
    """
    expert = find_expert(request.expert) if request.expert else None
    named = expert.network if expert else request.backbone or request.detector
    main = network_spec(named, **_options(request, request.boxes))
    if expert is None and (main.kind == "detector") != (request.detector is not None):
        right = "--detector" if main.kind == "detector" else "--backbone"
        raise UserError(f"{main.name} is a network of kind {main.kind}: name it with {right}")
    wanted = [(named, request.boxes, _load(request, main))]
    select_split(wanted[0][2].clips, request.split)  # refuses one that is not there
    other = _other_store(request, wanted[0][2], main)
    if other is not None:
        spec = network_spec(other[0])
        wanted.append((*other, wanted[0][2] if main.reads != "flow" else _load(request, spec)))
    sampler = _sampler(request)
    networks = [main.name, *(network_spec(network).name for network, *_ in wanted[1:])]
    weights = _weights(request, networks, beside=sampler.network if sampler is not None else None)

    jobs: list[Job] = []
    for (network, boxes, dataset), own_weights in zip(wanted, weights, strict=True):
        job = _job(request, dataset, network, boxes, own_weights, first=not jobs)
        if job.sampling.axis in GRID_AXES or np.isnan(dataset.clips["stop_s"]).any() and job.spec.reads != "text":
            find_durations(job, headers_only, progress, stop or threading.Event())
        job = _with_frames(job, sampler)
        if not (job.path / "zarr.json").exists():  # the units of one that is there are cut already
            check_size(len(job.rows["video"]), job.layout.unit_rows, job.path)
        announce(
            f"{job.path}: {count_of(len(job.rows['video']), 'row')} in {count_of(job.n_units, 'unit')},"
            f" {readable_bytes(job.bytes)} before compression"
        )
        if job.missing:
            announce(
                f"  {len(job.missing)} of {count_of(len(dataset.videos['name']), 'video')} not on disk:"
                f" {some_of(job.missing)}"
            )
        if request.for_head in SAMPLER_HEADS and (line := _unknown_logits(job)):
            announce(line)
        jobs.append(job)
        if job.frames is not None and job.frames.wants is not None:
            announce("  that is at most: its sampler looks at features that must be extracted first")
            if headers_only:
                jobs += plan_extraction(job.frames.wants, headers_only=True, announce=announce)
    return jobs


def _unknown_logits(job: Job) -> str:
    """What to tell of logits that name none of the dataset's labels; "" where they may."""
    if "logits" not in job.keep or (n := job.spec.outputs["logits"][0][-1]) in job.dataset.classes.values():
        return ""
    return (
        f"  warning: its logits name {n} classes, as no label of {job.dataset.name} does. Train it first: cli.py"
        f" train-recogniser --dataset {job.dataset.name} --backbone {job.network} --target LABEL --out RUN, and then"
        f" --weights {job.spec.name}=RUN"
    )


def _sampler(request: Extraction) -> FrameSampler | None:
    if request.sampler is None:
        return None
    from pipelines.frame_choice import FrameSampler

    return FrameSampler(request.sampler, request.sampled)


def _with_frames(job: Job, sampler: FrameSampler | None) -> Job:
    """The job with the frames that the request chooses, under a name of its own unless the user gave one."""
    if sampler is None and job.request.segments is None:
        return job
    from pipelines.frame_choice import centres_of

    suffix = f"_{job.request.segments}segments" if sampler is None else sampler.suffix
    if job.request.name is None:
        job = replace(job, path=job.path.with_name(NOT_IN_NAMES.sub("_", f"{job.name}{suffix}") + ".zarr"))
    return replace(job, frames=centres_of(job, job.request.segments) if sampler is None else sampler.choose(job))


def _load(request: Extraction, spec: NetworkSpec) -> Dataset:
    """The dataset with the media that a network reads. Refuses missing videos, unless they are to be skipped."""
    media = "flow" if spec.reads == "flow" and request.flow is None else "rgb"
    dataset = load_dataset(request.dataset, data_root=request.data, videos=request.videos, media=media)
    if spec.reads == "text":
        if dataset.texts is None or not len(dataset.texts["clip"]):
            raise UserError(f"dataset {dataset.name} has no captions: {spec.name} reads text")
        return dataset
    if request.flow is not None and spec.reads == "flow" and Path(request.flow).is_dir():
        return dataset  # its videos have been read: the store of flow images has what is needed of them
    missing, total = missing_videos(dataset), len(dataset.videos["name"])
    folders = {"rgb": "videos/ and rgb_frames/", "flow": "flow_frames/<video>/{u,v}/"}[media]
    folders = folders if dataset.family else "it and its subfolders"
    if len(missing) == total and media == "flow":
        raise UserError(
            f"dataset {dataset.name}: no flow frames under {dataset.root} (looked in {folders}): put the published flow"
            " there, or compute it from the videos: --flow tvl1, dis or raft"
        )
    if missing and (request.missing == "error" or len(missing) == total):
        raise UserError(
            f"dataset {dataset.name}: {len(missing)} of {total} videos are not on disk under {dataset.root} (looked in"
            f" {folders}): {some_of(missing)}. Put them there"
            + (", or go on without them: --missing skip" if len(missing) < total else "")
        )
    return dataset


def _options(request: Extraction, boxes: str | None) -> dict:
    """What the command line says to the network that it names."""
    options = {"layer": request.layer, "roi_feature": request.roi_feature, "boxes": True if boxes else None}
    return {name: value for name, value in options.items() if value is not None} | request.network_options


def _job(
    request: Extraction, dataset: Dataset, network: str, boxes: str | None, weights: str | None, first: bool
) -> Job:
    expert = find_expert(request.expert) if request.expert and first else None
    options = _options(request, boxes) if first else ({"boxes": True} if boxes else {})
    options = weights_options(network, weights) | (expert.options if expert else {}) | options
    flow = _flow(request, network_spec(network, **options))
    if flow is not None and "flow_bound" in network_spec(network, **options).options:
        options |= {"flow_bound": flow.recipe["bound"], "flow_scale": 1.0}
    plain = network_spec(network, **options)
    same_grid = first or request.for_head in SAMPLER_HEADS
    axis, hop = (request.axis, request.hop) if same_grid else (None, None)
    if expert is not None and axis is None:
        axis, hop = (None if plain.reads == "text" else "segment"), hop or expert.hop_s
    own = trained_options(weights) | (request.network_options if first else {})
    chosen = preset_for(dataset.family, plain, axis, hop, own)
    clip_axis = isinstance(chosen.sampling, ClipSampling)
    if dict(chosen.resize) != dict(plain.resize):
        options["resize"] = dict(chosen.resize)
    if plain.reads in ("rgb_clip", "flow"):
        sampled = {"clip_len": chosen.sampling.frames, "stride": chosen.sampling.stride, "fps": chosen.sampling.fps}
        options |= {name: value for name, value in sampled.items() if getattr(plain, name) != value}
    if not clip_axis and first and request.draws:
        raise UserError(f"--draws {request.draws}: {network} looks at whole videos or captions here, not at clips")
    if not clip_axis and first and request.test_clips:
        raise UserError(
            f"{network} looks at whole videos, frames or captions here, not at clips: no --test-clips, which --for ipl"
            " asks for"
        )
    spec = network_spec(network, **options)
    given = None
    if boxes is not None:
        given = dataset_boxes(dataset) if boxes == "dataset" else read_boxes(Path(boxes), dataset, chosen.sampling.fps)
    name = (request.name if first else None) or _store_name(expert.name if expert else spec.name, given)
    return Job(
        request=request,
        path=request.feature_roots[0] / dataset.name / f"{name}.zarr",
        network=network,
        options=options,
        weights=weights,
        spec=spec,
        keep=_keep(request, spec, first, expert.keep if expert else None),
        dataset=dataset,
        sampling=chosen.sampling,
        draws=(DEFAULT_DRAWS if request.draws is None else request.draws) if clip_axis else 0,
        boxes=given,
        flow=flow,
        durations=np.full(len(dataset.videos["name"]), np.nan),
        missing=missing_videos(dataset) if spec.reads != "text" else [],
        videos_without_rows={},
    )


def _store_name(network: str, boxes: GivenBoxes | None) -> str:
    """The name of a store by default: the network's, without the library or folder it comes from."""
    return NOT_IN_NAMES.sub("_", network.rpartition(":")[2].strip("/")) + ("_boxes" if boxes else "")


def _flow(request: Extraction, spec: NetworkSpec) -> FlowSource | None:
    if request.flow is None:
        return None
    if spec.reads != "flow":
        raise UserError(f"--flow {request.flow}: {spec.name} does not read flow")
    return flow_source(str(request.flow))


def find_durations(job: Job, headers_only: bool, progress, stop: threading.Event) -> None:
    """Fill in the length of every video, and why it is not known: missing, or cannot be read."""
    names = job.dataset.videos["name"]
    if not job.needs_videos:
        return _stored_durations(job)
    paths = {i: path for i in range(len(names)) if (path := job.dataset.video_path(i)) is not None}
    if headers_only:
        found = [_header_duration(job, i, path) for i, path in paths.items()]
    else:
        bar = progress(f"probing {job.dataset.name}", len(paths)) if progress else None
        found = job.probe_cache.get_many(
            list(paths.values()),
            grid_fps=[job.dataset.grid_fps_of(i) for i in paths],
            reads=job.reads,
            progress=(lambda *_: bar.update(1)) if bar else None,
            stop=stop,
        )
        if bar is not None:
            bar.close()
        if stop.is_set():
            raise KeyboardInterrupt
        found = [one if isinstance(one, VideoError) else one.duration_s for one in found]
    wanted = set(job.dataset.clips["video"][select_split(job.dataset.clips, job.request.split)].tolist())
    for i, result in zip(paths, found, strict=True):
        if not isinstance(result, VideoError):
            job.durations[i] = result
        elif i in wanted:
            job.videos_without_rows[names[i]] = str(result)
    for i in wanted - set(paths):
        job.videos_without_rows[names[i]] = "not on disk"


def _stored_durations(job: Job) -> None:
    """The length of every video as the store of flow images knows it."""
    for i, name in enumerate(job.dataset.videos["name"]):
        probe = job.flow.store.probe(str(name)) if str(name) in job.flow.store.videos["name"] else None
        if probe is None:
            job.videos_without_rows[str(name)] = f"not in {job.flow.store.path}"
        else:
            job.durations[i] = probe["duration_s"]


def _header_duration(job: Job, video: int, path: Path) -> float | VideoError:
    try:
        return quick_probe(path, grid_fps=job.dataset.grid_fps_of(video), reads=job.reads)[1] or np.nan
    except VideoError as error:
        return error


def _keep(
    request: Extraction, spec: NetworkSpec, first: bool, of_expert: tuple[str, ...] | None = None
) -> tuple[str, ...]:
    """The arrays that are stored: those asked for, or an expert's, or those the head reads; all of what has no map."""
    if first and request.keep:
        if spec.kind in ("detector", "roi"):
            raise UserError(
                f"--keep {','.join(request.keep)}: {spec.name} stores its boxes and their features, all of them"
            )
        unknown = [name for name in request.keep if name not in spec.outputs]
        if unknown:
            raise UserError(
                f"--keep {','.join(request.keep)}: {spec.name} has no array {', '.join(unknown)};"
                f" it has {', '.join(spec.outputs)}"
            )
        return tuple(name for name in spec.outputs if name in request.keep)
    wanted = of_expert or KEEP_FOR_HEAD.get(request.for_head or "", DEFAULT_KEEP)
    kept = tuple(name for name in spec.outputs if name in wanted)
    return kept if kept and spec.kind == "backbone" or of_expert else tuple(spec.outputs)


def _weights(request: Extraction, networks: list[str], beside: str | None = None) -> list[str | None]:
    """What --weights says of each network of this run: NETWORK=VALUE, random:SEED for all, a path for the first.

    beside: the network of a sampler, whose weights are not looked at here.
    """
    chosen: dict[str, str] = {}
    named: dict[str, str] = {}
    for value in request.weights:
        left, equals, right = value.partition("=")
        network = ALIASES.get(left, left)
        if equals and network in networks:
            named[network] = right
        elif equals and network == beside:
            continue
        elif equals and network in list_networks(hidden=True):
            raise UserError(f"--weights {value}: {left} does not run here, only {', '.join(networks)}")
        elif value.startswith("random:"):
            chosen |= {name: value for name in networks if name not in chosen}
        else:
            chosen[networks[0]] = value
    chosen |= named
    return [chosen.get(network) for network in networks]


def _other_store(request: Extraction, dataset: Dataset, main: NetworkSpec) -> tuple[str, str | None] | None:
    """The store beside the named network's that the head reads: (network, boxes), or None."""
    if request.for_head in SAMPLER_HEADS:
        if main.reads != "rgb_frame" or main.kind != "backbone":
            raise UserError(f"--for {request.for_head}: {main.name} is no network of single frames, such as {LIGHT}")
        return None if request.only else (RECOGNISER if "logits" not in main.outputs else LIGHT, None)
    of_clips = READS[main.reads][0] == "THWC" and request.axis in (None, "clip") and request.hop is None
    if request.only or request.backbone is None or request.boxes or not of_clips:
        return None
    if not (request.for_head == "saoa" or (request.for_head is None and {"verb", "noun"} <= set(dataset.clips))):
        return None
    network = dataset.saoa.get("objects", "faster_rcnn_r50_fpn")
    if network_spec(network).kind == "detector":
        return network, None
    if dataset.boxes is None:
        raise UserError(
            f"dataset {dataset.name} names {network} for objects but has no boxes; use --only or --boxes CSV"
        )
    return network, "dataset"
