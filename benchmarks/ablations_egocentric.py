"""The thesis's ablations of SAOA and IPL, and SAP's, on toy kitchen: which relations of their tables come out here.

    python benchmarks/ablations_egocentric.py [--seeds 0 1 ... 9] [--studies tables flow distractors clutter camera]
        [--root DIR] [--jobs N] [--write docs/ablations.md]

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
frozen by the hashes of their dials, which are compared first. --jobs N works on N seeds at a time, a process each, on
the GPU if there is one. Prints Markdown and keeps the figures in ROOT/ablations_egocentric.json: a killed run goes on
with what it lacks (remove that file after a change of settings). Asserts nothing (exit 0).
"""

import functools
import json
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path

from ablation_table import Relation, arguments, interval, relation, sections, write_section
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

STREAMS = {"rgb": "", "flow": ", Flow"}  # what stands behind a row's name
BOTH = ", RGB+Flow"

Figures = dict[str, float]  # {verb, noun, action: top-1 in percent}
Work = dict[str, dict[str, tuple[str, ...]]]  # {kitchen: {row: its streams}}


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
        self.keep({(kitchen, row): {seed: figures}})
        shown = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
        print(f"{kitchen}, seed {seed}, {row}: {shown} ({took})", flush=True)

    def keep(self, found: dict[tuple[str, str], dict[int, Figures]]) -> None:
        for key, by_seed in found.items():
            self.found.setdefault(key, {}).update(by_seed)

    def save(self, path: Path) -> None:
        rows = [[*key, by_seed] for key, by_seed in self.found.items()]
        path.write_text(json.dumps({"budget": self.budget, "size": self.size, "rows": rows}, indent=1))

    def load(self, path: Path) -> None:
        """The figures of an earlier run. Exits where they were made with other settings."""
        if not path.is_file():
            return
        told = json.loads(path.read_text())
        if (told["budget"], told["size"]) != (self.budget, self.size):
            sys.exit(f"{path} was made with {told['budget']}, {told['size']}: choose another --root, or remove it")
        self.keep({(kitchen, row): {int(s): f for s, f in by_seed.items()} for kitchen, row, by_seed in told["rows"]})

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
    titled = name + STREAMS[stream]
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
    bench.note(kitchen, row + BOTH, seed, figures, clock.took())


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


def work_of(studies: Sequence[str]) -> Work:
    """What the studies train. A row that two of them need is there once."""
    from heads.ablations import ROWS

    found: Work = {}

    def add(kitchen: str, title: str) -> None:
        row, rows = title.removesuffix(BOTH), found.setdefault(kitchen, {})
        rows[row] = tuple(STREAMS) if row != title else rows.get(row, ("rgb",))

    for study in studies:
        if study == "tables":
            for row in (*(name for name, row in ROWS.items() if row.head != "ipl"), *IPL_ROWS):
                add("toykitchen", row)
        elif study == "flow":
            for row in ("Baseline", "SA"):
                add("toykitchen", row + BOTH)
        else:
            for dose in doses_of(study):
                for value in dose.values:
                    add(variant(dose.dial, value), dose.better)
                    add(variant(dose.dial, value), dose.worse)
    return found


def doses_of(study: str):
    if study == "camera":
        return [dose for dose in DOSES if dose.dial == "camera"]
    return [
        dose for dose in DOSES if dose.dial == "distractors" and dose.better.startswith("IPL") == (study == "clutter")
    ]


def titles(row: str, streams: tuple[str, ...]) -> list[str]:
    """What the figures of a row are found under."""
    return [row + STREAMS[stream] for stream in streams] + ([row + BOTH] if len(streams) > 1 else [])


def prepare(bench: Bench, kitchen: str, rows: dict[str, tuple[str, ...]]) -> None:
    """Make what all seeds of a kitchen read."""
    chain = bench.chain(kitchen, bench.seeds[0])
    for stream in STREAMS:
        if any(stream in streams for streams in rows.values()):
            frames(chain, stream)
    if not all(row.startswith("IPL") for row in rows):
        objects(chain)


def work(bench: Bench, kitchen: str, rows: dict[str, tuple[str, ...]], seed: int):
    """All rows of one seed in one kitchen; the figures found."""
    bench = replace(bench, found={})
    for row, streams in rows.items():
        runs = [train_row(bench, kitchen, row, seed, stream) for stream in streams]
        if len(runs) > 1:
            fuse(bench, kitchen, row, seed, runs)
    return bench.found


def lacking(bench: Bench, kitchen: str, rows: dict[str, tuple[str, ...]], seed: int) -> dict[str, tuple[str, ...]]:
    """The rows of which a figure is not known yet."""
    return {
        row: streams
        for row, streams in rows.items()
        if not all(seed in bench.found.get((kitchen, title), {}) for title in titles(row, streams))
    }


