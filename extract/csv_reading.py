"""Reading CSV files so that every mistake in one is told with its file, line, field and value.

Errors are collected, up to ten, and raised as one `UserError`: a user fixes a file in one go.
"""

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from errors import UserError

__all__ = ["Csv", "Problems", "integers", "numbers", "read_csv", "read_text"]


class Problems:
    """Collects what is wrong with a file; `check()` raises once, with the first `limit` problems."""

    def __init__(self, path: Path, limit: int = 10):
        self.path, self.limit = path, limit
        self.lines: list[tuple[int, str]] = []

    def add(self, line: int, message: str) -> None:
        """Note a problem of one line (1-based; 0: of the file as a whole)."""
        self.lines.append((line, message))

    def value(self, line: int, field: str, value: str, message: str) -> None:
        """Note a problem of one field, quoting its value."""
        self.add(line, f"field {field!r} is {value!r}: {message}")

    def check(self) -> None:
        """Raise `UserError` if anything was noted."""
        if not self.lines:
            return
        shown = [
            f"{self.path}, line {line}: {message}" if line else f"{self.path}: {message}"
            for line, message in sorted(self.lines, key=lambda entry: entry[0])[: self.limit]
        ]
        if len(self.lines) > self.limit:
            shown.append(f"... and {len(self.lines) - self.limit} more in {self.path}")
        raise UserError("\n".join(shown))


@dataclass(frozen=True)
class Csv:
    """Columns of text, and for every row the line it starts on."""

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, field: str) -> list[str]:
        return self.columns[field]


def read_csv(path: Path, required: Iterable[str], rows_required: bool = True) -> Csv:
    """Read a comma-separated file with a header, plain or gzipped, UTF-8 with or without a byte order mark.

    Surrounding blanks are stripped from names and values; blank lines are skipped.

    Args:
        path: the file.
        required: columns that must be there; others are read too.
        rows_required: whether a header alone is an error.

    Raises:
        UserError: no file, not UTF-8, no header or columns missing, or rows that do not fit the header.
    """
    path, problems, required = Path(path), Problems(Path(path)), list(required)
    header, lines, rows = None, [], []
    reader = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            start, line = line, reader.line_num + 1
            if not any(value.strip() for value in row):
                continue
            if header is None:
                header = [name.strip() for name in row]
                _check_header(header, required, problems, start)
            elif len(row) != len(header):
                problems.add(
                    start,
                    f"{len(row)} fields, but the header has {len(header)} ({','.join(header)}); "
                    "put a value that holds commas in double quotes",
                )
            else:
                lines.append(start)
                rows.append(row)
    except csv.Error as error:
        problems.add(line, f"cannot be parsed: {error}; check the double quotes of this line")
    if header is None:
        problems.add(0, f"is empty; its first line must be a header with {','.join(required)}")
    problems.check()
    if rows_required and not rows:
        raise UserError(f"{path}: has a header but no rows")
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    return Csv(path, {name: [v.strip() for v in c] for name, c in zip(header, columns, strict=True)}, lines)


def numbers(table: Csv, field: str, problems: Problems, empty_as_nan: bool = False) -> np.ndarray:
    """A column as float64 (n,); what is no finite number >= 0 is noted in `problems` and becomes NaN."""
    out = np.full(len(table), np.nan)
    for i, text in enumerate(table[field]):
        if not text and empty_as_nan:
            continue
        try:
            value = float(text)
        except ValueError:
            problems.value(table.lines[i], field, text, "not a number; give seconds such as 12.5")
            continue
        if not math.isfinite(value):
            problems.value(table.lines[i], field, text, "not a finite number; give seconds such as 12.5")
        elif value < 0:
            problems.value(table.lines[i], field, text, "negative; times count from the video's first frame")
        else:
            out[i] = value
    return out


def integers(
    table: Csv,
    field: str,
    problems: Problems,
    minimum: int = 0,
    maximum: int = 2**31 - 1,
    empty: int | None = None,
) -> np.ndarray:
    """A column as int64 (n,); what is no integer in [minimum, maximum] is noted in `problems` and becomes -1.

    `empty`: what an empty field stands for; None: an empty field is a problem.
    """
    out = np.full(len(table), -1, dtype=np.int64)
    for i, text in enumerate(table[field]):
        if not text and empty is not None:
            out[i] = empty
            continue
        try:
            value = int(text)
        except ValueError:
            problems.value(table.lines[i], field, text, "not an integer")
            continue
        if minimum <= value <= maximum:
            out[i] = value
        else:
            problems.value(table.lines[i], field, text, f"outside {minimum}..{maximum}")
    return out


def read_text(path: Path) -> str:
    """The text of a file, plain or gzipped, UTF-8 with or without a byte order mark.

    Raises:
        UserError: no file, a damaged one, or not UTF-8; the message names the line.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no file {path}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, not a file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path}, line {line}: contains a zero byte; save the file as plain UTF-8 text")
    return text


def _check_header(header: list[str], required: list[str], problems: Problems, line: int) -> None:
    """A bad header makes every row wrong, so it is raised at once."""
    missing = [name for name in required if name not in header]
    if missing:
        hint = ""
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            hint = "; the columns must be separated by commas"
        elif not any(name in header for name in required):
            hint = "; is the header line missing?"
        problems.add(line, f"no column {', '.join(map(repr, missing))} in the header {','.join(header)!r}{hint}")
    for name in sorted({name for name in header if header.count(name) > 1}):
        problems.add(line, f"column {name!r} is there {header.count(name)} times")
    if "" in header:
        problems.add(line, f"column {header.index('') + 1} has no name")
    problems.check()
