"""What a sampler saves: recognising a 480p video from the 10 frames that PSN picks, against all 25 candidates.

    python benchmarks/recognize_speed.py [--repeats 5] [--seconds 60]

ShuffleNet V2 1.0x looks at 25 frames of 224 x 224, TSN ResNet-50 at 10 of them (psn) or at all (dense), on the CPU, in
turns and in one process, with random weights: speed does not depend on them. The video has a keyframe every 2 seconds.

    networks    the light network, the head and the heavy network; the frames are there
    decoding    opening the file, its index made anew every time; then the 25 frames, sought from keyframe to keyframe
    whole       both, from the file's name to the answer

CPU seconds, of all threads together, stand beside: other work on the machine changes them less. Fails (exit 1)
when, as the median over the repeats, psn is not at least 1.8 times faster than dense by networks alone,
or 1.5 times as a whole. EfficientNet-Lite0 in ShuffleNet's place is reported beside.
"""

import argparse
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

from machine import print_machine
from made_videos import encode_video, make_video
from measuring import interleave, paired_ratio, verdict, work_folder

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

LEAST_NETWORKS, LEAST_WHOLE = 1.8, 1.5
FRAMES, SAMPLED, CLASSES = 25, 10, 200
WIDTH, HEIGHT, FPS = 854, 480, 30
LIGHT = ("shufflenet_v2", "efficientnet_lite0")  # the first is required
HEAVY = "tsn_resnet50"
PARTS = ("networks", "decoding", "whole")
CPU_PARTS = tuple(f"cpu {part}" for part in PARTS)


def trained_runs(root: Path) -> dict[str, Path]:
    """{light network: run folder} of samplers that were trained for a moment, on a few frames."""
    from pipelines import Extraction, extract, train_head

    csv, lines = root / "few.csv", ["video,start,stop,what"]
    for i, label in enumerate((0, CLASSES - 1)):
        encode_video(root / "few" / f"v{i}.mp4", WIDTH, HEIGHT, FPS, 2.0, seed=i)
        lines.append(f"v{i},0,2,{label}")
    csv.write_text("\n".join(lines) + "\n")

    def store(network: str, array: str, **options) -> Path:
        (report,) = extract(Extraction(
            dataset=str(csv), videos=root / "few", features=(root / "features",), backbone=network,
            weights=("random:0",), keep=(array,), only=True, **options,
        ))  # fmt: skip
        return Path(report.store)

    heavy = store(HEAVY, "logits", option=(f"classes={CLASSES}",))
    runs = {}
    for network in LIGHT:
        runs[network] = train_head(
            "psn", sampler=store(network, "vector"), recogniser=heavy, target="what", out=root / "runs" / network,
            set={"frames": FRAMES, "sampled": SAMPLED}, epochs=1, allow_random=True, progress=False,
            say=lambda line: None,
        )  # fmt: skip
    return runs


class Timed:
    """Two ways to recognise one video, their seconds by part."""

    def __init__(self, run: Path, video: Path):
        from pipelines.recognize_networks import open_recogniser

        self.recogniser, self.video = open_recogniser(run, device="cpu"), video
        self.recogniser.warm_up()
        self.forget()

    def forget(self) -> None:
        self.seconds = {name: {part: [] for part in (*PARTS, *CPU_PARTS)} for name in ("psn", "dense")}

    def measure(self, name: str) -> float:
        """One more repeat; its seconds as a whole."""
        from pipelines.known_rows import Video
        from pipelines.recognize_video import Looked, answer_plainly, answer_sampled

        os.utime(self.video)  # a file that nobody has seen yet
        begun, cpu_begun = time.perf_counter(), time.process_time()
        looked = Looked(self.recogniser, self.video.name, Video(self.video.stem, self.video))
        looked.find(from_stores=False)
        cpu_decoded = time.process_time()
        answer = answer_sampled(looked) if name == "psn" else answer_plainly(looked, looked.there)
        whole, cpu_ended = time.perf_counter() - begun, time.process_time()
        assert len(looked.times_s) == FRAMES and answer.picked.sum() == (SAMPLED if name == "psn" else FRAMES)
        spent = looked.seconds
        found = {
            "networks": spent["sampler"] + spent["context"] + spent["recogniser"],
            "decoding": spent["opening"] + spent["decoding"],
            "whole": whole,
            "cpu networks": cpu_ended - cpu_decoded,
            "cpu decoding": cpu_decoded - cpu_begun,
            "cpu whole": cpu_ended - cpu_begun,
        }
        for part, seconds in found.items():
            self.seconds[name][part].append(seconds)
        return whole

    def ratio(self, part: str) -> float:
        return paired_ratio(self.seconds["dense"][part], self.seconds["psn"][part])

    def gflops(self, name: str) -> float:
        return self.recogniser.gflops(name, FRAMES, SAMPLED if name == "psn" else FRAMES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for videos, stores and runs [a temporary one]")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the video [60]")
    parser.add_argument("--repeats", type=int, default=5, help="turns that every condition takes [5]")
    args = parser.parse_args()
    print_machine()
    warnings.filterwarnings("ignore", message=".*random weights")
    with work_folder(args.root) as root:
        video = root / "video.mp4"
        if not video.exists():
            make_video(video, WIDTH, HEIGHT, FPS, args.seconds)
        print(f"{WIDTH} x {HEIGHT}, {FPS} fps, {args.seconds:g} s, {video.stat().st_size / 1e6:.1f} MB")
        timed = {network: Timed(run, video) for network, run in trained_runs(root).items()}
        conditions = {
            f"{network} {name}": lambda one=one, name=name: one.measure(name)
            for network, one in timed.items()
            for name in ("psn", "dense")
        }
        for measure in conditions.values():
            measure()  # first passes are not like the others
        for one in timed.values():
            one.forget()
        interleave(conditions, args.repeats)
    print(f"{'':20} {'':6} {'GFLOPs':>7} {'networks s':>11} {'decoding s':>11} {'whole s':>8}")
    for network, one in timed.items():
        for parts, of in ((PARTS, ""), (CPU_PARTS, "CPU")):
            for name, seconds in one.seconds.items():
                gflops = of or f"{one.gflops(name):.1f}"
                networks, decoding, whole = (statistics.median(seconds[part]) for part in parts)
                print(f"{network:20} {name:6} {gflops:>7} {networks:11.3f} {decoding:11.3f} {whole:8.3f}")
            networks, _, whole = parts
            print(f"{network:20} {'ratio':6} {of:>7} {one.ratio(networks):11.2f} {'':11} {one.ratio(whole):8.2f}")
    print(f"({HEAVY}; seconds: medians; ratios: medians of the repeats' own ratios)")
    networks, whole = (timed[LIGHT[0]].ratio(part) for part in ("networks", "whole"))
    return verdict([
        (networks >= LEAST_NETWORKS, f"networks alone {networks:.2f} times faster, at least {LEAST_NETWORKS}"),
        (whole >= LEAST_WHOLE, f"end to end {whole:.2f} times faster, at least {LEAST_WHOLE}"),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
