"""Frames of a video by index and by instant: the one face of files, frame folders and tars of frames.

Frame k is the k-th frame the decoder outputs; times are seconds from the video's first frame; pixels are
RGB24 in display orientation, scaled by swscale with the fixed flags of `pixels.py`. `DECODE_RULE` is
part of every recipe: it is raised only when the same file would give other frames or other pixels.

    probe(path)                what is in there: rate, count, duration, size, content hash
    quick_probe(path)          the same from the header alone, for planning
    open_source(path)          a FrameSource: at(instants) -> frame indices, read(indices, resize) -> frames
"""

import dataclasses
import hashlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError
from extract.transforms import Resize

__all__ = [
    "DECODERS",
    "DECODE_RULE",
    "FrameError",
    "FrameSource",
    "Probe",
    "VideoError",
    "open_source",
    "probe",
    "quick_probe",
    "stat_video",
]

DECODE_RULE = 1
DECODERS = ("pyav", "decord")
TOLERANCE_S = 0.0005  # a frame counts as shown this much early: containers round times to a millisecond
GROWING_S = 5.0  # an unreadable file that changed this recently is taken to be still being copied


class VideoError(Exception):
    """A video that cannot be used. `reason` is a short code, the message one line naming the file.

    Codes: missing, empty, not_video (no video stream, or no video at all), truncated, growing (still
    being copied: try later), damaged, unreadable (the operating system refused).
    """

    def __init__(self, reason: str, message: str):
        super().__init__(" ".join(str(message).split()))
        self.reason = reason


class FrameError(VideoError):
    """One frame that cannot be had; yielded by `FrameSource.read` in place of its pixels.

    Codes: damaged (the frame, or one that it is predicted from), missing (a hole in a frame folder).
    """


@dataclass(frozen=True)
class Probe:
    """What a video is. Sizes in pixels in display orientation, times in seconds from the first frame.

    kind          "file", "frames" (folder of images) or "tar" (of images)
    duration_s    time of the last frame plus how long it is shown
    times         where times come from: "container", "counted" (k / fps, the container's cannot be
                  trusted) or "grid" (frame folders: the numbers in the file names)
    content_hash  "sha256:" and hex digits: of the whole file (file, tar), or of names, sizes and some
                  files (folder: see `frame_folders.content_hash`)
    """

    kind: str
    fps: float
    n_frames: int
    duration_s: float
    width: int
    height: int
    content_hash: str
    times: str
    size_bytes: int
    mtime_ns: int

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict) -> "Probe":
        return cls(**{f.name: data[f.name] for f in dataclasses.fields(cls)})


