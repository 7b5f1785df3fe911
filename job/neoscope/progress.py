"""What a run says while it works: a bar on a terminal, plain lines elsewhere, on standard error.

In: steps and counts. Out: text for a person. It does not know what the steps do.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


LINE_EVERY = 10.0  # seconds between two progress lines where there is no terminal


class Progress:
    """`say` tells of a step; `begin`, `advance` and `end` count within one."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: tqdm[Any] | None = None
        self._total = self._done = 0
        self._unit = ""
        self._began = self._told = 0.0

    def say(self, line: str) -> None:
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(f"neoscope: {line}", file=sys.stderr, flush=True)

    def warn(self, line: str) -> None:
        print(f"neoscope: warning: {line}", file=sys.stderr, flush=True)

    def begin(self, what: str, total: int, unit: str) -> None:
        """Count to `total` from here on; the unit `B` is bytes."""
        self._total, self._done, self._unit = total, 0, unit
        self._began = self._told = time.monotonic()
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm

            scaled = {"unit": "B", "unit_scale": True} if unit == "B" else {"unit": f" {unit}"}
            self._bar = tqdm(total=total, desc=what, file=sys.stderr, leave=False, **scaled)

    def advance(self, what: str, amount: int = 1) -> None:
        self._done += amount
        if self._bar is not None:
            self._bar.set_description(what, refresh=False)
            self._bar.update(amount)
        elif time.monotonic() - self._told > LINE_EVERY:
            self._told = time.monotonic()
            self.say(f"{what}: {self._so_far(self._told - self._began)}")

    def _so_far(self, seconds: float) -> str:
        """What is done, and for bytes the rate, with the time that is left at it."""
        if self._unit != "B":
            return f"{self._done} of {self._total}"
        left = seconds * (self._total / self._done - 1)
        return (
            f"{self._done / 1e6:,.0f} of {self._total / 1e6:,.0f} MB, "
            f"{self._done / seconds / 1e6:,.0f} MB/s, {left:,.0f} s left"
        )

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
