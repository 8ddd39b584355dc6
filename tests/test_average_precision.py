"""Average precision against the golden cases, scikit-learn and a plain loop."""

import json

import numpy as np
import pytest

from heads import metrics


@pytest.fixture
def cases(shared):
    return json.loads((shared / "golden" / "metrics_activitynet_map.json").read_text())["cases"]


def test_golden(cases):
    for case in cases:
        ours = metrics.mean_average_precision(case["logits"], case["labels"])
        expected = np.array([np.nan if ap is None else ap for ap in case["sklearn_ap"]])
        assert ours["per_class"] == pytest.approx(expected, abs=1e-12, nan_ok=True)
        assert ours["mAP"] == pytest.approx(np.nanmean(expected), abs=1e-12)
        if not np.isnan(expected).any():  # the reference's own code is wrong where a class does not occur
            assert 100 * ours["per_class"] == pytest.approx(np.array(case["ap"]), abs=1e-4)
            assert 100 * ours["mAP"] == pytest.approx(case["mmAP"], abs=1e-4)
            assert 100 * ours["mAP_first_label"] == pytest.approx(case["mAP_first_label"], abs=1e-4)


def loop(scores, truth):
    """Precision at every true row, of all rows that score at least as much."""
    found = []
    for i in np.flatnonzero(truth):
        above = scores >= scores[i]
        found.append(np.sum(above & truth) / np.sum(above))
    return np.mean(found)


def random_case(seed, n=60, classes=7, levels=0):
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, classes))
    return np.round(scores * levels) / levels if levels else scores, rng.random((n, classes)) < 0.2


@pytest.mark.parametrize("levels", [0, 3])  # 3: many rows of equal score
@pytest.mark.parametrize("seed", range(3))
def test_against_a_plain_loop_and_the_library(seed, levels):
    scores, truth = random_case(seed, levels=levels)
    ours = metrics.average_precision(scores, truth)
    assert ours == pytest.approx([loop(scores[:, c], truth[:, c]) for c in range(7)], abs=1e-12)
    shuffled = np.random.default_rng(seed).permutation(len(scores))
    assert metrics.average_precision(scores[shuffled], truth[shuffled]) == pytest.approx(ours, abs=1e-12)
    library = pytest.importorskip("sklearn.metrics")
    assert ours == pytest.approx(library.average_precision_score(truth, scores, average=None), abs=1e-12)


def test_rows_without_a_prediction_are_never_found():
    scores, truth = random_case(5)
    whole = metrics.average_precision(scores, truth)
    missing = scores.copy()
    missing[::3, 2] = np.nan
    ours = metrics.average_precision(missing, truth)
    kept = np.arange(len(scores)) % 3 != 0
    alone = metrics.average_precision(scores[kept], truth[kept])
    assert ours == pytest.approx(alone * truth[kept].sum(0) / truth.sum(0), abs=1e-12)
    assert (ours <= alone).all() and not np.array_equal(ours, whole)
    assert metrics.average_precision(np.full((4, 2), np.nan), np.eye(4, 2) > 0).tolist() == [0, 0]


def test_known_values():
    truth = np.array([[1, 0], [0, 0], [1, 0], [0, 0]], bool)
    ours = metrics.average_precision([[4.0, 1], [3, 1], [2, 1], [1, 1]], truth)
    assert ours[0] == pytest.approx((1 + 2 / 3) / 2) and np.isnan(ours[1])
    assert metrics.average_precision(np.zeros((4, 2)), truth)[0] == pytest.approx(0.5)  # nothing is told apart


def test_ranks_are_of_probabilities_across_videos():
    """Logits of different videos do not compare: a video sure of nothing must not outrank one that is sure."""
    logits, labels = np.array([[5.0, 5.0], [2.0, -2.0]]), np.array([[1, -1], [0, -1]])
    ours = metrics.mean_average_precision(logits, labels)
    assert ours["per_class"].tolist() == [1, 1] and ours["mAP"] == 1
    assert metrics.average_precision(logits, np.array([[False, True], [True, False]])).tolist() == [0.5, 1]


def test_repeated_and_unknown_labels():
    logits = np.random.default_rng(0).normal(size=(6, 3))
    plain = metrics.mean_average_precision(logits, [[0, 1], [1, -1], [2, -1], [2, -1], [0, -1], [-1, -1]])
    same = metrics.mean_average_precision(logits, [[0, 1], [1, 1], [2, -1], [2, 9], [0, 0], [-1, -1]])
    assert plain["mAP"] == same["mAP"] and plain["per_class"].tolist() == same["per_class"].tolist()
    assert plain["mAP_first_label"] != plain["mAP"]
    assert np.isnan(metrics.mean_average_precision(logits, np.full((6, 1), -1))["mAP"])
