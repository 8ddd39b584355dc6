"""PSN's ablations on toy kitchen's untrimmed videos: which relations of the thesis's tables 5.1 to 5.3 hold, by seeds.

    python benchmarks/ablations_psn.py [--seeds 0 1 2 3 4 5 6 7 8 9] [--root DIR] [--write docs/ablations.md]

Makes `toykitchen_untrimmed` with several shares of irrelevant frames, caches two features of EfficientNet-Lite0 (its
ImageNet weights) once, and then, a seed at a time: trains a recogniser (TSN, a classifier on the richer feature), and
PSN, its variants and SCSampler on the poorer one with that recogniser's logits. All train on `train` and `val`, take
the last epoch, and are measured on `test`, so nothing is chosen on what is reported.
Prints Markdown and keeps the figures in ROOT/ablations_psn.json: a killed run goes on with the seeds it lacks (remove
that file after a change of settings). Shows, asserts nothing (exit 0).
"""

import dataclasses
import functools
import hashlib
import json
import math
import shutil
import sys
import time
import warnings
from pathlib import Path

from ablation_table import Relation, arguments, relation, sections, write_section
from machine import machine_line
from measuring import work_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TITLE = "Efficient recognition: PSN (thesis chapter 5)"
SHARES = (0.0, 0.6, 0.875)  # dial `irrelevant`; of 8 scenes 0, 5 and 7 tell nothing
MAIN = 0.6  # toy kitchen's own; the tables are made on it
N, M = 25, 10
MS = (1, 2, 4, 6, 8, 10, 15)
ADAPTIVE_MS = (4, 6, 8, 10)
HOP = 0.32  # seconds: two cached frames a segment, from which training draws

# Chosen on videos of another seed, and on training losses, before any two ways of sampling were compared.
FEATURES = {"light": ("stride32", 96), "heavy": ("head", 128)}  # layer, side of the squashed frame in pixels
RECOGNISER = {"epochs": 20}
BUDGET = {"epochs": 40, "lr": 0.01, "last_lr": 0.001, "workers": 1}

# mAP on ActivityNet, in the thesis's words.
TABLES = {
    "5.1, context": {
        "TSN": 79.06, "no context": 78.93, "non-local": 78.44, "TCN": 82.01, "ED-TCN": 82.28,
    },
    "5.2, weight of the sparsity loss": {
        "lambda 0": 78.72, "lambda 0.01": 80.37, "lambda 0.04": 81.90, "lambda 0.06": 82.18, "lambda 0.1": 82.28,
        "lambda 0.15": 82.25, "TSN": 79.06,
    },
    "5.3, sampling and weighting": {
        "TSN": 79.06, "sampling only": 81.70, "weighting only": 80.00, "both": 82.28,
    },
}  # fmt: skip
SLOW = {"lr": BUDGET["lr"] / 10, "last_lr": BUDGET["last_lr"] / 10}  # looked at after the first run: see docs
CONTEXTS = {"no context": "none", "non-local": "nonlocal", "TCN": "tcn", "ED-TCN": "ed_tcn"}
LEADS = {"uniform": " (+3.22)", "SCSampler": " (+2.40)"}  # PSN's at M = 10, TSN ResNet-101 (tables 5.1 and 5.5)


@dataclasses.dataclass(frozen=True)
class Bench:
    """One variant of the videos, and where its files lie."""

    root: Path
    share: float

    @property
    def dataset(self) -> str:
        return "toykitchen_untrimmed" + ("" if self.share == MAIN else f":irrelevant={self.share:g}")

    @property
    def folder(self) -> Path:
        """Of what a seed makes; it can be made again from the features."""
        return self.root / "runs" / f"irrelevant={self.share:g}"


@functools.cache
def features(bench: Bench, name: str) -> Path:
    """The store of one of `FEATURES`, made first if it is not there."""
    from pipelines import Extraction, extract

    layer, size = FEATURES[name]
    (report,) = extract(
        Extraction(
            dataset=bench.dataset, data=bench.root / "data", features=(bench.root / "features",),
            backbone="efficientnet_lite0", name=name, axis="frame", hop=HOP, keep=("vector",), only=True,
            layer=layer, option=(f'resize={{"mode":"squash","size":{size}}}',),
        )
    )  # fmt: skip
    if not report.complete:
        raise SystemExit(f"{report.store} is not complete: run `clipbank store info` on it")
    return Path(report.store)


def quiet(line: str) -> None:
    """Trainings say nothing here."""


