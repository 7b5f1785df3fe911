"""What a run will leave and take, before anything is computed.

In: a spec, and rates of machine, storage and prices. Out: tokens, bytes, objects, requests, memory,
time and price. It knows a published model's shape without the Hub, and looks at no text.

Objects, requests and the bytes of arrays are those of a run that nothing disturbs, exactly but for
compression. Memory is an estimate, and time is no better than the rates.
"""

from __future__ import annotations

import dataclasses
import math
import re

import numpy as np
import torch
from transformers import AutoModel, PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from neoscope.architectures import HookPoint, hook_point
from neoscope.arrays import LAYER, ArraySchema, array_schemas
from neoscope.chunks import CHECKSUM_BYTES
from neoscope.errors import InputError
from neoscope.gpt_neo import CPU_SEQUENCES
from neoscope.hooks import hook_points, layer_numbers
from neoscope.model import find_model
from neoscope.random_weights import PUBLISHED_SHAPES, published_config
from neoscope.spec import RunSpec
from neoscope.writer import RING

# Python with everything imported and a text open, before a model is there: GPT-Neo 125M's run of
# 16 x 512 tokens peaks at 1.9 GB, of which the rest below is 1.0 GB.
PROCESS_BYTES = 900_000_000
CUDA_BYTES = 500_000_000  # a context and its kernels, on the device
PAGE = 1000  # objects that one request lists


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a machine does in a second, and what things cost in one currency; None where not given."""

    tflops: float | None = None
    mb_per_second: float | None = None
    per_hour: float | None = None
    per_gb_month: float | None = None
    per_1000_puts: float | None = None
    per_1000_gets: float | None = None


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model as far as a plan needs it: the numbers of the captured layers, sizes, the elements of
    the matrices of the layers up to the last captured, and the bytes of all weights and buffers."""

    layers: list[int]
    hidden: int
    heads: int
    neurons: int
    matrices: int
    weight_bytes: int


@dataclasses.dataclass(frozen=True)
class Part:
    """Objects of one kind that a run leaves; `size` in bytes before compression, None for JSON."""

    what: str
    objects: int
    size: int | None = None


@dataclasses.dataclass(frozen=True)
class Requests:
    """Requests to the store: `puts` and `lists`, which stores bill alike, and `gets` with heads."""

    puts: int
    gets: int
    lists: int


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run of `spec` leaves and takes. Memory is in bytes, a worker's."""

    spec: RunSpec
    shape: Shape
    parts: list[Part]
    requests: Requests
    flops: float  # of one batch
    host_memory: int
    device_memory: int

    @property
    def objects(self) -> int:
        return sum(part.objects for part in self.parts)

    @property
    def size(self) -> int:
        """Bytes of all arrays before compression."""
        return sum(part.size or 0 for part in self.parts)


def plan(spec: RunSpec) -> Plan:
    """Raises InputError for a model that cannot be found, UnavailableError where only the Hub has it."""
    shape = model_shape(spec)
    schemas = array_schemas(spec, layers=shape.layers, neurons=shape.neurons)
    return Plan(
        spec,
        shape,
        _parts(spec, schemas),
        _requests(spec, schemas),
        _flops(spec, shape),
        PROCESS_BYTES + shape.weight_bytes + _host_buffers(spec, schemas) + _working(spec, shape),
        CUDA_BYTES
        + shape.weight_bytes
        + _host_buffers(spec, schemas)
        + _working(spec, shape, whole_batch=True),
    )


def model_shape(spec: RunSpec) -> Shape:
    """The shape of the spec's model, from the package or from its config.json."""
    config = _config(spec)
    point = hook_point(config.model_type, spec.hook, spec.hook_side)
    with torch.device("meta"):  # no memory is taken, and nothing is computed
        model = AutoModel.from_config(config, dtype=getattr(torch, spec.precision)).eval()
    layers = layer_numbers(model, point, spec.layers)
    modules = hook_points(model, point, spec.layers)
    numbered = [(re.search(r"\.(\d+)\.", name), p) for name, p in model.named_parameters()]
    text = config.get_text_config()
    return Shape(
        layers,
        text.hidden_size,
        text.num_attention_heads,
        max(_width(module, point) for module in modules.values()),
        sum(p.numel() for at, p in numbered if p.dim() > 1 and at and int(at[1]) <= layers[-1]),
        sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()]),
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
    found = find_model(spec.model, revision=spec.model_revision, weights=spec.weights)
    return found.config


def _parts(spec: RunSpec, schemas: dict[str, ArraySchema]) -> list[Part]:
    """What the run leaves, by kind: here belongs whatever else a run comes to store."""
    layers = [schema for name, schema in schemas.items() if name.startswith(LAYER)]
    tokens = [schema for name, schema in schemas.items() if not name.startswith(LAYER)]
    return [
        _arrays("layers", layers),
        _arrays("token ids and lengths", tokens),
        Part("Zarr metadata", len(schemas) + 1),
        Part("records", spec.total_batches),
        Part("claim, vocabulary, manifest", 3),
    ]


def _arrays(what: str, schemas: list[ArraySchema]) -> Part:
    counts = [math.prod(schema.grid) for schema in schemas]
    sizes = [schema.chunk_bytes + CHECKSUM_BYTES for schema in schemas]
    return Part(what, sum(counts), sum(map(math.prod, zip(counts, sizes, strict=True))))


