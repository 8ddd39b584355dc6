"""Metrics against the golden cases, and on inputs whose answer is known."""

import ast
import json

import numpy as np
import pytest

from heads import metrics
from tests.epic100_files import read_rows, rulstm_rows


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
    """Counted over all training segments they are the published lists, id by id."""
    source = shared / "annotations/epic-kitchens-55"
    rows = read_rows(source / "EPIC_train_action_labels.csv")
    verbs, nouns, pairs = metrics.many_shot(*([int(row[k]) for row in rows] for k in ("verb_class", "noun_class")))
    for found, kind, size in ((verbs, "verb", 26), (nouns, "noun", 71)):
        published = {int(row[f"{kind}_class"]) for row in read_rows(source / f"EPIC_many_shot_{kind}s.csv")}
        assert set(found.tolist()) == published and len(found) == len(published) == size
    published = {ast.literal_eval(row["action_class"]) for row in read_rows(source / "EPIC_many_shot_actions.csv")}
    assert {tuple(pair) for pair in pairs.tolist()} == published and len(pairs) == len(published) == 819


def test_many_shot_is_more_than_a_hundred():
    times = {(1, 1): 101, (0, 2): 100, (2, 2): 102, (2, 0): 100}
    verb, noun = np.repeat(list(times), list(times.values()), axis=0).T
    verbs, nouns, pairs = metrics.many_shot(verb, noun)
    assert (verbs.tolist(), nouns.tolist()) == ([1, 2], [1, 2])
    assert pairs.tolist() == [[1, 1], [2, 2]]  # those that occur, however seldom


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


def test_clips_without_a_verb_or_a_noun_do_not_count_in_the_prior():
    prior = metrics.action_prior([0, 1, -1, 1, -1], [2, 0, 1, -1, -1], 2, 3)
    np.testing.assert_array_equal(prior, [[0, 0, 0.5], [0.5, 0, 0]])


def test_unknown_prior():
    with pytest.raises(ValueError, match="joint"):
        metrics.action_prior([0], [0], 1, 1, "most")


# ---- EPIC-100 --------------------------------------------------------------------------------------------


TIE = ("full_width", 7)


