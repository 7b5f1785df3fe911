"""What follows from a run's statistics: against numpy on its stored arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import xarray as xr

from neoscope import open_run, open_statistics
from neoscope.errors import InputError, UsageError
from neoscope.statistics import by_length


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


def results(statistics: xr.Dataset) -> dict[str, xr.DataArray]:
    moments = by_length.moments(statistics)
    return {
        "histogram": by_length.histograms(statistics, edges=[-1.0, 0.0, 1.0]),
        "tokens": moments.tokens,
        "mean": moments["mean"],
        "std": moments["std"],
        "correlation": by_length.correlation(statistics),
    }


def test_each_result_says_what_it_is_itself_and_not_what_it_was_computed_from(
    partitioned: str,
) -> None:
    words = {
        "histogram": ("Activations in bins", "values"),
        "tokens": ("Tokens", "tokens"),
        "mean": ("Mean of the neuron's activations", "1"),
        "std": ("Standard deviation", "1"),
        "correlation": ("Pearson's r", "1"),
    }
    for name, found in results(open_statistics(partitioned)).items():
        assert found.name == name
        assert set(found.attrs) == {"description", "units"}, name
        assert found.attrs["description"].startswith(words[name][0])
        assert found.attrs["units"] == words[name][1]
    fine = by_length.histograms(open_statistics(partitioned))
    assert (fine.name, fine.attrs["units"]) == ("histogram", "values")


def test_neurons_are_numbered(partitioned: str) -> None:
    found = by_length.correlation(open_statistics(partitioned))
    assert found.neuron.values.tolist() == list(range(64))
    best = abs(found).sel(layer=1).idxmax("neuron").item()
    assert best == np.argmax(np.abs(found.values[1]))


def test_no_variable_has_the_name_of_a_method_of_xarrays(partitioned: str) -> None:
    statistics = open_statistics(partitioned)
    for name in (*statistics.data_vars, *statistics.coords):
        assert not hasattr(xr.Dataset, str(name)), name
        assert isinstance(getattr(statistics, str(name)), xr.DataArray)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"cut": "3"}, "cut='3'"),
        ({"cut": 2.5}, "cut=2.5"),
        ({"cut": True}, "cut=True"),
        ({"first_positions": "no"}, "first_positions='no'"),
        ({"first_positions": 0}, "first_positions=0"),
        ({"edges": "abc"}, "edges='abc'"),
        ({"edges": None, "cut": [3]}, r"cut=\[3\]"),
    ],
)
def test_arguments_of_another_kind_are_refused(
    partitioned: str, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputError, match=named):
        by_length.histograms(open_statistics(partitioned), **arguments)


def test_a_run_is_not_its_statistics(partitioned: str) -> None:
    for function in (
        by_length.histograms,
        by_length.moments,
        by_length.correlation,
        by_length.pool,
    ):
        for other in (open_run(partitioned), partitioned):
            with pytest.raises(InputError, match="open_statistics"):
                function(other)  # type: ignore[operator]


def test_the_cut_may_be_numpys_number(partitioned: str) -> None:
    statistics = open_statistics(partitioned)
    found = by_length.moments(statistics, cut=np.int64(3))  # type: ignore[arg-type]
    xr.testing.assert_identical(found, by_length.moments(statistics, cut=3))


def test_the_figures_show_the_histograms_and_the_correlations(partitioned: str) -> None:
    statistics = open_statistics(partitioned)
    histograms = by_length.histograms(statistics, 3)  # with tokens in every group
    axes = by_length.plot(statistics, cut=3).axes
    assert [each.get_title(loc="left") for each in axes] == ["layer 0", "layer 1", "layer 2"]
    for layer, each in enumerate(axes):
        for name, line in zip(GROUPS, each.lines, strict=True):
            counts = histograms.sel(group=name, layer=layer).values
            density = counts[1:-1] / counts.sum() * 50  # bins of 0.02
            np.testing.assert_allclose(line.get_ydata(), density)
    (spread,) = by_length.plot(statistics, "correlations").axes
    median = [float(line.get_ydata()[0]) for line in spread.lines if line.get_marker() == "o"]
    expected = by_length.correlation(statistics).median("neuron").values
    np.testing.assert_allclose(median, expected)


def test_what_there_is_no_figure_of_is_refused(partitioned: str) -> None:
    statistics = open_statistics(partitioned)
    with pytest.raises(InputError, match="'histograms', 'correlations'"):
        by_length.plot(statistics, "heat")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="have no groups"):
        by_length.plot(statistics, "correlations", cut=3)
