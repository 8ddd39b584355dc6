"""A run's figures beside those that papers print (heads/published.csv)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from heads.published import published
from pipelines.protocols import dataset_family

__all__ = ["published_rows", "published_split"]

_NO_SHARE = ("R@", "MdR", "MnR")  # figures that `evaluate` gives in the unit that papers print; the others are shares


def published_rows(
    dataset: str, split: str, figures: Mapping, metric: str | None = None, source: str | None = None
) -> list[dict]:
    """What papers print on a split of a dataset, beside one's own.

    dataset: its name or a variant's. split: as `evaluate` takes it. figures: what `evaluate` returned; a printed figure
    that it lacks is left out. metric, source: of these only.

    Returns [{"source", "method", "input", "metric", "ours", "theirs", "difference", "note"}] in the order of the
    tables, in percent (median ranks in ranks); difference = ours - theirs; note: a misprint of the source, or "".
    """
    rows = []
    for row in published(dataset_family(dataset), metric, published_split(dataset, split)):
        ours = _figure(figures, row.metric)
        if ours is None or source not in (None, row.source):
            continue
        rows.append(
            {
                "source": row.source,
                "method": row.method,
                "input": row.input,
                "metric": row.metric,
                "ours": ours,
                "theirs": row.value,
                "difference": ours - row.value,
                "note": row.note,
            }
        )
    return rows


def published_split(dataset: str, split: str) -> str:
    """The split's name in the tables: EGTEA's parts are told with their scheme, "2:test", the others as they are."""
    family, _, variant = dataset.partition("-")
    if family != "egtea" or ":" in split or split == "average":
        return split
    default = re.search(r"split=(\d)", variant)
    return f"{default[1] if default else 1}:{split}"


def _figure(figures: Mapping, path: str) -> float | None:
    """figures["verb"]["top1"] for "verb.top1", in the unit of the tables; None if there is none."""
    found = figures
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return float(found) if path.rpartition(".")[2].startswith(_NO_SHARE) else 100 * float(found)
