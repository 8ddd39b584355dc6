"""Toy kitchen's untrimmed videos to be classified whole: the label is the object that is handled in some stretches.

The same files as toy kitchen's, made from the same dials, in a variant with many untrimmed videos and hardly any clips.
A video is a row of scenes of two seconds; the dial `irrelevant` is the share of them in which nothing is handled, whose
objects and table tops tell nothing of the label.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from errors import UserError
from extract.csv_reading import read_csv
from extract.datasets.base import Dataset
from extract.datasets.epic_csv import read_class_names
from extract.datasets.registry import register_dataset
from extract.datasets.whole_videos import WholeVideo, whole_video_dataset

__all__ = ["split_of", "toykitchen_untrimmed"]

USUAL = {
    "train_clips": 1, "val_clips": 1, "clock_clips": 0,
    "untrimmed": 400, "untrimmed_seconds": 16, "context": 0.5,
}  # fmt: skip
"""Dials that differ from toy kitchen's own. `context` was set on videos of another seed, from a recogniser's answers on
all frames and on relevant ones alone, before any way of sampling was tried."""
VAL_KITCHENS = ("P11", "P12")


@register_dataset("toykitchen_untrimmed")
def toykitchen_untrimmed(data_root: Path | None, media: str = "rgb", **dials) -> Dataset:
    """Load the untrimmed videos of a variant of toy kitchen, making it first if needed (told on stderr).

    A clip is a whole video, `label` the noun handled in it; `events` are its actions (label: verb). Splits: `train`,
    `val` (the training kitchens P11 and P12), `test` (toy kitchen's validation kitchens: unseen kitchens and digits).

    Raises:
        UserError: as toy kitchen; `untrimmed=0`.
        MachineError: the data root cannot be written.
    """
    from extract.datasets.toykitchen import Dials, dials_from, make_variant
    from extract.datasets.toykitchen.read import read_card, read_events

    usual, chosen = Dials(**USUAL), dials_from({**USUAL, **dials})
    if not chosen.untrimmed:
        raise UserError("toykitchen_untrimmed needs untrimmed videos: the dial untrimmed is 0")
    folder = make_variant(data_root, media, chosen)
    annotations = folder / "annotations"
    path = annotations / "untrimmed_events.csv"
    names = sorted(set(read_csv(path, ["video_id"])["video_id"]))
    events = read_events(path, {name: i for i, name in enumerate(names)})
    first = np.searchsorted(np.sort(events["video"]), np.arange(len(names)))
    noun = events["noun"][np.argsort(events["video"], kind="stable")][first]  # all events of a video have one
    videos = [WholeVideo(name, split_of(name), (int(n),)) for name, n in zip(names, noun, strict=True)]
    return whole_video_dataset(
        chosen.named("toykitchen_untrimmed", usual),
        folder,
        videos,
        read_class_names(annotations / "EPIC_noun_classes.csv"),
        multi_label=False,
        events={**events, "video": np.array(names, object)[events["video"]]},
        facts=read_card(folder),
    )


def split_of(video: str) -> str:
    """Split of an untrimmed video by its kitchen: P01_901 -> "train", P11_901 -> "val", P26_901 -> "test"."""
    from extract.datasets.epic55 import participant_split

    kitchen = video.partition("_")[0]
    return "val" if kitchen in VAL_KITCHENS else {"train": "train", "val": "test"}[participant_split(video)]
