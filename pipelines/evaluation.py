"""Figures of a trained run, from stores and a run folder alone."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError, count_of
from heads import metrics
from pipelines.devices import autocast, pick_device, to_device
from pipelines.evaluated_clips import ClipScorer, class_counts, clips_of
from pipelines.lineage import seen_by, unknown_ancestors, unknown_line
from pipelines.protocols import protocol_figures
from pipelines.request import TEST_CLIPS
from pipelines.run_folder import Run, open_run
from stores import ClipDataset, prefetch

__all__ = [
    "MeanScores",
    "Place",
    "accuracies",
    "check_labelled",
    "check_lineage",
    "clips_averaged",
    "covered_accuracies",
    "evaluate",
    "figures",
    "open_scorer",
    "predict_scores",
    "predicted_rows",
    "scored_figures",
    "scores_at_test",
    "spaced_clips",
    "write_figures",
]

EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Place:
    """Where a run's dataset is, for runs that read more of it than their stores hold."""

    dataset: str | None = None  # name or CSV [the run's dataset]
    data: str | Path | None = None  # root of the datasets
    videos: str | Path | None = None  # folder of the videos of a CSV
    boxes: str | Path | None = None  # a file of boxes, of a detector [the dataset's own]


# Kind of run -> what opens it as a ClipScorer, (run, split, *, stores, place, device, allow_incomplete, progress).
SCORERS = {
    "head": "pipelines.evaluation:head_scorer",
    "backbone": "pipelines.base_evaluation:backbone_scorer",
    "recogniser": "pipelines.base_evaluation:recogniser_scorer",
}
# Kind of run -> what gives the figures of one that does not score clips; the same arguments and allow_seen.
EVALUATORS = {
    "detector": "pipelines.base_evaluation:detector_figures_of",
    "sampler": "pipelines.sampler_evaluation:evaluate_sampler",
    "retrieval": "pipelines.retrieval_training:evaluate_retrieval",
}


def evaluate(
    run: str | Path | Run,
    split: str = "val",
    *,
    stores: Mapping[str, object] | None = None,
    place: Place = Place(),  # noqa: B008  frozen
    device: str | None = None,
    allow_incomplete: bool = False,
    allow_seen: bool = False,
    progress: bool = True,
) -> dict:
    """Evaluate a run's best checkpoint on a split; the figures are also written to `<run>/metrics_<split>.json`.

    They are those that its training took on the validation clips, of other clips: top-1 and top-5 of clips, COCO's mAP
    of a detector. Only a head that averages (IPL) is tested on evenly spaced clips, and validated on centre clips.

    stores: {role: store or path} of those that have moved since; the others are where run.json says. place: where the
    dataset is, of detectors, and of networks trained without a frames store. Clips without features count as wrong,
    never as absent, and the coverage says how many there are. Returns what `figures` returns, with `split`, `epoch`,
    `features` (frozen or end-to-end) and `unknown_ancestors`; those are warned of too, because they may have seen these
    clips. Of a head that averages also `clips_averaged`, see the function of that name; that its store has no evenly
    spaced clips is warned of.

    Raises UserError: clips that this run or an ancestor of its features was trained on (unless `allow_seen`),
    stores of another recipe, rows still pending (unless `allow_incomplete`), a split without labels.
    """
    run = run if isinstance(run, Run) else open_run(run)
    options = {"stores": stores, "place": place, "device": device, "allow_incomplete": allow_incomplete}
    options["progress"] = progress
    if run.kind in EVALUATORS:
        return _function(EVALUATORS[run.kind])(run, split, allow_seen=allow_seen, **options)
    scorer = open_scorer(run, split, **options)
    check_lineage(run, scorer.clips, split, allow_seen)
    check_labelled(scorer, split)
    return write_figures(run, split, scorer.epoch, scored_figures(scorer, scorer.score()))


def open_scorer(
    run: Run,
    split: str,
    *,
    stores: Mapping[str, object] | None = None,
    place: Place = Place(),  # noqa: B008  frozen
    device: str | None = None,
    allow_incomplete: bool = False,
    progress: bool = True,
) -> ClipScorer:
    """A run's best model on the clips of a split; options as for `evaluate`. Raises UserError for a run that does not
    score clips."""
    if run.kind not in SCORERS:
        raise UserError(f"{run.path} is a {run.kind} ({run.trained}), which gives no scores of clips")
    options = {"stores": stores, "place": place, "device": device, "allow_incomplete": allow_incomplete}
    return _function(SCORERS[run.kind])(run, split, progress=progress, **options)


def scored_figures(scorer: ClipScorer, scores: Mapping[str, np.ndarray]) -> dict:
    """Accuracies, coverage, and what the dataset's own protocol asks for."""
    own = protocol_figures(scorer.clips.dataset_name, scores, scorer.clips, scorer.prior)
    return scorer.figures(scores) | own


