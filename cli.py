"""The command line: parses, calls `pipelines`, prints. No logic and no heavy import here (--help stays fast).

Exit codes: 0 all done; 1 the machine failed, or a check found damage or a difference; 2 wrong use;
3 finished, but rows failed or wait for their video; 75 stopped by SIGTERM, to be queued again; 130 interrupted.
"""

from __future__ import annotations

import json
import signal
import sys
import warnings
from pathlib import Path

import click

from commands.move import catalog, serve
from commands.options import extraction_options, store_option
from commands.plot import plot
from commands.printing import progress_bar, say, show, show_run
from commands.recognize import recognize
from commands.runs import evaluate, fuse, predict, reproduce, runs, sweep
from commands.search import index, search
from commands.stopping import DAMAGE, DONE, INCOMPLETE, INTERRUPTED, REQUEUE, stopped_by_signals
from commands.store import store
from commands.submit import submit
from commands.train_backbone import train_backbone
from commands.train_detector import train_detector
from commands.train_recogniser import train_recogniser
from errors import MachineError

# ---- extract, plan -----------------------------------------------------------------------------------------------


def show_version(ctx, param, value):
    if value and not ctx.resilient_parsing:
        from importlib import metadata

        try:
            click.echo(f"clipbank {metadata.version('clipbank')}")
        except metadata.PackageNotFoundError:
            click.echo("clipbank, a checkout that is not installed")
        ctx.exit()


class Commands(click.Group):
    """A group whose commands end with 130 on Ctrl-C and 75 on SIGTERM, what they wrote being safe."""

    def invoke(self, ctx):
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(REQUEUE))
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            say("interrupted")
            sys.exit(INTERRUPTED)
        except click.ClickException:  # some are OSErrors too, such as a store that is not there
            raise
        except OSError as error:
            raise MachineError(f"{error.filename or 'the system'}: {error.strerror or error}") from error
        finally:
            signal.signal(signal.SIGTERM, before)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Version.")
