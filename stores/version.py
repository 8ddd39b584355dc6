"""Which version of a store an open reader reads, and whether that is still there.

What a reader opened stays as it was, whatever happens to the store meanwhile: growth moves no row, relabelling and
seals leave what they replace in `extensions/` and `sealed/`, and a row that is ok keeps its value. Two things take a
value away: `store repair --changed`, after a video was replaced, and another store put in the place of this one. Both
are seen in the root `zarr.json`.
"""

import time

import numpy as np

from errors import MachineError

from .files import StoreFiles
from .manifest import Manifest, sha256
from .zarr_store import ZarrFiles, parse_root

LOOK_S = 5.0
"""An open reader looks at the root again after this many seconds, when it next reads: one small file."""

_ORIGIN = "extensions/0/record.json"
_CONTENT = "videos/content_hash"


class StoreChanged(MachineError):
    """What was asked for is no longer as it was when the store was opened: open it again."""


class Watch:
    """Looks whether the store that lies at a place is still the one whose manifest was read, and which of its videos
    were replaced. An HDF5 file that is open stays what it is, whatever is renamed over it."""

    def __init__(self, files: StoreFiles):
        self._files = files
        self._looked, self._seen = time.monotonic(), b""
        self._replaced: np.ndarray | None = None

    def replaced_videos(self) -> np.ndarray | None:
        """(videos,) bool: those whose rows were computed anew from another file; None: none that is known of.

        Raises StoreChanged if another store lies there now, RemoteError, NotAStore, DamagedStore.
        """
        if isinstance(self._files, ZarrFiles) and time.monotonic() - self._looked >= LOOK_S:
            self._look()
            self._looked = time.monotonic()
        return self._replaced

    def explain(self, error: Exception) -> None:
        """Raises StoreChanged from a read's error if the store is no longer the sealed version that was opened."""
        if not isinstance(self._files, ZarrFiles):
            return
        now, opened = self._look(), self._files.manifest.seal
        if opened and now.seal != opened:
            raise self.changed() from error

    def changed(self) -> StoreChanged:
        """The error to raise for what is no longer there as it was."""
        seal = self._files.manifest.seal
        version = f" as version {seal['k']}" if seal else ""
        return StoreChanged(f"{self._files.path} was changed after it was opened{version}: open it again")

    def _look(self) -> Manifest:
        files, data = self._files, self._files.read_file("zarr.json")
        now, opened = parse_root(data, str(files.path)), files.manifest
        if now.hashes.get(_ORIGIN) != opened.hashes.get(_ORIGIN) or now.recipe != opened.recipe:
            raise StoreChanged(f"another store lies at {files.path} than when it was opened: open it again")
        if sha256(data) != self._seen and opened.seal and now.seal and now.seal != opened.seal:
            before, after = (type(files)(files.path, m).sealed_column(_CONTENT) for m in (opened, now))
            if before is not None and after is not None:
                self._replaced = before != after[: len(before)]
        self._seen = sha256(data)
        return now
