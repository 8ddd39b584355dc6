"""Which frames of a video's grid become rows: the middles of segments, or those that a trained sampler picks.

A choice is no part of the recipe: what a network says of a frame does not depend on the frames beside it, so rows are
copied between stores of different choices. It is part of what a store says of its dataset (`dataset["frames"]`), and a
store has one choice for ever. Frames that are not chosen are no rows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from errors import MachineError, UserError
from extract.sampling import GridSampling, clip_frames, frame_rows_at
from extract.weights import file_hash
from pipelines.lineage import descent
from pipelines.planning import NOT_IN_NAMES, Job
from pipelines.recogniser_clips import middles, segment_positions
from pipelines.request import Extraction
from pipelines.run_folder import Run, open_run
from pipelines.sampler_clips import SharedFrames
from pipelines.videos import changed_videos
from stores import PENDING, Store, open_store, recipe_difference, recipe_hash
from stores.joining import positions, texts

__all__ = ["FrameChoice", "FrameSampler", "centres_of", "other_choice", "settled"]

_CLIPS_AT_ONCE = 256  # whose frames are scored together
_SAME_S = 1e-6  # instants this close are one: swallows float64 rounding of k / fps


@dataclass(frozen=True)
class FrameChoice:
    """The frames of a store.

    facts: what the store says of them; two stores with equal ones have been chosen alike.
    rows: table of the frame axis.
    lineage: what the choice was learned from.
    wants: the extraction that must be done before the rows are known; until then they are as many, elsewhere.
    """

    facts: dict
    rows: dict[str, np.ndarray]
    lineage: Sequence[dict] = ()
    wants: Extraction | None = None


def centres_of(job: Job, segments: int) -> FrameChoice:
    """The middle frames of equal segments of each clip; all frames of a clip that has fewer.

    What training draws from is a clip's frames, so with this choice it is shown the same ones in every epoch.

    Raises:
        UserError: a job that has another axis.
    """
    sampling = _grid_of(job, f"--segments {segments}")
    return FrameChoice({"segments": segments}, _centre_rows(job, sampling, segments))


def other_choice(store: Store, job: Job) -> list[str]:
    """How the frames of a store were chosen otherwise than a job's, one line a fact; empty: alike."""
    return recipe_difference({"frames": _facts_of(store)}, {"frames": job.frames.facts if job.frames else "all"})


def settled(job: Job, store: Store) -> Job:
    """The job with the rows of its store where that has some of a video: what was picked once is not picked again.

    Features that another machine computed may differ in the last bit, and so may picks; a video has those of the worker
    that was first.
    """
    if job.frames is None or "sampler" not in job.frames.facts or _facts_of(store) != job.frames.facts:
        return job
    rows = job.frames.rows
    there = _rows_there(job, store)
    fresh = ~np.isin(rows["video"], there[0])
    sampling = _grid_of(job, "--sampler")
    video, k = (np.concatenate([rows[name][fresh], column]) for name, column in zip(("video", "k"), there, strict=True))
    return replace(job, frames=replace(job.frames, rows=frame_rows_at(video, k, sampling)))


# ---- a trained sampler ----------------------------------------------------------------------------------------------


