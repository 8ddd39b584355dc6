"""Submission files of the EPIC challenges: what is written, what the checker says, and both against each other."""

import json
import math
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from click.testing import CliRunner

from commands.submit import submit as command
from errors import UserError
from heads import metrics
from pipelines import train_head
from pipelines.evaluation import Place, evaluate
from pipelines.prediction import predict
from pipelines.submission import Part, submit, write_submission
from pipelines.submission_rules import CHALLENGES, check_submission
from tests import synthetic_stores
from tests.synthetic_stores import NOUNS, VERBS, clip_store, clips_table

IDS = {
    "epic55": {"seen.json": [str(i) for i in range(40)], "unseen.json": [str(i) for i in range(9_000, 9_020)]},
    "epic100": {"test.json": [f"P33_101_{i}" for i in range(30)]},
}
SMALL = {  # the challenges with fewer segments, and nothing else
    name: replace(rules, segments={file: len(IDS[name][file]) for file in rules.files})
    for name, rules in CHALLENGES.items()
}


def parts_of(challenge, seed=0, failed=()):
    """Scores of all segments."""
    rules, rng = CHALLENGES[challenge], np.random.default_rng(seed)
    parts = {}
    for file, ids in IDS[challenge].items():
        scores = [rng.normal(size=(len(ids), n)) * 3 for n in (rules.verbs, rules.nouns)]
        for array in scores:
            array[list(failed)] = np.nan
        parts[file] = Part(ids, *scores)
    return parts


def results_of(path, file):
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(file))


@pytest.fixture(scope="module")
def epic55(tmp_path_factory):
    path, parts = tmp_path_factory.mktemp("submission") / "epic55.zip", parts_of("epic55")
    write_submission(path, SMALL["epic55"], parts, prior=np.random.default_rng(1).random((125, 352)))
    return path, parts


@pytest.fixture(scope="module")
def epic100(tmp_path_factory):
    path = tmp_path_factory.mktemp("submission") / "epic100.zip"
    write_submission(path, SMALL["epic100"], parts_of("epic100"), sls=(2, 3, 4))
    return path


# ---- what is written -------------------------------------------------------------------------------------


def test_epic55_file(epic55):
    path, parts = epic55
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == ["seen.json", "unseen.json"] and archive.testzip() is None
    seen = results_of(path, "seen.json")
    assert {name: seen[name] for name in ("version", "challenge")} == {
        "version": "0.1", "challenge": "action_recognition"
    }  # fmt: skip
    assert set(seen) == {"version", "challenge", "results"}
    assert list(seen["results"]) == IDS["epic55"]["seen.json"]
    of = seen["results"]["0"]
    assert list(of["verb"]) == [str(c) for c in range(125)] and list(of["noun"]) == [str(c) for c in range(352)]
    assert list(of["verb"].values()) == pytest.approx(parts["seen.json"].verb[0], rel=1e-5)
    assert len(of["action"]) == 100


def ranking(verb_scores, noun_scores, prior=None):
    """The 100 best pairs of one segment with their scores, by eq. 3.14 over all pairs, one by one."""
    p, q = ([math.exp(x) for x in scores] for scores in (verb_scores, noun_scores))
    p, q = ([x / sum(raised) for x in raised] for raised in (p, q))
    pairs = ((v, n) for v in range(len(p)) for n in range(len(q)))
    scored = [(p[v] * q[n] * (1 if prior is None else prior[v][n]), v, n) for v, n in pairs]
    return {f"{v},{n}": x for x, v, n in sorted(scored, reverse=True)[:100]}  # of equal ones the higher is before


def test_actions_are_the_best_by_equation_3_14(tmp_path):
    """Of all pairs: a prior may lift nouns that are not among the hundred best."""
    prior, parts = np.random.default_rng(2).random((125, 352)) ** 9, parts_of("epic55", seed=3)
    parts = {file: Part(part.ids, part.verb / 9, part.noun / 9) for file, part in parts.items()}
    write_submission(tmp_path / "a.zip", SMALL["epic55"], parts, prior=prior)
    of = results_of(tmp_path / "a.zip", "unseen.json")["results"]["9001"]["action"]
    verb, noun = parts["unseen.json"].verb[1], parts["unseen.json"].noun[1]
    expected = ranking(verb, noun, prior)
    assert list(of) == list(expected)
    assert list(of.values()) == pytest.approx(list(expected.values()), rel=1e-4)
    assert {int(pair.split(",")[1]) for pair in of} - {*np.argsort(noun)[-100:].tolist()}


