"""How much memory this host has left for a process.

In: nothing. Out: bytes, where the system tells them. It does not know what they are for.
"""

from __future__ import annotations

import re
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")  # version 2, as a container sees its own


def free_host_memory() -> int | None:
    """Bytes that can be had without swapping, of this machine and within the container's limit; None where
    neither says so."""
    found = []
    if available := re.search(r"^MemAvailable:\s+(\d+) kB$", _text(MEMINFO), re.MULTILINE):
        found.append(int(available[1]) * 1024)
    limit, used = (_text(CGROUP / f"memory.{name}").strip() for name in ("max", "current"))
    if limit.isdigit() and used.isdigit():
        # What files have left in the cache makes way.
        cached = re.search(r"^inactive_file (\d+)$", _text(CGROUP / "memory.stat"), re.MULTILINE)
        found.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
    return min(found, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
