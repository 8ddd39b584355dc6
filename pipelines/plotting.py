"""All pictures of a run, with the frames fetched from the dataset's videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from errors import UserError
from extract.datasets import load_dataset
from pipelines.evaluation import Place, open_scorer
from pipelines.find_stores import own_dataset
from pipelines.frame_reader import FrameReader, frames_of
from pipelines.pictures import FrameAt, attention_pictures, training_curve
from pipelines.retrieval_examples import Footage
from pipelines.run_folder import Run, open_run
from stores.splits import split_column

__all__ = ["PICTURES", "Sources", "plot_run"]


@dataclass(frozen=True)
class Sources:
    """What pictures of a run are made of; stores are opened, and videos found, when a picture asks."""

    run: Run
    against: Run | None  # another run, for gains
    clips: int  # how many are shown, where clips are shown
    moved: Mapping[str, object] | None  # {role: store or path} of stores that have moved since the training
    wanted_split: str | None
    dataset: str | None
    data: str | Path | None
    videos: str | Path | None
    say: Callable[[str], object]  # called with each line for the user

    @cached_property
    def stores(self) -> dict:
        return self.run.open_stores(self.moved)

    @cached_property
    def split(self) -> str:
        """The wanted one, or val, or train where there is no val (of captions test before train), in the scheme of the
        training."""
        if self.wanted_split or not self.stores:
            return self.wanted_split or "val"
        scheme = self.run.facts["training"].get("scheme")
        prefix = f"{scheme}:" if scheme else ""
        clips = next(iter(self.stores.values())).clips
        parts = {str(part) for part in clips.get(split_column(f"{prefix}val"), ())}
        usual = ("val", "test") if self.run.kind == "retrieval" else ("val",)
        return prefix + next((part for part in usual if part in parts), "train")

    @cached_property
    def class_names(self) -> Mapping[str, Sequence[str]]:
        first = next(iter(self.stores.values()), None)
        return {} if first is None else first.manifest.dataset.get("class_names") or {}

    @cached_property
    def frame_at(self) -> Callable[[str, float], np.ndarray]:
        """(video name, seconds) -> the frame: out of the frames store, where the run was trained on one, or a video."""
        reader = FrameReader(self.stores["frames"]) if "frames" in self.stores else None
        if reader is not None and reader.channels == 3:  # flow is not what anybody sees
            number = {str(video): i for i, video in enumerate(reader.store.videos["name"])}
            return lambda video, time_s: reader.read([number[video]], [[time_s]])[0][0]
        name = self.dataset or self.run.facts["dataset"]["name"]
        first = next(iter(self.stores.values()), None)
        try:
            dataset = load_dataset(name, data_root=self.data, videos=self.videos)
        except UserError:
            if self.dataset is None and first is not None and not first.manifest.dataset.get("family"):
                raise UserError(f"{first.path} is of a CSV of your own: say {own_dataset(name)}") from None
            raise
        return frames_of(dataset)

    def frames_if_any(self, without: str) -> FrameAt | None:
        """`frame_at`, or None with a line that says why, and what is drawn without frames."""
        try:
            return self.frame_at
        except UserError as error:
            self.say(f"{without}: {error}")
            return None

    @property
    def of_clips(self) -> dict:
        """Arguments of pictures that show clips as a head sees them."""
        shown = {"split": self.split, "stores": self.stores, "place": self.place, "class_names": self.class_names}
        return {"frame_at": self.frame_at, **shown, "allow_incomplete": self.run.facts.get("allow_incomplete", False)}

    @cached_property
    def footage(self) -> Footage:
        """Frames as far as they can be had; what cannot be is told once."""
        return Footage(self.frames_if_any("no frames of videos"), self.say)

    @property
    def of_captions(self) -> dict:
        """Arguments of pictures that show captions and clips of a retrieval run."""
        incomplete = self.run.facts["allow_incomplete"]
        return {"footage": self.footage, "split": self.split, "stores": self.stores, "allow_incomplete": incomplete}

    @property
    def place(self) -> Place:
        return Place(dataset=self.dataset, data=self.data, videos=self.videos)

    def scorer(self, run: Run):
        """A run's best model on the clips of the split."""
        moved = self.moved if run is self.run else None
        options = {"stores": moved, "place": self.place, "device": None, "progress": False}
        return open_scorer(run, self.split, allow_incomplete=run.facts.get("allow_incomplete", False), **options)


# --- the pictures, by name ---


