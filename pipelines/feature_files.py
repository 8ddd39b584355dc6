"""Formats of one file a video: video_features, ActionFormer, Ego4D, MMT. Writers make what those tools read."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from errors import MachineError, UserError
from pipelines.formats import (
    Context,
    Entry,
    OneExpert,
    Sequence,
    Videos,
    checked,
    load_npy,
    need_folder,
    not_there,
    quoted,
    register_format,
    step_times,
    unquoted,
)
from pipelines.importing import MmtDump

EVEN_S = 1e-3
"""Steps between rows that differ by at most this, in seconds, are even."""

TIMES = {"step_s": "seconds from one feature to the next", "window_s": "seconds that a feature sees"}
OF_VIDEO_FEATURES = ("timestamps_ms", "fps")


# -- video_features ----------------------------------------------------------------------------------------------------


def write_npy(folder: Path, videos: Videos, context: Context) -> None:
    """`<video>_<feature>.npy` (n, ...) float32, and `<video>_timestamps_ms.npy` (n,) float64, of all its features.

    As v-iashin/video_features@17be411 names and saves them (models/_base/base_extractor.py: action_on_extraction,
    utils/utils.py: make_path), whose timestamps are those of a frame, or of the end of a stack of frames: here, of
    the end of each row's window. It has one folder for the features of one run, such as rgb and flow of I3D, which
    share their times. Raises UserError for features of a video that do not.
    """
    for video, sequences in videos:
        _refuse_other_times(video, sequences)
        for feature, found in sequences.items():
            path = folder / f"{quoted(video)}_{quoted(feature)}.npy"
            if path.exists():  # of v and a_b, and of v_a and b
                raise UserError(f"{video}, {feature}: {path.name} is another video's already; export them one by one")
            np.save(path, found.features)
            if not np.isnan(found.stop_s).any():
                np.save(folder / f"{quoted(video)}_timestamps_ms.npy", 1000.0 * found.stop_s)


def _refuse_other_times(video: str, sequences: Mapping[str, Sequence]) -> None:
    (first, one), *others = sequences.items()
    for feature, other in others:
        alike = len(one.stop_s) == len(other.stop_s)
        if not (alike and np.allclose(one.stop_s, other.stop_s, rtol=0, atol=EVEN_S, equal_nan=True)):
            raise UserError(
                f"{video}: {first} and {feature} do not have the same times, and this format has one file of times a"
                " video: export them one by one, each into a folder of its own (or as webdataset or mmt)"
            )


class NpyDump:
    """A folder of video_features: every feature with the times that are there if they are as many as its vectors.

    It names no feature that a file of times is of: where several features of a video are not equally many, those that
    are not as many as the times have none.
    """

    name = "npy"

    def __init__(self, root: Path, step_s: float | None = None, window_s: float | None = None):
        self.root, self.step_s, self.window_s = need_folder(root, "<video>_<feature>.npy"), step_s, window_s

    @cached_property
    def files(self) -> dict[str, dict[str, Path]]:
        """{feature: {video: file}}. A video's name may hold underscores: it is known by its times where it has some."""
        paths = {path.stem: path for path in sorted(self.root.glob("*.npy"))}
        ends = tuple(f"_{name}" for name in OF_VIDEO_FEATURES)
        known = {stem[: -len(end)] for stem in paths for end in ends if stem.endswith(end)}
        found: dict[str, dict[str, Path]] = {}
        for stem, path in paths.items():
            if stem.endswith(ends) or "_" not in stem:
                continue
            cuts = [found.start() for found in re.finditer("_", stem)]
            at = next((cut for cut in reversed(cuts) if stem[:cut] in known), cuts[-1])
            found.setdefault(stem[at + 1 :], {})[unquoted(stem[:at])] = path
        return found

    def experts(self) -> list[str]:
        return sorted(self.files)

    def videos(self, expert: str) -> list[str]:
        return sorted(self.files[expert])

    def read(self, video: str, expert: str) -> Entry:
        path = self.files[expert].get(video)
        if path is None:
            return not_there(video, self.root)
        features = checked(load_npy(path, str(path)), str(path))
        if features is None:
            return Entry()
        if self.step_s is not None:
            return Entry(features, step_times(len(features), self.step_s, self.window_s))
        times_file = path.with_name(f"{path.stem.removesuffix(f'_{expert}')}_timestamps_ms.npy")
        times = load_npy(times_file, str(times_file)) if times_file.is_file() else np.empty(0)
        if times.dtype.kind not in "fiu" or times.ndim != 1:
            raise UserError(f"{times_file}: expected times (n,), got {times.dtype} {times.shape}")
        if len(times) != len(features):  # of another feature of the video
            return Entry(features)
        stop = times.astype(np.float64) / 1000
        return Entry(features, np.stack([stop - (self.window_s or 0.0), stop], axis=1))

    def captions(self, video: str) -> list[str]:
        return []

    def declared(self, expert: str) -> dict[str, Any]:
        given = {"step_s": self.step_s, "window_s": self.window_s}
        how = "as given" if self.step_s is not None else "ends of windows, as in <video>_timestamps_ms.npy, if as many"
        return {
            "files": self.root.name,
            "times": how,
            **{key: value for key, value in given.items() if value is not None},
        }


