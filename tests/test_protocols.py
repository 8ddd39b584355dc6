"""The figures that a dataset's own protocol adds, from scores and the table of clips alone."""

from dataclasses import replace

import numpy as np
import pytest

from heads import metrics
from pipelines.evaluated_clips import EvaluatedClips
from pipelines.protocols import protocol_figures, register_protocol


def made(name, rng, n=60, verbs=4, nouns=5, **columns):
    """A table of 2 n clips, of which every second is evaluated, and scores that are often right."""
    labels = {"verb": rng.integers(0, verbs, 2 * n), "noun": rng.integers(0, nouns, 2 * n)}
    which = np.arange(0, 2 * n, 2)
    split = np.where(np.arange(2 * n) % 2, "train", "val").astype(object)
    table = {"id": np.arange(2 * n).astype(str).astype(object), "split": split, **labels}
    table |= {name: column(2 * n) for name, column in columns.items()}
    scores = {}
    for label, classes in (("verb", verbs), ("noun", nouns)):
        scores[label] = rng.normal(size=(n, classes)).astype(np.float32)
        scores[label][np.arange(n), labels[label][which]] += 1
        scores[label][3] = np.nan
    return scores, EvaluatedClips(name, table, labels, which, "here")


def subset(rng, part="val"):
    return lambda n: np.where(rng.random(n) < 0.4, part, "other").astype(object)


def test_epic100_reads_its_subsets_from_the_table():
    rng = np.random.default_rng(0)
    names = ("unseen", "tail_verb", "tail_noun")
    scores, clips = made("epic100", rng, **{f"split_{name}": subset(rng) for name in names})
    found = protocol_figures("epic100", scores, clips, None)
    assert set(found) == {"overall", "unseen_participants", "tail_classes"}
    verb, noun = clips.labels["verb"], clips.labels["noun"]
    wanted = metrics.epic100(
        scores["verb"], scores["noun"], verb, noun, **{name: clips.column(f"split_{name}") == "val" for name in names}
    )
    assert found["overall"]["action"] == dict(zip(("top1", "top5"), wanted["all"]["action"], strict=True))
    assert found["tail_classes"]["noun"] == {"top1": wanted["tail"]["noun"][0]}
    # by hand, on the unseen participants
    inside = clips.column("split_unseen") == "val"
    right = np.nan_to_num(scores["verb"], nan=-9).argmax(axis=1) == verb
    right[3] = False
    assert found["unseen_participants"]["verb"]["top1"] == pytest.approx(right[inside].mean())
    # the challenge's actions have no prior
    assert protocol_figures("epic100", scores, clips, np.eye(4, 5)) == found


def test_epic100_without_the_lists_has_overall_figures_only():
    scores, clips = made("epic100", np.random.default_rng(1))
    assert set(protocol_figures("epic100", scores, clips, None)) == {"overall"}
    assert protocol_figures("epic100", {"verb": scores["verb"]}, clips, None) == {}


def test_egtea_actions_are_pairs_of_verb_and_noun():
    rng = np.random.default_rng(2)
    scores, clips = made("egtea", rng)
    prior = rng.random((4, 5))
    found = protocol_figures("egtea-split=2", scores, clips, prior)["class_means"]
    verb, noun = clips.labels["verb"], clips.labels["noun"]
    hits, of_class = [], {}
    for i, (v, n) in enumerate(zip(verb, noun, strict=True)):
        p, q = (np.exp(scores[name][i].astype(float)) for name in ("verb", "noun"))
        table = prior * np.outer(p / p.sum(), q / q.sum())
        hits.append(i != 3 and np.unravel_index(table.argmax(), table.shape) == (v, n))
        of_class.setdefault((v, n), []).append(hits[-1])
    assert found["action"]["micro"] == pytest.approx(np.mean(hits))
    assert found["action"]["mean_class"] == pytest.approx(np.mean([np.mean(h) for h in of_class.values()]))
    assert set(found) == {"verb", "noun", "action"}


def test_egtea_of_a_network_that_names_actions():
    rng = np.random.default_rng(3)
    _, clips = made("egtea", rng)
    action = rng.integers(0, 7, 120)
    clips.all_labels["action"] = action
    scores = np.eye(7)[action[clips.which]]
    scores[action[clips.which] == 0] = np.nan  # a class that is never found
    found = protocol_figures("egtea", {"action": scores}, clips, None)["class_means"]
    assert found["action"]["mean_class"] == pytest.approx(1 - 1 / len(np.unique(action[clips.which])))


