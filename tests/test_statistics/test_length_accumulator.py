"""Statistics by token length as they are added up: against numpy, and on values that are hard."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
import torch

from neoscope.errors import CheckError, InputError
from neoscope.statistics import gpu, length_accumulator
from neoscope.statistics.length_accumulator import LengthStatistics, PlacedTokens
from neoscope.statistics.length_cells import BINS, HALF, Cells, merge
from support import gpu_kernels
from support.by_numpy import EDGES, assert_as_numpy

VOCABULARY = np.array([0, 1, 1, 2, 3, 5, 8, 64], np.uint16)  # lengths by token id; 0 is special
NEURONS = 700  # more than a block of the kernel, and no multiple of it


def some(seed: int, sequences: int = 4) -> tuple[torch.Tensor, npt.NDArray[np.uint16]]:
    """Values [sequence, position, neuron] and token lengths [sequence, position]."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((sequences, 16, NEURONS), np.float32) * 6
    return torch.from_numpy(values), random.choice(VOCABULARY, (sequences, 16))


def statistics_of(*batches: tuple[torch.Tensor, npt.NDArray[np.uint16]]) -> LengthStatistics:
    state = LengthStatistics(
        VOCABULARY, layers=["MLP_0"], neurons=NEURONS, device=torch.device("cpu")
    )
    for values, lengths in batches:
        state.add("MLP_0", values, state.place(lengths))
    return state


def same(one: Cells, other: Cells) -> bool:
    return one.dump() == other.dump()


def test_cells_are_what_numpy_counts_and_adds() -> None:
    batches = [some(seed) for seed in range(3)]
    cells = statistics_of(*batches).cells()
    lengths = np.unique(VOCABULARY[VOCABULARY > 0])
    values = np.concatenate([values.numpy() for values, _ in batches])
    token_lengths = np.concatenate([each for _, each in batches])
    arrays = {"length": lengths, **merge(lengths, [cells])}
    assert_as_numpy(arrays, values, token_lengths, layer=0)
    assert arrays["histogram"].sum() == (token_lengths > 0).sum() * NEURONS


def test_partitions_merge_to_what_one_would_have() -> None:
    parts = [some(seed) for seed in range(4)]
    lengths = np.unique(VOCABULARY[VOCABULARY > 0])
    merged = merge(lengths, [statistics_of(part).cells() for part in parts])
    values = np.concatenate([values.numpy() for values, _ in parts])
    token_lengths = np.concatenate([each for _, each in parts])
    assert_as_numpy({"length": lengths, **merged}, values, token_lengths, layer=0)


def test_where_the_text_is_divided_changes_no_bit() -> None:
    values, lengths = some(0, sequences=6)
    whole = statistics_of((values, lengths)).cells()
    parts = [(values[i : i + 2], lengths[i : i + 2]) for i in (0, 2, 4)]
    assert same(statistics_of(*parts).cells(), whole)

    begun = statistics_of(*parts[:1]).cells()
    again = statistics_of()
    again.restore(Cells.load(begun.dump()))
    for part in parts[1:]:
        again.add("MLP_0", part[0], again.place(part[1]))
    assert same(again.cells(), whole)


def test_a_value_is_never_on_the_wrong_side_of_an_edge() -> None:
    """Every edge as float32, the numbers next to it, and what no edge is near."""
    near = np.float32(EDGES)
    values = np.concatenate(
        [
            near,
            np.nextafter(near, np.float32(np.inf)),
            np.nextafter(near, np.float32(-np.inf)),
            np.float32([0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38]),
        ]
    )
    state = LengthStatistics(VOCABULARY, layers=["MLP_0"], neurons=1, device=torch.device("cpu"))
    rows = torch.from_numpy(values).reshape(1, -1, 1)
    state.add("MLP_0", rows, state.place(np.ones(rows.shape[:2], np.uint16)))
    expected = np.zeros(BINS, np.int64)
    for value in values.tolist():
        place = math.floor(Fraction(value) * 50)  # exact
        expected[min(max(place, -HALF - 1), HALF) + HALF + 1] += 1
    np.testing.assert_array_equal(state.cells().histogram[0].sum(axis=0), expected)


