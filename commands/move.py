"""`store` commands that move features: copy, merge, compare, relabel, pack, export, import; `catalog` and `serve`."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import click

from commands.options import comma_separated, place_options, store_option
from commands.printing import progress_line, say, show
from commands.stopping import DAMAGE, DONE, INCOMPLETE
from commands.store import store
from errors import UserError, count_of

__all__ = ["catalog", "serve"]

target_option = click.Path(path_type=Path)
settings_option = click.option("--option", multiple=True, metavar="KEY=VALUE", help="An option of the format.")


@store.command()
@click.argument("source", type=store_option)
@click.argument("target", type=target_option)
@click.option("--split", metavar="[SCHEME:]PART", help="Only the rows of this part.")
@click.option("--arrays", callback=comma_separated, help="Only these arrays [all].")
@click.option("--dtype", type=click.Choice(["float16", "float32"]), help="Of the features [as they are].")
@click.option("--unit-rows", type=int, help="Rows of a shard [as they are].")
@click.option("--level", type=int, help="Of compression by zstd, 0 to 22.")
def copy(source, target, arrays, **options):
    """A copy that is cut, compressed or typed otherwise, or a part of a store. Goes on where it was stopped."""
    from stores import copy_store

    copied = copy_store(source, target, arrays=arrays or None, progress=progress_line, **options)
    click.echo(
        f"{copied.path}: {len(copied.ok):,} of {count_of(len(copied), 'row')}" + ("; sealed" if copied.sealed else "")
    )
    sys.exit(DONE if copied.sealed and len(copied.ok) == len(copied) else INCOMPLETE)


@store.command()
@click.argument("sources", nargs=-1, required=True, type=store_option)
@click.option("--to", "target", required=True, type=target_option, help="The store to make, or to go on with.")
def merge(sources, target):
    """Unite stores of one recipe, extracted in parts; exit 1 where two of them differ on a row."""
    from stores.merge import merge as run

    merged = run(sources, target, progress=progress_line)
    differing = [row for row, (reason, _) in merged.failures().items() if reason == "sources_differ"]
    click.echo(
        f"{merged.path}: {len(merged.ok):,} of {count_of(len(merged), 'row')}" + ("; sealed" if merged.sealed else "")
    )
    for row in differing[:10]:
        click.echo(f"  row {row}: {merged.failures()[row][1]}")
    complete = merged.sealed and len(merged.ok) == len(merged)
    sys.exit(DAMAGE if differing else DONE if complete else INCOMPLETE)


@store.command()
@click.argument("a", type=store_option)
@click.argument("b", type=store_option)
@click.option("--by", type=click.Choice(["identity", "time"]), default="identity", show_default=True)
@click.option("--arrays", callback=comma_separated, help="Only these arrays [those that both have].")
@click.option("--within", "within_s", type=float, help="Seconds that matched rows may be apart (--by time).")
@click.option("--worst", type=int, default=10, show_default=True, help="Rows named.")
@click.option("--json", "as_json", is_flag=True)
def compare(a, b, as_json, arrays, **options):
    """Are these features the same as those? Row by row, by cosine and length; exit 1 when they are not."""
    from stores.compare import compare as run

    found = run(a, b, arrays=arrays or None, progress=None if as_json else progress_line, **options)
    click.echo(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(found.lines()))
    sys.exit(DONE if found.agree else DAMAGE)


@store.command()
@click.argument("path", metavar="STORE", type=store_option)
@place_options
def relabel(path, dataset, data, videos):
    """Replace labels, captions and splits by those of the dataset's annotations now; moved clips are refused."""
    from extract.datasets import load_dataset
    from stores import open_store
    from stores.relabel import relabel as run

    read = load_dataset(dataset or open_store(path).manifest.dataset["name"], data_root=data, videos=videos)
    facts = {name: getattr(read, name) for name in ("annotation_hash", "classes", "class_names")}
    made = run(path, read.clips, read.texts, read.labels, videos=read.videos, facts=facts, announce=say)
    click.echo(f"{made.path}: relabelled" + (f"; sealed as version {made.manifest.seal['k']}" if made.sealed else ""))


@store.command()
@click.argument("source", type=store_option)
@click.argument("target", type=target_option)
@click.option("--compression", type=click.Choice(["none", "gzip", "lzf"]), default="none", show_default=True)
def pack(source, target, compression):
    """NAME.zarr as one HDF5 file, NAME.h5, that plain h5py reads."""
    from stores import pack as run

    run(source, target, compression, progress=progress_line)
    click.echo(target)


