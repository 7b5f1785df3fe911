"""The process that makes a run: what it is made with, and how it keeps its memory level.

In: the device. Out: versions and names for the record. It does not know what is computed.
"""

from __future__ import annotations

import contextlib
import ctypes
import platform
from importlib import metadata
from typing import Any

import torch

M_MMAP_THRESHOLD = -3  # of mallopt, in malloc.h
LIBRARIES = (
    "neoscope",
    "torch",
    "transformers",
    "numba",
    "tokenizers",
    "datasets",
    "numpy",
    "zarr",
    "obstore",
)


def describe_environment(device: torch.device) -> dict[str, Any]:
    """What the run was made with; recorded, but no part of what it is."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)",
        "libraries": {name: metadata.version(name) for name in LIBRARIES},
    }


def keep_memory_flat() -> None:
    """Let large buffers go back to the system when they are freed.

    glibc raises the size from which it does so with every large block freed, up to 32 MB, and then
    keeps the holes between what stays: 0.2 GB over one batch of GPT-Neo 125M, and growing.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such setting
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)


def return_freed_memory() -> None:
    """Give back what imports, compilation and loading have freed in small pieces."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
