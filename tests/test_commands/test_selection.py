"""`neoscope pull` of a part of a run: plain Zarr and safetensors that others open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import xarray

from faults.proxy import proxied
from neoscope import open_run
from neoscope.errors import InputError
from support.command import invoke
from support.places import body, dataset, listing, put
from support.runs import LAYERS, NEURONS, SEQUENCES, bodies, chunk_gets, make, pull


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, small_model: Path) -> str:
    """A run of two batches in a folder, which no test changes."""
    return make("folder", request, small_model)


@pytest.fixture(scope="module")
def in_minio(request: pytest.FixtureRequest, small_model: Path) -> str:
    """The same in MinIO."""
    return make("minio", request, small_model)


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
    return found.drop_vars("token_group").load()


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


# open_run


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", ["layers", "here and there"])
def test_a_selection_opens_as_a_run_does(run: str, tmp_path: Path, name: str) -> None:
    numbers = SELECTIONS[name]
    pull(run, tmp_path / "part", *options(numbers))
    found = open_run(str(tmp_path / "part"))
    picked = {
        "sequence": numbers.get("sequences", list(range(SEQUENCES))),
        "neuron": numbers.get("neurons", list(range(NEURONS))),
    }
    expected = open_run(run)[[f"MLP_{n}" for n in numbers["layers"]]].sel(picked)
    xarray.testing.assert_equal(found.load(), expected.load())
    assert found.token_text.dtype == expected.token_text.dtype
    assert list(found.data_vars) == list(expected.data_vars)


def test_a_selection_in_a_store_opens_too(in_minio: str, s3_url: str) -> None:
    pull(in_minio, s3_url, "--layers", "1")
    xarray.testing.assert_equal(open_run(s3_url).load(), open_run(in_minio)[["MLP_1"]].load())


@pytest.mark.filterwarnings("error")
def test_a_selection_has_token_text_for_every_reader(run: str, tmp_path: Path) -> None:
    pull(run, tmp_path / "part", "--sequences", "1,3-9")
    found = dataset(str(tmp_path / "part"))
    expected = open_run(run).isel(sequence=[1, *range(3, 10)])
    assert "token_text" in found.coords
    assert found.token_text.values.tolist() == expected.token_text.values.tolist()


def test_a_selection_that_was_broken_off_is_refused_in_one_line(run: str, tmp_path: Path) -> None:
    pull(run, tmp_path, "--layers", "1")
    (tmp_path / "activations.zarr/zarr.json").unlink()
    with pytest.raises(
        InputError, match="is incomplete: rerun the same neoscope pull to finish it"
    ):
        open_run(str(tmp_path))
    pull(run, tmp_path, "--layers", "1")
    assert "MLP_1" in open_run(str(tmp_path))


def test_safetensors_are_refused_and_say_how_they_open(run: str, tmp_path: Path) -> None:
    pull(run, tmp_path, "--to", "safetensors", "--layers", "1")
    with pytest.raises(InputError, match="safetensors.numpy.load_file"):
        open_run(str(tmp_path))
