"""What datasets of captioned videos share: one clip a video, its captions in order, and who of them counts where.

A clip has no stop: it reaches to its video's end. Videos are files under `videos/`, at any depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from extract.datasets.base import Dataset, Table, strings
from extract.datasets.whole_videos import whole_video_tables

__all__ = ["CaptionedVideo", "captioned_dataset", "one_line"]


@dataclass(frozen=True)
class CaptionedVideo:
    """A video as its annotations know it. caption_parts: {scheme ("" for the default split): the part that each
    caption counts in, "" for none}, for schemes in which that is not its video's for all of them."""

    name: str
    split: str
    captions: tuple[str, ...]
    caption_parts: Mapping[str, tuple[str, ...]] | None = None


def one_line(text: str) -> str:
    """A caption without surrounding blanks, any blanks within it one space."""
    return " ".join(text.split())


def captioned_dataset(
    name: str,
    root: Path,
    videos: Iterable[CaptionedVideo],
    *,
    prefixes: Sequence[str] = ("",),
    schemes: Mapping[str, Mapping[str, str]] | None = None,
    labels: Mapping[str, Mapping[str, int]] | None = None,
    class_names: Mapping[str, Sequence[str]] | None = None,
    facts: Mapping | None = None,
) -> Dataset:
    """The tables of a dataset of captioned videos, sorted by name; a clip bears its video's name as id.

    `texts` has clip and caption, and where a scheme counts captions apart the scheme's column of clips, `split` or
    `split_<scheme>`, for captions too.

    Args:
        prefixes: what may stand before a video's name in its file's.
        schemes: {scheme: {video: part}}, further splits; "" where a video is in no part.
        labels: {column: {video: class id}} and the names of the classes.

    Raises:
        UserError: a name that leaves the folder of videos, one that is there twice, two files of one name.
    """
    videos = sorted(videos, key=lambda video: video.name)
    columns = {
        column: np.array([of.get(video.name, -1) for video in videos], np.int32)
        for column, of in (labels or {}).items()
    }
    table, clips = whole_video_tables(name, root, videos, prefixes=prefixes, labels=columns, schemes=schemes)
    told = [(i, k) for i, video in enumerate(videos) for k in range(len(video.captions))]
    texts: Table = {
        "clip": np.array([i for i, _ in told], np.int32),
        "caption": strings(videos[i].captions[k] for i, k in told),
    }
    for scheme in dict.fromkeys(scheme for video in videos for scheme in video.caption_parts or ()):
        column = f"split_{scheme}" if scheme else "split"
        parts = []
        for i, k in told:
            own = (videos[i].caption_parts or {}).get(scheme)
            parts.append(clips[column][i] if own is None else own[k])
        texts[column] = strings(parts)
    return Dataset(
        name=name,
        root=root,
        videos=table,
        clips=clips,
        texts=texts,
        classes={column: len(of) for column, of in (class_names or {}).items()},
        class_names={column: list(of) for column, of in (class_names or {}).items()},
        facts={"searched": [root / "videos"], **(facts or {})},
    )
