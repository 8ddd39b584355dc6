"""What the pipeline costs: extraction from first frame to last commit, against network alone and decode alone.

    python benchmarks/extract_overhead.py [--clip 64x224] [--precision bf16] [--overlap 0.5]

For every source size, in turns and in one process, on the same cores:

    extract   `pipelines.extract` with I3D (random:0) into a new store. The time is `Report.seconds`: from the first
              unit's decode until the last commit has returned. Planning, building the network, creating the store
              and sealing it are not counted; probes are cached by a first run that is not counted either.
    network   the same batches, decoded beforehand, through `network.run`
    decode    the same units through `decode_unit` with the same reader, batch and thread settings, no network
    null      extraction with the network `null`, which costs nothing: what decode and pipeline take

Fails (exit 1) when, for sources up to 480 x 360, the median over the repeats of
    extract / (network + decode) > 1.05 or extract / network > 1.15 in fp32, or decode / null < 0.9.
The larger source and bf16 are reported beside.
"""

import argparse
import shutil
import statistics
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
from machine import print_machine
from made_videos import make_video
from measuring import interleave, paired_ratio, verdict, work_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LEAST_CLIPS, MOST_OF_SUM, MOST_OF_NETWORK, LEAST_NULL_SPEED = 60, 1.05, 1.15, 0.9
CLIP_FPS = 25.0  # I3D's own
CLIPS_A_VIDEO = 16
SOURCES = {"340x256": (340, 256, 25), "480x360": (480, 360, 25), "1920x1080": (1920, 1080, 60)}  # width, height, fps
REQUIRED = ("340x256", "480x360")


def set_clip(clip: str) -> int:
    """Give one's own CSVs clips of FRAMESxSIZE, for I3D and the null network alike; returns the frames."""
    from extract.sampling import PRESETS, ClipSampling, Preset

    frames, size = map(int, clip.split("x"))
    PRESETS["", "i3d"] = Preset(ClipSampling(frames, 1, CLIP_FPS), {"mode": "squash", "size": size})
    return frames


def make_dataset(folder: Path, source: str, clips: int, frames: int, overlap: float) -> Path:
    """A CSV of `clips` clips, one after another (or overlapping), and its videos beside it."""
    width, height, fps = SOURCES[source]
    length, step = frames / CLIP_FPS, max(1, round(frames * (1 - overlap))) / CLIP_FPS
    lines = ["video,start,stop"]
    for first in range(0, clips, CLIPS_A_VIDEO):
        count = min(CLIPS_A_VIDEO, clips - first)
        name = f"v{first // CLIPS_A_VIDEO:03d}"
        video = folder / "videos" / f"{name}.mp4"
        if not video.exists():
            make_video(video, width, height, fps, (count - 1) * step + length, seed=first)
        lines += [f"{name},{i * step:.6f},{i * step + length:.6f}" for i in range(count)]
    csv = folder / f"s{source}.csv"
    csv.write_text("\n".join(lines) + "\n")
    return csv


def extraction(request) -> float:
    """Seconds from first frame to last commit of one extraction into a store that is removed afterwards."""
    from pipelines import extract

    (report,) = extract(request, device="cpu")
    assert report.complete and report.computed == report.rows, report.summary()
    shutil.rmtree(report.store)
    return report.seconds


def decoded_batches(job, store):
    """The batches that `compute_rows` gives the network, decoded in the same way with nothing beside it."""
    from pipelines.batches import decode_unit
    from pipelines.extraction import decoder_threads, default_decode_workers
    from pipelines.videos import Videos

    videos = Videos(job, store, threads=decoder_threads(default_decode_workers("cpu")))
    todo = np.ones(len(store), bool)
    for unit in store.units:
        yield from decode_unit(job, store, unit, todo, store.manifest.layout.batch_size, videos)


