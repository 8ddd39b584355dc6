"""Figures averaged over runs: over EGTEA's three splits, or over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from errors import UserError
from pipelines.evaluation import evaluate
from pipelines.protocols import dataset_family
from pipelines.published import published_split
from pipelines.run_folder import open_run

__all__ = ["average_figures", "average_split", "evaluate_all"]


def evaluate_all(runs: Sequence[str | Path], split: str = "val", **options) -> dict:
    """Evaluate several runs, each on its own dataset's split, and average what they have in common.

    options: as for `pipelines.evaluate`. Returns {"split": "average" over EGTEA's three tests, else the split, "runs":
    {run: what `evaluate` returns}, "average": the mean figures}. Raises UserError: a run that is given twice, and what
    `evaluate` raises.
    """
    paths = [Path(run) for run in runs]
    if len({path.resolve() for path in paths}) < len(paths):
        raise UserError("a run is given twice: its figures would count double")
    datasets = [open_run(path).facts["dataset"]["name"] for path in paths]
    found = {str(path): evaluate(path, split, **options) for path in paths}
    over = average_split([(dataset, split) for dataset in datasets])
    return {"split": over or split, "runs": found, "average": average_figures(list(found.values()))}


def average_figures(figures: Sequence[Mapping]) -> dict:
    """The mean of what `evaluate` returned of several runs, such as those of EGTEA's three splits: of every number that
    all of them have, however deep; whatever else they have is left out."""
    out = {}
    for name, value in figures[0].items():
        values = [one.get(name) for one in figures]
        if all(isinstance(one, Mapping) for one in values):
            inner = average_figures(values)
            out |= {name: inner} if inner else {}
        elif isinstance(value, float) and all(isinstance(one, float) for one in values):
            out[name] = float(np.mean(values))
    return out


def average_split(splits: Sequence[tuple[str, str]]) -> str | None:
    """What tables call the mean over (dataset, split) pairs: "average" over EGTEA's three tests, each once, or None."""
    told = sorted(published_split(dataset, split) for dataset, split in splits)
    egtea = all(dataset_family(dataset) == "egtea" for dataset, _ in splits)
    return "average" if egtea and told == ["1:test", "2:test", "3:test"] else None
