"""Random batched reads of a store against what it stands on and what labs use instead, side by side.

    python benchmarks/store_io.py [--root /some/disk] [--rows 2000] [--batches 5] [--repeats 15]

Rows of 131 KiB (8 x 8 x 1024 float16, half of them zero, as after a ReLU) in each form: our Zarr store, tensorstore
and zarr-python on the same shards, our HDF5 store, plain h5py on the same file, .npy files, one memmap, LMDB and
webdataset (`pip install lmdb webdataset`; left out, saying so, without). Batches of 32 random rows; the forms take
turns, so that a busy machine slows all of them; cold: the page cache of the files is dropped before every turn. Fails
(exit 1) below 0.9 of tensorstore, 15 times zarr-python, or 0.9 of h5py.
"""

import argparse
import itertools
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import print_machine
from measuring import evict, files_below, interleave, paired_ratio, verdict, work_folder

from stores import ArraySpec, Manifest, create_store, open_store, plan_layout
from stores.hdf5_pack import pack

SHAPE = (8, 8, 1024)
BATCH = 32
IN_ORDER = "webdataset, in order"
LEAST_OF_TENSORSTORE, LEAST_TIMES_ZARR, LEAST_OF_H5PY = 0.9, 15.0, 0.9

Read = Callable[[np.ndarray], np.ndarray]


def row_values(row: int) -> np.ndarray:
    """float16 (8, 8, 1024), half of it zero."""
    return np.maximum(np.random.default_rng(row).normal(size=SHAPE), 0).astype(np.float16)


def make_store(path: Path, n: int) -> None:
    arrays = {"spatial": ArraySpec(SHAPE, "float16")}
    index = np.arange(n, dtype=np.int32)
    rows = {"video": 0 * index, "clip": index, "k": 0 * index, "draw": (0 * index).astype(np.int16)}
    rows |= {"start_s": index.astype(float), "stop_s": index + 1.0}
    clips = {"id": np.array([str(i) for i in index], object), "video": 0 * index}
    clips |= {"start_s": rows["start_s"], "stop_s": rows["stop_s"]}
    videos = {"name": np.array(["v"], object), "path": np.array(["v.mp4"], object)}
    manifest = Manifest(arrays, plan_layout(arrays, 64, batch_size=4), {"network": {"name": "benchmark"}})
    store = create_store(path, manifest, rows, clips, videos)
    for unit in store.units:
        values = np.stack([row_values(row) for row in range(unit.start, unit.stop)])
        store.commit(unit, {"spatial": values}, np.ones(len(unit), np.uint8))
    store.seal()


def make_all(folder: Path, n: int) -> dict[str, tuple[Path, Read]]:
    """{form: (its files, rows -> values)}; made where they are not there yet."""
    ours, h5 = folder / "spatial.zarr", folder / "spatial.h5"
    if not ours.exists():
        make_store(ours, n)
    if not h5.exists():
        pack(ours, h5)
    npy, flat = folder / "npy", folder / "memmap.npy"
    if not flat.exists():
        npy.mkdir(exist_ok=True)
        whole = np.lib.format.open_memmap(folder / "part.npy", "w+", np.float16, (n, *SHAPE))
        for row in range(n):
            np.save(npy / f"{row}.npy", row_values(row))
            whole[row] = row_values(row)
        whole.flush()
        os.rename(folder / "part.npy", flat)
    forms = {
        "clipbank zarr": (ours, our_reader(ours)),
        "tensorstore": (ours, tensorstore_reader(ours)),
        "zarr-python": (ours, zarr_reader(ours)),
        "clipbank h5": (h5, our_reader(h5)),
        "h5py": (h5, h5py_reader(h5)),
        "npy files": (npy, lambda rows: np.stack([np.load(npy / f"{row}.npy") for row in rows])),
        "memmap": (flat, lambda rows: np.load(flat, mmap_mode="r")[rows]),
    }
    if find_spec("lmdb"):
        forms["lmdb"] = (folder / "lmdb", lmdb_reader(folder / "lmdb", n))
    else:
        print("lmdb is not installed: left out (pip install lmdb)")
    if find_spec("webdataset"):
        forms[IN_ORDER] = (folder / "webdataset.tar", webdataset_reader(folder / "webdataset.tar", n))
    else:
        print("webdataset is not installed: left out (pip install webdataset)")
    return forms


