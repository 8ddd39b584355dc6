"""A trained sampler with the two networks that it stands between, as the stores of its training name them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from errors import UserError
from extract.networks import network_spec
from extract.sampling import GridSampling, Sampling, SegmentSampling, frame_rows, instants, segment_rows
from extract.transforms import Resize
from pipelines.cost import VideoCost, counted, head_cost, network_cost, random_network
from pipelines.devices import pick_device
from pipelines.inspection import reading_of
from pipelines.known_rows import KnownRows, KnownVideo, Video, stores_like
from pipelines.known_weights import network_behind
from pipelines.request import feature_roots
from pipelines.run_folder import Run, open_run
from pipelines.sampler_evaluation import kept_thresholds, open_sampler, thresholds_of
from pipelines.sampler_model import load_sampler
from stores import Store

__all__ = ["RECOGNISER", "ROLES", "SAMPLER", "Part", "Recogniser", "open_recogniser"]

SAMPLER, RECOGNISER = "sampler", "recogniser"
ROLES = (SAMPLER, RECOGNISER)
ARRAYS = {SAMPLER: "vector", RECOGNISER: "logits"}


@dataclass
class Part:
    """One of the two networks: how its frames are read, what it says of them, and which stores know that already."""

    role: str
    name: str  # of the network, as `create_network` takes it with its options
    options: Mapping[str, object]
    sampling: Sampling
    resize: Resize
    decoder: str
    dtype: str  # what the head was trained on: values are rounded to it
    known: KnownRows
    make: Callable[[], object]  # -> the network with its weights, ready to run
    _counted: float | None = field(default=None, repr=False)

    @cached_property
    def network(self):
        return self.make()

    @property
    def gflops(self) -> float | None:
        """Of a frame; None where the frames' size depends on the video."""
        if self._counted is None:
            cost = network_cost(_without_weights(self.name, self.options, ARRAYS[self.role]), 1)
            self._counted = cost.gflops if cost else math.nan
        return None if math.isnan(self._counted) else self._counted

    def run(self, frames: Sequence[np.ndarray]) -> np.ndarray:
        """uint8 frames -> (n, C) float32 as its store would hold them."""
        network, array = self.network, ARRAYS[self.role]
        batches = [frames[i : i + network.spec.batch_size] for i in range(0, len(frames), network.spec.batch_size)]

        def values() -> np.ndarray:
            return np.concatenate([network.run({"frames": list(batch)})[array] for batch in batches])

        # A network of one's own or of a library is counted while it runs: it may do something else without weights.
        if ":" in self.name and self._counted is None:
            found, multiply_adds = counted(values)
            self._counted = multiply_adds / 1e9 / len(frames)
        else:
            found = values()
        return found.astype(self.dtype).astype(np.float32)

    def windows(self, duration_s: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(starts, stops, when the frame is taken) of a video's rows, float64 (R,) seconds."""
        rows_of = {GridSampling: frame_rows, SegmentSampling: segment_rows}[type(self.sampling)]
        rows = rows_of(np.array([duration_s]), self.sampling)
        return rows["start_s"], rows["stop_s"], instants(rows, self.sampling)[:, 0]


@dataclass
class Recogniser:
    """A run ready to look at videos (`pipelines.recognize_video`)."""

    run: Run
    head: object  # on its device
    parts: dict[str, Part]  # by role
    device: str
    sampled: int  # M
    threshold: float | None  # of `heads.frame_sampling.adaptive_m`; None: M frames of every video
    names: Sequence[str]  # of the classes, as far as they are known

    @property
    def method(self) -> str:
        return self.run.head_name

    def known(self, video: Video) -> dict[str, KnownVideo | None]:
        """What stores have of a video, by role."""
        return {role: part.known.find(video) for role, part in self.parts.items()}

    def label(self, number: int) -> str:
        return str(self.names[number]) if number < len(self.names) else f"class {number}"

    def warm_up(self) -> None:
        """A network's first pass over so many frames is slower than all others."""
        for part in self.parts.values():
            height, width = part.network.spec.input_size or (224, 224)
            part.run([np.zeros((height, width, 3), np.uint8)] * self.head.config.frames)

    @cached_property
    def context_gflops(self) -> float:
        return head_cost(self.head, self.device).gflops

    def gflops(self, method: str, candidates: int, sampled: int) -> float | None:
        """Of a video, whether computed or taken from stores; methods other than the run's have no sampler."""
        heavy, light = (self.parts[role].gflops for role in (RECOGNISER, SAMPLER))
        if method != self.method:
            return None if heavy is None else VideoCost(heavy).total(sampled)
        if heavy is None or light is None:
            return None
        return VideoCost(heavy, light, self.context_gflops, candidates).total(sampled)


def open_recogniser(
    run: str | Path | Run,
    *,
    stores: Mapping[str, object] | None = None,
    features: Iterable[str | Path] = (),
    weights: Iterable[str] = (),
    sampled: int | None = None,
    adaptive: bool = False,
    device: str | None = None,
    precision: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Recogniser:
    """A trained sampler with the networks that made its stores; those are created when they are first needed.

    Args:
        run: of train-head psn or scsampler, or of train-backbone --head psn-sampler; or its folder.
        stores: {role: store or path} of those that have moved since the training.
        features: roots of further stores that may have videos' features [CLIPBANK_FEATURES, else ./features].
        weights: "ROLE=PATH" of weights that lie elsewhere now. All weights are checked by their hash.
        sampled: M, how many frames the heavy network sees [the run's].
        adaptive: more frames of videos that need them, M on average (`heads.frame_sampling.adaptive_m`).
        precision: fp32, bf16, fp16 [that of each store].
        say: called with each line for the user.

    Raises:
        UserError: a run that is no sampler; stores that are not found or are others; networks that read no single
            frames; a number of frames that the run has not.
    """
    run = run if isinstance(run, Run) else open_run(run)
    if run.kind != "sampler":
        raise UserError(
            f"{run.path} is no trained sampler: recognize takes a run of train-head psn, train-head scsampler or"
            " train-backbone --head psn-sampler"
        )
    device, given, roots = pick_device(device), _weights_by_role(weights), feature_roots(tuple(features))
    opened = run.open_stores(stores)
    model, _ = load_sampler(run, device)
    frames = model.head.config.frames
    sampled = model.head.config.sampled if sampled is None else sampled
    if not 1 <= sampled <= frames:
        raise UserError(f"--sampled must be from 1 to the {frames} candidates of {run.path}, got {sampled}")
    stored = _Stored(run, opened, roots, given, device, precision, say)
    if SAMPLER in opened:
        light = stored.part(SAMPLER)
    elif SAMPLER in given:
        raise UserError(f"--weights {SAMPLER}=...: the light network of {run.path} was trained in this run")
    else:
        network = model.network.to(device, precision or "fp32")
        light = _trained_part(run, network, opened["frames"], roots, say)
    heavy = stored.part(RECOGNISER)
    if light.decoder != heavy.decoder:
        raise UserError(
            f"{run.path}: its stores were decoded by {light.decoder} and {heavy.decoder}; frames are decoded once here"
        )
    (target,) = run.facts["targets"]
    named = (store.manifest.dataset.get("class_names") or {} for store in opened.values())
    names = next((names[target] for names in named if target in names), [])
    threshold = None
    if adaptive:
        threshold = (kept_thresholds(run) or thresholds_of(open_sampler(run, opened, device)))[sampled]
    return Recogniser(run, model.head, {SAMPLER: light, RECOGNISER: heavy}, device, sampled, threshold, names)


def _weights_by_role(weights: Iterable[str]) -> dict[str, str]:
    found = {}
    for text in weights:
        role, equals, path = text.partition("=")
        if not equals or role not in ROLES or not path:
            raise UserError(f"--weights {text}: write ROLE=PATH, the role being {' or '.join(ROLES)}")
        found[role] = path
    return found


# --- networks ---


@dataclass(frozen=True)
class _Stored:
    """The networks that made a run's stores."""

    run: Run
    opened: Mapping[str, Store]
    roots: Sequence[Path]
    given: Mapping[str, str]  # weights by role
    device: str
    precision: str | None
    say: Callable[[str], None]

    def part(self, role: str) -> Part:
        store, array = self.opened[role], ARRAYS[role]
        reading, recipe = reading_of(store), store.manifest.recipe
        if reading.reads != "rgb_frame":
            raise UserError(
                f"{store.path} was made by a network that reads {reading.reads}: recognize shows single RGB frames"
            )
        made, precision = store.manifest.spec["created_with"], self.precision or recipe["precision"]

        def ready(network):
            network.keep = (array,)
            return network.to(self.device, precision)

        def make():
            network = network_behind(store, self.given.get(role), beside=self.run.path.resolve().parent, role=role)
            self.say(f"{role}: {made['name']}, {network.weights_origin}")
            return ready(network)

        same = {name: value for name, value in recipe.items() if name != "sampling"}
        others = [
            other
            for other in stores_like(same, array, self.roots, self.say)
            if Path(other.path).resolve() != Path(store.path).resolve()
        ]
        known, dtype = KnownRows([store, *others], array), store.manifest.arrays[array].dtype
        how = (reading.sampling, reading.resize, recipe["decoder"]["family"], dtype)
        return Part(role, made["name"], made["options"], *how, known, make)


def _without_weights(name: str, options: Mapping, array: str):
    """A network to count: of the registry, one that has shapes and no values; of other code, one of random weights."""
    import torch

    if ":" in name:
        network = random_network(name, options)
    else:
        with torch.device("meta"):
            network = network_spec(name, **options).build()
        network.device = torch.device("meta")
    network.keep = (array,)
    return network


def _trained_part(run: Run, network, frames: Store, roots: Sequence[Path], say) -> Part:
    """The light network that was trained with its head, shown the instants of the store of frames."""
    array, made = ARRAYS[SAMPLER], run.facts["network"]
    network.keep = (array,)
    same = {"network": network.spec.recipe(), "weights": network.weights_hash}
    known = KnownRows(stores_like(same, array, roots, say), array)
    options = {**made["options"], "resize": made["resize"]}
    decoder = frames.manifest.recipe["decoder"]["family"]
    how = (reading_of(frames).sampling, Resize(**made["resize"]), decoder, "float32")
    return Part(SAMPLER, made["name"], options, *how, known, lambda: network)
