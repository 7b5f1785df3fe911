"""Sums by token: against plain numpy, however they are divided, merged or stored."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from neoscope.errors import CheckError
from neoscope.statistics.token_sums import TokenAccumulator, TokenSums, through_linear

ROWS, NEURONS = 600, 7
random = np.random.default_rng(0)
TOKEN = random.integers(0, 40, ROWS) ** 2
FIRST = np.arange(ROWS) % 20 == 0
# A small spread around a large mean, first positions far from it: sums of plain squares would lose it.
VALUES = (random.normal(size=(ROWS, NEURONS)) * 1e-2 + 300 - 200 * FIRST[:, None]).astype("f4")


def summed(rows: slice = slice(None), *, products: bool = False) -> TokenSums:
    accumulator = TokenAccumulator(3, products=products)
    accumulator.add(VALUES[rows], TOKEN[rows], FIRST[rows])
    return accumulator.sums()


def assert_as_numpy(sums: TokenSums, values: npt.NDArray[Any] = VALUES) -> None:
    """Counts exactly, sums and squares about the mean as from the values themselves."""
    cells = sorted(set(zip(TOKEN.tolist(), FIRST.tolist(), strict=True)))
    assert list(zip(sums.token.tolist(), sums.first.tolist(), strict=True)) == cells
    wide = values.astype(np.float64)
    for cell, (token, first) in enumerate(cells):
        chosen = wide[(token == TOKEN) & (first == FIRST)]
        assert sums.count[cell] == len(chosen)
        found = sums.total[cell] + sums.count[cell] * sums.pivot[int(first)]
        np.testing.assert_allclose(found, chosen.sum(axis=0), rtol=1e-13)
    for place in (False, True):
        some = sums.first == place
        step = sums.total[some].sum(axis=0) / sums.count[some].sum()
        squares = sums.squares[int(place)] - sums.count[some].sum() * step**2
        np.testing.assert_allclose(
            squares, wide[place == FIRST].var(axis=0) * (place == FIRST).sum(), rtol=1e-9
        )


def assert_same(one: TokenSums, other: TokenSums) -> None:
    """To the last bit."""
    for field in dataclasses.fields(TokenSums):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_they_are_numpys() -> None:
    assert_as_numpy(summed())


def test_neither_batches_nor_a_restart_change_a_bit() -> None:
    accumulator = TokenAccumulator(3)
    accumulator.add(VALUES[:0], TOKEN[:0], FIRST[:0])
    accumulator.add(VALUES[:77], TOKEN[:77], FIRST[:77])
    again = TokenAccumulator(3)
    again.restore(TokenSums.load(accumulator.sums().dump()))
    for start in range(77, ROWS, 100):
        some = slice(start, start + 100)
        again.add(VALUES[some], TOKEN[some], FIRST[some])
    assert_same(again.sums(), summed())


def test_what_was_given_is_not_changed_by_what_comes_later() -> None:
    accumulator = TokenAccumulator(3)
    accumulator.add(VALUES[:77], TOKEN[:77], FIRST[:77])
    before = accumulator.sums()
    accumulator.add(VALUES[77:], TOKEN[77:], FIRST[77:])
    assert_same(before, summed(slice(77)))


@pytest.mark.parametrize("products", [False, True])
def test_they_merge_in_any_order(products: bool) -> None:
    parts = [summed(slice(a, b), products=products) for a, b in ((0, 90), (90, 400), (400, ROWS))]
    # One of them has a pivot far away: first positions alone.
    alone = TokenAccumulator(3, products=products)
    alone.add(VALUES[FIRST], TOKEN[FIRST], FIRST[FIRST])
    rest = TokenAccumulator(3, products=products)
    rest.add(VALUES[~FIRST], TOKEN[~FIRST], FIRST[~FIRST])
    for some in (parts, [alone.sums(), rest.sums()]):
        for order in itertools.permutations(some):
            merged = order[0]
            for part in order[1:]:
                merged = merged + part
            diagonal = np.diagonal(merged.squares, axis1=1, axis2=2) if products else merged.squares
            assert_as_numpy(dataclasses.replace(merged, squares=diagonal))


def test_sums_of_other_layers_are_not_merged() -> None:
    with pytest.raises(ValueError, match="layer 3 .* layer 4"):
        summed() + dataclasses.replace(summed(), layer=4)


def test_through_a_linear_map_they_are_those_of_its_outputs() -> None:
    linear = torch.nn.Linear(NEURONS, 50).double()
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    direct = TokenAccumulator(3)
    with torch.no_grad():
        direct.add(linear(torch.from_numpy(VALUES).double()).numpy(), TOKEN, FIRST)
    assert_close(through_linear(summed(products=True), weight, bias), direct.sums(), 1e-9, 1e-9)


def test_through_a_linear_map_in_float32_they_agree_within_its_rounding() -> None:
    torch.manual_seed(0)
    hidden = np.random.default_rng(1).normal(size=(ROWS, 768)).astype(np.float32)
    linear = torch.nn.Linear(768, 50)
    inputs, outputs = TokenAccumulator(0, products=True), TokenAccumulator(0)
    inputs.add(hidden, TOKEN, FIRST)
    with torch.no_grad():
        outputs.add(linear(torch.from_numpy(hidden)).numpy(), TOKEN, FIRST)
    weight, bias = linear.weight.detach().numpy(), linear.bias.detach().numpy()
    assert_close(through_linear(inputs.sums(), weight, bias), outputs.sums(), 1e-5, 1e-6)
    without = through_linear(inputs.sums(), weight)
    np.testing.assert_allclose(
        without.pivot + bias, through_linear(inputs.sums(), weight, bias).pivot
    )


def assert_close(found: TokenSums, direct: TokenSums, mean: float, deviation: float) -> None:
    """Means by token within a share of each neuron's standard deviation, and that within another."""
    np.testing.assert_array_equal(found.token, direct.token)
    np.testing.assert_array_equal(found.count, direct.count)
    std = np.sqrt(variance(direct))
    pivots = (found.pivot - direct.pivot)[found.first.astype(int)]
    away = (found.total - direct.total) / found.count[:, None] + pivots
    assert (np.abs(away) <= mean * std[found.first.astype(int)]).all()
    np.testing.assert_allclose(np.sqrt(variance(found)), std, rtol=deviation)


def variance(sums: TokenSums) -> npt.NDArray[np.float64]:
    """Of each neuron at first positions and at others [first_position, neuron]."""
    rows = [sums.count[sums.first == place].sum() for place in (False, True)]
    total = [sums.total[sums.first == place].sum(axis=0) for place in (False, True)]
    rows = np.array(rows)[:, None]
    return sums.squares / rows - (np.array(total) / rows) ** 2


def test_squares_alone_do_not_go_through_a_linear_map() -> None:
    with pytest.raises(ValueError, match="all products"):
        through_linear(summed(), np.eye(NEURONS))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    values = VALUES.copy()
    values[5, 2] = value
    with pytest.raises(CheckError, match="layer 3 has values that are not finite"):
        TokenAccumulator(3).add(values, TOKEN, FIRST)
