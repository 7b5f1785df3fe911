"""Two threads beside the one that works: one makes things before they are asked for, one ends them in order.

In: work. Out: what it gives, and what it raises, in the order in which it was asked for. It does not know
batches, nor the store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

T = TypeVar("T")


def ahead(make: Callable[[], T], count: int, most: int) -> Generator[T, None, None]:
    """What `make` gives, `count` times: made on one other thread, up to `most` before they are asked for.

    What it raises comes when it is that one's turn: all that was made before is given first.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")
    made: deque[Future[T]] = deque()
    try:
        for given in range(count):
            while len(made) < min(most, count - given):
                made.append(pool.submit(make))
            yield made.popleft().result()
    finally:
        # A source that does not answer must not hold up the end.
        pool.shutdown(wait=False, cancel_futures=True)


class InOrder:
    """One thread that does one thing after another, as they were given. After a failure it does no more.

    As a context it ends when all is done. Where the block raises an Exception, what was given before is done
    all the same, since it came first; and what fails of that is raised instead. Ctrl-C waits for nothing.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="in-order")
        self._failed: BaseException | None = None

    def do(self, work: Callable[[], T]) -> Future[T]:
        """Do this next. Its future raises what came before it raised."""
        return self._pool.submit(self._do, work)

    def check(self) -> None:
        """Raise what has failed, if anything has."""
        if self._failed is not None:
            raise self._failed

    def _do(self, work: Callable[[], T]) -> T:
        self.check()
        try:
            return work()
        except BaseException as error:
            self._failed = error
            raise

    def __enter__(self) -> InOrder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        waits = kind is None or issubclass(kind, Exception)
        self._pool.shutdown(wait=waits, cancel_futures=not waits)
        if waits and error is not self._failed:
            self.check()
