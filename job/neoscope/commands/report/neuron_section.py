"""What the report says of each neuron: dead and always-on ones, how often they fire, the heaviest tails, and
passages of those that it names.

In: a committed run with statistics by neuron, and what else the page names. Out: plain numbers and words for
the page. No activation is read.
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
PASSAGES = 3  # of each neuron that the page names
BEFORE, AFTER = 8, 3  # tokens of a passage about its peak
SHARES = (0.05, 0.5, 0.95)


def neuron_section(
    store: Store, named: list[dict[str, Any]], correlation: xr.DataArray
) -> dict[str, Any]:
    """`layers`: of each the neurons that fire at no token and at every one, and the firing of the neurons
    at the 5th, 50th and 95th percentile. `heaviest`: the neurons with the greatest kurtosis, each with
    the passage where the longer tail ends. `named`: these and the `named` ones (`layer` and `neuron` of
    each), in order, each once, with the share of tokens at which it fires, its `correlation` [layer,
    neuron] with token length as `r`, and the passages where it is highest."""
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
    heaviest = _heaviest(reader, neurons, moments)
    return {
        "layers": layers,
        "neurons": neurons.sizes["neuron"],
        "heaviest": heaviest,
        "named": [
            {
                "layer": layer,
                "neuron": neuron,
                "firing": float(firing.sel(layer=layer)[neuron]),
                "r": float(correlation.sel(layer=layer)[neuron]),
                "passages": _passages(reader, neurons.sel(layer=layer).isel(neuron=neuron)),
            }
            for layer, neuron in sorted(
                {(each["layer"], each["neuron"]) for each in [*named, *heaviest]}
            )
        ],
    }


def _passages(
    reader: PassageReader, one: xr.Dataset, *, count: int = PASSAGES, lowest: bool = False
) -> list[dict[str, Any]]:
    """The text about the highest values of one neuron, or its lowest, without the values around them."""
    kept = min(count, one.sizes["context"])
    best = by_neuron.contexts(one, count=kept, lowest=lowest)
    found = []
    for value, token in zip(best.value.values.tolist(), best.token.values.tolist(), strict=True):
        if token >= 0:
            tokens = [printable(text) for text in reader.row(token)]
            peak = token % reader.positions - reader.window(token)[1].start
            before, after = "".join(tokens[:peak]), "".join(tokens[peak + 1 :])
            found.append({"value": value, "before": before, "peak": tokens[peak], "after": after})
    return found


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
            (passage,) = _passages(reader, one, count=1, lowest=lowest)
            found.append(
                {
                    "layer": int(one.layer),
                    "neuron": int(neuron),
                    "kurtosis": float(kurtosis[layer, neuron]),
                    **passage,
                }
            )
    return found
