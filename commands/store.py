"""The `store` commands: look into stores, check, mend, move and compare them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from commands.options import place_options, store_option
from commands.printing import progress_bar, progress_line, say, show
from commands.stopping import DAMAGE, DONE, INCOMPLETE, stopped_by_signals
from errors import count_of

__all__ = ["store"]


@click.group()
def store():
    """Look into stores and check them."""


@store.command()
@click.argument("stores", nargs=-1, required=True, type=store_option)
@click.option("--json", "as_json", is_flag=True)
def info(stores, as_json):
    """Sizes, coverage, compression, recipe, provenance, failures by reason."""
    from stores import info as facts_of

    facts = [facts_of(path) for path in stores]
    show(facts if len(facts) > 1 else facts[0], as_json)


@store.command()
@click.argument("stores", nargs=-1, required=True, type=store_option)
@click.option("--quick", is_flag=True, help="Names, sizes, tables and status only; reads no data.")
@click.option("--json", "as_json", is_flag=True)
def verify(stores, quick, as_json):
    """Check every checksum, shape, count and row; exit 1 when there is damage."""
    from stores import verify as findings_of

    found = {str(path): findings_of(path, quick=quick, progress=None if as_json else progress_line) for path in stores}
    if as_json:
        click.echo(json.dumps({path: [vars(f) for f in findings] for path, findings in found.items()}, indent=1))
    else:
        for path, findings in found.items():
            for finding in findings:
                click.echo(f"{path}: {finding.severity}: {finding.path}: {finding.what}; {finding.remedy}")
            if not any(finding.severity == "error" for finding in findings):
                click.echo(f"{path}: whole")
    sys.exit(DAMAGE if any(f.severity == "error" for findings in found.values() for f in findings) else DONE)


@store.command()
@click.argument("path", metavar="STORE", type=store_option)
@click.argument("clip")
@click.option("--draw", type=int, default=0, show_default=True)
@place_options
@click.option("--recompute", is_flag=True, help="Compute the row again and compare it with the stored one.")
@click.option("--weights", help="Weights for --recompute [those the store names].")
@click.option("--out", type=click.Path(path_type=Path), help="Picture to write [<store>_<clip>.png].")
@click.option("--json", "as_json", is_flag=True)
def inspect(path, clip, as_json, **options):
    """Contact sheet of exactly the frames that the network saw of CLIP (frame axis: VIDEO@SECONDS)."""
    from pipelines import inspect_clip

    facts = inspect_clip(path, clip, **options)
    show(facts, as_json)
    sys.exit(DAMAGE if facts.get("differs") else DONE)


@store.command()
@click.argument("path", metavar="STORE", type=store_option)
@click.option("--sample", type=click.IntRange(1), default=50, show_default=True, help="Rows computed again.")
@click.option("--seed", type=int, default=0, show_default=True, help="Which rows.")
@place_options
@click.option("--weights", help="Weights of the network [those the store names].")
@click.option("--json", "as_json", is_flag=True)
def audit(path, as_json, **options):
    """Compute random rows again and compare; look for constant, double, far-off, black and frozen ones."""
    from pipelines.audit import audit as run

    facts = run(path, progress=None if as_json else progress_line, **options)
    show(facts, as_json)
    sys.exit(DAMAGE if facts["differs"] else DONE)


@store.command()
@click.argument("stores", nargs=-1, required=True, type=store_option)
@place_options
@click.option("--weights", help="Weights of the network [those the store names].")
@click.option("--boxes", metavar="dataset|PATH", help="The boxes that the store was made with, if they were a file.")
@click.option("--changed", is_flag=True, help="Compute the rows of videos that are other files now anew.")
@click.option("--failed/--no-failed", default=True, show_default=True, help="Try rows that failed again.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--decode-workers", type=int, help="Units decoded at the same time.")
@click.option("--json", "as_json", is_flag=True)
def repair(stores, as_json, **options):
    """Restore what is damaged, compute what was lost or failed, seal again; exit 1 where something cannot be had."""
    from pipelines.repair import repair as run

    reports = []
    with stopped_by_signals() as stop:
        for path in stores:
            if stop.event.is_set():
                break
            reports.append(run(path, stop=stop.event, announce=say, progress=progress_bar, **options))
    if as_json:
        click.echo(json.dumps([vars(report) for report in reports], indent=1))
    else:
        for report in reports:
            click.echo(report.summary())
    if stop.signal is not None:
        sys.exit(stop.code)
    waiting = any(r.failed or r.pending or (r.changed_videos and not options["changed"]) for r in reports)
    sys.exit(DAMAGE if any(report.left for report in reports) else INCOMPLETE if waiting else DONE)


@store.command()
@click.argument("stores", nargs=-1, required=True, type=store_option)
@click.option("--json", "as_json", is_flag=True)
def gc(stores, as_json):
    """Remove what killed runs left behind, once it is older than an hour."""
    from stores import collect_garbage

    removed = {str(path): collect_garbage(path) for path in stores}
    if as_json:
        click.echo(json.dumps({path: garbage.removed for path, garbage in removed.items()}, indent=1))
        return
    for path, garbage in removed.items():
        for name, size in garbage.removed.items():
            click.echo(f"{path}: removed {name} ({count_of(size, 'byte')})")
        click.echo(f"{path}: {count_of(garbage.bytes, 'byte')} removed")