def recogniser(bench: Bench, seed: int) -> Path:
    """A store of a new recogniser's logits, as `extract --weights RUN` makes it, from the cached features."""
    from pipelines import train_recogniser

    run = train_recogniser(
        vectors=features(bench, "heavy"), target="label", fit="trainval", seed=seed, set=RECOGNISER,
        out=bench.folder / f"recogniser-s{seed}", progress=False, say=quiet,
    )  # fmt: skip
    return logits_store(features(bench, "heavy"), run, bench.folder / f"logits-s{seed}.zarr")


def logits_store(vectors: Path, run: Path, path: Path) -> Path:
    """The classifier of a recogniser's run applied to the features it was trained on: the same instants."""
    import numpy as np

    from pipelines.lineage import descent
    from pipelines.recogniser_model import own_classifier
    from pipelines.run_folder import open_run
    from stores import ArraySpec, create_store, open_store, plan_layout

    source, trained = open_store(vectors), open_run(run)
    made = source.manifest
    tensors, _ = trained.best_checkpoint()
    (classes,) = trained.facts["targets"].values()
    options = {"layer": made.spec["layer"], "resize": dict(made.spec["resize"])}
    _, keys = own_classifier(made.spec["name"], options, classes)
    weight, bias = (tensors[key].numpy() for key in sorted(keys, key=lambda key: -len(keys[key])))
    arrays = {"logits": ArraySpec((classes,), "float32")}
    manifest = dataclasses.replace(
        made,
        arrays=arrays,
        layout=plan_layout(arrays, 1024, batch_size=32),
        recipe={**made.recipe, "classifier": hashlib.sha256(weight.tobytes() + bias.tobytes()).hexdigest()},
        lineage=descent(trained.facts),
        extents=(),
        tables={},
        hashes={},
        seal=None,
    )
    tables = [{name: table[name] for name in table} for table in (source.rows, source.clips, source.videos)]
    store = create_store(path, manifest, {k: v[source.visible] for k, v in tables[0].items()}, *tables[1:])
    rows = np.flatnonzero(source.visible)
    for unit in store.units:
        part = rows[unit.start : unit.stop]
        values = source.read("vector", part).astype(np.float32) @ weight.T + bias
        store.commit(unit, {"logits": values}, np.ones(len(part), np.uint8), {})
    return path


def trained(bench: Bench, logits: Path, seed: int, name: str, head: str = "psn", **settings) -> Path:
    """The run of a head on all clips but the test's."""
    from pipelines import train_head

    return train_head(
        head, sampler=features(bench, "light"), recogniser=logits, target="label", fit="trainval", seed=seed,
        set={**BUDGET, **settings}, out=bench.folder / f"{name.replace(' ', '-')}-s{seed}", progress=False, say=quiet,
    )  # fmt: skip


def rows_of(run: Path, ms, *, adaptive: bool = False) -> list[dict]:
    """Figures of every way to pick M frames of the test videos, `pipelines.sampler_evaluation.method_rows`."""
    from pipelines.run_folder import open_run
    from pipelines.sampler_evaluation import clips_of, method_rows, open_sampler, scorer, see, thresholds_of

    opened = open_sampler(open_run(run))
    which = clips_of(opened, "test")
    seen, there = see(opened.model, opened.candidates, which, device=opened.device)

    def rows(ms, thresholds=None):
        score = scorer(opened.candidates.targets, which, there)
        name, seed = opened.run.head_name, opened.run.facts["seed"]
        return method_rows(seen, opened.model.head, score, ms, name=name, seed=seed, thresholds=thresholds)

    found = rows(ms, thresholds_of(opened) if adaptive else None)
    seen_of_adaptive = {row["frames"] for row in found if row["method"] == "adaptive"}
    beside = {edge for frames in seen_of_adaptive for edge in (math.floor(frames), math.ceil(frames))}
    return found + rows(sorted(beside - set(ms)))


def value(rows: list[dict], method: str, m: int) -> float:
    """mAP in percent."""
    return next(100 * row["mAP"] for row in rows if (row["method"], row["m"]) == (method, m))


def at_cost(rows: list[dict], frames: float) -> float:
    """PSN's mAP in percent with a fixed M that costs so many frames, between two whole M by a straight line."""
    low = math.floor(frames)
    left, right = value(rows, "psn", low), value(rows, "psn", math.ceil(frames))
    return left + (frames - low) * (right - left)


def gain_figures(bench: Bench, seed: int) -> dict[str, float]:
    """PSN and what learns nothing at every M, on any variant: mAP on the test videos in percent by name."""
    logits = recogniser(bench, seed)
    psn = rows_of(trained(bench, logits, seed, "psn"), (*MS, N))
    found = {named(bench.share, way, m): value(psn, way, m) for way in ("psn", "uniform", "random") for m in MS}
    return found | {f"share {bench.share:g}: dense": value(psn, "dense", N)}


