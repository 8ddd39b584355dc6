"""Temporal localisation's mAP against the golden cases, a plain loop, and inputs whose answer is known."""

import json

import numpy as np
import pytest

from heads import metrics


@pytest.fixture
def cases(shared):
    cases = json.loads((shared / "golden" / "metrics_localisation.json").read_text())["cases"]
    return {case["name"]: case for case in cases}


def subset_of(database, subset):
    return {video: of["annotations"] for video, of in database.items() if of["subset"] == subset}


def test_golden(cases):
    case = cases["segments"]
    truth = subset_of(case["ground_truth"]["database"], "test")
    ours = metrics.localisation_map(truth, case["predictions"])
    assert ours["mAP"] == pytest.approx(case["expected_mAP"], abs=1e-12)
    assert ours["average"] == pytest.approx(np.mean(case["expected_mAP"]), abs=1e-12)
    assert {*ours["per_class"]} == {*case["class_order"]}
    for label, column in case["class_order"].items():
        assert ours["per_class"][label] == pytest.approx([row[column] for row in case["expected_ap"]], abs=1e-12)
    one, same = (
        {video: [{**item, "label": "any"} for item in items] for video, items in of.items()}
        for of in (truth, case["predictions"])
    )
    agnostic = metrics.localisation_map(one, same, case["thresholds"])
    assert agnostic["mAP"] == pytest.approx(case["class_agnostic_AP"], abs=1e-12)


def test_golden_frames(cases):
    truth = subset_of(cases["segments"]["ground_truth"]["database"], "test")
    ours = metrics.frame_localisation_map(truth, cases["frames"]["predictions"])
    assert ours["mAP"] == pytest.approx(cases["frames"]["expected_mAP"], abs=1e-12)


# ---- against a plain loop --------------------------------------------------------------------------------


def iou(one, other):
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return shared / (max(one[1], other[1]) - min(one[0], other[0])) if shared > 0 else 0.0


def inside(segment, frame):
    return -abs(2 * frame - segment[0] - segment[1]) / (segment[1] - segment[0])


def loop(truth, predictions, label, key, fit, least):
    """AP of a label: prediction by prediction, instance by instance, recall by recall."""
    free = [(video, item["segment"]) for video, items in truth.items() for item in items if item["label"] == label]
    n, hits = len(free), []
    ranked = [(x["score"], i, video, x) for video, items in predictions.items() for i, x in enumerate(items)]
    ranked = [(score, place, video, x) for place, (score, _, video, x) in enumerate(ranked) if x["label"] == label]
    for _, _, video, item in sorted(ranked, key=lambda entry: entry[:2], reverse=True):
        best = None
        for candidate in free:
            if candidate[0] == video and fit(candidate[1], item[key]) >= least:
                if best is None or fit(candidate[1], item[key]) >= fit(best[1], item[key]):
                    best = candidate
        hits.append(best is not None)
        if best is not None:
            free.remove(best)
    precision = [sum(hits[: i + 1]) / (i + 1) for i in range(len(hits))]
    recall = [sum(hits[: i + 1]) / n for i in range(len(hits))]
    return sum(
        max((p for p, r in zip(precision, recall, strict=True) if r >= k / n - 1e-9), default=0.0) / n
        for k in range(1, n + 1)
    )


