"""What commands print: lines for the person on stderr, facts on stdout, progress."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

__all__ = ["progress_bar", "progress_line", "published_table", "say", "show", "show_run"]


def say(line: str) -> None:
    """A line for the person, beside what is printed for programs."""
    click.echo(line, err=True)


def show(facts, as_json: bool) -> None:
    """Facts as JSON, or as indented `name: value` lines."""
    click.echo(json.dumps(facts, indent=1, default=str) if as_json else "\n".join(as_lines(facts)))


def show_run(folder: Path, as_json: bool) -> None:
    facts = {"run": str(folder), **json.loads((Path(folder) / "metrics.json").read_text())}
    show(facts, as_json)


def as_lines(facts, indent: str = "") -> list[str]:
    lines = []
    for number, (name, value) in enumerate(facts.items() if isinstance(facts, dict) else enumerate(facts)):
        label = f"{indent}{name}: " if isinstance(facts, dict) else indent
        if name == "methods":
            lines += [label.rstrip(), *(f"{indent}  {line}" for line in method_table(value))]
        elif isinstance(value, (dict, list)) and not value:
            lines.append(f"{label}none")
        elif isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
            if isinstance(facts, dict):
                lines.append(label.rstrip())
            elif number:
                lines.append("")
            lines += as_lines(value, indent + ("  " if isinstance(facts, dict) else ""))
        elif isinstance(value, float):
            lines.append(f"{label}{value:.6g}")
        elif isinstance(value, list):
            shown = ", ".join(map(str, value[:20])) + (f" ... ({len(value)} in all)" if len(value) > 20 else "")
            lines.append(f"{label}{shown}")
        else:
            lines.append(f"{label}{value}")
    return lines


def method_table(rows: list[dict]) -> list[str]:
    """Ways to pick a video's frames (`pipelines.sampler_evaluation.method_rows`), each over M: figures in percent, the
    frames that the recogniser saw, GFLOPs of a video and what they are made of, seconds."""
    shown = {"m": ("M", "d", 1), "top1": ("top-1", ".2f", 100), "mAP": ("mAP", ".2f", 100)}
    shown |= {"mAP_first_label": ("mAP (first label)", ".2f", 100), "frames": ("frames", ".2f", 1)}
    shown |= {"gflops": ("GFLOPs", ".2f", 1), "gflops_sampler": ("= sampler", ".2f", 1)}
    shown |= {"gflops_context": ("+ context", ".3f", 1), "gflops_recogniser": ("+ recogniser", ".2f", 1)}
    shown |= {"seconds": ("seconds", ".3f", 1)}
    columns = [name for name in shown if name in rows[0]]
    table = [("method", *(shown[name][0] for name in columns))]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for row in sorted(rows, key=lambda row: methods.index(row["method"])):
        table.append((row["method"], *(format(shown[name][2] * row[name], shown[name][1]) for name in columns)))
    return aligned(table, words=1)


def aligned(table: list[tuple], words: int) -> list[str]:
    """Rows of texts as lines: the first columns, of words, flush left, and the others, of numbers, flush right."""
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return [
        "  ".join(
            text.ljust(width) if column < words else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


COLUMNS = 6  # metrics side by side


def published_table(rows: list[dict], ours: str) -> list[str]:
    """Printed figures beside one's own (`pipelines.published.published_rows`), a table a source: theirs, and ours minus
    theirs in brackets; misprints are starred and told below. ours: what the run is called."""
    lines = []
    for source in dict.fromkeys(row["source"] for row in rows):
        of = [row for row in rows if row["source"] == source]
        methods: dict[tuple, dict[str, dict]] = {}
        for row in of:
            methods.setdefault((row["method"], row["input"]), {})[row["metric"]] = row
        fullest = max(methods.values(), key=len)  # whose metrics are in the paper's order
        metrics = list(dict.fromkeys([*fullest, *(row["metric"] for row in of)]))
        for start in range(0, len(metrics), COLUMNS):
            lines += ["", *_one_source(source, ours, metrics[start : start + COLUMNS], methods)]
        lines += [f"  * {note}" for note in dict.fromkeys(row["note"] for row in of if row["note"])]
    return lines[1:]


def _one_source(source: str, ours: str, metrics: list[str], methods: dict[tuple, dict[str, dict]]) -> list[str]:
    starred = any(row["note"] for rows in methods.values() for row in rows.values())

    def cell(row: dict | None) -> str:
        star = "" if not starred else "*" if row and row["note"] else " "
        return (f"{row['theirs']:.2f} ({row['difference']:+.2f})" if row else "") + star

    own = {metric: row["ours"] for rows in methods.values() for metric, row in rows.items()}
    table = [(source, "", *metrics), (f"ours: {ours}", "", *(f"{own[metric]:.2f}" for metric in metrics))]
    for name, rows in methods.items():
        if any(metric in rows for metric in metrics):
            table.append((*name, *(cell(rows.get(metric)) for metric in metrics)))
    return aligned(table, words=2)


def progress_bar(title: str, total: int):
    """Rows done, rate, time left, and what the caller adds (failures so far); in a log, a line now and then."""
    from tqdm import tqdm

    class Bar(tqdm):
        """Shows what the caller adds when the bar is drawn next, not each time anew."""

        def set_postfix_str(self, s="", refresh=False):
            super().set_postfix_str(s, refresh)

    unit = "video" if title.startswith(("probing", "recognizing")) else "row"
    seconds = 0.5 if sys.stderr.isatty() else 30
    return Bar(total=total, desc=title, unit=unit, smoothing=0.1, dynamic_ncols=True, mininterval=seconds)


def progress_line(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done}/{total}", nl=done == total, err=True)
