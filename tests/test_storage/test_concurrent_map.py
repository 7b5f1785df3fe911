"""Many requests at a time, in order, and no more of what they give in memory than is said."""

from __future__ import annotations

import itertools
import queue
import threading

import pytest

from neoscope.storage.store import concurrent_map

SECONDS = 60
MOST = 4


def test_as_many_are_under_way_as_may_be_and_come_in_order() -> None:
    """Each waits until so many have begun."""
    together = threading.Barrier(MOST)

    def work(item: int) -> int:
        together.wait(SECONDS)
        return item

    assert list(concurrent_map(work, range(3 * MOST), MOST)) == list(range(3 * MOST))


def test_what_is_done_waits_to_be_taken_before_more_is_begun() -> None:
    done: queue.Queue[int] = queue.Queue()
    found = concurrent_map(done.put, itertools.count(), MOST)
    next(found)
    assert sorted(done.get(timeout=SECONDS) for _ in range(2 * MOST)) == list(range(2 * MOST))
    with pytest.raises(queue.Empty):
        done.get(timeout=0.5)
    found.close()


def test_a_failure_comes_in_its_turn_and_ends_it() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("the third")
        return item

    found = concurrent_map(work, itertools.count(), MOST)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(ValueError, match="the third"):
        next(found)
