"""All runs in one table: what each is, its figures, mean and deviation over the seeds of otherwise equal runs."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from errors import UserError
from pipelines.run_folder import Run, open_run

__all__ = ["TableRow", "as_csv", "as_latex", "as_text", "figures_in", "find_runs", "runs_table"]

_FIRST = ("verb", "noun", "action")  # in this order, before all others
# Figures of the text and LaTeX tables; the CSV has all.
SHOWN = ("top1", "mAP", "mAP50", "mAP_first_label", "R@1", "R@5", "R@10", "MdR")
RANKS = ("MdR", "MnR")  # figures that are no shares: median and mean rank, from 1
# What a run.json says that is no choice of the training, or follows from others.
_NOT_SETTINGS = ("format", "made", "seed", "lineage", "unknown_ancestors", "random_features", "trained_on", "stores")
_COUNTS = (
    "epoch", "clips", "rows", "trained_clips", "training_rows", "loss", "frames", "boxes", "trained_frames", "texts",
    "videos", "experts", "trained_captions", "clips_averaged",
)  # fmt: skip


@dataclass(frozen=True)
class TableRow:
    """Runs that differ in nothing but their seed."""

    trained: str  # head or network
    features: str  # frozen | end-to-end
    dataset: str
    fit: str
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]  # of runs that are finished
    figures: Mapping[str, np.ndarray]  # {"verb top1": (seeds,)}
    unfinished: int
    settings: Mapping[str, object] = field(default_factory=dict)  # flat; after `runs_table` those that differ

    def mean(self, name: str) -> float:
        return float(np.mean(self.figures[name]))

    def deviation(self, name: str) -> float:
        """Standard deviation of the sample (n - 1); NaN of one run."""
        values = self.figures[name]
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def find_runs(paths: Sequence[str | Path] = ()) -> list[Run]:
    """The runs at these paths, each a run folder or a folder of such; by default those under ./runs, in order of name.

    Raises UserError where there is none.
    """
    found = []
    for path in [Path(p) for p in paths] or [Path("runs")]:
        if (path / "run.json").is_file():
            found.append(open_run(path))
            continue
        below = sorted(path.glob("**/run.json")) if path.is_dir() else []
        if not below:
            raise UserError(f"no run under {path}: give run folders, or folders that hold some")
        found += [open_run(file.parent) for file in below]
    return found


def runs_table(runs: Iterable[Run], *, split: str | None = None, across_weights: bool = False) -> list[TableRow]:
    """Runs that are equal but for their seed as one row each, in order of head, then settings.

    split: figures of `evaluate` on this split instead of those of the training's validation.
    across_weights: features and starting weights of other trainings count as equal where those were trained on the same
    clips: seeds of a head on features of as many seeds of its base networks are one row then.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_identity(run, across_weights), sort_keys=True), []).append(run)
    rows = [_row(group, split) for group in groups.values()]
    rows.sort(key=lambda row: (row.trained, row.dataset, row.runs[0].path.name))
    return [_with_differing_settings(row, rows) for row in rows]


def figures_in(metrics: Mapping, prefix: str = "") -> dict[str, float]:
    """{"verb top1": 0.7, "t2v R@1": 0.3, "t2v MdR": 4.0, "coverage": 1.0}: the figures among what a metrics.json holds,
    without its counts; shares, but for `RANKS` (recalls of retrieval are percent in the file)."""
    found = {}
    for name, value in metrics.items():
        if name in _COUNTS:
            continue
        if isinstance(value, Mapping):
            found |= figures_in(value, f"{prefix}{name} ")
        elif isinstance(value, float | int) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = float(value) / (100 if name.startswith("R@") else 1)
    return found


def _identity(run: Run, across_weights: bool) -> dict:
    facts = {key: value for key, value in run.facts.items() if key not in _NOT_SETTINGS}
    facts["kind"], facts["features"] = run.kind, run.features
    stores = run.facts["stores"]
    if not across_weights:
        return facts | {"stores": {role: store["recipe"] for role, store in stores.items()}}
    if "network" in facts:
        facts["network"] = {k: v for k, v in facts["network"].items() if k not in ("weights", "origin")}
    seen = [{k: v for k, v in entry.items() if k not in ("name", "file")} for entry in run.facts["lineage"]]
    seen = sorted({json.dumps(entry, sort_keys=True) for entry in seen})
    fields = {
        role: {k: v for k, v in store["recipe_fields"].items() if k != "weights"} for role, store in stores.items()
    }
    return facts | {"stores": fields, "lineage": seen}


def _row(group: list[Run], split: str | None) -> TableRow:
    finished = [run for run in group if run.metrics_path(split).is_file()]
    # One of each seed: what `reproduce` trained again would count twice.
    by_seed = {run.facts["seed"]: run for run in sorted(finished, key=lambda run: len(run.path.name), reverse=True)}
    done = [by_seed[seed] for seed in sorted(by_seed)]
    figures = [figures_in(json.loads(run.metrics_path(split).read_bytes())) for run in done]
    shared = [key for key in (figures[0] if figures else ()) if all(key in one for one in figures)]
    first = group[0]
    return TableRow(
        trained=first.trained,
        features=first.features,
        dataset=first.facts["dataset"]["name"],
        fit=first.facts["fit"],
        runs=tuple(group),
        seeds=tuple(run.facts["seed"] for run in done),
        figures={key: np.array([one[key] for one in figures]) for key in shared},
        unfinished=len(group) - len(finished),
        settings=_settings(first),
    )


