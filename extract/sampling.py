"""Which windows of a video become rows, and at which instants their frames are taken.

Everything is decided as integers on a nominal grid (`sampling.fps` instants a second) and divided by its rate
at the very end, so times are exact and the same on every machine. The frame of an instant is the one on
screen then, which the decoder decides; a window is never clamped to its video.

Rows are a table: video, clip, k int32; draw int16; start_s, stop_s float64.
"""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace

import numpy as np

from errors import UserError, count_of
from extract.decode import TOLERANCE_S

__all__ = [
    "OBJECT_WINDOWS",
    "PRESETS",
    "GRID_AXES",
    "ClipSampling",
    "GridSampling",
    "Preset",
    "Sampling",
    "SegmentSampling",
    "TextSampling",
    "clip_frames",
    "clip_rows",
    "counter_uniform",
    "frame_rows",
    "frame_rows_at",
    "instants",
    "object_windows",
    "preset_for",
    "sampling_from",
    "segment_rows",
    "text_rows",
    "window_starts",
]

Table = dict[str, np.ndarray]

_EPSILON = 1e-6  # of a grid step: swallows float64 rounding of seconds, far below any real difference


@dataclass(frozen=True)
class ClipSampling:
    """One window per annotated clip and draw: `frames` instants, `stride` grid steps apart.

    The window around grid instant c is [g0/fps, (g0 + frames*stride)/fps) with g0 = c - (frames//2)*stride.
    """

    frames: int
    stride: int
    fps: float
    axis = "clip"

    def __post_init__(self):
        if self.frames < 1 or self.stride < 1 or not self.fps > 0:
            raise UserError(f"sampling needs frames >= 1, stride >= 1 and fps > 0, not {self}")

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.frames * self.stride / self.fps


@dataclass(frozen=True)
class GridSampling:
    """One frame at every k/fps of a video; start = stop = that instant."""

    fps: float
    axis = "frame"

    def __post_init__(self):
        if not self.fps > 0:
            raise UserError(f"sampling needs fps > 0, not {self.fps}")


@dataclass(frozen=True)
class SegmentSampling:
    """A window that slides over a whole video: `frames` instants, `stride` grid steps apart, moved by `hop` steps.

    Window k is [k*hop/fps, (k*hop + frames*stride)/fps). Of a waveform, fps is its sample rate and frames are samples.
    """

    frames: int
    stride: int
    fps: float
    hop: int
    axis = "segment"

    def __post_init__(self):
        if self.frames < 1 or self.stride < 1 or self.hop < 1 or not self.fps > 0:
            raise UserError(f"sampling needs frames, stride and hop >= 1 and fps > 0, not {self}")

    @property
    def seconds(self) -> float:
        """Length of the window."""
        return self.frames * self.stride / self.fps


@dataclass(frozen=True)
class TextSampling:
    """One row a caption, with its clip's window."""

    axis = "text"


Sampling = ClipSampling | GridSampling | SegmentSampling | TextSampling
GRID_AXES = ("frame", "segment")  # rows are counted off along a video, so its length must be known


def sampling_from(recipe: dict) -> Sampling:
    """The sampling that a store's recipe names: {"axis": ..., its fields}."""
    kinds = {kind.axis: kind for kind in (ClipSampling, GridSampling, SegmentSampling, TextSampling)}
    fields = dict(recipe)
    return kinds[fields.pop("axis")](**fields)


