"""What each neuron does, added up while a run computes, where the layers are.

In: layers from inside their hooks, the lengths of their tokens, and where in the run they stand. Out: the
state of one partition, and a state that goes on from it. It does not know the store, nor what is
derived from the state.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from neoscope.errors import UsageError
from neoscope.statistics import gpu
from neoscope.statistics.finite import check_finite
from neoscope.statistics.neurons import BINS, BINS_PER_UNIT, HALF, POWERS, Neurons

MAX_TOKENS = 2**32 - 1  # that 32 bits count
# On a GPU a warp of 32 neurons reads a line of float32, and the sums of a neuron are one thread's: there are
# no more warps to be had, but each can ask for many tokens at a time. Below, what is counted at a time.
WARP_NEURONS, TOKENS_AT_A_TIME = 32, 32
BLOCK_POSITIONS, BLOCK_NEURONS = 32, 64
NOWHERE = 2**31 - 1
HIGHEST, LOWEST = ("highest_value", "highest_token"), ("lowest_value", "lowest_token")
State = dict[str, torch.Tensor]  # of one layer, by the names of `Neurons`


@dataclasses.dataclass(frozen=True)
class CountedTokens:
    """The tokens of one pass that count and are, or are not, at first positions, the same for each layer.

    `positions` are those that they can have. On a GPU the rest is there too, uploaded once.
    """

    positions: slice
    counted: npt.NDArray[np.bool_]  # [sequence, position]
    tokens_on_gpu: torch.Tensor | None = None  # int32, ascending
    counted_on_gpu: torch.Tensor | None = None  # uint8 [sequence, position]


Accumulate = Callable[[torch.Tensor, CountedTokens, int, State], None]


class NeuronStatistics:
    """The cumulative state of one partition of at most `tokens` tokens, on the device where the layers are.

    Values are added one after another in the order of their tokens, so the state does not depend on
    where passes, batches or restarts divide the text, to the last bit, nor on whether a CPU or a GPU
    adds them. Each batch must stand after those before it.
    """

    def __init__(
        self,
        *,
        layers: Sequence[str],
        neurons: int,
        tokens: int,
        device: torch.device,
        contexts: int,
    ) -> None:
        if tokens > MAX_TOKENS:
            raise UsageError(
                f"a partition of {tokens:,} tokens has more than {MAX_TOKENS:,}, which is what the "
                "statistics by neuron count to: give more --partitions, or fewer --batches"
            )
        self._layers = {name: index for index, name in enumerate(layers)}
        self._device, self._on_gpu = device, gpu.is_gpu(device)
        self._accumulate = _triton() if self._on_gpu else _accumulate_numba

        def full(*shape: int, dtype: torch.dtype, value: float = 0) -> torch.Tensor:
            return torch.full((len(layers), 2, *shape), value, dtype=dtype, device=device)

        # By layer and by whether the token stands first in its sequence, as in `Neurons`.
        self._tokens = np.zeros((len(layers), 2), np.int64)
        self._state = {
            "pivot": full(neurons, dtype=torch.float32),
            "powers": full(POWERS, neurons, dtype=torch.float64),
            # int32, of which all 32 bits are the count: torch does not add uint32.
            "firing": full(neurons, dtype=torch.int32),
            "histogram": full(neurons, BINS, dtype=torch.int32),
            "highest_value": full(neurons, contexts, dtype=torch.float32, value=-torch.inf),
            "highest_token": full(neurons, contexts, dtype=torch.int64, value=-1),
            "lowest_value": full(neurons, contexts, dtype=torch.float32, value=torch.inf),
            "lowest_token": full(neurons, contexts, dtype=torch.int64, value=-1),
        }

    def place(self, token_lengths: npt.NDArray[np.uint16]) -> tuple[CountedTokens, ...]:
        """Which tokens of a pass count, of these lengths [sequence, position], those of length 0, which are
        special, left out: those behind first positions, and those at them."""
        placed = []
        for positions in (slice(1, token_lengths.shape[1]), slice(0, 1)):
            counted = np.zeros(token_lengths.shape, np.bool_)
            counted[:, positions] = token_lengths[:, positions] > 0
            on_gpu: list[torch.Tensor] = []
            if self._on_gpu:
                for each in (np.flatnonzero(counted).astype(np.int32), counted.astype(np.uint8)):
                    on_gpu.append(torch.from_numpy(each).to(self._device))
            placed.append(CountedTokens(positions, counted, *on_gpu))
        return tuple(placed)

    def add(
        self, name: str, values: torch.Tensor, placed: Sequence[CountedTokens], first: int
    ) -> None:
        """Add a layer's values [sequence, position, neuron] at tokens that were placed. `first` is the place
        of their first token in the run's flattened `token_ids`. See `check` for values that are not
        finite."""
        layer = self._layers[name]
        for index, tokens in enumerate(placed):
            if not tokens.counted.any():
                continue
            if not self._tokens[layer, index]:
                sequence, position = np.argwhere(tokens.counted)[0]
                self._state["pivot"][layer, index] = values[sequence, position]
            state = {name: each[layer, index] for name, each in self._state.items()}
            self._accumulate(values, tokens, first, state)
            self._tokens[layer, index] += tokens.counted.sum()

    def check(self) -> None:
        """Raise CheckError where a value that was added is not finite. The host waits for the device."""
        check_finite(self._layers, self._state["powers"])

    def neurons(self) -> Neurons:
        """The state as it is now, in host memory."""
        tokens = self._tokens[0].copy()
        if not (self._tokens == tokens).all():
            raise AssertionError("the layers have counted different tokens")
        there = int((self._state["highest_token"][0, :, 0] >= 0).sum(dim=-1).max())
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, state in self._state.items():
            state = state[..., :there] if name.startswith(("highest", "lowest")) else state
            array = state.to("cpu", copy=True).numpy()
            arrays[name] = array.view(np.uint32) if array.dtype == np.int32 else array
        return Neurons(tokens, **arrays)

    def restore(self, neurons: Neurons) -> None:
        """Go on from the state that `neurons` gave."""
        self._tokens[:] = neurons.tokens
        for name, state in self._state.items():
            array = getattr(neurons, name)
            if array.dtype == np.uint32:
                array = array.view(np.int32)
            state[..., : array.shape[-1]] = torch.from_numpy(array).to(state.device)


def _accumulate_numba(
    values: torch.Tensor,
    placed: CountedTokens,
    first: int,
    state: State,
) -> None:
    """Add a layer's values [sequence, position, neuron] to its state on a CPU."""
    from neoscope.statistics import neuron_kernels as kernels

    sequences, _, neurons = values.shape
    rows = values.float().reshape(-1, neurons).contiguous().numpy()
    arrays = {name: each.numpy() for name, each in state.items()}
    counts = [arrays[name].view(np.uint32).reshape(-1) for name in ("firing", "histogram")]
    high = np.full((sequences, neurons), -np.inf, np.float32)
    low = np.full((sequences, neurons), np.inf, np.float32)
    high_row, low_row = np.empty((2, sequences, neurons), np.int32)
    counted = placed.counted
    by_sequence = np.split(np.flatnonzero(counted), counted.sum(axis=1).cumsum()[:-1])
    for tokens, *extremes in zip(by_sequence, high, high_row, low, low_row, strict=True):
        for start in range(0, len(tokens), kernels.TOKENS):
            # The second and the third find these in the cache.
            some = tokens[start : start + kernels.TOKENS]
            kernels.add_powers(rows, some, arrays["pivot"], arrays["powers"])
            kernels.find_extremes(rows, some, *extremes)
            kernels.count(rows, some, *counts)
    highest, lowest = ([arrays[name] for name in names] for names in (HIGHEST, LOWEST))
    kernels.keep_best(high, high_row, first, 1, *highest)
    kernels.keep_best(low, low_row, first, -1, *lowest)


