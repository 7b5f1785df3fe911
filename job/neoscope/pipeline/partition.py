"""Partitions, one after the other: what is loaded once for all of them, the claim, then their batches.

In: a spec, a store, and which partitions. Out: all their batches stored and recorded. It does not know how
a batch is made; see `loop`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from neoscope.format import layout, records
from neoscope.format.arrays import array_schemas, schemas_of
from neoscope.format.claim import put_claim
from neoscope.format.rollups import make_rollup
from neoscope.format.states import last_state
from neoscope.format.vocabulary import vocabulary_content
from neoscope.model import numerics
from neoscope.model.loading import gpu_count, pick_device
from neoscope.model.memory import translate_out_of_memory
from neoscope.pipeline import memory
from neoscope.pipeline.inputs import Inputs, of_partition, prepare
from neoscope.pipeline.loop import store_batches
from neoscope.pipeline.partition_statistics import compile_kernels
from neoscope.pipeline.provenance import (
    describe_environment,
    keep_memory_flat,
    return_freed_memory,
)
from neoscope.pipeline.recording import Destination
from neoscope.pipeline.timing import timed
from neoscope.pipeline.worker import Rank, own_device
from neoscope.progress import Progress
from neoscope.spec import RunSpec
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
    numerics.check_environment(target)
    numerics.fix_workspace(target)
    with translate_out_of_memory(lambda: memory.ran_out(spec)):  # where CUDA takes its own
        if target.type == "cuda":
            # Pinned memory is of the current device, which is the first where nothing is said.
            torch.cuda.set_device(target)
        environment = describe_environment(target)
    start = _Start(spec, store, text_paths, target, environment, progress)
    compile_kernels(spec, target)
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
        with timed(timings, "prepare"):
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
    states: dict[str, list[bytes]],
    timings: dict[str, float],
) -> None:
    """Store and record the batches of a partition after its last record, with the `states` up to it."""
    spec, progress = start.spec, start.progress
    first = last["batches"] if last else 0
    layers = (spec.batches - first) * len(claim["hook"]["layers"])
    progress.begin("capturing", layers * spec.sequences // spec.pass_sequences, "layers")
    to = Destination(start.store, claim, schemas_of(claim), partition, start.environment, progress)
    store_batches(spec, prepared, to, first, states, start.device, timings)
    make_rollup(start.store, claim, partition)
    progress.end()


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
