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
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from neoscope.errors import InputError
from neoscope.format.arrays import ArraySchema, array_schemas
from neoscope.format.chunks import CHECKSUM_BYTES
from neoscope.format.layout import STATISTICS_DIMENSIONS
from neoscope.format.records import record_counts
from neoscope.model.architectures import HookPoint, hook_point
from neoscope.model.hooks import hook_points, layer_numbers, uses_fast_path
from neoscope.model.loading import empty_model, find_model, model_bytes
from neoscope.model.random_weights import published_config
from neoscope.model.shapes import PUBLISHED_SHAPES
from neoscope.pipeline import memory
from neoscope.spec import LAYER, RunSpec

# Python with everything imported and a text open, before a model is there: GPT-Neo 125M's run of
# 16 x 512 tokens peaks at 2.07 GB, of which the rest below is 0.94 GB.
PROCESS_BYTES = 1_130_000_000
CUDA_BYTES = 500_000_000  # a context and its kernels, on the device
# Lengths of tokens that a text has, counted twice where a sequence begins with one: 21 in 8192 tokens.
CELLS = 32
CELLS_KEPT = 62  # room for all that GPT-2's vocabulary has, which a GPU's memory holds
PAGE = 1000  # objects that one request lists


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model as far as a plan needs it: the numbers of the captured layers, sizes, the elements of
    the matrices of the layers up to the last captured, and the bytes of all weights and buffers."""

    layers: list[int]
    neurons: int
    hidden: int
    matrices: int
    weight_bytes: int
    sizes: memory.Sizes


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
    sent: int  # bytes to the store, those of superseded statistics too
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
    host = PROCESS_BYTES + shape.weight_bytes + memory.host_buffers(spec, shape.neurons)
    return Plan(
        spec,
        shape,
        parts,
        _requests(spec, shape, schemas),
        _flops(spec, shape),
        sum(part.size for part in parts) + _records(spec) * _cells_bytes(spec, shape),
        host + _cells_bytes(spec, shape) + memory.working_bytes(spec, shape.sizes),
        CUDA_BYTES + shape.weight_bytes + memory.device_memory(spec, shape.sizes).total,
    )


def model_shape(spec: RunSpec) -> Shape:
    """The shape of the spec's model, from the package or from its config.json."""
    config = _config(spec)
    model = empty_model(config, spec.precision)
    point = hook_point(config.model_type, spec.hook, spec.hook_side)
    layers = layer_numbers(model, point, spec.layers)
    last = hook_points(model, point, spec.layers)[f"{LAYER}{layers[-1]}"]
    numbered = [(re.search(r"\.(\d+)\.", name), p) for name, p in model.named_parameters()]
    text = config.get_text_config()
    sizes = memory.Sizes(
        len(layers),
        _width(last, point),
        text.hidden_size,
        text.num_attention_heads,
        CELLS_KEPT,
        ours=uses_fast_path(model, point, spec.forward),
        eager=spec.forward == "reference",
    )
    return Shape(
        layers,
        sizes.neurons,
        sizes.hidden,
        sum(p.numel() for at, p in numbered if p.dim() > 1 and at and int(at[1]) <= layers[-1]),
        model_bytes(model),
        sizes,
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
            Part("statistics.zarr", _statistics_objects(shape), about=one // 2),  # compressed
        ]
    return [part for part in parts if part.objects]


def _records(spec: RunSpec) -> int:
    return spec.partitions * len(record_counts(spec.to_json()))


def _statistics_objects(shape: Shape) -> int:
    """A chunk a layer of what has a layer for its first dimension of several, one of all else, the
    arrays' metadata and the group's."""
    by_layer = sum(axes[0] == "layer" and len(axes) > 1 for axes in STATISTICS_DIMENSIONS.values())
    return (
        by_layer * len(shape.layers)
        + (len(STATISTICS_DIMENSIONS) - by_layer)
        + len(STATISTICS_DIMENSIONS)
        + 1
    )


def _cells_bytes(spec: RunSpec, shape: Shape) -> int:
    """About the bytes of one partition's statistics: bins, and a pivot and two sums a neuron."""
    cell = memory.CELL_BYTES + memory.NEURON_BYTES * shape.neurons
    return spec.statistics * CELLS * len(shape.layers) * cell


def _arrays(what: str, schemas: list[ArraySchema]) -> Part:
    counts = [math.prod(schema.grid) for schema in schemas]
    sizes = [schema.chunk_bytes + CHECKSUM_BYTES for schema in schemas]
    return Part(what, sum(counts), sum(map(math.prod, zip(counts, sizes, strict=True))))


def _requests(spec: RunSpec, shape: Shape, schemas: dict[str, ArraySchema]) -> Requests:
    """As `run`, `pipeline` and `commit` make them, each partition once, one after another."""
    chunks = sum(math.prod(schema.grid) for schema in schemas.values())
    layers = sum(name.startswith(LAYER) for name in schemas)
    workers, records, kept = spec.partitions, _records(spec), spec.statistics
    # the claim; each worker its vocabulary; with each record a partition's statistics; at the end all
    # metadata and the manifest
    puts = 1 + workers + chunks + records * (1 + kept) + len(schemas) + 1
    puts += kept * _statistics_objects(shape) + 1
    return Requests(
        # the claim twice, to see that the store refuses the second; each worker's first with a wrong
        # checksum, which the store refuses too
        puts=puts + 1 + workers,
        # what was put is looked up; bucket and claim, and a manifest where there is a claim; chunks read
        # back; a record before its statistics are put; at the end records and statistics
        gets=puts
        + 2 * workers
        + (workers - 1)
        + layers * spec.total_batches
        + (1 + kept) * records
        + kept * workers,
        # the place, which is looked at before the model is loaded and as it is claimed; records, before
        # and after each share of the work; at the end chunks and statistics
        lists=2
        + (2 * workers - 1) * math.ceil(records / PAGE)
        + math.ceil(chunks / PAGE)
        + kept * math.ceil(workers / PAGE),
        # statistics that the next record's have superseded
        deletes=kept * (records - workers),
    )


def _flops(spec: RunSpec, shape: Shape) -> float:
    """Of one batch, up to the MLP's last linear map of the last layer; causal attention counted as full."""
    attention = (shape.layers[-1] + 1) * 2 * shape.hidden * spec.positions
    multiplications = shape.matrices + attention - shape.hidden * shape.neurons
    return 2.0 * spec.tokens_per_batch * multiplications
