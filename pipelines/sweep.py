"""Many trainings of one head: a grid of settings times seeds, each an ordinary run folder."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from errors import MachineError, UserError
from heads import get_head
from pipelines.request import feature_roots
from pipelines.settings import parse_settings, part_of, settings_of
from pipelines.training import SCHEDULES, TrainingConfig, train_head

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

    Raises UserError, before anything is trained, for unknown settings, values of another type, values with which no
    head of the grid can be made, and `features` that are not there.
    """
    feature_roots(tuple(options.get("features", ())))
    combinations = grid_of(settings)
    _check_grid(head, combinations, options.get("epochs"))
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


def _check_grid(head: str, combinations: Sequence[Mapping[str, str]], epochs: int | None) -> None:
    """Refuse settings that are unknown or of another type, and values that no combination of the grid goes with."""
    head_class = get_head(head)
    training, from_data, defaults = TrainingConfig, (), [{}]
    if {*head_class.reads} == {"sampler", "recogniser"}:
        from pipelines.sampler_training import FROM_DATA as from_data
        from pipelines.sampler_training import SamplerConfig as training
    elif "experts" in head_class.reads:
        from pipelines.retrieval_training import FROM_STORES as from_data
        from pipelines.retrieval_training import RetrievalSchedule as training
    else:  # the stores say which
        defaults += [found for (name, _), found in SCHEDULES.items() if name == head]
    known = settings_of(training) | settings_of(head_class.Config, from_data)
    wrong: list[UserError | None] = []
    for texts in combinations:
        chosen = parse_settings(texts, known, epochs)
        schedules = [_refusal(training, part_of(found | chosen, training)) for found in defaults]
        schedule = None if None in schedules else schedules[0]
        wrong.append(schedule or _refusal(head_class.Config, part_of(chosen, head_class.Config)))
    possible = [texts for texts, error in zip(combinations, wrong, strict=True) if error is None]
    for texts, error in zip(combinations, wrong, strict=True):
        nowhere = (all(other[key] != value for other in possible) for key, value in texts.items())
        if error is not None and (not possible or any(nowhere)):
            raise error


def _refusal(config: type, chosen: Mapping[str, object]) -> UserError | None:
    """Why a config cannot be made of settings, whatever sizes the data will have.

    Sizes not chosen are a multiple of every whole number that is: no check of the one against the other fails.
    """
    kinds = settings_of(config)
    given = {f.name: f.default for f in fields(config) if f.init and f.default is not MISSING} | chosen
    size = math.prod(value for value in given.values() if isinstance(value, int) and value > 0)
    sizes = {int: size, tuple[int, ...]: (size, size), tuple[str, ...]: ("one", "other")}
    required = [f.name for f in fields(config) if f.default is MISSING and f.default_factory is MISSING]
    lacking = [name for name in required if name not in chosen]
    if any(kinds[name] not in sizes for name in lacking):
        return None  # the training finds out
    try:
        config(**{name: sizes[kinds[name]] for name in lacking}, **chosen)
    except UserError as error:
        return error
    return None
