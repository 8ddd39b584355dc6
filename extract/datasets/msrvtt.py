"""MSR-VTT (Xu et al., CVPR 2016): 10,000 clips of web videos, 20 sentences each, 20 categories.

Layout: `<data>/msrvtt/{annotations,videos}`. Of the annotations, at any depth, plain or gzipped:

- the sentences: `MSRVTT_data.json`, `videodatainfo_2017.json`, or `train_val_videodatainfo.json` with
  `test_videodatainfo.json` (videos and sentences), or `MSR_VTT.json` (sentences alone);
- for the split 1k-A `MSRVTT_JSFUSION_test.csv` (Yu et al. 2018), for 1k-B `train_list_miech.txt` and
  `test_list_miech.txt` (Miech et al. 2018), one id a line.

A file of the release begins at its own 0; its start and end in the source video are not its times. Captions are in the
order of the file, which mixes videos. Splits: `split`, the official ("full": train 6,513, val 497, test 2,990, all
captions); `split_1ka`, train 9,000 and test 1,000 with the one sentence of the CSV; `split_1ka_7k`, the same test with
the official train and val; `split_1kb`, train 6,656 and test 1,000 with each video's first sentence. The same columns
of `texts` say which captions count in a part. Label: category.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

from errors import UserError
from extract.csv_reading import Problems, read_csv, read_text
from extract.datasets.base import Dataset
from extract.datasets.captioned import CaptionedVideo, captioned_dataset, one_line
from extract.datasets.registry import register_dataset
from extract.datasets.whole_videos import annotation_folder, find_annotation, numbered_lines

__all__ = ["msrvtt"]

WITH_VIDEOS = (
    "MSRVTT_data.json",
    "videodatainfo_2017.json",
    "train_val_videodatainfo.json",
    "test_videodatainfo.json",
)
SENTENCES = "MSR_VTT.json"
JSFUSION = "MSRVTT_JSFUSION_test.csv"
MIECH = {"train": "train_list_miech.txt", "test": "test_list_miech.txt"}
OFFICIAL = (("train", 6513), ("val", 7010), ("test", 10000))  # part, and the id that it ends before
PARTS = {"train": "train", "validate": "val", "val": "val", "test": "test"}
CATEGORIES = (
    "music",
    "people",
    "gaming",
    "sports/actions",
    "news/events/politics",
    "education",
    "tv shows",
    "movie/comedy",
    "animation",
    "vehicles/autos",
    "howto",
    "travel",
    "science/technology",
    "animals/pets",
    "kids/family",
    "documentary",
    "food/drink",
    "cooking",
    "beauty/fashion",
    "advertisement",
)


@register_dataset("msrvtt")
def msrvtt(data_root: Path | None, media: str = "rgb") -> Dataset:
    """Load MSR-VTT's tables; videos that are not on disk have an empty path.

    Raises:
        UserError: no data root, no annotations, malformed ones, a list that names a video that is none.
    """
    root, folder = annotation_folder(data_root, "msrvtt", media)
    category, captions = _read(folder)
    parts = {name: _official(name) for name in category}
    schemes: dict[str, Mapping[str, str]] = {}
    jsfusion = find_annotation(folder, JSFUSION)
    test = _read_jsfusion(jsfusion, category) if jsfusion else {}
    if jsfusion:
        schemes["1ka"] = {name: "test" if name in test else "train" for name in category}
        schemes["1ka_7k"] = {
            name: "test" if name in test else "train" if parts[name] != "test" else "" for name in category
        }
    lists = {part: find_annotation(folder, name) for part, name in MIECH.items()}
    if None not in lists.values():
        schemes["1kb"] = _read_lists(lists, category)
    videos = [_video(name, parts[name], captions[name], test, schemes) for name in category]
    labels = {name: number for name, number in category.items() if number is not None}
    return captioned_dataset(
        "msrvtt",
        root,
        videos,
        schemes=schemes,
        labels={"category": labels} if labels else None,
        class_names={"category": CATEGORIES} if labels else None,
        facts={"without_caption": sorted(name for name in category if not captions[name])},
    )


def _official(name: str) -> str:
    return next(part for part, end in OFFICIAL if int(name.removeprefix("video")) < end)


def _video(name: str, split: str, captions: list[str], test: Mapping[str, str], schemes: Mapping) -> CaptionedVideo:
    """One video, with the captions that count in each scheme."""
    every, sentence = range(len(captions)), test.get(name)
    own = captions if sentence is None or sentence in captions else [*captions, sentence]  # the last for 1k-A alone
    counted = {"": tuple(split if k in every else "" for k in range(len(own)))}
    for scheme, part_of in schemes.items():
        part, shown = part_of.get(name, ""), every
        if part == "test":
            shown = [own.index(sentence)] if scheme.startswith("1ka") else every[:1]
        counted[scheme] = tuple(part if k in shown else "" for k in range(len(own)))
    return CaptionedVideo(name, split, tuple(own), counted)


def _read(folder: Path) -> tuple[dict[str, int | None], dict[str, list[str]]]:
    """({video: category or None}, {video: its captions in order}) of every file that is there."""
    files = {name: path for name in (*WITH_VIDEOS, SENTENCES) if (path := find_annotation(folder, name)) is not None}
    if not files:
        raise UserError(
            f"dataset msrvtt: looked for {', '.join((*WITH_VIDEOS, SENTENCES))} in {folder}, plain or .gz; none is"
            " there"
        )
    category: dict[str, int | None] = {}
    captions: dict[str, list[str]] = {}
    for name, path in files.items():
        problems = Problems(path)
        try:
            data = json.loads(read_text(path))
            told = data["annotations" if name == SENTENCES else "sentences"]
            listed = [] if name == SENTENCES else data["videos"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not the JSON that was looked for ({error!r})") from None
        here: dict[str, list[str]] = {}
        for video in listed:
            _add_video(video, category, problems)
        key = "image_id" if name == SENTENCES else "video_id"
        for sentence in told:
            video = sentence.get(key)
            if name == SENTENCES and _is_video(video):
                category.setdefault(video, None)
            if video not in category or not isinstance(sentence.get("caption"), str):
                problems.add(
                    0, f"sentence {sentence.get('sen_id')!r} is of video {video!r}, which is none of its videos"
                )
            elif caption := one_line(sentence["caption"]):
                here.setdefault(video, []).append(caption)
        problems.check()
        for video, of in here.items():  # of several files that tell the same video the first counts
            captions.setdefault(video, of)
    return category, {name: captions.get(name, []) for name in category}


def _is_video(name: object) -> bool:
    """Whether a name is one of video0 ... video9999."""
    return isinstance(name, str) and re.fullmatch(r"video[0-9]{1,4}", name) is not None


def _add_video(video: Mapping, category: dict[str, int | None], problems: Problems) -> None:
    name, number = video.get("video_id"), video.get("category")
    if not _is_video(name):
        problems.add(0, f"video_id {name!r} is none of video0 ... video9999")
    elif PARTS.get(video.get("split")) != _official(name):
        problems.add(0, f"{name} is said to be in {video.get('split')!r}; it is in the official {_official(name)}")
    elif not (isinstance(number, int) and 0 <= number < len(CATEGORIES)):
        problems.add(0, f"{name}: category {number!r} is none of 0 ... {len(CATEGORIES) - 1}")
    else:
        category[name] = number


def _read_jsfusion(path: Path, known: Mapping) -> dict[str, str]:
    """{video of the test: its sentence}."""
    table, problems, found = read_csv(path, ["video_id", "sentence"]), Problems(path), {}
    for line, name, sentence in zip(table.lines, table["video_id"], table["sentence"], strict=True):
        if name not in known or name in found:
            problems.value(line, "video_id", name, "is there twice, or is no video of the annotations")
        found[name] = one_line(sentence)
    problems.check()
    return found


def _read_lists(lists: Mapping[str, Path], known: Mapping) -> dict[str, str]:
    """{video: part} of lists of ids, one a line."""
    found: dict[str, str] = {}
    for part, path in lists.items():
        problems = Problems(path)
        for number, name in numbered_lines(path):
            if name not in known:
                problems.add(number, f"{name!r} is no video of the annotations")
            elif found.setdefault(name, part) != part:
                problems.add(number, f"{name} is in {found[name]} already")
        problems.check()
    return found
