"""Leases: which unit a worker has in hand, so that others take another one first.

A lease is a file `leases/<unit>.json` (host, process, time), made with O_EXCL and touched while its worker gets on.
It is advice and nothing else: a commit is right whoever wrote, so a lease that is lost, stale, unreadable or taken
twice costs a unit computed twice, and trouble with these files never stops anybody. Readers do not look at them,
`verify` notes them, a seal sweeps them away.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from errors import UserError

from .manifest import readable_json, temporary_beside

FOLDER = "leases"
STALE_S = 600.0
"""Seconds without a sign of its worker after which a lease counts for nothing [CLIPBANK_LEASE_S]."""

_PROCESS = uuid.uuid4().hex


class Leases:
    """The leases of one worker on one store; a context manager, which gives back what is still held.

    stale_s: seconds without `refresh` after which others take a unit over; every worker of a store should have the
    same. Threads may share one; what another `Leases` of the same process holds is nobody's.
    """

    def __init__(self, path: str | os.PathLike, stale_s: float | None = None):
        self.folder = Path(path) / FOLDER
        self.stale_s = stale_seconds() if stale_s is None else stale_s
        self._held: dict[int, bytes] = {}
        self._lock = threading.Lock()
        self._touched = time.monotonic()

    def __enter__(self) -> "Leases":
        return self

    def __exit__(self, *_) -> None:
        for unit in list(self._held):
            self.release(unit)
        with contextlib.suppress(OSError):  # others have leases here still, or never had any
            self.folder.rmdir()

    def take(self, unit: int) -> bool:
        """Whether this worker should compute a unit: False while another that lives has it."""
        with self._lock:
            if unit in self._held:
                return True
            made = _facts()
            if not self._create(unit, made) and not (self._overdue(unit) and self._create(unit, made)):
                return False
            self._held[unit] = made
            return True

    def refresh(self) -> None:
        """A sign of life: call it whenever something was done. Costs nothing when called often."""
        with self._lock:
            if time.monotonic() - self._touched < self.stale_s / 10:
                return
            self._touched = time.monotonic()
            for unit in self._held:
                with contextlib.suppress(OSError):  # swept away, or taken over
                    os.utime(self._file(unit))

    def release(self, unit: int) -> None:
        """Gives a unit back, committed or not. Of one that is not held nothing happens."""
        with self._lock:
            made = self._held.pop(unit, None)
            if made is not None:
                with contextlib.suppress(OSError):
                    if self._file(unit).read_bytes() == made:  # another may have taken it over in the meantime
                        self._file(unit).unlink()

    def _file(self, unit: int) -> Path:
        return self.folder / f"{unit}.json"

    def _create(self, unit: int, made: bytes) -> bool:
        """Makes the lease; False if there is one. Where none can be written, it is as if it had been."""
        for _ in range(2):
            with contextlib.suppress(OSError):  # it is there, or may not be made: opening the file says which
                self.folder.mkdir()
            try:
                with open(self._file(unit), "xb") as file:
                    file.write(made)
                return True
            except FileExistsError:
                return False
            except FileNotFoundError:  # the last of the others has just removed the folder
                continue
            except OSError:
                return True
        return True

    def _overdue(self, unit: int) -> bool:
        """Whether the lease that is there may be taken over: it is removed then, if it still is the one looked at."""
        try:
            before = self._file(unit).stat()
            if not _dead(self._file(unit).read_bytes()) and self._server_time() - before.st_mtime < self.stale_s:
                return False
            now = self._file(unit).stat()
            if (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns):
                self._file(unit).unlink()
        except FileNotFoundError:
            return True  # given back just now
        except OSError:
            return False
        return True

    def _server_time(self) -> float:
        """Now, by the clock that dates the lease files: on NFS it is not this machine's."""
        beside = temporary_beside(self.folder / "clock")
        try:
            with open(beside, "xb"):
                pass
            return beside.stat().st_mtime
        finally:
            beside.unlink(missing_ok=True)


def stale_seconds() -> float:
    """CLIPBANK_LEASE_S, else STALE_S. Raises UserError if it is not a positive number."""
    given = os.environ.get("CLIPBANK_LEASE_S", "")
    try:
        seconds = float(given) if given else STALE_S
        if not seconds > 0:
            raise ValueError
    except ValueError:
        raise UserError(f"CLIPBANK_LEASE_S={given}: expected a positive number of seconds") from None
    return seconds


def _facts() -> bytes:
    return readable_json(
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "process": _PROCESS,
        }
    )


def _dead(data: bytes) -> bool:
    """Whether the worker that wrote a lease is known not to need it: it ended on this host, or it is this process."""
    try:
        facts = json.loads(data)
    except ValueError:  # being written
        return False
    if not isinstance(facts, Mapping) or facts.get("host") != socket.gethostname():
        return False
    if (facts.get("pid"), facts.get("process")) == (os.getpid(), _PROCESS):
        return True
    try:
        os.kill(int(facts["pid"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, KeyError, TypeError, ValueError, OverflowError):  # another user's, so alive; or not ours to judge
        return False
    return False
