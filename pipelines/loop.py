"""The one training loop: heads, backbones, recognisers and detectors are `Task`s for it.

An epoch's batches follow from seed and epoch alone, and so does every random draw within a step, so that a training
that was killed and goes on from its last checkpoint, in the middle of an epoch too, ends as if nothing had happened
(exactly so on a CPU). Batches are read ahead by threads; the loop measures how long the model waits for them.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from errors import MachineError, UserError, count_of
from pipelines.devices import autocast, to_device
from pipelines.run_folder import Run, load_tensors, save_tensors
from pipelines.tensorboard_log import TensorBoardLog
from pipelines.world import World
from stores import prefetch

__all__ = ["FITS", "Loop", "Schedule", "Task", "batches_of", "check_fit", "seeded", "shuffled_batches", "train"]

FITS = ("train", "trainval")
PRECISIONS = ("fp32", "bf16")
OPTIMISERS = ("sgd", "adam", "adamw", "ranger")
DECAYS = ("step", "cosine")
SAVE_SECONDS = 120.0  # between two checkpoints within an epoch; after every epoch there is one anyway


@dataclass(frozen=True)
class Schedule:
    """How long, how fast and how a model is trained: what every training has in common."""

    # budget
    epochs: int = 15
    batch_size: int = 32  # items of one step, of all processes together
    micro_batch: int = 0  # items computed at once; a step accumulates their gradients. 0: the whole batch

    # learning rate
    optimiser: str = "sgd"  # sgd | adam | adamw | ranger
    lr: float = 1e-3
    decay: str = "step"  # step: lr, then last_lr | cosine: from lr in the first epoch to last_lr in the last
    last_lr: float = 1e-4  # learning rate of the last epochs
    last_epochs: int = -1  # how many those are; -1: a third of all (5 of 15)
    decay_every: int = 0  # epochs after which the rate is divided by 10, again and again; 0: never
    decay_by: ClassVar[float] = 0.1  # a training with a factor of its own makes it a field
    warmup: int = 0  # steps over which the rate rises linearly from a thousandth
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip_norm: float = 0.0  # gradients are scaled down to this norm; 0: never

    # the machine
    precision: str = "fp32"  # fp32 | bf16
    workers: int = 2  # threads that read batches ahead
    ahead: int = 4  # batches they may be ahead

    def __post_init__(self):
        least = {"epochs": 1, "batch_size": 1, "micro_batch": 0, "last_epochs": -1, "decay_every": 0, "warmup": 0}
        for name, low in (least | {"workers": 1, "ahead": 1}).items():
            if getattr(self, name) < low:
                raise UserError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.decay_every and self.last_epochs:
            raise UserError("decay_every divides the rate again and again: it goes with last_epochs=0")
        if self.decay_every and self.decay == "cosine":
            raise UserError("decay=cosine goes with decay_every=0")
        for name in ("lr", "last_lr", "momentum", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < np.inf:
                raise UserError(f"{name} must be a number from 0 on, got {getattr(self, name)}")
        for name, choices in (("precision", PRECISIONS), ("optimiser", OPTIMISERS), ("decay", DECAYS)):
            if getattr(self, name) not in choices:
                raise UserError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def facts(self) -> dict:
        """What of it decides the outcome: all but how batches are read ahead."""
        return {name: value for name, value in asdict(self).items() if name not in ("workers", "ahead")}

    def lr_of(self, epoch: int, step: int = 1 << 62) -> float:
        """Learning rate of a step (counted over all epochs) of an epoch, both from 0."""
        last = self.epochs // 3 if self.last_epochs < 0 else self.last_epochs
        rate = self.last_lr if epoch >= self.epochs - last else self.lr
        if self.decay == "cosine":
            share = epoch / max(1, self.epochs - 1)
            rate = self.last_lr + (self.lr - self.last_lr) * (1 + math.cos(math.pi * share)) / 2
        if self.decay_every:
            rate *= self.decay_by ** (epoch // self.decay_every)
        return rate * min(1.0, 0.001 + 0.999 * step / self.warmup) if self.warmup else rate


class Task(Protocol):
    """What is trained, on what, and how its figures come about."""

    model: Any  # torch.nn.Module: everything that is trained and checkpointed

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Item numbers of every batch of an epoch, in order; they depend on nothing but task, seed and epoch."""

    def batch(self, items: np.ndarray, epoch: int) -> dict[str, Any]:
        """Nested dicts of arrays: what `loss` reads of these items. Called by several threads at a time."""

    def loss(self, batch: Mapping[str, Any]) -> Any:
        """Mean loss of a batch on the device, a scalar tensor with gradients to `model`."""

    def validate(self) -> dict | None:
        """Figures on the validation items, or None where there is no validation."""

    def columns(self, figures: dict) -> dict[str, float]:
        """The figures that go into the log and behind the epoch's line."""

    def score(self, figures: dict) -> float:
        """What the best epoch has most of."""

    def checkpoint(self) -> tuple[dict[str, Any], dict]:
        """(tensors, metadata) of best.safetensors."""

    def finish(self, best: dict, history: list[dict]) -> None:
        """Called once after the last epoch; best: {"epoch", "score", **figures}."""


