"""Figures of merit over numpy arrays.

One convention for missing predictions: a row of scores that holds a NaN was not predicted. It counts as wrong, never
as absent. Among equal scores the higher class index wins.
"""

import numpy as np

__all__ = [
    "action_prior",
    "action_ranks",
    "average_precision",
    "epic55",
    "many_shot",
    "mean_average_precision",
    "mean_class_accuracy",
    "softmax",
    "topk_accuracy",
]

_CHUNK = 64  # clips whose full verb x noun table is held at once


def softmax(scores: np.ndarray) -> np.ndarray:
    """(..., C) scores to float64 probabilities over the last axis; a row with a NaN stays NaN."""
    scores = np.asarray(scores, np.float64)
    raised = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, C) scores, (N,) labels -> (N,) places of the true class, 0 the best; C where the row was not predicted
    or the label is no class."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    n, classes = scores.shape
    known = (labels >= 0) & (labels < classes) & ~np.isnan(scores).any(axis=1)
    at = np.where(known, labels, 0)
    true = scores[np.arange(n), at][:, None]
    before = (scores > true) | ((scores == true) & (np.arange(classes) > at[:, None]))
    return np.where(known, before.sum(axis=1), classes)


def _top(places: np.ndarray, classes: int, ks) -> list[float]:
    hits = places < classes
    return [float(np.mean(hits & (places < k))) if len(places) else float("nan") for k in ks]


def topk_accuracy(scores: np.ndarray, labels: np.ndarray, ks: tuple[int, ...] = (1, 5)) -> list[float]:
    """Share of the rows whose label is among the k best scores, one number for each k. scores (N, C), labels (N,)."""
    scores = np.asarray(scores)
    return _top(ranks(scores, labels), scores.shape[1], ks)


