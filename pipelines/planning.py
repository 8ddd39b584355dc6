"""From what was asked to what will be done: which stores, which rows, which recipe. Reads headers, never frames.

`plan_extraction` turns one `Extraction` (the options of the command line) into a list of `Job`s, one a store.
A job is everything decided before the first frame is read; `pipelines.extraction` carries it out.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from errors import UserError
from extract.datasets import Dataset, load_dataset, missing_videos, select_split
from extract.decode import DECODE_RULE, DECODERS, VideoError, quick_probe
from extract.networks import NetworkSpec, list_networks, network_spec
from extract.networks.registry import ALIASES
from extract.sampling import ClipSampling, GridSampling, clip_rows, frame_rows, preset_for
from extract.sampling import instants as instants_of
from extract.transforms import Resize, geometry
from pipelines.boxes import GivenBoxes, dataset_boxes, read_boxes
from pipelines.probes import ProbeCache
from stores import ArraySpec, Layout, Manifest, plan_layout, store_bytes, units

__all__ = ["Extraction", "Job", "plan_extraction"]

PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = ("float16", "float32")
# What each head reads of a clip network's store: the default of --keep.
KEEP_FOR_HEAD = {"saoa": ("spatial", "vector"), "whole_frame": ("vector",)}
DEFAULT_KEEP = ("spatial", "vector")
DEFAULT_DRAWS = 4
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*")


@dataclass(frozen=True)
class Extraction:
    """What the user asks of stage one. Every field is an option of `cli.py extract`; checked on creation."""

    dataset: str
    backbone: str | None = None
    detector: str | None = None
    # where things are
    data: str | Path | None = None  # root of all datasets; default CLIPBANK_DATA
    videos: str | Path | None = None  # folder of videos of one's own CSV
    features: tuple[
        str | Path, ...
    ] = ()  # feature roots, the first is written; default CLIPBANK_FEATURES or ./features
    # the network
    name: str | None = None  # the store's name; default the network's
    weights: tuple[str, ...] = ()  # PATH, random:SEED, or NETWORK=PATH
    layer: str | None = None
    boxes: str | None = None  # "dataset" or a CSV: RoI features of given boxes
    roi_feature: str | None = None  # pooled | fc
    flow: str | None = None
    # what is stored
    for_head: str | None = None
    keep: tuple[str, ...] = ()
    only: bool = False
    draws: int | None = None  # random-centre clips a training segment
    seed: int = 0
    dtype: str = "float16"
    # how it is computed
    precision: str = "fp32"
    decoder: str = "pyav"
    unit_rows: int | None = None
    batch_size: int | None = None
    # which part of it now
    split: str | None = None  # part, or scheme:part
    limit: int | None = None
    shard: tuple[int, int] | None = None
    missing: str = "error"
    retry_failed: bool = False

    def __post_init__(self):
        if (self.backbone is None) == (self.detector is None):
            raise UserError("give one of --backbone and --detector")
        _one_of("--precision", self.precision, PRECISIONS)
        _one_of("--dtype", self.dtype, DTYPES)
        _one_of("--decoder", self.decoder, DECODERS)
        _one_of("--missing", self.missing, ("error", "skip"))
        if self.for_head is not None:
            _one_of("--for", self.for_head, tuple(KEEP_FOR_HEAD))
        if self.name is not None and not NAME.fullmatch(self.name):
            raise UserError(f"--name {self.name!r}: a store's name has letters, digits, '_', '-', '.' and '=' only")
        for flag, value, least in [
            ("--draws", self.draws, 0),
            ("--limit", self.limit, 1),
            ("--unit-rows", self.unit_rows, 1),
            ("--batch-size", self.batch_size, 1),
        ]:
            if value is not None and value < least:
                raise UserError(f"{flag} must be at least {least}, got {value}")
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise UserError(f"--shard i/n needs 0 <= i < n, got {self.shard[0]}/{self.shard[1]}")
        if self.flow is not None:
            raise UserError(
                "--flow computes optical flow, which this version cannot do: extract i3d_flow from published"
                " flow folders, <data>/<dataset>/flow_frames/<video>/{u,v}/frame_0000000001.jpg"
            )

    @property
    def feature_roots(self) -> list[Path]:
        return feature_roots(self.features)


def feature_roots(given: tuple[str | Path, ...] = ()) -> list[Path]:
    """The feature roots in order: those given, else CLIPBANK_FEATURES (path-separated), else ./features."""
    if given:
        return [Path(root) for root in given]
    listed = [root for root in os.environ.get("CLIPBANK_FEATURES", "").split(os.pathsep) if root]
    return [Path(root) for root in listed] or [Path("features")]


def readable_bytes(n: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.4g} {unit}"
        n /= 1024
    return f"{n:.4g} TiB"


def _one_of(flag: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UserError(f"{flag} must be one of {', '.join(choices)}, got {value!r}")


# ---- jobs --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One store, decided whole before its first frame is read."""

    request: Extraction
    name: str  # of the store
    network: str
    options: dict  # of the network
    weights: str | None
    spec: NetworkSpec
    keep: tuple[str, ...]  # arrays of the network that are stored
    dataset: Dataset
    sampling: ClipSampling | GridSampling
    draws: int
    boxes: GivenBoxes | None
    durations: np.ndarray  # seconds a video, NaN where unknown (only grid axes and open-ended clips ask)
    missing: list[str]  # videos that are not on disk
    videos_without_rows: dict[str, str]  # frame axis: video -> why its length is not known, so it has no rows

    @property
    def path(self) -> Path:
        return self.request.feature_roots[0] / self.dataset.name / f"{self.name}.zarr"

    @cached_property
    def probe_cache(self) -> ProbeCache:
        return ProbeCache(self.path.parent / ".probes")

    @property
    def reads(self) -> str:
        return "flow" if self.spec.reads == "flow" else "rgb"

    @property
    def grid_fps(self) -> float | None:
        """Rate of the numbering of frame folders, frames a second."""
        return self.dataset.grid_fps

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
        if isinstance(self.sampling, GridSampling):
            return frame_rows(self.durations, self.sampling)
        return clip_rows(self.dataset.clips, self.sampling, self.draws, self.request.seed, durations=self.durations)

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
    def wanted(self) -> np.ndarray:
        """(N,) bool: the rows of --split."""
        if self.request.split is None:
            return np.ones(len(self.rows["video"]), bool)
        clips = select_split(self.dataset.clips, self.request.split)
        if isinstance(self.sampling, ClipSampling):
            return clips[self.rows["clip"]]
        return np.isin(self.rows["video"], self.dataset.clips["video"][clips])

    def instants(self, rows: dict[str, np.ndarray]) -> np.ndarray:
        """float64 (n, T): the instants at which the frames of these rows are taken."""
        return instants_of(rows, self.sampling)

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
            "decoder": {"family": self.request.decoder, "rule": DECODE_RULE},
            "precision": self.request.precision,
            "dtype": self.request.dtype,
            **({"boxes": self.boxes.digest} if self.boxes else {}),
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
            dataset={
                "name": self.dataset.name,
                "family": self.dataset.family,
                "annotation_hash": self.dataset.annotation_hash,
                "classes": self.dataset.classes,
                "class_names": self.dataset.class_names,
                "axis": self.sampling.axis,
                "draws": self.draws,
                "seed": self.request.seed,
            },
            lineage=network.lineage,
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
    duration matters are probed in full, which is cached. Raises `UserError` for anything that cannot work,
    KeyboardInterrupt if `stop` is set while videos are probed.
    """
    named = request.backbone or request.detector
    main = network_spec(named, **_options(request, request.boxes))
    if (main.kind == "detector") != (request.detector is not None):
        right = "--detector" if main.kind == "detector" else "--backbone"
        raise UserError(f"{main.name} is a network of kind {main.kind}: name it with {right}")
    wanted = [(named, request.boxes, _load(request, main))]
    select_split(wanted[0][2].clips, request.split)  # refuses one that is not there
    other = _other_store(request, wanted[0][2], main)
    if other is not None:
        spec = network_spec(other[0])
        wanted.append((*other, wanted[0][2] if main.reads != "flow" else _load(request, spec)))
    weights = _weights(request, [main.name, *(network_spec(network).name for network, *_ in wanted[1:])])

    jobs = []
    for (network, boxes, dataset), own_weights in zip(wanted, weights, strict=True):
        job = _job(request, dataset, network, boxes, own_weights, first=not jobs)
        if job.sampling.axis == "frame" or np.isnan(dataset.clips["stop_s"]).any():
            _find_durations(job, headers_only, progress, stop or threading.Event())
        announce(
            f"{job.path}: {len(job.rows['video']):,} rows in {job.n_units:,} units,"
            f" {readable_bytes(job.bytes)} before compression"
        )
        if job.missing:
            announce(
                f"  {len(job.missing)} of {len(dataset.videos['name'])} videos are not on disk: {some_of(job.missing)}"
            )
        jobs.append(job)
    return jobs


def _load(request: Extraction, spec: NetworkSpec) -> Dataset:
    """The dataset with the media that a network reads. Refuses missing videos, unless they are to be skipped."""
    media = "flow" if spec.reads == "flow" else "rgb"
    dataset = load_dataset(request.dataset, data_root=request.data, videos=request.videos, media=media)
    missing, total = missing_videos(dataset), len(dataset.videos["name"])
    folders = {"rgb": "videos/ and rgb_frames/", "flow": "flow_frames/<video>/{u,v}/"}[media]
    folders = folders if dataset.family else "it and its subfolders"
    if len(missing) == total and media == "flow":
        raise UserError(
            f"dataset {dataset.name}: no flow frames under {dataset.root} (looked in {folders}): put the published flow"
            " there; this version does not compute flow from the videos"
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
    return {name: value for name, value in options.items() if value is not None}


def _job(
    request: Extraction, dataset: Dataset, network: str, boxes: str | None, weights: str | None, first: bool
) -> Job:
    options = _options(request, boxes) if first else ({"boxes": True} if boxes else {})
    chosen = preset_for(dataset.family, network_spec(network, **options))
    clip_axis = isinstance(chosen.sampling, ClipSampling)
    if dict(chosen.resize) != dict(network_spec(network, **options).resize):
        options["resize"] = dict(chosen.resize)
    if clip_axis:
        options |= {"clip_len": chosen.sampling.frames, "stride": chosen.sampling.stride, "fps": chosen.sampling.fps}
    elif first and request.draws:
        raise UserError(f"--draws {request.draws}: {network} looks at single frames of whole videos, not at clips")
    spec = network_spec(network, **options)
    given = None
    if boxes is not None:
        given = dataset_boxes(dataset) if boxes == "dataset" else read_boxes(Path(boxes), dataset)
    return Job(
        request=request,
        name=(request.name if first else None) or spec.name.rpartition(":")[2] + ("_boxes" if given else ""),
        network=network,
        options=options,
        weights=weights,
        spec=spec,
        keep=_keep(request, spec, first),
        dataset=dataset,
        sampling=chosen.sampling,
        draws=(DEFAULT_DRAWS if request.draws is None else request.draws) if clip_axis else 0,
        boxes=given,
        durations=np.full(len(dataset.videos["name"]), np.nan),
        missing=missing_videos(dataset),
        videos_without_rows={},
    )


def _find_durations(job: Job, headers_only: bool, progress, stop: threading.Event) -> None:
    """Fill in the length of every video, and why it is not known: missing, or cannot be read."""
    names = job.dataset.videos["name"]
    paths = {i: path for i in range(len(names)) if (path := job.dataset.video_path(i)) is not None}
    if headers_only:
        found = [_header_duration(job, path) for path in paths.values()]
    else:
        bar = progress(f"probing {job.dataset.name}", len(paths)) if progress else None
        found = job.probe_cache.get_many(
            list(paths.values()),
            grid_fps=job.grid_fps,
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


def _header_duration(job: Job, path: Path) -> float | VideoError:
    try:
        return quick_probe(path, grid_fps=job.grid_fps, reads=job.reads)[1] or np.nan
    except VideoError as error:
        return error


def _keep(request: Extraction, spec: NetworkSpec, first: bool) -> tuple[str, ...]:
    if spec.kind != "backbone":
        if first and request.keep:
            raise UserError(
                f"--keep {','.join(request.keep)}: {spec.name} stores its boxes and their features, all of them"
            )
        return tuple(spec.outputs)
    asked = request.keep if first and request.keep else KEEP_FOR_HEAD.get(request.for_head or "", DEFAULT_KEEP)
    unknown = [name for name in asked if name not in spec.outputs]
    if unknown and first and request.keep:
        raise UserError(
            f"--keep {','.join(asked)}: {spec.name} has no array {', '.join(unknown)}; it has {', '.join(spec.outputs)}"
        )
    return tuple(name for name in spec.outputs if name in asked)


def _weights(request: Extraction, networks: list[str]) -> list[str | None]:
    """What --weights says of each network of this run: NETWORK=VALUE, random:SEED for all, a path for the first."""
    chosen: dict[str, str] = {}
    named: dict[str, str] = {}
    for value in request.weights:
        left, equals, right = value.partition("=")
        network = ALIASES.get(left, left)
        if equals and network in networks:
            named[network] = right
        elif equals and network in list_networks(hidden=True):
            raise UserError(f"--weights {value}: {left} does not run here, only {', '.join(networks)}")
        elif value.startswith("random:"):
            chosen |= {name: value for name in networks if name not in chosen}
        else:
            chosen[networks[0]] = value
    chosen |= named
    return [chosen.get(network) for network in networks]


def _other_store(request: Extraction, dataset: Dataset, main: NetworkSpec) -> tuple[str, str | None] | None:
    """The store beside the clip network's that SAOA reads: (network, boxes), or None."""
    if request.only or request.backbone is None or request.boxes or main.reads.endswith("_frame"):
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


def some_of(names: Sequence[str]) -> str:
    """The first ten, and how many more."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
