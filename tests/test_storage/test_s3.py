"""Where S3 is asked and as whom: boto3's settings count for every request, and keys may be short-lived."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest

from faults.proxy import Proxy, Request, proxied
from neoscope.errors import InputError, UnavailableError, UsageError
from neoscope.storage.store import open_store
from support.command import BUCKET, invoke

NOWHERE = "http://127.0.0.1:9"


# Endpoints of the user's settings


@pytest.mark.parametrize(
    ("settings", "config"),
    [
        ({"AWS_ENDPOINT_URL_S3": "{endpoint}", "AWS_ENDPOINT_URL": NOWHERE}, ""),
        ({"AWS_ENDPOINT_URL": "{endpoint}"}, ""),
        ({"AWS_ENDPOINT_URL": "{endpoint}"}, "[default]\nendpoint_url = {nowhere}\n"),
        ({}, "[default]\nendpoint_url = {endpoint}\n"),
        ({"AWS_PROFILE": "lab"}, "[profile lab]\nregion = eu-west-1\nendpoint_url = {endpoint}\n"),
        (
            {"AWS_PROFILE": "lab"},
            "[profile lab]\nservices = mine\n[services mine]\ns3 =\n  endpoint_url = {endpoint}\n",
        ),
    ],
    ids=["of S3", "of all", "before the file", "file", "profile", "services"],
)
def test_the_endpoint_is_the_one_that_boto3_finds(
    s3_url: str,
    endpoint: str,
    settings: dict[str, str],
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    names = {"endpoint": endpoint, "nowhere": NOWHERE}
    (tmp_path / "config").write_text(config.format(**names))
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    for name, value in settings.items():
        monkeypatch.setenv(name, value.format(**names))
    store = open_store(s3_url, write=True)
    store.put("a", b"x")
    assert store.get("a") == b"x"


def test_the_option_wins_over_all_settings(
    s3_url: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """obstore, asked for an endpoint, prefers AWS_ENDPOINT_URL_S3 to it."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"):
        monkeypatch.setenv(name, NOWHERE)
    for name in ("AWS_SKIP_SIGNATURE", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST"):
        monkeypatch.setenv(name, "true")
    store = open_store(s3_url, endpoint_url=endpoint, write=True)
    store.put("a", b"x")
    assert store.get("a") == b"x"


def test_a_setting_that_is_no_url_is_refused(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "localhost:9000")
    with pytest.raises(UsageError, match="Invalid endpoint: localhost:9000"):
        open_store(s3_url)


def test_a_directory_bucket_is_refused() -> None:
    with pytest.raises(UsageError, match="x--use1-az4--x-s3 is a directory bucket"):
        open_store("s3://x--use1-az4--x-s3/run")


# Public buckets


@pytest.fixture(scope="module")
def public_bucket(endpoint: str) -> str:
    """A bucket that anybody may list and read."""
    bucket = f"public-{uuid.uuid4().hex}"
    allowed = [("s3:ListBucket", bucket), ("s3:GetObject", f"{bucket}/*")]
    statements = [
        {"Effect": "Allow", "Principal": "*", "Action": action, "Resource": f"arn:aws:s3:::{what}"}
        for action, what in allowed
    ]
    client = boto3.Session().client("s3")
    client.create_bucket(Bucket=bucket)
    policy = {"Version": "2012-10-17", "Statement": statements}
    client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    return bucket


@pytest.fixture(scope="module")
def public_run(public_bucket: str, small_model: Path) -> str:
    url = f"s3://{public_bucket}/run"
    options = ("--dataset", "sample", "--sequences", 8, "--positions", 24)
    done = invoke("run", url, "--model", small_model, *options)
    assert done.code == 0, done.err
    return url


@pytest.mark.usefixtures("no_credentials")
def test_a_public_run_is_read_without_credentials(public_run: str, tmp_path: Path) -> None:
    import neoscope

    for words in (["status", public_run], ["verify", public_run]):
        done = invoke(*words)
        assert done.code == 0, done.err
    done = invoke("pull", public_run, tmp_path / "run")
    assert done.code == 0, done.err
    assert invoke("verify", tmp_path / "run").code == 0
    assert neoscope.open_run(public_run).MLP_0.shape == (8, 24, 64)
    assert neoscope.open_statistics(public_run).sizes["layer"] == 3


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("command", ["run", "report", "delete", "pull to"])
def test_nothing_is_changed_without_credentials(
    public_run: str, small_run: list[str], command: str, tmp_path: Path
) -> None:
    words: dict[str, list[object]] = {
        "run": ["run", public_run, *small_run],
        "report": ["report", public_run],
        "delete": ["delete", public_run, "--yes"],
        "pull to": ["pull", public_run, f"{public_run}-copy"],
    }
    done = invoke(*words[command])
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("neoscope: error: no credentials for S3: set AWS_ACCESS_KEY_ID")
    assert done.err.count("\n") == 1


@pytest.mark.usefixtures("no_credentials")
def test_what_is_not_public_asks_for_credentials(s3_url: str, endpoint: str) -> None:
    denied = f"access denied: s3:ListBucket on the bucket {BUCKET} at {endpoint}; there are no cred"
    with pytest.raises(InputError, match=f"{denied}entials: set AWS_ACCESS_KEY_ID"):
        open_store(s3_url)


# Credentials that expire

KEYS = 60
# What a credential_process is: it answers with the next keys, and notes that it gave them.
PROCESS = """
cd "$1"
if test -e closed; then echo 'log in again' >&2; exit 1; fi
sed -n "$(($(wc -l < given) + 1))p" keys | tee -a given
"""


@pytest.fixture
def minio_keys(endpoint: str) -> tuple[str, str]:
    return os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]


