"""A disk without a journal, rebuilt from the system calls of a writer that strace recorded; and one that refuses them.

What survives a power cut: of a file, its content when it was last fsynced; of a folder, the names in it when it was
last fsynced. Everything else (writes, renames, new folders, removals) is dropped.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CALLS = (
    "openat,open,creat,close,write,pwrite64,writev,pwritev,pwritev2,sendfile,copy_file_range,ftruncate,lseek,fsync,"
    "fdatasync,fork,vfork,clone,clone3,rename,renameat,renameat2,mkdir,mkdirat,unlink,unlinkat,rmdir,link,linkat"
)


FORKS = ("fork", "vfork", "clone", "clone3")


@dataclass
class File:
    """data: as programs see it. durable: as it was last fsynced."""

    data: bytearray
    durable: bytes = b""


@dataclass
class Folder:
    """names: {name: File or Folder} as programs see it. durable: as it was last fsynced."""

    names: dict[str, "File | Folder"] = field(default_factory=dict)
    durable: dict[str, "File | Folder"] = field(default_factory=dict)


@dataclass
class Open:
    node: File | Folder
    at: int = 0


@dataclass(frozen=True)
class Call:
    """name(arguments) = result; strings as bytes, the rest as strace spells it."""

    name: str
    arguments: tuple
    result: int


def has_strace() -> bool:
    """Whether strace is there and may trace."""
    if shutil.which("strace") is None:
        return False
    return subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode == 0


def record(command: list[str], log: Path) -> list[Call]:
    """Runs a command to its end; its calls (not its children's) that concern files, in the order of their returns."""
    options = ["-f", "--seccomp-bpf", "-xx", "-s", "100000000", "-e", "signal=none", "-e", f"trace={CALLS}", "-o", log]
    done = subprocess.run(["strace", *options, *command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()[-500:]}")
    found = list(_calls(log.read_text().splitlines()))
    children = {call.result for _, call in found if call.name in FORKS and not _is_thread(call)}
    return [call for pid, call in found if pid not in children and call.name not in FORKS]


def _is_thread(call: Call) -> bool:
    return any("CLONE_THREAD" in part for part in call.arguments if isinstance(part, str))


def _calls(lines: list[str]) -> Iterator[tuple[int, Call]]:
    """(process or thread, call) of those that did not fail, in the order in which they took effect.

    That is when they returned; but for `close`, which gives its number away as it begins: another thread may have
    opened the next file under it before it returns.
    """
    begun: dict[str, str] = {}
    for line in lines:
        pid, _, text = line.partition(" ")
        text = text.lstrip()
        if closed := re.match(r"close\((\d+)\s*<unfinished", text):
            yield int(pid), Call("close", (closed[1],), 0)
        elif text.endswith("<unfinished ...>"):
            begun[pid] = text.removesuffix("<unfinished ...>").rstrip()
        if text.endswith("<unfinished ...>") or text.startswith("<... close resumed>"):
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>\s*(.*)", text, re.DOTALL):
            text = f"{begun.pop(pid)} {resumed[1]}"
        found = re.match(r"(\w+)\((.*)\)\s+= (-?\d+)", text, re.DOTALL)
        if found and int(found[3]) >= 0:
            yield int(pid), Call(found[1], tuple(map(_argument, found[2].split(", "))), int(found[3]))


def _argument(text: str) -> "str | bytes":
    """A string as bytes, whatever brackets of an iovec it stands in."""
    found = re.search(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?', text)
    if not found:
        return text.strip()
    if found[2]:
        raise RuntimeError("strace cut a string short")
    return bytes.fromhex(found[1].replace("\\x", ""))


class Disk:
    """A folder on such a disk.

    root: where it was when the writer was recorded. before: what it held then, all of it durable.
    """

    def __init__(self, root: Path, before: Path):
        self.root = root
        self.top = _load(before)
        self.open: dict[int, Open] = {}
        self.said: list[str] = []
        """Lines that the writer wrote to its standard output."""

    def apply(self, call: Call) -> bool:
        """What a call does to the folder; whether it did anything that could be lost."""
        handler = getattr(self, f"_{_SAME.get(call.name, call.name)}", None)
        return bool(handler and handler(call.arguments, call.result))

    def rebuild(self, target: Path, keep_names: bool = False) -> None:
        """Writes what a power cut leaves now. keep_names: names reached the disk, and what the files held did not."""
        _write(self.top, target, keep_names)

    # -- calls: arguments, result -> whether something changed

    def _openat(self, arguments: tuple, fd: int) -> bool:
        self.open.pop(fd, None)
        place = self._place(arguments[0], arguments[1])
        if place is None:
            return False
        folder, name = place
        flags, made = arguments[2], False
        if name and name not in folder.names and "O_CREAT" in flags:
            folder.names[name], made = File(bytearray()), True
        node = folder.names[name] if name else folder
        self.open[fd] = Open(node)
        if "O_TRUNC" in flags and node.data:
            node.data, made = bytearray(), True
        return made

    def _open(self, arguments: tuple, fd: int) -> bool:
        return self._openat(("AT_FDCWD", *arguments), fd)

    def _creat(self, arguments: tuple, fd: int) -> bool:
        return self._openat(("AT_FDCWD", arguments[0], "O_CREAT|O_TRUNC"), fd)

    def _close(self, arguments: tuple, _: int) -> bool:
        self.open.pop(int(arguments[0]), None)
        return False

    def _write(self, arguments: tuple, count: int) -> bool:
        data = b"".join(part for part in arguments if isinstance(part, bytes))[:count]
        fd = int(arguments[0])
        if fd == 1 and fd not in self.open:
            self.said += data.decode().splitlines()
        return self._put(fd, data)

    def _pwrite64(self, arguments: tuple, count: int) -> bool:
        opened = self.open.get(int(arguments[0]))
        data = b"".join(part for part in arguments if isinstance(part, bytes))[:count]
        return opened is not None and self._put_at(opened.node, int(arguments[-1]), data)

    def _copied(self, source: int, fd: int, count: int) -> bool:
        target, origin = self.open.get(fd), self.open.get(source)
        if target is None:
            return False
        if origin is None:
            raise RuntimeError("a file was copied in from outside the folder: its content is not known")
        data = bytes(origin.node.data[origin.at : origin.at + count])
        origin.at += count
        return self._put(fd, data)

    def _sendfile(self, arguments: tuple, count: int) -> bool:
        offset = re.search(r"\d+", arguments[2])
        source = int(arguments[1])
        if offset and source in self.open:
            self.open[source].at = int(offset[0])
        return self._copied(source, int(arguments[0]), count)

    def _copy_file_range(self, arguments: tuple, count: int) -> bool:
        return self._copied(int(arguments[0]), int(arguments[2]), count)

    def _lseek(self, arguments: tuple, at: int) -> bool:
        if opened := self.open.get(int(arguments[0])):
            opened.at = at
        return False

    def _ftruncate(self, arguments: tuple, _: int) -> bool:
        if opened := self.open.get(int(arguments[0])):
            size = int(arguments[1])
            opened.node.data = opened.node.data[:size].ljust(size, b"\0")
        return opened is not None

    def _fsync(self, arguments: tuple, _: int) -> bool:
        opened = self.open.get(int(arguments[0]))
        if opened is None:
            return False
        if isinstance(opened.node, File):
            opened.node.durable = bytes(opened.node.data)
        else:
            opened.node.durable = dict(opened.node.names)
        return True

    def _mkdirat(self, arguments: tuple, _: int) -> bool:
        place = self._place(*arguments[:2])
        if place:
            place[0].names[place[1]] = Folder()
        return place is not None

    def _unlinkat(self, arguments: tuple, _: int) -> bool:
        place = self._place(*arguments[:2])
        return place is not None and place[0].names.pop(place[1], None) is not None

    def _renameat(self, arguments: tuple, _: int) -> bool:
        source, target = self._place(*arguments[:2]), self._place(*arguments[2:4])
        if (source is None) != (target is None):
            raise RuntimeError("a file was moved into or out of the folder")
        if source:
            target[0].names[target[1]] = source[0].names.pop(source[1])
        return source is not None

    def _linkat(self, arguments: tuple, _: int) -> bool:
        source, target = self._place(*arguments[:2]), self._place(*arguments[2:4])
        if source and target:
            target[0].names[target[1]] = source[0].names[source[1]]
        return bool(source and target)

    def _mkdir(self, arguments: tuple, result: int) -> bool:
        return self._mkdirat(("AT_FDCWD", *arguments), result)

    def _unlink(self, arguments: tuple, result: int) -> bool:
        return self._unlinkat(("AT_FDCWD", *arguments), result)

    def _rename(self, arguments: tuple, result: int) -> bool:
        return self._renameat(("AT_FDCWD", arguments[0], "AT_FDCWD", arguments[1]), result)

    def _link(self, arguments: tuple, result: int) -> bool:
        return self._linkat(("AT_FDCWD", arguments[0], "AT_FDCWD", arguments[1]), result)

    # -- where

    def _place(self, at: str, path: bytes) -> tuple[Folder, str] | None:
        """(folder, name in it) of a path; (folder, "") of the root itself; None outside."""
        text = os.fsdecode(path)
        if os.path.isabs(text):
            relative = os.path.relpath(text, self.root)
            if relative.startswith(".."):
                return None
            folder = self.top
        elif at.isdigit() and int(at) in self.open:
            folder, relative = self.open[int(at)].node, os.path.normpath(text)
        else:
            return None
        *parents, name = [part for part in relative.split("/") if part != "."] or [""]
        for parent in parents:
            folder = folder.names[parent]
        return folder, name

    def _put(self, fd: int, data: bytes) -> bool:
        opened = self.open.get(fd)
        if opened is None:
            return False
        opened.at += len(data)
        return self._put_at(opened.node, opened.at - len(data), data)

    @staticmethod
    def _put_at(node: File, at: int, data: bytes) -> bool:
        node.data.extend(bytes(max(0, at - len(node.data))))
        node.data[at : at + len(data)] = data
        return True


_SAME = {
    "writev": "write", "pwritev": "pwrite64", "fdatasync": "fsync", "renameat2": "renameat", "rmdir": "unlink",
}  # fmt: skip


def _load(path: Path) -> Folder:
    names: dict[str, File | Folder] = {}
    for entry in path.iterdir():
        data = b"" if entry.is_dir() else entry.read_bytes()
        names[entry.name] = _load(entry) if entry.is_dir() else File(bytearray(data), data)
    return Folder(names, dict(names))


def _write(folder: Folder, target: Path, keep_names: bool) -> None:
    target.mkdir(parents=True)
    for name, node in (folder.names if keep_names else folder.durable).items():
        if isinstance(node, Folder):
            _write(node, target / name, keep_names)
        else:
            (target / name).write_bytes(node.durable)


def cut_points(calls: list[Call], disk: Disk) -> int:
    """How many calls of a recording could be lost, and so between how many a cut makes a difference."""
    return sum(disk.apply(call) for call in calls)


def cuts(calls: list[Call], disk: Disk, points: list[int]) -> Iterator[int]:
    """Each of the ascending points in turn, the disk having seen so many of the calls that could be lost."""
    seen, wanted = 0, list(points)
    for call in calls:
        while wanted and seen >= wanted[0]:
            yield wanted.pop(0)
        seen += disk.apply(call)
    yield from wanted


def record_job(script: Path, job: str, folder: Path, log: Path) -> list[Call]:
    """The calls of `python script job folder`."""
    return record([sys.executable, str(script), job, str(folder)], log)


REFUSED = "fsync,fdatasync,pwrite64,mkdir,mkdirat,rename,renameat,renameat2,link,linkat"


def run_refused(script: Path, job: str, folder: Path, log: Path, error: str, call: int) -> int:
    """Exit code of `python script job folder` whose calls that write, name or sync fail with this error for good.

    error: as `errno` names it. call: of each thread, the number of the first call that fails, from 1.
    """
    options = ["-f", "--seccomp-bpf", "-qq", "-e", "signal=none", "-e", f"trace={REFUSED}", "-o", os.devnull]
    options += ["-e", f"inject={REFUSED}:error={error}:when={call}+"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with log.open("ab") as words:
        command = ["strace", *options, sys.executable, str(script), job, str(folder)]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=words, env=environment).returncode
