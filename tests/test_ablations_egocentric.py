"""benchmarks/ablations_egocentric.py without its hours: the frozen kitchens, the claims' rows, and what is reported."""

import sys
from collections import Counter
from pathlib import Path

import pytest

from extract.datasets.toykitchen import dials_from
from heads.ablations import ROWS

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import ablations_egocentric as bench
from egocentric_claims import CLAIMS, DOSES, FUSED, KITCHENS, Claim


def test_every_kitchen_of_a_dose_is_frozen_and_none_is_another_by_now():
    for dose in DOSES:
        assert all(bench.variant(dose.dial, value) in KITCHENS for value in dose.values)
    assert all(bench.dials_of(kitchen).hash == frozen for kitchen, frozen in KITCHENS.items())
    assert KITCHENS["toykitchen"] == dials_from({}).hash


def test_a_kitchen_that_changed_is_refused(monkeypatch):
    monkeypatch.setitem(KITCHENS, "toykitchen", "0" * 64)
    with pytest.raises(SystemExit, match="toykitchen has changed"):
        bench.check_frozen()


def test_claims_and_doses_name_rows_that_are_trained():
    trained = {name for name, row in ROWS.items() if row.head != "ipl"} | set(bench.IPL_ROWS)
    trained |= {f"{row}{stream}" for row in ("SA", "Baseline") for stream in (", Flow", ", RGB+Flow")}
    assert {row for claim in [*CLAIMS, *DOSES] for row in (claim.better, claim.worse)} <= trained
    assert FUSED in trained
    assert {claim.table for claim in CLAIMS} == {"3.1", "3.2", "3.3", "3.4", "3.5", "SAP 2", "4.5", "4.6", "4.7"}
    assert len({(claim.table, claim.metric, claim.better, claim.worse) for claim in CLAIMS}) == len(CLAIMS)
    pairs = Counter((claim.table, claim.metric) for claim in CLAIMS)
    assert all(pairs["3.1", metric] == 15 for metric in ("verb", "noun"))  # 6 rows, all figures different
    assert pairs["3.2", "noun"] == 15 and pairs["3.3", "verb"] == 6 and pairs["SAP 2", "noun"] == 45
    assert pairs["3.4", "verb"] == pairs["3.4", "noun"] == 3 and pairs["4.7", "noun"] == 6  # K = 1, 3, 5, all
    assert all(pairs[table, metric] == 1 for table in ("4.5", "4.6") for metric in ("verb", "noun", "action"))
    assert Claim("3.2", "noun", "SA", "SA (Det Feat only)", pytest.approx(4.4)) in CLAIMS
    assert Claim("4.6", "verb", "IPL w/o background", "IPL", pytest.approx(0.2)) in CLAIMS
    for name in trained:
        if "," not in name or name.startswith("IPL"):
            head, settings = bench.row_of(name)
            assert not any(key.endswith("_window_s") for key in settings), head


def filled(seeds=(0, 1, 2)):
    """SA is 5 points above its ablations, give or take a tenth; its gain over Baseline grows with distractors."""
    found = bench.Bench(Path("nowhere"), list(seeds), {}, {})
    for seed in seeds:
        for row in ROWS:
            value = 60.0 + seed + (5 if row == "SA" else 0.1 * seed)
            found.note("toykitchen", row, seed, {"verb": value, "noun": value, "action": value}, "0 s")
        for distractors in (0, 1, 7):
            kitchen = bench.variant("distractors", distractors)
            for row in ("SA", "Baseline"):
                value = 50.0 + seed + (distractors if row == "SA" else 0.1 * seed)
                found.note(kitchen, row, seed, {"verb": 1.0, "noun": value, "action": 1.0}, "0 s")
    return found


def test_report_has_rows_verdicts_and_doses():
    text = bench.report(filled())
    assert "| SA | 66.0 ± 1.0 |" in text
    assert "| noun: SA > SA w/o ARM (+2.1) | 66.0 | 61.1 | +4.9 ± 0.2 | holds |" in text
    assert "RGB+Flow" not in text  # of what was not run nothing is claimed
    dose = text[text.index("SAOA's noun gain over the clip feature") :]
    assert "| distractors | 0 | 1 | 3 | 7 | slope |" in dose
    assert "-0.1 ± 0.2 | +0.9 ± 0.2 | +4.9 ± 0.2 | +6.9 ± 0.2 |" in dose and ": holds |" in dose
    assert "SAOA's noun gain over pooled objects" not in text


def test_a_dose_is_told_over_the_values_that_were_run():
    found = filled()
    for row in ("SA", "Baseline"):
        del found.found[bench.variant("distractors", 7), row]
    text = bench.report(found)
    assert "| distractors | 0 | 1 | 3 | slope |" in text and "-0.1 ± 0.2 | +0.9 ± 0.2 | +4.9 ± 0.2 |" in text
    found.seeds.append(3)  # which nothing was run of yet
    assert "nouns; 3 seeds)" in bench.report(found)
    for row in ("SA", "Baseline"):
        del found.found[bench.variant("distractors", 1), row]
    assert "| distractors |" not in bench.report(found)


def test_figures_are_kept_and_what_lacks_is_found(tmp_path):
    found = filled()
    found.save(tmp_path / "kept.json")
    again = bench.Bench(Path("nowhere"), [0, 1, 2, 3], {}, {})
    again.load(tmp_path / "kept.json")
    assert again.found == found.found
    rows = bench.work_of(("tables", "flow"))["toykitchen"]
    assert rows["SA"] == rows["Baseline"] == ("rgb", "flow") and rows["SAP"] == ("rgb",)
    assert bench.lacking(again, "toykitchen", {"SAP": ("rgb",)}, 2) == {}
    assert bench.lacking(again, "toykitchen", {"SAP": ("rgb",)}, 3) == {"SAP": ("rgb",)}
    assert bench.lacking(again, "toykitchen", {"SA": ("rgb", "flow")}, 2) == {"SA": ("rgb", "flow")}  # no flow yet
    again.budget = {"epochs": 1}
    with pytest.raises(SystemExit, match="choose another --root"):
        again.load(tmp_path / "kept.json")


def test_every_row_of_a_study_is_planned():
    plan = bench.work_of(bench.STUDIES)
    assert set(plan) == set(KITCHENS)
    for claim in CLAIMS:
        planned = {title for item in plan["toykitchen"].items() for title in bench.titles(*item)}
        assert {claim.better, claim.worse} <= planned
    for dose in DOSES:
        for value in dose.values:
            rows = plan[bench.variant(dose.dial, value)]
            planned = {title for item in rows.items() for title in bench.titles(*item)}
            assert {dose.better, dose.worse} <= planned


def test_a_seed_that_lacks_keeps_a_row_out():
    found = filled()
    found.seeds = [0, 1, 2, 3]
    assert "SA w/o ARM" not in bench.report(found)
