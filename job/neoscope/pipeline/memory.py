"""What a run takes of a device's memory: one reckoning, for a plan and for the check before a pass.

In: a spec, and a model's sizes. Out: bytes by what they are for; nothing, or one line that says which
number to lower, and to what. Reckoned is what is certainly held at once, not what an allocator keeps.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from neoscope.errors import InputError, UnavailableError, UsageError
from neoscope.format.arrays import array_schemas
from neoscope.model.shapes import CPU_SEQUENCES
from neoscope.pipeline.limits import ring_slots
from neoscope.spec import RunSpec
from neoscope.statistics.length_cells import BINS
from neoscope.statistics.neurons import BINS as NEURON_BINS
from neoscope.statistics.neurons import POWERS

if TYPE_CHECKING:
    import torch

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
WORKSPACE = 8 * 4096 * 1024  # what `numerics` has cuBLAS take
LARGEST_OBJECT = 5_000_000_000  # that S3 takes in one request
CELL_KEYS = 8 + 1 + 8  # of a cell of the sums by token: its token, whether it is first, its count
COPIES = 3  # of one layer's sums, while they are ordered and put, or two partitions' are added up
# Each neuron's pivot, total and squares, and the histogram, of a cell.
NEURON_BYTES, CELL_BYTES = 4 + 8 + 8, 8 * BINS


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A model as far as memory goes: `layers` that are captured, and the `cells` of its statistics.
    `ours` is whether the pass is `gpt_neo.forward`, `eager` whether its attention holds all scores;
    `vocabulary` are the token ids of its tokenizer, and `inputs` the numbers that go into the linear map
    whose outputs are captured, None where sums by token are not of these; see `hooks.linear_maps`."""

    layers: int
    neurons: int
    hidden: int
    heads: int
    cells: int
    ours: bool
    eager: bool
    vocabulary: int
    inputs: int | None


@dataclasses.dataclass(frozen=True)
class DeviceMemory:
    """Bytes on a GPU beside the weights and CUDA's own."""

    working: int  # of a pass: hidden states, neurons, one block's steps
    staging: int  # layers in the order of their chunks, on their way to the host
    cast: int  # a layer in the dtype that is stored, for the statistics
    statistics: int  # the states of all layers
    workspace: int = WORKSPACE

    @property
    def total(self) -> int:
        return sum(dataclasses.astuple(self))


def device_memory(spec: RunSpec, sizes: Sizes) -> DeviceMemory:
    layer = spec.pass_sequences * spec.positions * sizes.neurons
    stored = BYTES[spec.store_dtype]
    other_dtype = spec.precision != spec.store_dtype
    return DeviceMemory(
        working_bytes(spec, sizes, spec.pass_sequences),
        spec.arrays * _slots(spec, sizes.neurons) * stored * layer,
        (spec.statistics or spec.neurons) * other_dtype * stored * layer,
        spec.statistics * sizes.layers * sizes.cells * (CELL_BYTES + NEURON_BYTES * sizes.neurons)
        + neurons_bytes(spec, sizes.neurons, sizes.layers),
    )


def neurons_bytes(spec: RunSpec, neurons: int, layers: int) -> int:
    """The state by neuron, apart for first positions: bins, a pivot, sums of powers, a count, contexts."""
    one = 4 * NEURON_BINS + 4 + 8 * POWERS + 4 + 2 * spec.contexts * (4 + 8)
    return spec.neurons * 2 * layers * neurons * one


def token_cells(spec: RunSpec, vocabulary: int, partitions: int = 1) -> int:
    """The most cells of sums by token that some partitions can have together: a token id at first positions
    is one, and at all others another."""
    sequences = partitions * spec.batches * spec.sequences
    return min(vocabulary, sequences) + min(vocabulary, sequences * (spec.positions - 1))


def token_sums_bytes(spec: RunSpec, sizes: Sizes, partitions: int = 1) -> int:
    """The most bytes of one layer's sums by token, in memory and in the store; 0 where none are kept."""
    width = sizes.inputs or sizes.neurons
    cell = 8 * width + CELL_KEYS
    map_ = 4 * (sizes.inputs + 1) * sizes.neurons if sizes.inputs else 0
    return spec.token_sums * (token_cells(spec, sizes.vocabulary, partitions) * cell + map_)


