"""Statistics by token length: against numpy on the stored arrays, and on values that are hard."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import xarray as xr
import zarr

from conftest import invoke
from neoscope import by_length, open_run, open_statistics, records, stored_statistics
from neoscope.cells import BINS, HALF, Cells, merge
from neoscope.errors import CheckError, InputError, UsageError
from neoscope.statistics import LengthStatistics, accumulate_torch
from neoscope.storage import Store, open_store

VOCABULARY = np.array([0, 1, 1, 2, 3, 5, 8, 64], np.uint16)  # lengths by token id; 0 is special
EDGES = np.arange(-HALF, HALF + 1) / 50
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
        state.add("MLP_0", values, lengths)
    return state


def same(one: Cells, other: Cells) -> bool:
    return one.dump() == other.dump()


def assert_as_numpy(
    arrays: dict[str, Any], values: npt.NDArray[Any], lengths: npt.NDArray[np.uint16], layer: int
) -> None:
    """Statistics of one layer against numpy's own: counts exactly, sums to 1e-12 of their size."""
    first = np.zeros(lengths.shape, bool)
    first[:, 0] = True
    wide = values.astype(np.float64)
    for place in (False, True):
        for index, length in enumerate(arrays["length"]):
            chosen = wide[(lengths == length) & (first == place)]
            assert arrays["tokens"][int(place), index] == len(chosen)
            counts = np.histogram(chosen, [-np.inf, *EDGES, np.inf])[0]
            np.testing.assert_array_equal(arrays["histogram"][layer, int(place), index], counts)
            total = arrays["sum"][layer, int(place), index]
            scale = np.abs(chosen).sum(axis=0)
            assert (np.abs(total - chosen.sum(axis=0)) <= 1e-12 * scale).all()
            squares = ((chosen - chosen.mean(axis=0)) ** 2).sum(axis=0) if len(chosen) else 0
            deviation = arrays["squared_deviation"][layer, int(place), index]
            np.testing.assert_allclose(deviation, squares, rtol=1e-9, atol=1e-12)


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
        again.add("MLP_0", *part)
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
    state.add("MLP_0", rows, np.ones(rows.shape[:2], np.uint16))
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


def test_both_ways_of_adding_say_the_same() -> None:
    """The one for GPUs, run on a CPU, against the kernel."""
    values, lengths = some(5)
    cells = statistics_of((values, lengths)).cells()
    rows, flat = values.reshape(-1, NEURONS), lengths.reshape(-1)
    first = np.tile(np.arange(16) == 0, 4)
    tokens = np.flatnonzero(flat)
    index = np.array(
        [
            next(
                i
                for i in range(len(cells.tokens))
                if (cells.length[i], cells.first[i]) == (flat[token], first[token])
            )
            for token in tokens
        ]
    )
    pivot = torch.from_numpy(cells.pivot[0])
    total, squares = torch.zeros(pivot.shape).double(), torch.zeros(pivot.shape).double()
    histogram = torch.zeros((len(pivot), BINS), dtype=torch.int64)
    accumulate_torch(rows, tokens, index, pivot, total, squares, histogram)
    np.testing.assert_array_equal(histogram.numpy(), cells.histogram[0])
    np.testing.assert_allclose(total.numpy(), cells.total[0], rtol=1e-12, atol=1e-10)
    np.testing.assert_allclose(squares.numpy(), cells.squares[0], rtol=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("token", [0, 7])
def test_a_value_that_is_not_finite_is_an_error(value: float, token: int) -> None:
    values, lengths = some(0)
    lengths[:] = 2
    values[1, token, 3] = value
    with pytest.raises(CheckError, match="MLP_0 has values that are not finite"):
        statistics_of((values, lengths))


# Whole runs


def arguments(model: Path, **options: object) -> list[str]:
    given = {"model": model, "dataset": "sample", "sequences": 4, "positions": 16, **options}
    flags = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is True]
    rest = {name: value for name, value in given.items() if value is not True}
    return flags + [
        part for name, value in rest.items() for part in (f"--{name.replace('_', '-')}", str(value))
    ]


def make(url: str, model: Path, **options: object) -> None:
    done = invoke("run", url, *arguments(model, **options))
    assert done.code == 0, done.err


def arrays_of(url: str) -> dict[str, Any]:
    statistics = open_statistics(url)
    return {str(name): variable.values for name, variable in statistics.variables.items()}


