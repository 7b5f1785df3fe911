"""The state of each neuron on a GPU, compiled by Triton: two reads of a layer's values.

In: values on the GPU, and which tokens count. Out: sums and counts, added to in place, and the extremes of
each sequence. They do what `neuron_kernels` does on a CPU, to the last bit: a sum is of one thread, in the
order of the tokens, and a product is rounded before it is added.
"""

from __future__ import annotations

import triton
import triton.language as tl


# Of numbers that change from batch to batch no special case is compiled.
@triton.jit(do_not_specialize=["count"])
def add_powers(
    values,  # [token, neuron], any floating dtype, contiguous
    tokens,  # int32 [count]: the tokens that count, ascending
    count,
    pivot,  # float32 [neuron]
    powers,  # float64 [power, neuron]
    neurons,
    AT_A_TIME: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
):
    """Add powers 1 to 4 of the differences from the pivot; the grid is [block of neurons].

    A thread has a neuron and goes through the tokens one after another. What hides the memory's latency is
    that none of the AT_A_TIME loads of a turn waits for a sum.
    """
    neuron = tl.program_id(0) * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    inside = neuron < neurons
    near = tl.load(pivot + neuron, mask=inside, other=0).to(tl.float64)
    sum1 = tl.load(powers + neuron, mask=inside, other=0)
    sum2 = tl.load(powers + neurons + neuron, mask=inside, other=0)
    sum3 = tl.load(powers + 2 * neurons + neuron, mask=inside, other=0)
    sum4 = tl.load(powers + 3 * neurons + neuron, mask=inside, other=0)
    for begin in range(0, count, AT_A_TIME):
        for each in tl.static_range(AT_A_TIME):
            at = begin + each
            token = tl.load(tokens + tl.minimum(at, count - 1)).to(tl.int64)
            value = tl.load(values + token * neurons + neuron, mask=inside, other=0)
            difference = tl.where(at < count, value.to(tl.float64) - near, 0.0)
            square = difference * difference
            sum1 += difference
            sum2 += square
            sum3 += square * difference
            sum4 += square * square
    tl.store(powers + neuron, sum1, mask=inside)
    tl.store(powers + neurons + neuron, sum2, mask=inside)
    tl.store(powers + 2 * neurons + neuron, sum3, mask=inside)
    tl.store(powers + 3 * neurons + neuron, sum4, mask=inside)


@triton.jit(do_not_specialize=["first"])
def count_and_compare(
    values,  # [sequence, position, neuron], any floating dtype, contiguous
    counts,  # uint8 [sequence, position]: whether the token counts
    positions,
    start,  # the positions that are looked at
    stop,
    firing,  # int32 [neuron], of which all bits are the count
    histogram,  # int32 [neuron, bin], the same
    high,  # float32 [neuron, sequence]: the highest value of each sequence, -inf where no token counts
    high_token,  # int64 [neuron, sequence]: its token, the first of equal ones
    low,  # float32 [neuron, sequence]
    low_token,  # int64 [neuron, sequence]
    neurons,
    first,  # the place of the first token in the run
    BINS: tl.constexpr,
    HALF: tl.constexpr,
    BINS_PER_UNIT: tl.constexpr,
    BLOCK_POSITIONS: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
):
    """Count values above 0 and values by bin, and find extremes; the grid is [sequence, block of neurons]."""
    sequence = tl.program_id(0)
    neuron = tl.program_id(1) * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    inside = neuron < neurons
    fired = tl.full([BLOCK_NEURONS], 0, tl.int32)
    highest = tl.full([BLOCK_NEURONS], float("-inf"), tl.float32)
    lowest = tl.full([BLOCK_NEURONS], float("inf"), tl.float32)
    highest_at = tl.full([BLOCK_NEURONS], -1, tl.int32)
    lowest_at = tl.full([BLOCK_NEURONS], -1, tl.int32)
    for begin in range(start, stop, BLOCK_POSITIONS):
        position = begin + tl.arange(0, BLOCK_POSITIONS)
        row = sequence * positions + position
        here = tl.load(counts + row, mask=position < stop, other=0) != 0
        both = here[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * neurons + neuron[None, :]
        block = tl.load(values + place, mask=both, other=0).to(tl.float32)
        fired += tl.sum((block > 0).to(tl.int32), axis=0)
        # A product with a power of two is exact: no value is on the wrong side of an edge.
        bins = tl.floor(block * BINS_PER_UNIT)
        bins = tl.where(bins < HALF, bins, HALF)
        bins = tl.where(bins >= -HALF, bins, -HALF - 1)
        bin_ = bins.to(tl.int32) + (HALF + 1)
        one = tl.full([BLOCK_POSITIONS, BLOCK_NEURONS], 1, tl.int32)
        # Whole numbers: in which order they are added changes nothing.
        tl.atomic_add(histogram + neuron[None, :] * BINS + bin_, one, mask=both, sem="relaxed")
        most, at = tl.max(tl.where(both, block, float("-inf")), axis=0, return_indices=True)
        highest_at = tl.where(most > highest, begin + at, highest_at)
        highest = tl.where(most > highest, most, highest)
        least, at = tl.min(tl.where(both, block, float("inf")), axis=0, return_indices=True)
        lowest_at = tl.where(least < lowest, begin + at, lowest_at)
        lowest = tl.where(least < lowest, least, lowest)
    tl.atomic_add(firing + neuron, fired, mask=inside, sem="relaxed")
    out = neuron * tl.num_programs(0) + sequence
    token = first + sequence.to(tl.int64) * positions
    tl.store(high + out, highest, mask=inside)
    tl.store(high_token + out, tl.where(highest_at < 0, -1, token + highest_at), mask=inside)
    tl.store(low + out, lowest, mask=inside)
    tl.store(low_token + out, tl.where(lowest_at < 0, -1, token + lowest_at), mask=inside)
