"""How many bodies go at a time: as many as make it faster, half after a time-out, and more again."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from neoscope.storage.connections import FIRST, HOLD, MOST, Climb, ConcurrencyLimit


def climb(climb: Climb, useful: int, windows: int) -> list[int]:
    """The limits over windows of a link whose rate grows up to so many connections."""
    limits = []
    for _ in range(windows):
        climb.measured(min(climb.limit, useful) * 80e6)
        limits.append(climb.limit)
    return limits


@pytest.mark.parametrize("useful", [1, 5, 8, 9, 12, 20, 32, 100])
def test_the_limit_ends_where_more_bring_nothing(useful: int) -> None:
    limits = climb(Climb(), useful, 60)[20:]
    assert max(limits) <= MOST  # one step beyond what is of use is tried every now and then
    ((settled, _),) = Counter(limits).most_common(1)
    assert settled == (FIRST if useful <= FIRST else MOST)


def test_a_link_that_grows_later_is_followed() -> None:
    at = Climb()
    assert climb(at, FIRST, 20)[-1] == FIRST
    assert max(climb(at, 24, 3 * HOLD)) >= 24


def test_time_outs_narrow_to_one_and_the_limit_widens_again() -> None:
    at = Climb()
    for _ in range(10):
        at.halve()
    assert at.limit == 1
    assert climb(at, 16, 40)[-1] >= 16


def test_no_more_go_than_the_limit_says() -> None:
    limit, lock, now, most = ConcurrencyLimit(), threading.Lock(), 0, 0
    limit.fix(3)

    def go(_: int) -> None:
        nonlocal now, most
        with limit.slot():
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.001)
            with lock:
                now -= 1
        limit.moved(1)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(go, range(200)))
    assert most == 3
    assert limit.limit == 3


def test_of_bodies_that_time_out_together_one_counts() -> None:
    limit = ConcurrencyLimit()
    began = time.monotonic()
    for _ in range(FIRST):
        limit.timed_out(began)
    assert limit.limit == FIRST // 2
    time.sleep(0.001)
    limit.timed_out(time.monotonic())
    assert limit.limit == FIRST // 4


def test_a_fixed_number_stays() -> None:
    limit = ConcurrencyLimit()
    limit.fix(5)
    limit.timed_out(time.monotonic())
    assert limit.limit == 5


def test_a_limit_that_nobody_waits_for_stays() -> None:
    """What is measured then is those who ask, not the link."""
    limit = ConcurrencyLimit()
    for _ in range(100):
        with limit.slot():
            pass
        limit.moved(1)
    assert limit.limit == FIRST
