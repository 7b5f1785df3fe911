"""What a run will leave and take, before anything is computed.

In: a spec. Out: bytes, objects, requests, operations and memory. It knows a published model's shape
without the Hub, and looks at no text. For time and price see `price`.

Objects, requests and the bytes of arrays are those of a run that nothing disturbs, exactly but for
compression. Memory, and the bytes of statistics, which depend on the text, are estimates.
"""

from __future__ import annotations

import dataclasses
import math
import re

import torch
from transformers import AutoModel, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from neoscope.errors import InputError
from neoscope.format.arrays import ArraySchema, array_schemas
from neoscope.format.chunks import CHECKSUM_BYTES
from neoscope.format.records import record_counts
from neoscope.format.states import kept
from neoscope.format.statistics import GROUPS
from neoscope.model.architectures import HookPoint, hook_point
from neoscope.model.gpt_neo import CPU_SEQUENCES
from neoscope.model.hooks import hook_points, layer_numbers
from neoscope.model.loading import find_model
from neoscope.model.random_weights import published_config
from neoscope.model.shapes import PUBLISHED_SHAPES
from neoscope.pipeline.layer_writer import RING
from neoscope.spec import LAYER, RunSpec
from neoscope.statistics.length_cells import BINS
from neoscope.statistics.neurons import BINS as NEURON_BINS
from neoscope.statistics.neurons import POWERS

# Python with everything imported and a text open, before a model is there: GPT-Neo 125M's run of
# 16 x 512 tokens peaks at 2.07 GB, of which the rest below is 1.02 GB.
PROCESS_BYTES = 1_050_000_000
CUDA_BYTES = 500_000_000  # a context and its kernels, on the device
# Lengths of tokens that a text has, counted twice where a sequence begins with one: 21 in 8192 tokens.
CELLS = 32
# The state by neuron in memory, as a multiple of what is put: the zeros of its histograms are not. After
# 8192 tokens it is 5, after 10 million 1.7.
DUMPED = 3
PAGE = 1000  # objects that one request lists


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model as far as a plan needs it: the numbers of the captured layers, sizes, the elements of
    the matrices of the layers up to the last captured, and the bytes of all weights and buffers."""

    layers: list[int]
    neurons: int
    hidden: int
    heads: int
    matrices: int
    weight_bytes: int


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
    """Raises InputError for a model that cannot be found, UnavailableError where only the Hub has it."""
    shape = model_shape(spec)
    schemas = array_schemas(spec, layers=shape.layers, neurons=shape.neurons)
    parts = _parts(spec, shape, schemas)
    states = _cells_bytes(spec, shape) + _neurons_bytes(spec, shape)
    both = shape.weight_bytes + _buffers(spec, schemas) + states
    return Plan(
        spec,
        shape,
        parts,
        _requests(spec, shape, schemas),
        _flops(spec, shape),
        sum(part.size for part in parts)
        + _records(spec) * (_cells_bytes(spec, shape) + _neurons_bytes(spec, shape) // DUMPED),
        PROCESS_BYTES + both + _working(spec, shape, min(CPU_SEQUENCES, spec.pass_sequences)),
        CUDA_BYTES + both + _working(spec, shape, spec.pass_sequences) + _sums(spec, shape),
    )


def model_shape(spec: RunSpec) -> Shape:
    """The shape of the spec's model, from the package or from its config.json."""
    config = _config(spec)
    with torch.device("meta"):  # no memory is taken, and nothing computed
        model = AutoModel.from_config(config, dtype=getattr(torch, spec.precision)).eval()
    point = hook_point(config.model_type, spec.hook, spec.hook_side)
    layers = layer_numbers(model, point, spec.layers)
    last = hook_points(model, point, spec.layers)[f"{LAYER}{layers[-1]}"]
    numbered = [(re.search(r"\.(\d+)\.", name), p) for name, p in model.named_parameters()]
    text = config.get_text_config()
    return Shape(
        layers,
        _width(last, point),
        text.hidden_size,
        text.num_attention_heads,
        sum(p.numel() for at, p in numbered if p.dim() > 1 and at and int(at[1]) <= layers[-1]),
        sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())),
    )


