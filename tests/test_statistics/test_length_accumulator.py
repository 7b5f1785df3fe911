"""Statistics by token length as they are added up: against numpy, and on values that are hard."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch

from neoscope.errors import CheckError
from neoscope.statistics.length_accumulator import LengthStatistics, accumulate_torch
from neoscope.statistics.length_cells import BINS, HALF, Cells, merge
from support.by_numpy import EDGES, assert_as_numpy

VOCABULARY = np.array([0, 1, 1, 2, 3, 5, 8, 64], np.uint16)  # lengths by token id; 0 is special
NEURONS = 700  # more than a block of the kernel, and no multiple of it


def some(seed: int, sequences: int = 4) -> tuple[torch.Tensor, npt.NDArray[np.uint16]]:
    """Values [sequence, position, neuron] and token lengths [sequence, position]."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((sequences, 16, NEURONS), np.float32) * 6
    return torch.from_numpy(values), random.choice(VOCABULARY, (sequences, 16))


def statistics_of(*batches: tuple[torch.Tensor, npt.NDArray[np.uint16]]) -> LengthStatistics:
    state = LengthStatistics(
        VOCABULARY, layers=["MLP_0"], neurons=NEURONS, device=torch.device("cpu")
    )
    for values, lengths in batches:
        state.add("MLP_0", values, lengths)
    return state


def same(one: Cells, other: Cells) -> bool:
    return one.dump() == other.dump()


def test_cells_are_what_numpy_counts_and_adds() -> None:
    batches = [some(seed) for seed in range(3)]
    cells = statistics_of(*batches).cells()
    lengths = np.unique(VOCABULARY[VOCABULARY > 0])
    values = np.concatenate([values.numpy() for values, _ in batches])
    token_lengths = np.concatenate([each for _, each in batches])
    arrays = {"length": lengths, **merge(lengths, [cells])}
    assert_as_numpy(arrays, values, token_lengths, layer=0)
    assert arrays["histogram"].sum() == (token_lengths > 0).sum() * NEURONS


def test_partitions_merge_to_what_one_would_have() -> None:
    parts = [some(seed) for seed in range(4)]
    lengths = np.unique(VOCABULARY[VOCABULARY > 0])
    merged = merge(lengths, [statistics_of(part).cells() for part in parts])
    values = np.concatenate([values.numpy() for values, _ in parts])
    token_lengths = np.concatenate([each for _, each in parts])
    assert_as_numpy({"length": lengths, **merged}, values, token_lengths, layer=0)


def test_where_the_text_is_divided_changes_no_bit() -> None:
    values, lengths = some(0, sequences=6)
    whole = statistics_of((values, lengths)).cells()
    parts = [(values[i : i + 2], lengths[i : i + 2]) for i in (0, 2, 4)]
    assert same(statistics_of(*parts).cells(), whole)

    begun = statistics_of(*parts[:1]).cells()
    again = statistics_of()
    again.restore(Cells.load(begun.dump()))
    for part in parts[1:]:
        again.add("MLP_0", *part)
    assert same(again.cells(), whole)


def test_a_value_is_never_on_the_wrong_side_of_an_edge() -> None:
    """Every edge as float32, the numbers next to it, and what no edge is near."""
    near = np.float32(EDGES)
    values = np.concatenate(
        [
            near,
            np.nextafter(near, np.float32(np.inf)),
            np.nextafter(near, np.float32(-np.inf)),
            np.float32([0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38]),
        ]
    )
    state = LengthStatistics(VOCABULARY, layers=["MLP_0"], neurons=1, device=torch.device("cpu"))
    rows = torch.from_numpy(values).reshape(1, -1, 1)
    state.add("MLP_0", rows, np.ones(rows.shape[:2], np.uint16))
    expected = np.zeros(BINS, np.int64)
    for value in values.tolist():
        place = math.floor(Fraction(value) * 50)  # exact
        expected[min(max(place, -HALF - 1), HALF) + HALF + 1] += 1
    np.testing.assert_array_equal(state.cells().histogram[0].sum(axis=0), expected)


def test_a_small_spread_around_a_large_mean_is_not_lost() -> None:
    """Plain sums of squares in float64 would keep two digits of it."""
    values = torch.full((8, 16, NEURONS), 10_000.0)
    values[:, ::2] += 2**-9
    lengths = np.ones((8, 16), np.uint16)
    merged = merge(np.array([1], np.uint16), [statistics_of((values, lengths)).cells()] * 3)
    spread = 3 * 8 * 15 * (7 / 15) * (8 / 15) * 2**-18
    np.testing.assert_allclose(merged["squared_deviation"][0, 0, 0], spread, rtol=1e-9)
    plain = (values.double() ** 2).sum() - values.double().sum() ** 2 / values.numel()
    expected = float(((values.double() - values.double().mean()) ** 2).sum())
    assert not math.isclose(float(plain), expected, rel_tol=1e-3)


def test_both_ways_of_adding_say_the_same() -> None:
    """The one for GPUs, run on a CPU, against the kernel."""
    values, lengths = some(5)
    cells = statistics_of((values, lengths)).cells()
    rows, flat = values.reshape(-1, NEURONS), lengths.reshape(-1)
    first = np.tile(np.arange(16) == 0, 4)
    tokens = np.flatnonzero(flat)
    index = np.array(
        [
            next(
                i
                for i in range(len(cells.tokens))
                if (cells.length[i], cells.first[i]) == (flat[token], first[token])
            )
            for token in tokens
        ]
    )
    pivot = torch.from_numpy(cells.pivot[0])
    total, squares = torch.zeros(pivot.shape).double(), torch.zeros(pivot.shape).double()
    histogram = torch.zeros((len(pivot), BINS), dtype=torch.int64)
    accumulate_torch(rows, tokens, index, pivot, total, squares, histogram)
    np.testing.assert_array_equal(histogram.numpy(), cells.histogram[0])
    np.testing.assert_allclose(total.numpy(), cells.total[0], rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(squares.numpy(), cells.squares[0], rtol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("token", [0, 7])
def test_a_value_that_is_not_finite_is_an_error(value: float, token: int) -> None:
    values, lengths = some(0)
    lengths[:] = 2
    values[1, token, 3] = value
    with pytest.raises(CheckError, match="MLP_0 has values that are not finite"):
        statistics_of((values, lengths))