def main():
    """Run frozen networks over a dataset's videos once; train light heads from the stores."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


for command in (
    catalog,
    evaluate,
    fuse,
    index,
    plot,
    predict,
    recognize,
    reproduce,
    runs,
    search,
    serve,
    store,
    submit,
    sweep,
    train_backbone,
    train_detector,
    train_recogniser,
):
    main.add_command(command)


@main.command()
@extraction_options
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option("--decode-workers", type=int, help="Units decoded at the same time [1 on CPU, half the cores with CUDA].")
def extract(as_json, device, decode_workers, **options):
    """Stage one: compute feature stores. Resumes by itself; running it again on a complete store does nothing."""
    from pipelines import Extraction
    from pipelines import extract as run

    with stopped_by_signals() as stop:
        reports = run(
            Extraction(**options),
            device=device,
            decode_workers=decode_workers,
            stop=stop.event,
            announce=say,
            progress=progress_bar,
        )
    if as_json:
        click.echo(json.dumps([report.to_json() for report in reports], indent=1))
    else:
        for report in reports:
            click.echo(report.summary())
    if stop.signal is not None:
        sys.exit(stop.code)
    sys.exit(DONE if all(report.complete for report in reports) else INCOMPLETE)


@main.command()
@extraction_options
@click.option("--device", default="auto", show_default=True, help="Where one forward pass is timed; none: do not time.")
def plan(as_json, device, **options):
    """What `extract` would do: stores, rows, units, bytes and time. Nothing is written."""
    from pipelines import Extraction, plan_extraction
    from pipelines.estimate import describe_job

    jobs = plan_extraction(Extraction(**options), headers_only=True, announce=say)
    show([describe_job(job, None if device == "none" else device) for job in jobs], as_json)


# ---- heads -------------------------------------------------------------------------------------------------------


@main.command("train-head")
@click.argument("head")
@click.option("--dataset", help="Look for stores of this dataset only.")
@click.option(
    "--features", type=click.Path(path_type=Path), multiple=True, help="Roots of the stores [CLIPBANK_FEATURES]."
)
@click.option("--verb", type=store_option, help="Store of the verb network [found].")
@click.option("--noun", type=store_option, help="Store of the noun network [found].")
@click.option("--objects", type=store_option, help="Store with boxes and RoI features [found].")
@click.option("--sampler", type=store_option, help="psn, scsampler: store of the light network's `vector`.")
@click.option("--recogniser", type=store_option, help="psn, scsampler: store of the heavy network's `logits`.")
@click.option("--text", help="Retrieval heads: a text network, trained too, or a store of its tokens [bert].")
@click.option("--weights", help="Retrieval heads: of the text network that is trained too [published].")
@click.option("--expert", "experts", multiple=True, metavar="NAME=STORE", help="Retrieval heads: repeatable [found].")
@click.option("--target", help="psn, scsampler: a label column, or labels: the table [what the recogniser names].")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder [runs/...].")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the head or of its training.")
@click.option("--fit", default="train", show_default=True, type=click.Choice(["train", "trainval"]))
@click.option("--epochs", type=int, help="Epochs [the method's own].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... [auto].")
@click.option("--allow-random", is_flag=True, help="Train on features of random weights.")
@click.option("--allow-incomplete", is_flag=True, help="Mask rows that are still pending.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def train_head(head, settings, as_json, **options):
    """Stage two: train a head (saoa, ipl, whole_frame, psn, scsampler, t2vlad ...) on stores alone."""
    from pipelines import train_head as run

    folder = run(head, set=settings, say=say, progress=not as_json, **options)
    show_run(folder, as_json)


# ---- datasets, weights, demo ----------------------------------------------------------------------------------


@main.group()
def datasets():
    """What can be extracted."""


@datasets.command("list")
def list_datasets():
    """Names that --dataset takes."""
    from extract.datasets import list_datasets as names

    click.echo("\n".join(names()))


@datasets.command()
@click.argument("name")
@click.option("--data", type=click.Path(path_type=Path), help="Root of the datasets [CLIPBANK_DATA].")
@click.option("--videos", type=click.Path(path_type=Path), help="Folder of the videos of a CSV.")
@click.option("--json", "as_json", is_flag=True)
def check(name, data, videos, as_json):
    """Read annotations and find videos; exit 1 when videos are missing."""
    from extract.datasets import check_dataset, load_dataset

    facts = check_dataset(load_dataset(name, data_root=data, videos=videos))
    show(facts, as_json)
    sys.exit(DAMAGE if facts["missing"] else DONE)


@main.group()
def networks():
    """The frozen networks of stage one."""


@networks.command("list")
@click.argument("pattern", default="*")
def list_networks(pattern):
    """Networks whose name matches PATTERN, with what they read and return."""
    from extract.networks import list_networks as names
    from extract.networks import network_spec

    for name in names(pattern):
        spec = network_spec(name)
        outputs = ", ".join(f"{array} {shape}" for array, (shape, _) in spec.outputs.items())
        click.echo(f"{name}: reads {spec.reads}; {outputs}; {spec.licence}")


@main.group()
def weights():
    """Published weights that networks load."""


@weights.command("list")
@click.option("--json", "as_json", is_flag=True)
def list_weights(as_json):
    """Which networks and experts work right here, right now, and what the others lack."""
    from dataclasses import asdict

    from extract.experts import EXPERTS
    from extract.readiness import readiness
    from extract.weights import TABLE, find_local

    networks = readiness()
    if as_json:
        entries = [{**asdict(entry), "found": bool(find_local(entry))} for entry in TABLE.values()]
        click.echo(json.dumps({"networks": [asdict(one) for one in networks], "weights": entries}, indent=1))
        return
    lines = [("network", "here", "weights", "licence", "lacks")]
    lines += [(one.network, "yes" if one.works else "no", one.weights, one.licence, one.lacks) for one in networks]
    works = {one.network: one.works for one in networks}
    lines += [("", "", "", "", ""), ("expert", "here", "network", "", "")]
    for expert in EXPERTS.values():
        instead = f"--expert {expert.name}:{expert.packaged}" if expert.packaged and not works[expert.network] else ""
        lines.append((expert.name, "yes" if works[expert.network] else "no", expert.network, "", instead))
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    for line in lines:
        click.echo(
            "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[4]]).rstrip()
        )


@main.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
def demo(out, seed):
    """The whole chain on the embedded dataset: make toy kitchen, train two networks, extract, train SAOA, show all."""
    from pipelines import demo as steps

    def extracted(step) -> None:
        with stopped_by_signals() as stop:
            for report in step(chain, stop=stop.event, announce=say, progress=progress_bar):
                say(report.summary())
        if stop.signal is not None:
            sys.exit(stop.code)

    chain = steps.Chain(out, seed=seed)
    extracted(steps.demo_features)
    steps.demo_networks(chain, say=say)
    extracted(steps.demo_trained_features)
    trained = steps.demo_heads(chain, say=say)
    click.echo(steps.table(chain, trained))
    for picture in steps.demo_pictures(chain, trained):
        click.echo(picture)


if __name__ == "__main__":
    main()