def test_epic100_ranks_actions_without_a_prior(epic100, tmp_path):
    part, of = parts_of("epic100")["test.json"], results_of(epic100, "test.json")["results"]
    for i in (0, 7):
        assert list(of[part.ids[i]]["action"]) == list(ranking(part.verb[i], part.noun[i]))
    out = tmp_path / "a.zip"
    with pytest.raises(UserError, match="the challenge epic100 ranks actions .* without a prior"):
        write_submission(out, SMALL["epic100"], {"test.json": part}, prior=np.ones((97, 300)), sls=(0, 0, 0))
    assert not out.exists()


def test_epic100_file(epic100, tmp_path):
    made = results_of(epic100, "test.json")
    assert (made["version"], made["sls_pt"], made["sls_tl"], made["sls_td"]) == ("0.2", 2, 3, 4)
    assert len(made["results"]) == 30 and set(made["results"]["P33_101_5"]) == {"verb", "noun", "action"}
    again = tmp_path / "again.zip"
    write_submission(again, SMALL["epic100"], parts_of("epic100"), sls=(2, 3, 4))
    assert again.read_bytes() == epic100.read_bytes()
    write_submission(again, SMALL["epic100"], parts_of("epic100"), sls=(2, 3, 4), actions=False)
    assert set(results_of(again, "test.json")["results"]["P33_101_5"]) == {"verb", "noun"}
    found = check_submission(again, SMALL["epic100"])
    assert found["actions"] is False and found["problems"] == []


def test_what_is_written_passes(epic55, epic100):
    for path, challenge in ((epic55[0], "epic55"), (epic100, "epic100")):
        found = check_submission(path, ids_of=IDS.get)  # which challenge is told by the names of the files
        assert found == {
            "challenge": challenge,
            "files": SMALL[challenge].segments,
            "actions": True,
            "problems": [],
        }


@pytest.mark.parametrize(
    ("challenge", "change", "message"),
    [
        ("epic100", {"sls": None}, "asks for three supervision levels"),
        ("epic100", {"sls": (2, 3, 6)}, r"--sls PT TL TD"),
        ("epic55", {"sls": (2, 3, 4)}, "knows no supervision levels"),
    ],
)
def test_levels_are_asked_for(tmp_path, challenge, change, message):
    with pytest.raises(UserError, match=message):
        write_submission(tmp_path / "a.zip", SMALL[challenge], {}, **change)


def test_incomplete_scores_are_refused(tmp_path):
    path, parts, part = tmp_path / "a.zip", parts_of("epic100", failed=(5,)), parts_of("epic100")["test.json"]
    infinite = np.where(np.arange(30)[:, None] == 5, np.inf, part.verb)
    for wrong, message in (
        ({}, "the files are test.json, got none"),
        (parts, "1 segments have verb scores that are no finite numbers: P33_101_5"),
        ({"test.json": Part(part.ids[:-1], part.verb[:-1], part.noun[:-1])}, "holds every one"),
        ({"test.json": Part([*part.ids[:-1], part.ids[0]], part.verb, part.noun)}, "29 segments, but"),
        ({"test.json": Part(part.ids, part.verb[:, :-1], part.noun)}, r"verb scores \(30, 96\) are not"),
        ({"test.json": Part(part.ids, infinite, part.noun)}, "no finite numbers: P33_101_5"),
    ):
        with pytest.raises(UserError, match=message):
            write_submission(path, SMALL["epic100"], wrong, sls=(1, 1, 1))
    assert not path.exists()


# ---- the checker -----------------------------------------------------------------------------------------


def small(challenge, file, n=3):
    """The content of a good file but for the number of its segments, and the ids of those it has."""
    rules = CHALLENGES[challenge]
    ids = IDS[challenge][file][:n]
    scores = {
        "verb": {str(c): 0.5 * c for c in range(rules.verbs)},
        "noun": {str(c): -c for c in range(rules.nouns)},
        "action": {f"{c},{c + 1}": 1.5 for c in range(50)} | {f"{c},0": 1 for c in range(50)},
    }
    content = {"version": rules.version, "challenge": "action_recognition"}
    content |= {"sls_pt": 1, "sls_tl": 3, "sls_td": 3} if rules.sls else {}
    results = {name: {kind: dict(values) for kind, values in scores.items()} for name in ids}
    return {**content, "results": results}, ids


