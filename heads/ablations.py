"""The rows of the thesis's ablations and of SAP's, by name: which head, with which settings. No torch.

A row is what `train-head HEAD --set ...` needs to be that row and nothing else. Windows are EPIC-KITCHENS's: 6 s of
objects for a branch that is aligned globally, 4 s for one that is aligned locally (thesis section 3.3.2).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True)
class Row:
    """One row: a head and what of it differs from the method's defaults."""

    head: str
    tables: tuple[str, ...]  # where it stands: 3.1 ... of the thesis, "SAP 2" of Wang et al. 2020, AAAI
    settings: Mapping[str, object] = field(default_factory=dict)


def _rows() -> dict[str, Row]:
    sa, det = ("3.1", "SAP 2"), ("3.2", "SAP 2")
    return {
        # What the clip features say alone. The thesis's Baseline is the network itself, trained on the labels; here a
        # linear classifier on its frozen feature.
        "Baseline": Row("whole_frame", ("3.1", "3.3", "3.5", "SAP 2")),
        "Verb+Noun Fusion": Row("whole_frame", ("3.3",), {"streams": "both"}),
        "Noun + Verb": Row("whole_frame", ("SAP 2",), {"streams": "gated"}),
        # What objects say without attention.
        "Det Feat + Avg Pooling": Row("pooled_objects", det, {"pool": "mean"}),
        "Det Feat + Max Pooling": Row("pooled_objects", det, {"pool": "max"}),
        "Noun + Det Feat": Row("pooled_objects", ("3.2",), {"pool": "max", "clip": True}),
        # Symbiotic attention and what it loses.
        "SA": Row("saoa", ("3.1", "3.2", "3.3", "3.5")),
        "SA w/o CSG": Row("saoa", sa, {"gate": "none", "attend": "same"}),
        "SA w/o Gating": Row("saoa", sa, {"gate": "none"}),
        "SA w/o Cross-Stream": Row("saoa", sa, {"gate": "same", "attend": "same"}),
        "SA w/o ARM": Row("saoa", sa, {"attend": "mean"}),
        # SAP's table gives it the 30.4 that the thesis gives to detection only, and marks no noun feature for it.
        "SA w/o CSG & ARM": Row("saoa", ("SAP 2",), {"gate": "none", "attend": "mean"}),
        "SA (Det Feat only)": Row("saoa", ("3.2",), {"noun_alignment": "none"}),
        "SA + Local Alignment": Row("saoa", ("3.2",), {"noun_alignment": "local", "noun_window_s": 4.0}),
        "SAP": Row("saoa", ("3.3", "3.5", "SAP 2"), {"verb_alignment": "global", "verb_window_s": 6.0}),
        # Interactive prototypes.
        "IPL": Row("ipl", ("4.5", "4.6")),
        "IPL, independent centres": Row("ipl", ("4.5",), {"independent": True}),
        "IPL w/o background": Row("ipl", ("4.6",), {"background": False}),
        **{f"IPL, K = {k}": Row("ipl", ("4.7",), {"top_k": k}) for k in (1, 3, 5, 7, 15)},
    }


ROWS: Mapping[str, Row] = MappingProxyType(_rows())
