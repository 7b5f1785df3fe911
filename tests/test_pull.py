"""`neoscope pull`: a copy that is itself a run, selections that others open, and what kills leave."""

from __future__ import annotations

import io
import json
import os
import re
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
import safetensors
import safetensors.numpy
import xarray

from conftest import invoke
from faults.proxy import Proxy, proxied, spoil
from neoscope import open_run
from neoscope.progress import Progress
from neoscope.storage import Body, Store
from places import body, dataset, listing, new_place, put

LAYERS, SEQUENCES, POSITIONS, NEURONS = 3, 16, 24, 64  # in chunks of 2 x 24 x 16
CHUNKS = LAYERS * 8 * 4 + 2 * 2


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, small_model: Path) -> str:
    """A run of two batches in a folder, which no test changes."""
    return make("folder", request, small_model)


@pytest.fixture(scope="module")
def in_minio(request: pytest.FixtureRequest, small_model: Path) -> str:
    """The same in MinIO."""
    return make("minio", request, small_model)


def make(kind: str, request: pytest.FixtureRequest, model: Path, *more: str) -> str:
    url = new_place(kind, request)
    options = ("--model", model, "--dataset", "sample", "--batches", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neoscope.arrays.MAX_CHUNK_ELEMENTS", 2 * POSITIONS * 16)
        done = invoke("run", url, *options, "--sequences", 8, "--positions", POSITIONS, *more)
    assert done.code == 0, done.err
    return url


def bodies(url: str) -> dict[str, bytes]:
    return {key: body(url, key) for key in listing(url)}


def pull(*words: object) -> str:
    done = invoke("pull", *words)
    assert done.code == 0, done.err
    return done.out


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


# Selections


SELECTIONS: dict[str, dict[str, Any]] = {
    "layers": {"layers": [0, 2]},
    "whole chunks": {"neurons": list(range(16, 48)), "sequences": [4, 5, 6, 7]},
    "one neuron": {"neurons": [37]},
    "a range across chunks": {"neurons": list(range(10, 40)), "sequences": list(range(3, 12))},
    "here and there": {"layers": [1], "neurons": [0, 5, 15, 16, 63], "sequences": [1, 7, 8, 14]},
    "more than a chunk of here and there": {"neurons": list(range(0, 64, 3)), "layers": [2]},
}


def options(numbers: dict[str, list[int]]) -> list[str]:
    return [word for name, found in numbers.items() for word in (f"--{name}", text(found))]


def text(numbers: list[int]) -> str:
    """With a range where there is one, as people write it."""
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(map(str, numbers))


def selected(url: str, numbers: dict[str, list[int]]) -> xarray.Dataset:
    """What must come out: the selection of the run's own arrays."""
    layers = numbers.get("layers", list(range(LAYERS)))
    picked = {
        "sequence": numbers.get("sequences", list(range(SEQUENCES))),
        "neuron": numbers.get("neurons", list(range(NEURONS))),
    }
    found = open_run(url)[[f"MLP_{layer}" for layer in layers]].sel(picked)
    return found.drop_vars(["token_text", "token_group"]).load()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("numbers", SELECTIONS.values(), ids=list(SELECTIONS))
def test_a_selection_is_a_zarr_group_with_its_coordinates(
    run: str, tmp_path: Path, numbers: dict[str, list[int]]
) -> None:
    pull(run, tmp_path / "part", *options(numbers))
    found = dataset(str(tmp_path / "part")).load()
    xarray.testing.assert_equal(found[sorted(found.data_vars)], selected(run, numbers))
    assert found.MLP_2.attrs["layer"] == 2 if "MLP_2" in found else True


def test_a_selection_goes_from_store_to_store(in_minio: str, s3_url: str) -> None:
    numbers = SELECTIONS["here and there"]
    pull(in_minio, s3_url, *options(numbers))
    xarray.testing.assert_equal(dataset(s3_url).load(), selected(in_minio, numbers))


def test_a_selection_of_compressed_arrays_is_compressed(
    request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    packed = make(
        "folder", request, small_model, "--compression", "lz4", "--store-dtype", "float16"
    )
    numbers = SELECTIONS["a range across chunks"]
    pull(packed, tmp_path / "part", *options(numbers))
    xarray.testing.assert_equal(dataset(str(tmp_path / "part")).load(), selected(packed, numbers))
    codecs = json.loads(body(str(tmp_path / "part"), "activations.zarr/MLP_0/zarr.json"))["codecs"]
    assert [codec["name"] for codec in codecs] == ["bytes", "blosc", "crc32c"]


def test_a_selection_says_what_it_is_a_selection_of(run: str, tmp_path: Path) -> None:
    pull(run, tmp_path / "part", "--layers", "0,1", "--neurons", "0-2,7")
    found = dataset(str(tmp_path / "part")).attrs
    manifest = json.loads(body(run, "manifest.json"))
    assert found["selection_of"] == run
    assert found["selection_content_digest"] == manifest["content_digest"]
    assert found["selection_layers"] == "0-1"
    assert found["selection_neurons"] == "0-2,7"
    assert found["selection_sequences"] == "0-15"
    assert found["model"] == manifest["model"]["name"]
    assert found["token_length_median"] == manifest["tokens"]["length"]["median"]


def test_a_selection_reads_the_chunks_that_it_lies_in(
    endpoint: str, in_minio: str, tmp_path: Path
) -> None:
    with proxied(endpoint) as proxy:
        words = ("--layers", "1", "--neurons", "16-31", "--sequences", "2,3,9")
        pull(in_minio, tmp_path / "part", *words, "--endpoint-url", proxy.endpoint)
        fetched = [key for key in chunk_gets(proxy) if "/MLP_" in key]
    prefix = f"{in_minio.removeprefix('s3://')}/activations.zarr"
    # each once, but for a chunk in which two chunks of the selection lie
    assert sorted(fetched) == [f"{prefix}/MLP_1/c/{row}/0/1" for row in (1, 4)]


@pytest.mark.parametrize(
    "words",
    [
        ("--layers", "3"),
        ("--layers", "MLP_0"),
        ("--layers", ""),
        ("--layers", "2-1"),
        ("--layers", "-1"),
        ("--neurons", "0-64"),
        ("--sequences", "16"),
        ("--sequences", "1,,2"),
    ],
)
def test_numbers_that_the_run_does_not_have_are_refused(
    run: str, tmp_path: Path, words: tuple[str, str]
) -> None:
    done = invoke("pull", run, tmp_path / "part", f"{words[0]}={words[1]}")
    assert done.code == 2
    assert words[0] in done.err and len(done.err.splitlines()) == 1
    assert listing(str(tmp_path / "part")) == {}


# safetensors


@pytest.mark.parametrize(
    "name", ["layers", "here and there", "more than a chunk of here and there"]
)
def test_safetensors_are_one_file_a_layer_with_the_same_values(
    run: str, tmp_path: Path, name: str
) -> None:
    pull(run, tmp_path / "files", "--to", "safetensors", *options(SELECTIONS[name]))
    expected = selected(run, SELECTIONS[name])
    files = {path.name for path in (tmp_path / "files").glob("*.safetensors")}
    assert files == {
        "tokens.safetensors",
        *(f"{layer}.safetensors" for layer in expected.data_vars),
    }
    for layer in expected.data_vars:
        found = safetensors.numpy.load_file(tmp_path / "files" / f"{layer}.safetensors")
        assert list(found) == [layer]
        np.testing.assert_array_equal(found[str(layer)], expected[layer])
    tokens = safetensors.numpy.load_file(tmp_path / "files" / "tokens.safetensors")
    for label in ("token_ids", "token_length", "sequence", "position", "neuron"):
        np.testing.assert_array_equal(tokens[label], expected[label])
        assert tokens[label].dtype == expected[label].dtype


def test_safetensors_say_what_they_are(run: str, tmp_path: Path) -> None:
    pull(run, tmp_path, "--to", "safetensors", "--layers", "1")
    with safetensors.safe_open(tmp_path / "MLP_1.safetensors", "np") as file:
        about = file.metadata()
    assert about["selection_of"] == run
    assert about["hook_point"] == "transformer.h.1.mlp.c_fc"
    assert about["weights"] == "pretrained"


def test_a_safetensors_file_that_is_bad_is_made_again_and_a_good_one_is_kept(
    run: str, tmp_path: Path
) -> None:
    pull(run, tmp_path, "--to", "safetensors")
    right, before = bodies(str(tmp_path)), listing(str(tmp_path))
    damaged = bytearray(right["MLP_1.safetensors"])
    damaged[-100] ^= 1
    put(str(tmp_path), "MLP_1.safetensors", bytes(damaged))
    pull(run, tmp_path, "--to", "safetensors")
    assert bodies(str(tmp_path)) == right
    after = listing(str(tmp_path))
    assert {key for key in before if before[key] != after[key]} == {"MLP_1.safetensors"}


def test_safetensors_go_to_a_folder_only(run: str, s3_url: str) -> None:
    done = invoke("pull", run, s3_url, "--to", "safetensors")
    assert done.code == 2 and "local folder" in done.err
    assert listing(s3_url) == {}


# Killed


@pytest.fixture
def proxy(endpoint: str) -> Iterator[Proxy]:
    with proxied(endpoint) as proxy:
        yield proxy
        proxy.gate.set()


def chunk_gets(proxy: Proxy) -> list[str]:
    chunk = "activations.zarr/.*/c/"
    return [r.key for r in proxy.requests if r.method == "GET" and re.search(chunk, r.key)]


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
