"""`neoscope pull` of a whole run: a copy that is itself a run, and what kills leave of it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray

from faults.proxy import Proxy, proxied, spoil
from neoscope import open_run
from neoscope.progress import Progress
from neoscope.storage.store import Body, Store
from support.command import invoke
from support.places import body, dataset, listing, put
from support.runs import CHUNKS, bodies, chunk_gets, make, pull


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, small_model: Path) -> str:
    """A run of two batches in a folder, which no test changes."""
    return make("folder", request, small_model)


@pytest.fixture(scope="module")
def in_minio(request: pytest.FixtureRequest, small_model: Path) -> str:
    """The same in MinIO."""
    return make("minio", request, small_model)


# A whole run


def test_a_copy_has_the_same_objects_and_verifies(run: str, place: str) -> None:
    assert "every byte as recorded" in pull(run, place)
    assert bodies(place) == bodies(run)
    assert invoke("verify", place).code == 0


def test_a_copy_of_a_run_in_minio_is_the_same(in_minio: str, place: str) -> None:
    pull(in_minio, place)
    assert bodies(place) == bodies(in_minio)
    xarray.testing.assert_identical(open_run(place).load(), open_run(in_minio).load())


def test_compressed_chunks_are_copied_as_they_are(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    packed = make("folder", request, small_model, "--compression", "lz4")
    pull(packed, tmp_path / "copy")
    assert bodies(str(tmp_path / "copy")) == bodies(packed)


def test_objects_that_are_not_the_runs_stay_behind(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    url = make("folder", request, small_model)
    put(url, "report.html", b"<p>for people</p>")
    put(url, "notes/mine.txt", b"mine")
    put(url, "activations.zarr/MLP_0/c/99/0/0", b"?")
    pull(url, tmp_path / "copy")
    copied = bodies(str(tmp_path / "copy"))
    assert copied["report.html"] == b"<p>for people</p>"
    assert "notes/mine.txt" not in copied
    assert "activations.zarr/MLP_0/c/99/0/0" not in copied
    assert invoke("verify", tmp_path / "copy").code == 0


def test_a_second_pull_fetches_nothing(run: str, tmp_path: Path) -> None:
    pull(run, tmp_path / "copy")
    before = listing(str(tmp_path / "copy"))
    pull(run, tmp_path / "copy")
    after = listing(str(tmp_path / "copy"))
    assert after == before


@pytest.mark.parametrize("damage", ["one bit", "cut", "another chunk's"])
def test_a_chunk_that_is_bad_at_the_destination_is_fetched_again(
    run: str, tmp_path: Path, damage: str
) -> None:
    copy, key = str(tmp_path / "copy"), "activations.zarr/MLP_1/c/3/0/2"
    pull(run, copy)
    right = body(copy, key)
    bad = {
        "one bit": right[:100] + bytes([right[100] ^ 1]) + right[101:],
        "cut": right[:-8],
        "another chunk's": body(copy, "activations.zarr/MLP_1/c/3/0/1"),
    }
    put(copy, key, bad[damage])
    pull(run, copy)
    assert body(copy, key) == right


@pytest.mark.parametrize("words", [(), ("--layers", "1"), ("--to", "safetensors")], ids=str)
def test_a_bad_chunk_of_the_run_is_named_and_nothing_is_committed(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    url, key = make("folder", request, small_model), "activations.zarr/MLP_1/c/3/0/2"
    put(url, key, body(url, "activations.zarr/MLP_1/c/3/0/1"))  # with a right checksum
    done = invoke("pull", url, tmp_path / "copy", *words)
    assert done.code == 5
    assert key in done.err and "stale or swapped" in done.err
    left = listing(str(tmp_path / "copy"))
    assert not [key for key in left if key == "manifest.json" or key.endswith("zarr.json")]
    assert not (tmp_path / "copy" / "MLP_1.safetensors").exists()


def test_bad_statistics_of_the_run_are_named_and_nothing_is_committed(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    url = make("folder", request, small_model)
    (key,) = [key for key in listing(url) if key.startswith("statistics/")]
    bad = bytearray(body(url, key))
    bad[-1] ^= 1
    put(url, key, bytes(bad))
    done = invoke("pull", url, tmp_path / "copy")
    assert done.code == 5 and f"{key}: is not the one that was recorded" in done.err
    assert not (tmp_path / "copy" / "manifest.json").exists()


def test_a_run_that_keeps_no_layers_is_copied_and_has_none_to_select(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    url = make("folder", request, small_model, "--no-arrays")
    pull(url, tmp_path / "copy")
    assert bodies(str(tmp_path / "copy")) == bodies(url)
    done = invoke("pull", url, tmp_path / "none", "--layers", "0")
    assert done.code == 2 and "it has none" in done.err
    pull(url, tmp_path / "part", "--sequences", "3,9")
    found = dataset(str(tmp_path / "part"))
    assert not found.data_vars and set(found.coords) >= {"token_ids", "sequence", "position"}
    np.testing.assert_array_equal(found.token_ids, open_run(url).token_ids[[3, 9]])


def test_layers_go_by_the_numbers_that_they_have_in_the_model(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    url = make("folder", request, small_model, "--layers", "0,2")
    pull(url, tmp_path / "part", "--layers", "2")
    found = dataset(str(tmp_path / "part"))
    assert list(found.data_vars) == ["MLP_2"]
    np.testing.assert_array_equal(found.MLP_2, open_run(url).MLP_2)
    done = invoke("pull", url, tmp_path / "none", "--layers", "0-2")
    assert done.code == 2 and "it has 0,2" in done.err


def test_the_environment_of_a_run_selects_nothing(run: str, tmp_path: Path) -> None:
    done = invoke("pull", run, tmp_path / "copy", NEOSCOPE_SEQUENCES="8", NEOSCOPE_LAYERS="0")
    assert done.code == 0 and "is a copy of" in done.out


def test_a_missing_chunk_of_the_run_is_named_before_anything_is_fetched(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    url, key = make("folder", request, small_model), "activations.zarr/MLP_1/c/3/0/2"
    (Path(url) / key).unlink()
    done = invoke("pull", url, tmp_path / "copy")
    assert done.code == 5 and f"{key}: is missing" in done.err
    assert set(listing(str(tmp_path / "copy"))) == {"run.json"}


def test_a_copy_that_lacks_an_object_is_not_committed(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def lose_one(self: Store, key: str, body: Body) -> str | None:
        return None if key == "vocabulary.json" else put(self, key, body)

    monkeypatch.setattr(Store, "put", lose_one)
    done = invoke("pull", run, tmp_path / "copy")
    assert done.code == 5 and "vocabulary.json was put with" in done.err
    assert not (tmp_path / "copy" / "manifest.json").exists()


def test_a_run_that_is_not_committed_is_refused_and_says_how_far_it_is(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    url = make("folder", request, small_model)
    (Path(url) / "manifest.json").unlink()
    done = invoke("pull", url, tmp_path / "copy")
    assert done.code == 3
    assert "2 of 2 batches" in done.err


def test_a_place_that_holds_something_else_is_refused(
    request: pytest.FixtureRequest, run: str, small_model: Path, tmp_path: Path
) -> None:
    other = make("folder", request, small_model, "--separator", "eos")
    assert invoke("pull", run, other).code == 4
    assert invoke("pull", run, other, "--layers", "0").code == 4
    put(str(tmp_path / "full"), "holiday.jpg", b"...")
    done = invoke("pull", run, tmp_path / "full")
    assert done.code == 4 and "holiday.jpg" in done.err
    pull(run, tmp_path / "some", "--layers", "0")
    done = invoke("pull", run, tmp_path / "some", "--layers", "1")
    assert done.code == 4 and "selection_layers" in done.err
    assert invoke("pull", run, run).code == 2


# Killed


@pytest.fixture
def proxy(endpoint: str) -> Iterator[Proxy]:
    with proxied(endpoint) as proxy:
        yield proxy
        proxy.gate.set()


@pytest.mark.parametrize(
    ("words", "kept"),
    [((), 30), (("--layers", "0,2"), 25), (("--to", "safetensors"), 32)],
    ids=["whole", "selection", "safetensors"],
)
def test_a_killed_pull_is_not_opened_and_goes_on_with_what_is_not_there(
    proxy: Proxy, in_minio: str, run: str, tmp_path: Path, words: tuple[str, ...], kept: int
) -> None:
    copy, held = tmp_path / "copy", threading_count(40)
    proxy.plan = lambda r: "hold" if "activations.zarr" in r.key and held(r) else None
    command = ["pull", in_minio, str(copy), *words, "--endpoint-url", proxy.endpoint]
    process = subprocess.Popen([sys.executable, "-m", "neoscope", *command], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: len(chunk_gets(proxy)) > 40)
        time.sleep(0.3)  # for what was answered to be stored
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    left = listing(str(copy))
    assert "manifest.json" not in left
    assert not [key for key in left if key.endswith("zarr.json")]
    proxy.gate.set()
    proxy.plan = lambda _: None
    first = len(chunk_gets(proxy))
    proxy.requests.clear()
    pull(*command[1:])
    total = CHUNKS if words != ("--layers", "0,2") else 2 * 32 + 4
    assert first >= 41 and len(chunk_gets(proxy)) <= total - kept
    pull(run, tmp_path / "again", *words)
    differ = {"selection.json"} | {key for key in left if key.endswith(".part")}
    again, there = bodies(str(tmp_path / "again")), bodies(str(copy))
    assert again.keys() == there.keys() - {key for key in differ if key.endswith(".part")}
    if not words:
        assert there == bodies(in_minio)
        assert invoke("verify", copy).code == 0
    else:
        values = {key for key in again if "/c/" in key}
        assert {key: again[key] for key in values} == {key: there[key] for key in values}


def test_bodies_that_are_cut_on_the_way_do_not_get_into_the_copy(
    proxy: Proxy, in_minio: str, tmp_path: Path
) -> None:
    proxy.plan = spoil(1, 0.02, ("short",))
    copy, codes = str(tmp_path / "copy"), []
    while 0 not in codes and len(codes) < 50:
        done = invoke("pull", in_minio, copy, "--endpoint-url", proxy.endpoint)
        codes.append(done.code)
        assert ("manifest.json" in listing(copy)) == (done.code == 0)
    assert set(codes[:-1]) <= {5, 75} and codes[-1] == 0 and proxy.faults["short"] > 2
    assert bodies(copy) == bodies(in_minio)


def threading_count(limit: int) -> Any:
    """True from the `limit`-th call on."""
    calls = iter(range(10**6))
    return lambda _: next(calls) >= limit


def wait_until(condition: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# What it says while it works


def test_progress_tells_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 20.0, 20.0, 20.0])
    monkeypatch.setattr("neoscope.progress.time.monotonic", lambda: next(clock))
    out = io.StringIO()
    with redirect_stderr(out):
        progress = Progress()
        progress.begin("pulling", 1_000_000_000, "B")
        progress.advance("pulling", 200_000_000)
    assert "pulling: 200 of 1,000 MB, 10 MB/s, 80 s left" in out.getvalue()
