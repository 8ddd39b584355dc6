"""Figures of merit over numpy arrays.

One convention for missing predictions: a row of scores that holds a NaN was not predicted. It counts as wrong, never
as absent. Among equal scores the higher class index wins.
"""

import numpy as np

from heads.localisation_metrics import frame_localisation_map, localisation_map
from heads.retrieval_metrics import retrieval, retrieval_by_blocks

__all__ = [
    "action_prior",
    "action_ranks",
    "average_precision",
    "egtea",
    "epic100",
    "epic55",
    "frame_localisation_map",
    "localisation_map",
    "many_shot",
    "mean_average_precision",
    "mean_class_accuracy",
    "predicted_classes",
    "retrieval",
    "retrieval_by_blocks",
    "softmax",
    "top_actions",
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
    """mu(verb, noun) of thesis eq. 3.14 from the training labels: (n_verbs, n_nouns) float64; clips without a verb or a
    noun (-1) do not count.

    "joint": occurrence frequency of the pair (the thesis). "noun_given_verb": P(noun | verb) (LFB's released code,
    its 1e-5 included). "none": ones.
    """
    if kind == "none":
        return np.ones((n_verbs, n_nouns))
    joint = np.zeros((n_verbs, n_nouns))
    verb, noun = np.asarray(verb), np.asarray(noun)
    known = (verb >= 0) & (noun >= 0)
    np.add.at(joint, (verb[known], noun[known]), 1)
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
        best[part] = predicted_classes(table)
    return places, best


def predicted_classes(scores: np.ndarray) -> np.ndarray:
    """(N, C) scores -> (N,) the best class, -1 where the row was not predicted."""
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
        "verb": (predicted_classes(verb_scores), verb, many_shot_verbs),
        "noun": (predicted_classes(noun_scores), noun, many_shot_nouns),
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


def top_actions(verb_scores, noun_scores, n: int = 100, prior=None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The n best actions of every clip by softmax(verb) * softmax(noun) [* prior].

    Scores (N, V) and (N, M) are logits without NaN; prior (V, M) or None. Returns verbs (N, n), nouns (N, n) and
    float64 scores (N, n), the best first; among equal ones the higher verb, then the higher noun, is before. Both EPIC
    challenges score actions so (epic-kitchens-55-lib; C1-Action-Recognition, compute_action_scores with top_n=100):
    the n best products are those of the n best verbs and nouns. With a prior they need not be: it ranks all pairs.

    Raises ValueError: fewer than n pairs, or a NaN.
    """
    verb_p, noun_p = softmax(verb_scores), softmax(noun_scores)
    if np.isnan(verb_p).any() or np.isnan(noun_p).any():
        raise ValueError("a row that was not predicted has no best actions")
    verbs, nouns = (_best(p, p.shape[1] if prior is not None else min(n, p.shape[1])) for p in (verb_p, noun_p))
    if n > verbs.shape[1] * nouns.shape[1]:
        raise ValueError(f"{verbs.shape[1]} verbs and {nouns.shape[1]} nouns make fewer than {n} actions")
    out_verb, out_noun, out_score = [], [], []
    for start in range(0, len(verbs), _CHUNK):
        part = slice(start, start + _CHUNK)
        # Ascending ids, so that of equal scores the higher place is the higher action.
        v, m = np.sort(verbs[part], axis=1), np.sort(nouns[part], axis=1)
        p, q = np.take_along_axis(verb_p[part], v, 1), np.take_along_axis(noun_p[part], m, 1)
        table = p[:, :, None] * q[:, None, :]
        if prior is not None:
            table = table * np.asarray(prior)[v[:, :, None], m[:, None, :]]
        table = table.reshape(len(table), -1)
        place = _best(table, n)
        out_verb.append(np.take_along_axis(v, place // m.shape[1], 1))
        out_noun.append(np.take_along_axis(m, place % m.shape[1], 1))
        out_score.append(np.take_along_axis(table, place, 1))
    shape = (0, n)
    return tuple(np.concatenate(x) if x else np.zeros(shape) for x in (out_verb, out_noun, out_score))


def _best(scores: np.ndarray, n: int) -> np.ndarray:
    """(N, n) places of the n highest scores of every row, the best first; of equal ones the higher place is before."""
    lowest = np.partition(scores, -n, axis=1)[:, -n]
    out = np.empty((len(scores), n), np.int64)
    for i, row in enumerate(scores):
        taken = np.flatnonzero(row >= lowest[i])
        out[i] = taken[np.argsort(row[taken], kind="stable")[::-1][:n]]
    return out


def epic100(verb_scores, noun_scores, verb, noun, *, unseen=None, tail_verb=None, tail_noun=None) -> dict:
    """The EPIC-KITCHENS-100 protocol: accuracy on all clips, on unseen participants and on tail classes.

    Scores (N, 97) and (N, 300) are logits, an action's score is the product of the two softmaxes; verb, noun (N,)
    labels. unseen, tail_verb, tail_noun: (N,) bool, the clips of those participants and classes; None leaves the
    figures out. An action is of the tail if its verb or its noun is. Returns {"all": {"verb": [top-1, top-5], "noun",
    "action"}, "unseen": {"verb": [top-1], ...}, "tail": likewise}, as shares; NaN over no clips.
    """
    verb_scores, noun_scores, verb, noun = (np.asarray(x) for x in (verb_scores, noun_scores, verb, noun))
    n_nouns = noun_scores.shape[1]
    places = {
        "verb": (ranks(verb_scores, verb), verb_scores.shape[1]),
        "noun": (ranks(noun_scores, noun), n_nouns),
        "action": (action_ranks(verb_scores, noun_scores, verb, noun)[0], verb_scores.shape[1] * n_nouns),
    }
    out = {"all": {name: _top(place, classes, (1, 5)) for name, (place, classes) in places.items()}}
    subsets = {}
    if unseen is not None:
        subsets["unseen"] = dict.fromkeys(places, np.asarray(unseen, bool))
    if tail_verb is not None and tail_noun is not None:
        tails = np.asarray(tail_verb, bool), np.asarray(tail_noun, bool)
        subsets["tail"] = {"verb": tails[0], "noun": tails[1], "action": tails[0] | tails[1]}
    for subset, masks in subsets.items():
        out[subset] = {name: _top(place[masks[name]], classes, (1,)) for name, (place, classes) in places.items()}
    return out


def egtea(splits) -> dict:
    """EGTEA Gaze+: micro and mean-class accuracy of each split, and their average over the splits.

    splits: {name: (predictions (N,), labels (N,))}, integers; a negative prediction is a missing one. Returns {name:
    {"micro": share of the clips, "mean_class": mean over the classes of the share}, "average": likewise}, micro and
    macro in STAM (eq. 5).
    """
    if not splits:
        raise ValueError("no split to average over")
    out = {}
    for name, (predictions, labels) in splits.items():
        predictions, labels = np.asarray(predictions), np.asarray(labels)
        micro = float(np.mean(predictions == labels)) if len(labels) else float("nan")
        out[name] = {"micro": micro, "mean_class": mean_class_accuracy(predictions, labels)}
    figures = list(out.values())
    return out | {"average": {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}}
