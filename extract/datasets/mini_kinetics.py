"""Mini-Kinetics: 200 classes of Kinetics-400, in the split of AR-Net (Meng et al., ECCV 2020): 121,215 / 9,867 clips.

(Xie et al. 2017 have a subset of the same name with other classes and videos; it is not this one.)

Layout: `<data>/mini_kinetics/{annotations,videos}`; a video is Kinetics' trimmed clip
`<YouTube id>_<start>_<stop>.mp4` with both seconds in six digits, at any depth. Annotations, at any depth, plain or
gzipped: `mini_train_videofolder.txt` and `mini_val_videofolder.txt` of AR-Net and AdaFuse, lines
`<folder>/<class>/<clip> <frames> <label>` (upstream's `mini_train.txt` and `mini_val.txt` have `;` between the
fields), and `minik_classInd.txt` or `classInd.txt`, one class name a line. Where only one of the lists is there, its
part is all that there is; the other may come later, classes and clips stay as they are. Clips of three frames or fewer,
which AR-Net drops in training, are kept.
"""

from __future__ import annotations

import re
from pathlib import Path

from errors import UserError
from extract.csv_reading import Problems
from extract.datasets.base import Dataset
from extract.datasets.registry import register_dataset
from extract.datasets.whole_videos import (
    WholeVideo,
    annotation_folder,
    find_annotation,
    numbered_lines,
    whole_video_dataset,
)

__all__ = ["mini_kinetics"]

LISTS = {"train": ("mini_train_videofolder.txt", "mini_train.txt"), "val": ("mini_val_videofolder.txt", "mini_val.txt")}
CLASSES = ("minik_classInd.txt", "classInd.txt")
CLIP = re.compile(r".{11}_\d{6}_\d{6}")


@register_dataset("mini_kinetics")
def mini_kinetics(data_root: Path | None, media: str = "rgb") -> Dataset:
    """Load Mini-Kinetics' tables; videos that are not on disk have an empty path.

    Raises:
        UserError: no data root, no list or no class names, malformed ones, a clip that is listed twice.
    """
    root, folder = annotation_folder(data_root, "mini_kinetics", media)
    lists = {part: path for part, names in LISTS.items() if (path := find_annotation(folder, *names)) is not None}
    index = find_annotation(folder, *CLASSES)
    if not lists or index is None:
        raise UserError(
            f"dataset mini_kinetics: looked for {' or '.join(name for names in LISTS.values() for name in names)} of"
            f" AR-Net or AdaFuse, and for {' or '.join(CLASSES)}, in {folder}, plain or .gz; found"
            f" {', '.join(str(path) for path in (*lists.values(), index) if path is not None) or 'none'}"
        )
    classes = [name for _, name in numbered_lines(index)]
    videos = [video for part, path in lists.items() for video in _read_list(path, part, classes)]
    return whole_video_dataset("mini_kinetics", root, videos, classes, multi_label=False)


def _read_list(path: Path, part: str, classes: list[str]) -> list[WholeVideo]:
    """A list of either form; folder names hold blanks."""
    videos, problems = [], Problems(path)
    for number, line in numbered_lines(path):
        fields = line.rsplit(";" if ";" in line else " ", 2)
        folders = fields[0].split("/")
        if len(fields) != 3 or not all(text.strip().isdecimal() for text in fields[1:]) or len(folders) < 2:
            problems.add(number, f"{line!r} is not <folder>/<class>/<clip> <frames> <label>")
        elif not CLIP.fullmatch(folders[-1]):
            problems.add(number, f"clip {folders[-1]!r} is not <YouTube id>_<start>_<stop> with six digits each")
        elif int(fields[2]) >= len(classes):
            problems.add(number, f"class {int(fields[2])}, but there are names of {len(classes)}")
        elif classes[int(fields[2])] != folders[-2]:
            problems.add(number, f"class {int(fields[2])} is {classes[int(fields[2])]!r}, its folder {folders[-2]!r}")
        else:
            videos.append(WholeVideo(folders[-1], part, (int(fields[2]),)))
    problems.check()
    return videos