class FrameSampler:
    """A run of `train-head psn` or `scsampler`, or of `train-backbone --head psn-sampler`, as what picks frames.

    Attributes:
        run: its folder.
        network: name of the light network whose features it scores.
        candidates, sampled: N frames of a clip that it looks at, M that it picks.
        facts, lineage: see `FrameChoice`.

    Raises:
        UserError: a run of something else, or one that has not finished an epoch; more frames than candidates.
    """

    def __init__(self, run: str | Path, sampled: int | None = None):
        self.run: Run = open_run(run)
        if self.run.kind != "sampler":
            raise UserError(
                f"--sampler {run}: is a training of {self.run.trained}, and does not pick frames; train one with"
                " train-head psn or scsampler, or train-backbone --head psn-sampler"
            )
        config = self.run.facts["head"]["config"]
        self._frozen = self.run.facts["features"] == "frozen"
        self._trained_on = self.run.facts["stores"]["sampler" if self._frozen else "frames"]
        fields = self._trained_on["recipe_fields"]
        if "network" not in fields:
            raise UserError(f"--sampler {run} was trained on imported features: nothing here can make them of a video")
        self.candidates, self.sampled = config["frames"], sampled or config["sampled"]
        if self.sampled > self.candidates:
            raise UserError(
                f"--sampled {sampled}: {run} looks at {self.candidates} frames of a clip, and picks of those"
            )
        best = self.run.path / "best.safetensors"
        if not best.is_file():
            self.run.best_checkpoint()  # says what is lacking
        self._best = file_hash(best)
        self.facts = {
            "head": self.run.head_name,
            "sampler": self._best,
            "candidates": self.candidates,
            "sampled": self.sampled,
        }
        self.lineage = descent(self.run.facts)
        self.network: str = fields["network"]["name"] if self._frozen else self.run.facts["network"]["name"]
        self._fps: float = fields["sampling"]["fps"]

    @property
    def suffix(self) -> str:
        """What the names of stores that it chose end in."""
        own = self.run.facts["head"]["config"]["sampled"]
        return f"_{self.run.path.resolve().name}" + (f"_m{self.sampled}" if self.sampled != own else "")

    def choose(self, job: Job) -> FrameChoice:
        """The frames that it picks of each clip of a job, where a store has the features it scores. Where none has
        them, frames that are as many, and what is to be extracted first.

        Raises:
            UserError: a job of another axis, or whose frames are none of those that the sampler looks at.
        """
        sampling = self._grid(job)
        features = self.features_of(job.request)
        scored = self._stored(job, features)
        if scored is None:
            rows = _centre_rows(job, sampling, self.sampled)
            return FrameChoice(self.facts, rows, self.lineage, wants=features)
        return self.choice_by(job, scored)

    def choice_by(self, job: Job, scored: Store) -> FrameChoice:
        """The frames that it picks by the features in `scored`. Videos of which it has none are named in
        `job.videos_without_rows`."""
        sampling = self._grid(job)
        video, k = self._picks(job, scored, sampling)
        without = np.setdiff1d(_wanted(job), video)
        for name in np.asarray(job.dataset.videos["name"], object)[without].tolist():
            job.videos_without_rows.setdefault(name, f"no frame of it has features in {scored.path}")
        chosen = FrameChoice(self.facts, frame_rows_at(video, k, sampling), self.lineage)
        if (job.path / "zarr.json").exists():
            return settled(replace(job, frames=chosen), open_store(job.path)).frames
        return chosen

    def features_of(self, request: Extraction) -> Extraction:
        """The extraction of the features that it scores, of the same dataset into the same roots: all of it, whatever
        part of the request is another worker's, as the rows of a store are planned whole."""
        made = self._made()
        options = made.manifest.spec["created_with"]["options"] if made is not None else {}
        chosen = made.manifest.dataset.get("frames", {}) if made is not None else {}
        fields = self._trained_on["recipe_fields"]
        own = {"precision": fields["precision"], "dtype": fields["dtype"], "decoder": fields["decoder"]["family"]}
        roots = list(request.feature_roots)
        if made is not None and (root := Path(made.path).parent.parent) not in roots:
            roots.append(root)
        if self._frozen:
            name = Path(self._trained_on["path"]).stem
        else:
            name = NOT_IN_NAMES.sub("_", f"{self.network.rpartition(':')[2]}_{self.run.path.resolve().name}")
        return Extraction(
            dataset=request.dataset,
            data=request.data,
            videos=request.videos,
            features=tuple(roots),
            backbone=made.manifest.spec["created_with"]["name"] if made is not None else self.network,
            name=name,
            weights=tuple(filter(None, [self._weights(request, made)])),
            option=tuple(f"{key}={json.dumps(value)}" for key, value in options.items()),
            axis="frame",
            hop=_hop(self._fps),
            segments=chosen.get("segments"),
            keep=("vector",),
            only=True,
            split=request.split,
            missing=request.missing,
            **(own if self._frozen else {}),
        )

    def check(self, recipe: dict) -> None:
        """Raises UserError for features of another recipe than those that it was trained on."""
        lines = recipe_difference(self._trained_on["recipe_fields"], recipe) if self._frozen else []
        if lines:
            raise UserError(
                f"{self.run.path} was trained on other features than can be extracted here; they differ in\n  "
                + "\n  ".join(lines).replace("the store has", "trained on")
                + f"\nGive its weights (--weights {self.network}=PATH), or extract its store first"
            )

    def _grid(self, job: Job) -> GridSampling:
        """The job's grid; refused if it lacks instants that the sampler was trained to choose among."""
        sampling = _grid_of(job, f"--sampler {self.run.path}")
        recogniser = self.run.facts["stores"]["recogniser"]["recipe_fields"].get("sampling", {}).get("fps")
        times = sampling.fps / self._fps
        if sampling.fps != recogniser and abs(times - max(1, round(times))) > _SAME_S:
            raise UserError(
                f"--sampler {self.run.path} looks at {self._fps:g} frames a second, of which a grid of {sampling.fps:g}"
                f" lacks some: give --hop {_hop(self._fps)!r}"
            )
        return sampling

    def _made(self) -> Store | None:
        """The store of features that it was trained on, if it is still there and was extracted."""
        if not self._frozen:
            return None
        store = _opened(Path(self._trained_on["path"]))
        return store if store is not None and store.manifest.spec.get("created_with") else None

    def _weights(self, request: Extraction, made: Store | None) -> str | None:
        """Of the light network: those that the user says, the run's own, random ones as they were, or the published."""
        said = [value.partition("=") for value in request.weights]
        if given := next((right for left, equals, right in said if equals and left == self.network), None):
            return given
        if not self._frozen:
            return str(self.run.path)
        origin = made.manifest.spec["weights_origin"] if made is not None else ""
        return origin if origin.startswith("random:") else None

    def _stored(self, job: Job, features: Extraction) -> Store | None:
        """A store that has the features of all videos that the job can read, and of the files that they are now."""
        chosen = ({"segments": features.segments},) if features.segments else ("all", {"segments": self.candidates})
        names = np.asarray(job.dataset.videos["name"], object)[_wanted(job)].tolist()
        beside = [Path(self._trained_on["path"])] if self._frozen else []
        for root in features.feature_roots:
            beside += [*sorted(root.glob(f"{job.dataset.name}/*.zarr")), *sorted(root.glob(f"{job.dataset.name}/*.h5"))]
        for path in dict.fromkeys(path for path in beside if path.exists()):
            store = _opened(path)
            if store is None or "vector" not in store.manifest.arrays or _facts_of(store) not in chosen:
                continue
            same = store.manifest.dataset.get("name") == job.dataset.name and self._made_of(store.manifest.recipe)
            if same and _has_all(store, names) and not changed_videos(job, store):
                return store
        return None

    def _made_of(self, recipe: Mapping) -> bool:
        """Whether a recipe is that of the features it scores: the one it was trained on, or its own network's."""
        if self._frozen:
            return recipe_hash(recipe) == self._trained_on["recipe"]
        shown = {key: value for key, value in recipe.get("network", {}).get("resize", {}).items() if value}
        own = (self._best, {"axis": "frame", "fps": self._fps}, self.run.facts["network"]["resize"])
        return (recipe.get("weights"), recipe.get("sampling"), shown) == own

    def _picks(self, job: Job, scored: Store, sampling: GridSampling) -> tuple[np.ndarray, np.ndarray]:
        """(videos of the job (n,), instants (n,) of its grid) that are picked."""
        import torch

        from heads.frame_sampling import select
        from pipelines.sampler_model import load_sampler

        names, theirs = texts(job.dataset.videos["name"]), texts(scored.videos["name"])
        number = positions(names, theirs)
        waiting = np.unique(scored.rows["video"][scored.visible & (scored.status() == PENDING)])
        usable = (number >= 0) & ~np.isin(number, waiting)
        clips = {name: np.asarray(job.dataset.clips[name]) for name in ("id", "video", "start_s", "stop_s")}
        here = usable[clips["video"]]
        clips = {name: column[here] for name, column in clips.items()}
        clips["video"] = number[clips["video"]]
        times = scored.rows["start_s"]
        on_grid = np.abs(np.rint(times * sampling.fps) / sampling.fps - times) <= _SAME_S
        shared = SharedFrames(scored, scored, clips, only=on_grid)

        model, _ = load_sampler(self.run, "cpu")
        head, picked_rows = model.head, []
        which = np.flatnonzero(shared.usable)
        for start in range(0, len(which), _CLIPS_AT_ONCE):
            part = which[start : start + _CLIPS_AT_ONCE]
            rows, mask = shared.at(part, middles(len(part), self.candidates))
            rows = rows[..., 0]
            distinct, place = np.unique(rows, return_inverse=True)
            vector = scored.read("vector", distinct).astype(np.float32)[place.reshape(rows.shape)]
            there = torch.from_numpy(mask)
            with torch.inference_mode():
                scores = head.scores({"sampler": {"vector": torch.from_numpy(vector), "mask": there}})
            picked_rows.append(rows[select(scores, self.sampled, there).numpy()])
        rows = np.concatenate([*picked_rows, np.empty(0, np.int64)])
        video = positions(theirs, names)[scored.rows["video"][rows]]
        return video, np.rint(scored.rows["start_s"][rows] * sampling.fps).astype(np.int64)


