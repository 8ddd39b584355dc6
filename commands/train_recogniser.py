"""`train-recogniser`: PSN's recogniser, from frames or from cached features."""

from __future__ import annotations

import click

from commands.options import store_option
from commands.printing import say, show_run
from commands.train_backbone import training_options

__all__ = ["train_recogniser"]


@click.command("train-recogniser")
@click.option("--backbone", help="The frame network to train (see `networks list`).")
@click.option("--target", required=True, help="A label column of the clips, or labels: the table of multiple labels.")
@click.option(
    "--strategy",
    default="tsn",
    show_default=True,
    type=click.Choice(["tsn", "frame"]),
    help="Segments with consensus, or independent frames.",
)
@click.option("--frames", type=store_option, help="Store of frames [found].")
@click.option("--vectors", type=store_option, help="Instead: a store of pooled features; only a classifier is trained.")
@click.option("--option", multiple=True, metavar="KEY=VALUE", help="An option of the network.")
@click.option("--allow-random", is_flag=True, help="Train on features of random weights.")
@click.option("--allow-incomplete", is_flag=True, help="Leave out rows that are still pending.")
@training_options
def train_recogniser(settings, as_json, **options):
    """A network that names videos from a few frames, as PSN needs it; `extract --weights RUN` takes what comes out.

    Several GPUs of a machine: torchrun --nproc-per-node N cli.py train-recogniser ...
    """
    from pipelines.recogniser_training import train_recogniser as run

    folder = run(set=settings, say=say, progress=not as_json, **options)
    show_run(folder, as_json)
