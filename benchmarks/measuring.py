"""What the benchmarks share: turns, medians, a folder to work in, and the last lines that say what holds."""

import contextlib
import os
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

__all__ = ["evict", "files_below", "interleave", "paired_ratio", "verdict", "work_folder"]


@contextlib.contextmanager
def work_folder(root: Path | None) -> Iterator[Path]:
    """`root`, which is kept, or a folder of its own that is gone afterwards."""
    if root is not None:
        root.mkdir(parents=True, exist_ok=True)
        yield root.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="clipbank-benchmark-") as folder:
            yield Path(folder)


def interleave(conditions: Mapping[str, Callable[[], float]], repeats: int, unit: str = "s") -> dict[str, list[float]]:
    """{name: one figure a repeat}; the conditions take turns, A B A B, so that a busy machine slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in conditions}
    for repeat in range(repeats):
        for name, measure in conditions.items():
            found[name].append(measure())
            print(f"  turn {repeat + 1} of {repeats}: {name} {found[name][-1]:.2f} {unit}", flush=True)
    return found


def files_below(path: Path) -> list[Path]:
    """All files of a store: its folder's, or the one that it is."""
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def evict(paths: Iterable[Path]) -> None:
    """Drop the files of stores from the page cache: what is read next comes from the disk."""
    for file in (file for path in paths for file in files_below(path)):
        handle = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def paired_ratio(above: list[float], *below: list[float]) -> float:
    """Median over the repeats of above / sum(below), each repeat's figures having been taken side by side."""
    return statistics.median(a / sum(b) for a, *b in zip(above, *below, strict=True))


def verdict(requirements: list[tuple[bool, str]]) -> int:
    """Print what holds and what does not; the exit code."""
    for holds, what in requirements:
        print(f"{'holds' if holds else 'DOES NOT HOLD'}: {what}")
    return 0 if all(holds for holds, _ in requirements) else 1
