"""Histograms by group and correlations, drawn into matplotlib's axes.

In: labelled arrays of `by_length`, axes, and the colours of the groups. Out: nothing; the axes are drawn in.
matplotlib is not imported here, and the page of a run or the figure of a paper not known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

# Where the lines of the groups run together, all of them can be seen: the first is wide and pale, and the
# next lie upon it in dashes and in dots.
LINES: dict[str, dict[str, Any]] = {
    "shorter": {"linestyle": "-", "linewidth": 3.5, "alpha": 0.45},
    "equal": {"linestyle": (0, (5, 3)), "linewidth": 1.6},
    "longer": {"linestyle": (0, (1, 2)), "linewidth": 1.6},
}
QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


def draw_histogram(axes: Any, histogram: xr.DataArray, colours: dict[str, str]) -> None:
    """Density of one layer's activations, a line for each group; `histogram` is [group, bin]."""
    left, right = histogram.bin_left.values[1:-1], histogram.bin_right.values[1:-1]
    for name, colour in colours.items():
        counts = histogram.sel(group=name).values
        if counts.sum():
            density = counts[1:-1] / counts.sum() / (right - left)
            middle = (left + right) / 2
            axes.plot(middle, density, color=colour, label=name, **LINES[name])
    axes.set_ylim(bottom=0)


def draw_correlations(axes: Any, r: xr.DataArray, colours: dict[str, str], muted: str) -> None:
    """Of each layer the middle half of its neurons' correlations, the median, and the range from the
    1st to the 99th percentile; `r` is [layer, neuron]."""
    quantiles = np.nanquantile(r.values, QUANTILES, axis=1)
    for layer, (least, low, middle, high, most) in zip(r.layer.values, quantiles.T, strict=True):
        axes.plot([layer, layer], [least, most], color=muted, linewidth=1)
        axes.plot([layer, layer], [low, high], color=colours["shorter"], linewidth=6)
        axes.plot(layer, middle, "o", color=colours["longer"], markersize=5)
    axes.axhline(0, color=muted, linewidth=0.6)
    axes.set_xticks(some_layers(r.layer.values))
    axes.set_xlabel("layer")
    axes.set_ylabel("correlation with token length")


def limits(histogram: xr.DataArray) -> tuple[float, float]:
    """The range that holds 99.8 % of the values of every layer; `histogram` is [group, layer, bin]."""
    counts = histogram.sum("group").values[:, 1:-1]
    share = np.cumsum(counts, axis=1) / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    inside = ((share > 0.001) & (share < 0.999)).any(axis=0)
    if not inside.any():
        return -1.0, 1.0
    left = histogram.bin_left.values[1:-1][inside]
    return float(left[0]), float(left[-1])


def some_layers(layers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """At most a dozen of the layers, for ticks."""
    return layers[:: -(-len(layers) // 12)]
