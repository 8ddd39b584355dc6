"""A folder of stores over HTTP, read-only: what `open_store("http://...")` reads from a machine of one's own.

Only files of stores are served (`NAME.zarr` folders, `NAME.h5` files below the root), whatever else lies beside them,
and nothing outside the root, whatever the path or a symbolic link says. `/` lists the stores as JSON.
"""

import contextlib
import json
import os
import re
import stat
import threading
import urllib.parse
from collections.abc import Callable
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from errors import UserError

from .manifest import is_temporary

SUFFIXES = (".zarr", ".h5")
MOST_CONNECTIONS = 64
"""Connections that are answered at once; further ones wait."""

IDLE_S = 60
"""A connection that says nothing for so long is closed."""


def serve(
    root: str | os.PathLike,
    host: str = "127.0.0.1",
    port: int = 8000,
    started: Callable[[str], None] | None = None,
    log: Callable[[str], None] | None = None,
) -> None:
    """Serves the stores under `root` until interrupted (Ctrl-C).

    host: 127.0.0.1 is this machine only; 0.0.0.0 is everybody who can reach it: there is no password.
    started: called with the URL. log: called with a line a request.
    Raises UserError: no such folder, the address is taken or not this machine's.
    """
    with make_server(root, host, port, log) as server, contextlib.suppress(KeyboardInterrupt):
        if started:
            started(server.url)
        server.serve_forever()


class StoreServer(ThreadingHTTPServer):
    """The server of one root; `url` is its address."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, root: Path, address: tuple[str, int], log: Callable[[str], None] | None):
        self.root, self.log = root, log
        self._places = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/"

    def process_request(self, request, client_address):
        self._places.acquire()
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request, client_address):
        """A client that went away is no event."""


def make_server(
    root: str | os.PathLike, host: str = "127.0.0.1", port: int = 0, log: Callable[[str], None] | None = None
) -> StoreServer:
    """A server that is bound and does not serve yet (`serve_forever`, `shutdown`). port 0: any free one."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"there is no folder {root} to serve")
    try:
        return StoreServer(root.resolve(), (host, port), log)
    except (OSError, OverflowError) as error:
        raise UserError(f"cannot serve at {host}:{port}: {error}; choose another --host or --port") from error


# ---------------------------------------------------------------------------------------------- what is served


def list_stores(root: str | os.PathLike) -> list[str]:
    """Names of the stores below a folder, `epic55/i3d_rgb.zarr`, sorted; links that leave it are passed over."""
    root, found = Path(root).resolve(), []
    for parent, folders, files in os.walk(root):
        stores = [name for name in folders if (Path(parent) / name / "zarr.json").is_file()]
        folders[:] = [name for name in folders if name not in stores and not name.startswith(".")]
        stores += [name for name in files if name.endswith(".h5")]
        names = [(Path(parent) / name).relative_to(root).as_posix() for name in stores]
        found += [name for name in names if name.endswith(SUFFIXES) and _inside(root, name) is not None]
    return sorted(found)


def _inside(root: Path, name: str) -> Path | None:
    """The real path of a name below `root`, or None if it is not one of a store's files, or leaves the root."""
    parts = name.split("/")
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part or is_temporary(part) for part in parts):
        return None
    store = next((i for i, part in enumerate(parts) if part.endswith(SUFFIXES)), None)
    if store is None or any(part.startswith(".") for part in parts[: store + 1]):
        return None
    try:
        real = (root / name).resolve(strict=True)
    except (OSError, RuntimeError, ValueError):
        return None
    return real if real.is_relative_to(root) else None


def _open(root: Path, name: str) -> int | None:
    """A descriptor of a regular file of a store, or None. Raises PermissionError."""
    real = _inside(root, name)
    if real is None:
        return None
    try:
        handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        raise
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(handle).st_mode):
        return handle
    os.close(handle)
    return None


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """(first byte, one past the last) of a `Range` header; None where the whole file is to be sent.

    Raises ValueError if no such byte exists. Several ranges, or another unit, may be answered by the whole file.
    """
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*", header or "")
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first and last and int(last) < int(first):
        return None
    start, stop = (int(first), int(last) + 1 if last else size) if first else (max(0, size - int(last)), size)
    if start >= size or (not first and int(last) == 0):
        raise ValueError(header)
    return start, min(stop, size)


