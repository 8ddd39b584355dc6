"""What `Store` stands on: one face for a Zarr folder, an HDF5 file and a folder at the other end of a network."""

import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from errors import UserError

from .manifest import Manifest
from .plan import Unit

REMOTE = ("http://", "https://", "s3://")
HDF5 = (".h5", ".hdf5")


class StoreFiles(Protocol):
    """The files of one store. No read ever returns a fill value for something that is lost: it raises DamagedStore.

    path: a Path, or a URL that joins like one. manifest: as it was when the store was opened.
    read_only: None, or why it cannot be written and what to do. Handles are made on use, once a process.
    """

    path: Any
    manifest: Manifest
    read_only: str | None

    def columns(self, table: str) -> list[str]:
        """Names of a table's columns; none: there is no such table."""

    def column(self, name: str) -> np.ndarray:
        """A whole column, `clips/verb`; strings as objects."""

    def sealed_column(self, name: str) -> np.ndarray | None:
        """A column of the current seal, `videos/geometry`; None if it has none."""

    def status(self) -> np.ndarray:
        """(array rows,) uint8, as it is now."""

    def unit_status(self, unit: Unit) -> tuple[np.ndarray, Any]:
        """((len(unit),) uint8, what a writer needs to replace it), as it is now."""

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """(len(rows), *row_shape) of an array, in one batched read."""

    def place(self, name: str, row: int) -> str:
        """What holds a row of an array, for messages."""

    def read_json(self, name: str) -> Any:
        """What `probes/<video>.json` or `failures/<unit>.json` says, None if there is none."""

    def failures(self) -> dict[int, tuple[str, str]]:
        """{row: (reason code, one line)} of the failed rows."""


def open_files(path: str | os.PathLike) -> StoreFiles:
    """The files of NAME.zarr, NAME.h5 or a URL. Raises NotAStore, DamagedStore, MachineError, UserError."""
    text = os.fspath(path)
    if is_url(text):
        from .remote import open_remote

        return open_remote(text)
    if "\0" in text:
        raise UserError(f"there is no store at {text!r}: a path holds no NUL")
    if Path(text).suffix in HDF5:
        from .hdf5_store import open_hdf5

        return open_hdf5(Path(text))
    from .zarr_store import open_files as open_folder

    return open_folder(text)


def is_url(path: str | os.PathLike) -> bool:
    """Whether a store lies at the other end of a network."""
    return os.fspath(path).startswith(REMOTE)


def local_folder(path: str | os.PathLike) -> Path:
    """The place of a store that is to be changed. Raises UserError for one at the other end of a network."""
    if is_url(path):
        raise UserError(f"{path} cannot be changed over the network: copy it to a folder, or work where it lies")
    return Path(path)


def require_writable(files: StoreFiles) -> None:
    """Raises UserError for a store that can only be read."""
    if files.read_only:
        raise UserError(f"{files.path} cannot be written: {files.read_only}")
