"""The thesis's ablations of SAOA and IPL, and SAP's, on toy kitchen: which relations of their tables come out here.

    python benchmarks/ablations_egocentric.py [--seeds 0 1 ... 9] [--studies tables flow distractors clutter camera]

Every seed has networks of its own: VerbNet and NounNet (small3d) as in the demo, the same two on optical flow (DIS),
and for IPL one network of both. Their features are cached, and every row of `heads.ablations` is trained on them: the
same batches and budget for all rows of a seed, so that rows are compared in pairs. IPL is the `frozen` method here.
Figures are validation top-1 of the last epoch.

    tables       3.1 to 3.3 and 3.5 (RGB), SAP's table 2; 4.5 to 4.7
    flow         3.4 and 3.5 (flow, RGB + flow)
    distractors  SAOA's noun gain against the number of distractors
    clutter      IPL's background gain against it
    camera       RGB + flow's gain against camera motion

Each relation *holds*, is *reversed* or *undecided* by the 95 % t-interval of its paired differences. The kitchens are
frozen by the hashes of their dials, which are compared first. What is done already under --root is not done again.
Prints Markdown, and writes it to ROOT/ablations_egocentric.md and into --write FILE. Asserts nothing (exit 0).
"""

import functools
import re
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from ablation_table import arguments, interval, markdown, relation, write_section
from egocentric_claims import CLAIMS, DOSES, KITCHENS
from machine import print_machine
from measuring import work_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TITLE = "Egocentric actions: SAOA, SAP and IPL"
STUDIES = ("tables", "flow", "distractors", "clutter", "camera")
METRICS = ("verb", "noun", "action")
IPL_BUDGET = {"lr": 0.03, "last_lr": 0.003}
IPL_ROWS = ("IPL", "IPL, independent centres", "IPL w/o background", "IPL, K = 1", "IPL, K = 3", "IPL, K = 6")
FLOW = f"py:{Path(__file__).with_name('small3d_flow.py')}:small3d_flow"
SQUASHED = 'resize={"mode":"squash","size":112}'

Figures = dict[str, float]  # {verb, noun, action: top-1 in percent}


class Clock:
    """How long something took, by the clock and in processor time of all threads."""

    def __init__(self):
        self._started = time.monotonic(), time.process_time()

    def took(self) -> str:
        return f"{time.monotonic() - self._started[0]:.0f} s, processor {time.process_time() - self._started[1]:.0f} s"


@dataclass
class Bench:
    """One command's work: where things lie, and the figures found so far."""

    root: Path
    seeds: list[int]
    budget: dict
    size: dict  # dials of every kitchen, {}: as frozen
    found: dict[tuple[str, str], dict[int, Figures]] = field(default_factory=dict)  # (kitchen, row) -> {seed: figures}

    def chain(self, kitchen: str, seed: int):
        """Where a kitchen's data, features and runs of a seed lie."""
        from pipelines.demo import Chain

        dials = ",".join([*kitchen.split(":")[1:], *(f"{name}={value}" for name, value in self.size.items())])
        dataset = f"toykitchen:{dials}" if dials else kitchen
        return Chain(self.root / dials_of(dataset).name, dataset, seed)

    def note(self, kitchen: str, row: str, seed: int, figures: Figures, took: str) -> None:
        self.found.setdefault((kitchen, row), {})[seed] = figures
        shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
        print(f"{kitchen}, seed {seed}, {row}: {shown} ({took})", flush=True)

    def figures(self, kitchen: str, row: str, metric: str) -> list[float] | None:
        """By seed; None where a seed lacks it."""
        found = self.found.get((kitchen, row), {})
        return [found[seed][metric] for seed in self.seeds] if all(seed in found for seed in self.seeds) else None


def dials_of(kitchen: str):
    from extract.datasets.registry import parse_options
    from extract.datasets.toykitchen import dials_from

    return dials_from(parse_options(kitchen.partition(":")[2]))


