"""Stores over a network: our own server and S3 (where moto is installed) on loopback, and servers that fail."""

import http.client
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from synthetic_stores import all_stores

import stores.remote
from errors import MachineError, UserError
from pipelines import evaluate, train_head
from pipelines.run_folder import open_run
from stores import ArraySpec, DamagedStore, NotAStore, RowNotReady, open_store, pack, verify
from stores.serve import list_stores, make_server, parse_range
from tests.store_samples import fill, new_store, values

ROOT = Path(__file__).resolve().parents[1]
ARRAYS = {"spatial": ArraySpec((2, 16400), "float16"), "vector": ArraySpec((3,), "float32")}


@pytest.fixture
def served(tmp_path):
    """(root, URL, requests): a server of tmp_path/root, and the request lines that it has seen."""
    root, lines = tmp_path / "root", []
    (root / "toy").mkdir(parents=True)
    server = make_server(root, log=lambda line: lines.append(line.split('"')[1]))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield root, server.url, lines
    server.shutdown()
    server.server_close()


def made(path, n=7, sealed=True):
    store = new_store(path, n, unit_rows=4, arrays=ARRAYS)
    store.write_probe("a/b ü", {"fps": 25.0, "geometry": [1.0, 2.0, 3.0, 4.0]})
    fill(store, failed=(2,))
    if sealed:
        store.seal()
    return store


# ------------------------------------------------------------------------------------------------- reading


def test_a_sealed_store_opens_in_a_handful_of_requests(served):
    root, url, requests = served
    store = made(root / "toy/s.zarr", n=400)
    remote = open_store(url + "toy/s.zarr")
    assert remote.ok.tolist() == store.ok.tolist()
    assert len(requests) == 3, requests  # the manifest, and the status of 100 units: its metadata and its one chunk
    requests.clear()
    remote.rows["start_s"], remote.clips["id"]
    assert len(requests) == 6, (
        requests
    )  # of each its metadata and its one chunk; and whether they were replaced just now
    requests.clear()
    assert remote.geometry("a/b ü") == [1.0, 2.0, 3.0, 4.0]
    assert len(requests) <= 5, requests


def test_a_batch_fetches_its_own_chunks_once(served):
    root, url, requests = served
    store = made(root / "toy/s.zarr")
    remote = open_store(url + "toy/s.zarr")
    remote.status()
    requests.clear()
    rows = [6, 0, 3]
    np.testing.assert_array_equal(remote.read("spatial", rows), store.read("spatial", rows))
    shards = [line for line in requests if "/c." in line]
    assert len(requests) == 1 + len(shards) and len(shards) <= 5, requests  # two indexes, and at most a range a row
    requests.clear()
    np.testing.assert_array_equal(remote.read("spatial", [3, 6]), store.read("spatial", [3, 6]))
    assert requests == [], "what was fetched is kept"


