"""What a dataset is: a table of videos and a table of clips, and the helpers every dataset is made with.

A table is a `dict[str, np.ndarray]` of columns of equal length; strings are object arrays of `str`. Times are
seconds from a video's first frame; class ids are int32, -1 where there is no label.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from errors import UserError

__all__ = [
    "MEDIA",
    "VIDEO_SUFFIXES",
    "Dataset",
    "Table",
    "annotation_hash",
    "check_dataset",
    "clock_masks",
    "dataset_folder",
    "find_media",
    "missing_videos",
    "safe_video_name",
    "select_split",
    "strings",
    "table_length",
    "walk_media",
]

Table = dict[str, np.ndarray]

VIDEO_SUFFIXES = tuple(".mp4 .mkv .mov .avi .webm .m4v .mpg .mpeg .ts .wmv .flv .3gp".split())
# Which folders of a dataset's own folder are searched, first match wins; what is in them: files or frames.
MEDIA = {"rgb": ("videos", "rgb_frames"), "flow": ("flow_frames",)}
FRAME_FOLDERS = ("rgb_frames", "flow_frames")  # these hold frame folders and tars, the others files


@dataclass(frozen=True)
class Dataset:
    """Videos plus annotations, as tables. Validated on construction.

    Raises (on construction):
        UserError: columns of unequal length, repeated video names or clip ids, an index out of range,
            a clip that ends before it starts.
    """

    name: str
    """Name of the dataset or variant, also its folder's name under the feature roots."""
    root: Path
    """Folder that `videos["path"]` is relative to."""
    videos: Table
    """name; path (relative to root, "" if not on disk); kind ("file", "frames", "tar", "" if not on disk)."""
    clips: Table
    """id (unique str); video (int32 index into videos); start_s, stop_s float64 (stop NaN: to the video's
    end); label columns int32 (-1: none); split; split_<scheme> ..."""
    texts: Table | None = None
    """clip (int32 index into clips), caption: any number a clip."""
    labels: Table | None = None
    """clip (int32), label (int32): multi-label annotation, any number a clip."""
    events: Table | None = None
    """video (int32), start_s, stop_s, label (int32): untrimmed labels; start = stop for a point."""
    grid_fps: float | np.ndarray | None = None
    """Rate of the grid that annotations and RGB frame folders are numbered on (file number = index + 1), of
    all videos or one each, float64 (n_videos,); None: no such grid. The same for flow: that its folders have
    one image for two grid frames is the decoder's affair. Ask `grid_fps_of`."""
    classes: dict[str, int] = field(default_factory=dict)
    """Number of outputs of each label column that has a fixed set of classes."""
    class_names: dict[str, list[str]] = field(default_factory=dict)
    """Names of the classes, in the order of their ids."""
    boxes: Table | None = None
    """video (int32), time_s float64, x1, y1, x2, y2 float32 in pixels of `box_reference`, score float32,
    class int32."""
    box_reference: tuple[int, int] | None = None
    """(width, height) that the dataset's boxes are measured in."""
    saoa: dict[str, str] = field(default_factory=dict)
    """Networks whose stores SAOA reads by default, {"backbone": name, "objects": name}; may be empty."""
    annotation_hash: str = ""
    """"sha256:..." of the annotations' content (not of files or of what is on disk); filled in when empty."""
    family: str = ""
    """Name it is registered under, whatever the variant: the key of the sampling presets; "" for a CSV."""
    facts: dict = field(default_factory=dict)
    """Anything else worth keeping: many-shot lists, observed actions, folders that were searched."""

    def __post_init__(self):
        n_videos, n_clips = table_length(self.videos, "videos"), table_length(self.clips, "clips")
        for what, column in (("video name", self.videos["name"]), ("clip id", self.clips["id"])):
            values, counts = np.unique(np.asarray(column, dtype=object), return_counts=True)
            if (counts > 1).any():
                raise UserError(f"dataset {self.name}: {what} {values[counts > 1][0]!r} occurs {counts.max()} times")
        self._indices(self.clips["video"], n_videos, "clips.video")
        for name, key, extent in (
            ("texts", "clip", n_clips),
            ("labels", "clip", n_clips),
            ("events", "video", n_videos),
            ("boxes", "video", n_videos),
        ):
            if (table := getattr(self, name)) is not None:
                table_length(table, name)
                self._indices(table[key], extent, f"{name}.{key}")
        start, stop = self.clips["start_s"], self.clips["stop_s"]
        wrong = np.flatnonzero(~(start >= 0) | (stop <= start))
        if len(wrong):
            i = wrong[0]
            raise UserError(
                f"dataset {self.name}: clip {self.clips['id'][i]!r} is [{start[i]}, {stop[i]}) s; "
                "a clip starts at 0 or later and stops after its start"
            )
        if isinstance(self.grid_fps, np.ndarray) and self.grid_fps.shape != (n_videos,):
            raise UserError(f"dataset {self.name}: grid_fps {self.grid_fps.shape} is not one rate for each video")
        if self.boxes is not None and self.box_reference is None:
            raise UserError(f"dataset {self.name}: boxes without box_reference, the (width, height) they refer to")
        if not self.annotation_hash:
            tables = (self.clips, self.texts, self.labels, self.events, self.boxes)
            object.__setattr__(self, "annotation_hash", annotation_hash(self.videos["name"], *tables))

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips["id"])

    def video_path(self, video: int) -> Path | None:
        """Where video number `video` lies, None if it is not on disk."""
        path = self.videos["path"][video]
        return self.root / path if path else None

    def grid_fps_of(self, video: int) -> float | None:
        """Rate of the grid that video number `video` is numbered on, None if there is no such grid."""
        return float(self.grid_fps[video]) if isinstance(self.grid_fps, np.ndarray) else self.grid_fps

    def _indices(self, values, extent: int, what: str) -> None:
        if len(values) and not (0 <= values.min() and values.max() < extent):
            raise UserError(f"dataset {self.name}: {what} has indices outside [0, {extent})")


