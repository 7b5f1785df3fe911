"""The state of each neuron on a GPU, compiled by Triton: two reads of a layer's values.

In: values on the GPU, and which tokens count. Out: sums and counts, added to in place, and the extremes of
each sequence. They do what `neuron_kernels` does on a CPU, to the last bit: a sum is of one thread, in the
order of the tokens, and a product is rounded before it is added.
"""

from __future__ import annotations

import triton
import triton.language as tl


# No special case is compiled of a number that changes from batch to batch, or is 1 at times.
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

    A thread has a neuron and goes through the tokens one after another; the AT_A_TIME loads of a turn are
    issued together, before its sums.
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


@triton.jit(do_not_specialize=["positions", "start", "stop", "first"])
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
    NOWHERE: tl.constexpr,  # above all positions
):
    """Count values above 0 and values by bin, and find extremes; the grid is [sequence, block of neurons]."""
    sequence = tl.program_id(0)
    neuron = tl.program_id(1) * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    inside = neuron < neurons
    # Of each place in the block, until all positions were seen: then there is one reduction of each.
    fired = tl.full([BLOCK_POSITIONS, BLOCK_NEURONS], 0, tl.int32)
    highest = tl.full([BLOCK_POSITIONS, BLOCK_NEURONS], float("-inf"), tl.float32)
    lowest = tl.full([BLOCK_POSITIONS, BLOCK_NEURONS], float("inf"), tl.float32)
    highest_at = tl.full([BLOCK_POSITIONS, BLOCK_NEURONS], NOWHERE, tl.int32)
    lowest_at = tl.full([BLOCK_POSITIONS, BLOCK_NEURONS], NOWHERE, tl.int32)
    one = tl.full([BLOCK_POSITIONS, BLOCK_NEURONS], 1, tl.int32)
    for begin in range(start, stop, BLOCK_POSITIONS):
        position = begin + tl.arange(0, BLOCK_POSITIONS)
        row = sequence * positions + position
        here = tl.load(counts + row, mask=position < stop, other=0) != 0
        both = here[:, None] & inside[None, :]
        place = row.to(tl.int64)[:, None] * neurons + neuron[None, :]
        block = tl.load(values + place, mask=both, other=0).to(tl.float32)
        fired += (block > 0).to(tl.int32)
        # A product with a power of two is exact: no value is on the wrong side of an edge. tl.floor would
        # take a subnormal number below 0 for 0.
        scaled = block * BINS_PER_UNIT
        scaled = tl.where(scaled < HALF, scaled, HALF)
        scaled = tl.where(scaled >= -HALF, scaled, -HALF - 1)
        bins = scaled.to(tl.int32)  # towards 0
        bins -= (scaled < bins.to(tl.float32)).to(tl.int32)
        # Whole numbers: in which order they are added changes nothing.
        at = histogram + neuron[None, :] * BINS + bins + (HALF + 1)
        tl.atomic_add(at, one, mask=both, sem="relaxed")
        higher, lower = both & (block > highest), both & (block < lowest)
        highest = tl.where(higher, block, highest)
        highest_at = tl.where(higher, position[:, None], highest_at)
        lowest = tl.where(lower, block, lowest)
        lowest_at = tl.where(lower, position[:, None], lowest_at)
    tl.atomic_add(firing + neuron, tl.sum(fired, axis=0), mask=inside, sem="relaxed")
    # The first position of the extreme, and what is there: of 0.0 and -0.0, which are equal, the first.
    most, least = tl.max(highest, axis=0), tl.min(lowest, axis=0)
    most_at = tl.min(tl.where(highest == most[None, :], highest_at, NOWHERE), axis=0)
    least_at = tl.min(tl.where(lowest == least[None, :], lowest_at, NOWHERE), axis=0)
    begins = sequence.to(tl.int64) * positions
    high_there, low_there = inside & (most_at != NOWHERE), inside & (least_at != NOWHERE)
    most_row, least_row = begins + most_at, begins + least_at
    most = tl.load(values + most_row * neurons + neuron, mask=high_there, other=float("-inf"))
    least = tl.load(values + least_row * neurons + neuron, mask=low_there, other=float("inf"))
    out = neuron * tl.num_programs(0) + sequence
    tl.store(high + out, most.to(tl.float32), mask=inside)
    tl.store(high_token + out, tl.where(high_there, first + most_row, -1), mask=inside)
    tl.store(low + out, least.to(tl.float32), mask=inside)
    tl.store(low_token + out, tl.where(low_there, first + least_row, -1), mask=inside)
