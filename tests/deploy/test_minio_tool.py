"""The local MinIO tool against real servers, each in a folder of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import minio
import minio_program
import pytest


def tool(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The tool as make calls it."""
    command = [sys.executable, minio.__file__, *map(str, arguments)]
    environment = without_a_store() | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def without_a_store() -> dict[str, str]:
    """The environment, but for a store of the user's or of another test's."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "NEOSCOPE_"))}


def make_bucket(server: minio.Server, name: str) -> list[str]:
    """Makes a bucket with the server's keys, and lists all there are."""
    client = boto3.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
    )
    client.create_bucket(Bucket=name)
    return [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]


def listens(server: minio.Server) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(server.endpoint.rpartition(":")[2]))) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "minio"
    minio.stop(tmp_path / "minio")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_start_and_stop_from_the_command_line(folder: Path) -> None:
    first = tool("start", "--dir", folder)
    assert first.returncode == 0, first.stderr
    server = minio.start(folder)  # finds it up
    assert server.endpoint in first.stdout
    assert make_bucket(server, "one") == ["one"]

    second = tool("start", "--dir", folder)
    assert second.stdout == first.stdout
    assert minio.running(folder) == server.pid

    assert tool("stop", "--dir", folder).returncode == 0
    assert not listens(server)
    assert "not running" in tool("stop", "--dir", folder).stdout


