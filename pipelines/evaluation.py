"""Figures of a trained run, from stores and a run folder alone."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError, count_of
from heads import metrics
from pipelines.devices import autocast, pick_device, to_device
from pipelines.evaluated_clips import ClipScorer, class_counts, clips_of
from pipelines.lineage import seen_by, unknown_ancestors, unknown_line
from pipelines.protocols import protocol_figures
from pipelines.run_folder import Run, open_run
from stores import ClipDataset, prefetch

__all__ = [
    "Place",
    "accuracies",
    "check_labelled",
    "check_lineage",
    "covered_accuracies",
    "evaluate",
    "figures",
    "open_scorer",
    "predict_scores",
    "predicted_rows",
    "scored_figures",
    "scores_at_test",
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
    of a detector.

    stores: {role: store or path} of those that have moved since; the others are where run.json says. place: where the
    dataset is, of detectors, and of networks trained without a frames store. Clips without features count as wrong,
    never as absent, and the coverage says how many there are. Returns what `figures` returns, with `split`, `epoch`,
    `features` (frozen or end-to-end) and `unknown_ancestors`; those are warned of too, because they may have seen these
    clips.

    Raises UserError: clips that this run or an ancestor of its features was trained on (unless `allow_seen`),
    stores of another recipe, a split without labels.
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
        score=lambda: scores_at_test(head.to(device), dataset, split, device, precision=precision, progress=progress),
        figures=lambda scores: figures(scores, dataset, prior),
    )


def _function(name: str):
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def figures(scores: Mapping[str, np.ndarray], dataset: ClipDataset, prior: np.ndarray) -> dict:
    """Top-1 and top-5 accuracy of verb, noun and action (eq. 3.14), with coverage.

    scores: {"verb": (N, V), "noun": (N, M)} logits in the order of the dataset's items, NaN rows where there are no
    features. Returns {"verb": {"top1", "top5"}, "noun", "action", "clips", "coverage": share, "rows": counts}.
    """
    labels = {name: dataset.labels[name] for name in ("verb", "noun")}
    rows = dataset.coverage()
    coverage = {"clips": len(dataset), "coverage": rows["ok"] / rows["items"], "rows": rows}
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


def scores_at_test(head, dataset: ClipDataset, split: str, device, **options) -> dict:
    """`predict_scores` of centre clips; of a head that `averages`, where the stores have evenly spaced test clips
    (draws below 0), the mean of their softmax scores, as logits. Clips that have none keep their centre clip's scores.
    """
    centre = predict_scores(head, dataset, device, **options)
    rows = dataset.stores[dataset.clip_roles[0]].rows
    draws = np.unique(rows["draw"][(rows["draw"] < 0) & np.isin(rows["clip"], dataset.clips)])
    if not getattr(head, "averages", False) or not len(draws):
        return centre
    spaced = clip_dataset(head, dataset.stores, split, draws=draws.tolist(), allow_incomplete=True)
    place = np.full(len(dataset.clip_ids), len(dataset))  # of a clip among the scores; what is not there goes behind
    place[dataset.clips] = np.arange(len(dataset))
    out = {}
    for name, logits in predict_scores(head, spaced, device, **options).items():
        good = ~np.isnan(logits).any(axis=1)
        at = place[spaced.clips[good]]
        total = np.zeros((len(dataset) + 1, logits.shape[1]))
        np.add.at(total, at, metrics.softmax(logits[good]))
        n = np.bincount(at, minlength=len(total))[:-1, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            out[name] = np.where(n > 0, np.log(total[:-1] / n), centre[name]).astype(np.float32)
    return out


def predict_scores(head, dataset: ClipDataset, device, *, precision: str = "fp32", progress: bool = False) -> dict:
    """{"verb": (N, V), "noun": (N, M)} float32 logits of every item; NaN where the item has no features."""
    import torch
    from tqdm import tqdm

    out = {
        name: np.full((len(dataset), n), np.nan, np.float32)
        for name, n in (("verb", head.config.verbs), ("noun", head.config.nouns))
    }
    good = np.flatnonzero(dataset.ok)
    batches = [good[i : i + EVALUATION_BATCH] for i in range(0, len(good), EVALUATION_BATCH)]
    head.eval()
    bar = tqdm(prefetch(dataset, batches), total=len(batches), desc="evaluate", disable=not progress, leave=False)
    with torch.inference_mode(), autocast(device, precision):
        for indices, batch in zip(batches, bar, strict=True):
            logits = head(to_device(batch, device))
            for name, values in out.items():
                values[indices] = logits[name].float().cpu().numpy()
    return out
