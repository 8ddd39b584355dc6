"""Frames as a feature: raw or JPEG, and how long training waits for them against decoding the videos every time.

    python benchmarks/frame_formats.py [--videos DIR]

Stores the frames of toy kitchen (at 112 x 112; of the videos in DIR besides, at 256 x 256) raw and as JPEGs of several
qualities, and reads random clips of 16 frames from each, in turns: bytes a row, milliseconds a clip, distance from the
raw frames. Then trains small3d for an epoch from the default store and from the videos, in turns: the share of the
time that the network waited for data, and how many cores would feed a device that computes ten times faster.
Fails (exit 1) when the default is not a third of raw or less, or keeps training waiting for 5 % of the time or more.
How long a clip takes to read is shown, and is no reason to fail: raw frames that lie in memory are read faster, those
on a disk are four to seven times as many bytes.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

from machine import print_machine
from measuring import interleave, verdict, work_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

QUALITIES = (0, 75, 90, 95)
DEFAULT = 95
CLIPS, FRAMES = 64, 16


def stores_of(root: Path, dataset: str, size: int, **place) -> dict[int, Path]:
    """{quality: path of the store of frames}."""
    from pipelines import Extraction, extract

    found = {}
    for quality in QUALITIES:
        resize = json.dumps({"mode": "squash", "size": size})
        request = Extraction(
            dataset=dataset,
            features=(root / "features",),
            backbone="frames",
            name=f"frames_{quality}",
            option=(f"quality={quality}", f"resize={resize}"),
            missing="skip",
            **place,
        )
        (report,) = extract(request)
        found[quality] = Path(report.store)
    return found


def clips_of(reader, seed: int):
    """(videos (n,), instants (n, T)) of random clips that can be read."""
    import numpy as np

    rng = np.random.default_rng(seed)
    videos = np.unique(reader.store.rows["video"])
    chosen = rng.choice(videos, CLIPS)
    starts = rng.random(CLIPS) * np.maximum(reader.duration_s(chosen) - FRAMES * reader.step_s, 0)
    times = starts[:, None] + np.arange(FRAMES) * reader.step_s
    usable = reader.usable(chosen, times)
    return chosen[usable], times[usable]


def compare_formats(stores: dict[int, Path], repeats: int) -> dict[int, dict[str, float]]:
    """{quality: bytes a row, ms a clip, PSNR against raw}."""
    import numpy as np

    from pipelines.frame_reader import FrameReader
    from stores import info, open_store

    readers = {quality: FrameReader(open_store(path)) for quality, path in stores.items()}

    turn = itertools.count()

    def read(reader):
        clips = clips_of(reader, next(turn))
        started = time.perf_counter()
        reader.read(*clips)
        return 1000 * (time.perf_counter() - started) / len(clips[0])

    times = interleave({str(q): lambda r=r: read(r) for q, r in readers.items()}, repeats, "ms a clip")
    raw_clips = clips_of(readers[0], 1)
    raw = np.stack(readers[0].read(*raw_clips)).astype(np.float32)
    found = {}
    for quality, reader in readers.items():
        error = np.mean((np.stack(reader.read(*raw_clips)) - raw) ** 2)
        found[quality] = {
            "bytes": info(stores[quality])["stored_bytes"] / len(reader.store.ok),
            "ms": statistics.median(times[str(quality)]),
            "psnr": float("inf") if error == 0 else float(10 * np.log10(255**2 / error)),
        }
    return found


def waiting(root: Path, store: Path, repeats: int, clips: int) -> dict[str, list[float]]:
    """Shares of an epoch that small3d waited, from the store and from the videos."""
    from pipelines.base_training import train_backbone

    count = itertools.count()

    def train(frames) -> float:
        out = root / "runs" / f"{next(count)}"
        train_backbone(
            "small3d",
            dataset=f"toykitchen:train_clips={clips}",
            frames=frames,
            data=root / "data",
            weights="random:0",
            out=out,
            epochs=1,
            target="verb",
            progress=False,
            say=lambda line: print(f"    {line}") if line.startswith("waited") else None,
        )
        return 100 * float((out / "log.csv").read_text().splitlines()[1].split(",")[4])

    return interleave({"store": lambda: train(store), "videos": lambda: train("decode")}, repeats, "% waiting")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for data, features and runs, reused [a temporary one]")
    parser.add_argument("--videos", type=Path, help="a folder of videos besides")
    parser.add_argument("--clips", type=int, default=200, help="training clips of toy kitchen")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--epochs", type=int, default=3, help="epochs of training from each source")
    args = parser.parse_args()
    print_machine()
    with work_folder(args.root) as root:
        name = f"toykitchen:train_clips={args.clips}"
        kitchens = stores_of(root, name, 112, data=root / "data")
        tables = {"toy kitchen, 112 x 112": compare_formats(kitchens, args.repeats)}
        if args.videos:
            files = sorted(path for path in args.videos.iterdir() if path.suffix in (".mp4", ".mkv", ".webm"))
            csv = root / "videos.csv"
            csv.write_text("video,start,stop\n" + "".join(f"{path.stem},0,\n" for path in files))
            own = stores_of(root, str(csv), 256, videos=args.videos)
            tables[f"{args.videos.name}, 256 x 256"] = compare_formats(own, args.repeats)
        for title, table in tables.items():
            print(f"\n{title}, clips of {FRAMES} frames\n{'quality':>8}{'bytes a row':>13}{'ms a clip':>11}{'PSNR':>8}")
            for quality, row in table.items():
                label = quality or "raw"
                print(f"{label:>8}{row['bytes']:13,.0f}{row['ms']:11.2f}{row['psnr']:8.1f}")
        print("\nsmall3d, an epoch:")
        waited = waiting(root, kitchens[DEFAULT], args.epochs, args.clips)
        medians = {source: statistics.median(shares) for source, shares in waited.items()}
        print(f"waits for the store {medians['store']:.1f} % of the time, for the videos {medians['videos']:.1f} %")
    kitchen = tables["toy kitchen, 112 x 112"]
    return verdict(
        [
            (
                3 * kitchen[DEFAULT]["bytes"] <= kitchen[0]["bytes"],
                f"JPEG {DEFAULT} has a third of raw's bytes or less",
            ),
            (medians["store"] < 5, "training waits for the store less than 5 % of the time"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