def run_studies(bench: Bench, studies: list[str], jobs: int, done) -> None:
    """Find the figures that are not known yet; `done()` after each seed of a kitchen."""
    units = [
        (kitchen, todo, seed)
        for kitchen, rows in work_of(studies).items()
        for seed in bench.seeds
        if (todo := lacking(bench, kitchen, rows, seed))
    ]
    kitchens: Work = {}
    for kitchen, rows, _ in units:
        kitchens[kitchen] = kitchens.get(kitchen, {}) | rows
    if jobs == 1:
        for kitchen, rows in kitchens.items():
            prepare(bench, kitchen, rows)
            for unit in (unit for unit in units if unit[0] == kitchen):
                bench.keep(work(bench, *unit))
                done()
        return
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))  # of the processes started below
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        preparing = {pool.submit(prepare, bench, *item): item[0] for item in kitchens.items()}
        pending = set(preparing)
        try:
            while pending:
                finished, pending = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    if future in preparing:
                        future.result()
                        of_kitchen = [unit for unit in units if unit[0] == preparing[future]]
                        pending |= {pool.submit(work, bench, *unit) for unit in of_kitchen}
                    else:
                        bench.keep(future.result())
                        done()
        finally:
            pool.shutdown(cancel_futures=True)


# --- what is shown ---


def report(bench: Bench) -> str:
    """The section for the documents."""
    lines = [
        f"`benchmarks/ablations_egocentric.py` on toy kitchen, {len(bench.seeds)} seeds: validation top-1 of the last"
        " epoch in percent, mean ± standard deviation. Networks are trained per seed, all heads `frozen` on their"
        " features; boxes are the dataset's own. Differences are paired; in brackets: the printed ones. Toy kitchen has"
        " six verbs, so that K = 6 stands for table 4.7's 7 and 15.",
        "",
    ]
    lines += ["| row | verb | noun | action |", "|---|---|---|---|"]
    for row in (title for item in work_of(STUDIES)["toykitchen"].items() for title in titles(*item)):
        if bench.figures("toykitchen", row, "verb"):
            cells = [spread(bench.figures("toykitchen", row, name)) for name in METRICS]
            lines.append(f"| {row} | {' | '.join(cells)} |")
    tables: dict[str, list[Relation]] = {}
    for claim in CLAIMS:
        better, worse = (bench.figures("toykitchen", row, claim.metric) for row in (claim.better, claim.worse))
        if better and worse:
            name = f"{claim.metric}: {claim.better} > {claim.worse} ({claim.printed:+.1f})"
            tables.setdefault(f"Table {claim.table}", []).append(relation(name, better, worse))
    if tables:
        verdicts = [relation.verdict for of_table in tables.values() for relation in of_table]
        counts = [f"{verdicts.count(verdict)} {verdict}" for verdict in ("holds", "reversed", "undecided")]
        lines += [*sections(tables), "", f"Of {len(verdicts)} relations: {', '.join(counts)}."]
    lines += ["", "### Dose and response"] if any(dose_lines(bench, dose) for dose in DOSES) else []
    for dose in DOSES:
        lines += dose_lines(bench, dose)
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.1f}"


def dose_lines(bench: Bench, dose) -> list[str]:
    """One gain against its dial, and its slope, over the values that were run and the seeds that all of them have;
    nothing for fewer than three values."""
    found = {}  # {value: {seed: gain}}
    for value in dose.values:
        better, worse = (bench.found.get((variant(dose.dial, value), row), {}) for row in (dose.better, dose.worse))
        gains = {
            seed: better[seed][dose.metric] - worse[seed][dose.metric]
            for seed in bench.seeds
            if seed in better and seed in worse
        }
        if len(gains) >= min(3, len(bench.seeds)):
            found[value] = gains
    seeds = [seed for seed in bench.seeds if all(seed in gains for gains in found.values())]
    if len(found) < 3 or not seeds:
        return []
    gains = {value: [by_seed[seed] for seed in seeds] for value, by_seed in found.items()}
    told = "" if len(seeds) == len(bench.seeds) else f"; {len(seeds)} seeds"
    lines = ["", f"{dose.name} ({dose.better} minus {dose.worse}, {dose.metric}s{told}); claimed: {dose.expected}.", ""]
    lines += [f"| {dose.dial} | " + " | ".join(map(str, gains)) + " | slope |", "|---" * (len(gains) + 2) + "|"]
    cells = ["{:+.1f} ± {:.1f}".format(*interval(gain)) for gain in gains.values()]
    slopes = [slope(list(gains), of_seed) for of_seed in zip(*gains.values(), strict=True)]
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
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="seeds at a time [1]")
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
        kept = root / "ablations_egocentric.json"
        bench.load(kept)
        run_studies(bench, args.studies, args.jobs, done=lambda: bench.save(kept))
        text = report(bench)
        if args.write:
            write_section(args.write, TITLE, text)
        print(text)
    print(f"{time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
