"""`make run-local`: what FRESH=1 takes away, and when."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import boto3
import minio
import pytest
import run as local

from support.command import invoke
from support.places import body, listing, put

OLD, NEW = "s3://neoscope/local-sample", "s3://neoscope/local-sample-fresh"


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the commands that are not quiet say, on a machine without the Hub and with a MinIO."""
    said: list[str] = []

    def command(*words: str, quiet: bool = False) -> int:
        done = invoke(*words)
        if not quiet:
            said.append(done.out)
        return done.code

    monkeypatch.setattr(local, "neoscope", command)  # not as a process: spares its seconds
    monkeypatch.setattr(local, "hub_answers", lambda: False)
    monkeypatch.setattr(minio, "DIRECTORY", tmp_path)
    with minio.server(tmp_path / "minio") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        yield said


def test_fresh_takes_the_old_run_away_once_the_new_one_is_whole(
    said: list[str],
    small_run: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [*small_run, "--weights", "pretrained"]
    assert local.main(words) == 0
    before = listing(OLD)
    monkeypatch.setenv("FRESH", "1")
    assert local.main([*words, "--batches", "400"]) == 3  # more than the sample's text
    assert f"{OLD} stays as it was" in capsys.readouterr().err
    assert listing(OLD) == before and listing(NEW) == {}

    put(OLD, "notes.txt", b"mine")
    assert local.main([*words, "--batches", "2"]) == 4
    assert "notes.txt" in capsys.readouterr().err
    assert listing(OLD).keys() == before.keys() | {"notes.txt"}
    boto3.Session().resource("s3").Object("neoscope", "local-sample/notes.txt").delete()

    assert local.main([*words, "--batches", "2"]) == 0
    assert json.loads(body(OLD, "manifest.json"))["batches"] == 2
    assert listing(NEW) == {}
    assert f"stored:  {OLD}\n" in said[-1] and NEW not in said[-1]
