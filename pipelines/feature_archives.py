"""Formats of many videos in one file: LMDB as RULSTM reads it, webdataset shards, long-term feature banks."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from errors import MachineError, UserError
from pipelines.feature_files import as_array, load_tensors, save_tensors
from pipelines.formats import (
    Context,
    Entry,
    OneExpert,
    Sequence,
    Videos,
    checked,
    load_npy,
    need,
    not_there,
    quoted,
    register_format,
    unquoted,
)

# -- LMDB as in RULSTM -------------------------------------------------------------------------------------------------

LMDB_BATCH = 1024
"""Rows of one transaction."""


def write_rulstm(folder: Path, videos: Videos, context: Context, fps: float = 30.0, hold: bool = False) -> None:
    """An LMDB: key `<video>_frame_<10 digits>.jpg`, value float32 bytes (C,), little endian.

    As RULSTM/dataset.py of fpv-iplab/rulstm@1de783f reads it: frame 1 is at 0 s, and it asks for any frame at `fps`.
    A row stands under the frame at the centre of its window; hold: under all frames up to the next row's too, so
    that every frame is found (otherwise only those of the rows are). Raises UserError for two rows of one frame.
    """
    lmdb = need("lmdb", "lmdb")
    (feature,) = context.features
    try:
        with lmdb.open(str(folder), map_size=1 << 26, sync=False, lock=False) as environment:
            for video, sequences in videos:
                for items in _lmdb_items(video, sequences[feature], fps, hold):
                    while not _put_all(environment, items, lmdb.MapFullError):
                        environment.set_mapsize(2 * environment.info()["map_size"])
            environment.sync(True)
    except lmdb.Error as error:
        raise MachineError(f"writing the LMDB failed: {error}") from error


def _put_all(environment: Any, items: list[tuple[bytes, bytes]], full: type[Exception]) -> bool:
    """One transaction; False if the map is too small for it."""
    try:
        with environment.begin(write=True) as transaction:
            for key, value in items:
                transaction.put(key, value)
    except full:
        return False
    return True


def _lmdb_items(video: str, found: Sequence, fps: float, hold: bool) -> Iterator[list[tuple[bytes, bytes]]]:
    """(key, value) of one video, in batches."""
    if np.isnan(found.centre_s).any():
        raise UserError(f"{video}: its rows have no times, and RULSTM's keys are frames")
    frames = np.floor(found.centre_s * fps + 1e-6).astype(np.int64) + 1
    twice = np.flatnonzero(np.diff(frames) == 0)
    if len(twice):
        raise UserError(
            f"{video}: two rows at frame {frames[twice[0]]} of {fps:g} fps: give the rate of the rows or more"
        )
    last = np.append(frames[1:] - 1, frames[-1:]) if hold else frames
    longest = len(f"{video}_frame_0000000000.jpg".encode())
    if longest > 511:
        raise UserError(f"{video}: a key of LMDB has at most 511 bytes, this video's have {longest}")
    items = []
    for first, end, vector in zip(frames.tolist(), last.tolist(), found.features, strict=True):
        value = vector.astype("<f4").tobytes()
        for frame in range(first, end + 1):
            items.append((f"{video}_frame_{frame:010d}.jpg".encode(), value))
            if len(items) == LMDB_BATCH:
                yield items
                items = []
    yield items


class RulstmDump(OneExpert):
    """An LMDB of frames' features; frame 1 is at 0 s. Every key is a row, at the instant of its frame."""

    name = "rulstm"

    def __init__(self, root: Path, fps: float = 30.0):
        lmdb = need("lmdb", "lmdb")
        super().__init__(root, {"fps": fps, "times": f"frames at {fps:g} a second"})
        self.fps = fps
        try:
            self.environment = lmdb.open(str(root), readonly=True, lock=False, subdir=root.is_dir(), create=False)
        except lmdb.Error as error:
            raise UserError(f"{root} cannot be read as LMDB: {error}") from error

    @cached_property
    def frames(self) -> dict[str, list[int]]:
        """{video: its frames}, from the keys alone; keys of another form are refused."""
        found: dict[str, list[int]] = {}
        with self.environment.begin() as transaction:
            for key in transaction.cursor().iternext(values=False):
                match = re.fullmatch(rb"(.+)_frame_(\d{10})\.jpg", key, re.DOTALL)
                if match is None:
                    raise UserError(f"{self.root}, key {key[:80]!r}: expected <video>_frame_<10 digits>.jpg")
                try:
                    found.setdefault(match[1].decode(), []).append(int(match[2]))
                except UnicodeDecodeError:
                    raise UserError(f"{self.root}, key {key[:80]!r}: the video's name is not UTF-8") from None
        return found

    def videos(self, expert: str) -> list[str]:
        return sorted(self.frames)

    def read(self, video: str, expert: str) -> Entry:
        if video not in self.frames:
            return not_there(video, self.root)
        frames = np.array(sorted(self.frames[video]), np.int64)
        vectors = []
        with self.environment.begin() as transaction:
            for frame in frames.tolist():
                key = f"{video}_frame_{frame:010d}.jpg"
                value = transaction.get(key.encode())
                if len(value) % 4 or (vectors and len(value) != 4 * len(vectors[0])):
                    wanted = f"{4 * len(vectors[0])}" if vectors else "a multiple of 4"
                    raise UserError(f"{self.root}, key {key}: {len(value)} bytes, expected {wanted} (float32)")
                vectors.append(np.frombuffer(value, "<f4"))
        features = checked(np.stack(vectors), f"{self.root}, {video}")
        at = (frames - 1) / self.fps
        return Entry() if features is None else Entry(features, np.stack([at, at], axis=1))


