"""Stores at the other end of a network, read-only: `https://host/path/NAME.zarr`, `s3://bucket/path/NAME.zarr`.

Every request goes through tensorstore, in parallel, with a few retries and a time limit. What was fetched of the
arrays stays in a cache in memory of bounded size; shards are read by ranges, so a batch costs its own chunks. The
server must know range requests and, for stores that change under their readers, ETag and If-Match, as S3, nginx,
Apache and `serve` do: a range is then never taken from a newer file than the index that says where it lies.
"""

import functools
import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np

from errors import MachineError, UserError

from .columns import decode_column
from .extensions import FOLDER, Extension, applied
from .manifest import FAILED, DamagedStore, Manifest, NotAStore, parse_json, sha256
from .version import StoreChanged
from .zarr_store import STATUS, DamagedShard, ZarrFiles, parse_root, tensorstore

CACHE_BYTES = 256 * 1024 * 1024
"""Bound of the cache of fetched chunks and shard indexes, one a process."""

TIMEOUT_S = 60.0
"""No answer within this: an error. `CLIPBANK_TIMEOUT` (seconds) says otherwise."""

_RETRIES = {"max_retries": 3, "initial_delay": "250ms", "max_delay": "2s"}
_CREDENTIALS = "AWS_NO_SIGN_REQUEST"


