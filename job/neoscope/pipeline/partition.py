"""Partitions, one after the other: text -> tokens -> batch -> hooked forward -> chunks -> record.

In: a spec, a store, and which partitions. Out: all their batches stored and recorded. It puts the pieces
together and times them; each step is a module of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from neoscope.errors import CheckError, InputError
from neoscope.format import chunks, layout, records
from neoscope.format.arrays import ArraySchema, array_schemas, schemas_of
from neoscope.format.chunks import StoredChunk
from neoscope.format.claim import put_claim
from neoscope.format.layout import TOKEN_IDS, TOKEN_LENGTH, state_key
from neoscope.format.states import last_state, put_states
from neoscope.format.vocabulary import vocabulary_content
from neoscope.model import memory
from neoscope.model.hooks import stream
from neoscope.model.loading import gpu_count, pick_device
from neoscope.pipeline import stored_batch
from neoscope.pipeline.inputs import Inputs, of_partition, prepare
from neoscope.pipeline.layer_writer import LayerWriter, put_array
from neoscope.pipeline.partition_statistics import (
    PartitionStatistics,
    compile_kernels,
    make_statistics,
)
from neoscope.pipeline.provenance import (
    describe_environment,
    keep_memory_flat,
    return_freed_memory,
)
from neoscope.pipeline.stored_batch import StoredBatch
from neoscope.pipeline.worker import Rank, own_device
from neoscope.progress import Progress
from neoscope.spec import RunSpec
from neoscope.statistics.token_lengths import histogram
from neoscope.storage.store import Store


def store_partitions(
    spec: RunSpec,
    store: Store,
    partitions: Sequence[int],
    *,
    claim: dict[str, Any] | None,
    stored: dict[int, list[int]] | None,
    text_paths: list[Path],
    device: str,
    local: Rank | None,
    progress: Progress,
) -> dict[str, Any] | None:
    """Store what is not recorded yet of some partitions, one after the other; the claim that they
    belong to.

    `claim` is the one that is already there, `stored` what was recorded just now, `local` this process's
    number on its node. The model is loaded once.
    """
    keep_memory_flat()
    target = pick_device(own_device(device, local, gpu_count()))
    if target.type == "cuda":
        # Pinned memory is of the current device, which is the first where nothing is said.
        torch.cuda.set_device(target)
    start = _Start(spec, store, text_paths, target, describe_environment(target), progress)
    compile_kernels()
    prepared: Inputs | None = None
    for partition in partitions:
        timings: dict[str, float] = {}
        last, states = last_state(store, claim, partition, stored) if claim else (None, {})
        stored = None  # others may go on meanwhile
        if last and last["batches"] == spec.batches:
            continue  # another worker has made it meanwhile
        if spec.partitions > 1:
            progress.say(f"partition {partition} of {spec.partitions}")
        if last:
            progress.say(f"going on after batch {last['batches']} of {spec.batches}")
        with _timed(timings, "prepare"):
            if claim is None or prepared is None:
                prepared, claim = _prepare(start, partition, claim, last)
            else:
                prepared = of_partition(prepared, spec, partition, last, text_paths, progress)
        _store_partition(start, partition, claim, prepared, last, states, timings)
    return claim


@dataclasses.dataclass(frozen=True)
class _Start:
    """What is the same for all partitions that are made here."""

    spec: RunSpec
    store: Store
    text_paths: list[Path]
    device: torch.device
    environment: dict[str, Any]
    progress: Progress


def _prepare(
    start: _Start, partition: int, claim: dict[str, Any] | None, last: dict[str, Any] | None
) -> tuple[Inputs, dict[str, Any]]:
    """What is loaded once, with the text of the first partition; and the claim, there or put now."""
    spec, store, paths, progress = start.spec, start.store, start.text_paths, start.progress
    prepared = prepare(spec, claim, partition, last, paths, start.device, progress)
    if claim is None:
        claim = _claim(spec, store, prepared, start.environment)
        if claim["text"] != prepared.resolved["text"]:
            # Another worker was first, and found an earlier or later state of the data set.
            prepared = prepare(spec, claim, partition, last, paths, start.device, progress)
    records.check_resolved(store, claim, prepared.resolved)
    _warn_of_libraries(claim, start.environment, progress)
    store.put(
        layout.VOCABULARY,
        vocabulary_content(prepared.tokenizer.strings, prepared.tokenizer.special),
    )
    return_freed_memory()
    return prepared, claim


def _store_partition(
    start: _Start,
    partition: int,
    claim: dict[str, Any],
    prepared: Inputs,
    last: dict[str, Any] | None,
    states: dict[str, bytes],
    timings: dict[str, float],
) -> None:
    """Store and record the batches of a partition after its last record, with the `states` up to it."""
    spec, store, progress = start.spec, start.store, start.progress
    first = last["batches"] if last else 0
    layers = (spec.batches - first) * len(claim["hook"]["layers"])
    progress.begin("capturing", layers * spec.sequences // spec.pass_sequences, "layers")
    schemas = schemas_of(claim)
    with ExitStack() as stack:
        writer = None
        if spec.arrays:
            layer = next(iter(schemas.values()))
            writer = LayerWriter(store, layer, start.device, spec.pass_sequences)
            stack.enter_context(closing(writer))
        statistics = make_statistics(spec, claim, prepared.lengths, states, start.device)
        work = _Partition(spec, store, partition, prepared, schemas, writer, statistics, progress)
        deleting = True
        for count in records.record_counts(claim["spec"]):
            if count <= first:
                continue
            record = layout.record_key(partition, count)
            stored = [_store_batch(work, number, record, timings) for number in range(first, count)]
            content = {**stored_batch.record_content(stored), "environment": start.environment}
            with _timed(timings, "store"):
                bodies = {name: state.dump() for name, state in statistics.states().items()}
                content |= put_states(store, partition, count, bodies, record)
            records.put_record(store, claim, partition, count, {**content, "timings": timings})
            if first and deleting:
                before = [state_key(name, partition, first) for name in bodies]
                deleting = _delete_superseded(store, before, progress)
            first, timings = count, {}
    progress.end()


@dataclasses.dataclass(frozen=True)
class _Partition:
    """What every batch of a partition is made of, and where it goes."""

    spec: RunSpec
    store: Store
    number: int
    prepared: Inputs
    schemas: dict[str, ArraySchema]
    writer: LayerWriter | None
    statistics: PartitionStatistics
    progress: Progress


def _delete_superseded(store: Store, keys: list[str], progress: Progress) -> bool:
    """Delete the states of an earlier record; False where that is not allowed, which is told."""
    try:
        store.delete(keys)
    except InputError as error:
        progress.warn(f"the statistics of each batch stay, {error}")
        return False
    return True


def _store_batch(
    work: _Partition, number: int, record: str, timings: dict[str, float]
) -> StoredBatch:
    """Compute and store batch `number` of a partition, which the record with the key `record` will
    name."""
    spec, prepared, writer, statistics = work.spec, work.prepared, work.writer, work.statistics
    batch_of_run = work.number * spec.batches + number
    with _timed(timings, "text"):
        batch = next(prepared.batches)
    token_lengths = prepared.lengths[batch.token_ids]

    def take(sequences: slice, name: str, values: torch.Tensor) -> None:
        if writer:
            schema = work.schemas[name]
            writer.write(schema, batch_of_run, values, record, first=sequences.start)
        with _timed(timings, "statistics"):
            place = (batch_of_run * spec.sequences + sequences.start) * spec.positions
            statistics.add(name, values, token_lengths[sequences], place)
        work.progress.advance(f"batch {number + 1} of {spec.batches}, {name}")

    with _timed(timings, "capture"), memory.translate_out_of_memory_of_pass(spec):
        for first in range(0, spec.sequences, spec.pass_sequences):
            sequences = slice(first, first + spec.pass_sequences)
            stream(
                prepared.loaded.model,
                batch.token_ids[sequences],
                [functools.partial(take, sequences)],
                forward=spec.forward,
                point=prepared.point,
                layers=spec.layers,
            )
    with _timed(timings, "store"):
        stored = writer.finish() if writer else {}
        for name, values in ((TOKEN_IDS, batch.token_ids), (TOKEN_LENGTH, token_lengths)):
            schema = work.schemas[name]
            stored[name] = [put_array(work.store, schema, batch_of_run, values, record)]
    with _timed(timings, "read_back"):
        read_back = _read_back(work.store, work.schemas, stored, number)
    counts = histogram(token_lengths)
    special = spec.tokens_per_batch - sum(counts.values())
    return StoredBatch(batch, stored, counts, special, read_back)


def _claim(
    spec: RunSpec, store: Store, prepared: Inputs, environment: dict[str, Any]
) -> dict[str, Any]:
    """Claim the destination for the spec as it was resolved, or adopt another worker's claim."""
    model = prepared.resolved["model"]
    layers = prepared.resolved["hook"]["layers"]
    schemas = array_schemas(spec, layers=layers, neurons=model["neurons"])
    body = {
        **prepared.resolved,
        "arrays": {name: schema.to_json() for name, schema in schemas.items()},
        "environment": environment,
    }
    return put_claim(store, spec, body)


