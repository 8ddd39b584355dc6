"""Figures of a trained head, from stores and a run folder alone."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from errors import UserError
from heads import metrics
from pipelines.devices import autocast, pick_device, to_device
from pipelines.lineage import seen_by, unknown_ancestors, unknown_line
from pipelines.run_folder import Run, open_run
from stores import ClipDataset, prefetch

__all__ = ["accuracies", "evaluate", "figures", "predict_scores"]

EVALUATION_BATCH = 64


def evaluate(
    run: str | Path | Run,
    split: str = "val",
    *,
    stores: Mapping[str, object] | None = None,
    device: str | None = None,
    allow_incomplete: bool = False,
    allow_seen: bool = False,
    progress: bool = True,
) -> dict:
    """Evaluate a run's best head on a split; the figures are also written to `<run>/metrics_<split>.json`.

    stores: {role: store or path} of those that have moved since; the others are where run.json says. Clips without
    features count as wrong, never as absent, and the coverage says how many there are. Returns what `figures` returns,
    with `split`, `epoch` and `unknown_ancestors`; those are warned of too, because they may have seen these clips.

    Raises UserError: clips that this head or an ancestor of its features was trained on (unless `allow_seen`),
    stores of another recipe, a split without labels.
    """
    run = run if isinstance(run, Run) else open_run(run)
    if run.facts.get("kind") == "sampler":
        from pipelines.sampler_training import evaluate_sampler

        return evaluate_sampler(
            run,
            split,
            stores=stores,
            device=device,
            allow_incomplete=allow_incomplete,
            allow_seen=allow_seen,
            progress=progress,
        )
    opened = run.open_stores(stores)
    head, metadata = run.best_head()
    dataset = clip_dataset(head, opened, split, draws=(0,), allow_incomplete=allow_incomplete)
    unknown = unknown_ancestors(run.facts["lineage"])
    if unknown:
        warnings.warn(unknown_line(unknown), stacklevel=2)
    if not allow_seen:
        seen = seen_by(dataset, [run.facts["trained_on"], *run.facts["lineage"]])
        if seen:
            raise UserError(f"no figures on split {split!r}: {seen}; evaluate on other clips")
    known = dataset.labels["verb"] >= 0, dataset.labels["noun"] >= 0
    if not (known[0].all() and known[1].all()):
        raise UserError(f"split {split!r} has {int((~(known[0] & known[1])).sum())} clips without labels: no figures")
    device = pick_device(device)
    scores = predict_scores(head.to(device), dataset, device, progress=progress)
    result = {"split": split, "epoch": metadata["epoch"], **figures(scores, dataset, run.prior())}
    result["unknown_ancestors"] = unknown
    if run.facts["dataset"]["name"].split(":")[0] == "epic55":
        result["many_shot"] = _many_shot(scores, dataset, run.prior())
    run.write_json(f"metrics_{split.replace(':', '-')}.json", result)
    return result


def figures(scores: Mapping[str, np.ndarray], dataset: ClipDataset, prior: np.ndarray) -> dict:
    """Top-1 and top-5 accuracy of verb, noun and action (eq. 3.14), with coverage.

    scores: {"verb": (N, V), "noun": (N, M)} logits in the order of the dataset's items, NaN rows where there are no
    features. Returns {"verb": {"top1", "top5"}, "noun", "action", "clips", "coverage": share, "rows": counts}.
    """
    labels = {name: dataset.labels[name] for name in ("verb", "noun")}
    rows = dataset.coverage()
    coverage = {"clips": len(dataset), "coverage": rows["ok"] / rows["items"], "rows": rows}
    return accuracies(scores, labels, prior) | coverage


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


def _many_shot(scores, dataset: ClipDataset, prior) -> dict:
    """EPIC-55's macro precision and recall over its many-shot classes, counted over all its training segments."""
    labels = dataset.split_labels("trainval")
    many = metrics.many_shot(labels["verb"], labels["noun"])
    full = metrics.epic55(scores["verb"], scores["noun"], dataset.labels["verb"], dataset.labels["noun"], *many, prior)
    return {name: {k: full[name][k] for k in ("verb", "noun", "action")} for name in ("precision", "recall")}


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
