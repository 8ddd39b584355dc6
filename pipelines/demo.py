"""The thesis's whole chain on the embedded dataset: base training, extraction, SAOA, and what each of them adds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extract.datasets.registry import parse_options
from extract.datasets.toykitchen import dials_from
from pipelines.base_training import train_backbone
from pipelines.extraction import extract
from pipelines.plotting import plot_run
from pipelines.request import Extraction
from pipelines.training import train_head
from stores import open_store

__all__ = [
    "BASE",
    "BUDGET",
    "Chain",
    "chance",
    "demo_features",
    "demo_heads",
    "demo_networks",
    "demo_pictures",
    "demo_trained_features",
    "table",
    "top1",
]

NETWORK = "small3d"

# The thesis trains both networks for 35 epochs of 23,191 clips from Kinetics weights. Here nothing but toy kitchen's
# 800 clips is there: the verb network begins with random weights, the noun network with the verb network's. The epochs
# are what two cores do in two minutes; with twice as many VerbNet alone reaches 96 %, and SAOA could add nothing.
BASE = {"verb": {"epochs": 3, "last_epochs": 1, "flip": True}, "noun": {"epochs": 8}}

# The same for every head. small3d's features are a fifth as long as I3D's, for which the thesis's rate is meant, so
# that what SAOA learns in 15 epochs of EPIC takes more and larger steps here: chosen on seed 0 for its loss to fall.
BUDGET = {"epochs": 60, "lr": 0.03, "last_lr": 0.003, "last_epochs": 15}


@dataclass(frozen=True)
class Chain:
    """Where the demo of one seed puts things. Stores that need no training are shared by all seeds."""

    out: Path
    dataset: str = "toykitchen"
    seed: int = 0

    @property
    def features(self) -> Path:
        return self.out / "features"

    def store(self, name: str) -> Path:
        """A store of the demo; a variant's folder is named after its dials."""
        dials = dials_from(parse_options(self.dataset.partition(":")[2]))
        return self.features / dials.name / f"{name}.zarr"

    def run(self, name: str) -> Path:
        return self.out / "runs" / f"{name}-s{self.seed}"

    def extraction(self, backbone: str, **options) -> Extraction:
        return Extraction(
            dataset=self.dataset, data=self.out / "data", features=(self.features,), backbone=backbone, **options
        )


def demo_features(chain: Chain, **options) -> list:
    """Extract what needs no training: frames, RoI features of the dataset's boxes, features of an untrained network."""
    return [
        *extract(chain.extraction("frames"), **options),
        *extract(chain.extraction("efficientnet_lite0", boxes="dataset"), **options),
        *extract(
            chain.extraction(NETWORK, name="untrained", weights=("random:0",), draws=0, only=True),
            **options,
        ),
    ]


def demo_networks(chain: Chain, *, say: Callable[[str], None] = print, progress: bool = True) -> None:
    """Train the verb network and the noun network on the cached frames."""
    for target, weights in (("verb", "random:0"), ("noun", str(chain.run("verbnet")))):
        train_backbone(
            NETWORK,
            target=target,
            frames=chain.store("frames"),
            weights=weights,
            set=BASE[target],
            out=chain.run(f"{target}net"),
            seed=chain.seed,
            say=say,
            progress=progress,
        )


def demo_trained_features(chain: Chain, **options) -> list:
    """Extract the features of both trained networks."""
    reports = []
    for target in ("verb", "noun"):
        weights, name = (str(chain.run(f"{target}net")),), f"{target}_s{chain.seed}"
        request = chain.extraction(NETWORK, name=name, weights=weights, draws=0, only=True)
        reports += extract(request, **options)
    return reports


def demo_heads(chain: Chain, *, say: Callable[[str], None] = print, progress: bool = True) -> dict[str, Path]:
    """{row of the table: run folder} of the heads: both on untrained features, and SAOA on the trained networks'."""
    untrained = ("untrained", "untrained")
    rows = {
        "linear, untrained": ("whole_frame", untrained),
        "SAOA, untrained": ("saoa", untrained),
        "SAOA": ("saoa", (f"verb_s{chain.seed}", f"noun_s{chain.seed}")),
    }
    runs = {}
    for row, (head, (verb, noun)) in rows.items():
        runs[row] = train_head(
            head,
            verb=chain.store(verb),
            noun=chain.store(noun),
            objects=chain.store("efficientnet_lite0_boxes") if head == "saoa" else None,
            out=chain.run(row.replace(", ", "-").lower()),
            seed=chain.seed,
            set=BUDGET,
            allow_random=True,
            progress=progress,
            say=say,
        )
    return runs


def demo_pictures(chain: Chain, runs: dict[str, Path]) -> list[Path]:
    """SAOA's training curve, and boxes with their attention weights."""
    return plot_run(runs["SAOA"], data=chain.out / "data", clips=6)


def chance(store) -> dict[str, float]:
    """Top-1 of always saying the class that is most frequent in training, on the validation clips."""
    split, labels = store.clips["split"], {name: store.clips[name] for name in ("verb", "noun", "action")}
    found = {}
    for name, label in labels.items():
        common = np.bincount(label[split == "train"]).argmax()
        found[name] = float((label[split == "val"] == common).mean())
    return found


def top1(chain: Chain, runs: dict[str, Path]) -> dict[str, dict[str, float]]:
    """{row: {"verb", "noun", "action": top-1}} of the table's rows; the base networks have no action."""
    rows = {"most frequent": chance(open_store(chain.store("untrained")))}
    named = [("linear, untrained", runs["linear, untrained"]), ("VerbNet", chain.run("verbnet"))]
    named += [("NounNet", chain.run("nounnet")), *((row, runs[row]) for row in ("SAOA, untrained", "SAOA"))]
    for row, folder in named:
        figures = json.loads((Path(folder) / "metrics.json").read_text())
        rows[row] = {name: figures[name]["top1"] for name in ("verb", "noun", "action") if name in figures}
    return rows


def table(chain: Chain, runs: dict[str, Path]) -> str:
    """Verb, noun and action top-1 of each step of the chain."""
    verb, noun = BASE["verb"]["epochs"], BASE["noun"]["epochs"]
    lines = [
        "toy kitchen, validation top-1 in percent. VerbNet and NounNet: small3d (0.86 M parameters, 16 x 112 x 112),",
        f"trained end-to-end on cached frames for {verb} and {noun} epochs, NounNet from VerbNet's weights.",
        "The heads: trained on frozen features. Objects: the dataset's own boxes, seen by EfficientNet-Lite0 with its",
        "ImageNet weights. untrained: small3d with random weights. linear: a normalised linear classifier on features.",
        f"{'':20}{'verb':>8}{'noun':>8}{'action':>8}",
    ]
    for row, figures in top1(chain, runs).items():
        cells = (
            f"{100 * figures[name]:8.1f}" if name in figures else f"{'-':>8}" for name in ("verb", "noun", "action")
        )
        lines.append(f"{row:20}" + "".join(cells))
    return "\n".join(lines)
