"""Makes toy kitchen's folder: videos (H.264 and AAC in MP4) and annotations, whole or not at all."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from fractions import Fraction
from pathlib import Path

import numpy as np

from errors import MachineError
from extract.cores import usable_cores
from extract.datasets.toykitchen.annotations import scene_at, write_annotations
from extract.datasets.toykitchen.counter import draw_counter
from extract.datasets.toykitchen.dials import GENERATOR, Dials
from extract.datasets.toykitchen.script import SCENE, SIZE, VERBS, Video, frame_ticks, state_at, write_script

__all__ = ["make_toykitchen", "render_video"]

CARD = "toykitchen.json"  # what a folder was made with


def make_toykitchen(
    root: Path | str,
    dials: Dials | None = None,
    *,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Make a variant of toy kitchen under the data root, or find the one that is already there.

    Args:
        root: data root; the folder is `root / dials.name`, holding annotations/ and videos/. A folder of that name
            made by another version of the generator is left alone, and the name gets the hash's first 8 digits.
        dials: what to make; default `Dials()`.
        jobs: processes; default one a CPU core, at most 8. The files do not depend on it.
        progress: called with (videos done, videos in all), first with 0 done; not called when nothing is to be made.

    Returns:
        The folder. It appears only when complete: it is made under a hidden temporary name and renamed.

    Raises:
        MachineError: the data root cannot be written.
    """
    root, dials = Path(root), dials or Dials()
    for folder in (root / dials.name, root / f"{dials.name}-{dials.hash[:8]}"):
        if made_with(folder) == dials.hash:
            return folder
        if not folder.exists():
            break
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{dials.name}.", dir=root))
    except OSError as error:
        raise MachineError(f"toykitchen cannot be made under {root}: {error.strerror}") from error
    try:
        temporary.chmod(0o777 & ~current_umask())
        fill(temporary, dials, jobs or default_jobs(), progress or (lambda done, total: None))
        try:
            temporary.rename(folder)
        except OSError:  # another process was faster: its folder is the same
            if made_with(folder) != dials.hash:
                raise
        return folder
    except OSError as error:
        raise MachineError(f"toykitchen cannot be made under {root}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def made_with(folder: Path) -> str | None:
    """The hash of the dials a folder was made with; None if it is not a complete toy kitchen."""
    try:
        return json.loads((folder / CARD).read_text(encoding="utf-8"))["hash"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def current_umask() -> int:
    """The process's umask (mkdtemp makes folders that only their owner can read; shared data needs the umask's)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def default_jobs() -> int:
    """CPU cores this process may use, at most 8."""
    return min(usable_cores(), 8)


def fill(folder: Path, dials: Dials, jobs: int, progress: Callable[[int, int], None]) -> None:
    """Write everything into `folder`, the card last."""
    videos = write_script(dials)
    (folder / "annotations").mkdir()
    (folder / "videos").mkdir()
    progress(0, len(videos))
    longest_first = sorted(range(len(videos)), key=lambda i: (videos[i].rate == "15", -len(videos[i].scenes)))
    work = [(dials, i, str(folder / "videos" / f"{videos[i].name}.mp4")) for i in longest_first]
    jobs = min(jobs, len(work))
    if jobs == 1:
        write_annotations(folder / "annotations", videos, dials)
        for done, task in enumerate(work, 1):
            render_video(*task)
            progress(done, len(work))
    else:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(render_video, *task) for task in work]
            try:
                write_annotations(folder / "annotations", videos, dials)
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    progress(done, len(work))
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    card = {"hash": dials.hash, "generator": GENERATOR, "dials": dataclasses.asdict(dials)}
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def render_video(dials: Dials, index: int, path: str) -> None:
    """Draw, sound and encode video number `index` of the script into an MP4 file.

    One encoder thread: the same dials give the same bytes with the same libraries.
    """
    import av

    from extract.datasets.toykitchen.scene import SceneRenderer

    video = write_script(dials)[index]
    ticks, numerator, denominator = frame_ticks(video)
    with av.open(path, "w", options={"fflags": "+bitexact"}) as container:
        rate = Fraction(denominator, numerator) if video.rate != "variable" else Fraction(30)
        picture = container.add_stream("libx264", rate=rate)
        picture.width, picture.height, picture.pix_fmt = *SIZE, "yuv420p"
        picture.options = {"preset": "superfast", "crf": "23", "g": "60", "threads": "1"}
        picture.codec_context.time_base = picture.time_base = Fraction(numerator, denominator)
        sound = SoundTrack(container, video)
        renderer, shown = None, None
        for tick in ticks.tolist():
            time = tick * numerator / denominator
            scene, t = scene_at(video, time)
            if scene is not shown:
                if shown is not None:
                    sound.add(shown)
                renderer, shown = SceneRenderer(scene, video.split), scene
            pixels = renderer.draw(state_at(scene, t))
            if video.counter:
                draw_counter(pixels, round(time * 1000))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = tick, Fraction(numerator, denominator)
            container.mux(picture.encode(frame))
        container.mux(picture.encode(None))
        sound.add(shown)
        sound.close()


class SoundTrack:
    """The AAC stream of one video, a scene at a time."""

    def __init__(self, container, video: Video):
        """Add the stream to an open output container."""
        from extract.datasets.toykitchen.sound import RATE

        self.container, self.video, self.done = container, video, 0
        self.stream = container.add_stream("aac", rate=RATE, layout="mono")
        self.stream.bit_rate = 32_000

    def add(self, scene) -> None:
        """Encode one scene's sound: its action over the kitchen's hum."""
        import av

        from extract.datasets.toykitchen.sound import RATE, action_sound, hum

        n = SCENE * RATE // 60
        wave = hum(np.random.default_rng([*self.video.seed, 14]), n)
        if scene.verb >= 0:
            first, last = round(scene.begin * RATE), round(scene.end * RATE)
            rng = np.random.default_rng([*self.video.seed, 15, scene.start])
            wave[first:last] += action_sound(VERBS[scene.verb], rng, last - first)
        frame = av.AudioFrame.from_ndarray(np.clip(wave, -1, 1)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self.done, Fraction(1, RATE)
        self.done += n
        self.container.mux(self.stream.encode(frame))

    def close(self) -> None:
        """Flush the encoder."""
        self.container.mux(self.stream.encode(None))
