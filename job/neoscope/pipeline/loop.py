"""The batches of one partition: text -> pass -> store -> record, each stage at work on another batch.

In: what is loaded, and where the partition stands. Out: its batches stored and recorded, in order. It does
not know how many partitions there are.

The text is packed on a thread of its own. The pass, on the caller's, waits for text and for host memory: a
buffer for each layer, a copy of the statistics for each record. Behind it many threads put what it leaves,
and one reads back and records it, in order; see `recording`. A failure ends the run: what came before it in
the text is still recorded, and nothing after it ever is.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from neoscope.format.layout import TOKEN_IDS, TOKEN_LENGTH
from neoscope.format.records import BATCHES_A_RECORD
from neoscope.format.states import put_states, put_token_sums
from neoscope.model.hooks import Consumer, stream
from neoscope.model.memory import translate_out_of_memory
from neoscope.pipeline import memory
from neoscope.pipeline.inputs import Inputs
from neoscope.pipeline.layer_writer import LayerWriter, put_array
from neoscope.pipeline.partition_statistics import (
    PartitionStatistics,
    Placed,
    make_statistics,
)
from neoscope.pipeline.recording import Destination, Recording, Timings
from neoscope.pipeline.stages import InOrder, ahead
from neoscope.pipeline.stored_batch import PassedBatch, StoredBatch
from neoscope.pipeline.timing import timed
from neoscope.spec import RunSpec
from neoscope.storage.store import REQUESTS_IN_FLIGHT
from neoscope.text.packing import Batch

# Those of a record are packed before its first is given away, and the next record's while it is made.
BATCHES_AHEAD = BATCHES_A_RECORD
# Chunks, which are in host memory beside the layers: one of each layer of most models is on its way at once.
READ_BACK_AT_A_TIME = 16


@dataclasses.dataclass(frozen=True)
class _Stages:
    """What the batches of a partition go through. `puts` are of all but layers."""

    spec: RunSpec
    prepared: Inputs
    to: Destination
    texts: Iterator[tuple[int, Batch] | None]  # None where the text has ended
    statistics: PartitionStatistics
    writer: LayerWriter | None
    puts: ThreadPoolExecutor
    recording: Recording


def store_batches(
    spec: RunSpec,
    prepared: Inputs,
    to: Destination,
    first: int,
    states: dict[str, list[bytes]],
    device: torch.device,
    timings: Timings,
) -> None:
    """Store and record the batches from number `first` on, with the `states` up to it.

    `timings` are the seconds of what the first record has taken already.
    """
    with ExitStack() as stack:
        # From the state of the statistics to the last copy out of the pinned buffers.
        stack.enter_context(translate_out_of_memory(lambda: memory.ran_out(spec)))
        statistics = make_statistics(
            spec, to.claim, prepared.lengths, states, prepared.maps, device
        )
        stages = _begin(stack, spec, prepared, to, first, statistics, device)
        settled: list[Future[StoredBatch]] = []
        while (at := first + len(settled)) < spec.batches:
            with timed(timings, "text"):
                found = next(stages.texts)
            if found is None:  # the text has ended, behind a record
                break
            count, batch = found
            passed = _pass(stages, at, batch, to.record_key(count), timings)
            settled.append(stages.recording.settle(passed, timings))
            if at + 1 == count:
                stages.recording.wait_for_room()
                state = _put_state(stages, count, timings)
                stages.recording.put((first, count), settled, state, timings)
                first, settled, timings = count, [], {}


def _begin(
    stack: ExitStack,
    spec: RunSpec,
    prepared: Inputs,
    to: Destination,
    first: int,
    statistics: PartitionStatistics,
    device: torch.device,
) -> _Stages:
    """The stages. With the stack the records end first, then the puts that are still under way."""

    def threads(count: int, name: str) -> ThreadPoolExecutor:
        pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        stack.callback(pool.shutdown, wait=True, cancel_futures=True)
        return pool

    writer = None
    if spec.arrays:
        layer = next(iter(to.schemas.values()))
        writer = stack.enter_context(
            closing(LayerWriter(to.store, layer, device, spec.pass_sequences))
        )
    packed = functools.partial(next, prepared.batches, None)
    texts = stack.enter_context(closing(ahead(packed, spec.batches - first, BATCHES_AHEAD)))
    puts, reads = threads(REQUESTS_IN_FLIGHT, "put"), threads(READ_BACK_AT_A_TIME, "read-back")
    recording = Recording(to, reads, stack.enter_context(InOrder()))
    return _Stages(spec, prepared, to, texts, statistics, writer, puts, recording)


def _pass(stages: _Stages, number: int, batch: Batch, record: str, timings: Timings) -> PassedBatch:
    """Compute batch `number`, which the record with the key `record` will name; returns while it is
    being stored."""
    spec, prepared, to = stages.spec, stages.prepared, stages.to
    token_lengths = prepared.lengths[batch.token_ids]
    take = _taker(stages, number, record, timings)
    with timed(timings, "capture"):
        for first in range(0, spec.sequences, spec.pass_sequences):
            sequences = slice(first, first + spec.pass_sequences)
            ids, lengths = batch.token_ids[sequences], token_lengths[sequences]
            offset = (_of_run(stages, number) * spec.sequences + first) * spec.positions
            placed = stages.statistics.place(lengths, offset)
            by_token = [_by_token(stages, ids, lengths, timings)] if spec.token_sums else []
            stream(
                prepared.loaded.model,
                ids,
                [
                    functools.partial(take, first, placed),
                    *([] if prepared.maps else by_token),
                ],
                forward=spec.forward,
                point=prepared.point,
                layers=spec.layers,
                inputs=by_token if prepared.maps else [],
            )
        stages.statistics.check()
    arrays = stages.writer.finish() if stages.writer else {}
    for name, values in ((TOKEN_IDS, batch.token_ids), (TOKEN_LENGTH, token_lengths)):
        schema, at = to.schemas[name], _of_run(stages, number)
        arrays[name] = [stages.puts.submit(put_array, to.store, schema, at, values, record)]
    return PassedBatch(number, batch, token_lengths, arrays)


def _taker(
    stages: _Stages,
    number: int,
    record: str,
    timings: Timings,
) -> Callable[[int, Placed, str, torch.Tensor], None]:
    """What becomes of each layer of batch `number`, from some first sequence on, inside its hook."""
    spec, to, batch = stages.spec, stages.to, _of_run(stages, number)

    def take(first: int, placed: Placed, name: str, values: torch.Tensor) -> None:
        stages.recording.check()
        if stages.writer:
            stages.writer.write(to.schemas[name], batch, values, record, first=first)
        with timed(timings, "statistics"):
            stages.statistics.add(name, values, placed)
        to.progress.advance(f"batch {number + 1} of {spec.batches}, {name}")

    return take


def _by_token(
    stages: _Stages,
    ids: npt.NDArray[np.int32],
    lengths: npt.NDArray[np.uint16],
    timings: Timings,
) -> Consumer:
    """What adds some sequences of each layer, or of the inputs of its linear map, to the sums by token."""

    def add(name: str, values: torch.Tensor) -> None:
        with timed(timings, "statistics"):
            stages.statistics.add_tokens(name, values, ids, lengths)

    return add


def _put_state(stages: _Stages, count: int, timings: Timings) -> Future[dict[str, Any]] | None:
    """Have the statistics put as they are after so many batches; the record's entries of them.

    Sums by token are put before it returns, one layer after the other: a copy of all of them, for the pass
    to go on beside it, would be gigabytes.
    """
    to, states = stages.to, stages.statistics.states()
    if not states:
        return None
    with timed(timings, "store"):
        token_sums = _put_token_sums(stages, count)

    def put() -> dict[str, Any]:
        # Each copy is let go as soon as it is bytes, a fourth as many.
        bodies = {name: states.pop(name).dump() for name in list(states)}
        entries = put_states(to.store, to.partition, count, bodies, to.record_key(count))
        return entries | token_sums

    return stages.puts.submit(put)


def _put_token_sums(stages: _Stages, count: int) -> dict[str, Any]:
    """Put the sums by token as they are after so many batches; the record's entry of them."""
    to, by_token = stages.to, stages.statistics.by_token
    if by_token is None:
        return {}
    bodies = (sums.dump() for sums in by_token.sums())
    layers, record = to.claim["hook"]["layers"], to.record_key(count)
    return put_token_sums(to.store, to.partition, count, bodies, layers, record)


def _of_run(stages: _Stages, number: int) -> int:
    """The number that a partition's batch has in the run."""
    return stages.to.partition * stages.spec.batches + number
