"""Figures of a sampler beside other ways to pick frames, their cost, an adaptive M, and the pictures of a run."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from test_sampler_training import CLASSES, KNOWS, QUICK, grid_store, train

from cli import main
from errors import UserError
from heads import create_head, metrics
from heads import frame_sampling as fs
from heads.published import published
from pipelines import evaluate
from pipelines.cost import VideoCost
from pipelines.run_folder import open_run
from pipelines.sampler_evaluation import margins, method_rows, open_sampler, see, thresholds_of, video_costs
from pipelines.sampler_model import Seen
from pipelines.sampler_pictures import accuracy_cost, sampler_pictures, strip

V, N, K = 40, 9, 5


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def seen():
    """What two networks said of 40 videos of 1 to 9 frames."""
    rng = np.random.default_rng(0)
    mask = np.arange(N) < rng.integers(1, N + 1, V)[:, None]
    mask[0], mask[1] = True, np.arange(N) == 0
    scores = np.where(mask, rng.uniform(size=(V, N)), 0).astype(np.float32)
    logits = rng.normal(size=(V, N, K)).astype(np.float32) * 2
    return Seen(torch.from_numpy(scores), torch.from_numpy(logits), torch.from_numpy(mask))


LABELS = np.arange(V) % K


def score(logits):
    return {"top1": metrics.topk_accuracy(logits, LABELS)[0]}


def psn(**changes):
    return create_head("psn", **{"channels": 4, "classes": K, "frames": N, "sampled": 3, "width": 4, **changes})


def top1_by_hand(seen, m, rank, weigh):
    """Of each video the m best frames by `rank` (V, N), as loops over videos and frames."""
    right = 0
    for v in range(V):
        there = [i for i in range(N) if seen.mask[v, i]]
        best = sorted(there, key=lambda i: -float(rank[v, i]))[:m]
        total = sum(seen.logits[v, i] * (float(seen.scores[v, i]) if weigh else 1) for i in best)
        right += int(total.argmax()) == LABELS[v]
    return right / V


# --- every way to pick frames ---


def test_methods_against_loops(seen):
    rows = {(r["method"], r["m"]): r for r in method_rows(seen, psn(), score, range(1, N + 1), name="psn")}
    assert {method for method, _ in rows} == {"uniform", "random", "dense", "sampling only", "psn"}
    for m in range(1, N + 1):
        assert rows["psn", m]["top1"] == pytest.approx(top1_by_hand(seen, m, seen.scores, True))
        assert rows["sampling only", m]["top1"] == pytest.approx(top1_by_hand(seen, m, seen.scores, False))
        frames = np.minimum(seen.mask.sum(1).numpy(), m).mean()
        assert all(row["frames"] == pytest.approx(frames) for (_, of), row in rows.items() if of == m)
    dense = rows["dense", N]
    assert dense["top1"] == pytest.approx(top1_by_hand(seen, N, seen.scores, False))
    assert dense["top1"] == rows["uniform", N]["top1"] == rows["random", N]["top1"] == rows["sampling only", N]["top1"]
    assert ("dense", 3) not in rows


def test_random_is_the_mean_over_seeded_draws(seen):
    (five,) = [r for r in method_rows(seen, psn(), score, [2], name="psn", seed=4) if r["method"] == "random"]
    generator, each = torch.Generator().manual_seed(4), []
    for _ in range(5):
        picked = fs.random_frames(seen.mask, 2, generator)
        each.append(score(fs.video_logits(seen.logits, torch.ones(V, N), picked).numpy())["top1"])
    assert five["top1"] == pytest.approx(np.mean(each)) and len(set(each)) > 1
    (other,) = [r for r in method_rows(seen, psn(), score, [2], name="psn", seed=5) if r["method"] == "random"]
    assert other["top1"] != five["top1"]


def test_a_head_that_leaves_nothing_out_only_weighs(seen):
    rows = {r["method"]: r for r in method_rows(seen, psn(sampled=N), score, [N], name="psn")}
    assert "psn" not in rows
    assert rows["weighting only"]["top1"] == pytest.approx(top1_by_hand(seen, N, seen.scores, True))


def test_scsampler_averages(seen):
    head = create_head("scsampler", channels=4, classes=K, frames=N, sampled=3)
    rows = {r["method"]: r for r in method_rows(seen, head, score, [3], name="scsampler")}
    assert set(rows) == {"uniform", "random", "scsampler"}
    assert rows["scsampler"]["top1"] == pytest.approx(top1_by_hand(seen, 3, seen.scores, False))


def test_the_cost_of_each_way(seen):
    cost = {"gflops": VideoCost(recogniser=7.8, sampler=0.15, context=0.01)}
    rows = {r["method"]: r for r in method_rows(seen, psn(), score, [3, N], name="psn", cost=cost) if r["m"] == 3}
    frames, looked = rows["psn"]["frames"], float(seen.mask.sum(1).float().mean())
    assert rows["uniform"]["gflops"] == rows["random"]["gflops"] == pytest.approx(7.8 * frames)
    assert rows["uniform"]["gflops_sampler"] == rows["uniform"]["gflops_context"] == 0
    parts = [rows["psn"][f"gflops_{part}"] for part in ("sampler", "context", "recogniser")]
    assert parts == pytest.approx([0.15 * looked, 0.01, 7.8 * frames])
    assert rows["psn"]["gflops"] == rows["sampling only"]["gflops"] == pytest.approx(sum(parts))


def test_margins_hold_the_heads_own():
    assert margins(25, 10) == [1, 2, 4, 6, 8, 10, 15, 20, 25]
    assert margins(10, 7) == [1, 2, 4, 6, 7, 8, 10] and margins(1, 1) == [1]


# --- an adaptive M ---


def test_adaptive_m_is_one_frame_for_every_threshold():
    scores = torch.tensor([[0.9, 0.8, 0.1, 0.0], [0.2, 0.1, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.9, 0.9, 0.9, 0.9]])
    mask = torch.tensor([[True] * 4, [True] * 4, [True] * 4, [True, False, False, False]])
    assert fs.adaptive_m(scores, mask, 0.6).tolist() == [3, 1, 4, 1]  # 1.8, 0.3, 4.0 and 0.9 over 0.6
    assert fs.adaptive_m(scores, mask, 1.0).tolist() == [2, 1, 4, 1]
    assert fs.adaptive_m(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), 1e-9).tolist() == [1, 1]


def test_adaptive_never_looks_at_more_than_there_is(seen):
    there = seen.mask.sum(1)
    for threshold in (1e-30, 1e-3, 0.1, 0.5, 3, 1e30):
        m = fs.adaptive_m(seen.scores, seen.mask, threshold)
        assert (m >= 1).all() and (m <= there).all()
        picked = fs.select(seen.scores, m, seen.mask)
        assert (picked.sum(1) == m).all() and not (picked & ~seen.mask).any()
    assert (fs.adaptive_m(seen.scores, seen.mask, 1e-30) == there).all()
    assert there[1] == 1  # a video of one frame


@pytest.mark.parametrize("m", [1, 1.5, 2, 3.3, 4.5])
def test_calibration_meets_the_mean(seen, m):
    threshold = fs.calibrate(seen.scores, seen.mask, m)
    found = fs.adaptive_m(seen.scores, seen.mask, threshold).double().mean()
    assert found == pytest.approx(m, abs=1.01 / V)  # one video's step
    assert len(set(fs.adaptive_m(seen.scores, seen.mask, threshold).tolist())) > 1 or m == 1


def test_calibration_at_the_ends(seen):
    whole = float(seen.mask.sum(1).double().mean())
    assert (
        fs.adaptive_m(seen.scores, seen.mask, fs.calibrate(seen.scores, seen.mask, whole)) == seen.mask.sum(1)
    ).all()
    assert (fs.adaptive_m(seen.scores, seen.mask, fs.calibrate(seen.scores, seen.mask, 0.5)) == 1).all()
    one = torch.full((3, 1), 0.4), torch.ones(3, 1, dtype=torch.bool)
    assert fs.adaptive_m(*one, fs.calibrate(*one, 1)).tolist() == [1, 1, 1]
    nothing = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    assert fs.adaptive_m(*nothing, fs.calibrate(*nothing, 2)).tolist() == [1, 1]


def test_adaptive_looks_longer_at_videos_of_which_more_tells():
    """At equal mean cost: videos of which 2 or 8 frames tell, by themselves uncertain ones."""
    rng, n = np.random.default_rng(0), 400
    telling = np.arange(10) < np.where(np.arange(n) % 2, 2, 8)[:, None]
    labels = rng.integers(0, K, n)
    logits = rng.normal(size=(n, 10, K)) * 2
    logits[np.arange(n)[:, None], np.arange(10), labels[:, None]] += np.where(telling, 1.2, 0)
    made = Seen(
        torch.from_numpy(np.where(telling, 0.9, 0.05).astype(np.float32)),
        torch.from_numpy(logits.astype(np.float32)),
        torch.ones(n, 10, dtype=torch.bool),
    )
    thresholds = {5: fs.calibrate(made.scores, made.mask, 5)}

    def right(logits):
        return {"top1": metrics.topk_accuracy(logits, labels)[0]}

    head = psn(frames=10, sampled=5)
    rows = {r["method"]: r for r in method_rows(made, head, right, [5], name="psn", thresholds=thresholds)}
    assert rows["adaptive"]["frames"] == pytest.approx(rows["psn"]["frames"], abs=0.01)
    assert rows["adaptive"]["top1"] > rows["psn"]["top1"] + 0.02


def test_adaptive_divides_by_m_as_m_frames_each_are_divided(seen):
    """So that a video of whose frames few were picked does not look surer than the others."""
    found = []
    for thresholds in (None, {3: fs.calibrate(seen.scores, seen.mask, 2.5)}):
        list(method_rows(seen, psn(), lambda x: found.append(x) or {"n": 0.0}, [3], name="psn", thresholds=thresholds))
    adaptive = found[-1]
    m = fs.adaptive_m(seen.scores, seen.mask, thresholds[3])
    for v in (0, 1, 7):
        best = torch.where(seen.mask[v], seen.scores[v], -1.0).argsort(descending=True)[: int(m[v])]
        expected = sum(seen.scores[v, i] * seen.logits[v, i] for i in best) / 3
        np.testing.assert_allclose(adaptive[v], expected, rtol=1e-5)


# --- a run ---


LIGHT = {"name": "efficientnet_lite0", "options": {"resize": {"mode": "squash", "size": 32}}}
HEAVY = {
    "name": "efficientnet_lite0",
    "options": {"resize": {"mode": "squash", "size": 64}, "logits": True, "classes": CLASSES},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained PSN whose stores say which networks made them."""
    folder = tmp_path_factory.mktemp("run")
    pair = []
    for name, array, made in (("light", "vector", LIGHT), ("heavy", "logits", HEAVY)):
        lineage = KNOWS if array == "logits" else ()
        store = grid_store(folder / f"{name}.zarr", array, lineage=lineage, created_with=made)
        assert store.manifest.spec["created_with"] == made
        pair.append(store)
    return train(pair, folder / "psn", epochs=8)[0]