def test_a_forked_process_is_told_what_to_do_whatever_it_asks_for(served):
    """tensorstore would end it, which a DataLoader reports as a worker that exited unexpectedly."""
    root, url, _ = served
    made(root / "toy/s.zarr")
    code = (
        "import os, sys, stores\n"
        "s = stores.open_store(sys.argv[1]); asked = [lambda: s.clips['id'], s.status, lambda: s.probe(0)]\n"
        "s.videos['name']\n"
        "for ask in asked:\n"
        "    if not (pid := os.fork()):\n"
        "        try: ask()\n"
        "        except stores.reader.UserError as e: os._exit(7 if 'spawn' in str(e) else 8)\n"
        "        os._exit(9)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    command = [sys.executable, "-c", code, url + "toy/s.zarr"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["7"] * 3, done.stderr


def test_the_cache_is_bounded():
    limit = stores.remote._context()["cache_pool"].to_json()
    assert limit == {"total_bytes_limit": stores.remote.CACHE_BYTES} and stores.remote.CACHE_BYTES <= 2**28


def test_a_store_that_changes_is_read_as_it_is_then(served):
    root, url, _ = served
    store = made(root / "toy/s.zarr", sealed=False)
    first = open_store(url + "toy/s.zarr").read("vector", [1])
    (store.path / "rows/status/c.0").unlink()
    for name in ("spatial", "vector", "n_padded"):
        (store.path / store._files.shard_name(name, 0)).unlink()
    remote = open_store(url + "toy/s.zarr")
    assert remote.status(0).tolist() == [0] * 4
    with pytest.raises(RowNotReady):
        remote.read("vector", [1])
    store.commit(0, values(store, range(4), salt=5), [1] * 4)
    again = open_store(url + "toy/s.zarr").read("vector", [1])
    np.testing.assert_array_equal(again, open_store(store.path).read("vector", [1]))
    assert (again != first).any()


def test_what_is_lost_or_damaged_is_an_error_never_a_fill_value(served):
    root, url, _ = served
    store = made(root / "toy/s.zarr")
    shard = store.path / "data/vector/c.1.0"
    whole = shard.read_bytes()
    shard.unlink()
    with pytest.raises(DamagedStore, match=r"http://.*data/vector/c\.1\.0 is missing"):
        open_store(url + "toy/s.zarr").read("vector", [0, 5])
    shard.write_bytes(whole[:9] + bytes([whole[9] ^ 1]) + whole[10:])
    with pytest.raises(DamagedStore, match=r"data/vector/c\.1\.0 is damaged"):
        open_store(url + "toy/s.zarr").read("vector", [0, 5])
    (store.path / "clips/id/c.0").unlink()
    with pytest.raises(DamagedStore, match=r"clips/id/c\.0 is missing"):
        open_store(url + "toy/s.zarr").clips["id"]
    (store.path / "sealed/1/status/c.0").unlink()
    with pytest.raises(DamagedStore, match="is missing"):
        open_store(url + "toy/s.zarr").status()
    with pytest.raises(UserError, match="where the store lies"):
        verify(url + "toy/s.zarr")


@pytest.mark.parametrize(
    "url, why",
    [
        ("http://h/s.h5", "Download an HDF5 store"),
        ("http://h/toy", "`catalog ADDRESS` lists"),
        ("http://h/s.zarr?x=1", "no \\? or #"),
        ("http:///s.zarr", "NAME.zarr"),
        ("http://h/../s.zarr", "no '..'"),
        ("http://h/%2e%2e/s.zarr", "no '..'"),
        ("http://user:secret@h/s.zarr", "no password"),
        ("s3://bucket/s", "NAME.zarr"),
    ],
)
def test_addresses_that_are_none(url, why):
    with pytest.raises(UserError, match=why) as error:
        open_store(url)
    assert "secret" not in str(error.value)


# ------------------------------------------------------------------------------------------ servers that fail


class Failing(http.server.BaseHTTPRequestHandler):
    """Answers /<code>/... by that code; 1: never; 2: half of what it promised."""

    def do_GET(self):
        code = int(self.path.split("/")[1])
        if code == 1:
            time.sleep(3)
        self.send_response(code if code > 2 else 200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * (100 if code > 2 else 10))

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def failing():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    "code, kind, why",
    [
        (404, NotAStore, "no store at .*404"),
        (403, UserError, "may not be read .403.*Ask whoever"),
        (401, UserError, "may not be read .401"),
        (302, UserError, "has moved"),
        (500, MachineError, "the server failed .500.*try again later"),
        (503, MachineError, "the server failed .503"),
        (2, MachineError, "cannot read .*partial file"),
        (200, NotAStore, "has no manifest"),
    ],
)
def test_errors_say_the_url_and_what_to_do(failing, monkeypatch, code, kind, why):
    monkeypatch.setattr(stores.remote, "_RETRIES", {"max_retries": 1, "initial_delay": "10ms", "max_delay": "10ms"})
    stores.remote._context.cache_clear()
    with pytest.raises(kind, match=why) as error:
        open_store(f"{failing}/{code}/s.zarr")
    assert f"{failing}/{code}/s.zarr" in str(error.value)
    stores.remote._context.cache_clear()