def _width(module: torch.nn.Module, point: HookPoint) -> int:
    """Values of one token on the hook's side of a module, from its weights: nothing is run."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() > 2:
        raise InputError(
            f"what {point.module} gives is known only once it runs: there is no plan of it"
        )
    if weight.dim() == 1:
        return weight.shape[0]
    out, into = reversed(weight.shape) if isinstance(module, Conv1D) else weight.shape
    return int(out if point.side == "output" else into)


def _config(spec: RunSpec) -> PreTrainedConfig:
    if spec.model in PUBLISHED_SHAPES:
        return published_config(spec.model)
    return find_model(spec.model, revision=spec.model_revision, weights=spec.weights).config


def _parts(spec: RunSpec, shape: Shape, schemas: dict[str, ArraySchema]) -> list[Part]:
    """What the run leaves, by kind: here belongs whatever else a run comes to store."""
    layers = [schema for name, schema in schemas.items() if name.startswith(LAYER)]
    tokens = [schema for name, schema in schemas.items() if not name.startswith(LAYER)]
    parts = [
        _arrays("layers", layers),
        _arrays("token ids and lengths", tokens),
        Part("Zarr metadata", len(schemas) + 1),
        Part("records", _records(spec)),
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
    return spec.statistics * CELLS * len(shape.layers) * (8 * BINS + (4 + 8 + 8) * shape.neurons)


def _neurons_bytes(spec: RunSpec, shape: Shape) -> int:
    """The state of one partition by neuron in memory: bins, a pivot, four sums, a count, and contexts."""
    one = 4 * NEURON_BINS + 4 + 8 * POWERS + 4 + 2 * spec.contexts * (4 + 8)
    return spec.neurons * 2 * len(shape.layers) * shape.neurons * one


def _arrays(what: str, schemas: list[ArraySchema]) -> Part:
    counts = [math.prod(schema.grid) for schema in schemas]
    sizes = [schema.chunk_bytes + CHECKSUM_BYTES for schema in schemas]
    return Part(what, sum(counts), sum(map(math.prod, zip(counts, sizes, strict=True))))


def _requests(spec: RunSpec, shape: Shape, schemas: dict[str, ArraySchema]) -> Requests:
    """As `run`, `pipeline` and `commit` make them, each partition once, one after another."""
    chunks = sum(math.prod(schema.grid) for schema in schemas.values())
    layers = sum(name.startswith(LAYER) for name in schemas)
    workers, records, names = spec.partitions, _records(spec), kept(spec.to_json())
    # the claim; each worker its vocabulary; with each record a partition's states; at the end all metadata
    # and the manifest
    puts = 1 + workers + chunks + records * (1 + len(names)) + len(schemas) + 1
    puts += sum(_group_objects(name, shape) for name in names) + 1
    return Requests(
        # the claim twice, to see that the store refuses the second; each worker's first with a wrong
        # checksum, which the store refuses too
        puts=puts + 1 + workers,
        # what was put is looked up; bucket and claim, and a manifest where there is a claim; chunks read
        # back; a record before its states are put; at the end records and states
        gets=puts
        + 2 * workers
        + (workers - 1)
        + layers * spec.total_batches
        + (1 + bool(names)) * records
        + len(names) * workers,
        # the place, which is looked at before the model is loaded and as it is claimed; records, before
        # and after each share of the work; at the end chunks and states
        lists=2
        + (2 * workers - 1) * math.ceil(records / PAGE)
        + math.ceil(chunks / PAGE)
        + len(names) * math.ceil(workers / PAGE),
        # states that the next record's have superseded
        deletes=bool(names) * (records - workers),
    )


def _flops(spec: RunSpec, shape: Shape) -> float:
    """Of one batch, up to the MLP's last linear map of the last layer; causal attention counted as full."""
    attention = (shape.layers[-1] + 1) * 2 * shape.hidden * spec.positions
    multiplications = shape.matrices + attention - shape.hidden * shape.neurons
    return 2.0 * spec.tokens_per_batch * multiplications


def _buffers(spec: RunSpec, schemas: dict[str, ArraySchema]) -> int:
    """The layers that are on their way to the store, as much of each as one pass computes."""
    layer = next(iter(schemas.values()))
    whole = math.prod(layer.batch_grid) * layer.chunk_bytes
    return spec.arrays * RING * whole * spec.pass_sequences // spec.sequences


def _working(spec: RunSpec, shape: Shape, at_once: int) -> int:
    """What a pass holds: the shared output, the hidden states, and one block's steps for `at_once`
    sequences."""
    size = 4 if spec.precision == "float32" else 2
    tokens = spec.pass_sequences * spec.positions
    steps = at_once * spec.positions * (2 * shape.neurons + 6 * shape.hidden)
    if spec.forward == "reference":  # all sequences at once, scores and their softmax in full
        steps = tokens * (2 * shape.neurons + 6 * shape.hidden)
        steps += 2 * tokens * spec.positions * shape.heads
    return size * (tokens * (shape.neurons + 2 * shape.hidden) + steps)


def _sums(spec: RunSpec, shape: Shape) -> int:
    """On a GPU the statistics take a layer in float64 four times over; on a CPU they copy nothing."""
    return (
        (spec.statistics or spec.neurons)
        * 4
        * 8
        * spec.pass_sequences
        * spec.positions
        * shape.neurons
    )