def random_case(seed, whole):
    """Instances that overlap, and predictions near them, some of them twice, far off, elsewhere, of another label.
    whole: times and scores are small integers, so that many are equal."""
    rng = np.random.default_rng(seed)
    number = (lambda low, high: float(rng.integers(low, high))) if whole else (lambda low, high: rng.uniform(low, high))
    truth, predictions = {}, {}
    for video in range(8):
        starts = [number(0, 30) for _ in range(rng.integers(0, 7))]
        truth[video] = [{"label": "abc"[rng.integers(3)], "segment": [start, start + number(1, 9)]} for start in starts]
    for video in rng.permutation(10).tolist():  # two of them unknown
        predictions[video] = []
        for item in truth.get(video, []) * 2:
            start, stop = item["segment"]
            start, stop = sorted((start + number(-2, 3), stop + number(-2, 3)))
            label = item["label"] if rng.random() < 0.8 else "abcd"[rng.integers(4)]
            place = {"segment": [start, stop], "frame": start + rng.random() * (stop - start)}
            predictions[video].append({"label": label, "score": number(0, 5), **place})
        predictions[video].append({"label": "a", "score": number(0, 5), "segment": [90.0, 95.0], "frame": 92.0})
    return truth, predictions


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_against_a_plain_loop(seed, whole):
    truth, predictions = random_case(seed, whole)
    thresholds, ranges = (0.1, 0.25, 0.5, 0.75, 1.0), (0.3, 0.6, 1.0)
    segments = metrics.localisation_map(truth, predictions, thresholds)
    frames = metrics.frame_localisation_map(truth, predictions, ranges)
    labels = {item["label"] for items in truth.values() for item in items}
    assert {*segments["per_class"]} == {*frames["per_class"]} == labels
    for label in labels:
        plain = [loop(truth, predictions, label, "segment", iou, least) for least in thresholds]
        assert segments["per_class"][label] == pytest.approx(plain, abs=1e-12)
        plain = [loop(truth, predictions, label, "frame", inside, -least) for least in ranges]
        assert frames["per_class"][label] == pytest.approx(plain, abs=1e-12)
    for found in (segments, frames):
        assert found["mAP"] == pytest.approx(np.mean([*found["per_class"].values()], axis=0), abs=1e-12)
        assert 0 < found["average"] < 1


def test_the_real_annotations_find_themselves(shared):
    truth = subset_of(json.loads((shared / "annotations/sfnet/th14_groundtruth.json").read_text())["database"], "test")
    assert sum(map(len, truth.values())) == 3358
    rng = np.random.default_rng(0)
    same = {video: [{**item, "score": rng.random()} for item in items] for video, items in truth.items()}
    ours = metrics.localisation_map(truth, same)
    assert len(ours["per_class"]) == 20 and ours["mAP"].tolist() == [1] * 7


# ---- inputs whose answer is known ------------------------------------------------------------------------


def item(label, start, stop, score=None):
    return {"label": label, "segment": [start, stop]} | ({} if score is None else {"score": score})


def test_several_predictions_of_one_instance():
    """One is right, the others are false: it is the one of the highest score, not the one that fits best."""
    truth = {"v": [item("a", 0, 10), item("a", 20, 30)]}
    predictions = {"v": [item("a", 0, 10, 0.5), item("a", 0, 6, 0.9), item("a", 20, 30, 0.1)]}
    ours = metrics.localisation_map(truth, predictions, [0.5, 0.7])
    # at 0.5: right, false, right; at 0.7: false, right, right, and 1/2 is raised to 2/3
    assert ours["per_class"]["a"] == pytest.approx([(1 + 2 / 3) / 2, 2 / 3])


def test_a_taken_instance_leaves_the_next_best():
    truth = {"v": [item("a", 0, 10), item("a", 2, 12)]}
    predictions = {"v": [item("a", 0, 10, 0.9), item("a", 0, 10, 0.8)]}
    assert metrics.localisation_map(truth, predictions, [0.6, 0.7])["mAP"].tolist() == [1, 0.5]


def test_of_instances_that_fit_alike_the_later_is_taken():
    first, second = item("a", 0, 10), item("a", 10, 20)
    predictions = {"v": [item("a", 5, 15, 0.9), item("a", 12, 20, 0.8)]}
    assert metrics.localisation_map({"v": [first, second]}, predictions, [0.3])["average"] == 0.5
    assert metrics.localisation_map({"v": [second, first]}, predictions, [0.3])["average"] == 1


def test_the_threshold_itself_is_enough_and_touching_is_no_overlap():
    truth = {"v": [item("a", 0, 10)]}
    for segment, found in (
        (item("a", 0, 5, 1), [1, 1, 0]),
        (item("a", 10, 20, 1), [0] * 3),
        (item("a", 3, 3, 1), [0] * 3),
    ):
        assert metrics.localisation_map(truth, {"v": [segment]}, [1e-9, 0.5, 0.51])["mAP"].tolist() == found
    for frame, found in ((7.5, [1, 1]), (10, [0, 1]), (10.1, [0, 0])):
        frames = {"v": [{"label": "a", "frame": frame, "score": 1}]}
        assert metrics.frame_localisation_map(truth, frames, [0.5, 1])["mAP"].tolist() == found