def _curve(sources: Sources) -> list[Path]:
    return [training_curve(sources.run)]


def _attention(sources: Sources) -> list[Path]:
    return attention_pictures(sources.run, sources.clips, **sources.of_clips)


def _assignment(sources: Sources) -> list[Path]:
    if sources.run.kind == "retrieval":
        from pipelines.alignment_pictures import alignment_pictures

        return alignment_pictures(sources.run, sources.clips, **sources.of_captions)
    from pipelines.assignment_pictures import assignment_pictures

    return assignment_pictures(sources.run, sources.clips, **sources.of_clips)


def _confusion(sources: Sources) -> list[Path]:
    from pipelines.confusion_pictures import confusion_pictures

    return confusion_pictures(sources.run, sources.scorer(sources.run), sources.split, sources.class_names)


def _gain(sources: Sources) -> list[Path]:
    from pipelines.confusion_pictures import gain_pictures

    if sources.against is None:
        raise UserError("--what gain needs the run that it is a gain over: --against RUN")
    scorers = [sources.scorer(run) for run in (sources.run, sources.against)]
    return gain_pictures(sources.run, scorers[0], sources.against, scorers[1], sources.split, sources.class_names)


def _features(sources: Sources) -> list[Path]:
    from pipelines.feature_pictures import feature_pictures

    return feature_pictures(sources.run, sources.stores, sources.split, sources.class_names)


def _sampler(sources: Sources) -> list[Path]:
    from pipelines.sampler_pictures import sampler_pictures

    frame_at = sources.frames_if_any("no strips of frames")
    options = {"frame_at": frame_at, "split": sources.split, "stores": sources.stores}
    return sampler_pictures(sources.run, sources.clips, **options)


def _ranking(sources: Sources) -> list[Path]:
    from pipelines.ranking_pictures import ranking_pictures

    return ranking_pictures(sources.run, sources.clips, against=sources.against, **sources.of_captions)


PICTURES: dict[str, Callable[[Sources], list[Path]]] = {
    "curve": _curve,
    "attention": _attention,
    "assignment": _assignment,
    "confusion": _confusion,
    "gain": _gain,
    "features": _features,
    "sampler": _sampler,
    "ranking": _ranking,
}


def of_head(run: Run) -> tuple[str, ...]:
    """What a run's head is looked at by."""
    return getattr(run.create_head(), "pictures", ()) if "head" in run.facts else ()


def usual_pictures(run: Run, against: Run | None) -> list[str]:
    """What is drawn of a run when nobody says what."""
    own = of_head(run)
    return ["curve", *own, *(["gain"] if against is not None and "ranking" not in own else [])]


def plot_run(
    run: str | Path,
    *,
    what: Iterable[str] = (),
    against: str | Path | None = None,
    dataset: str | None = None,
    data: str | Path | None = None,
    videos: str | Path | None = None,
    clips: int = 6,
    stores: Mapping[str, object] | None = None,
    split: str | None = None,
    say: Callable[[str], object] = print,
    drawn: Callable[[Path], object] = lambda path: None,
) -> list[Path]:
    """Write pictures of a run into `<run>/pictures` and return their paths.

    what: names in `PICTURES`; by default the training curve, and what a head is looked at by (attention over boxes,
    assignments, what a sampler picks, what a retrieval head finds), and with `against` the gain over that run.
    dataset, data, videos: where the frames come from, by default the dataset that the run's stores name.
    stores: {role: store or path} of those that have moved since the training.
    split: by default val, or train where there is no val.
    say: called with each line for the user. drawn: called with the paths of a kind of picture as soon as it is drawn:
    what is drawn before an error is known, too.

    Raises UserError: no such picture, or one that this kind of run does not have.
    """
    if clips < 1:
        raise UserError(f"--clips must be at least 1, got {clips}")
    opened, other = open_run(run), None if against is None else open_run(against)
    wanted = list(what) or usual_pictures(opened, other)
    unknown = [name for name in wanted if name not in PICTURES]
    if unknown:
        raise UserError(f"--what {unknown[0]}: there is {', '.join(PICTURES)}")
    for name in ("sampler", "ranking"):
        if name in wanted and name not in of_head(opened):
            raise UserError(f"{opened.path}: {opened.trained} has no picture {name!r}")
    sources = Sources(opened, other, clips, stores, split, dataset, data, videos, say)
    paths = []
    for name in dict.fromkeys(wanted):
        for path in PICTURES[name](sources):
            paths.append(path)
            drawn(path)
    return paths
