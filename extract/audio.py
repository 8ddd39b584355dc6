"""The sound of a video file by instant: mono samples at one rate, on the clock of the video's frames.

Sample i is at i / rate seconds from the video's first frame. Decoding always begins at the start of the track and goes
forward, so that a window holds the same samples whatever was read before it. Channels are averaged, as VGGish's own
code and librosa do; the rate is changed by libswresample.

A track is made of runs: stretches whose samples follow one another. A run begins where timestamps leave a gap or an
overlap of more than 50 ms, after damage, and where the format changes; it is placed at its own timestamp, to the
nearest sample. Gaps are zeros; of an overlap the earlier samples count; smaller jitter of timestamps is ignored, for
many containers round them to a millisecond. `AUDIO_RULE` is part of every recipe: it is raised only when the same file
would give other samples.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from extract.containers import open_container
from extract.decode import FrameError, VideoError, growing_or, stat_video
from extract.video_files import first_frame_s

__all__ = ["AUDIO_RULE", "AudioSource", "NoAudio", "open_audio"]

AUDIO_RULE = 1
JITTER_S = 0.05
AFTERMATH_S = 0.1  # how long sound after a broken packet is not to be trusted: codecs overlap frames and borrow bits
# Spares reading the video where the container has an index; PyAV had no such thing at first.
_DISCARD = getattr(av.stream, "Discard", None)


class NoAudio(VideoError):
    """There is no sound: the video has no audio track, or a window lies outside it. `reason` is "absent"."""

    def __init__(self, message: str):
        super().__init__("absent", message)


def open_audio(path, rate: int) -> AudioSource:
    """Open the sound of a video file; of several tracks the one that FFmpeg calls best.

    Args:
        path: a video file. Folders and tars of frames have no sound.
        rate: samples a second of what is read.

    Raises:
        NoAudio: the file has no audio stream, or one without a single packet.
        VideoError: as for frames; "damaged" if there is an audio stream but nothing of it can be decoded.
    """
    if rate < 1 or rate != int(rate):
        raise ValueError(f"rate must be a positive whole number of samples a second, got {rate!r}")
    return AudioSource(path, int(rate))


class AudioSource:
    """An open audio track. Use it from one thread; it is a context manager.

    Holds the decoder and the samples from the start of the window read last, whatever the video's length. Reading a
    window that begins earlier than the one before it decodes from the start again.

    Attributes:
        path, rate: as given to `open_audio`.
        start_s, stop_s: the extent of the track, seconds from the video's first frame; start_s may be negative.
    """

    def __init__(self, path, rate: int):
        self.path, self.rate = os.fspath(path), rate
        self._samples: _Samples | None = None
        self._track = track = _track_of(path)
        self._restart()
        if self._samples.start_s is None:
            self.close()
            raise growing_or(path, "damaged", "nothing of its audio track can be decoded")
        self.start_s, self.stop_s = self._samples.start_s, track.stop_s

    def read(self, start_s: float, stop_s: float) -> tuple[np.ndarray, int]:
        """The samples from start_s (to the nearest sample) on, and how many of them are outside the track.

        Returns:
            (samples, n_missing): float32 (round((stop_s - start_s) * rate),) in [-1, 1], zeros outside the track.

        Raises:
            NoAudio: the whole window is outside the track.
            FrameError: the window touches a damaged stretch (reason "damaged"); others can still be read.
        """
        first, count = round(start_s * self.rate), round((stop_s - start_s) * self.rate)
        last = first + count
        if count < 1:
            raise ValueError(f"{self.path}: a window needs start_s < stop_s, got {start_s} and {stop_s}")
        if self._samples is None or first < self._kept_from:
            self._restart()
        self._keep_from(first)
        track = self._samples
        while track.done < min(last, track.stop) and self._pull():
            self._keep_from(first)
        if last <= track.start or first >= track.stop:
            raise NoAudio(
                f"{self.path}: no sound from {start_s:.3f} to {stop_s:.3f} s; "
                f"its audio track is from {self.start_s:.3f} to {self.stop_s:.3f} s"
            )
        for begin, end in track.damaged:
            if begin < last and end > first:
                at = f"from {begin / self.rate:.3f} to {end / self.rate:.3f} s"
                raise FrameError("damaged", f"{self.path}: the audio track is damaged {at}")
        samples = np.zeros(count, np.float32)
        for begin, chunk in self._kept:
            low, high = max(begin, first), min(begin + len(chunk), last)
            if low < high:
                samples[low - first : high - first] = chunk[low - begin : high - begin]
        return samples, max(0, track.start - first) + max(0, last - track.stop)

    def close(self) -> None:
        """Let go of file and decoder; reading afterwards opens them again."""
        if self._samples is not None:
            self._samples.close()
        self._samples = None

    def __enter__(self) -> AudioSource:
        return self

    def __exit__(self, *exc) -> None:
        self.close()

    def _restart(self) -> None:
        self.close()
        self._samples = _Samples(self.path, self._track, self.rate)
        self._kept: deque[tuple[int, np.ndarray]] = deque()
        self._kept_from = -np.inf
        self._pull()

    def _pull(self) -> bool:
        chunk = next(self._samples.chunks, None)
        if chunk is not None:
            self._kept.append(chunk)
        return chunk is not None

    def _keep_from(self, first: int) -> None:
        self._kept_from = first
        while self._kept and self._kept[0][0] + len(self._kept[0][1]) <= first:
            self._kept.popleft()


# --- the track -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Track:
    """Where a file's sound is. Seconds from the video's first frame, which is at zero_s on the container's clock."""

    zero_s: float
    start_s: float  # of the first packet
    stop_s: float  # of the last packet's end