def test_of_equal_scores_the_later_prediction_is_first():
    truth = {"v": [item("a", 0, 10)], "w": []}
    right, wrong = item("a", 0, 10, 0.5), item("a", 50, 60, 0.5)
    for order, ap in (([right, wrong], 0.5), ([wrong, right], 1)):
        assert metrics.localisation_map(truth, {"v": order})["average"] == ap
    assert metrics.localisation_map(truth, {"v": [right], "w": [wrong]})["average"] == 0.5
    assert metrics.localisation_map(truth, {"w": [wrong], "v": [right]})["average"] == 1


def test_where_a_prediction_counts():
    truth = {"v": [item("a", 0, 10)], "w": [item("b", 0, 10)], "empty": []}
    right = [item("a", 0, 10, 0.5)]
    for others, ap in (
        ({"w": [item("a", 0, 10, 0.9)]}, 0.5),  # of a video without this label
        ({"empty": [item("a", 0, 10, 0.9)]}, 0.5),
        ({"unknown": [item("a", 0, 10, 0.9)]}, 0.5),
        ({"w": [item("c", 0, 10, 0.9)]}, 1),  # a label that is not asked for
        ({"w": [item("a", 50, 60, 0.1)]}, 1),  # after all instances are found
    ):
        ours = metrics.localisation_map(truth, {"v": right, **others})
        assert ours["per_class"]["a"].tolist() == [ap] * 7 and ours["per_class"]["b"].tolist() == [0] * 7
        assert ours["mAP"] == pytest.approx(np.full(7, ap / 2))


def test_nothing_to_find_and_nothing_found():
    for truth in ({}, {"v": []}):
        ours = metrics.localisation_map(truth, {"v": [item("a", 0, 1, 1)]})
        assert ours["per_class"] == {} and np.isnan(ours["mAP"]).all() and np.isnan(ours["average"])
        assert ours["mAP"].shape == (7,)
    for predictions in ({}, {"v": []}):
        ours = metrics.localisation_map({"v": [item("a", 0, 1)]}, predictions)
        assert ours["mAP"].tolist() == [0] * 7 and ours["average"] == 0


@pytest.mark.parametrize(
    ("truth", "prediction", "thresholds", "message"),
    [
        (item("a", 5, 5), None, [0.5], r"ground truth of v: a segment must have some length, got \[5, 5\]"),
        (item("a", 5, 4), None, [0.5], "ground truth of v: a segment must not stop before it starts"),
        (item("a", 0, float("nan")), None, [0.5], "ground truth of v: stop must be a finite number, got nan"),
        ({"label": "a", "segment": [1, 2, 3]}, None, [0.5], r"must be \[start, stop\], got \[1, 2, 3\]"),
        ({"label": "a", "segment": "12"}, None, [0.5], r"must be \[start, stop\], got '12'"),
        ({"segment": [1, 2]}, None, [0.5], "ground truth of v: .* has no 'label'"),
        (None, item("a", 5, 4, 1), [0.5], "predictions of v: a segment must not stop before it starts"),
        (None, item("a", 0, 1), [0.5], "predictions of v: .* has no 'score'"),
        (None, item("z", 0, 1, float("inf")), [0.5], "predictions of v: score must be a finite number, got inf"),
        (None, item("a", "x", 1, 1), [0.5], "predictions of v: start must be a finite number, got 'x'"),
        (None, None, [], r"thresholds must be one or more numbers in \(0, 1\], got \[\]"),
        (None, None, [0.5, 0], r"thresholds must be .* got \[0.5, 0\]"),
        (None, None, [50], "thresholds must be"),
        (None, None, [float("nan")], "thresholds must be"),
        (None, None, 0.5, "thresholds must be .* got 0.5"),
    ],
)
def test_what_is_refused(truth, prediction, thresholds, message):
    truth, prediction = truth or item("a", 0, 1), prediction or item("a", 0, 1, 1)
    with pytest.raises(ValueError, match=message):
        metrics.localisation_map({"v": [truth]}, {"v": [prediction]}, thresholds)


def test_frames_that_are_refused():
    truth = {"v": [item("a", 0, 1)]}
    for prediction, message in (
        (item("a", 0, 1, 1), "has no 'frame'"),
        ({"label": "a", "score": 1, "frame": float("nan")}, "frame must be a finite number"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.frame_localisation_map(truth, {"v": [prediction]})
    with pytest.raises(ValueError, match="ranges must be"):
        metrics.frame_localisation_map(truth, {}, [2])
