"""What can be said of the image without building it; `make image-check` tries the built one."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml
from minio_program import IMAGE

from support.command import ROOT

DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text()
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"


@pytest.mark.skipif(not HADOLINT.exists(), reason="hadolint has no program for this machine")
def test_hadolint_finds_nothing() -> None:
    done = subprocess.run([HADOLINT, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_base_is_of_the_cuda_that_torch_is_built_for_or_newer() -> None:
    base = re.search(r"^ARG BASE_IMAGE=nvidia/cuda:(\d+)\.(\d+)", DOCKERFILE, re.MULTILINE)
    locked = re.search(
        r"^cuda-toolkit==(\d+)\.(\d+)",
        (ROOT / "requirements" / "job.txt").read_text(),
        re.MULTILINE,
    )
    assert base and locked
    assert tuple(map(int, base.groups())) >= tuple(map(int, locked.groups()))


def test_the_context_holds_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    assert kept == {source for sources in copied for source in sources.split()}
    assert "*" in lines
    assert all((ROOT / path).exists() for path in kept)


def test_compose_runs_the_job_as_the_cluster_does_with_the_minio_of_the_tests() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    assert services["minio"]["image"] == IMAGE
    assert services["minio"]["ports"] == ["127.0.0.1:9900:9000"], "its keys are in the file"
    for name in ("job", "gpu"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
        assert services[name]["command"] == ["run"]
