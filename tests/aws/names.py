"""AWS by its own names, without a network: a run, what reads it, and every way to name an endpoint.

These tests run in a network and mount namespace of their own, which `test_aws.py` makes. There, AWS's
names are those of this machine, and port 443 is a front that speaks TLS by a certificate authority of the
tests' own, notes which host was asked, redirects who asks in the wrong region, and passes all else on to
MinIO as it came: MinIO holds each signature against host and region.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
import trustme
from minio_program import binary

from neoscope.storage.store import open_store
from support.command import invoke

BUCKET, DOTTED, THERE = "neoscope-test", "neoscope.test", "neoscope-there"
REGIONS = {BUCKET: "us-east-1", DOTTED: "us-east-1", THERE: "eu-central-1"}
VPCE = "bucket.vpce-1a2b3c4d-5e6f.s3.us-east-1.vpce.amazonaws.com"
DOMAINS = [
    "s3.amazonaws.com",
    "s3.us-east-1.amazonaws.com",
    "s3.eu-central-1.amazonaws.com",
    "s3.us-gov-west-1.amazonaws.com",
    "s3.cn-north-1.amazonaws.com.cn",
    "s3.dualstack.us-east-1.amazonaws.com",
    "s3-fips.us-east-1.amazonaws.com",
    "s3-fips.dualstack.us-east-1.amazonaws.com",
    "s3-accelerate.amazonaws.com",
]
NAMES = [VPCE, *DOMAINS, *(f"{bucket}.{domain}" for bucket in REGIONS for domain in DOMAINS)]
PORT = 9000


@dataclass
class Front:
    """What was asked of AWS: host, method and path of every request."""

    authority: Path
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def hosts(self) -> set[str]:
        return {host for host, _, _ in self.asked}


def handler(front: Front) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            host = self.headers["Host"]
            front.asked.append((host, self.command, self.path))
            region = redirected_to(host, self.path)
            if region:
                headers = {"x-amz-bucket-region": region, "Content-Length": "0"}
                return self.reply(301, headers, b"")
            store = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
            store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                store.putheader(name, value)
            store.endheaders(body)
            answer = store.getresponse()
            content = answer.read()
            headers = dict(answer.getheaders())
            headers.pop("Transfer-Encoding", None)
            self.reply(answer.status, {"Content-Length": str(len(content))} | headers, content)
            return store.close()

        def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None: ...

    return Handler


def redirected_to(host: str, path: str) -> str | None:
    """The region of a bucket, where it is asked for in another, as S3 answers."""
    bucket = next((each for each in REGIONS if f"{host}{path}/".find(each) >= 0), None)
    if bucket != THERE or "eu-central-1" in host:
        return None
    return REGIONS[THERE]


class Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that does not trust the certificate ends the connection."""


