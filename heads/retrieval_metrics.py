"""Text-video retrieval's figures of merit, as the published evaluation code counts them.

Source: gabeur/mmt@8f53717 model/metric.py (the arithmetic of albanie/collaborative-experts): ranks from 0, equal
scores share the mean of their places (a tie at the top is no hit at 1), and a video's rank is the best of its own
captions'. A place is a count of larger and of equal scores, so nothing is sorted, and blocks of a matrix that is never
held as a whole give the same numbers.
"""

from collections.abc import Callable

import numpy as np

__all__ = ["retrieval", "retrieval_by_blocks", "retrieval_figures", "retrieval_ranks"]

_BLOCK_BYTES = 64 << 20  # of similarities compared at once
_AT = (1, 5, 10, 50)


def retrieval(similarity, video_of_text) -> dict[str, dict[str, float]]:
    """Figures of a similarity matrix, text to video and video to text.

    similarity: (n_text, n_video), larger is more alike, NaN: not predicted, which is never a hit; an array or a memory
    map, never copied as a whole. video_of_text: (n_text,) the column of each text's own video, any number of texts a
    video, in any order; -1: a text that takes no part. Returns {"t2v": {"R@1", "R@5", "R@10", "R@50" in percent, "MdR",
    "MnR" = median and mean rank from 1}, "v2t": the same over the videos that have a text}. Raises ValueError: shapes
    that do not fit, or a video that is no column.
    """
    similarity = np.asanyarray(similarity)
    if similarity.ndim != 2 or len(similarity) != len(video_of_text):
        raise ValueError(
            f"similarity must be (n_text, n_video) with a row for each of {len(video_of_text)} texts, got"
            f" {similarity.shape}"
        )
    return retrieval_by_blocks(similarity.__getitem__, video_of_text, similarity.shape[1])


def retrieval_by_blocks(
    rows_of: Callable[[slice], np.ndarray], video_of_text, n_videos: int
) -> dict[str, dict[str, float]]:
    """`retrieval` of a matrix that need not exist: rows_of(slice of texts) -> (texts of the slice, n_videos).

    It is asked for every slice twice, and must give the same numbers both times.
    """
    text_ranks, video_ranks = retrieval_ranks(rows_of, video_of_text, n_videos)
    n_texts = int((np.asarray(video_of_text) >= 0).sum())
    return {"t2v": retrieval_figures(text_ranks, n_videos), "v2t": retrieval_figures(video_ranks, n_texts)}


def retrieval_ranks(
    rows_of: Callable[[slice], np.ndarray], video_of_text, n_videos: int
) -> tuple[np.ndarray, np.ndarray]:
    """Places from 0, equal scores sharing their mean: float64 (n_text,) of each text's own video among all videos, and
    (n_videos,) of each video's best own text among all texts. A pair that was not predicted has the place after the
    last; NaN for texts that take no part and videos without a text. Arguments as of `retrieval_by_blocks`.
    """
    video = np.asarray(video_of_text)
    if len(video) and not (-1 <= video.min() and video.max() < n_videos):
        raise ValueError(f"video_of_text must be in [-1, {n_videos}), got {video.min()} to {video.max()}")
    at_once = max(1, _BLOCK_BYTES // (8 * max(1, n_videos)))
    parts = [slice(i, min(i + at_once, len(video))) for i in range(0, len(video), at_once)]
    taken = [np.flatnonzero(video[part] >= 0) for part in parts]  # rows of each block that take part

    own = [_block(rows_of, part, n_videos)[rows, video[part][rows]] for part, rows in zip(parts, taken, strict=True)]
    all_own = np.concatenate(own) if own else np.zeros(0)
    best = np.full(n_videos, np.nan, all_own.dtype)
    np.fmax.at(best, video[video >= 0], all_own)

    texts = np.full(len(video), np.nan)
    larger, equal = np.zeros(n_videos, np.int64), np.zeros(n_videos, np.int64)
    for part, rows, own_of_part in zip(parts, taken, own, strict=True):
        block = _block(rows_of, part, n_videos)[rows]
        texts[part.start + rows] = _places(*_counts(block, own_of_part[:, None], axis=1), n_videos)
        more, same = _counts(block, best, axis=0)
        larger, equal = larger + more, equal + same
    has_text = np.bincount(video[video >= 0], minlength=n_videos) > 0
    return texts, np.where(has_text, _places(larger, equal, int((video >= 0).sum())), np.nan)


def retrieval_figures(ranks: np.ndarray, candidates: int) -> dict[str, float]:
    """Places from 0 among so many candidates, (n,), NaN left out -> {"R@1", "R@5", "R@10", "R@50" in percent, "MdR",
    "MnR" from 1}; a place after the last is never a hit. All NaN where there is no place."""
    ranks = np.asarray(ranks, np.float64)
    ranks = ranks[~np.isnan(ranks)]
    if not len(ranks):
        return dict.fromkeys([*(f"R@{k}" for k in _AT), "MdR", "MnR"], float("nan"))
    # At 1 only place 0 counts: half a place is a tie at the top.
    recall = {f"R@{k}": 100 * float(np.mean(ranks < min(k, candidates) if k > 1 else ranks == 0)) for k in _AT}
    return recall | {"MdR": float(np.median(ranks)) + 1, "MnR": float(np.mean(ranks)) + 1}


def _block(rows_of, part: slice, n_videos: int) -> np.ndarray:
    block = np.asarray(rows_of(part))
    if block.shape != (part.stop - part.start, n_videos):
        raise ValueError(f"rows {part.start} to {part.stop} must be {n_videos} wide, got a block of {block.shape}")
    return block


def _counts(block: np.ndarray, score: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """How many of a block's scores are larger than one, and equal to it (itself among them)."""
    return np.count_nonzero(block > score, axis=axis), np.count_nonzero(block == score, axis=axis)


def _places(larger: np.ndarray, equal: np.ndarray, candidates: int) -> np.ndarray:
    """The mean place of the equal ones; where not even the score itself is equal it is a NaN: behind all."""
    return np.where(equal > 0, larger + (equal - 1) / 2, candidates)
