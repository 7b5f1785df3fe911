"""A batch that is computed, then stored, and what the record says of it.

In: a batch, its stored chunks and what was counted. Out: a record's content. It does not know the store.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.format.chunks import StoredChunk
from neoscope.statistics import token_lengths
from neoscope.text.packing import Batch


@dataclasses.dataclass(frozen=True)
class PassedBatch:
    """Batch `number` of a partition, computed, with its chunks by array, each on its way to the store."""

    number: int
    batch: Batch
    token_lengths: npt.NDArray[np.uint16]  # [sequence, position]
    arrays: dict[str, list[Future[StoredChunk]]]


@dataclasses.dataclass(frozen=True)
class StoredBatch:
    """One batch and its chunks by array. `lengths` counts its tokens by length, special ones apart;
    `read_back` is the chunk of each layer that was read back and compared."""

    batch: Batch
    arrays: dict[str, list[StoredChunk]]
    lengths: dict[int, int]
    special_tokens: int
    read_back: dict[str, str]


def record_content(stored: list[StoredBatch]) -> dict[str, Any]:
    """What a record says of the batches since the one before."""
    names = stored[0].arrays
    return {
        "arrays": {
            name: array_record([part for batch in stored for part in batch.arrays[name]])
            for name in names
        },
        "documents": [dataclasses.asdict(span) for each in stored for span in each.batch.documents],
        "resume_state": stored[-1].batch.resume_state,
        "length_histogram": {
            str(length): count
            for length, count in token_lengths.merge([batch.lengths for batch in stored]).items()
        },
        "special_tokens": sum(batch.special_tokens for batch in stored),
        "read_back": {name: key for batch in stored for name, key in batch.read_back.items()},
        "tags": {
            part.key: part.tag
            for batch in stored
            for parts in batch.arrays.values()
            for part in parts
        },
    }


def array_record(parts: list[StoredChunk]) -> dict[str, Any]:
    """The stored chunks of one array, batch by batch in C order of the grid, and what they hold."""
    summary = parts[0].summary
    for part in parts[1:]:
        summary = summary + part.summary
    return {
        "chunks": [{"key": part.key, "size": part.size, "digest": part.digest} for part in parts],
        "summary": dataclasses.asdict(summary),
    }