def check_frozen() -> None:
    """Print the kitchens and refuse those that are not what they were when the methods were first compared."""
    for kitchen, frozen in KITCHENS.items():
        now = dials_of(kitchen).hash
        print(f"{kitchen:28} {now}", flush=True)
        if now != frozen:
            sys.exit(f"{kitchen} has changed since it was frozen ({frozen}): figures could not be compared")


def variant(dial: str, value: int) -> str:
    """The kitchen whose dial stands at this value."""
    usual = getattr(dials_of("toykitchen"), dial)
    return "toykitchen" if value == usual else f"toykitchen:{dial}={value}"


# --- networks and features ---


def once(function):
    """What one chain needs several times is made, and looked for, once."""
    done = {}

    @functools.wraps(function)
    def wrapper(chain, *args):
        key = (chain, *args)
        if key not in done:
            clock = Clock()
            done[key] = function(chain, *args)
            what = " ".join((function.__name__, *args))
            print(f"  {chain.dataset}, seed {chain.seed}: {what} ({clock.took()})", flush=True)
        return done[key]

    return wrapper


def extracted(chain, backbone: str, **options) -> Path:
    """The store that holds all rows, whether it had to be made or not."""
    from pipelines import extract

    (report,) = extract(chain.extraction(backbone, only=True, **options))
    return Path(report.store)


@once
def objects(chain) -> Path:
    return extracted(chain, "efficientnet_lite0", boxes="dataset")


@once
def frames(chain, stream: str) -> Path:
    if stream == "rgb":
        return extracted(chain, "frames")
    return extracted(chain, "flow_images", flow="dis", axis="segment", option=("clip_len=1", SQUASHED))


@once
def network(chain, target: str, stream: str) -> Path:
    """The run of VerbNet, NounNet or the network of both, as in the demo."""
    from pipelines import train_backbone
    from pipelines.demo import BASE, NETWORK

    weights = "random:0" if target == "verb" else str(network(chain, "verb", stream))
    return train_backbone(
        NETWORK if stream == "rgb" else FLOW,
        target=target,
        frames=frames(chain, stream),
        weights=weights,
        set=BASE.get(target, BASE["noun"]),
        out=chain.run(f"{target}net{'' if stream == 'rgb' else '_flow'}"),
        seed=chain.seed,
        progress=False,
        say=lambda line: None,
    )


@once
def features(chain, target: str, stream: str) -> Path:
    """The store of a trained network's features: for both, its maps."""
    from pipelines.demo import NETWORK

    options = {} if stream == "rgb" else {"flow": "dis"}
    return extracted(
        chain,
        NETWORK if stream == "rgb" else FLOW,
        name=f"{target}{'' if stream == 'rgb' else '_flow'}_s{chain.seed}",
        weights=(str(network(chain, target, stream)),),
        draws=0,
        keep=("map",) if target == "both" else (),
        **options,
    )


# --- rows ---


def row_of(name: str):
    """(head, settings) of a row. Toy kitchen's object windows are the dataset's own, for all branches."""
    from heads.ablations import ROWS, Row

    row = Row("ipl", ("4.7",), {"top_k": 6}) if name == "IPL, K = 6" else ROWS[name]
    return row.head, {key: value for key, value in row.settings.items() if not key.endswith("_window_s")}


def train_row(bench: Bench, kitchen: str, name: str, seed: int, stream: str = "rgb") -> Path:
    """Train a row of a seed and note its figures."""
    from heads import get_head
    from pipelines import train_head

    chain = bench.chain(kitchen, seed)
    head, settings = row_of(name)
    stores = {"verb": features(chain, "both", stream)} if head == "ipl" else {}
    if head != "ipl":
        stores = {target: features(chain, target, stream) for target in ("verb", "noun")}
    reads = get_head(head).reads
    if "objects" in reads:
        stores["objects"] = objects(chain)
        settings["boxes_per_frame"] = max(5, 1 + dials_of(kitchen).distractors)  # the handled one is always among them
    titled = name if stream == "rgb" else f"{name}, Flow"
    clock = Clock()
    run = train_head(
        head,
        **stores,
        out=chain.run(re.sub(r"[^a-z0-9]+", "-", titled.lower()).strip("-")),
        set={**(IPL_BUDGET if head == "ipl" else bench.budget), **settings},
        seed=seed,
        progress=False,
        say=lambda line: None,
    )
    bench.note(kitchen, titled, seed, last_figures(run), clock.took())
    return run