@pytest.mark.parametrize("store_dtype", ["float32", "float16"])
def test_a_run_has_the_statistics_of_what_it_stores(
    place: str, small_model: Path, store_dtype: str
) -> None:
    make(place, small_model, batches=3, store_dtype=store_dtype)
    run, arrays = open_run(place), arrays_of(place)
    for layer in range(3):
        lengths = run.token_length.values
        assert_as_numpy(arrays, run[f"MLP_{layer}"].values, lengths, layer)
    keys = [item.key for item in open_store(place).objects("statistics")]
    assert keys == ["statistics/00000-00000003.safetensors"]


@pytest.fixture(scope="module")
def partitioned(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of three partitions of two batches, from text files that give each its share."""
    from neoscope.text import SAMPLE_FILE

    folder = tmp_path_factory.mktemp("partitioned")
    lines = SAMPLE_FILE.read_text("utf-8").splitlines()
    options = {"dataset": None, "partitions": 3, "batches": 2}
    given = [
        each for each in arguments(small_model, **options) if each not in ("--dataset", "None")
    ]
    for number in range(3):
        path = folder / f"{number}.jsonl"
        path.write_text("\n".join(lines[number * 11 : number * 11 + 11]) + "\n")
        given += ["--text", str(path)]
    for partition in (1, 0, 2):
        done = invoke("run", folder / "run", *given, "--partition", partition)
        assert done.code == 0, done.err
    return str(folder / "run")


def test_partitions_have_the_statistics_of_what_they_store_together(partitioned: str) -> None:
    run, arrays = open_run(partitioned), arrays_of(partitioned)
    for layer in range(3):
        assert_as_numpy(arrays, run[f"MLP_{layer}"].values, run.token_length.values, layer)
    assert invoke("verify", partitioned).code == 0


def test_without_arrays_the_statistics_are_the_same(small_model: Path, tmp_path: Path) -> None:
    """Also where a record is of many batches."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    make(str(both), small_model, batches=70)
    make(str(alone), small_model, batches=70, no_arrays=True)
    with_arrays, without = arrays_of(str(both)), arrays_of(str(alone))
    for name, values in with_arrays.items():
        np.testing.assert_array_equal(without[name], values)
    there = {path.name for path in (alone / "records").iterdir()}
    assert there == {"00000-00000064.json", "00000-00000070.json"}
    assert not open_run(str(alone)).data_vars
    np.testing.assert_array_equal(open_run(str(alone)).token_ids, open_run(str(both)).token_ids)
    assert invoke("verify", alone).code == 0
    assert invoke("verify", alone, "--text").code == 0


def test_a_run_without_arrays_goes_on_after_its_last_record(
    small_model: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    make(str(url), small_model, batches=70, no_arrays=True)
    whole = (url / "manifest.json").read_bytes()
    (url / "manifest.json").unlink()
    (url / "records" / "00000-00000070.json").unlink()
    # What was there when the first record was: its cells, made by a run of so many batches.
    make(str(tmp_path / "64"), small_model, batches=64, no_arrays=True)
    cells = "statistics/00000-00000064.safetensors"
    (url / cells).write_bytes((tmp_path / "64" / cells).read_bytes())
    (url / "statistics" / "00000-00000070.safetensors").unlink()
    done = invoke("run", url, *arguments(small_model, batches=70, no_arrays=True))
    assert done.code == 0, done.err
    assert "going on after batch 64 of 70" in done.err
    digest = records.sealed.load("manifest", whole, "before")["content_digest"]
    assert (
        records.sealed.load("manifest", (url / "manifest.json").read_bytes(), "after")[
            "content_digest"
        ]
        == digest
    )
    assert not (url / cells).exists()


def test_without_statistics_there_are_none(small_model: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    make(url, small_model, no_statistics=True)
    assert not [item.key for item in open_store(url).objects() if "statistics" in item.key]
    assert invoke("verify", url).code == 0
    with pytest.raises(InputError, match="has no statistics"):
        open_statistics(url)


def test_a_run_that_keeps_nothing_is_refused(small_model: Path, tmp_path: Path) -> None:
    given = arguments(small_model, no_arrays=True, no_statistics=True)
    done = invoke("run", tmp_path / "run", *given)
    assert done.code == 2
    assert "--no-arrays and --no-statistics leave nothing to store" in done.err


def test_other_readers_see_it(place: str, small_model: Path) -> None:
    """zarr itself, and xarray with labels."""
    make(place, small_model)
    store = open_store(place)
    group = zarr.open_group(
        zarr.storage.ObjectStore(store.backend, read_only=True), path="statistics.zarr", mode="r"
    )
    assert sorted(group.array_keys()) == sorted(stored_statistics.DIMENSIONS)
    statistics = open_statistics(place)
    assert list(statistics.layer.values) == [0, 1, 2]
    assert statistics.first_position.values.tolist() == [False, True]
    assert statistics.bin_left.values[0] == -np.inf
    assert statistics.bin_right.values[-1] == np.inf
    assert statistics.sel(first_position=True).tokens.sum() == 4
    assert statistics.attrs["weights"] == "pretrained"


def test_what_a_killed_worker_left_is_cleared_by_the_commit(
    small_model: Path, tmp_path: Path
) -> None:
    url = tmp_path / "run"
    make(str(url), small_model)
    (url / "manifest.json").unlink()
    left = url / "statistics" / "00000-00000007.safetensors"
    left.write_bytes(b"left")
    other = url / "statistics" / "notes.txt"
    other.write_bytes(b"not ours")
    make(str(url), small_model)
    assert not left.exists()
    assert other.exists()


def test_cells_that_another_worker_deleted_meanwhile_are_read_from_the_next_record(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "run"
    make(str(url), small_model, batches=2)
    store = open_store(str(url))
    claim = records.read_claim(store)
    assert claim is not None
    last = records.read_record(store, claim, 0, 2)
    before = records.read_record(store, claim, 0, 1)
    answers = iter([before, last])
    monkeypatch.setattr(stored_statistics, "last_record", lambda *_: next(answers))
    record, cells = stored_statistics.last_state(store, claim, 0)
    assert record == last
    assert cells is not None

    monkeypatch.setattr(stored_statistics, "last_record", lambda *_: before)
    with pytest.raises(CheckError, match=r"00000-00000001.safetensors is missing"):
        stored_statistics.last_state(store, claim, 0)


@pytest.mark.parametrize(
    "key",
    [
        "statistics/00000-00000001.safetensors",
        "statistics.zarr/sum/c/1/0/0/0",
        "statistics.zarr/histogram/zarr.json",
    ],
)
def test_verify_names_what_is_missing(key: str, small_model: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    make(str(url), small_model)
    (url / key).unlink()
    done = invoke("verify", url)
    assert done.code == 5
    assert f"{key}" in done.out
    assert "is missing" in done.out


def test_verify_finds_statistics_that_are_sound_but_of_other_values(
    small_model: Path, tmp_path: Path
) -> None:
    """Both the object and what the manifest says of it, changed together."""
    url = tmp_path / "run"
    make(str(url), small_model)
    store = Store(str(url), open_store(str(url)).backend)
    claim = records.read_claim(store)
    assert claim is not None
    cells = stored_statistics.read_cells(store, records.read_record(store, claim, 0, 1))
    cells.total[0, 0, 0] += 1
    counts = dict(zip(*np.unique(open_run(str(url)).token_length, return_counts=True), strict=True))
    forged = merge(np.array([k for k in sorted(counts) if k], np.uint16), [cells])
    path = url / "statistics.zarr"
    array = zarr.open_array(path / "sum", mode="r+")
    array[...] = forged["sum"]
    found = invoke("verify", url)
    assert found.code == 5
    assert "statistics.zarr/sum/c/0/0/0/0: is not the one that was recorded" in found.out


def test_superseded_statistics_that_were_left_are_the_runs_own_but_must_be_the_recorded_ones(
    small_model: Path, tmp_path: Path
) -> None:
    key = "statistics/00000-00000001.safetensors"
    make(str(tmp_path / "run"), small_model, batches=2)
    make(str(tmp_path / "one"), small_model)
    left = (tmp_path / "one" / key).read_bytes()
    (tmp_path / "run" / key).write_bytes(left)
    assert invoke("verify", tmp_path / "run").code == 0
    (tmp_path / "run" / key).write_bytes(left[:-1] + bytes([left[-1] ^ 1]))
    done = invoke("verify", tmp_path / "run")
    assert done.code == 5
    assert f"{key}: is not the one that was recorded" in done.out


def test_a_worker_that_is_behind_leaves_nothing_that_was_superseded(
    small_model: Path, tmp_path: Path
) -> None:
    make(str(tmp_path / "run"), small_model, batches=2)
    make(str(tmp_path / "one"), small_model)
    store, key = open_store(str(tmp_path / "run")), "statistics/00000-00000001.safetensors"
    cells = Cells.load((tmp_path / "one" / key).read_bytes())
    record = records.record_key(0, 1)
    entry = stored_statistics.put_cells(store, 0, 1, cells, record)
    assert entry == json.loads(store.get(record) or b"")["statistics"]
    cells.total[0, 0, 0] += 1
    with pytest.raises(CheckError, match="two unlike machines"):
        stored_statistics.put_cells(store, 0, 1, cells, record)
    assert store.get(key) is None


# What follows from them


def by_hand(url: str, first_positions: bool) -> tuple[npt.NDArray[Any], npt.NDArray[np.uint16]]:
    """Every layer's values [layer, token, neuron] and the token lengths [token], special ones out."""
    run = open_run(url)
    lengths = run.token_length.values
    chosen = lengths > 0
    if not first_positions:
        chosen[:, 0] = False
    values = np.stack([run[f"MLP_{layer}"].values[chosen] for layer in range(3)])
    return values.astype(np.float64), lengths[chosen]


GROUPS = {"shorter": np.less, "equal": np.equal, "longer": np.greater}
FIRST = pytest.mark.parametrize("first_positions", [True, False])


@FIRST
@pytest.mark.parametrize("cut", [None, 3])
def test_histograms_by_group_are_numpys(
    partitioned: str, first_positions: bool, cut: int | None
) -> None:
    statistics = open_statistics(partitioned)
    values, lengths = by_hand(partitioned, first_positions)
    edges = np.linspace(-8, 5, 51)  # as the exercise has them
    found = by_length.histograms(
        statistics, cut, edges=edges.tolist(), first_positions=first_positions
    )
    assert found.dims == ("group", "layer", "bin")
    at = statistics.attrs["token_length_median"] if cut is None else cut
    for name, compare in GROUPS.items():
        for layer in range(3):
            chosen = values[layer, compare(lengths, at)]
            counts = found.sel(group=name, layer=layer).values
            # numpy's last bin is closed, ours is not
            expected = np.histogram(chosen, [-np.inf, *edges, np.inf])[0]
            np.testing.assert_array_equal(counts, expected)
    fine = by_length.histograms(statistics, cut, first_positions=first_positions)
    assert fine.sum() == found.sum() == values.size


@FIRST
def test_means_and_deviations_by_group_are_numpys(partitioned: str, first_positions: bool) -> None:
    values, lengths = by_hand(partitioned, first_positions)
    statistics = open_statistics(partitioned)
    found = by_length.moments(statistics, first_positions=first_positions)
    for name, compare in GROUPS.items():
        chosen = values[:, compare(lengths, statistics.attrs["token_length_median"])]
        assert found.tokens.sel(group=name) == chosen.shape[1]
        if not chosen.size:  # the median of such short tokens is 1
            continue
        np.testing.assert_allclose(found["mean"].sel(group=name), chosen.mean(axis=1), atol=1e-12)
        np.testing.assert_allclose(found["std"].sel(group=name), chosen.std(axis=1), rtol=1e-9)


@FIRST
def test_correlations_with_token_length_are_numpys(partitioned: str, first_positions: bool) -> None:
    values, lengths = by_hand(partitioned, first_positions)
    found = by_length.correlation(open_statistics(partitioned), first_positions=first_positions)
    assert found.dims == ("layer", "neuron")
    expected = [
        [np.corrcoef(lengths, layer[:, neuron])[0, 1] for neuron in range(64)] for layer in values
    ]
    np.testing.assert_allclose(found, expected, atol=1e-10)


def test_any_selection_of_cells_pools(partitioned: str) -> None:
    values, lengths = by_hand(partitioned, first_positions=True)
    found = by_length.pool(open_statistics(partitioned).sel(length=slice(2, 4)))
    chosen = values[:, (lengths >= 2) & (lengths <= 4)]
    np.testing.assert_allclose(found["mean"], chosen.mean(axis=1), atol=1e-12)
    np.testing.assert_allclose(found["std"], chosen.std(axis=1), rtol=1e-9)


def test_a_group_without_tokens_has_no_mean(partitioned: str) -> None:
    found = by_length.moments(open_statistics(partitioned), cut=1)
    assert found.tokens.sel(group="shorter") == 0
    assert np.isnan(found["mean"].sel(group="shorter")).all()
    assert np.isfinite(found["mean"].sel(group="longer")).all()


@pytest.mark.parametrize("edges", [[0.0], [0.01, 0.02], [0.2, 0.1], [-16.02, 0.0], [0.0, 16.02]])
def test_edges_that_the_bins_do_not_have_are_refused(partitioned: str, edges: list[float]) -> None:
    with pytest.raises(UsageError, match="edges must"):
        by_length.histograms(open_statistics(partitioned), edges=edges)


def test_results_are_labelled(partitioned: str) -> None:
    found = by_length.histograms(open_statistics(partitioned), edges=[-16.0, 0.0, 16.0])
    assert isinstance(found, xr.DataArray)
    assert found.bin_left.values.tolist() == [-np.inf, -16.0, 0.0, 16.0]
    assert found.group.values.tolist() == ["shorter", "equal", "longer"]
