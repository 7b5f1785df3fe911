"""What is known of activations by token length: sums and histograms that merge.

In: arrays. Out: one partition's state as bytes and back, and the merged arrays of a whole run. It does
not know how the values were computed or added up; see `length_accumulator`.

A cell is a token length in characters, and whether the token stands first in its sequence (first
positions are outliers in many models, and a reader must be able to leave them out). The groups
depend on the median of the whole run, which no worker knows while it computes: every cut at any
length follows from the cells. Special tokens have no length and are in no cell.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

# Bins of activation values: their edges are k / BINS_PER_UNIT from -LIMIT to LIMIT, so that bins of
# 0.26 from -8 to 5, as people plot them, are whole numbers of ours. What is below and above is
# counted in the first and the last bin.
BINS_PER_UNIT, LIMIT = 50, 16
HALF = BINS_PER_UNIT * LIMIT
BINS = 2 * HALF + 2


@dataclasses.dataclass(frozen=True)
class Cells:
    """What is known of every cell that has tokens, for a number of layers.

    Sums are of the differences from `pivot`, the first value of its cell and neuron: float64 sums of
    plain squares would lose a small spread around a large mean.
    """

    length: npt.NDArray[np.uint16]  # [cell], characters
    first: npt.NDArray[np.bool_]  # [cell], whether of first positions
    tokens: npt.NDArray[np.int64]  # [cell]
    histogram: npt.NDArray[np.int64]  # [layer, cell, bin]
    pivot: npt.NDArray[np.float32]  # [layer, cell, neuron]
    total: npt.NDArray[np.float64]  # [layer, cell, neuron], of value - pivot
    squares: npt.NDArray[np.float64]  # [layer, cell, neuron], of (value - pivot)^2

    def dump(self) -> bytes:
        """The cells as a safetensors file."""
        from safetensors.numpy import save

        return save({f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @classmethod
    def load(cls, body: bytes) -> Cells:
        from safetensors.numpy import load

        return cls(**load(body))


def merge(lengths: npt.NDArray[np.uint16], parts: Iterable[Cells]) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a whole run from the cells of its partitions, folded in the order given.

    `lengths` [length] are all that any partition has, ascending. `tokens` [first_position, length]
    int64, `histogram` [layer, first_position, length, bin] int64, `total` and `squared_deviation`
    [layer, first_position, length, neuron] float64, the latter the sum of squared deviations from the
    cell's own mean. They are merged by the formula of Chan, Golub and LeVeque (1979).
    """
    parts = iter(parts)
    begin = next(parts)
    layers, _, neurons = begin.pivot.shape
    cells = (2, len(lengths))
    tokens = np.zeros(cells, np.int64)
    histogram = np.zeros((layers, *cells, BINS), np.int64)
    mean = np.zeros((layers, *cells, neurons))
    deviation = np.zeros((layers, *cells, neurons))
    for part in itertools.chain([begin], parts):
        first, length = part.first.astype(int), np.searchsorted(lengths, part.length)
        before, count = tokens[first, length][:, None], part.tokens[:, None]
        step = part.pivot + part.total / count - mean[:, first, length]
        own = np.maximum(part.squares - part.total**2 / count, 0)
        deviation[:, first, length] += own + step**2 * (before * count / (before + count))
        mean[:, first, length] += step * (count / (before + count))
        histogram[:, first, length] += part.histogram
        tokens[first, length] += part.tokens
    return {
        "tokens": tokens,
        "histogram": histogram,
        "total": mean * tokens[:, :, None],
        "squared_deviation": deviation,
    }