@pytest.fixture(scope="module")
def evaluated(run):
    return evaluate(run, "val", progress=False)


def test_evaluate_has_every_method_over_m(run, evaluated):
    rows = evaluated["methods"]
    methods = {row["method"] for row in rows}
    assert methods == {"uniform", "random", "dense", "sampling only", "psn", "adaptive"}
    assert {row["m"] for row in rows if row["method"] == "psn"} == {1, 2, 4, 6, 8}
    own = next(row for row in rows if (row["method"], row["m"]) == ("psn", QUICK["sampled"]))
    assert {name: own[name] for name in ("top1", "top5", "mAP")} == evaluated["noun"]
    assert json.loads((run / "metrics_val.json").read_text())["methods"] == rows
    with open(run / "accuracy_cost.csv", newline="") as lines:
        table = list(csv.DictReader(lines))
    assert [row["method"] for row in table] == [row["method"] for row in rows]
    assert [float(row["gflops"]) for row in table] == [row["gflops"] for row in rows]
    written = [str(run / "accuracy_cost.csv"), str(run / "pictures" / "accuracy_cost.png")]
    assert evaluated["written"] == written and all(Path(path).is_file() for path in written)


def test_a_run_keeps_thresholds_that_its_training_clips_gave(run):
    kept = json.loads((run / "adaptive.json").read_text())
    assert kept["clips"] == 18 and list(kept["thresholds"]) == [str(m) for m in range(1, QUICK["frames"] + 1)]
    values = list(kept["thresholds"].values())
    assert values == sorted(values, reverse=True) and values[-1] > 0
    opened = open_sampler(open_run(run), device="cpu")
    seen, _ = see(opened.model, opened.candidates, np.arange(18), device="cpu")
    for m, threshold in thresholds_of(opened).items():
        mean = fs.adaptive_m(seen.scores, seen.mask, threshold).double().mean()
        assert mean == pytest.approx(m, abs=1.01 / 18)
    (run / "adaptive.json").unlink()
    assert [str(m) for m in thresholds_of(opened)] == list(kept["thresholds"])
    assert json.loads((run / "adaptive.json").read_text()) == kept


