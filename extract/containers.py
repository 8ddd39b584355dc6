"""Containers as FFmpeg opens them, and why one cannot be opened; which of the streams is the video."""

import os
from fractions import Fraction

import av

from extract.decode import VideoError, growing_or, stat_video

__all__ = ["open_container", "rate_of", "video_stream"]


def open_container(path):
    """Open a container by PyAV, or VideoError with the reason."""
    stat_video(path)
    try:
        # "file:" keeps FFmpeg from reading a name such as "concat:..." as a protocol
        return av.open("file:" + os.fspath(path), metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as e:
        if isinstance(e, PermissionError):
            raise VideoError("unreadable", f"{path}: {e.strerror or e}") from e
        if not _begins_like_video(path):
            why = getattr(e, "strerror", None) or e
            raise VideoError("not_video", f"{path}: not a video that FFmpeg can open ({why})") from e
        if _lacks_moov(path):
            reason, why = "truncated", "the file has no index (moov): its end is missing"
        else:
            reason, why = "truncated", "it begins like a video, but FFmpeg cannot open it: cut short or damaged"
        raise growing_or(path, reason, why) from e


def video_stream(container, path):
    """The video stream FFmpeg calls best; a cover picture is none."""
    attached = av.stream.Disposition.attached_pic
    streams = [s for s in container.streams.video if not s.disposition & attached and s.codec_context]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "none"
        raise VideoError("not_video", f"{path}: there is no video stream in the file (streams: {kinds})")
    best = container.streams.best("video")
    return best if best in streams else streams[0]


def rate_of(stream) -> Fraction | None:
    return stream.average_rate or stream.guessed_rate or stream.base_rate


def _begins_like_video(path) -> bool:
    """Whether the first bytes are those of a common container, or zeros: room made for a file to come."""
    with open(path, "rb") as f:
        head = f.read(16)
    starts = (b"\x1a\x45\xdf\xa3", b"RIFF", b"\x47", b"FLV", b"\0\0\1\xba", b"\x30\x26\xb2\x75", b"OggS")
    return head.startswith(starts) or head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") or not any(head)


def _lacks_moov(path) -> bool:
    """Whether this is an mp4/mov file (it begins with an ftyp box) whose moov box is not in it."""
    with open(path, "rb") as f:
        end, at, first = os.fstat(f.fileno()).st_size, 0, True
        while at + 8 <= end:
            f.seek(at)
            head = f.read(16)
            size, name = int.from_bytes(head[:4]), head[4:8]
            if first and name != b"ftyp":
                return False
            if name == b"moov":
                return at + size > end
            size = int.from_bytes(head[8:16]) if size == 1 else size
            if size < 8:
                break
            at, first = at + size, False
        return not first