def our_reader(path: Path) -> Read:
    store = open_store(path)
    return lambda rows: store.read("spatial", rows)


def tensorstore_reader(path: Path) -> Read:
    import tensorstore as ts

    kvstore = {"driver": "file", "path": f"{path}/data/spatial/"}
    array = ts.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()
    return lambda rows: array.oindex[rows].read(order="C").result()


def zarr_reader(path: Path) -> Read:
    import zarr

    array = zarr.open_group(str(path), mode="r")["data/spatial"]
    return lambda rows: array.oindex[rows]


def h5py_reader(path: Path) -> Read:
    import h5py

    array = h5py.File(path)["data/spatial"]

    def read(rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), *SHAPE), np.float16)
        for i, row in enumerate(rows.tolist()):
            array.read_direct(out, np.s_[row], np.s_[i])
        return out

    return read


def lmdb_reader(path: Path, n: int) -> Read:
    import lmdb

    if not path.exists():
        with lmdb.open(str(path), map_size=1 << 40) as made, made.begin(write=True) as transaction:
            for row in range(n):
                transaction.put(f"{row:010d}".encode(), row_values(row).tobytes())
    opened = lmdb.open(str(path), readonly=True, lock=False, readahead=False)

    def read(rows: np.ndarray) -> np.ndarray:
        with opened.begin() as transaction:
            found = [transaction.get(f"{row:010d}".encode()) for row in rows.tolist()]
        return np.stack([np.frombuffer(value, np.float16).reshape(SHAPE) for value in found])

    return read


def webdataset_reader(path: Path, n: int) -> Read:
    """A shard is read in its own order, whatever rows are asked for: that is all webdataset can do."""
    import webdataset

    if not path.exists():
        part = path.with_suffix(".part")
        with webdataset.TarWriter(str(part)) as shard:
            for row in range(n):
                shard.write({"__key__": f"{row:010d}", "npy": row_values(row)})
        os.rename(part, path)

    def read(rows: np.ndarray) -> np.ndarray:
        samples = webdataset.WebDataset(str(path), shardshuffle=False).decode().to_tuple("npy")
        return np.stack([value for (value,) in itertools.islice(samples, len(rows))])

    return read


def measure(path: Path, read: Read, batches: list[np.ndarray], cold: bool) -> float:
    """MB a second of values."""
    if cold:
        evict([path])
    start = time.perf_counter()
    n_bytes = sum(read(rows).nbytes for rows in batches)
    return n_bytes / 1e6 / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="where the files are made and kept [a temporary folder]")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--batches", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    print_machine()
    with work_folder(arguments.root) as folder:
        forms = make_all(folder, arguments.rows)
        for name, (path, read) in forms.items():
            rows = np.array([5, 3, arguments.rows - 1])
            rows = np.arange(3) if name == IN_ORDER else np.sort(rows)
            assert np.array_equal(read(rows), np.stack([row_values(row) for row in rows])), name
            print(f"{name:20} {sum(file.stat().st_size for file in files_below(path)) / 1e6:8.1f} MB on disk")
        rng = np.random.default_rng(0)
        drawn = [np.sort(rng.choice(arguments.rows, BATCH, replace=False)) for _ in range(arguments.batches)]
        figures = {}
        for state in ("cold", "warm"):
            print(f"{state}, batches of {BATCH} random rows of {np.prod(SHAPE) * 2 / 1024:.0f} KiB:")
            turns = {
                name: lambda path=path, read=read, state=state: measure(path, read, drawn, state == "cold")
                for name, (path, read) in forms.items()
            }
            figures[state] = interleave(turns, arguments.repeats, unit="MB/s")
        warm = figures["warm"]
        of_tensorstore = paired_ratio(warm["clipbank zarr"], warm["tensorstore"])
        times_zarr = paired_ratio(warm["clipbank zarr"], warm["zarr-python"])
        of_h5py = paired_ratio(warm["clipbank h5"], warm["h5py"])
    return verdict(
        [
            (of_tensorstore >= LEAST_OF_TENSORSTORE, f"{of_tensorstore:.2f} of tensorstore's speed on the same shards"),
            (times_zarr >= LEAST_TIMES_ZARR, f"{times_zarr:.1f} times zarr-python's speed on the same shards"),
            (of_h5py >= LEAST_OF_H5PY, f"HDF5: {of_h5py:.2f} of plain h5py's speed on the same file"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
