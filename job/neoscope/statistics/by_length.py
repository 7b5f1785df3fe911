"""What follows from a run's statistics, without reading an array: by group of token length, for any cut.

In: the dataset of `open_statistics`. Out: labelled arrays. It does not know the store.

    statistics = neoscope.open_statistics("s3://bucket/run")
    by_length.histograms(statistics)       # [group, layer, bin]
    by_length.moments(statistics)["mean"]  # [group, layer, neuron]
    by_length.correlation(statistics)      # [layer, neuron]

Every function takes `first_positions=False` to leave the tokens out that stand first in a sequence.
What is not a dataset of `open_statistics`, a flag or a whole number is an InputError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neoscope.argument_checks import check_flag, check_number
from neoscope.errors import InputError, UsageError
from neoscope.statistics.length_cells import BINS_PER_UNIT, HALF

CELL = ("first_position", "length")
GROUPS = ("shorter", "equal", "longer")
# What each result says of itself: an activation has no unit, which CF conventions write as 1.
ATTRIBUTES = {
    "histogram": {"description": "Activations in bins [bin_left, bin_right).", "units": "values"},
    "tokens": {"description": "Tokens, special ones left out.", "units": "tokens"},
    "mean": {"description": "Mean of the neuron's activations.", "units": "1"},
    "std": {
        "description": "Standard deviation of the neuron's activations, of the population.",
        "units": "1",
    },
    "correlation": {
        "description": "Pearson's r of the neuron's activation with the length of its token in "
        "characters.",
        "units": "1",
    },
}


def histograms(
    statistics: xr.Dataset,
    cut: int | None = None,
    *,
    edges: Sequence[float] | None = None,
    first_positions: bool = True,
) -> xr.DataArray:
    """Activations by value, for tokens shorter than, as long as and longer than `cut` characters.

    int64 [group, layer, bin], over all neurons of a layer, with the coordinates `bin_left` and
    `bin_right`. The cut is the run's median unless given. `edges` join the bins of 0.02 to fewer ones:
    `numpy.linspace(-8, 5, 51)` for example; what is below and above them stays in the first and the
    last bin. Raises UsageError for edges that are not edges of the bins.
    """
    chosen = _chosen(statistics, first_positions)
    groups = [cells.histogram.sum(CELL) for cells in _groups(chosen, cut)]
    counted = _named(xr.concat(groups, xr.Variable("group", list(GROUPS))), "histogram")
    if edges is None:
        return counted
    left = statistics.bin_left.values
    scaled = _numbers(edges) * BINS_PER_UNIT
    wanted = np.round(scaled)
    if len(wanted) < 2 or not np.allclose(wanted, scaled, rtol=0, atol=1e-6):
        raise UsageError(f"edges must be two or more multiples of {1 / BINS_PER_UNIT}: {edges}")
    if np.any(np.diff(wanted) <= 0) or wanted[0] < -HALF or wanted[-1] > HALF:
        raise UsageError(f"edges must ascend from {left[1]} to {left[-1]} at most: {edges}")
    starts = wanted.astype(int) + HALF + 1
    joined = np.add.reduceat(counted.values, [0, *starts], axis=-1)
    return xr.DataArray(
        joined,
        dims=counted.dims,
        coords={
            "group": counted.group,
            "layer": counted.layer,
            "bin_left": ("bin", [-np.inf, *left[starts]], statistics.bin_left.attrs),
            "bin_right": ("bin", [*left[starts], np.inf], statistics.bin_right.attrs),
        },
        name="histogram",
        attrs=counted.attrs,
    )


def moments(
    statistics: xr.Dataset, cut: int | None = None, *, first_positions: bool = True
) -> xr.Dataset:
    """Of each group the number of `tokens` [group], and the `mean` and standard deviation `std`
    [group, layer, neuron] of each neuron; float64, NaN for a group without tokens. The deviation is
    that of the population."""
    groups = [pool(cells) for cells in _groups(_chosen(statistics, first_positions), cut)]
    return xr.concat(groups, xr.Variable("group", list(GROUPS)))


def correlation(statistics: xr.Dataset, *, first_positions: bool = True) -> xr.DataArray:
    """Pearson's r of each neuron's activation with the length of its token in characters.

    float64 [layer, neuron] over all tokens but special ones; NaN where either does not vary.
    """
    cells = _chosen(statistics, first_positions)
    tokens, total = cells.tokens, cells.tokens.sum()
    length = cells.length.astype(np.float64)
    away = length - (tokens * length).sum() / total
    mean = cells.total.sum(CELL) / total
    common = (away * (cells.total - tokens * mean)).sum(CELL)
    lengths = (tokens * away**2).sum()
    values = _squared_deviation(cells, mean)
    with np.errstate(invalid="ignore", divide="ignore"):
        r: xr.DataArray = common / np.sqrt(lengths * values)
    return _named(r, "correlation")


def pool(cells: xr.Dataset) -> xr.Dataset:
    """All the cells of a selection as one: `tokens`, and `mean` and `std` [layer, neuron] of each
    neuron. `pool(statistics.sel(length=slice(3, 5)))` is of tokens of three to five characters."""
    total = _statistics(cells).tokens.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = cells.total.sum(CELL) / total
        std = np.sqrt(_squared_deviation(cells, mean) / total)
    found = {"tokens": total, "mean": mean, "std": std}
    return xr.Dataset({name: _named(values, name) for name, values in found.items()})


def _named(values: xr.DataArray, name: str) -> xr.DataArray:
    """With its own name and attributes: xarray hands on those of what it was computed from."""
    found = values.rename(name)
    found.attrs = dict(ATTRIBUTES[name])
    return found


def _squared_deviation(cells: xr.Dataset, mean: xr.DataArray) -> xr.DataArray:
    """Of all the cells' values from one mean: within each cell, and of each cell's own mean."""
    tokens = cells.tokens
    off = cells.total / tokens.where(tokens > 0) - mean
    squares: xr.DataArray = (cells.squared_deviation + (tokens * off**2).fillna(0)).sum(CELL)
    return squares


def _chosen(statistics: xr.Dataset, first_positions: bool) -> xr.Dataset:
    every = check_flag("first_positions", first_positions)
    return _statistics(statistics) if every else _statistics(statistics).isel(first_position=[0])


def _statistics(found: Any) -> xr.Dataset:
    if not (isinstance(found, xr.Dataset) and {"tokens", "total"} <= {*found.data_vars}):
        what = type(found).__name__
        raise InputError(f"statistics of neoscope.open_statistics are needed, not this {what}")
    return found


def _numbers(edges: Any) -> npt.NDArray[np.float64]:
    try:
        return np.asarray(edges, dtype=np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise InputError(
            f"edges={edges!r}: give numbers, such as numpy.linspace(-8, 5, 51)"
        ) from None


def _groups(cells: xr.Dataset, cut: int | None) -> list[xr.Dataset]:
    at = cells.attrs["token_length_median"] if cut is None else check_number("cut", cut)
    length = cells.length.values
    return [cells.isel(length=chosen) for chosen in (length < at, length == at, length > at)]
