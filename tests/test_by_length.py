"""What follows from a run's statistics: against numpy on its stored arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr

from neoscope import by_length, open_run, open_statistics
from neoscope.errors import UsageError


def by_hand(url: str, first_positions: bool) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint16]]:
    """Every layer's values [layer, token, neuron] and the token lengths [token], special ones out."""
    run = open_run(url)
    lengths = run.token_length.values
    chosen = lengths > 0
    if not first_positions:
        chosen[:, 0] = False
    values = np.stack([run[f"MLP_{layer}"].values[chosen] for layer in range(3)])
    return values.astype(np.float64), lengths[chosen]


GROUPS = {"shorter": np.less, "equal": np.equal, "longer": np.greater}
FIRST = pytest.mark.parametrize("first_positions", [True, False])


@FIRST
@pytest.mark.parametrize("cut", [None, 3])
def test_histograms_by_group_are_numpys(
    partitioned: str, first_positions: bool, cut: int | None
) -> None:
    statistics = open_statistics(partitioned)
    values, lengths = by_hand(partitioned, first_positions)
    edges = np.linspace(-8, 5, 51)  # as the exercise has them
    found = by_length.histograms(
        statistics, cut, edges=edges.tolist(), first_positions=first_positions
    )
    assert found.dims == ("group", "layer", "bin")
    at = statistics.attrs["token_length_median"] if cut is None else cut
    for name, compare in GROUPS.items():
        for layer in range(3):
            chosen = values[layer, compare(lengths, at)]
            counts = found.sel(group=name, layer=layer).values
            # numpy's last bin is closed, ours is not
            expected = np.histogram(chosen, [-np.inf, *edges, np.inf])[0]
            np.testing.assert_array_equal(counts, expected)
    fine = by_length.histograms(statistics, cut, first_positions=first_positions)
    assert fine.sum() == found.sum() == values.size


@FIRST
def test_means_and_deviations_by_group_are_numpys(partitioned: str, first_positions: bool) -> None:
    values, lengths = by_hand(partitioned, first_positions)
    statistics = open_statistics(partitioned)
    found = by_length.moments(statistics, first_positions=first_positions)
    for name, compare in GROUPS.items():
        chosen = values[:, compare(lengths, statistics.attrs["token_length_median"])]
        assert found.tokens.sel(group=name) == chosen.shape[1]
        if not chosen.size:  # the median of such short tokens is 1
            continue
        np.testing.assert_allclose(found["mean"].sel(group=name), chosen.mean(axis=1), atol=1e-12)
        np.testing.assert_allclose(found["std"].sel(group=name), chosen.std(axis=1), rtol=1e-9)


@FIRST
def test_correlations_with_token_length_are_numpys(partitioned: str, first_positions: bool) -> None:
    values, lengths = by_hand(partitioned, first_positions)
    found = by_length.correlation(open_statistics(partitioned), first_positions=first_positions)
    assert found.dims == ("layer", "neuron")
    expected = [
        [np.corrcoef(lengths, layer[:, neuron])[0, 1] for neuron in range(64)] for layer in values
    ]
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_any_selection_of_cells_pools(partitioned: str) -> None:
    values, lengths = by_hand(partitioned, first_positions=True)
    found = by_length.pool(open_statistics(partitioned).sel(length=slice(2, 4)))
    chosen = values[:, (lengths >= 2) & (lengths <= 4)]
    np.testing.assert_allclose(found["mean"], chosen.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(found["std"], chosen.std(axis=1), rtol=1e-9)


def test_a_group_without_tokens_has_no_mean(partitioned: str) -> None:
    found = by_length.moments(open_statistics(partitioned), cut=1)
    assert found.tokens.sel(group="shorter") == 0
    assert np.isnan(found["mean"].sel(group="shorter")).all()
    assert np.isfinite(found["mean"].sel(group="longer")).all()


@pytest.mark.parametrize("edges", [[0.0], [0.01, 0.02], [0.2, 0.1], [-16.02, 0.0], [0.0, 16.02]])
def test_edges_that_the_bins_do_not_have_are_refused(partitioned: str, edges: list[float]) -> None:
    with pytest.raises(UsageError, match="edges must"):
        by_length.histograms(open_statistics(partitioned), edges=edges)


def test_results_are_labelled(partitioned: str) -> None:
    found = by_length.histograms(open_statistics(partitioned), edges=[-16.0, 0.0, 16.0])
    assert isinstance(found, xr.DataArray)
    assert found.bin_left.values.tolist() == [-np.inf, -16.0, 0.0, 16.0]
    assert found.group.values.tolist() == ["shorter", "equal", "longer"]
