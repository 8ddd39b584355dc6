"""What retrieval training trains: a head on cached tokens, or with its text network; and how well it ranks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from heads.retrieval_metrics import retrieval_by_blocks
from pipelines.devices import autocast, to_device
from pipelines.retrieval_clips import Pairs
from stores import prefetch

__all__ = ["RetrievalModel", "embed_texts", "embed_videos", "ranked"]

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


class _Parts:
    """`prefetch` reads parts of a set by it."""

    def __init__(self, read):
        self.batch = read


def _embedded(read, encode, n: int, device: str, precision: str) -> dict[str, torch.Tensor]:
    """All rows of what `encode` gives of parts that `read` gives, on the CPU."""
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

    return _embedded(pairs.texts, encode, len(pairs), device, precision)


def embed_videos(model: RetrievalModel, pairs: Pairs, device: str, precision: str = "fp32") -> dict[str, torch.Tensor]:
    """Embeddings of all clips of `pairs`, a row each."""
    return _embedded(pairs.experts, model.head.encode_video, len(pairs.columns), device, precision)


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
    seen = video["present"].any(dim=1)
    moved = {name: value.to(device) for name, value in video.items()}

    def rows_of(part: slice) -> np.ndarray:
        with torch.inference_mode():
            block = model.head.similarity({name: value[part].to(device) for name, value in text.items()}, moved).cpu()
        return block.masked_fill(~(told[part, None] & seen), float("nan")).numpy()

    found = retrieval_by_blocks(rows_of, pairs.column_of, len(pairs.columns))
    model.train(was_training)
    names: Iterable[str] = model.head.config.experts
    return {
        **found,
        "texts": len(pairs),
        "videos": len(pairs.columns),
        "text_coverage": float(told.float().mean()),
        "video_coverage": float(seen.float().mean()),
        "experts": {name: int(n) for name, n in zip(names, video["present"].sum(dim=0), strict=True)},
    }
