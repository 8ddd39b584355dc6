"""What is known of a video file, found once: probes cached by path, size and modification time."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from extract.decode import Probe, VideoError, probe
from stores import write_durable

FOLDER = ".probes"


class ProbeCache:
    """Full probes (one pass over a file, with its content hash), kept in a folder beside the stores.

    Any number of processes may share it: an entry is one durable file, named by the hash of the video's
    path and of how it is read, and valid only while the video's size and modification time are the same.
    """

    def __init__(self, root: Path):
        self.root = Path(root)

    def get(self, path: Path, *, grid_fps: float | None = None, reads: str = "rgb") -> Probe:
        """The probe of a video; raises `extract.decode.VideoError`."""
        key = hashlib.sha256(repr((str(Path(path).resolve()), grid_fps, reads)).encode()).hexdigest()[:32]
        entry = self.root / f"{key}.json"
        known = _read(entry)
        if known is not None and _unchanged(known, path):
            return known
        found = probe(path, grid_fps=grid_fps, reads=reads)
        self.root.mkdir(parents=True, exist_ok=True)
        write_durable(entry, json.dumps(found.to_json(), sort_keys=True).encode())
        return found

    def get_many(
        self,
        paths: Sequence[Path],
        *,
        grid_fps=None,
        reads="rgb",
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Probe | VideoError]:
        """Probes of many videos in parallel, in their order; a video that cannot be read gives its error."""

        def one(path: Path) -> Probe | VideoError:
            try:
                return self.get(path, grid_fps=grid_fps, reads=reads)
            except VideoError as error:
                return error

        results = []
        with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
            for found in pool.map(one, paths):
                results.append(found)
                if progress is not None:
                    progress(len(results), len(paths))
        return results


def _read(entry: Path) -> Probe | None:
    try:
        return Probe.from_json(json.loads(entry.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # an older layout of the cache: probe again
        return None


def _unchanged(known: Probe, path: Path) -> bool:
    """A folder's own size and time say little of its files, so folders are probed anew by each process."""
    stat = os.stat(path)
    return known.kind != "frames" and (known.size_bytes, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
