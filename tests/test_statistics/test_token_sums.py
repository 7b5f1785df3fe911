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
from neoscope.statistics import token_sums
from neoscope.statistics.token_regression import Tokens
from neoscope.statistics.token_sums import TokenAccumulator, TokenSums, add_rows

ROWS, NEURONS = 600, 7
random = np.random.default_rng(0)
TOKEN = random.integers(0, 40, ROWS) ** 2
FIRST = np.arange(ROWS) % 20 == 0
# A small spread around a large mean, first positions far from it: sums of plain squares would lose it.
VALUES = (random.normal(size=(ROWS, NEURONS)) * 1e-2 + 300 - 200 * FIRST[:, None]).astype("f4")


def summed(rows: slice = slice(None), **options: Any) -> TokenSums:
    accumulator = TokenAccumulator(3, **options)
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
    assert sums.squares is not None
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


@pytest.mark.parametrize("cells", [1, 17, 10_000])
def test_room_that_is_given_changes_no_bit(cells: int) -> None:
    assert_same(summed(cells=cells), summed())


@pytest.mark.parametrize("neurons", [NEURONS, 2 * token_sums.NEURONS_A_THREAD + 5])
def test_the_compiled_kernel_gives_numpys_bits_however_many_threads_add(
    neurons: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert token_sums._compiled() not in (None, add_rows)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    values = np.random.default_rng(2).normal(300, 1, size=(ROWS, neurons)).astype("f4")
    found = []
    for kernel in (token_sums._compiled(), None):
        monkeypatch.setattr(token_sums, "_compiled", lambda kernel=kernel: kernel)
        for squares in (True, False):
            accumulator = TokenAccumulator(3, squares=squares)
            accumulator.add(values, TOKEN, FIRST)
            found.append(accumulator.sums())
    compiled, compiled_totals, plain, plain_totals = found
    assert_same(compiled, plain)
    assert_same(compiled_totals, plain_totals)
    assert compiled_totals.squares is None
    np.testing.assert_array_equal(compiled_totals.total, compiled.total)


@pytest.mark.parametrize("squares", [False, True])
def test_they_merge_in_any_order(squares: bool) -> None:
    parts = [summed(slice(a, b), squares=squares) for a, b in ((0, 90), (90, 400), (400, ROWS))]
    # One of them has a pivot far away: first positions alone.
    alone = TokenAccumulator(3, squares=squares)
    alone.add(VALUES[FIRST], TOKEN[FIRST], FIRST[FIRST])
    rest = TokenAccumulator(3, squares=squares)
    rest.add(VALUES[~FIRST], TOKEN[~FIRST], FIRST[~FIRST])
    for some in (parts, [alone.sums(), rest.sums()]):
        for order in itertools.permutations(some):
            merged = order[0]
            for part in order[1:]:
                merged = merged + part
            assert (merged.squares is not None) == squares
            assert_as_numpy(merged if squares else merged.of_outputs(*moments(VALUES)))


def test_what_is_not_of_one_layer_and_model_is_not_merged() -> None:
    with pytest.raises(ValueError, match="layer 3 .* layer 4"):
        summed() + dataclasses.replace(summed(), layer=4)
    with pytest.raises(ValueError, match="has no squares"):
        summed() + summed(squares=False)
    weight = np.eye(NEURONS, dtype=np.float32)
    one, other = (dataclasses.replace(summed(), weight=each) for each in (weight, -weight))
    with pytest.raises(ValueError, match="of another weight"):
        one + other
    with pytest.raises(ValueError, match="has no weight"):
        summed() + one
    assert ((one + one).weight == weight).all()


def moments(values: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Rows [first_position], mean and variance [first_position, neuron] of values, as a run knows them."""
    parts = [values[place == FIRST].astype(np.float64) for place in (False, True)]
    return (
        np.array([len(part) for part in parts]),
        np.array([part.mean(axis=0) for part in parts]),
        np.array([part.var(axis=0) for part in parts]),
    )


@pytest.mark.parametrize("biased", [True, False])
def test_through_a_linear_map_they_are_those_of_its_outputs(biased: bool) -> None:
    linear = torch.nn.Linear(NEURONS, 50, bias=biased)
    inputs = mapped(summed(squares=False), linear)
    with torch.no_grad():
        outputs = linear.double()(torch.from_numpy(VALUES).double()).numpy()
    direct = TokenAccumulator(3)
    direct.add(outputs, TOKEN, FIRST)
    assert_close(inputs.of_outputs(*moments(outputs)), direct.sums(), 1e-9, 1e-9)


def test_through_a_linear_map_in_float32_they_agree_within_its_rounding() -> None:
    torch.manual_seed(0)
    hidden = np.random.default_rng(1).normal(size=(ROWS, 768)).astype(np.float32)
    linear = torch.nn.Linear(768, 50)
    inputs, direct = TokenAccumulator(0, squares=False), TokenAccumulator(0)
    inputs.add(hidden, TOKEN, FIRST)
    with torch.no_grad():
        outputs = linear(torch.from_numpy(hidden)).numpy()
    direct.add(outputs, TOKEN, FIRST)
    found = mapped(inputs.sums(), linear).of_outputs(*moments(outputs))
    assert found.weight is None and found.bias is None
    assert_close(found, direct.sums(), 1e-5, 1e-6)


def test_a_neuron_that_does_not_vary_has_squares_of_nothing_at_all() -> None:
    linear = torch.nn.Linear(NEURONS, 2)
    linear.weight.data[1], linear.bias.data[1] = 0, 0.1
    with torch.no_grad():
        outputs = linear(torch.from_numpy(VALUES)).numpy()
    found = mapped(summed(squares=False), linear).of_outputs(*moments(outputs))
    variation = Tokens.of(found, first_positions=True).variation
    assert variation[1] == 0 and variation[0] > 0


def test_sums_of_no_squares_are_not_regressed_on() -> None:
    with pytest.raises(ValueError, match="without squares"):
        Tokens.of(summed(squares=False), first_positions=True)


def mapped(inputs: TokenSums, linear: torch.nn.Linear) -> TokenSums:
    """The sums of a map's inputs, with the map, as they come back from the store."""
    both = (linear.weight, linear.bias)
    weight, bias = (None if each is None else each.detach().numpy() for each in both)
    sums = dataclasses.replace(inputs, weight=weight, bias=bias)
    return TokenSums.load(sums.dump())


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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    values = VALUES.copy()
    values[5, 2] = value
    with pytest.raises(CheckError, match="layer 3 has values that are not finite"):
        TokenAccumulator(3).add(values, TOKEN, FIRST)