def problems_of(tmp_path, content, ids=None, challenge="epic100", name="test.json"):
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_text(text)
    given = {file: ids if file == name else () for file in CHALLENGES[challenge].files}
    return check_submission(tmp_path / name, challenge, lambda _: None if ids is None else given)["problems"]


def test_a_good_file_has_no_problems(tmp_path):
    for challenge, file in (("epic100", "test.json"), ("epic55", "seen.json")):
        content, ids = small(challenge, file)
        assert problems_of(tmp_path, content, ids, challenge, file) == []


def changed(change):
    content, ids = small("epic100", "test.json")
    change(content, content["results"])
    return content, ids


FIRST = IDS["epic100"]["test.json"][0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda c, r: c.update(version="0.1"), "version must be '0.2', got '0.1'"),
        (lambda c, r: c.update(version=0.2), "version must be '0.2', got 0.2"),
        (lambda c, r: c.update(challenge="action_anticipation"), "challenge must be 'action_recognition'"),
        (lambda c, r: c.pop("sls_tl"), "sls_tl must be an integer 0..5, got None"),
        (lambda c, r: c.update(sls_pt=6), "sls_pt must be an integer 0..5, got 6"),
        (lambda c, r: c.update(sls_pt=True), "sls_pt must be an integer 0..5, got True"),
        (lambda c, r: c.update(sls_td="3"), "sls_td must be an integer 0..5, got '3'"),
        (lambda c, r: c.update(team="us"), "unexpected key 'team'"),
        (lambda c, r: c.update(results=[1]), "results must be an object"),
        (lambda c, r: r.pop(FIRST), f"1 segments are missing: {FIRST}"),
        (lambda c, r: r.update(P01_01_0=r[FIRST]), "1 segments do not belong to the challenge: P01_01_0"),
        (lambda c, r: r.update({FIRST: 3}), "segments are not objects of verb and noun"),
        (lambda c, r: r[FIRST].pop("noun"), "segments lack the noun scores"),
        (lambda c, r: r[FIRST].update(noun={}), "segments lack the noun scores"),
        (lambda c, r: r[FIRST]["verb"].pop("3"), "other verb classes than 0..96: P33_101_0 (missing 3)"),
        (lambda c, r: r[FIRST]["noun"].update({"300": 1}), "noun classes than 0..299: P33_101_0 (unexpected 300)"),
        (lambda c, r: r[FIRST]["verb"].update({"3": "high"}), "scores are no finite numbers: P33_101_0 ('3': 'high')"),
        (lambda c, r: r[FIRST]["verb"].update({"3": True}), "('3': True)"),
        (lambda c, r: r[FIRST]["verb"].update({"3": None}), "('3': None)"),
        (lambda c, r: r[FIRST]["noun"].update({"3": float("nan")}), "noun scores are no finite numbers"),
        (lambda c, r: r[FIRST]["noun"].update({"3": float("inf")}), "noun scores are no finite numbers"),
        (lambda c, r: r[FIRST].update(extra={}), "segments have an unexpected key: P33_101_0 ('extra')"),
        (lambda c, r: r[FIRST].pop("action"), "1 segments lack action scores that others have: P33_101_0"),
        (lambda c, r: r[FIRST]["action"].pop("0,1"), "other than 100 actions: P33_101_0 (99)"),
        (lambda c, r: r[FIRST]["action"].update({"96,299": 1}), "other than 100 actions: P33_101_0 (101)"),
        (lambda c, r: swap(r[FIRST]["action"], "97,0"), "are not \"verb,noun\" of classes: P33_101_0 ('97,0')"),
        (lambda c, r: swap(r[FIRST]["action"], "0,300"), "('0,300')"),
        (lambda c, r: swap(r[FIRST]["action"], "0, 7"), "('0, 7')"),
        (lambda c, r: swap(r[FIRST]["action"], "0-7"), "('0-7')"),
        (lambda c, r: swap(r[FIRST]["action"], "00,7"), "('00,7')"),
        (lambda c, r: r[FIRST]["action"].update({"0,1": "x"}), "action scores are no finite numbers"),
    ],
)  # fmt: skip
def test_every_rule_is_checked(tmp_path, change, problem):
    content, ids = changed(change)
    found = problems_of(tmp_path, content, ids)
    assert len(found) == 1 and problem in found[0], found