def test_the_cost_of_a_run_is_that_of_its_stores_networks(run, evaluated):
    cost = evaluated["cost"]
    # EfficientNet-Lite0 has 0.384 GFLOPs at 224 pixels without its classifier, and all its convolutions scale.
    assert cost["sampler"]["gflops"] == pytest.approx(0.3839 * (32 / 224) ** 2, rel=0.01)
    assert cost["recogniser"]["gflops"] == pytest.approx(0.3839 * (64 / 224) ** 2, rel=0.01)
    assert all(cost[part]["seconds"] > 0 for part in ("sampler", "context", "recogniser"))
    assert cost["device"] == "cpu" and cost["cpu"] and cost["cores"] >= 1
    own = next(row for row in evaluated["methods"] if (row["method"], row["m"]) == ("psn", 2))
    expected = 8 * cost["sampler"]["gflops"] + cost["context"]["gflops"] + 2 * cost["recogniser"]["gflops"]
    assert own["gflops"] == pytest.approx(expected)
    assert own["seconds"] == pytest.approx(
        8 * cost["sampler"]["seconds"] + cost["context"]["seconds"] + 2 * cost["recogniser"]["seconds"]
    )


def test_stores_that_do_not_say_what_made_them_have_no_cost(tmp_path):
    pair = (grid_store(tmp_path / "a.zarr", "vector"), grid_store(tmp_path / "b.zarr", "logits", lineage=KNOWS))
    run, _ = train(pair, tmp_path / "run", epochs=1)
    found = evaluate(run, "val", progress=False)
    assert found["cost"]["sampler"] is None and found["cost"]["recogniser"] is None
    assert found["cost"]["context"]["gflops"] > 0 and video_costs(found["cost"]) is None
    assert not any("gflops" in row for row in found["methods"])
    assert (run / "pictures" / "accuracy_cost.png").is_file()  # over frames