def check_lineage(run: Run, clips, split: str, allow_seen: bool) -> None:
    """Warns of ancestors of which nobody knows what they saw; refuses clips that this run or an ancestor saw.

    clips: what `lineage.seen_by` takes.
    """
    unknown = unknown_ancestors(run.facts["lineage"])
    if unknown:
        warnings.warn(unknown_line(unknown), stacklevel=3)
    seen = "" if allow_seen else seen_by(clips, [run.facts["trained_on"], *run.facts["lineage"]])
    if seen:
        raise UserError(f"no figures on split {split!r}: {seen}; evaluate on other clips")


def check_labelled(scorer: ClipScorer, split: str) -> None:
    """Raises UserError where clips lack a label that the run names."""
    unlabelled = scorer.clips.unlabelled(scorer.classes)
    if unlabelled:
        raise UserError(f"split {split!r} has {count_of(unlabelled, 'clip')} without labels: no figures")


def write_figures(run: Run, split: str, epoch: int, found: dict) -> dict:
    """Figures of a split with what they are of, written beside the run's own."""
    result = {"split": split, "epoch": epoch, **found, "features": run.features}
    result["unknown_ancestors"] = unknown_ancestors(run.facts["lineage"])
    run.write_json(run.metrics_path(split).name, result)
    return result


def head_scorer(run: Run, split: str, *, stores, place, device, allow_incomplete, progress) -> ClipScorer:
    """A head trained on stores."""
    opened = run.open_stores(stores)
    head, metadata = run.best_head()
    dataset = clip_dataset(head, opened, split, draws=(0,), allow_incomplete=allow_incomplete)
    spaced = spaced_clips(head, dataset, split, allow_incomplete=allow_incomplete)
    averages = getattr(head, "averages", False)
    if averages and spaced is None:
        warnings.warn(
            f"{dataset.stores[dataset.clip_roles[0]].path} has no evenly spaced clips of split {split!r}: scores are of"
            f" centre clips alone (extract --test-clips {TEST_CLIPS} adds them)",
            stacklevel=4,
        )
    averaged = clips_averaged(_counts_at_test(dataset, spaced)) if averages else {}
    prior, device, clips = run.prior(), pick_device(device), clips_of(dataset)
    precision = run.facts["training"]["precision"]
    classes = {"verb": head.config.verbs, "noun": head.config.nouns}
    trained = clips.split_labels(run.facts["fit"])
    return ClipScorer(
        clips=clips,
        classes=classes,
        epoch=metadata["epoch"],
        counts={name: class_counts(trained[name], n) for name, n in classes.items()},
        prior=prior,
        score=lambda: scores_at_test(head.to(device), dataset, spaced, device, precision=precision, progress=progress),
        figures=lambda scores: figures(scores, dataset, prior) | averaged,
    )


def _function(name: str):
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def figures(scores: Mapping[str, np.ndarray], dataset: ClipDataset, prior: np.ndarray) -> dict:
    """Top-1 and top-5 accuracy of verb, noun and action (eq. 3.14), with coverage.

    scores: {"verb": (N, V), "noun": (N, M)} logits in the order of the dataset's items, NaN rows where there are no
    features. Returns {"verb": {"top1", "top5"}, "noun", "action", "clips", "coverage": share that has scores, "rows":
    counts of the dataset's items}.
    """
    labels = {name: dataset.labels[name] for name in ("verb", "noun")}
    rows = dataset.coverage()
    coverage = {"clips": len(dataset), "coverage": float(predicted_rows(scores).mean()), "rows": rows}
    return accuracies(scores, labels, prior) | coverage


def covered_accuracies(
    scores: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], prior: np.ndarray | None
) -> dict:
    """`accuracies` of clips, with "clips" and "coverage": the share of them that has scores."""
    there = predicted_rows(scores)
    return accuracies(scores, labels, prior) | {"clips": len(there), "coverage": float(there.mean())}


def predicted_rows(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """(n,) bool: which clips have scores of every label."""
    return np.all([~np.isnan(values).any(axis=1) for values in scores.values()], axis=0)


def accuracies(
    scores: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], prior: np.ndarray | None = None
) -> dict:
    """{name: {"top1", "top5"}} of logits (N, classes) and labels (N,) of every name, NaN rows and labels -1 wrong.

    With verbs, nouns and the action prior (V, M) of eq. 3.14, "action" too.
    """
    tops = {name: metrics.topk_accuracy(scores[name], label) for name, label in labels.items()}
    if prior is not None:
        places, _ = metrics.action_ranks(scores["verb"], scores["noun"], labels["verb"], labels["noun"], prior)
        tops["action"] = [float(np.mean((places < k) & (places < prior.size))) for k in (1, 5)]
    return {name: {"top1": top[0], "top5": top[1]} for name, top in tops.items()}


def clip_dataset(head, stores: Mapping[str, object], split: str, **options) -> ClipDataset:
    """The ClipDataset that a head reads: its roles, arrays, windows and boxes a frame."""
    missing = [role for role in head.reads if role not in stores]
    if missing:
        raise UserError(f"head needs a store for {', '.join(missing)}")
    return ClipDataset(
        {role: stores[role] for role in head.reads},
        split=split,
        windows=head.config.windows,
        boxes_per_frame=getattr(head.config, "boxes_per_frame", 1),
        arrays=head.reads,
        **options,
    )


