"""The log of a run for TensorBoard, beside log.csv, where that library is installed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Event files in `folder`, a point an epoch; without the library `tensorboard` it writes nothing.

    Args:
        folder: made with the first epoch.
        epochs: that are done already; what an earlier process wrote of later ones is purged.
    """

    def __init__(self, folder: Path, epochs: int):
        self._folder, self._epochs = folder, epochs
        self._writer = None

    def add(self, row: Mapping[str, float], validation: Collection[str]) -> None:
        """Write an epoch's line of log.csv: loss as train/loss; of the columns that are figures of the validation,
        val_verb_top1 as val/verb_top1, t2v_MdR as val/t2v_MdR."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:  # an extra, and log.csv holds the same
            return
        if self._writer is None:
            self._writer = SummaryWriter(str(self._folder), purge_step=self._epochs + 1)
        for name, value in row.items():
            if name != "epoch":
                part = "val" if name in validation else "train"
                self._writer.add_scalar(f"{part}/{name.removeprefix('val_')}", value, int(row["epoch"]))
        self._writer.flush()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
