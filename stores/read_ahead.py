"""Batches read by threads while the one before is used.

Threads rather than processes: reading and unpacking release the interpreter, a batch is not copied from one process to
another, and rows kept in memory are kept once.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol


class Batched(Protocol):
    def batch(self, indices: Sequence[int]) -> Any:
        """One batch of these items."""


def prefetch(
    dataset: Batched, batches: Iterable[Sequence[int]], workers: int = 2, ahead: int = 4
) -> Iterator[dict[str, Any]]:
    """`dataset.batch` of each list of indices, in order, read by `workers` threads at most `ahead` batches early."""
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        waiting: deque = deque()
        todo = iter(batches)
        try:
            while True:
                while len(waiting) < ahead and (indices := next(todo, None)) is not None:
                    waiting.append(pool.submit(dataset.batch, indices))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
