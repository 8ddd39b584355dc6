"""The command line: parses, calls `pipelines`, prints. No logic and no heavy import here (--help stays fast).

Exit codes: 0 all done; 1 the machine failed, or a check found damage or a difference; 2 wrong use;
3 finished, but rows failed or wait for their video; 75 stopped by SIGTERM, to be queued again; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path

import click

from errors import MachineError

DONE, DAMAGE, INCOMPLETE, REQUEUE, INTERRUPTED = 0, 1, 3, 75, 130


# ---- extract, plan -----------------------------------------------------------------------------------------------


class Shard(click.ParamType):
    """i/n: the i-th of n shares, counted from 0."""

    name = "i/n"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        part, slash, of = value.partition("/")
        if not (slash and part.isdigit() and of.isdigit()):
            self.fail(f"{value!r} is not i/n, such as 0/4", param, ctx)
        return int(part), int(of)


def shard_of_slurm() -> str | None:
    """The share of this task of a Slurm job array, whatever number the array begins with and whatever its step."""
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT")
    task, first, step, count = (os.environ.get(name, "") for name in names)
    if not (task.isdigit() and count.isdigit()):
        return None
    share = f"{(int(task) - int(first or 0)) // int(step or 1)}/{count}"
    say(f"share {share} of the units, as a task of a Slurm array (--shard 0/1 computes all)")
    return share


def comma_separated(ctx, param, value):
    return tuple(part.strip() for part in value.split(",") if part.strip()) if value else ()


def extraction_options(command):
    """The options of `extract`, which `plan` shares."""
    options = [
        click.option(
            "--dataset",
            required=True,
            metavar="NAME|CSV",
            help="A dataset's name (see `datasets list`) or a CSV"
            " with columns video,start,stop[,labels...] in seconds.",
        ),
        click.option("--data", type=click.Path(path_type=Path), help="Root of the datasets [CLIPBANK_DATA]."),
        click.option("--videos", type=click.Path(path_type=Path), help="Folder of the videos of a CSV."),
        click.option(
            "--features",
            type=click.Path(path_type=Path),
            multiple=True,
            help="Root of the stores, repeatable; the first is written [CLIPBANK_FEATURES, else ./features].",
        ),
        click.option(
            "--backbone",
            metavar="NETWORK",
            help="Network of clips, frames, sound or text, such as i3d; tv:, timm:, hf:NAME, or py:FILE.py:FACTORY.",
        ),
        click.option("--detector", metavar="NETWORK", help="Detector, such as faster_rcnn_r50_fpn, or d2:CONFIG."),
        click.option(
            "--expert",
            metavar="NAME[:NETWORK]",
            help="A preset over whole videos: rgb, motion, flow, audio, scene, ocr, face, speech.",
        ),
        click.option(
            "--boxes",
            metavar="dataset|PATH",
            help="RoI features of given boxes with an image --backbone: a CSV, EPIC-55's object labels, EPIC-100's"
            " hand-object detections.",
        ),
        click.option(
            "--roi-feature",
            type=click.Choice(["pooled", "fc"]),
            help="Detector: RoIAlign's maximum [pooled] or the box head's feature.",
        ),
        click.option("--name", help="Name of the store [the network's]."),
        click.option("--for", "for_head", metavar="HEAD", help="Make every store that this head reads."),
        click.option(
            "--keep", callback=comma_separated, metavar="ARRAYS", help="Poolings to store: map,spatial,vector."
        ),
        click.option("--only", is_flag=True, help="This one store; not the others that the head reads."),
        click.option("--draws", type=int, help="Random-centre clips cached a training segment [4]."),
        click.option("--seed", type=int, default=0, show_default=True, help="Seed of the random centres."),
        click.option("--split", metavar="[SCHEME:]PART", help="Compute only this part of the clips now."),
        click.option(
            "--weights",
            multiple=True,
            metavar="PATH|random:SEED",
            help="Weights [published]; NETWORK=PATH when several networks run. Repeatable.",
        ),
        click.option(
            "--option",
            multiple=True,
            metavar="KEY=VALUE",
            help="Any option of the network, such as top=20. Repeatable.",
        ),
        click.option("--layer", help="Layer whose map is taken [the network's default]."),
        click.option(
            "--flow",
            metavar="METHOD|STORE",
            help="Flow for a flow network: computed by tvl1, dis or raft, or from a store of flow_images.",
        ),
        click.option("--axis", type=click.Choice(["clip", "frame", "segment"]), help="What a row is [the network's]."),
        click.option("--hop", type=float, help="Seconds from one row to the next (frame and segment axes)."),
        click.option("--precision", default="fp32", show_default=True, type=click.Choice(["fp32", "bf16", "fp16"])),
        click.option(
            "--dtype",
            default="float16",
            show_default=True,
            type=click.Choice(["float16", "float32"]),
            help="Of the stored features.",
        ),
        click.option("--decoder", default="pyav", show_default=True, help="pyav or decord."),
        click.option(
            "--missing",
            default="error",
            show_default=True,
            type=click.Choice(["error", "skip"]),
            help="Videos that are not on disk: stop, or go on and leave their rows pending.",
        ),
        click.option("--limit", type=int, help="Compute at most this many rows now."),
        click.option("--unit-rows", type=int, help="Rows of a unit, fixed at creation."),
        click.option("--batch-size", type=int, help="Rows of a forward pass."),
        click.option(
            "--shard",
            type=Shard(),
            default=shard_of_slurm,
            help="Compute the i-th of n shares of the units, i from 0 [of a Slurm array: its task].",
        ),
        click.option("--retry-failed", is_flag=True, help="Compute failed rows again."),
        click.option("--json", "as_json", is_flag=True, help="Print facts as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


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
        except OSError as error:
            raise MachineError(f"{error.filename or 'the system'}: {error.strerror or error}") from error
        finally:
            signal.signal(signal.SIGTERM, before)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=show_version, help="Version.")
def main():
    """Run frozen networks over a dataset's videos once; train light heads from the stores."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"


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


