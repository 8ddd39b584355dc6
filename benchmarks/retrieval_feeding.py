"""Training T2VLAD from stores of MSR-VTT's size against the same arrays in memory.

    python benchmarks/retrieval_feeding.py --root /some/disk [--videos 10000] [--steps 12]

Makes one store an expert below --root (10,000 videos; the widths of the published features of MMT, 10 to 30 seconds at
a token rate that reaches the caps of the authors' release; no speech, faces or text on screen in every third video) and
one of BERT's token features (37 x 768, --captions a video); random values, half of them zero, as after a ReLU; about
6 GB. Then two processes train the same head on the same batches in turns, one from the stores with a cold page cache,
one from arrays in memory, so that a busy machine slows both; both read as `train-head t2vlad` does (random tokens of
each video, threads that read ahead). Then both read the same batches without the head, for information: what a device
that computes faster would be fed.
Fails (exit 1) when training from the stores has less than 0.9 of the samples a second (median over the turns).
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import print_machine
from measuring import evict, interleave, paired_ratio, verdict, work_folder
from train_from_store import InMemory

LEAST_RATIO = 0.9
VIDEOS = 10_000
SECONDS = (10, 30)  # of MSR-VTT's videos
# {expert: (width, tokens a second)}; the rate reaches the release's cap of tokens in the longest video.
EXPERTS = {"rgb": (2048, 1.7), "s3d": (1024, 1.0), "flow": (1024, 1.6), "audio": (128, 1.0), "scene": (2208, 1.0),
           "ocr": (300, 1.0), "face": (512, 1.0), "speech": (300, 3.7)}  # fmt: skip
FLAKY = ("ocr", "face", "speech")  # there is none in every third video
TOKENS, WIDTH = 37, 768  # of a caption
FOLDER = "msrvtt-size"


# --- the stores ---


def make_stores(root: Path, videos: int, captions: int) -> dict[str, Path]:
    """{role: store}, made where they are not there or not complete yet."""
    rng = np.random.default_rng(0)
    lengths = rng.uniform(*SECONDS, videos)
    names = np.array([f"video{i}" for i in range(videos)], object)
    number = np.arange(videos, dtype=np.int32)
    clips = {"id": names, "video": number, "start_s": np.zeros(videos), "stop_s": np.full(videos, np.nan)}
    clips["split"] = np.full(videos, "train", object)
    of_text = np.repeat(number, captions)
    texts = {"clip": of_text, "caption": np.array([f"caption {i}" for i in range(len(of_text))], object)}
    folder = root / f"{FOLDER}-{videos}-{captions}"
    found = {}
    for expert, (width, rate) in EXPERTS.items():
        counts = np.maximum(1, (lengths * rate).astype(int))
        if expert in FLAKY:
            counts[number % 3 == FLAKY.index(expert)] = 0
        there = np.maximum(counts, 1)  # one row, absent
        video = np.repeat(number, there)
        k = np.arange(len(video)) - np.repeat(np.cumsum(there) - there, there)
        rows = _rows(video, np.full(len(video), -1), k, k / rate, (k + 1) / rate)
        arrays = {"vector": ((width,), "float16")}
        found[expert] = _make(folder / f"{expert}.zarr", arrays, rows, clips, texts, names, counts[video] > 0)
    k = np.tile(np.arange(captions), videos)
    rows = _rows(of_text, of_text, k, np.zeros(len(k)), np.full(len(k), np.nan))
    arrays = {"tokens": ((TOKENS, WIDTH), "float16"), "n_tokens": ((), "int32")}
    there = np.ones(len(k), bool)
    return {"text": _make(folder / "text.zarr", arrays, rows, clips, texts, names, there), **found}


def _rows(video, clip, k, start, stop) -> dict[str, np.ndarray]:
    found = {"video": video, "clip": clip, "k": k}
    found = {name: np.asarray(column, np.int32) for name, column in found.items()}
    return found | {"draw": np.zeros(len(k), np.int16), "start_s": start, "stop_s": stop}


def _make(path: Path, arrays: dict, rows: dict, clips: dict, texts: dict, names, there: np.ndarray) -> Path:
    from tqdm import tqdm

    from stores import ABSENT, OK, PENDING, ArraySpec, Manifest, create_store, plan_layout

    specs = {name: ArraySpec(shape, dtype) for name, (shape, dtype) in arrays.items()}
    manifest = Manifest(
        arrays=specs,
        layout=plan_layout(specs, 1024, batch_size=64),
        recipe={"network": {"name": path.stem}, "weights": "values of a random generator"},
        spec={"name": path.stem},
        dataset={"name": FOLDER},
    )
    store = create_store(path, manifest, rows, clips, {"name": names, "path": names}, texts=texts)
    status = store.status()
    todo = [unit for unit in store.units if (status[unit.start : unit.stop] == PENDING).any()]
    for unit in tqdm(todo, desc=path.stem, disable=not todo, mininterval=10):
        rng = np.random.default_rng([unit.index, len(path.stem)])
        values = {name: _values(rng, name, (len(unit), *spec.row_shape)) for name, spec in specs.items()}
        if "tokens" in values:  # beyond its words a caption's tokens are zeros
            values["tokens"][np.arange(TOKENS) >= values["n_tokens"][:, None]] = 0
        mine = np.where(there[unit.start : unit.stop], OK, ABSENT).astype(np.uint8)
        store.commit(unit, values, mine, verify=False)
    return path


def _values(rng, name: str, shape: tuple) -> np.ndarray:
    if name == "n_tokens":
        return rng.integers(6, 20, shape).astype(np.int32)
    return np.maximum(rng.standard_normal(shape, np.float32), 0).astype(np.float16)


# --- the two trainings ---


def worker(pipe, paths: dict, in_memory: bool, batch_size: int, threads: int) -> None:
    """Answers (whether to train, steps) with seconds; the next batches of the epochs each time."""
    import torch

    from heads import get_head
    from pipelines.devices import to_device
    from pipelines.ranger import Ranger
    from pipelines.retrieval_clips import CachedTokens, Captions, Pairs
    from pipelines.retrieval_model import RetrievalModel
    from pipelines.retrieval_training import KEEP_BYTES, RetrievalSchedule, RetrievalTask
    from stores import open_store, prefetch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    schedule = RetrievalSchedule(batch_size=batch_size)
    stores = {role: open_store(path) for role, path in paths.items()}
    if in_memory:
        arrays = {role: ("tokens", "n_tokens") if role == "text" else ("vector",) for role in stores}
        stores = {role: InMemory(store, arrays[role]) for role, store in stores.items()}
    else:
        evict(paths.values())
    shapes = {role: {name: spec.row_shape for name, spec in s.manifest.arrays.items()} for role, s in stores.items()}
    head_class = get_head("t2vlad")
    model = RetrievalModel(head_class(head_class.Config(**head_class.dims(shapes))))
    kept, started = 0 if in_memory else KEEP_BYTES, time.perf_counter()
    captions = Captions.of(stores["text"])
    text = CachedTokens(stores["text"], captions, False, kept)
    experts = {role: store for role, store in stores.items() if role != "text"}
    pairs = Pairs(experts, captions, text, "train", pick="random", keep_bytes=kept)
    task = RetrievalTask(None, model, schedule, pairs, None, 0, "cpu")
    optimiser = Ranger(model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)

    class Reader:
        @staticmethod
        def batch(items):
            return task.batch(items, 0)

    def step(arrays) -> None:
        loss = task.loss(to_device(arrays, "cpu"))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    batches = (batch for epoch in range(10**6) for batch in task.batches(epoch))
    model.train()
    step(Reader.batch(next(batches)))  # libraries, handles, momentum
    pipe.send(time.perf_counter() - started)
    while (wanted := pipe.recv()) is not None:
        training, steps = wanted
        now = [next(batches) for _ in range(steps)]
        if not in_memory:
            evict(paths.values())
        started = time.perf_counter()
        for arrays in prefetch(Reader, now, schedule.workers, schedule.ahead):
            if training:
                step(arrays)
        pipe.send(time.perf_counter() - started)


def measure(paths: dict, args) -> tuple[float, float]:
    """(ratio of samples a second with the head's steps, of the input alone)."""
    spawn = multiprocessing.get_context("spawn")
    sides = {}
    for name in ("stores", "memory"):
        ours, theirs = spawn.Pipe()
        arguments = (theirs, paths, name == "memory", args.batch_size, args.threads)
        process = spawn.Process(target=worker, args=arguments, daemon=True)
        process.start()
        theirs.close()
        sides[name] = ours, process
        print(f"{name}: ready, {ours.recv():.1f} s to open, keep what is small, and take a first step", flush=True)

    def samples(name: str, training: bool, steps: int) -> float:
        pipe, _ = sides[name]
        pipe.send((training, steps))
        return steps * args.batch_size / pipe.recv()

    ratios = []
    for what, training, steps in (("training", True, args.steps), ("the input alone", False, 4 * args.steps)):
        print(f"{what}, {steps} steps a turn:", flush=True)
        conditions = {name: lambda name=name: samples(name, training, steps) for name in sides}  # noqa: B023  called now
        found = interleave(conditions, args.turns, unit="samples/s")
        ratios.append(paired_ratio(found["stores"], found["memory"]))
        typical = {name: statistics.median(values) for name, values in found.items()}
        print(f"{what}: {typical['stores']:.1f} samples/s from stores, {typical['memory']:.1f} from memory,"
              f" ratio {ratios[-1]:.3f}", flush=True)  # fmt: skip
    for pipe, process in sides.values():
        pipe.send(None)
        process.join()
    return ratios[0], ratios[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="folder for the stores, which are kept [temporary]")
    parser.add_argument("--videos", type=int, default=VIDEOS)
    parser.add_argument("--captions", type=int, default=2, help="a video; a step reads one of each video")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of the training itself")
    args = parser.parse_args()
    print_machine()
    with work_folder(args.root) as root:
        paths = make_stores(root, args.videos, args.captions)
        stored = sum(file.stat().st_size for path in paths.values() for file in path.rglob("*") if file.is_file())
        print(f"{args.videos:,} videos, {len(EXPERTS)} experts: {stored / 1e9:.2f} GB stored", flush=True)
        ratio, alone = measure(paths, args)
    print(f"the input alone: {alone:.3f} of the speed from memory (for information)")
    what = f"training from stores has {ratio:.3f} of the samples a second from memory, at least {LEAST_RATIO}"
    return verdict([(ratio >= LEAST_RATIO, what)])


if __name__ == "__main__":
    sys.exit(main())