def test_no_answer_and_nobody_there(failing, monkeypatch):
    monkeypatch.setenv("CLIPBANK_TIMEOUT", "0.5")
    begun = time.monotonic()
    with pytest.raises(MachineError, match="no answer within 0.5 s.*CLIPBANK_TIMEOUT"):
        open_store(f"{failing}/1/s.zarr")
    assert time.monotonic() - begun < 3
    monkeypatch.setenv("CLIPBANK_TIMEOUT", "20")
    with socket.socket() as closed:  # bound and not listening: nobody else takes the port
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/s.zarr"
        with pytest.raises(MachineError, match="Could not connect.*Check the address"):
            open_store(url)
    with pytest.raises(MachineError, match="Check the address"):
        open_store("https://no-such-host.invalid/s.zarr")
    monkeypatch.setenv("CLIPBANK_TIMEOUT", "soon")
    with pytest.raises(UserError, match="CLIPBANK_TIMEOUT is a number"):
        open_store(f"{failing}/404/s.zarr")


# ------------------------------------------------------------------------------------------------- the server


def ask(url, path, method="GET", **headers):
    """(status, headers, body) of a request whose path is sent as it is."""
    host = url.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.putrequest(method, path, skip_host=False)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


def test_the_list_of_stores(served, tmp_path):
    root, url, _ = served
    store = made(root / "toy/s.zarr")
    pack(store.path, root / "toy/s.h5")
    (root / "toy/notes.txt").write_text("x")
    (root / "toy/broken.zarr").mkdir()
    (tmp_path / "outside.h5").write_bytes(b"x")
    (root / "toy/link.h5").symlink_to(tmp_path / "outside.h5")
    assert json.loads(ask(url, "/")[2]) == {"stores": ["toy/s.h5", "toy/s.zarr"]}
    assert list_stores(root) == ["toy/s.h5", "toy/s.zarr"]
    data = (root / "toy/s.h5").read_bytes()
    assert ask(url, "/toy/s.h5")[2] == data
    assert ask(url, "/toy/s.h5", "HEAD")[1]["Content-Length"] == str(len(data))


def test_ranges_and_conditions(served):
    root, url, _ = served
    made(root / "toy/s.zarr")
    path, data = "/toy/s.zarr/zarr.json", (root / "toy/s.zarr/zarr.json").read_bytes()
    n = len(data)
    for header, first, stop in (("0-0", 0, 1), ("5-9", 5, 10), ("7-", 7, n), ("-4", n - 4, n), (f"-{9 * n}", 0, n)):
        status, headers, body = ask(url, path, Range=f"bytes={header}")
        assert (status, body) == (206, data[first:stop]), header
        assert headers["Content-Range"] == f"bytes {first}-{stop - 1}/{n}"
    assert ask(url, path, Range=f"bytes=3-{n + 99}")[2] == data[3:]
    for header in (f"bytes={n}-", "bytes=-0"):
        status, headers, _ = ask(url, path, Range=header)
        assert (status, headers["Content-Range"]) == (416, f"bytes */{n}")
    for header in ("bytes=9-5", "lines=1-2", "bytes=0-1,4-5", "bytes=-", "bytes=" + "9" * 400 + "-", "x"):
        assert ask(url, path, Range=header)[::2] == (200, data), header
    status, headers, body = ask(url, path, "HEAD", Range="bytes=0-4")
    assert (status, headers["Content-Length"], body) == (206, "5", b"")
    tag = headers["ETag"]
    assert ask(url, path, If_None_Match=tag)[::2] == (304, b"")
    assert ask(url, path, If_None_Match='"other"')[0] == 200
    assert ask(url, path, If_Match='"other"', Range="bytes=0-4")[0] == 412
    assert ask(url, path, If_Match=f'"other", {tag}', Range="bytes=0-4")[::2] == (206, data[:5])
    assert ask(url, path, If_Match="*")[0] == 200
    assert ask(url, path, Range="bytes=0-4", If_Range='"other"')[0] == 200
    assert parse_range(None, 5) is None and parse_range("bytes=1-", 5) == (1, 5)


