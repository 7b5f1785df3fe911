"""How kernels for a CPU are compiled by numba: once on a machine, and kept beside this module or in the
user's cache.

In: a function and its signature. Out: the compiled function, from the disk where the very same one was
compiled before. numba knows it again by the file that it is in, its bytecode, the values that it closes
over, the processor and numba's version, but does not see a constant of another module change: what a
kernel takes from another module is an argument of a function around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function for one signature and no other; it holds no lock of Python's while it runs."""

    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        except Exception:
            # No folder that can be written, a full disk, a damaged file: what is wrong with the function
            # itself is raised again.
            return numba.njit(signature, nogil=True)(function)

    return compile_it
