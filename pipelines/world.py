"""The processes of one training: one by default, several under torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from errors import UserError
from pipelines.devices import pick_device

__all__ = ["World", "join_world", "take_place"]


@dataclass(frozen=True)
class World:
    """Who this process is among those that train one model together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine: which GPU is its own

    @property
    def first(self) -> bool:
        """Whether this is the one that validates, writes and prints."""
        return self.rank == 0

    def device(self, device: str) -> str:
        """This process's own device: of several processes on GPUs, each takes the one of its local rank."""
        return f"cuda:{self.local_rank}" if self.size > 1 and device == "cuda" else device

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()


def join_world(device: str) -> World:
    """The world that torchrun describes in RANK, WORLD_SIZE and LOCAL_RANK, joined over NCCL on GPUs, else over gloo.

    Raises:
        UserError: an incomplete description.
    """
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return World()
    import torch
    import torch.distributed as dist

    try:
        world = World(int(os.environ["RANK"]), size, int(os.environ["LOCAL_RANK"]))
    except KeyError as error:
        raise UserError(
            f"WORLD_SIZE={size} without {error}: start several processes with torchrun, which sets both"
        ) from None
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(world.device(device))
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo")
    return world


def take_place(device: str | None, say: Callable[[str], None]) -> tuple[str, World, Callable[[str], None]]:
    """(this process's own device, the world that it joined, `say` of the first process: the others say nothing).

    Raises:
        UserError: see `pick_device` and `join_world`.
    """
    picked = pick_device(device)
    world = join_world(picked)
    return world.device(picked), world, say if world.first else lambda line: None