@pytest.fixture(scope="session")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """AWS: names, certificates, a store with three buckets; its keys in the environment."""
    folder = tmp_path_factory.mktemp("aws")
    Path("/etc/hosts").write_text("127.0.0.1 localhost " + " ".join(NAMES) + "\n")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*NAMES).configure_cert(context)
    front = Front(folder / "authority.pem")
    server = Server(("127.0.0.1", 443), handler(front))
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    environment = {
        "MINIO_ROOT_USER": "the-key-of-the-test",
        "MINIO_ROOT_PASSWORD": "the-secret-of-the-test",
        "MINIO_DOMAIN": ",".join(DOMAINS),
        "MINIO_BROWSER": "off",
        "HOME": str(folder),
    }
    options = ["--address", f"127.0.0.1:{PORT}", "--quiet"]
    with (
        pytest.MonkeyPatch.context() as patch,
        (folder / "log").open("w") as log,
        subprocess.Popen(
            [str(binary()), "server", *options, str(folder / "data")],
            env=environment,
            stdout=log,
            stderr=log,
        ) as store,
    ):
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        patch.setenv("AWS_ACCESS_KEY_ID", environment["MINIO_ROOT_USER"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", environment["MINIO_ROOT_PASSWORD"])
        patch.setenv("AWS_CA_BUNDLE", str(front.authority))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        try:
            wait_for(PORT)
            client = boto3.Session().client("s3", endpoint_url=f"http://127.0.0.1:{PORT}")
            for bucket in REGIONS:
                client.create_bucket(Bucket=bucket)
            yield front
        finally:
            server.shutdown()
            server.server_close()
            store.kill()


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
            connection.request("GET", "/minio/health/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise AssertionError("MinIO did not start")


@pytest.fixture(autouse=True)
def _asked_nothing(front: Front) -> None:
    front.asked.clear()


@dataclass(frozen=True)
class Setting:
    """A way to name an endpoint, and the host that is then asked."""

    host: str
    environment: dict[str, str] = field(default_factory=dict)
    config: str = ""
    bucket: str = BUCKET
    endpoint_url: str | None = None


DEFAULT = f"{BUCKET}.s3.amazonaws.com"
DUALSTACK = f"{BUCKET}.s3.dualstack.us-east-1.amazonaws.com"
FIPS = f"{BUCKET}.s3-fips.us-east-1.amazonaws.com"
ELSEWHERE = "https://elsewhere.invalid"
SETTINGS = {
    "nothing": Setting(DEFAULT),
    "a region": Setting(
        f"{BUCKET}.s3.us-gov-west-1.amazonaws.com", {"AWS_DEFAULT_REGION": "us-gov-west-1"}
    ),
    "AWS_REGION": Setting(
        f"{BUCKET}.s3.us-gov-west-1.amazonaws.com", {"AWS_REGION": "us-gov-west-1"}
    ),
    "a region in China": Setting(
        f"{BUCKET}.s3.cn-north-1.amazonaws.com.cn", {"AWS_DEFAULT_REGION": "cn-north-1"}
    ),
    "a profile's region": Setting(
        f"{BUCKET}.s3.cn-north-1.amazonaws.com.cn",
        {"AWS_PROFILE": "lab", "AWS_REGION": "us-east-1"},
        "[profile lab]\nregion = cn-north-1\n",
    ),
    "a dot in the bucket's name": Setting("s3.amazonaws.com", bucket=DOTTED),
    "path style": Setting(
        "s3.amazonaws.com", config="[default]\ns3 =\n  addressing_style = path\n"
    ),
    "acceleration": Setting(
        f"{BUCKET}.s3-accelerate.amazonaws.com",
        config="[default]\ns3 =\n  use_accelerate_endpoint = true\n",
    ),
    "the us-east-1 endpoint": Setting(
        f"{BUCKET}.s3.us-east-1.amazonaws.com",
        {"AWS_S3_US_EAST_1_REGIONAL_ENDPOINT": "regional", "AWS_DEFAULT_REGION": "us-east-1"},
    ),
    "dualstack": Setting(DUALSTACK, {"AWS_USE_DUALSTACK_ENDPOINT": "true"}),
    "dualstack of a profile": Setting(
        DUALSTACK, config="[default]\nuse_dualstack_endpoint = true\n"
    ),
    "dualstack, with a dot": Setting(
        "s3.dualstack.us-east-1.amazonaws.com",
        {"AWS_USE_DUALSTACK_ENDPOINT": "true"},
        bucket=DOTTED,
    ),
    "FIPS": Setting(FIPS, {"AWS_USE_FIPS_ENDPOINT": "true"}),
    "FIPS and dualstack": Setting(
        f"{BUCKET}.s3-fips.dualstack.us-east-1.amazonaws.com",
        {"AWS_USE_FIPS_ENDPOINT": "true", "AWS_USE_DUALSTACK_ENDPOINT": "true"},
    ),
    "PrivateLink": Setting(VPCE, {"AWS_ENDPOINT_URL_S3": f"https://{VPCE}"}),
    "PrivateLink by the option": Setting(
        VPCE, {"AWS_ENDPOINT_URL_S3": ELSEWHERE}, endpoint_url=f"https://{VPCE}"
    ),
    "PrivateLink of a profile": Setting(VPCE, config=f"[default]\nendpoint_url = https://{VPCE}\n"),
    "settings that are to be ignored": Setting(
        DEFAULT,
        {
            "AWS_ENDPOINT_URL": ELSEWHERE,
            "AWS_ENDPOINT_URL_S3": ELSEWHERE,
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true",
        },
    ),
    "an empty setting": Setting(DEFAULT, {"AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": ""}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_request_goes_to_the_host_that_boto3_asks(
    front: Front, name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setting = SETTINGS[name]
    (tmp_path / "config").write_text(setting.config)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for variable, value in setting.environment.items():
        monkeypatch.setenv(variable, value)
    url = f"s3://{setting.bucket}/{uuid.uuid4().hex}"
    store = open_store(url, write=True, endpoint_url=setting.endpoint_url)
    store.create("a/b.json", b"x")
    assert store.get("a/b.json") == b"x"
    assert [item.key for item in store.objects()] == ["a/b.json"]
    store.delete(["a/b.json"])
    assert store.objects() == []
    assert front.hosts == {setting.host}


@pytest.mark.parametrize("bucket", [BUCKET, THERE])
def test_a_run_is_made_checked_pulled_shown_and_deleted(
    front: Front, small_run: list[str], bucket: str, tmp_path: Path
) -> None:
    """In the bucket of another region too: S3 redirects the first request, and no other."""
    url = f"s3://{bucket}/{uuid.uuid4().hex}"
    for words in (
        ["run", url, *small_run],
        ["verify", url],
        ["pull", url, tmp_path / "run"],
        ["verify", tmp_path / "run"],
        ["report", url],
        ["pull", url, f"{url}-copy"],
        ["delete", url, "--yes"],
    ):
        front.asked.clear()
        done = invoke(*words)
        assert done.code == 0, done.err
        if bucket == THERE:
            redirected = [asked for asked in front.asked if "eu-central-1" not in asked[0]]
            assert {method for _, method, _ in redirected} <= {"HEAD"}
    assert open_store(url).objects() == []


def test_an_authority_may_come_from_a_profile(
    front: Front, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE")
    (tmp_path / "config").write_text(f"[default]\nca_bundle = {front.authority}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    store = open_store(f"s3://{BUCKET}/x", write=True)
    store.put("a", b"x")
    assert store.get("a") == b"x"


def test_a_certificate_that_is_not_trusted_is_said_at_once(
    front: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE")
    tries = count_connections(monkeypatch)
    done = invoke("status", f"s3://{BUCKET}/x")
    assert (done.code, done.out, done.err.count("\n")) == (3, "", 1), done.err
    assert f"the certificate of https://{DEFAULT}/ is not trusted: unable to get local" in done.err
    assert "give its PEM file in AWS_CA_BUNDLE" in done.err
    assert len(tries) == 1


def test_a_certificate_of_another_host_is_said_at_once(front: Front) -> None:
    done = invoke("status", f"s3://{BUCKET}/x", "--endpoint-url", "https://127.0.0.1")
    assert done.code == 3
    assert "the certificate of https://127.0.0.1/" in done.err
    assert "is not trusted: hostname '127.0.0.1' doesn't match" in done.err


@pytest.mark.parametrize("content", [None, "", "no certificate"])
def test_a_file_of_authorities_that_is_none_is_told(
    front: Front, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "bundle").write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "bundle"))
    done = invoke("status", f"s3://{BUCKET}/x")
    assert (done.code, done.err.count("\n")) == (3, 1)
    assert f"cannot read the certificate authorities in {tmp_path}/bundle" in done.err


def count_connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    made: list[Any] = []
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        made.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    return made