def strings(values: Iterable[str]) -> np.ndarray:
    """A one-dimensional object array of `str`."""
    values = list(values)
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def table_length(table: Table, what: str = "table") -> int:
    """Number of rows of a table.

    Raises:
        UserError: columns of unequal length.
    """
    lengths = {name: len(column) for name, column in table.items()}
    if len(set(lengths.values())) > 1:
        raise UserError(f"{what}: columns differ in length: {lengths}")
    return next(iter(lengths.values()), 0)


def annotation_hash(video_names: Iterable[str], *tables: Table | None) -> str:
    """ "sha256:..." of names and tables: equal content gives equal hashes on any platform."""
    digest = hashlib.sha256(json.dumps([str(name) for name in video_names]).encode())
    for number, table in enumerate(tables):
        for name in sorted(table or ()):
            column = np.asarray(table[name])
            digest.update(f"\n{number} {name} {column.shape}\n".encode())
            if column.dtype.kind == "f":
                digest.update(column.astype("<f8").tobytes())
            elif column.dtype.kind in "iub":
                digest.update(column.astype("<i8").tobytes())
            else:
                digest.update(json.dumps([str(value) for value in column]).encode())
    return f"sha256:{digest.hexdigest()}"


def missing_videos(dataset: Dataset) -> list[str]:
    """Names of the videos that are not on disk."""
    return [name for name, path in zip(dataset.videos["name"], dataset.videos["path"], strict=True) if not path]


def select_split(clips: Table, spec: str | None) -> np.ndarray:
    """Boolean mask (n_clips,) of the clips in `[scheme:]part`; part may be several joined by `+`; None: all.

    Raises:
        UserError: no such scheme or part; the message lists those that exist.
    """
    if spec is None:
        return np.ones(len(clips["id"]), dtype=bool)
    scheme, colon, parts = spec.rpartition(":")
    column = f"split_{scheme}" if colon else "split"
    if column not in clips:
        schemes = [name[len("split_") :] for name in clips if name.startswith("split_")]
        raise UserError(f"no split scheme {scheme or 'default'!r}; schemes: {', '.join(schemes) or 'none'}")
    present = sorted(set(clips[column]))
    for part in parts.split("+"):
        if part not in present:
            raise UserError(f"split {spec!r}: no part {part!r} in {column}; it has {', '.join(map(repr, present))}")
    return np.isin(clips[column].astype(str), parts.split("+"))


# ---- files on disk ---------------------------------------------------------------------------------------


def dataset_folder(data_root: Path | None, name: str, contents: str) -> Path:
    """`<data_root>/<name>`, or an error that says what was looked for and where.

    Raises:
        UserError: no data root is known, or the folder is not there.
    """
    if data_root is None:
        raise UserError(
            f"dataset {name} needs a data root: give --data DIR or set CLIPBANK_DATA, "
            f"so that DIR/{name}/ holds {contents}"
        )
    folder = data_root / name
    if not folder.is_dir():
        raise UserError(
            f"dataset {name}: looked for {folder} (holding {contents}), which is not a folder; "
            "give --data DIR or set CLIPBANK_DATA to the folder above it"
        )
    return folder


def safe_video_name(name: str) -> bool:
    """Whether a name from an annotation can only mean something below a root: no `..`, no absolute path."""
    parts = name.split("/")
    return "\\" not in name and name.isprintable() and not any(part.strip() in ("", ".", "..") for part in parts)


def walk_media(folder: Path, wanted: Sequence[str] | set[str] = (), tars: bool = True):
    """Yield (path relative to `folder`, kind) of every video file, tar and wanted frame folder below it.

    One directory walk in sorted order. Frame folders (those named in `wanted`) are not entered; hidden names
    are skipped; links are followed, each folder once.
    """
    wanted, seen = set(wanted), set()

    def visit(place: str, prefix: str):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            return
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(place) as entries:
            listing = sorted(entries, key=lambda entry: entry.name)
        for entry in listing:
            if entry.name.startswith("."):
                continue
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.is_dir():
                if entry.name in wanted:
                    yield prefix + entry.name, "frames"
                else:
                    yield from visit(entry.path, f"{prefix}{entry.name}/")
            elif suffix in VIDEO_SUFFIXES:
                yield prefix + entry.name, "file"
            elif suffix == ".tar" and tars:
                yield prefix + entry.name, "tar"

    yield from visit(os.fspath(folder), "")