class FrameSource(ABC):
    """An open video. Use it from one thread; it is a context manager.

    Attributes: path, kind, times, fps, n_frames, duration_s, width, height, as in `Probe`; `duration` is the
    same as duration_s.
    """

    path: str
    kind: str
    times: str
    fps: float
    n_frames: int
    duration_s: float
    width: int
    height: int

    @property
    def duration(self) -> float:
        return self.duration_s

    @abstractmethod
    def at(self, instants: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The frames shown at `instants` (any shape, float64 seconds from the first frame).

        Returns (indices int64 in [0, n_frames), outside bool), of the same shape. The frame shown at t
        is the last one whose time is <= t + 0.5 ms; t is outside when it is more than 0.5 ms before the
        first frame, or when the video has ended by t + 0.5 ms; its index is then the nearest frame's.
        Frame folders: index = round(t * grid_fps), outside when there is no such index.
        """

    @abstractmethod
    def read(
        self, indices: np.ndarray, resize: Resize | None = None
    ) -> Iterator[tuple[int, "np.ndarray | FrameError"]]:
        """Yield (index, frame) for every one of `indices`: ascending, without repeats.

        A frame is uint8 (h, w, 3) RGB, or (h, w, 2) for flow (u, then v), of the size that `resize`
        makes of the video's size; a FrameError stands for one that cannot be had. Moves forward only;
        a later call with later indices goes on without seeking. Raises ValueError for other indices.
        """

    def seeks(self, indices: np.ndarray) -> np.ndarray:
        """Which of ascending `indices` (n,) `read` goes to by a seek, bool (n,), False of the first.

        What comes before such a frame and what comes after can be read by two sources at the same time, and
        nothing is decoded twice.
        """
        return np.zeros(len(indices), bool)

    @abstractmethod
    def close(self) -> None:
        """Let go of files and decoder; reading afterwards opens them again."""

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def _ascending(self, indices) -> list[int]:
        picked = np.asarray(indices, np.int64).reshape(-1)
        if len(picked) and (picked[0] < 0 or picked[-1] >= self.n_frames or np.any(np.diff(picked) <= 0)):
            raise ValueError(
                f"{self.path}: frame indices must ascend without repeats within [0, {self.n_frames}), "
                f"got {picked[:3].tolist()} .. {picked[-3:].tolist()}"
            )
        return picked.tolist()


def probe(path, *, grid_fps: float | None = None, reads: str = "rgb") -> Probe:
    """Everything the store keeps about a video; reads the file once for the index and once for the hash.

    path      a video file, a folder of frames, or a .tar of frames
    grid_fps  folders and tars: frames a second of the numbering, e.g. 60 for EPIC-KITCHENS-55
    reads     "rgb" or "flow" (folders and tars with u/ and v/)
    Raises VideoError; UserError when grid_fps is needed and not given.
    """
    kind = _kind(path)
    before = stat_video(path)
    with open_source(path, grid_fps=grid_fps, reads=reads, threads=1) as source:
        digest = source.content_hash()
        result = Probe(
            kind, source.fps, source.n_frames, source.duration_s, source.width, source.height,
            digest, source.times, source.size_bytes, before.st_mtime_ns,
        )  # fmt: skip
    after = stat_video(path)
    if kind != "frames" and (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise VideoError("growing", f"{path}: changed while it was read; it is still being copied")
    return result


def quick_probe(path, *, grid_fps: float | None = None, reads: str = "rgb") -> tuple[float, float | None, int, int]:
    """(fps, duration in seconds or None, width, height) from the header and the first frame. Raises VideoError."""
    if _kind(path) == "file":
        from extract.video_files import read_header

        return read_header(path)
    with open_source(path, grid_fps=grid_fps, reads=reads) as source:
        return source.fps, source.duration_s, source.width, source.height


def open_source(
    path, *, decoder: str = "pyav", grid_fps: float | None = None, reads: str = "rgb", threads: int | None = None
) -> FrameSource:
    """Open a video file, a folder of frames or a .tar of frames for reading.

    decoder   "pyav", or "decord" (video files only; refused where it cannot pick the same frames)
    grid_fps  folders and tars: frames a second of the numbering; ignored for files
    reads     "rgb" or "flow" (folders and tars only)
    threads   decoding threads, default min(4, cores)
    Raises VideoError for a video that cannot be used, UserError for wrong use.
    """
    if decoder not in DECODERS:
        raise UserError(f"unknown decoder {decoder!r}: choose one of {', '.join(DECODERS)}")
    if reads not in ("rgb", "flow"):
        raise UserError(f"frames can be read as 'rgb' or 'flow', not as {reads!r}")
    kind = _kind(path)
    if kind != "file":
        if decoder != "pyav":
            raise UserError(f"{path}: decoder {decoder!r} reads video files only, this is a {kind} source")
        if not grid_fps or grid_fps <= 0:
            raise UserError(
                f"{path}: a folder or tar of frames has no clock of its own; give the rate of its numbering "
                "(grid_fps; 60 for EPIC-KITCHENS-55)"
            )
        from extract.frame_folders import FrameFolder

        return FrameFolder(path, kind, float(grid_fps), reads)
    if reads == "flow":
        raise UserError(
            f"{path}: flow is read from folders or tars of published u/ and v/ images, not from a video file"
        )
    if decoder == "decord":
        from extract.decord_source import DecordFile

        return DecordFile(path, threads)
    from extract.video_files import VideoFile

    return VideoFile(path, threads)


def _kind(path) -> str:
    path = Path(path)
    if path.is_dir():
        return "frames"
    return "tar" if path.suffix.lower() == ".tar" else "file"


def stat_video(path) -> os.stat_result:
    """stat of a readable file that is not empty, or of a folder; VideoError (missing, unreadable, empty) if not."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise VideoError("missing", f"{path}: no such file") from None
    except OSError as e:
        raise VideoError("unreadable", f"{path}: {e.strerror or e}") from e
    if found.st_size == 0 and not os.path.isdir(path):
        raise VideoError("empty", f"{path}: the file is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise VideoError("unreadable", f"{path}: permission denied")
    return found


def growing_or(path, reason: str, message: str) -> VideoError:
    """The error for an unreadable file: `reason`, unless it changed so recently that it may be growing."""
    try:
        age = time.time() - os.stat(path).st_mtime
    except OSError:
        age = GROWING_S
    if 0 <= age < GROWING_S:
        return VideoError(
            "growing", f"{path}: {message}, but it changed {age:.0f} s ago: still being copied? Try again later"
        )
    return VideoError(reason, f"{path}: {message}")


def hash_file(path) -> str:
    """ "sha256:..." of a whole file."""
    try:
        with open(path, "rb") as f:
            return "sha256:" + hashlib.file_digest(f, "sha256").hexdigest()
    except OSError as e:
        raise VideoError("unreadable", f"{path}: {e.strerror or e}") from e
