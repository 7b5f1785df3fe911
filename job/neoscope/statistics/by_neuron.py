"""What follows from what a run knows of each neuron, without reading an array.

In: the dataset of `neurons.zarr`, or any selection of it. Out: labelled arrays. It does not know the store.

    by_neuron.moments(neurons)["kurtosis"]                  # [layer, neuron]
    by_neuron.quantile(neurons.sel(layer=3), [0.05, 0.95])  # [quantile, neuron]
    by_neuron.contexts(neurons.sel(layer=3, neuron=5))      # value and token [context]

Every function takes `first_positions=False` to leave the tokens out that stand first in a sequence. What is
not a dataset of `open_neurons` is an InputError.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xarray as xr

from neoscope.argument_checks import check_flag
from neoscope.errors import InputError, UsageError

FIRST = "first_position"


def moments(neurons: xr.Dataset, *, first_positions: bool = True) -> xr.Dataset:
    """Of each neuron `mean`, standard deviation `std`, `skewness`, `kurtosis`, `min` and `max` [layer,
    neuron], of so many `tokens`.

    They are those of the population, as in numpy and as `scipy.stats` has them by default: `skewness` is
    m3 / m2^1.5, `kurtosis` is m4 / m2^2 - 3, 0 for a normal distribution; both are NaN for a neuron that does
    not vary. Everything is NaN where there are no tokens.
    """
    parts = _chosen(neurons, first_positions)
    total = parts.tokens.sum(FIRST)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (parts.tokens / total).where(parts.tokens > 0, 0)
        mean = (share * parts["mean"].fillna(0)).sum(FIRST).where(total > 0)
        step = parts["mean"] - mean
        # About the mean of all, from those about the mean of each: the binomial formula.
        second = parts.moment2 + step**2
        third = parts.moment3 + 3 * step * parts.moment2 + step**3
        fourth = parts.moment4 + 4 * step * parts.moment3 + 6 * step**2 * parts.moment2 + step**4
        m2, m3, m4 = (
            (share * each.fillna(0)).sum(FIRST).where(total > 0) for each in (second, third, fourth)
        )
        varies = parts["max"].max(FIRST) > parts["min"].min(FIRST)
        return xr.Dataset(
            {
                "tokens": total,
                "mean": mean,
                "std": np.sqrt(m2),
                "skewness": (m3 / m2**1.5).where(varies),
                "kurtosis": (m4 / m2**2 - 3).where(varies),
                "min": parts["min"].min(FIRST),
                "max": parts["max"].max(FIRST),
            }
        )


def firing(neurons: xr.Dataset, *, first_positions: bool = True) -> xr.DataArray:
    """The share of tokens at which each neuron's activation is above 0: float64 [layer, neuron]."""
    parts = _chosen(neurons, first_positions)
    share: xr.DataArray = parts.firing.sum(FIRST) / parts.tokens.sum(FIRST)
    return share.rename("firing")


def histograms(neurons: xr.Dataset, *, first_positions: bool = True) -> xr.DataArray:
    """Activations of each neuron by value: int64 [layer, neuron, bin]."""
    counts: xr.DataArray = _chosen(neurons, first_positions).histogram.sum(FIRST)
    return counts