def named(share: float, method: str, m: int) -> str:
    """The name of a figure of one variant."""
    return f"share {share:g}: {method}, M = {m}"


def table_figures(bench: Bench, seed: int) -> dict[str, float]:
    """All rows of the tables: mAP on the test videos in percent by name, "frames ..." numbers of frames."""
    found = gain_figures(bench, seed)
    logits = bench.folder / f"logits-s{seed}.zarr"
    psn = rows_of(bench.folder / f"psn-s{seed}", (*MS, N), adaptive=True)
    found["both"] = found["lambda 0.1"] = found["ED-TCN"] = value(psn, "psn", M)
    found["sampling only"] = value(psn, "sampling only", M)
    for m in ADAPTIVE_MS:
        row = next(row for row in psn if (row["method"], row["m"]) == ("adaptive", m))
        found |= {f"adaptive, M = {m}": 100 * row["mAP"], f"frames of adaptive, M = {m}": row["frames"]}
        found[f"fixed, M = {m}"] = at_cost(psn, row["frames"])
    whole = rows_of(trained(bench, logits, seed, "weighting only", frames=M, sampled=M), (M,))
    found |= {"TSN": value(whole, "dense", M), "weighting only": value(whole, "weighting only", M)}
    light = rows_of(trained(bench, logits, seed, "scsampler", "scsampler"), MS)
    found |= {f"SCSampler, M = {m}": value(light, "scsampler", m) for m in MS}
    variants = {name: {"context": kind} for name, kind in CONTEXTS.items() if name != "ED-TCN"}
    lambdas = (name for name in TABLES["5.2, weight of the sparsity loss"] if name.startswith("lambda"))
    variants |= {name: {"sparsity": float(name.split()[1])} for name in lambdas if name != "lambda 0.1"}
    for name, settings in variants.items():
        found[name] = value(rows_of(trained(bench, logits, seed, name, **settings), (M,)), "psn", M)
    return found


def slow_figures(bench: Bench, seed: int) -> dict[str, float]:
    """Table 5.1 at a tenth of the rate: mAP on the test videos in percent by name."""
    logits = recogniser(bench, seed)
    runs = {name: trained(bench, logits, seed, slow(name), context=kind, **SLOW) for name, kind in CONTEXTS.items()}
    return {slow(name): value(rows_of(run, (M,)), "psn", M) for name, run in runs.items()}


def slow(name: str) -> str:
    """The name of a figure at a tenth of the rate."""
    return f"{name}, slow"


def measured(root: Path, shares, seeds) -> dict[str, dict[str, float]]:
    """{seed: all its figures}, those of ROOT/ablations_psn.json as they are, the others made now, the tables' first."""
    kept = root / "ablations_psn.json"
    found = json.loads(kept.read_text()) if kept.is_file() else {}
    started = time.monotonic()
    parts = {f"{share:g}": (Bench(root, share), gain_figures) for share in shares}
    parts = {f"{MAIN:g}": (Bench(root, MAIN), table_figures), "slow": (Bench(root, MAIN), slow_figures)} | {
        key: part for key, part in parts.items() if key != f"{MAIN:g}"
    }
    for key, (bench, figures) in parts.items():
        of_part = found.setdefault(key, {})
        for seed in (seed for seed in map(str, seeds) if seed not in of_part):
            of_part[seed] = figures(bench, int(seed))
            kept.write_text(json.dumps(found, indent=1))
            shutil.rmtree(bench.folder)
            print(f"{key}, seed {seed}, after {time.monotonic() - started:.0f} s", flush=True)
    return {
        seed: {name: figure for key in parts for name, figure in found[key][seed].items()} for seed in map(str, seeds)
    }


# --- the document ---


