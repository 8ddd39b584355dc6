"""`plan` on the whole of EPIC-KITCHENS-55 answers within a minute.

    python benchmarks/plan_speed.py --annotations epic-kitchens-55-annotations

Takes the published CSVs and stands a small video in for each of the 432: 1 frame a second, 460 s long, so that all of
them last the 55 hours of the real ones. Times `cli.py plan --dataset epic55 --backbone i3d --device none`, process
start included. The stand-ins have just been written: their headers come from memory, not from a cold disk.
Fails (exit 1) when the slowest of the repeats takes 60 s or more, or a store or a row is lacking.
"""

import argparse
import csv
import gzip
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import print_machine
from made_videos import encode_video
from measuring import interleave, verdict, work_folder

ROOT = Path(__file__).resolve().parents[1]

MOST_SECONDS = 60
SIZE, FPS, SECONDS = (64, 48), 1, 460  # 55 hours / 432
SEGMENTS = ("EPIC_train_action_labels.csv", "EPIC_test_s1_timestamps.csv", "EPIC_test_s2_timestamps.csv")


def segments(annotations: Path) -> tuple[set[str], int]:
    """(names of the videos, number of segments) of train, S1 and S2, read without the project's own reader."""
    videos, count = set(), 0
    for name in SEGMENTS:
        path = annotations / name
        opened = path.open(newline="") if path.exists() else gzip.open(f"{path}.gz", "rt", newline="")
        with opened as lines:
            for row in csv.DictReader(lines):
                videos.add(row["video_id"])
                count += 1
    return videos, count


def make_data(root: Path, annotations: Path, videos: set[str]) -> Path:
    """A data root with the annotations linked in and one small video under every name."""
    data = root / "data"
    epic = data / "epic55"
    epic.mkdir(parents=True, exist_ok=True)
    if not (epic / "annotations").exists():
        (epic / "annotations").symlink_to(annotations.resolve(), target_is_directory=True)
    video = encode_video(root / "stand-in.mp4", *SIZE, FPS, SECONDS)
    for name in sorted(videos):
        path = epic / "videos" / name.partition("_")[0] / f"{name}.MP4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(video, path)
    return data


def plan(data: Path, features: Path) -> list[dict]:
    """What the command prints: facts of every store."""
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "plan",
        "--dataset",
        "epic55",
        "--backbone",
        "i3d",
        "--device",
        "none",
        "--data",
        str(data),
        "--features",
        str(features),
        "--json",
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="folder of the published CSVs")
    parser.add_argument("--root", type=Path, help="folder for the stand-ins [a temporary one]")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print_machine()
    videos, count = segments(args.annotations)
    with work_folder(args.root) as root:
        data, features = make_data(root, args.annotations, videos), root / "features"
        facts: list[dict] = []

        def seconds() -> float:
            started = time.monotonic()
            facts[:] = plan(data, features)
            return time.monotonic() - started

        found = interleave({"plan": seconds}, args.repeats)["plan"]
        wrote = features.exists()
    for store in facts:
        print(
            f"{store['network']:22} {store['axis']:6} {store['rows']:9,} rows {store['units']:7,} units"
            f" {store['bytes'] / 2**30:8.1f} GiB {store['videos'] - store['videos_missing']:5} videos"
        )
    clips = next((store["rows"] for store in facts if store["axis"] == "clip"), 0)
    print(f"plan: {', '.join(f'{seconds:.1f}' for seconds in found)} s, median {statistics.median(found):.1f} s")
    return verdict([
        (max(found) < MOST_SECONDS, f"slowest {max(found):.1f} s, less than {MOST_SECONDS}"),
        (len(facts) == 2 and all(store["videos"] == len(videos) and not store["videos_missing"] for store in facts),
         f"a clip store and an object store over {len(videos)} videos"),
        (clips >= count, f"{clips:,} clip rows, at least one for each of the {count:,} segments"),
        (not wrote, "nothing was written"),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