store_option = click.Path(exists=True, path_type=Path)


@main.command("train-head")
@click.argument("head")
@click.option("--dataset", help="Look for stores of this dataset only.")
@click.option(
    "--features", type=click.Path(path_type=Path), multiple=True, help="Roots of the stores [CLIPBANK_FEATURES]."
)
@click.option("--verb", type=store_option, help="Store of the verb network [found].")
@click.option("--noun", type=store_option, help="Store of the noun network [found].")
@click.option("--objects", type=store_option, help="Store with boxes and RoI features [found].")
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
    """Stage two: train a head (saoa, whole_frame) on stores alone."""
    from pipelines import train_head as run

    folder = run(head, set=settings, say=say, progress=not as_json, **options)
    show_run(folder, as_json)


def moved_store_options(command):
    """Where a run's stores lie now; `moved_stores` takes them out of the options again."""
    for role in ("objects", "noun", "verb"):
        help_text = f"The run's {role} store, if it has moved."
        command = click.option(f"--{role}", type=store_option, help=help_text)(command)
    return command


def moved_stores(options: dict) -> dict | None:
    given = {role: options.pop(role) for role in ("verb", "noun", "objects")}
    return {role: path for role, path in given.items() if path is not None} or None


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--split", default="val", show_default=True, metavar="[SCHEME:]PART")
@moved_store_options
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... [auto].")
@click.option("--allow-incomplete", is_flag=True, help="Count rows that are still pending as wrong.")
@click.option("--json", "as_json", is_flag=True)
def evaluate(run, as_json, **options):
    """Figures of a trained head on a split, with coverage."""
    from pipelines import evaluate as figures_of

    show(figures_of(run, progress=not as_json, stores=moved_stores(options), **options), as_json)


