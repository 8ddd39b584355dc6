"""What a run folder holds, for comparing runs."""

import json

from pipelines.run_folder import open_run


def metrics_of(run) -> dict:
    return json.loads((run / "metrics.json").read_text())


def same_figures(found: dict, run) -> bool:
    """Whether `evaluate` found what the run's own validation did."""
    kept = metrics_of(run)
    return found["split"] == "val" and all(kept[k] == v for k, v in found.items() if k in kept)


def curve(run) -> list[dict]:
    """The log without what a clock says."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "waited")} for row in open_run(run).log()]
