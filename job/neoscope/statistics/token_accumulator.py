"""The sums by token of all layers, added up in host memory while a run computes.

In: layers from inside their hooks, or the inputs of the linear maps whose outputs they are, with token ids
and their lengths. Out: the state of one partition, a layer at a time, and a state that goes on from it. It
does not know the store.

A GPU's layers are copied to the host for it: its own sums in float64 would be in no fixed order, or would
need the tokens sorted, and tens of GB of its memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from neoscope.statistics.token_sums import TokenAccumulator, TokenSums


class TokenStatistics:
    """The cumulative state of one partition, in which at most `cells` cells occur.

    `layers` are their numbers by name, `maps` the linear maps by the same names where sums are of their
    inputs, which are float32. Values are added one after another in the order of their tokens: on a CPU the
    state does not depend on where passes, batches or restarts divide the text, to the last bit.
    """

    def __init__(
        self, layers: Mapping[str, int], maps: Mapping[str, torch.nn.Linear], cells: int
    ) -> None:
        self.of_inputs = bool(maps)
        self._maps = maps
        self._sums = {
            name: TokenAccumulator(number, cells=cells, squares=False)
            for name, number in layers.items()
        }

    def add(
        self,
        name: str,
        values: torch.Tensor,
        token_ids: npt.NDArray[np.int32],
        token_lengths: npt.NDArray[np.uint16],
    ) -> None:
        """Add a layer's values [sequence, position, neuron], or the inputs of its linear map, at tokens with
        these ids and lengths [sequence, position]; those of length 0 are special and do not count."""
        first = np.zeros(token_ids.shape, np.bool_)
        first[:, 0] = True
        rows = values.flatten(0, 1).float().cpu().numpy()
        chosen = token_lengths.reshape(-1) > 0
        if not chosen.all():
            rows = rows[chosen]
        self._sums[name].add(rows, token_ids.reshape(-1)[chosen], first.reshape(-1)[chosen])

    def sums(self) -> Iterator[TokenSums]:
        """The sums so far, a layer at a time: of each a copy is made."""
        for name, accumulator in self._sums.items():
            weight, bias = self._map(name)
            yield replace(accumulator.sums(), weight=weight, bias=bias)

    def restore(self, bodies: list[bytes]) -> None:
        """Go on from what `sums` gave, in the same order; the bodies are let go one by one."""
        for accumulator in reversed(self._sums.values()):
            accumulator.restore(TokenSums.load(bodies.pop()))

    def _map(self, name: str) -> list[npt.NDArray[np.float32] | None]:
        """The weight and the bias of a layer's linear map, None where there is none."""
        linear = self._maps.get(name)
        both = (linear.weight, linear.bias) if linear else (None, None)
        return [None if each is None else each.detach().cpu().numpy() for each in both]
