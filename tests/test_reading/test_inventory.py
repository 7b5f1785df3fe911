"""What a run says that it has, against what lies there; and what is asked of its documents for that."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from neoscope.reading.inventory import Inventory, _Held, read_inventory
from neoscope.storage.store import open_store
from support.command import invoke
from support.places import body, listing, put
from support.runs import make, pull

# What a run is made with; --no-arrays has a record of 64 batches and one of the rest.
KINDS = {
    "arrays": (),
    "no arrays": ("--no-arrays", "--batches", 67),
    "text that ends": ("--no-arrays", "--batches", 100_000, "--text-end", "stop"),
    "sums by token": ("--no-arrays", "--token-sums"),
}


def inventory(url: str) -> Inventory:
    return read_inventory(open_store(url))


@pytest.mark.parametrize("words", KINDS.values(), ids=KINDS.keys())
def test_the_names_are_what_lies_there_and_nothing_else(
    request: pytest.FixtureRequest, small_model: Path, words: tuple[object, ...]
) -> None:
    url = make("folder", request, small_model, *words)
    run, there = inventory(url), listing(url).keys()
    names = list(run.names())
    assert sorted(names) == sorted(there)
    assert all(map(run.is_named, names)) and not any(map(run.is_superseded, names))
    assert sum(run.batches) > 64 or "--batches" not in words


@pytest.mark.parametrize(
    "key",
    [
        "activations.zarr/MLP_0/c/8/0/0",
        "activations.zarr/MLP_0/c/01/0/0",
        "activations.zarr/MLP_0/c/0/0",
        "activations.zarr/MLP_0/c/0/0/0/0",
        "activations.zarr/MLP_0/c/\u0661/0/0",
        "activations.zarr/MLP_9/c/0/0/0",
        "statistics.zarr/MLP_0/c/0/0/0",
        "records/00000-00000003.json",
        "records/00001-00000001.json",
        "records/00000-00000000.json",
        "statistics/00000-00000003.safetensors",
        "statistics/00001-00000002.safetensors",
        "token-sums/00000-00000002-00.safetensors",
        "report.html",
        "zarr.json",
    ],
)
def test_what_is_not_named_is_not_the_runs(
    request: pytest.FixtureRequest, small_model: Path, key: str
) -> None:
    run = inventory(make("folder", request, small_model))
    assert not run.is_named(key)
    assert run.is_named("activations.zarr/MLP_0/c/7/0/3")


def test_an_earlier_state_may_be_there_or_not(
    request: pytest.FixtureRequest, small_model: Path
) -> None:
    run = inventory(make("folder", request, small_model))
    assert run.is_named("neurons/00000-00000001.safetensors")
    assert run.is_superseded("neurons/00000-00000001.safetensors")
    assert not run.is_superseded("neurons/00000-00000002.safetensors")


def test_a_part_asks_for_the_records_of_that_part_only(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    url = make("folder", request, small_model)
    (Path(url) / "records" / "00000-00000001.json").unlink()
    pull(url, tmp_path / "second", "--sequences", "8-15")
    done = invoke("pull", url, tmp_path / "first", "--sequences", "0-7")
    assert done.code == 5 and "records/00000-00000001.json is damaged" in done.err


def test_each_bad_record_is_told_and_the_others_are_checked(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    url = str(tmp_path / "run")
    shutil.copytree(make("folder", request, small_model, "--batches", "4"), url)
    for key in ("records/00000-00000001.json", "records/00000-00000003.json"):
        put(url, key, body(url, key).replace(b'"nonfinite": 0', b'"nonfinite": 1', 1))
    put(url, "activations.zarr/MLP_0/c/5/0/0", b"")
    finds = invoke("verify", url).out.splitlines()
    assert [find.partition(":")[0] for find in finds] == [
        "records/00000-00000001.json",
        "activations.zarr/MLP_0/c/5/0/0",
        "records/00000-00000003.json",
    ]
    assert finds[0].count(url) == 0 and finds[0].count("delete the run and run it again") == 1


def test_what_many_ask_for_is_made_once_and_the_last_are_held() -> None:
    made, together = [], threading.Barrier(4)

    def make_one(number: int) -> int:
        made.append(number)
        return number

    held = _Held(make_one, 2)

    def ask() -> None:
        together.wait()
        assert held(1) == 1

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1]
    assert [held(2), held(1), held(3), held(1), held(2)] == [2, 1, 3, 1, 2]
    assert made == [1, 2, 3, 2]
