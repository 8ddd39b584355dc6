"""What is done with trained runs: evaluate, predict, fuse, runs table, sweep, reproduce."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from commands.options import ROLES, RoleOfStore, moved_store_options, moved_stores, store_option
from commands.printing import published_table, say, show
from commands.stopping import DAMAGE, DONE
from errors import count_of

__all__ = ["evaluate", "fuse", "predict", "reproduce", "runs", "sweep"]

run_argument = click.argument("run", type=click.Path(path_type=Path))
path_option = click.Path(path_type=Path)


def dataset_options(command):
    """Where a run's dataset is now; `place_of` makes them a `pipelines.evaluation.Place`."""
    options = [
        click.option("--dataset", metavar="NAME|CSV", help="Of runs that read more than stores [the run's dataset]."),
        click.option("--data", type=path_option, help="Root of the datasets [CLIPBANK_DATA]."),
        click.option("--videos", type=path_option, help="Folder of the videos of a CSV."),
        click.option("--boxes", type=path_option, help="The file of boxes that a detector was trained on."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def place_of(options: dict):
    """Takes the options of `dataset_options`, or of `place_options`, out of a command's."""
    from pipelines.evaluation import Place

    return Place(**{name: options.pop(name) for name in ("dataset", "data", "videos", "boxes") if name in options})


def scoring_options(command):
    """Of what, and where datasets are now; `scoring_of` makes them the pipeline's arguments."""
    options = [
        click.option("--split", default="val", show_default=True, metavar="[SCHEME:]PART"),
        dataset_options,
        click.option("--device", help="auto, cpu, cuda, cuda:1 ... [auto]."),
        click.option("--allow-incomplete", is_flag=True, help="Count rows that are still pending as wrong."),
        click.option("--json", "as_json", is_flag=True, help="Print facts as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def scoring_of(options: dict, as_json: bool) -> dict:
    return {"place": place_of(options), "progress": not as_json, **options}


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=path_option)
@click.option("--published", is_flag=True, help="Also what papers print on this split, and ours less theirs.")
@moved_store_options()
@scoring_options
def evaluate(runs, published, as_json, **options):
    """Figures of a trained run on a split, with coverage: of a head, a network, a recogniser or a detector.

    Of several runs, such as those of EGTEA's three splits, their mean too.
    """
    from pipelines import evaluate as figures_of
    from pipelines.averages import evaluate_all

    stores = moved_stores(options)
    if stores and len(runs) > 1:
        raise click.UsageError("stores that have moved are told of one run at a time")
    scoring = {"stores": stores, **scoring_of(options, as_json)}
    facts = figures_of(runs[0], **scoring) if len(runs) == 1 else evaluate_all(runs, **scoring)
    beside = compared(runs[0], facts) if published else None
    trained = facts.get("features") if len(runs) == 1 else f"mean of {len(runs)} runs"
    show_beside(facts, beside, f"{runs[0].name}, {trained}", as_json)


def compared(run: Path, facts: dict) -> list[dict]:
    from pipelines.published import published_rows
    from pipelines.run_folder import open_run

    return published_rows(open_run(run).facts["dataset"]["name"], facts["split"], facts.get("average", facts))


def show_beside(facts: dict, beside: list[dict] | None, ours: str, as_json: bool, printed: str = "figures") -> None:
    """A run's facts, and what papers print beside them, where that is asked for (not None)."""
    show({**facts, "published": beside} if beside is not None and as_json else facts, as_json)
    if beside is not None and not as_json:
        lines = published_table(beside, ours)
        click.echo("\n".join(["", *(lines or [f"no paper here prints {printed} of split {facts['split']}"])]))


@click.command()
@run_argument
@click.option("--out", type=path_option, help="The .npz to write [RUN/scores_SPLIT.npz].")
@moved_store_options()
@scoring_options
def predict(run, out, as_json, **options):
    """Write a run's scores of a split: ids and logits, as .npz. Clips without features get the training prior.

    Of a retrieval run: the similarity of every caption with every clip.
    """
    from pipelines.prediction import predict as scores_of

    stores = moved_stores(options)
    show(scores_of(run, out=out, stores=stores, **scoring_of(options, as_json)), as_json)


def numbers(ctx, param, value):
    try:
        return [float(part) for part in value.split(",")] if value else None
    except ValueError:
        raise click.BadParameter(f"{value!r} is not numbers such as 2,1,1") from None


@click.command()
@click.argument("runs", nargs=-1, required=True, type=path_option)
@click.option("--weights", callback=numbers, metavar="A,B,...", help="Weight of each run in the mean [all alike].")
@click.option("--out", type=path_option, help="Also write the fused scores, as predict does.")
@click.option("--published", is_flag=True, help="Also what papers print of several networks on this split.")
@click.option(
    "--store",
    "moved",
    multiple=True,
    metavar="[RUN:]ROLE=PATH",
    help="A store that has moved: of RUN, as it is named above, or of every run that reads one of this role;"
    " repeatable.",
)
@moved_store_options(*ROLES)
@scoring_options
def fuse(runs, weights, out, published, moved, as_json, **options):
    """Late fusion: figures of the mean of several runs' softmax scores, such as RGB and flow."""
    from pipelines.prediction import fuse as figures_of
    from pipelines.prediction import published_fused
    from pipelines.run_folder import open_run

    stores, stores_of = stores_by_run(runs, moved, options)
    scoring = {"stores": stores, "stores_of": stores_of, **scoring_of(options, as_json)}
    facts = figures_of(runs, weights=weights, out=out, say=say, **scoring)
    beside = published_fused(open_run(runs[0]).facts["dataset"]["name"], facts["split"], facts) if published else None
    show_beside(facts, beside, " + ".join(run.name for run in runs), as_json, "figures of several networks")


def stores_by_run(runs, moved, options: dict) -> tuple[dict | None, dict]:
    """({role: path} of all runs, {run: {role: path}}) of `[RUN:]ROLE=PATH`s and of the options of the roles, which are
    taken out."""
    own = {}
    shared = options["moved"] = []
    for value in moved:
        named = [run for run in runs if value.startswith(f"{run}:")]
        run = max(named, key=lambda run: len(str(run)), default=None)
        role, path = RoleOfStore().convert(value.removeprefix(f"{run}:"), None, click.get_current_context())
        if run is None:
            shared.append((role, path))
        elif role in own.setdefault(run, {}):
            raise click.UsageError(f"the {role} store of {run} is given twice: {own[run][role]} and {path}")
        else:
            own[run][role] = path
    return moved_stores(options), own


@click.group()
def runs():
    """All runs at once."""


@runs.command()
@click.argument("runs", nargs=-1, type=path_option)
@click.option("--split", metavar="[SCHEME:]PART", help="Figures of `evaluate` on this split [the training's own].")
@click.option("--across-weights", is_flag=True, help="Features of base networks of several seeds count as the same.")
@click.option("--csv", "form", flag_value="csv", help="Every figure as CSV.")
@click.option("--latex", "form", flag_value="latex", help="A tabular of booktabs.")
def table(runs, split, across_weights, form):
    """Runs (folders, or folders of them [runs]) in rows: mean and deviation over the seeds of otherwise equal ones."""
    print_table(runs, form, split=split, across_weights=across_weights)


def print_table(paths, form=None, **options) -> None:
    from pipelines import runs_table

    rows = runs_table.runs_table(runs_table.find_runs(paths), **options)
    written = {"csv": runs_table.as_csv, "latex": runs_table.as_latex, None: runs_table.as_text}[form](rows)
    click.echo(written.rstrip("\n"))


@click.command()
@click.argument("head")
@click.option("--seeds", default="0-4", show_default=True, help="Such as 0-9 or 0,3,7.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE[,VALUE...]", help="A setting; several values: all of them."
)
@click.option("--out", type=path_option, help="Folder of the run folders [runs/sweep-HEAD].")
@click.option("--dataset", help="Look for stores of this dataset only.")
@click.option("--features", type=path_option, multiple=True, help="Roots of the stores [CLIPBANK_FEATURES].")
@click.option("--verb", type=store_option, help="Store of the verb network [found].")
@click.option("--noun", type=store_option, help="Store of the noun network [found].")
@click.option("--objects", type=store_option, help="Store with boxes and RoI features [found].")
@click.option("--sampler", type=store_option, help="psn, scsampler: store of the light network's `vector`.")
@click.option("--recogniser", type=store_option, help="psn, scsampler: store of the heavy network's `logits`.")
@click.option("--target", help="psn, scsampler: a label column, or labels: the table.")
@click.option("--fit", default="train", show_default=True, type=click.Choice(["train", "trainval"]))
@click.option("--epochs", type=int, help="Epochs [the method's own].")
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... [auto].")
@click.option("--allow-random", is_flag=True, help="Train on features of random weights.")
@click.option("--allow-incomplete", is_flag=True, help="Mask rows that are still pending.")
@click.option("--csv", "form", flag_value="csv", help="The table as CSV.")
@click.option("--latex", "form", flag_value="latex", help="The table as a tabular of booktabs.")
def sweep(head, seeds, settings, form, **options):
    """Train HEAD with every combination of settings and every seed; goes on where it stopped; ends with the table.

    One failure does not stop the rest; exit 1 when there was one.
    """
    from pipelines.sweep import seeds_of
    from pipelines.sweep import sweep as run

    done = run(head, seeds=seeds_of(seeds), settings=settings, say=say, progress=sys.stderr.isatty(), **options)
    if done.runs:
        print_table(done.runs, form)
    for folder, why in done.failed.items():
        say(f"failed: {folder}: {why}")
    sys.exit(DAMAGE if done.failed else DONE)


@click.command()
@run_argument
@click.option("--out", type=path_option, help="The new run folder [RUN-again].")
@moved_store_options()
@click.option("--features", type=path_option, multiple=True, help="Roots of the stores [CLIPBANK_FEATURES].")
@click.option("--weights", metavar="PATH", help="What a base training began with [the run beside it, or published].")
@dataset_options
@click.option("--tolerance", type=float, default=0.005, show_default=True, help="Largest difference of a figure.")
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... [auto].")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def reproduce(run, as_json, **options):
    """Train RUN again from the same stores, seed and settings, and compare; exit 1 where figures differ."""
    from pipelines.reproduce import reproduce as again

    stores, place = moved_stores(options), place_of(options)
    found = again(run, stores=stores, place=place, say=say, progress=not as_json, **options)
    if as_json:
        facts = {"run": str(found.again), "figures": found.figures, "identical": found.identical}
        click.echo(json.dumps({**facts, "different": found.different}, indent=1))
    else:
        for name, (then, now) in found.figures.items():
            mark = "  differs" if name in found.different else ""
            click.echo(f"{name}: {_figure(then)} then, {_figure(now)} now{mark}")
        click.echo(f"best.safetensors: {'identical' if found.identical else 'not identical'}")
        differ = count_of(len(found.different), "figure differs", "figures differ")
        counted = f"{differ} by more than {found.tolerance:g}"
        click.echo(counted if found.different else f"{found.again}: reproduced within {found.tolerance:g}")
    sys.exit(DAMAGE if found.different else DONE)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