def clip_rows(
    clips: Table,
    sampling: ClipSampling,
    draws: int = 0,
    seed: int = 0,
    training: np.ndarray | None = None,
    durations: np.ndarray | None = None,
    test_clips: int = 0,
) -> Table:
    """Rows of the clip axis, in (video, time) order.

    Draw 0 is centred on the middle grid instant of every clip. Draws 1..`draws`, for training clips only, are
    centred on grid instants drawn uniformly inside the clip from (seed, clip id, draw) alone, so neither more
    clips nor more draws ever move one. A clip shorter than a grid step is centred on the instant before its
    middle. Draws -1..-`test_clips`, for all other clips, are centred in the middles of so many equal parts of the clip.

    Args:
        clips: columns id, video, start_s, stop_s, and split unless `training` is given.
        sampling: the window.
        draws: number of random draws of each training clip.
        seed: of the random draws.
        training: boolean mask (n_clips,); default: where split is "train".
        durations: length of every video in seconds, NaN where unknown; needed by clips without a stop. Clips
            whose end is unknown have no rows.

    Raises:
        UserError: clips without a stop and no durations; draws or test clips outside 0..32767.
    """
    for flag, n in (("--draws", draws), ("--test-clips", test_clips)):
        if not 0 <= n <= np.iinfo(np.int16).max:
            raise UserError(f"{flag} {n} is outside 0..{np.iinfo(np.int16).max}")
    video, start, stop = clips["video"], clips["start_s"], clips["stop_s"]
    open_ended = np.isnan(stop)
    if open_ended.any():
        if durations is None:
            clip = clips["id"][np.flatnonzero(open_ended)[0]]
            raise UserError(
                f"{count_of(open_ended.sum(), 'clip has', 'clips have')} no stop (first: {clip!r}): "
                "they are planned once their videos are probed"
            )
        # One that starts after its video's end keeps its row: the decoder fails it, and nothing else.
        stop = np.where(open_ended, np.maximum(durations[video], start), stop)

    known = np.flatnonzero(~np.isnan(stop))
    clips = {**clips, "stop_s": stop}
    if training is None and (draws or test_clips):
        training = clips["split"] == "train"
    drawn = known[np.asarray(training, dtype=bool)[known]] if draws else known[:0]
    tested = known[~np.asarray(training, dtype=bool)[known]] if test_clips else known[:0]
    chosen = [known, *([drawn] * draws), *([tested] * test_clips)]
    clip = np.concatenate(chosen)
    of_draw = np.concatenate([np.arange(draws + 1), -1 - np.arange(test_clips)])
    draw = np.repeat(of_draw, [len(part) for part in chosen])
    g0 = _window_starts(clips, sampling, clip, draw, seed, test_clips)
    order = np.lexsort((draw, clip, g0, video[clip]))
    clip, draw, g0 = clip[order], draw[order], g0[order]
    return {
        "video": video[clip].astype(np.int32),
        "clip": clip.astype(np.int32),
        "k": np.zeros(len(clip), dtype=np.int32),
        "draw": draw.astype(np.int16),
        "start_s": g0 / sampling.fps,
        "stop_s": (g0 + sampling.frames * sampling.stride) / sampling.fps,
    }


def window_starts(clips: Table, sampling: ClipSampling, which: np.ndarray, draw: int, seed: int = 0) -> np.ndarray:
    """First instants (n,) float64, in seconds, of the windows that `clip_rows` gives clips `which` (n,) for one draw.

    Training that draws afresh in every epoch takes draw = epoch + 1: its windows are those that rows of that draw show.
    All these clips must have a stop.
    """
    which = np.asarray(which, np.int64)
    return _window_starts(clips, sampling, which, np.full(len(which), draw), seed) / sampling.fps


def _window_starts(
    clips: Table, sampling: ClipSampling, clip: np.ndarray, draw: np.ndarray, seed: int, test_clips: int = 0
) -> np.ndarray:
    """First grid instant (n,) int64 of the window of each clip and draw."""
    known = np.flatnonzero(~np.isnan(clips["stop_s"]))
    first, count = _grid_instants(clips["start_s"], clips["stop_s"], sampling.fps, known)
    centre = first[clip] + count[clip] // 2
    random = np.flatnonzero(draw > 0)
    if len(random):
        ids, place = np.unique(clip[random], return_inverse=True)
        u = counter_uniform(seed, _key_hash(clips["id"][ids])[place], draw[random])
        centre[random] = first[clip[random]] + (u * count[clip[random]]).astype(np.int64)
    spaced = np.flatnonzero(draw < 0)
    if len(spaced):
        part = -draw[spaced].astype(np.int64)  # from 1 on
        centre[spaced] = first[clip[spaced]] + (2 * part - 1) * count[clip[spaced]] // (2 * test_clips)
    return centre - sampling.frames // 2 * sampling.stride


