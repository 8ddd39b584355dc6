"""Video files through decord (the decord2 wheel), for those who want it: the same face, the same frames.

decord [decord2 3.4.0] goes on decoding the whole video into memory once it has begun, so a reader lives
only while one batch is taken, and none is open while the consumer works. It returns frame k + 1 for k after a
seek in HEVC files and other frames after a seek where GOPs are open, gives AVI files times of its own, shows
the frames that an edit list hides, delivers nothing at some widths (96 pixels), and loses a whole batch to
one damaged packet. Opening therefore compares it with the project's own reader, and refuses a file where
the two do not pick the same frames.
"""

import av
import numpy as np

from errors import UserError
from extract.decode import FrameError
from extract.pixels import Converter
from extract.transforms import Resize, plan_resize
from extract.video_files import VideoFile

__all__ = ["DecordFile"]

BATCH = 16  # frames in memory at once, at the source's size
SAMPLES = 8  # frames compared when a file is opened
TOLERANCE = 2.0  # mean absolute difference in grey levels
REFUSED_CODECS = {"hevc": "decord returns frame k + 1 for frame k after a seek in HEVC files"}


class DecordFile(VideoFile):
    """A video file whose frames decord decodes; index, times and probe are the project's own."""

    def __init__(self, path, threads: int | None = None):
        try:
            import decord
        except ImportError:
            raise UserError("--decoder decord needs the package decord2: pip install decord2") from None
        super().__init__(path, threads)
        self._library = decord
        self._upright = Converter()  # decord turns the frames by itself
        self._check()

    def seeks(self, indices):
        return np.zeros(len(indices), bool)  # a second reader would be compared once more, which takes longer

    def read(self, indices, resize: Resize | None = None):
        place = plan_resize(resize or Resize(), self.width, self.height)
        wanted = self._ascending(indices)
        for start in range(0, len(wanted), BATCH):
            batch = wanted[start : start + BATCH]
            for k, frame in zip(batch, self._batch(batch), strict=True):
                if isinstance(frame, FrameError):
                    yield k, frame
                else:
                    yield k, self._upright(av.VideoFrame.from_ndarray(frame, "rgb24"), place)

    def _batch(self, batch: list[int]) -> list:
        try:
            reader = self._reader()
            return list(reader.get_batch(batch).asnumpy())
        except self._library.DECORDError as e:
            why = _first_line(e)
        return [FrameError("damaged", f"{self.path}: decord lost the batch of frame {k} ({why})") for k in batch]

    def _reader(self):
        return self._library.VideoReader(self.path, num_threads=self._threads)

    def _check(self) -> None:
        """Refuse the file (UserError) unless decord picks the same frames."""
        if self.index.codec in REFUSED_CODECS:
            raise self._refusal(REFUSED_CODECS[self.index.codec])
        if self.index.by_packet:
            raise self._refusal("its packets carry no usable times, by which decord finds frames")
        if any(self.index.needs[key - 1] >= key for key in self.index.keys if key):
            raise self._refusal("frames are shown before a keyframe that they follow (open GOP); decord loses count")
        try:
            reader = self._reader()
            count, times = len(reader), reader.get_frame_timestamp(range(len(reader)))[:, 0]
            del reader
        except self._library.DECORDError as e:
            raise self._refusal(f"decord cannot open it ({_first_line(e)})") from e
        if count != self.n_frames:
            raise self._refusal(f"decord counts {count} frames, there are {self.n_frames}")
        apart = np.abs((times - times[0]) - self.index.times)
        if not np.all(apart * self.fps < 0.5):
            raise self._refusal(f"decord's time of frame {int(np.argmax(apart))} differs")
        spread = [round(x) for x in np.linspace(0, self.n_frames - 1, SAMPLES)]
        keys = self.index.keys  # looked at once: other threads replace the list
        keys = [keys[round(x)] for x in np.linspace(0, len(keys) - 1, SAMPLES)]
        for k in sorted({*spread, *keys}):  # one at a time, so that each is reached by a seek
            (_, mine), (_, theirs) = *super().read([k]), *self.read([k])
            for frame in (mine, theirs):
                if isinstance(frame, FrameError):
                    raise self._refusal(f"frame {k} cannot be compared ({frame})")
            if mine.shape != theirs.shape or np.abs(mine.astype(np.int16) - theirs).mean() > TOLERANCE:
                raise self._refusal(f"decord shows another picture for frame {k}")
        self.close()

    def _refusal(self, why: str) -> UserError:
        return UserError(f"{self.path}: --decoder decord cannot be used here: {why}. Use --decoder pyav")


def _first_line(error: Exception) -> str:
    """decord's message without its own date, file and line."""
    line = str(error).strip().splitlines()[0]
    return line.partition(": ")[2] or line
