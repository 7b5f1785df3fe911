"""Kernels come from the disk where the very same ones were compiled before, and from nowhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import numpy as np
from constants import FACTOR
from neoscope.statistics.compiling import compiled

@compiled("void(f8[::1])")
def times(values):
    for index in range(len(values)):
        values[index] *= FACTOR

values = np.ones(1)
times(values)
print(values[0])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "kernels.py").write_text(MODULE)
    return tmp_path


def value(folder: Path, factor: float, **environment: str) -> float:
    """What the kernel gives in a process of its own."""
    (folder / "constants.py").write_text(f"FACTOR = {factor}\n")
    environment = {"NUMBA_CACHE_DIR": str(folder / "cache"), **environment}
    done = subprocess.run(
        [sys.executable, "-B", "-c", "import kernels"],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


def kept(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path: path.stat() for path in (folder / "cache").rglob("*.nb?")}
    return {path.name: (stat.st_mtime_ns, stat.st_size) for path, stat in found.items()}


def test_a_second_process_compiles_nothing(folder: Path) -> None:
    assert value(folder, 2) == 2
    first = kept(folder)
    assert len(first) == 2  # an index and a function
    assert value(folder, 2) == 2
    assert kept(folder) == first


def test_a_constant_of_another_module_that_changed_is_seen(folder: Path) -> None:
    assert [value(folder, factor) for factor in (2, 3, 2)] == [2, 3, 2]
    assert len(kept(folder)) == 4


@pytest.mark.parametrize("damaged", ["*.nbi", "*.nbc"])
def test_what_is_damaged_on_the_disk_is_compiled_again(folder: Path, damaged: str) -> None:
    value(folder, 2)
    (path,) = (folder / "cache").rglob(damaged)
    path.write_bytes(path.read_bytes()[:20])
    assert value(folder, 2) == 2


def test_where_nothing_can_be_written_kernels_are_compiled_all_the_same(folder: Path) -> None:
    """Neither beside the module nor in a home, as in a container whose file system can only be read."""
    for name in ("cache", "__pycache__", "home"):
        (folder / name).write_text("a file, where a folder would be")
    assert value(folder, 5, HOME=str(folder / "home")) == 5