def test_a_small_spread_around_a_large_mean_is_not_lost() -> None:
    """Plain sums of squares in float64 would keep two digits of it."""
    values = torch.full((8, 16, NEURONS), 10_000.0)
    values[:, ::2] += 2**-9
    lengths = np.ones((8, 16), np.uint16)
    merged = merge(np.array([1], np.uint16), [statistics_of((values, lengths)).cells()] * 3)
    spread = 3 * 8 * 15 * (7 / 15) * (8 / 15) * 2**-18
    np.testing.assert_allclose(merged["squared_deviation"][0, 0, 0], spread, rtol=1e-9)
    plain = (values.double() ** 2).sum() - values.double().sum() ** 2 / values.numel()
    expected = float(((values.double() - values.double().mean()) ** 2).sum())
    assert not math.isclose(float(plain), expected, rel_tol=1e-3)


def hard() -> Iterator[tuple[torch.Tensor, npt.NDArray[np.uint16]]]:
    """Batches on which sums in another order, or with a product that is not rounded, would differ."""
    for seed in range(3):
        values, lengths = some(seed)
        values[0] *= 1e6
        values[1] += 10_000.0
        values[2, ::2] = -values[2, 1::2]
        values[3, :, : len(EDGES)] = torch.from_numpy(np.float32(EDGES[:NEURONS]))
        values[3, 3, :6] = torch.tensor([0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38])
        yield values, lengths
    yield some(4)[0], np.full((4, 16), 8, np.uint16)  # a cell of more than one block
    yield some(5)[0], np.zeros((4, 16), np.uint16)  # nothing but special tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_gpu_adds_the_same_bits(dtype: torch.dtype) -> None:
    batches = [(values.to(dtype), lengths) for values, lengths in hard()]
    with gpu_kernels.as_on_a_gpu():
        interpreted = statistics_of(*batches)
    compiled = statistics_of(*batches)
    assert interpreted._on_gpu and not compiled._on_gpu
    assert same(interpreted.cells(), compiled.cells())
    assert np.isfinite(interpreted.cells().squares).all() == (dtype == torch.float32)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_kernel_compiles_for_a_gpu_and_rounds_each_product(capability: int, dtype: str) -> None:
    """As far as the machine code."""
    kernel = gpu_kernels.module("length_gpu_kernels").accumulate
    rows, placed = torch.zeros(1, NEURONS), PlacedTokens(*[np.zeros(1, np.int64)] * 2)
    placed = dataclasses.replace(placed, by_cell=(torch.zeros(1),) * 4)
    length_accumulator._add_triton(recorded := gpu_kernels.Recorded(), rows, placed)
    types = {"values": f"*{dtype}", "pivot": "*fp32", "histogram": "*i64", "neurons": "i32"}
    types |= dict.fromkeys(("order", "starts", "cells", "fresh"), "*i32")
    types |= dict.fromkeys(("total", "squares"), "*fp64")
    made = gpu_kernels.machine_code(kernel, types, recorded.options, capability)
    assert made["cubin"]
    assert "mul.rn.f64" in made["ptx"] and "fma.rn.f64" not in made["ptx"]
    assert ".ftz" not in made["ptx"]  # which takes subnormal numbers for 0


@pytest.mark.parametrize("error", [RuntimeError, AssertionError])
def test_where_triton_cannot_compile_the_fix_is_told(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = pytest.importorskip("triton").runtime.driver

    class Active:
        def get_current_device(self) -> int:
            raise error("Failed to find C compiler.")

    monkeypatch.setattr(type(driver), "active", Active(), raising=False)
    gpu.kernels.cache_clear()
    with pytest.raises(
        InputError,
        match="fails here .Failed to find C comp.*install gcc.*--no-statistics --no-neurons",
    ):
        LengthStatistics(VOCABULARY, layers=["MLP_0"], neurons=1, device=torch.device("cuda"))


@pytest.mark.parametrize("way", [contextlib.nullcontext, gpu_kernels.as_on_a_gpu])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("token", [0, 7])
def test_a_value_that_is_not_finite_is_an_error(
    value: float, token: int, way: Callable[[], AbstractContextManager[None]]
) -> None:
    values, lengths = some(0)
    lengths[:] = 2
    values[1, token, 3] = value
    with way():
        state = LengthStatistics(
            VOCABULARY, layers=["MLP_0", "MLP_1"], neurons=NEURONS, device=torch.device("cpu")
        )
    placed = state.place(lengths)
    state.add("MLP_0", torch.zeros(values.shape), placed)
    state.check()
    state.add("MLP_1", values, placed)
    with pytest.raises(CheckError, match="^MLP_1 has values that are not finite"):
        state.check()