class Url(str):
    """A URL that joins like a path."""

    def __truediv__(self, name: str) -> "Url":
        return Url(f"{self.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.rstrip("/").rpartition("/")[2]


class RemoteError(MachineError):
    """A server could not be reached, or did not give what it was asked for; the message has the URL."""


def open_remote(url: str) -> "RemoteFiles":
    """Reads the manifest of a store. Raises NotAStore (404), UserError (403, a bad URL), RemoteError."""
    url = _checked(url)
    files = RemoteFiles(url, None)
    data = files.fetch(["zarr.json"])[0]
    if data is None:
        raise NotAStore(f"there is no store at {url}: the server has no {url / 'zarr.json'} (404). Check the address")
    files.manifest = parse_root(data, url)
    return files


class RemoteFiles(ZarrFiles):
    """The same tree as a folder's, fetched object by object."""

    read_only = "stores are read over the network, not written. Copy it to a folder, or work where it lies"

    def __init__(self, url: Url, manifest: Manifest | None):
        super().__init__(url, manifest)
        self._open: dict[str, Any] = {}

    # -- objects

    def fetch(self, names: Sequence[str]) -> list[bytes | None]:
        """The content of files of the store, all asked for at once; None where the server has no such file."""
        tensorstore()  # which refuses a forked process; handles that it inherited would end it
        answers = [self.objects.read(name) for name in names]
        return [self._answer(name, answer) for name, answer in zip(names, answers, strict=True)]

    def _answer(self, name: str, answer: Future) -> bytes | None:
        try:
            result = answer.result(timeout=_timeout())
        except Exception as error:
            raise network_error(self.path / name, error) from error
        return result.value if result.state == "value" else None

    @functools.cached_property
    def objects(self) -> Any:
        try:
            return tensorstore().KvStore.open(_kvstore(self.path), context=self.context()).result(timeout=_timeout())
        except (ValueError, TimeoutError) as error:
            raise network_error(self.path, error) from error

    def get(self, name: str) -> tuple[bytes | None, Any]:
        return self.fetch([name])[0], None

    def read_file(self, name: str) -> bytes:
        data = self.fetch([name])[0]
        if data is None:
            raise DamagedStore(f"{self.path / name} is missing (404): this store is not whole")
        return data

    def read_json(self, name: str) -> Any:
        data = self.fetch([name])[0]
        try:
            return None if data is None else parse_json(data)
        except ValueError as error:
            raise DamagedStore(f"{self.path / name} is not valid JSON: the file was damaged") from error

    def has_grown(self, name: str, data: bytes) -> bool:
        now, found = self._manifest_now(), sha256(data)
        if now.hashes.get(name) == found:
            return applied(now) > applied(self.manifest)
        return any(extension.hashes().get(name) == found for extension in self._later())

    def _manifest_now(self) -> Manifest:
        return parse_root(self.read_file("zarr.json"), self.path)

    def _later(self) -> Iterator[Extension]:
        """The extensions that came after this manifest, applied or not."""
        k = applied(self.manifest)
        while (data := self.fetch([name := f"{FOLDER}/{k}/record.json"])[0]) is not None:
            try:
                yield Extension.from_json(parse_json(data))
            except (ValueError, KeyError, TypeError) as error:
                raise DamagedStore(f"{self.path / name} is damaged: its record cannot be read") from error
            k += 1

    # -- tables and status

    def column(self, name: str) -> np.ndarray:
        """A whole column as it was when the store was opened. Raises StoreChanged for one that was replaced since."""
        length = self.manifest.tables.get(name.partition("/")[0])
        try:
            values = self._column(name, self.metadata(name))[:length]
        except DamagedStore as error:
            self._refuse_replaced(name, error)
            raise
        self._refuse_replaced(name)  # looked at after reading: what was read may be half of each
        return values

    def _refuse_replaced(self, name: str, error: Exception | None = None) -> None:
        if self.manifest.seal and self._manifest_now() == self.manifest:
            return  # a sealed store is unsealed before anything of it changes
        if any(name in extension.replaced for extension in self._later()):
            raise StoreChanged(
                f"{self.path} was relabelled after it was opened, or is being so: {name} is not what it was. Open it"
                " again; if that does not help, whoever keeps the store has to run the relabelling again"
            ) from error

    def status(self) -> np.ndarray:
        if self.manifest.seal:
            return self.sealed_column("status")
        return self._column(STATUS, self.metadata(STATUS), may_lack_chunks=True)

    def sealed_column(self, name: str) -> np.ndarray | None:
        folder = f"sealed/{self.manifest.seal['k']}/{name}"
        metadata = self.read_json(f"{folder}/zarr.json")
        if metadata is None and name == "status":
            raise DamagedStore(f"{self.path / folder}/zarr.json is missing (404): this store is not whole")
        return None if metadata is None else self._column(folder, metadata)

    def _column(self, folder: str, metadata: dict, may_lack_chunks: bool = False) -> np.ndarray:
        where = self.path / folder
        return decode_column(
            metadata, lambda names: self.fetch([f"{folder}/{n}" for n in names]), where, may_lack_chunks
        )

    def failures(self) -> dict[int, tuple[str, str]]:
        """A server lists no folders: the units that have failed rows are asked for."""
        units = np.unique(np.flatnonzero(self.status() == FAILED) // self.manifest.layout.unit_rows).tolist()
        found = {}
        for name, data in zip(units, self.fetch([self.failures_name(unit) for unit in units]), strict=True):
            found |= parse_failures(data, self.path / self.failures_name(name))
        return dict(sorted(found.items()))

    # -- data

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """As of a folder. What was fetched before is asked for anew ere it is called damaged: a shard may have been
        replaced since (its failed rows extracted again), and the kept index and chunks say nothing about the new one.
        """
        try:
            values = super().read(name, rows)
        except DamagedStore:
            values = None
        if values is not None and self.manifest.arrays[name].has_value(values).all():
            return values
        self._arrays.pop((name, False), None)  # opened again, tensorstore takes nothing older from its cache
        return super().read(name, rows)

    def storage(self, array: str) -> dict:
        fixed = {"open": True, "assume_metadata": True, "recheck_cached_data": "open"}
        return {"kvstore": _kvstore(self.path / "data" / array), **fixed}

    def context(self) -> Any:
        return _context()

    def result(self, read: Any) -> np.ndarray:
        return read.result(timeout=_timeout())

    def shard_damage(self, name: str, unit: int, error: Exception) -> Exception:
        shard = self.path / self.shard_name(name, unit)
        if str(error).startswith("NOT_FOUND"):
            return DamagedShard(
                f"{shard} is missing or holds no value of a row marked ok: tell whoever keeps the store"
            )
        if isinstance(error, TimeoutError) or _is_network(error):
            return network_error(shard, error)
        return DamagedShard(f"{shard} is damaged ({_short(error)}): tell whoever keeps the store")


def parse_failures(data: bytes | None, where: str) -> dict[int, tuple[str, str]]:
    """What a failures/<unit>.json says."""
    try:
        listed = {} if data is None else parse_json(data)
        return {int(row): (str(code), str(line)) for row, (code, line) in listed.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedStore(f"{where} is not a list of failures: the file was damaged") from error


# ---------------------------------------------------------------------------------------------------- addresses


def _checked(url: str) -> Url:
    """The URL without a trailing slash. Raises UserError for one that names no store."""
    parts = urllib.parse.urlsplit(url)
    path = urllib.parse.unquote(parts.path)
    if not parts.netloc or not path.rstrip("/").endswith(".zarr") or parts.query or parts.fragment:
        what = "ends in NAME.zarr, and has no ? or #"
        hint = " Download an HDF5 store and open the file." if path.endswith((".h5", ".hdf5")) else ""
        if parts.netloc and not hint and not url.startswith("s3://"):
            hint = " `catalog ADDRESS` lists the stores that a `serve` offers."
        raise UserError(f"the address of a store {what}: got {url}.{hint}")
    if ".." in path.split("/") or "\0" in path or parts.username or parts.password:
        raise UserError(f"the address of a store holds no '..' and no password: got {parts.hostname}{parts.path}")
    return Url(url.rstrip("/"))


def _kvstore(url: Url) -> dict:
    if not url.startswith("s3://"):
        return {"driver": "http", "base_url": f"{url}/"}
    bucket, _, path = url.removeprefix("s3://").partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": f"{path}/"}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if endpoint:
        spec |= {"endpoint": endpoint.rstrip("/"), "aws_region": region or "us-east-1"}
    elif region:
        spec["aws_region"] = region
    if os.environ.get(_CREDENTIALS, "").lower() in ("1", "yes", "true"):
        spec["aws_credentials"] = {"type": "anonymous"}
    return spec


@functools.cache
def _context() -> Any:
    limits = {"http_request_retries": _RETRIES, "s3_request_retries": _RETRIES}
    return tensorstore().Context({"cache_pool": {"total_bytes_limit": CACHE_BYTES}, **limits})


def _timeout() -> float:
    given = os.environ.get("CLIPBANK_TIMEOUT", "")
    try:
        return float(given) if given else TIMEOUT_S
    except ValueError:
        raise UserError(f"CLIPBANK_TIMEOUT is a number of seconds, got {given!r}") from None


# ------------------------------------------------------------------------------------------------------- errors


def network_error(url: str, error: Exception) -> Exception:
    """What to say of a request that failed: which URL, why, what to do."""
    if isinstance(error, UserError | MachineError):
        return error
    if isinstance(error, TimeoutError):
        return RemoteError(
            f"{url} gave no answer within {_timeout():g} s: try again later, or allow more with CLIPBANK_TIMEOUT"
        )
    text, code = str(error), _http_code(error)
    if code in (401, 403) or text.startswith(("PERMISSION_DENIED", "UNAUTHENTICATED")):
        s3 = f" Public buckets are read with {_CREDENTIALS}=1, others with AWS_PROFILE or AWS_ACCESS_KEY_ID."
        also = s3 + " S3 says the same of objects that are not there, unless you may list the bucket."
        hint = also if url.startswith("s3://") else " Ask whoever keeps the store for access."
        return UserError(f"{url} may not be read ({code or 'access denied'}).{hint}")
    if code == 404 or code == 410 or text.startswith("NOT_FOUND"):
        return DamagedStore(f"{url} is missing ({code or 'not found'})")
    if code in (301, 302, 307, 308):
        return UserError(f"{url} has moved ({code}): use the address that it leads to")
    if code is not None:
        return RemoteError(f"{url}: the server failed ({code}): try again later")
    return RemoteError(f"cannot read {url}: {_short(error)}. Check the address, the network and that the server runs")


def _http_code(error: Exception) -> int | None:
    match = re.search(r"HTTP code (\d{3})\b", str(error))
    return int(match[1]) if match else None


def _is_network(error: Exception) -> bool:
    return _http_code(error) is not None or "curl_code" in str(error) or str(error).startswith("PERMISSION_DENIED")


def _short(error: Exception) -> str:
    text = re.sub(r"\s*\[(?!HTTP|curl).*", "", str(error), flags=re.DOTALL)
    return re.sub(r"\s*\[.*", "", re.sub(r"^[A-Z_]+: (All \d+ retry attempts failed: )?", "", text)).strip()[:300]