def _warn_of_libraries(
    claim: dict[str, Any], environment: dict[str, Any], progress: Progress
) -> None:
    """Say once where this start uses other versions than the run began with."""
    then, now = claim["environment"]["libraries"], environment["libraries"]
    changed = [
        f"{name} {then.get(name)} -> {now[name]}" for name in now if now[name] != then.get(name)
    ]
    if changed:
        progress.warn(f"the run began with other versions of libraries: {', '.join(changed)}")


def _read_back(
    store: Store,
    schemas: dict[str, ArraySchema],
    stored: dict[str, list[StoredChunk]],
    batch: int,
) -> dict[str, str]:
    """Read one chunk of every layer from the store and compare it with what was computed.

    The chunk differs from layer to layer and batch to batch. Returns its key by layer.
    """
    keys = {}
    for index, (name, parts) in enumerate(stored.items()):
        if name in (TOKEN_IDS, TOKEN_LENGTH):
            continue
        part = parts[(batch + index) % len(parts)]
        holds = functools.partial(chunks.holds, schemas[name], part.digest)
        if not holds(store.read(part.key, holds)):
            raise CheckError(
                f"{store.url}/{part.key} does not read back as it was stored: "
                "the storage or the way to it is faulty; nothing is committed"
            )
        keys[name] = part.key
    return keys


@contextmanager
def _timed(timings: dict[str, float], step: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings[step] = timings.get(step, 0.0) + time.perf_counter() - began
