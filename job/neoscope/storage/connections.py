"""How many bodies are on their way to and from a store at a time.

In: when each body went and how large it was. Out: a number of connections that follows the link. It does
not know what is sent, nor to whom.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

FIRST = 16
MOST = 32  # each way, and as many threads have those who ask for many bodies at a time
FASTER = 1.05  # what widening must bring, or it is taken back
HOLD = 8  # windows before it is tried again


class Climb:
    """The rule by which a limit follows the rate that it allows.

    It doubles, and again as long as each doubling makes the rate 1.05 times what it was before. Else it goes
    one step back, and tries again after eight windows. A time-out halves it, and it climbs anew.
    """

    def __init__(self) -> None:
        self.limit = FIRST
        self._narrower = 0  # the limit before the widening that is on trial, 0 where none is
        self._rate = 0.0  # at that limit
        self._hold = 0

    def measured(self, rate: float) -> None:
        """Say what bytes a second the limit has allowed over a window in which it was always reached."""
        if self._narrower and rate < FASTER * self._rate:
            self.limit, self._narrower, self._hold = self._narrower, 0, HOLD
        elif self._hold:
            self._hold -= 1
        elif self.limit < MOST:
            self._narrower, self._rate = self.limit, rate
            self.limit = min(MOST, 2 * self.limit)
        else:
            self._narrower = 0

    def halve(self) -> None:
        self.limit = max(1, self.limit // 2)
        self._narrower = self._hold = 0


class ConcurrencyLimit:
    """A limit that is entered for the time of one request, as many at a time as `Climb` says.

    The rate is measured over windows of twice as many bodies as connections, while more wait than may go.
    On a slow uplink many at once starve one another until all of them time out: a time-out halves the limit.
    """

    def __init__(self) -> None:
        self._climb = Climb()
        self._fixed = False
        self._taken = self._waiting = 0
        self._changed = threading.Condition()
        self._halved = -1.0
        self._begin_window(settling=0)

    @property
    def limit(self) -> int:
        return self._climb.limit

    def fix(self, count: int) -> None:
        """Keep to this many, whatever the link does."""
        self._climb.limit, self._fixed = count, True

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Wait until one more may go, and count it as long as the block lasts."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: self._taken < self.limit)
            self._waiting -= 1
            self._taken += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken -= 1
                self._changed.notify()

    def moved(self, size: int) -> None:
        """Say that a body of `size` bytes has arrived."""
        with self._changed:
            if self._settling:
                self._settling -= 1
                self._began = time.monotonic()
                return
            self._bodies += 1
            self._bytes += size
            self._reached += self._waiting > 0
            if self._bodies < 2 * self.limit:
                return
            before = self.limit
            if not self._fixed and self._reached >= 0.75 * self._bodies:
                self._climb.measured(self._bytes / max(1e-9, time.monotonic() - self._began))
                self._changed.notify_all()
            self._begin_window(settling=before if self.limit != before else 0)

    def timed_out(self, began: float) -> None:
        """Say that a request that began at `began` (time.monotonic) timed out. Of those that were on their
        way together only the first counts."""
        with self._changed:
            if not self._fixed and began > self._halved:
                self._halved = time.monotonic()
                self._climb.halve()
                self._begin_window(settling=0)

    def _begin_window(self, settling: int) -> None:
        """Measure anew, after `settling` bodies that still went under the limit before."""
        self._settling = settling
        self._bodies = self._bytes = self._reached = 0
        self._began = time.monotonic()
