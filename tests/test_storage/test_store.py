"""Storage: the same promises over a folder and over MinIO, and faults that say what to do."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import boto3
import pytest

from neoscope.errors import InputError, UnavailableError, UsageError
from neoscope.storage import s3
from neoscope.storage.integrity import Checksums
from neoscope.storage.store import Store, open_store
from support.command import BUCKET, invoke

# Keys as people name things, and as they should not.
NAMES = [
    "plain.json",
    "a folder/with spaces.json",
    "naïve/Ελληνικά/🙂.json",
    "a+b&c=d;e,f@g.json",
    "deep/er/and/deeper/c/0/0/0",
    "100%.json",
    ".hidden",
]


@pytest.fixture
def store(place: str) -> Store:
    return open_store(place, write=True)


def keys(store: Store, prefix: str = "") -> list[str]:
    return sorted(item.key for item in store.objects(prefix))


# What a folder and a bucket have in common


@pytest.mark.parametrize("name", NAMES)
def test_an_object_reads_back_under_any_name(store: Store, name: str) -> None:
    assert store.get(name) is None
    store.put(name, b"one")
    store.put(name, memoryview(b"two and more"))
    assert store.get(name) == b"two and more"
    (item,) = store.objects()
    assert (item.key, item.size) == (name, 12)


def test_an_object_is_created_once(store: Store) -> None:
    store.create("a.json", b"first")
    with pytest.raises(FileExistsError):
        store.create("a.json", b"second")
    assert store.get("a.json") == b"first"
    store.delete(["a.json"])
    store.create("a.json", b"third")
    assert store.get("a.json") == b"third"


def test_of_many_who_create_at_once_one_succeeds(store: Store) -> None:
    barrier = threading.Barrier(8)
    won: list[int] = []

    def create(number: int) -> None:
        barrier.wait(30)
        try:
            store.create("a.json", str(number).encode())
        except FileExistsError:
            return
        won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(won) == 1
    assert store.get("a.json") == str(won[0]).encode()


@pytest.mark.parametrize("what", ["put over", "deleted"])
def test_what_another_does_to_an_object_just_created_is_told_from_a_fault(
    store: Store, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It happens between the look at the object's tag and the reading back of its body."""
    monkeypatch.setattr("neoscope.storage.store.is_md5", lambda tag, body: False)
    monkeypatch.setattr("neoscope.storage.integrity.HEADER", "x-neoscope-unknown")
    look_up, looked = Store._look_up, list[str]()

    def look_up_early(self: Store, key: str) -> tuple[int, str | None]:
        found = look_up(self, key)
        looked.append(key)
        if len(looked) == 1 and what == "put over":
            store.put(key, b"theirs")
        elif len(looked) == 1:
            store.delete([key])
        return found

    monkeypatch.setattr(Store, "_look_up", look_up_early)
    if what == "put over":
        with pytest.raises(FileExistsError):
            store.create("a", b"ours")
        assert store.get("a") == b"theirs"
    else:
        store.create("a", b"ours")
        assert store.get("a") == b"ours"


def test_an_empty_and_a_large_object_keep_their_bytes(store: Store) -> None:
    large = bytes(range(256)) * 40_000  # above the 5 MB at which clients like to split
    store.put("empty", b"")
    store.put("large", large)
    assert store.get("empty") == b""
    assert store.get("large") == large
    assert {item.key: item.size for item in store.objects()} == {"empty": 0, "large": len(large)}


def test_a_listing_is_of_whole_path_segments(store: Store) -> None:
    for name in ("a/1", "a/b/2", "ab/3", "a.json"):
        store.put(name, b"x")
    assert keys(store) == ["a.json", "a/1", "a/b/2", "ab/3"]
    assert keys(store, "a") == ["a/1", "a/b/2"]
    assert keys(store, "a/b") == ["a/b/2"]
    assert keys(store, "nothing") == []


def test_a_listing_goes_beyond_one_page(store: Store) -> None:
    names = [f"many/{number:04d}" for number in range(1100)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: store.put(name, b""), names))
    assert keys(store) == names
    store.delete(names)
    assert keys(store) == []