def test_the_command_line_prints_a_table(run):
    result = CliRunner().invoke(main, ["evaluate", str(run)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["method", "M"])
    for name in ("top-1", "mAP", "frames", "GFLOPs", "sampler", "context", "recogniser", "seconds"):
        assert name in lines[head]
    methods = [line.split()[0] for line in lines[head + 1 :]]
    assert methods[:5] == ["uniform"] * 5 and {"psn", "adaptive", "dense"} <= set(methods)
    assert any(line.strip().startswith("cpu: ") for line in lines)
    written = f"{run / 'accuracy_cost.csv'}, {run / 'pictures' / 'accuracy_cost.png'}"
    assert lines[-1] == f"written: {written}"


# --- what papers print ---


def test_published_figures():
    by = {(p.method, p.dataset, p.input): (p.value, p.gflops) for p in published() if "table 5." in p.source}
    assert by["PSN", "activitynet", "ResNet-101 TSN"] == (82.3, 82.3)
    assert by["PSN", "activitynet", "ResNet-50 TSN"] == (78.3, 28.6)
    assert by["Uniform", "fcvid", "ResNet-101 frame-based"] == (80.4, 195.8)
    assert {p.method for p in published("mini_kinetics", "top1")} == {"LiteEval", "SCSampler", "ARNet", "PSN"}
    assert published("mini_kinetics", "mAP") == []


# --- pictures ---


def picture(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_published_points_are_drawn_over_ones_own(run, evaluated):
    plain = picture(accuracy_cost(open_run(run), evaluated))
    named = open_run(run)
    named.facts["dataset"]["name"] = "activitynet"
    beside = picture(accuracy_cost(named, evaluated))
    assert beside.shape != plain.shape or (beside != plain).any(axis=2).mean() > 0.02


def test_a_strip_frames_what_was_picked(tmp_path):
    frames = [np.full((12, 16, 3), 200, np.uint8)] * 20
    picked = np.arange(20) % 4 == 0
    path = strip(tmp_path / "some" / "s.png", frames, np.linspace(0, 1, 20), picked, "a video", np.arange(20) / 2)
    none = strip(tmp_path / "n.png", frames, np.linspace(0, 1, 20), ~picked & picked, "a video", np.arange(20) / 2)
    green = [((p[..., 1] > 140) & (p[..., 0] < 110) & (p[..., 2] < 130)).sum() for p in map(picture, (path, none))]
    assert green[0] > 500 and green[1] == 0
    scores = np.where(np.arange(20) == 1, np.nan, np.linspace(0, 1, 20))
    lost = strip(tmp_path / "l.png", frames, scores, picked, "a video", np.arange(20) / 2)
    changed = np.argwhere((picture(lost) != picture(path)).any(axis=2))
    assert len(changed) and 0 < changed[:, 1].min() and np.ptp(changed[:, 1]) < picture(path).shape[1] / 9  # one frame
    for wrong in ((frames[:3], [1, 2]), ([], [])):
        with pytest.raises(ValueError, match="frames need as many scores"):
            strip(tmp_path / "w.png", wrong[0], wrong[1], picked[: len(wrong[1])], "a video")
    assert not (tmp_path / "w.png").exists()


def test_pictures_of_a_run(run):
    asked = []

    def frame_at(video, time_s):
        asked.append((video, time_s))
        return np.full((12, 16, 3), 90, np.uint8)

    paths = sampler_pictures(open_run(run), 2, frame_at=frame_at, split="val")
    assert [path.name for path in paths] == ["sampling.png", "strip_c18.png", "strip_c23.png"]
    middles = np.floor((np.arange(8) + 0.5) * 20 / 8) / 2
    assert asked == [(video, time) for video in ("v18", "v23") for time in middles]
    assert all(picture(path).std() > 5 for path in paths)
    assert len(sampler_pictures(open_run(run), 2, frame_at=None, split="val")) == 1
    with pytest.raises(UserError, match="no clip is in split 'test'"):
        sampler_pictures(open_run(run), 2, frame_at=None, split="test")
