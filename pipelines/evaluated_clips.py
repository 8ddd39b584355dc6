"""The clips that figures are about, whatever the run, and what scores them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from errors import UserError
from stores import ClipDataset
from stores.splits import split_mask

__all__ = ["ClipScorer", "EvaluatedClips", "class_counts", "clips_of"]


@dataclass(frozen=True)
class EvaluatedClips:
    """Some clips of a dataset, in the order of their scores."""

    dataset_name: str
    table: Mapping[str, np.ndarray]  # of all its clips: id, splits, labels, participant ... (n_clips,)
    all_labels: Mapping[str, np.ndarray]  # {name: int64 (n_clips,)} of all its clips, -1 for none
    which: np.ndarray  # int64 (n,): numbers of these clips in the table
    where: str  # the store or folder of the table, for messages

    def __len__(self) -> int:
        return len(self.which)

    @property
    def ids(self) -> np.ndarray:
        """(n,) object: the clips' ids."""
        return np.asarray(self.table["id"]).astype(object)[self.which]

    @property
    def labels(self) -> dict[str, np.ndarray]:
        """{name: int64 (n,)} of these clips."""
        return {name: column[self.which] for name, column in self.all_labels.items()}

    def column(self, name: str) -> np.ndarray:
        """Another column of the table, of these clips."""
        return np.asarray(self.table[name])[self.which]

    def in_split(self, split: str | None) -> np.ndarray:
        """(n,) bool: which of these clips are in a split; all of them when it is None or not a split here: then nobody
        can say which it left out."""
        try:
            mask = None if split is None else split_mask(self.table, split, self.where)
        except UserError:
            mask = None
        return np.ones(len(self), bool) if mask is None else mask[self.which]

    def split_labels(self, split: str) -> dict[str, np.ndarray]:
        """Labels of all annotated clips of `[scheme:]part`. Raises UserError for a split that is not there."""
        mask = split_mask(self.table, split, self.where)
        return {name: column[mask] for name, column in self.all_labels.items()}

    def unlabelled(self, names: Iterable[str]) -> int:
        """How many of these clips lack a label. An action that is a pair of labels lacks where one of them does."""
        own = [name for name in names if name in self.table]
        own += ["verb", "noun"] if "action" in names and "action" not in self.table else []
        return int(np.any([self.column(name) < 0 for name in own], axis=0).sum()) if own else 0


def clips_of(dataset: ClipDataset) -> EvaluatedClips:
    """The items of a ClipDataset."""
    store = dataset.stores[dataset.clip_roles[0]]
    table = {name: np.asarray(store.clips[name]) for name in store.clips}
    return EvaluatedClips(dataset.dataset_name, table, dataset.split_labels(None), dataset.clips, str(store.path))


@dataclass(frozen=True)
class ClipScorer:
    """The best model of a run and the clips of a split: what `evaluate`, `predict` and `fuse` have in common."""

    clips: EvaluatedClips
    classes: Mapping[str, int]  # {label name: how many}
    epoch: int  # of the checkpoint
    counts: Mapping[str, np.ndarray]  # {label name: int64 (classes,)}: how often the training clips have each
    prior: np.ndarray | None  # mu(verb, noun) of eq. 3.14, with both
    score: Callable[[], dict[str, np.ndarray]]  # {label name: float32 (n, classes) logits}, NaN rows: no prediction
    figures: Callable[[Mapping[str, np.ndarray]], dict]  # of such scores: accuracies, "clips", "coverage"


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """How often each class occurs among labels of any shape, -1 for none: int64 (classes,)."""
    return np.bincount(labels[(labels >= 0) & (labels < classes)], minlength=classes)
