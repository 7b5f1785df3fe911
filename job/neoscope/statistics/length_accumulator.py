"""What the neurons do by token length, added up while a run computes, where the layers are.

In: layers from inside their hooks, and the lengths of their tokens. Out: the cells of one partition, and
a state that goes on from them. It does not know the store, nor what is derived from the cells.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from neoscope.statistics import gpu
from neoscope.statistics.finite import check_finite
from neoscope.statistics.length_cells import BINS, BINS_PER_UNIT, HALF, Cells

# What a thread block of a GPU takes at a time: a neuron for each of its threads, and tokens whose loads are
# issued together, before their sums.
BLOCK_TOKENS, BLOCK_NEURONS, TOKENS_AT_A_TIME = 32, 128, 16


@dataclasses.dataclass(frozen=True)
class PlacedTokens:
    """The tokens of one pass and the cells they belong to, the same for each layer.

    On a GPU `by_cell` is there, uploaded once: the tokens sorted by cell, where each cell begins among
    them, the cells, and whether each of them is empty until now; int32.
    """

    tokens: npt.NDArray[np.int64]  # [token], those that are not special, ascending
    cells: npt.NDArray[np.int64]  # [token]
    by_cell: tuple[torch.Tensor, ...] = ()


Add = Callable[..., None]


class LengthStatistics:
    """The cumulative state of one partition, on the device where the layers are.

    Values are added one after another in the order of their tokens, so the state does not depend on
    where passes, batches or restarts divide the text, to the last bit, nor on whether a CPU or a GPU
    adds them.
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
        self._on_gpu = gpu.is_gpu(device)
        self._add = _triton() if self._on_gpu else _numba()

        def zeros(*shape: int, dtype: torch.dtype) -> torch.Tensor:
            return torch.zeros((len(layers), cells, *shape), dtype=dtype, device=device)

        self._tokens = np.zeros((len(layers), cells), np.int64)
        self._histogram = zeros(BINS, dtype=torch.int64)
        self._pivot = zeros(neurons, dtype=torch.float32)
        self._total = zeros(neurons, dtype=torch.float64)
        self._squares = zeros(neurons, dtype=torch.float64)

    def place(self, token_lengths: npt.NDArray[np.uint16]) -> PlacedTokens:
        """Where the tokens of a pass belong, of these lengths [sequence, position]. Each layer of the
        pass is to be added before those of the next pass are placed."""
        cells = self._cells_of(token_lengths)
        tokens = np.flatnonzero(cells >= 0)
        cells = cells[tokens]
        if not self._on_gpu:
            return PlacedTokens(tokens, cells)
        order = tokens[np.argsort(cells, kind="stable")]
        counts = np.bincount(cells, minlength=self._tokens.shape[1])
        here = np.flatnonzero(counts)
        starts = np.concatenate([[0], np.cumsum(counts[here])])
        fresh = self._tokens[0, here] == 0
        by_cell = (torch.from_numpy(each.astype(np.int32)) for each in (order, starts, here, fresh))
        return PlacedTokens(tokens, cells, tuple(each.to(self._pivot.device) for each in by_cell))

    def add(self, name: str, values: torch.Tensor, placed: PlacedTokens) -> None:
        """Add a layer's values [sequence, position, neuron]. See `check` for values that are not finite."""
        layer = self._layers[name]
        rows = values.flatten(0, 1)
        if not self._on_gpu:
            seen, where = np.unique(placed.cells, return_index=True)
            new = where[self._tokens[layer, seen] == 0]  # the first token of each cell
            self._pivot[layer, placed.cells[new]] = rows[placed.tokens[new]].float()
        if len(placed.tokens):
            state = (self._pivot, self._total, self._squares, self._histogram)
            self._add(rows, placed, *(each[layer] for each in state))
        self._tokens[layer] += np.bincount(placed.cells, minlength=self._tokens.shape[1])

    def check(self) -> None:
        """Raise CheckError where a value that was added is not finite. The host waits for the device."""
        check_finite(self._layers, self._squares)

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


@functools.cache
def _numba() -> Add:
    """Add a layer in one pass over its values on the CPU."""
    from neoscope.statistics.length_kernels import accumulate

    def add(rows: torch.Tensor, placed: PlacedTokens, *state: torch.Tensor) -> None:
        accumulate(
            rows.float().contiguous().numpy(),
            placed.tokens,
            placed.cells,
            *(values.numpy() for values in state),
        )

    return add


def _triton() -> Add:
    """What adds a layer in one pass on a GPU. Raises InputError where Triton cannot compile it."""
    return functools.partial(_add_triton, gpu.kernels("length_gpu_kernels").accumulate)


def _add_triton(
    kernel: Any, rows: torch.Tensor, placed: PlacedTokens, *state: torch.Tensor
) -> None:
    neurons = rows.shape[1]
    gpu.launch(
        kernel,
        (len(placed.by_cell[2]), -(-neurons // BLOCK_NEURONS)),
        rows.contiguous(),
        *placed.by_cell,
        *state,
        neurons,
        BINS=BINS,
        HALF=HALF,
        BINS_PER_UNIT=BINS_PER_UNIT,
        BLOCK_TOKENS=BLOCK_TOKENS,
        BLOCK_NEURONS=BLOCK_NEURONS,
        AT_A_TIME=TOKENS_AT_A_TIME,
        PADDED_BINS=1 << (BINS - 1).bit_length(),  # of which tl.histogram wants a power of two
    )
