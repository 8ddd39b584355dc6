"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path

import click

from commands.printing import say

__all__ = [
    "Shard",
    "comma_separated",
    "extraction_options",
    "moved_store_options",
    "moved_stores",
    "place_options",
    "shard_of_slurm",
    "store_option",
]


class Address(click.Path):
    """A path that exists, or the URL of a store or of a served root."""

    def convert(self, value, param, ctx):
        is_url = isinstance(value, str) and "://" in value
        return value if is_url else super().convert(value, param, ctx)


store_option = Address(exists=True, path_type=Path)


def place_options(command):
    """Where a store's dataset and its videos are now."""
    for option in (
        click.option("--videos", type=click.Path(path_type=Path), help="Folder of the videos of a CSV."),
        click.option("--data", type=click.Path(path_type=Path), help="Root of the datasets [CLIPBANK_DATA]."),
        click.option("--dataset", metavar="NAME|CSV", help="Where the videos are [the store's dataset]."),
    ):
        command = option(command)
    return command


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


ROLES = ("verb", "noun", "objects", "sampler", "recogniser", "frames", "vectors")  # that a run's stores play


class RoleOfStore(click.ParamType):
    """ROLE=PATH: which role of a run's stores, and where that store lies now."""

    name = "ROLE=PATH"

    def convert(self, value, param, ctx):
        if isinstance(value, tuple):
            return value
        role, equals, place = value.partition("=")
        if not (role and equals and place):
            self.fail(f"{value!r} is not ROLE=PATH, such as audio=features/mine/audio.zarr", param, ctx)
        return role, store_option.convert(place, param, ctx)


def moved_store_options(*roles: str):
    """Where a run's stores of these roles [all, and with --store those of any other name, such as experts] lie now;
    `moved_stores` takes them out of the options again."""

    def decorated(command):
        if not roles:
            help_text = "Any of the run's stores that has moved, such as an expert's; repeatable."
            command = click.option("--store", "moved", type=RoleOfStore(), multiple=True, help=help_text)(command)
        for role in reversed(roles or ROLES):
            help_text = f"The run's {role} store, if it has moved."
            command = click.option(f"--{role}", type=store_option, help=help_text)(command)
        return command

    return decorated


def moved_stores(options: dict) -> dict | None:
    given = {role: options.pop(role) for role in ROLES if role in options}
    given = {role: path for role, path in given.items() if path is not None}
    for role, path in options.pop("moved", ()):
        if role in given:
            raise click.UsageError(f"the run's {role} store is given twice: {given[role]} and {path}")
        given[role] = path
    return given or None


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
        click.option("--draws", type=int, help="Random-centre clips cached a training segment [2]."),
        click.option(
            "--test-clips",
            type=int,
            help="Evenly spaced clips cached of every other segment, whose scores IPL averages at test [0; 10 with"
            " --for ipl].",
        ),
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
        click.option(
            "--segments", type=int, metavar="N", help="Of each clip, only the middle frames of N equal segments."
        ),
        click.option(
            "--sampler",
            type=click.Path(path_type=Path),
            metavar="RUN",
            help="Of each clip, only the frames that this trained sampler picks (train-head psn, scsampler).",
        ),
        click.option("--sampled", type=int, metavar="M", help="Frames that --sampler picks of a clip [its own M]."),
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
