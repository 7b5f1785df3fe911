"""The passages of all neurons of a layer at once: the arrays are read through, once, a block at a time.

In: an array and the places of passages. Out: the values at every token of every passage. It does not know
what the places are of.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import xarray as xr

BLOCK_BYTES = 64_000_000  # of values that are read at a time


@dataclasses.dataclass(frozen=True)
class Windows:
    """Passages of at most `before` + 1 + `after` tokens about `token` [neuron, context], indices in the
    flattened `token_ids` of sequences of `positions`; -1 is none."""

    token: npt.NDArray[np.int64]
    positions: int
    before: int
    after: int

    @property
    def sequence(self) -> npt.NDArray[np.int64]:
        """[neuron, context], -1 where there is none."""
        return self.token // self.positions

    @property
    def position(self) -> npt.NDArray[np.int64]:
        """[neuron, context, token] positions, of which those outside of the sequence are not `inside`."""
        around = np.arange(-self.before, self.after + 1)
        return (self.token % self.positions)[..., None] + around

    @property
    def inside(self) -> npt.NDArray[np.bool_]:
        there = (self.token >= 0)[..., None]
        position = self.position
        inside: npt.NDArray[np.bool_] = there & (position >= 0) & (position < self.positions)
        return inside

    def of_tokens(self, ids: xr.DataArray) -> npt.NDArray[np.int32]:
        """The token ids [neuron, context, token] of token_ids [sequence, position]; -1 outside."""
        found = np.full(self.inside.shape, -1, np.int32)
        sequences, place = np.unique(self.sequence, return_inverse=True)
        rows = ids.isel(sequence=np.maximum(sequences, 0)).values
        at = np.clip(self.position, 0, self.positions - 1)
        every = rows[place.reshape(self.sequence.shape)[..., None], at]
        found[self.inside] = every[self.inside]
        return found

    def of_values(self, values: xr.DataArray) -> npt.NDArray[np.float32]:
        """The values [neuron, context, token] of a layer [sequence, position, neuron]; NaN outside."""
        found = np.full(self.inside.shape, np.nan, np.float32)
        chunk = values.encoding["preferred_chunks"]["sequence"]
        size = values.dtype.itemsize * self.positions * len(self.token)
        step = max(1, BLOCK_BYTES // (size * chunk)) * chunk
        position, inside, sequence = self.position, self.inside, self.sequence
        for first in range(0, values.sizes["sequence"], step):
            neuron, context = np.nonzero((sequence >= first) & (sequence < first + step))
            if len(neuron):
                block = values[first : first + step].values
                at = np.clip(position[neuron, context], 0, self.positions - 1)
                row = sequence[neuron, context, None] - first
                found[neuron, context] = block[row, at, neuron[:, None]]
        found[~inside] = np.nan
        return found
