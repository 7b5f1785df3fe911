"""What the neurons do by token length, added up while a run computes, where the layers are.

In: layers from inside their hooks, and the lengths of their tokens. Out: the cells of one partition, and
a state that goes on from them. It does not know the store, nor what is derived from the cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from neoscope.errors import CheckError
from neoscope.statistics.length_cells import BINS, BINS_PER_UNIT, HALF, Cells


class LengthStatistics:
    """The cumulative state of one partition, on the device where the layers are.

    Values are added one after another in the order of their tokens, so the state does not depend on
    where passes, batches or restarts divide the text: on a CPU to the last bit.
    """

    def __init__(
        self,
        vocabulary_lengths: npt.NDArray[np.uint16],
        *,
        layers: Sequence[str],
        neurons: int,
        device: torch.device,
    ) -> None:
        self._layers = {name: index for index, name in enumerate(layers)}
        self._lengths = np.unique(vocabulary_lengths[vocabulary_lengths > 0])
        cells = 2 * len(self._lengths)

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros((len(layers), cells, *shape), dtype=dtype, device=device)

        self._tokens = np.zeros((len(layers), cells), np.int64)
        self._histogram = zeros(BINS, dtype=torch.int64)
        self._pivot = zeros(neurons, dtype=torch.float32)
        self._total = zeros(neurons, dtype=torch.float64)
        self._squares = zeros(neurons, dtype=torch.float64)

    def add(self, name: str, values: torch.Tensor, token_lengths: npt.NDArray[np.uint16]) -> None:
        """Add a layer's values [sequence, position, neuron] at tokens of these lengths [sequence,
        position]. Raises CheckError where a value is not finite."""
        layer = self._layers[name]
        cells = self._cells_of(token_lengths)
        tokens = np.flatnonzero(cells >= 0)
        cells = cells[tokens]
        counts = np.bincount(cells, minlength=self._tokens.shape[1])
        seen, where = np.unique(cells, return_index=True)
        new = where[self._tokens[layer, seen] == 0]  # the first token of each cell, in this layer
        rows = values.reshape(-1, values.shape[-1]).float()
        self._pivot[layer, cells[new]] = rows[tokens[new]]
        accumulate = _accumulate_numba if values.device.type == "cpu" else accumulate_torch
        accumulate(
            rows,
            tokens,
            cells,
            self._pivot[layer],
            self._total[layer],
            self._squares[layer],
            self._histogram[layer],
        )
        self._tokens[layer] += counts
        if not bool(torch.isfinite(self._squares[layer]).all()):
            raise CheckError(
                f"{name} has values that are not finite: use --precision float32 or "
                "--store-dtype float32, or look at the weights"
            )

    def cells(self) -> Cells:
        """The state of the cells that have tokens, in host memory."""
        tokens = self._tokens[0]
        if not (self._tokens == tokens).all():
            raise AssertionError("the layers have counted different tokens")
        seen = np.flatnonzero(tokens)
        number = len(self._lengths)
        state = (self._histogram, self._pivot, self._total, self._squares)
        return Cells(
            self._lengths[seen % number],
            seen >= number,
            tokens[seen],
            *(values[:, seen].cpu().numpy() for values in state),
        )

    def restore(self, cells: Cells) -> None:
        """Go on from the state that `cells` gave."""
        index = np.searchsorted(self._lengths, cells.length) + len(self._lengths) * cells.first
        self._tokens[:, index] = cells.tokens
        for name in ("histogram", "pivot", "total", "squares"):
            state: torch.Tensor = getattr(self, f"_{name}")
            state[:, index] = torch.from_numpy(getattr(cells, name)).to(state.device)

    def _cells_of(self, token_lengths: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
        """The cell of every token [sequence x position], -1 for special ones."""
        cells = np.searchsorted(self._lengths, token_lengths)
        cells[:, 0] += len(self._lengths)
        cells[token_lengths == 0] = -1
        return cells.reshape(-1)


def accumulate_torch(
    rows: torch.Tensor,
    tokens: npt.NDArray[np.int64],
    cells: npt.NDArray[np.int64],
    pivot: torch.Tensor,
    total: torch.Tensor,
    squares: torch.Tensor,
    histogram: torch.Tensor,
) -> None:
    """Add rows [token, neuron] to a layer's state, on any device: sums as products with a matrix of
    zeros and ones, the same ones every time."""
    index = torch.from_numpy(cells).to(rows.device)
    chosen = rows[torch.from_numpy(tokens).to(rows.device)].double()
    members = torch.nn.functional.one_hot(index, len(pivot)).double().T
    difference = chosen - pivot[index]
    total += members @ difference
    squares += members @ difference.square_()
    # The product is exact in float64, so a value is never on the wrong side of an edge.
    bins = chosen.mul_(BINS_PER_UNIT).floor_().nan_to_num_(0).clamp_(-HALF - 1, HALF).long()
    flat = (bins + (HALF + 1) + index[:, None] * BINS).reshape(-1)
    one = torch.ones(1, dtype=torch.int64, device=rows.device)
    histogram.view(-1).scatter_add_(0, flat, one.expand_as(flat))


def _accumulate_numba(
    rows: torch.Tensor,
    tokens: npt.NDArray[np.int64],
    cells: npt.NDArray[np.int64],
    *state: torch.Tensor,
) -> None:
    """The same in one pass over the values, in the order of the tokens."""
    from neoscope.statistics.length_kernels import accumulate

    accumulate(rows.contiguous().numpy(), tokens, cells, *(values.numpy() for values in state))
