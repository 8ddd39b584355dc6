"""Paired relations of the ablation benchmarks: intervals, verdicts, and the document they are written to."""

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from ablation_table import T95, interval, markdown, relation, write_section  # noqa: E402


def test_interval_is_students():
    """By hand: mean 2, deviation 1, 2.776 / sqrt(5) of it; and the quantiles are SciPy's where it is there."""
    mean, half = interval([1.0, 1.0, 2.0, 3.0, 3.0])
    assert mean == 2 and half == pytest.approx(2.776 * 1 / math.sqrt(5))
    assert interval([0.5]) == (0.5, math.inf)
    stats = pytest.importorskip("scipy.stats")
    assert [round(stats.t.ppf(0.975, n), 3) for n in range(1, len(T95) + 1)] == list(T95)


@pytest.mark.parametrize("count", [0, 21])
def test_interval_needs_one_to_twenty_seeds(count):
    with pytest.raises(ValueError, match="1 to 20"):
        interval([0.0] * count)


def test_seeds_are_paired():
    """The same shift on figures that differ much from seed to seed is certain; shuffled, it is not."""
    worse = [10.0, 50.0, 30.0, 70.0]
    better = [11.1, 50.9, 31.0, 71.0]
    assert relation("a > b", better, worse).verdict == "holds"
    assert relation("b > a", worse, better).verdict == "reversed"
    assert relation("a > b", better[::-1], worse).verdict == "undecided"
    assert relation("one seed", [2.0], [1.0]).verdict == "undecided"
    with pytest.raises(ValueError):
        relation("a > b", better, worse[:3])


def test_no_difference_at_all_is_undecided():
    assert relation("a > a", [1.0, 2.0], [1.0, 2.0]).verdict == "undecided"


def test_markdown_has_a_row_a_relation():
    rows = markdown([relation("x > y", [3.0, 4.0, 5.0], [1.0, 2.5, 2.0])]).splitlines()
    assert len(rows) == 3 and rows[2] == "| x > y | 4.0 | 1.8 | +2.2 ± 1.9 | holds |"
    assert len({row.count("|") for row in rows}) == 1


def test_a_section_is_replaced_and_no_other_touched(tmp_path):
    document = tmp_path / "ablations.md"
    document.write_text("# Ablations\n\nIntroduction.\n")
    write_section(document, "PSN", "first")
    write_section(document, "SAOA", "other\n\n### Table 3.1\n\nrows")
    write_section(document, "PSN", "### Table 5.1\n\nsecond")
    assert document.read_text() == (
        "# Ablations\n\nIntroduction.\n\n## PSN\n\n### Table 5.1\n\nsecond\n\n"
        "## SAOA\n\nother\n\n### Table 3.1\n\nrows\n"
    )