@dataclass(frozen=True)
class Issuer:
    """A process that gives temporary keys of MinIO's, other ones each time, and the store before
    which they expire: it refuses all that were given before the latest three, once told to."""

    folder: Path
    proxy: Proxy

    def given(self) -> list[str]:
        lines = (self.folder / "given").read_text().splitlines()
        return [json.loads(line)["AccessKeyId"] for line in lines]

    def expire(self) -> None:
        expired = set(self.given()[:-3])
        self.proxy.plan = lambda request: "quoting 403" if request.access_key in expired else None


@pytest.fixture
def issuer(
    endpoint: str,
    minio_keys: tuple[str, str],
    no_credentials: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> Iterator[Issuer]:
    sts = boto3.Session(*minio_keys, region_name="us-east-1").client("sts", endpoint_url=endpoint)
    # Near its end, so that botocore asks for new ones whenever it is asked.
    ends = (datetime.now(UTC) + timedelta(minutes=9)).isoformat()
    with (tmp_path / "keys").open("w") as keys:
        for _ in range(KEYS):
            found = sts.assume_role(
                RoleArn="arn:aws:iam::123456789012:role/any", RoleSessionName="any"
            )
            found = {**found["Credentials"], "Version": 1, "Expiration": ends}
            print(json.dumps(found, default=str), file=keys)
    (tmp_path / "given").touch()
    (tmp_path / "process").write_text(PROCESS)
    process = f"credential_process = sh {tmp_path}/process {tmp_path}"
    (tmp_path / "config").write_text(f"[default]\n{process}\n")
    with proxied(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield Issuer(tmp_path, proxy)


def test_keys_that_expired_are_asked_for_again(s3_url: str, issuer: Issuer) -> None:
    store = open_store(s3_url, write=True)
    store.put("a", b"x")
    early = issuer.given()
    for _ in range(4):
        time.sleep(0.11)  # obstore keeps for a tenth of a second what it was given
        store.put("b", b"x")
    issuer.expire()
    assert {each.access_key for each in issuer.proxy.requests} <= set(issuer.given())
    time.sleep(0.11)
    store.put("c", b"x")
    assert issuer.proxy.requests[-1].access_key not in early
    assert len(issuer.given()) > len(early)


def test_a_run_outlives_its_first_keys(s3_url: str, issuer: Issuer, small_run: list[str]) -> None:
    def expire_at_the_record(request: Request) -> None:
        if "/records/" in request.key and request.method == "PUT":
            issuer.expire()

    issuer.proxy.plan = expire_at_the_record
    done = invoke("run", s3_url, *small_run)
    assert done.code == 0, done.err
    first, last = issuer.proxy.requests[0], issuer.proxy.requests[-1]
    assert first.access_key and last.access_key not in ("", first.access_key)


def test_keys_that_cannot_be_renewed_say_why(s3_url: str, issuer: Issuer) -> None:
    store = open_store(s3_url, write=True)
    (issuer.folder / "closed").touch()
    time.sleep(0.11)
    with pytest.raises(
        UnavailableError, match="could not be renewed: .*log in again; rerun the same"
    ):
        store.put("a", b"x")
    with pytest.raises(InputError, match="log in again"):
        open_store(s3_url)


def test_a_role_is_taken_on(
    s3_url: str,
    endpoint: str,
    minio_keys: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """By the keys of another profile, from the STS of the same endpoint."""
    key, secret = minio_keys
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "role")
    (tmp_path / "config").write_text(
        "[profile role]\nrole_arn = arn:aws:iam::123456789012:role/any\nsource_profile = base\n"
        f"[profile base]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    )
    with proxied(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        open_store(s3_url, write=True).put("a", b"x")
    assert proxy.requests[-1].access_key not in ("", key)
