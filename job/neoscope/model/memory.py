"""The words in which a device's refusal of memory is told.

In: what the memory was for, and what to do. Out: an error for the user, which says whether a retry may
help. It does not reckon; see `pipeline.memory`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from neoscope.errors import NeoscopeError

CUDA_ERROR_MEMORY_ALLOCATION = 2  # of driver_types.h


@contextmanager
def translate_out_of_memory(error: Callable[[], NeoscopeError]) -> Iterator[None]:
    """Raise what `error` gives where torch, CUDA or cuBLAS is refused memory, pinned memory too."""
    try:
        yield
    except RuntimeError as refused:
        if not _is_out_of_memory(refused):
            raise
    else:
        return
    raise error()


def _is_out_of_memory(error: RuntimeError) -> bool:
    return (
        isinstance(error, torch.OutOfMemoryError)
        or getattr(error, "error_code", None) == CUDA_ERROR_MEMORY_ALLOCATION
        or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)
    )
