"""Video files through PyAV: an index of the frames, made once, and a reader that finds them by identity.

The index lists the frames in the order in which the decoder outputs them. A frame is recognised by its
pts, never by counting after a seek; a seek that does not deliver the wanted frame is repeated from an
earlier keyframe, down to the start. So a frame is the same however it is reached, and a damaged stretch
loses its own frames only: those that are damaged, and those predicted from them. On the way to a frame the
decoder is not given those that nobody wants and nothing is predicted from (`disposable.py`).
"""

import bisect
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise, zip_longest

import av
import numpy as np

from extract.containers import open_container, rate_of, video_stream
from extract.cores import usable_cores
from extract.decode import TOLERANCE_S, FrameError, FrameSource, growing_or, hash_file, stat_video
from extract.disposable import Coded, reader_of
from extract.pixels import UPRIGHT, Converter, Orientation, orientation
from extract.transforms import Resize, plan_resize

__all__ = ["FrameIndex", "VideoFile", "first_frame_s", "frame_index", "read_header"]

PROBED_FRAMES = 64  # decoded to see whether the container's times can be trusted
SEEK_GAIN = 12  # frames that a seek must save: it costs a flush and the decoder's start-up latency
CACHED_INDICES = 32
MOST_THREADS = 16
HIDES_FRAMES = {"vp8"}  # codecs with packets that are never shown, perhaps none in the first 64


@dataclass
class FrameIndex:
    """The n frames of a video in output order, and how to reach each. All arrays have n entries.

    ids        int64: what identifies a frame: its pts, or (by_packet) the file position of its packet
    times      float64: seconds from the first frame
    order      int64: position in decoding order
    needs      int64: the last frame, in output order, of those decoded before this one
    lost       bool: cannot be decoded; learned while reading, shared by all readers of the process
    disposable bool: nothing is predicted from it
    keys       frames that decoding can start at, ascending, 0 first (other threads replace the list by a
               shorter one: look at it once, and hand on frames, not places in it)
    targets    {frame of keys: the timestamps to seek to, pts before dts}
    """

    ids: np.ndarray
    times: np.ndarray
    order: np.ndarray
    lost: np.ndarray
    disposable: np.ndarray
    keys: list[int]
    targets: dict[int, tuple[int, ...]]
    by_packet: bool
    counted: bool
    codec: str
    fps: float
    duration_s: float
    width: int
    height: int
    turn: Orientation
    needs: np.ndarray = field(init=False)
    _sorted: tuple[np.ndarray, np.ndarray] = field(init=False)

    def __post_init__(self):
        decoded = np.argsort(self.order, kind="stable")
        self.needs = np.empty(len(decoded), np.int64)
        self.needs[decoded] = np.maximum.accumulate(decoded)
        by_id = np.argsort(self.ids, kind="stable")
        self._sorted = self.ids[by_id], by_id

    def rank(self, ident: int | None, guess: int = -1) -> int:
        """The frame with this identity, -1 for none; `guess` is tried first."""
        if ident is None:
            return -1
        if 0 <= guess < len(self.ids) and self.ids[guess] == ident:
            return guess
        ids, by_id = self._sorted
        at = int(np.searchsorted(ids, ident))
        return int(by_id[at]) if at < len(ids) and ids[at] == ident else -1

    def key_before(self, frame: int, steps: int = 1) -> int:
        """The last frame before `frame` that decoding can start at, or one `steps` - 1 keys earlier; at least 0."""
        keys = self.keys
        return keys[max(0, bisect.bisect_left(keys, frame) - steps)]

    def next_key(self, frame: int) -> int:
        """The first frame from which decoding no longer depends on `frame`."""
        keys = self.keys
        for i in range(bisect.bisect_right(keys, frame), len(keys)):
            if self.order[keys[i]] > self.order[frame]:
                return keys[i]
        return len(self.ids)

    def depends(self, frame: int, on: int) -> bool:
        """Whether `frame` is that frame, or decoded after it from the same keyframe on."""
        return bool(self.order[frame] >= self.order[on]) and frame < self.next_key(on)

    def damage(self, frame: int) -> None:
        """`frame` is damaged, and with it all that may be predicted from it."""
        if self.disposable[frame]:
            self.lost[frame] = True
            return
        end = self.next_key(frame)
        self.lost[:end] |= self.order[:end] >= self.order[frame]


# --- the index -------------------------------------------------------------------------------------------

_indices: OrderedDict[tuple, FrameIndex] = OrderedDict()
_lock = threading.Lock()


