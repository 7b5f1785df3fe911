"""What is known of each neuron's activations: moments, histograms and extremes that merge.

In: arrays. Out: one partition's state as bytes and back, and the merged arrays of a whole run. It does
not know how the values were added up (see `neuron_accumulator`), the store, nor what is derived from the
arrays (see `by_neuron`).

Everything is kept apart for tokens that stand first in their sequence, which are outliers in many
models, so that a reader can leave them out. Special tokens are in none of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

# Bins of activation values: their edges are k / BINS_PER_UNIT from -LIMIT to LIMIT, exact in float32;
# 0 is one. What is below and above is counted in the first and the last bin.
BINS_PER_UNIT, LIMIT = 8, 16
HALF = BINS_PER_UNIT * LIMIT
BINS = 2 * HALF + 2
POWERS = 4

DIMENSIONS = {
    "tokens": ("first_position",),
    "mean": ("layer", "first_position", "neuron"),
    "moment2": ("layer", "first_position", "neuron"),
    "moment3": ("layer", "first_position", "neuron"),
    "moment4": ("layer", "first_position", "neuron"),
    "min": ("layer", "first_position", "neuron"),
    "max": ("layer", "first_position", "neuron"),
    "firing": ("layer", "first_position", "neuron"),
    "histogram": ("layer", "first_position", "neuron", "bin"),
    "highest_value": ("layer", "first_position", "neuron", "context"),
    "highest_token": ("layer", "first_position", "neuron", "context"),
    "lowest_value": ("layer", "first_position", "neuron", "context"),
    "lowest_token": ("layer", "first_position", "neuron", "context"),
    "layer": ("layer",),
    "first_position": ("first_position",),
    "bin_left": ("bin",),
    "bin_right": ("bin",),
}
DESCRIPTIONS = {
    "tokens": "Tokens of the run, special ones left out.",
    "mean": "Mean activation; NaN where there are no tokens.",
    "moment2": "Second central moment, which is the variance of the population.",
    "moment3": "Third central moment: mean of (activation - mean)^3.",
    "moment4": "Fourth central moment: mean of (activation - mean)^4.",
    "min": "Least activation.",
    "max": "Greatest activation.",
    "firing": "Tokens at which the activation is above 0.",
    "histogram": "Activations in bins [bin_left, bin_right); the first and the last bin are open.",
    "highest_value": "Highest activations, one for each sequence, descending; NaN where there are no more.",
    "highest_token": "Where they are: indices in the flattened token_ids; -1 where there are no more. "
    "Equal activations stand in the order of their tokens, and of a sequence's equal ones the first counts.",
    "lowest_value": "Lowest activations, one for each sequence, ascending; NaN where there are no more.",
    "lowest_token": "Where they are, as in highest_token.",
    "layer": "Number of the model's layer.",
    "first_position": "Whether the token stands first in its sequence.",
    "bin_left": "Least activation of the bin.",
    "bin_right": "Least activation above the bin.",
}


@dataclasses.dataclass(frozen=True)
class Neurons:
    """What is known of every neuron of a number of layers, from a share of a run's tokens.

    Sums are of the differences from `pivot`, the neuron's first value: float64 sums of plain powers would
    lose a small spread around a large mean. Contexts are as many as the share has sequences, at most
    as many as are kept; where there are fewer than others have, the token is -1 and the value infinite.
    """

    tokens: npt.NDArray[np.int64]  # [first_position]
    pivot: npt.NDArray[np.float32]  # [layer, first_position, neuron]
    powers: npt.NDArray[
        np.float64
    ]  # [layer, first_position, power, neuron], (value - pivot)^1 to 4
    firing: npt.NDArray[np.uint32]  # [layer, first_position, neuron]
    histogram: npt.NDArray[np.uint32]  # [layer, first_position, neuron, bin]
    highest_value: npt.NDArray[np.float32]  # [layer, first_position, neuron, context]
    highest_token: npt.NDArray[np.int64]  # the same
    lowest_value: npt.NDArray[np.float32]  # the same
    lowest_token: npt.NDArray[np.int64]  # the same

    def dump(self) -> bytes:
        """The state as a safetensors file: integers in the narrowest type that holds them, and of the
        histogram, which is mostly zeros, what is not zero."""
        from safetensors.numpy import save

        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        histogram = arrays.pop("histogram").reshape(-1)
        arrays["bin"] = np.flatnonzero(histogram)
        arrays["count"] = histogram[arrays["bin"]]
        return save({name: _narrowed(array) for name, array in arrays.items()})

    @classmethod
    def load(cls, body: bytes) -> Neurons:
        """The state that `dump` gave."""
        from safetensors.numpy import load

        arrays = load(body)
        histogram = np.zeros((*arrays["pivot"].shape, BINS), np.uint32)
        histogram.reshape(-1)[arrays.pop("bin")] = arrays.pop("count")
        arrays["firing"] = arrays["firing"].astype(np.uint32)
        for name in ("tokens", "highest_token", "lowest_token"):
            arrays[name] = arrays[name].astype(np.int64)
        return cls(histogram=histogram, **arrays)


def _narrowed(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The same integers in the narrowest type; anything else as it is."""
    if not np.issubdtype(array.dtype, np.integer) or not array.size:
        return array
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.uint16, np.int32, np.uint32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return array.astype(dtype)
    return array


