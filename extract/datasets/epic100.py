"""EPIC-KITCHENS-100 (Damen et al., IJCV 2022), read from its published CSVs.

Layout: `<data>/epic100/annotations/*.csv[.gz]` as in epic-kitchens/epic-kitchens-100-annotations, and at least one of
`videos/` (P01_101.MP4 at any depth), `rgb_frames/` and `flow_frames/` (folders P01_101/ or tars P01_101.tar).

All 89,977 segments of train, validation and test are clips, named by their narration_id (P01_01_0); those of the test
have no labels. The 97 verbs and 300 nouns are another taxonomy than EPIC-55's. Frame columns are numbered at 60 a
second in the videos of EPIC-55 (P01_01) and at 50 in those recorded later (P01_101), whatever their real rate.

The protocol's subsets are split schemes, so that stores carry them: `unseen:val` are the clips of participants that
training never shows, `tail_verb:val` and `tail_noun:val` those of tail classes; every other clip is in `other`.
"""

import re
import warnings
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np

from errors import UserError
from extract.csv_reading import Problems, integers, read_csv
from extract.datasets.base import Dataset, strings
from extract.datasets.epic_csv import (
    EpicPart,
    annotations_folder,
    epic_dataset,
    find_csv,
    read_class_names,
    read_video_info,
)
from extract.datasets.registry import register_dataset

__all__ = ["OTHER", "epic100", "grid_rate"]

OTHER = "other"  # the part, in the schemes of subsets, of the clips that are not in the subset
# The annotations' repository: frames and flow images of these two were extracted wrongly; their videos are right.
WRONG_FRAMES = ("P01_109", "P27_103")


def grid_rate(video: str) -> float:
    """Rate that a video's frames are numbered at: 60.0 where its number has two digits, 50.0 where it has three.

    Raises:
        UserError: the name is not like P01_01 or P01_101.
    """
    match = re.fullmatch(r"P\d\d_(\d{2,3})", video)
    if match is None:
        raise UserError(
            f"dataset epic100: video {video!r} is not named like P01_01 or P01_101, so its clock is unknown"
        )
    return 60.0 if len(match[1]) == 2 else 50.0


@register_dataset("epic100")
def epic100(data_root: Path | None, media: str = "rgb") -> Dataset:
    """Load EPIC-100's tables; videos that are not on disk have an empty path.

    The lists of tail classes and unseen participants may be missing: their schemes are, then.

    Raises:
        UserError: no data root, an annotation file missing or malformed, a video that is there twice.
    """
    annotations = annotations_folder(data_root, "epic100", "epic-kitchens-100-annotations")
    info = find_csv(annotations, "EPIC_100_video_info.csv", needed=False)
    dataset = epic_dataset(
        "epic100",
        annotations.parent,
        [
            EpicPart(find_csv(annotations, "EPIC_100_train.csv"), "train", id_column="narration_id"),
            EpicPart(find_csv(annotations, "EPIC_100_validation.csv"), "val", id_column="narration_id"),
            EpicPart(
                find_csv(annotations, "EPIC_100_test_timestamps.csv"), "test", labelled=False, id_column="narration_id"
            ),
        ],
        verb_names=read_class_names(find_csv(annotations, "EPIC_100_verb_classes.csv")),
        noun_names=read_class_names(find_csv(annotations, "EPIC_100_noun_classes.csv")),
        media=media,
        grid_fps=grid_rate,
        video_info=read_video_info(info) if info else None,
        saoa={"backbone": "i3d_rgb", "objects": "faster_rcnn_r50_fpn"},
    )
    _warn_of_wrong_frames(dataset)
    return replace(dataset, clips=dataset.clips | _subsets(annotations, dataset), annotation_hash="")


def _subsets(annotations: Path, dataset: Dataset) -> dict[str, np.ndarray]:
    """Columns split_unseen, split_tail_verb, split_tail_noun: a clip's split if it is in the subset, else OTHER."""
    split, participant = dataset.clips["split"], dataset.clips["participant"]
    unseen: dict[str, Collection[str]] = {}
    for part, name in (("val", "validation"), ("test", "test")):
        path = find_csv(annotations, f"EPIC_100_unseen_participant_ids_{name}.csv", needed=False)
        if path is not None:
            unseen[part] = set(read_csv(path, ["participant_id"])["participant_id"])
    inside = {}
    if unseen:
        inside["unseen"] = [who in unseen.get(part, ()) for part, who in zip(split, participant, strict=True)]
    for label in ("verb", "noun"):
        path = find_csv(annotations, f"EPIC_100_tail_{label}s.csv", needed=False)
        if path is not None:
            table, problems = read_csv(path, [label]), Problems(path)
            tail = integers(table, label, problems, maximum=dataset.classes[label] - 1)
            problems.check()
            inside[f"tail_{label}"] = np.isin(dataset.clips[label], tail)
    return {f"split_{name}": strings(np.where(mask, split, OTHER)) for name, mask in inside.items()}


def _warn_of_wrong_frames(dataset: Dataset) -> None:
    names, kinds = dataset.videos["name"], dataset.videos["kind"]
    suspect = [
        name for name, kind in zip(names, kinds, strict=True) if name in WRONG_FRAMES and kind in ("frames", "tar")
    ]
    if suspect:
        warnings.warn(
            f"epic100: the frames first published of {' and '.join(suspect)} are wrong (erratum of "
            "epic-kitchens-100-annotations); be sure to have the corrected ones, or their videos",
            stacklevel=3,
        )
