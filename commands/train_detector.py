"""`train-detector`: base training of the detector, before it is frozen."""

from __future__ import annotations

from pathlib import Path

import click

from commands.options import store_option
from commands.printing import say, show_run
from commands.train_backbone import training_options

__all__ = ["train_detector"]


@click.command("train-detector")
@click.option(
    "--detector", metavar="NETWORK", help="A faster_rcnn_* network [the dataset's, else faster_rcnn_r50_fpn]."
)
@click.option(
    "--boxes",
    type=click.Path(path_type=Path),
    help="A CSV of boxes, or EPIC-55's object labels [the dataset's own].",
)
@click.option("--frames", type=store_option, help="Store of the dataset's frames [frames_detector].")
@click.option("--data", type=click.Path(path_type=Path), help="Root of the datasets [CLIPBANK_DATA].")
@click.option("--videos", type=click.Path(path_type=Path), help="Folder of the videos of a CSV.")
@click.option("--option", multiple=True, metavar="KEY=VALUE", help="An option of the network, such as proposals=500.")
@click.option("--allow-incomplete", is_flag=True, help="Leave out frames that are still pending.")
@training_options
def train_detector(settings, as_json, **options):
    """Base training: a Faster R-CNN on a dataset's boxes, from cached frames; `extract --detector ... --weights RUN`
    takes what comes out. The default schedule is the thesis's, for train/val or (--fit trainval) trainval/test.
    """
    from pipelines.detector_training import train_detector as run

    folder = run(set=settings, say=say, progress=not as_json, **options)
    show_run(folder, as_json)
