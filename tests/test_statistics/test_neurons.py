"""What each neuron does, as it is added up: against numpy, and on values that are hard."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from neoscope.errors import CheckError, UsageError
from neoscope.statistics import neuron_accumulator
from neoscope.statistics.neuron_accumulator import CountedTokens, NeuronStatistics
from neoscope.statistics.neurons import (
    BINS,
    DESCRIPTIONS,
    DIMENSIONS,
    HALF,
    Neurons,
    constant_layers,
    coordinates,
    merge,
)
from support import gpu_kernels
from support.neurons_by_numpy import assert_as_numpy

NEURONS = 135  # more than the kernel has in the cache at a time, and no multiple of it
POSITIONS = 11
CPU = torch.device("cpu")
Batch = tuple[torch.Tensor, npt.NDArray[np.uint16]]


@pytest.fixture(params=["cpu", "gpu"])
def way(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways of adding: that of a CPU, and that of a GPU with its kernels interpreted."""
    with gpu_kernels.as_on_a_gpu() if request.param == "gpu" else contextlib.nullcontext():
        yield request.param


def some(seed: int, sequences: int = 4, positions: int = POSITIONS) -> Batch:
    """Values [sequence, position, neuron], many of them equal, beyond the edges and on them, and token
    lengths [sequence, position], some of them 0."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((sequences, positions, NEURONS), np.float32) * 8
    values[:, :, ::3] = np.round(values[:, :, ::3] * 2) / 2
    values[:, :, 1::9] = -np.abs(values[:, :, 1::9])  # these never fire
    return torch.from_numpy(values), random.integers(0, 5, (sequences, positions)).astype(np.uint16)


def statistics(contexts: int = 3, neurons: int = NEURONS, layers: int = 1) -> NeuronStatistics:
    return NeuronStatistics(
        layers=[f"MLP_{layer}" for layer in range(layers)],
        neurons=neurons,
        tokens=10**6,
        device=CPU,
        contexts=contexts,
    )


def state_of(*batches: Batch, first: int = 0, contexts: int = 3) -> Neurons:
    """The state of batches, the first of which begins at token `first`."""
    state = statistics(contexts, batches[0][0].shape[2])
    for values, lengths in batches:
        state.add("MLP_0", values, state.place(lengths), first)
        first += lengths.size
    state.check()
    return state.neurons()


def joined(batches: list[Batch]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint16]]:
    return (
        np.concatenate([values.numpy() for values, _ in batches]),
        np.concatenate([lengths for _, lengths in batches]),
    )


def same(one: dict[str, Any], other: dict[str, Any], *, but: tuple[str, ...] = ()) -> bool:
    return all(one[name].tobytes() == other[name].tobytes() for name in one if name not in but)


@pytest.mark.parametrize("contexts", [1, 3, 40])
def test_every_field_is_numpys(way: str, contexts: int) -> None:
    batches = [some(seed) for seed in range(3)]
    arrays = merge([state_of(*batches, contexts=contexts)], contexts)
    assert_as_numpy(arrays, *joined(batches), layer=0)


def test_a_sequence_of_a_whole_block_and_more_is_numpys(way: str) -> None:
    batch = some(1, sequences=2, positions=300)
    assert_as_numpy(merge([state_of(batch)], 3), *joined([batch]), layer=0)


def test_special_tokens_are_in_nothing(way: str) -> None:
    """Nor what they have, even where it is not a number; a sequence may have no others."""
    values, lengths = some(0)
    lengths[1] = 0
    lengths[2, :3] = 0
    values[lengths == 0] = math.nan
    arrays = merge([state_of((values, lengths), contexts=9)], 9)
    assert_as_numpy(arrays, values.numpy(), lengths, layer=0)
    assert (arrays["highest_token"][0, 0] // POSITIONS != 1).all()
    assert (arrays["highest_token"] >= 0).sum(axis=-1).max() == 3

    nothing = merge([state_of((values, np.zeros_like(lengths)))], 3)
    assert_as_numpy(nothing, values.numpy(), np.zeros_like(lengths), layer=0)
    assert nothing["tokens"].tolist() == [0, 0]


def test_equal_values_stand_in_the_order_of_their_tokens(way: str) -> None:
    """0.0 and -0.0 are equal, and each stays what it is."""
    values = torch.zeros(6, POSITIONS, NEURONS)
    values[1::2] = -0.0
    lengths = np.ones((6, POSITIONS), np.uint16)
    batches = [(values[:4], lengths[:4]), (values[4:], lengths[4:])]
    arrays = merge([state_of(*batches, contexts=5)], 5)
    assert_as_numpy(arrays, values.numpy(), lengths, layer=0)
    assert arrays["highest_token"][0, 0, 0].tolist() == [1, 12, 23, 34, 45]
    assert np.signbit(arrays["lowest_value"][0, 0, 0]).tolist() == [False, True, False, True, False]
    assert not arrays["firing"].any()


def test_partitions_merge_to_the_same_in_every_order(way: str) -> None:
    batches = [some(seed) for seed in range(3)]
    batches[2] = (batches[0][0].clone(), batches[0][1])  # ties between partitions
    size = batches[0][1].size
    parts = [state_of(batch, first=i * size) for i, batch in enumerate(batches)]
    merged = merge(parts, 3)
    assert_as_numpy(merged, *joined(batches), layer=0)
    moments = ("mean", "moment2", "moment3", "moment4")
    for order in itertools.permutations(parts):
        other = merge(order, 3)
        assert same(merged, other, but=moments)
        for name in moments:
            scale = np.nanmax(np.abs(merged[name]))
            np.testing.assert_allclose(other[name], merged[name], rtol=1e-9, atol=1e-12 * scale)


def test_a_partition_without_some_tokens_merges(way: str) -> None:
    batches = [some(0), some(1), some(2)]
    batches[0][1][:] = 0
    batches[1][1][:, 0] = 0
    batches[2][1][:, 1:] = 0
    size = batches[0][1].size
    parts = [state_of(batch, first=i * size) for i, batch in enumerate(batches)]
    assert_as_numpy(merge(parts, 3), *joined(batches), layer=0)


def test_where_the_text_is_divided_changes_no_bit(way: str) -> None:
    values, lengths = some(0, sequences=6, positions=70)
    whole = state_of((values, lengths))
    parts = [(values[i : i + 2], lengths[i : i + 2]) for i in (0, 2, 4)]
    assert state_of(*parts).dump() == whole.dump()

    for stop in (1, 2):
        again = statistics()
        again.restore(Neurons.load(state_of(*parts[:stop]).dump()))
        for index in range(stop, 3):
            part, placed = parts[index][0], again.place(parts[index][1])
            again.add("MLP_0", part, placed, index * 140)
        assert again.neurons().dump() == whole.dump()


def hard() -> Iterator[Batch]:
    """Batches on which sums in another order, or with a product that is not rounded, would differ."""
    for seed in range(3):
        values, lengths = some(seed)
        values[0] *= 1e6
        values[1] += 10_000.0
        values[2, ::2] = -values[2, : POSITIONS - 5]
        values[3, 3, :6] = torch.tensor([0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38])
        yield values, lengths
    yield some(4)[0], np.zeros((4, POSITIONS), np.uint16)  # nothing but special tokens
    yield some(5, positions=40)[0], np.full((4, 40), 8, np.uint16)  # of more than one block


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_a_gpu_adds_the_same_bits(dtype: torch.dtype) -> None:
    most = torch.finfo(dtype).max
    batches = [(values.clamp(-most, most).to(dtype), lengths) for values, lengths in hard()]
    with gpu_kernels.as_on_a_gpu():
        interpreted = state_of(*batches)
    assert interpreted.dump() == state_of(*batches).dump()


KERNELS = {
    "add_powers": {
        "tokens": "*i32",
        "count": "i32",
        "pivot": "*fp32",
        "powers": "*fp64",
        "neurons": "i32",
    },
    "count_and_compare": {
        "counts": "*u8",
        **dict.fromkeys(("positions", "start", "stop"), "i32"),
        **dict.fromkeys(("firing", "histogram"), "*i32"),
        "high": "*fp32",
        "high_token": "*i64",
        "low": "*fp32",
        "low_token": "*i64",
        "neurons": "i32",
        "first": "i64",
    },
}


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_kernels_compile_for_a_gpu_and_round_each_product(
    name: str, capability: int, dtype: str
) -> None:
    """As far as the machine code."""
    kernel = getattr(gpu_kernels.module("neuron_gpu_kernels"), name)
    recorded = {each: gpu_kernels.Recorded() for each in KERNELS}
    tokens = CountedTokens(slice(0, 1), np.ones((1, 1), np.bool_), torch.zeros(1), torch.zeros(1))
    state = statistics()._state
    neuron_accumulator._accumulate_triton(
        SimpleNamespace(**recorded),
        torch.zeros(1, 1, NEURONS),
        tokens,
        0,
        {each: values[0, 0] for each, values in state.items()},
    )
    types = {"values": f"*{dtype}", **KERNELS[name]}
    made = gpu_kernels.machine_code(kernel, types, recorded[name].options, capability)
    assert made["cubin"]
    assert ("mul.rn.f64" in made["ptx"]) == (name == "add_powers")
    assert "fma.rn.f64" not in made["ptx"]
    assert ".ftz" not in made["ptx"]  # which takes subnormal numbers for 0


def test_a_state_that_was_taken_does_not_change(way: str) -> None:
    state = statistics()
    values, lengths = some(0)
    state.add("MLP_0", values, state.place(lengths), 0)
    taken = state.neurons()
    before = taken.dump()
    state.add("MLP_0", values, state.place(lengths), 44)
    assert taken.dump() == before


def test_layers_are_apart() -> None:
    batches = [some(0), some(1)]
    state = statistics(layers=2)
    for layer, (values, _) in enumerate(batches):
        state.add(f"MLP_{layer}", values, state.place(batches[0][1]), 0)
    arrays = merge([state.neurons()], 3)
    for layer, (values, _) in enumerate(batches):
        assert_as_numpy(arrays, values.numpy(), batches[0][1], layer=layer)


def test_a_value_is_never_on_the_wrong_side_of_an_edge(way: str) -> None:
    """Every edge, the numbers next to it, and what no edge is near."""
    near = np.float32(np.arange(-HALF, HALF + 1) / 8)
    tiny, huge = np.float32([0, -0.0, 1e-45, -1e-45]), np.float32([3.4e38, -3.4e38, 1e30])
    up, down = (np.nextafter(near, np.float32(end)) for end in (np.inf, -np.inf))
    values = np.concatenate([near, up, down, tiny, huge])
    rows = torch.from_numpy(values).reshape(1, -1, 1)
    state = state_of((rows, np.ones(rows.shape[:2], np.uint16)))
    expected = np.zeros(BINS, np.int64)
    for value in values.tolist():
        expected[min(max(math.floor(Fraction(value) * 8), -HALF - 1), HALF) + HALF + 1] += 1
    np.testing.assert_array_equal(state.histogram[0, :, 0].sum(axis=0), expected)
    assert state.firing.sum() == (values > 0).sum()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_those_of_their_dtype(way: str, dtype: torch.dtype) -> None:
    values, lengths = some(3)
    narrow = values.to(dtype)
    arrays = merge([state_of((narrow, lengths))], 3)
    assert_as_numpy(arrays, narrow.float().numpy(), lengths, layer=0)


def test_a_small_spread_around_a_large_mean_is_not_lost(way: str) -> None:
    """Plain sums of powers in float64 would keep two digits of the second moment, and none of the fourth."""
    values = torch.full((6, POSITIONS, NEURONS), 10_000.0)
    values[:, ::3] += 2**-9
    lengths = np.ones((6, POSITIONS), np.uint16)
    batches = [(values[i : i + 2], lengths[:2]) for i in (0, 2, 4)]
    size = batches[0][1].size
    parts = [state_of(batch, first=i * size) for i, batch in enumerate(batches)]
    assert_as_numpy(merge(parts, 3), values.numpy(), lengths, layer=0)


def test_a_first_value_far_from_all_others_is_no_harm(way: str) -> None:
    values, lengths = some(0, sequences=8)
    lengths[:] = 1
    values /= 8
    values[0, :2] = 3000.0
    batch = (values, lengths)
    assert_as_numpy(merge([state_of(batch)], 3), *joined([batch]), layer=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("token", [0, 7])
def test_a_value_that_is_not_finite_is_an_error(way: str, value: float, token: int) -> None:
    values, lengths = some(0)
    lengths[:] = 2
    values[1, token, 3] = value
    with pytest.raises(CheckError, match="MLP_0 has values that are not finite"):
        state_of((values, lengths))


def test_counts_use_all_of_their_bits(way: str) -> None:
    values, lengths = torch.full((1, 2, 1), 1.0), np.ones((1, 2), np.uint16)
    full = state_of((values, lengths))
    full.tokens[:] = full.firing[:] = full.histogram[full.histogram > 0] = 2**32 - 2
    state = statistics(neurons=1)
    state.restore(Neurons.load(full.dump()))
    state.add("MLP_0", values, state.place(lengths), 2)
    found = merge([state.neurons()] * 2, 3)
    assert found["firing"][0, :, 0].tolist() == [2 * (2**32 - 1)] * 2
    assert found["histogram"].max(axis=-1)[0, :, 0].tolist() == [2 * (2**32 - 1)] * 2


def test_more_tokens_than_are_counted_are_refused() -> None:
    with pytest.raises(UsageError, match="4,294,967,296 tokens .* give more --partitions"):
        NeuronStatistics(layers=["MLP_0"], neurons=1, tokens=2**32, device=CPU, contexts=3)


def test_constant_layers_are_found() -> None:
    batches = [some(0), some(1)]
    state = statistics(layers=3)
    lengths = batches[0][1]
    for layer, values in enumerate((batches[0][0], torch.zeros(4, POSITIONS, NEURONS))):
        state.add(f"MLP_{layer}", values, state.place(lengths), 0)
    one = torch.full((4, POSITIONS, NEURONS), 0.5)
    one[:, :, 0] = batches[0][0][:, :, 0]  # all neurons but one are constant, which may be
    state.add("MLP_2", one, state.place(lengths), 0)
    assert constant_layers(merge([state.neurons()], 3)) == [1]

    single = np.zeros_like(lengths)
    single[0, 0] = 1
    assert constant_layers(merge([state_of((batches[0][0], single))], 3)) == []


def test_a_layer_that_differs_only_between_partitions_or_places_is_not_constant() -> None:
    lengths = np.ones((4, POSITIONS), np.uint16)
    ones = torch.ones(4, POSITIONS, NEURONS)
    parts = [state_of((ones * value, lengths), first=44 * value) for value in (0, 1)]
    assert constant_layers(merge(parts, 3)) == []
    ones[:, 0] = 2
    assert constant_layers(merge([state_of((ones, lengths))], 3)) == []


def test_every_array_is_described() -> None:
    arrays = merge([state_of(some(0))], 3) | coordinates([0])
    assert arrays.keys() == DIMENSIONS.keys() == DESCRIPTIONS.keys()
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        for dimension, size in zip(DIMENSIONS[name], array.shape, strict=True):
            assert sizes.setdefault(dimension, size) == size
    assert arrays["bin_left"][1:].tolist() == arrays["bin_right"][:-1].tolist()
