"""Figures that papers print, for tables and pictures beside one's own (heads/published.csv)."""

import csv
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Published", "published"]

_TABLE = Path(__file__).with_name("published.csv")


@dataclass(frozen=True)
class Published:
    """One printed figure."""

    method: str
    dataset: str
    split: str  # part of the dataset as `evaluate` names it, "average" over EGTEA's three, or as the source calls it
    metric: str  # the path of the figure in what `evaluate` returns: verb.top1, tail_classes.noun.top1, mAP ...
    input: str  # the network, the streams
    value: float  # in percent; a median rank (MdR) in ranks
    gflops: float | None  # multiply-adds; None: not printed
    source: str  # the table
    note: str = ""  # what is wrong with it: a misprint of the source


def published(dataset: str | None = None, metric: str | None = None, split: str | None = None) -> list[Published]:
    """The figures of a dataset, of a metric and of a split, in the order of the file."""
    with open(_TABLE, newline="", encoding="utf-8") as lines:
        rows = [
            Published(
                **{**row, "value": float(row["value"]), "gflops": float(row["gflops"]) if row["gflops"] else None}
            )
            for row in csv.DictReader(lines)
        ]
    wanted = {"dataset": dataset, "metric": metric, "split": split}
    return [row for row in rows if all(value in (None, getattr(row, name)) for name, value in wanted.items())]
