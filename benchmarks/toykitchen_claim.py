"""The thesis's chain on toy kitchen, over several seeds: what `cli.py demo` runs once.

    python benchmarks/toykitchen_claim.py [--seeds 0 1 2]

Trains VerbNet and NounNet (small3d, from random weights) on cached frames, extracts their features, and trains the
heads with the demo's budget, all of it once a seed; the features of the untrained network are the same for all.
Fails (exit 1) when one of these does not hold for the means: VerbNet's verbs and NounNet's nouns are 10 points above
always saying training's most frequent class, and above a linear classifier on the untrained network; SAOA on the
trained networks' features is above SAOA on untrained ones and above the base networks alone, for verbs and for nouns.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from machine import print_machine
from measuring import verdict, work_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LEAST_TRAIN, LEAST_VAL, LEAST_GAIN = 800, 400, 0.10
NAMES = ("verb", "noun", "action")


def dataset_with(train_clips: int, val_clips: int, **dials) -> str:
    """The toy kitchen with these numbers of clips, as `--dataset` takes it."""
    from extract.datasets.toykitchen import Dials

    usual = Dials()
    wanted = {"train_clips": train_clips, "val_clips": val_clips, **dials}
    changed = [f"{name}={value}" for name, value in wanted.items() if value != getattr(usual, name)]
    return "toykitchen" + (":" + ",".join(changed) if changed else "")


def claims(mean: dict[str, dict[str, float]]) -> list[tuple[bool, str]]:
    """What must hold of the means of the table's rows."""

    def above(name: str, one: str, other: str, least: float = 0.0) -> tuple[bool, str]:
        gain = mean[one][name] - mean[other][name]
        return gain > least, f"{name}s: {one} is {100 * gain:.1f} points above {other}" + (
            f", more than {100 * least:.0f}" if least else ""
        )

    own = {"verb": "VerbNet", "noun": "NounNet"}
    return [
        *(above(name, own[name], "most frequent", LEAST_GAIN) for name in own),
        *(above(name, own[name], "linear, untrained") for name in own),
        *(above(name, "SAOA", "SAOA, untrained") for name in own),
        *(above(name, "SAOA", own[name]) for name in own),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for data, features and runs, reused [a temporary one]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-clips", type=int, default=LEAST_TRAIN)
    parser.add_argument("--val-clips", type=int, default=LEAST_VAL)
    parser.add_argument("--dials", nargs="*", default=[], metavar="DIAL=VALUE", help="further dials of toy kitchen")
    args = parser.parse_args()

    from extract.datasets.registry import parse_options
    from pipelines.demo import (
        Chain,
        demo_features,
        demo_heads,
        demo_networks,
        demo_trained_features,
        table,
        top1,
    )
    from stores import open_store

    print_machine()
    started = time.monotonic()
    with work_folder(args.root) as root:
        name = dataset_with(args.train_clips, args.val_clips, **parse_options(",".join(args.dials)))
        found: dict[str, list[dict]] = {}
        for seed in args.seeds:
            chain = Chain(root, name, seed)
            demo_features(chain)
            demo_networks(chain, progress=False)
            demo_trained_features(chain)
            runs = demo_heads(chain, progress=False, say=lambda line: None)
            print(f"seed {seed}, after {time.monotonic() - started:.0f} s:\n{table(chain, runs)}", flush=True)
            for row, figures in top1(chain, runs).items():
                found.setdefault(row, []).append(figures)
        split = open_store(chain.store("untrained")).clips["split"]
    train, val = int((split == "train").sum()), int((split == "val").sum())
    print(
        f"{name}: {train} training and {val} validation clips, {len(args.seeds)} seeds; validation top-1 in percent,"
        f" mean and standard deviation over the seeds\n{'':20}" + "".join(f"{name:>16}" for name in NAMES)
    )
    mean = {row: {k: statistics.mean(f[k] for f in figures) for k in figures[0]} for row, figures in found.items()}
    for row, figures in found.items():
        spread = {k: statistics.stdev(f[k] for f in figures) if len(figures) > 1 else 0.0 for k in figures[0]}
        cells = [f"{100 * mean[row][k]:.1f} +- {100 * spread[k]:.1f}" if k in spread else "-" for k in NAMES]
        print(f"{row:20}" + "".join(f"{cell:>16}" for cell in cells))
    enough = train >= LEAST_TRAIN and val >= LEAST_VAL
    clips = f"{train} training and {val} validation clips, at least {LEAST_TRAIN} and {LEAST_VAL}"
    return verdict([(enough, clips), *claims(mean)])


if __name__ == "__main__":
    sys.exit(main())