def frame_index(path) -> FrameIndex:
    """The index of a file, from a small cache by path, size and mtime. Raises VideoError."""
    stat = stat_video(path)
    key = (os.path.realpath(path), stat.st_size, stat.st_mtime_ns)
    with _lock:
        if key in _indices:
            _indices.move_to_end(key)
            return _indices[key]
    found = _build_index(path)
    with _lock:
        _indices[key] = found
        while len(_indices) > CACHED_INDICES:
            _indices.popitem(last=False)
    return found


def _build_index(path) -> FrameIndex:
    with open_container(path) as container:
        stream = video_stream(container, path)
        rate, base, codec = rate_of(stream), stream.time_base, stream.codec_context.name
        packets = list(_scan(container, stream))
    if not packets:
        raise growing_or(path, "truncated", "the header names a video stream, but there is no frame in the file")
    pts = [p.pts for p in packets]
    keyed_by_pts = None not in pts and len(set(pts)) == len(pts) and _unbroken(packets)
    seen = _decode_ids(path, 1, by_packet=False, limit=PROBED_FRAMES)
    if not seen.frames:
        raise growing_or(path, "damaged", "no frame of the video can be decoded")
    out = [f[0] for f in seen.frames]
    if keyed_by_pts and _rising(out) and codec not in HIDES_FRAMES:
        first = out[0]  # packets before it never become frames: a recording that begins between keyframes
        listed = sorted(p for p in pts if first <= p <= out[-1])
        if seen.errors or listed == out:
            order = sorted((i for i, p in enumerate(pts) if p >= first), key=lambda i: pts[i])
            return _index(packets, order, [pts[i] for i in order], seen, rate, base, codec)
    # Packets are not frames here (no pts, one field a packet, hidden frames): decode once, and count.
    seen = _decode_ids(path, _threads(None), by_packet=True)
    place = {p.pos: i for i, p in enumerate(packets)}
    seekable = len(place) == len(packets) and None not in place
    if seekable and all(f[1] in place for f in seen.frames):
        order, ids = [place[f[1]] for f in seen.frames], [f[1] for f in seen.frames]
    else:  # positions say nothing either: frames are known by their number, and only the start is a start
        order, ids, seekable = list(range(len(seen.frames))), None, False
    times = [f[0] for f in seen.frames] if _rising([f[0] for f in seen.frames]) else None
    return _index(packets, order, times, seen, rate, base, codec, ids=ids, seekable=seekable, by_packet=True)


@dataclass(frozen=True, slots=True)
class _Packet:
    pts: int | None
    dts: int | None
    pos: int | None
    duration: int
    key: bool
    corrupt: bool
    coded: Coded | None


@dataclass
class _Decoded:
    frames: list  # (pts, packet position) in output order
    errors: int
    width: int
    height: int
    turn: Orientation


def _scan(container, stream) -> Iterator[_Packet]:
    """Every packet of the stream that becomes a frame; what an edit list hides does not."""
    packets, codec = container.demux(stream), stream.codec_context
    read = reader_of(codec.name, codec.extradata)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except (av.FFmpegError, OSError):
            return  # the file ends in the middle of something: what was read so far counts
        if packet.size and not packet.is_discard:
            yield _Packet(
                packet.pts, packet.dts, packet.pos, packet.duration or 0, packet.is_keyframe, packet.is_corrupt,
                read(bytes(packet)) if read else None,
            )  # fmt: skip


def _decode_ids(path, threads: int, *, by_packet: bool, limit: int | None = None) -> _Decoded:
    """Decode from the start and note what identifies each frame (the first `limit` frames, or all)."""
    with _Decoder(path, threads, by_packet) as decoder:
        found = _Decoded([], 0, 0, 0, UPRIGHT)
        for frame in decoder:
            if not found.frames:
                found.turn = orientation(frame)
                found.width, found.height = frame.width, frame.height
                if found.turn[0]:
                    found.width, found.height = found.height, found.width
            found.frames.append((frame.pts, frame.opaque[0] if by_packet and frame.opaque else None))
            found.errors += frame.is_corrupt
            if len(found.frames) == limit:
                break
        found.errors += decoder.errors
        return found


