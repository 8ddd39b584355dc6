"""Killed with -9 at random moments and run again, a store ends byte-identical to an uninterrupted one.

    python benchmarks/kill_campaign.py [--videos DIR] [--kills 10] [--fresh]

Runs `cli.py extract` (I3D, random:0, --unit-rows 2) on clips of the given videos once without interruption, then
kills it at moments drawn uniformly over the duration of that run, process start and network building included. Each
kill finds the store as the last one left it; a run that finishes before its moment comes does not count as a kill,
its store is compared, and the next one begins a new store. With --fresh every kill has a new store, which is finished
and compared at once. Compared is every file of the store but its provenance (DESIGN: byte-identical).
Fails (exit 1) when a store differs, or a run ends in any way but the uninterrupted one's.
"""

import argparse
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from machine import print_machine
from made_videos import make_video
from measuring import verdict, work_folder

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

MADE = {"portrait": (270, 480, 30), "wide": (480, 270, 25), "small": (340, 256, 25)}  # width, height, fps
MADE_SECONDS = 8
CLIP_SECONDS = 2.0


def make_dataset(folder: Path, videos: Path | None, clips_a_video: int) -> tuple[Path, Path]:
    """(CSV, folder of its videos): clips spread evenly over every video that can be opened."""
    from extract.datasets.base import VIDEO_SUFFIXES
    from extract.decode import VideoError, quick_probe

    if videos is None:
        videos = folder / "videos"
        for name, (width, height, fps) in MADE.items():
            if not (videos / f"{name}.mp4").exists():
                make_video(videos / f"{name}.mp4", width, height, fps, MADE_SECONDS)
    lines = ["video,start,stop"]
    for path in sorted(path for path in videos.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES):
        try:
            duration = quick_probe(path)[1] or CLIP_SECONDS
        except VideoError as error:
            print(f"left out: {error}")
            continue
        last = max(0.0, duration - CLIP_SECONDS)
        starts = {round(last * (i + 0.5) / clips_a_video, 3) for i in range(clips_a_video)}
        lines += [f"{path.name},{start},{start + min(CLIP_SECONDS, duration):.3f}" for start in sorted(starts)]
    csv = folder / "campaign.csv"
    csv.write_text("\n".join(lines) + "\n")
    return csv, videos


class Campaign:
    """One extraction that is run, killed and compared again and again."""

    def __init__(self, folder: Path, csv: Path, videos: Path, backbone: str, unit_rows: int):
        self.folder, self.dataset, self.backbone = folder, csv.stem, "i3d_rgb" if backbone == "i3d" else backbone
        self.command = [
            sys.executable, str(ROOT / "cli.py"), "extract", "--dataset", str(csv), "--videos", str(videos), "--only",
            "--backbone", backbone, "--weights", "random:0", "--draws", "0", "--unit-rows", str(unit_rows),
            "--device", "cpu",
        ]  # fmt: skip

    def store(self, features: str) -> Path:
        return self.folder / features / self.dataset / f"{self.backbone}.zarr"

    def start(self, features: str) -> subprocess.Popen:
        log = (self.folder / f"{features}.log").open("ab")
        with log:
            return subprocess.Popen([*self.command, "--features", str(self.folder / features)], stdout=log, stderr=log)

    def kill_after(self, features: str, seconds: float) -> int | None:
        """Start, kill -9 after `seconds`; the exit code if the run was over before, else None."""
        process = self.start(features)
        try:
            return process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None

    def done(self, features: str) -> str:
        """What is in the store now, for the person who watches."""
        from stores import PENDING, open_store

        path = self.store(features)
        if not (path / "zarr.json").exists():
            return "no store yet"
        status = open_store(path).status()
        return f"{int((status != PENDING).sum())} of {len(status)} rows"

    def differing(self, features: str, clean: dict[str, bytes]) -> list[str]:
        """Files that differ from the uninterrupted store's, are too many or lack."""
        found = contents(self.store(features))
        return [name for name in sorted({*found, *clean}) if found.get(name) != clean.get(name)]


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store but its provenance."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and "provenance" not in path.relative_to(store).parts
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for videos and stores [a temporary one]")
    parser.add_argument("--videos", type=Path, help="folder of videos [three are made]")
    parser.add_argument("--kills", type=int, default=10, help="kills that find the process alive [10]")
    parser.add_argument("--clips-per-video", type=int, default=4)
    parser.add_argument("--unit-rows", type=int, default=2)
    parser.add_argument("--backbone", default="i3d", help="network; tiny3d makes a fast trial [i3d]")
    parser.add_argument("--fresh", action="store_true", help="a new store for every kill")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    if args.kills < 1:
        parser.error("--kills must be at least 1")
    print_machine()
    with work_folder(args.root) as folder:
        csv, videos = make_dataset(folder, args.videos, args.clips_per_video)
        campaign = Campaign(folder, csv, videos, args.backbone, args.unit_rows)
        for old in folder.glob("run*"):
            shutil.rmtree(old) if old.is_dir() else old.unlink()
        started = time.monotonic()
        expected = campaign.start("run-clean").wait()
        duration = time.monotonic() - started
        if expected not in (0, 3):
            print((folder / "run-clean.log").read_text())
            return verdict([(False, f"the uninterrupted run ended with exit code {expected}")])
        clean = contents(campaign.store("run-clean"))
        print(
            f"uninterrupted: {duration:.1f} s, exit code {expected}, {campaign.done('run-clean')},"
            f" {len(clean)} files, {sum(map(len, clean.values())) / 1e6:.2f} MB",
            flush=True,
        )

        rng = random.Random(args.seed)
        kills: list[float] = []
        stores, wrong = 0, []
        while len(kills) < args.kills:
            features, moment = f"run-{stores}", rng.uniform(0, duration)
            code = campaign.kill_after(features, moment)
            if code is None:
                kills.append(moment)
                print(f"kill {len(kills)} at {moment:.1f} s: {features} holds {campaign.done(features)}", flush=True)
                if args.fresh or len(kills) == args.kills:
                    code = campaign.start(features).wait()
            if code is not None:  # the store is finished
                differing = campaign.differing(features, clean)
                print(f"  {features} finished, {len(differing)} files differ", flush=True)
                if code != expected or differing:
                    wrong.append(f"{features}: exit code {code}, differing: {', '.join(differing[:10]) or 'nothing'}")
                stores += 1
        return verdict(
            [
                *((False, line) for line in wrong),
                (
                    not wrong,
                    f"{len(kills)} kills, {min(kills):.1f} to {max(kills):.1f} s into runs of {duration:.1f} s;"
                    f" of the {stores} stores finished {len(wrong)} differ from the uninterrupted one",
                ),
            ]
        )


if __name__ == "__main__":
    sys.exit(main())
