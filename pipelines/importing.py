"""Features of others into stores: any format that has a reader (`pipelines.formats`), of which two are here, the
published dumps of MMT (Gabeur et al. 2020) and of collaborative-experts (Liu et al. 2019).

A dump says what it holds, not how it was computed, so the recipe of such a store is declared, not verified. Rows are
on the segment axis: k counts the features of one video and expert. A video for which the dump says that the expert
found nothing has one row, absent; one that the dump does not know has one row, failed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from errors import UserError, count_of
from extract.datasets import Dataset
from extract.unpickle import read_pickle
from pipelines.formats import Dump, Entry, check_options, checked, find_format, register_format, step_times
from stores import (
    ABSENT,
    FAILED,
    OK,
    PENDING,
    ArraySpec,
    Manifest,
    Store,
    Unit,
    create_store,
    plan_layout,
    recipe_difference,
)
from stores.limits import is_safe_part

__all__ = ["MmtDump", "import_features", "read_mmt"]

UNIT_ROWS = 1024

# MMT's own loader believes the times in the files for these experts only, ...
_TIMED = ("s3d", "vggish")
# ... takes the features of these to follow each other at a fixed step in seconds, and knows no time of the others.
_STEP_S = {"rgb": 0.2, "scene": 1.0, "s3d": 1.0, "vggish": 1.0}


def import_features(
    source_format: str,
    root: str | Path,
    dataset: str | Dataset,
    experts: Sequence[str] | None = None,
    features_root: str | Path = "features",
    *,
    dtype: str = "float16",
    options: Mapping[str, Any] | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write one store `<features_root>/<dataset>/<format>_<expert>.zarr` an expert, and seal it.

    Args:
        source_format: one of `pipelines.formats.list_formats()` that has a reader: mmt, ce, npy, ...
        root: mmt: the folder with `vid_feat_files/mult_h5`; ce: the one with `aggregated_*` or `structured-symlinks`;
            the others: the folder of the files, or the one file.
        dataset: the videos, clips and captions that the stores describe; or only a name: the videos are those of the
            dump, each one clip, with the dump's captions where it has them (mmt).
        experts: which of the dump's; None: all.
        dtype: of `vector` (C): float16 or float32.
        options: what the format's files do not say, such as step_s and window_s; they become part of what is declared.
        announce: takes lines meant for a person.

    Returns:
        The stores' paths. Where the same import was begun before it goes on; what is finished stays as it is.

    Raises:
        UserError: no such dump or expert, a file or value that is none (file and key are named), no video in common
            with the dataset, or another store in the way.
    """
    if dtype not in ("float16", "float32"):
        raise UserError(f"dtype must be float16 or float32, got {dtype!r}")
    if isinstance(dataset, str) and not is_safe_part(dataset):
        raise UserError(f"dataset {dataset!r} names a folder of stores: it may hold no '/' and begin with no '.'")
    chosen = find_format(source_format, "read")
    check_options(chosen, chosen.read, options or {})
    dump = chosen.read(Path(root), **(options or {}))
    known = dump.experts()
    unknown = [expert for expert in experts or () if expert not in known]
    if unknown or not known:
        raise UserError(f"{root} has no expert {', '.join(unknown) or 'at all'}; it has {', '.join(known) or 'none'}")
    paths = []
    for expert in experts or known:
        described = dataset if isinstance(dataset, Dataset) else _bare_dataset(dataset, dump, expert)
        name = f"{source_format}_{re.sub(r'[^A-Za-z0-9_.=-]+', '_', expert)}"
        path = Path(features_root) / described.name / f"{name}.zarr"
        store = _import_one(dump, expert, described, path, dtype)
        counts = np.bincount(store.status(), minlength=4)
        announce(
            f"{path}: {count_of(counts[OK], 'feature')} of {store.manifest.arrays['vector'].row_shape[0]} values; "
            f"{count_of(counts[ABSENT], 'video')} without {expert}, {count_of(counts[FAILED], 'row')} failed"
        )
        paths.append(path)
    return paths


def read_mmt(
    root: str | Path, expert: str, video_names: Sequence[str] | None = None
) -> Iterator[tuple[str, np.ndarray | None, np.ndarray | None]]:
    """Every video of an MMT dump with the features of one expert.

    Args:
        root: the folder with `vid_feat_files/mult_h5/<v>/<i>/<d>/<video>.h5`, or that one itself.
        video_names: which, in this order; None: all, by name.

    Yields:
        (video, features (n, C) float32, times as the file gives them, (n, 2) or (n,) float64 seconds, None if it
        gives none); features and times are None for a video without the expert.

    Raises:
        UserError: no such dump, or a file or dataset that is none: both are named.
    """
    dump = MmtDump(Path(root))
    for video in video_names if video_names is not None else dump.videos(expert):
        features, times = dump.values(video, expert)
        yield video, features, times


