"""What a run will leave and take, before anything is computed.

In: a spec. Out: bytes, objects, requests, operations and memory. It looks at no text. For the model see
`model_shape`, for time and price `price`.

Objects, requests and the bytes of arrays are those of a run that nothing disturbs, exactly but for
compression. Memory, and the bytes of statistics, which depend on the text, are estimates; those of sums by
token are what they are at most.
"""

from __future__ import annotations

import dataclasses
import math

from neoscope.commands.model_shape import Shape, model_shape
from neoscope.format.arrays import ArraySchema, array_schemas
from neoscope.format.chunks import CHECKSUM_BYTES
from neoscope.format.records import record_counts
from neoscope.format.states import kept
from neoscope.format.statistics import GROUPS
from neoscope.pipeline import memory
from neoscope.pipeline.object_check import LISTED_PARTS, LISTED_WHOLE
from neoscope.spec import LAYER, RunSpec
from neoscope.storage.store import PAGE

# Python with everything imported and a text open, before a model is there: GPT-Neo 125M's run of
# 16 x 512 tokens peaks at 2.20 GB with transformers' model, of which the rest below is 1.07 GB. With its
# bare modules it peaks at 1.90; other models and `--forward reference` have none.
PROCESS_BYTES = 1_130_000_000
CUDA_BYTES = 500_000_000  # a context and its kernels, on the device
# Lengths of tokens that a text has, counted twice where a sequence begins with one: 21 in 8192 tokens.
CELLS = 32
CELLS_KEPT = 62  # room for all that GPT-2's vocabulary has, which a GPU's memory holds
# The state by neuron in memory, as a multiple of what is put: the zeros of its histograms are not. After
# 8192 tokens it is 5, after 10 million 1.7.
DUMPED = 3


