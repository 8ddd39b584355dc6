"""What sampler training trains: a head that scores frames, on cached features or with its light network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from extract.networks import create_network
from extract.weights import trained_beside
from pipelines.devices import autocast, to_device
from pipelines.run_folder import Run
from pipelines.trained_models import TrainedNetwork

__all__ = ["CachedSampler", "JointSampler", "Seen", "load_sampler", "observe"]

_ROWS_AT_ONCE = 64  # frames of a forward pass of the light network in validation


class CachedSampler(nn.Module):
    """A head (heads.psn, heads.scsampler) on cached features of a light network."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def loss(self, batch: dict) -> torch.Tensor:
        return self.head.loss(self.head(batch), batch["labels"])

    def row_vectors(self, vectors: np.ndarray) -> np.ndarray:
        """(n, C) float32 as they are."""
        return vectors

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """The head's own tensors."""
        return self.head.state_dict()


class JointSampler(TrainedNetwork):
    """A light frame network and the head that scores its frames, trained together (thesis section 5.2.3).

    network: `extract.networks.Network` with the output `vector`. freeze_norms: its batch norms keep the
    statistics they came with.
    """

    def __init__(self, network, head: nn.Module, *, freeze_norms: bool):
        super().__init__(network, freeze_norms)
        self.head = head.to(network.device)

    def loss(self, batch: dict) -> torch.Tensor:
        """batch["sampler"]: frames uint8 (B, N, S, S, 3) and mask (B, N); the network sees those that are there."""
        frames, mask = batch["sampler"]["frames"], batch["sampler"]["mask"]
        shown = frames[mask]
        seen = self.network.compute(shown, list(range(len(shown))), {})["vector"]
        vector = seen.new_zeros(*mask.shape, seen.shape[-1]).masked_scatter(mask[..., None], seen)
        batch = {**batch, "sampler": {"vector": vector, "mask": mask}}
        return self.head.loss(self.head(batch), batch["labels"])

    def row_vectors(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (n, S, S, 3) -> (n, C) float32, as extraction computes them; the model must be in evaluation."""
        parts = [frames[i : i + _ROWS_AT_ONCE] for i in range(0, len(frames), _ROWS_AT_ONCE)]
        return np.concatenate([self.network.run({"frames": list(part)})["vector"] for part in parts])

    def beside(self) -> dict[str, torch.Tensor]:
        """Tensors of the checkpoint that are not the network's."""
        return self.head.state_dict(prefix="head.")


@dataclass(frozen=True)
class Seen:
    """What both networks say of the N candidate frames of V videos, on the CPU: enough for every way to pick frames."""

    scores: torch.Tensor  # (V, N) float32 of the head, 0 where there is no frame
    logits: torch.Tensor  # (V, N, classes) float32 of the recogniser
    mask: torch.Tensor  # (V, N) bool: frames that are there


def observe(
    model: CachedSampler | JointSampler, batches: Iterable[Mapping], *, device: str, precision: str = "fp32"
) -> Seen:
    """`Candidates.batch` of V videos in all, one or more, shown to the model."""
    model.eval()
    found: list[tuple[torch.Tensor, ...]] = []
    for arrays in batches:
        vector = model.row_vectors(arrays["input"])[arrays["place"]]
        mask = torch.from_numpy(arrays["mask"])
        batch = {"sampler": {**to_device({"vector": vector}, device), "mask": mask.to(device)}}
        with torch.inference_mode(), autocast(device, precision):
            scores = model.head.scores(batch)
        found.append((scores.float().cpu(), torch.from_numpy(arrays["logits"]), mask))
    return Seen(*(torch.cat(column) for column in zip(*found, strict=True)))


def load_sampler(run: Run, device: str) -> tuple[CachedSampler | JointSampler, dict]:
    """The model of a sampler run's best epoch on a device, and the checkpoint's metadata.

    Raises:
        UserError: training never finished an epoch.
    """
    if run.facts["features"] == "frozen":
        head, metadata = run.best_head()
        return CachedSampler(head).to(device).eval(), metadata
    tensors, metadata = run.best_checkpoint()
    facts = run.facts["network"]
    network = create_network(facts["name"], str(run.path), **{**facts["options"], "resize": facts["resize"]})
    head = run.create_head()
    head.load_state_dict(trained_beside(tensors, "head."))
    return JointSampler(network.to(device), head, freeze_norms=True).eval(), metadata
