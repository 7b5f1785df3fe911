"""What each neuron does, added up while a run computes, where the layers are.

In: layers from inside their hooks, the lengths of their tokens, and where in the run they stand. Out: the
state of one partition, and a state that goes on from it. It does not know the store, nor what is
derived from the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from neoscope.errors import UsageError
from neoscope.statistics.finite import check_finite
from neoscope.statistics.neurons import (
    BINS,
    BINS_PER_UNIT,
    GPU_ELEMENTS,
    HALF,
    POWERS,
    Neurons,
)

MAX_TOKENS = 2**32 - 1  # that 32 bits count


class NeuronStatistics:
    """The cumulative state of one partition of at most `tokens` tokens, on the device where the layers are.

    Values are added one after another in the order of their tokens, so the state does not depend on
    where passes, batches or restarts divide the text: on a CPU to the last bit, elsewhere its sums
    agree within rounding and all else is the same. Each batch must stand after those before it.
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

    def add(
        self, name: str, values: torch.Tensor, token_lengths: npt.NDArray[np.uint16], first: int
    ) -> None:
        """Add a layer's values [sequence, position, neuron] at tokens of these lengths [sequence,
        position]; those of length 0 are special and do not count. `first` is the place of their first
        token in the run's flattened `token_ids`. See `check` for values that are not finite."""
        layer = self._layers[name]
        values = values.float()
        accumulate = _accumulate_numba if values.device.type == "cpu" else accumulate_torch
        for index, positions in enumerate((slice(1, None), slice(0, 1))):
            chosen = np.zeros(token_lengths.shape, np.bool_)
            chosen[:, positions] = token_lengths[:, positions] > 0
            if not chosen.any():
                continue
            if not self._tokens[layer, index]:
                sequence, position = np.argwhere(chosen)[0]
                self._state["pivot"][layer, index] = values[sequence, position]
            state = (each[layer, index] for each in self._state.values())
            accumulate(values, chosen, first, *state)
            self._tokens[layer, index] += chosen.sum()

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


def accumulate_torch(
    values: torch.Tensor,
    chosen: npt.NDArray[np.bool_],
    first: int,
    pivot: torch.Tensor,
    powers: torch.Tensor,
    firing: torch.Tensor,
    histogram: torch.Tensor,
    *contexts: torch.Tensor,
) -> None:
    """Add the chosen [sequence, position] of a layer's values [sequence, position, neuron] to its state,
    on any device: the same every time, and the host never waits."""
    positions = np.flatnonzero(chosen.any(axis=0))
    used = slice(int(positions[0]), int(positions[-1]) + 1)
    at_a_time = max(1, GPU_ELEMENTS // ((used.stop - used.start) * values.shape[2]))
    for start in range(0, len(values), at_a_time):
        part, keep = (
            each[start : start + at_a_time] for each in (values, torch.from_numpy(chosen))
        )
        rows = keep.flatten().nonzero()[:, 0].to(values.device, non_blocking=True)
        _add_rows(part.flatten(0, 1)[rows], pivot, powers, firing, histogram)
        left_out = None
        if not bool(keep[:, used].all()):
            left_out = ~keep[:, used, None].to(values.device, non_blocking=True)
        place = first + start * values.shape[1] + used.start
        for best, highest in ((contexts[:2], True), (contexts[2:], False)):
            new = _extremes(part[:, used], left_out, place, values.shape[1], highest)
            _keep_best(best, new, highest)


def _add_rows(
    rows: torch.Tensor,
    pivot: torch.Tensor,
    powers: torch.Tensor,
    firing: torch.Tensor,
    histogram: torch.Tensor,
) -> None:
    """Add rows [token, neuron] to sums and counts."""
    firing += (rows > 0).sum(dim=0, dtype=torch.int32)
    # A product with a power of two is exact: a value is never on the wrong side of an edge.
    bins = (rows * BINS_PER_UNIT).floor_().nan_to_num_(0, HALF, -HALF - 1)
    places = bins.clamp_(-HALF - 1, HALF).long()
    places += torch.arange(rows.shape[1], device=rows.device) * BINS + HALF + 1
    one = torch.ones(1, dtype=torch.int32, device=rows.device)
    histogram.view(-1).scatter_add_(0, places.view(-1), one.expand(places.numel()))
    difference = rows.double().sub_(pivot)
    power = difference.clone()
    for total in powers[:-1]:
        total += power.sum(dim=0)
        power *= difference
    powers[-1] += power.sum(dim=0)


def _extremes(
    values: torch.Tensor, left_out: torch.Tensor | None, first: int, positions: int, highest: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest or lowest value of each sequence of values [sequence, position, neuron], the first of
    equal ones, and its token; both [neuron, sequence]. A sequence that is left out has token -1."""
    worst = -torch.inf if highest else torch.inf
    if left_out is not None:
        values = values.masked_fill(left_out, worst)
    # Of equal values torch documents that it gives the first; 0.0 and -0.0 are equal.
    _, at = values.max(dim=1) if highest else values.min(dim=1)
    value = values.gather(1, at[:, None])[:, 0]
    starts = torch.arange(len(values), device=values.device) * positions + first
    token = torch.where(value == worst, -1, at + starts[:, None])
    return value.T, token.T


def _keep_best(
    best: tuple[torch.Tensor, ...], new: tuple[torch.Tensor, torch.Tensor], highest: bool
) -> None:
    """Take new values and tokens [neuron, sequence] into the best so far [neuron, context], which stand at
    earlier tokens: a stable sort leaves equal ones in their order."""
    value, token = (torch.cat(pair, dim=1) for pair in zip(best, new, strict=True))
    # A sort by bits would set -0.0 before 0.0: plus 0.0 both are 0.0.
    order = torch.sort(value + 0.0, dim=1, descending=highest, stable=True).indices
    order = order[:, : best[0].shape[1]]
    best[0].copy_(value.gather(1, order))
    best[1].copy_(token.gather(1, order))


def _accumulate_numba(
    values: torch.Tensor,
    chosen: npt.NDArray[np.bool_],
    first: int,
    pivot: torch.Tensor,
    powers: torch.Tensor,
    firing: torch.Tensor,
    histogram: torch.Tensor,
    *contexts: torch.Tensor,
) -> None:
    """The same on a CPU, in the order of the tokens."""
    from neoscope.statistics import neuron_kernels as kernels

    sequences, _, neurons = values.shape
    rows = values.reshape(-1, neurons).contiguous().numpy()
    counts = [each.numpy().view(np.uint32).reshape(-1) for each in (firing, histogram)]
    high = np.full((sequences, neurons), -np.inf, np.float32)
    low = np.full((sequences, neurons), np.inf, np.float32)
    high_row, low_row = np.empty((2, sequences, neurons), np.int32)
    by_sequence = np.split(np.flatnonzero(chosen), chosen.sum(axis=1).cumsum()[:-1])
    for tokens, *extremes in zip(by_sequence, high, high_row, low, low_row, strict=True):
        for start in range(0, len(tokens), kernels.TOKENS):
            # The second and the third find these in the cache.
            some = tokens[start : start + kernels.TOKENS]
            kernels.add_powers(rows, some, pivot.numpy(), powers.numpy())
            kernels.find_extremes(rows, some, *extremes)
            kernels.count(rows, some, *counts)
    highest, highest_token, lowest, lowest_token = (each.numpy() for each in contexts)
    kernels.keep_best(high, high_row, first, 1, highest, highest_token)
    kernels.keep_best(low, low_row, first, -1, lowest, lowest_token)
