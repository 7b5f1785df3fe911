"""S3 servers other than MinIO: a small run, verify, report, pull and delete on each, or one line of refusal.

moto is always tried; the others where they have been built (`make test-s3` builds them).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import boto3
import minio
import pytest

from faults.proxy import proxied
from faults.test_altered import altering
from neoscope.errors import InputError
from neoscope.storage.integrity import is_md5
from neoscope.storage.store import Store, open_store
from support import programs
from support.command import BUCKET, invoke

KEYS = {"AWS_ACCESS_KEY_ID": "neoscope-tests", "AWS_SECRET_ACCESS_KEY": "of-no-importance"}
Command = Callable[[str, Path], list[object]]


def moto(address: str, _folder: Path) -> list[object]:
    host, port = address.split(":")
    return [Path(sys.executable).with_name("moto_server"), "-H", host, "-p", port]


def versitygw(address: str, folder: Path) -> list[object]:
    keys = ("--access", KEYS["AWS_ACCESS_KEY_ID"], "--secret", KEYS["AWS_SECRET_ACCESS_KEY"])
    return [programs.kept("versitygw"), *keys, "--port", address, "posix", folder]


def rclone(address: str, folder: Path) -> list[object]:
    keys = f"{KEYS['AWS_ACCESS_KEY_ID']},{KEYS['AWS_SECRET_ACCESS_KEY']}"
    return [programs.kept("rclone"), "serve", "s3", folder, "--addr", address, "--auth-key", keys]


def seaweedfs(address: str, folder: Path) -> list[object]:
    host, port = address.split(":")
    credentials = dict(zip(("accessKey", "secretKey"), KEYS.values(), strict=True))
    identity = {"name": "tests", "credentials": [credentials], "actions": ["Admin"]}
    settings = folder / "s3.json"
    settings.write_text(json.dumps({"identities": [identity]}))
    words = ["-dir", folder, "-ip", host, "-filer", "-s3", "-s3.port", port, "-s3.config", settings]
    for name in ("master.port", "volume.port", "filer.port"):
        words += [f"-{name}", minio._free_port()]
    for name in ("master", "volume", "filer", "s3"):
        words += [f"-{name}.port.grpc", minio._free_port()]
    return [programs.kept("seaweedfs"), "server", *words]


@contextmanager
def serving(command: Command, folder: Path) -> Iterator[str]:
    """A server's address, with one bucket in it."""
    folder.mkdir()
    address = f"127.0.0.1:{minio._free_port()}"
    with (folder.parent / "server.log").open("w") as log:
        process = subprocess.Popen(
            [str(word) for word in command(address, folder)], stdout=log, stderr=log
        )
    try:
        client = boto3.Session().client("s3", endpoint_url=f"http://{address}")
        while True:
            assert process.poll() is None, (folder.parent / "server.log").read_text()
            try:
                client.create_bucket(Bucket=BUCKET)
                break
            except Exception:  # it is still starting
                time.sleep(0.1)
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=[moto, versitygw, seaweedfs, rclone], ids=lambda command: command.__name__)
def server(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[str, str]]:
    """Its name, and its address with the keys in the environment."""
    name = request.param.__name__
    if name in programs.MODULES and not programs.kept(name).exists():
        pytest.skip(f"{name} is not built: make test-s3")
    for key, value in {
        **KEYS,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(key, value)
    with serving(request.param, tmp_path / "served") as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        yield name, address


def checked_by(store: Store, size: int) -> str:
    """How a put of this store is known to have arrived."""
    body = bytes(size)
    _, checked = store._checksums.put("probe", body, "overwrite")
    if checked:
        return "checksum"
    return "ETag" if is_md5(store.tag("probe"), body) else "read back"


CHECKED_BY = {"moto": "ETag", "versitygw": "checksum", "seaweedfs": "checksum"}


def test_a_run_on_another_server(
    server: tuple[str, str], small_run: list[str], tmp_path: Path
) -> None:
    name, address = server
    url, copy = f"s3://{BUCKET}/a folder/run", tmp_path / "copy"
    if name == "rclone":
        done = invoke("run", url, *small_run)
        assert done.code == 4
        assert "puts over an object in spite of `If-None-Match: *`" in done.err.splitlines()[-1]
        return
    assert checked_by(open_store(f"s3://{BUCKET}/other"), 1000) == CHECKED_BY[name]
    for words in (
        ("run", url, *small_run, "--batches", 2),
        ("run", url, *small_run, "--batches", 2),
        ("status", url),
        ("verify", url),
        ("report", url),
        ("pull", url, copy),
        ("verify", copy),
    ):
        done = invoke(*words)
        assert done.code == 0, (words, done.err)
    with proxied(address, altering(0.1, 0, {"PUT": "flip"}, ("",))) as proxy:
        again = f"s3://{BUCKET}/altered/run"
        done = invoke("run", again, *small_run, "--batches", 2, "--endpoint-url", proxy.endpoint)
        assert done.code == 0, done.err
        assert proxy.faults["flip"] and "is put again" in done.err
    assert invoke("verify", again).code == 0
    assert invoke("delete", url, "--yes").code == 0
    assert not open_store(url).objects()


@pytest.fixture
def web_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a token, as a pod with workload identity has it, and no keys."""
    token = tmp_path / "token"
    token.write_text("a token of nobody's")
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/any")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    return token


def test_a_web_identity_gives_the_keys_of_its_role(
    tmp_path: Path, web_identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By moto's STS, which the same endpoint serves."""
    with pytest.MonkeyPatch.context() as keys:
        for name, value in KEYS.items():
            keys.setenv(name, value)
        server = serving(moto, tmp_path / "served")
        address = server.__enter__()
    with ExitStack() as stack:
        stack.push(server)
        proxy = stack.enter_context(proxied(address))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        store = open_store(f"s3://{BUCKET}/run", write=True)
        store.put("a", b"x")
        assert store.get("a") == b"x"
    assert proxy.requests[-1].access_key.startswith("ASIA")  # a temporary key
    web_identity.unlink()
    with pytest.raises(InputError, match=str(web_identity)):
        open_store(f"s3://{BUCKET}/run", endpoint_url=address)
