"""All statistics of one partition that a run keeps, added up while it computes.

In: layers from inside their hooks, with the lengths of their tokens and their place in the run. Out: the
state of each at this moment, by name. It does not know the store.
"""

from __future__ import annotations

import dataclasses
import importlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from neoscope.format.layout import (
    PARTITION_NEURONS,
    PARTITION_STATISTICS,
    PARTITION_TOKEN_SUMS,
)
from neoscope.pipeline import memory
from neoscope.spec import LAYER, RunSpec
from neoscope.statistics import gpu
from neoscope.statistics.length_accumulator import LengthStatistics, PlacedTokens
from neoscope.statistics.length_cells import Cells
from neoscope.statistics.neuron_accumulator import CountedTokens, NeuronStatistics
from neoscope.statistics.neurons import Neurons
from neoscope.statistics.token_accumulator import TokenStatistics

LENGTH_KERNELS = "neoscope.statistics.length_kernels"  # which sum up chunks, too
NEURON_KERNELS = "neoscope.statistics.neuron_kernels"
TOKEN_KERNELS = "neoscope.statistics.token_kernels"


def compile_kernels(spec: RunSpec, device: torch.device) -> None:
    """Begin to compile what runs on the CPU: it takes seconds, beside the text and the weights, not in the
    first layer's hook."""
    wanted = {
        LENGTH_KERNELS: True,
        NEURON_KERNELS: spec.neurons and not gpu.is_gpu(device),
        TOKEN_KERNELS: spec.token_sums,
    }

    def compile_each() -> None:
        for kernels in (name for name, needed in wanted.items() if needed):
            importlib.import_module(kernels)

    threading.Thread(target=compile_each, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class Placed:
    """The tokens of one pass as the statistics take them, the same for each layer; `first` is the offset of
    the first of them in the run's flattened `token_ids`."""

    first: int
    by_length: PlacedTokens | None
    by_neuron: Sequence[CountedTokens]


@dataclasses.dataclass(frozen=True)
class PartitionStatistics:
    """Those that the spec asks for; the others are None. They are of the values as they are stored."""

    dtype: torch.dtype
    by_length: LengthStatistics | None
    by_neuron: NeuronStatistics | None
    by_token: TokenStatistics | None

    def place(self, token_lengths: npt.NDArray[np.uint16], first: int) -> Placed:
        """Where the tokens of a pass belong, of these lengths [sequence, position], once for all its layers;
        `first` as in `Placed`."""
        return Placed(
            first,
            self.by_length.place(token_lengths) if self.by_length else None,
            self.by_neuron.place(token_lengths) if self.by_neuron else (),
        )

    def add(self, name: str, values: torch.Tensor, placed: Placed) -> None:
        """Add a layer's values [sequence, position, neuron]."""
        stored = values.to(self.dtype) if self.by_length or self.by_neuron else values
        if self.by_length and placed.by_length:
            self.by_length.add(name, stored, placed.by_length)
        if self.by_neuron:
            self.by_neuron.add(name, stored, placed.by_neuron, placed.first)

    def add_tokens(
        self,
        name: str,
        values: torch.Tensor,
        token_ids: npt.NDArray[np.int32],
        token_lengths: npt.NDArray[np.uint16],
    ) -> None:
        """Add to the sums by token what they are of, a layer's values or its linear map's inputs, both
        [sequence, position, neuron], at tokens with these ids and lengths [sequence, position]."""
        if self.by_token:
            stored = values if self.by_token.of_inputs else values.to(self.dtype)
            self.by_token.add(name, stored, token_ids, token_lengths)

    def check(self) -> None:
        """Raise CheckError where a value that was added is not finite."""
        for each in (self.by_length, self.by_neuron):
            if each:
                each.check()

    def states(self) -> dict[str, Cells | Neurons]:
        """What has been added so far, by the names that records have; copies in host memory. Sums by token
        are left out: a copy of all their layers would be gigabytes."""
        states: dict[str, Cells | Neurons] = {}
        if self.by_length:
            states[PARTITION_STATISTICS] = self.by_length.cells()
        if self.by_neuron:
            states[PARTITION_NEURONS] = self.by_neuron.neurons()
        return states


def make_statistics(
    spec: RunSpec,
    claim: dict[str, Any],
    lengths: npt.NDArray[np.uint16],
    states: dict[str, list[bytes]],
    maps: Mapping[str, torch.nn.Linear],
    device: torch.device,
) -> PartitionStatistics:
    """A partition's statistics as they were when `states` were put, by name; from nothing where there are
    none. `lengths` are those of the vocabulary's tokens, `maps` the linear maps of whose inputs the sums
    by token are. The states are let go as they are taken."""
    layers = [f"{LAYER}{number}" for number in claim["hook"]["layers"]]
    neurons = claim["model"]["neurons"]
    by_length, by_neuron, by_token = None, None, None
    if spec.statistics:
        by_length = LengthStatistics(lengths, layers=layers, neurons=neurons, device=device)
        if PARTITION_STATISTICS in states:
            by_length.restore(Cells.load(*states.pop(PARTITION_STATISTICS)))
    if spec.neurons:
        tokens = spec.batches * spec.tokens_per_batch
        by_neuron = NeuronStatistics(
            layers=layers, neurons=neurons, tokens=tokens, device=device, contexts=spec.contexts
        )
        if PARTITION_NEURONS in states:
            by_neuron.restore(Neurons.load(*states.pop(PARTITION_NEURONS)))
    if spec.token_sums:
        numbers = dict(zip(layers, claim["hook"]["layers"], strict=True))
        by_token = TokenStatistics(numbers, maps, memory.token_cells(spec, len(lengths)))
        if PARTITION_TOKEN_SUMS in states:
            by_token.restore(states.pop(PARTITION_TOKEN_SUMS))
    return PartitionStatistics(getattr(torch, spec.store_dtype), by_length, by_neuron, by_token)
