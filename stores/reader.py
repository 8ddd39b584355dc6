"""`Store`: the one face of a store, for those who fill it and those who read it."""

import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from errors import UserError

from .commit import Failures, commit_unit
from .extensions import finish_growth
from .files import StoreFiles, open_files, require_writable
from .manifest import FAILED, OK, PENDING, DamagedStore, Manifest, readable_json, write_durable
from .plan import Unit, units
from .version import Watch
from .zarr_store import ZSTD_LEVEL, DamagedRow, create_folder, safe_name

STATUS_NAMES = ("pending", "ok", "failed", "absent")
"""What a row's status code means to people: STATUS_NAMES[code]."""


class RowNotReady(UserError, LookupError):
    """Rows were asked for that hold no value yet, or never will."""


def create_store(
    path: str | os.PathLike,
    manifest: Manifest,
    rows: Mapping[str, np.ndarray],
    clips: Mapping[str, np.ndarray],
    videos: Mapping[str, np.ndarray],
    texts: Mapping[str, np.ndarray] | None = None,
    labels: Mapping[str, np.ndarray] | None = None,
    events: Mapping[str, np.ndarray] | None = None,
    *,
    level: int = ZSTD_LEVEL,
) -> "Store":
    """Creates a store whole, or opens the one that is there (compare `manifest.recipe` with yours).

    manifest: arrays, layout, recipe, spec, dataset, lineage; rows, hashes and seal are filled in here, and so
    is the array `n_padded` if it lacks. rows: video, clip, k int32; draw int16; start_s, stop_s float64.
    videos: name, path, ... All are tables {column: (n,) array}; strings as object or string arrays.
    level: of zstd, 0 to 22, of a store that is created here.
    Raises UserError (not NAME.zarr, a place that cannot be written), MachineError (disk full).
    """
    optional = {"texts": texts, "labels": labels, "events": events}
    create_folder(path, manifest, {"rows": rows, "clips": clips, **optional, "videos": videos}, level)
    finish_growth(path)  # of a store that was there, and whose growth was killed
    return open_store(path)


def open_store(path: str | os.PathLike) -> "Store":
    """Opens NAME.zarr, NAME.h5, or (to read) https://host/path/NAME.zarr, s3://bucket/path/NAME.zarr.

    Raises NotAStore, DamagedStore, MachineError (the network), or UserError for a store of a newer format.
    """
    return Store(path)


