"""The state of each neuron on a CPU, compiled by numba: passes over the values of some tokens.

In: values, and which tokens count. Out: sums, counts and extremes, added to in place. They are compiled
when this module is imported, for the dtypes below and no others. Every loop runs along the neurons,
with four tokens at a time where that saves loads and stores, and adds in the order of the tokens, so
the sums do not depend on how the tokens are divided.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from neoscope.statistics.compiling import compiled
from neoscope.statistics.neurons import BINS, BINS_PER_UNIT, HALF

TOKENS = 128  # to give at a time: few enough that the passes find them in the cache
# Whose histograms are added to at a time, so that what is not empty of them stays in the cache; their
# places must fit uint16.
NEURONS = 128


@numba.njit
def _powers(value, pivot, sum1, sum2, sum3, sum4):  # type: ignore[no-untyped-def]
    difference = np.float64(value) - pivot
    square = difference * difference
    return sum1 + difference, sum2 + square, sum3 + square * difference, sum4 + square * square


@compiled("void(f4[:,::1], i8[::1], f4[::1], f8[:,::1])")
def add_powers(
    rows: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    pivot: npt.NDArray[np.float32],
    powers: npt.NDArray[np.float64],
) -> None:
    """Add powers 1 to 4 of the differences of `rows[tokens]` [token, neuron] from `pivot` [neuron] to
    `powers` [power, neuron]. A value that is not finite leaves its sums not finite."""
    sum1, sum2, sum3, sum4 = powers[0], powers[1], powers[2], powers[3]
    whole = len(tokens) // 4 * 4
    for index in range(0, whole, 4):
        row0, row1 = rows[tokens[index]], rows[tokens[index + 1]]
        row2, row3 = rows[tokens[index + 2]], rows[tokens[index + 3]]
        for n in range(rows.shape[1]):
            near, a, b, c, d = np.float64(pivot[n]), sum1[n], sum2[n], sum3[n], sum4[n]
            a, b, c, d = _powers(row0[n], near, a, b, c, d)
            a, b, c, d = _powers(row1[n], near, a, b, c, d)
            a, b, c, d = _powers(row2[n], near, a, b, c, d)
            sum1[n], sum2[n], sum3[n], sum4[n] = _powers(row3[n], near, a, b, c, d)
    for index in range(whole, len(tokens)):
        row = rows[tokens[index]]
        for n in range(rows.shape[1]):
            near, a, b, c, d = np.float64(pivot[n]), sum1[n], sum2[n], sum3[n], sum4[n]
            sum1[n], sum2[n], sum3[n], sum4[n] = _powers(row[n], near, a, b, c, d)


@numba.njit
def _further(value, row, high, high_row, low, low_row):  # type: ignore[no-untyped-def]
    high_row = row if value > high else high_row
    high = value if value > high else high
    low_row = row if value < low else low_row
    low = value if value < low else low
    return high, high_row, low, low_row


@compiled("void(f4[:,::1], i8[::1], f4[::1], i4[::1], f4[::1], i4[::1])")
def find_extremes(
    rows: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    high: npt.NDArray[np.float32],
    high_row: npt.NDArray[np.int32],
    low: npt.NDArray[np.float32],
    low_row: npt.NDArray[np.int32],
) -> None:
    """Take `rows[tokens]` [token, neuron] into the extremes [neuron] and the rows that they are in, the
    first of equal ones."""
    whole = len(tokens) // 4 * 4
    for index in range(0, whole, 4):
        at0, at1 = np.int32(tokens[index]), np.int32(tokens[index + 1])
        at2, at3 = np.int32(tokens[index + 2]), np.int32(tokens[index + 3])
        row0, row1, row2, row3 = rows[at0], rows[at1], rows[at2], rows[at3]
        for n in range(rows.shape[1]):
            a, b, c, d = high[n], high_row[n], low[n], low_row[n]
            a, b, c, d = _further(row0[n], at0, a, b, c, d)
            a, b, c, d = _further(row1[n], at1, a, b, c, d)
            a, b, c, d = _further(row2[n], at2, a, b, c, d)
            high[n], high_row[n], low[n], low_row[n] = _further(row3[n], at3, a, b, c, d)
    for index in range(whole, len(tokens)):
        at = np.int32(tokens[index])
        row = rows[at]
        for n in range(rows.shape[1]):
            a, b, c, d = high[n], high_row[n], low[n], low_row[n]
            high[n], high_row[n], low[n], low_row[n] = _further(row[n], at, a, b, c, d)


@compiled("void(f4[:,::1], i8[::1], u4[::1], u4[::1])")
def count(
    rows: npt.NDArray[np.float32],
    tokens: npt.NDArray[np.int64],
    firing: npt.NDArray[np.uint32],
    histogram: npt.NDArray[np.uint32],
) -> None:
    """Count those of `rows[tokens]` [token, neuron] above 0 in `firing` [neuron], and all of them in
    `histogram` [neuron x bin]."""
    neurons = rows.shape[1]
    places = np.empty((len(tokens), neurons), np.uint16)  # in the histograms of NEURONS neurons
    zero = np.empty(neurons, np.int32)
    for n in range(neurons):
        zero[n] = n % NEURONS * BINS + HALF + 1
    for index in range(len(tokens)):
        row, place = rows[tokens[index]], places[index]
        for n in range(neurons):
            firing[n] += np.uint32(row[n] > 0)
            # A product with a power of two is exact: no value is on the wrong side of an edge.
            bin_ = np.floor(row[n] * np.float32(BINS_PER_UNIT))
            bin_ = bin_ if bin_ < np.float32(HALF) else np.float32(HALF)
            bin_ = bin_ if bin_ >= np.float32(-HALF) else np.float32(-HALF - 1)
            place[n] = np.uint16(zero[n] + np.int32(bin_))
    for block in range(0, neurons, NEURONS):
        counts = histogram[block * BINS :]
        for index in range(len(tokens)):
            place = places[index, block : block + NEURONS]
            for n in range(len(place)):
                counts[place[n]] += np.uint32(1)


@compiled("void(f4[:,::1], i4[:,::1], i8, f4, f4[:,::1], i8[:,::1])")
def keep_best(
    extremes: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int32],
    first: int,
    sign: float,
    value: npt.NDArray[np.float32],
    token: npt.NDArray[np.int64],
) -> None:
    """Take extremes [sequence, neuron] and their rows into the best so far, `value` and `token` [neuron,
    context], which stand at earlier tokens. Row 0 is token `first`; the best are the highest where
    `sign` is 1, the lowest where it is -1."""
    last = value.shape[1] - 1
    for sequence in range(extremes.shape[0]):
        for neuron in range(extremes.shape[1]):
            new = extremes[sequence, neuron]
            best = value[neuron]
            if sign * new > sign * best[last]:
                place = last
                while place and sign * new > sign * best[place - 1]:
                    best[place] = best[place - 1]
                    token[neuron, place] = token[neuron, place - 1]
                    place -= 1
                best[place] = new
                token[neuron, place] = first + rows[sequence, neuron]
