"""How kernels for a CPU are compiled by numba: once on a machine, and kept where numba keeps such things.

In: a function and its signature. Out: the compiled function, from the disk where the very same one was
compiled before, by the same version of numba for the same kind of processor. numba knows a function again
by its file and would miss a constant of another module that changed: the name that it is kept by has a
digest of every module beside the function's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import xxhash


def compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function for one signature and no other; it holds no lock of Python's while it runs. What it
    takes from other modules must be of its own folder."""

    def compile_it(function: Callable[..., Any]) -> Callable[..., Any]:
        folder = Path(function.__code__.co_filename).parent
        function.__qualname__ = f"{function.__name__}_{_digest(folder)}"
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        except Exception:
            # No folder that can be written, a full disk, a damaged file: what is wrong with the function
            # itself is raised again.
            return numba.njit(signature, nogil=True)(function)

    return compile_it


@functools.cache
def _digest(folder: Path) -> str:
    """xxh3-64 of every module in a folder, 16 hexadecimal digits."""
    modules = sorted(folder.glob("*.py"))
    return xxhash.xxh3_64_hexdigest(b"\0".join(path.read_bytes() for path in modules))