def _index(packets, order, pts, seen, rate, base, codec, *, ids=None, seekable=True, by_packet=False) -> FrameIndex:
    """Put an index together. order: the packet of each frame; pts: of each frame, None to count times."""
    n = len(order)
    times = None
    if pts is not None:
        times = (np.array(pts, np.int64) - pts[0]) * float(base)
    fps = float(rate) if rate else (n - 1) / times[-1] if times is not None and n > 1 else 0.0
    if fps <= 0:
        fps = 25.0  # nothing in the file says otherwise; FFmpeg's own default
    last = 0.0
    if times is None:
        times = np.arange(n) / fps
    else:
        last = packets[order[-1]].duration * float(base)
    if not seekable or ids is None and by_packet:
        targets = {0: ()}
    else:
        targets = {
            k: tuple(t for t in (packets[i].pts, packets[i].dts) if t is not None)
            for k, i in enumerate(order)
            if packets[i].key or k == 0
        }
    disposable = np.zeros(n, bool)
    if not by_packet and all(p.coded for p in packets):
        top = max(p.coded.sublayer for p in packets)
        disposable[:] = [
            not (p.coded.reference or p.coded.sublayer < top or p.key) for p in (packets[i] for i in order)
        ]
    identity = np.arange(n) if by_packet and ids is None else np.array(ids if by_packet else pts, np.int64)
    index = FrameIndex(
        identity, times, np.array(order, np.int64), np.zeros(n, bool), disposable, list(targets), targets, by_packet,
        pts is None, codec, fps, float(times[-1]) + (last if last > 0 else 1 / fps), seen.width, seen.height, seen.turn,
    )  # fmt: skip
    for k in (k for k, i in enumerate(order) if packets[i].corrupt):
        index.damage(k)
    return index


def _unbroken(packets: list[_Packet]) -> bool:
    """Whether decoding times never fall back, as they do where recordings were simply put end to end."""
    known = [p.dts for p in packets if p.dts is not None]
    return all(a <= b for a, b in zip(known, known[1:], strict=False))


def _threads(wanted: int | None) -> int:
    return min(wanted or min(4, usable_cores()), MOST_THREADS)


def _rising(values) -> bool:
    known = [v for v in values if v is not None]
    return len(known) == len(values) and all(a < b for a, b in zip(known, known[1:], strict=False))


def read_header(path) -> tuple[float, float | None, int, int]:
    """(fps, duration or None, width, height); decodes one frame, for the orientation. Raises VideoError."""
    with open_container(path) as container:
        stream = video_stream(container, path)
        rate = rate_of(stream)
        duration = None
        if stream.duration and stream.time_base:
            duration = float(stream.duration * stream.time_base)
        elif container.duration:
            duration = container.duration / 1e6
        width, height = stream.width, stream.height
        try:
            frame = next(container.decode(stream))
        except (av.FFmpegError, StopIteration) as e:
            raise growing_or(path, "damaged", "the first frame of the video cannot be decoded") from e
        if orientation(frame)[0]:
            width, height = height, width
        return float(rate) if rate else 25.0, duration, width, height


def first_frame_s(path) -> float:
    """When the first frame is shown, in seconds on the container's own clock. Raises VideoError."""
    with _Decoder(path, 1, by_packet=False) as decoder:
        frame = next(decoder, None)
        if frame is None:
            raise growing_or(path, "damaged", "no frame of the video can be decoded")
        pts, start, base = frame.pts, decoder.stream.start_time, decoder.stream.time_base
    if pts is None or (pts != start and frame_index(path).counted):
        pts = start  # as an AVI with B-frames: its frames' times are guesses
    return float((pts or 0) * base)


# --- decoding --------------------------------------------------------------------------------------------


