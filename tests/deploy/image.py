"""The image IMAGE, as built: `make image-check`, not part of `make test`. Needs a Docker engine on Linux."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid

import pytest

from neoscope.text.documents import SAMPLE_FILE
from support.command import ROOT, invoke

IMAGE = os.environ["IMAGE"]
ANYBODY = ("--user", "1234567:0")  # as OpenShift does
LOCKED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", *ANYBODY)
STORE = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
TINY = ("--weights", "random", "--dataset", "sample", "--sequences", "4", "--positions", "32")
# Of all that is imported for a run: has Python the compiled form of just this source?
COMPILED = """
import importlib.util, os, struct, sys
import neoscope.commands.cli, neoscope.pipeline.partition
for module in list(sys.modules.values()):
    source = getattr(module, "__file__", None) or ""
    if source.startswith("/opt/") and source.endswith(".py"):
        with open(importlib.util.cache_from_source(source), "rb") as file:
            _, flags, mtime, size = struct.unpack("<4s3I", file.read(16))
        there = os.stat(source)
        assert (flags, mtime, size) == (0, int(there.st_mtime), there.st_size), source
"""

# By Triton's own compiler of what launches a kernel, which it keeps in a cache and loads from there.
TRITON = """
from triton.runtime.build import compile_module_from_src
module = compile_module_from_src('''
#include <Python.h>
static PyObject *answer(PyObject *self, PyObject *none) { return PyLong_FromLong(42); }
static PyMethodDef methods[] = {{"answer", answer, METH_NOARGS, ""}, {0}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "launcher", "", -1, methods};
PyMODINIT_FUNC PyInit_launcher(void) { return PyModule_Create(&module); }
''', "launcher")
assert module.__file__.startswith("/cache/triton/"), module.__file__
print(module.answer())
"""


def docker(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True)


def python(code: str) -> subprocess.CompletedProcess[str]:
    return docker("run", "--rm", *LOCKED, "--entrypoint", "python", IMAGE, "-c", code)


@pytest.fixture
def environment(endpoint: str) -> list[str]:
    """The options by which a container reaches the tests' MinIO."""
    return ["--network", "host", *(part for name in STORE for part in ("--env", name))]


def test_it_is_the_command_and_says_what_it_can_do() -> None:
    done = docker("run", "--rm", "--network", "none", *LOCKED, IMAGE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: neoscope")


def test_its_user_is_a_number_that_has_a_name() -> None:
    (config,) = json.loads(docker("image", "inspect", IMAGE).stdout)
    assert config["Config"]["User"] == "65532:65532"
    named = docker("run", "--rm", "--entrypoint", "id", IMAGE, "--user", "--name")
    assert named.stdout == "neoscope\n"
    assert config["Config"]["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_nothing_is_in_it_that_only_building_or_testing_needs() -> None:
    there = "for each in g++ make pip uv git; do command -v $each; done; find /opt -name tests"
    done = docker("run", "--rm", "--entrypoint", "sh", IMAGE, "-c", there)
    assert done.stdout == ""


def test_all_that_it_imports_is_compiled() -> None:
    done = python(COMPILED)
    assert done.returncode == 0, done.stderr


def test_anybody_compiles_what_triton_does_on_a_gpu_and_loads_it() -> None:
    where = ("--volume", "/cache", "--entrypoint", "python")
    done = docker("run", "--rm", "--network", "none", *LOCKED, *where, IMAGE, "-c", TRITON)
    assert (done.returncode, done.stdout) == (0, "42\n"), done.stderr


def test_anybody_makes_a_run_on_a_read_only_root(environment: list[str], s3_url: str) -> None:
    done = docker("run", "--rm", *LOCKED, *environment, IMAGE, "run", s3_url, *TINY)
    assert done.returncode == 0, done.stderr
    assert "checked: 12 layers of one shape" in done.stdout
    assert "warning" not in done.stderr.lower()
    verified = invoke("verify", s3_url)
    assert verified.code == 0, verified.err


def test_torchrun_s_processes_share_a_run(environment: list[str], s3_url: str) -> None:
    """As on a node with two GPUs."""
    text = f"/opt/neoscope/{SAMPLE_FILE.relative_to(ROOT / 'job')}"
    shared = ("--text", text) * 2 + ("--partitions", "2", "--partition", "auto")
    words = ("--nproc-per-node", "2", "-m", "neoscope", "run", s3_url, "--weights", "random")
    words += ("--sequences", "4", "--positions", "32", *shared)
    where = (*environment, "--entrypoint", "torchrun", "--env", "OMP_NUM_THREADS=1")
    done = docker("run", "--rm", *LOCKED, *where, IMAGE, "--standalone", *words)
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        assert f"worker {rank} of 2 (RANK={rank} of WORLD_SIZE=2): partition {rank}" in done.stderr
    verified = invoke("verify", s3_url)
    assert verified.code == 0, verified.err


def test_what_docker_stops_ends_at_once(environment: list[str], s3_url: str) -> None:
    name = f"neoscope-{uuid.uuid4().hex}"
    running = ("--detach", "--name", name, *LOCKED, *environment)
    assert docker("run", *running, IMAGE, "run", s3_url, *TINY, "--batches", "50").returncode == 0
    try:
        while "preparing" not in docker("logs", name).stderr:
            time.sleep(0.2)
        began = time.monotonic()
        docker("stop", "--time", "60", name)
        assert time.monotonic() - began < 10
        (found,) = json.loads(docker("container", "inspect", name).stdout)
        assert found["State"]["ExitCode"] == 143
    finally:
        docker("rm", "--force", name)
