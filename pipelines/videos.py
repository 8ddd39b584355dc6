"""The videos of one job: opened by decode threads, probed once, and compared with what the store knows of them."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from extract.audio import AudioSource, open_audio
from extract.decode import FrameSource, VideoError, open_source, stat_video
from pipelines.planning import Job
from stores import OK, Store

WAITING = ("growing", "missing")  # a video that may be usable later: its rows stay pending


@dataclass(frozen=True)
class Opened:
    """A video's frames or sound, or (reason code, line) why its rows fail, or neither: they stay pending."""

    source: FrameSource | AudioSource | None = None
    failure: tuple[str, str] | None = None
    size: tuple[int, int] | None = None  # (width, height) of the frames
    usable: bool = False


class Videos:
    """Frame sources by the store's video number. Each thread keeps the source it used last: units go forward."""

    def __init__(self, job: Job, store: Store, threads: int):
        self.job = job
        self.store = store
        self.threads = threads
        self.changed: list[str] = []
        self._lock = threading.Lock()
        self._mine = threading.local()
        self._paths = {name: job.dataset.video_path(i) for i, name in enumerate(job.dataset.videos["name"])}
        self._grids = {name: job.dataset.grid_fps_of(i) for i, name in enumerate(job.dataset.videos["name"])}

    def open(self, video: int) -> Opened:
        """The video, probed and recorded in the store if this is the first time that any process sees it."""
        if getattr(self._mine, "video", None) == video:
            return self._mine.opened
        if getattr(self._mine, "video", None) is not None and self._mine.opened.source is not None:
            self._mine.opened.source.close()
        self._mine.video, self._mine.opened = video, self._open(video)
        return self._mine.opened

    def _open(self, video: int) -> Opened:
        job = self.job
        try:
            probe = self.probed(video)
            if probe is None:
                return Opened()
            if not job.needs_videos:
                return Opened(size=(probe["width"], probe["height"]), usable=True)
            name = self.store.videos["name"][video]
            path = self._paths[name]
            if job.spec.reads == "waveform":
                return Opened(open_audio(path, round(job.spec.fps)), usable=True)
            source = open_source(
                path, decoder=job.request.decoder, grid_fps=self._grids[name], reads=job.reads, threads=self.threads
            )
            return Opened(source, size=(source.width, source.height), usable=True)
        except VideoError as error:
            return Opened() if error.reason in WAITING else Opened(failure=(error.reason, str(error)))

    def probed(self, video: int) -> dict | None:
        """The video's probe, recorded in the store if this is the first time that any process sees it.

        None: its rows stay as they are, because its content is not what it was, or there is no flow of it.
        Raises `VideoError`: it cannot be read.
        """
        name, job = self.store.videos["name"][video], self.job
        if job.needs_videos:
            found = job.probe_cache.get(self._paths[name], grid_fps=self._grids[name], reads=job.reads)
            return self.store.probe(name) if self._record(name, video, found) else None
        probe = job.flow.store.probe(name)  # what the store of flow images knows of the video is all that is needed
        if probe is not None:
            with self._lock:
                if self.store.probe(name) is None:
                    geometry = self.job.geometry(probe["width"], probe["height"])
                    self.store.write_probe(name, {**probe, "geometry": geometry})
        return probe

    def _record(self, name: str, video: int, found) -> bool:
        """Write the probe, or compare it with the one there; False if the video's content is not what it was."""
        with self._lock:
            known = self.store.probe(name)
            if known is not None and known["content_hash"] == found.content_hash:
                return True
            if known is not None and (self.store.status()[self.store.rows["video"] == video] == OK).any():
                if name not in self.changed:
                    self.changed.append(name)
                return False
            # Seen for the first time, or nothing came of the file that was here before.
            geometry = self.job.geometry(found.width, found.height)
            self.store.write_probe(name, {**found.to_json(), "geometry": geometry}, replace=known is not None)
            return True


def changed_videos(job: Job, store: Store) -> list[str]:
    """Videos on disk that are no longer the files their computed rows came from, by size, time, then content.

    Frame folders are compared when one of their units is computed: only listing them all would tell.
    """
    changed = []
    if not job.needs_videos:
        return changed
    computed = np.unique(store.rows["video"][store.ok])
    paths = {name: job.dataset.video_path(i) for i, name in enumerate(job.dataset.videos["name"])}
    grids = {name: job.dataset.grid_fps_of(i) for i, name in enumerate(job.dataset.videos["name"])}
    for video in computed.tolist():
        name = store.videos["name"][video]
        path, known = paths.get(name), store.probe(video)
        if path is None or known is None or known["kind"] == "frames":
            continue
        try:
            stat = stat_video(path)
            same = (known["size_bytes"], known["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns)
            if (
                same
                or job.probe_cache.get(path, grid_fps=grids[name], reads=job.reads).content_hash
                == known["content_hash"]
            ):
                continue
        except VideoError as error:
            if error.reason in WAITING:
                continue
        changed.append(name)
    return changed
