"""What sums by token, regressions and permutations cost, of a run that has arrays.

Processor seconds over all layers, and the peak memory of the process; one thread of BLAS is one core's
worth of seconds.

    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/token_cost.py OUTPUT
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

from neoscope.reading import by_token

T = TypeVar("T")


def main(url: str) -> None:
    spent: dict[str, float] = {}

    def timed(what: str, work: Callable[[], T]) -> T:
        began = time.process_time()
        found = work()
        spent[what] = spent.get(what, 0) + time.process_time() - began
        return found

    table = by_token.features(url)[["length", "log_frequency"]]
    layers = by_token.sums(url)
    while (sums := timed("sums", lambda: next(layers, None))) is not None:
        timed("regress", lambda sums=sums: by_token.regress(sums, table, errors="CR3"))
        timed("permute, 200 times", lambda sums=sums: by_token.permute(sums, table, times=200))
        cells, neurons = sums.total.shape
    for what, seconds in spent.items():
        print(f"{what:<20} {seconds:6.1f} CPU s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{cells:,} cells of {neurons:,} neurons a layer; peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main(sys.argv[1])
