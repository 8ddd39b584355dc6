"""Metrics against the golden cases, and on inputs whose answer is known."""

import csv
import json

import numpy as np
import pytest

from heads import metrics


def golden(shared, name):
    return json.loads((shared / "golden" / f"metrics_{name}.json").read_text())["cases"]


def test_epic55_golden(shared):
    for case in golden(shared, "epic55"):
        prior = None if case["action_priors"] is None else np.array(case["action_priors"])
        names = (
            "verb_scores",
            "noun_scores",
            "verb",
            "noun",
            "many_shot_verbs",
            "many_shot_nouns",
            "many_shot_actions",
        )
        ours, theirs = metrics.epic55(*(case[n] for n in names), action_priors=prior), case["expected"]
        for kind in ("verb", "noun", "action"):
            assert ours["accuracy"][kind] == pytest.approx(theirs["accuracy"][kind], abs=1e-12)
            for figure in ("precision", "recall"):
                assert ours[figure][kind] == pytest.approx(theirs[figure][kind], abs=1e-12)
        for figure in ("precision", "recall"):
            per_class = {int(c): v for c, v in theirs[figure]["verb_per_class"].items()}
            assert ours[figure]["verb_per_class"] == pytest.approx(per_class, abs=1e-12)


def test_mean_class_accuracy_golden(shared):
    for case in golden(shared, "mean_class_accuracy"):
        assert metrics.mean_class_accuracy(case["predictions"], case["labels"]) == pytest.approx(
            case["macro"], abs=1e-12
        )


def test_action_prior_golden(shared):
    for case in golden(shared, "lfb_action_prior"):
        train = [row for row in case["train"] if row["person"] <= 25]
        verb, noun = (np.array([row[k] for row in train]) for k in ("verb", "noun"))
        for kind, percent in case["expected"].items():
            prior = metrics.action_prior(verb, noun, 4, 5, kind.replace("no_prior", "none"))
            if kind in case:
                assert np.allclose(prior, case[kind], atol=1e-12)
            places, _ = metrics.action_ranks(
                case["verb_logits"], case["noun_logits"], case["verb"], case["noun"], prior
            )
            ours = [100 * np.mean(places < k) for k in (1, 5)]
            assert ours == pytest.approx([float(line.split(": ")[1].rstrip("%")) for line in percent])


def test_many_shot_of_the_real_annotations(shared):
    folder = shared / "annotations" / "epic-kitchens-55"
    files = list(folder.rglob("EPIC_train_action_labels.csv"))
    if not files:
        pytest.skip("EPIC-55's training labels are not among the reference material")
    with open(files[0], newline="") as f:
        rows = list(csv.DictReader(f))
    verb, noun = (np.array([int(r[k]) for r in rows]) for k in ("verb_class", "noun_class"))
    assert [len(x) for x in metrics.many_shot(verb, noun)] == [26, 71, 819]


def test_topk_and_ties():
    scores = np.array([[3, 2, 1], [1, 1, 0], [1, 1, 0], [0, 0, 0.0]])
    assert metrics.topk_accuracy(scores, [0, 1, 0, 0], ks=(1, 2, 3)) == [0.5, 0.75, 1.0]


def test_missing_rows_count_as_wrong():
    scores = np.eye(4)
    scores[1] = np.nan
    assert metrics.topk_accuracy(scores, np.arange(4), ks=(1, 4)) == [0.75, 0.75]
    places, best = metrics.action_ranks(scores * 9, np.eye(4) * 9, np.arange(4), np.arange(4))
    assert list(best) == [0, -1, 10, 15] and places[1] == 16
    out = metrics.epic55(scores, np.eye(4), np.arange(4), np.arange(4), [1], [1], [[1, 1]])
    assert out["recall"]["verb"] == 0 and out["accuracy"]["action"] == [0.75, 0.75]


def test_label_that_is_no_class_is_wrong():
    assert metrics.topk_accuracy(np.eye(3), [0, 1, -1]) == pytest.approx([2 / 3, 2 / 3])


def test_random_scores_against_a_plain_loop():
    rng = np.random.default_rng(0)
    verb_scores, noun_scores = rng.normal(size=(70, 6)), rng.normal(size=(70, 9))
    verb, noun = rng.integers(0, 6, 70), rng.integers(0, 9, 70)
    prior = metrics.action_prior(rng.integers(0, 6, 300), rng.integers(0, 9, 300), 6, 9)
    places, best = metrics.action_ranks(verb_scores, noun_scores, verb, noun, prior)
    for i in range(70):
        p = np.exp(verb_scores[i]) / np.exp(verb_scores[i]).sum()
        q = np.exp(noun_scores[i]) / np.exp(noun_scores[i]).sum()
        table = {(v, m): prior[v, m] * p[v] * q[m] for v in range(6) for m in range(9)}
        order = sorted(table, key=lambda pair: (-table[pair], [-x for x in pair]))
        assert order.index((verb[i], noun[i])) == places[i]
        assert order[0] == divmod(best[i], 9)


def test_unknown_prior():
    with pytest.raises(ValueError, match="joint"):
        metrics.action_prior([0], [0], 1, 1, "most")