@dataclasses.dataclass(frozen=True)
class Part:
    """Objects of one kind that a run leaves: bytes before compression, or `about` how many there will
    be; neither for JSON."""

    what: str
    objects: int
    size: int = 0
    about: int = 0


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests to the store: `puts` and `lists`, which stores bill alike, `gets` with heads, and
    `deletes`, which cost nothing."""

    puts: int
    gets: int
    lists: int
    deletes: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run of `spec` leaves and takes. Memory is in bytes, a worker's."""

    spec: RunSpec
    shape: Shape
    parts: list[Part]
    requests: Requests
    flops: float  # of one batch
    sent: int  # bytes to the store, those of superseded states too
    host_memory: int
    device_memory: int

    @property
    def objects(self) -> int:
        return sum(part.objects for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes of all arrays before compression."""
        return sum(part.size for part in self.parts)

    @property
    def stored(self) -> int:
        """Bytes of arrays before compression, and about those of statistics."""
        return self.size + sum(part.about for part in self.parts)


def plan(spec: RunSpec) -> Plan:
    """Raises InputError for a model that cannot be found, UnavailableError where only the Hub has it,
    UsageError where its shape takes torch to know and that is not installed."""
    shape = model_shape(spec)
    schemas = array_schemas(spec, layers=shape.layers, neurons=shape.neurons)
    parts = _parts(spec, shape, schemas)
    sizes = sizes_of(spec, shape)
    states = _cells_bytes(spec, shape) + _neurons_bytes(spec, shape)
    memory.check_token_sums(spec, sizes, None)
    sums, whole = (memory.token_sums_bytes(spec, sizes, each) for each in (1, spec.partitions))
    states += len(shape.layers) * sums + memory.COPIES * whole
    host = PROCESS_BYTES + shape.weight_bytes + memory.host_buffers(spec, shape.neurons)
    return Plan(
        spec,
        shape,
        parts,
        _requests(spec, shape, schemas),
        _flops(spec, shape),
        sum(part.size for part in parts)
        + _records(spec) * (_cells_bytes(spec, shape) + _neurons_bytes(spec, shape) // DUMPED)
        + len(shape.layers) * (_records(spec) * sums + whole),
        host + states + memory.working_bytes(spec, sizes),
        CUDA_BYTES + shape.weight_bytes + memory.device_memory(spec, sizes).total,
    )


def sizes_of(spec: RunSpec, shape: Shape) -> memory.Sizes:
    """What the model is for the reckoning of memory."""
    return memory.Sizes(
        len(shape.layers),
        shape.neurons,
        shape.hidden,
        shape.heads,
        CELLS_KEPT,
        ours=shape.ours and spec.forward == "fast",
        eager=spec.forward == "reference",
        vocabulary=shape.vocabulary,
        inputs=shape.inputs,
    )


def _parts(spec: RunSpec, shape: Shape, schemas: dict[str, ArraySchema]) -> list[Part]:
    """What the run leaves, by kind: here belongs whatever else a run comes to store."""
    layers = [schema for name, schema in schemas.items() if name.startswith(LAYER)]
    tokens = [schema for name, schema in schemas.items() if not name.startswith(LAYER)]
    parts = [
        _arrays("layers", layers),
        _arrays("token ids and lengths", tokens),
        Part("Zarr metadata", len(schemas) + 1),
        Part("records", _records(spec)),
        Part("roll-ups of the records", spec.partitions),
        Part("claim, vocabulary, manifest", 3),
    ]
    if spec.statistics:
        one = _cells_bytes(spec, shape)
        parts += [
            Part("statistics of each partition", spec.partitions, about=spec.partitions * one),
            Part(
                "statistics.zarr", _group_objects("statistics", shape), about=one // 2
            ),  # compressed
        ]
    if spec.neurons:
        one = _neurons_bytes(spec, shape) // DUMPED
        parts += [
            Part("neurons of each partition", spec.partitions, about=spec.partitions * one),
            Part("neurons.zarr", _group_objects("neurons", shape), about=one),
        ]
    if spec.token_sums:
        sizes, captured = sizes_of(spec, shape), len(shape.layers)
        each, whole = (
            memory.token_sums_bytes(spec, sizes, number) for number in (1, spec.partitions)
        )
        states = spec.partitions * captured
        parts += [
            Part("sums by token of each partition", states, about=states * each),
            Part("sums by token", captured, about=captured * whole),
        ]
    return [part for part in parts if part.objects]


def _records(spec: RunSpec) -> int:
    return spec.partitions * len(record_counts(spec.to_json()))


def _group_objects(name: str, shape: Shape) -> int:
    """A chunk a layer of what has a layer for its first dimension of several, one of all else, the
    arrays' metadata and the group's."""
    group = GROUPS[name]
    by_layer = sum(map(group.is_by_layer, group.dimensions))
    arrays = len(group.dimensions)
    return by_layer * len(shape.layers) + (arrays - by_layer) + arrays + 1


def _cells_bytes(spec: RunSpec, shape: Shape) -> int:
    """About the bytes of one partition's statistics: bins, and a pivot and two sums a neuron."""
    cell = memory.CELL_BYTES + memory.NEURON_BYTES * shape.neurons
    return spec.statistics * CELLS * len(shape.layers) * cell


def _neurons_bytes(spec: RunSpec, shape: Shape) -> int:
    """The state of one partition by neuron in memory."""
    return memory.neurons_bytes(spec, shape.neurons, len(shape.layers))


def _arrays(what: str, schemas: list[ArraySchema]) -> Part:
    counts = [math.prod(schema.grid) for schema in schemas]
    sizes = [schema.chunk_bytes + CHECKSUM_BYTES for schema in schemas]
    return Part(what, sum(counts), sum(map(math.prod, zip(counts, sizes, strict=True))))


def _requests(spec: RunSpec, shape: Shape, schemas: dict[str, ArraySchema]) -> Requests:
    """As `run`, `pipeline` and `commit` make them, each partition once, one after another."""
    chunks = sum(math.prod(schema.grid) for schema in schemas.values())
    layers = sum(name.startswith(LAYER) for name in schemas)
    workers, records = spec.partitions, _records(spec)
    names = [name for name in kept(spec.to_json()) if name in GROUPS]
    sums = spec.token_sums * len(shape.layers)  # objects, of each state and of the run
    # the claim; each worker its vocabulary and its roll-up; with each record a partition's states; at the
    # end all metadata and the manifest
    puts = 1 + 2 * workers + chunks + records * (1 + len(names) + sums) + len(schemas) + 1
    puts += sum(_group_objects(name, shape) for name in names) + sums + 1
    return Requests(
        # the claim twice, to see that the store refuses the second; each worker's first with a wrong
        # checksum, which the store refuses too
        puts=puts + 1 + workers,
        # what was put is looked up; bucket and claim, and a manifest where there is a claim; chunks read
        # back; a record before its states are put, and for the roll-up; whether another partition has
        # ended; at the end roll-ups and states
        gets=puts
        + 2 * workers
        + (workers - 1)
        + layers * spec.total_batches
        + (1 + bool(names) + spec.token_sums) * records
        + (workers - 1)
        + (1 + len(names) + sums) * workers,
        # the place, which is looked at before the model is loaded and as it is claimed; a partition's own
        # records where there is a claim, and for the roll-up; the roll-ups; at the end chunks and states
        lists=2
        + (workers - 1)
        + workers * math.ceil(records / workers / PAGE)
        + workers * math.ceil(workers / PAGE)
        + sum(map(_listings, schemas.values()))
        + len(names) * math.ceil(workers / PAGE)
        + math.ceil(sums * (workers + 1) / PAGE),
        # states that the next record's have superseded
        deletes=bool(names) * (records - workers),
    )


def _listings(schema: ArraySchema) -> int:
    """Pages in which the chunks of an array are listed; those of a large one in parts, about."""
    chunks = math.prod(schema.grid)
    return math.ceil(chunks / PAGE) if chunks <= LISTED_WHOLE else chunks // PAGE + LISTED_PARTS


def _flops(spec: RunSpec, shape: Shape) -> float:
    """Of one batch, up to the MLP's last linear map of the last layer; causal attention counted as full."""
    attention = (shape.layers[-1] + 1) * 2 * shape.hidden * spec.positions
    multiplications = shape.matrices + attention - shape.hidden * shape.neurons
    return 2.0 * spec.tokens_per_batch * multiplications
