"""What commands print: lines for the person on stderr, facts on stdout, progress."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

__all__ = ["progress_bar", "progress_line", "say", "show", "show_run"]


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
        if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
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


def progress_bar(title: str, total: int):
    """Rows done, rate, time left, and what the caller adds (failures so far); in a log, a line now and then."""
    from tqdm import tqdm

    class Bar(tqdm):
        """Shows what the caller adds when the bar is drawn next, not each time anew."""

        def set_postfix_str(self, s="", refresh=False):
            super().set_postfix_str(s, refresh)

    unit = "video" if title.startswith("probing") else "row"
    seconds = 0.5 if sys.stderr.isatty() else 30
    return Bar(total=total, desc=title, unit=unit, smoothing=0.1, dynamic_ncols=True, mininterval=seconds)


def progress_line(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done}/{total}", nl=done == total, err=True)
