"""Relations that a paper's tables claim, tested by paired seeds: what holds, what is reversed, what stays undecided."""

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Relation", "arguments", "interval", "markdown", "relation", "sections", "write_section"]

T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093,
)  # fmt: skip
"""Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom."""


@dataclass(frozen=True)
class Relation:
    """One claim "better is above worse", in the figures' own unit."""

    name: str  # what is claimed, as a row's title
    better: float  # mean over the seeds of what is claimed to be better
    worse: float  # and of what it is compared with
    mean: float  # of the paired differences, better minus worse
    half: float  # of their 95 % interval: mean - half to mean + half; infinite for one seed
    verdict: str  # holds | reversed | undecided


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """(mean, half of the 95 % t-interval) of paired differences; the half is infinite for a single one.

    Raises ValueError for none, and for more than `T95` has a quantile for.
    """
    n = len(differences)
    if not 1 <= n <= len(T95) + 1:
        raise ValueError(f"an interval needs 1 to {len(T95) + 1} differences, got {n}")
    mean = statistics.fmean(differences)
    return mean, T95[n - 2] * statistics.stdev(differences) / n**0.5 if n > 1 else float("inf")


def relation(name: str, better: Sequence[float], worse: Sequence[float]) -> Relation:
    """Test "better is above worse" on figures of the same seeds in the same order.

    It *holds* where the whole interval lies above 0, is *reversed* where it lies below, and *undecided* else. Raises
    ValueError for lists of different length.
    """
    mean, half = interval([b - w for b, w in zip(better, worse, strict=True)])
    verdict = "holds" if mean - half > 0 else "reversed" if mean + half < 0 else "undecided"
    return Relation(name, statistics.fmean(better), statistics.fmean(worse), mean, half, verdict)


def markdown(relations: Iterable[Relation], digits: int = 1) -> str:
    """The relations as a Markdown table, a row each: both means, the paired difference, the verdict."""
    lines = ["| claim | of the first | of the second | difference (95 %) | verdict |", "|---|---|---|---|---|"]
    for r in relations:
        cells = (f"{r.better:.{digits}f}", f"{r.worse:.{digits}f}", f"{r.mean:+.{digits}f} ± {r.half:.{digits}f}")
        lines.append(f"| {' | '.join((r.name, *cells, r.verdict))} |")
    return "\n".join(lines)


def sections(tables: Mapping[str, Iterable[Relation]]) -> list[str]:
    """Lines of {title: relations}, a table under a heading each."""
    return [line for title, relations in tables.items() for line in ("", f"### {title}", "", markdown(relations))]


def arguments(usage: str, title: str) -> argparse.ArgumentParser:
    """What every benchmark of ablations is asked with: --root, --seeds and --write. title: of the section it writes."""
    parser = argparse.ArgumentParser(description=usage, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for all that is made, reused [a temporary one]")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--write", type=Path, metavar="FILE", help=f"write the section {title!r} of this document")
    return parser


def write_section(path: Path, title: str, text: str) -> None:
    """Put `text` under the heading `## title` of a Markdown document, in place of what is there, or at its end."""
    heading = f"## {title}\n"
    before, _, after = path.read_text(encoding="utf-8").partition(heading) if path.is_file() else ("", "", "")
    _, mark, others = after.partition("\n## ")
    before = before.rstrip() + "\n\n" if before.strip() else ""
    path.write_text(f"{before}{heading}\n{text.strip()}\n{mark}{others}", encoding="utf-8")