class Loop:
    """A task's training and its state: epoch, step within it, optimiser, log, best epoch so far.

    Args:
        run: folder for best.safetensors, last.safetensors (where a rerun goes on), log.csv and tensorboard/.
    """

    def __init__(
        self,
        run: Run,
        task: Task,
        schedule: Schedule,
        *,
        seed: int,
        device: str,
        world: World = World(),  # noqa: B008  frozen
        progress: bool = True,
    ):
        import torch

        self.run, self.task, self.schedule = run, task, schedule
        self.seed, self.device, self.world, self.progress = seed, device, world, progress
        self.optimiser = _optimiser(task.model, schedule)
        self.epoch = self.step = 0  # epochs done; steps done of the next one
        self.history: list[dict] = []
        self.best: dict | None = None  # figures of the best epoch
        self._total = torch.zeros((), dtype=torch.float64, device=device)  # loss of this epoch's items so far
        self._clock = _Clock()

    # --- epochs ---

    def run_all(self, say) -> None:
        """Train to the last epoch, from wherever this is."""
        step = _step_module(self.task, self.world, self.device)
        with closing(TensorBoardLog(self.run.path / "tensorboard", self.epoch)) as events:
            while self.epoch < self.schedule.epochs:
                row = self._train_epoch(step)
                if self.world.first:
                    figures = self.task.validate()
                    columns = self.task.columns(figures) if figures is not None else {}
                    row |= columns
                    self._close_epoch(row, figures)
                    events.add(row, columns)
                    say(self._line(row))
                self.epoch, self.step = self.epoch + 1, 0
                self._total.zero_()
                if self.world.first:
                    self._save()
                self.world.wait()
        if self.world.first:
            self.task.finish(self.best, self.history)
            say(self._clock.line(self.schedule.workers))
        self.world.wait()

    def _train_epoch(self, step_module) -> dict:
        import torch
        from tqdm import tqdm

        config, started = self.schedule, time.perf_counter()
        batches = self.task.batches(self.epoch)
        parts = [self._parts(items) for items in batches]
        items_of_epoch = sum(len(items) for items in batches)
        self.task.model.train()
        self._clock.begin()
        reader = _Reader(self.task, self.epoch, self._clock)
        todo = [part for of_step in parts[self.step :] for part in of_step]
        stream = prefetch(reader, todo, config.workers, config.ahead)
        name = f"epoch {self.epoch + 1}/{config.epochs}"
        hidden = not (self.progress and self.world.first)
        saved = time.monotonic()
        every = 0.5 if sys.stderr.isatty() else 30
        with tqdm(
            total=len(batches), initial=self.step, desc=name, disable=hidden, leave=False, mininterval=every
        ) as bar:
            for number in range(self.step, len(batches)):
                rate = config.lr_of(self.epoch, self.epoch * len(batches) + number)
                for group in self.optimiser.param_groups:
                    group["lr"] = rate
                torch.manual_seed(seeded(self.seed, self.epoch, number, self.world.rank))
                self._total += self._take_step(step_module, parts[number], len(batches[number]), stream)
                self.step = number + 1
                bar.update(1)
                if self.world.first and time.monotonic() - saved >= SAVE_SECONDS and self.step < len(batches):
                    self._save()
                    saved = time.monotonic()
        loss = float(self._sum_over_processes(self._total)) / items_of_epoch
        if not np.isfinite(loss):
            raise MachineError(
                f"the loss of epoch {self.epoch + 1} is {loss}: try a smaller lr than {rate} (--set lr=...)"
            )
        waited = self._clock.end()
        seconds = round(time.perf_counter() - started, 3)
        return {"epoch": self.epoch + 1, "lr": rate, "loss": loss, "seconds": seconds, "waited": round(waited, 4)}

    def _parts(self, items: np.ndarray) -> list[np.ndarray]:
        """What this process computes of a batch, in pieces of at most micro_batch items."""
        own = np.array_split(items, self.world.size)[self.world.rank]
        most = self.schedule.micro_batch or len(own)
        return [own[i : i + most] for i in range(0, len(own), max(1, most))]

    def _take_step(self, step_module, parts: list[np.ndarray], items: int, stream):
        """One step of the optimiser on the mean over `items`. Returns the sum of this process's losses."""
        import contextlib

        import torch

        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for i, part in enumerate(parts):
            with self._clock.waiting():
                arrays = next(stream)
            batch = to_device(arrays, self.device)
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last or self.world.size == 1 else step_module.no_sync():
                with autocast(self.device, self.schedule.precision):
                    loss = step_module(batch)
                # Processes' gradients are averaged: the factor makes that the mean over all their items.
                (loss * (len(part) * self.world.size / items)).backward()
            total += loss.detach().double() * len(part)
        if self.schedule.clip_norm:
            torch.nn.utils.clip_grad_norm_(self.task.model.parameters(), self.schedule.clip_norm)
        self.optimiser.step()
        return total

    def _sum_over_processes(self, value):
        if self.world.size > 1:
            import torch.distributed as dist

            value = value.clone()
            dist.all_reduce(value)
        return value

    def _line(self, row: dict) -> str:
        line = f"epoch {row['epoch']:.0f}/{self.schedule.epochs}  loss {row['loss']:.4f}  {row['seconds']:.1f} s"
        for name, value in row.items():
            if name.startswith("val_") and not name.endswith("top5"):
                line += f"  {name.removeprefix('val_').removesuffix('_top1')} {value:.1%}"
        return line

    # --- checkpoints ---

    def _close_epoch(self, row: dict, figures: dict | None) -> None:
        """Write the best model if this epoch is it, and the log.

        A kill before the checkpoint that follows is harmless: the rerun does the epoch's rest again, to the same end.
        """
        self.history.append(row)
        score = self.task.score(figures) if figures is not None else self.epoch + 1
        if self.best is None or score > self.best["score"]:
            self.best = {"epoch": self.epoch + 1, "score": score, **(figures or {})}
            tensors, metadata = self.task.checkpoint()
            save_tensors(self.run.path / "best.safetensors", tensors, {**metadata, "epoch": self.epoch + 1})
        self.run.write_csv("log.csv", self.history)

    def _save(self) -> None:
        """Write last.safetensors: all that a rerun needs to go on from here."""
        tensors = {f"model.{key}": value for key, value in self.task.model.state_dict().items()}
        for key, parameter in self.task.model.named_parameters():
            for name, value in self.optimiser.state.get(parameter, {}).items():
                if value is not None:
                    tensors[f"optimiser.{name}.{key}"] = value
        tensors["loop.total"] = self._total
        state = {"epoch": self.epoch, "step": self.step, "history": self.history, "best": self.best}
        save_tensors(self.run.path / "last.safetensors", tensors, state)

    def resume(self) -> bool:
        """Take up the last checkpoint's state, if there is one."""
        path = self.run.path / "last.safetensors"
        if not path.is_file():
            return False
        tensors, state = load_tensors(path)
        self.task.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        names = {name.split(".")[1] for name in tensors if name.startswith("optimiser.")}
        for key, parameter in self.task.model.named_parameters():
            found = {name: tensors.get(f"optimiser.{name}.{key}") for name in names}
            if any(value is not None for value in found.values()):
                self.optimiser.state[parameter] = {
                    name: value if name == "step" else value.to(self.device)
                    for name, value in found.items()
                    if value is not None
                }
        self._total = tensors["loop.total"].to(self.device)
        self.epoch, self.step = state["epoch"], state["step"]
        self.history, self.best = state["history"], state["best"]
        return True


