"""`open_run`: what it labels, and that it reads what is selected and nothing more."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr

from neoscope import open_run
from neoscope.errors import CheckError, InputError, UsageError
from neoscope.text.documents import SAMPLE_FILE
from support.command import invoke
from support.places import body, listing, new_place, put, zarr_store

SEQUENCES, POSITIONS, NEURONS = 16, 24, 64  # in chunks of 2 x 24 x 64
LAYERS = ("MLP_0", "MLP_1", "MLP_2")


@pytest.fixture(scope="module", params=["folder", "minio"])
def url(
    request: pytest.FixtureRequest, small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """A run of two batches with special tokens between its short documents, which no test changes."""
    text = tmp_path_factory.mktemp("text") / "short.jsonl"
    sentences = "".join(SAMPLE_FILE.read_text("utf-8").splitlines()).split(". ")
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in sentences), "utf-8")
    url = new_place(request.param, request)
    options = ("--model", small_model, "--text", text, "--separator", "eos", "--batches", 2)
    done = invoke("run", url, *options, "--sequences", 8, "--positions", POSITIONS)
    assert done.code == 0, done.err
    return url


@pytest.fixture
def keys_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The key of every object that zarr reads from here on."""
    keys: list[str] = []
    get: Callable[..., Any] = zarr.storage.ObjectStore.get

    async def recorded(self: Any, key: str, *arguments: Any, **options: Any) -> Any:
        keys.append(key)
        return await get(self, key, *arguments, **options)

    monkeypatch.setattr(zarr.storage.ObjectStore, "get", recorded)
    return keys


def chunks_of(keys: list[str]) -> set[str]:
    return {key.removeprefix("activations.zarr/") for key in keys if "/c/" in key}


def stored(url: str, name: str) -> Any:
    """An array of a run as zarr-python reads it."""
    group = zarr.open_group(zarr_store(url), path="activations.zarr", mode="r", zarr_format=3)
    return np.asarray(group[name][...])  # type: ignore[index]


def test_dimensions_and_coordinates_are_labelled(url: str) -> None:
    run = open_run(url)
    assert dict(run.sizes) == {"sequence": SEQUENCES, "position": POSITIONS, "neuron": NEURONS}
    assert list(run.data_vars) == list(LAYERS)
    assert set(run.coords) - set(run.sizes) == {
        "token_ids",
        "token_length",
        "token_text",
        "token_group",
    }
    for name, size in run.sizes.items():
        assert run[name].values.tolist() == list(range(size))
    assert run.isel(neuron=slice(10, 20)).MLP_0.sel(neuron=12).neuron == 12


def test_values_are_those_that_are_stored(url: str) -> None:
    run = open_run(url)
    for name in (*LAYERS, "token_ids", "token_length"):
        np.testing.assert_array_equal(run[name], stored(url, name))
        assert run[name].dtype == stored(url, name).dtype


def test_text_is_the_vocabularys_string_of_every_token(url: str) -> None:
    strings = json.loads(body(url, "vocabulary.json"))["tokens"]
    run = open_run(url)
    expected = [[strings[token] for token in row] for row in stored(url, "token_ids")]
    assert run.token_text.values.tolist() == expected
    assert run.token_text[3, 5].item() == expected[3][5]
    assert run.token_text.isel(sequence=[7, 2], position=slice(4, None, -2)).values.tolist() == [
        expected[row][4::-2] for row in (7, 2)
    ]


def test_groups_are_those_of_the_manifest_and_special_tokens_are_in_none(url: str) -> None:
    run = open_run(url)
    length = json.loads(body(url, "manifest.json"))["tokens"]["length"]
    special = run.token_length.values == 0
    assert special.any()
    np.testing.assert_array_equal(np.isnan(run.token_group), special)
    signs = np.sign(run.token_length.values.astype(int) - length["median"])
    np.testing.assert_array_equal(run.token_group.values[~special], signs[~special])
    for sign, name in ((-1, "shorter"), (0, "equal"), (1, "longer")):
        assert int((run.token_group == sign).sum()) == length["groups"][name]["count"]
    means = run.MLP_0.mean("neuron").groupby("token_group").mean()
    assert means.token_group.values.tolist() == [-1, 0, 1]


