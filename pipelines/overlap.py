"""Threads with bounded queues: the one place that knows how stages of the pipeline run at the same time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Item = TypeVar("Item")

_POLL_S = 0.1


class _Raised:
    def __init__(self, error: BaseException):
        self.error = error


_ENDED = object()


def in_threads(
    produce: Callable[[Task], Iterator[Item]], tasks: Iterable[Task | None], workers: int, ahead: int
) -> Iterator[Item]:
    """The items of `produce(task)` for every task, made by `workers` threads, at most `ahead` of them waiting.

    Items of one task keep their order; tasks interleave. A task None stands for "none is ready": the next is asked
    for, unless all is over by then. An exception in a thread is raised here. Closing
    the iterator (or an exception in its consumer) stops the threads before their next item.
    """
    waiting: queue.Queue = queue.Queue(maxsize=ahead)
    source = iter(tasks)
    source_lock = threading.Lock()
    closed = threading.Event()

    def put(item) -> None:
        while not closed.is_set():
            try:
                waiting.put(item, timeout=_POLL_S)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            while not closed.is_set():
                with source_lock:
                    task = next(source, _ENDED)
                if task is _ENDED:
                    break
                if task is None:
                    continue
                items = produce(task)
                for item in items:
                    put(item)
                    if closed.is_set():
                        break
        except BaseException as error:  # whatever it is belongs to the consumer's thread
            put(_Raised(error))
        finally:
            put(_ENDED)

    threads = [threading.Thread(target=work, name=f"decode-{i}", daemon=True) for i in range(workers)]
    for thread in threads:
        thread.start()
    try:
        running = workers
        while running:
            item = waiting.get()
            if item is _ENDED:
                running -= 1
            elif isinstance(item, _Raised):
                raise item.error
            else:
                yield item
    finally:
        closed.set()
        for thread in threads:
            thread.join()


class BehindWriter:
    """Runs calls one by one in a thread of its own, at most `behind` waiting; a failed one raises at the next."""

    def __init__(self, behind: int = 1):
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="write")
        self._pending: list[Future] = []
        self._behind = behind

    def submit(self, call: Callable, *args) -> None:
        while len(self._pending) > self._behind:
            self._pending.pop(0).result()
        self._pending.append(self._pool.submit(call, *args))

    def __enter__(self) -> BehindWriter:
        return self

    def __exit__(self, kind, value, trace) -> None:
        try:
            while self._pending:  # on an error too: a unit that was computed is written
                future = self._pending.pop(0)
                if kind is None:
                    future.result()
                else:
                    future.exception()
        finally:
            self._pool.shutdown(wait=True, cancel_futures=True)
