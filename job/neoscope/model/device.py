"""Whether there can be an NVIDIA GPU here, before torch is imported, which takes seconds.

In: nothing. Out: why there is none, where that is certain. It asks the driver and not torch, so that it
says nothing of a GPU's use; `model.pick_device` has the last word.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from neoscope.errors import InputError

CUDA_ERROR_NO_DEVICE = 100  # of cuda.h: CUDA_VISIBLE_DEVICES hides all of them, or none is there
# AMD's driver and that of Windows under Linux: torch may have other ways to a GPU there.
OTHER_DRIVERS = ("/dev/kfd", "/dev/dxg")


def check_device(device: str) -> None:
    """Raise InputError for `cuda` where torch can certainly find no GPU."""
    if device.startswith("cuda") and _no_gpu():
        raise InputError(f"--device {device}: torch finds no GPU here; use --device cpu or auto")


def _no_gpu() -> bool:
    if sys.platform != "linux" or any(Path(driver).exists() for driver in OTHER_DRIVERS):
        return False
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == CUDA_ERROR_NO_DEVICE)
    except OSError:  # there is no driver
        return True