def _triton() -> Accumulate:
    """What adds a layer on a GPU. Raises InputError where Triton cannot compile it."""
    return functools.partial(_accumulate_triton, gpu.kernels("neuron_gpu_kernels"))


def _accumulate_triton(
    kernels: Any,
    values: torch.Tensor,
    placed: CountedTokens,
    first: int,
    state: State,
) -> None:
    """The same on a GPU, for which the host does not wait."""
    sequences, positions, neurons = values.shape
    values = values.contiguous()
    tokens, device = placed.tokens_on_gpu, values.device
    assert tokens is not None
    high, low = torch.empty((2, neurons, sequences), dtype=torch.float32, device=device)
    high_token, low_token = torch.empty((2, neurons, sequences), dtype=torch.int64, device=device)
    gpu.launch(
        kernels.add_powers,
        (-(-neurons // WARP_NEURONS),),
        values,
        tokens,
        len(tokens),
        state["pivot"],
        state["powers"],
        neurons,
        AT_A_TIME=TOKENS_AT_A_TIME,
        BLOCK_NEURONS=WARP_NEURONS,
        num_warps=1,
    )
    gpu.launch(
        kernels.count_and_compare,
        (sequences, -(-neurons // BLOCK_NEURONS)),
        values,
        placed.counted_on_gpu,
        positions,
        placed.positions.start,
        placed.positions.stop,
        state["firing"],
        state["histogram"],
        high,
        high_token,
        low,
        low_token,
        neurons,
        first,
        BINS=BINS,
        HALF=HALF,
        BINS_PER_UNIT=BINS_PER_UNIT,
        BLOCK_POSITIONS=BLOCK_POSITIONS,
        BLOCK_NEURONS=BLOCK_NEURONS,
        NOWHERE=NOWHERE,
    )
    _keep_best([state[name] for name in HIGHEST], (high, high_token), highest=True)
    _keep_best([state[name] for name in LOWEST], (low, low_token), highest=False)


def _keep_best(best: Sequence[torch.Tensor], new: Sequence[torch.Tensor], *, highest: bool) -> None:
    """Take new values and tokens [neuron, sequence] into the best so far [neuron, context], which stand at
    earlier tokens: a stable sort leaves equal ones in their order."""
    value, token = (torch.cat(pair, dim=1) for pair in zip(best, new, strict=True))
    # A sort by bits would set -0.0 before 0.0: plus 0.0 both are 0.0.
    order = torch.sort(value + 0.0, dim=1, descending=highest, stable=True).indices
    order = order[:, : best[0].shape[1]]
    best[0].copy_(value.gather(1, order))
    best[1].copy_(token.gather(1, order))