def spaced_clips(head, dataset: ClipDataset, split: str, **options) -> ClipDataset | None:
    """The evenly spaced test clips (draws below 0) of a split whose centre clips are `dataset`, for a head that
    `averages`. None for others, and where the stores have none.

    options: of `ClipDataset`, such as allow_incomplete. Raises UserError as that does: for rows still pending.
    """
    if not getattr(head, "averages", False):
        return None
    rows = dataset.stores[dataset.clip_roles[0]].rows
    draws = np.unique(rows["draw"][(rows["draw"] < 0) & np.isin(rows["clip"], dataset.clips)])
    return clip_dataset(head, dataset.stores, split, draws=draws.tolist(), **options) if len(draws) else None


def scores_at_test(head, dataset: ClipDataset, spaced: ClipDataset | None, device, **options) -> dict:
    """`predict_scores` of centre clips `dataset`; with `spaced_clips`, the mean of these clips' softmax scores, as
    logits. Clips that have none of them keep their centre clip's scores."""
    centre = predict_scores(head, dataset, device, **options)
    if spaced is None:
        return centre
    places = _places(dataset, spaced)
    mean = MeanScores(len(dataset), {name: values.shape[1] for name, values in centre.items()})
    for indices, logits in _logits(head, spaced, device, **options):
        mean.add(places[indices], logits)
    return {name: np.where(np.isnan(values), centre[name], values) for name, values in mean.logits().items()}


class MeanScores:
    """The mean of softmax scores of several clips each of n segments, added up batch by batch.

    classes: {label name: how many}.
    """

    def __init__(self, n: int, classes: Mapping[str, int]):
        self._totals = {name: np.zeros((n, width)) for name, width in classes.items()}
        self._counts = np.zeros(n, np.int64)

    def add(self, places: np.ndarray, logits: Mapping[str, np.ndarray]) -> None:
        """Logits (b, classes) of clips of segments `places` (b,), -1 for none; one may be there several times."""
        known = places >= 0
        for name, total in self._totals.items():
            np.add.at(total, places[known], metrics.softmax(logits[name][known]))
        np.add.at(self._counts, places[known], 1)

    def logits(self) -> dict[str, np.ndarray]:
        """{label name: float32 (n, classes): log of the mean}, NaN rows where nothing was added."""
        n = np.where(self._counts > 0, self._counts, np.nan)[:, None]
        tiny = np.finfo(np.float64).tiny
        return {name: np.log(np.maximum(total / n, tiny)).astype(np.float32) for name, total in self._totals.items()}


def clips_averaged(counts: np.ndarray) -> dict[str, dict[str, float]]:
    """{"clips_averaged": {"min", "mean"}}: the scores of a segment are the mean over how many clips; of segments that
    have scores. counts: (n,) clips of each segment, 0 without scores."""
    scored = counts[counts > 0]
    least, mean = (int(scored.min()), float(scored.mean())) if len(scored) else (0, 0.0)
    return {"clips_averaged": {"min": least, "mean": mean}}


def _places(dataset: ClipDataset, spaced: ClipDataset) -> np.ndarray:
    """(len(spaced),) int64: which item of `dataset` each is a clip of; -1 for none."""
    place = np.full(len(dataset.clip_ids), -1, np.int64)
    place[dataset.clips] = np.arange(len(dataset))
    return place[spaced.clips]


def _counts_at_test(dataset: ClipDataset, spaced: ClipDataset | None) -> np.ndarray:
    """(len(dataset),) int64: how many clips the scores of each item are the mean of."""
    if spaced is None:
        return dataset.ok.astype(np.int64)
    places = _places(dataset, spaced)
    counts = np.bincount(places[spaced.ok & (places >= 0)], minlength=len(dataset))
    return np.where(counts > 0, counts, dataset.ok)


def predict_scores(head, dataset: ClipDataset, device, *, precision: str = "fp32", progress: bool = False) -> dict:
    """{"verb": (N, V), "noun": (N, M)} float32 logits of every item; NaN where the item has no features."""
    out = {
        name: np.full((len(dataset), n), np.nan, np.float32)
        for name, n in (("verb", head.config.verbs), ("noun", head.config.nouns))
    }
    for indices, logits in _logits(head, dataset, device, precision=precision, progress=progress):
        for name, values in out.items():
            values[indices] = logits[name]
    return out


def _logits(
    head, dataset: ClipDataset, device, *, precision: str = "fp32", progress: bool = False
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(items (b,), {"verb": float32 (b, V), "noun": (b, M)}) of one batch after another; items without features are in
    none."""
    import torch
    from tqdm import tqdm

    good = np.flatnonzero(dataset.ok)
    batches = [good[i : i + EVALUATION_BATCH] for i in range(0, len(good), EVALUATION_BATCH)]
    head.eval()
    bar = tqdm(prefetch(dataset, batches), total=len(batches), desc="evaluate", disable=not progress, leave=False)
    for indices, batch in zip(batches, bar, strict=True):
        with torch.inference_mode(), autocast(device, precision):
            logits = head(to_device(batch, device))
        yield indices, {name: logits[name].float().cpu().numpy() for name in ("verb", "noun")}
