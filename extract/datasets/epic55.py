"""EPIC-KITCHENS-55 (Damen et al., ECCV 2018), read from its published CSVs.

Layout: `<data>/epic55/annotations/*.csv[.gz]` as in epic-kitchens/epic-kitchens-55-annotations, and at least
one of `videos/` (P01_01.MP4 at any depth, such as videos/train/P01/), `rgb_frames/` and `flow_frames/`
(folders P01_01/ or tars P01_01.tar).

All 39,448 segments of train, S1 and S2 are clips; the 116 invalid ones (no verb class) are not. The default
split is the one of the papers (Baradel et al., LFB): training participants P01 to P25 are `train`, P26 to P31
`val`; the test segments are `test_s1` (seen kitchens) and `test_s2` (unseen) and have no labels.
"""

import ast
from pathlib import Path

import numpy as np

from errors import UserError
from extract.csv_reading import Problems, integers, read_csv
from extract.datasets.base import Dataset
from extract.datasets.epic_csv import (
    EpicPart,
    annotations_folder,
    epic_dataset,
    find_csv,
    read_class_names,
    read_video_info,
)
from extract.datasets.registry import register_dataset

__all__ = ["epic55", "participant_split"]

LAST_TRAINING_PARTICIPANT = 25
BOX_REFERENCE = (1920, 1080)  # EPIC-55's object labels, whatever a video's own size


def participant_split(video: str) -> str:
    """Split of a training video by its participant: P01_01 -> "train", P26_01 -> "val".

    Source: video-long-term-feature-banks lib/datasets/epic.py, TRAIN_PERSON_INDICES = range(1, 26).

    Raises:
        UserError: the name does not start with P and two digits.
    """
    if not (video.startswith("P") and video[1:3].isdigit()):
        raise UserError(
            f"video {video!r} of EPIC_train_action_labels.csv does not start with a participant such as P01"
        )
    return "train" if int(video[1:3]) <= LAST_TRAINING_PARTICIPANT else "val"


@register_dataset("epic55")
def epic55(data_root: Path | None, media: str = "rgb") -> Dataset:
    """Load EPIC-55's tables; videos that are not on disk have an empty path.

    Raises:
        UserError: no data root, an annotation file missing or malformed, a video that is there twice.
    """
    annotations = annotations_folder(data_root, "epic55", "epic-kitchens-55-annotations")
    info = find_csv(annotations, "EPIC_video_info.csv", needed=False)
    return epic_dataset(
        "epic55",
        annotations.parent,
        [
            EpicPart(find_csv(annotations, "EPIC_train_action_labels.csv"), participant_split),
            EpicPart(find_csv(annotations, "EPIC_test_s1_timestamps.csv"), "test_s1", labelled=False),
            EpicPart(find_csv(annotations, "EPIC_test_s2_timestamps.csv"), "test_s2", labelled=False),
        ],
        verb_names=read_class_names(find_csv(annotations, "EPIC_verb_classes.csv")),
        noun_names=read_class_names(find_csv(annotations, "EPIC_noun_classes.csv")),
        media=media,
        video_info=read_video_info(info) if info else None,
        box_reference=BOX_REFERENCE,
        saoa={"backbone": "i3d_rgb", "objects": "faster_rcnn_r50_fpn"},
        facts=_many_shot(annotations),
    )


def _many_shot(annotations: Path) -> dict[str, np.ndarray]:
    """many_shot_verbs and many_shot_nouns (ids), many_shot_actions ((verb, noun) pairs): those on disk."""
    facts = {}
    for plural, column in (("verbs", "verb_class"), ("nouns", "noun_class"), ("actions", "action_class")):
        path = find_csv(annotations, f"EPIC_many_shot_{plural}.csv", needed=False)
        if path is None:
            continue
        table = read_csv(path, [column])
        problems = Problems(path)
        if plural == "actions":
            facts["many_shot_actions"] = np.array(_pairs(table, problems), dtype=np.int32).reshape(-1, 2)
        else:
            facts[f"many_shot_{plural}"] = integers(table, column, problems).astype(np.int32)
        problems.check()
    return facts


def _pairs(table, problems: Problems) -> list[tuple[int, int]]:
    """Column action_class: literals such as "(12, 78)"."""
    pairs = []
    for line, text in zip(table.lines, table["action_class"], strict=True):
        try:
            verb, noun = ast.literal_eval(text)
            pairs.append((int(verb), int(noun)))
        except (ValueError, SyntaxError, TypeError):
            problems.value(line, "action_class", text, 'not a pair such as "(12, 78)"')
    return pairs
