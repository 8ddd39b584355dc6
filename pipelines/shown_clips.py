"""Clips for pictures, with what a head makes of them: out of the stores that it was trained on, or out of the frames of
a network that was trained with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from pipelines.devices import to_device
from pipelines.evaluation import Place, clip_dataset
from pipelines.run_folder import Run, open_run

__all__ = ["Shown", "ShownClip", "shown_clips"]


@dataclass(frozen=True)
class ShownClip:
    """A clip that a picture is made of."""

    video: str
    window: tuple[float, float]  # seconds that its centre clip shows
    words: tuple[str, str, str]  # its id, what it shows, what the head says it shows
    right: bool  # whether the two agree
    path: Path  # of the picture


@dataclass(frozen=True)
class Shown:
    """What pictures of n clips are made of."""

    clips: list[ShownClip]
    batch: dict  # of the clips: labels, the head's object lists; "verb": geometry (n, 4) of the maps, where it has maps
    out: dict[str, np.ndarray]  # the head's outputs for it
    boxes_per_frame: int


def shown_clips(
    run: str | Path | Run,
    picture: str,
    lacks: str,
    n: int,
    *,
    split: str = "val",
    stores: Mapping[str, object] | None = None,
    place: Place = Place(),  # noqa: B008  frozen
    clips: Sequence[str] | None = None,
    class_names: Mapping[str, Sequence[str]] | None = None,
    allow_incomplete: bool = False,
) -> Shown:
    """Clips of a split as the best checkpoint of a run's head sees them, in the middle of each.

    picture: its name among the head's `pictures`. lacks: what a head that has no such picture does, for the message.
    clips: clip ids; by default n clips evenly spaced over those of the split that have features, or frames.
    class_names: {"verb": [...], "noun": [...]}, by default those that the store names, else the numbers. stores: {role:
    store or path} of those that have moved since the training. place: where the dataset is, of a network that was
    trained with its head on videos without a store of frames. allow_incomplete: leave out rows that are still pending.

    Raises UserError: a head without such a picture, a clip that is not in the split, a split without any features, and
    what opening the run raises.
    """
    run = run if isinstance(run, Run) else open_run(run)
    if picture not in getattr(run.create_head(), "pictures", ()):
        raise UserError(f"{run.path}: head {run.head_name} {lacks}, so there is no {picture} to show")
    if run.kind == "backbone":
        seen = _of_frames(run, split, stores, place, clips, n)
    else:
        seen = _of_stores(run, split, stores, allow_incomplete, clips, n)
    if seen is None:
        raise UserError(f"{run.path}: no clip of split {split!r} has features, so there is no {picture} to show")
    names = class_names or seen.class_names
    shown = []
    for i, (name, video, window) in enumerate(zip(seen.ids, seen.videos, seen.windows, strict=True)):
        truth, guess, right = _clip_words(seen.batch, seen.out, i, names)
        words = (str(name), f"truth: {truth}", f"predicted: {guess}")
        shown.append(
            ShownClip(str(video), tuple(map(float, window)), words, right, run.picture_path(picture, words[0]))
        )
    return Shown(shown, seen.batch, seen.out, seen.boxes_per_frame)


@dataclass(frozen=True)
class _Seen:
    """n clips and what the head makes of them."""

    ids: np.ndarray  # (n,)
    videos: np.ndarray  # (n,) names
    windows: np.ndarray  # (n, 2) seconds of the centre clips
    batch: dict
    out: dict[str, np.ndarray]
    boxes_per_frame: int
    class_names: Mapping[str, Sequence[str]]


def _of_stores(run: Run, split: str, stores, allow_incomplete: bool, wanted, n: int) -> _Seen | None:
    """What a head trained on stores makes of them; None where no clip has features."""
    import torch

    head, _ = run.best_head()
    dataset = clip_dataset(head, run.open_stores(stores), split, draws=(0,), allow_incomplete=allow_incomplete)
    items = _chosen(dataset.clip_ids[dataset.clips], np.flatnonzero(dataset.ok), wanted, n)
    if not len(items):
        return None
    batch = dataset.batch(items)
    with torch.inference_mode():
        out = head(to_device(batch, "cpu"))
    shown = dataset.clips[items]
    rows = dataset.stores["verb"].rows
    row = [np.flatnonzero((rows["clip"] == clip) & (rows["draw"] == 0))[0] for clip in shown]
    return _Seen(
        ids=dataset.clip_ids[shown],
        videos=dataset.video_names[dataset.videos[items]],
        windows=np.stack((rows["start_s"][row], rows["stop_s"][row]), axis=1),
        batch=batch,
        out={key: value.numpy() for key, value in out.items()},
        boxes_per_frame=dataset.boxes_per_frame,
        class_names=dataset.stores["verb"].manifest.dataset.get("class_names") or {},
    )


def _of_frames(run: Run, split: str, stores, place: Place, wanted, n: int) -> _Seen | None:
    """What a network and its head, trained together, make of the frames; None where no clip has frames."""
    import torch

    from pipelines.backbone_runs import open_backbone
    from pipelines.trained_models import geometry

    opened = open_backbone(run, stores=stores, place=place)
    source, clips, model = opened.source, opened.clips, opened.model
    of_split = source.split(split)
    if not len(of_split):
        raise UserError(f"{source.where}: no clip is in split {split!r}")
    ids = np.asarray(source.clips["id"], object)
    which = of_split[_chosen(ids[of_split], np.flatnonzero(np.isin(of_split, clips.readable(of_split))), wanted, n)]
    which = which[np.isin(which, clips.readable(which))]
    if not len(which):
        return None
    batch = clips.middle(which)
    with model.network.inference():
        out = model(to_device(batch, str(model.network.device)))
    batch["verb"] = {"geometry": geometry(torch.from_numpy(batch["seen"]), *model.network.map_size).numpy()}
    starts = clips.centre_starts(which)
    return _Seen(
        ids=ids[which],
        videos=np.asarray(source.videos, object)[source.clips["video"][which]],
        windows=np.stack((starts, starts + clips.given.sampling.seconds), axis=1),
        batch=batch,
        out={key: value.float().cpu().numpy() for key, value in out.items()},
        boxes_per_frame=getattr(model.head.config, "boxes_per_frame", 1),
        class_names={},
    )


def _chosen(ids: np.ndarray, good: np.ndarray, wanted: Sequence[str] | None, n: int) -> np.ndarray:
    """Places of the wanted clips among ids (m,), or of n evenly spaced ones of the `good` places. Raises UserError for
    a clip that is not there, or not good."""
    if wanted is None:
        return good[np.unique(np.linspace(0, len(good) - 1, min(n, len(good))).astype(int))]
    where = {str(name): place for place, name in enumerate(ids)}
    lost = [clip for clip in wanted if str(clip) not in where]
    if lost:
        raise UserError(f"clip {lost[0]!r} is not in this split")
    places = np.array([where[str(clip)] for clip in wanted], np.int64)
    empty = np.flatnonzero(~np.isin(places, good))
    if len(empty):
        raise UserError(f"clip {wanted[empty[0]]!r} has no features")
    return places


def _clip_words(batch: dict, out: dict, i: int, names: Mapping) -> tuple[str, str, bool]:
    """(true verb and noun of clip i in words, predicted ones, whether they agree)."""

    def words(pair):
        said = []
        for label, value in zip(("verb", "noun"), pair, strict=True):
            known = names.get(label) or ()
            said.append(str(known[value]) if 0 <= value < len(known) else f"{label} {value if value >= 0 else '?'}")
        return " ".join(said)

    truth = [int(batch["labels"][label][i]) for label in ("verb", "noun")]
    guess = [int(out[label][i].argmax()) for label in ("verb", "noun")]
    return words(truth), words(guess), truth == guess
