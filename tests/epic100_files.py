"""A data root with EPIC-100's published annotations.

The training CSV is not among the reference material: 38,718 of its rows are; the others are put together here from
rulstm's list of all 67,217, whose times are frames at 30 a second (so their frames are right to two or three).
"""

import csv
import gzip
from pathlib import Path

COLUMNS = ("narration_id", "video_id", "narration", "start_frame", "stop_frame", "verb_class", "noun_class")
COLUMNS = (*COLUMNS, "all_noun_classes")


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV with a header, plain or gzipped."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def rulstm_rows(source: Path) -> list[tuple[str, str, int, int, int, int]]:
    """(narration_id, video, start, stop, verb, noun) of all training segments, frames at 30 a second."""
    with gzip.open(source / "rulstm/training.csv.gz", "rt") as file:
        rows = [line.strip().split(",") for line in file]
    return [(row[0], row[1], *map(int, row[2:6])) for row in rows]


def training_rows(source: Path) -> list[dict[str, str]]:
    """All 67,217 rows, in the official columns that are read, official where they are there."""
    official = {row["narration_id"]: row for row in read_rows(source / "EPIC_100_train.partial.csv.gz")}
    rows = []
    for name, video, start, stop, verb, noun in rulstm_rows(source):
        if name in official:
            rows.append({column: official[name][column] for column in COLUMNS})
            continue
        rate = 2 if len(video.partition("_")[2]) == 2 else 50 / 30
        first, last = max(1, int(start * rate)), max(int(start * rate) + 2, int(stop * rate))
        values = (name, video, "", first, last, verb, noun, f"[{noun}]")
        rows.append(dict(zip(COLUMNS, map(str, values), strict=True)))
    return rows


def make_epic100(root: Path, source: Path) -> Path:
    """Fill `root/epic100/annotations`; returns `root`."""
    target = root / "epic100/annotations"
    target.mkdir(parents=True)
    for path in source.glob("EPIC_100_*.csv"):
        (target / path.name).symlink_to(path)
    with open(target / "EPIC_100_train.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(training_rows(source))
    return root
