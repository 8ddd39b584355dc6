"""LSMDC (Rohrbach et al., IJCV 2017): short clips of movies, told in sentences of audio descriptions and scripts.

Layout: `<data>/lsmdc/annotations/` with the three files of LSMDC 16, at any depth, plain or gzipped,
`LSMDC16_annos_training.csv`, `LSMDC16_annos_val.csv` and `LSMDC16_challenge_1000_publictect.csv` (so spelt), and
`<data>/lsmdc/videos/` with `<movie>/<clip>.avi` or any other arrangement. The files are separated by tabs, have no
header and no quoting; their times are the movie's, a released clip begins at its own 0. A clip may have several
sentences. Splits: train, val, test; a clip without any sentence is left out (five training clips, as MMT does).
"""

from __future__ import annotations

from pathlib import Path

from errors import UserError
from extract.csv_reading import Problems, read_text
from extract.datasets.base import Dataset
from extract.datasets.captioned import CaptionedVideo, captioned_dataset, one_line
from extract.datasets.registry import register_dataset
from extract.datasets.whole_videos import annotation_folder, find_annotation

__all__ = ["lsmdc"]

FILES = {
    "train": "LSMDC16_annos_training.csv",
    "val": "LSMDC16_annos_val.csv",
    "test": "LSMDC16_challenge_1000_publictect.csv",
}
FIELDS = 6  # clip, start and end aligned, start and end extracted, sentence


@register_dataset("lsmdc")
def lsmdc(data_root: Path | None, media: str = "rgb") -> Dataset:
    """Load LSMDC's tables; clips that are not on disk have an empty path.

    Raises:
        UserError: no data root, no annotations, a line of other than six fields, a clip in two splits.
    """
    root, folder = annotation_folder(data_root, "lsmdc", media)
    files = {part: path for part, name in FILES.items() if (path := find_annotation(folder, name)) is not None}
    if not files:
        raise UserError(
            f"dataset lsmdc: looked for {', '.join(FILES.values())} in {folder}, plain or .gz; none is there"
        )
    split: dict[str, str] = {}
    captions: dict[str, list[str]] = {}
    for part, path in files.items():
        problems = Problems(path)
        for number, line in enumerate(read_text(path).split("\n"), start=1):
            fields = line.rstrip("\r").split("\t")
            if not line.strip():
                continue
            if len(fields) != FIELDS:
                problems.add(number, f"{len(fields)} fields separated by tabs; a line has {FIELDS}, the sentence last")
                continue
            clip, sentence = fields[0].strip(), one_line(fields[-1])
            if split.setdefault(clip, part) != part:
                problems.add(number, f"clip {clip} is in {split[clip]} already")
            captions.setdefault(clip, []).extend([sentence] if sentence else [])
        problems.check()
    told = [CaptionedVideo(clip, split[clip], tuple(of)) for clip, of in captions.items() if of]
    silent = sorted(clip for clip, of in captions.items() if not of)
    return captioned_dataset("lsmdc", root, told, facts={"without_caption": silent})