def _requests(spec: RunSpec, schemas: dict[str, ArraySchema]) -> Requests:
    """As `run`, `pipeline` and `commit` make them, each partition once, one after another."""
    chunks = sum(math.prod(schema.grid) for schema in schemas.values())
    layers = sum(name.startswith(LAYER) for name in schemas)
    workers, batches = spec.partitions, spec.total_batches
    records = math.ceil(batches / PAGE)
    return Requests(
        # the claim twice, to see that the store refuses the second; each worker its vocabulary
        puts=2 + workers + chunks + batches + len(schemas) + 1 + 1,
        # bucket and claim, and a manifest where there is a claim; chunks read back; records
        gets=2 * workers + (workers - 1) + layers * batches + batches,
        # records, before and after each share of the work; all chunks at the commit
        lists=(2 * workers - 1) * records + math.ceil(chunks / PAGE),
    )


def _flops(spec: RunSpec, shape: Shape) -> float:
    """Of one batch, up to the MLP's last linear map of the last layer; causal attention counted as full."""
    attention = (shape.layers[-1] + 1) * 2 * shape.hidden * spec.positions
    multiplications = shape.matrices + attention - shape.hidden * shape.neurons
    return 2.0 * spec.tokens_per_batch * multiplications


def _host_buffers(spec: RunSpec, schemas: dict[str, ArraySchema]) -> int:
    """The layers that are on their way to the store."""
    layer = next(iter(schemas.values()))
    passes = spec.sequences // spec.pass_sequences
    return RING * math.prod(layer.batch_grid) // passes * layer.chunk_bytes


def _working(spec: RunSpec, shape: Shape, *, whole_batch: bool = False) -> int:
    """What the forward pass holds: the shared output, the hidden states, and one block's steps."""
    size = np.dtype("float32").itemsize if spec.precision == "float32" else 2
    tokens = spec.pass_sequences * spec.positions
    at_once = spec.pass_sequences if whole_batch else min(CPU_SEQUENCES, spec.pass_sequences)
    if spec.forward == "reference":
        at_once = spec.pass_sequences
    block = at_once * spec.positions * (2 * shape.neurons + 6 * shape.hidden)
    if spec.forward == "reference":  # scores and their softmax are kept in full
        block += 2 * tokens * spec.positions * shape.heads
    return size * (tokens * (shape.neurons + 2 * shape.hidden) + block)


def lines(found: Plan, rates: Rates) -> list[str]:
    """A plan for a person to read."""
    spec, requests = found.spec, found.requests
    sequences = spec.sequences * spec.total_batches
    rows = [
        f"{spec.model}: {len(found.shape.layers)} layers of {found.shape.neurons:,} neurons, "
        f"{_gb(found.shape.weight_bytes)} of weights in {spec.precision}",
        f"tokens     {spec.tokens_per_batch * spec.total_batches:,} in {sequences:,} sequences of "
        f"{spec.positions}: {_count(spec.partitions, 'partition')} of "
        f"{_count(spec.batches, 'batch', 'es')}",
    ]
    for part in found.parts:
        size = "JSON" if part.size is None else f"{part.size:,} bytes"
        rows.append(f"    {part.what:<30}{part.objects:>12,} objects  {size:>24}")
    before = " before compression" if spec.compression != "none" else ""
    return [
        *rows,
        f"objects    {found.objects:,}, {_gb(found.size)} of arrays{before}",
        f"requests   {requests.puts:,} PUT, {requests.gets:,} GET and HEAD, {requests.lists:,} LIST",
        f"memory     about {_gb(found.host_memory)} of each worker's host; with a GPU about "
        f"{_gb(found.device_memory)} of its own",
        *_time(found, rates),
        *_price(found, rates),
    ]


def seconds(found: Plan, rates: Rates) -> float | None:
    """Of one worker, whose storing goes on beside computing; None without both rates."""
    if rates.tflops is None or rates.mb_per_second is None:
        return None
    computing = found.flops / (rates.tflops * 1e12)
    storing = found.size / found.spec.total_batches / (rates.mb_per_second * 1e6)
    return found.spec.batches * max(computing, storing)


def _time(found: Plan, rates: Rates) -> list[str]:
    work = (
        f"{found.flops / 1e12:.2f} TFLOP and {_gb(found.size / found.spec.total_batches)} a batch"
    )
    spent = seconds(found, rates)
    if spent is None:
        return [f"time       {work}: give --tflops and --mb-per-second to know"]
    return [f"time       {work}: {_duration(spent)} of {_count(found.spec.partitions, 'worker')}"]


def _price(found: Plan, rates: Rates) -> list[str]:
    """Each price that the rates give."""
    prices: dict[str, float] = {}
    spent = seconds(found, rates)
    if rates.per_hour is not None and spent is not None:
        prices["machines"] = rates.per_hour * found.spec.partitions * spent / 3600
    if rates.per_1000_puts is not None:
        prices["PUT and LIST"] = (
            rates.per_1000_puts * (found.requests.puts + found.requests.lists) / 1000
        )
    if rates.per_1000_gets is not None:
        prices["GET and HEAD"] = rates.per_1000_gets * found.requests.gets / 1000
    if rates.per_gb_month is not None:
        prices["a month of storage"] = rates.per_gb_month * found.size / 1e9
    if not prices:
        return []
    return ["price      " + ", ".join(f"{what} {price:,.4f}" for what, price in prices.items())]


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number:,} {what}{plural if number > 1 else ''}"


def _gb(size: float) -> str:
    return f"{size / 1e9:,.2f} GB"


def _duration(spent: float) -> str:
    return f"{spent / 3600:,.1f} h" if spent >= 3600 else f"{spent:,.1f} s"