def _track_of(path) -> _Track:
    """The track from its packets alone, from a small cache by path, size and mtime."""
    if Path(path).is_dir() or Path(path).suffix.lower() == ".tar":
        raise NoAudio(f"{path}: a folder or tar of frames has no sound")
    stat = stat_video(path)
    return _find_track(os.path.realpath(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(32)
def _find_track(path: str, _size: int, _mtime_ns: int) -> _Track:
    zero = first_frame_s(path)
    with open_container(path) as container:
        stream = _audio_stream(container)
        if stream is None:
            kinds = ", ".join(sorted({s.type for s in container.streams}))
            raise NoAudio(f"{path}: there is no audio stream in the file (streams: {kinds})")
        if not stream.codec_context:
            raise VideoError("damaged", f"{path}: FFmpeg has no decoder for its audio stream")
        base = float(stream.time_base)
        start = stop = None
        previous = usual = 0
        for packet in _packets(container, stream):
            if packet.is_discard:
                continue  # an edit list hides it
            usual = packet.duration or usual
            pts = previous if packet.pts is None else packet.pts
            previous = pts + usual
            start, stop = (pts, previous) if start is None else (min(start, pts), max(stop, previous))
    if start is None:
        raise NoAudio(f"{path}: the audio stream of the file is empty")
    return _Track(zero, start * base - zero, stop * base - zero)


def _audio_stream(container):
    """The audio stream FFmpeg calls best, None if there is none."""
    return container.streams.best("audio") or next(iter(container.streams.audio), None)


def _packets(container, stream) -> Iterator[av.Packet]:
    """The packets of one stream, to the end of what can be read."""
    for other in container.streams:
        if other is not stream and _DISCARD is not None:
            other.discard = _DISCARD.all
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError):
            return  # the file breaks off here
        if packet is None:
            return
        if packet.size:
            yield packet


class _Samples:
    """One pass over a track.

    Attributes (indices of samples on the output grid):
        chunks: iterator of (index of its first sample, float32 samples): ascending, without overlap
        start, stop: extent of the track; stop may come down to the last sample decoded, at the end of the pass
        start_s: seconds; None until a sample was decoded
        done: everything before this index has been yielded, is zero, or is in `damaged`
        damaged: [(start, stop)]
    """

    def __init__(self, path: str, track: _Track, rate: int):
        self._rate, self._track = rate, track
        self._container = open_container(path)
        self._stream = _audio_stream(self._container)
        self._stream.codec_context.thread_count = 1
        self.start_s: float | None = None
        self.start = self.done = round(track.start_s * rate)
        self.stop = max(self.start, round(track.stop_s * rate))
        self.damaged: list[tuple[int, int]] = []
        self._next = self.start  # index of the sample that the resampler returns next
        self._resampler, self._format = None, None
        self.chunks = self._pass()

    def close(self) -> None:
        self.chunks.close()
        self._container.close()

    def _pass(self) -> Iterator[tuple[int, np.ndarray]]:
        run_s, count = 0.0, 0  # the start of the run, and its samples so far at the track's own rate
        end_s: float | None = None  # where the run ends so far
        failed, silent_s = False, 0.0  # since the last frame: a packet that is broken; seconds of packets without sound
        for packet, frames in self._decoded():
            if not frames:
                failed |= frames is None
                silent_s += self._silence(packet) if end_s is not None else 0.0
                continue
            for frame in frames:
                expected_s = self._track.start_s if end_s is None else end_s
                shown_s = self._time(frame)
                time_s = expected_s if shown_s is None else shown_s
                hole_s = time_s - expected_s
                damaged = failed or (silent_s > 0 and hole_s > silent_s / 2)
                if damaged or frame.is_corrupt:
                    time_s = max(time_s, expected_s)
                    self._damage(expected_s, time_s + AFTERMATH_S)
                layout = (frame.format.name, frame.layout.name, frame.sample_rate)
                if end_s is None or damaged or abs(hole_s) > JITTER_S or layout != self._format:
                    yield from self._cut(self._flush())
                    run_s, count = time_s, 0
                    if end_s is None:
                        self._begin(time_s)
                    self._next = round(run_s * self._rate)
                    self._resampler, self._format = av.AudioResampler("fltp", None, self._rate), layout
                count += frame.samples
                end_s, failed, silent_s = run_s + count / frame.sample_rate, False, 0.0
                frame.pts = None
                yield from self._cut(self._resampler.resample(frame))
        yield from self._cut(self._flush())
        if failed and end_s is not None:
            self._damage(end_s, self._track.stop_s)
        self.stop = min(self.stop, max([self.done] + [end for _, end in self.damaged]))

    def _decoded(self) -> Iterator[tuple[av.Packet | None, list | None]]:
        """(packet, its frames; None if it is broken), and at the end (None, frames that were held back)."""
        codec = self._stream.codec_context
        for packet in _packets(self._container, self._stream):
            try:
                yield packet, codec.decode(packet)
            except av.FFmpegError:
                yield packet, None
        try:
            yield None, codec.decode(None)
        except av.FFmpegError:
            yield None, []

    def _silence(self, packet) -> float:
        hidden = packet is None or packet.is_discard
        return 0.0 if hidden else float((packet.duration or 0) * self._stream.time_base)

    def _time(self, frame) -> float | None:
        """Where a frame begins, seconds from the video's first frame."""
        if frame.pts is None:
            return None
        return float(frame.pts * (frame.time_base or self._stream.time_base)) - self._track.zero_s

    def _begin(self, time_s: float) -> None:
        """The first frame is there: what came before it was the coder's delay, unless it is damaged."""
        self.start_s = self._track.start_s if self.damaged else time_s
        self.start = self.done = round(self.start_s * self._rate)
        self.stop = max(self.start, self.stop)

    def _damage(self, start_s: float, stop_s: float) -> None:
        start, stop = max(round(start_s * self._rate), self.done), min(round(stop_s * self._rate), self.stop)
        if start < stop:
            self.damaged.append((start, stop))

    def _flush(self) -> list:
        return self._resampler.resample(None) if self._resampler else []

    def _cut(self, frames) -> Iterator[tuple[int, np.ndarray]]:
        """Resampled frames as mono chunks, cut to what is new and inside the track."""
        for frame in frames:
            samples = frame.to_ndarray()
            samples = samples.mean(0) if len(samples) > 1 else samples[0]
            begin, self._next = self._next, self._next + len(samples)
            low, high = max(begin, self.done), min(self._next, self.stop)
            if low < high:
                self.done = high
                yield low, np.clip(samples[low - begin : high - begin], -1.0, 1.0)
