"""Videos recognised by a trained sampler, one after another, and what that costs against looking at more frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from errors import UserError
from extract.datasets.base import walk_media
from extract.decode import VideoError
from heads.metrics import softmax
from pipelines.extraction import default_decode_workers
from pipelines.known_rows import Video
from pipelines.overlap import in_threads
from pipelines.recognize_networks import RECOGNISER, SAMPLER, Recogniser, open_recogniser
from pipelines.recognize_video import Answer, Looked, answer_plainly, answer_sampled
from pipelines.run_folder import Run

__all__ = ["recognize", "videos_of"]

_AHEAD = 2  # decoded videos that wait for a GPU
_GREY = 128  # of a frame that could not be decoded, in a strip


def recognize(
    videos: Iterable[str | Path],
    run: str | Path | Run,
    *,
    top: int = 5,
    compare: bool = False,
    strips: str | Path | None = "recognized",
    progress: Callable[[str, int], object] | None = None,
    **options,
) -> Iterator[dict]:
    """What a run makes of videos, one after another, as plain data.

    Args:
        videos: files, folders of videos (with their subfolders), or names of videos that stores of the run's recipes
            know.
        run: of train-head psn or scsampler, or of train-backbone --head psn-sampler; or its folder.
        top: how many labels are told.
        compare: recognise every video from uniform frames, and from all candidates, too, and time all three; nothing
            is taken from stores then.
        strips: folder for a picture of every video's candidates (figure 5.5); None: no pictures.
        progress: makes a bar from (title, total), as `pipelines.extract` takes it; of more than one video.
        options: of `open_recogniser`.

    Yields {"video", "path", "failure": {"reason", "message"}} of a video that cannot be used, else {"video", "path",
    "duration_s", "labels": [{"class", "label", "probability"}], "frames": [{"time_s", "score" (None: it cannot be
    decoded), "picked"}] of all candidates, "methods": [{"method", "frames", "gflops", "label"; where it ran
    "networks_s", "decoding_s"}] (the run's head, uniform, dense), "from_stores": {role: {"store", "rows", "of"}} (of
    the frames that a network had to see), "strip"}.
    GFLOPs are multiply-adds, None where frames differ in size.

    Raises:
        UserError: no such video; a run, stores or weights that are not there or not right; wrong settings.
    """
    if top < 1:
        raise UserError(f"--top must be at least 1, got {top}")
    recogniser = open_recogniser(run, **options)
    found = videos_of(videos, recogniser)
    return _each(recogniser, found, top, compare, None if strips is None else Path(strips), progress)


def videos_of(given: Iterable[str | Path], recogniser: Recogniser) -> list[tuple[str, Video]]:
    """(name for people and pictures, video) of files, of the videos in folders, and of names that stores know.

    Raises:
        UserError: what is none of these; a folder without videos.
    """
    found: list[tuple[str, Video]] = []
    for item in given:
        path = Path(item)
        if path.is_dir():
            inside = [name for name, _ in walk_media(path, tars=False)]
            if not inside:
                raise UserError(f"{path} has no videos in it (looked for files such as .mp4, .mkv, .avi, .webm)")
            found += [(name, Video(Path(name).stem, path / name)) for name in inside]
        elif path.suffix.lower() == ".tar":
            raise UserError(f"{path}: recognize takes video files; a tar of frames has no clock of its own")
        elif path.exists():
            found.append((path.name, Video(path.stem, path)))
        else:
            video = Video(str(item), None)
            if not any(recogniser.known(video).values()):
                raise UserError(
                    f"{item}: no such file or folder, and no store with this run's recipes has a video of that name"
                )
            found.append((str(item), video))
    if not found:
        raise UserError("say which videos: files, folders, or names of videos that the run's stores know")
    seen: Counter = Counter()
    unique = []
    for key, video in found:
        seen[key] += 1
        unique.append((key if seen[key] == 1 else f"{key}-{seen[key]}", video))
    return unique


def _each(recogniser: Recogniser, found, top: int, compare: bool, strips: Path | None, progress) -> Iterator[dict]:
    if compare:
        recogniser.warm_up()
    bar = progress("recognizing", len(found)) if progress and len(found) > 1 else None
    failed = 0
    try:
        for looked in _looked(recogniser, found, from_stores=not compare):
            facts = {"video": looked.key, "path": str(looked.video.path) if looked.video.path else None}
            try:
                if looked.failure is not None:
                    raise looked.failure
                answer = answer_sampled(looked)
                facts |= _facts(looked, answer, top, compare)
                facts["strip"] = _strip(looked, answer, strips, facts)
            except VideoError as error:
                failed += 1
                facts["failure"] = {"reason": error.reason, "message": str(error)}
            if bar is not None:
                bar.set_postfix_str(f"{failed:,} failed")
                bar.update(1)
            yield facts
    finally:
        if bar is not None:
            bar.close()


def _looked(recogniser: Recogniser, found: Sequence[tuple[str, Video]], from_stores: bool) -> Iterator[Looked]:
    """The videos, decoded as far as the light network needs it. Threads decode ahead of a GPU; on a CPU they would take
    the cores from the networks."""

    def one(item: tuple[str, Video]) -> Iterator[Looked]:
        looked = Looked(recogniser, *item)
        try:
            looked.find(from_stores)
        except VideoError as error:
            looked.failure = error
        yield looked

    if recogniser.device == "cpu" or len(found) == 1:
        for item in found:
            yield from one(item)
    else:
        yield from in_threads(one, found, default_decode_workers(recogniser.device), _AHEAD)


def _facts(looked: Looked, answer: Answer, top: int, compare: bool) -> dict:
    recogniser, probabilities = looked.recogniser, softmax(answer.logits)
    methods = [_method(recogniser, recogniser.method, answer.picked, looked, answer)]
    for name, picked in _baselines(looked.there, int(answer.picked.sum())).items():
        other = looked.afresh() if compare else None
        said = answer_plainly(other, picked) if compare else None
        methods.append(_method(recogniser, name, picked, other, said))
    labels = [
        {"class": int(i), "label": recogniser.label(int(i)), "probability": float(probabilities[i])}
        for i in np.argsort(-probabilities, kind="stable")[:top]
    ]
    frames = [
        {"time_s": float(time), "score": float(score) if there else None, "picked": bool(picked)}
        for time, score, there, picked in zip(looked.times_s, answer.scores, looked.there, answer.picked, strict=True)
    ]
    used = {SAMPLER: looked.there, RECOGNISER: answer.picked}
    stored = {
        role: {"store": store, "rows": int((rows & used[role]).sum()), "of": int(used[role].sum())}
        for role, (store, rows) in looked.stored.items()
    }
    facts = {"duration_s": looked.duration_s, "labels": labels, "frames": frames, "methods": methods}
    return facts | {"from_stores": {role: found for role, found in stored.items() if found["rows"]}}


def _baselines(there: np.ndarray, sampled: int) -> dict[str, np.ndarray]:
    """{method: which candidates it looks at, (n,) bool}: as many as the sampler picked, and all."""
    import torch

    from heads import frame_sampling

    mask = torch.from_numpy(there)[None]
    picks = {"uniform": frame_sampling.uniform(mask, sampled), "dense": frame_sampling.dense(mask)}
    return {name: picked[0].numpy() for name, picked in picks.items()}


def _method(
    recogniser: Recogniser, name: str, picked: np.ndarray, looked: Looked | None, answer: Answer | None
) -> dict:
    """What one way to pick frames costs, and where it ran, says."""
    sampled = int(picked.sum())
    found = {"method": name, "frames": sampled, "gflops": recogniser.gflops(name, len(picked), sampled)}
    if looked is not None:
        seconds = looked.seconds
        found["networks_s"] = seconds[SAMPLER] + seconds["context"] + seconds[RECOGNISER]
        found["decoding_s"] = seconds["opening"] + seconds["decoding"]
        found["label"] = recogniser.label(int(answer.logits.argmax()))
    return found


def _strip(looked: Looked, answer: Answer, folder: Path | None, facts: dict) -> str | None:
    """The picture of a video's candidates; frames that came from stores are decoded for it, where there is a file."""
    if folder is None or looked.video.path is None:
        return None
    from pipelines.sampler_pictures import strip

    resize, n = looked.recogniser.parts[SAMPLER].resize, len(looked.times_s)
    lacks = looked.there & np.array([frame is None for frame in looked.frames.get(resize, [None] * n)])
    if lacks.any():
        looked.decode(lacks, [SAMPLER], clock="picture")
    frames = looked.frames[resize]
    shape = next(frame.shape for frame in frames if frame is not None)
    shown = [np.full(shape, _GREY, np.uint8) if frame is None else frame for frame in frames]
    best = facts["labels"][0]
    title = f"{looked.key}: {best['label']}, {best['probability']:.0%}; {answer.picked.sum()} of {n} frames"
    return str(strip(folder / f"{looked.key}.png", shown, answer.scores, answer.picked, title,
                     looked.times_s.tolist()))  # fmt: skip
