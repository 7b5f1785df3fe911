"""What sums by token cost: in a pass, in a run, and to be asked.

    python tests/benchmarks/token_cost.py [ROUNDS] [small]
    OPENBLAS_NUM_THREADS=1 python tests/benchmarks/token_cost.py ask OUTPUT

Three parts, each in a process of its own, of GPT-Neo 125M's shape with random weights:

1. A pass over 16 x 512 tokens of the packaged sample: with the statistics that a run with --no-arrays
   keeps in any case, with --token-sums besides (sums of the inputs of `c_fc`), and with sums of the
   values themselves. The rows run in turn; every round adds the same tokens again.
2. A run with --no-arrays, and one with --token-sums: seconds, peak memory of the process, bytes stored.
3. Of the second one, over all its layers: processor seconds of reading the sums, of `regress`, and of
   `permute` with 1000 permutations, and the peak memory of the process. Of another run: `ask OUTPUT`; one
   thread of BLAS is one core's worth of seconds.

`small` takes 2 x 64 tokens, two layers and 20 permutations, to see that all of it works.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from measure import in_turn, table

import neoscope
from neoscope import by_token
from neoscope.model.architectures import ARCHITECTURES
from neoscope.model.hooks import linear_maps, stream
from neoscope.spec import CONTEXTS
from neoscope.statistics.length_accumulator import LengthStatistics
from neoscope.statistics.neuron_accumulator import NeuronStatistics
from neoscope.statistics.token_accumulator import TokenStatistics
from neoscope.text.documents import SAMPLE_FILE

T = TypeVar("T")
SEQUENCES, POSITIONS, LAYERS, PERMUTATIONS = 16, 512, 12, 1000
SMALL = 2, 64, 2, 20
CPU = torch.device("cpu")


def peak() -> str:
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"


def time_pass(rounds: int, shape: tuple[int, int, int, int]) -> None:
    sequences, positions, layers, _ = shape
    model = neoscope.load_model("gpt-neo-125m", weights="random")
    tokenizer = neoscope.load_tokenizer("gpt-neo-125m", weights="random")
    documents = [json.loads(line)["text"] for line in SAMPLE_FILE.read_text("utf-8").splitlines()]
    flat = tokenizer("".join(documents))["input_ids"][: sequences * positions]
    ids = np.array(flat, np.int32).reshape(sequences, positions)
    lengths = (1 + ids % 12).astype(np.uint16)
    point, numbers = ARCHITECTURES["gpt_neo"], {f"MLP_{layer}": layer for layer in range(layers)}
    maps = linear_maps(model, point, range(layers))
    neurons = maps["MLP_0"].out_features
    by_length = LengthStatistics(
        np.arange(14).astype(np.uint16), layers=list(numbers), neurons=neurons, device=CPU
    )
    by_neuron = NeuronStatistics(
        layers=list(numbers), neurons=neurons, tokens=10**9, device=CPU, contexts=CONTEXTS
    )
    cells = 2 * model.config.vocab_size
    of_inputs, of_values = (TokenStatistics(numbers, each, cells) for each in (maps, {}))

    def usual(name: str, values: torch.Tensor) -> None:
        by_length.add(name, values, by_length.place(lengths))
        by_neuron.add(name, values, by_neuron.place(lengths), 0)

    def add(sums: TokenStatistics, name: str, values: torch.Tensor) -> None:
        sums.add(name, values, ids, lengths)

    run = functools.partial(stream, model, ids, forward="fast", layers=range(layers))
    rows = {
        "the statistics that a run keeps": lambda: run([usual]),
        "and sums of the inputs by token": lambda: run(
            [usual], inputs=[functools.partial(add, of_inputs)]
        ),
        "and sums of the values by token": lambda: run([usual, functools.partial(add, of_values)]),
    }
    seconds = in_turn(rows, rounds)
    title = f"A pass over {sequences} x {positions} tokens, {layers} layers of GPT-Neo 125M's shape"
    print(table(title, seconds, "the statistics that a run keeps"))
    for what, sums in (("inputs", of_inputs), ("values", of_values)):
        began = time.perf_counter()
        size = sum(len(each.dump()) for each in sums.sums())
        print(
            f"state of sums of {what}: {size:,} bytes, {time.perf_counter() - began:.2f} s to dump"
        )
    print(f"peak memory {peak()}")


def time_runs(folder: Path, shape: tuple[int, int, int, int]) -> None:
    sequences, positions, layers, _ = shape
    for name, more in (("without", ()), ("token-sums", ("--token-sums",))):
        command = [
            *(sys.executable, "-m", "neoscope", "run", str(folder / name), "--weights", "random"),
            *(
                "--dataset",
                "sample",
                "--layers",
                f"0-{layers - 1}",
                "--no-arrays",
                "--device",
                "cpu",
            ),
            *("--sequences", str(sequences), "--positions", str(positions), *more),
        ]
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        spent = time.perf_counter() - began
        if status:
            raise SystemExit(f"{' '.join(command)} ended with {os.waitstatus_to_exitcode(status)}")
        stored = sum(path.stat().st_size for path in (folder / name).rglob("*") if path.is_file())
        sums = sum(path.stat().st_size for path in (folder / name).glob("token-sums/*"))
        print(
            f"run {name:<12} {spent:6.1f} s, peak memory {usage.ru_maxrss / 1e6:.2f} GB, "
            f"{stored:,} bytes stored, {sums:,} of them sums by token"
        )


def time_questions(url: str, permutations: int) -> None:
    spent: dict[str, float] = {}

    def timed(what: str, work: Callable[[], T]) -> T:
        began = time.process_time()
        found = work()
        spent[what] = spent.get(what, 0) + time.process_time() - began
        return found

    features = by_token.features(url)[["length", "log_frequency"]]
    layers, count = by_token.sums(url), 0
    while (sums := timed("sums", lambda: next(layers, None))) is not None:
        timed("regress", lambda sums=sums: by_token.regress(sums, features, errors="CR3"))
        timed(
            f"permute, {permutations} times",
            lambda sums=sums: by_token.permute(sums, features, times=permutations),
        )
        cells, neurons = sums.total.shape
        count += 1
    for what, seconds in spent.items():
        print(f"{what:<20} {seconds:6.1f} CPU s")
    print(f"{count} layers of {cells:,} cells and {neurons:,} neurons; peak memory {peak()}")


def main(rounds: int, small: bool) -> None:
    shape = SMALL if small else (SEQUENCES, POSITIONS, LAYERS, PERMUTATIONS)
    own = [sys.executable, __file__]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*own, "pass", str(rounds), *map(str, shape)], check=True)
        print()
        time_runs(Path(folder), shape)
        print(flush=True)
        subprocess.run([*own, "ask", f"{folder}/token-sums", str(shape[-1])], check=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[:1] == ["pass"]:
        a, b, c, d = map(int, words[2:])
        time_pass(int(words[1]), (a, b, c, d))
    elif words[:1] == ["ask"]:
        time_questions(words[1], int(words[2]) if len(words) > 2 else PERMUTATIONS)
    else:
        rounds = [int(word) for word in words if word.isdigit()]
        main(rounds[0] if rounds else 5, "small" in words)
