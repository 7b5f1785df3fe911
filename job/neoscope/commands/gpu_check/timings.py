"""What a pass, its copies and its statistics take on a GPU, each against its floor.

In: a device and a model. Out: the median seconds of each row, which are run in turn. It does not know whether
what is computed is right; see `checks`.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from concurrent import futures
from contextlib import closing
from typing import Any

import numpy as np
import torch
from obstore.store import MemoryStore

from neoscope.commands.gpu_check.checks import LENGTHS, Subject, statistics_of
from neoscope.format.arrays import array_schemas
from neoscope.model import numerics
from neoscope.model.hooks import stream
from neoscope.pipeline.layer_writer import LayerWriter
from neoscope.pipeline.partition_statistics import PartitionStatistics
from neoscope.spec import LAYER, RunSpec
from neoscope.storage.store import Store

SEQUENCES, POSITIONS = 16, 512
ROUNDS = 7
# Of LENGTHS, about as in English text: the longest cell is what a GPU waits for.
SHARES = np.array([1, 9, 8, 14, 18, 14, 10, 8, 6, 5, 3, 2, 2]) / 100

PRODUCTS = "matrix products alone"
FORWARD = "forward pass, hooks that keep nothing"
LINK = "pinned copy of the same bytes"
CAPTURE = "capture into a store in memory"
BY_LENGTH = "statistics by token length of one batch"
BY_NEURON = "statistics by neuron of one batch"
SUMS_ONLY = "forward pass with both statistics (--no-arrays)"
ROWS = (PRODUCTS, FORWARD, LINK, CAPTURE, BY_LENGTH, BY_NEURON, SUMS_ONLY)


def measure(
    subject: Subject, sequences: int = SEQUENCES, positions: int = POSITIONS, rounds: int = ROUNDS
) -> dict[str, float]:
    """Seconds of one batch [sequence, position] in float32 by row, the median of the rounds."""
    model = subject.load("float32")
    device = model.device
    rows = _rows(subject, model, sequences, positions)
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, work in rows.items():
            _synchronize(device)
            began = time.perf_counter()
            work()
            _synchronize(device)
            if number:  # the first compiles and allocates
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _rows(
    subject: Subject, model: Any, sequences: int, positions: int
) -> dict[str, Callable[[], object]]:
    config, device = model.config, model.device
    neurons, layers = model.h[0].mlp.c_fc.out_features, config.num_layers
    ids = torch.randint(0, config.vocab_size, (sequences, positions))
    lengths = np.random.default_rng(0).choice(LENGTHS, (sequences, positions), p=SHARES)
    spec = RunSpec(model=subject.model, sequences=sequences, positions=positions)
    schemas = array_schemas(spec, layers=range(layers), neurons=neurons)
    names = [f"{LAYER}{number}" for number in range(layers)]
    layer = torch.randn(sequences, positions, neurons, device=device)
    host = torch.empty(layer.shape, pin_memory=device.type == "cuda")
    both = statistics_of(names, neurons, device)

    def forward(*consumers: Callable[[str, torch.Tensor], None]) -> None:
        stream(model, ids, consumers, forward="fast")

    def copies() -> None:
        for _ in names:
            host.copy_(layer, non_blocking=True)

    def capture() -> None:
        store = Store("memory", MemoryStore())  # type: ignore[arg-type]
        with closing(LayerWriter(store, schemas[names[0]], device)) as writer:
            forward(lambda name, values: writer.write(schemas[name], 0, values, "records/none"))
            for parts in writer.finish().values():
                futures.wait(parts)

    def adding(sums: PartitionStatistics) -> None:
        placed = sums.place(lengths, 0)
        for name in names:
            sums.add(name, layer, placed)
        sums.check()

    def sums_only() -> None:
        placed = both.place(lengths, 0)
        forward(lambda name, values: both.add(name, values, placed))
        both.check()

    work = (
        _products(layers, sequences * positions, config.hidden_size, neurons, device),
        lambda: forward(lambda _name, _values: None),
        copies,
        capture,
        lambda: adding(dataclasses.replace(both, by_neuron=None)),
        lambda: adding(dataclasses.replace(both, by_length=None)),
        sums_only,
    )
    return dict(zip(ROWS, work, strict=True))


def _products(
    layers: int, tokens: int, hidden: int, neurons: int, device: torch.device
) -> Callable[[], None]:
    """Every product with weights up to the last `c_fc`, into memory that is already there."""
    x = torch.randn(tokens, hidden, device=device)
    inner = torch.randn(tokens, neurons, device=device)
    up = torch.randn(hidden, neurons, device=device)
    square = torch.randn(hidden, hidden, device=device)
    down = torch.randn(neurons, hidden, device=device)
    wide, narrow = torch.empty_like(inner), torch.empty_like(x)

    def products() -> None:
        with numerics.pinned(device):
            for layer in range(layers):
                for _ in range(4):  # queries, keys, values, what attention gives
                    torch.mm(x, square, out=narrow)
                torch.mm(x, up, out=wide)
                if layer < layers - 1:
                    torch.mm(inner, down, out=narrow)

    return products


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