class _Decoder:
    """The frames of one file in output order, from the start or from a keyframe; damage does not stop it.

    Iterating yields frames. Since the last start:

    errors    what the decoder complained of
    spares    packet -> whether the decoder is not given it
    last      pts of the packet after which the decoder is given no more, None for the file's last
    ended     whether it was given that packet: what it holds comes out then, and no more after it
    """

    def __init__(self, path, threads: int, by_packet: bool):
        self._path, self._by_packet = path, by_packet
        self.container = open_container(path)
        self.stream = video_stream(self.container, path)
        codec = self.stream.codec_context
        codec.thread_type, codec.thread_count = "AUTO", threads
        codec.copy_opaque = by_packet
        self._begin(self.container.demux(self.stream), [])

    def _begin(self, packets, held):
        self.errors, self.spares, self.last, self.ended = 0, None, None, False
        self._frames = self._decoded(packets, held)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        self.container.close()

    def seek(self, targets: tuple[int, ...], landed) -> int:
        """Go to a keyframe; returns the frame decoding will start at, -1 if none was found.

        targets   timestamps to try: the wanted frame's, the keyframe's pts, its dts (which of them leads
                  to the keyframe differs between containers)
        landed    packet -> frame if decoding may start there and it is early enough, else -1
        """
        for target in targets:
            try:
                self.container.seek(target, stream=self.stream)
                packets = self.container.demux(self.stream)
                for packet in packets:
                    if packet.is_keyframe and packet.size:
                        self._begin(packets, [packet])
                        frame = landed(packet)
                        if frame >= 0:
                            return frame
                        break
            except (av.FFmpegError, OSError):
                continue  # this container cannot seek there; the next target, or the start, will do
        return -1

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._frames)

    def _decoded(self, packets, held: list):
        while not self.ended:
            packet = held.pop() if held else self._next_packet(packets)
            if packet is None:
                break
            if self.spares and self.spares(packet):
                continue
            self.ended = self.last is not None and packet.pts == self.last
            yield from self._decode(packet)
        yield from self._drain()

    def _next_packet(self, packets):
        try:
            for packet in packets:
                if packet.size:  # an empty one would end the decoding: PyAV's last, or a dropped frame in an AVI
                    return packet
        except (av.FFmpegError, OSError):
            self.errors += 1  # the file breaks off here
        return None

    def _decode(self, packet) -> list:
        if self._by_packet:
            packet.opaque = (packet.pos,)
        try:
            return self.stream.codec_context.decode(packet)
        except av.FFmpegError:
            self.errors += 1
            return []

    def _drain(self) -> list:
        codec = self.stream.codec_context
        for _ in range(MOST_THREADS):  # each thread may hold a damaged frame, and tell of it only now
            try:
                return codec.decode(None)
            except av.EOFError:
                break
            except av.FFmpegError:
                self.errors += 1
        return []