def test_only_get_and_head(served):
    root, url, _ = served
    made(root / "toy/s.zarr")
    before = (root / "toy/s.zarr/zarr.json").read_bytes()
    for method in ("PUT", "POST", "DELETE", "PATCH", "OPTIONS", "MOVE"):
        status, headers, _ = ask(url, "/toy/s.zarr/zarr.json", method)
        assert status == 405 and headers["Allow"] == "GET, HEAD", method
    assert (root / "toy/s.zarr/zarr.json").read_bytes() == before


def test_nothing_outside_the_root_and_nothing_but_stores(served, tmp_path):
    root, url, _ = served
    made(root / "toy/s.zarr")
    made(tmp_path / "root.zarr")  # a sibling whose name begins like the root's
    secret = tmp_path / "secret.zarr"
    secret.mkdir()
    (secret / "zarr.json").write_text("secret")
    (root / "toy/password.txt").write_text("secret")
    (root / "toy/.hidden.zarr").mkdir()
    (root / "toy/.hidden.zarr/zarr.json").write_text("secret")
    (root / "toy/.s.zarr.0123456789abcdef.tmp").mkdir()
    (root / "toy/.s.zarr.0123456789abcdef.tmp/zarr.json").write_text("secret")
    (root / "toy/s.zarr/out").symlink_to(secret)
    (root / "toy/s.zarr/out.json").symlink_to(secret / "zarr.json")
    (root / "toy/away.zarr").symlink_to(secret)
    (root / "toy/s.zarr/loop").symlink_to(root / "toy/s.zarr/loop")
    os.mkfifo(root / "toy/s.zarr/pipe")
    refused = [
        "/../secret.zarr/zarr.json",
        "/toy/../../secret.zarr/zarr.json",
        "/toy/s.zarr/../../../secret.zarr/zarr.json",
        "/%2e%2e/secret.zarr/zarr.json",
        "/toy/s.zarr/%2e%2e/%2e%2e/%2e%2e/secret.zarr/zarr.json",
        "/toy/s.zarr/..%2f..%2f..%2fsecret.zarr/zarr.json",
        "/toy/s.zarr/..%5c..%5czarr.json",
        "/toy/s.zarr/%252e%252e/zarr.json",
        "//" + str(secret / "zarr.json").lstrip("/"),
        str(secret / "zarr.json"),
        "/%2f" + str(secret / "zarr.json").lstrip("/"),
        "/toy/s.zarr/zarr.json%00.txt",
        "/toy/s.zarr/%00",
        "/toy/s.zarr/\\zarr.json",
        "/toy/s.zarr//zarr.json",
        "/toy/./s.zarr/zarr.json",
        "/toy/s.zarr/out/zarr.json",
        "/toy/s.zarr/out.json",
        "/toy/away.zarr/zarr.json",
        "/toy/s.zarr/loop",
        "/toy/s.zarr/pipe",
        "/toy/s.zarr",
        "/toy/s.zarr/",
        "/toy/s.zarr/rows",
        "/toy",
        "/toy/password.txt",
        "/toy/.hidden.zarr/zarr.json",
        "/toy/.s.zarr.0123456789abcdef.tmp/zarr.json",
        "/toy/s.zarr/%ff%fe",
        "/toy/s.zarr/" + "a" * 5000,
        "/toy/s.zarr/" + "a/" * 3000,
        "/..%c0%af..%c0%afsecret.zarr/zarr.json",
    ]
    for path in refused:
        for method in ("GET", "HEAD"):
            status, _, body = ask(url, path, method)
            assert status in (400, 404) and b"secret" not in body and b'"format"' not in body, path
    assert ask(url, "/toy/s.zarr/zarr.json")[0] == 200
    assert ask(url, "/toy/s.zarr/zarr%2ejson?x=../..")[0] == 200


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_the_server_may_not_read(served):
    root, url, _ = served
    made(root / "toy/s.zarr")
    (root / "toy/s.zarr/zarr.json").chmod(0)
    with pytest.raises(UserError, match="may not be read"):
        open_store(url + "toy/s.zarr")


