"""Exit codes, and stopping by signals so that nothing is lost."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading

from commands.printing import say

__all__ = ["DAMAGE", "DONE", "INCOMPLETE", "INTERRUPTED", "REQUEUE", "stopped_by_signals"]

DONE, DAMAGE, INCOMPLETE, REQUEUE, INTERRUPTED = 0, 1, 3, 75, 130


class Stop:
    """Which signal asked to stop, and the event that the pipeline looks at."""

    def __init__(self):
        self.event = threading.Event()
        self.signal: int | None = None

    @property
    def code(self) -> int:
        return REQUEUE if self.signal == signal.SIGTERM else INTERRUPTED

    def __call__(self, number, frame) -> None:
        if self.event.is_set():
            raise KeyboardInterrupt
        self.signal = number
        self.event.set()
        say("\nstopping after the batches in work (again to stop at once; either way nothing written is lost)")


@contextlib.contextmanager
def stopped_by_signals():
    """Ctrl-C and SIGTERM set an event instead of breaking off; a second one breaks off."""
    stop = Stop()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    except KeyboardInterrupt:
        sys.exit(stop.code)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
