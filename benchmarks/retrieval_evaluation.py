"""Retrieval figures of 20,000 texts and 20,000 videos, both ways, without the matrix ever being held as a whole.

    python benchmarks/retrieval_evaluation.py [--texts 20000] [--videos 20000] [--head t2vlad]

The embeddings are what the head gives at the thesis's sizes (MSR-VTT's 8 experts, a width of 768, 9 centres): random
directions of length 1, every text near its own video, an expert in five missing. What is timed is all that `evaluate`
does once texts and videos are embedded: similarities by blocks through the head, ranks and figures. It runs in a
process of its own, of which the highest resident size is reported.
Fails (exit 1) when it takes more than 10 minutes or 8 GiB (for other numbers of texts and videos: in proportion to
their product, and 8 GiB).
"""

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import print_machine
from measuring import verdict

MOST_SECONDS, MOST_BYTES = 600, 8 << 30
TEXTS = VIDEOS = 20_000
# Widths of MSR-VTT's experts as published (MMT).
EXPERTS = {"rgb": 2048, "s3d": 1024, "flow": 1024, "audio": 128, "scene": 2208, "ocr": 300, "face": 512, "speech": 300}
WIDTH = 768  # BERT's
AT_ONCE = 1000
KIB_A_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def embeddings(texts: int, videos: int, parts: dict[str, int]) -> tuple[dict, dict, np.ndarray]:
    """(text's, video's, (texts,) the column of each text's own video), as the heads give them; parts: {name: D} of
    vectors beside the experts'."""
    import torch

    generator = torch.Generator().manual_seed(0)
    own = torch.randint(videos, (texts,), generator=generator)

    def filled(shape, base=None):
        """Unit vectors along the last axis; near those of `base`, where it is given."""
        out = torch.empty(shape)
        for start in range(0, len(out), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            values = torch.randn(out[part].shape, generator=generator)
            values = torch.nn.functional.normalize(values, dim=-1)
            if base is not None:
                values = torch.nn.functional.normalize(0.04 * base[own[part]] + values, dim=-1)
            out[part] = values
        return out

    video = {"experts": filled((videos, len(EXPERTS), WIDTH))}
    video["present"] = torch.rand((videos, len(EXPERTS)), generator=generator) > 0.2
    text = {"experts": filled((texts, len(EXPERTS), WIDTH), video["experts"])}
    text["weights"] = torch.randn((texts, len(EXPERTS)), generator=generator).softmax(dim=-1)
    for name, wide in parts.items():
        video[name] = filled((videos, wide))
        text[name] = filled((texts, wide), video[name])
    return text, video, own.numpy()


def evaluated(pipe, head_name: str, texts: int, videos: int) -> None:
    """Sends (figures, seconds, peak bytes)."""
    from heads import create_head
    from pipelines.retrieval_model import figures_of

    own = {"text_channels": WIDTH, "experts": tuple(EXPERTS), "expert_channels": tuple(EXPERTS.values())}
    head = create_head(head_name, **own).eval()
    parts = {"local": head.config.clusters * WIDTH} if head_name == "t2vlad" else {}
    text, video, column_of = embeddings(texts, videos, parts)
    started = time.perf_counter()
    found = figures_of(head, text, video, column_of, "cpu")
    seconds = time.perf_counter() - started
    pipe.send((found, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB_A_UNIT))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=TEXTS)
    parser.add_argument("--videos", type=int, default=VIDEOS)
    parser.add_argument("--head", default="t2vlad")
    args = parser.parse_args()
    print_machine()
    ours, theirs = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=evaluated, args=(theirs, args.head, args.texts, args.videos))
    process.start()
    theirs.close()
    found, seconds, peak = ours.recv()
    process.join()
    for way, figures in found.items():
        print(way + "  " + "  ".join(f"{name} {value:.2f}" for name, value in figures.items()))
    allowed = MOST_SECONDS * max(1e-2, args.texts * args.videos / (TEXTS * VIDEOS))
    what = f"{args.texts:,} x {args.videos:,} with {args.head}"
    return verdict([
        (seconds <= allowed, f"{what}: {seconds:.1f} s, at most {allowed:.0f}"),
        (peak <= MOST_BYTES, f"{what}: at most {peak / 2**30:.2f} GiB resident, of {MOST_BYTES >> 30}"),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