def last_figures(run: Path) -> Figures:
    """Of the last epoch: the best one of a noisy curve would favour whoever is noisier."""
    from pipelines.run_folder import open_run

    last = open_run(run).log()[-1]
    return {name: 100 * last[f"val_{name}_top1"] for name in METRICS}


def fuse(bench: Bench, kitchen: str, row: str, seed: int, runs: list[Path]) -> None:
    """Late fusion of a row on RGB and on flow: the mean of their softmax scores (thesis section 3.3.3)."""
    import numpy as np

    from pipelines.evaluation import accuracies

    clock = Clock()
    found = [last_scores(run) for run in runs]
    labels, prior = found[0][1:]
    probabilities = {name: np.mean([scores[name] for scores, _, _ in found], axis=0) for name in ("verb", "noun")}
    with np.errstate(divide="ignore"):
        tops = accuracies({name: np.log(values) for name, values in probabilities.items()}, labels, prior)
    figures = {name: 100 * tops[name]["top1"] for name in METRICS}
    bench.note(kitchen, f"{row}, RGB+Flow", seed, figures, clock.took())


def last_scores(folder: Path):
    """(softmax scores of the validation clips, their labels, mu) of a run's last epoch."""
    from heads.metrics import softmax
    from pipelines.evaluation import clip_dataset, predict_scores
    from pipelines.run_folder import load_tensors, open_run

    run = open_run(folder)
    head = run.create_head()
    tensors, _ = load_tensors(run.path / "last.safetensors")
    head.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    dataset = clip_dataset(head, run.open_stores(), "val", draws=(0,))
    scores = {name: softmax(logits) for name, logits in predict_scores(head, dataset, "cpu").items()}
    return scores, {name: dataset.labels[name] for name in ("verb", "noun")}, run.prior()


# --- studies ---


def two_streams(bench: Bench, kitchen: str, seed: int, rows: tuple[str, ...]) -> None:
    for row in rows:
        fuse(bench, kitchen, row, seed, [train_row(bench, kitchen, row, seed, stream) for stream in ("rgb", "flow")])


def run_study(bench: Bench, study: str, seed: int) -> None:
    from heads.ablations import ROWS

    if study == "tables":
        for name, row in ROWS.items():
            if row.head != "ipl":
                train_row(bench, "toykitchen", name, seed)
        for name in IPL_ROWS:
            train_row(bench, "toykitchen", name, seed)
    elif study == "flow":
        two_streams(bench, "toykitchen", seed, ("Baseline", "SA"))
    else:
        for dose in doses_of(study):
            for value in dose.values:
                kitchen = variant(dose.dial, value)
                if study == "camera":
                    two_streams(bench, kitchen, seed, ("SA",))
                else:
                    for row in (dose.better, dose.worse):
                        if seed not in bench.found.get((kitchen, row), {}):
                            train_row(bench, kitchen, row, seed)


def doses_of(study: str):
    """Doses of a study; the two metrics of the camera's come out of one."""
    if study == "camera":
        return [dose for dose in DOSES if dose.dial == "camera"][:1]
    return [
        dose for dose in DOSES if dose.dial == "distractors" and dose.better.startswith("IPL") == (study == "clutter")
    ]


# --- what is shown ---