def merge(parts: Iterable[Neurons], contexts: int) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a whole run by their names in DIMENSIONS, all but the coordinates, from the states
    of its partitions.

    Counts and extremes do not depend on the order of the parts; moments are folded in the order given,
    by the formulas of Chan, Golub and LeVeque (1979), which Pébay (SAND2008-6212, 2008) carries on to the
    third and fourth. `contexts` are kept of those of all parts. Counts are int64, values float32 and moments
    float64.
    """
    parts = iter(parts)
    begin = next(parts)
    tokens = np.zeros(2, np.int64)
    mean, *deviations = np.zeros((POWERS, *begin.pivot.shape))
    firing, histogram = begin.firing.astype(np.int64), begin.histogram.astype(np.int64)
    highest = _widened((begin.highest_value, begin.highest_token), contexts, -np.inf)
    lowest = _widened((begin.lowest_value, begin.lowest_token), contexts, np.inf)
    _add_moments(tokens, mean, deviations, begin)
    for part in parts:
        _add_moments(tokens, mean, deviations, part)
        firing += part.firing
        histogram += part.histogram
        highest = _best(highest, (part.highest_value, part.highest_token), descending=True)
        lowest = _best(lowest, (part.lowest_value, part.lowest_token), descending=False)
    with np.errstate(invalid="ignore"):
        moments = [deviation / tokens[:, None] for deviation in deviations]
    arrays = {
        "tokens": tokens,
        "mean": np.where(tokens[:, None] > 0, mean, np.nan),
        **{f"moment{number}": moment for number, moment in enumerate(moments, 2)},
        "firing": firing,
        "histogram": histogram,
    }
    for name, (value, token) in (("highest", highest), ("lowest", lowest)):
        arrays[f"{name}_value"] = np.where(token >= 0, value, np.float32(np.nan))
        arrays[f"{name}_token"] = token
    return arrays | {"min": arrays["lowest_value"][..., 0], "max": arrays["highest_value"][..., 0]}


def coordinates(layers: list[int]) -> dict[str, npt.NDArray[Any]]:
    """The rest of what DIMENSIONS names; `layers` are the layers' numbers."""
    edges = np.arange(-HALF, HALF + 1) / BINS_PER_UNIT
    return {
        "layer": np.array(layers, np.int64),
        "first_position": np.array([False, True]),
        "bin_left": np.concatenate([[-np.inf], edges]),
        "bin_right": np.concatenate([edges, [np.inf]]),
    }


def constant_layers(arrays: dict[str, npt.NDArray[Any]]) -> list[int]:
    """The layers, as indices, in which no neuron has two different values.

    One neuron may be constant in a sound run (one that was pruned, or that is dead after a ReLU), but
    hardly a layer at different tokens: that is how a capture fails that reads memory which nobody
    has written.
    """
    low, high = np.fmin.reduce(arrays["min"], axis=1), np.fmax.reduce(arrays["max"], axis=1)
    constant = (low == high).all(axis=-1)
    return np.flatnonzero(constant).tolist() if arrays["tokens"].sum() > 1 else []


def _add_moments(
    tokens: npt.NDArray[np.int64],
    mean: npt.NDArray[np.float64],
    deviations: list[npt.NDArray[np.float64]],
    part: Neurons,
) -> None:
    """Fold a part into the mean and the sums of the second to fourth powers of deviations from it, and into
    the count of the `tokens` that these are of."""
    for first in np.flatnonzero(part.tokens).tolist():
        own_mean, own2, own3, own4 = _central(part, first)
        total2, total3, total4 = (deviation[:, first] for deviation in deviations)
        n, m = float(tokens[first]), float(part.tokens[first])
        both = n + m
        step = own_mean - mean[:, first]
        total4 += own4 + step**4 * (n * m * (n * n - n * m + m * m) / both**3)
        total4 += 6 * step**2 * (n * n * own2 + m * m * total2) / both**2
        total4 += 4 * step * (n * own3 - m * total3) / both
        total3 += own3 + step**3 * (n * m * (n - m) / both**2)
        total3 += 3 * step * (n * own2 - m * total2) / both
        total2 += own2 + step**2 * (n * m / both)
        mean[:, first] += step * (m / both)
    tokens += part.tokens


def _central(part: Neurons, first: int) -> list[npt.NDArray[np.float64]]:
    """The mean, and the sums of the second to fourth powers of the deviations from it, each [layer,
    neuron], from the sums of powers of the differences from the pivot."""
    count = float(part.tokens[first])
    sum1, sum2, sum3, sum4 = np.moveaxis(part.powers[:, first], 1, 0)
    step = sum1 / count
    squares = np.maximum(sum2 - step * sum1, 0)
    cubes = sum3 - 3 * step * sum2 + 2 * step**2 * sum1
    fourths = np.maximum(sum4 - 4 * step * sum3 + 6 * step**2 * sum2 - 3 * step**3 * sum1, 0)
    return [part.pivot[:, first] + step, squares, cubes, fourths]


_Contexts = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def _widened(some: _Contexts, contexts: int, value: float) -> _Contexts:
    """The same with room for so many contexts, of which those that are not there have this value."""
    ends = [(0, 0)] * (some[0].ndim - 1) + [(0, contexts - some[0].shape[-1])]
    return np.pad(some[0], ends, constant_values=value), np.pad(some[1], ends, constant_values=-1)


def _best(one: _Contexts, other: _Contexts, *, descending: bool) -> _Contexts:
    """As many of both as `one` has, ordered by value, then by token."""
    value = np.concatenate([one[0], other[0]], axis=-1)
    token = np.concatenate([one[1], other[1]], axis=-1)
    order = np.lexsort((token, -value if descending else value))[..., : one[0].shape[-1]]
    return np.take_along_axis(value, order, axis=-1), np.take_along_axis(token, order, axis=-1)