def _grid_instants(start, stop, fps: float, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First grid instant inside each [start, stop), and how many there are (at least 1); int64 (n_clips,)."""
    first, count = np.zeros(len(start), dtype=np.int64), np.ones(len(start), dtype=np.int64)
    lowest = np.ceil(start[known] * fps - _EPSILON).astype(np.int64)
    end = np.ceil(stop[known] * fps - _EPSILON).astype(np.int64)
    middle = np.floor((start[known] + stop[known]) / 2 * fps + _EPSILON).astype(np.int64)
    first[known] = np.where(end > lowest, lowest, middle)
    count[known] = np.maximum(end - lowest, 1)
    return first, count


def frame_rows(durations: np.ndarray, sampling: GridSampling) -> Table:
    """Rows of the frame axis: one at every k/fps before the end of each video, in (video, time) order.

    An instant less than the decoder's tolerance before the end has no frame (`FrameSource.at`), and no row.

    Args:
        durations: length of every video in seconds (n_videos,), NaN where it is not known: no rows.
        sampling: the grid.
    """
    return _grid_rows(_frame_counts(durations, sampling.fps), 1, 0, sampling.fps)


def _frame_counts(durations: np.ndarray, fps: float) -> np.ndarray:
    """Grid instants of each video that have a frame: int64 (n_videos,)."""
    durations = np.asarray(durations, dtype=np.float64)
    known = np.isfinite(durations) & (durations > 0)
    ends = np.where(known, durations - TOLERANCE_S, 0)
    return np.maximum(np.ceil(ends * fps - _EPSILON), 0).astype(np.int64)


def frame_rows_at(video: np.ndarray, k: np.ndarray, sampling: GridSampling) -> Table:
    """Those rows of `frame_rows` that are instants k (n,) of videos (n,), each once, in (video, time) order."""
    video, k = np.unique(np.stack([np.asarray(video, np.int64), np.asarray(k, np.int64)]), axis=1)
    return _rows(video, k, 1, 0, sampling.fps)


def clip_frames(clips: Table, durations: np.ndarray, sampling: GridSampling) -> tuple[np.ndarray, np.ndarray]:
    """(first k, how many) of the rows of `frame_rows` in each clip [start, stop), int64 (n_clips,).

    A clip without a stop reaches to its video's end; one between two instants has the one on screen at its middle. A
    clip of a video without rows has none.
    """
    counts = _frame_counts(durations, sampling.fps)[clips["video"]]
    length = np.nan_to_num(np.asarray(durations, np.float64))[clips["video"]]
    stop = np.where(np.isnan(clips["stop_s"]), np.maximum(length, clips["start_s"]), clips["stop_s"])
    first, count = _grid_instants(clips["start_s"], stop, sampling.fps, np.arange(len(stop)))
    first = np.minimum(first, np.maximum(counts - 1, 0))
    return first, np.where(counts > 0, np.clip(counts - first, 1, count), 0)


def segment_rows(durations: np.ndarray, sampling: SegmentSampling) -> Table:
    """Rows of the segment axis, in (video, time) order: every window of which at least half lies inside its video.

    A video that is shorter than half a window has one row all the same.

    Args: as for `frame_rows`.
    """
    durations = np.asarray(durations, dtype=np.float64)
    known = np.isfinite(durations) & (durations > 0)
    steps = np.where(known, durations, 0) * sampling.fps - sampling.frames * sampling.stride / 2
    counts = np.where(known, np.maximum(np.floor(steps / sampling.hop + _EPSILON) + 1, 1), 0).astype(np.int64)
    return _grid_rows(counts, sampling.hop, sampling.frames * sampling.stride, sampling.fps)


def _grid_rows(counts: np.ndarray, hop: int, span: int, fps: float) -> Table:
    """counts[i] rows of video i, `hop` grid steps apart, each `span` steps long."""
    video = np.repeat(np.arange(len(counts)), counts)
    k = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return _rows(video, k, hop, span, fps)


def _rows(video: np.ndarray, k: np.ndarray, hop: int, span: int, fps: float) -> Table:
    return {
        "video": video.astype(np.int32),
        "clip": np.full(len(k), -1, dtype=np.int32),
        "k": k.astype(np.int32),
        "draw": np.zeros(len(k), dtype=np.int16),
        "start_s": k * hop / fps,
        "stop_s": (k * hop + span) / fps,
    }


def text_rows(clips: Table, texts: Table) -> Table:
    """Rows of the text axis: the k-th caption of every clip, with the clip's window, in (video, clip, k) order.

    Args:
        clips: columns id, video, start_s, stop_s.
        texts: columns clip (int32 index into clips), caption; captions of a clip are counted in the table's order.
    """
    order = np.lexsort((np.arange(len(texts["clip"])), texts["clip"], clips["video"][texts["clip"]]))
    clip = texts["clip"][order]
    first = np.flatnonzero(np.diff(clip, prepend=-1))
    k = np.arange(len(clip)) - np.repeat(first, np.diff(np.append(first, len(clip))))
    return {
        "video": clips["video"][clip].astype(np.int32),
        "clip": clip.astype(np.int32),
        "k": k.astype(np.int32),
        "draw": np.zeros(len(clip), dtype=np.int16),
        "start_s": clips["start_s"][clip],
        "stop_s": clips["stop_s"][clip],
    }


def instants(rows: Table, sampling: ClipSampling | GridSampling | SegmentSampling) -> np.ndarray:
    """When each frame of each row is taken: float64 (n_rows, frames), seconds from the video's first frame.

    May be negative or past the video's end: the decoder repeats the edge frame and counts it as padding.
    """
    g0 = np.rint(np.asarray(rows["start_s"]) * sampling.fps)[:, None]
    if isinstance(sampling, GridSampling):
        return g0 / sampling.fps
    return (g0 + np.arange(sampling.frames) * sampling.stride) / sampling.fps


# ---- seeded draws ----------------------------------------------------------------------------------------


def counter_uniform(seed: int, *keys) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, decided by seed and keys alone, the same on every platform.

    Each key is a str, an int, or an array of them (strings as object or str arrays; uint64 arrays are taken
    as hashes already); they broadcast against each other.
    """
    state = _mix(_as_uint64(seed))
    for key in keys:
        hashed = key if isinstance(key, np.ndarray) and key.dtype == np.uint64 else _key_hash(key)
        state = _mix(state ^ hashed)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _key_hash(key) -> np.ndarray:
    """uint64 of a key or of an array of keys."""
    array = np.asarray(key)
    if array.dtype.kind in "iu":
        return _as_uint64(array)
    digests = [hashlib.blake2b(str(value).encode(), digest_size=8).digest() for value in array.reshape(-1)]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64).reshape(array.shape)


