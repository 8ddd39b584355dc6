"""One video under a trained sampler (thesis section 5.2.4): its candidate frames, those picked, and what they say.

The candidates are the instants that stage one would take, decoded once for both networks; what stores know of them is
neither decoded nor computed.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from extract.decode import VideoError, open_source
from extract.transforms import Resize
from pipelines.devices import to_device
from pipelines.extraction import decoder_threads, default_decode_workers
from pipelines.frames import decode_rows
from pipelines.known_rows import KnownVideo, Video, same_windows
from pipelines.recogniser_clips import middles, segment_positions
from pipelines.recognize_networks import ARRAYS, RECOGNISER, ROLES, SAMPLER, Recogniser
from stores import FAILED, OK

__all__ = ["Answer", "Looked", "answer_plainly", "answer_sampled"]

_WIDTH = {SAMPLER: "channels", RECOGNISER: "classes"}  # of the head's config


@dataclass(frozen=True)
class Answer:
    """What the heavy network says of a video from some of its candidates. Of n candidates and K classes:"""

    picked: np.ndarray  # (n,) bool
    scores: np.ndarray  # (n,) float32 of the sampler; NaN where there is none
    logits: np.ndarray  # (K,) float32


@dataclass
class Looked:
    """One video: which instants are candidates, what is known or was decoded of them, and how long that took.

    `find` comes first; n is the number of candidates, at most the head's N.

    Attributes:
        times_s: (n,) float64, when the candidates' frames are taken.
        there: (n,) bool, False of one that cannot be decoded.
        values: {role: (n, C) float32 of its network, NaN of a frame that it has not seen}.
        frames: {resize: n uint8 frames, None of one that is not decoded}.
        seconds: by what was done: stores, opening, decoding, sampler, context, recogniser, picture.
        stored: {role: (path of a store, (n,) bool: what it has of that network's values)}.
    """

    recogniser: Recogniser
    key: str  # its name for people
    video: Video
    failure: VideoError | None = None
    duration_s: float = 0.0
    times_s: np.ndarray = field(default_factory=lambda: np.empty(0))
    there: np.ndarray = field(default_factory=lambda: np.empty(0, bool))
    values: dict[str, np.ndarray] = field(default_factory=dict)
    frames: dict[Resize, list[np.ndarray | None]] = field(default_factory=dict)
    seconds: Counter = field(default_factory=Counter)
    stored: dict[str, tuple[str, np.ndarray]] = field(default_factory=dict)

    def find(self, from_stores: bool = True) -> None:
        """Find the candidates, read what stores know, decode what the light network lacks.

        Raises:
            VideoError: the file cannot be used, or is needed and not there.
        """
        known: dict[str, KnownVideo | None] = dict.fromkeys(ROLES)
        if from_stores:
            with self.timed("stores"):
                known = self.recogniser.known(self.video)
        duration = next((one.duration_s for one in known.values() if one and one.duration_s), None)
        if duration is None:
            with self.timed("opening"), self._open() as source:
                duration = source.duration_s
        starts, stops = self._place(duration)
        with self.timed("stores"):
            for role, one in known.items():
                self._take(role, one, starts, stops)
        lacks = self._unseen(SAMPLER, self.there)
        if lacks.any():  # which of them will be picked is not known yet
            self.decode(lacks, ROLES if self._unseen(RECOGNISER, lacks).any() else [SAMPLER])

    def afresh(self) -> Looked:
        """The same candidates, nothing known or decoded of them."""
        other = Looked(self.recogniser, self.key, self.video, duration_s=self.duration_s, times_s=self.times_s)
        other.there, other.seconds["opening"] = np.ones(len(self.times_s), bool), self.seconds["opening"]
        other.values = {role: np.full_like(values, np.nan) for role, values in self.values.items()}
        return other

    def see(self, role: str, which: np.ndarray) -> None:
        """Let a network see candidates `which` (n,) bool, but those that it has seen: fills `values`.

        Those that cannot be decoded are no longer `there`.
        """
        part = self.recogniser.parts[role]
        lacks = self._unseen(role, which)
        decoded = self.frames.get(part.resize, [None] * len(which))
        undecoded = lacks & np.array([frame is None for frame in decoded])
        if undecoded.any():
            self.decode(undecoded, [role])
        places = np.flatnonzero(lacks & self.there)
        if len(places):
            _ = part.network  # made before the clock runs
            frames = self.frames[part.resize]
            with self.timed(role):
                self.values[role][places] = part.run([frames[i] for i in places])

    def decode(self, which: np.ndarray, roles: Sequence[str], clock: str = "decoding") -> None:
        """Decode candidates `which` (n,) bool, each once, and bring each to the size of every network of `roles`."""
        places = np.flatnonzero(which)
        resizes = list(dict.fromkeys(self.recogniser.parts[role].resize for role in roles))
        for resize in resizes:
            self.frames.setdefault(resize, [None] * len(self.times_s))
        device = self.recogniser.device
        cores = decoder_threads(1 if device == "cpu" else default_decode_workers(device))
        with self.timed(clock):
            with self._open(cores) as source:
                starts = np.r_[0, np.flatnonzero(source.seeks(source.at(self.times_s[places])[0]))]
            # A stretch is decoded by one core: threads of one decoder wait for one another at every seek.
            cuts = [stretches[0] for stretches in np.array_split(starts, cores) if len(stretches)]
            parts = np.split(places, cuts[1:])
            with ThreadPoolExecutor(len(parts)) as pool:
                for done in [pool.submit(self._decode, part, resizes, cores // len(parts)) for part in parts]:
                    done.result()

    def _decode(self, places: np.ndarray, resizes: Sequence[Resize], threads: int) -> None:
        with self._open(threads) as source:
            times = self.times_s[places][:, None]
            # Each reader moves one frame at a time: what the first one decodes, the others find decoded.
            readers = [decode_rows(source, places, times, resize) for resize in resizes]
            for rows in zip(*readers, strict=True):
                for resize, row in zip(resizes, rows, strict=True):
                    if row.frames is None:
                        self.there[row.row] = False
                    else:
                        self.frames[resize][row.row] = row.frames[0]

    def _place(self, duration_s: float) -> tuple[np.ndarray, np.ndarray]:
        """The candidates, (starts, stops): the middle ones of N equal parts of the instants that both networks see, as
        in training; all of them where there are fewer."""
        light, heavy = (self.recogniser.parts[role].windows(duration_s) for role in ROLES)
        both = np.flatnonzero(same_windows(heavy[0], heavy[1], light[0], light[1]) >= 0)
        n = self.recogniser.head.config.frames
        if len(both) > n:
            both = both[segment_positions(np.array([len(both)]), middles(1, n))[0]]
        if not len(both):
            raise VideoError(
                "empty", f"{self.key}: none of its {duration_s:.3f} s is an instant that both networks see"
            )
        starts, stops, self.times_s = (column[both] for column in light)
        self.duration_s, self.there = duration_s, np.ones(len(both), bool)
        return starts, stops

    def _take(self, role: str, known: KnownVideo | None, starts: np.ndarray, stops: np.ndarray) -> None:
        """What a store has of the candidates; one that failed there cannot be had here either."""
        width = getattr(self.recogniser.head.config, _WIDTH[role])
        values = self.values[role] = np.full((len(starts), width), np.nan, np.float32)
        if known is None:
            return
        rows, status = known.at(starts, stops)
        self.there &= status != FAILED
        ok = status == OK
        read = self.recogniser.parts[role].known.read(known, rows[ok]) if ok.any() else None
        if read is not None:
            values[ok] = read
            self.stored[role] = str(known.store.path), ok

    def _unseen(self, role: str, which: np.ndarray) -> np.ndarray:
        return which & self.there & np.isnan(self.values[role][:, 0])

    def _open(self, threads: int = 1):
        if self.video.path is None:
            raise VideoError("missing", f"{self.key}: what stores know of it is not enough, and there is no file")
        return open_source(self.video.path, decoder=self.recogniser.parts[SAMPLER].decoder, threads=threads)

    @contextlib.contextmanager
    def timed(self, what: str):
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - begun


def answer_sampled(looked: Looked) -> Answer:
    """The light network on all candidates, the head's top-M of them, and the heavy network on those alone.

    Raises:
        VideoError: no candidate can be decoded.
    """
    import torch

    from heads.frame_sampling import adaptive_m, select

    recogniser = looked.recogniser
    head, device, n = recogniser.head, recogniser.device, len(looked.times_s)
    looked.see(SAMPLER, looked.there)
    while True:  # again only where a picked frame turns out to be damaged
        if not looked.there.any():
            raise VideoError("damaged", f"{looked.key}: none of its {n} candidate frames can be decoded")
        with looked.timed("context"), torch.inference_mode():
            batch = {"sampler": to_device(_padded(looked, SAMPLER), device)}
            scores, mask = head.scores(batch), batch["sampler"]["mask"]
            threshold = recogniser.threshold
            m = recogniser.sampled if threshold is None else adaptive_m(scores, mask, threshold)
            picked = select(scores, m, mask)[0, :n].cpu().numpy()
        looked.see(RECOGNISER, picked)
        if looked.there[picked].all():
            break
    with looked.timed("context"), torch.inference_mode():
        batch["recogniser"] = to_device(_padded(looked, RECOGNISER), device)
        out = head.predict(batch, m)
    return Answer(picked, np.where(looked.there, scores[0, :n].float().cpu(), np.nan), out["class"][0].cpu().numpy())


def answer_plainly(looked: Looked, which: np.ndarray) -> Answer:
    """The mean of what the heavy network says of candidates `which` (n,) bool, without a sampler.

    Raises:
        VideoError: none of them can be decoded.
    """
    looked.see(RECOGNISER, which)
    which = which & looked.there
    if not which.any():
        raise VideoError("damaged", f"{looked.key}: none of the frames that were picked can be decoded")
    return Answer(which, np.full(len(which), np.nan), looked.values[RECOGNISER][which].mean(axis=0))


def _padded(looked: Looked, role: str) -> dict[str, np.ndarray]:
    """A network's values as a batch of one video of N candidates, and which of them are there."""
    frames, values = looked.recogniser.head.config.frames, np.nan_to_num(looked.values[role])
    rest = frames - len(values)
    return {
        ARRAYS[role]: np.pad(values, ((0, rest), (0, 0)))[None],
        "mask": np.pad(looked.there, (0, rest))[None],
    }
