"""`index` and `search`: what a retrieval run finds for a typed text, or for a clip."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from commands.options import RoleOfStore, place_options
from commands.printing import aligned, progress_bar, say

__all__ = ["index", "search"]

path_option = click.Path(path_type=Path)


@click.command()
@click.argument("run", type=path_option)
@click.option("--captions", is_flag=True, help="Of the dataset's captions: what `search --video` looks through.")
@click.option("--split", default="all", show_default=True, metavar="[SCHEME:]PART|all", help="Which clips.")
@click.option("--dataset", help="Stores of this dataset instead, of the same names and recipes.")
@click.option(
    "--features", type=path_option, multiple=True, help="Roots where they are looked for [CLIPBANK_FEATURES]."
)
@click.option(
    "--store",
    "moved",
    type=RoleOfStore(),
    multiple=True,
    help="One of the run's stores that has moved, or its like of another dataset; repeatable.",
)
@click.option("--out", type=path_option, help="NAME.zarr [RUN/index/DATASET.zarr].")
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... [auto].")
@click.option("--allow-incomplete", is_flag=True, help="Mask rows that are still pending.")
def index(run, captions, moved, **options):
    """Compute the embeddings of a retrieval run's clips once, for `search`: a store in RUN/index.

    Killed at any moment, the same command goes on. An index of other stores, or of another training, is refused.
    """
    from pipelines.retrieval_embeddings import CAPTIONS, VIDEOS
    from pipelines.retrieval_index import build_index

    of = CAPTIONS if captions else VIDEOS
    click.echo(build_index(run, of=of, stores=dict(moved), progress=progress_bar, say=say, **options))


@click.command()
@click.argument("run", type=path_option)
@click.argument("query", required=False)
@click.option("--video", metavar="ID", help="Instead of a text: which captions fit this clip, or video of one clip.")
@click.option("-n", "number", type=click.IntRange(min=1), default=10, show_default=True, help="How many are told.")
@click.option("--index", type=path_option, help="NAME.zarr that `index` made [RUN/index/DATASET.zarr].")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write a page with thumbnails.")
@place_options
@click.option("--store", "moved", type=RoleOfStore(), multiple=True, help="text=PATH: the run's tokens, if moved.")
@click.option("--weights", metavar="PATH", help="Of the text network, where it was not trained too [found].")
@click.option("--candidates", type=click.IntRange(min=1), help="Rows scored exactly [15 a hit, at least 150].")
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... [auto].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a query, each on a line.")
def search(run, query, video, number, index, html, dataset, data, videos, moved, as_json, candidates, **options):
    """The clips that fit QUERY best, as a retrieval run ranks them: cli.py search RUN "a man cuts a potato".

    Without QUERY and --video, queries are typed, one a line. RUN needs an index first: cli.py index RUN.
    """
    from pipelines.retrieval_embeddings import CAPTIONS, VIDEOS
    from pipelines.search import Searcher

    if query is not None and video is not None:
        raise click.UsageError("a QUERY or --video, not both")
    if query is not None and not query.strip():
        raise click.UsageError('an empty query: say what is looked for, such as "a man cuts a potato"')
    if html is not None and query is None and video is None:
        raise click.UsageError("--html is a page of one search: give a QUERY or --video")
    searcher = Searcher(run, index, of=VIDEOS if video is None else CAPTIONS, stores=dict(moved), say=say, **options)
    frames = None if html is None else searcher.frames(dataset, data, videos)
    if frames is not None and frames[1]:
        say(f"no thumbnails: {frames[1]}")
    for one in [query if video is None else video] if query is not None or video is not None else typed():
        found = (searcher.text if video is None else searcher.video)(one, number, candidates)
        click.echo(json.dumps(found) if as_json else "\n".join(lines_of(found)))
        if html is not None:
            from pipelines.search_page import write_page

            say(str(write_page(html, found, *frames)))


def typed():
    """Queries typed or piped in, one a line."""
    while True:
        if sys.stdin.isatty():
            click.echo("search: ", nl=False, err=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()


def lines_of(found: dict) -> list[str]:
    """What is printed of a search."""
    from pipelines.search_page import clock_time, times_told

    by_text = "own" not in found
    things = "clips" if by_text else "captions"
    table = [("", "score", "clip" if by_text else "caption", "video" if by_text else "said of", "")]
    for rank, hit in enumerate(found["hits"], 1):
        when = clock_time(hit["start_s"], hit["stop_s"])
        own = "" if by_text or hit["clip"] != found["own"]["clip"] else "its own"
        said = (hit["clip"], hit["video"], when) if by_text else (hit["captions"][0], hit["clip"], own)
        table.append((f"{rank:3}", f"{hit['score']:.4f}", *said))
    lines = [f"{found['query']}: best of {found['indexed']:,} {things} of {found['dataset']}"]
    return [*lines, *aligned(table, words=len(table[0])), times_told(found["seconds"])]