def _as_uint64(value) -> np.ndarray:
    return np.atleast_1d(np.asarray(value, dtype=np.int64)).view(np.uint64).reshape(np.shape(value))


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64 (Steele, Lea and Flood, OOPSLA 2014): one step of the generator from state x."""
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64
        x = np.asarray(x) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


# ---- presets ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preset:
    """How a dataset is sampled for a family of networks."""

    sampling: Sampling
    resize: dict = field(default_factory=lambda: {"mode": "none"})
    """Arguments of `extract.transforms.Resize`."""


_EPIC_I3D = Preset(ClipSampling(frames=64, stride=2, fps=60.0), {"mode": "squash", "size": 256})
_EPIC_R2PLUS1D = Preset(ClipSampling(frames=32, stride=2, fps=60.0), {"mode": "squash", "size": 128})

# Frames a second of networks that read single frames: detectors, RoI networks, image backbones; by dataset family.
# PSN decodes whole videos at one frame a second, and ten-second clips at 30 (thesis section 5.3.1).
FRAME_FPS: dict[str, float] = {"": 2.0, "activitynet": 1.0, "fcvid": 1.0, "mini_kinetics": 30.0}

# (dataset family, network family or kind) -> preset; what is not here is sampled as `preset_for` says.
PRESETS: dict[tuple[str, str], Preset] = {
    # RGB and flow alike. The published flow has one image for two grid frames, so every second grid instant
    # shows the next of 64 consecutive flow images, and the windows of the two streams are equal.
    ("epic55", "i3d"): _EPIC_I3D,
    ("epic55", "r3d50"): _EPIC_I3D,
    ("epic55", "r2plus1d34"): _EPIC_R2PLUS1D,
    # EPIC-100's videos of 50 frames a second show 2.13 s too: instants count, not numbers of frames.
    ("epic100", "i3d"): _EPIC_I3D,
    ("epic100", "r3d50"): _EPIC_I3D,
    ("epic100", "r2plus1d34"): _EPIC_R2PLUS1D,
    # STAM: 16 consecutive frames of 320 x 240.
    ("egtea", "i3d"): Preset(ClipSampling(16, stride=1, fps=24.0), {"mode": "short_side", "size": 240, "crop": 224}),
    ("toykitchen", "i3d"): Preset(ClipSampling(16, stride=4, fps=60.0), {"mode": "squash", "size": 112}),
    ("toykitchen", "small3d"): Preset(ClipSampling(16, stride=4, fps=60.0), {"mode": "squash", "size": 112}),
    ("toykitchen", "roi"): Preset(GridSampling(2.0), {"mode": "none"}),  # its frames are small, 224 x 168
    # Cached frames: every instant that a clip of the same dataset can show, in the size that its networks see.
    ("", "frames"): Preset(GridSampling(25.0), {"mode": "short_side", "size": 256}),
    ("epic55", "frames"): Preset(GridSampling(30.0), {"mode": "squash", "size": 256}),
    ("epic100", "frames"): Preset(GridSampling(30.0), {"mode": "squash", "size": 256}),
    ("egtea", "frames"): Preset(GridSampling(24.0), {"mode": "short_side", "size": 240}),
    ("toykitchen", "frames"): Preset(GridSampling(15.0), {"mode": "squash", "size": 112}),
    # Of whole videos no more than what image networks are shown.
    **{
        (family, "frames"): Preset(GridSampling(fps), {"mode": "short_side", "size": 256})
        for family, fps in FRAME_FPS.items()
        if family
    },
}

# Seconds around a clip's centre from which SAOA takes objects (thesis section 3.3): for nouns and for verbs.
OBJECT_WINDOWS: dict[str, dict[str, float]] = {
    "": {"noun": 6.0, "verb": 4.0},
    "toykitchen": {"noun": 2.0, "verb": 2.0},
}


def object_windows(family: str) -> dict[str, float]:
    """{"noun": seconds, "verb": seconds} around the clip's centre; `family` as in `Dataset.family`."""
    return dict(OBJECT_WINDOWS.get(family, OBJECT_WINDOWS[""]))


