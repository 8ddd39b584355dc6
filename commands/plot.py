"""`plot`: pictures of a run."""

from pathlib import Path

import click

from commands.options import moved_store_options, moved_stores, place_options
from commands.printing import say

__all__ = ["plot"]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--what",
    multiple=True,
    metavar="PICTURE",
    help="curve, attention, assignment, ranking, confusion, gain, features or sampler; repeatable [what fits].",
)
@click.option("--against", type=click.Path(path_type=Path), help="gain, ranking: the run compared with.")
@place_options
@click.option("--split", metavar="[SCHEME:]PART", help="Clips shown come from here [val, else train].")
@click.option("--clips", type=int, default=6, show_default=True, help="Clips shown.")
@moved_store_options()
def plot(run, **options):
    """Pictures of a run, written into RUN/pictures.

    curve: the training's. attention: boxes with SAOA's weights (thesis figure 3.4). assignment: IPL's maps over frames
    (figure 4.3), or T2VLAD's words and segments at their centres (figure 6.3). ranking: the videos that a retrieval
    head finds (figure 6.4), beside those of the run --against. confusion: matrices in order of class frequency. gain:
    class by class over the run --against. features: t-SNE of the cached features. sampler: what a sampler picks
    (figures 5.3 to 5.5).
    """
    from pipelines.plotting import plot_run

    plot_run(run, stores=moved_stores(options), say=say, drawn=click.echo, **options)
