"""The command as a process of its own or in this one, and where the tests are."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
BUCKET = "neoscope-test"

# NEOSCOPE_FAULTS=full asks for all of tests/faults, which takes half an hour; without, each fault is made
# some times. NEOSCOPE_FAULTS_SEED repeats the choices of an earlier time.
FAULTS: dict[str, Any] = {
    "full": os.environ.pop("NEOSCOPE_FAULTS", "") == "full",
    "seed": os.environ.pop("NEOSCOPE_FAULTS_SEED", "") or random.SystemRandom().randrange(10**6),
}

# NEOSCOPE_WHEEL=full asks for the environment of 6 GB too (tests/deploy/test_wheel.py).
FULL_WHEEL = os.environ.pop("NEOSCOPE_WHEEL", "") == "full"

# What the caller has set must not change a test's result.
OTHERS = ("NEOSCOPE_", "AWS_", "HF_", "SLURM_", "SKYPILOT_", "JOB_COMPLETION_INDEX")
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
for name in [each for each in os.environ if each.startswith(OTHERS) or each in RANKS]:
    del os.environ[name]
os.environ["AWS_CONFIG_FILE"] = os.environ["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str


def neoscope(*arguments: object, seconds: float = 120, **environment: str) -> Finished:
    """Run the command as a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "neoscope", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def invoke(*arguments: object, **environment: str) -> Finished:
    """Run the command in this process, which spares the seconds that its imports take."""
    from neoscope.commands import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in environment.items():
            patch.setenv(name, value)
        code = main.invoke([*map(str, arguments)])
    return Finished(code, out.getvalue(), err.getvalue())
