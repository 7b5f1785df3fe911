"""Whether a pass fits the device: the arithmetic, and the words in which its end is told."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GemmaConfig, GPTNeoConfig

from neoscope.errors import InputError
from neoscope.model import loading, memory
from neoscope.model.random_weights import published_config
from neoscope.pipeline import partition
from neoscope.spec import GPT_NEO_125M, RunSpec
from support.command import invoke

NEURONS = 3072


def test_a_pass_of_the_125m_shape_holds_what_can_be_counted_by_hand() -> None:
    """512 positions of 2 x 768 floats of the residual stream and 3 x 3072 of neurons."""
    config = published_config(GPT_NEO_125M)
    fast = memory.sequence_bytes(RunSpec(), config, NEURONS, eager=False)
    assert fast == 512 * (2 * 768 + 3 * NEURONS) * 4
    halves = RunSpec(precision="bfloat16", store_dtype="float16")
    assert memory.sequence_bytes(halves, config, NEURONS, eager=False) == fast / 2
    mixed = RunSpec(precision="bfloat16")
    assert memory.sequence_bytes(mixed, config, NEURONS, eager=False) == (
        512 * (2 * 768 * 2 + NEURONS * (2 * 2 + 4))
    )


def test_eager_attention_counts_its_scores_where_they_are_more() -> None:
    config = published_config(GPT_NEO_125M)
    spec = RunSpec(positions=2048)
    eager = memory.sequence_bytes(spec, config, NEURONS, eager=True)
    assert eager == 2048 * (2 * 768 + 2 * 12 * 2048) * 4
    few = memory.sequence_bytes(RunSpec(positions=64), config, NEURONS, eager=True)
    assert few == memory.sequence_bytes(RunSpec(positions=64), config, NEURONS, eager=False)


@pytest.mark.parametrize("config", [GPTNeoConfig(), GemmaConfig()], ids=lambda c: c.model_type)
def test_what_is_counted_is_held_by_a_real_pass(config: Any) -> None:
    """The names under which architectures keep their dimensions are known."""
    assert memory.sequence_bytes(RunSpec(), config, 10, eager=True) > 0


@pytest.mark.parametrize(
    ("free", "advice"),
    [
        (15, "use --sequences-per-pass 8"),
        (8, "use --sequences-per-pass 8"),
        (7, "use --sequences-per-pass 4"),
        (1, "use --sequences-per-pass 1"),
        (0, "lower --positions"),
    ],
)
def test_too_little_memory_names_the_number_that_would_do(free: int, advice: str) -> None:
    gigabyte = 10**9
    memory.require(RunSpec(), gigabyte, 16 * gigabyte)
    with pytest.raises(InputError) as caught:
        memory.require(RunSpec(), gigabyte, free * gigabyte)
    assert str(caught.value) == (
        "the device's memory is too small for a pass over 16 sequences of 512 positions: beside the "
        f"weights it takes 16.00 GB at least, and {free}.00 GB are free; {advice}"
    )


def test_smaller_passes_need_less(monkeypatch: pytest.MonkeyPatch) -> None:
    memory.require(RunSpec(sequences_per_pass=2), 10, 20)
    with pytest.raises(InputError, match="pass over 2 sequences.*use --sequences-per-pass 1"):
        memory.require(RunSpec(sequences_per_pass=2), 10, 19)


def test_a_gpu_is_asked_what_is_free_and_what_torch_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free memory of the device is what the driver has and what torch has cached beside its tensors."""
    config, spec = published_config(GPT_NEO_125M), RunSpec()
    needed = 16 * memory.sequence_bytes(spec, config, NEURONS, eager=False)
    there = {"mem_get_info": (needed - 100, 2 * needed), "memory_reserved": 700}
    there["memory_allocated"] = 600
    for name, value in there.items():
        monkeypatch.setattr(torch.cuda, name, lambda _device, value=value: value)
    gpu = torch.device("cuda")
    memory.check_pass(spec, config, NEURONS, gpu, eager=False)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 601)
    with pytest.raises(InputError, match="use --sequences-per-pass 8"):
        memory.check_pass(spec, config, NEURONS, gpu, eager=False)
    memory.check_pass(spec, config, NEURONS, torch.device("cpu"), eager=False)


def out_of_memory(*_: object, **__: object) -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize(
    ("options", "advice"),
    [([], "lower --sequences-per-pass"), (["--sequences-per-pass", "1"], "lower --positions")],
    ids=["many", "one"],
)
def test_a_pass_that_runs_out_of_memory_is_one_line(
    small_run: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    advice: str,
) -> None:
    monkeypatch.setattr(partition, "stream", out_of_memory)
    done = invoke("run", tmp_path / "run", *small_run, *options)
    assert done.code == 3
    sequences = "1" if options else "8"
    assert done.err.splitlines()[-1] == (
        f"neoscope: error: the device's memory is too small for a pass over {sequences} sequences of "
        f"24 positions: {advice}"
    )


def test_weights_that_do_not_fit_are_one_line(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_pretrained_model", out_of_memory)
    done = invoke("run", tmp_path / "run", *small_run)
    assert done.code == 3
    assert re.search(
        r"too small for the weights of .*: use --precision bfloat16 or --device cpu", done.err
    )
