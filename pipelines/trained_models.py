"""What base training trains: a network with linear classifiers on its pooled feature, or with a head of stage two."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from extract.networks.spec import READS
from pipelines.devices import to_device
from pipelines.evaluation import MeanScores
from pipelines.labelled_clips import LabelledClips
from stores import prefetch

__all__ = ["ClassifiedBackbone", "JointModel", "centre_scores", "mean_scores", "thaw"]


class TrainedNetwork(nn.Module):
    """A network of the registry whose module is trained in place.

    network: `extract.networks.Network` of kind backbone. freeze_norms: batch norms keep the statistics they came with.
    """

    def __init__(self, network, freeze_norms: bool):
        super().__init__()
        self.network, self.freeze_norms = network, freeze_norms
        self.module = network.module
        thaw(network)

    def train(self, mode: bool = True) -> TrainedNetwork:
        """As torch's; evaluation runs with the weights as extraction prepares them, folded batch norms and all."""
        super().train(mode)
        if not mode:
            self.network.prepare()
        elif self.freeze_norms:
            for part in self.module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.eval()
        return self

    def feature_map(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 frames (B, T, S, S, C), or (B, S, S, C) -> (B, T', H', W', C') or (B, H', W', C') float32."""
        return self.network.feature_map(self.network.normalise(frames))


def thaw(network) -> None:
    """Let gradients into what a network's `vector` depends on, and nothing else: parameters without a gradient (a
    classifier that came with it) would make training by several processes wait for them."""
    spec, module = network.spec, network.module.requires_grad_(True).train()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    parameters = list(module.parameters())
    height, width = spec.input_size or (64, 64)
    frames = (spec.clip_len,) if READS[spec.reads][0] == "THWC" else ()
    blank = torch.zeros((2, *frames, height, width, spec.channels), dtype=torch.uint8, device=network.device)
    network.keep = ("vector",)
    with torch.enable_grad():
        vector = network.compute(blank, [0, 1], {})["vector"]
        found = torch.autograd.grad(vector.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.requires_grad_(gradient is not None)
    with torch.no_grad():
        for name, buffer in module.named_buffers():  # statistics of batch norms
            buffer.copy_(before[name])
    module.eval()


class ClassifiedBackbone(TrainedNetwork):
    """batch["frames"] -> {target: logits (B, classes)}: the network, mean pooling, dropout, a linear layer a target."""

    def __init__(self, network, classes: Mapping[str, int], *, dropout: float, freeze_norms: bool):
        super().__init__(network, freeze_norms)
        self.dropout = dropout
        width = network.spec.outputs["vector"][0][-1]
        self.classifier = nn.ModuleDict({name: nn.Linear(width, n) for name, n in classes.items()}).to(network.device)

    def forward(self, batch: dict) -> dict:
        pooled = self.feature_map(batch["frames"]).flatten(1, -2).mean(1)
        pooled = F.dropout(pooled, self.dropout, self.training)
        return {name: layer(pooled) for name, layer in self.classifier.items()}

    def loss(self, batch: dict) -> torch.Tensor:
        """Sum of the targets' cross-entropies."""
        out = self(batch)
        return sum(F.cross_entropy(out[name].float(), label) for name, label in batch["labels"].items())

    def beside(self) -> dict[str, torch.Tensor]:
        """Tensors of the checkpoint that are not the network's."""
        return self.classifier.state_dict(prefix="classifier.")


class JointModel(TrainedNetwork):
    """A network of clips and a head on its maps, trained together: the head reads what it would read from a store.

    Both of a head's roles, verb and noun, are played by the one network; its objects, where it has any, stay cached.
    """

    def __init__(self, network, head: nn.Module, *, freeze_norms: bool):
        super().__init__(network, freeze_norms)
        self.head = head.to(network.device)

    def forward(self, batch: dict) -> dict:
        fmap = self.feature_map(batch["frames"])
        clip = {"map": fmap, "spatial": fmap.mean(1), "vector": fmap.flatten(1, -2).mean(1)}
        clip["geometry"] = geometry(batch["seen"], *fmap.shape[2:4])
        return self.head({**batch, **dict.fromkeys(("verb", "noun"), clip)})

    def loss(self, batch: dict) -> torch.Tensor:
        return self.head.loss(self(batch), batch["labels"])

    def beside(self) -> dict[str, torch.Tensor]:
        """Tensors of the checkpoint that are not the network's."""
        return self.head.state_dict(prefix="head.")


def geometry(seen: torch.Tensor, map_h: int, map_w: int) -> torch.Tensor:
    """(B, 4) = (sx, sy, ox, oy) of maps of what was `seen`: (B, 4) left, top, width, height relative to the frame.

    As `extract.transforms.geometry`: x_map = sx * x + ox for x in [0, 1] across the whole frame.
    """
    left, top, width, height = seen.unbind(1)
    sx, sy = map_w / width, map_h / height
    return torch.stack((sx, sy, -left * sx, -top * sy), dim=1)


def centre_scores(
    model: TrainedNetwork,
    clips: LabelledClips,
    which: np.ndarray,
    outputs: Mapping[str, int],
    batch_size: int,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """{name: (n, outputs) float32 logits of the centres of clips `which`, as after extraction}, NaN without frames.

    Validation of every epoch takes these, of heads that average too: evenly spaced clips would cost it as many times
    more.
    """
    out = {name: np.full((len(which), width), np.nan, np.float32) for name, width in outputs.items()}
    there = np.flatnonzero(np.isin(which, clips.readable(which)))
    windows = _Windows(clips, which[there], clips.centre_starts(which[there]))
    for part, logits in _logits(model, windows, outputs, batch_size, progress):
        for name, values in out.items():
            values[there[part]] = logits[name]
    return out


def mean_scores(
    model: TrainedNetwork,
    clips: LabelledClips,
    which: np.ndarray,
    windows: tuple[np.ndarray, np.ndarray],
    outputs: Mapping[str, int],
    batch_size: int,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """{name: (n, outputs) float32: log of the mean softmax score over the windows of each of clips `which` (n,)}, NaN
    without any. windows: (places in `which` (m,), starts (m,) in seconds), as `LabelledClips.test_windows` gives them.

    `batch_size` windows go through the network at once, whatever clips they are of; only the sums of scores are kept.
    """
    places, starts = windows
    mean = MeanScores(len(which), outputs)
    for part, logits in _logits(model, _Windows(clips, which[places], starts), outputs, batch_size, progress):
        mean.add(places[part], logits)
    return mean.logits()


def _logits(
    model: TrainedNetwork, windows: _Windows, names: Iterable[str], batch_size: int, progress: bool
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """(numbers of windows (b,), {name: float32 (b, outputs)}) of one batch after another."""
    model.eval()
    device = str(model.network.device)
    batches = [np.arange(i, min(i + batch_size, len(windows))) for i in range(0, len(windows), batch_size)]
    bar = tqdm(prefetch(windows, batches), total=len(batches), desc="scoring", disable=not progress, leave=False)
    for part, arrays in zip(batches, bar, strict=True):
        with model.network.inference():
            logits = model(to_device(arrays, device))
        yield part, {name: logits[name].float().cpu().numpy() for name in names}


class _Windows:
    """Windows of clips `which` (m,) that start at (m,) seconds, for `prefetch`."""

    def __init__(self, clips: LabelledClips, which: np.ndarray, starts_s: np.ndarray):
        self.clips, self.which, self.starts_s = clips, which, starts_s

    def __len__(self) -> int:
        return len(self.which)

    def batch(self, items: np.ndarray) -> dict:
        return self.clips.window(self.which[items], self.starts_s[items])