register_format(
    "rulstm",
    what="RULSTM: an LMDB of <video>_frame_<10 digits>.jpg -> float32 bytes",
    source="fpv-iplab/rulstm@1de783f8e37684f0e379c7a52c1b5450164de966",
    write=write_rulstm,
    read=RulstmDump,
    options={"fps": "frames a second of the numbering [30]", "hold": "repeat a row up to the next one's frame"},
)


# -- webdataset --------------------------------------------------------------------------------------------------------


def write_webdataset(folder: Path, videos: Videos, context: Context, shard_mb: float = 256.0) -> None:
    """`shard-000000.tar`, ...: a sample a video, `<video>.<feature>.npy` (n, ...) and `<video>.json`.

    The json holds video, and start_s and stop_s of each feature's rows (null: unknown). As webdataset groups and
    decodes them: a sample is what has one name up to its first dot, so dots in names of videos (and features) are
    %2E there. The same store gives the same bytes.
    """
    shard, tar, written = 0, None, 0
    try:
        for video, sequences in videos:
            if tar is None or written > shard_mb * 1e6:
                if tar is not None:
                    tar.close()
                tar, written = tarfile.open(folder / f"shard-{shard:06d}.tar", "w"), 0
                shard += 1
            key, times = quoted(video, "."), {}
            for feature, found in sequences.items():
                body = io.BytesIO()
                np.save(body, found.features)
                written += _add(tar, f"{key}.{quoted(feature, '.')}.npy", body.getvalue())
                times[feature] = {"start_s": _numbers(found.start_s), "stop_s": _numbers(found.stop_s)}
            facts = json.dumps({"video": video, "times": times}, ensure_ascii=False).encode()
            written += _add(tar, f"{key}.json", facts)
    finally:
        if tar is not None:
            tar.close()


def _add(tar: tarfile.TarFile, name: str, body: bytes) -> int:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(body), 0o444
    tar.addfile(entry, io.BytesIO(body))
    return len(body)


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in values.tolist()]


