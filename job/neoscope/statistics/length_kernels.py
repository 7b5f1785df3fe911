"""Passes over values that must cost next to nothing on a CPU, compiled by numba.

In: values, and the cells of their tokens. Out: sums, extremes and histograms, added to in place. They are
compiled when this module is imported, for the dtypes below and no others. Every loop runs along the
neurons and adds to one sum a neuron, so that it is vectorized with no sum in another order.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from neoscope.statistics.compiling import compiled
from neoscope.statistics.length_cells import BINS_PER_UNIT, HALF


@compiled("void(f4[:,::1], i8[::1], i8[::1], f4[:,::1], f8[:,::1], f8[:,::1], i8[:,::1])")
def accumulate(
    rows: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    cells: npt.NDArray[np.int64],
    pivot: npt.NDArray[np.float32],
    total: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    histogram: npt.NDArray[np.int64],
) -> None:
    """Add `rows[tokens]` [token, neuron] to the cells [token] they belong to.

    `pivot`, `total` and `squares` are [cell, neuron], `histogram` is [cell, bin]. A value that is not
    finite leaves its square not finite.
    """
    neurons = rows.shape[1]
    bins = np.empty(neurons, np.int32)
    for index in range(len(tokens)):
        row = rows[tokens[index]]
        cell = cells[index]
        near, sums, square_sums = pivot[cell], total[cell], squares[cell]
        for neuron in range(neurons):
            value = np.float64(row[neuron])
            difference = value - np.float64(near[neuron])
            sums[neuron] += difference
            square_sums[neuron] += difference * difference
            # Exact in float64, so a value is never on the wrong side of an edge.
            bin_ = np.floor(value * BINS_PER_UNIT)
            bin_ = bin_ if bin_ < HALF else np.float64(HALF)
            bin_ = bin_ if bin_ >= -HALF else np.float64(-HALF - 1)
            bins[neuron] = np.int32(bin_) + (HALF + 1)
        counts = histogram[cell]
        for neuron in range(neurons):
            counts[bins[neuron]] += 1


@compiled("void(f4[:,::1], f4[::1], f4[::1], f8[::1], f8[::1])")
def summarize(
    rows: npt.NDArray[np.float32],
    low: npt.NDArray[np.float32],
    high: npt.NDArray[np.float32],
    total: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
) -> None:
    """Extremes and sums of each column of `rows` [row, column]; the rest is [column].

    Of a column with a value that is not finite, `squares` is not finite.
    """
    for row in range(rows.shape[0]):
        for column in range(rows.shape[1]):
            value = rows[row, column]
            low[column] = value if value < low[column] else low[column]
            high[column] = value if value > high[column] else high[column]
            total[column] += np.float64(value)
            squares[column] += np.float64(value) * np.float64(value)
