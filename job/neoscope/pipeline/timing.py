"""Seconds of steps by name, added up. It does not know what the steps do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def timed(timings: dict[str, float], step: str) -> Iterator[None]:
    """Add the seconds of the block to those of its step."""
    began = time.perf_counter()
    yield
    timings[step] = timings.get(step, 0.0) + time.perf_counter() - began
