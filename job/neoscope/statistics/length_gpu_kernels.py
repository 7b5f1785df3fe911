"""The pass over values that must cost next to nothing on a GPU, compiled by Triton.

In: values on the GPU, their tokens sorted by cell. Out: sums and histograms, added to in place. It does
in one read what `length_kernels.accumulate` does on a CPU, to the last bit: each sum is of one thread, in
the order of the tokens, and a product is rounded before it is added.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def accumulate(
    values,  # [token, neuron], any floating dtype, contiguous
    order,  # int32 [token]: the tokens of the first cell in their order, then of the next
    starts,  # int32 [cell here + 1]: where each cell begins in `order`
    cells,  # int32 [cell here]: the row of the state below
    fresh,  # int32 [cell here]: whether nothing has been added to the cell yet
    pivot,  # float32 [cell, neuron]
    total,  # float64 [cell, neuron]
    squares,  # float64 [cell, neuron]
    histogram,  # int64 [cell, bin]
    neurons,
    BINS: tl.constexpr,
    HALF: tl.constexpr,
    BINS_PER_UNIT: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    BLOCK_NEURONS: tl.constexpr,
    AT_A_TIME: tl.constexpr,
    PADDED_BINS: tl.constexpr,
):
    """Add each cell's tokens to a layer's state; the grid is [cell here, block of neurons]."""
    here = tl.program_id(0)
    start, stop = tl.load(starts + here), tl.load(starts + here + 1)
    cell = tl.load(cells + here).to(tl.int64)
    neuron = tl.program_id(1) * BLOCK_NEURONS + tl.arange(0, BLOCK_NEURONS)
    inside = neuron < neurons
    place = cell * neurons + neuron
    first = tl.load(values + tl.load(order + start).to(tl.int64) * neurons + neuron, mask=inside)
    near = tl.load(pivot + place, mask=inside, other=0)
    near = tl.where(tl.load(fresh + here) != 0, first.to(tl.float32), near)
    tl.store(pivot + place, near, mask=inside)
    sums = tl.load(total + place, mask=inside, other=0)
    square_sums = tl.load(squares + place, mask=inside, other=0)
    counts = tl.full([PADDED_BINS], 0, tl.int32)
    for begin in range(start, stop, BLOCK_TOKENS):
        end = tl.minimum(begin + BLOCK_TOKENS, stop)
        at = begin + tl.arange(0, BLOCK_TOKENS)
        token = tl.load(order + at, mask=at < end, other=0).to(tl.int64)
        both = (at < end)[:, None] & inside[None, :]
        block = tl.load(values + token[:, None] * neurons + neuron[None, :], mask=both, other=0)
        # Exact in float64, so a value is never on the wrong side of an edge.
        bins = tl.floor(block.to(tl.float64) * BINS_PER_UNIT)
        bins = tl.where(bins < HALF, bins, HALF)
        bins = tl.where(bins >= -HALF, bins, -HALF - 1)
        bins = bins.to(tl.int32) + (HALF + 1)
        counts += tl.histogram(
            bins.reshape([BLOCK_TOKENS * BLOCK_NEURONS]),
            PADDED_BINS,
            mask=both.reshape([BLOCK_TOKENS * BLOCK_NEURONS]),
        )
        for turn in range(begin, end, AT_A_TIME):  # once more, from the cache: one after another
            for each in tl.static_range(AT_A_TIME):
                row = tl.load(order + tl.minimum(turn + each, end - 1)).to(tl.int64)
                value = tl.load(values + row * neurons + neuron, mask=inside, other=0)
                difference = value.to(tl.float64) - near.to(tl.float64)
                difference = tl.where(turn + each < end, difference, 0.0)
                sums += difference
                square_sums += difference * difference
    tl.store(total + place, sums, mask=inside)
    tl.store(squares + place, square_sums, mask=inside)
    bin_ = tl.arange(0, PADDED_BINS)
    # Whole numbers: in which order the blocks of neurons add theirs changes nothing.
    tl.atomic_add(
        histogram + cell * BINS + bin_,
        counts.to(tl.int64),
        mask=(bin_ < BINS) & (counts > 0),
        sem="relaxed",
    )