class WebDatasetDump:
    """A folder of .tar shards (or one) with `<key>.<feature>.npy` or `<key>.npy`; times and name in `<key>.json`."""

    name = "webdataset"

    def __init__(self, root: Path):
        self.root = root
        self.shards = sorted(root.glob("*.tar")) if root.is_dir() else [root]
        if not self.shards:
            raise UserError(f"{root} holds no .tar shard")

    @cached_property
    def members(self) -> dict[str, dict[str, tuple[Path, tarfile.TarInfo]]]:
        """{video: {what follows the first dot: where it is}}, from the headers alone."""
        found: dict[str, dict[str, tuple[Path, tarfile.TarInfo]]] = {}
        for path in self.shards:
            try:
                with tarfile.open(path, "r:") as tar:
                    for entry in tar:
                        head, _, name = entry.name.rpartition("/")
                        key, _, extension = name.partition(".")
                        wanted = extension in ("json", "npy") or extension.endswith(".npy")
                        if entry.isreg() and not entry.issparse() and key and wanted:
                            held = found.setdefault(unquoted(f"{head}/{key}" if head else key), {})
                            _refuse_second(held, extension, path, entry)
                            held[extension] = (path, entry)
            except (tarfile.TarError, OSError) as error:
                raise UserError(f"{path} cannot be read as .tar: {error}") from error
        return found

    def experts(self) -> list[str]:
        return sorted({_feature(name) for held in self.members.values() for name in held if name.endswith("npy")})

    def videos(self, expert: str) -> list[str]:
        return sorted(video for video, held in self.members.items() if any(_feature(name) == expert for name in held))

    def read(self, video: str, expert: str) -> Entry:
        held = self.members.get(video)
        if held is None:
            return not_there(video, self.root)
        name = next((name for name in held if name.endswith("npy") and _feature(name) == expert), None)
        if name is None:
            return Entry()
        where = f"{held[name][0]}, {held[name][1].name}"
        features = checked(load_npy(io.BytesIO(self._body(*held[name])), where), where)
        if features is None or "json" not in held:
            return Entry(features)
        return Entry(features, self._times(held["json"], expert, len(features)))

    def _body(self, path: Path, entry: tarfile.TarInfo) -> bytes:
        with open(path, "rb") as file:
            file.seek(entry.offset_data)
            return file.read(entry.size)

    def _times(self, member: tuple[Path, tarfile.TarInfo], expert: str, n: int) -> np.ndarray | None:
        """(n, 2), if the sample's json is ours; None if it says nothing of times."""
        where = f"{member[0]}, {member[1].name}"
        try:
            said = json.loads(self._body(*member))
            said = said.get("times", {}).get(expert) if isinstance(said, dict) else None
            if said is None:
                return None
            times = np.array([said["start_s"], said["stop_s"]], np.float64).T
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: no json with times as start_s and stop_s: {error!r}") from error
        if times.shape != (n, 2):
            raise UserError(f"{where}: expected times of {n} rows, got {len(times)}")
        return times

    def captions(self, video: str) -> list[str]:
        return []

    def declared(self, expert: str) -> dict[str, Any]:
        return {"files": self.root.name, "times": "as in <video>.json, else unknown"}


def _refuse_second(held: Mapping[str, tuple], extension: str, path: Path, entry: tarfile.TarInfo) -> None:
    """Of a member that is there twice, or two that hold one feature ("npy", "features.npy"), neither is believed."""
    is_json = extension == "json"
    same = [name for name in held if (name == "json") == is_json and _feature(name) == _feature(extension)]
    if same:
        where, other = held[same[0]]
        raise UserError(
            f"{path}, {entry.name}: {where.name} has it already, as {other.name}, and which of the two counts nobody"
            " can say. Remove one of them"
        )


def _feature(extension: str) -> str:
    """The feature of what follows a key's first dot: "i3d" of "i3d.npy", "features" of "npy"."""
    return unquoted(extension.removesuffix("npy").removesuffix(".")) or "features"


register_format(
    "webdataset",
    what="webdataset: shards of <video>.<feature>.npy and <video>.json",
    source="webdataset/webdataset 1.0",
    write=write_webdataset,
    read=WebDatasetDump,
    several=True,
    options={"shard_mb": "size at which the next shard begins [256]"},
)


# -- long-term feature banks -------------------------------------------------------------------------------------------


def _bank(found: Sequence, video: str) -> dict[int, np.ndarray]:
    """{second: (n, C)}: features of the rows whose centre lies in that second, in time order."""
    if np.isnan(found.centre_s).any():
        raise UserError(f"{video}: its rows have no times, and a feature bank is kept by seconds")
    if not len(found.features):
        return {}
    second = np.floor(found.centre_s + 1e-6).astype(np.int64)
    edges = np.flatnonzero(np.diff(second, prepend=second[:1] - 1))
    parts = np.split(found.features, edges[1:])
    return {int(second[edge]): part for edge, part in zip(edges, parts, strict=True)}


def write_lfb(folder: Path, videos: Videos, context: Context) -> None:
    """`lfb.h5`: a group a video, in it a dataset a second, named by its number: (n, C) float32.

    The bank of Wu et al. 2019, {video: {second: features}}, which its own code keeps as a pickle
    (facebookresearch/video-long-term-feature-banks@8953fe0, tools/lfb_loader.py): here without pickle. In that code:
    `{v: {int(s): d[()] for s, d in g.items()} for v, g in h5py.File("lfb.h5").items()}`, names unquoted.
    """
    (feature,) = context.features
    with h5py.File(folder / "lfb.h5", "w") as file:
        for video, sequences in videos:
            group = file.create_group(quoted(video))
            for second, features in _bank(sequences[feature], video).items():
                group[str(second)] = features


