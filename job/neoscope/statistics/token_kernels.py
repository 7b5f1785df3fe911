"""Sums by token on a CPU, compiled by numba: one pass over the values of some tokens.

In: values, and the cell of each token. Out: sums, added to in place. It is compiled when this module is
imported, for float32 and nothing else. The loop runs along the neurons and adds in the order of the tokens,
so the sums do not depend on how the tokens are divided, nor on how the neurons are among threads: it holds
no lock of Python's. numba's own threads would not do: they stop a process that was forked, or that calls
from two threads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from neoscope.statistics.compiling import compiled


@compiled("void(f4[:,::1], i8[::1], i8[::1], f8[:,::1], f8[:,::1], f8[:,::1], i8, i8)")
def add_rows(
    rows: npt.NDArray[np.float32],
    cells: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    pivot: npt.NDArray[np.float64],
    total: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    start: int,
    stop: int,
) -> None:
    """As `token_sums.add_rows`, with the same bits."""
    with_squares = squares.shape[1] > 0
    for index in range(len(rows)):
        row, near, sums = rows[index], pivot[places[index]], total[cells[index]]
        if with_squares:
            of_squares = squares[places[index]]
            for n in range(start, stop):
                away = np.float64(row[n]) - near[n]
                sums[n] += away
                of_squares[n] += away * away
        else:
            for n in range(start, stop):
                sums[n] += np.float64(row[n]) - near[n]
