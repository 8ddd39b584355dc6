"""Many trainings of one head: a grid of settings times seeds, each an ordinary run folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from errors import MachineError, UserError
from heads import get_head
from pipelines.settings import parse_settings, settings_of
from pipelines.training import TrainingConfig, train_head

__all__ = ["Sweep", "grid_of", "seeds_of", "sweep"]


@dataclass
class Sweep:
    """What a sweep came to."""

    runs: list[Path] = field(default_factory=list)  # trained to the end, now or before
    failed: dict[Path, str] = field(default_factory=dict)  # and why


def seeds_of(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7]. Raises UserError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()) or (dash and int(last) < int(first)):
            raise UserError(f"--seeds {text}: write seeds such as 0-9 or 0,3,7")
        seeds += range(int(first), int(last if dash else first) + 1)
    return list(dict.fromkeys(seeds))


def grid_of(settings: Iterable[str]) -> list[dict[str, str]]:
    """["lr=0.1,0.01", "gate=cross"] -> all combinations, {"lr": "0.1", "gate": "cross"}, ...; [{}] of none.

    Raises UserError for a text that is no key=value,..., or a key that comes twice.
    """
    axes: dict[str, list[str]] = {}
    for text in settings:
        key, equals, values = str(text).partition("=")
        if not equals:
            raise UserError(f"--set {text}: write key=value, or key=value,value,... to try several")
        if key.strip() in axes:
            raise UserError(f"--set {key.strip()} is given twice: write its values with commas between")
        axes[key.strip()] = list(dict.fromkeys(value.strip() for value in values.split(",")))
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def sweep(
    head: str,
    *,
    seeds: Sequence[int],
    settings: Iterable[str] = (),
    out: str | Path | None = None,
    say: Callable[[str], None] = print,
    **options,
) -> Sweep:
    """Train `head` with every combination of settings and every seed.

    settings: key=value, or key=value,value,...: several values are a dimension of the grid. out: folder of the run
    folders [runs/sweep-<head>]; a run is named after the settings that vary, and its seed. options: of `train_head`.

    What is finished is not trained again, what was stopped goes on, and a training that fails does not stop the rest.

    Raises UserError, before anything is trained, for unknown settings and values of another type.
    """
    combinations = grid_of(settings)
    known = _known_settings(head)
    for chosen in combinations:
        parse_settings(chosen, known)
    varied = [key for key in combinations[0] if len({chosen[key] for chosen in combinations}) > 1]
    short = head.rpartition(":")[2]
    root = Path(out) if out is not None else Path("runs") / f"sweep-{short}"
    result, total = Sweep(), len(combinations) * len(seeds)
    jobs = itertools.product(combinations, seeds)
    for number, (chosen, seed) in enumerate(jobs, start=1):
        name = "-".join([short, *(f"{key}={chosen[key]}" for key in varied), f"s{seed}"])
        folder = root / name.replace("/", "_")
        say(f"[{number}/{total}] {folder}")
        try:
            train_head(head, out=folder, set=chosen, seed=seed, say=say, **options)
        except (UserError, MachineError, OSError) as error:
            result.failed[folder] = str(error)
            say(f"failed: {error}")
        else:
            result.runs.append(folder)
    return result


def _known_settings(head: str) -> dict[str, type]:
    head_class = get_head(head)
    training: type = TrainingConfig
    if {*head_class.reads} == {"sampler", "recogniser"}:
        from pipelines.sampler_training import SamplerConfig as training
    elif "experts" in head_class.reads:
        from pipelines.retrieval_training import RetrievalSchedule as training
    return settings_of(training) | settings_of(head_class.Config)