def test_requests_that_are_no_http_do_not_stop_the_server(served):
    root, url, _ = served
    made(root / "toy/s.zarr")
    host, port = url.removeprefix("http://").rstrip("/").split(":")
    for raw in (b"\x00\xff\n\n", b"GET\n\n", b"GET / HTTP/9.9\n\n", b"GET " + b"a" * 70000 + b" HTTP/1.1\n\n", b""):
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(raw)
    assert ask(url, "/")[0] == 200
    assert len(open_store(url + "toy/s.zarr")) == 7


def test_places_that_cannot_be_served(tmp_path, served):
    with pytest.raises(UserError, match="no folder"):
        make_server(tmp_path / "none")
    port = int(served[1].rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match="choose another --host or --port"):
        make_server(served[0], port=port)
    with pytest.raises(UserError, match="choose another"):
        make_server(served[0], host="203.0.113.1")


@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGINT))
def test_a_server_that_is_told_to_stop_ends_well(tmp_path, number):
    made(tmp_path / "s.zarr")
    command = [sys.executable, "cli.py", "serve", str(tmp_path), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = server.stderr.readline().split()[-1]
            assert len(open_store(url + "s.zarr")) == 7
            server.send_signal(number)
            assert server.wait(20) == 0
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()


# ----------------------------------------------------------------------------------------------------- S3


@pytest.fixture
def bucket(monkeypatch):
    """A local S3 server with a bucket `lab`; its client."""
    moto = pytest.importorskip("moto.server", reason="the S3 tests need moto: pip install 'moto[server]'")
    boto3 = pytest.importorskip("boto3", reason="the S3 tests need boto3: pip install 'moto[server]'")
    server = moto.ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="lab")
    yield client
    server.stop()


def test_s3(bucket, tmp_path, monkeypatch):
    store = made(tmp_path / "s.zarr")
    for path in store.path.rglob("*"):
        if path.is_file():
            key = f"a b/{path.relative_to(tmp_path)}"
            bucket.put_object(Bucket="lab", Key=key, Body=path.read_bytes(), ACL="public-read")
    bucket.put_object(Bucket="lab", Key="private.zarr/zarr.json", Body=b"x")
    for anonymous in ("", "1"):
        monkeypatch.setenv("AWS_NO_SIGN_REQUEST", anonymous)
        remote = open_store("s3://lab/a b/s.zarr")
        assert str(remote.path) == "s3://lab/a b/s.zarr" and remote.sealed
        for name in store.manifest.arrays:
            np.testing.assert_array_equal(remote.read(name, [6, 0, 3]), store.read(name, [6, 0, 3]))
        assert remote.clips["id"].tolist() == store.clips["id"].tolist()
        assert remote.failures() == store.failures() and remote.probe("a/b ü") == store.probe("a/b ü")
    with pytest.raises(UserError, match="s3://lab/private.zarr/zarr.json may not be read.*AWS_NO_SIGN_REQUEST"):
        open_store("s3://lab/private.zarr")
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "")
    with pytest.raises(NotAStore, match="s3://lab/none.zarr"):
        open_store("s3://lab/none.zarr")
    bucket.delete_object(Bucket="lab", Key="a b/s.zarr/data/vector/c.1.0")
    with pytest.raises(DamagedStore, match=r"s3://lab/a b/s.zarr/data/vector/c\.1\.0"):
        open_store("s3://lab/a b/s.zarr").read("vector", [5])


# ------------------------------------------------------------------------------------------------ training


def test_a_head_is_trained_on_stores_of_another_machine(served, tmp_path):
    root, url, _ = served
    local = all_stores(root / "toy", videos=8)
    there = {role: f"{url}{store.path.relative_to(root)}" for role, store in local.items()}
    quick = {"epochs": 1, "set": {"batch_size": 8}, "progress": False, "say": lambda line: None}
    run = train_head("saoa", **there, out=tmp_path / "run", **quick)
    same = train_head("saoa", **local, out=tmp_path / "same", **quick)
    assert {role: fact["path"] for role, fact in open_run(run).facts["stores"].items()} == there
    assert evaluate(run, "val", progress=False) == evaluate(same, "val", progress=False)