def quantile(
    neurons: xr.Dataset, q: float | Sequence[float], *, first_positions: bool = True
) -> xr.DataArray:
    """Activations that a share `q` of the tokens does not exceed: float64 [quantile, layer, neuron], without
    `quantile` where `q` is one number.

    It is in the same bin as `numpy.quantile(..., method="inverted_cdf")`, and so within 0.125 of it. NaN
    where that is below the least or above the greatest edge, and where there are no tokens. Raises
    UsageError for a share that is not from 0 to 1.
    """
    shares = np.atleast_1d(np.asarray(q, np.float64))
    if not ((shares >= 0) & (shares <= 1)).all():
        raise UsageError(f"a quantile must be from 0 to 1, not {q}")
    parts = _chosen(neurons, first_positions)
    counts = parts.histogram.sum(FIRST)
    left, right = parts.bin_left.values, parts.bin_right.values

    def found(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """[..., quantile] of counts [..., bin]."""
        reached = counts.cumsum(axis=-1)
        total = reached[..., -1:]
        rank = np.clip(np.ceil(shares * total), 1, None)
        place = np.stack([(reached < rank[..., i, None]).sum(-1) for i in range(len(shares))], -1)
        place = np.minimum(place, len(left) - 1)
        inside = np.take_along_axis(counts, place, -1)
        before = np.take_along_axis(reached, place, -1) - inside
        with np.errstate(invalid="ignore", divide="ignore"):
            value = left[place] + (right - left)[place] * ((rank - before - 0.5) / inside)
        return np.where((total > 0) & np.isfinite(value), value, np.nan)

    values: xr.DataArray = xr.apply_ufunc(
        found, counts, input_core_dims=[["bin"]], output_core_dims=[["quantile"]]
    )
    low, high = parts["min"].min(FIRST), parts["max"].max(FIRST)
    values = values.assign_coords(quantile=shares).transpose("quantile", ...).clip(low, high)
    return (values if np.ndim(q) else values[0]).rename("quantile_value")


def contexts(
    neurons: xr.Dataset,
    *,
    count: int | None = None,
    lowest: bool = False,
    first_positions: bool = True,
) -> xr.Dataset:
    """The `count` highest values of each neuron, or its lowest, one for each sequence: `value` and `token`
    [layer, neuron, context], NaN and -1 where there are no more. `token` is an index in the flattened
    `token_ids`. All that are kept by default. Raises UsageError for more than are kept."""
    parts = _chosen(neurons, first_positions)
    kept = neurons.sizes["context"]
    if count is not None and not 1 <= count <= kept:
        raise UsageError(f"the run keeps {kept} contexts of each neuron, so count can't be {count}")
    name = "lowest" if lowest else "highest"
    positions = neurons.attrs["positions"]

    def best(
        value: npt.NDArray[np.float32], token: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """The best [..., context] of both [..., first_position, context]."""
        value, token = value.reshape(*value.shape[:-2], -1), token.reshape(*token.shape[:-2], -1)
        there = token >= 0
        worth = np.where(there, value if lowest else -value, np.inf)
        # A sequence may be in both: what is behind the better of the two gives way.
        order = np.lexsort((token, worth, token // positions))
        sorted_sequence = np.take_along_axis(token // positions, order, -1)
        again = np.zeros_like(there)
        again[..., 1:] = sorted_sequence[..., 1:] == sorted_sequence[..., :-1]
        np.put_along_axis(
            worth, order, np.where(again, np.inf, np.take_along_axis(worth, order, -1)), -1
        )
        order = np.lexsort((token, worth))[..., : count or kept]
        there = np.isfinite(np.take_along_axis(worth, order, -1))
        return (
            np.where(there, np.take_along_axis(value, order, -1), np.float32(np.nan)),
            np.where(there, np.take_along_axis(token, order, -1), -1),
        )

    value, token = xr.apply_ufunc(
        best,
        parts[f"{name}_value"],
        parts[f"{name}_token"],
        input_core_dims=[[FIRST, "context"]] * 2,
        output_core_dims=[["context"]] * 2,
        exclude_dims={"context"},
    )
    return xr.Dataset({"value": value, "token": token})


def strongest(neurons: xr.Dataset, count: int = 10, *, first_positions: bool = True) -> xr.Dataset:
    """The `count` neurons whose highest value is the most standard deviations above their mean: `layer`,
    `neuron`, that `score`, `value` and `token` [rank], the highest score first."""
    known = moments(neurons, first_positions=first_positions)
    top = contexts(neurons, count=1, first_positions=first_positions).isel(context=0)
    score = ((known["max"] - known["mean"]) / known["std"].where(known["std"] > 0)).transpose(
        "layer", "neuron"
    )
    flat = score.values.reshape(-1)
    order = np.argsort(-flat, kind="stable")[:count]
    order = order[np.isfinite(flat[order])]
    layer, neuron = np.unravel_index(order, score.shape)
    at = {"layer": xr.Variable("rank", layer), "neuron": xr.Variable("rank", neuron)}
    found = top.isel(at).assign(score=score.isel(at))
    return found.reset_coords("layer").assign(neuron=("rank", neuron))


def _chosen(neurons: xr.Dataset, first_positions: bool) -> xr.Dataset:
    if not isinstance(neurons, xr.Dataset) or "length" in neurons.dims or "tokens" not in neurons:
        what = type(neurons).__name__
        raise InputError(f"the dataset of neoscope.open_neurons is needed, not this {what}")
    every = check_flag("first_positions", first_positions)
    return neurons if every else neurons.isel({FIRST: [0]})
