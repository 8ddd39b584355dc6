"""The figures that a dataset's own protocol adds, from scores and the table of clips alone."""

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


def test_epic55_and_datasets_without_a_protocol():
    scores, clips = made("epic55", np.random.default_rng(4), n=1200)
    found = protocol_figures("epic55:x=1", scores, clips, None)["many_shot"]
    assert set(found) == {"precision", "recall"} and 0 < found["recall"]["verb"] < 1
    assert protocol_figures("toykitchen", scores, clips, None) == {}
    with pytest.raises(ValueError, match="has a protocol already"):
        register_protocol("egtea")(lambda scores, clips, prior: {})
