"""Losses over the similarities of a batch: rows are texts, columns videos, a pair belongs together on the diagonal."""

import torch
import torch.nn.functional as F

__all__ = ["hardest_margin", "max_margin"]


def max_margin(similarity: torch.Tensor, margin: float, negative: torch.Tensor | None = None) -> torch.Tensor:
    """Bi-directional max-margin ranking loss over all negatives (thesis section 6.2.5, after Miech et al. 2018, MEE;
    MMT's `fix_norm`): the mean of max(0, margin + s_ij - s_ii) and max(0, margin + s_ji - s_ii) over all pairs i != j.

    similarity (n, n); negative (n, n) bool, symmetric: pairs that count, all but the diagonal if None. Returns a
    scalar, 0 where there is no negative.
    """
    negative = _negative(similarity, negative)
    costs = sum(_costs(similarity, margin, negative))
    return costs.sum() / (2 * negative.sum()).clamp(min=1)


def hardest_margin(
    similarity: torch.Tensor, margin: float, hardest: int = 1, negative: torch.Tensor | None = None
) -> torch.Tensor:
    """The same over the `hardest` most violating negatives of each text and of each video (VSE++, Faghri et al. 2018;
    PaddleVideo's T2VLAD): the mean over the texts' plus the mean over the videos'."""
    negative = _negative(similarity, negative)
    of_text, of_video = _costs(similarity, margin, negative)
    k = min(hardest, max(1, len(similarity) - 1))
    return of_text.topk(k, dim=1).values.mean() + of_video.topk(k, dim=0).values.mean()


def _negative(similarity: torch.Tensor, negative: torch.Tensor | None) -> torch.Tensor:
    others = ~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    return others if negative is None else others & negative


def _costs(similarity: torch.Tensor, margin: float, negative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, n) costs of each text's wrong videos (along rows) and of each video's wrong texts (along columns)."""
    own = similarity.diagonal()
    of_text, of_video = margin + similarity - own[:, None], margin + similarity - own[None]
    return F.relu(of_text).masked_fill(~negative, 0), F.relu(of_video).masked_fill(~negative, 0)