def swap(actions, key):
    actions.pop("0,1")
    actions[key] = 1


def test_keys_that_are_there_twice(tmp_path):
    content, ids = small("epic100", "test.json")
    text = json.dumps(content)
    twice = text.replace('"verb": {"0": 0.0,', '"verb": {"0": 0.0, "0": 1.0,', 1)
    assert "other verb classes than 0..96: P33_101_0 (twice)" in problems_of(tmp_path, twice, ids)[0]
    twice = text.replace('"version"', '"version": "0.2", "version"', 1)
    assert problems_of(tmp_path, twice, ids) == ["test.json: a key is there twice"]
    one = json.dumps(content["results"][FIRST])
    twice = text.replace(f'"results": {{"{FIRST}"', f'"results": {{"{FIRST}": {one}, "{FIRST}"', 1)
    assert problems_of(tmp_path, twice, ids) == ["test.json: results: a segment is there twice"]


def test_many_mistakes_are_counted(tmp_path):
    content, ids = small("epic100", "test.json", n=9)
    for scores in content["results"].values():
        del scores["verb"]["5"]
    (found,) = problems_of(tmp_path, content, ids)
    assert found.startswith("test.json: 9 segments have other verb classes") and found.endswith("and 4 more")


def test_number_of_segments_without_annotations(tmp_path):
    content, _ = small("epic100", "test.json")
    assert problems_of(tmp_path, content) == ["test.json: 3 segments, the challenge has 13092"]


def test_zip_is_flat_and_complete(tmp_path):
    path = tmp_path / "a.zip"
    content, ids = small("epic55", "seen.json")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("seen.json", json.dumps(content))
        archive.writestr("out/unseen.json", json.dumps(content))
    found = check_submission(path, ids_of=lambda _: {"seen.json": ids, "unseen.json": ()})
    assert found["problems"] == [
        "unseen.json is missing in the zip",
        "the zip holds 'out/unseen.json'; only seen.json, unseen.json belong into it, in no folder",
    ]


