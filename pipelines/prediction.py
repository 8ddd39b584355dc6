"""Scores of trained runs: written for any program to read, and fused late.

A file of scores is .npz without pickles:

    ids          (n,) text: the clips of the split
    predicted    (n,) bool: False where there were no features, and the scores are the training clips' frequencies
    <label>      (n, classes) float32 logits, for each label that the run names: verb, noun, ...
    labels       text: those names
    dataset, split, run
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from errors import UserError, count_of
from heads import metrics
from pipelines.evaluated_clips import ClipScorer
from pipelines.evaluation import check_labelled, check_lineage, open_scorer, predicted_rows, scored_figures
from pipelines.published import published_rows
from pipelines.run_folder import Run, open_run
from stores.manifest import storage_errors, write_durable

__all__ = ["filled", "fuse", "fused_scores", "fusion_shares", "predict", "published_fused", "write_scores"]

_SEVERAL = ("RGB+Flow", "models")  # in what tables call the input of figures that are of several networks
_TINY = np.finfo(np.float64).tiny


def predict(run: str | Path, split: str = "val", *, out: str | Path | None = None, **options) -> dict:
    """Write the scores of a run's best checkpoint on every clip of a split, labelled or not.

    out: the file [<run>/scores_<split>.npz]. options: as for `pipelines.evaluate`.

    Returns {"run", "file", "split", "epoch", "labels": {name: classes}, "clips", "coverage", "filled": ids of the clips
    without features}: those get the frequencies of the training clips. Of a retrieval run, the similarities of captions
    and clips, see `pipelines.retrieval_scores`.

    Raises UserError: a run that does not score clips (a detector, a sampler), a split that is not there, and what
    opening the run raises.
    """
    run = open_run(run)
    if run.kind == "retrieval":
        from pipelines.retrieval_scores import predict_similarities

        return predict_similarities(run, split, out=out, **options)
    scorer = open_scorer(run, split, **options)
    scores, predicted = filled(scorer.score(), scorer.counts)
    path = Path(out) if out is not None else run.scores_path(split)
    write_scores(path, scorer.clips, scores, predicted, split, run.path.name)
    return {
        "run": str(run.path),
        "file": str(path),
        "split": split,
        "epoch": scorer.epoch,
        "labels": dict(scorer.classes),
        "clips": len(predicted),
        "coverage": float(predicted.mean()),
        "filled": scorer.clips.ids[~predicted].tolist(),
    }


def filled(scores: Mapping[str, np.ndarray], counts: Mapping[str, np.ndarray]) -> tuple[dict, np.ndarray]:
    """(scores without NaN, (n,) bool: which rows were predicted). The others become the log of each class's frequency
    among the training clips; every class is counted once more than it occurs, so that none is impossible."""
    predicted = predicted_rows(scores)
    out = {}
    for name, values in scores.items():
        frequency = (counts[name] + 1) / (counts[name].sum() + len(counts[name]))
        out[name] = np.where(predicted[:, None], values, np.log(frequency)).astype(np.float32)
    return out, predicted


def write_scores(path: Path, clips, scores: Mapping[str, np.ndarray], predicted: np.ndarray, split: str, run: str):
    """Write a file of scores, whole or not at all. clips: EvaluatedClips."""
    facts = {"dataset": clips.dataset_name, "split": split, "run": run}
    arrays = {"ids": clips.ids.astype(str), "predicted": predicted, "labels": np.array(list(scores))}
    taken = {*facts, *arrays} & {*scores}
    if taken:
        raise UserError(f"a label named {', '.join(sorted(taken))} has no place in a file of scores: rename the column")
    data = io.BytesIO()
    np.savez(data, **arrays, **scores, **{name: np.array(value) for name, value in facts.items()})
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durable(path, data.getvalue())


def fuse(
    runs: Sequence[str | Path],
    split: str = "val",
    *,
    weights: Sequence[float] | None = None,
    out: str | Path | None = None,
    stores: Mapping[str, object] | None = None,
    stores_of: Mapping[str | Path, Mapping[str, object]] | None = None,
    allow_seen: bool = False,
    say: Callable[[str], None] = lambda line: None,
    **options,
) -> dict:
    """Late fusion: the mean of the runs' softmax scores (the thesis's two-stream SAOA, table 3.4), and its figures.

    weights: one a run, of the mean [all alike]. A clip that a run has no features for gets the mean over the others; it
    counts as wrong where none has. out: a file for the fused scores, as logarithms of the mean, as `predict` writes it.
    stores: {role: store or path} of those that have moved since the training, for every run that reads such a store.
    stores_of: {run, as among `runs`: the same for that run}, which count before those.
    options: as for `pipelines.evaluate`, of all runs.

    Returns {"split", "runs", "weights", figures as `evaluate` has them, "alone": {run: its own figures}}. Actions are
    ranked with the first run's prior.

    Raises UserError: runs that score other clips, classes or labels than the first, clips that one of them was trained
    on, fewer than two runs, weights that are no weights.
    """
    opened = [open_run(run) for run in runs]
    shares = fusion_shares(weights, len(opened))
    moved = _moved_of_each(opened, runs, stores or {}, stores_of or {})
    scorers, all_scores = [], []
    for run, of_run in zip(opened, moved, strict=True):
        scorer = open_scorer(run, split, stores=of_run, **options)
        check_lineage(run, scorer.clips, split, allow_seen)
        if scorers:
            scorer = _aligned(scorer, scorers[0], run, opened[0])
        else:
            check_labelled(scorer, split)
        scorers.append(scorer)
    for run, scorer in zip(opened, scorers, strict=True):
        say(f"scoring: {run.path}")
        all_scores.append(scorer.score())
    fused = fused_scores(all_scores, shares)
    first = scorers[0]
    found = scored_figures(first, fused)
    for name in ("rows", "clips_averaged"):  # of the first run's stores
        found.pop(name, None)
    predicted = predicted_rows(fused)
    if out is not None:
        both, _ = filled(fused, first.counts)
        write_scores(Path(out), first.clips, both, predicted, split, " + ".join(run.path.name for run in opened))
    alone = {}
    for run, scores in zip(opened, all_scores, strict=True):
        own = first.figures(scores)
        alone[str(run.path)] = {name: own[name] for name in (*scores, "action") if name in own}
    names = [str(run.path) for run in opened]
    coverage = float(predicted.mean())
    return {"split": split, "runs": names, "weights": shares.tolist(), **found, "coverage": coverage, "alone": alone}


def published_fused(dataset: str, split: str, figures: Mapping) -> list[dict]:
    """`published_rows` of what papers print of several networks together: RGB with flow, ensembles."""
    rows = published_rows(dataset, split, figures)
    return [row for row in rows if any(part in row["input"] for part in _SEVERAL)]


def fused_scores(all_scores: Sequence[Mapping[str, np.ndarray]], shares: np.ndarray) -> dict[str, np.ndarray]:
    """{name: (n, classes) float64}: log of the weighted mean of softmax scores over the runs that have a row; NaN rows
    where none has."""
    out = {}
    for name in all_scores[0]:
        probabilities = np.stack([metrics.softmax(scores[name]) for scores in all_scores])  # (runs, n, classes)
        there = ~np.isnan(probabilities).any(axis=2, keepdims=True) * shares[:, None, None]
        total = there.sum(axis=0)
        mean = (np.nan_to_num(probabilities) * there).sum(axis=0) / np.where(total > 0, total, 1)
        out[name] = np.where(total > 0, np.log(np.maximum(mean, _TINY)), np.nan)
    return out


def fusion_shares(weights: Sequence[float] | None, runs: int) -> np.ndarray:
    """(runs,) weights of the mean that add up to 1. Raises UserError: fewer than two runs, weights that are none."""
    if runs < 2:
        raise UserError(f"fusing takes at least two runs, got {runs}")
    shares = np.ones(runs) if weights is None else np.asarray(weights, np.float64)
    if len(shares) != runs:
        raise UserError(f"--weights: {len(shares)} weights for {runs} runs: give one a run")
    if not (np.isfinite(shares).all() and (shares >= 0).all() and shares.sum() > 0):
        raise UserError("--weights are numbers from 0 on, not all 0")
    return shares / shares.sum()


def _moved_of_each(
    opened: Sequence[Run], named: Sequence[str | Path], shared: Mapping, own: Mapping[str | Path, Mapping]
) -> list[dict]:
    """{role: where its store lies now} of each run. Raises UserError for a run that is not fused, and for a role that
    no run has a store of."""
    strange = [run for run in own if run not in named]
    if strange:
        raise UserError(f"a store of {strange[0]} is given, which is not among the runs to fuse")
    unread = next((role for role in shared if not any(role in run.roles for run in opened)), None)
    if unread is not None:
        raise UserError(f"none of the runs to fuse reads a store of role {unread}")
    return [
        {role: store for role, store in shared.items() if role in run.roles} | dict(own.get(name, {}))
        for name, run in zip(named, opened, strict=True)
    ]


def _aligned(scorer: ClipScorer, first: ClipScorer, run: Run, first_run: Run) -> ClipScorer:
    """A scorer in the order of the first run's clips. Raises UserError where they are others."""
    if dict(scorer.classes) != dict(first.classes):
        one, other = (", ".join(f"{k} ({n})" for k, n in s.classes.items()) for s in (first, scorer))
        raise UserError(f"{first_run.path} names {one}; {run.path} names {other}: runs to fuse name the same classes")
    if scorer.clips.dataset_name != first.clips.dataset_name:
        names = (first.clips.dataset_name, scorer.clips.dataset_name)
        raise UserError(f"{first_run.path} is of {names[0]}, {run.path} of {names[1]}")
    ids, own = first.clips.ids, scorer.clips.ids
    place = {clip: i for i, clip in enumerate(own)}
    missing, more = [c for c in ids if c not in place], sorted({*own} - {*ids})
    if missing or more:
        lines = [f"{count_of(len(missing), 'clip')} only in {first_run.path} (first: {missing[0]})"] if missing else []
        lines += [f"{len(more)} only in {run.path} (first: {more[0]})"] if more else []
        raise UserError(f"the runs score different clips: {', '.join(lines)}")
    order = np.array([place[clip] for clip in ids], np.int64)
    labels = scorer.clips.labels
    for name, column in first.clips.labels.items():
        differs = np.flatnonzero(labels[name][order] != column) if name in labels else []
        if len(differs):
            raise UserError(
                f"{first_run.path} and {run.path} disagree on {name} of {count_of(len(differs), 'clip')}"
                f" (first: {ids[differs[0]]})"
            )
    score = scorer.score
    return replace(scorer, score=lambda: {name: values[order] for name, values in score().items()})