# -- MMT ---------------------------------------------------------------------------------------------------------------


class MmtDump:
    """One HDF5 file a video: features.<expert> (n, C), features_t.<expert> (n, 2), raw_captions.<i> (words,)."""

    name = "mmt"

    def __init__(self, root: Path) -> None:
        found = [folder for folder in (root / "vid_feat_files" / "mult_h5", root) if folder.name == "mult_h5"]
        self.folder = next((folder for folder in found if folder.is_dir()), None)
        if self.folder is None:
            raise UserError(f"{root} is no dump of MMT: expected {found[0]}/v/i/d/video0.h5")

    @cached_property
    def files(self) -> dict[str, Path]:
        """{video: file} of those that lie where MMT looks for them: videos are looked up here, and no path is ever
        made of a name, which may begin with "/" or lead up by ".."."""
        found = sorted(self.folder.glob("*/*/*/*.h5"))
        return {path.stem: path for path in found if path.parts[-4:-1] == tuple(path.stem[:3])}

    def videos(self, expert: str) -> list[str]:
        return list(self.files)

    def experts(self) -> list[str]:
        """Those of any file."""
        found: set[str] = set()
        for path in self.files.values():
            with _hdf5(path) as file:
                found |= {key.removeprefix("features.") for key in file if key.startswith("features.")}
        return sorted(found)

    def values(self, video: str, expert: str) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(features, times as the file gives them) of a video; None where there are none."""
        if video not in self.files:
            raise UserError(f"{_mmt_name(video)}: no such file; the dump in {self.folder} has no video {video!r}")
        path = self.files[video]
        key, times_key = f"features.{expert}", f"features_t.{expert}"
        with _hdf5(path) as file:
            features = checked(_array(file, key), f"{path}, {key}") if key in file else None
            if features is None or times_key not in file:
                return features, None
            times = _array(file, times_key)
        if times.dtype.kind not in "fiu" or times.ndim not in (1, 2) or times.shape[1:] not in ((), (2,)):
            raise UserError(f"{path}, {times_key}: expected times (n, 2) or (n,), got {times.dtype} {times.shape}")
        return features, times[: len(features)].astype(np.float64)  # some files have more times than features

    def read(self, video: str, expert: str) -> Entry:
        if video not in self.files:
            return Entry(failure=("not_in_dump", f"no file {_mmt_name(video)}"))
        features, times = self.values(video, expert)
        if features is None:
            return Entry()
        if expert in _TIMED and times is not None:
            if times.ndim != 2 or len(times) < len(features):
                raise UserError(
                    f"{self.files[video]}, features_t.{expert}: expected {len(features)} rows of start and stop, got"
                    f" {times.shape}"
                )
            return Entry(features, times)
        return Entry(features, step_times(len(features), _STEP_S.get(expert)))

    def captions(self, video: str) -> list[str]:
        """raw_captions.0, .1, ...: words joined by blanks."""
        path = self.files[video]
        with _hdf5(path) as file:
            keys = sorted((key for key in file if re.fullmatch(r"raw_captions\.\d+", key)), key=_number)
            return [" ".join(_word(word, f"{path}, {key}") for word in np.ravel(_array(file, key))) for key in keys]

    def declared(self, expert: str) -> dict[str, Any]:
        step = _STEP_S.get(expert)
        times = f"{step:g} s each" if step else "unknown"
        return {"times": f"as in the files, else {times}" if expert in _TIMED else times}


def _mmt_name(video: str) -> str:
    """Where a video's file would be, for people."""
    return f"{'/'.join(video[:3])}/{video}.h5"


def _hdf5(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path} cannot be read as HDF5: {str(error)[:200]}") from error


def _array(file: h5py.File, key: str) -> np.ndarray:
    """A dataset whole."""
    if not isinstance(file[key], h5py.Dataset):
        raise UserError(f"{file.filename}, {key}: expected a dataset, found a group")
    try:
        return np.asarray(file[key][()])
    except OSError as error:
        raise UserError(f"{file.filename}, {key} cannot be read: {str(error)[:200]}") from error


def _number(key: str) -> int:
    return int(key.rpartition(".")[2])


