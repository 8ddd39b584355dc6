"""What retrieval training trains: a head on cached tokens, or with its text network; and how well it ranks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import nn

from extract.networks import create_network
from extract.weights import TRAINED_BESIDE, RandomWeightsWarning, trained_beside
from heads.retrieval_metrics import retrieval_by_blocks
from pipelines.devices import autocast, to_device
from pipelines.retrieval_clips import Pairs
from pipelines.run_folder import Run
from stores import prefetch

__all__ = [
    "RetrievalModel",
    "embed_texts",
    "embed_videos",
    "embedded",
    "figures_of",
    "ranked",
    "trained_model",
]

KEEP_BYTES = 2 << 30  # of similarities, which are asked for twice
_AT_ONCE = 64  # texts or videos of a forward pass


class RetrievalModel(nn.Module):
    """A retrieval head (heads.text_video), and the text network in front of it if that is trained too.

    network: `extract.networks` text network, or None: batches hold cached token features.
    """

    def __init__(self, head: nn.Module, network=None):
        super().__init__()
        self.head = head
        self.text = None if network is None else network.module.requires_grad_(True)

    def tokens(self, text: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """{"tokens", "mask"} of cached features, or of ids (B, L) int64 and mask (B, L)."""
        if "tokens" in text:
            return dict(text)
        hidden = self.text(input_ids=text["ids"], attention_mask=text["mask"].long()).last_hidden_state
        return {"tokens": hidden, "mask": text["mask"]}

    def loss(self, batch: Mapping) -> torch.Tensor:
        """Of `Pairs.batch` as tensors."""
        return self.head.loss(self.head({**batch, "text": self.tokens(batch["text"])}), batch["labels"])


def trained_model(run: Run) -> tuple[RetrievalModel, object | None, dict]:
    """(model of a run's best checkpoint, ready to embed; its text network where that was trained too, else None; the
    checkpoint's metadata). Raises UserError if training never got that far."""
    if "network" not in run.facts:
        head, metadata = run.best_head()
        return RetrievalModel(head).eval(), None, metadata
    tensors, metadata = run.best_checkpoint()
    head = run.create_head()
    head.load_state_dict(trained_beside(tensors, "head."))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RandomWeightsWarning)  # every one of them is the checkpoint's
        network = create_network(run.facts["network"]["name"], "random:0", **run.facts["network"]["options"])
    own = {key: value for key, value in tensors.items() if not key.startswith(TRAINED_BESIDE)}
    network.module.load_state_dict(own)
    return RetrievalModel(head, network).eval(), network, metadata


class _Parts:
    """`prefetch` reads parts of a set by it."""

    def __init__(self, read):
        self.batch = read


def embedded(
    read: Callable[[np.ndarray], Mapping], encode: Callable, n: int, device: str, precision: str
) -> dict[str, torch.Tensor]:
    """All n rows of what `encode` gives of parts that `read` gives, on the CPU. read: numbers of [0, n) -> nested dicts
    of arrays; encode: the same as tensors on the device -> {name: (B, ...)}."""
    parts = [np.arange(i, min(i + _AT_ONCE, n)) for i in range(0, n, _AT_ONCE)]
    found: dict[str, list[torch.Tensor]] = {}
    with torch.inference_mode(), autocast(device, precision):
        for arrays in prefetch(_Parts(read), parts):
            for name, value in encode(to_device(arrays, device)).items():
                found.setdefault(name, []).append(value.cpu())
    return {name: torch.cat(values) for name, values in found.items()}


def embed_texts(model: RetrievalModel, pairs: Pairs, device: str, precision: str = "fp32") -> dict[str, torch.Tensor]:
    """Embeddings of all captions of `pairs`, a row each."""

    def encode(text):
        return model.head.encode_text(model.tokens(text))

    return embedded(pairs.texts, encode, len(pairs), device, precision)


def embed_videos(model: RetrievalModel, pairs: Pairs, device: str, precision: str = "fp32") -> dict[str, torch.Tensor]:
    """Embeddings of all clips of `pairs`, a row each."""
    return embedded(pairs.experts, model.head.encode_video, len(pairs.columns), device, precision)


def figures_of(
    head: nn.Module,
    text: Mapping[str, torch.Tensor],
    video: Mapping[str, torch.Tensor],
    column_of: np.ndarray,
    device: str = "cpu",
    told: torch.Tensor | None = None,
) -> dict[str, dict[str, float]]:
    """{"t2v", "v2t": `heads.retrieval_metrics`} of embeddings, on the CPU; block by block, on `device`.

    column_of: (texts,) each one's own video. told: (texts,) bool, those that have features [all]; a text or a video
    without features is never found. Similarities are kept between the two looks at them up to `KEEP_BYTES`.
    """
    seen = video["present"].any(dim=1)
    told = torch.ones(len(column_of), dtype=torch.bool) if told is None else told
    moved = {name: value.to(device) for name, value in video.items()}
    keep, kept = 4 * len(column_of) * len(seen) <= KEEP_BYTES, {}

    def rows_of(part: slice) -> np.ndarray:
        if part.start in kept:
            return kept[part.start]
        with torch.inference_mode():
            block = head.similarity({name: value[part].to(device) for name, value in text.items()}, moved).cpu()
            block = block.masked_fill_(~(told[part, None] & seen), float("nan")).numpy()
        if keep:
            kept[part.start] = block
        return block

    return retrieval_by_blocks(rows_of, column_of, len(seen))


def ranked(model: RetrievalModel, pairs: Pairs, device: str, precision: str = "fp32") -> dict:
    """How captions and clips find each other.

    Returns {"t2v", "v2t": `heads.retrieval_metrics`, "texts", "videos": how many, "text_coverage", "video_coverage":
    shares that have features, "experts": {name: videos that have it}}. A text or a video without features is never
    found.
    """
    was_training = model.training
    model.eval()
    text, video = embed_texts(model, pairs, device, precision), embed_videos(model, pairs, device, precision)
    told = torch.from_numpy(pairs.text.there[pairs.rows])
    found = figures_of(model.head, text, video, pairs.column_of, device, told)
    model.train(was_training)
    names: Iterable[str] = model.head.config.experts
    return {
        **found,
        "texts": len(pairs),
        "videos": len(pairs.columns),
        "text_coverage": float(told.float().mean()),
        "video_coverage": float(video["present"].any(dim=1).float().mean()),
        "experts": {name: int(n) for name, n in zip(names, video["present"].sum(dim=0), strict=True)},
    }