@main.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), help="Root of the datasets [CLIPBANK_DATA].")
@click.option("--videos", type=click.Path(path_type=Path), help="Folder of the videos of a CSV.")
@click.option("--dataset", metavar="NAME|CSV", help="Where the frames come from [the run's dataset].")
@click.option("--split", metavar="[SCHEME:]PART", help="Clips shown come from here [val, else train].")
@click.option("--clips", type=int, default=6, show_default=True, help="Clips shown.")
@moved_store_options
def plot(run, **options):
    """Pictures of a run: its training curve, and boxes with their attention weights (thesis figure 3.4)."""
    from pipelines.plotting import plot_run

    for path in plot_run(run, stores=moved_stores(options), **options):
        click.echo(path)


# ---- store -------------------------------------------------------------------------------------------------------


@main.group()
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


@store.command("import")
@click.argument("source", metavar="FORMAT", type=click.Choice(["mmt", "ce"]))
@click.argument("root", type=click.Path(exists=True, path_type=Path))
@click.option("--dataset", required=True, metavar="NAME|CSV", help="Whose features they are; a new name makes one.")
@click.option("--data", type=click.Path(path_type=Path), help="Root of the datasets [CLIPBANK_DATA].")
@click.option("--videos", type=click.Path(path_type=Path), help="Folder of the videos of a CSV.")
@click.option("--experts", callback=comma_separated, help="Which of the dump's experts [all].")
@click.option("--features", type=click.Path(path_type=Path), default="features", help="Root of the new stores.")
@click.option("--dtype", default="float16", show_default=True, type=click.Choice(["float16", "float32"]))
def import_command(source, root, dataset, data, videos, experts, features, dtype):
    """Published features as stores: the dumps of MMT (mmt) and of collaborative-experts (ce).

    What made them is declared, not verified, and every store says so.
    """
    from extract.datasets import list_datasets, load_dataset
    from pipelines.importing import import_features

    if dataset.endswith(".csv") or dataset.partition(":")[0] in list_datasets():
        dataset = load_dataset(dataset, data_root=data, videos=videos)
    for path in import_features(source, root, dataset, experts or None, features, dtype=dtype, announce=say):
        click.echo(path)


@store.command()
@click.argument("path", metavar="STORE", type=store_option)
@click.argument("clip")
@click.option("--draw", type=int, default=0, show_default=True)
@click.option("--dataset", metavar="NAME|CSV", help="Where the videos are [the store's dataset].")
@click.option("--data", type=click.Path(path_type=Path), help="Root of the datasets [CLIPBANK_DATA].")
@click.option("--videos", type=click.Path(path_type=Path), help="Folder of the videos of a CSV.")
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
    """The main job on the embedded dataset: make toy kitchen, extract, train SAOA, print the table and the pictures."""
    from pipelines.demo import demo_heads, demo_stores

    with stopped_by_signals() as stop:
        for report in demo_stores(out, stop=stop.event, announce=say, progress=progress_bar):
            say(report.summary())
    if stop.signal is not None:
        sys.exit(stop.code)
    table, pictures = demo_heads(out, seed=seed, say=say)
    click.echo(table)
    for picture in pictures:
        click.echo(picture)


# ---- printing and stopping ---------------------------------------------------------------------------------------


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

    unit = "video" if title.startswith("probing") else "row"
    seconds = 0.5 if sys.stderr.isatty() else 30
    return tqdm(total=total, desc=title, unit=unit, smoothing=0.1, dynamic_ncols=True, mininterval=seconds)


def progress_line(done: int, total: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{done}/{total}", nl=done == total, err=True)


class Stop:
    """Which signal asked to stop, and the event that the pipeline looks at."""

    def __init__(self):
        self.event = threading.Event()
        self.signal: int | None = None

    @property
    def code(self) -> int:
        return REQUEUE if self.signal == signal.SIGTERM else INTERRUPTED

    def __call__(self, number, frame) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.signal = number
        self.event.set()
        say("\nstopping after the batches in work (again to stop at once; either way nothing written is lost)")


@contextlib.contextmanager
def stopped_by_signals():
    """Ctrl-C and SIGTERM set an event instead of breaking off; a second one breaks off."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except KeyboardInterrupt:
        sys.exit(stop.code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    main()