class VideoFile(FrameSource):
    """A video file read by PyAV. Holds the decoder and a handful of decoded frames, whatever its length."""

    kind = "file"

    def __init__(self, path, threads: int | None = None):
        self.path = os.fspath(path)
        self.index = index = frame_index(path)
        self.fps, self.n_frames, self.duration_s = index.fps, len(index.ids), index.duration_s
        self.width, self.height = index.width, index.height
        self.times = "counted" if index.counted else "container"
        self.size_bytes = stat_video(path).st_size
        self._threads = _threads(threads)
        self._convert = Converter(index.turn)
        self._decoder: _Decoder | None = None

    def content_hash(self) -> str:
        return hash_file(self.path)

    def close(self):
        if self._decoder:
            self._decoder.close()
        self._decoder = None

    def at(self, instants):
        t = np.asarray(instants, np.float64)
        shown = np.searchsorted(self.index.times, t + TOLERANCE_S, side="right") - 1
        outside = (shown < 0) | (t + TOLERANCE_S >= self.duration_s)
        return np.clip(shown, 0, self.n_frames - 1).astype(np.int64), outside

    def seeks(self, indices):
        index, picked = self.index, np.asarray(indices, np.int64)
        far = [self._is_far(then, int(index.needs[k])) for k, then in pairwise(picked.tolist())]
        return np.array([False, *far][: len(picked)], bool)

    def read(self, indices, resize: Resize | None = None):
        place = plan_resize(resize or Resize(), self.width, self.height)
        picked = self._ascending(indices)
        for k, then in zip_longest(picked, picked[1:]):
            frame = self._frame(k, then)
            yield k, frame if isinstance(frame, FrameError) else self._convert(frame, place)

    # One run = one stretch decoded without a seek. Its state: the keyframe it started at, the last frame
    # it has passed, the frames kept, the frames spared, and those that did not come out as they should.

    def _frame(self, k: int, then: int | None):
        """Frame k; `then`: the next one that is wanted, as far as is known."""
        index = self.index
        if index.lost[k]:
            return self._damaged(k)
        self._wanted, self._then = k, k if then is None else then
        if not self._decoder or not self._reaches(k):
            self._start(k, index.key_before(k + 1))
        tried = []
        while True:
            self._advance(k)
            doubts = [e for e in self._doubts if index.depends(k, e)]
            if not doubts and k in self._kept:
                self._strike(tried)
                return self._kept[k]
            keys = index.keys
            passed = bisect.bisect_right(keys, k) - bisect.bisect_right(keys, self._began)
            if self._began == 0 or (passed >= 2 and self._decoder.errors):
                for e in doubts or [k]:
                    index.damage(e)
                if not doubts or k in doubts or not index.disposable[doubts].all():
                    return self._damaged(k)
            if any(index.lost[e] and index.disposable[e] for e in doubts):
                tried = []  # nothing is predicted from those: once more, without them
                self._start(k, index.key_before(k + 1))
                continue
            # Perhaps decoding cannot start at that keyframe after all: take one from further back.
            tried.append(self._began)
            self._start(k, index.key_before(self._began, max(1, 2 * passed)))

    def _reaches(self, k: int) -> bool:
        """Whether to decode on to frame k rather than seek."""
        if k in self._kept:
            return True
        if self._decoder.ended or k <= self._passed or k in self._spared:
            return False
        return not self._is_far(k, self._passed)

    def _is_far(self, k: int, passed: int) -> bool:
        """Whether a seek to frame k saves enough when frame `passed` was the last."""
        return self.index.key_before(k + 1) - passed > SEEK_GAIN

    def _start(self, k: int, key: int) -> None:
        """Begin a run at frame `key`, one that decoding can start at, or at an earlier one where the seek lands."""
        index = self.index
        self._kept, self._spared, self._doubts, began = {}, set(), [], -1
        if key > 0:
            self._decoder = self._decoder or _Decoder(self.path, self._threads, index.by_packet)
            own = () if index.by_packet else (int(index.ids[k]),)
            targets = own + index.targets[key]
            began = self._decoder.seek(targets, lambda packet: self._landing(packet, key))
        if began < 0:
            self.close()
            self._decoder = _Decoder(self.path, self._threads, index.by_packet)
            began = 0
        self._began, self._passed = began, began - 1
        if index.disposable.any():
            self._decoder.spares = self._spares

    def _landing(self, packet, key: int) -> int:
        frame = self.index.rank(packet.pos if self.index.by_packet else packet.pts)
        return frame if 0 < frame <= key and frame in self.index.targets else -1

    def _spares(self, packet) -> bool:
        """Whether the decoder need not see a packet: nothing is predicted from its frame, which is not wanted."""
        rank = self.index.rank(packet.pts)
        if rank < 0 or not self.index.disposable[rank]:
            return False
        spared = self.index.lost[rank] or (rank < self._then and rank != self._wanted)
        if spared:
            self._spared.add(rank)
        return spared

    def _advance(self, k: int) -> None:
        """Decode until frame k and all frames decoded before it are out; note those that are not well."""
        index, decoder = self.index, self._decoder
        self._kept = {r: f for r, f in self._kept.items() if r >= k}
        self._spared = {r for r in self._spared if r > self._passed}
        self._doubts = [e for e in self._doubts if index.next_key(e) > k]
        # Where a seek comes next, what is coded after frame k is of no use. (Several threads may still be at work on
        # frames that come out at the end: damage in them would not always be told.)
        ends = self._threads == 1 and not index.by_packet and self._is_far(self._then, int(index.needs[k]))
        decoder.last = int(index.ids[k]) if ends else None
        while self._passed < index.needs[k]:
            frame = next(decoder, None)
            end = int(index.needs[k]) + 1 if decoder.ended else self.n_frames
            rank = self._rank(frame) if frame is not None else end
            if rank <= self._passed:
                continue  # not in the index, or shown before the keyframe that the run began at
            for hole in range(self._passed + 1, min(rank, end)):
                if hole not in self._spared and not (decoder.ended and index.order[hole] > index.order[k]):
                    self._doubt(hole)
            self._passed = min(rank, end - 1)
            if frame is None:
                return
            if frame.is_corrupt or (rank == self._began > 0 and not frame.key_frame):
                decoder.errors += 1
                self._doubt(rank)
            elif rank >= k:
                self._kept[rank] = frame

    def _rank(self, frame) -> int:
        if not self.index.by_packet:
            return self.index.rank(frame.pts, self._passed + 1)
        if len(self.index.keys) == 1 and not self.index.targets[0]:
            return self._passed + 1  # known by its number only
        return self.index.rank(frame.opaque[0] if frame.opaque else None, self._passed + 1)

    def _doubt(self, frame: int) -> None:
        if any(self.index.depends(frame, e) for e in self._doubts):
            return  # perhaps only because of that one
        if self._began == 0:
            self.index.damage(frame)
        self._doubts.append(frame)

    def _strike(self, tried: list[int]) -> None:
        """Keyframes from which a frame could not be had that is there from further back: never again."""
        if tried:
            self.index.keys = [key for key in self.index.keys if key == 0 or key not in tried]

    def _damaged(self, k: int) -> FrameError:
        at = self.index.times[k]
        return FrameError("damaged", f"{self.path}: frame {k} (at {at:.3f} s), or one it is predicted from, is damaged")