def report(bench: Bench) -> str:
    """The section for the documents."""
    lines = [
        f"`benchmarks/ablations_egocentric.py` on toy kitchen, {len(bench.seeds)} seeds: validation top-1 of the last"
        " epoch in percent, mean ± standard deviation. Networks are trained per seed, all heads `frozen` on their"
        " features; boxes are the dataset's own. Differences are paired.",
        "",
    ]
    lines += ["| row | verb | noun | action |", "|---|---|---|---|"]
    for (kitchen, row), by_seed in bench.found.items():
        if kitchen == "toykitchen" and len(by_seed) == len(bench.seeds):
            cells = [spread([figures[name] for figures in by_seed.values()]) for name in METRICS]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    relations = []
    for claim in CLAIMS:
        better, worse = (bench.figures("toykitchen", row, claim.metric) for row in (claim.better, claim.worse))
        if better and worse:
            name = f"{claim.table}, {claim.metric}: {claim.better} > {claim.worse}"
            relations.append(relation(name, better, worse))
    if relations:
        lines += ["", markdown(relations)]
        counts = [f"{sum(r.verdict == v for r in relations)} {v}" for v in ("holds", "reversed", "undecided")]
        lines += ["", f"Of {len(relations)} relations: {', '.join(counts)}."]
    for dose in DOSES:
        lines += dose_lines(bench, dose)
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.1f}"


def dose_lines(bench: Bench, dose) -> list[str]:
    """One gain against its dial, and its slope; nothing where a value lacks figures."""
    gains = []
    for value in dose.values:
        both = [bench.figures(variant(dose.dial, value), row, dose.metric) for row in (dose.better, dose.worse)]
        if not all(both):
            return []
        gains.append([b - w for b, w in zip(*both, strict=True)])
    lines = ["", f"{dose.name} ({dose.better} minus {dose.worse}, {dose.metric}s); claimed: {dose.expected}.", ""]
    lines += [f"| {dose.dial} | " + " | ".join(str(value) for value in dose.values) + " | slope |"]
    lines += ["|---" * (len(dose.values) + 2) + "|"]
    cells = ["{:+.1f} ± {:.1f}".format(*interval(gain)) for gain in gains]
    slopes = [slope(dose.values, [gain[i] for gain in gains]) for i in range(len(bench.seeds))]
    mean, half = interval(slopes)
    way = "rises" if mean - half > 0 else "falls" if mean + half < 0 else "undecided"
    if dose.rises is not None:
        way = {"rises": "holds", "falls": "reversed"}.get(way, way)
    lines.append(f"| points (95 %) | {' | '.join(cells)} | {mean:+.2f} ± {half:.2f}: {way} |")
    return lines


def slope(x, y) -> float:
    """Of the line of least squares."""
    return statistics.linear_regression(x, y).slope


def small_kitchens(train: int, val: int) -> dict:
    """Dials for trying out: no clock videos, no untrimmed ones. The figures of such kitchens mean nothing."""
    return {"train_clips": train, "val_clips": val, "clock_clips": 0, "untrimmed": 0}


def main() -> int:
    parser = arguments(__doc__, TITLE)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--epochs", type=int, help="of the heads but IPL [the demo's]")
    parser.add_argument(
        "--clips", type=int, nargs=2, metavar=("TRAIN", "VAL"), help="smaller kitchens, to try this script out"
    )
    args = parser.parse_args()

    from pipelines.demo import BUDGET

    print_machine()
    check_frozen()
    started = time.monotonic()
    budget = BUDGET if args.epochs is None else {**BUDGET, "epochs": args.epochs, "last_epochs": args.epochs // 4}
    with work_folder(args.root) as root:
        bench = Bench(root, args.seeds, budget, small_kitchens(*args.clips) if args.clips else {})
        for study in args.studies:
            for seed in args.seeds:
                run_study(bench, study, seed)
            text = report(bench)
            (root / "ablations_egocentric.md").write_text(text)
            if args.write:
                write_section(args.write, TITLE, text)
        print(text)
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
