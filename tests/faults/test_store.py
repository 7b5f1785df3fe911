"""A store that goes away comes back, or says what is wrong: the run outlives the one and tells the other
in a line, and leaves nothing that looks finished."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import minio
import pytest

from faults.conftest import NewUrl, Tell, Undisturbed, times
from faults.content import client, content, differences, objects
from faults.forks import Ended, Forks
from faults.proxy import Request, proxied
from support.command import BUCKET, FAULTS


def one_line(ended: Ended) -> str:
    """The one line with which a command refuses."""
    (line,) = [line for line in ended.err.splitlines() if "neoscope: error:" in line]
    assert "Traceback" not in ended.err
    return line


@contextmanager
def own_minio(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[minio.Server]:
    """A MinIO that may be ill-treated, its keys in the environment, with one bucket."""
    with minio.server(folder) as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        client().create_bucket(Bucket=BUCKET)
        yield server


def stored(folder: Path) -> int:
    """How many objects lie in a MinIO's bucket, without asking it."""
    return len(list((folder / "data" / BUCKET).rglob("xl.meta")))


# MinIO goes away


def test_minio_killed_and_restarted_during_a_run(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
    new_url: NewUrl,
    chance: random.Random,
    monkeypatch: pytest.MonkeyPatch,
    tell: Tell,
) -> None:
    count = times(3, 20)
    with own_minio(tmp_path, monkeypatch) as server:
        for _ in range(count):
            place, down = new_url(), threading.Event()
            last = chance.randrange(len(undisturbed.content))

            def kill(request: Request, last: int = last, down: threading.Event = down) -> None:
                if request.number == last:
                    minio.stop(tmp_path, signal.SIGKILL)
                    down.set()

            with proxied(server.endpoint, kill) as proxy:
                process = forks.start("run", place, *arguments, "--endpoint-url", proxy.endpoint)
                process.until(down.is_set)
                time.sleep(chance.uniform(0, 2))
                minio.start(tmp_path)
                ended = process.wait()
            assert ended.code == 0, ended.err
            assert differences(content(place), undisturbed.content) == []
    tell("MinIO killed and restarted during a run", count, "the runs went on, all identical")


def test_minio_that_is_gone_may_be_back_later(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
    new_url: NewUrl,
    monkeypatch: pytest.MonkeyPatch,
    tell: Tell,
) -> None:
    with own_minio(tmp_path, monkeypatch):
        place = new_url()
        minio.stop(tmp_path, signal.SIGKILL)
        ended = forks.run("run", place, *arguments)
        assert ended.code == 75
        assert "does not answer" in one_line(ended)
        minio.start(tmp_path)
        assert objects(place) == {}
        assert forks.run("run", place, *arguments).code == 0
        assert differences(content(place), undisturbed.content) == []
    tell("MinIO down at the start", 1, "exit 75; the same command later finished")


@pytest.mark.skipif(
    not FAULTS["full"], reason="takes the three minutes that the command is patient for"
)
def test_minio_that_stays_away_is_told_in_one_line(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
    new_url: NewUrl,
    monkeypatch: pytest.MonkeyPatch,
    tell: Tell,
) -> None:
    with own_minio(tmp_path, monkeypatch):
        place = new_url()
        process = forks.start("run", place, *arguments)
        process.until(lambda: stored(tmp_path) > 20)
        minio.stop(tmp_path, signal.SIGKILL)
        ended = process.wait(500)
        assert ended.code == 75
        assert "rerun the same command" in one_line(ended)
        minio.start(tmp_path)
        assert "manifest.json" not in objects(place)
        assert forks.run("run", place, *arguments).code == 0
        assert differences(content(place), undisturbed.content) == []
    tell("MinIO away for good", 1, "exit 75 after three minutes; the same command later finished")


# The bucket and what is allowed


@pytest.mark.usefixtures("endpoint")
def test_a_bucket_that_is_not_there(forks: Forks, arguments: list[str], tell: Tell) -> None:
    ended = forks.run("run", "s3://no-such-bucket/run", *arguments)
    assert ended.code == 3
    assert "does not exist: create it" in one_line(ended)
    tell("bucket missing", 1, "exit 3, one line")


def test_a_bucket_that_vanishes_during_a_run(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    endpoint: str,
    new_url: NewUrl,
    chance: random.Random,
    tell: Tell,
) -> None:
    count = times(5, 50)
    for _ in range(count):
        place, last = new_url(), chance.randrange(len(undisturbed.content))
        with proxied(
            endpoint, lambda request, n=last: "gone" if request.number >= n else None
        ) as way:
            ended = forks.run("run", place, *arguments, "--endpoint-url", way.endpoint)
        assert ended.code == 3, ended.err
        assert "does not exist: create it" in one_line(ended)
        assert forks.run("run", place, *arguments).code == 0
        assert differences(content(place), undisturbed.content) == []
    tell(
        "bucket gone during a run", count, "exit 3, one line; when it was back the command finished"
    )


