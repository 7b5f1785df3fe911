"""What is added up over a partition's batches: made, added to, and put at a record's end.

In: layers from inside their hooks. Out: the entries that a record has of what was added up to it. It does
not know how anything is added up, nor when a record is put.
"""

from __future__ import annotations

from typing import Any

import torch

from neoscope.format.layout import statistics_key
from neoscope.format.statistics import put_cells
from neoscope.pipeline.inputs import Inputs
from neoscope.spec import LAYER
from neoscope.statistics.length_accumulator import LengthStatistics, PlacedTokens
from neoscope.statistics.length_cells import Cells
from neoscope.storage.store import Store


def make_accumulators(
    claim: dict[str, Any], prepared: Inputs, cells: Cells | None, device: torch.device
) -> LengthStatistics | None:
    """The partition's statistics as they are after its last record, None where none are wanted."""
    if not claim["spec"]["statistics"]:
        return None
    statistics = LengthStatistics(
        prepared.lengths,
        layers=[f"{LAYER}{number}" for number in claim["hook"]["layers"]],
        neurons=claim["model"]["neurons"],
        device=device,
    )
    if cells:
        statistics.restore(cells)
    return statistics


def add_layer(
    statistics: LengthStatistics, name: str, values: torch.Tensor, placed: PlacedTokens
) -> None:
    """Add a layer's stored values [sequence, position, neuron] at the tokens of a pass."""
    statistics.add(name, values, placed)


def state_of(statistics: LengthStatistics) -> Cells:
    """All that a restart needs to go on from here: a copy, which the next batch does not change."""
    return statistics.cells()


def put_state(
    store: Store, partition: int, batches: int, state: Cells, record: str
) -> dict[str, Any]:
    """Store the state after so many batches; what the record with the key `record` says of it."""
    return {"statistics": put_cells(store, partition, batches, state, record)}


def state_keys(partition: int, batches: int) -> list[str]:
    """The keys of what `put_state` stores."""
    return [statistics_key(partition, batches)]