@store.command()
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("target", type=target_option)
def unpack(source, target):
    """The folder NAME.zarr of a packed store, NAME.h5, again."""
    from stores import unpack as run

    run(source, target, progress=progress_line)
    click.echo(target)


@store.command()
def formats():
    """What `export` writes and `import` reads."""
    from pipelines.formats import list_formats

    for one in list_formats():
        halves = "/".join(verb for verb, half in (("export", one.write), ("import", one.read)) if half)
        click.echo(f"{one.name} ({halves}): {one.what}" + (f" [{one.source}]" if one.source else ""))
        for name, what in (one.options or {}).items():
            click.echo(f"    --option {name}=...: {what}")


@store.command()
@click.argument("target_format", metavar="FORMAT")
@click.argument("stores", nargs=-1, required=True, type=store_option)
@click.argument("out", type=target_option)
@click.option("--array", help="The array to write [vector].")
@click.option("--draw", type=int, default=0, show_default=True, help="Of the clip axis.")
@click.option("--missing", type=click.Choice(["error", "skip", "nan"]), default="error", show_default=True)
@settings_option
def export(target_format, stores, out, option, **options):
    """Features as the files that other tools read (see `store formats`)."""
    from pipelines.exporting import export_features
    from pipelines.request import parse_settings

    chosen = stores[0] if len(stores) == 1 else by_feature(stores)
    settings = parse_settings(option)
    click.echo(
        export_features(target_format, chosen, out, options=settings, announce=say, progress=progress_line, **options)
    )


def by_feature(stores) -> dict:
    """{feature: store}, named as the stores are. Raises UserError for two of one name."""
    named = {Path(str(path)).stem: path for path in stores}
    if len(named) < len(stores):
        raise UserError(f"two of these stores have one name, which is the feature's: {', '.join(map(str, stores))}")
    return named


@store.command("import")
@click.argument("source_format", metavar="FORMAT")
@click.argument("root", type=click.Path(exists=True, path_type=Path))
@click.option("--dataset", required=True, metavar="NAME|CSV", help="Whose features they are; a new name makes one.")
@click.option("--data", type=click.Path(path_type=Path), help="Root of the datasets [CLIPBANK_DATA].")
@click.option("--videos", type=click.Path(path_type=Path), help="Folder of the videos of a CSV.")
@click.option("--experts", callback=comma_separated, help="Which of the files' features [all].")
@click.option("--features", type=click.Path(path_type=Path), default="features", help="Root of the new stores.")
@click.option("--dtype", default="float16", show_default=True, type=click.Choice(["float16", "float32"]))
@settings_option
def import_command(source_format, root, dataset, data, videos, experts, features, dtype, option):
    """Features made by other tools as stores (see `store formats`).

    What made them is declared, not verified, and every store says so.
    """
    from extract.datasets import list_datasets, load_dataset
    from pipelines.importing import import_features
    from pipelines.request import parse_settings

    if dataset.endswith(".csv") or dataset.partition(":")[0] in list_datasets():
        dataset = load_dataset(dataset, data_root=data, videos=videos)
    settings = parse_settings(option)
    for path in import_features(
        source_format, root, dataset, experts or None, features, dtype=dtype, options=settings, announce=say
    ):
        click.echo(path)


# ---- all stores under a folder -----------------------------------------------------------------------------------


@click.command()
@click.argument("root", type=store_option)
@click.option("--json", "as_json", is_flag=True)
def catalog(root, as_json):
    """Every store under ROOT: what it holds, how far it is, who made it, and where two of one feature differ.

    ROOT is a folder, or the address of a `serve`.
    """
    from stores.catalogue import catalogue

    show(catalogue(root), as_json)


@click.command()
@click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: whoever can reach this machine.")
@click.option("--port", type=int, default=8000, show_default=True)
def serve(root, host, port):
    """Offer the stores under ROOT read-only over HTTP, until Ctrl-C or SIGTERM, which end it with 0."""
    from stores.serve import serve as run

    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell began it in the background, deaf to SIGINT
        signal.signal(number, signal.default_int_handler)
    run(root, host, port, started=lambda url: say(f"serving {root} at {url}"))
