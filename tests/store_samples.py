"""Small stores with known values, for the tests of the store; also a script: a worker that can be killed."""

import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np

from stores import OK, PENDING, ArraySpec, Manifest, Store, create_store, open_store, plan_layout

ARRAYS = {
    "spatial": ArraySpec((4, 4, 2048), "float16"),  # one row a chunk
    "vector": ArraySpec((7,), "float16"),
    "boxes": ArraySpec((3, 4), "float32"),
    "times": ArraySpec((), "float64"),
    "classes": ArraySpec((3,), "int32"),
    "text": ArraySpec((16,), "uint8"),
}
VIDEOS = {
    "name": np.array(["P01_01", "a/b ü", ".."], object),
    "path": np.array(["P01_01.mp4", "", "x.mp4"], object),
}


def sent_to_a_worker(thing):
    """What a spawned DataLoader worker gets of an object: multiprocessing itself sends it so."""
    return ForkingPickler.loads(ForkingPickler.dumps(thing))


def sample_rows(n: int) -> dict[str, np.ndarray]:
    """n one-second rows, spread evenly over the three videos."""
    video = (np.arange(n) * 3 // max(n, 1)).astype(np.int32)
    start = np.arange(n) - np.searchsorted(video, video).astype(np.float64)
    index = np.arange(n, dtype=np.int32)
    zero = np.zeros(n, np.int32)
    draw = zero.astype(np.int16)
    return {"video": video, "clip": index, "k": zero, "draw": draw, "start_s": start, "stop_s": start + 1}


def sample_clips(n: int) -> dict[str, np.ndarray]:
    rows = sample_rows(n)
    return {
        "id": np.array([f"clip {i} é" for i in range(n)], object),
        "video": rows["video"],
        "start_s": rows["start_s"],
        "stop_s": rows["stop_s"],
        "verb": np.arange(n, dtype=np.int32) % 5,
        "split": np.array(["train" if i % 2 else "" for i in range(n)], object),
    }


def new_store(path, n: int = 7, unit_rows: int = 4, arrays=None, recipe=None) -> Store:
    arrays = arrays or ARRAYS
    layout = plan_layout(arrays, 64, batch_size=2, unit_rows=unit_rows)
    manifest = Manifest(arrays, layout, recipe or {"network": {"name": "test"}, "dtype": "float16"})
    return create_store(path, manifest, sample_rows(n), sample_clips(n), VIDEOS)


def values(store: Store, rows, salt: int = 0) -> dict[str, np.ndarray]:
    """What each of these rows holds: any process computes the same."""
    out = {}
    for name, spec in store.manifest.arrays.items():
        integer = np.dtype(spec.dtype).kind != "f"
        draws = [np.random.default_rng([int(row), salt]).random(spec.row_shape) for row in rows]
        out[name] = np.array([(draw * 100).astype(np.int32) + 1 if integer else draw for draw in draws])
        if not integer:
            out[name] = out[name].astype(np.float32 if spec.dtype == "float16" else spec.dtype)
        elif name == "n_padded":
            out[name] = np.array([int(row) % 3 for row in rows])
    return out


def fill(store: Store, units=None, failed=(), salt: int = 0) -> None:
    """Commits the units as they should be; `failed`: rows that fail."""
    for unit in store.units if units is None else units:
        rows = np.arange(unit.start, unit.stop)
        status = np.where(np.isin(rows, failed), 2, OK)
        why = {int(row): ("damaged", "line one\nline two") for row in rows if row in failed}
        store.commit(unit, values(store, rows, salt), status, why)


def same_tree(one: Path, other: Path) -> list[str]:
    """Names of the files in which two stores differ, provenance/ apart."""

    def files(root):
        names = {path.relative_to(root).as_posix() for path in Path(root).rglob("*") if path.is_file()}
        return {n for n in names if not n.startswith("provenance/")}

    first, second = files(one), files(other)
    common = {n for n in first & second if (one / n).read_bytes() != (other / n).read_bytes()}
    return sorted((first ^ second) | common)


def work(path: str, n: int, arrays=None) -> None:
    """What an extraction does to a store: create, probe, commit, seal."""
    store = new_store(path, n, unit_rows=2, arrays=arrays)
    for video in VIDEOS["name"]:
        store.write_probe(video, {"fps": 25.0, "n_frames": 100, "geometry": [7.0, 7.0, -0.5, 0.0]})
    fill(store, [unit for unit in store.units if (store.status(unit) == PENDING).any()], failed=(3,))
    store.write_provenance("run 1", {"host": "here"})
    if not open_store(path).sealed:
        store.seal()


if __name__ == "__main__":
    print("ready", flush=True)
    work(sys.argv[1], int(sys.argv[2]))