def test_what_is_no_submission(tmp_path):
    path = tmp_path / "a.json"
    for text, message in (("{", "cannot be parsed"), ('{"x": 1}', "which challenge"), ("[1]", "which challenge")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            check_submission(path)
    with pytest.raises(UserError, match="no file"):
        check_submission(tmp_path / "b.zip")
    with pytest.raises(UserError, match="no challenge 'epic'"):
        check_submission(path, "epic")
    damaged = tmp_path / "c.zip"
    with zipfile.ZipFile(damaged, "w") as archive:
        archive.writestr("test.json", "{}" * 40)
    raw = bytearray(damaged.read_bytes())
    raw[60] ^= 255
    damaged.write_bytes(bytes(raw))
    with pytest.raises(UserError, match=r"damaged|cannot be read"):
        check_submission(damaged)


def test_published_examples(shared):
    """Their scores are good by every rule; what they lack is segments."""
    folder = shared / "annotations/evaluation"
    for name, challenge, actions in (
        ("ek55_seen.synthetic.json", "epic55", False),
        ("ek55_unseen_with_actions.synthetic.json", "epic55", True),
        ("ek100_recognition_test.synthetic.json", "epic100", False),
    ):
        content = json.loads((folder / name).read_text())
        file = "unseen.json" if "unseen" in name else next(iter(CHALLENGES[challenge].files))
        ids = {f: list(content["results"]) if f == file else [] for f in CHALLENGES[challenge].files}
        found = check_submission(folder / name, ids_of=lambda _, ids=ids: ids)
        assert found["problems"] == [] and found["challenge"] == challenge, name
        assert found["files"] == {file: len(content["results"])}
        assert found["actions"] is actions
    detection = check_submission(folder / "ek100_detection_val.synthetic.json")["problems"]
    assert any("challenge must be 'action_recognition', got 'action_detection'" in line for line in detection)


# ---- from runs -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs on a store of a small EPIC-100: its split test has failed, pending and good rows; the rules of it."""
    folder = tmp_path_factory.mktemp("runs")
    clips = clips_table(4)
    test = np.arange(len(clips["id"])) >= 28
    clips["split"][test] = "test"
    stores = [
        clip_store(folder, f"net{i}", clips=clips, dataset="epic100", draws=0, failed=failed, pending=(39,), seed=i)
        for i, failed in enumerate(((30, 31), (30,)))
    ]
    runs = [
        train_head(
            "whole_frame",
            verb=store,
            noun=store,
            out=folder / f"run{i}",
            epochs=1,
            device="cpu",
            allow_incomplete=True,
            progress=False,
            say=lambda line: None,
        )
        for i, store in enumerate(stores)
    ]
    rules = replace(CHALLENGES["epic100"], segments={"test.json": int(test.sum())}, verbs=VERBS, nouns=NOUNS)
    return runs, rules, clips


def test_a_run_scores_every_segment(trained, tmp_path):
    (run, _), rules, clips = trained
    said = []
    options = {"challenge": rules, "sls": (2, 3, 3), "actions": False, "device": "cpu", "progress": False}
    facts = submit([run], tmp_path / "a.zip", say=said.append, **options)
    assert facts["segments"] == {"test.json": 12} and facts["filled"] == {"test.json": ["clip30", "clip31", "clip39"]}
    assert said == ["test.json: 3 of 12 segments had no prediction and are filled from the training prior"]
    results = results_of(tmp_path / "a.zip", "test.json")["results"]
    assert list(results) == [f"clip{i}" for i in range(28, 40)]
    train = clips["verb"][clips["split"] == "train"]
    frequency = (np.bincount(train, minlength=VERBS) + 1) / (len(train) + VERBS)
    for clip in ("clip30", "clip39"):
        assert list(results[clip]["verb"].values()) == pytest.approx(np.log(frequency), rel=1e-4)
    options = {"stores": None, "place": Place(), "device": "cpu", "allow_incomplete": True, "progress": False}
    scores = predict(run, "test", **options)
    with np.load(scores["file"]) as file:
        for i, clip in enumerate(file["ids"]):
            assert list(results[clip]["noun"].values()) == pytest.approx(file["noun"][i], rel=1e-4)
    assert check_submission(tmp_path / "a.zip", rules, lambda _: {"test.json": list(results)})["problems"] == []


def test_runs_are_fused(trained, tmp_path):
    runs, rules, _ = trained
    options = {"challenge": rules, "sls": (2, 3, 3), "actions": False, "device": "cpu", "progress": False}
    facts = submit(runs, tmp_path / "both.zip", weights=(3, 1), **options)
    assert facts["filled"] == {"test.json": ["clip30", "clip39"]}  # one of the runs has clip31
    each = []
    for i, run in enumerate(runs):
        submit([run], tmp_path / f"{i}.zip", **options)
        each.append(results_of(tmp_path / f"{i}.zip", "test.json")["results"])
    both = results_of(tmp_path / "both.zip", "test.json")["results"]
    shares = [metrics.softmax(list(one["clip29"]["verb"].values())) for one in each]
    fused = np.exp(list(both["clip29"]["verb"].values()))
    assert fused == pytest.approx(0.75 * shares[0] + 0.25 * shares[1], rel=1e-3)


def test_runs_of_something_else_are_refused(trained, tmp_path):
    runs, rules, _ = trained
    out, options = tmp_path / "a.zip", {"sls": (2, 3, 3), "device": "cpu", "progress": False}
    with pytest.raises(UserError, match="is of epic100, the challenge of epic55"):
        submit(runs[:1], out, challenge="epic55", device="cpu")
    with pytest.raises(UserError, match=r"the challenge epic100 wants \{'verb': 97, 'noun': 300\}"):
        submit(runs[:1], out, **options)
    with pytest.raises(UserError, match="no run"):
        submit([], out, **options)
    with pytest.raises(UserError, match="a submission holds every one"):
        submit(runs[:1], out, challenge=replace(rules, segments={"test.json": 13}), actions=False, **options)
    assert not out.exists()


# ---- from a run to its actions ---------------------------------------------------------------------------

MANY = {"VERBS": 8, "NOUNS": 130}  # more than 100 nouns, so that choosing among the best of them would show


def paired_clips(test_splits):
    """Clips whose noun mostly follows from the verb, so that the prior says much; the last 40 are test segments."""
    rng, clips = np.random.default_rng(7), clips_table(10)
    clips["verb"] = rng.integers(0, MANY["VERBS"], 100).astype(np.int32)
    clips["noun"] = (clips["verb"] * 16 + np.minimum(rng.geometric(0.5, 100), 8)).astype(np.int32)
    parts = ["train"] * 60 + [test_splits[i * len(test_splits) // 40] for i in range(40)]
    return clips | {"split": np.array(parts, object)}


def run_of_many_classes(challenge, folder):
    """A run that has not learnt the nouns well yet, the challenge's rules for it, and its clips."""
    clips = paired_clips(list(CHALLENGES[challenge].files.values()))
    with pytest.MonkeyPatch.context() as patch:
        for name, n in MANY.items():
            patch.setattr(synthetic_stores, name, n)
        store = clip_store(folder, clips=clips, videos=10, dataset=challenge, draws=0)
    options = {"set": {"lr": 0.1}, "fit": "trainval", "device": "cpu", "progress": False, "say": lambda line: None}
    run = train_head("whole_frame", verb=store, noun=store, out=folder / "run", epochs=4, **options)
    sizes = {file: int((clips["split"] == split).sum()) for file, split in CHALLENGES[challenge].files.items()}
    rules = replace(CHALLENGES[challenge], segments=sizes, verbs=MANY["VERBS"], nouns=MANY["NOUNS"])
    return run, rules, clips


@pytest.mark.parametrize(("challenge", "with_prior"), [("epic55", True), ("epic100", False)])
def test_written_actions_are_those_that_evaluate_counts(challenge, with_prior, tmp_path):
    run, rules, clips = run_of_many_classes(challenge, tmp_path)
    out, options = tmp_path / "a.zip", {"device": "cpu", "progress": False}
    submit([run], out, challenge=rules, sls=(2, 3, 3) if rules.sls else None, **options)
    assert check_submission(out, rules)["problems"] == []

    train = clips["split"] == "train"
    prior = np.zeros((rules.verbs, rules.nouns))
    for v, n in zip(clips["verb"][train], clips["noun"][train], strict=True):
        prior[v, n] += 1 / train.sum()
    truth = {clip: f"{v},{n}" for clip, v, n in zip(clips["id"], clips["verb"], clips["noun"], strict=True)}
    for file, split in rules.files.items():
        written = {clip: of["action"] for clip, of in results_of(out, file)["results"].items()}
        otherwise = {}
        with np.load(predict(run, split, **options)["file"]) as scores:
            assert list(written) == scores["ids"].tolist()
            for clip, verb, noun in zip(scores["ids"], scores["verb"], scores["noun"], strict=True):
                expected = ranking(verb, noun, prior if with_prior else None)
                assert list(written[clip]) == list(expected)
                assert list(written[clip].values()) == pytest.approx(list(expected.values()), rel=1e-4)
                otherwise[clip] = ranking(verb, noun, None if with_prior else prior)
        figures = evaluate(run, split, **options)
        counted = figures["action"] if with_prior else figures["overall"]["action"]
        for k, figure in ((1, "top1"), (5, "top5")):
            ours, other = (np.mean([truth[clip] in list(of[clip])[:k] for clip in of]) for of in (written, otherwise))
            assert counted[figure] == pytest.approx(ours) and 0 < ours < 1
            assert ours != other  # with the other rule it would be another figure


# ---- the command -----------------------------------------------------------------------------------------


def test_command_checks(epic55, tmp_path, shared):
    runner = CliRunner()
    done = runner.invoke(command, ["--check", str(epic55[0]), "--json"], env={"CLIPBANK_DATA": ""})
    assert done.exit_code == 1 and "ids are not checked" in done.output
    assert "seen.json: 40 segments, the challenge has 8047" in done.output
    (tmp_path / "epic55").mkdir()
    (tmp_path / "epic55/annotations").symlink_to(shared / "annotations/epic-kitchens-55")
    done = runner.invoke(command, ["--check", str(epic55[0]), "--data", str(tmp_path)])
    assert done.exit_code == 1 and "segments do not belong to the challenge" in done.output
    for arguments in ([], ["RUN", "--check", "FILE"]):
        assert runner.invoke(command, arguments).exit_code == 2