def train(loop: Loop, resumed: bool, say) -> None:
    """Run a loop to its end; of a run that was there before (`resumed`), from where it stopped."""
    where = loop.run.path
    if resumed and loop.resume():
        epochs = loop.schedule.epochs
        if loop.epoch == epochs and (where / "metrics.json").is_file():
            say(f"{where}: already trained for {count_of(epochs, 'epoch')}, nothing to do")
            return
        within = f" and {count_of(loop.step, 'step')}" if loop.step else ""
        say(f"{where}: going on after epoch {loop.epoch} of {epochs}{within}")
    loop.run_all(say)


def check_fit(fit: str) -> None:
    """Raises UserError for a part of a dataset that nothing is trained on."""
    if fit not in FITS:
        raise UserError(f"--fit must be one of {', '.join(FITS)}, got {fit!r}")


def shuffled_batches(items: np.ndarray, batch_size: int, seed: int, epoch: int, processes: int = 1) -> list[np.ndarray]:
    """Every item once, in an order that follows from seed and epoch, cut into batches that all processes share."""
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return batches_of(rng.permutation(items), batch_size, max(2, processes))


def batches_of(order: np.ndarray, batch_size: int, least: int = 2) -> list[np.ndarray]:
    """An order of items cut into batches; a last one of fewer than `least` joins the one before (one item has no batch
    statistics, and every process needs one)."""
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [np.concatenate(batches[-2:])]
    return batches