def _word(word: Any, where: str) -> str:
    if isinstance(word, bytes):
        return word.decode("utf-8", errors="replace")
    if not isinstance(word, str):
        raise UserError(f"{where}: expected words, got {type(word).__name__}")
    return word


# -- collaborative-experts ---------------------------------------------------------------------------------------------


class _CollaborativeExperts:
    """One pickle an expert, {video: array (C,) or (n, C), or NaN where it is missing}, in folders that say how.

    `aggregated_i3d_25fps_256px_stride25_offset0_inner_stride1/i3d-avg.pickle` is the expert "i3d.i3d-avg". MMT's
    features for the CVPR 2020 challenge are laid out alike.
    """

    name = "ce"

    def __init__(self, root: Path) -> None:
        found = [root / "structured-symlinks", root]
        folders = [f for base in found if base.is_dir() for f in sorted(base.glob("aggregated_*")) if f.is_dir()]
        self.files: dict[str, Path] = {}
        for folder in folders:
            for path in sorted(folder.iterdir()):
                if path.suffix in (".pickle", ".pkl") and not folder.name.startswith("aggregated_text"):
                    short = f"{_kind(folder.name)}.{path.stem}"
                    self.files[short if short not in self.files else f"{folder.name}.{path.stem}"] = path
        if not folders:
            raise UserError(f"{root} is no dump of collaborative-experts: expected {found[0]}/aggregated_*/*.pickle")
        self._loaded: tuple[str, dict] = ("", {})

    def experts(self) -> list[str]:
        return sorted(self.files)

    def load(self, expert: str) -> dict[str, Any]:
        """The pickle of an expert; the last one stays in memory."""
        if self._loaded[0] != expert:
            self._loaded = ("", {})  # not two of them at once
            path = self.files[expert]
            content = read_pickle(path)
            if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
                raise UserError(f"{path}: expected features by video name, got {type(content).__name__}")
            self._loaded = (expert, content)
        return self._loaded[1]

    def videos(self, expert: str) -> list[str]:
        return sorted(self.load(expert))

    def read(self, video: str, expert: str) -> Entry:
        content = self.load(expert)
        if video not in content:
            return Entry(failure=("not_in_dump", f"no key {video} in {self.files[expert].name}"))
        value = content[video]
        if value is None or (isinstance(value, float) and np.isnan(value)):
            return Entry()
        return Entry(checked(value, f"{self.files[expert]}, {video}"))

    def captions(self, video: str) -> list[str]:
        return []

    def declared(self, expert: str) -> dict[str, Any]:
        """What the names of folder and file say."""
        path = self.files[expert]
        said = {"file": f"{path.parent.name}/{path.name}", "times": "unknown"}
        for key, pattern in {"fps": r"_(\d+)fps", "pixels": r"_(\d+)px", "stride": r"px_stride(\d+)"}.items():
            if match := re.search(pattern, path.parent.name):
                said[key] = int(match[1])
        if match := re.search(r"-(avg|max|fixed_seg)(?=-|$)", path.stem):
            said["pooling"] = match[1]
        return said


def _kind(folder: str) -> str:
    """ "i3d" of "aggregated_i3d_25fps_256px_stride25", "audio" of "aggregated_audio_feats"."""
    return re.sub(r"(_\d+fps.*|_feats)$", "", folder.removeprefix("aggregated_"))


register_format(
    "ce",
    what="collaborative-experts: one pickle an expert, {video: array}, read without running it",
    source="albanie/collaborative-experts",
    read=_CollaborativeExperts,
)


# -- both --------------------------------------------------------------------------------------------------------------


def _bare_dataset(name: str, dump: Dump, expert: str) -> Dataset:
    """The dump's own videos, each of them one clip."""
    videos = np.array(dump.videos(expert), object)
    if not len(videos):
        raise UserError(f"there is nothing of {expert} to import as {dump.name}: no file of this format was found")
    captions = [dump.captions(video) for video in videos]
    told = np.repeat(np.arange(len(videos)), [len(texts) for texts in captions]).astype(np.int32)
    blank = np.full(len(videos), "", object)
    return Dataset(
        name=name,
        root=Path(),
        videos={"name": videos, "path": blank, "kind": blank},
        clips={
            "id": videos,
            "video": np.arange(len(videos), dtype=np.int32),
            "start_s": np.zeros(len(videos)),
            "stop_s": np.full(len(videos), np.nan),
            "split": blank,
        },
        texts={"clip": told, "caption": np.array([t for texts in captions for t in texts], object)}
        if len(told)
        else None,
    )


