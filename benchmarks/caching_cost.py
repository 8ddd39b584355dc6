"""What caching costs: SAOA on few cached random-centre clips against fresh ones every epoch; IPL frozen against trained
together with its network.

    python benchmarks/caching_cost.py [--seeds 0 1 2 3 4]

On toy kitchen, with the demo's networks of seed 0. Training clips are cached at as many random centres as there are
epochs. SAOA is trained on the first K = 1, 2, 4, 8, 15 of them (each epoch shows one at random) and on a fresh one
every epoch, which is what training without a cache would see of frozen networks; validation clips are centre ones.
Then IPL, from the same initial weights of one network: trained together with it (`end-to-end`), and on the cached maps
of that network trained with linear classifiers for as many epochs (`frozen`).
Prints means, deviations and paired differences to the fresh draws with their 95 % intervals, and the smallest K whose
interval holds the difference 0 for verbs, nouns and actions. Shows, asserts nothing (exit 0).
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

from ablation_table import interval
from machine import print_machine
from measuring import work_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

KS = (1, 2, 4, 8, 15)
NAMES = ("verb", "noun", "action")


def figures(run: Path) -> dict[str, float]:
    """Validation top-1 of the last epoch: the best one of a noisy curve would favour whoever is noisier."""
    header, *_, last = (run / "log.csv").read_text().splitlines()
    row = dict(zip(header.split(","), last.split(","), strict=True))
    return {name: float(row[f"val_{name}_top1"]) for name in NAMES}


def extracted(chain, epochs: int) -> dict[str, Path]:
    """Stores of both networks' features with a random centre an epoch."""
    from pipelines import extract

    stores = {}
    for target in ("verb", "noun"):
        request = chain.extraction(
            "small3d",
            name=f"{target}_draws",
            weights=(str(chain.run(f"{target}net")),),
            draws=max(epochs, *KS),
            only=True,
        )
        (report,) = extract(request)
        stores[target] = Path(report.store)
    return stores


def saoa_runs(chain, stores, seeds, epochs: int, root: Path) -> dict[str, list[dict]]:
    """{condition: figures a seed}."""
    from pipelines.demo import BUDGET
    from pipelines.training import train_head

    budget = {**BUDGET, "epochs": epochs, "last_epochs": epochs // 4}
    conditions = {f"K = {k}": {"draws": k} for k in KS} | {"fresh": {"in_turn": True}}
    found: dict[str, list[dict]] = {name: [] for name in conditions}
    for seed in seeds:  # the conditions take turns
        for name, drawn in conditions.items():
            out = root / "runs" / f"saoa-{name.replace(' ', '')}-e{epochs}-s{seed}"
            train_head(
                "saoa", verb=stores["verb"], noun=stores["noun"], objects=chain.store("efficientnet_lite0_boxes"),
                out=out, set=budget | drawn, seed=seed, progress=False, say=lambda line: None,
            )  # fmt: skip
            found[name].append(figures(out))
            print(f"  seed {seed}, {name}: {found[name][-1]}", flush=True)
    return found


def ipl_runs(chain, seeds, epochs: int, root: Path) -> dict[str, list[dict]]:
    """{condition: figures a seed} of IPL frozen and end-to-end."""
    from pipelines import extract, train_backbone, train_head

    found: dict[str, list[dict]] = {"IPL, frozen": [], "IPL, end-to-end": []}
    start = str(chain.run("verbnet"))  # stands for published weights: both begin with it
    common = {"frames": chain.store("frames"), "weights": start, "progress": False, "say": lambda line: None}
    for seed in seeds:
        joint = train_backbone(
            "small3d", head="ipl", epochs=epochs, seed=seed, out=root / "runs" / f"ipl-joint-s{seed}", **common
        )
        found["IPL, end-to-end"].append(figures(joint))
        base = train_backbone(
            "small3d", target="both", epochs=epochs, seed=seed, out=root / "runs" / f"both-s{seed}", **common
        )
        request = chain.extraction(
            "small3d", name=f"both_s{seed}", weights=(str(base),), draws=4, keep=("map",), only=True
        )
        (report,) = extract(request)
        frozen = train_head(
            "ipl", verb=report.store, seed=seed, out=root / "runs" / f"ipl-frozen-s{seed}",
            set={"lr": 0.03, "last_lr": 0.003}, progress=False, say=lambda line: None,
        )  # fmt: skip
        found["IPL, frozen"].append(figures(frozen))
        print(f"  seed {seed}: " + ", ".join(f"{name} {rows[-1]}" for name, rows in found.items()), flush=True)
    return found


def show(found: dict[str, list[dict]], reference: str) -> dict[str, dict[str, tuple[float, float]]]:
    """Print the table; {condition: {name: paired difference to the reference and half its interval}}."""
    seeds = len(found[reference])
    print(
        f"\nvalidation top-1 of the last epoch in percent, {seeds} seeds; in brackets paired differences to {reference}"
    )
    print(f"{'':18}" + "".join(f"{name:>34}" for name in NAMES))
    gaps: dict[str, dict[str, tuple[float, float]]] = {}
    for condition, rows in found.items():
        cells = []
        for name in NAMES:
            values = [100 * row[name] for row in rows]
            gap = interval([v - 100 * row[name] for v, row in zip(values, found[reference], strict=True)])
            gaps.setdefault(condition, {})[name] = gap
            spread = statistics.stdev(values) if seeds > 1 else 0.0
            paired = "" if condition == reference else f" ({gap[0]:+.1f} +- {gap[1]:.1f})"
            cells.append(f"{statistics.mean(values):.1f} +- {spread:.1f}{paired}")
        print(f"{condition:18}" + "".join(f"{cell:>34}" for cell in cells), flush=True)
    return gaps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for data, features and runs, reused [a temporary one]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--epochs", type=int, default=60, help="of SAOA, and random centres cached")
    parser.add_argument("--ipl-epochs", type=int, default=8)
    parser.add_argument("--ipl-seeds", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()

    from pipelines.demo import Chain, demo_features, demo_networks

    print_machine()
    started = time.monotonic()
    with work_folder(args.root) as root:
        chain = Chain(root)
        demo_features(chain)
        demo_networks(chain, progress=False, say=lambda line: None)
        saoa = saoa_runs(chain, extracted(chain, args.epochs), args.seeds, args.epochs, root)
        gaps = show(saoa, "fresh")
        within = [k for k in KS if all(abs(mean) <= half for mean, half in gaps[f"K = {k}"].values())]
        print(f"smallest K within seed noise of fresh draws: {within[0] if within else 'none'}")
        ipl = ipl_runs(chain, args.ipl_seeds, args.ipl_epochs, root) if args.ipl_seeds else {}
        if ipl:
            show(ipl, "IPL, end-to-end")
        (root / "caching_cost.json").write_text(json.dumps(saoa | ipl, indent=1))
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