# ---- pieces ----------------------------------------------------------------------------------------------------------


def _grid_of(job: Job, asked: str) -> GridSampling:
    if not isinstance(job.sampling, GridSampling):
        raise UserError(f"{asked} chooses among single frames: {job.spec.name} has the axis {job.sampling.axis} here")
    return job.sampling


def _centre_rows(job: Job, sampling: GridSampling, segments: int) -> dict[str, np.ndarray]:
    clips = {name: np.asarray(job.dataset.clips[name]) for name in ("video", "start_s", "stop_s")}
    first, count = clip_frames(clips, job.durations, sampling)
    each = np.arange(segments)
    place = np.where(count[:, None] < segments, each, segment_positions(count, middles(len(count), segments)))
    clip, slot = np.nonzero(place < count[:, None])
    return frame_rows_at(clips["video"][clip], first[clip] + place[clip, slot], sampling)


def _wanted(job: Job) -> np.ndarray:
    """Numbers of the videos of the split asked for whose length is known."""
    videos = np.unique(job.dataset.clips["video"][job.wanted_clips])
    return videos[np.isfinite(job.durations[videos])]


def _rows_there(job: Job, store: Store) -> tuple[np.ndarray, np.ndarray]:
    """(videos as the job numbers them, k) of a store's rows; of videos that the dataset still has."""
    number = positions(texts(store.videos["name"]), texts(job.dataset.videos["name"]))
    video, k = number[store.rows["video"][store.visible]], store.rows["k"][store.visible]
    return video[video >= 0], k[video >= 0]


def _facts_of(store: Store) -> dict | str:
    return store.manifest.dataset.get("frames", "all")


def _has_all(store: Store, names: Sequence[str]) -> bool:
    """Whether every one of these videos has rows in a store, none of which is pending."""
    number = positions(texts(names), texts(store.videos["name"]))
    if (number < 0).any():
        return False
    rows = store.visible & np.isin(store.rows["video"], number)
    return len(np.unique(store.rows["video"][rows])) == len(number) and not (store.status()[rows] == PENDING).any()


def _opened(path: Path) -> Store | None:
    """A store if it is there and can be opened."""
    try:
        return open_store(path)
    except (UserError, MachineError, OSError):  # not needed: what it would have had is extracted
        return None


def _hop(fps: float) -> float:
    """The seconds a step that give this rate to the last bit."""
    near = (1 / fps, math.nextafter(1 / fps, 0), math.nextafter(1 / fps, math.inf))
    return next((hop for hop in near if 1 / hop == fps), near[0])
