"""What `ablations_egocentric.py` tests: kitchens, claims of the tables, and doses. Plain data."""

import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from heads.published import published

__all__ = ["CLAIMS", "DOSES", "KITCHENS", "Claim", "Dose"]

# Every variant of toy kitchen that anything is compared on, frozen by the hash of its dials (`Dials.hash`).
KITCHENS = {
    "toykitchen": "c81481b2e757a46c9fa0e344c1c5fc6de59c0f1d3b699334a674f148d3f50b91",
    "toykitchen:distractors=0": "32439f38ee84c7407696e0b553b03155538c74687227e83d0d505a25205990a3",
    "toykitchen:distractors=1": "b78091bdd9af1ccedb7e9757954ff7f0a8a15c98056267cb5da4a9565b4383d1",
    "toykitchen:distractors=7": "f55b622007da2719e60b68fc28a9d1a4bf4cbc5468241d37e19d3e577021e2bd",
    "toykitchen:camera=0": "c55f522725078f9d74709ad514de2c2b84b271e875f070ca6b383aa6590f302b",
    "toykitchen:camera=2": "3cbbc804e96d8d78e98468d6a88a41cde2ddc449e4d5d5a6e390c9362926d42c",
    "toykitchen:camera=3": "2a95684d5e3a614709655f0135f00ea686ad079dcfe69c5193ea919de72de81a",
}

FUSED = "SA, RGB+Flow"
METRICS = ("verb", "noun", "action")
PARTS = {"CSG": "CSG", "gating": "Gating", "cross-stream": "Cross-Stream", "ARM": "ARM", "CSG and ARM": "CSG & ARM"}


@dataclass(frozen=True)
class Claim:
    """One relation of a table: `better` is above `worse` by this metric. The names are rows of `heads.ablations`, with
    `, Flow` or `, RGB+Flow` behind them for those streams."""

    table: str
    metric: str  # verb | noun | action
    better: str
    worse: str
    printed: float  # points between them


@dataclass(frozen=True)
class Dose:
    """A gain, `better` minus `worse` by this metric, against a dial of toy kitchen."""

    name: str
    dial: str
    values: tuple[int, ...]
    metric: str
    better: str
    worse: str
    expected: str  # what is claimed of it, in words
    rises: bool | None  # the claim about its slope; None: none is made


RGB, ALL = {"R-50 RGB": "", "R-50 RGB+Obj": ""}, {"RGB": "", "Flow": ", Flow", "RGB+Flow": ", RGB+Flow"}
I3D = {f"I3D {stream}{objects}": shown for stream, shown in ALL.items() for objects in ("", "+Obj")}
R21D = {"R(2+1)D-34 RGB": ""}
# table: (its source in heads/published.csv, metrics, {input: what stands behind a row's name})
TABLES = {
    "3.1": ("thesis table 3.1", ("verb", "noun"), RGB),
    "3.2": ("thesis table 3.2", ("noun",), RGB),
    "3.3": ("thesis table 3.3", ("verb",), RGB),
    "3.4": ("thesis table 3.4", ("verb", "noun"), I3D),
    "3.5": ("thesis table 3.5", ("action",), I3D),
    "SAP 2": ("SAP (talk) table 2", ("noun",), RGB),
    "4.5": ("thesis table 4.5", METRICS, R21D),
    "4.6": ("thesis table 4.6", METRICS, R21D),
    "4.7": ("thesis table 4.7", ("noun",), R21D),
}
# Rows by their names in heads/published.csv. SAP's noun branch is SAOA's, so its ablations are SAOA's.
ROWS = {
    "Baseline": "Baseline", "Verb + noun fusion": "Verb+Noun Fusion", "Noun + verb": "Noun + Verb",
    "Detection, average pooling": "Det Feat + Avg Pooling", "Detection, max pooling": "Det Feat + Max Pooling",
    "Noun + detection": "Noun + Det Feat", "SA": "SA", "SAOA": "SA", "SA, global alignment": "SA",
    "SA, local alignment": "SA + Local Alignment", "SA, detection only": "SA (Det Feat only)", "SAP": "SAP",
    **{f"{head} without {part}": f"SA w/o {shown}" for head in ("SA", "SAP") for part, shown in PARTS.items()},
    "IPL": "IPL", "IPL, independent centres": "IPL, independent centres",
    "IPL without background": "IPL w/o background", "IPL, K = 1": "IPL, K = 1", "IPL, K = 3": "IPL, K = 3",
    "IPL, K = 5": "IPL", "IPL, K = 7": "IPL, K = 6", "IPL, K = 15": "IPL, K = 6",  # toy kitchen has six verbs
}  # fmt: skip


def _claims() -> list[Claim]:
    """Every pair of a table's rows whose printed figures differ; the better one is the one that is printed so."""
    found = {}  # K = 7 and K = 15 are one row here
    for table, (source, metrics, inputs) in TABLES.items():
        for metric in metrics:
            rows = [row for row in published("epic55", f"{metric}.top1") if row.source == source]
            rows = [row for row in rows if row.method in ROWS and row.input in inputs]
            for one, other in combinations(sorted(rows, key=lambda row: -row.value), 2):
                better, worse = (ROWS[row.method] + inputs[row.input] for row in (one, other))
                if one.value > other.value and better != worse:
                    claim = Claim(table, metric, better, worse, one.value - other.value)
                    found.setdefault((table, metric, better, worse), claim)
    return list(found.values())


CLAIMS = _claims()

_DISTRACTORS, _CAMERA = (0, 1, 3, 7), (0, 1, 2, 3)
DOSES = (
    Dose("SAOA's noun gain over pooled objects", "distractors", _DISTRACTORS, "noun", "SA", "Noun + Det Feat",
         "grows with distractors, about zero without any", True),
    Dose("SAOA's noun gain over the clip feature", "distractors", _DISTRACTORS, "noun", "SA", "Baseline",
         "grows with distractors, about zero without any", True),
    Dose("what attention gives SAOA's nouns", "distractors", _DISTRACTORS, "noun", "SA", "SA w/o ARM",
         "grows with distractors, about zero without any", True),
    Dose("IPL's noun gain by its background", "distractors", _DISTRACTORS, "noun", "IPL", "IPL w/o background",
         "grows with clutter", True),
    *(Dose(f"RGB + flow's {metric} gain over RGB", "camera", _CAMERA, metric, FUSED, "SA",
           "falls or rises with camera motion", None) for metric in ("verb", "noun")),
)  # fmt: skip
