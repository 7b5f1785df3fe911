"""What the benchmarks share: rounds in turn, and tables with ratios against a named row.

These machines are noisy: what is compared runs in turn in one process or one run, and a ratio is the
median of the rounds' ratios, with the least and the greatest.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def machine() -> str:
    """The machine in one line."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        f"{cpu}, {os.cpu_count()} cores, {capability}, {gpu}; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )


def in_turn(
    rows: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each row in each round; the rows run in turn, round after round."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + warm_up):
        for name, work in rows.items():
            print(f"\rround {number}: {name:<60}", end="", file=sys.stderr, flush=True)
            began = time.perf_counter()
            result = work()
            spent = time.perf_counter() - began
            del result
            if number or not warm_up:
                seconds[name].append(spent)
    print("\r" + " " * 80 + "\r", end="", file=sys.stderr)
    return seconds


def table(title: str, values: Mapping[str, list[float]], against: str, unit: str = "s") -> str:
    """Median, least and greatest of each row, and its ratio to the row `against`, round by round."""
    lines = [
        title,
        machine(),
        "",
        f"{'':<52}{'median ' + unit:>12}{'least':>9}{'greatest':>10}{'ratio':>8}   least..greatest",
    ]
    for name, row in values.items():
        ratios = [mine / theirs for mine, theirs in zip(row, values[against], strict=True)]
        lines.append(
            f"{name:<52}{statistics.median(row):>12.3f}{min(row):>9.3f}{max(row):>10.3f}"
            f"{statistics.median(ratios):>8.2f}   {min(ratios):.2f}..{max(ratios):.2f}"
        )
    lines.append(f"ratio: against {against!r}, median of {len(values[against])} rounds")
    return "\n".join(lines)