def seeded(*keys: int) -> int:
    """A seed from several whole numbers, the same everywhere, any two of them independent."""
    return int(np.random.SeedSequence([int(key) for key in keys]).generate_state(1, np.uint64)[0] >> 1)


class _Reader:
    """A task's batches of one epoch, for `prefetch`; counts the processor time that they cost."""

    def __init__(self, task: Task, epoch: int, clock: _Clock):
        self.task, self.epoch, self.clock = task, epoch, clock

    def batch(self, items: np.ndarray) -> dict:
        started = time.thread_time()
        found = self.task.batch(items, self.epoch)
        self.clock.read.append(time.thread_time() - started)
        return found


class _Clock:
    """How long the model waited for data, and what reading costs."""

    def __init__(self):
        self.read: list[float] = []  # processor seconds of each batch read
        self._waited = self._of_epoch = self._all = 0.0
        self._started = time.perf_counter()

    def begin(self) -> None:
        self._started, self._of_epoch = time.perf_counter(), 0.0

    def waiting(self):
        return _Waiting(self)

    def add(self, seconds: float) -> None:
        self._of_epoch += seconds

    def end(self) -> float:
        """Share of the epoch that was spent waiting for batches."""
        seconds = time.perf_counter() - self._started
        self._waited, self._all = self._waited + self._of_epoch, self._all + seconds
        return self._of_epoch / max(seconds, 1e-9)

    def line(self, workers: int) -> str:
        """What this training says about feeding a faster device."""
        computing = max(self._all - self._waited, 1e-9)
        cores = sum(self.read) / computing * 10
        share = self._waited / max(self._all, 1e-9)
        return (
            f"waited for data {share:.1%} of the time ({count_of(workers, 'thread')}); a device that computes"
            f" ten times faster would be fed by {count_of(max(1, int(np.ceil(cores))), 'core')}"
        )


class _Waiting:
    def __init__(self, clock: _Clock):
        self.clock = clock

    def __enter__(self):
        self.started = time.perf_counter()

    def __exit__(self, *_):
        self.clock.add(time.perf_counter() - self.started)


def _optimiser(model, schedule: Schedule):
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    options = {"lr": schedule.lr, "weight_decay": schedule.weight_decay}
    if schedule.optimiser == "sgd":
        return torch.optim.SGD(trained, momentum=schedule.momentum, **options)
    from pipelines.ranger import Ranger

    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "ranger": Ranger}[schedule.optimiser]
    return kind(trained, betas=(schedule.momentum, 0.999), **options)


def _step_module(task: Task, world: World, device: str):
    """The task's loss as a module, so that torch's DistributedDataParallel can average gradients while they come."""
    import torch

    class Step(torch.nn.Module):
        def __init__(self, task: Task):  # given, not closed over: a class lives until garbage is collected
            super().__init__()
            self.task, self.model = task, task.model

        def forward(self, batch):
            return self.task.loss(batch)

    step = Step(task)
    if world.size == 1:
        return step
    ids = [torch.device(device).index] if torch.device(device).type == "cuda" else None
    return torch.nn.parallel.DistributedDataParallel(step, device_ids=ids, broadcast_buffers=False)
