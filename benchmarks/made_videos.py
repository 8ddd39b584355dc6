"""Videos for the benchmarks: a smooth seeded texture that drifts under a little grain, in H.264 as cameras write it."""

import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from media import remux, x264

__all__ = ["encode_video", "make_video"]

KEYFRAME_EVERY_S = 2
GRAINS = 8  # patterns of noise, used in turn


def encode_video(path: Path, width: int, height: int, fps: int, seconds: float, seed: int = 0) -> Path:
    """H.264 (High, B-frames, a keyframe every two seconds) of width x height pixels."""
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    drift = max(width, height) // 2
    texture = _texture(rng, height + drift, width + drift)
    grains = rng.integers(0, 12, (GRAINS, height, width, 1), np.uint8)
    with av.open(str(path), "w") as out:
        options = {"preset": "veryfast", "crf": "23", **x264(keyint=KEYFRAME_EVERY_S * fps)}
        stream = out.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for k in range(round(seconds * fps)):
            left = round(drift / 2 * (1 + np.sin(k / fps)))
            top = round(drift / 2 * (1 + np.cos(0.7 * k / fps)))
            image = texture[top : top + height, left : left + width] + grains[k % GRAINS]
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = k, Fraction(1, fps)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def make_video(path: Path, width: int, height: int, fps: int, seconds: float, seed: int = 0) -> Path:
    """At least `seconds` of video: up to 8 s are encoded, and their packets repeated without encoding them again."""
    encoded = min(seconds, 8.0)
    times = -(-round(seconds * fps) // round(encoded * fps))
    if times == 1:
        return encode_video(path, width, height, fps, encoded, seed)
    once = encode_video(path.with_suffix(".once.mp4"), width, height, fps, encoded, seed)
    remux(once, path, times=times)
    once.unlink()
    return path


def _texture(rng, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3), at most 243: three octaves of random values, enlarged bilinearly."""
    total = np.zeros((height, width, 3), np.float32)
    for cell, weight in ((64, 4), (16, 2), (4, 1)):
        coarse = rng.integers(0, 256, (height // cell + 2, width // cell + 2, 3), np.uint8)
        frame = av.VideoFrame.from_ndarray(coarse, "rgb24")
        total += weight * frame.reformat(width=width, height=height, interpolation="BILINEAR").to_ndarray()
    return (total * (243 / 255 / 7)).astype(np.uint8)