class Table(Mapping):
    """A table of a store: {column: numpy array}, each read when first asked for; strings as objects."""

    def __init__(self, files: StoreFiles, name: str, length: int | None = None):
        self._files, self._name, self._length = files, name, length
        self._columns = files.columns(name)
        self._read: dict[str, np.ndarray] = {}

    def __getitem__(self, column: str) -> np.ndarray:
        if column not in self._columns:
            raise KeyError(f"{self._name}/ has no column {column!r}, only {', '.join(self._columns)}")
        if column not in self._read:
            values = self._files.column(f"{self._name}/{column}")[: self._length]
            values.setflags(write=False)
            self._read[column] = values
        return self._read[column]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class Store:
    """The features of one network over one dataset.

    manifest: what the store says about itself. rows, clips, videos: tables (texts, labels, events: tables, or
    None). Row i of the store is row i of `rows` and of every array. Safe to share between threads; a process
    forked after a read must open nothing (start workers with spawn or forkserver); may be pickled.

    It stays the version that was opened: tables, `len` and, of a sealed store, status do not follow what grows, is
    relabelled or sealed meanwhile (open it again for that); of an unsealed one `status` does. What cannot be had any
    more as it was raises StoreChanged: rows of a video that was replaced and computed anew, another store in its place.
    """

    def __init__(self, path: str | os.PathLike):
        self._files = open_files(path)
        self._status: np.ndarray | None = None
        self._watch = Watch(self._files)

    def __reduce__(self):
        return open_store, (str(self.path),)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} rows, {', '.join(self.manifest.arrays)})"

    # ------------------------------------------------------------------------------------------ what it is

    @property
    def path(self) -> Path:
        """Where it lies: a Path, or a URL (a string that joins by `/` like one)."""
        return self._files.path

    @property
    def manifest(self) -> Manifest:
        return self._files.manifest

    @property
    def sealed(self) -> bool:
        return self.manifest.seal is not None

    def __len__(self) -> int:
        """One past the last row index. Of a store that has grown this counts the padding between its extents."""
        return max((first + count for first, count in self.manifest.extents), default=0)

    @property
    def visible(self) -> np.ndarray:
        """(len(store),) bool: the rows that there are; False in the padding between extents."""
        visible = np.zeros(len(self), bool)
        for first, count in self.manifest.extents:
            visible[first : first + count] = True
        return visible

    @functools.cached_property
    def rows(self) -> Table:
        return Table(self._files, "rows", len(self))

    @functools.cached_property
    def clips(self) -> Table:
        return Table(self._files, "clips")

    @functools.cached_property
    def videos(self) -> Table:
        return Table(self._files, "videos")

    @functools.cached_property
    def texts(self) -> Table | None:
        return self._optional("texts")

    @functools.cached_property
    def labels(self) -> Table | None:
        return self._optional("labels")

    @functools.cached_property
    def events(self) -> Table | None:
        return self._optional("events")

    def _optional(self, name: str) -> Table | None:
        table = Table(self._files, name)
        return table if len(table) else None

    @property
    def units(self) -> list[Unit]:
        """All units, in order."""
        return [u for extent in self.manifest.extents for u in units(extent, self.manifest.layout.unit_rows)]

    def unit(self, index: int) -> Unit:
        """The unit of this number."""
        index, size = int(index), self.manifest.layout.unit_rows
        for extent in self.manifest.extents:  # without listing all units: an archive has many
            first, count = extent
            if 0 <= index * size - first < count:
                return units((index * size, min(size, first + count - index * size)), size)[0]
        raise IndexError(f"{self.path} has {len(self.units)} units, there is no unit {index}")

    # --------------------------------------------------------------------------------------------- reading

    def status(self, unit: Unit | int | None = None) -> np.ndarray:
        """Status as it is on disk now, uint8: (len(store),), or (len(unit),) of one unit."""
        if unit is not None and not self.sealed:
            return self._files.unit_status(self.unit(unit))[0]
        status = self._status = self._files.status()[: len(self)]
        return (status if unit is None else status[self.unit(unit).start : self.unit(unit).stop]).copy()

    @property
    def ok(self) -> np.ndarray:
        """Indices of the rows that hold values, int64, ascending."""
        return np.flatnonzero(self.status() == OK)

    def read(self, name: str, rows: Sequence[int] | np.ndarray, missing: str | None = None) -> np.ndarray:
        """Rows of an array in one batched read: (len(rows), *row_shape), in the order asked for.

        rows: row indices, any order, repeated or not; neighbours cost little (one chunk may hold several).
        missing: None raises RowNotReady for a row that is not ok; "nan" gives NaN (-1 in integers, 0 in text)
        for the rows that were not ok when this object last read the status.
        Raises DamagedShard, DamagedRow: never returns fill values for what was lost; StoreChanged.
        """
        spec = self.manifest.arrays.get(name)
        if spec is None:
            raise UserError(f"{self.path} has no array {name!r}, only {', '.join(self.manifest.arrays)}")
        if missing not in (None, "nan"):
            raise ValueError(f'missing must be None or "nan", got {missing!r}')
        rows = self._indices(rows)
        known = self._status
        if known is None or (missing is None and not self.sealed and (known[rows] != OK).any()):
            known = self.status()  # rows that were not ok may have become so
        ready = known[rows] == OK
        if ready.all():
            return self._values(name, rows)
        if missing is None:
            raise self._not_ready(rows, known)
        out = np.full((len(rows), *spec.row_shape), spec.fill, spec.dtype)
        out[ready] = self._values(name, rows[ready])
        return out

    def _values(self, name: str, rows: np.ndarray) -> np.ndarray:
        try:
            values = self._with_values(name, rows)
        except DamagedStore as error:
            self._watch.explain(error)
            if not self.sealed and ((now := self.status())[rows] != OK).any():  # they were reset by a repair
                raise self._not_ready(rows, now) from error
            raise
        replaced = self._watch.replaced_videos()
        if replaced is not None and replaced[self.rows["video"][rows]].any():
            raise self._watch.changed()
        return values

    def _with_values(self, name: str, rows: np.ndarray) -> np.ndarray:
        values = self._files.read(name, rows)
        has_value = self.manifest.arrays[name].has_value(values)
        if not has_value.all():
            row = int(rows[np.flatnonzero(~has_value)[0]])
            place = self._files.place(name, row)
            raise DamagedRow(f"row {row} is marked ok and has no value in {place}: run `store verify {self.path}`")
        return values

    def _indices(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        rows = np.asarray(rows)
        if rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iu"):
            raise ValueError(f"rows must be a list of row indices, got {rows.dtype} of shape {rows.shape}")
        rows = rows.astype(np.int64)
        wrong = rows[(rows < 0) | (rows >= len(self))]
        if len(wrong):
            raise UserError(f"{self.path} has rows 0 to {len(self) - 1}, there is no row {wrong[0]}")
        return rows

    def _not_ready(self, rows: np.ndarray, status: np.ndarray) -> RowNotReady:
        waiting = rows[status[rows] != OK]
        first = int(waiting[0])
        state = status[first]
        todo = (
            "run the extract command again, which computes what is pending"
            if (status[waiting] == PENDING).any()
            else "they stay without a value unless they are extracted again"
        )
        why = ""
        if state == FAILED:
            code, line = self.failures().get(first, ("unknown", ""))
            why = f" ({code}: {line})"
        return RowNotReady(
            f"{len(waiting)} of {len(rows)} rows asked of {self.path} hold no value, first row {first}, "
            f'{STATUS_NAMES[state]}{why}: {todo}. missing="nan" reads them as NaN, `store.ok` lists the rest'
        )

    # ---------------------------------------------------------------------------------------- rows by time

    def rows_between(self, video: str | int, t0: float, t1: float) -> np.ndarray:
        """Rows of a video whose centre lies in [t0, t1) seconds, in time order, whatever their status."""
        return self.rows_between_many([video], [t0], [t1])[0]

    def rows_between_many(
        self, videos: Sequence[str | int] | np.ndarray, t0: np.ndarray, t1: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """`rows_between` for Q queries at once: (rows of all queries one after another, offsets (Q + 1,)).

        Rows of query q: rows[offsets[q]:offsets[q + 1]]. `read` takes the whole list in one batch.
        """
        order, centres, first = self._by_time
        video = np.array([self.video_index(v) for v in videos], np.int64)
        begin, end = first[video], first[video + 1]
        start = _search(centres, begin, end, np.asarray(t0, np.float64))
        stop = np.maximum(_search(centres, begin, end, np.asarray(t1, np.float64)), start)
        offsets = np.concatenate([[0], np.cumsum(stop - start)])
        position = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], stop - start)
        return order[position], offsets

    @functools.cached_property
    def _by_time(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows sorted by (video, centre), their centres, and where each video begins (videos + 1,)."""
        centre = (self.rows["start_s"] + self.rows["stop_s"]) / 2
        video = self.rows["video"]
        visible = np.flatnonzero(self.visible)
        order = visible[np.lexsort((centre[visible], video[visible]))]
        return order, centre[order], np.searchsorted(video[order], np.arange(len(self.videos["name"]) + 1))

    def video_index(self, video: str | int) -> int:
        """Index of a video in `videos`, given its name or that index."""
        index = self._video_indices.get(video, -1) if isinstance(video, str) else int(video)
        if not 0 <= index < len(self.videos["name"]):
            raise UserError(f"{self.path} has no video {video!r}")
        return index

    @functools.cached_property
    def _video_indices(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.videos["name"])}

    # ---------------------------------------------------------------------------------------------- videos

    def probe(self, video: str | int) -> dict | None:
        """What was found in the video when its first unit was planned; None if that has not happened."""
        return self._files.read_json(self._probe_name(video))

    def write_probe(self, video: str | int, probe: Mapping[str, Any], replace: bool = False) -> dict:
        """Keeps a video's probe (fps, n_frames, duration_s, ..., geometry) durably; the first one stays.

        replace: for a new file of a video of which no row was computed yet. Returns the probe that is kept.
        """
        require_writable(self._files)
        kept = self.probe(video)
        if kept is None or replace:
            write_durable(self.path / self._probe_name(video), readable_json(dict(probe)))
            kept = self.probe(video)
        return kept

    def geometry(self, video: str | int) -> list[float]:
        """[sx, sy, ox, oy]: from relative frame coordinates to cells of the map, map_x = sx * x + ox."""
        index = self.video_index(video)
        if index not in self._geometries:
            probe = self.probe(index)
            if probe is None or "geometry" not in probe:
                name = self.videos["name"][index]
                raise RowNotReady(f"{self.path} knows no geometry of video {name!r}: extract it first")
            self._geometries[index] = [float(x) for x in probe["geometry"]]
        return self._geometries[index]

    @functools.cached_property
    def _geometries(self) -> dict[int, list[float]]:
        """What is known at once: all of a sealed store, whose probes are also columns."""
        table = self._files.sealed_column("videos/geometry") if self.sealed else None
        if table is None:
            return {}
        return {int(i): table[i].tolist() for i in np.flatnonzero(~np.isnan(table[:, 0]))}

    def _probe_name(self, video: str | int) -> str:
        return f"probes/{safe_name(self.videos['name'][self.video_index(video)])}.json"

    # --------------------------------------------------------------------------------------------- writing

    def commit(
        self,
        unit: Unit | int,
        arrays: Mapping[str, np.ndarray],
        status: np.ndarray,
        failures: Failures | None = None,
        verify: bool = True,
    ) -> np.ndarray:
        """Writes one unit durably and returns the status of its rows as it is then, (len(unit),) uint8.

        arrays: {name: (len(unit), *row_shape)} of every array but `n_padded`, which is 0 if it is not given;
        floats of any width. What they hold in rows that are not ok is ignored.
        status: (len(unit),) of 0 pending (left as it is), 1 ok, 2 failed, 3 absent.
        failures: {row index in the store: (reason code, one line)} for exactly the failed rows.
        verify: read the first value of every ok row back.

        Rows that are ok already keep what is stored. A row whose output is NaN or does not fit the store's
        dtype becomes failed ("nan_output", "overflow", "no_value").
        Raises MachineError (disk full, I/O: run again to resume), StoreSealed, DamagedStore; ValueError for
        arrays that do not fit the store.
        """
        require_writable(self._files)
        self._status = None
        return commit_unit(self._files, self.unit(unit), arrays, status, failures or {}, verify)

    def failures(self) -> dict[int, tuple[str, str]]:
        """{row: (reason code, one line)} of every failed row, by row."""
        return self._files.failures()

    def write_provenance(self, run: str, facts: Mapping[str, Any]) -> None:
        """Keeps who computed what, where and when, in provenance/<run>.json: no part of any hash."""
        require_writable(self._files)
        write_durable(self.path / "provenance" / f"{safe_name(run)}.json", readable_json(dict(facts)))

    def seal(self) -> None:
        """Verifies a complete store and fixes it. Raises UserError if a row is pending, DamagedStore."""
        from .seal import seal

        require_writable(self._files)
        self._reopen(seal(self.path))

    def unseal(self) -> None:
        """Lets a sealed store change again; what was sealed stays in sealed/<k>/."""
        from .seal import unseal

        require_writable(self._files)
        self._reopen(unseal(self.path))

    def _reopen(self, manifest: Manifest) -> None:
        self._files.manifest = manifest
        self._status = None
        self.__dict__.pop("_geometries", None)


def _search(values: np.ndarray, low: np.ndarray, high: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """For each query the first index in [low, high) whose value is not below `wanted`, else high."""
    low, high = low.copy(), high.copy()
    while (active := low < high).any():
        middle = (low + high) // 2
        below = values[np.where(active, middle, 0)] < wanted
        low = np.where(active & below, middle + 1, low)
        high = np.where(active & ~below, middle, high)
    return low