def timed(run) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(csv: Path, precisions: list[str], repeats: int) -> dict[str, list[float]]:
    """{condition: seconds a repeat} for one source."""
    from extract.networks import create_network
    from pipelines import Extraction, extract, plan_extraction
    from stores import open_store

    features = csv.parent / "features"
    shutil.rmtree(features, ignore_errors=True)
    base = Extraction(
        dataset=str(csv),
        videos=csv.parent / "videos",
        features=(features,),
        backbone="null",
        only=True,
        draws=0,
        keep=("vector",),
        name="first",
    )
    (report,) = extract(base, device="cpu")  # fills the caches of probes and of the disk; decode alone reads its rows
    assert report.complete, report.summary()
    store, (null_job,) = open_store(report.store), plan_extraction(base)
    batches = list(decoded_batches(null_job, store))

    def decode() -> None:
        for _ in decoded_batches(null_job, store):
            pass

    conditions = {"decode": lambda: timed(decode), "null extract": lambda: extraction(replace(base, name="null"))}
    for precision in precisions:
        request = replace(
            base, backbone="i3d", weights=("random:0",), keep=("spatial", "vector"), precision=precision, name=precision
        )
        (job,) = plan_extraction(request)
        if (
            job.resize != null_job.resize
            or job.sampling != null_job.sampling
            or job.layout.batch_size != len(batches[0].frames)
        ):
            raise RuntimeError("the null network and I3D are not given the same batches")
        network = create_network(job.network, weights=job.weights, **job.options)
        network.keep = job.keep
        network.to("cpu", precision)
        network.run(batches[0].inputs)

        def alone(network=network) -> None:
            for batch in batches:
                network.run(batch.inputs)

        conditions[f"{precision} extract"] = lambda request=request: extraction(request)
        conditions[f"{precision} network"] = lambda alone=alone: timed(alone)
    return interleave(conditions, repeats)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for videos and stores [a temporary one]")
    parser.add_argument("--clips", type=int, default=64, help="clips of every source, at least 60 [64]")
    parser.add_argument(
        "--clip", default="64x224", help="FRAMESxSIZE of a clip: I3D's own 64x224, or toy kitchen's 16x112 [64x224]"
    )
    parser.add_argument("--overlap", type=float, default=0.0, help="share of a clip that the next one shows too [0]")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="bf16: reported beside fp32")
    parser.add_argument("--null-only", action="store_true", help="leave I3D out: what decode and pipeline take")
    parser.add_argument("--repeats", type=int, default=3, help="turns that every condition takes [3]")
    args = parser.parse_args()
    if not 0 <= args.overlap < 1:
        parser.error("--overlap is a share from 0 to below 1")
    print_machine()
    frames = set_clip(args.clip)
    precisions = [] if args.null_only else list(dict.fromkeys(["fp32", args.precision]))
    warnings.filterwarnings("ignore", message=".*random weights")  # speed does not depend on them
    lines = [
        f"{'source':10} {'network':8} {'extract s':>10} {'network s':>10} {'decode s':>9} {'clips/s':>8}"
        f" {'/(net+dec)':>11} {'/network':>9} {'null speed':>11}"
    ]
    requirements = [(args.clips >= LEAST_CLIPS, f"{args.clips} clips, at least {LEAST_CLIPS}")]
    with work_folder(args.root) as root:
        for source in args.sources:
            folder = root / f"{source}-{args.clip}-{args.clips}-{args.overlap:g}"
            csv = make_dataset(folder, source, args.clips, frames, args.overlap)
            size = sum(path.stat().st_size for path in (folder / "videos").iterdir())
            print(f"{source}, {SOURCES[source][2]} fps: {args.clips} clips of {args.clip} in {size / 1e6:.1f} MB")
            seconds = measure(csv, precisions, args.repeats)
            typical = {name: statistics.median(values) for name, values in seconds.items()}
            speed = paired_ratio(seconds["decode"], seconds["null extract"])
            lines.append(
                f"{source:10} {'null':8} {typical['null extract']:10.2f} {'':10} {typical['decode']:9.2f}"
                f" {args.clips / typical['null extract']:8.2f} {'':11} {'':9} {speed:11.3f}"
            )
            if source in REQUIRED:
                requirements.append(
                    (
                        speed >= LEAST_NULL_SPEED,
                        f"{source}: null network at {speed:.3f} of decode-only speed, at least {LEAST_NULL_SPEED}",
                    )
                )
            for precision in precisions:
                whole, network = seconds[f"{precision} extract"], seconds[f"{precision} network"]
                of_sum, of_network = paired_ratio(whole, network, seconds["decode"]), paired_ratio(whole, network)
                lines.append(
                    f"{source:10} {precision:8} {typical[f'{precision} extract']:10.2f}"
                    f" {typical[f'{precision} network']:10.2f} {typical['decode']:9.2f}"
                    f" {args.clips / typical[f'{precision} extract']:8.2f} {of_sum:11.3f} {of_network:9.3f}"
                )
                if source in REQUIRED and precision == "fp32":
                    requirements += [
                        (of_sum <= MOST_OF_SUM, f"{source}: {of_sum:.3f} x (network + decode), at most {MOST_OF_SUM}"),
                        (
                            of_network <= MOST_OF_NETWORK,
                            f"{source}: {of_network:.3f} x network alone, at most {MOST_OF_NETWORK}",
                        ),
                    ]
    print("\n".join(lines))
    print("(seconds: medians; ratios: medians of the repeats' own ratios)")
    return verdict(requirements)


if __name__ == "__main__":
    sys.exit(main())
