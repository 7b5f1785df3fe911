"""A MinIO server for local runs and tests: starts it and stops it.

Comes in: a directory. Goes out: a server on loopback that outlives the shell, and its address and
keys. Knows nothing of neoscope, and needs nothing but Python. The directory holds

    env         address and keys, to be sourced; kept, so that a restart changes neither
    pid         the server's process id; the server itself keeps it locked for as long as it lives,
                so a file left behind is never believed, whoever has that number by now
    data/       the buckets
    minio.log   what the server printed since its last start
"""

import argparse
import fcntl
import http.client
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from minio_program import MinioError, binary, last_line

DIRECTORY = Path(__file__).resolve().parents[2] / ".minio"
START_SECONDS = 60
STOP_SECONDS = 15

# Variables that would win over the ones in `env`, or spoil them.
SHADOWING = ("NEOSCOPE_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_SESSION_TOKEN")


@dataclass(frozen=True)
class Server:
    """A server that answers: its address, its keys, its process."""

    endpoint: str
    access_key: str
    secret_key: str = field(repr=False)
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which boto3 and obstore find it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
        }


def start(directory: Path, port: int | None = None) -> Server:
    """Starts the directory's server, or finds it up; returns when it answers.

    The port is the one asked for, or that of last time, or 9000, or a free one.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _alone():
        if running(directory) is None:
            _launch(binary(), directory, port)
        server = _when_ready(directory)
    if port and not server.endpoint.endswith(f":{port}"):
        raise MinioError(f"the server of {directory} is up already, at {server.endpoint}")
    return server


def stop(directory: Path, how: signal.Signals = signal.SIGTERM) -> bool:
    """Ends the directory's server and waits until it is gone; False if none was up."""
    pid = running(directory)
    if pid is None:
        return False
    for each in (how, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.kill(pid, each)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            if running(directory) != pid:
                return True
            time.sleep(0.02)
    raise MinioError(f"process {pid}, the server of {directory}, does not end")


@contextmanager
def server(directory: Path) -> Iterator[Server]:
    """A server on a free port for the length of a block; in it, it may be killed and restarted.

    It ends with this process too, however that ends: a shell waits for our end of a pipe to close.
    """
    stopping = [sys.executable, str(Path(__file__).resolve()), "stop", "--dir", str(directory)]
    with subprocess.Popen(
        ["sh", "-c", 'cat; exec "$@"', "sh", *stopping],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    ):
        yield start(directory, _free_port())


def running(directory: Path) -> int | None:
    """The process id of the directory's server, if it is alive."""
    try:
        with (directory / "pid").open() as pid_file:
            # Shared, so that two who look at once do not take each other for the server.
            fcntl.flock(pid_file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        return int((directory / "pid").read_text())
    return None


def given_endpoint(directory: Path, environ: Mapping[str, str]) -> str | None:
    """The endpoint that the user brings along, as opposed to this directory's own, sourced."""
    endpoint = environ.get("NEOSCOPE_ENDPOINT_URL") or environ.get("AWS_ENDPOINT_URL")
    own = read_environment(directory).get("AWS_ENDPOINT_URL")
    return endpoint if endpoint and endpoint != own else None


def read_environment(directory: Path) -> dict[str, str]:
    """The variables in the directory's `env`; empty where there is none."""
    try:
        return dict(re.findall(r"^export (\w+)=(\S+)$", (directory / "env").read_text(), re.M))
    except FileNotFoundError:
        return {}


def _write_environment(directory: Path, server: Server) -> None:
    with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as file:  # of mode 600
        file.write(f"unset {' '.join(SHADOWING)}\n")
        file.writelines(f"export {name}={value}\n" for name, value in server.environment.items())
    Path(file.name).replace(directory / "env")


@contextmanager
def _alone() -> Iterator[None]:
    """Makes all of a user's starts wait for each other: two at once would choose the same port."""
    with (Path(tempfile.gettempdir()) / f"neoscope-minio-{os.getuid()}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _launch(program: Path, directory: Path, port: int | None) -> None:
    last = read_environment(directory)
    last_port = int(last.get("AWS_ENDPOINT_URL", ":9000").rpartition(":")[2])
    if port and not _is_free(port):
        raise MinioError(f"port {port} is in use")
    chosen = port or _free_port(last_port)
    server = Server(
        f"http://127.0.0.1:{chosen}",
        last.get("AWS_ACCESS_KEY_ID") or secrets.token_hex(10),
        last.get("AWS_SECRET_ACCESS_KEY") or secrets.token_hex(20),
        pid=0,
    )
    _write_environment(directory, server)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MINIO_")} | {
        "MINIO_ROOT_USER": server.access_key,
        "MINIO_ROOT_PASSWORD": server.secret_key,
        "MINIO_BROWSER": "off",  # the console would listen on every interface
        "MINIO_UPDATE": "off",
    }
    # With the certificates that a user may have at home, the server would speak https.
    options = ["--address", f"127.0.0.1:{chosen}", "--certs-dir", str(directory / "certs")]
    command = [str(program), "server", *options, str(directory / "data")]
    with tempfile.NamedTemporaryFile("w", dir=directory, delete=False) as pid_file:
        fcntl.flock(pid_file, fcntl.LOCK_EX)
        # By way of a shell, so that the server is nobody's child: it leaves no zombie behind.
        shell = subprocess.run(
            ["sh", "-c", '"$@" >"$0" 2>&1 & echo $!', str(directory / "minio.log"), *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            pass_fds=[pid_file.fileno()],  # and with it the lock, which outlives our end of it
            start_new_session=True,
        )
        pid_file.write(shell.stdout)
    Path(pid_file.name).replace(directory / "pid")


def _free_port(*preferred: int) -> int:
    """The first of these that nobody listens on, or else a random one."""
    # Below the ports that systems give to outgoing connections: while a server is down, no client
    # gets its port, least of all one that is trying to reach it (it would be talking to itself).
    for port in (*preferred, *random.sample(range(20_000, 30_000), 100)):
        if _is_free(port):
            return port
    raise MinioError("there is no free port")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _when_ready(directory: Path) -> Server:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and (pid := running(directory)):
        own = read_environment(directory)
        if _answers(own["AWS_ENDPOINT_URL"]):
            keys = own["AWS_ACCESS_KEY_ID"], own["AWS_SECRET_ACCESS_KEY"]
            return Server(own["AWS_ENDPOINT_URL"], *keys, pid)
        time.sleep(0.05)
    log = directory / "minio.log"
    raise MinioError(f"MinIO did not start: {last_line(log.read_text())} (see {log})")


def _answers(endpoint: str) -> bool:
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=2)
    try:
        connection.request("GET", "/minio/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="minio.py", description="A MinIO of this checkout's own.")
    parser.add_argument("command", choices=["get", "start", "stop"])
    parser.add_argument("--dir", type=Path, default=DIRECTORY, help="default: .minio")
    parser.add_argument("--port", type=int, help="default: that of last time, 9000, or a free one")
    arguments = parser.parse_args()
    if arguments.command == "get":
        binary()
    elif arguments.command == "stop":
        print("MinIO is stopped." if stop(arguments.dir) else "MinIO was not running.")
    elif given := given_endpoint(arguments.dir, os.environ):
        print(f"Using the store at {given}, as your environment says.")
    else:
        print(f"MinIO is up at {start(arguments.dir, arguments.port).endpoint}.")


if __name__ == "__main__":
    try:
        main()
    except (MinioError, OSError) as error:
        sys.exit(f"minio.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
