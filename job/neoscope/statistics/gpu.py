"""Where statistics are added up on a GPU, and the kernels that do it, which Triton compiles.

In: a device; the name of a module of kernels; a kernel and what it works on. Out: whether it is a GPU; the
module. It does not know what a kernel does.
"""

from __future__ import annotations

import functools
import importlib
import subprocess
from typing import Any

import torch

from neoscope.errors import InputError


def is_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


@functools.cache
def kernels(module: str) -> Any:
    """A module of this folder whose kernels Triton compiles. Raises InputError where it cannot."""
    try:
        from triton.runtime import driver

        found = importlib.import_module(f"neoscope.statistics.{module}")
        driver.active.get_current_device()
    except (
        *(ImportError, OSError, RuntimeError, subprocess.CalledProcessError),
        AssertionError,  # where no library of the driver is found
    ) as error:
        raise InputError(
            f"statistics on a GPU are compiled by Triton, which fails here ({error}): it needs a C "
            "compiler and Python's headers (apt-get install gcc python3-dev), or use --no-statistics "
            "--no-neurons"
        ) from None
    return found


def launch(
    kernel: Any, grid: tuple[int, ...], values: torch.Tensor, *rest: Any, **options: Any
) -> None:
    """Run a kernel on the GPU that has the `values`, each product rounded before it is added, as on a CPU."""
    with torch.cuda.device_of(values):  # where Triton launches
        kernel[grid](values, *rest, enable_fp_fusion=False, **options)
