"""SAOA against the whole-frame baseline on toy kitchen, over several seeds, on the same features and budget.

    python benchmarks/toykitchen_claim.py [--seeds 0 1 2]

Extracts once what the demo extracts (I3D at 16 x 112 with random:0 weights; EfficientNet-Lite0 with ImageNet weights
at the dataset's boxes), then trains both heads with the demo's budget, once a seed.
Fails (exit 1) when SAOA's mean noun top-1 is less than 10 points above the baseline's, the baseline's is not above
that of always saying training's most frequent noun, SAOA's reaches the ceiling of 100 %, or there are too few clips.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from machine import print_machine
from measuring import verdict, work_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LEAST_TRAIN, LEAST_VAL, LEAST_GAIN, CEILING = 800, 400, 0.10, 1.0
NAMES = ("verb", "noun", "action")


def dataset_with(train_clips: int, val_clips: int, **dials) -> str:
    """The toy kitchen with these numbers of clips, as `--dataset` takes it."""
    from extract.datasets.toykitchen import Dials

    usual = Dials()
    wanted = {"train_clips": train_clips, "val_clips": val_clips, **dials}
    changed = [f"{name}={value}" for name, value in wanted.items() if value != getattr(usual, name)]
    return "toykitchen" + (":" + ",".join(changed) if changed else "")


def top1(run: Path) -> dict[str, float]:
    figures = json.loads((run / "metrics.json").read_text())
    return {name: figures[name]["top1"] for name in NAMES}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for data, features and runs, reused [a temporary one]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train-clips", type=int, default=LEAST_TRAIN)
    parser.add_argument("--val-clips", type=int, default=LEAST_VAL)
    parser.add_argument("--dials", nargs="*", default=[], metavar="DIAL=VALUE", help="further dials of toy kitchen")
    parser.add_argument("--epochs", type=int, help="for a trial [the demo's]")
    args = parser.parse_args()

    from extract.datasets.registry import parse_options
    from pipelines.demo import BUDGET, HEADS, chance, demo_stores, table_of_runs
    from pipelines.training import train_head
    from stores import open_store

    print_machine()
    started = time.monotonic()
    with work_folder(args.root) as root:
        name = dataset_with(args.train_clips, args.val_clips, **parse_options(",".join(args.dials)))
        reports = demo_stores(root, name, announce=print)
        for report in reports:
            print(report.summary(), flush=True)
        extracted = time.monotonic() - started
        store = open_store(reports[0].store)
        dataset, split = store.manifest.dataset["name"], store.clips["split"]
        guess, found = chance(store), {head: [] for head in HEADS}
        for seed in args.seeds:
            runs = {}
            for head in HEADS:
                runs[head] = train_head(
                    head, dataset=dataset, features=(root / "features",), set=BUDGET, epochs=args.epochs, seed=seed,
                    out=root / "runs" / dataset / f"{head}-s{seed}", allow_random=True, progress=False,
                )  # fmt: skip
                found[head].append(top1(runs[head]))
            print(f"seed {seed}:\n{table_of_runs(runs, guess)}", flush=True)
    train, val = int((split == "train").sum()), int((split == "val").sum())
    print(
        f"{dataset}: {train} training and {val} validation clips, {len(args.seeds)} seeds;"
        f" extraction {extracted:.0f} s, all of it {time.monotonic() - started:.0f} s"
    )
    print("validation top-1 in percent: mean and standard deviation over the seeds")
    print(f"{'':14}" + "".join(f"{name:>16}" for name in NAMES))
    print(f"{'most frequent':14}" + "".join(f"{100 * guess[name]:16.1f}" for name in NAMES))
    mean = {}
    for head, figures in found.items():
        values = {name: [figure[name] for figure in figures] for name in NAMES}
        mean[head] = {name: statistics.mean(values[name]) for name in NAMES}
        spread = {name: statistics.stdev(values[name]) if len(figures) > 1 else 0.0 for name in NAMES}
        cells = [f"{100 * mean[head][name]:.1f} +- {100 * spread[name]:.1f}" for name in NAMES]
        print(f"{head:14}" + "".join(f"{cell:>16}" for cell in cells))
    print(f"{'ceiling':14}" + "".join(f"{100 * CEILING:16.1f}" for _ in NAMES))
    saoa, baseline = mean["saoa"]["noun"], mean["whole_frame"]["noun"]
    return verdict(
        [
            (
                train >= LEAST_TRAIN and val >= LEAST_VAL,
                f"{train} training and {val} validation clips, at least {LEAST_TRAIN} and {LEAST_VAL}",
            ),
            (
                saoa >= baseline + LEAST_GAIN,
                f"SAOA's noun top-1 is {100 * (saoa - baseline):.1f} points above the"
                f" baseline's, at least {100 * LEAST_GAIN:.0f}",
            ),
            (
                baseline > guess["noun"],
                f"the baseline's noun top-1, {100 * baseline:.1f} %, is above chance, {100 * guess['noun']:.1f} %",
            ),
            (saoa < CEILING, f"SAOA's noun top-1, {100 * saoa:.1f} %, is below the ceiling, {100 * CEILING:.0f} %"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