def _import_one(dump: Dump, expert: str, dataset: Dataset, path: Path, dtype: str) -> Store:
    rows, width, digest = _look_through(dump, expert, dataset)
    arrays = {"vector": ArraySpec((width,), dtype)}
    declared = dump.declared(expert) | {"content": digest}
    manifest = Manifest(
        arrays=arrays,
        layout=plan_layout(arrays, UNIT_ROWS, batch_size=UNIT_ROWS),
        recipe={"imported": {"from": dump.name, "expert": expert, "declared": declared}, "dtype": dtype},
        spec={"name": f"{dump.name}:{expert}", "kind": "imported", "reads": "", "weights_origin": "unknown"},
        dataset={
            "name": dataset.name,
            "family": dataset.family,
            "annotation_hash": dataset.annotation_hash,
            "classes": dataset.classes,
            "class_names": dataset.class_names,
            "axis": "segment",
            "draws": 0,
            "seed": 0,
        },
        lineage=[{"dataset": "unknown", "split": "unknown", "classes": 0, "file": f"{dump.name}:{expert}"}],
    )
    videos = {column: dataset.videos[column] for column in ("name", "path")}
    tables = {"texts": dataset.texts, "labels": dataset.labels, "events": dataset.events}
    store = create_store(path, manifest, rows, dataset.clips, videos, **tables)
    if differs := recipe_difference(store.manifest.recipe, manifest.recipe):
        raise UserError(f"{path} is another store: {'; '.join(differs)}. Move it away, or import into other --features")
    if not store.sealed:
        for unit in store.units:
            if (store.status(unit) == PENDING).any():
                _fill(store, unit, dump, expert)
        store.seal()
    return store


def _look_through(dump: Dump, expert: str, dataset: Dataset) -> tuple[dict[str, np.ndarray], int, str]:
    """(rows, C, sha256 of all names, values and times): one pass over the dump."""
    names, digest = [str(name) for name in dataset.videos["name"]], hashlib.sha256()
    counts, times, width, first, known = [], [], 0, "", 0
    for name in names:
        entry = dump.read(name, expert)
        known += entry.failure is None
        n = 1 if entry.features is None else len(entry.features)
        counts.append(n)
        times.append(np.full((n, 2), np.nan) if entry.times is None else entry.times)
        digest.update(f"{name}\n{0 if entry.features is None else n}\n".encode() + times[-1].tobytes())
        if entry.features is not None:
            if width and entry.features.shape[1] != width:
                raise UserError(
                    f"{dump.name}, expert {expert}: video {name} has features of {entry.features.shape[1]} values, "
                    f"video {first} of {width}"
                )
            width, first = entry.features.shape[1], first or name
            digest.update(entry.features.tobytes())
    if not known:
        examples = ", ".join(dump.videos(expert)[:3])
        raise UserError(
            f"dataset {dataset.name} and the dump have no video in common for {expert}: the dataset has "
            f"{', '.join(names[:3])}, the dump {examples}"
        )
    if not width:
        raise UserError(f"the dump has no features of {expert} for any video of dataset {dataset.name}")
    video = np.repeat(np.arange(len(names), dtype=np.int32), counts)
    both = np.concatenate(times)
    rows = {
        "video": video,
        "clip": np.full(len(video), -1, np.int32),
        "k": (np.arange(len(video)) - np.searchsorted(video, video)).astype(np.int32),
        "draw": np.zeros(len(video), np.int16),
        "start_s": both[:, 0],
        "stop_s": both[:, 1],
    }
    return rows, width, f"sha256:{digest.hexdigest()}"


def _fill(store: Store, unit: Unit, dump: Dump, expert: str) -> None:
    """Read the videos of one unit again and commit their rows."""
    video, k = (store.rows[column][unit.start : unit.stop] for column in ("video", "k"))
    values = np.zeros((len(unit), *store.manifest.arrays["vector"].row_shape), np.float32)
    status = np.full(len(unit), ABSENT, np.uint8)
    failures = {}
    for index in np.unique(video):
        here = np.flatnonzero(video == index)
        entry = dump.read(str(store.videos["name"][index]), expert)
        if entry.features is not None:
            values[here], status[here] = entry.features[k[here]], OK
        elif entry.failure is not None:
            status[here] = FAILED
            failures |= {unit.start + int(j): entry.failure for j in here}
    store.commit(unit, {"vector": values}, status, failures)
