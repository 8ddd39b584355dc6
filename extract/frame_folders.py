"""Frames kept as numbered images: a folder, or a .tar of one, as the EPIC-KITCHENS downloaders leave them.

    frame_0000000001.jpg ...          RGB: any prefix, any number of digits, jpg, jpeg or png
    u/frame_0000000001.jpg ..., v/... optical flow, one image per component

The numbers in the names are the clock (EPIC: ffmpeg -r 60): numbering starts at 1, or at 0 if there is a
number 0, and grid frame i (0-based) has number i + start. A number that is missing inside is a FrameError.
EPIC's published flow has one image for every second grid frame: grid frame i has flow image i // 2.

A tar is read in place by the offsets of its members; links, folders and names that point outside are
passed over. Images go through FFmpeg's decoders and the same swscale conversion as video files.
"""

import functools
import hashlib
import os
import re
import tarfile
from pathlib import Path

import av
import numpy as np

from extract.decode import TOLERANCE_S, FrameError, FrameSource, VideoError, growing_or, hash_file, stat_video
from extract.pixels import Converter, Orientation, orientation
from extract.transforms import Resize, plan_resize

__all__ = ["FLOW_STRIDE", "FrameFolder", "content_hash"]

FLOW_STRIDE = 2  # grid frames per published flow image
HASHED_FILES = 16  # files of a folder whose bytes enter its hash

_NAME = re.compile(r"\D*?(\d+)\.(jpe?g|png)", re.IGNORECASE)
_CODECS = {"jpg": "mjpeg", "jpeg": "mjpeg", "png": "png"}
_ENDS = {"mjpeg": b"\xff\xd9", "png": b"IEND"}  # FFmpeg fills up what is cut off, and does not say so
_Entry = tuple[str, int, int]  # name inside, offset, size in bytes (both -1 in a folder: not asked for yet)


class FrameFolder(FrameSource):
    """A folder or tar of numbered frames. For flow, fps and n_frames are those of the flow images."""

    times = "grid"

    def __init__(self, path, kind: str, grid_fps: float, reads: str):
        self.path, self.kind, self._grid_fps = os.fspath(path), kind, grid_fps
        stat_video(path)
        entries = _tar_entries(self.path) if kind == "tar" else _folder_entries(self.path, reads)
        self._stride = FLOW_STRIDE if reads == "flow" else 1
        self._parts = [_numbered(entries, folder) for folder in (("u", "v") if reads == "flow" else (None,))]
        if not all(self._parts):
            wanted = "u/ and v/ with images" if reads == "flow" else "images"
            raise VideoError("empty", f"{path}: no {wanted} numbered like frame_0000000001.jpg in it")
        numbers = [n for part in self._parts for n in (min(part), max(part))]
        self._first = 0 if min(numbers) == 0 else 1
        self.n_frames = max(numbers) - self._first + 1
        self.fps = grid_fps / self._stride
        self.duration_s = self.n_frames / self.fps
        self._file = None
        self._decoders: dict[str, av.CodecContext] = {}
        self.width, self.height, turn = self._first_image()
        self._convert = Converter(turn)

    def content_hash(self) -> str:
        return hash_file(self.path) if self.kind == "tar" else content_hash(self.path, self._parts, self._sizes)

    @property
    def size_bytes(self) -> int:
        if self.kind == "tar":
            return os.path.getsize(self.path)
        return sum(self._sizes.values())

    @functools.cached_property
    def _sizes(self) -> dict[str, int]:
        """name -> bytes of a folder's frames: one look at each file, which a network disk makes dear."""
        try:
            return {e[0]: os.stat(os.path.join(self.path, e[0])).st_size for p in self._parts for e in p.values()}
        except OSError as e:
            raise VideoError("unreadable", f"{self.path}: {e.filename}: {e.strerror or e}") from e

    def close(self):
        if self._file:
            self._file.close()
        self._file = None

    def at(self, instants):
        t = np.asarray(instants, np.float64)
        index = np.floor(t * self._grid_fps + 0.5).astype(np.int64) // self._stride
        outside = (index < 0) | (index >= self.n_frames) | (t < -TOLERANCE_S)
        return np.clip(index, 0, self.n_frames - 1), outside

    def read(self, indices, resize: Resize | None = None):
        place = plan_resize(resize or Resize(), self.width, self.height)
        for k in self._ascending(indices):
            try:
                if len(self._parts) == 1:
                    yield k, self._convert(self._decode(0, k), place)
                else:
                    yield k, np.stack([self._convert(self._decode(p, k), place, "gray") for p in (0, 1)], -1)
            except FrameError as e:
                yield k, e

    def _first_image(self) -> tuple[int, int, Orientation]:
        """Width, height and orientation of the first image that can be decoded."""
        for number in sorted(self._parts[0]):
            try:
                frame = self._decode(0, number - self._first)
            except FrameError:
                continue
            turn = orientation(frame)
            return (frame.height, frame.width, turn) if turn[0] else (frame.width, frame.height, turn)
        raise VideoError("damaged", f"{self.path}: none of its images can be decoded")

    def _decode(self, part: int, k: int):
        """The decoded image of frame k (component `part` of flow); raises FrameError."""
        number = k + self._first
        entry = self._parts[part].get(number)
        if entry is None:
            which = f" of {'uv'[part]}/" if len(self._parts) == 2 else ""
            raise FrameError("missing", f"{self.path}: image number {number}{which} is not there")
        suffix = entry[0].rpartition(".")[2].lower()
        try:
            data = self._bytes(entry)
            if entry[2] >= 0 and len(data) != entry[2] or _ENDS[_CODECS[suffix]] not in data[-1024:]:
                raise FrameError("damaged", f"{self.path}: {entry[0]} is cut short")
            packet = av.Packet(data)
            packet.is_keyframe = True  # else FFmpeg's png decoder adds the image to the one before it
            frames = self._decoder(suffix).decode(packet)
        except (av.FFmpegError, OSError) as e:
            why = getattr(e, "strerror", None) or e
            raise FrameError("damaged", f"{self.path}: {entry[0]} cannot be decoded ({why})") from e
        if not frames or frames[0].is_corrupt:
            raise FrameError("damaged", f"{self.path}: {entry[0]} cannot be decoded")
        return frames[0]

    def _bytes(self, entry: _Entry) -> bytes:
        if self.kind == "frames":
            return Path(self.path, entry[0]).read_bytes()
        if self._file is None:
            self._file = open(self.path, "rb")
        self._file.seek(entry[1])
        return self._file.read(entry[2])

    def _decoder(self, suffix: str):
        name = _CODECS[suffix]
        if name not in self._decoders:
            codec = av.CodecContext.create(name, "r")
            codec.thread_type, codec.thread_count = "NONE", 1  # an image goes in, that image comes out
            codec.options = {"err_detect": "crccheck+explode"}
            self._decoders[name] = codec
        return self._decoders[name]


