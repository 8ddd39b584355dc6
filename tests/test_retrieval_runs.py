"""What is done with retrieval runs: evaluated as validated, predicted, in the table, again, from moved stores."""

import csv
import io
import json
import re
import shutil
import threading

import numpy as np
import pytest
from click.testing import CliRunner
from retrieval_samples import TRAIN, N, retrieval_features, run_of, small_text_network

from cli import main
from errors import UserError
from heads.retrieval_metrics import retrieval
from pipelines import evaluate
from pipelines.prediction import predict
from pipelines.reproduce import reproduce
from pipelines.run_folder import open_run
from pipelines.runs_table import as_csv, as_latex, as_text, find_runs, runs_table
from stores.serve import make_server

pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = {"epochs": 1}
ROLES = {"rgb": "rgb", "audio": "audio", "text": "words"}  # {role: name of its store}


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return retrieval_features(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def runs(features, tmp_path_factory):
    """Two seeds of one training and a baseline."""
    root = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        run_of(features, root / f"t2vlad-s{seed}", set=QUICK, seed=seed)
    run_of(features, root / "global", "global_only", set=QUICK)
    return root


def command(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def figures_of(run):
    kept = json.loads((run / "metrics.json").read_text())
    return {way: kept[way] for way in ("t2v", "v2t")}


# --- figures ---


def test_evaluation_is_in_the_precision_of_the_validation(features, tmp_path):
    run = run_of(features, tmp_path / "run", set={"epochs": 3, "precision": "bf16"})
    again = evaluate(run, "val", progress=False)
    assert {way: again[way] for way in ("t2v", "v2t")} == figures_of(run)
    with np.load(predict(run, progress=False)["file"], allow_pickle=False) as file:
        rounded = file["similarity"]
        assert retrieval(rounded, file["clip"]) == figures_of(run)
    facts = json.loads((run / "run.json").read_text())
    facts["training"]["precision"] = "fp32"
    (run / "run.json").write_text(json.dumps(facts))
    with np.load(predict(run, progress=False)["file"], allow_pickle=False) as file:
        error = np.nanmax(np.abs(file["similarity"] - rounded))
    assert 1e-5 < error < 0.05  # it was bfloat16 before


def test_figures_are_the_same_whether_similarities_are_kept_or_asked_for_twice(runs, monkeypatch):
    from pipelines import retrieval_model

    monkeypatch.setattr(retrieval_model, "KEEP_BYTES", 0)
    again = evaluate(runs / "t2vlad-s0", "val", progress=False)
    assert {way: again[way] for way in ("t2v", "v2t")} == figures_of(runs / "t2vlad-s0")


def test_predicted_similarities_are_those_of_the_figures(runs, tmp_path):
    result = command("predict", runs / "t2vlad-s0", "--json", "--out", tmp_path / "s.npz")
    facts = json.loads(result.stdout)
    assert result.exit_code == 0 and (facts["texts"], facts["videos"]) == (12, 6)
    assert facts["coverage"] == pytest.approx(5 / 6)
    with np.load(tmp_path / "s.npz", allow_pickle=False) as file:
        assert file["ids"].tolist() == [f"c{i}" for i in range(TRAIN, N)]
        assert file["similarity"].dtype == np.float32 and np.isnan(file["similarity"][:, 2]).all()
        assert all(said.startswith(("a ", "the ")) for said in file["captions"].tolist())
        assert retrieval(file["similarity"], file["clip"]) == figures_of(runs / "t2vlad-s0")
        assert str(file["split"]) == "val" and str(file["dataset"]) == "toy"
    folder = command("predict", runs / "t2vlad-s0", "--out", tmp_path)
    assert folder.exit_code == 2 and "name a file in it" in folder.output


def test_a_run_is_known_by_its_name_from_inside_too(features, tmp_path, monkeypatch):
    run = run_of(features, tmp_path / "run", set=QUICK)
    (run / "deeper").mkdir()
    for inside, name in ((run, "."), (run / "deeper", "..")):
        monkeypatch.chdir(inside)
        assert open_run(name).path == run
        result = command("predict", name)
        assert result.exit_code == 0, result.output
        with np.load(run / "scores_val.npz", allow_pickle=False) as file:
            assert str(file["run"]) == "run"
    again = command("reproduce", "..", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["identical"]
    assert {path.name for path in tmp_path.iterdir()} == {"run", "run-again"}


# --- the table ---


def test_the_table_shows_recalls_and_ranks(runs):
    rows = runs_table(find_runs([runs]))
    assert [(row.trained, row.seeds) for row in rows] == [("global_only", (1,)), ("t2vlad", (0, 1))]
    kept = [figures_of(runs / f"t2vlad-s{seed}") for seed in range(2)]
    recall, rank = ([one["t2v"][name] for one in kept] for name in ("R@5", "MdR"))
    text = as_text(rows)
    head, *_, line = [line for line in text.splitlines() if line][:-1]
    shown = ["R@1", "R@5", "R@10", "MdR"]
    assert head.split()[-16:] == [part for way in ("t2v", "v2t") for name in shown for part in (way, name)]
    assert f"{np.mean(recall):.1f} ± {np.std(recall, ddof=1):.1f}" in line
    assert f"{np.mean(rank):.1f} ± {np.std(rank, ddof=1):.1f}" in line
    assert text.endswith("percent, but MdR: a rank; mean ± standard deviation (n - 1) over the seeds")
    (one, other) = csv.DictReader(io.StringIO(as_csv(rows)))
    assert other["trained"] == "t2vlad" and one["t2v R@1 std"] == ""
    assert float(other["t2v R@5"]) == pytest.approx(np.mean(recall) / 100)  # shares, as of every head
    assert float(other["t2v MdR"]) == pytest.approx(np.mean(rank))
    assert {"v2t R@50", "v2t MnR", "text_coverage"} <= other.keys() and not {"texts", "experts rgb"} & other.keys()
    latex = as_latex(rows)
    assert "t2v R@1 & t2v R@5" in latex and rf"${np.mean(rank):.1f} \pm" in latex


def test_the_command_prints_it(runs):
    for form, mark in ((), "percent, but MdR"), (("--csv",), "t2v R@1 std"), (("--latex",), r"\toprule"):
        result = command("runs", "table", runs, *form)
        assert result.exit_code == 0 and mark in result.output and "v2t MdR" in result.output


# --- stores that have moved ---


@pytest.fixture
def moved(features, runs, tmp_path):
    """(a run whose stores are gone from where they were, options that say where each is now)."""
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(features, old)
    run = run_of(old, tmp_path / "run", set=QUICK)
    old.rename(new)
    return run, [f"--store={role}={new / 'toy' / name}.zarr" for role, name in ROLES.items()]


def test_commands_take_the_stores_new_places(moved):
    run, options = moved
    for arguments in (("evaluate", run), ("predict", run), ("plot", run, "--what", "ranking", "--clips", 1)):
        lost = command(*arguments)
        assert lost.exit_code == 2 and "say where it is now with --store text=PATH" in str(lost.output)
        found = command(*arguments, *options)
        assert found.exit_code == 0, found.output
    assert evaluate(run, progress=False, stores=_places(options))["t2v"] == figures_of(run)["t2v"]
    half = command("evaluate", run, *options[:-1])
    assert half.exit_code == 2 and "--store text=PATH" in half.output


def test_stores_may_lie_at_the_other_end_of_a_network(features, runs, tmp_path):
    server = make_server(features, log=lambda line: None)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    places = {role: f"{server.url}toy/{name}.zarr" for role, name in ROLES.items()}
    try:
        result = command("evaluate", runs / "t2vlad-s0", *(f"--store={role}={url}" for role, url in places.items()))
        assert result.exit_code == 0, result.output
        text = places.pop("text")
        run = run_of(features, tmp_path / "run", experts=places, text=text, roots=[], set=QUICK, seed=0)
        told = {role: fact["path"] for role, fact in open_run(run).facts["stores"].items()}
        assert told == places | {"text": text} and figures_of(run) == figures_of(runs / "t2vlad-s0")
        again = evaluate(run, "val", progress=False)
        assert {way: again[way] for way in ("t2v", "v2t")} == figures_of(run)
        (tmp_path / "nothing").mkdir()
        assert reproduce(run, features=[tmp_path / "nothing"], progress=False, say=lambda line: None).identical
    finally:
        server.shutdown()
        server.server_close()


def _places(options):
    return dict(option.removeprefix("--store=").split("=", 1) for option in options)


def test_a_wrong_place_is_refused(moved):
    run, options = moved
    for wrong, match in (
        (["--store", "rgb"], "is not ROLE=PATH"),
        (["--store", "rgb=/nowhere.zarr"], "does not exist"),
        ([*options, "--verb", _places(options)["rgb"]], "reads no verb store"),
        ([*options, options[0].replace("=rgb=", "=face=")], "reads no face store"),
        ([options[0], options[0].replace("=rgb=", "=audio="), options[2]], r"rgb.zarr is not what .* \(audio\)"),
        ([options[0], "--verb", _places(options)["rgb"], "--store", f"verb={_places(options)['rgb']}"], "given twice"),
    ):
        result = command("evaluate", run, *wrong)
        assert result.exit_code == 2, wrong
        assert re.search(match, result.output), (match, result.output)


def test_a_training_goes_on_where_its_stores_are_now(moved):
    run, options = moved
    places, lines = _places(options), []
    experts = {role: path for role, path in places.items() if role != "text"}
    run_of(run, run, experts=experts, text=places["text"], roots=[], set=QUICK, say=lines.append)
    assert any("already trained" in line for line in lines)
    assert open_run(run).facts["stores"]["rgb"]["path"] == places["rgb"]
    assert command("evaluate", run).exit_code == 0


def test_a_run_is_reproduced_where_its_stores_are_now(moved, tmp_path):
    run, options = moved
    (tmp_path / "nothing").mkdir()
    lost = command("reproduce", run, "--features", tmp_path / "nothing")
    assert lost.exit_code == 2 and "say where it is with --store text=PATH" in lost.output
    result = command("reproduce", run, *options, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["identical"] and found["different"] == []
    assert found["figures"]["t2v R@1"][0] == pytest.approx(figures_of(run)["t2v"]["R@1"] / 100)
    by_recipe = reproduce(run, out=tmp_path / "third", features=[tmp_path / "new"], progress=False, say=lambda line: 0)
    assert by_recipe.identical
    with pytest.raises(UserError, match="give another folder"):
        reproduce(run, out=run, stores=_places(options), say=lambda line: 0)


def test_a_run_with_its_text_network_is_reproduced(features, tmp_path):
    network = small_text_network(tmp_path / "bert")
    run = run_of(features, tmp_path / "run", text=network, set={"epochs": 1, "text_tokens": 6, "preset": "released"})
    assert reproduce(run, progress=False, say=lambda line: None).identical