def find_media(
    root: Path, names: Sequence[str], media: str = "rgb", folders: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find each video's file, frame folder or tar under `folders` (of `MEDIA[media]`), preferring the first.

    `rgb_frames/` and `flow_frames/` are searched for folders (P01_01/) and tars (P01_01.tar), any other folder
    for files (P01_01.MP4), at any depth, by name without suffix.

    Returns:
        path (relative to root, "" where there is none) and kind ("file", "frames", "tar", ""), object arrays.

    Raises:
        UserError: a name that two files of one of these folders match.
    """
    found: dict[str, tuple[str, str]] = {}
    for subfolder in MEDIA[media] if folders is None else folders:
        here: dict[str, tuple[str, str]] = {}
        of_frames = subfolder in FRAME_FOLDERS
        allowed = ("frames", "tar") if of_frames else ("file",)
        if not (root / subfolder).is_dir():
            continue
        for path, kind in walk_media(root / subfolder, names if of_frames else ()):
            stem = path.rpartition("/")[2]
            stem = stem if kind == "frames" else os.path.splitext(stem)[0]
            if kind not in allowed:
                continue
            if stem in here:
                raise UserError(
                    f"video {stem!r} is there twice under {root}: {here[stem][0]} and {subfolder}/{path}; "
                    "move one of them away"
                )
            here[stem] = (f"{subfolder}/{path}", kind)
        found = {**here, **found}
    pairs = [found.get(name, ("", "")) for name in names]
    return strings(path for path, _ in pairs), strings(kind for _, kind in pairs)


# ---- checking --------------------------------------------------------------------------------------------


def check_dataset(dataset: Dataset) -> dict:
    """Counts of a dataset, as plain JSON values, and what is wrong with it.

    Returns:
        dataset, root, annotation_hash; rows, splits {part: rows}, labelled_rows; classes {label: outputs};
        observed {label: classes that occur}; captions; videos, videos_on_disk, missing [names], searched
        [folders]; whole_video_clips (no stop); and, where the annotations list durations and rates, the
        counts of `clock_masks`.
    """
    clips, videos = dataset.clips, dataset.videos
    missing = missing_videos(dataset)
    labels = [name for name in clips if clips[name].dtype == np.int32 and name != "video"]
    labelled = np.zeros(len(dataset), dtype=bool)
    for name in labels:
        labelled |= clips[name] >= 0
    result = {
        "dataset": dataset.name,
        "root": str(dataset.root),
        "annotation_hash": dataset.annotation_hash,
        "rows": len(dataset),
        "splits": _counts(clips["split"]) if "split" in clips else {},
        "labelled_rows": int(labelled.sum()),
        "classes": dict(dataset.classes),
        "observed": {name: len(np.unique(clips[name][clips[name] >= 0])) for name in labels},
        "captions": table_length(dataset.texts or {}),
        "whole_video_clips": int(np.isnan(clips["stop_s"]).sum()),
        "videos": len(videos["name"]),
        "videos_on_disk": len(videos["name"]) - len(missing),
        "missing": missing,
        "searched": [str(folder) for folder in dataset.facts.get("searched", [])],
    }
    if "listed_duration_s" in videos:
        result |= {name: int(mask.sum()) for name, mask in clock_masks(dataset).items()}
    return result


def _counts(column: np.ndarray) -> dict[str, int]:
    values, counts = np.unique(column.astype(str), return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def clock_masks(dataset: Dataset) -> dict[str, np.ndarray]:
    """Where clips and the listed durations and rates of their videos disagree, as boolean masks (n_clips,).

    past_end: the clip ends after its video. centre_past_end: so does its centre. centre_outside: the frame on
    screen at the clip's centre, in a video of the real rate, lies outside the clip's own segment. These are
    to be all False. native_past_end and native_centre_outside: what would go wrong if the annotation's frame
    columns were taken for frame numbers of the video file; they are why the columns are read as instants on a
    grid.
    """
    video, start, stop = (dataset.clips[name] for name in ("video", "start_s", "stop_s"))
    duration, rate = dataset.videos["listed_duration_s"][video], dataset.videos["listed_fps"][video]
    grid = np.array([dataset.grid_fps_of(i) or np.nan for i in range(len(dataset.videos["name"]))])[video]
    centre = np.floor((start + stop) / 2 * grid + 1e-6) / grid
    shown = np.floor((centre + 0.0005) * rate) / rate  # time of the frame on screen then
    native = (start + stop) / 2 * grid / rate
    return {
        "past_end": stop > duration,
        "centre_past_end": centre >= duration,
        "centre_outside": (shown < start - 1e-6) | (shown >= stop),
        "native_past_end": np.rint(stop * grid) + 1 > np.floor(duration * rate),
        "native_centre_outside": (native < start) | (native >= stop),
    }