def relations_of(found: dict[str, dict[str, float]], shares) -> dict[str, list[Relation]]:
    """{title: relations} in the order of the document."""
    seeds = list(found.values())

    def of(name: str) -> list[float]:
        return [figures[name] for figures in seeds]

    tables = {}
    for title, printed in TABLES.items():
        ordered = sorted(printed, key=printed.get, reverse=True)
        pairs = [(a, b) for i, a in enumerate(ordered) for b in ordered[i + 1 :]]
        tables[f"Table {title}"] = [
            relation(f"{a} > {b} ({printed[a] - printed[b]:+.2f})", of(a), of(b)) for a, b in pairs
        ]

    ordered = sorted(CONTEXTS, key=TABLES["5.1, context"].get, reverse=True)
    tables["Table 5.1 at a tenth of the learning rate"] = [
        relation(f"{a} > {b}", of(slow(a)), of(slow(b))) for i, a in enumerate(ordered) for b in ordered[i + 1 :]
    ]

    def against(other: str, m: int, figures: list[float]) -> Relation:
        printed = LEADS.get(other, "") if m == M else ""
        return relation(f"PSN > {other}, M = {m}{printed}", of(named(MAIN, "psn", m)), figures)

    tables["PSN at equal M"] = [
        *(against("uniform", m, of(named(MAIN, "uniform", m))) for m in MS),
        *(against("random", m, of(named(MAIN, "random", m))) for m in MS),
        *(against("SCSampler", m, of(f"SCSampler, M = {m}")) for m in MS),
        relation(f"PSN, M = {M} > all {N} frames (+1.00)", of(named(MAIN, "psn", M)), of(f"share {MAIN:g}: dense")),
    ]
    frames = {m: sum(of(f"frames of adaptive, M = {m}")) / len(seeds) for m in ADAPTIVE_MS}
    tables["Adaptive M against fixed M at equal mean cost"] = [
        relation(f"adaptive > fixed at {frames[m]:.1f} frames", of(f"adaptive, M = {m}"), of(f"fixed, M = {m}"))
        for m in ADAPTIVE_MS
    ]
    tables["PSN's gain against the share of irrelevant frames"] = [
        relation(
            f"PSN > uniform, M = {m}, irrelevant {true_share(share):.1%}",
            of(named(share, "psn", m)),
            of(named(share, "uniform", m)),
        )
        for m in (4, M)
        for share in shares
    ]
    return tables


@functools.cache
def true_share(share: float) -> float:
    """The share of scenes, hence of frames, in which nothing is handled."""
    from extract.datasets.toykitchen import write_script

    scenes = [scene for video in write_script(dials_of(share)) if video.events for scene in video.scenes]
    return sum(scene.verb < 0 for scene in scenes) / len(scenes)


def dials_of(share: float):
    """The `Dials` of a variant."""
    from extract.datasets.toykitchen import Dials
    from extract.datasets.toykitchen_untrimmed import USUAL

    return Dials(**{**USUAL, "irrelevant": share})


def document(found: dict[str, dict[str, float]], shares) -> str:
    """The section's Markdown, without its heading."""
    from collections import Counter

    from extract.datasets.toykitchen import write_script
    from extract.datasets.toykitchen_untrimmed import split_of

    split = Counter(split_of(video.name) for video in write_script(dials_of(MAIN)) if video.events)
    dense = [figures[f"share {MAIN:g}: dense"] for figures in found.values()]
    (light, light_size), (_, heavy_size) = FEATURES["light"], FEATURES["heavy"]
    lines = [
        f"`python benchmarks/ablations_psn.py`, {len(found)} paired seeds, mAP in percent on {split['test']} test"
        f" videos of kitchens and digits that no training saw ({split['train'] + split['val']} to train; the videos are"
        " the same for all seeds, recogniser and samplers are trained anew). In brackets: the thesis's difference on"
        " ActivityNet. A relation *holds* where the 95 % interval of its paired differences lies above 0, is *reversed*"
        " where it lies below, and is *undecided* else.",
        "",
        "Sampler: PSN on cached features (`frozen`: the thesis trains the light network too) of EfficientNet-Lite0's"
        f" {light} at {light_size} pixels. Recogniser: TSN, a classifier on EfficientNet-Lite0 at {heavy_size} pixels;"
        f" all {N} frames give {sum(dense) / len(dense):.1f} mAP. N = {N}, M = {M}"
        f" where not said; {BUDGET['epochs']} epochs, lr {BUDGET['lr']:g}, the same for all. TSN: {M} frames, one a"
        f" segment, averaged. SCSampler and PSN are trained once (M = {M}) and asked for other M.",
        "",
        "Toy kitchen untrimmed, frozen before any method was compared (dials' hash, share of irrelevant frames): "
        + "; ".join(f"`{Bench(Path(), s).dataset}` {dials_of(s).hash[:16]}, {true_share(s):.1%}" for s in shares)
        + ".",
        "",
        machine_line(),
    ]
    return "\n".join([*lines, *sections(relations_of(found, shares))])


def main() -> int:
    parser = arguments(__doc__, TITLE)
    parser.add_argument("--shares", type=float, nargs="+", default=list(SHARES), help="shares of irrelevant frames")
    args = parser.parse_args()
    if MAIN not in args.shares:
        parser.error(f"--shares needs {MAIN:g}: the tables are made on it")

    warnings.simplefilter("ignore")  # trainings without validation say so every time
    with work_folder(args.root) as root:
        text = document(measured(root, args.shares, args.seeds), args.shares)
    print(text)
    if args.write:
        write_section(args.write, TITLE, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
