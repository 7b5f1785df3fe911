"""Whether a run fits the device: the arithmetic, and the words in which its end is told."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neoscope.commands.plan import CUDA_BYTES, plan, sizes_of
from neoscope.errors import InputError
from neoscope.model import loading
from neoscope.pipeline import host_memory, inputs, memory
from neoscope.spec import GPT_NEO_125M, RunSpec
from neoscope.statistics.length_accumulator import LengthStatistics
from neoscope.statistics.neuron_accumulator import NeuronStatistics
from support.command import invoke

SIZES = memory.Sizes(
    12, 3072, 768, 12, cells=62, ours=True, eager=False, vocabulary=50_257, inputs=768
)
LAYER = 16 * 512 * 3072 * 4


def test_a_run_of_the_125m_shape_holds_what_can_be_counted_by_hand() -> None:
    """Residual stream, shared output, and 6 of the stream's width or the activated neurons; three layers
    on their way; 12 x 62 cells of 1602 bins, and three sums a neuron."""
    found = memory.device_memory(RunSpec(neurons=False), SIZES)
    assert found.working == 16 * 512 * 4 * (768 + 3072 + 6 * 768)
    assert found.staging == memory.host_buffers(RunSpec(), 3072) == 3 * LAYER
    assert found.cast == 0
    assert found.statistics == 12 * 62 * (1602 * 8 + 3072 * 20)
    assert found.total == sum(dataclasses.astuple(found))


def test_what_is_not_asked_for_takes_nothing() -> None:
    sums = memory.device_memory(RunSpec(arrays=False, neurons=False), SIZES)
    assert sums.total == sums.working + sums.statistics + memory.WORKSPACE
    arrays = memory.device_memory(RunSpec(statistics=False, neurons=False), SIZES)
    assert arrays.total == arrays.working + arrays.staging + memory.WORKSPACE
    halves = memory.device_memory(RunSpec(store_dtype="float16"), SIZES)
    assert (halves.staging, halves.cast) == (4 * LAYER // 2, LAYER // 2)
    small = memory.device_memory(RunSpec(sequences_per_pass=2), SIZES)
    assert small.working * 8 == memory.device_memory(RunSpec(), SIZES).working
    assert small.staging == memory.host_buffers(RunSpec(sequences_per_pass=2), 3072)


def test_eager_attention_counts_its_scores_where_they_are_more() -> None:
    theirs = dataclasses.replace(SIZES, ours=False)
    eager = dataclasses.replace(theirs, eager=True)
    spec = RunSpec(positions=2048)
    assert memory.working_bytes(spec, eager, 16) == 16 * 2048 * 4 * (4 * 768 + 2 * 12 * 2048)
    assert memory.working_bytes(spec, theirs, 16) == 16 * 2048 * 4 * (2 * 768 + 3 * 3072)


def test_the_states_of_the_statistics_are_what_is_reckoned() -> None:
    layers = [f"MLP_{number}" for number in range(12)]
    cpu = torch.device("cpu")
    by_length = LengthStatistics(
        torch.arange(32).numpy().astype("uint16"), layers=layers, neurons=3072, device=cpu
    )
    by_neuron = NeuronStatistics(layers=layers, neurons=3072, tokens=8192, device=cpu, contexts=32)
    tensors = [each for each in vars(by_length).values() if isinstance(each, torch.Tensor)]
    tensors += by_neuron._state.values()
    assert sum(each.nbytes for each in tensors) == (
        memory.device_memory(RunSpec(), SIZES).statistics
    )


def test_sums_by_token_are_what_can_be_counted_by_hand() -> None:
    """Of few tokens as many cells as there are; of many, all token ids, apart for first positions."""
    few = RunSpec(arrays=False, token_sums=True)
    assert memory.token_cells(few, 50_257) == 16 * 512
    assert memory.token_cells(few, 100) == 16 + 100
    assert memory.token_cells(few, 50_257, partitions=2) == 2 * 16 * 512
    many = RunSpec(arrays=False, token_sums=True, batches=10**4)
    assert memory.token_cells(many, 50_257) == 2 * 50_257
    cells = 16 * 512
    assert memory.token_sums_bytes(few, SIZES) == cells * (768 * 8 + 17) + 4 * 3072 * 769
    of_values = dataclasses.replace(SIZES, inputs=None)
    assert memory.token_sums_bytes(few, of_values) == cells * (3072 * 8 + 17)
    assert memory.token_sums_bytes(RunSpec(), SIZES) == 0
    needed = 12 * memory.token_sums_bytes(few, SIZES) + 3 * memory.token_sums_bytes(few, SIZES)
    memory.check_token_sums(few, SIZES, needed)
    memory.check_token_sums(few, SIZES, None)
    with pytest.raises(InputError, match=r"may come to 0\.90 GB of memory, and 0\.90 GB are free"):
        memory.check_token_sums(few, SIZES, needed - 1)
    with_them, without = (plan(RunSpec(arrays=False, token_sums=each)) for each in (True, False))
    assert with_them.host_memory - without.host_memory == needed
    assert with_them.device_memory == without.device_memory


def test_the_hosts_memory_is_the_least_of_what_machine_and_container_have(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host_memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(host_memory, "CGROUP", tmp_path)
    assert host_memory.free_host_memory() is None
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:      70 kB\n")
    assert host_memory.free_host_memory() == 70 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("30000\n")
    assert host_memory.free_host_memory() == 70 * 1024
    (tmp_path / "memory.max").write_text("50000\n")
    assert host_memory.free_host_memory() == 20_000
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 5000\n")
    assert host_memory.free_host_memory() == 25_000


def test_a_plan_and_the_check_before_a_pass_reckon_alike(
    small_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, small_run: list[str]
) -> None:
    seen: list[tuple[RunSpec, memory.Sizes]] = []
    monkeypatch.setattr(inputs.memory, "check_pass", lambda *found: seen.append(found[:2]))
    assert invoke("run", tmp_path / "run", *small_run).code == 0
    ((spec, sizes),) = seen
    planned = plan(spec)
    reckoned = sizes_of(spec, planned.shape)
    assert reckoned == dataclasses.replace(sizes, cells=reckoned.cells)
    assert planned.device_memory == (
        CUDA_BYTES + planned.shape.weight_bytes + memory.device_memory(spec, reckoned).total
    )
    known = RunSpec(model=GPT_NEO_125M)
    assert sizes_of(known, plan(known).shape) == SIZES  # 62 is what GPT-2's vocabulary has


@pytest.mark.parametrize("fitting", [8, 4, 1, 0])
def test_too_little_memory_names_the_number_that_would_do(fitting: int) -> None:
    def total(number: int) -> int:
        return memory.device_memory(RunSpec(sequences_per_pass=number), SIZES).total

    memory.require(RunSpec(), SIZES, total(16))
    free = total(fitting) if fitting else total(1) - 1
    advice = f"use --sequences-per-pass {fitting}" if fitting else "lower --positions"
    with pytest.raises(InputError) as caught:
        memory.require(RunSpec(), SIZES, free)
    assert str(caught.value) == (
        "the device's memory is too small for a pass over 16 sequences of 512 positions: beside the "
        f"weights it takes {total(16) / 1e9:.2f} GB at least, and {free / 1e9:.2f} GB are free; {advice}"
    )


def test_a_gpu_is_asked_what_is_free_and_what_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory of the device is what the driver has and what torch has cached beside its tensors."""
    needed = memory.device_memory(RunSpec(), SIZES).total
    there = {"mem_get_info": (needed - 100, 2 * needed), "memory_reserved": 700}
    there["memory_allocated"] = 600
    for name, value in there.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    memory.check_pass(RunSpec(), SIZES, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 601)
    with pytest.raises(InputError, match="use --sequences-per-pass 8"):
        memory.check_pass(RunSpec(), SIZES, torch.device("cuda"))
    memory.check_pass(RunSpec(), SIZES, torch.device("cpu"))


