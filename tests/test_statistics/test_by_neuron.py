"""What follows from the state of each neuron: against numpy on the values themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr

from neoscope.errors import UsageError
from neoscope.statistics import by_neuron
from neoscope.statistics.neuron_accumulator import NeuronStatistics
from neoscope.statistics.neurons import DIMENSIONS, coordinates, merge

SEQUENCES, POSITIONS, NEURONS, CONTEXTS = 8, 16, 12, 5
LAYERS = [2, 5]
FIRST = pytest.mark.parametrize("first_positions", [True, False])


def some() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16]]:
    """Values [layer, sequence, position, neuron] with outliers at first positions and a neuron that does
    not vary, and lengths [sequence, position]."""
    random = np.random.default_rng(0)
    values = random.gamma(2, 1, (2, SEQUENCES, POSITIONS, NEURONS)).astype(np.float32) - 1
    values[:, :, 0] += 6 * random.standard_normal((2, SEQUENCES, NEURONS), np.float32)
    values[:, :, :, 3] = -0.5
    values[:, 1, :, 4] = values[:, 0, :, 4]  # ties
    values[0, :, :, 5] *= 40  # beyond the edges
    return values, random.integers(0, 4, (SEQUENCES, POSITIONS)).astype(np.uint16)


def dataset(lengths: npt.NDArray[np.uint16]) -> xr.Dataset:
    """As a reader has it of a run of two partitions."""
    values, _ = some()
    parts = []
    for half in (slice(0, 4), slice(4, 8)):
        state = NeuronStatistics(
            layers=["MLP_2", "MLP_5"],
            neurons=NEURONS,
            tokens=1000,
            device=torch.device("cpu"),
            contexts=CONTEXTS,
        )
        for name, layer in zip(("MLP_2", "MLP_5"), values, strict=True):
            placed = state.place(lengths[half])
            state.add(name, torch.from_numpy(layer[half]), placed, half.start * POSITIONS)
        parts.append(state.neurons())
    arrays = merge(parts, CONTEXTS) | coordinates(LAYERS)
    labels = {name: arrays.pop(name) for name in ("layer", "first_position")}
    edges = {name: ("bin", arrays.pop(name)) for name in ("bin_left", "bin_right")}
    return xr.Dataset(
        {name: (DIMENSIONS[name], array) for name, array in arrays.items()},
        coords={**labels, **edges},
        attrs={"positions": POSITIONS},
    )


@pytest.fixture(scope="module")
def neurons() -> xr.Dataset:
    return dataset(some()[1])


def by_hand(first_positions: bool) -> npt.NDArray[np.float64]:
    """The values [layer, token, neuron] that count."""
    values, lengths = some()
    chosen = lengths > 0
    if not first_positions:
        chosen[:, 0] = False
    return values[:, chosen].astype(np.float64)


@FIRST
def test_moments_are_numpys(neurons: xr.Dataset, first_positions: bool) -> None:
    values = by_hand(first_positions)
    found = by_neuron.moments(neurons, first_positions=first_positions)
    away = values - values.mean(axis=1, keepdims=True)
    varies = np.arange(NEURONS) != 3
    m2, m3, m4 = ((away**order).mean(axis=1)[:, varies] for order in (2, 3, 4))
    assert found.tokens == values.shape[1]
    assert found["mean"].dims == ("layer", "neuron")
    np.testing.assert_allclose(found["mean"], values.mean(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["std"], values.std(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["skewness"][:, varies], m3 / m2**1.5, rtol=1e-8)
    np.testing.assert_allclose(found["kurtosis"][:, varies], m4 / m2**2 - 3, rtol=1e-8)
    np.testing.assert_array_equal(found["min"], values.min(axis=1))
    np.testing.assert_array_equal(found["max"], values.max(axis=1))
    for name in ("skewness", "kurtosis"):
        assert np.isnan(found[name].sel(neuron=3)).all()


@FIRST
def test_firing_and_histograms_are_numpys(neurons: xr.Dataset, first_positions: bool) -> None:
    values = by_hand(first_positions)
    found = by_neuron.firing(neurons, first_positions=first_positions)
    np.testing.assert_array_equal(found, (values > 0).mean(axis=1))
    counts = by_neuron.histograms(neurons, first_positions=first_positions)
    edges = [*neurons.bin_left.values, np.inf]
    for layer, neuron in np.ndindex(2, NEURONS):
        expected = np.histogram(values[layer, :, neuron], edges)[0]
        np.testing.assert_array_equal(counts[layer, neuron], expected)


@FIRST
def test_quantiles_are_numpys_within_a_bin(neurons: xr.Dataset, first_positions: bool) -> None:
    values = by_hand(first_positions)
    shares = [0, 0.01, 0.25, 0.5, 0.9, 1]
    found = by_neuron.quantile(neurons, shares, first_positions=first_positions)
    assert found.dims == ("quantile", "layer", "neuron")
    expected = np.quantile(values, shares, axis=1, method="inverted_cdf")
    inside = np.abs(expected) < 16
    assert not inside.all()
    assert np.isnan(found.values[~inside]).all()
    np.testing.assert_array_equal(
        np.floor(found.values[inside] * 8), np.floor(expected[inside] * 8)
    )
    assert (
        found.values[inside] >= np.broadcast_to(values.min(axis=1), expected.shape)[inside]
    ).all()
    median = by_neuron.quantile(neurons.sel(layer=5), 0.5, first_positions=first_positions)
    np.testing.assert_array_equal(median, found.sel(quantile=0.5, layer=5))


@pytest.mark.parametrize("q", [-0.1, 1.01, float("nan"), [0.5, 2]])
def test_a_quantile_that_is_none_is_refused(neurons: xr.Dataset, q: Any) -> None:
    with pytest.raises(UsageError, match="from 0 to 1"):
        by_neuron.quantile(neurons, q)


@FIRST
@pytest.mark.parametrize("lowest", [False, True])
@pytest.mark.parametrize("count", [None, 2])
def test_contexts_are_one_for_a_sequence(
    neurons: xr.Dataset, first_positions: bool, lowest: bool, count: int | None
) -> None:
    values, lengths = some()
    found = by_neuron.contexts(neurons, count=count, lowest=lowest, first_positions=first_positions)
    sign = 1 if lowest else -1
    start = 0 if first_positions else 1
    for layer, neuron in np.ndindex(2, NEURONS):
        best = sorted(
            min(
                (sign * float(values[layer, s, p, neuron]), s * POSITIONS + p)
                for p in range(start, POSITIONS)
                if lengths[s, p]
            )
            for s in range(SEQUENCES)
        )[: count or CONTEXTS]
        assert found.token[layer, neuron].values.tolist() == [token for _, token in best]
        assert found.value[layer, neuron].values.tolist() == [sign * value for value, _ in best]


def test_one_neuron_can_be_selected_before(neurons: xr.Dataset) -> None:
    whole, one = by_neuron.contexts(neurons), neurons.sel(layer=5, neuron=7)
    assert by_neuron.contexts(one).identical(whole.sel(layer=5, neuron=7))
    assert by_neuron.moments(one).identical(by_neuron.moments(neurons).sel(layer=5, neuron=7))
    assert by_neuron.quantile(one, 0.5) == by_neuron.quantile(neurons, 0.5).sel(layer=5, neuron=7)


@pytest.mark.parametrize("count", [0, CONTEXTS + 1])
def test_contexts_that_are_not_kept_are_refused(neurons: xr.Dataset, count: int) -> None:
    with pytest.raises(UsageError, match=f"keeps {CONTEXTS} contexts .* can't be {count}"):
        by_neuron.contexts(neurons, count=count)


def test_contexts_that_are_not_there_are_nan(neurons: xr.Dataset) -> None:
    few = neurons.copy()
    few["highest_token"] = few.highest_token.where(few.context < 1, -1)
    few["highest_value"] = few.highest_value.where(few.context < 1)
    found = by_neuron.contexts(few, first_positions=False)
    assert (found.token.isel(context=slice(1, None)) == -1).all()
    assert np.isnan(found.value.isel(context=slice(1, None))).all()
    assert np.isfinite(found.value.isel(context=0)).all()


@FIRST
def test_strongest_are_those_with_the_farthest_maximum(
    neurons: xr.Dataset, first_positions: bool
) -> None:
    values = by_hand(first_positions)
    with np.errstate(invalid="ignore"):
        score = (values.max(axis=1) - values.mean(axis=1)) / values.std(axis=1)
    score[:, 3] = -np.inf
    found = by_neuron.strongest(neurons, 4, first_positions=first_positions)
    order = np.argsort(-score, axis=None)[:4]
    layer, neuron = np.unravel_index(order, score.shape)
    assert found.layer.values.tolist() == [LAYERS[each] for each in layer]
    assert found.neuron.values.tolist() == neuron.tolist()
    np.testing.assert_allclose(found.score, score.reshape(-1)[order])
    assert found.value.values.tolist() == values.max(axis=1)[layer, neuron].tolist()
    every = by_neuron.strongest(neurons, 1000, first_positions=first_positions)
    assert every.sizes["rank"] == 2 * (NEURONS - 1)


def test_where_there_are_no_tokens_nothing_is_known() -> None:
    """A run whose sequences all begin with a special token has no first positions."""
    _, lengths = some()
    lengths[:, 0] = 0
    neurons = dataset(lengths)
    rest = by_neuron.moments(neurons, first_positions=False)
    xr.testing.assert_identical(by_neuron.moments(neurons), rest)
    xr.testing.assert_identical(
        by_neuron.contexts(neurons), by_neuron.contexts(neurons, first_positions=False)
    )
    nothing = by_neuron.moments(neurons.isel(first_position=[1]))
    assert nothing.tokens == 0
    assert all(np.isnan(nothing[name]).all() for name in nothing if name != "tokens")
    assert np.isnan(by_neuron.quantile(neurons.isel(first_position=[1]), 0.5)).all()
    assert (by_neuron.contexts(neurons.isel(first_position=[1])).token == -1).all()
