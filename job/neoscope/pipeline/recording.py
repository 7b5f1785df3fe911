"""The last stage: batches that are on their way to the store become stored, read back and recorded, in order.

In: batches whose chunks are being put, and the statistics at a record's end. Out: records, each put when all
that it names is there. It does not know how anything is computed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from neoscope.errors import CheckError, InputError
from neoscope.format import chunks, layout, records
from neoscope.format.arrays import ArraySchema
from neoscope.format.chunks import StoredChunk
from neoscope.format.layout import state_keys
from neoscope.format.states import kept
from neoscope.pipeline import stored_batch
from neoscope.pipeline.stages import InOrder
from neoscope.pipeline.stored_batch import PassedBatch, StoredBatch
from neoscope.pipeline.timing import timed
from neoscope.progress import Progress
from neoscope.spec import LAYER
from neoscope.statistics.token_lengths import histogram
from neoscope.storage.store import Store

# Records that are not put yet, while the statistics of each, 40 MB for GPT-Neo 125M, are kept as they were.
RECORDS_BEHIND = 2

Timings = dict[str, float]


@dataclasses.dataclass(frozen=True)
class Destination:
    """Where the batches of a partition go, and what all its records say."""

    store: Store
    claim: dict[str, Any]
    schemas: dict[str, ArraySchema]
    partition: int
    environment: dict[str, Any]
    progress: Progress

    def record_key(self, count: int) -> str:
        return layout.record_key(self.partition, count)


class Recording:
    """The records of a partition, put on the thread of `behind`; `reads` read back for it."""

    def __init__(self, to: Destination, reads: ThreadPoolExecutor, behind: InOrder) -> None:
        self._to = to
        self._reads = reads
        self._behind = behind
        self._records: deque[Future[None]] = deque()
        self._deletes = True

    def check(self) -> None:
        """Raise what has failed of what was given so far."""
        self._behind.check()

    def settle(self, passed: PassedBatch, timings: Timings) -> Future[StoredBatch]:
        """Have a batch stored and read back, after those before it."""
        return self._behind.do(functools.partial(self._settle, passed, timings))

    def wait_for_room(self) -> None:
        """Return when one more record may be on its way."""
        while len(self._records) >= RECORDS_BEHIND:
            self._records.popleft().result()

    def put(
        self,
        counts: tuple[int, int],
        settled: list[Future[StoredBatch]],
        state: Future[dict[str, Any]] | None,
        timings: Timings,
    ) -> None:
        """Have a record put when all that it names is there: of the batches between two `counts`, with the
        entries of the statistics' `state`."""
        put = functools.partial(self._put, counts, settled, state, timings)
        self._records.append(self._behind.do(put))

    def _settle(self, passed: PassedBatch, timings: Timings) -> StoredBatch:
        stored: dict[str, list[StoredChunk]] = {}
        reads: dict[str, Future[str]] = {}
        with timed(timings, "store"):
            for index, (name, parts) in enumerate(passed.arrays.items()):
                stored[name] = [part.result() for part in parts]
                if name.startswith(LAYER):
                    # The chunk differs from layer to layer and batch to batch.
                    part = stored[name][(passed.number + index) % len(parts)]
                    reads[name] = self._reads.submit(self._read_back, name, part)
        with timed(timings, "read_back"):
            read_back = {name: key.result() for name, key in reads.items()}
        counts = histogram(passed.token_lengths)
        special = passed.token_lengths.size - sum(counts.values())
        return StoredBatch(passed.batch, stored, counts, special, read_back)

    def _read_back(self, name: str, part: StoredChunk) -> str:
        """Read a chunk from the store and compare it with what was computed; its key."""
        store, schema = self._to.store, self._to.schemas[name]
        holds: Callable[..., bool] = functools.partial(chunks.holds, schema, part.digest)
        if not holds(store.read(part.key, holds)):
            raise CheckError(
                f"{store.url}/{part.key} does not read back as it was stored: "
                "the storage or the way to it is faulty; nothing is committed"
            )
        return part.key

    def _put(
        self,
        counts: tuple[int, int],
        settled: list[Future[StoredBatch]],
        state: Future[dict[str, Any]] | None,
        timings: Timings,
    ) -> None:
        to, (before, count) = self._to, counts
        content = stored_batch.record_content([batch.result() for batch in settled])
        with timed(timings, "store"):
            content |= state.result() if state else {}
        content |= {"environment": to.environment, "timings": timings}
        records.put_record(to.store, to.claim, to.partition, count, content)
        if state and before:
            names, layers = kept(to.claim["spec"]), to.claim["hook"]["layers"]
            each = [state_keys(name, to.partition, before, layers) for name in names]
            self._delete([key for keys in each for key in keys])

    def _delete(self, superseded: list[str]) -> None:
        """Delete the statistics of the record before. Where that is not allowed they stay, which is told
        once."""
        if self._deletes:
            try:
                self._to.store.delete(superseded)
            except InputError as error:
                self._deletes = False
                self._to.progress.warn(f"the statistics of each batch stay, {error}")
