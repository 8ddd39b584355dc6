"""What sampler training trains: a head that scores frames, on cached features or with its light network, and how well
a recogniser does on the frames it picks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from heads import frame_sampling
from pipelines.devices import autocast, to_device
from pipelines.trained_models import TrainedNetwork

__all__ = ["CachedSampler", "JointSampler", "predict_videos"]

_ROWS_AT_ONCE = 64  # frames of a forward pass of the light network in validation
_RANDOM_DRAWS = 5  # of the random baseline, whose figures are averaged


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


def predict_videos(
    model: CachedSampler | JointSampler, batches: Iterable[Mapping], *, device: str, precision: str, seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What the recogniser says of videos from the frames that the head picks, and others pick, as many (M).

    batches: `Candidates.batch` of V videos in all. Returns {"head", "uniform", "dense", "random 0" ...: (logits
    (V, classes) float32, frames that the recogniser saw (V,) int64)}; dense is all N.
    """
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    m = model.head.config.sampled
    found: dict[str, list] = {}
    for arrays in batches:
        vector = model.row_vectors(arrays["input"])[arrays["place"]]
        mask = torch.from_numpy(arrays["mask"]).to(device)
        batch = to_device({"sampler": {"vector": vector}, "recogniser": {"logits": arrays["logits"]}}, device)
        for part in batch.values():
            part["mask"] = mask
        with torch.inference_mode(), autocast(device, precision):
            out = model.head.predict(batch)
        others = {"uniform": frame_sampling.uniform(mask, m), "dense": frame_sampling.dense(mask)}
        for i in range(_RANDOM_DRAWS):
            others[f"random {i}"] = frame_sampling.random_frames(mask, m, generator)
        logits = batch["recogniser"]["logits"]
        answers = {"head": (out["class"], out["picked"])}
        for name, picked in others.items():
            answers[name] = (
                frame_sampling.video_logits(logits, torch.ones_like(mask, dtype=logits.dtype), picked),
                picked,
            )
        for name, (answer, picked) in answers.items():
            found.setdefault(name, []).append((answer.float().cpu().numpy(), picked.sum(dim=1).cpu().numpy()))
    return {name: tuple(np.concatenate(column) for column in zip(*parts, strict=True)) for name, parts in found.items()}
