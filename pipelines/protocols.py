"""Figures that a dataset's own protocol asks for, beside the accuracies that every dataset has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from heads import metrics
from pipelines.evaluated_clips import EvaluatedClips

__all__ = ["dataset_family", "protocol_figures", "register_protocol"]

_PROTOCOLS: dict[str, Callable[..., dict]] = {}


def register_protocol(dataset: str):
    """Function decorator: (scores, clips, prior) -> figures, of the dataset of this name and of its variants
    (`name:...`, `name-...`). Raises ValueError when it has a protocol already."""

    def register(function):
        if dataset in _PROTOCOLS:
            raise ValueError(f"{dataset} has a protocol already ({_PROTOCOLS[dataset].__name__})")
        _PROTOCOLS[dataset] = function
        return function

    return register


def dataset_family(name: str) -> str:
    """The dataset that a variant (`name:...`, `name-...`) is of."""
    return re.split("[:-]", name, maxsplit=1)[0]


def protocol_figures(
    dataset_name: str, scores: Mapping[str, np.ndarray], dataset: EvaluatedClips, prior: np.ndarray | None
) -> dict:
    """The figures that go beside top-1 and top-5 by the protocol of `dataset_name`; {} where it has none.

    scores: {label name: (n, classes) logits} in the order of the clips, NaN rows where there is no prediction; they
    need not name both verb and noun. prior: mu(verb, noun) of eq. 3.14, None without both.
    """
    protocol = _PROTOCOLS.get(dataset_family(dataset_name))
    return protocol(scores, dataset, prior) if protocol is not None else {}


@register_protocol("epic55")
def _many_shot(scores, clips: EvaluatedClips, prior) -> dict:
    """EPIC-55's macro precision and recall over its many-shot classes, counted over all its training segments."""
    if not {"verb", "noun"} <= set(scores):
        return {}
    labels, own = clips.split_labels("trainval"), clips.labels
    many = metrics.many_shot(labels["verb"], labels["noun"])
    full = metrics.epic55(scores["verb"], scores["noun"], own["verb"], own["noun"], *many, prior)
    shown = {name: {k: full[name][k] for k in ("verb", "noun", "action")} for name in ("precision", "recall")}
    return {"many_shot": shown}


@register_protocol("epic100")
def _subsets(scores, clips: EvaluatedClips, prior) -> dict:
    """EPIC-100's accuracies on all clips, unseen participants and tail classes, actions scored as the challenge does:
    by the product of probabilities, without a prior. A store without the subsets' columns has no figures of them."""
    if not {"verb", "noun"} <= set(scores):
        return {}
    member = {
        name: clips.column(f"split_{name}") != "other"
        for name in ("unseen", "tail_verb", "tail_noun")
        if f"split_{name}" in clips.table
    }
    found = metrics.epic100(scores["verb"], scores["noun"], clips.labels["verb"], clips.labels["noun"], **member)
    names = {"all": "overall", "unseen": "unseen_participants", "tail": "tail_classes"}
    return {
        names[subset]: {label: dict(zip(("top1", "top5"), tops, strict=False)) for label, tops in of.items()}
        for subset, of in found.items()
    }


@register_protocol("egtea")
def _class_means(scores, clips: EvaluatedClips, prior) -> dict:
    """EGTEA's micro and mean-class accuracy of every label; an action is its verb and first noun, which decide it."""
    predictions = {name: (metrics.predicted_classes(values), clips.labels[name]) for name, values in scores.items()}
    if {"verb", "noun"} <= set(scores) and "action" not in scores:
        verb, noun = clips.labels["verb"], clips.labels["noun"]
        _, best = metrics.action_ranks(scores["verb"], scores["noun"], verb, noun, prior)
        predictions["action"] = best, verb * np.shape(scores["noun"])[1] + noun
    return {"class_means": {name: metrics.egtea({name: pair})[name] for name, pair in predictions.items()}}
