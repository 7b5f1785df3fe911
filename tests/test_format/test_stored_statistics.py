"""The statistics of whole runs: against numpy on the stored arrays, and through kills and damage."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from neoscope import open_run, open_statistics
from neoscope.errors import CheckError, InputError
from neoscope.format import layout, records, sealed_json, states
from neoscope.statistics.length_cells import Cells, merge
from neoscope.storage.store import Store, open_store
from support.by_numpy import assert_as_numpy
from support.command import invoke


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
    # What was there when the first record was: its states, made by a run of so many batches.
    make(str(tmp_path / "64"), small_model, batches=64, no_arrays=True)
    before = [f"{name}/00000-00000064.safetensors" for name in ("statistics", "neurons")]
    for key in before:
        (url / key).write_bytes((tmp_path / "64" / key).read_bytes())
        (url / key.replace("64", "70")).unlink()
    done = invoke("run", url, *arguments(small_model, batches=70, no_arrays=True))
    assert done.code == 0, done.err
    assert "going on after batch 64 of 70" in done.err
    digest = sealed_json.load("manifest", whole, "before")["content_digest"]
    assert (
        sealed_json.load("manifest", (url / "manifest.json").read_bytes(), "after")[
            "content_digest"
        ]
        == digest
    )
    assert not any((url / key).exists() for key in before)


def test_without_statistics_there_are_none(small_model: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    make(url, small_model, no_statistics=True, no_neurons=True)
    assert not [
        item.key for item in open_store(url).objects() if re.match("statistics|neurons", item.key)
    ]
    assert invoke("verify", url).code == 0
    with pytest.raises(InputError, match="has no statistics"):
        open_statistics(url)


def test_a_run_that_keeps_nothing_is_refused(small_model: Path, tmp_path: Path) -> None:
    given = arguments(small_model, no_arrays=True, no_statistics=True, no_neurons=True)
    done = invoke("run", tmp_path / "run", *given)
    assert done.code == 2
    assert "--no-arrays, --no-statistics and --no-neurons leave nothing to store" in done.err


def test_other_readers_see_it(place: str, small_model: Path) -> None:
    """zarr itself, and xarray with labels."""
    make(place, small_model)
    store = open_store(place)
    group = zarr.open_group(
        zarr.storage.ObjectStore(store.backend, read_only=True), path="statistics.zarr", mode="r"
    )
    assert sorted(group.array_keys()) == sorted(layout.STATISTICS_DIMENSIONS)
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
    monkeypatch.setattr(states, "last_record", lambda *_: next(answers))
    record, found = states.last_state(store, claim, 0)
    assert record == last
    assert found.keys() == {"statistics", "neurons"}

    monkeypatch.setattr(states, "last_record", lambda *_: before)
    with pytest.raises(CheckError, match=r"00000-00000001.safetensors is missing"):
        states.last_state(store, claim, 0)


@pytest.mark.parametrize(
    "key",
    [
        "statistics/00000-00000001.safetensors",
        "statistics.zarr/total/c/1/0/0/0",
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
    cells = Cells.load(
        states.read_state(store, records.read_record(store, claim, 0, 1), "statistics")
    )
    cells.total[0, 0, 0] += 1
    counts = dict(zip(*np.unique(open_run(str(url)).token_length, return_counts=True), strict=True))
    forged = merge(np.array([k for k in sorted(counts) if k], np.uint16), [cells])
    path = url / "statistics.zarr"
    array = zarr.open_array(path / "total", mode="r+")
    array[...] = forged["total"]
    found = invoke("verify", url)
    assert found.code == 5
    assert "statistics.zarr/total/c/0/0/0/0: is not the one that was recorded" in found.out


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
    record = layout.record_key(0, 1)
    entries = states.put_states(store, 0, 1, {"statistics": cells.dump()}, record)
    assert entries["statistics"] == json.loads(store.get(record) or b"")["statistics"]
    cells.total[0, 0, 0] += 1
    with pytest.raises(CheckError, match="two unlike machines"):
        states.put_states(store, 0, 1, {"statistics": cells.dump()}, record)
    assert store.get(key) is None
