"""What is known of a video file, found once: probes cached by path, size and modification time."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from extract.cores import usable_cores
from extract.decode import Probe, VideoError, probe, stat_video
from stores import write_durable


class ProbeCache:
    """Full probes (one pass over a file, with its content hash), kept in a folder beside the stores.

    Any number of processes may share it: an entry is one durable file, named by the hash of the video's
    path and of how it is read, and valid only while the video's size and modification time are the same.
    """

    def __init__(self, root: Path):
        self.root = Path(root)
        self._here: dict[tuple, Probe] = {}  # of this process: folders are listed once, not at every look

    def get(self, path: Path, *, grid_fps: float | None = None, reads: str = "rgb") -> Probe:
        """The probe of a video; raises `extract.decode.VideoError`."""
        key = (str(Path(path).resolve()), grid_fps, reads)
        entry = self.root / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.json"
        stat = stat_video(path)
        if key in self._here and (self._here[key].kind == "frames" or _same_file(self._here[key], stat)):
            return self._here[key]
        found = _read(entry)
        if found is None or found.kind == "frames" or not _same_file(found, stat):
            found = probe(path, grid_fps=grid_fps, reads=reads)
            write_durable(entry, json.dumps(found.to_json(), sort_keys=True).encode())
        self._here[key] = found
        return found

    def get_many(
        self,
        paths: Sequence[Path],
        *,
        grid_fps: Sequence[float | None],
        reads: str = "rgb",
        progress: Callable[[int, int], None] | None = None,
        stop: threading.Event | None = None,
    ) -> list[Probe | VideoError]:
        """Probes of many videos in parallel, in their order; a video that cannot be read gives its error.

        grid_fps: one for each path.
        stop: when set, no further video is begun, and the list ends early.
        """

        def one(path: Path, fps: float | None) -> Probe | VideoError | None:
            if stop is not None and stop.is_set():
                return None
            try:
                return self.get(path, grid_fps=fps, reads=reads)
            except VideoError as error:
                return error

        results = []
        with ThreadPoolExecutor(min(8, usable_cores())) as pool:
            for found in pool.map(one, paths, grid_fps):
                if found is None:
                    break
                results.append(found)
                if progress is not None:
                    progress(len(results), len(paths))
        return results


def _read(entry: Path) -> Probe | None:
    try:
        return Probe.from_json(json.loads(entry.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):  # not there, not to be read, of an older layout: probe again
        return None


def _same_file(known: Probe, stat: os.stat_result) -> bool:
    """A folder's own size and time say little of its files, so folders are probed anew by each process."""
    return (known.size_bytes, known.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