def test_attributes_say_what_it_is_of(url: str) -> None:
    manifest = json.loads(body(url, "manifest.json"))
    found = open_run(url).attrs
    assert found["content_digest"] == manifest["content_digest"]
    assert found["model_digest"] == manifest["model"]["digest"]
    assert found["token_length_median"] == manifest["tokens"]["length"]["median"]
    assert found["document_count"] == manifest["text"]["document_count"]
    assert found["special_token_count"] == manifest["tokens"]["special"] > 0
    assert "coordinates" not in found


def test_opening_reads_no_chunk(url: str, keys_read: list[str]) -> None:
    run = open_run(url)
    repr(run)
    assert "activations.zarr/MLP_2/zarr.json" in keys_read
    assert chunks_of(keys_read) == set()


def test_a_selection_reads_the_chunks_that_it_lies_in(url: str, keys_read: list[str]) -> None:
    run = open_run(url)
    assert run.MLP_1.sel(neuron=7, sequence=slice(3, 5)).values.shape == (3, POSITIONS)
    assert chunks_of(keys_read) == {f"MLP_1/c/{row}/0/0" for row in (1, 2)}
    assert len([key for key in keys_read if "/c/" in key]) == 2  # each once


def test_one_neuron_reads_one_column_of_chunks(
    tmp_path: Path, small_model: Path, keys_read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neoscope.format.arrays.MAX_CHUNK_ELEMENTS", 2 * 24 * 16)
    options = ("--model", small_model, "--dataset", "sample", "--sequences", 8, "--positions", 24)
    assert invoke("run", tmp_path / "run", *options).code == 0
    run = open_run(str(tmp_path / "run"))
    keys_read.clear()
    assert run.MLP_2.sel(neuron=37).values.shape == (8, 24)
    assert chunks_of(keys_read) == {f"MLP_2/c/{row}/0/2" for row in range(4)}


def test_a_run_without_layers_has_its_tokens_all_the_same(url: str, tmp_path: Path) -> None:
    """The arrays of a run that keeps no layers are token ids and lengths alone."""
    for key in listing(url):
        if "/MLP_" not in key:
            put(str(tmp_path), key, body(url, key))
    run = open_run(str(tmp_path))
    assert not run.data_vars
    assert dict(run.sizes) == {"sequence": SEQUENCES, "position": POSITIONS}
    for name in ("token_ids", "token_text", "token_length", "token_group"):
        np.testing.assert_array_equal(run[name], open_run(url)[name])


def test_it_can_be_sent_to_another_process(url: str) -> None:
    run = open_run(url)
    again = pickle.loads(pickle.dumps(run))
    xarray.testing.assert_identical(again.load(), run.load())


def test_a_run_that_is_not_committed_is_refused_and_says_how_far_it_is(
    tmp_path: Path, small_run: list[str]
) -> None:
    place = tmp_path / "run"
    assert invoke("run", place, *small_run).code == 0
    (place / "manifest.json").unlink()
    with pytest.raises(InputError, match="1 of 1 batches, 1 of 1 partitions whole, not committed"):
        open_run(str(place))


def test_a_vocabulary_that_is_not_the_runs_is_refused(tmp_path: Path, small_run: list[str]) -> None:
    place = tmp_path / "run"
    assert invoke("run", place, *small_run).code == 0
    text = (place / "vocabulary.json").read_text(encoding="utf-8")
    (place / "vocabulary.json").write_text(text.replace('" the"', '" teh"'), encoding="utf-8")
    with pytest.raises(CheckError, match="vocabulary.json is not the run's"):
        open_run(str(place))


def test_a_missing_chunk_of_tokens_has_no_text(tmp_path: Path, small_run: list[str]) -> None:
    place = tmp_path / "run"
    assert invoke("run", place, *small_run).code == 0
    (place / "activations.zarr/token_ids/c/0/0").unlink()
    with pytest.raises(CheckError, match="token_ids is missing"):
        open_run(str(place)).token_text.load()


def test_chunks_without_dask_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match="pip install dask"):
        open_run(url, chunks={})


def test_dask_takes_the_stored_chunks(url: str) -> None:
    pytest.importorskip("dask")
    run = open_run(url, chunks={})
    for name in (*LAYERS, "token_text", "token_group"):
        assert run[name].chunks is not None
    assert run.MLP_0.chunks == ((2,) * 8, (24,), (64,))
    xarray.testing.assert_identical(run.load(), open_run(url).load())
