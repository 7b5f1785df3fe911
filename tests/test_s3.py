"""Where S3 is asked and as whom: boto3's settings count for every request, and keys may be short-lived."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import boto3
import pytest

from conftest import BUCKET, invoke
from neoscope.errors import InputError, UsageError
from neoscope.storage import open_store

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
    client = boto3.client("s3")
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