def check_token_sums(spec: RunSpec, sizes: Sizes, free: int | None) -> None:
    """Refuse sums by token that would not be exact, or not fit: where values are rounded after the linear map
    whose inputs are summed, where a layer's are more than one object holds, or where those of all layers
    may come to more than the `free` bytes of the host's memory. Raises UsageError, InputError."""
    if not spec.token_sums:
        return
    rounded = {"--precision": spec.precision, "--store-dtype": spec.store_dtype}
    for option, dtype in rounded.items():
        if sizes.inputs and dtype != "float32":
            raise UsageError(
                f"--token-sums keeps sums of the inputs of a linear map, from which its outputs in {dtype} "
                f"do not follow exactly: drop {option} {dtype}, or --token-sums"
            )
    one = token_sums_bytes(spec, sizes, spec.partitions)
    if one > LARGEST_OBJECT:
        raise InputError(
            f"--token-sums may come to {one / 1e9:.1f} GB a layer, and an object of S3 has 5 GB at most: "
            "take fewer tokens, or drop --token-sums"
        )
    needed = sizes.layers * token_sums_bytes(spec, sizes) + COPIES * one
    if free is not None and needed > free:
        raise InputError(
            f"--token-sums may come to {needed / 1e9:.2f} GB of memory, and {free / 1e9:.2f} GB are free: "
            "take some of the --layers at a time, or fewer tokens, or drop --token-sums"
        )


def host_buffers(spec: RunSpec, neurons: int) -> int:
    """The layers that are on their way to the store, as much of each as one pass computes; pinned where
    there is a GPU."""
    layer = spec.pass_sequences * spec.positions * neurons
    return spec.arrays * _slots(spec, neurons) * BYTES[spec.store_dtype] * layer


def _slots(spec: RunSpec, neurons: int) -> int:
    """The buffers of a pass's part of a layer."""
    schema = next(iter(array_schemas(spec, layers=range(1), neurons=neurons).values()))
    return ring_slots(schema, spec.pass_sequences)


def working_bytes(spec: RunSpec, sizes: Sizes, at_once: int | None = None) -> int:
    """What a pass holds at once, a block's steps for `at_once` sequences: on a CPU for fewer."""
    at_once = at_once or min(CPU_SEQUENCES, spec.pass_sequences)
    tokens, hidden, neurons = spec.pass_sequences * spec.positions, sizes.hidden, sizes.neurons
    if sizes.ours:
        # The residual stream and the output that all layers share; then the normed stream, queries, keys,
        # values, what is seen and its projection, or the activated neurons and their projection.
        steps = max(6 * hidden, neurons + 2 * hidden)
        elements = tokens * (hidden + neurons) + at_once * spec.positions * steps
    else:
        # Activation functions in several steps, or a gate beside what it lets through.
        mlp = 2 * hidden + 3 * neurons
        scores = 2 * sizes.heads * spec.positions if sizes.eager else 0
        elements = tokens * max(mlp, 4 * hidden + scores)
    return BYTES[spec.precision] * elements


def check_pass(spec: RunSpec, sizes: Sizes, device: torch.device) -> None:
    """Raise InputError where a run cannot fit the GPU; nothing is known of other devices.

    The weights are already there.
    """
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        require(spec, sizes, free + cached)


def require(spec: RunSpec, sizes: Sizes, free: int) -> None:
    """Raise InputError where `free` bytes are too few for a pass, with the number that would do."""
    needed = device_memory(spec, sizes).total
    if needed <= free:
        return
    fitting = [
        number
        for number in range(1, spec.sequences + 1)
        if spec.sequences % number == 0
        and device_memory(dataclasses.replace(spec, sequences_per_pass=number), sizes).total <= free
    ]
    raise InputError(
        f"the device's memory is too small {_pass(spec)}: beside the weights it takes "
        f"{needed / 1e9:.2f} GB at least, and {free / 1e9:.2f} GB are free; "
        + (f"use --sequences-per-pass {max(fitting)}" if fitting else "lower --positions")
    )


def ran_out(spec: RunSpec) -> UnavailableError:
    """The error of what was refused memory although the check had passed, or before it: a retry may help."""
    lower = "--positions" if spec.pass_sequences == 1 else "--sequences-per-pass"
    return UnavailableError(
        f"the device ran out of memory {_pass(spec)}: rerun the same command when nothing else uses the "
        f"device, or lower {lower}"
    )


def _pass(spec: RunSpec) -> str:
    return f"for a pass over {spec.pass_sequences} sequences of {spec.positions} positions"
