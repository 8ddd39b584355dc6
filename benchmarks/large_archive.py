"""A lab's archive: 10 million rows of a 1,024-vector, sealed. Opening, `info`, random batches, memory.

    python benchmarks/large_archive.py [--root /some/disk] [--rows 10000000]

Only the first unit is computed; the files of the others are hard links to its own, so that the archive takes 8 MiB of
disk and looks whole to every reader. Each figure is measured in a process of its own. Fails (exit 1) when opening takes
1 s, `info` 5 s, a warm batch of 256 random rows 50 ms, or memory 300 MiB.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from machine import print_machine
from measuring import verdict, work_folder

from stores import OK, ArraySpec, Manifest, create_store, plan_layout

CHANNELS, UNIT_ROWS, VIDEOS, BATCH = 1024, 4096, 10_000, 256

READER = """
import json, re, sys, time
begin = time.perf_counter()
from stores import info, open_store
imported = time.perf_counter() - begin
import numpy as np
path, action = sys.argv[1:]
begin = time.perf_counter()
store = open_store(path)
store.read("vector", [0])
opened = time.perf_counter() - begin
found = {"import_s": imported, "open_s": opened}
if action == "info":
    begin = time.perf_counter()
    facts = info(path)
    found |= {"info_s": time.perf_counter() - begin, "rows": facts["rows"]["ok"]}
if action == "batch":
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(store), 256) for _ in range(30)]
    for rows in draws[:5]:
        store.read("vector", rows)
    times = []
    for rows in draws:
        begin = time.perf_counter()
        store.read("vector", rows)
        times.append(time.perf_counter() - begin)
    found["batch_ms"] = 1000 * float(np.median(times))
found["torch"] = "torch" in sys.modules
# not ru_maxrss, which a process inherits from the one that started it
found["peak_MiB"] = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps(found))
"""


def make_archive(path: Path, n: int) -> None:
    arrays = {"vector": ArraySpec((CHANNELS,), "float16")}
    index = np.arange(n, dtype=np.int32)
    per_video = -(-n // VIDEOS)
    rows = {"video": index // per_video, "clip": np.full(n, -1, np.int32), "k": index % per_video}
    rows |= {"draw": np.zeros(n, np.int16), "start_s": index % per_video * 1.0}
    rows["stop_s"] = rows["start_s"] + 1
    videos = {"name": np.array([f"v{i}" for i in range(VIDEOS)], object)}
    videos["path"] = np.array([f"v{i}.mp4" for i in range(VIDEOS)], object)
    none = np.empty(0, np.int32)
    clips = {"id": np.empty(0, object), "video": none, "start_s": np.empty(0), "stop_s": np.empty(0)}
    layout = plan_layout(arrays, UNIT_ROWS, unit_rows=UNIT_ROWS, batch_size=64)
    manifest = Manifest(arrays, layout, {"network": {"name": "benchmark"}})
    store = create_store(path, manifest, rows, clips, videos)
    values = np.maximum(np.random.default_rng(0).normal(size=(UNIT_ROWS, CHANNELS)), 0.001).astype(np.float16)
    units = store.units
    for unit in (units[0], units[-1]):
        store.commit(unit, {"vector": values[: len(unit)]}, np.full(len(unit), OK, np.uint8))
    for unit in units[1:-1]:
        for first in [
            p for name in ("data/vector", "data/n_padded", "rows/status") for p in (path / name).glob("c.0*")
        ]:
            key = first.name.replace("c.0", f"c.{unit.index}", 1)
            if not (first.parent / key).exists():
                os.link(first, first.parent / key)
    begin = time.perf_counter()
    store.seal()
    print(f"sealed (every byte read twice) in {time.perf_counter() - begin:.0f} s", flush=True)


def measured(path: Path, action: str) -> dict:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", READER, str(path), action], cwd=root, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="where the archive is made and kept [a temporary folder]")
    parser.add_argument("--rows", type=int, default=10_000_000)
    arguments = parser.parse_args()
    print_machine()
    with work_folder(arguments.root) as folder:
        path = folder / f"archive-{arguments.rows}.zarr"
        if not path.exists():
            make_archive(path, arguments.rows)
        found = {action: measured(path, action) for action in ("open", "info", "batch")}
    for action, figures in found.items():
        print(
            f"{action:6} "
            + ", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
        )
    peak = max(figures["peak_MiB"] for figures in found.values())
    return verdict(
        [
            (found["open"]["open_s"] < 1, f"opens, first row read, in {found['open']['open_s']:.2f} s"),
            (found["info"]["info_s"] < 5, f"info in {found['info']['info_s']:.2f} s"),
            (
                found["batch"]["batch_ms"] < 50,
                f"a batch of {BATCH} random rows in {found['batch']['batch_ms']:.1f} ms, warm",
            ),
            (peak < 300, f"at most {peak:.0f} MiB resident"),
            (not any(figures["torch"] for figures in found.values()), "no torch"),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