def _settings(run: Run) -> dict[str, object]:
    """What the user could have set otherwise, flat."""
    facts = run.facts
    found = {key: facts[key] for key in ("strategy",) if key in facts}
    found |= facts["training"] | facts.get("head", {}).get("config", {})
    found |= {"targets": "+".join(facts["targets"])} if "targets" in facts else {}
    found |= {"text": facts["network"]["name"]} if run.kind == "retrieval" and "network" in facts else {}
    stores = list(dict.fromkeys(Path(store["path"]).stem for store in facts["stores"].values()))
    return found | {"stores": "+".join(stores)}


def _with_differing_settings(row: TableRow, rows: Sequence[TableRow]) -> TableRow:
    """Keeps the settings in which rows of the same head or network differ."""
    alike = [other.settings for other in rows if other.trained == row.trained]
    kept = {k: v for k, v in row.settings.items() if any(other.get(k) != v for other in alike)}
    return replace(row, settings=kept)


# --- as text ---


def _columns(rows: Sequence[TableRow], everything: bool) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    names.sort(key=lambda name: next((i for i, first in enumerate(_FIRST) if name.startswith(first)), len(_FIRST)))
    return names if everything else [n for n in names if n.split()[-1] in SHOWN and len(n.split()) <= 2]


def _setting_texts(row: TableRow) -> str:
    return ", ".join(f"{name}={value}" for name, value in row.settings.items())


def _ranges(seeds: Sequence[int]) -> str:
    """(0, 1, 2, 5) -> "0-2,5"."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ",".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _facts(row: TableRow) -> dict[str, str]:
    waiting = f" ({row.unfinished} unfinished)" if row.unfinished else ""
    return {
        "trained": row.trained,
        "settings": _setting_texts(row),
        "features": row.features,
        "dataset": row.dataset,
        "fit": row.fit,
        "seeds": _ranges(row.seeds) + waiting,
    }


def _cell(row: TableRow, name: str, plus_minus: str) -> str:
    if name not in row.figures:
        return "-"
    unit = 1 if _is_rank(name) else 100
    mean, deviation = unit * row.mean(name), unit * row.deviation(name)
    return f"{mean:.1f}" if np.isnan(deviation) else f"{mean:.1f} {plus_minus} {deviation:.1f}"


def _is_rank(name: str) -> bool:
    return name.split()[-1] in RANKS


def as_text(rows: Sequence[TableRow]) -> str:
    """For a terminal: figures in percent (ranks as they are), mean and standard deviation over the seeds."""
    names = _columns(rows, everything=False)
    lines = [[*_facts(rows[0]), *names]]
    lines += [[*_facts(row).values(), *(_cell(row, name, "±") for name in names)] for row in rows]
    used = [i for i in range(len(lines[0])) if any(line[i] for line in lines[1:])]
    widths = {i: max(len(line[i]) for line in lines) for i in used}
    shown = ["  ".join(line[i].ljust(widths[i]) for i in used).rstrip() for line in lines]
    unit = "percent, but MdR: a rank" if any(_is_rank(name) for name in names) else "percent"
    return "\n".join([*shown, "", f"{unit}; mean ± standard deviation (n - 1) over the seeds"])


def as_csv(rows: Sequence[TableRow]) -> str:
    """Every figure as a share (ranks as they are): its mean, and its standard deviation (n - 1) in `<figure> std`,
    empty of one run."""
    names = _columns(rows, everything=True)
    text = io.StringIO()
    head = [*_facts(rows[0]), "n", *(part for name in names for part in (name, f"{name} std")), "runs"]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        cells: list[object] = [*_facts(row).values(), len(row.seeds)]
        for name in names:
            there = name in row.figures
            deviation = row.deviation(name) if there else float("nan")
            cells += [row.mean(name) if there else "", "" if np.isnan(deviation) else deviation]
        writer.writerow([*cells, " ".join(str(run.path) for run in row.runs)])
    return text.getvalue()


def as_latex(rows: Sequence[TableRow]) -> str:
    """A tabular of booktabs, in percent (ranks as they are)."""
    names = _columns(rows, everything=False)
    facts = [_facts(row) for row in rows]
    used = [key for key in facts[0] if any(fact[key] for fact in facts)]
    lines = [" & ".join(_escaped(name) for name in (*used, *names)) + r" \\", r"\midrule"]
    for row, fact in zip(rows, facts, strict=True):
        cells = [_escaped(fact[key]) for key in used]
        cells += ["$" + _cell(row, name, r"\pm") + "$" if name in row.figures else "--" for name in names]
        lines.append(" & ".join(cells) + r" \\")
    align = "l" * len(used) + "r" * len(names)
    return "\n".join([rf"\begin{{tabular}}{{{align}}}", r"\toprule", *lines, r"\bottomrule", r"\end{tabular}"])


def _escaped(text: str) -> str:
    text = text.replace("\\", r"\textbackslash ")
    for mark in "_%&#$":
        text = text.replace(mark, f"\\{mark}")
    return text