register_format(
    "npy",
    what="video_features: <video>_<feature>.npy (n, C) and <video>_timestamps_ms.npy",
    source="v-iashin/video_features@17be411baea80db0f08b5f8ab1d46fe3b3ed5130",
    write=write_npy,
    read=NpyDump,
    several=True,
    options=TIMES,
)


class FileAVideo(OneExpert):
    """A folder of `<video><suffix>`, each the features (n, C) of one video."""

    suffix = ""

    @cached_property
    def files(self) -> dict[str, Path]:
        return {unquoted(path.stem): path for path in sorted(self.root.glob(f"*{self.suffix}"))}

    def videos(self, expert: str) -> list[str]:
        return sorted(self.files)

    def read(self, video: str, expert: str) -> Entry:
        if video not in self.files:
            return not_there(video, self.root)
        path = self.files[video]
        features = checked(self.load(path), str(path))
        return Entry() if features is None else Entry(features, self.times(len(features)))


# -- ActionFormer ------------------------------------------------------------------------------------------------------


def write_actionformer(folder: Path, videos: Videos, context: Context, fps: float = 30.0) -> None:
    """`<video>.npy` (n, C) float32, and `actionformer.json` with feat_stride, num_frames, default_fps and input_dim.

    As libs/datasets/thumos14.py of happyharrycn/actionformer_release@18e5860 reads them: it takes feature i to be at
    (i * feat_stride + num_frames / 2) / fps seconds, so rows must be evenly spaced, all videos begin alike and no row
    lack. fps: that feat_stride and num_frames are counted in, in the configuration as `default_fps`.
    Raises UserError naming the first video that is not even.
    """
    (feature,) = context.features
    first_s, step_s, width = None, None, 0
    for video, sequences in videos:
        found = sequences[feature]
        steps = np.diff(found.centre_s)
        if not len(found.features):
            continue
        if np.isnan(found.centre_s).any():
            raise UserError(f"{video}: its rows have no times, which ActionFormer needs")
        first_s = found.centre_s[0] if first_s is None else first_s
        step_s = float(np.median(steps)) if step_s is None and len(steps) else step_s
        if abs(found.centre_s[0] - first_s) > EVEN_S or (np.abs(steps - (step_s or 0.0)) > EVEN_S).any():
            raise UserError(
                f"{video}: ActionFormer needs rows at even steps that begin alike in every video; here the first centre"
                f" is {found.centre_s[0]:g} s (elsewhere {first_s:g}), the steps are {steps.min(initial=np.inf):g} to"
                f" {steps.max(initial=0):g} s. Export a store of the frame or segment axis without failed rows"
            )
        width = found.features.shape[1]
        np.save(folder / f"{quoted(video)}.npy", found.features)
    facts = {
        "feat_stride": None if step_s is None else step_s * fps,
        "num_frames": None if first_s is None else 2 * first_s * fps,
        "default_fps": fps,
        "input_dim": width,
        "file_ext": ".npy",
        "file_prefix": None,
    }
    (folder / "actionformer.json").write_text(json.dumps(facts, indent=1) + "\n")


class ActionFormerDump(FileAVideo):
    """A folder of `<video>.npy`; times by `actionformer.json`, or by the step that is given.

    A folder of video_features is refused: its files of times and rates would be taken for videos.
    """

    name, suffix = "actionformer", ".npy"

    def __init__(self, root: Path, step_s: float | None = None, window_s: float | None = None):
        need_folder(root, "<video>.npy")
        beside = next(root.glob(f"*_{OF_VIDEO_FEATURES[0]}.npy"), None)
        if beside is not None:
            raise UserError(f"{root} holds {beside.name}: it is laid out as video_features does. Import it as npy")
        given = {"step_s": step_s, "window_s": window_s}
        self.step_s, self.first_s = step_s, None
        path = root / "actionformer.json"
        if step_s is None and path.is_file():
            try:
                facts = json.loads(path.read_bytes())
                self.step_s = facts["feat_stride"] and facts["feat_stride"] / facts["default_fps"]
                self.first_s = facts["num_frames"] and facts["num_frames"] / 2 / facts["default_fps"]
            except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
                raise UserError(f"{path} does not give feat_stride, num_frames and default_fps: {error!r}") from error
            given |= {"step_s": self.step_s, "first_centre_s": self.first_s}
        self.window_s = window_s
        super().__init__(root, given | {"times": "even steps"} if self.step_s else given)

    def load(self, path: Path) -> np.ndarray:
        return load_npy(path, str(path))

    def times(self, n: int) -> np.ndarray | None:
        times = step_times(n, self.step_s, self.window_s if self.first_s is None else 0.0)
        if times is not None and self.first_s is not None:
            half = (self.window_s or 0.0) / 2
            times = times + self.first_s + np.array([-half, half])
        return times