def allowed(*actions: str) -> dict[str, str]:
    """Temporary keys that are allowed these actions only."""
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": ["arn:aws:s3:::*"]}
    keys = client("sts").assume_role(
        RoleArn="arn:aws:iam::123456789012:role/any",
        RoleSessionName="neoscope",
        Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}),
    )["Credentials"]
    return {
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        "AWS_SESSION_TOKEN": keys["SessionToken"],
    }


def test_keys_that_are_wrong_or_allow_too_little_are_told_by_what_they_lack(
    forks: Forks, arguments: list[str], endpoint: str, new_url: NewUrl, tell: Tell
) -> None:
    names = ("GetObject", "PutObject", "ListBucket", "DeleteObject")
    read, write, see, drop = (f"s3:{name}" for name in names)
    cases: list[tuple[dict[str, str], str]] = [
        ({"AWS_SECRET_ACCESS_KEY": "wrong"}, see),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, see),
        (allowed(read, write, drop), see),
        (allowed(read, see, drop), write),
        (allowed(write, see, drop), read),
    ]
    place = new_url()
    for keys, lacking in cases:
        ended = forks.run("run", place, *arguments, environment=keys)
        assert ended.code == 3, ended.err
        assert f"access denied: {lacking}" in one_line(ended)
        assert objects(place).keys() <= {"run.json"}
    enough = allowed(read, write, see)
    ended = forks.run("run", place, *arguments, environment=enough)
    assert ended.code == 0, ended.err
    assert (
        ended.err.count(f"warning: the statistics of each batch stay, access denied: {drop}") == 1
    )
    assert forks.run("verify", place).code == 0
    whole = objects(place)
    ended = forks.run("delete", place, "--yes", environment=enough)
    assert ended.code == 3, ended.err
    assert f"access denied: {drop}" in one_line(ended)
    assert objects(place) == whole
    tell("keys wrong, or lacking a permission", len(cases) + 1, "exit 3, named in one line")


# The disk is full


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A file system in memory at a folder; call it to change its size."""
    folder.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")

    if shutil.which("mount") is None or shutil.which("umount") is None:
        pytest.skip("a small disk cannot be mounted here: there is no mount")
    mount(f"size={size}")
    try:
        yield lambda other: mount(f"remount,size={other}")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_under_a_folder(
    forks: Forks, arguments: list[str], undisturbed: Undisturbed, tmp_path: Path, tell: Tell
) -> None:
    with small_disk(tmp_path / "disk", "900k") as resize:
        place = str(tmp_path / "disk" / "run")
        ended = forks.run("run", place, *arguments)
        assert ended.code == 3, ended.err
        assert "No space left" in one_line(ended)
        assert not any(key.endswith(("manifest.json", "zarr.json")) for key in objects(place))
        resize("64m")
        ended = forks.run("run", place, *arguments)
        assert ended.code == 0, ended.err
        assert differences(content(place), undisturbed.content) == []
    tell("disk full under a folder", 1, "exit 3, one line; with room the same command finished")


def test_a_disk_that_is_full_under_minio(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
    new_url: NewUrl,
    monkeypatch: pytest.MonkeyPatch,
    tell: Tell,
) -> None:
    with small_disk(tmp_path / "disk", "16m") as resize:
        folder = tmp_path / "disk" / "minio"
        with own_minio(folder, monkeypatch):
            place = new_url()
            fill(tmp_path / "disk", leave=1_000_000)
            process = forks.start("run", place, *arguments)
            while stored(folder) < 10:
                time.sleep(0.01)
            time.sleep(3)
            assert process.poll() is None, "the disk was not full"
            assert stored(folder) < len(undisturbed.content) - 10
            if FAULTS["full"]:  # the command is patient for three minutes
                ended = process.wait(600)
                assert ended.code == 75
                assert "XMinioStorageFull" in one_line(ended)
                assert "manifest.json" not in objects(place)
                process = forks.start("run", place, *arguments)
                time.sleep(1)
            resize("64m")
            ended = process.wait()
            assert ended.code == 0, ended.err
            assert differences(content(place), undisturbed.content) == []
            minio.stop(folder)
    outcome = "exit 75 after three minutes; " if FAULTS["full"] else ""
    tell("disk full under MinIO", 1, f"{outcome}given room the run went on, identical")


def fill(folder: Path, leave: int) -> None:
    """Fill a file system up to some bytes."""
    (folder / "ballast").write_bytes(bytes(shutil.disk_usage(folder).free - leave))