def write_mmaction_lfb(folder: Path, videos: Videos, context: Context, part: str = "train") -> None:
    """`lfb_<part>.pkl`, written by torch.save: {video: {second: tensor (n, C)}}; whole in memory.

    As mmaction/models/common/lfb.py of open-mmlab/mmaction2@11745e1 loads it; tensors alone: `weights_only` reads it.
    """
    import torch

    (feature,) = context.features
    bank = {
        video: {
            second: torch.from_numpy(np.ascontiguousarray(features))
            for second, features in _bank(sequences[feature], video).items()
        }
        for video, sequences in videos
    }
    save_tensors(bank, folder / f"lfb_{part}.pkl")


class LfbDump(OneExpert):
    """A bank as `lfb.h5`, or as a .pkl of tensors that torch.save wrote: a row a feature, times its second."""

    name = "lfb"

    def __init__(self, root: Path):
        files = sorted([*root.glob("lfb*.h5"), *root.glob("lfb_*.pkl")]) if root.is_dir() else [root]
        if not files or not files[0].is_file():
            raise UserError(f"{root} holds no lfb.h5 or lfb_<part>.pkl")
        super().__init__(root, {"times": "whole seconds"})
        self.files = files

    @cached_property
    def where(self) -> dict[str, tuple[Path, str]]:
        """{video: (file, its name there)}; a video of two files is in the last, as mmaction2 has it."""
        found = {}
        for path in self.files:
            names = self._tensors(path) if path.suffix == ".pkl" else self._groups(path)
            found |= {name if path.suffix == ".pkl" else unquoted(name): (path, name) for name in names}
        return found

    def _tensors(self, path: Path) -> Mapping[str, Mapping[int, Any]]:
        if path not in self._loaded:
            bank = load_tensors(path)
            if not isinstance(bank, dict) or not all(
                isinstance(name, str) and isinstance(held, dict) for name, held in bank.items()
            ):
                raise UserError(f"{path}: expected {{video: {{second: features}}}}, got {type(bank).__name__}")
            self._loaded[path] = bank
        return self._loaded[path]

    @cached_property
    def _loaded(self) -> dict[Path, Any]:
        return {}

    def _groups(self, path: Path) -> list[str]:
        try:
            with h5py.File(path, "r") as file:
                return list(file)
        except OSError as error:
            raise UserError(f"{path} cannot be read as HDF5: {str(error)[:200]}") from error

    def videos(self, expert: str) -> list[str]:
        return sorted(self.where)

    def read(self, video: str, expert: str) -> Entry:
        if video not in self.where:
            return not_there(video, self.root)
        path, name = self.where[video]
        if path.suffix == ".pkl":
            held = self._tensors(path)[name]
            parts = {_second(s, path, name): as_array(value, f"{path}, {name}, {s}") for s, value in held.items()}
        else:
            with h5py.File(path, "r") as file:
                parts = {_second(s, path, name): self._dataset(file[name], s, path) for s in file[name]}
        features, times = [], []
        for second in sorted(parts):
            found = checked(parts[second], f"{path}, {name}, {second}")
            if found is not None:
                features.append(found)
                times.append(np.tile([second, second + 1.0], (len(found), 1)))
        widths = {part.shape[1] for part in features}
        if len(widths) > 1:
            raise UserError(f"{path}, {name}: features of {' and '.join(map(str, sorted(widths)))} values")
        return Entry(np.concatenate(features), np.concatenate(times)) if features else Entry()

    def _dataset(self, group: Any, name: str, path: Path) -> np.ndarray:
        if not isinstance(group[name], h5py.Dataset):
            raise UserError(f"{path}, {group.name}/{name}: expected a dataset, found a group")
        return group[name][()]


def _second(value: Any, path: Path, video: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise UserError(f"{path}, {video}: {value!r} is no second") from None


register_format(
    "lfb",
    what="long-term feature bank: lfb.h5, {video: {second: (n, C)}}, without pickle",
    source="facebookresearch/video-long-term-feature-banks@8953fe040ce142c4480840af535d2f497d7c1b1f",
    write=write_lfb,
    read=LfbDump,
)
register_format(
    "mmaction_lfb",
    what="MMAction2's long-term feature bank: lfb_<part>.pkl, tensors written by torch.save",
    source="open-mmlab/mmaction2@11745e1c3169cd6ce268385de8457d59453f701e",
    write=write_mmaction_lfb,
    read=LfbDump,
    options={"part": "train, val or test: what the file is called [train]"},
)
