"""The statistics of a whole run, `statistics.zarr` by token length and `neurons.zarr` by neuron.

In: claim, and the states of all partitions. Out: the arrays of each group, and the words for them. It does
not know how the states were computed, nor what is derived from the arrays; see `by_length` and `by_neuron`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.errors import CheckError
from neoscope.format.groups import Group
from neoscope.format.layout import (
    NEURONS,
    NEURONS_DIMENSIONS,
    PARTITION_NEURONS,
    PARTITION_STATISTICS,
    STATISTICS,
    STATISTICS_DIMENSIONS,
)
from neoscope.format.states import missing, read_state
from neoscope.statistics import length_cells, neurons
from neoscope.statistics.length_cells import BINS_PER_UNIT, HALF, Cells
from neoscope.statistics.neurons import Neurons
from neoscope.storage.store import Store, concurrent_map

STATES_AT_A_TIME = 2  # 25 to 80 MB each for GPT-Neo 125M, and twice as many in memory

DESCRIPTIONS = {
    "tokens": "Tokens of each length, special ones left out.",
    "histogram": "Activations in bins [bin_left, bin_right); the first and the last bin are open.",
    "total": "Sum of the activations.",
    "squared_deviation": "Sum of the squares of the activations' differences from the mean of the "
    "same layer, first_position, length and neuron.",
    "layer": "Number of the model's layer.",
    "first_position": "Whether the token stands first in its sequence.",
    "length": "Characters of the token's own string, the leading space counted; a token that is part "
    "of a character counts 1.",
    "neuron": "Number of the neuron in its layer.",
    "bin_left": "Least activation of the bin.",
    "bin_right": "Least activation above the bin.",
}
# An activation, and what has its dimension, has none: 1 as CF conventions write it.
UNITS = {
    "tokens": "tokens",
    "histogram": "values",
    "total": "1",
    "squared_deviation": "1",
    "length": "characters",
    "bin_left": "1",
    "bin_right": "1",
}
NEURONS_UNITS = {
    "tokens": "tokens",
    "firing": "tokens",
    "histogram": "values",
    **dict.fromkeys(("mean", "min", "max", "highest_value", "lowest_value"), "1"),
    **dict.fromkeys(("moment2", "moment3", "moment4", "bin_left", "bin_right"), "1"),
}
GROUPS = {
    PARTITION_STATISTICS: Group(STATISTICS, STATISTICS_DIMENSIONS, DESCRIPTIONS, UNITS),
    PARTITION_NEURONS: Group(NEURONS, NEURONS_DIMENSIONS, neurons.DESCRIPTIONS, NEURONS_UNITS),
}


def merge_partitions(
    store: Store,
    name: str,
    claim: dict[str, Any],
    states: list[dict[str, Any]],
    counts: dict[int, int],
) -> dict[str, npt.NDArray[Any]]:
    """Every array of the group of the statistics with this name, from the entries of the partitions' `states`
    in order.

    `counts` are the run's tokens by length, ascending. Raises CheckError where states are missing or
    damaged, or have counted other tokens.
    """
    bodies, layers = _bodies(store, name, states), claim["hook"]["layers"]
    if name == PARTITION_STATISTICS:
        return _by_length(store, bodies, layers, counts)
    merged = neurons.merge(map(Neurons.load, bodies), claim["spec"]["contexts"])
    if merged["tokens"].sum() != sum(counts.values()):
        raise miscounted(store, name)
    return merged | neurons.coordinates(layers)


def _bodies(store: Store, name: str, states: list[dict[str, Any]]) -> Iterator[bytes]:
    def body_of(entries: dict[str, Any]) -> bytes:
        try:
            return read_state(store, entries, name)
        except FileNotFoundError as error:
            raise missing(store, str(error)) from None

    return concurrent_map(body_of, states, STATES_AT_A_TIME)


def _by_length(
    store: Store, bodies: Iterator[bytes], layers: list[int], counts: dict[int, int]
) -> dict[str, npt.NDArray[Any]]:
    lengths = np.array(list(counts), np.uint16)

    def each() -> Iterator[Cells]:
        for body in bodies:
            part = Cells.load(body)
            if not np.isin(part.length, lengths).all():
                raise miscounted(store, PARTITION_STATISTICS)
            yield part

    merged = length_cells.merge(lengths, each())
    if merged["tokens"].sum(axis=0).tolist() != list(counts.values()):
        raise miscounted(store, PARTITION_STATISTICS)
    edges = np.arange(-HALF, HALF + 1) / BINS_PER_UNIT
    return {
        **merged,
        "layer": np.array(layers, np.int64),
        "first_position": np.array([False, True]),
        "length": lengths,
        "neuron": np.arange(merged["total"].shape[-1]),
        "bin_left": np.concatenate([[-np.inf], edges]),
        "bin_right": np.concatenate([edges, [np.inf]]),
    }


def miscounted(store: Store, name: str) -> CheckError:
    return CheckError(
        f"{store.url}/{name} has counted other tokens than the records: delete the run and run it again"
    )
