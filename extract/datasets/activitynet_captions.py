"""ActivityNet Captions (Krishna et al., ICCV 2017) for retrieval: a whole video, and one paragraph about it.

Layout: `<data>/activitynet_captions/annotations/` with `train.json`, `val_1.json` and `val_2.json`, at any depth, plain
or gzipped, `{"v_<id>": {"duration", "timestamps", "sentences"}}`, and `<data>/activitynet_captions/videos/`, where a
file is a video's id with or without `v_`. The paragraph protocol of HSE, CE and MMT: all sentences of a video are one
caption, in order; trained on train (10,009 videos), tested on val_1 (4,917; the split val). val_2 is a second
annotation of the same videos: the variant `activitynet_captions:val=2` has its paragraphs instead (4,885).
"""

from __future__ import annotations

from pathlib import Path

from errors import UserError
from extract.csv_reading import Problems
from extract.datasets.base import Dataset
from extract.datasets.captioned import CaptionedVideo, captioned_dataset, one_line
from extract.datasets.registry import register_dataset
from extract.datasets.whole_videos import annotation_folder, find_annotation, read_json

__all__ = ["activitynet_captions"]

PREFIX = "v_"


@register_dataset("activitynet_captions")
def activitynet_captions(data_root: Path | None, media: str = "rgb", val: int = 1) -> Dataset:
    """Load the paragraphs; videos are named by their YouTube ids, those that are not on disk have an empty path.

    Args:
        val: which of the two annotations of the validation videos.

    Raises:
        UserError: no data root, no annotations, malformed ones, a video in both splits.
    """
    if val not in (1, 2):
        raise UserError(f"activitynet_captions: val is 1 or 2, the number of the annotation, got {val!r}")
    root, folder = annotation_folder(data_root, "activitynet_captions", media)
    files = {"train": "train.json", "val": f"val_{val}.json"}
    found = {part: path for part, name in files.items() if (path := find_annotation(folder, name)) is not None}
    if not found:
        raise UserError(
            f"dataset activitynet_captions: looked for {' and '.join(files.values())} in {folder}, plain or .gz; none"
            " is there"
        )
    videos: dict[str, CaptionedVideo] = {}
    for part, path in found.items():
        problems = Problems(path)
        for name, paragraph in _paragraphs(path, problems).items():
            if name in videos:
                problems.add(0, f"video {name} is in {videos[name].split} already")
            videos[name] = CaptionedVideo(name, part, (paragraph,))
        problems.check()
    name = "activitynet_captions" if val == 1 else "activitynet_captions_val2"
    return captioned_dataset(name, root, videos.values(), prefixes=("", PREFIX))


def _paragraphs(path: Path, problems: Problems) -> dict[str, str]:
    """{video's id: all its sentences}. Sentences come with blanks around them."""
    found = {}
    for name, entry in read_json(path).items():
        sentences = entry.get("sentences") if isinstance(entry, dict) else None
        if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
            problems.add(0, f"video {name}: its sentences are not a list of texts")
        elif not (paragraph := one_line(" ".join(sentences))):
            problems.add(0, f"video {name} has no words")
        else:
            found[name.removeprefix(PREFIX)] = paragraph
    return found
