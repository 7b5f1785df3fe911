"""Whether a GPU computes what a CPU does, and a run on it is whole, equal and resumed.

In: a device and a model. Out: findings, one a check. Runs are processes of their own, one of which is
killed. It does not know how long anything takes; see `timings`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from neoscope.commands.recompute import TOLERANCE
from neoscope.format.layout import PARTITION_NEURONS, PARTITION_STATISTICS
from neoscope.model.hooks import capture
from neoscope.model.loading import load_model
from neoscope.pipeline.partition_statistics import PartitionStatistics
from neoscope.spec import CONTEXTS, PRECISIONS, Precision, Weights
from neoscope.statistics.length_accumulator import LengthStatistics
from neoscope.statistics.neuron_accumulator import NeuronStatistics

SEQUENCES, POSITIONS = 4, 512  # twice GPT-Neo's window
STATISTICS = {
    "statistics by token length": PARTITION_STATISTICS,
    "statistics by neuron": PARTITION_NEURONS,
}
LENGTHS = np.arange(13, dtype=np.uint16)  # of a token; 0 is special
BATCHES = 12
RUN_LIMIT = 240  # seconds of a process that hangs; most of what it takes is imports


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was checked, whether it is as it must be, and what was seen."""

    what: str
    passed: bool
    seen: str

    def __str__(self) -> str:
        return f"{'PASS' if self.passed else 'FAIL'}  {self.what}: {self.seen}"


@dataclasses.dataclass(frozen=True)
class Subject:
    """The model that is checked, by its name or folder."""

    model: str
    weights: Weights
    device: str

    def load(self, precision: Precision, device: str | None = None) -> PreTrainedModel:
        return load_model(
            self.model, weights=self.weights, precision=precision, device=device or self.device
        )


def check(subject: Subject) -> Iterator[Finding]:
    """All checks, each as soon as it is done."""
    for precision in PRECISIONS:
        yield from _check_precision(subject, precision)
    with tempfile.TemporaryDirectory(prefix="neoscope-gpu-check-") as folder:
        yield from _check_runs(subject, Path(folder))


def _check_precision(subject: Subject, precision: Precision) -> Iterator[Finding]:
    """Capture against float32 on the CPU with the same weights, in one pass and in several; statistics
    against the CPU's of the same values."""
    reference = subject.load(precision, "cpu").float()
    config = reference.config
    positions = min(POSITIONS, config.max_position_embeddings)
    random = np.random.default_rng(0)
    ids = random.integers(0, config.vocab_size, (SEQUENCES, positions))
    lengths = random.choice(LENGTHS, ids.shape)
    expected = capture(reference, ids)
    del reference
    model = subject.load(precision)
    found = capture(model, ids)
    limit = TOLERANCE[precision]
    off = _worst(found, expected)
    yield Finding(f"{precision} capture", off <= limit, f"off by {off:.2g}, allowed {limit:.2g}")
    parts = [capture(model, row[None]) for row in ids]
    joined = {name: torch.cat([part[name] for part in parts]) for name in found}
    off = _worst(joined, expected)
    seen = f"off by {off:.2g}, allowed {limit:.2g}"
    yield Finding(f"{precision} capture, a sequence a pass", off <= limit, seen)
    again = capture(model, ids)
    equal = all(torch.equal(again[name], found[name]) for name in found)
    yield Finding(f"{precision} capture twice", equal, "the same bits" if equal else "other bits")
    ours = _statistics(found, lengths)
    theirs = _statistics({name: values.cpu() for name, values in found.items()}, lengths)
    for what, name in STATISTICS.items():
        same = ours[name] == theirs[name]
        seen = "the CPU's bits" if same else "other bits than the CPU's"
        yield Finding(f"{precision} {what}", same, seen)


def _worst(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest root mean square of a layer's differences, as a share of that of its values."""
    worst = 0.0
    for name, values in expected.items():
        exact = values.double()
        off = (found[name].cpu().double() - exact).square().mean().sqrt()
        worst = max(worst, float(off / exact.square().mean().sqrt()))
    return worst


def statistics_of(
    layers: Sequence[str], neurons: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> PartitionStatistics:
    """Statistics by token length and by neuron of values of a dtype on a device, nothing added yet."""
    return PartitionStatistics(
        dtype,
        LengthStatistics(LENGTHS, layers=layers, neurons=neurons, device=device),
        NeuronStatistics(
            layers=layers, neurons=neurons, tokens=10**9, device=device, contexts=CONTEXTS
        ),
        None,
    )


def _statistics(layers: dict[str, torch.Tensor], lengths: Any) -> dict[str, bytes]:
    """The states of statistics after two batches, computed where the layers are."""
    values = next(iter(layers.values()))
    sums = statistics_of(list(layers), values.shape[2], values.device, values.dtype)
    for number, batch in enumerate((lengths, lengths[::-1])):
        placed = sums.place(batch, number * lengths.size)
        for name, values in layers.items():
            sums.add(name, values, placed)
    sums.check()
    return {name: state.dump() for name, state in sums.states().items()}


def _check_runs(subject: Subject, folder: Path) -> Iterator[Finding]:
    """Runs into a folder: two are equal, a killed one becomes the same, and no race is found."""
    first, second, killed = (folder / name for name in ("first", "second", "killed"))
    whole = _run(subject, first)
    yield Finding("a run", not whole, whole or "committed")
    if whole:
        return  # there is nothing to compare with
    error = _run(subject, second) or _difference(first, second)
    yield Finding("two equal runs", not error, error or "the same content")
    error = _kill(subject, killed) or _run(subject, killed) or _difference(first, killed)
    yield Finding("a killed run, resumed", not error, error or "the same content")
    if subject.device == "cpu":
        return  # the sanitizer wants CUDA
    error = _run(subject, folder / "raced", batches=1, TORCH_CUDA_SANITIZER="1")
    yield Finding(
        "a run under torch's CUDA sanitizer", not error, error or "no race of torch's operators"
    )


def _command(subject: Subject, output: Path, batches: int) -> list[str]:
    options = {
        "model": subject.model,
        "weights": subject.weights,
        "device": subject.device,
        "dataset": "sample",
        "sequences": 4,
        "positions": 64,
        "batches": batches,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "neoscope", "run", str(output), *words]


def _run(subject: Subject, output: Path, batches: int = BATCHES, **variables: str) -> str:
    """Make a run; what went wrong, in a line."""
    try:
        done = subprocess.run(
            _command(subject, output, batches),
            env=os.environ | variables,
            capture_output=True,
            text=True,
            timeout=RUN_LIMIT,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {RUN_LIMIT} s"
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def _kill(subject: Subject, output: Path) -> str:
    """Begin a run and kill it once its first batch is recorded; what went wrong, in a line."""
    process = subprocess.Popen(
        _command(subject, output, BATCHES), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + RUN_LIMIT
    while process.poll() is None and not list(output.glob("records/*.json")):
        if time.monotonic() > until:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if (output / "manifest.json").exists():
        return "it was done before it could be killed: run the check again"
    return "" if list(output.glob("records/*.json")) else "it ended before its first record"


def _difference(one: Path, other: Path) -> str:
    """Which layers of two runs differ, or that all else does."""
    a, b = (json.loads((each / "manifest.json").read_bytes()) for each in (one, other))
    if a["content_digest"] == b["content_digest"]:
        return ""
    arrays = a["arrays"]
    differing = [name for name in arrays if arrays[name]["digest"] != b["arrays"][name]["digest"]]
    return f"{', '.join(differing) or 'statistics'} differ"