def epic55_clips(rng, part):
    """Scores, labels and clips of a split of a table like EPIC-55's: 2,600 clips of train and val, 200 of either test.
    Training has verb 5 and noun 7 exactly 100 times, verb 6 and noun 8 exactly 101 times, but never verb 6 with noun 8;
    the tests have all of them often. Verb 1 and noun 1 are never said, and a row is missing."""
    verb, noun = rng.integers(0, 5, 2_600), rng.permutation(np.repeat([*range(7), 7, 8], [*[343] * 6, 341, 100, 101]))
    rare = rng.choice(np.flatnonzero(noun != 8), 201, replace=False)
    verb[rare] = np.repeat([5, 6], [100, 101])
    labels = {
        "verb": np.concatenate([verb, rng.integers(0, 7, 400)]),
        "noun": np.concatenate([noun, rng.integers(0, 9, 400)]),
    }
    split = np.repeat(["train", "val", "test_s1", "test_s2"], [2_000, 600, 200, 200]).astype(object)
    which = np.flatnonzero(split == part)
    scores = {}
    for name, column in labels.items():
        scores[name] = rng.normal(size=(len(which), column.max() + 1)).astype(np.float32)
        scores[name][np.arange(len(which)), column[which]] += 1.5
        scores[name][:, 1] -= 50
        scores[name][3] = np.nan
    table = {"id": np.arange(3_000).astype(str).astype(object), "split": split, **labels}
    return scores, EvaluatedClips("epic55", table, labels, which, "here")


def plain_many_shot(scores, clips, prior):
    """EPIC-55's words, class by class: macro precision and recall over the classes with more than 100 segments in all
    the training set that the evaluated clips show; actions of two such classes that training shows together."""
    labels, split = clips.all_labels, clips.table["split"]
    trained = [(labels["verb"][i], labels["noun"][i]) for i in range(3_000) if split[i] in ("train", "val")]
    verbs, nouns = ({x for x in column if column.count(x) > 100} for column in map(list, zip(*trained, strict=True)))
    classes = {"verb": verbs, "noun": nouns, "action": {(v, n) for v, n in trained if v in verbs and n in nouns}}
    truth = {name: [labels[name][i] for i in clips.which] for name in ("verb", "noun")}
    truth["action"] = list(zip(truth["verb"], truth["noun"], strict=True))
    said = {name: [] for name in classes}
    for s, t in zip(scores["verb"], scores["noun"], strict=True):
        p, q = ([np.exp(float(x)) for x in row] for row in (s, t))
        table = {(v, n): p[v] * q[n] * (1 if prior is None else prior[v][n]) for v in range(7) for n in range(9)}
        for name, values in (("verb", dict(enumerate(p))), ("noun", dict(enumerate(q))), ("action", table)):
            known = all(value == value for value in values.values())
            said[name].append(max(values, key=values.get) if known else None)
    found = {"precision": {}, "recall": {}}
    for name, of_name in classes.items():
        shown = of_name & set(truth[name])
        hits = {c: sum(x == y == c for x, y in zip(said[name], truth[name], strict=True)) for c in shown}
        found["precision"][name] = sum(hits[c] / max(1, said[name].count(c)) for c in shown) / len(shown)
        found["recall"][name] = sum(hits[c] / truth[name].count(c) for c in shown) / len(shown)
    return found, classes


@pytest.mark.parametrize("with_prior", [False, True], ids=["no-prior", "prior"])
@pytest.mark.parametrize("part", ["val", "test_s1", "test_s2"])
def test_epic55_many_shot_against_plain_loops(part, with_prior):
    """Of the validation split and of either test, S1 and S2, whose labels count for no class's frequency."""
    rng = np.random.default_rng(4)
    scores, clips = epic55_clips(rng, part)
    prior = rng.random((7, 9)) if with_prior else None
    expected, classes = plain_many_shot(scores, clips, prior)
    assert classes["verb"] == {0, 1, 2, 3, 4, 6} and classes["noun"] == {0, 1, 2, 3, 4, 5, 6, 8}
    assert (6, 8) not in classes["action"]
    found = protocol_figures("epic55:x=1", scores, clips, prior)["many_shot"]
    assert set(found) == {"precision", "recall"}
    for figure, of in expected.items():
        assert found[figure] == pytest.approx(of, abs=1e-12)
        assert all(0 < value < 1 for value in of.values())
    assert protocol_figures("epic55", {"noun": scores["noun"]}, clips, prior) == {}


def test_epic55_leaves_out_classes_that_the_evaluated_clips_lack():
    _, clips = epic55_clips(np.random.default_rng(5), "val")
    clips = replace(clips, which=clips.which[clips.labels["verb"] == 0])
    scores = {name: np.eye(column.max() + 1)[clips.labels[name]] * 9 for name, column in clips.all_labels.items()}
    found = protocol_figures("epic55", scores, clips, None)["many_shot"]
    assert found["recall"] == found["precision"] == {"verb": 1, "noun": 1, "action": 1}


def test_datasets_without_a_protocol():
    scores, clips = made("toykitchen", np.random.default_rng(4))
    assert protocol_figures("toykitchen", scores, clips, None) == {}
    with pytest.raises(ValueError, match="has a protocol already"):
        register_protocol("egtea")(lambda scores, clips, prior: {})