def content_hash(path, parts: list[dict[int, _Entry]], sizes: dict[str, int]) -> str:
    """ "sha256:..." of a folder: every name and size in order of number, and the bytes of 16 files.

    The files are spread evenly from the first to the last, of each flow component. Reading all would
    cost hours on a network disk; a frame changed without changing its size may go unseen.
    """
    digest = hashlib.sha256(b"clipbank frame folder 1\n")
    for part in parts:
        entries = [part[n] for n in sorted(part)]
        for name, _, _ in entries:
            line = f"{name} {sizes[name]}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        for i in sorted({round(x) for x in np.linspace(0, len(entries) - 1, HASHED_FILES)}):
            try:
                digest.update(Path(path, entries[i][0]).read_bytes())
            except OSError as e:
                raise VideoError("unreadable", f"{path}: {entries[i][0]}: {e.strerror or e}") from e
    return "sha256:" + digest.hexdigest()


def _folder_entries(path: str, reads: str) -> list[_Entry]:
    entries = []
    for inside in ("u", "v") if reads == "flow" else ("",):
        try:
            with os.scandir(os.path.join(path, inside)) as found:
                names = [e for e in found if _NAME.fullmatch(e.name) and e.is_file()]
                entries += [(f"{inside}/{e.name}" if inside else e.name, -1, -1) for e in names]
        except FileNotFoundError:
            continue
        except OSError as e:
            raise VideoError("unreadable", f"{path}: {e.strerror or e}") from e
    return entries


def _tar_entries(path: str) -> list[_Entry]:
    """The regular files of an uncompressed tar that are wholly there."""
    entries, total, whole = [], os.path.getsize(path), True
    try:
        with tarfile.open(path, "r:") as tar:
            while whole and (member := tar.next()) is not None:
                name = os.path.normpath(member.name)
                whole = member.offset_data + member.size <= total
                if member.isreg() and not member.issparse() and whole and not name.startswith(("/", "..")):
                    entries.append((name, member.offset_data, member.size))
                tar.members.clear()  # 100,000 frames need not stay in memory as objects
            whole = whole and tar.offset < total  # a tar ends with empty blocks
    except (tarfile.TarError, OSError) as e:
        whole = False
        if not entries:
            raise VideoError("not_video", f"{path}: not an uncompressed tar ({e})") from e
    if not whole:  # what is there counts, unless the rest is still on its way
        cut = growing_or(path, "truncated", "the tar ends in the middle of a file")
        if cut.reason == "growing":
            raise cut
    return entries


def _numbered(entries: list[_Entry], component: str | None) -> dict[int, _Entry]:
    """number -> entry of the frames in one folder: the named component's, else the one with most frames."""
    folders: dict[str, dict[int, _Entry]] = {}
    for entry in sorted(entries):
        folder, _, name = entry[0].rpartition("/")
        match = _NAME.fullmatch(name)
        if match and (component is None or folder.rpartition("/")[2] == component):
            folders.setdefault(folder, {}).setdefault(int(match[1]), entry)
    return max(folders.values(), key=len, default={})