def mean_class_accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes that occur in `labels` of the share predicted right (STAM eq. 5). Both (N,) integers;
    a negative prediction is a missing one."""
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    return float(np.mean([np.mean(predictions[labels == c] == c) for c in np.unique(labels)]))


def average_precision(scores, truth) -> np.ndarray:
    """Non-interpolated average precision of every class: (N, C) scores, (N, C) bool truth -> (C,) float64.

    Rows are ranked by the score of the class, the highest first; the precision at every true row is averaged. Rows of
    equal score come in together, so that their order means nothing (as scikit-learn's). True rows that were not
    predicted are never found. NaN for a class without a true row.
    """
    scores, truth = np.asarray(scores, np.float64), np.asarray(truth, bool)
    predicted = ~np.isnan(scores).any(axis=1)
    found, out = truth[predicted], np.full(truth.shape[1], np.nan)
    for c in np.flatnonzero(truth.any(axis=0)):
        column = scores[predicted, c]
        order = np.argsort(-column, kind="stable")
        last = np.flatnonzero(np.append(column[order][1:] != column[order][:-1], True)[: len(order)])  # of equal scores
        hits = np.cumsum(found[order, c])[last]
        out[c] = np.sum(np.diff(hits, prepend=0) * hits / (last + 1)) / truth[:, c].sum()
    return out


def mean_average_precision(logits, labels) -> dict:
    """mAP of ActivityNet and FCVID as their literature prints it (AR-Net's mmAP): videos ranked by softmax probability.

    logits (N, C); labels (N, L) integers: the classes of each video, padded with -1. Returns {"mAP": over all labels,
    "mAP_first_label": the same with the first label of each video only, "per_class": (C,) of mAP}, as shares. The
    means are over the classes that occur among the labels.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    n, classes = logits.shape
    probabilities, per_class = softmax(logits), {}
    for name, taken in (("mAP", labels), ("mAP_first_label", labels[:, :1])):
        video, place = np.nonzero((taken >= 0) & (taken < classes))
        truth = np.zeros((n, classes), bool)
        truth[video, taken[video, place]] = True
        per_class[name] = average_precision(probabilities, truth)
    known = {name: ap[~np.isnan(ap)] for name, ap in per_class.items()}
    means = {name: float(np.mean(ap)) if len(ap) else float("nan") for name, ap in known.items()}
    return {**means, "per_class": per_class["mAP"]}


def action_prior(verb, noun, n_verbs: int, n_nouns: int, kind: str = "joint") -> np.ndarray:
    """mu(verb, noun) of thesis eq. 3.14 from the training labels: (n_verbs, n_nouns) float64.

    "joint": occurrence frequency of the pair (the thesis). "noun_given_verb": P(noun | verb) (LFB's released code,
    its 1e-5 included). "none": ones.
    """
    if kind == "none":
        return np.ones((n_verbs, n_nouns))
    joint = np.zeros((n_verbs, n_nouns))
    np.add.at(joint, (np.asarray(verb), np.asarray(noun)), 1)
    joint /= max(joint.sum(), 1)
    if kind == "joint":
        return joint
    if kind == "noun_given_verb":
        return joint / (joint.sum(axis=1, keepdims=True) + 1e-5)
    raise ValueError(f'prior must be "joint", "noun_given_verb" or "none", got {kind!r}')


def _action_chunks(verb_scores, noun_scores, prior):
    """P(action) of eq. 3.14 for a few clips at a time: (slice, (n, n_verbs * n_nouns)), index verb * n_nouns + noun."""
    for start in range(0, len(verb_scores), _CHUNK):
        part = slice(start, start + _CHUNK)
        table = softmax(verb_scores[part])[:, :, None] * softmax(noun_scores[part])[:, None, :]
        if prior is not None:
            table = table * prior
        yield part, table.reshape(len(table), -1)


def action_ranks(verb_scores, noun_scores, verb, noun, prior=None) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 3.14 over all pairs. Scores (N, V) and (N, M) are logits; prior (V, M) or None.

    Returns the place of the true pair, 0 the best, and the best pair's index verb * M + noun (-1: not predicted).
    """
    verb_scores, noun_scores = np.asarray(verb_scores), np.asarray(noun_scores)
    n, pairs = len(verb_scores), verb_scores.shape[1] * noun_scores.shape[1]
    verb, noun = np.asarray(verb), np.asarray(noun)
    labels = np.where((verb < 0) | (noun < 0), -1, verb * noun_scores.shape[1] + noun)
    places, best = np.full(n, pairs), np.full(n, -1)
    for part, table in _action_chunks(verb_scores, noun_scores, prior):
        places[part] = ranks(table, labels[part])
        best[part] = _predictions(table)
    return places, best


def _predictions(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores)
    best = scores.shape[1] - 1 - np.argmax(scores[:, ::-1], axis=1)
    return np.where(np.isnan(scores).any(axis=1), -1, best)


def many_shot(verb, noun, more_than: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """EPIC-55's many-shot classes from all training labels: verbs (n,), nouns (m,) with more than 100 segments, and
    the pairs (k, 2) of two such parts that occur in training."""
    verb, noun = np.asarray(verb), np.asarray(noun)
    verbs, nouns = (np.flatnonzero(np.bincount(x) > more_than) for x in (verb, noun))
    pairs = np.unique(np.stack([verb, noun], axis=1), axis=0)
    return verbs, nouns, pairs[np.isin(pairs[:, 0], verbs) & np.isin(pairs[:, 1], nouns)]


def _precision_recall(predictions, labels, classes) -> dict:
    """Macro means over `classes` present in the labels; a class never predicted has precision 0."""
    precision, recall = {}, {}
    for c in np.intersect1d(classes, labels):
        hit = np.sum((predictions == c) & (labels == c))
        precision[int(c)] = float(hit / max(1, np.sum(predictions == c)))
        recall[int(c)] = float(hit / np.sum(labels == c))
    return {"precision": precision, "recall": recall}


def epic55(
    verb_scores,
    noun_scores,
    verb,
    noun,
    many_shot_verbs,
    many_shot_nouns,
    many_shot_actions,
    action_priors=None,
) -> dict:
    """The EPIC-KITCHENS-55 protocol: accuracy and many-shot class precision and recall.

    Scores (N, 125) and (N, 352) are logits; many_shot_* as `many_shot` returns them. Accuracy counts every clip; the
    macro means run over the many-shot classes present in the ground truth. Returns {"accuracy": {"verb": [top-1,
    top-5], "noun", "action"}, "precision": {"verb": x, "verb_per_class": {class: x}, ...}, "recall": likewise}.
    """
    verb_scores, noun_scores, verb, noun = (np.asarray(x) for x in (verb_scores, noun_scores, verb, noun))
    n_nouns = noun_scores.shape[1]
    places, best = action_ranks(verb_scores, noun_scores, verb, noun, action_priors)
    pairs = np.asarray(many_shot_actions).reshape(-1, 2)
    cases = {
        "verb": (_predictions(verb_scores), verb, many_shot_verbs),
        "noun": (_predictions(noun_scores), noun, many_shot_nouns),
        "action": (best, verb * n_nouns + noun, pairs[:, 0] * n_nouns + pairs[:, 1]),
    }
    out = {
        "accuracy": {
            "verb": topk_accuracy(verb_scores, verb),
            "noun": topk_accuracy(noun_scores, noun),
            "action": _top(places, verb_scores.shape[1] * n_nouns, (1, 5)),
        },
        "precision": {},
        "recall": {},
    }
    for name, (predictions, labels, classes) in cases.items():
        for figure, per_class in _precision_recall(predictions, labels, classes).items():
            out[figure][name] = float(np.mean(list(per_class.values()))) if per_class else float("nan")
            if name != "action":
                out[figure][f"{name}_per_class"] = per_class
    return out
