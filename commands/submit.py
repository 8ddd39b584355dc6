"""`submit`: files for the servers of the EPIC challenges, and whether a file is one."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from commands.options import moved_store_options, moved_stores, place_options
from commands.printing import say, show
from commands.runs import numbers, place_of
from commands.stopping import DAMAGE, DONE

__all__ = ["submit"]


@click.command()
@click.argument("runs", metavar="[RUN]...", type=click.Path(path_type=Path), nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help="The zip to write [submission.zip in the first run].")
@click.option("--weights", callback=numbers, metavar="A,B,...", help="Weight of each run in the mean [all alike].")
@click.option("--check", "checked", type=click.Path(path_type=Path), help="Validate this zip or .json instead.")
@click.option("--challenge", type=click.Choice(["epic55", "epic100"]), help="Whose rules [the run's, or the file's].")
@click.option("--sls", type=(int, int, int), metavar="PT TL TD", help="epic100: the supervision levels, 0..5 each.")
@click.option("--without-actions", is_flag=True, help="Leave the actions' scores to the server.")
@moved_store_options()
@place_options
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... [auto].")
@click.option("--json", "as_json", is_flag=True)
def submit(runs, out, weights, checked, challenge, sls, without_actions, as_json, **options):
    """Score the test segments of an EPIC challenge with a run, or several fused, and write the file its server takes.

    Every segment is in it: those without a prediction are filled from the training prior, and listed. With --check
    FILE, say what a server would refuse, by the ids of the annotations where --data is known; exit 1 if anything.
    """
    if bool(runs) == (checked is not None):
        raise click.UsageError("give a RUN to score, or --check FILE")
    stores = moved_stores(options)
    if checked is not None:
        sys.exit(check(checked, challenge, options["data"], as_json))
    from pipelines.submission import submit as write

    facts = write(
        runs,
        out or runs[0] / "submission.zip",
        challenge=challenge,
        weights=weights,
        sls=sls,
        actions=not without_actions,
        say=say,
        stores=stores,
        place=place_of(options),
        device=options["device"],
        progress=not as_json,
    )
    show(facts, as_json)


def check(path: Path, challenge: str | None, data: Path | None, as_json: bool) -> int:
    from pipelines.submission import checked_submission

    facts = checked_submission(path, challenge, data, say=say)
    problems = facts["problems"]
    show(facts if as_json else {**facts, "problems": len(problems)}, as_json)
    for line in problems if not as_json else ():
        click.echo(f"  {line}")
    return DAMAGE if problems else DONE
