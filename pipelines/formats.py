"""Layouts of feature files other than our stores: one registry of who writes and who reads which.

A writer gets videos one by one and makes a folder of files, as `pipelines.exporting` calls it. A reader is a `Dump`,
as `pipelines.importing` reads it. Neither reads pickles.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from errors import UserError

__all__ = ["Context", "Dump", "Entry", "Format", "Sequence", "find_format", "list_formats", "register_format"]

_HOMES = ("pipelines.importing", "pipelines.feature_files", "pipelines.feature_archives")  # they register formats


@dataclass(frozen=True)
class Sequence:
    """The features of one video, in time order: features (n, *row shape); start_s, stop_s (n,) float64, NaN unknown."""

    features: np.ndarray
    start_s: np.ndarray
    stop_s: np.ndarray

    @property
    def centre_s(self) -> np.ndarray:
        return (self.start_s + self.stop_s) / 2


@dataclass(frozen=True)
class Entry:
    """What a dump has of one expert and one video: features, or why there are none."""

    features: np.ndarray | None = None  # (n, C) float32, n >= 1
    times: np.ndarray | None = None  # (n, 2) float64: start and stop in seconds
    failure: tuple[str, str] | None = None  # reason code, one line; neither features nor failure: absent


class Dump(Protocol):
    """Feature files of somebody else, opened. An expert is one kind of feature among them."""

    name: str

    def experts(self) -> list[str]:
        """The kinds of features that there are."""

    def videos(self, expert: str) -> list[str]:
        """Names of the videos, sorted."""

    def read(self, video: str, expert: str) -> Entry:
        """One video's features. Raises UserError naming file and key if they are none."""

    def captions(self, video: str) -> list[str]:
        """What the dump says in words of a video."""

    def declared(self, expert: str) -> dict[str, Any]:
        """What the files, or whoever imports them, say of how the features were computed."""


Videos = Iterable[tuple[str, Mapping[str, Sequence]]]
"""(video name, {feature: its sequence}) one by one; a video without a feature lacks its name."""


@dataclass(frozen=True)
class Context:
    """What a writer may know beside the sequences.

    features: names of all that are exported. captions: video -> its captions. announce: takes a line for people.
    """

    features: tuple[str, ...]
    captions: Callable[[str], list[str]] = lambda video: []
    announce: Callable[[str], None] = lambda line: None


@dataclass(frozen=True)
class Format:
    """One layout of files. `what`: one line for people; `source`: whose code reads it, repository@commit.

    write(folder, videos, context, **options) fills an empty folder; read(root, **options) opens a dump; None: neither.
    several: one export may hold several features. options: {name: what it is for}, of either function.
    """

    name: str
    what: str
    source: str = ""
    write: Callable[..., None] | None = None
    read: Callable[..., Dump] | None = None
    several: bool = False
    options: Mapping[str, str] | None = None


_FORMATS: dict[str, Format] = {}


def register_format(name: str, **facts: Any) -> None:
    """Adds a format (see `Format`). Raises ValueError for a name that is taken."""
    if name in _FORMATS:
        raise ValueError(f"there is a format {name!r} already")
    _FORMATS[name] = Format(name, **facts)


def find_format(name: str, half: str) -> Format:
    """The format of this name that has a `half`, "write" or "read". Raises UserError, which lists those that do."""
    known = [one.name for one in list_formats() if getattr(one, half)]
    if name not in known:
        verb = {"write": "exported to", "read": "imported from"}[half]
        raise UserError(f"features are {verb} {', '.join(known[:-1])} or {known[-1]}, not {name!r}")
    return _FORMATS[name]


def list_formats() -> list[Format]:
    """All formats, by name."""
    for module in _HOMES:
        importlib.import_module(module)
    return [_FORMATS[name] for name in sorted(_FORMATS)]


