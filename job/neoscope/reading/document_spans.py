"""Which document a token of a run is of, from the spans in its records.

In: a store, a claim, and places in the run's flattened `token_ids`. Out: ids of documents. A record is read
when a token of it is asked for, once.
"""

from __future__ import annotations

import bisect
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.format.records import read_record, record_counts
from neoscope.storage.store import Store


class DocumentSpans:
    """The documents of a run's tokens."""

    def __init__(self, store: Store, claim: dict[str, Any], batches: list[int]) -> None:
        """`batches` are how many each partition has."""
        self._store, self._claim, self._batches = store, claim, batches
        self._read: dict[tuple[int, int], tuple[npt.NDArray[np.int64], list[str]]] = {}

    def id_of(self, token: int) -> str | None:
        """The id of the document that a token is of; None for one that begins each sequence."""
        spec = self._claim["spec"]
        sequence, position = divmod(token, spec["positions"])
        batch, sequence = divmod(sequence, spec["sequences"])
        partition, batch = divmod(batch, spec["batches"])
        if position < spec["bos"]:
            return None
        counts = record_counts(spec, self._batches[partition])
        number = bisect.bisect_right(counts, batch)
        before = counts[number - 1] if number else 0
        ends, ids = self._spans(partition, counts[number])
        row = (batch - before) * spec["sequences"] + sequence
        place = row * (spec["positions"] - spec["bos"]) + position - spec["bos"]
        return ids[int(np.searchsorted(ends, place, side="right"))]

    def _spans(self, partition: int, batches: int) -> tuple[npt.NDArray[np.int64], list[str]]:
        """Where the spans of one record end, counted in its tokens of text, and their documents."""
        key = (partition, batches)
        if key not in self._read:
            spans = read_record(self._store, self._claim, partition, batches)["documents"]
            ends = np.cumsum([span["stop"] - span["start"] for span in spans])
            self._read[key] = ends, [span["id"] for span in spans]
        return self._read[key]