def by_torch(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def by_cuda(*_: object, **__: object) -> None:
    error = torch.AcceleratorError("CUDA error: out of memory")
    error.error_code = 2
    raise error


def by_cublas(*_: object, **__: object) -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.parametrize(
    ("place", "refused", "options", "advice"),
    [
        ("loop.stream", by_torch, [], "lower --sequences-per-pass"),
        ("loop.stream", by_cublas, ["--sequences-per-pass", "1"], "lower --positions"),
        ("partition_statistics.LengthStatistics", by_torch, [], "lower --sequences-per-pass"),
        ("loop.LayerWriter", by_cuda, [], "lower --sequences-per-pass"),
        ("partition.describe_environment", by_cuda, [], "lower --sequences-per-pass"),
    ],
)
def test_memory_that_runs_out_after_the_check_may_be_there_later(
    small_run: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    refused: Callable[..., None],
    options: list[str],
    advice: str,
) -> None:
    monkeypatch.setattr(f"neoscope.pipeline.{place}", refused)
    done = invoke("run", tmp_path / "run", *small_run, *options)
    sequences = "1" if options else "8"
    assert (done.code, done.err.splitlines()[-1]) == (
        75,
        f"neoscope: error: the device ran out of memory for a pass over {sequences} sequences of 24 "
        f"positions: rerun the same command when nothing else uses the device, or {advice}",
    )


def test_another_error_of_a_pass_stays_what_it_is(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the size of tensor a must match the size of tensor b")

    monkeypatch.setattr("neoscope.pipeline.loop.stream", fail)
    assert invoke("run", tmp_path / "run", *small_run).code == 1


@pytest.mark.parametrize(
    ("total", "code", "told"),
    [
        (1 << 10, 3, "memory is too small for the weights of .*use --precision bfloat16 or --dev"),
        (1 << 40, 75, "ran out of memory for the weights of .*rerun the same command when nothing"),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    small_run: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    total: int,
    code: int,
    told: str,
) -> None:
    properties: Any = SimpleNamespace(total_memory=total)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: properties)
    monkeypatch.setattr(loading, "_bare_model", by_torch)
    done = invoke("run", tmp_path / "run", *small_run)
    assert done.code == code
    assert re.search(told, done.err.splitlines()[-1])