def test_deleting_what_is_not_there_is_no_error_and_stops_nothing(store: Store) -> None:
    for name in ("a", "b/c", "stays"):
        store.put(name, b"x")
    store.delete(["missing", "a", "also/missing", "b/c"])
    assert keys(store) == ["stays"]
    store.delete(["missing"])
    store.delete([])


def test_a_tag_changes_with_the_content(store: Store) -> None:
    first = store.put("a", b"one")
    (item,) = store.objects()
    assert first == item.tag == store.tag("a")
    assert store.put("a", b"two, longer") != first


def test_a_store_sees_nothing_outside_its_prefix(store: Store, place: str) -> None:
    inner = open_store(f"{place}/inner", write=True)
    beside = open_store(f"{place}/inner-2", write=True)
    inner.put("a", b"x")
    beside.put("b", b"x")
    assert keys(inner) == ["a"]
    assert keys(store) == ["inner-2/b", "inner/a"]


@pytest.mark.parametrize("prefix", ["a folder", "naïve/Ελληνικά", "100%"])
def test_a_run_may_lie_under_any_name(place: str, prefix: str) -> None:
    there = open_store(f"{place}/{prefix}", write=True)
    there.put("a.json", b"x")
    assert there.url.endswith(prefix)
    assert keys(open_store(f"{place}/{prefix}")) == ["a.json"]
    assert keys(open_store(place)) == [f"{prefix}/a.json"]


# A folder


def test_a_folder_is_made_to_write_and_never_to_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        open_store(str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    open_store(str(tmp_path / "new" / "er"), write=True)
    assert (tmp_path / "new" / "er").is_dir()


def test_a_folder_is_told_by_its_full_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_store("here", write=True).url == str(tmp_path / "here")
    assert open_store("~/there", write=True).url == str(tmp_path / "home" / "there")
    assert open_store("here").is_local


def test_a_file_where_the_folder_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=r"cannot make the folder .*file"):
            open_store(str(path), write=True)


def test_a_folder_where_an_object_should_be_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(InputError, match=r"cannot use .*run\.json"):
        open_store(str(tmp_path), write=True).put("run.json", b"x")


