"""Layers on their way from the forward pass to the store, through a bounded ring of host buffers.

In: a layer from inside its hook. Out: its chunks in the store and a record of each. It does not
know what computed the layer, nor what a batch or a run is.

`limits.RING_BYTES` of layers are in host memory at most, whatever the model, the batches or the speed of
the store. A layer that finds every buffer in use waits, and the forward pass with it: nothing is dropped.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from neoscope.errors import CheckError
from neoscope.format import chunks
from neoscope.format.arrays import ArraySchema
from neoscope.format.chunks import StoredChunk
from neoscope.format.records import put_unrecorded
from neoscope.pipeline.limits import ring_slots
from neoscope.spec import LAYER
from neoscope.storage.store import REQUESTS_IN_FLIGHT, Store

# A chunk of so many values or more that are all equal is one that no pass has written. Of fewer, sound
# ones may be: a handful of neurons after a ReLU are often all 0.
CONSTANT_VALUES = 4096


class Slot:
    """Host memory for one layer of one pass: a row of bytes a chunk, each with room for its checksum.

    Pinned where the layer comes from a GPU, so that the copy needs no staging and no waiting.
    """

    def __init__(self, schema: ArraySchema, sequences: int, device: torch.device) -> None:
        self.chunks = schema.chunks
        self.grid = (sequences // schema.chunks[0], *schema.grid[1:])
        self.count = math.prod(self.grid)
        dtype: torch.dtype = getattr(torch, schema.dtype)
        self.elements = math.prod(schema.chunks)
        padded = self.elements + chunks.CHECKSUM_BYTES // dtype.itemsize
        pinned = device.type == "cuda"
        self.host = torch.empty((self.count, padded), dtype=dtype, pin_memory=pinned)
        self.rows: npt.NDArray[np.uint8] = self.host.numpy().view(np.uint8)
        self.users = 0

    def take(self, values: torch.Tensor, copies: torch.cuda.Stream | None) -> Callable[[], None]:
        """Copy a layer [sequence, position, neuron] in, chunk by chunk; call the result to wait for it."""
        if copies is None:
            self._gather(values, self.host)
            return lambda: None
        # The gather runs on the GPU, so that the copy to the host is one piece of memory.
        staged = torch.empty_like(self.host, device=values.device)
        self._gather(values, staged)
        copies.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(copies):
            self.host.copy_(staged, non_blocking=True)
            done = torch.cuda.Event(blocking=True)  # eight threads wait for it: none may spin
            done.record(copies)
        staged.record_stream(copies)
        return done.synchronize

    def _gather(self, values: torch.Tensor, rows: torch.Tensor) -> None:
        grid, shape = self.grid, self.chunks
        chunked = rows[:, : self.elements].unflatten(0, grid).unflatten(-1, shape)
        # [sequence, position, neuron] as chunk and index within it, along each dimension
        split = values.reshape([n for pair in zip(grid, shape, strict=True) for n in pair])
        chunked.copy_(split.permute(0, 2, 4, 1, 3, 5))


class LayerWriter:
    """A consumer of layers that stores each one while the next is computed.

    A batch of a layer comes in one part a pass, of `sequences` sequences, which are whole chunks; by
    default in one.
    """

    def __init__(
        self,
        store: Store,
        schema: ArraySchema,
        device: torch.device,
        sequences: int | None = None,
    ) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(REQUESTS_IN_FLIGHT, thread_name_prefix="put")
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        # The last that was freed is the next to be filled: a quick store touches few of them.
        self._free: queue.LifoQueue[Slot] = queue.LifoQueue()
        sequences = sequences or schema.rows
        for _ in range(ring_slots(schema, sequences)):
            self._free.put(Slot(schema, sequences, device))
        self._lock = threading.Lock()
        self._failed: BaseException | None = None
        self._stored: dict[str, list[Future[StoredChunk]]] = {}

    def write(
        self,
        schema: ArraySchema,
        batch: int,
        values: torch.Tensor,
        record: str,
        *,
        first: int = 0,
    ) -> None:
        """Take the sequences from `first` on of one layer of batch `batch`; returns once they are copied,
        before they are stored.

        `record` is the key of the record that the batch will have; see `put_chunk`.
        """
        slot = self._free.get()
        if self._failed is not None:
            raise self._failed
        slot.users = slot.count
        ready = slot.take(values, self._copies)
        offset = first // schema.chunks[0] * math.prod(schema.grid[1:])
        keys = schema.batch_keys(batch)[offset : offset + slot.count]
        self._stored.setdefault(schema.name, []).extend(
            self._pool.submit(self._put, slot, index, key, schema, record, ready)
            for index, key in enumerate(keys)
        )

    def finish(self) -> dict[str, list[Future[StoredChunk]]]:
        """By array name the chunks of every layer taken since the last call, each on its way."""
        stored, self._stored = self._stored, {}
        return stored

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _put(
        self,
        slot: Slot,
        index: int,
        key: str,
        schema: ArraySchema,
        record: str,
        ready: Callable[[], None],
    ) -> StoredChunk:
        try:
            ready()
            return put_chunk(self._store, key, schema, slot.rows[index], record)
        except BaseException as error:
            self._failed = self._failed or error
            raise
        finally:
            with self._lock:
                slot.users -= 1
                free = slot.users == 0
            if free:
                self._free.put(slot)


def put_array(
    store: Store, schema: ArraySchema, batch: int, values: npt.NDArray[Any], record: str
) -> StoredChunk:
    """Store one batch of an array that has one chunk a batch."""
    (key,) = schema.batch_keys(batch)
    buffer = np.empty(schema.chunk_bytes + chunks.CHECKSUM_BYTES, np.uint8)
    buffer[: -chunks.CHECKSUM_BYTES].view(schema.dtype)[:] = values.reshape(-1)
    return put_chunk(store, key, schema, buffer, record)


def put_chunk(
    store: Store, key: str, schema: ArraySchema, buffer: npt.NDArray[np.uint8], record: str
) -> StoredChunk:
    """Store one chunk whose values fill `buffer` up to its checksum.

    `record` is the key of the record that will name it. Raises CheckError for a value that is not
    finite, and for a layer's chunk of CONSTANT_VALUES or more that are all equal.
    """
    values = buffer[: -chunks.CHECKSUM_BYTES].view(schema.dtype).reshape(schema.chunks)
    summary = chunks.summarize(values)
    if summary.nonfinite:
        raise CheckError(
            f"{schema.name} has {summary.nonfinite} values that are not finite in {key}: "
            "use --precision float32 or --store-dtype float32, or look at the weights"
        )
    if (
        summary.min == summary.max
        and schema.name.startswith(LAYER)
        and values.size >= CONSTANT_VALUES
    ):
        raise CheckError(
            f"{schema.name} has {summary.min:g} for all {values.size:,} values of {key}: that is what memory "
            "looks like that no pass has written; nothing is recorded: look at the weights and at --hook"
        )
    body = chunks.encode(schema, buffer)
    tag = put_unrecorded(store, key, body.data, record)
    return StoredChunk(key, body.nbytes, chunks.digest(values), tag, summary)