def test_keys_are_random_private_and_never_printed(folder: Path, tmp_path: Path) -> None:
    started = tool("start", "--dir", folder)
    server = minio.start(folder)
    with minio.server(tmp_path / "other") as other:
        assert server.access_key != other.access_key
        assert server.secret_key != other.secret_key
    assert len(server.secret_key) == 40

    env = folder / "env"
    assert env.stat().st_mode & 0o777 == 0o600
    told = started.stdout + started.stderr + repr(server) + (folder / "minio.log").read_text()
    assert server.secret_key not in told

    shell = f". '{env}' && env"
    sourced = subprocess.run(
        ["sh", "-c", shell], env={"AWS_SESSION_TOKEN": "x"}, capture_output=True, text=True
    ).stdout.splitlines()
    assert {f"{k}={v}" for k, v in server.environment.items()} <= set(sourced)
    assert not [line for line in sourced if line.startswith("AWS_SESSION_TOKEN")]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_changes_neither_address_nor_keys_nor_data(
    folder: Path, how: signal.Signals
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    before = minio.start(folder, port)  # not 9000, which other tests take
    make_bucket(before, "one")
    assert minio.stop(folder, how)
    after = minio.start(folder)
    assert after.environment == before.environment
    assert after.pid != before.pid
    assert make_bucket(after, "two") == ["one", "two"]


def test_a_stale_pid_is_not_believed(folder: Path, bystander: subprocess.Popen[bytes]) -> None:
    folder.mkdir()
    (folder / "pid").write_text(f"{bystander.pid}\n")
    assert minio.running(folder) is None
    assert not minio.stop(folder)
    assert minio.start(folder).pid != bystander.pid
    assert minio.stop(folder)
    assert bystander.poll() is None


def test_starts_at_the_same_time_do_not_get_in_each_others_way(
    folder: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    folders = [folder, folder, other, other]
    command = [sys.executable, minio.__file__, "start", "--dir"]
    starts = [
        subprocess.Popen(
            [*command, str(each)], env=without_a_store(), stdout=subprocess.PIPE, text=True
        )
        for each in folders
    ]
    told = [process.communicate()[0] for process in starts]
    servers = [minio.start(each) for each in folders]
    try:
        assert all(server.endpoint in line for server, line in zip(servers, told, strict=True))
        assert make_bucket(servers[0], "one") == ["one"]
        assert make_bucket(servers[2], "two") == ["two"]
    finally:
        minio.stop(folder)
        minio.stop(other)
    assert not listens(servers[0])
    assert not listens(servers[2])


def test_it_listens_on_loopback_only(folder: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    server = minio.start(folder)
    own = {str(each.readlink()) for each in Path(f"/proc/{server.pid}/fd").iterdir()}
    addresses, ports = set(), set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in own:
                address, port = local.split(":")
                addresses.add(address)
                ports.add(int(port, 16))
    assert ports == {int(server.endpoint.rpartition(":")[2])}
    assert "0100007F" in addresses  # 127.0.0.1
    assert addresses <= {"0100007F", "00000000000000000000000001000000"}  # ::1


def test_a_server_ends_with_the_process_that_wanted_it(folder: Path) -> None:
    program = (
        "import minio, pathlib, sys, time\n"
        "with minio.server(pathlib.Path(sys.argv[1])) as server:\n"
        "    print(flush=True)\n"
        "    time.sleep(60)\n"
    )
    path = {"PYTHONPATH": str(Path(minio.__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)],
        env=os.environ | path,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout
        assert owner.stdout.readline() == "\n"
        assert minio.running(folder)
        owner.kill()
    deadline = time.monotonic() + 10
    while minio.running(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert minio.running(folder) is None


def test_a_taken_port_is_one_clear_line(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        failed = tool("start", "--dir", folder, "--port", str(port))
    assert failed.returncode == 1
    assert failed.stdout == ""
    assert failed.stderr == f"minio.py: port {port} is in use\n"


def test_a_server_that_cannot_start_says_why(folder: Path) -> None:
    folder.mkdir()
    (folder / "data").write_text("a file where the data should be")
    failed = tool("start", "--dir", folder)
    assert failed.returncode == 1
    assert failed.stderr.startswith("minio.py: MinIO did not start: ")
    assert failed.stderr.count("\n") == 1


def test_a_store_of_the_users_is_used_instead(folder: Path) -> None:
    done = tool("start", "--dir", folder, AWS_ENDPOINT_URL="https://store.example")
    assert "https://store.example" in done.stdout
    assert minio.running(folder) is None


def test_its_own_address_in_the_environment_is_not_the_users(folder: Path) -> None:
    server = minio.start(folder)
    minio.stop(folder)
    assert tool("start", "--dir", folder, **server.environment).returncode == 0
    assert minio.running(folder)


# Where the program comes from: with stand-ins for docker and go, since neither is everywhere.

PROGRAM = "#!/bin/sh\necho minio\n"
DOCKER = """#!/bin/sh
case $1 in
    create) echo 0123abcd ;;
    cp) printf '#!/bin/sh\\n' > "$3" && chmod +x "$3" ;;
esac
"""
NO_DOCKER = "#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2; exit 1\n"
GO = """#!/bin/sh
case $1 in
    env) echo go1.24.0 ;;
    install) printf '#!/bin/sh\\n' > "$GOBIN/minio" && chmod +x "$GOBIN/minio" ;;
esac
"""


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no MinIO, Docker or Go; the folder is its PATH, beside the base system."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / "venv"))
    (tmp_path / "venv").mkdir()
    install(folder / "docker", NO_DOCKER)
    install(folder / "go", GO.replace("go1.24.0", "go1.23.9"))
    install(tmp_path / "venv" / "go", NO_DOCKER)
    return folder


def install(path: Path, script: str) -> None:
    path.write_text(script)
    path.chmod(0o755)


def test_a_minio_on_path_is_used_as_it_is(bare: Path) -> None:
    install(bare / "minio", PROGRAM)
    assert minio_program.binary() == bare / "minio"


@pytest.mark.parametrize(
    ("path", "script"), [("bin/docker", DOCKER), ("bin/go", GO), ("venv/go", GO)]
)
def test_the_program_is_got_once(
    bare: Path, tmp_path: Path, path: str, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path / path, script)
    program = minio_program.binary()
    assert program == tmp_path / "cache" / "neoscope" / f"minio-{minio_program.VERSION}"
    assert "once on this machine" in capsys.readouterr().out
    assert minio_program.binary() == program
    assert capsys.readouterr().out == ""
    assert [each.name for each in program.parent.iterdir()] == [program.name]


def test_no_way_to_a_program_names_every_reason(bare: Path) -> None:
    with pytest.raises(minio_program.MinioError) as failure:
        minio_program.binary()
    message = str(failure.value)
    assert "Cannot connect to the Docker daemon" in message
    assert "go1.23.9 is too old" in message
    assert "\n" not in message