def check_options(chosen: Format, function: Callable, options: Mapping[str, Any]) -> None:
    """Raises UserError for an option that the format's function (or class) does not take, or a value that is none."""
    taken = [name for name in inspect.signature(function).parameters if name in (chosen.options or {})]
    if unknown := [name for name in options if name not in taken]:
        known = "; ".join(f"{name} ({chosen.options[name]})" for name in taken) or "none"
        raise UserError(f"format {chosen.name} has no option {', '.join(unknown)} here; it has {known}")
    for name, value in options.items():
        if wanted := _wanted(name, inspect.signature(function).parameters[name].default, value):
            what = f"option {name} of format {chosen.name} ({chosen.options[name]})"
            raise UserError(f"{what} must be {wanted}, not {value!r}")


def _wanted(name: str, default: Any, value: Any) -> str | None:
    """What an option must be, as its default has it; None if the value is that."""
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, str):  # part of a file's name
        good = isinstance(value, str) and re.fullmatch("[A-Za-z0-9_-]+", value)
        return None if good else "letters, digits, '_' and '-'"
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < np.inf
    good = good and (value > 0 or name == "window_s") or (value is None and default is None)
    return None if good else "a number above 0"


# -- what several formats share ----------------------------------------------------------------------------------------


def quoted(video: str, more: str = "") -> str:
    """A video's name as a file name: `/`, `%`, control characters, a leading dot (and `more`) as %XX."""
    return re.sub(rf"[%/\x00-\x1f\x7f{re.escape(more)}]|^\.", lambda found: f"%{ord(found[0]):02X}", video)


def unquoted(name: str) -> str:
    """The video of a file name that `quoted` made; any other stays as it is, but for these codes."""
    return re.sub(r"%(2F|25|2E|0[0-9A-F]|1[0-9A-F]|7F)", lambda found: chr(int(found[1], 16)), name)


def checked(values: Any, where: str) -> np.ndarray | None:
    """(n, C) float32 of a dump's value, one vector being one feature; None where it says that there is none."""
    values = np.asarray(values)
    if not values.size and values.dtype.kind in "fiu":
        return None
    if values.dtype.kind not in "fiu" or values.ndim not in (1, 2):
        raise UserError(f"{where}: expected features (n, C) or (C,), got {values.dtype} {values.shape}")
    values = np.atleast_2d(values).astype(np.float32)
    return None if np.isnan(values[0, 0]) else values


def load_npy(source: Any, where: str) -> np.ndarray:
    """An array of a .npy file (path or open file); arrays of objects, which are pickles, are refused."""
    try:
        found = np.load(source, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{where} cannot be read as .npy: {str(error)[:200]}") from error
    if not isinstance(found, np.ndarray):
        raise UserError(f"{where} is an .npz archive, not one array")
    return found


def step_times(n: int, step_s: float | None, window_s: float | None = None) -> np.ndarray | None:
    """(n, 2) of features that follow each other at a fixed step (and last as long); None where no step is known."""
    if step_s is None:
        return None
    return step_s * np.arange(n)[:, None] + np.array([0.0, step_s if window_s is None else window_s])


def need(package: str, extra: str) -> Any:
    """An optional package. Raises UserError that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"this format needs the package {package}: pip install 'clipbank[{extra}]'") from error


def need_folder(root: Path, what: str) -> Path:
    """The folder itself. Raises UserError if it is none."""
    if not root.is_dir():
        raise UserError(f"{root} is no folder of {what}")
    return root


class OneExpert:
    """The part of a dump that holds one kind of feature, named as its folder or file is, and no words."""

    name = ""

    def __init__(self, root: Path, declared: Mapping[str, Any]):
        self.root, self._declared = root, {key: value for key, value in declared.items() if value is not None}

    def experts(self) -> list[str]:
        return [self.root.resolve().stem]

    def captions(self, video: str) -> list[str]:
        return []

    def declared(self, expert: str) -> dict[str, Any]:
        return {"files": self.root.name, "times": "unknown", **self._declared}


def not_there(video: str, where: Path) -> Entry:
    """A video that a dump does not have."""
    return Entry(failure=("not_in_dump", f"nothing of {video} in {where.name}"))