def preset_for(
    family: str, spec, axis: str | None = None, hop_s: float | None = None, own: Collection[str] = ()
) -> Preset:
    """How a dataset is sampled for a network.

    `PRESETS` decides where it has an entry. Elsewhere networks that read single frames see `FRAME_FPS` a second,
    waveforms slide over the whole video, texts are the clips' captions, and the others see what their own spec says
    (clip_len, stride, fps; for Kinetics networks 64 frames at 25 fps) of every annotated clip.

    Args:
        family: `Dataset.family`, the same for all variants of a dataset.
        spec: a network's spec: family, reads, clip_len, stride, fps, hop, resize.
        axis: clip, frame or segment instead of the default; segment windows are those the clip axis would have.
        hop_s: seconds from one row to the next on the frame and segment axes.
        own: fields of the spec that the user chose (clip_len, stride, fps, resize): they count before `PRESETS`.

    Raises:
        UserError: an axis that the network cannot have.
    """
    keys = ((family, spec.family), (family, spec.kind), ("", spec.family))
    preset = next((PRESETS[key] for key in keys if key in PRESETS), None)
    resize = dict(preset.resize if preset and "resize" not in own else spec.resize)
    if spec.reads == "text":
        _only_axis(spec, axis, "text")
        return Preset(TextSampling(), resize)
    if spec.reads.endswith("_frame"):
        if axis == "clip":
            raise UserError(f"{spec.name} looks at single frames: its axis is frame or segment, not clip")
        fps = 1 / hop_s if hop_s else preset.sampling.fps if preset else FRAME_FPS.get(family, FRAME_FPS[""])
        return Preset(SegmentSampling(1, 1, fps, hop=1) if axis == "segment" else GridSampling(fps), resize)
    clip = ClipSampling(spec.clip_len, spec.stride, spec.fps)
    if preset:
        fields = {"frames": "clip_len", "stride": "stride", "fps": "fps"}
        clip = replace(
            preset.sampling, **{field: getattr(clip, field) for field, option in fields.items() if option in own}
        )
    axis = axis or ("segment" if hop_s or spec.reads == "waveform" else "clip")
    if axis == "clip":
        return Preset(clip, resize)
    _only_axis(spec, axis, "segment")
    own_hop = spec.hop if (clip.frames, clip.stride, clip.fps) == (spec.clip_len, spec.stride, spec.fps) else 0
    hop = max(1, round(hop_s * clip.fps)) if hop_s else own_hop or clip.frames * clip.stride
    return Preset(SegmentSampling(clip.frames, clip.stride, clip.fps, hop), resize)


def _only_axis(spec, axis: str | None, only: str) -> None:
    if axis not in (None, only):
        raise UserError(f"{spec.name} reads {spec.reads}: its axis is {only}, not {axis}")