register_format(
    "actionformer",
    what="ActionFormer: <video>.npy (n, C), its feat_stride in actionformer.json",
    source="happyharrycn/actionformer_release@18e586076223060e76997cc1de85bbc91016c558",
    write=write_actionformer,
    read=ActionFormerDump,
    options={"fps": "frames a second that feat_stride is counted in", **TIMES},
)


# -- Ego4D -------------------------------------------------------------------------------------------------------------


def write_ego4d(folder: Path, videos: Videos, context: Context) -> None:
    """`<video>.pt`: a float32 tensor (n, C), in time order.

    As facebookresearch/Ego4d@00c58d4 saves them (ego4d/features/extract_features.py: perform_feature_extraction).
    """
    import torch

    (feature,) = context.features
    for video, sequences in videos:
        save_tensors(torch.from_numpy(sequences[feature].features), folder / f"{quoted(video)}.pt")


class Ego4dDump(FileAVideo):
    """A folder of `<video>.pt`, loaded with `weights_only`: tensors, and nothing that runs."""

    name, suffix = "ego4d", ".pt"

    def __init__(self, root: Path, step_s: float | None = None, window_s: float | None = None):
        need_folder(root, "<video>.pt")
        self.step_s, self.window_s = step_s, window_s
        how = {} if step_s is None else {"times": "as given"}
        super().__init__(root, {"step_s": step_s, "window_s": window_s, **how})

    def load(self, path: Path) -> np.ndarray:
        return as_array(load_tensors(path), str(path))

    def times(self, n: int) -> np.ndarray | None:
        return step_times(n, self.step_s, self.window_s)


def save_tensors(value: Any, path: Path) -> None:
    """torch.save; a full disk is a MachineError."""
    import torch

    try:
        with open(path, "wb") as file:
            torch.save(value, file)
    except RuntimeError as error:
        raise MachineError(f"writing {path.name} failed: {str(error).splitlines()[0][:200]}") from error


def load_tensors(path: Path) -> Any:
    """What `torch.save` wrote: tensors in plain containers. Raises UserError for anything else."""
    import pickle

    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path} cannot be read as tensors alone: {reason}") from error


def as_array(value: Any, where: str) -> np.ndarray:
    """A tensor as an array; half precision as float32."""
    import torch

    if not isinstance(value, torch.Tensor):
        raise UserError(f"{where}: expected a tensor, got {type(value).__name__}")
    return (value.float() if value.is_floating_point() else value).numpy()


register_format(
    "ego4d",
    what="Ego4D: <video>.pt, a tensor (n, C)",
    source="facebookresearch/Ego4d@00c58d4264554cf5142205e18b0abd75dd53a116",
    write=write_ego4d,
    read=Ego4dDump,
    options=TIMES,
)


# -- MMT ---------------------------------------------------------------------------------------------------------------


def write_mmt(folder: Path, videos: Videos, context: Context) -> None:
    """`vid_feat_files/mult_h5/v/i/d/<video>.h5` with features.<expert> (n, C) float32, features_t.<expert> (n, 2)
    float64 (NaN: unknown), raw_captions.<i> (words,) and raw_captions_t.<i> (words, 2), zeros.

    As base/base_dataset.py of gabeur/mmt@0d848cd reads them: times of s3d and vggish only (other experts are at fixed
    steps there), and no video without a caption. Raises UserError for a name whose first three characters make no
    folders.
    """
    for video, sequences in videos:
        if len(video) < 3 or "." in video[:3] or quoted(video) != video:
            raise UserError(
                f"{video!r}: MMT files videos as v/i/d/<video>.h5, by the first three characters of their names, which"
                " this name does not allow"
            )
        path = folder.joinpath("vid_feat_files", "mult_h5", *video[:3], f"{video}.h5")
        path.parent.mkdir(parents=True, exist_ok=True)
        captions = context.captions(video)
        if not captions:
            context.announce(f"{video} has no caption: MMT's own loader refuses its file")
        with h5py.File(path, "w") as file:
            for expert, found in sequences.items():
                file[f"features.{expert}"] = found.features
                file[f"features_t.{expert}"] = np.stack([found.start_s, found.stop_s], axis=1)
            for i, caption in enumerate(captions):
                words = caption.split() or ["."]  # MMT's own mark of a caption without words
                file.create_dataset(f"raw_captions.{i}", data=np.array(words, object), dtype=h5py.string_dtype())
                file[f"raw_captions_t.{i}"] = np.zeros((len(words), 2))


register_format(
    "mmt",
    what="MMT: vid_feat_files/mult_h5/v/i/d/<video>.h5 with features.<expert>, features_t.<expert>, raw_captions.<i>",
    source="gabeur/mmt@0d848cd0811dbcbee06a62cf474636e68d728944",
    write=write_mmt,
    read=MmtDump,
    several=True,
)