def test_epic100_golden(shared):
    for case in golden(shared, "epic100"):
        verb, noun = np.array(case["verb"]), np.array(case["noun"])
        ours = metrics.epic100(
            case["verb_scores"],
            case["noun_scores"],
            verb,
            noun,
            unseen=np.isin(case["participant"], case["unseen"]),
            tail_verb=np.isin(verb, case["tail_verbs"]),
            tail_noun=np.isin(noun, case["tail_nouns"]),
        )
        assert ours == case["expected"]
        n = min(100, len(case["verb_scores"][0]) * len(case["noun_scores"][0]))
        verbs, nouns, scores = metrics.top_actions(case["verb_scores"], case["noun_scores"], n)
        assert (np.diff(scores, axis=1) <= 0).all()
        p, q = metrics.softmax(case["verb_scores"]), metrics.softmax(case["noun_scores"])
        for i, theirs in enumerate(case["top5_actions"]):
            # the same order, but for two neighbours whose products are equal up to rounding
            assert scores[i, :5] == pytest.approx([p[i, a // 1000] * q[i, a % 1000] for a in theirs], rel=1e-14)
            ours = (verbs[i] * 1000 + nouns[i]).tolist()
            assert sum(a != b for a, b in zip(ours[:5], theirs, strict=True)) <= (2 if (case["name"], i) == TIE else 0)


def plain_epic100(verb_scores, noun_scores, verb, noun, participant, unseen, tail_verbs, tail_nouns):
    """The protocol straight from its words, clip by clip."""
    hits = {name: {"verb": [], "noun": [], "action": []} for name in ("all", "unseen", "tail")}
    for s, t, v, n, who in zip(verb_scores, noun_scores, verb, noun, participant, strict=True):
        p = [np.exp(x) / sum(np.exp(y) for y in s) for x in s]
        q = [np.exp(x) / sum(np.exp(y) for y in t) for x in t]
        ordered = {
            "verb": sorted(range(len(p)), key=lambda i: (p[i], i), reverse=True),
            "noun": sorted(range(len(q)), key=lambda i: (q[i], i), reverse=True),
        }
        pairs = [(p[i] * q[j], i * 1000 + j) for i in ordered["verb"][:100] for j in ordered["noun"][:100]]
        ordered["action"] = [action for _, action in sorted(pairs, reverse=True)[:100]]
        truth = {"verb": v, "noun": n, "action": v * 1000 + n}
        tail = {"verb": v in tail_verbs, "noun": n in tail_nouns, "action": v in tail_verbs or n in tail_nouns}
        for name in truth:
            hits["all"][name].append([truth[name] in ordered[name][:k] for k in (1, 5)])
            if who in unseen:
                hits["unseen"][name].append([truth[name] == ordered[name][0]])
            if tail[name]:
                hits["tail"][name].append([truth[name] == ordered[name][0]])
    return {subset: {k: list(np.mean(v, axis=0)) for k, v in of.items()} for subset, of in hits.items()}


def test_epic100_on_random_scores_against_plain_loops():
    rng = np.random.default_rng(3)
    n, verbs, nouns = 80, 12, 110
    verb_scores, noun_scores = rng.normal(size=(n, verbs)) * 2, rng.normal(size=(n, nouns)) * 2
    verb, noun = rng.integers(0, verbs, n), rng.integers(0, nouns, n)
    easy = rng.random(n) < 0.6
    verb_scores[easy, verb[easy]] += 4
    noun_scores[easy, noun[easy]] += 5
    who = rng.choice(["P01", "P18", "P32"], n)
    tails = set(range(6, verbs)), set(range(30, nouns))
    expected = plain_epic100(verb_scores, noun_scores, verb, noun, who, {"P18", "P32"}, *tails)
    ours = metrics.epic100(
        verb_scores,
        noun_scores,
        verb,
        noun,
        unseen=np.isin(who, ["P18", "P32"]),
        tail_verb=np.isin(verb, list(tails[0])),
        tail_noun=np.isin(noun, list(tails[1])),
    )
    for subset in ("all", "unseen", "tail"):
        for name in ("verb", "noun", "action"):
            assert ours[subset][name] == pytest.approx(expected[subset][name], abs=1e-12)
            assert 0 < ours[subset][name][0] < 1


def test_epic100_missing_rows_and_absent_subsets():
    scores, labels = np.eye(6) * 9, np.arange(6)
    scores[2] = np.nan
    out = metrics.epic100(scores, np.eye(6) * 9, labels, labels, unseen=np.arange(6) < 3)
    assert set(out) == {"all", "unseen"}
    assert out["all"]["verb"] == pytest.approx([5 / 6, 5 / 6]) and out["all"]["noun"] == [1, 1]
    assert out["all"]["action"][0] == pytest.approx(5 / 6) and out["unseen"]["action"] == pytest.approx([2 / 3])
    nobody = metrics.epic100(scores, scores, labels, labels, unseen=np.zeros(6, bool))
    assert np.isnan(nobody["unseen"]["verb"][0])


def test_top_actions_with_ties_and_a_prior():
    verbs, nouns, scores = metrics.top_actions(np.zeros((1, 3)), np.zeros((1, 4)), n=5)
    assert (verbs[0].tolist(), nouns[0].tolist()) == ([2, 2, 2, 2, 1], [3, 2, 1, 0, 3])
    assert scores == pytest.approx(np.full((1, 5), 1 / 12))
    prior = np.zeros((3, 4))
    prior[0, 1] = 1
    verbs, nouns, _ = metrics.top_actions(np.zeros((70, 3)), np.zeros((70, 4)), n=4, prior=prior)
    assert (verbs[:, 0] == 0).all() and (nouns[:, 0] == 1).all() and len(verbs) == 70
    with pytest.raises(ValueError, match="fewer than 100 actions"):
        metrics.top_actions(np.zeros((1, 3)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="not predicted"):
        metrics.top_actions(np.full((1, 3), np.nan), np.zeros((1, 4)), 2)


def chance_scores(rng, labels, n: int):
    """Scores of somebody who knows how often actions occur in training and sees no video: five actions are drawn; their
    verbs and nouns come first, in that order, and the rarest classes fill up what repetition leaves of five places."""
    drawn = rng.integers(0, len(labels["verb"]), (n, 5))
    out = []
    for name, classes in (("verb", 97), ("noun", 300)):
        share = np.bincount(labels[name], minlength=classes) / len(labels[name])
        scores = np.tile(-share, (n, 1))
        for place in reversed(range(5)):
            scores[np.arange(n), labels[name][drawn[:, place]]] = 10 * (5 - place)
        out.append(scores)
    return out


def test_chance_row_of_table_4_1(shared):
    """The thesis's "Chance" on the validation split comes out of the real labels and the protocol, as one random draw
    agrees with another; the top-5 of actions, five draws there, is no ranking of products, and is left out."""
    source = shared / "annotations/epic-kitchens-100"
    rows = rulstm_rows(source)
    train = {"verb": np.array([row[4] for row in rows]), "noun": np.array([row[5] for row in rows])}
    val = read_rows(source / "EPIC_100_validation.csv")
    verb, noun = (np.array([int(row[f"{name}_class"]) for row in val]) for name in ("verb", "noun"))
    tails = {
        name: [int(row[name]) for row in read_rows(source / f"EPIC_100_tail_{name}s.csv")] for name in ("verb", "noun")
    }
    masks = {
        "unseen": np.array([row["participant_id"] in ("P18", "P32") for row in val]),
        "tail_verb": np.isin(verb, tails["verb"]),
        "tail_noun": np.isin(noun, tails["noun"]),
    }
    ours = metrics.epic100(*chance_scores(np.random.default_rng(0), train, len(val)), verb, noun, **masks)
    counts = {
        "all": dict.fromkeys(("verb", "noun", "action"), len(val)),
        "unseen": dict.fromkeys(("verb", "noun", "action"), masks["unseen"].sum()),
        "tail": {
            "verb": masks["tail_verb"].sum(),
            "noun": masks["tail_noun"].sum(),
            "action": (masks["tail_verb"] | masks["tail_noun"]).sum(),
        },
    }
    printed = {
        "all": {"verb": [10.42, 38.43], "noun": [1.70, 8.14], "action": [0.51]},
        "unseen": {"verb": [10.59], "noun": [1.88], "action": [0.57]},
        "tail": {"verb": [1.13], "noun": [0.31], "action": [0.10]},
    }
    for subset, figures in printed.items():
        for name, values in figures.items():
            for got, value in zip(ours[subset][name], values, strict=False):
                error = 100 * np.sqrt(2 * value / 100 * (1 - value / 100) / counts[subset][name])
                assert abs(100 * got - value) < 3 * error, (subset, name, 100 * got, value)
    # and, without luck, from the frequencies: 10.53 1.64 0.49
    action = {"train": train["verb"] * 1000 + train["noun"], "val": verb * 1000 + noun}
    for name, pair, expected in (
        ("verb", (train["verb"], verb), 10.53),
        ("noun", (train["noun"], noun), 1.64),
        ("action", (action["train"], action["val"]), 0.49),
    ):
        share = np.bincount(pair[0], minlength=97_000)[pair[1]].mean() / len(rows)
        assert round(100 * share, 2) == expected
        error = np.sqrt(share / len(val))
        assert abs(ours["all"][name][0] - share) < 3 * error


# ---- EGTEA -----------------------------------------------------------------------------------------------


def test_egtea_golden(shared):
    for case in golden(shared, "mean_class_accuracy"):
        out = metrics.egtea({"1": (case["predictions"], case["labels"])})
        assert out["1"] == out["average"]
        assert out["1"]["micro"] == pytest.approx(case["micro"], abs=1e-12)
        assert out["1"]["mean_class"] == pytest.approx(case["macro"], abs=1e-12)


def test_egtea_averages_over_splits_against_plain_loops():
    rng = np.random.default_rng(5)
    splits, expected = {}, []
    for name, n in (("1", 200), ("2", 100), ("3", 50)):
        labels = rng.integers(0, 9, n) * rng.integers(0, 2, n)
        predictions = np.where(rng.random(n) < 0.5, labels, rng.integers(-1, 9, n))
        splits[name] = (predictions, labels)
        of_class = {}
        for p, y in zip(predictions, labels, strict=True):
            of_class.setdefault(int(y), []).append(p == y)
        micro = sum(sum(hits) for hits in of_class.values()) / n
        expected.append((micro, sum(sum(hits) / len(hits) for hits in of_class.values()) / len(of_class)))
    out = metrics.egtea(splits)
    assert list(out) == ["1", "2", "3", "average"]
    for name, (micro, macro) in zip(("1", "2", "3", "average"), [*expected, np.mean(expected, axis=0)], strict=True):
        assert out[name] == pytest.approx({"micro": micro, "mean_class": macro}, abs=1e-12)
    with pytest.raises(ValueError, match="no split"):
        metrics.egtea({})
