"""What the statistics cost on a CPU: of one layer on one thread, and of a whole pass.

    python tests/benchmarks/neurons.py [ROUNDS]

A layer of 8192 x 3072 on one thread: the statistics by token length and by neuron against the `c_fc` product
that computes it; the statistics by neuron again by what runs on a GPU. The pass of GPT-Neo 125M's shape over
16 x 512 tokens on all threads: without statistics, with those by token length, with both. Then the bytes of
the state by neuron, and the seconds of taking, loading and merging it.
"""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from measure import in_turn, table

from neoscope import load_model
from neoscope.model.hooks import stream
from neoscope.spec import CONTEXTS
from neoscope.statistics.length_accumulator import LengthStatistics
from neoscope.statistics.neuron_accumulator import NeuronStatistics
from neoscope.statistics.neurons import Neurons, merge

SEQUENCES, POSITIONS, LAYERS, HIDDEN = 16, 512, 12, 768
TOKENS, NEURONS = SEQUENCES * POSITIONS, 4 * HIDDEN
LENGTHS = np.random.default_rng(0).integers(1, 12, (SEQUENCES, POSITIONS)).astype(np.uint16)


def by_length(layers: int) -> LengthStatistics:
    names = [f"MLP_{layer}" for layer in range(layers)]
    vocabulary = np.arange(33).astype(np.uint16)
    return LengthStatistics(vocabulary, layers=names, neurons=NEURONS, device=torch.device("cpu"))


def by_neuron(layers: int) -> NeuronStatistics:
    names = [f"MLP_{layer}" for layer in range(layers)]
    return NeuronStatistics(
        layers=names, neurons=NEURONS, tokens=10**9, device=torch.device("cpu"), contexts=CONTEXTS
    )


def layer_rows() -> dict[str, Callable[[], object]]:
    x, weight, bias = (
        torch.randn(TOKENS, HIDDEN),
        torch.randn(NEURONS, HIDDEN),
        torch.randn(NEURONS),
    )
    out = torch.empty(TOKENS, NEURONS)
    values = torch.randn(SEQUENCES, POSITIONS, NEURONS) * 0.8
    lengths, neurons = by_length(1), by_neuron(1)
    return {
        "c_fc": lambda: torch.addmm(bias, x, weight.t(), out=out),
        "statistics by token length": lambda: lengths.add("MLP_0", values, lengths.place(LENGTHS)),
        "statistics by neuron": lambda: neurons.add("MLP_0", values, neurons.place(LENGTHS), 0),
    }


def pass_rows(state: NeuronStatistics) -> dict[str, Callable[[], object]]:
    model = load_model("gpt-neo-125m", weights="random")
    ids = torch.randint(0, model.config.vocab_size, (SEQUENCES, POSITIONS))
    lengths = by_length(LAYERS)

    def nothing(name: str, values: torch.Tensor) -> None:
        pass

    def length(name: str, values: torch.Tensor) -> None:
        lengths.add(name, values, lengths.place(LENGTHS))

    def both(name: str, values: torch.Tensor) -> None:
        lengths.add(name, values, lengths.place(LENGTHS))
        state.add(name, values, state.place(LENGTHS), 0)

    consumers = {
        "without statistics": nothing,
        "with those by token length": length,
        "with those by token length and by neuron": both,
    }
    return {
        name: functools.partial(stream, model, ids, [consume], forward="fast")
        for name, consume in consumers.items()
    }


def start() -> None:
    """Seconds of processor time that compiling takes, each in a process of its own."""
    for module in (
        "numba",
        "neoscope.statistics.length_kernels",
        "neoscope.statistics.neuron_kernels",
    ):
        code = f"import time, numba; t = time.process_time(); import {module}; print(time.process_time() - t)"
        done = subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        )
        print(f"import {module} after numba: {float(done.stdout):.2f} s of processor time")


def state_costs(state: NeuronStatistics) -> None:
    """Bytes and seconds of the state of all layers."""
    neurons = state.neurons()
    kept = sum(each.nbytes for each in state._state.values())
    print(f"state of {LAYERS} x {NEURONS} neurons in memory: {kept:,} bytes")
    began = time.perf_counter()
    body = neurons.dump()
    dumped = time.perf_counter()
    loaded = Neurons.load(body)
    read = time.perf_counter()
    merge([loaded, loaded], CONTEXTS)
    merged = time.perf_counter()
    print(f"dumped after {int(neurons.tokens.sum()):,} tokens: {len(body):,} bytes")
    print(
        f"dumping {dumped - began:.2f} s, loading {read - dumped:.2f}, merging two {merged - read:.2f}"
    )


def main(rounds: int) -> None:
    start()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = in_turn(layer_rows(), rounds)
    print(table(f"A layer of {TOKENS} x {NEURONS}, one thread", seconds, "c_fc"), end="\n\n")
    torch.set_num_threads(threads)
    state = by_neuron(LAYERS)
    seconds = in_turn(pass_rows(state), rounds)
    title = f"A pass over {SEQUENCES} x {POSITIONS} tokens, GPT-Neo 125M shape, {threads} threads"
    print(table(title, seconds, "without statistics"), end="\n\n")
    state_costs(state)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
