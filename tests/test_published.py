"""The table of printed figures against the papers themselves, and a run's figures beside it."""

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import heads.published as table_file
from commands.printing import published_table
from commands.runs import evaluate
from errors import UserError
from heads.published import published
from pipelines import train_head
from pipelines.averages import average_figures, average_split
from pipelines.published import published_rows, published_split
from tests.synthetic_stores import clip_store, clips_table

TABLE = Path(table_file.__file__).with_name("published.csv")
COLUMNS = ["method", "dataset", "split", "metric", "input", "value", "gflops", "source", "note"]
# source -> (paper, number of its table there)
PAPERS = {"thesis": "001_", "STAM": "002_", "query fusion": "003_", "SAP (talk)": "004_"}
TABLES = {
    "thesis": [f"3.{i}" for i in range(1, 8)] + [f"{c}.{i}" for c in (4, 5) for i in range(1, 8)]
    + [f"6.{i}" for i in range(1, 7)],
    "STAM": ["1", "2", "3"],
    "query fusion": ["1", "2", "3"],
    "SAP (talk)": ["1", "2", "3"],
}  # fmt: skip


def lines():
    with open(TABLE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def sources(text):
    """("thesis", ["5.1", "5.2", "5.3"]) of "thesis tables 5.1 to 5.3"."""
    paper, _, numbers = re.fullmatch(r"(.+?) table(s?) (.+)", text).groups()
    if " to " in numbers:
        first, last = numbers.split(" to ")
        chapter = first.rpartition(".")[0]
        span = range(int(first.rpartition(".")[2]), int(last.rpartition(".")[2]) + 1)
        return paper, [f"{chapter}.{i}" for i in span]
    return paper, numbers.split(" and ")


def test_the_file_parses_and_has_no_duplicates():
    rows = lines()
    assert list(rows[0]) == COLUMNS and len(rows) > 1_200
    keys = Counter(tuple(row[name] for name in COLUMNS if name not in ("value", "gflops", "note")) for row in rows)
    assert [key for key, n in keys.items() if n > 1] == []
    for row in rows:
        assert row["method"] and row["dataset"] and row["split"] and row["metric"], row
        assert 0 < float(row["value"]) <= 100, row
        assert all(value == value.strip() for value in row.values()), row


def test_every_table_is_there_and_no_other():
    found = {}
    for row in lines():
        paper, numbers = sources(row["source"])
        found.setdefault(paper, set()).update(numbers)
    assert {paper: sorted(numbers) for paper, numbers in found.items()} == {
        paper: sorted(numbers) for paper, numbers in TABLES.items()
    }


def paper_text(shared, paper):
    return next((shared / "seeds").glob(f"{PAPERS[paper]}*.txt")).read_text(encoding="utf-8").splitlines()


def figures_of(text, number):
    """All figures of a table of a paper with tabs between its cells: the rows next to its caption."""
    caption = next(i for i, line in enumerate(text) if re.match(rf"Table {re.escape(number)} ?[:.]", line))
    at = caption - 1
    while not text[at].strip():
        at -= 1
    rows = range(at, -1, -1) if "\t" in text[at] else range(caption + 2, len(text))  # STAM's table 3 is below
    found = []
    for i in rows:
        if "\t" not in text[i]:
            break
        cells = [re.sub(r"</?b>|\(.*?\)|[%$]", "", cell).strip() for cell in text[i].split("\t")[1:]]
        if text[i].split("\t")[0] != "K":  # the values of K, a header
            found += [float(cell) for cell in cells if re.fullmatch(r"\d+(\.\d+)?", cell)]
    return Counter(found)


@pytest.mark.parametrize(
    ("paper", "number"),
    [
        *(("thesis", number) for number in TABLES["thesis"] if not number.startswith("5.")),
        *(("STAM", number) for number in TABLES["STAM"]),
        *(("query fusion", number) for number in TABLES["query fusion"]),
    ],
)
def test_every_figure_of_a_table_is_in_the_file_and_no_other(shared, paper, number):
    ours = Counter(float(row["value"]) for row in lines() if row["source"] == f"{paper} table {number}")
    assert ours == figures_of(paper_text(shared, paper), number)


def test_figures_of_the_talk(shared):
    """Its tables came as text without tabs: every figure with a point, in the lines of the three tables."""
    text = paper_text(shared, "SAP (talk)")
    for number, first, last in (
        ("1", "Method Verbs Nouns Actions", "Table 1:"),
        ("2", "Inputs Methods Top-1Noun", "Table 2:"),
        ("3", "Methods Split1 Split2", "Table 3:"),
    ):
        start = next(i for i, line in enumerate(text) if line.startswith(first))
        stop = next(i for i, line in enumerate(text) if line.startswith(last))
        printed = Counter(float(x) for line in text[start:stop] for x in re.findall(r"(?<![\w.])\d+\.\d+", line))
        ours = Counter(float(row["value"]) for row in lines() if row["source"] == f"SAP (talk) table {number}")
        assert ours == printed


def test_figures_of_chapter_5_are_in_the_thesis(shared):
    text = paper_text(shared, "thesis")
    for row in lines():
        paper, numbers = sources(row["source"])
        for number in numbers if paper == "thesis" and numbers[0].startswith("5.") else ():
            printed = figures_of(text, number)
            assert float(row["value"]) in printed, row
            assert not row["gflops"] or float(row["gflops"]) in printed, row


@pytest.mark.parametrize(
    ("wanted", "value"),
    [
        (("SAOA", "epic55", "val", "action.top1", "I3D RGB+Flow+Obj", "thesis table 3.5"), 28.8),
        (("SAOA", "epic55", "val", "noun.top5", "R-50 RGB+Obj", "thesis table 3.5"), 59.7),
        (("SA without ARM", "epic55", "val", "verb.top1", "R-50 RGB+Obj", "thesis table 3.1"), 56.6),
        (("TBN", "epic55", "test_s1", "verb.top5", "RGB+Flow+Audio", "thesis table 3.6"), 90.7),
        (("SAOA ensemble (1st place)", "epic55", "test_s2", "many_shot.recall.noun", "six models", "thesis table 3.7"),
         32.8),
        (("IPL", "epic100", "val", "unseen_participants.action.top1", "I3D RGB+Flow", "thesis table 4.1"), 30.89),
        (("IPL", "epic100", "val", "tail_classes.noun.top1", "I3D RGB+Flow", "thesis table 4.1"), 23.26),
        (("IPL", "egtea", "average", "class_means.action.mean_class", "I3D RGB+Flow", "thesis table 4.4"), 59.05),
        (("STAM-a", "egtea", "2:test", "class_means.action.micro", "I3D RGB+Flow", "STAM table 2"), 65.33),
        (("SAP", "egtea", "3:test", "class_means.action.micro", "R-50 RGB+Obj", "SAP (talk) table 3"), 62.0),
        (("SAP", "epic55", "val", "noun.top1", "R-50 RGB+Obj", "SAP (talk) table 2"), 35.0),
        (("T2VLAD", "msrvtt", "1k-B", "v2t.R@10", "", "thesis table 6.1"), 70.4),
        (("T2VLAD", "lsmdc", "test", "t2v.MdR", "", "thesis table 6.3"), 16),
        (("Query-based, allocating and reallocating", "epic100", "val", "overall.noun.top1",
          "Video Swin-T RGB+Flow+Audio", "query fusion table 1"), 42.66),
    ],
)  # fmt: skip
def test_single_figures(wanted, value):
    names = ("method", "dataset", "split", "metric", "input", "source")
    (row,) = [row for row in lines() if tuple(row[name] for name in names) == wanted]
    assert float(row["value"]) == value


def test_misprints_are_marked():
    noted = {}
    for row in published():
        if row.note:
            noted.setdefault((row.source, row.note), []).append(row)
    by_source = {source: (note, rows) for (source, note), rows in noted.items()}
    note, rows = by_source["thesis table 4.1"]
    assert "garbled" in note and {(row.method, row.split) for row in rows} == {("I3D", "test"), ("IPL", "test")}
    note, rows = by_source["thesis table 6.3"]
    assert "R@50" in note and all(row.metric.endswith("R@10") for row in rows) and len(rows) == 10
    note, rows = by_source["thesis table 3.5"]
    assert "p. 35" in note and all(row.input.startswith("R-50") and "Flow" in row.input for row in rows)
    ((row,),) = [rows for source, (_, rows) in by_source.items() if source == "STAM table 1"]
    (other,) = [
        one for one in published("egtea", row.metric, row.split) if (one.method, one.input) == ("STAM-a", row.input)
    ]
    assert str(other.value) in row.note and other.value != row.value
    assert {row.source for row in published("epic100", "overall.verb.top1", "val")} == {
        "thesis table 4.1", "query fusion table 1", "query fusion table 2", "query fusion table 3"
    }  # fmt: skip


# ---- beside a run ----------------------------------------------------------------------------------------


def test_rows_beside_a_runs_figures():
    figures = {"verb": {"top1": 0.5, "top5": 0.8}, "noun": {"top1": 0.3}, "clips": 5_281}
    rows = published_rows("epic55", "val", figures)
    assert {row["metric"] for row in rows} == {"verb.top1", "verb.top5", "noun.top1"}
    (row,) = [r for r in rows if r["source"] == "thesis table 3.4" and r["method"] == "SAOA"
              and r["input"] == "I3D RGB+Obj" and r["metric"] == "verb.top1"]  # fmt: skip
    assert (row["ours"], row["theirs"]) == (50, 55.1) and row["difference"] == pytest.approx(-5.1)
    assert len(published_rows("epic55", "val", figures, "noun.top1", "thesis table 3.2")) == 6
    assert published_rows("epic55", "train", figures) == [] and published_rows("mine", "val", figures) == []
    # figures that are no shares keep their unit
    found = published_rows("lsmdc", "test", {"t2v": {"R@1": 14.0, "MdR": 17.0}}, source="thesis table 6.3")
    assert {row["metric"]: row["ours"] for row in found} == {"t2v.R@1": 14.0, "t2v.MdR": 17.0}


def test_egteas_splits_have_names():
    assert published_split("egtea", "test") == "1:test" and published_split("egtea-split=3", "test") == "3:test"
    assert published_split("egtea-split=3", "2:test") == "2:test" and published_split("epic55", "val") == "val"
    figures = {"class_means": {"action": {"micro": 0.6, "mean_class": 0.5}}}
    rows = published_rows("egtea-split=2", "test", figures)
    assert {row["theirs"] for row in rows if row["method"] == "IPL"} == {59.03}


def test_table_that_is_printed():
    figures = {s: {k: {"top1": 0.25} for k in ("verb", "noun", "action")} for s in ("overall", "tail_classes")}
    shown = published_table(published_rows("epic100", "test", figures), "saoa-s0, frozen")
    assert shown[0].split() == [
        "thesis", "table", "4.1", *(f"overall.{k}.top1" for k in ("verb", "noun", "action")),
        *(f"tail_classes.{k}.top1" for k in ("verb", "noun", "action"))
    ]  # fmt: skip
    assert shown[1].startswith("ours: saoa-s0, frozen") and shown[1].split()[-6:] == ["25.00"] * 6
    (line,) = [line for line in shown if line.startswith("IPL")]
    assert "65.66 (-40.66)*" in line and shown[-1] == "  * misprint: the test rows of I3D and IPL are garbled"
    assert published_table([], "x") == []


def test_evaluate_prints_ours_theirs_and_the_difference(tmp_path):
    store = clip_store(tmp_path, dataset="epic55", draws=0)
    run = train_head(
        "whole_frame",
        verb=store,
        noun=store,
        out=tmp_path / "run",
        epochs=1,
        device="cpu",
        progress=False,
        say=lambda line: None,
    )
    plain = CliRunner().invoke(evaluate, [str(run), "--device", "cpu"])
    assert plain.exit_code == 0 and "thesis" not in plain.stdout
    done = CliRunner().invoke(evaluate, [str(run), "--device", "cpu", "--published"])
    assert done.exit_code == 0 and done.stdout.startswith(plain.stdout)
    assert "ours: run, frozen" in done.stdout and "thesis table 3.5" in done.stdout
    facts = json.loads(CliRunner().invoke(evaluate, [str(run), "--device", "cpu", "--published", "--json"]).stdout)
    ours = 100 * facts["verb"]["top1"]
    (row,) = [r for r in facts["published"] if r["source"] == "thesis table 3.3" and r["method"] == "SAP"
              and r["input"] == "I3D RGB+Obj"]  # fmt: skip
    assert row == {
        "source": "thesis table 3.3", "method": "SAP", "input": "I3D RGB+Obj", "metric": "verb.top1", "ours": ours,
        "theirs": 54.3, "difference": ours - 54.3, "note": ""
    }  # fmt: skip


def test_mean_over_egteas_three_splits(tmp_path):
    """Three runs, one a split: the mean of their figures is beside what papers call the average."""
    runs = []
    for i, name in enumerate(("egtea", "egtea-split=2", "egtea-split=3")):
        clips = clips_table(4)
        clips["split"] = np.where(np.arange(40) % 3 == i, "test", "train").astype(object)
        store = clip_store(tmp_path / str(i), clips=clips, dataset=name, draws=0, seed=i)
        out = tmp_path / f"run{i}"
        quiet = {"device": "cpu", "progress": False, "say": lambda line: None}
        runs.append(str(train_head("whole_frame", verb=store, noun=store, out=out, epochs=1, **quiet)))
    common = ["--split", "test", "--device", "cpu", "--json"]
    alone = [json.loads(CliRunner().invoke(evaluate, [run, *common]).stdout) for run in runs]
    done = CliRunner().invoke(evaluate, [*runs, *common, "--published"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["split"] == "average" and facts["runs"] == dict(zip(runs, alone, strict=True))
    for figure in ("micro", "mean_class"):
        each = [one["class_means"]["action"][figure] for one in alone]
        assert facts["average"]["class_means"]["action"][figure] == pytest.approx(sum(each) / 3)
    (row,) = [row for row in facts["published"] if row["method"] == "IPL"]
    assert row["theirs"] == 59.05 and row["ours"] == 100 * facts["average"]["class_means"]["action"]["mean_class"]
    # two of them are no average over the splits
    two = json.loads(CliRunner().invoke(evaluate, [*runs[:2], *common]).stdout)
    assert two["split"] == "test"
    twice = CliRunner().invoke(evaluate, [runs[0], runs[0], *common])
    assert isinstance(twice.exception, UserError) or "given twice" in twice.output


def test_average_keeps_what_all_have():
    one = {"verb": {"top1": 0.25, "top5": 0.5}, "clips": 3, "note": "a", "only": {"x": 1.0}}
    other = {"verb": {"top1": 0.75}, "clips": 5, "note": "a", "only": 1.0}
    assert average_figures([one, other]) == {"verb": {"top1": 0.5}}
    assert average_split([("egtea", "test"), ("egtea-split=3", "test"), ("egtea-split=2", "test")]) == "average"
    assert average_split([("egtea", "1:test"), ("egtea", "2:test"), ("egtea", "3:test")]) == "average"
    assert average_split([("egtea", "test")] * 3) is None and average_split([("epic55", "val")]) is None