# ------------------------------------------------------------------------------------------------ the protocol


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server_version = "clipbank"
    sys_version = ""
    timeout = IDLE_S
    server: StoreServer

    def do_GET(self):
        self._answer()

    def do_HEAD(self):
        self._answer()

    def __getattr__(self, name: str):
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def log_message(self, format: str, *args):
        if self.server.log:
            line = f"{self.address_string()} {format % args}"
            self.server.log("".join(c if c.isprintable() else "?" for c in line))

    def _refuse(self):
        self.close_connection = True  # what was sent along is not read
        self._text(HTTPStatus.METHOD_NOT_ALLOWED, "read-only: GET and HEAD", {"Allow": "GET, HEAD"})

    def _answer(self):
        path = self.path.partition("?")[0].partition("#")[0]
        try:
            name = urllib.parse.unquote(path, errors="strict").removeprefix("/")
        except UnicodeDecodeError:
            return self._text(HTTPStatus.NOT_FOUND, "no such file")
        if not path.startswith("/"):
            return self._text(HTTPStatus.BAD_REQUEST, "the path must begin with /")
        if not name:
            body = json.dumps({"stores": list_stores(self.server.root)}, ensure_ascii=False, indent=1)
            return self._text(HTTPStatus.OK, body, kind="application/json")
        try:
            handle = _open(self.server.root, name)
        except PermissionError:
            return self._text(HTTPStatus.FORBIDDEN, "the server may not read this file")
        if handle is None:
            return self._text(HTTPStatus.NOT_FOUND, "no such file")
        with open(handle, "rb") as file:
            self._file(file)

    def _file(self, file):
        facts = os.fstat(file.fileno())
        headers = {
            "ETag": f'"{facts.st_mtime_ns:x}-{facts.st_size:x}-{facts.st_ino:x}"',
            "Last-Modified": formatdate(facts.st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
        }
        if "If-Match" in self.headers and not self._names(headers["ETag"], "If-Match"):
            return self._text(HTTPStatus.PRECONDITION_FAILED, "the file has changed")
        if self._names(headers["ETag"], "If-None-Match"):
            return self._head(HTTPStatus.NOT_MODIFIED, headers)
        wanted = self.headers.get("Range")
        if self.headers.get("If-Range", headers["ETag"]) != headers["ETag"]:
            wanted = None
        try:
            span = parse_range(wanted, facts.st_size)
        except ValueError:
            size = {"Content-Range": f"bytes */{facts.st_size}"}
            return self._text(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "no such bytes", size)
        start, stop = span or (0, facts.st_size)
        headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(stop - start)}
        if span:
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{facts.st_size}"
        self._head(HTTPStatus.PARTIAL_CONTENT if span else HTTPStatus.OK, headers)
        if self.command == "GET" and stop > start:
            self.wfile.flush()
            sent = self.connection.sendfile(file, start, stop - start)
            if sent < stop - start:  # the file became shorter: the client must notice
                self.close_connection = True

    def _names(self, tag: str, condition: str) -> bool:
        """Whether a header of conditions names this ETag."""
        known = [name.strip().removeprefix("W/") for name in self.headers.get(condition, "").split(",")]
        return tag in known or known == ["*"]

    def _head(self, status: HTTPStatus, headers: dict[str, str]):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _text(self, status: HTTPStatus, text: str, headers: dict | None = None, kind: str = "text/plain"):
        body = (text + "\n").encode(errors="replace")
        lengths = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(body))}
        if self.close_connection:
            lengths["Connection"] = "close"
        self._head(status, {**lengths, **(headers or {})})
        if self.command != "HEAD":
            self.wfile.write(body)
