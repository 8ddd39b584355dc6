"""`recognize`: what a trained sampler makes of videos, and what that costs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from commands.options import moved_store_options, moved_stores
from commands.printing import progress_bar
from commands.stopping import DONE, INCOMPLETE
from errors import count_of

__all__ = ["recognize"]


@click.command()
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    required=True,
    help="Of train-head psn or scsampler, or of train-backbone --head psn-sampler.",
)
@click.option("--sampled", type=int, metavar="M", help="Frames that the heavy network sees [the run's].")
@click.option("--adaptive", is_flag=True, help="More frames of videos that need them, M on average.")
@click.option("--compare", is_flag=True, help="Recognise from uniform and from all frames too, and time all three.")
@click.option("--top", type=int, default=5, show_default=True, help="Labels told.")
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Roots of stores that may have features of the videos [CLIPBANK_FEATURES, else ./features].",
)
@click.option("--weights", multiple=True, metavar="ROLE=PATH", help="Weights of sampler or recogniser [found].")
@moved_store_options("sampler", "recogniser", "frames")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("recognized"),
    show_default=True,
    help="Folder of the strips: each video's frames, those picked framed.",
)
@click.option("--no-strips", is_flag=True, help="No pictures.")
@click.option("--device", help="auto, cpu, cuda, cuda:1 ... [auto].")
@click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), help="Of the networks [that of the stores].")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a video, each on a line.")
def recognize(videos, as_json, out, no_strips, **options):
    """What is in videos, from the few frames that a trained sampler picks (thesis section 5.2.4).

    VIDEO is a file, a folder of videos, or the name of a video that stores of the run's recipes know: what they hold is
    not computed again. The light network sees all candidate frames, the heavy one those that are picked.
    """
    from tqdm import tqdm  # writes above a bar that is there

    from pipelines.recognize import recognize as each

    def tell(line: str) -> None:
        tqdm.write(line, file=sys.stderr)

    stores = moved_stores(options)
    complete = True
    for facts in each(
        videos, strips=None if no_strips else out, stores=stores, progress=progress_bar, say=tell, **options
    ):
        complete &= "failure" not in facts
        if as_json:
            tqdm.write(json.dumps(facts))
        elif "failure" in facts:
            tell(f"{facts['video']}: {facts['failure']['reason']}: {facts['failure']['message']}")
        else:
            tqdm.write("\n".join(lines_of(facts)) + "\n")
    sys.exit(DONE if complete else INCOMPLETE)


def lines_of(facts: dict) -> list[str]:
    """What is printed of a video."""
    frames = facts["frames"]
    lost = sum(frame["score"] is None for frame in frames)
    lines = [
        f"{facts['video']}: {facts['duration_s']:.1f} s, {count_of(len(frames), 'candidate frame')}"
        + (f", {lost} of them cannot be decoded" if lost else "")
    ]
    lines += [f"  {100 * one['probability']:5.1f} %  {one['label']}" for one in facts["labels"]]
    picked = ", ".join(f"{frame['time_s']:.1f} s ({frame['score']:.2f})" for frame in frames if frame["picked"])
    lines.append(f"  picked: {picked}")
    for role, found in facts["from_stores"].items():
        share = f"{found['rows']} of {count_of(found['of'], 'frame')}"
        lines.append(f"  from a store, not computed: {role}, {share}, {found['store']}")
    lines.append(f"  {'':12} {'frames':>6} {'GFLOPs':>8} {'networks':>10} {'decoding':>10}")
    for one in facts["methods"]:
        line = f"  {one['method']:12} {one['frames']:6} "
        line += f"{'-':>8}" if one["gflops"] is None else f"{one['gflops']:8.3g}"
        if "networks_s" in one:
            line += f" {one['networks_s']:8.3f} s {one['decoding_s']:8.3f} s  {one['label']}"
        lines.append(line)
    if facts["strip"]:
        lines.append(f"  {facts['strip']}")
    return lines
