"""What the report says of each neuron: dead and always-on ones, how often they fire, and the heaviest tails.

In: a committed run with statistics by neuron. Out: plain numbers and words for the page. No activation is
read.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from neoscope.commands.neuron_screen import printable
from neoscope.reading.dataset import open_neurons_of
from neoscope.reading.passages import PassageReader
from neoscope.statistics import by_neuron
from neoscope.storage.store import Store

HEAVIEST = 10
BEFORE, AFTER = 8, 3  # tokens of a passage about its peak
SHARES = (0.05, 0.5, 0.95)


def neuron_section(store: Store, following: list[tuple[int, int]]) -> dict[str, Any]:
    """`layers`: of each the neurons that fire at no token and at every one, and the firing of the neurons
    at the 5th, 50th and 95th percentile. `heaviest`: the neurons with the greatest kurtosis, each with
    the passage where the longer tail ends. `following`: those of these layers and neurons, each with
    the passage where its value is highest."""
    neurons = open_neurons_of(store).drop_vars("histogram").load()
    firing, moments = by_neuron.firing(neurons), by_neuron.moments(neurons)
    layers = [
        {
            "layer": layer,
            "dead": int((shares == 0).sum()),
            "always": int((shares == 1).sum()),
            "firing": np.quantile(shares, SHARES).tolist(),
        }
        for layer, shares in zip(firing.layer.values.tolist(), firing.values, strict=True)
    ]
    reader = PassageReader(store, before=BEFORE, after=AFTER)
    return {
        "layers": layers,
        "neurons": neurons.sizes["neuron"],
        "heaviest": _heaviest(reader, neurons, moments),
        "following": [
            _best(reader, neurons.sel(layer=layer).isel(neuron=neuron), neuron, lowest=False)
            for layer, neuron in following
        ],
    }


def _heaviest(
    reader: PassageReader, neurons: xr.Dataset, moments: xr.Dataset
) -> list[dict[str, Any]]:
    kurtosis = moments["kurtosis"].values
    order = np.argsort(-np.nan_to_num(kurtosis, nan=-np.inf), axis=None, kind="stable")[:HEAVIEST]
    found = []
    for layer, neuron in zip(*np.unravel_index(order, kurtosis.shape), strict=True):
        if np.isfinite(kurtosis[layer, neuron]):
            one = neurons.isel(layer=layer, neuron=neuron)
            lowest = bool(moments["skewness"][layer, neuron] < 0)
            best = _best(reader, one, int(neuron), lowest=lowest)
            found.append({**best, "kurtosis": float(kurtosis[layer, neuron])})
    return found


def _best(reader: PassageReader, one: xr.Dataset, neuron: int, *, lowest: bool) -> dict[str, Any]:
    """The passage where the value of one neuron is highest, or lowest."""
    best = by_neuron.contexts(one, count=1, lowest=lowest).isel(context=0)
    token = int(best.token)
    tokens = [printable(text) for text in reader.row(token)]
    peak = token % reader.positions - reader.window(token)[1].start
    return {
        "layer": int(one.layer),
        "neuron": neuron,
        "value": float(best.value),
        "before": "".join(tokens[:peak]),
        "peak": tokens[peak],
        "after": "".join(tokens[peak + 1 :]),
    }
