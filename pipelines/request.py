"""What the user asks of stage one, checked as far as it can be without looking at anything."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from errors import UserError
from extract.decode import DECODERS
from extract.sampling import GRID_AXES

__all__ = [
    "AVERAGING_HEADS",
    "KEEP_FOR_HEAD",
    "SAMPLER_HEADS",
    "TEST_CLIPS",
    "Extraction",
    "feature_roots",
    "parse_settings",
    "readable_bytes",
    "some_of",
]

# What each head reads of a network's store: the default of --keep.
KEEP_FOR_HEAD = {
    "ipl": ("map",),
    "psn": ("vector", "logits"),
    "saoa": ("spatial", "vector"),
    "scsampler": ("vector", "logits"),
    "whole_frame": ("vector",),
}
SAMPLER_HEADS = ("psn", "scsampler")  # they read a light network's store and a recogniser's, of the same frames
AVERAGING_HEADS = ("ipl",)  # they are tested on the mean scores of evenly spaced clips
TEST_CLIPS = 10  # how many of a segment: the default of --test-clips with --for one of them (thesis section 4.3.2)
PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = ("float16", "float32")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=-]*")


@dataclass(frozen=True)
class Extraction:
    """What the user asks of stage one. Every field is an option of `cli.py extract`; checked on creation."""

    dataset: str
    backbone: str | None = None
    detector: str | None = None
    expert: str | None = None
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
    option: tuple[str, ...] = ()  # KEY=VALUE: any option of the network
    flow: str | None = None  # tvl1, dis, raft, or a store of flow images
    axis: str | None = None  # clip, frame or segment; default the network's
    hop: float | None = None  # seconds from one row to the next (frame and segment axes)
    segments: int | None = None  # of the frame axis, the middle frames of so many equal segments of each clip
    sampler: str | Path | None = None  # of the frame axis, the frames that this run of a sampler picks
    sampled: int | None = None  # how many it picks of a clip; default its own M
    # what is stored
    for_head: str | None = None
    keep: tuple[str, ...] = ()
    only: bool = False
    draws: int | None = None  # random-centre clips a training segment
    test_clips: int | None = None  # evenly spaced clips of every other segment; see TEST_CLIPS
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
        if self.test_clips is None:
            of_clips = self.axis in (None, "clip") and self.hop is None
            averaged = self.for_head in AVERAGING_HEADS and of_clips
            object.__setattr__(self, "test_clips", TEST_CLIPS if averaged else 0)
        if [self.backbone, self.detector, self.expert].count(None) != 2:
            raise UserError("give one of --backbone, --detector and --expert")
        _one_of("--precision", self.precision, PRECISIONS)
        _one_of("--dtype", self.dtype, DTYPES)
        _one_of("--decoder", self.decoder, DECODERS)
        _one_of("--missing", self.missing, ("error", "skip"))
        if self.axis is not None:
            _one_of("--axis", self.axis, ("clip", *GRID_AXES))
        if self.hop is not None and not self.hop > 0:
            raise UserError(f"--hop must be positive seconds, got {self.hop}")
        if self.hop is not None and self.axis == "clip":
            raise UserError("--hop is of the frame and segment axes; --axis clip has one window a clip and draw")
        if self.segments is not None and self.sampler is not None:
            raise UserError("--sampler picks among the middle frames of its own segments: leave --segments out")
        if self.sampled is not None and self.sampler is None:
            raise UserError(
                f"--sampled {self.sampled} says how many frames a sampler picks: name it with --sampler RUN"
            )
        if self.sampler is not None and self.for_head is not None:
            raise UserError(f"--sampler makes one store; --for {self.for_head} asks for those that training reads")
        if self.for_head is not None:
            _one_of("--for", self.for_head, tuple(KEEP_FOR_HEAD))
        if self.name is not None and not NAME.fullmatch(self.name):
            raise UserError(f"--name {self.name!r}: a store's name has letters, digits, '_', '-', '.' and '=' only")
        for flag, value, least in [
            ("--draws", self.draws, 0),
            ("--test-clips", self.test_clips, 0),
            ("--segments", self.segments, 1),
            ("--sampled", self.sampled, 1),
            ("--limit", self.limit, 1),
            ("--unit-rows", self.unit_rows, 1),
            ("--batch-size", self.batch_size, 1),
        ]:
            if value is not None and value < least:
                raise UserError(f"{flag} must be at least {least}, got {value}")
        _ = self.network_options  # refuses what is no KEY=VALUE
        if self.shard is not None and not 0 <= self.shard[0] < self.shard[1]:
            raise UserError(f"--shard i/n needs 0 <= i < n, got {self.shard[0]}/{self.shard[1]}")

    @property
    def network_options(self) -> dict:
        """--option KEY=VALUE as a dict."""
        return parse_settings(self.option)

    @property
    def feature_roots(self) -> list[Path]:
        return feature_roots(self.features, written=True)


def parse_settings(settings: Sequence[str]) -> dict:
    """KEY=VALUE as a dict; a value that reads as JSON is taken as such, any other as text. Raises `UserError`."""
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--option {setting}: expected KEY=VALUE, such as layer=Mixed_4f")
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def feature_roots(given: tuple[str | Path, ...] = (), *, written: bool = False) -> list[Path]:
    """The feature roots in order: those given, else CLIPBANK_FEATURES (path-separated), else ./features.

    written: the first is made where it is not there yet.

    Raises `UserError` for an address, as what is looked through, and written, are folders; for a given folder that is
    not there.
    """
    named = [str(root) for root in given] or [os.environ.get("CLIPBANK_FEATURES", "")]
    if address := next((root for root in named if re.search(r"(^|:)(https?|s3):/", root)), None):
        raise UserError(
            f"feature root {address}: a root is a folder. Stores at an address are read one by one; to use their rows"
            " here copy them first: clipbank store copy ADDRESS/NAME.zarr FOLDER/DATASET/NAME.zarr"
        )
    if given:
        roots = [Path(root) for root in given]
        made = roots[:1] if written else []
        if lacking := [str(root) for root in roots if root not in made and not root.is_dir()]:
            raise UserError(f"--features {lacking[0]}: no such folder")
        return roots
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


def some_of(names: Sequence[str]) -> str:
    """The first ten, and how many more."""
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
