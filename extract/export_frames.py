"""A folder of frames from a video file, numbered on a nominal grid, as EPIC-KITCHENS' own were made.

What `ffmpeg -i video -vf fps=60 folder/frame_%010d.jpg` does, without ffmpeg: tick n of the output (file number n + 1)
is the instant n / fps and shows the last frame whose time, rounded to the grid, is not after n. So a frame can come up
to half a tick before its own time. (`-r 60` in place of the filter gives the same on constant rates but for single
ticks; on variable rates it shows frames up to 1.1 ticks early.)
"""

import shutil
import tempfile
from fractions import Fraction
from math import floor
from pathlib import Path

import av
import numpy as np

from errors import MachineError, UserError

__all__ = ["export_frames", "grid_frames"]


def grid_frames(times: list[Fraction], end: Fraction, fps: Fraction | int) -> list[int]:
    """Which frame each tick of a constant-rate output shows.

    Args:
        times: presentation times of all frames, ascending seconds from the first one.
        end: when the last frame ends.
        fps: rate of the output.

    Returns:
        For every tick n from 0 to before round(end * fps), at least one, the index of the last frame with
        round(time * fps) <= n; halves are rounded up. Source: FFmpeg's filter `fps`, round=near.
    """
    half = Fraction(1, 2)
    first_tick = [floor(t * fps + half) for t in times]
    n = max(floor(end * fps + half), 1)
    return (np.searchsorted(first_tick, np.arange(n), side="right") - 1).tolist()


def export_frames(video: Path | str, folder: Path | str, fps: Fraction | int = 60, quality: int = 2) -> int:
    """Write `folder/frame_0000000001.jpg`, ... at `fps` frames a second; the rule is the module's.

    The folder appears only when complete. Rotation metadata is applied, as ffmpeg does.

    Args:
        video: a video file.
        folder: must not exist, or be empty.
        fps: rate of the output.
        quality: of the JPEGs, ffmpeg's -q:v: 1 (best) to 31.

    Returns:
        The number of files written.

    Raises:
        UserError: the folder has something in it, or the file is not a video.
        MachineError: the folder cannot be written.
    """
    video, folder = Path(video), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already; give a new or empty folder")
    try:
        shown = grid_frames(*read_times(video), fps)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            part = Path(temporary) / "frames"
            part.mkdir()
            write_jpegs(video, part, shown, quality)
            if folder.exists():
                folder.rmdir()
            part.rename(folder)
    except av.error.FFmpegError as error:
        raise UserError(f"{video} cannot be read as a video: {error}") from error
    except OSError as error:
        raise MachineError(f"frames of {video} cannot be written to {folder}: {error}") from error
    return len(shown)


def read_times(video: Path) -> tuple[list[Fraction], Fraction]:
    """Times of all decoded frames in seconds from the first one, and when the last one ends."""
    with av.open(str(video)) as container:
        if not container.streams.video:
            raise UserError(f"{video} has no video stream")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        ticks, length = [], 0
        for frame in container.decode(stream):
            ticks.append(frame.pts)
            length = frame.duration
        if not ticks or None in ticks or any(b <= a for a, b in zip(ticks, ticks[1:], strict=False)):
            raise UserError(f"{video}: its frames have no ascending times, so they cannot be put on a grid")
        length = length or (ticks[-1] - ticks[-2] if len(ticks) > 1 else 1)
        times = [(tick - ticks[0]) * stream.time_base for tick in ticks]
        return times, times[-1] + length * stream.time_base


def write_jpegs(video: Path, folder: Path, shown: list[int], quality: int) -> None:
    """Decode once more, and write each frame as often as the grid shows it."""
    wanted: dict[int, list[int]] = {}
    for tick, index in enumerate(shown):
        wanted.setdefault(index, []).append(tick)
    encoder = None
    with av.open(str(video)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for index, frame in enumerate(container.decode(container.streams.video[0])):
            if index not in wanted:
                continue
            if frame.rotation:
                turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(turned), format="rgb24")
            if encoder is None:
                encoder = jpeg_encoder(frame.width, frame.height, quality)
            frame = frame.reformat(format="yuvj420p", dst_color_range="JPEG")
            frame.pts, frame.time_base = index, encoder.time_base
            (packet,) = encoder.encode(frame)
            first, *again = (folder / f"frame_{tick + 1:010d}.jpg" for tick in wanted[index])
            first.write_bytes(bytes(packet))
            for other in again:
                shutil.copyfile(first, other)


def jpeg_encoder(width: int, height: int, quality: int):
    """An MJPEG encoder, one packet a frame, each a JPEG file."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuvj420p"
    encoder.time_base = Fraction(1, 1000)
    encoder.qmin = encoder.qmax = quality
    encoder.options = {"huffman": "default", "threads": "1"}
    return encoder
