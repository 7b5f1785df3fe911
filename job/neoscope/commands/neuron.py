"""One neuron of a run: what it does, and where it stands among those of its layer.

In: a committed run with statistics by neuron. Out: plain numbers and passages, as JSON has them. It does
not know how they are shown; see `neuron_screen`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import xarray as xr

from neoscope.reading.dataset import open_neurons_of, open_statistics_of
from neoscope.reading.passages import PassageReader, select_neuron
from neoscope.reading.status import committed
from neoscope.statistics import by_length, by_neuron
from neoscope.storage.store import Store

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
# What is told of a neuron beside the share of the layer's neurons that have less of it.
FACTS = ("firing", "mean", "std", "skewness", "kurtosis", "min", "max", "length_correlation")


def describe(store: Store, layer: int, neuron: int, count: int | None) -> dict[str, Any]:
    """What a run knows of one neuron.

    `facts` are of the neuron, `ranks` the shares of its layer's neurons that have less of each; None for
    what there is not. `histogram` has the edges and counts of the bins that are not empty at the ends.
    `highest` and `lowest` are at most `count` passages each, as many as the run keeps where it is None.
    Raises InputError where there is no such run or neuron.
    """
    one = select_neuron(store, layer, neuron)
    facts = layer_facts(store, open_neurons_of(store), layer)
    reader, manifest = PassageReader(store), committed(store)
    kept = one.sizes["context"] if count is None else min(count, one.sizes["context"])
    passages = {
        name: [
            dataclasses.asdict(passage)
            for passage in reader.read(
                layer, neuron, by_neuron.contexts(one, count=kept, lowest=name == "lowest")
            )
        ]
        for name in ("highest", "lowest")
    }
    quantiles = by_neuron.quantile(one, QUANTILES).values.tolist()
    return {
        "run": store.url,
        "model": manifest["model"]["name"],
        "weights": manifest["model"]["weights"],
        "layer": layer,
        "neuron": neuron,
        "neurons": len(facts["mean"]),
        "tokens": int(one.tokens.sum()),
        "facts": {name: number(facts[name].values[neuron]) for name in FACTS},
        "ranks": {name: _rank(facts[name].values, neuron) for name in FACTS},
        "quantiles": {str(q): number(value) for q, value in zip(QUANTILES, quantiles, strict=True)},
        "histogram": histogram_of(by_neuron.histograms(one)),
        **passages,
    }


def layer_facts(store: Store, neurons: xr.Dataset, layer: int) -> xr.Dataset:
    """FACTS of every neuron of a layer [neuron]; `length_correlation` is NaN where the run has no statistics
    by token length."""
    wanted = ["tokens", "mean", "moment2", "moment3", "moment4", "min", "max", "firing"]
    some = neurons[wanted].sel(layer=layer).load()
    facts = by_neuron.moments(some).assign(firing=by_neuron.firing(some))
    correlation = facts["mean"] * np.nan
    if "statistics" in committed(store):
        lengths = open_statistics_of(store)[["tokens", "total", "squared_deviation"]]
        correlation = by_length.correlation(lengths.sel(layer=layer).load()).drop_vars("neuron")
    return facts.assign(length_correlation=correlation)


def histogram_of(counts: xr.DataArray) -> dict[str, list[Any]]:
    """`left` and `right` edges, None where a bin is open, and `counts`, without the empty bins at both ends;
    `counts` is [bin]."""
    there = np.flatnonzero(counts.values)
    some = counts[slice(there[0], there[-1] + 1)] if len(there) else counts[:0]
    return {
        "left": [number(edge) for edge in some.bin_left.values],
        "right": [number(edge) for edge in some.bin_right.values],
        "counts": some.values.tolist(),
    }


def number(value: Any) -> float | None:
    """None where there is no number, which JSON can say."""
    return float(value) if math.isfinite(value) else None


def _rank(values: Any, neuron: int) -> float | None:
    """The share of the neurons that have less than this one has."""
    if not np.isfinite(values[neuron]):
        return None
    return float((values < values[neuron]).mean())
