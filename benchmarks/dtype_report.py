"""What float32, float16, bfloat16 and int8 (a scale a row) cost and keep, on real features.

    python benchmarks/dtype_report.py [--videos DIR] [--train-clips 800] [--val-clips 400]

EfficientNet-Lite0 (ImageNet weights) over the frames of the videos given (none: of toy kitchen), two a second, stored
as float32. Each dtype encodes these rows: bytes a row under zstd 1, decoding into float32 a second (one core), and
error relative to the row's length. Accuracy is that of a linear probe (torch, logistic regression on normalised
features, full batch) on toy kitchen: from a clip's frames, encoded and decoded, it predicts verb and noun. It is given
their mean, and how the later half of them differs from the earlier: a frame alone does not show which way a hand goes.
How much its weights cost is chosen once, for float32, by leaving out a quarter of the training videos at a time.
bfloat16 and int8 are this report's own encoding: a store holds float16 (the default) or float32, which plain zarr
and h5py read anywhere. Fails (exit 1) when float16 loses a point of accuracy against float32, or is not smaller, or
the probe is not 10 points above always saying training's most frequent class.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import print_machine
from measuring import verdict, work_folder
from toykitchen_claim import dataset_with

MOST_LOSS, LEAST_GAIN = 0.01, 0.10
PENALTIES = (0.03, 0.1, 0.3, 1.0)
FOLDS = 4
SPATIAL_ROWS = 400
"""Rows of the map that sizes and speed are measured on, spread over the videos."""


@dataclass(frozen=True)
class Encoding:
    """encode: (rows, values) float32 -> bytes of each row. decode: the bytes of a row -> (values,) float32."""

    encode: Callable[[np.ndarray], list[bytes]]
    decode: Callable[[bytes], np.ndarray]


def _plain(dtype: str) -> Encoding:
    return Encoding(
        lambda rows: [row.tobytes() for row in rows.astype(dtype)],
        lambda data: np.frombuffer(data, dtype).astype(np.float32),
    )


def _bfloat16(rows: np.ndarray) -> list[bytes]:
    """The upper half of a float32, rounded to nearest even."""
    bits = np.ascontiguousarray(rows, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return [row.tobytes() for row in rounded.astype(np.uint16)]


def _from_bfloat16(data: bytes) -> np.ndarray:
    return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)


def _int8(rows: np.ndarray) -> list[bytes]:
    """A float32 scale, largest magnitude / 127, then the values in steps of it."""
    scale = np.maximum(np.abs(rows).max(axis=1), np.finfo(np.float32).tiny).astype(np.float32) / np.float32(127)
    steps = np.rint(rows / scale[:, None]).astype(np.int8)
    return [one.tobytes() + row.tobytes() for one, row in zip(scale, steps, strict=True)]


def _from_int8(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.int8, offset=4) * np.frombuffer(data, np.float32, 1)


ENCODINGS = {
    "float32": _plain("float32"),
    "float16": _plain("float16"),
    "bfloat16": Encoding(_bfloat16, _from_bfloat16),
    "int8+scale": Encoding(_int8, _from_int8),
}


def figures(rows: np.ndarray, encoding: Encoding) -> dict[str, float]:
    """{bytes (stored, a row), MB_s (float32 values decoded a second), error (relative to the row's length)}."""
    from numcodecs import Zstd

    zstd = Zstd(level=1)
    stored = [zstd.encode(data) for data in encoding.encode(rows)]
    best = np.inf
    for _ in range(3):
        begin = time.perf_counter()
        back = [encoding.decode(zstd.decode(data)) for data in stored]
        best = min(best, time.perf_counter() - begin)
    length = np.maximum(np.linalg.norm(rows, axis=1), np.finfo(np.float32).tiny)
    error = np.linalg.norm(np.stack(back) - rows, axis=1) / length
    return {"bytes": sum(map(len, stored)) / len(rows), "MB_s": rows.nbytes / best / 1e6, "error": float(error.mean())}


def probe(train: tuple[np.ndarray, np.ndarray], val: tuple[np.ndarray, np.ndarray], penalty: float) -> float:
    """Top-1 on val of a linear classifier fitted to train; each is ((n, values) float32, (n,) labels).

    penalty: of the sum of the squared weights, beside the mean cross entropy.
    """
    import torch

    mean, std = train[0].mean(axis=0), train[0].std(axis=0) + 1e-6
    x, x_val = (torch.from_numpy(((rows - mean) / std).astype(np.float32)) for rows in (train[0], val[0]))
    y = torch.from_numpy(train[1].astype(np.int64))
    layer = torch.nn.Linear(x.shape[1], int(max(train[1].max(), val[1].max())) + 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    best = torch.optim.LBFGS(layer.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        best.zero_grad()
        value = torch.nn.functional.cross_entropy(layer(x), y) + penalty * layer.weight.square().sum()
        value.backward()
        return value

    best.step(loss)
    with torch.no_grad():
        return float((layer(x_val).argmax(1).numpy() == val[1]).mean())


def chosen_penalty(rows: np.ndarray, labels: np.ndarray, videos: np.ndarray) -> float:
    """The one of PENALTIES that does best on training videos left out."""
    fold = np.unique(videos, return_inverse=True)[1] % FOLDS

    def mean_top1(penalty: float) -> float:
        parts = ((fold != i, fold == i) for i in range(FOLDS))
        return float(np.mean([probe((rows[a], labels[a]), (rows[b], labels[b]), penalty) for a, b in parts]))

    return max(PENALTIES, key=mean_top1)


def features(root: Path, dataset: str, videos: Path | None = None):
    """The store of EfficientNet-Lite0 over a dataset's frames, float32."""
    from pipelines import extract
    from pipelines.request import Extraction
    from stores import open_store

    request = Extraction(
        dataset=dataset, data=root / "data", videos=videos, features=(root / "features",), dtype="float32",
        backbone="efficientnet_lite0", axis="frame", only=True, draws=0, keep=("spatial", "vector"),
    )  # fmt: skip
    (report,) = extract(request, announce=lambda line: print(f"  {line}", file=sys.stderr))
    return open_store(report.store)


def dataset_of(root: Path, videos: Path) -> str:
    """A CSV of the whole of every video that can be opened."""
    from extract.datasets.base import VIDEO_SUFFIXES
    from extract.decode import VideoError, quick_probe

    lines = ["video,start,stop"]
    for path in sorted(path for path in videos.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES):
        try:
            lines.append(f"{path.name},0,{quick_probe(path)[1] or 1.0}")
        except VideoError as error:
            print(f"left out: {error}")
    csv = root / "real.csv"
    csv.write_text("\n".join(lines) + "\n")
    return str(csv)


def clip_features(store, encoding: Encoding) -> np.ndarray:
    """(clips, 2 x values): of each clip's frames, encoded and decoded, the mean, and later half less earlier half."""
    clips = store.clips
    place = np.full(len(store), -1)
    place[store.ok] = np.arange(len(store.ok))
    frames = np.stack([encoding.decode(data) for data in encoding.encode(store.read("vector", store.ok))])
    made = []
    for video, start, stop in zip(clips["video"].tolist(), clips["start_s"], clips["stop_s"], strict=True):
        found = store.rows_between(video, start, stop)
        if not len(found):  # a clip shorter than the grid: the frame nearest to its middle
            found = store.rows_between(video, (start + stop) / 2 - 0.5, (start + stop) / 2 + 0.5)[:1]
        seen = frames[place[found][place[found] >= 0]]
        half = -(-len(seen) // 2)
        made.append(np.concatenate([seen.mean(axis=0), seen[len(seen) // 2 :].mean(axis=0) - seen[:half].mean(axis=0)]))
    return np.stack(made)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="folder for data and features, reused [a temporary one]")
    parser.add_argument("--videos", type=Path, help="folder of videos for sizes, speed and error [toy kitchen's]")
    parser.add_argument("--train-clips", type=int, default=800)
    parser.add_argument("--val-clips", type=int, default=400)
    args = parser.parse_args()

    from pipelines.demo import chance

    print_machine()
    with work_folder(args.root) as root:
        toy = features(root, dataset_with(args.train_clips, args.val_clips))
        real = features(root, dataset_of(root, args.videos), args.videos) if args.videos else toy
        chosen = real.ok[np.linspace(0, len(real.ok) - 1, min(SPATIAL_ROWS, len(real.ok))).astype(int)]
        rows = {name: real.read(name, chosen).reshape(len(chosen), -1) for name in ("spatial", "vector")}
        train, val = (np.flatnonzero(toy.clips["split"] == part) for part in ("train", "val"))
        guess, penalty = chance(toy), {}
        print(f"{len(chosen)} frames of {args.videos or 'toy kitchen'}; probe: {len(train)} and {len(val)} clips")
        print(f"{'':12}{'spatial':>30}{'vector':>30}{'probe top-1 %':>16}")
        head = f"{'B/row':>10}{'MB/s':>9}{'error':>11}"
        print(f"{'':12}{head}{head}{'verb':>8}{'noun':>8}")
        found = {}
        for name, encoding in ENCODINGS.items():
            sizes = {array: figures(values, encoding) for array, values in rows.items()}
            given, tops = clip_features(toy, encoding), {}
            for label in ("verb", "noun"):
                y = toy.clips[label]
                if label not in penalty:
                    penalty[label] = chosen_penalty(given[train], y[train], toy.clips["video"][train])
                tops[label] = probe((given[train], y[train]), (given[val], y[val]), penalty[label])
            found[name] = (sizes, tops)
            cells = "".join(f"{s['bytes']:10.0f}{s['MB_s']:9.0f}{s['error']:11.1e}" for s in sizes.values())
            print(f"{name:12}{cells}{100 * tops['verb']:8.1f}{100 * tops['noun']:8.1f}", flush=True)
    print(f"{'most frequent':72}{100 * guess['verb']:8.1f}{100 * guess['noun']:8.1f}; penalties {penalty}")
    (wide, exact), (half, rounded) = found["float32"], found["float16"]
    loss = max(exact[label] - rounded[label] for label in exact)
    gain = min(exact[label] - guess[label] for label in exact)
    return verdict(
        [
            (gain >= LEAST_GAIN, f"the probe is {100 * gain:.1f} points above the most frequent class at least"),
            (loss < MOST_LOSS, f"float16 loses {100 * loss:.1f} points of accuracy against float32 at most"),
            (
                half["spatial"]["bytes"] < wide["spatial"]["bytes"],
                "float16 is smaller, and read by plain zarr and h5py",
            ),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
