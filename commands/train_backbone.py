"""`train-backbone`: a network on a dataset's own labels, before it is frozen."""

from __future__ import annotations

from pathlib import Path

import click

from commands.options import store_option
from commands.printing import say, show_run

__all__ = ["train_backbone", "training_options"]


def training_options(command):
    """The options that every base training takes."""
    for option in reversed(
        (
            click.option("--dataset", metavar="NAME|CSV", help="Look for frames of this dataset only."),
            click.option(
                "--features",
                type=click.Path(path_type=Path),
                multiple=True,
                help="Roots of the stores [CLIPBANK_FEATURES].",
            ),
            click.option("--weights", metavar="PATH|random:SEED", help="What to start from [the published ones]."),
            click.option("--out", type=click.Path(path_type=Path), help="Run folder [runs/...]."),
            click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the training."),
            click.option("--fit", default="train", show_default=True, type=click.Choice(["train", "trainval"])),
            click.option("--epochs", type=int, help="Epochs [the method's own]."),
            click.option("--seed", type=int, default=0, show_default=True),
            click.option("--device", help="auto, cpu, cuda, cuda:1 ... [auto]."),
            click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON."),
        )
    ):
        command = option(command)
    return command


@click.command("train-backbone")
@click.option("--backbone", required=True, help="The network (see `networks list`).")
@click.option(
    "--target",
    default="both",
    show_default=True,
    help="verb, noun, both, action, or another label column [psn-sampler: the recogniser's].",
)
@click.option(
    "--head", help="A head trained together with the network (ipl, saoa, psn-sampler) instead of linear classifiers."
)
@click.option("--objects", type=store_option, help="Store of boxes and RoI features, for a head that reads them.")
@click.option("--recogniser", type=store_option, help="Store of logits that psn-sampler learns from.")
@click.option("--allow-random", is_flag=True, help="psn-sampler: learn from logits of random weights.")
@click.option("--allow-incomplete", is_flag=True, help="psn-sampler: mask rows that are still pending.")
@click.option("--frames", metavar="STORE|decode", help="Store of frames [found], or the videos themselves.")
@click.option("--data", type=click.Path(path_type=Path), help="Root of the datasets (--frames decode).")
@click.option("--videos", type=click.Path(path_type=Path), help="Folder of the videos of a CSV (--frames decode).")
@click.option("--option", multiple=True, metavar="KEY=VALUE", help="An option of the network, such as layer=Mixed_4f.")
@training_options
def train_backbone(settings, as_json, **options):
    """Base training: a network on a dataset's labels, from cached frames; `extract --weights RUN` takes what comes out.

    Several GPUs of a machine: torchrun --nproc-per-node N cli.py train-backbone ...
    """
    from pipelines import train_backbone as run

    folder = run(set=settings, say=say, progress=not as_json, **options)
    show_run(folder, as_json)
