"""Runs at once: scores written and fused, the table over seeds, sweeps, trainings done again."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from frame_samples import colour_dataset, colour_frames
from run_files import metrics_of
from synthetic_stores import NOUNS, VERBS, all_stores, clip_store, clips_table

from cli import main
from errors import MachineError, UserError
from heads.metrics import softmax, topk_accuracy
from pipelines import evaluate, train_head
from pipelines import sweep as sweep_module
from pipelines.base_training import train_backbone
from pipelines.evaluation import Place
from pipelines.prediction import filled, fuse, fused_scores, predict
from pipelines.recogniser_training import train_recogniser
from pipelines.reproduce import find_by_recipe, reproduce
from pipelines.run_folder import open_run
from pipelines.runs_table import as_csv, as_latex, as_text, find_runs, runs_table
from pipelines.sweep import grid_of, seeds_of, sweep

pytestmark = [
    pytest.mark.filterwarnings("ignore::extract.weights.RandomWeightsWarning"),
    pytest.mark.usefixtures("one_thread"),
]
QUICK = {"lr": 0.1, "last_lr": 0.01, "batch_size": 8}


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return all_stores(tmp_path_factory.mktemp("features") / "toy")


def train(stores, out, seed=0, head="whole_frame", **options):
    options = {"epochs": 1, "set": QUICK, "progress": False, "say": lambda line: None, **options}
    given = {role: stores[role] for role in ("verb", "noun", *(("objects",) if head == "saoa" else ()))}
    return train_head(head, **given, out=out, seed=seed, **options)


@pytest.fixture(scope="module")
def runs(stores, tmp_path_factory):
    """Three seeds of the baseline, and one SAOA."""
    root = tmp_path_factory.mktemp("runs")
    trained = [train(stores, root / f"whole-s{seed}", seed) for seed in range(3)]
    return [*trained, train(stores, root / "saoa", head="saoa")]


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


# --- predict ---


def test_scores_are_what_evaluate_looks_at(runs):
    facts = predict(runs[0], progress=False)
    with np.load(facts["file"], allow_pickle=False) as file:
        scores = {name: file[name] for name in file.files}
    assert scores["labels"].tolist() == ["verb", "noun"] and str(scores["dataset"]) == "toy"
    assert scores["verb"].dtype == np.float32 and scores["verb"].shape == (10, VERBS)
    table = clips_table(4)
    place = {clip: i for i, clip in enumerate(table["id"])}
    which = [place[clip] for clip in scores["ids"]]
    assert set(table["split"][which]) == {"val"} and scores["predicted"].all() and facts["filled"] == []
    kept = metrics_of(runs[0])
    for name in ("verb", "noun"):
        assert topk_accuracy(scores[name], table[name][which]) == [kept[name]["top1"], kept[name]["top5"]]


def test_clips_without_features_get_the_training_prior_and_are_listed(tmp_path):
    store = clip_store(tmp_path, failed=[91, 93], pending=[95])
    run = train({"verb": store, "noun": store}, tmp_path / "run", allow_incomplete=True)
    with pytest.raises(UserError, match="pending"):
        predict(run, progress=False)
    result = command("predict", run, "--allow-incomplete", "--json")
    facts = json.loads(result.stdout)
    ids, table = list(clips_table(4)["id"]), clips_table(4)
    assert result.exit_code == 0 and facts["coverage"] == pytest.approx(0.7) and len(facts["filled"]) == 3
    with np.load(facts["file"], allow_pickle=False) as file:
        assert file["ids"][~file["predicted"]].tolist() == facts["filled"] and set(facts["filled"]) <= set(ids)
        count = np.bincount(table["noun"][table["split"] == "train"], minlength=NOUNS)
        expected = (count + 1) / (count.sum() + NOUNS)
        np.testing.assert_allclose(np.exp(file["noun"][~file["predicted"]]), np.tile(expected, (3, 1)), rtol=1e-5)
        assert np.isfinite(file["verb"]).all()


def test_only_rows_that_lack_a_score_are_filled():
    scores = {"verb": np.array([[1.0, 2.0], [np.nan, np.nan]], np.float32)}
    out, predicted = filled(scores, {"verb": np.array([3, 0])})
    assert predicted.tolist() == [True, False] and out["verb"][0].tolist() == [1, 2]
    np.testing.assert_allclose(np.exp(out["verb"][1]), [0.8, 0.2], rtol=1e-6)


# --- fuse ---


def test_fused_scores_are_the_mean_of_softmax_scores():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 4, 3))
    other[1] = np.nan
    one[2] = other[2] = np.nan
    found = np.exp(fused_scores([{"verb": one}, {"verb": other}], np.array([0.75, 0.25]))["verb"])
    np.testing.assert_allclose(found[0], 0.75 * softmax(one[0]) + 0.25 * softmax(other[0]), rtol=1e-12)
    np.testing.assert_allclose(found[1], softmax(one[1]), rtol=1e-12)  # the run that has it
    assert np.isnan(found[2]).all()


def test_a_run_fused_with_itself_keeps_its_figures(runs, tmp_path):
    alone, found = evaluate(runs[3], progress=False), fuse([runs[3], runs[3]], progress=False)
    for name in ("verb", "noun", "action"):
        assert found[name] == alone[name] == found["alone"][str(runs[3])][name]
    result = command("fuse", runs[0], runs[3], "--weights", "0,2", "--out", tmp_path / "both.npz", "--json")
    printed = json.loads(result.stdout)
    assert result.exit_code == 0 and printed["weights"] == [0, 1] and printed["noun"] == alone["noun"]
    assert printed["coverage"] == 1 and set(printed["alone"]) == {str(runs[0]), str(runs[3])}
    with np.load(tmp_path / "both.npz", allow_pickle=False) as file:
        assert str(file["run"]) == "whole-s0 + saoa" and file["noun"].shape == (10, NOUNS)


def gone(run, to, role="verb"):
    """A copy of a run whose store of this role is not where run.json says."""
    run = shutil.copytree(run, to)
    facts = json.loads((run / "run.json").read_text())
    facts["stores"][role]["path"] = str(to / "gone.zarr")
    (run / "run.json").write_text(json.dumps(facts))
    return run


def test_runs_are_fused_whose_stores_have_moved(stores, runs, tmp_path):
    one, other = (gone(run, tmp_path / name) for run, name in ((runs[0], "one"), (runs[3], "other")))
    expected = fuse([runs[0], runs[3]], progress=False)
    figures = {name: expected[name] for name in ("verb", "noun", "action")}
    with pytest.raises(UserError, match="one: its verb store is not at .*gone.zarr any more.* fuse, plot"):
        fuse([one, other], progress=False)
    place = stores["verb"].path

    def fused(*options):
        result = command("fuse", one, other, *options, "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        return {name: found[name] for name in figures}

    assert fused("--verb", place) == fused("--store", f"verb={place}") == figures
    assert fused("--store", f"{one}:verb={place}", "--store", f"{other}:verb={place}") == figures
    # What is said of one run counts before what is said of all.
    wrong = clip_store(tmp_path / "wrong", weights="other")
    assert fused("--verb", place, "--store", f"{one}:verb={place}") == figures
    result = command("fuse", one, other, "--verb", place, "--store", f"{other}:verb={wrong.path}")
    assert result.exit_code == 2 and f"is not what {other} was trained on (verb)" in result.output
    # A role that one of them has is that run's; one that none has is a mistake.
    assert fused("--verb", place, "--objects", stores["objects"].path) == figures
    with pytest.raises(UserError, match="none of the runs to fuse reads a store of role sampler"):
        fuse([one, other], stores={"verb": place, "sampler": place}, progress=False)
    with pytest.raises(UserError, match="which is not among the runs to fuse"):
        fuse([one, other], stores_of={runs[1]: {"verb": place}}, progress=False)
    twice = ["--store", f"{one}:verb={place}"] * 2
    for options in (twice, ["--verb", place, "--store", f"verb={place}"]):
        result = command("fuse", one, other, *options)
        assert result.exit_code == 2 and "is given twice" in result.output


def test_a_run_of_a_folder_named_by_its_settings_is_told_apart(stores, runs, tmp_path):
    one, other = (gone(runs[i], tmp_path / name) for i, name in ((0, "whole-lr=0.1-s0"), (1, "whole-lr=0.1-s0:b")))
    given = [part for run in (one, other) for part in ("--store", f"{run}:verb={stores['verb'].path}")]
    result = command("fuse", one, other, *given, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["action"] == fuse(runs[:2], progress=False)["action"]


def test_fused_figures_beside_what_papers_print_of_several_networks(tmp_path):
    trained = []
    for name, seed in (("rgb", 0), ("flow", 1)):
        store = clip_store(tmp_path / name, dataset="epic55", draws=0, seed=seed)
        trained.append(train({"verb": store, "noun": store}, tmp_path / f"run_{name}"))
    plain = command("fuse", *trained)
    assert plain.exit_code == 0 and "thesis" not in plain.stdout
    done = command("fuse", *trained, "--published")
    assert done.exit_code == 0 and done.stdout.startswith(plain.stdout)
    assert "ours: run_rgb + run_flow" in done.stdout
    assert {"3.4", "3.5", "4.2"} <= {
        line.split()[2] for line in done.stdout.splitlines() if line.startswith("thesis table")
    }
    facts = json.loads(command("fuse", *trained, "--published", "--json").stdout)
    assert facts["published"] and all("RGB+Flow" in row["input"] for row in facts["published"])
    ours = 100 * facts["noun"]["top1"]
    (row,) = [row for row in facts["published"] if row["source"] == "thesis table 3.4" and row["metric"] == "noun.top1"]
    assert row == {
        "source": "thesis table 3.4", "method": "SAOA", "input": "I3D RGB+Flow+Obj", "metric": "noun.top1",
        "ours": ours, "theirs": 37.4, "difference": ours - 37.4, "note": "",
    }  # fmt: skip
    elsewhere = clip_store(tmp_path / "mine", dataset="mine")
    run = train({"verb": elsewhere, "noun": elsewhere}, tmp_path / "of_mine")
    done = command("fuse", run, run, "--published")
    assert done.exit_code == 0 and "no paper here prints figures of several networks of split val" in done.stdout


def test_runs_that_cannot_be_fused(stores, runs, tmp_path):
    for weights, match in (([1], "1 weights for 2 runs"), ([0, 0], "not all 0"), ([1, -1], "from 0 on")):
        with pytest.raises(UserError, match=match):
            fuse(runs[:2], weights=weights, progress=False)
    with pytest.raises(UserError, match="at least two runs"):
        fuse(runs[:1], progress=False)
    with pytest.raises(UserError, match="was trained on toy train, which holds 30 of these clips"):
        fuse(runs[:2], "train", progress=False)
    larger = all_stores(tmp_path / "larger", videos=8)
    other = train(larger, tmp_path / "other")
    with pytest.raises(UserError, match=r"score different clips: 10 clips only in .*whole-s0 .first: .*, 20 only in"):
        fuse([runs[0], other], progress=False)
    table = clips_table(4)
    table["noun"][-1] = (table["noun"][-1] + 1) % NOUNS
    named = clip_store(tmp_path / "named", clips=table)
    with pytest.raises(UserError, match="disagree on noun of 1 clip "):
        fuse([runs[0], train({"verb": named, "noun": named}, tmp_path / "relabelled")], progress=False)
    elsewhere = clip_store(tmp_path / "elsewhere", dataset="other")
    with pytest.raises(UserError, match="is of toy, .* of other"):
        fuse([runs[0], train({"verb": elsewhere, "noun": elsewhere}, tmp_path / "elsewhere_run")], progress=False)


# --- runs table ---


def test_seeds_of_equal_runs_are_one_row(runs):
    saoa, whole = runs_table(find_runs([runs[0].parent]))
    assert (saoa.trained, whole.trained, whole.seeds, whole.features) == ("saoa", "whole_frame", (0, 1, 2), "frozen")
    values = [metrics_of(run)["noun"]["top1"] for run in runs[:3]]
    assert whole.mean("noun top1") == pytest.approx(np.mean(values))
    assert whole.deviation("noun top1") == pytest.approx(np.std(values, ddof=1)) and np.isnan(
        saoa.deviation("noun top1")
    )
    text = as_text([saoa, whole]).splitlines()
    assert text[0].split()[:4] == ["trained", "features", "dataset", "fit"] and "0-2" in text[2]
    assert f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}" in text[2]
    first, second = csv.DictReader(io.StringIO(as_csv([saoa, whole])))
    assert float(second["noun top1"]) == pytest.approx(np.mean(values)) and first["noun top1 std"] == ""
    assert second["n"] == "3" and second["runs"].split() == [str(run) for run in runs[:3]]
    latex = as_latex([saoa, whole])
    assert r"whole\_frame & frozen & toy & train & 0-2" in latex and r" \pm " in latex and latex.count("&") == 3 * 7


def test_what_differs_is_said_and_what_is_unfinished(stores, runs, tmp_path):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        train(stores, tmp_path / name, set={**QUICK, "lr": lr})
    shutil.copytree(tmp_path / "a", tmp_path / "a-again")  # the same seed: counts once
    shutil.copytree(tmp_path / "b", tmp_path / "begun")
    (tmp_path / "begun" / "metrics.json").unlink()
    one, other = runs_table(find_runs([tmp_path]))
    assert (one.settings, one.seeds, one.unfinished) == ({"lr": 0.1}, (0,), 0)
    assert (other.settings, other.seeds, other.unfinished) == ({"lr": 0.2}, (0,), 1)
    result = command("runs", "table", tmp_path)
    assert result.exit_code == 0 and "lr=0.2" in result.stdout and "0 (1 unfinished)" in result.stdout
    assert command("runs", "table", tmp_path, "--csv").stdout.startswith("trained,settings,features")
    assert command("runs", "table", tmp_path / "none").exit_code == 2


def test_features_of_other_seeds_of_a_network_count_as_the_same_on_request(tmp_path):
    trained = {"dataset": "toy", "split": "train", "classes": 3, "targets": ["verb"]}
    for seed in (0, 1):
        store = clip_store(tmp_path / f"f{seed}", weights=f"of seed {seed}", lineage=[trained])
        train({"verb": store, "noun": store}, tmp_path / f"s{seed}", seed)
    found = find_runs([tmp_path / "s0", tmp_path / "s1"])
    assert [row.seeds for row in runs_table(found)] == [(0,), (1,)]
    assert [row.seeds for row in runs_table(found, across_weights=True)] == [(0, 1)]


# --- sweep ---


def test_grids_and_seeds():
    assert seeds_of("0-2,7,1") == [0, 1, 2, 7]
    assert grid_of([]) == [{}] and grid_of(["lr=1,2", "a=x"]) == [{"lr": "1", "a": "x"}, {"lr": "2", "a": "x"}]
    for wrong in ("", "3-1", "-1", "one", "1-"):
        with pytest.raises(UserError, match="write seeds such as"):
            seeds_of(wrong)
    with pytest.raises(UserError, match="given twice"):
        grid_of(["lr=1", "lr=2"])


def test_a_sweep_goes_on_and_one_failure_does_not_stop_it(stores, tmp_path, monkeypatch):
    options = {"verb": stores["verb"], "noun": stores["noun"], "epochs": 1, "progress": False}
    begun, fails = [], {"s1"}

    def trains(head, *, out, **given):
        begun.append(out.name)
        if out.name.rpartition("-")[2] in fails and "lr=0.2" in out.name:
            raise MachineError("made to fail")
        return train_head(head, out=out, **given)

    monkeypatch.setattr(sweep_module, "train_head", trains)
    settings = ["lr=0.1,0.2", "batch_size=8"]
    said: list[str] = []
    done = sweep("whole_frame", seeds=[0, 1], settings=settings, out=tmp_path, say=said.append, **options)
    assert begun == [f"whole_frame-lr={lr}-s{seed}" for lr in ("0.1", "0.2") for seed in (0, 1)]
    assert [run.name for run in done.runs] == [begun[0], begun[1], begun[2]]
    assert {run.name: why for run, why in done.failed.items()} == {begun[3]: "made to fail"}
    fails.clear()
    said.clear()
    done = sweep("whole_frame", seeds=[0, 1], settings=settings, out=tmp_path, say=said.append, **options)
    assert len(done.runs) == 4 and not done.failed and sum("nothing to do" in line for line in said) == 3
    first, second = runs_table(find_runs(done.runs))
    assert (first.settings, first.seeds, second.settings) == ({"lr": 0.1}, (0, 1), {"lr": 0.2})


def test_the_sweep_command(stores, tmp_path):
    given = ["--verb", stores["verb"].path, "--noun", stores["noun"].path, "--epochs", 1, "--out", tmp_path]
    result = command("sweep", "whole_frame", "--seeds", "0-1", "--set", "normalise=true,false", *given)
    assert result.exit_code == 0 and result.stdout.count("whole_frame") == 2 and "normalise=False" in result.stdout
    for wrong, says in (("lr=0.1,fast", "lr is a number"), ("normalize=true", "near it are normalise; ")):
        result = command("sweep", "whole_frame", "--set", wrong, *given)
        assert result.exit_code == 2 and says in result.output
    assert not list(tmp_path.glob("whole_frame-s*"))
    taken = command("sweep", "whole_frame", "--seeds", "0", "--set", "normalise=true,false", *given, "--epochs", 2)
    assert taken.exit_code == 1 and "holds another training" in taken.output  # of both


def test_a_sweep_refuses_what_no_head_of_its_grid_can_be_made_with(tmp_path, monkeypatch):
    trained: list[Path] = []
    monkeypatch.setattr(sweep_module, "train_head", lambda head, *, out, **given: trained.append(out))

    def swept(head, *settings, **options):
        trained.clear()
        sweep(head, seeds=[0], settings=settings, out=tmp_path, say=lambda line: None, **options)
        return [out.name for out in trained]

    for head, settings, says in (
        ("psn", ["sampled=99"], "sampled=99 is more than the frames=25"),
        ("psn", ["sampled=2,99"], "sampled=99 is more than the frames=25"),
        ("whole_frame", ["streams=own,none"], "streams must be one of"),
        ("saoa", ["reduction=0"], "reduction must be at least 1"),
        ("t2vlad", ["margin=-1"], "margin must be a number from 0 on"),
        ("ipl", ["decay_every=9", "last_epochs=3"], "decay_every divides the rate"),
    ):
        with pytest.raises(UserError, match=says):
            swept(head, *settings)
        assert not trained
    with pytest.raises(UserError, match="epochs must be at least 1"):
        swept("psn", epochs=0)
    for head, key in (("psn", "classes"), ("scsampler", "multi_label"), ("t2vlad", "text_channels")):
        with pytest.raises(UserError, match=f"--set {key}: no such setting; .*there are (?!.*{key}).*lr") as refused:
            swept(head, f"{key}=7")
        assert "channels" not in str(refused.value).split("there are")[1]
    # One combination of these is impossible, but every value goes with another.
    assert len(swept("psn", "sampled=5,20", "frames=10,25")) == 4
    # Sizes that the stores decide are no reason to refuse, nor are rates that only some features go with.
    for head, setting in (("saoa", "reduction=3"), ("ipl", "top_k=50"), ("ipl", "decay_every=9"), ("ce", "width=64")):
        assert swept(head, setting) == [f"{head}-s0"]


# --- reproduce ---


def test_a_head_is_reproduced_to_the_bit(stores, runs, tmp_path):
    found = reproduce(runs[3], out=tmp_path / "again", progress=False, say=lambda line: None)
    assert found.identical and not found.different and found.figures["noun top1"][0] is not None
    assert (open_run(found.again).facts["head"], found.tolerance) == (open_run(runs[3]).facts["head"], 0.005)
    before = metrics_of(runs[3])
    assert all(before[name] == metrics_of(found.again)[name] for name in ("verb", "noun", "action", "loss"))


def test_a_difference_is_named_and_ends_with_1(runs, tmp_path):
    run = shutil.copytree(runs[0], tmp_path / "run")
    figures = metrics_of(run)
    figures["noun"]["top1"] += 0.1
    (run / "metrics.json").write_text(json.dumps(figures))
    result = command("reproduce", run, "--json")
    printed = json.loads(result.stdout)
    assert result.exit_code == 1 and printed["different"] == ["noun top1"] and printed["identical"]
    result = command("reproduce", run, "--tolerance", "0.2")
    assert result.exit_code == 0 and "reproduced within 0.2" in result.stdout
    with pytest.raises(UserError, match="is the run itself"):
        reproduce(run, out=run)
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match="its training has not ended"):
        reproduce(run)


def test_stores_are_found_by_recipe(tmp_path):
    stores = all_stores(tmp_path / "features" / "toy")
    run = open_run(train(stores, tmp_path / "run"))
    moved = shutil.move(stores["verb"].path, tmp_path / "features" / "toy" / "renamed.zarr")
    assert str(find_by_recipe(run, "verb", [tmp_path / "features"]).path) == str(moved)
    shutil.rmtree(moved)
    clip_store(tmp_path / "features" / "toy", weights="other")
    with pytest.raises(UserError, match="no store of toy under .* has its recipe and rows; say where it is .* --verb"):
        find_by_recipe(run, "verb", [tmp_path / "features"])


@pytest.mark.parametrize("written", [True, False], ids=["rows in run.json", "a run from before"])
def test_a_store_of_other_rows_is_not_taken_for_the_one_that_is_gone(tmp_path, written):
    folder = tmp_path / "features" / "toy"
    stores = all_stores(folder)
    run = train(stores, tmp_path / "run")
    if not written:
        facts = json.loads((run / "run.json").read_text())
        for fact in facts["stores"].values():
            del fact["rows"]
        (run / "run.json").write_text(json.dumps(facts))
    kept = shutil.move(stores["verb"].path, tmp_path / "kept.zarr")
    picked = clip_store(folder, file="another", frames={"segments": 3}, seed=1)
    again = {
        "out": tmp_path / "again",
        "features": [tmp_path / "features"],
        "progress": False,
        "say": lambda line: None,
    }
    with pytest.raises(UserError, match="verb store is not at .*say where it is with --verb PATH"):
        reproduce(run, **again)
    with pytest.raises(UserError, match="another.zarr has other rows than the verb store"):
        reproduce(run, stores={"verb": picked.path}, **again)
    assert not again["out"].exists()
    assert reproduce(run, stores={"verb": kept, "noun": kept}, **again).identical


def test_base_trainings_are_reproduced(tmp_path):
    colour_dataset(tmp_path)
    frames = colour_frames(tmp_path)
    small = {"batch_size": 6, "workers": 1, "dropout": 0.0}
    quiet = {"epochs": 1, "progress": False, "say": lambda line: None, "frames": frames, "set": small}
    size = 'resize={"mode":"squash","size":32}'
    option = [size, "clip_len=8", "fps=12.5"]
    runs = [
        train_backbone("tiny3d", weights="random:0", option=option, out=tmp_path / "both", **quiet),
        train_backbone("tiny3d", weights=str(tmp_path / "both"), target="verb", out=tmp_path / "verb", **quiet),
        train_backbone("tiny3d", weights="random:0", option=option, head="ipl", out=tmp_path / "ipl",
                       **{**quiet, "set": {**small, "top_k": 2}}),
        train_recogniser("shufflenet_v2", target="noun", weights="random:0", out=tmp_path / "tsn",
                         **{**quiet, "set": {**small, "test_segments": 3}}),
    ]  # fmt: skip
    for run in runs:
        found = reproduce(run, progress=False, say=lambda line: None)
        assert found.identical and not found.different, run
    shutil.move(tmp_path / "both", tmp_path / "elsewhere")
    with pytest.raises(UserError, match="began with the weights of the run both: say where it is with --weights"):
        reproduce(runs[1], out=tmp_path / "no", progress=False)
    with pytest.raises(UserError, match="this would be another training than .*: network.origin"):
        reproduce(runs[1], out=tmp_path / "other", weights=str(tmp_path / "ipl"), progress=False)
    assert not (tmp_path / "no").exists() and not (tmp_path / "other").exists()
    facts = predict(runs[3], progress=False)
    assert facts["labels"] == {"noun": 3} and facts["clips"] == 6
    with pytest.raises(UserError, match="runs to fuse name the same classes"):
        fuse([runs[1], runs[3]], progress=False, place=Place())