# Addresses and credentials


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://", "no bucket"),
        ("s3:///prefix", "no bucket"),
        ("s3://bucket", "no prefix"),
        ("s3://bucket/", "no prefix"),
        ("s3://bucket///", "no prefix"),
        ("gs://bucket/prefix", "neither s3://bucket/prefix nor a local folder"),
        ("http://host/prefix", "neither"),
        ("file:///tmp/x", "give the folder's path, /tmp/x$"),
        ("S3://bucket/prefix", "give s3://bucket/prefix$"),
        ("s3:/bucket/prefix", "give s3://bucket/prefix$"),
        ("s3:bucket/prefix", "give s3://bucket/prefix$"),
        ("s3:", "give s3://bucket/prefix$"),
        ("a:b/c", r"a folder of that name is \./a:b/c$"),
        ("C:\\runs", "neither"),
        ("", "output is empty"),
    ],
)
def test_an_address_of_another_kind_is_refused(url: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_store(url, write=True)


@pytest.mark.parametrize("name", ["./a:b", "folder/a:b", "2026:1"])
def test_a_folder_may_have_a_colon_in_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    open_store(name, write=True).put("a", b"x")
    assert (tmp_path / name / "a").read_bytes() == b"x"


@pytest.mark.parametrize(
    "endpoint_url", ["localhost:9000", "minio", "ftp://host", "http://", "http://127.0.0.1:port"]
)
def test_an_endpoint_that_is_no_url_is_refused(s3_url: str, endpoint_url: str) -> None:
    with pytest.raises(UsageError, match="endpoint"):
        open_store(s3_url, endpoint_url=endpoint_url)


def test_an_endpoint_that_refuses_may_be_there_later(s3_url: str) -> None:
    began = time.monotonic()
    with pytest.raises(UnavailableError, match="does not answer"):
        open_store(s3_url, endpoint_url=f"http://127.0.0.1:{free_port()}")
    assert time.monotonic() - began < 20


def test_a_host_that_has_no_address_may_have_one_later(s3_url: str) -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        open_store(s3_url, endpoint_url="http://storage.invalid:9000")


def test_a_bucket_that_does_not_exist_is_never_made(endpoint: str) -> None:
    with pytest.raises(InputError, match="the bucket no-such-bucket does not exist: create it"):
        open_store("s3://no-such-bucket/run", write=True)
    names = [bucket["Name"] for bucket in boto3.Session().client("s3").list_buckets()["Buckets"]]
    assert "no-such-bucket" not in names


def test_a_bucket_that_vanishes_later_is_told_from_a_missing_object(endpoint: str) -> None:
    client = boto3.Session().client("s3")
    bucket = f"short-lived-{uuid.uuid4().hex}"
    client.create_bucket(Bucket=bucket)
    store = open_store(f"s3://{bucket}/run", write=True)
    client.delete_bucket(Bucket=bucket)
    for operation in (
        lambda: store.get("a"),
        lambda: store.put("a", b"x"),
        lambda: store.create("a", b"x"),
    ):
        with pytest.raises(InputError, match=r"bucket of .* does not exist"):
            operation()


def test_a_name_that_no_bucket_can_have_is_bad_input(endpoint: str) -> None:
    with pytest.raises(InputError, match="Bad_Bucket!"):
        open_store("s3://Bad_Bucket!/run")


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_keys_name_the_permission_and_who_was_asked(
    s3_url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "wrong-key-of-some-length")
    denied = f"access denied: s3:ListBucket on the bucket {BUCKET} at {endpoint};"
    with pytest.raises(InputError, match=denied):
        open_store(s3_url)


@pytest.mark.usefixtures("no_credentials")
def test_half_a_key_and_an_unknown_profile_are_bad_input(
    s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    with pytest.raises(InputError, match="Partial credentials"):
        open_store(s3_url)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(InputError, match="nobody"):
        open_store(s3_url)


def test_keys_and_endpoint_may_come_from_a_profile(
    s3_url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys_of_minio = boto3.Session().get_credentials()
    assert keys_of_minio is not None
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = us-east-1\nendpoint_url = {endpoint}\n"
        f"aws_access_key_id = {keys_of_minio.access_key}\n"
        f"aws_secret_access_key = {keys_of_minio.secret_key}\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    store = open_store(s3_url, write=True)
    store.put("a", b"x")
    assert store.get("a") == b"x"


def test_signed_bodies_are_taken_too(s3_url: str) -> None:
    store = open_store(s3_url, sign_payload=True, write=True)
    store.put("a", b"x" * 100_000)
    assert store.get("a") == b"x" * 100_000


# Faults on the way


Fault = int | Literal["lost", "stalled", "cut", "put over", "IncompleteBody", "RequestTimeout"]


class Proxy:
    """An HTTP proxy before MinIO that answers some requests in its stead.

    `fault` is asked for each request: a status to answer with, "lost" to do what is asked and then
    answer 500, "stalled" to answer late, "cut" to close the connection, "put over" to put the body whatever
    is there, a code of S3's to refuse with, None to pass it on.
    """

    def __init__(self, endpoint: str) -> None:
        self.fault: Callable[[str, str], Fault | None] = lambda method, path: None
        self.asked: list[str] = []
        self.ending = threading.Event()
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), handler(self, urlsplit(endpoint).netloc)
        )
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"


def handler(proxy: Proxy, behind: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            proxy.asked.append(f"{self.command} {self.path}")
            fault = proxy.fault(self.command, self.path)
            if fault == "cut":
                self.close_connection = True
                return
            if fault == "stalled":
                proxy.ending.wait(60)
                self.close_connection = True
                return
            if fault == "put over":
                bucket, _, key = self.path.lstrip("/").partition("/")
                put = boto3.Session().client("s3").put_object(Bucket=bucket, Key=key, Body=body)
                self.reply(200, {"ETag": put["ETag"]}, b"")
                return
            if fault in ("IncompleteBody", "RequestTimeout"):
                error = f"<Error><Code>{fault}</Code><Message>of the proxy</Message></Error>"
                self.reply(400, {}, error.encode())
                return
            if isinstance(fault, int):
                tag = {"ETag": '"0"'}
                self.reply(fault, tag, f"<Error><Code>Code{fault}</Code></Error>".encode())
                return
            connection = http.client.HTTPConnection(behind, timeout=60)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            content = response.read()
            connection.close()
            if fault == "lost":
                self.reply(500, {}, b"")
            else:
                self.reply(response.status, dict(response.getheaders()), content)

        def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                    self.send_header(name, value)
            length = len(body)
            if self.command == "HEAD" and "Content-Length" in headers:
                length = int(headers["Content-Length"])
            self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None: ...

    return Handler


@contextmanager
def proxied(endpoint: str) -> Iterator[Proxy]:
    proxy = Proxy(endpoint)
    thread = threading.Thread(target=proxy.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ending.set()
        proxy.server.shutdown()
        proxy.server.server_close()


@pytest.fixture
def proxy(endpoint: str) -> Iterator[Proxy]:
    with proxied(endpoint) as proxy:
        yield proxy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def first(count: int, fault: Fault, method: str = "PUT") -> Callable[[str, str], Fault | None]:
    """The fault for the first requests of a method."""
    left = [fault] * count

    def choose(asked: str, _path: str) -> Fault | None:
        return left.pop() if asked == method and left else None

    return choose


@pytest.mark.parametrize("fault", [429, 500, 503, "cut", "IncompleteBody", "RequestTimeout"])
def test_a_fault_that_passes_is_outlived(s3_url: str, proxy: Proxy, fault: Fault) -> None:
    store = open_store(s3_url, endpoint_url=proxy.endpoint, write=True)
    store.put("first", b"x")
    proxy.asked.clear()
    proxy.fault = first(3, fault)
    store.put("a", b"x")
    assert store.get("a") == b"x"
    assert sum(asked.startswith("PUT") for asked in proxy.asked) == 4


def test_a_body_that_did_not_arrive_says_nothing_of_checksums(s3_url: str, proxy: Proxy) -> None:
    """Whether the store checks them is asked again with the next body."""
    store = open_store(s3_url, endpoint_url=proxy.endpoint, write=True)
    proxy.fault = first(1, "IncompleteBody")
    store.put("a", b"x")
    store.put("b", b"x")
    puts = [each.rpartition("/")[2] for each in proxy.asked if each.startswith("PUT")]
    assert puts == ["a", "a", "b", "b"]


def test_what_is_read_waits_for_no_put(s3_url: str, proxy: Proxy) -> None:
    store = open_store(s3_url, endpoint_url=proxy.endpoint, write=True)
    store.use_connections(1)
    store.put("a", b"x")
    stalled = threading.Event()

    def stall(method: str, path: str) -> Fault | None:
        if method == "PUT" and not proxy.ending.is_set():
            stalled.set()
            return "stalled"
        return None

    proxy.fault = stall
    with ThreadPoolExecutor(2) as pool:
        put = pool.submit(store.put, "b", b"x")
        assert stalled.wait(20)
        read = pool.submit(store.get, "a")
        try:
            assert read.result(20) == b"x"
            assert not put.done()
        finally:
            proxy.ending.set()
    assert store.get("b") == b"x"


def test_a_large_object_is_one_request(s3_url: str, proxy: Proxy) -> None:
    """A split one leaves parts behind, which no listing shows, when the process is killed."""
    store = open_store(s3_url, endpoint_url=proxy.endpoint, write=True)
    store.put("first", b"x")
    proxy.asked.clear()
    store.put("a", bytes(12_000_000))
    store.create("b", bytes(12_000_000))
    asked = [each.split(" ") for each in proxy.asked]
    puts = [path.rpartition("/")[2] for method, path in asked if method == "PUT"]
    assert puts == ["a", "b"]


@pytest.mark.parametrize("operation", [Store.put, Store.create])
def test_a_put_that_timed_out_is_put_again(
    s3_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, operation: Callable[..., Any]
) -> None:
    monkeypatch.setattr(s3, "BODY_TIMEOUT", timedelta(seconds=0.5))
    store = open_store(s3_url, endpoint_url=proxy.endpoint, write=True)
    store.put("first", b"x")
    proxy.asked.clear()
    proxy.fault = first(1, "stalled")
    operation(store, "a", b"x")
    assert open_store(s3_url).get("a") == b"x"
    assert sum(asked.startswith("PUT") for asked in proxy.asked) == 2


@pytest.mark.parametrize("fault", [429, 503, "cut", "IncompleteBody"])
def test_a_fault_that_stays_says_to_try_again_later(
    s3_url: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    monkeypatch.setitem(s3.RETRY, "max_retries", 2)
    store = open_store(s3_url, endpoint_url=proxy.endpoint, write=True)
    proxy.fault = lambda method, path: fault
    for operation in (
        lambda: store.put("a", b"x"),
        lambda: store.create("a", b"x"),
        lambda: store.get("a"),
        lambda: keys(store),
    ):
        with pytest.raises(UnavailableError, match=f"storage did not serve {s3_url}.*run the same"):
            operation()


def test_a_denied_operation_names_its_permission(s3_url: str, proxy: Proxy) -> None:
    store = open_store(s3_url, endpoint_url=proxy.endpoint, write=True)
    proxy.fault = lambda method, path: 403
    for permission, operation in (
        ("s3:PutObject", lambda: store.put("a", b"x")),
        ("s3:PutObject", lambda: store.create("a", b"x")),
        ("s3:GetObject", lambda: store.get("a")),
        ("s3:GetObject", lambda: store.tag("a")),
        ("s3:ListBucket", lambda: keys(store)),
    ):
        with pytest.raises(InputError, match=f"access denied: {permission} on {s3_url}"):
            operation()


def test_a_store_that_puts_over_in_spite_of_the_condition_is_refused(
    s3_url: str, proxy: Proxy, small_run: list[str]
) -> None:
    """The second put of the claim must be refused; here the proxy puts it over the first."""
    puts: list[str] = []

    def put_over(method: str, path: str) -> Fault | None:
        if method == "PUT" and path.endswith("run.json"):
            puts.append(path)
            return "put over" if len(puts) > 2 else None  # the first has a wrong checksum
        return None

    proxy.fault = put_over
    done = invoke("run", s3_url, *small_run, "--endpoint-url", proxy.endpoint)
    assert done.code == 4
    assert "If-None-Match" in done.err
    assert keys(open_store(s3_url)) == []


def test_a_run_outlives_faults_and_lost_answers(
    s3_url: str, proxy: Proxy, small_run: list[str], tmp_path: Path
) -> None:
    """A put that was done and reported as failed is repeated, and then conflicts with itself."""
    seen: dict[str, int] = {}

    def faulty(method: str, path: str) -> Fault | None:
        seen[f"{method} {path}"] = seen.get(f"{method} {path}", 0) + 1
        if method == "PUT":
            return "lost" if seen[f"{method} {path}"] == 1 else None
        return 503 if len(proxy.asked) % 3 == 0 else None

    store = open_store(s3_url, endpoint_url=proxy.endpoint)
    proxy.fault = faulty
    done = invoke("run", s3_url, *small_run, "--endpoint-url", proxy.endpoint)
    assert done.code == 0, done.err
    undisturbed = invoke("run", tmp_path / "run", *small_run)
    assert undisturbed.code == 0, undisturbed.err
    proxy.fault = lambda method, path: None
    theirs = open_store(str(tmp_path / "run"))
    assert keys(store) == keys(theirs)
    for key in keys(store):
        if "/c/" in key or key.endswith("zarr.json"):
            assert store.get(key) == theirs.get(key), key


@pytest.mark.parametrize(
    "altered",
    [lambda body: b"\0" + body[1:], lambda body: body[:-1] + b"\0", lambda body: body[:-1]],
    ids=["first-byte", "last-byte", "cut"],
)
@pytest.mark.parametrize("times", [1, 100])
def test_what_a_folder_does_not_hold_as_it_was_put_is_put_again(
    altered: Callable[[bytes], bytes],
    times: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoiled: list[str] = []
    body = b"\1" * 300_000  # of more than one block
    real = Checksums.put

    def put(self: Checksums, key: str, *rest: Any) -> tuple[str | None, bool]:
        done = real(self, key, *rest)
        if len(spoiled) < times:
            spoiled.append(key)
            (tmp_path / key).write_bytes(altered(body))
        return done

    monkeypatch.setattr(Checksums, "put", put)
    store = open_store(str(tmp_path), write=True)
    if times == 1:
        store.put("chunk", body)
        assert (tmp_path / "chunk").read_bytes() == body
    else:
        with pytest.raises(UnavailableError, match="is not there as it was put, 8 times"):
            store.put("chunk", body)
    assert capsys.readouterr().err.count("is not there as it was put, and is put again") == 1
