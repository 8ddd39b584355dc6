"""Odd test videos, made with PyAV alone, and a decode of them that is independent of the project's."""

from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 8


def picture(k: int, width: int = 128, height: int = 96) -> np.ndarray:
    """uint8 (height, width, 3): frame k of every made video: a moving texture, k in binary along the top."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([(x * 2 + 5 * k) % 256, (y * 3 + 3 * k) % 256, (x + y + 7 * k) % 256], -1).astype(np.uint8)
    image = (image // 2 + 64).astype(np.uint8)
    cell = width // BITS
    for bit in range(BITS):
        image[: height // 4, bit * cell : (bit + 1) * cell] = 255 if k >> bit & 1 else 0
    return image


def counter(image: np.ndarray) -> int:
    """The k of `picture`, read off a decoded frame of any size (not cropped or turned)."""
    height, width = image.shape[:2]
    cell = width / BITS
    columns = [image[: max(1, height // 8), int((bit + 0.3) * cell) : int((bit + 0.7) * cell)] for bit in range(BITS)]
    return sum(1 << bit for bit, column in enumerate(columns) if column.mean() > 127)


def make_video(
    path: Path, codec: str, n: int = 72, *, rate=25, size=(128, 96), options=None, pts=None, rotate=None,
    pixel_format="yuv420p", container_options=None, time_base=None,
) -> Path:  # fmt: skip
    """Write frames 0..n-1 of `picture`. pts: presentation times in units of time_base (default: k at 1/rate)."""
    base = time_base or Fraction(1, rate)
    with av.open(str(path), "w", options=container_options or {}) as out:
        stream = add_stream(out, codec, rate, size, options, pixel_format)
        if rotate is not None:
            stream.set_display_rotation(rotate)
        stream.codec_context.time_base = base
        encode(out, stream, range(n), pts or range(n), size, base)
    return path


def add_stream(out, codec, rate, size, options=None, pixel_format="yuv420p"):
    stream = out.add_stream(codec, rate=rate, options=dict(options or {}))
    stream.width, stream.height = size
    stream.pix_fmt = pixel_format
    stream.codec_context.thread_count = 1
    return stream


def encode(out, stream, ks, pts, size, base):
    for k, t in zip(ks, pts, strict=True):
        frame = av.VideoFrame.from_ndarray(picture(k, *size), "rgb24")
        frame.pts, frame.time_base = t, base
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


def x264(**params) -> dict:
    """Options for libx264: keyframes only where they are asked for."""
    return {"x264-params": ":".join(f"{k.replace('_', '-')}={v}" for k, v in {**params, "scenecut": 0}.items())}


def x265(**params) -> dict:
    silent = {**params, "scenecut": 0, "log-level": "none"}
    return {"x265-params": ":".join(f"{k.replace('_', '-')}={v}" for k, v in silent.items())}


def when_asked_for(made: Mapping[str, tuple], folder: Path) -> Callable[[str], Path]:
    """name -> path in `folder` of one of {name: (maker(path), ...)}, written when first asked for."""

    def path(name: str) -> Path:
        if not (folder / name).exists():
            made[name][0](folder / name)
        return folder / name

    return path


def two_streams(path: Path, n: int = 40) -> Path:
    """A small stream first, a larger one second: FFmpeg's best is for FFmpeg to say."""
    sizes = [(64, 48), (192, 128)]
    with av.open(str(path), "w") as out:
        streams = [add_stream(out, "libx264", 25, size) for size in sizes]
        for stream, size in zip(streams, sizes, strict=True):
            encode(out, stream, range(n), range(n), size, Fraction(1, 25))
    return path


def with_cover(path: Path, n: int = 30) -> Path:
    """An mp4 whose first video stream is a cover picture."""
    with av.open(str(path), "w") as out:
        cover = add_stream(out, "mjpeg", 25, (320, 240), pixel_format="yuvj420p")
        cover.disposition = av.stream.Disposition.attached_pic
        video = add_stream(out, "libx264", 25, (128, 96))
        encode(out, cover, [0], [0], (320, 240), Fraction(1, 25))
        encode(out, video, range(n), range(n), (128, 96), Fraction(1, 25))
    return path


def sound_only(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=16000)
        for i in range(10):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 16000, i * 1024, Fraction(1, 16000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def remux(source: Path, path: Path, *, times: int = 1, shift: int = 0, container_options=None) -> Path:
    """Copy the video stream, `times` times after one another, all times moved by `shift` ticks."""
    with av.open(str(path), "w", options=container_options or {}) as out:
        stream, offset = None, 0
        for _ in range(times):
            with av.open(str(source)) as data:
                video = data.streams.video[0]
                stream = stream or out.add_stream_from_template(video)
                end = 0
                for packet in data.demux(video):
                    if packet.dts is None:
                        continue
                    end = max(end, packet.pts + packet.duration)
                    packet.pts += offset + shift
                    packet.dts += offset + shift
                    packet.stream = stream
                    out.mux(packet)
                offset += end
    return path


def write_image(path: Path, image: np.ndarray, codec: str = "mjpeg") -> Path:
    """One image file; jpeg in 4:4:4 at high quality, png without loss."""
    height, width = image.shape[:2]
    coder = av.CodecContext.create(codec, "w")
    coder.width, coder.height, coder.time_base = width, height, Fraction(1, 25)
    coder.pix_fmt = "yuvj444p" if codec == "mjpeg" else "rgb24"
    frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=coder.pix_fmt)
    frame.pts = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(bytes(p) for p in [*coder.encode(frame), *coder.encode(None)]))
    return path


def plain_decode(path, stream=None) -> list[tuple[int | None, av.VideoFrame]]:
    """(pts, frame) of every frame from the first, one thread, no seeking; packets with errors are skipped."""
    frames = []
    with av.open(str(path)) as container:
        video = container.streams.best("video") if stream is None else container.streams.video[stream]
        video.codec_context.thread_count = 1
        for packet in container.demux(video):
            try:
                frames += [(frame.pts, frame) for frame in packet.decode()]
            except av.FFmpegError:
                continue
    return frames


def rgb(frame, width=None, height=None) -> np.ndarray:
    """swscale, bilinear, straight to RGB24, through a context of its own."""
    return frame.reformat(
        width=width or frame.width, height=height or frame.height, format="rgb24", interpolation="BILINEAR", threads=1
    ).to_ndarray()
