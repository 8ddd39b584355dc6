"""Peak memory of an extraction does not grow with the length of the video.

    python benchmarks/memory_with_length.py [--backbone i3d]

Makes a 1-minute 720p H.264 video (30 fps) and repeats its packets twenty times into a 20-minute one. `cli.py extract`
runs in a process of its own on evenly spaced clips of 64 frames at 25 fps: of the short video, of the long one with
the same number of clips in all, and of the long one with the same number a minute. Reported is the highest resident
size that the operating system saw of each process.
Fails (exit 1) when the median of either long extraction is above 1.2 times that of the short one.
"""

import argparse
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from machine import print_machine
from measuring import interleave, verdict, work_folder

ROOT = Path(__file__).resolve().parents[1]

MOST_RATIO = 1.2
WIDTH, HEIGHT, FPS = 1280, 720, 30
CLIP_SECONDS = 64 / 25  # what the default preset shows of a clip
KIB_A_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def make_videos(folder: Path, seconds: int, times: int) -> None:
    from made_videos import encode_video, remux

    short, long = folder / "short.mp4", folder / "long.mp4"
    if not short.exists():
        encode_video(short, WIDTH, HEIGHT, FPS, seconds)
    if not long.exists():
        remux(short, long, times=times)


def write_csv(path: Path, video: str, seconds: float, clips: int) -> Path:
    """`clips` clips of CLIP_SECONDS, evenly spaced from the first frame to the last."""
    starts = [(seconds - CLIP_SECONDS) * i / max(1, clips - 1) for i in range(clips)]
    lines = ["video,start,stop", *(f"{video},{start:.6f},{start + CLIP_SECONDS:.6f}" for start in starts)]
    path.write_text("\n".join(lines) + "\n")
    return path


def peak_of_extraction(csv: Path, videos: Path, backbone: str) -> float:
    """MiB resident at most in one `cli.py extract` of its own."""
    features = csv.parent / "features"
    shutil.rmtree(features, ignore_errors=True)
    weights = ["--weights", "random:0"] if backbone != "null" else []
    keep = ["--keep", "vector"] if backbone == "null" else []
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "extract",
        "--dataset",
        str(csv),
        "--videos",
        str(videos),
        "--features",
        str(features),
        "--backbone",
        backbone,
        "--only",
        "--draws",
        "0",
        "--device",
        "cpu",
        *weights,
        *keep,
    ]
    log = csv.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"extraction ended with exit code {process.returncode}:\n{log.read_text()}")
    return used.ru_maxrss * KIB_A_UNIT / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for videos and stores [a temporary one]")
    parser.add_argument("--backbone", choices=["null", "i3d", "tiny3d"], default="null")
    parser.add_argument("--seconds", type=int, default=60, help="of the short video [60]")
    parser.add_argument("--times", type=int, default=20, help="how much longer the long one is [20]")
    parser.add_argument("--clips", type=int, default=20, help="of the short video [20]")
    parser.add_argument("--repeats", type=int, default=2, help="turns that every extraction takes [2]")
    args = parser.parse_args()
    print_machine()
    with work_folder(args.root) as root:
        videos = root / f"videos-{args.seconds}x{args.times}"
        videos.mkdir(exist_ok=True)
        # In a process of its own: the system counts what this one held when it started an extraction as that one's.
        spawn = multiprocessing.get_context("spawn")
        maker = spawn.Process(target=make_videos, args=(videos, args.seconds, args.times))
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RuntimeError("the videos could not be made")
        length = args.seconds * args.times
        cases = {
            "short": ("short", args.seconds, args.clips),
            "long, same clips in all": ("long", length, args.clips),
            "long, same clips a minute": ("long", length, args.clips * args.times),
        }
        csvs = {name: write_csv(root / f"case{i}.csv", *case) for i, (name, case) in enumerate(cases.items())}
        peaks = interleave(
            {name: lambda csv=csv: peak_of_extraction(csv, videos, args.backbone) for name, csv in csvs.items()},
            args.repeats, unit="MiB",
        )  # fmt: skip
        typical = {name: statistics.median(values) for name, values in peaks.items()}
        print(f"{'extraction':28} {'video s':>8} {'clips':>6} {'peak MiB':>9} {'ratio':>6}   ({args.backbone})")
        for name, (_, seconds, clips) in cases.items():
            print(f"{name:28} {seconds:8} {clips:6} {typical[name]:9.0f} {typical[name] / typical['short']:6.3f}")
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB_A_UNIT / 2**20
        requirements = [(own < min(typical.values()), f"the benchmark's own {own:.0f} MiB are below what it measures")]
        for name in list(cases)[1:]:
            ratio = typical[name] / typical["short"]
            requirements.append((ratio <= MOST_RATIO, f"{name}: {ratio:.3f} x the short one, at most {MOST_RATIO}"))
        return verdict(requirements)


if __name__ == "__main__":
    sys.exit(main())
