"""What a run leaves, read with libraries that are not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import xxhash

from neoscope.format.layout import NEURONS_DIMENSIONS
from neoscope.model.hooks import capture
from support.command import invoke, neoscope
from support.making import BATCHES, LAYERS, SEQUENCES, SIZE, Run, group, sample, values
from support.places import body, dataset, listing


def test_a_run_leaves_exactly_what_the_contract_says(run: Run) -> None:
    chunks = {
        f"activations.zarr/{name}/c/{row}/0/0"
        for name in LAYERS
        for row in range(SEQUENCES * BATCHES // 2)
    }
    tables = {
        f"activations.zarr/{name}/c/{batch}/0"
        for name in ("token_ids", "token_length")
        for batch in range(BATCHES)
    }
    metadata = {
        f"activations.zarr/{name}zarr.json"
        for name in ("", *(f"{array}/" for array in (*LAYERS, "token_ids", "token_length")))
    }
    records = {f"records/00000-0000000{count}.json" for count in (1, 2)}
    documents = {"run.json", "vocabulary.json", "manifest.json", "rollups/00000.json"}
    coordinates = {"first_position", "length", "layer", "neuron", "bin_left", "bin_right"}
    by_layer = {"histogram", "total", "squared_deviation"}
    statistics = {
        "statistics/00000-00000002.safetensors",
        "statistics.zarr/zarr.json",
        "statistics.zarr/tokens/c/0/0",
        *(f"statistics.zarr/{name}/zarr.json" for name in (*coordinates, *by_layer, "tokens")),
        *(f"statistics.zarr/{name}/c/0" for name in coordinates),
        *(f"statistics.zarr/{name}/c/{layer}/0/0/0" for name in by_layer for layer in range(3)),
    }
    expected = chunks | tables | metadata | records | documents | statistics | neuron_objects()
    assert set(listing(run.url)) == expected


def neuron_objects() -> set[str]:
    """What is kept by neuron: a chunk a layer, and one of what has no layer."""
    found = {"neurons/00000-00000002.safetensors", "neurons.zarr/zarr.json"}
    for name, dimensions in NEURONS_DIMENSIONS.items():
        found.add(f"neurons.zarr/{name}/zarr.json")
        layers = range(3) if dimensions[0] == "layer" and len(dimensions) > 1 else [0]
        rest = "/0" * (len(dimensions) - 1)
        found |= {f"neurons.zarr/{name}/c/{layer}{rest}" for layer in layers}
    return found


@pytest.mark.filterwarnings("error")
def test_xarray_opens_it_with_dimensions_and_coordinates(run: Run) -> None:
    found = dataset(run.url)
    assert dict(found.sizes) == {"sequence": 16, "position": 24, "neuron": 64}
    assert set(found.data_vars) == set(LAYERS)
    assert set(found.coords) == {"token_ids", "token_length"}
    assert {found[name].dtype for name in LAYERS} == {np.dtype("float32")}
    assert found.token_ids.dtype == np.int32
    assert found.token_length.dtype == np.uint16
    words = found.MLP_1.where(found.token_length > found.attrs["token_length_median"])
    assert np.isfinite(words.mean()).item()


def test_every_value_is_what_capture_gives_for_the_stored_tokens(
    run: Run, model: transformers.GPTNeoForCausalLM
) -> None:
    found = group(run.url)
    for batch in range(BATCHES):
        rows = slice(SEQUENCES * batch, SEQUENCES * (batch + 1))
        expected = capture(model, np.asarray(found["token_ids"][rows]))  # type: ignore[index]
        assert list(expected) == list(LAYERS)
        for name, layer in expected.items():
            np.testing.assert_array_equal(found[name][rows], layer.numpy())  # type: ignore[index]


def test_the_tokens_are_the_first_of_the_text(run: Run, tokenizer: Any) -> None:
    stream: list[int] = []
    for document in sample():
        stream += tokenizer(document["text"], add_special_tokens=False)["input_ids"]
    stored = values(run.url, "token_ids")
    assert stored.ravel().tolist() == stream[: SIZE * BATCHES]
    lengths = [len(tokenizer.decode([token])) for token in stored.ravel()]
    assert values(run.url, "token_length").ravel().tolist() == lengths


def test_the_vocabulary_needs_no_tokenizer(run: Run, tokenizer: Any) -> None:
    vocabulary = json.loads(body(run.url, "vocabulary.json"))
    assert vocabulary["tokens"] == [tokenizer.decode([token]) for token in range(512)]
    assert vocabulary["special"] == [0]
    digest = xxhash.xxh3_128_hexdigest(body(run.url, "vocabulary.json"))
    assert run.manifest["tokenizer"]["vocabulary_digest"] == digest


def test_arrays_say_in_words_what_they_are(run: Run, small_model: Path) -> None:
    found = group(run.url)
    median = run.manifest["tokens"]["length"]["median"]
    for layer, name in enumerate(LAYERS):
        attributes = dict(found[name].attrs)
        assert "before GELU" in str(attributes["description"])
        assert f"layer {layer}" in str(attributes["description"])
        assert attributes["hook_point"] == f"transformer.h.{layer}.mlp.c_fc"
        assert attributes["layer"] == layer
        assert attributes["model"] == str(small_model)
        assert attributes["weights"] == "pretrained"
    assert found["token_length"].attrs["units"] == "characters"
    assert found["token_length"].attrs["median"] == median
    assert "vocabulary.json" in str(found["token_ids"].attrs["description"])
    assert found.attrs["token_length_median"] == median
    assert found.attrs["fingerprint"] == run.manifest["fingerprint"]
    assert "published" in str(found.attrs["note"])


def test_no_secret_is_in_any_output_or_object(s3_url: str, small_run: list[str]) -> None:
    secret, key = os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]
    done = neoscope("run", s3_url, *small_run)
    again = invoke("run", s3_url, *small_run)
    wrong = "a-secret-that-is-wrong-but-still-nobodys-business"
    denied = invoke("run", s3_url, *small_run, AWS_SECRET_ACCESS_KEY=wrong)
    assert (done.code, again.code, denied.code) == (0, 0, 3)
    said = "".join(end.out + end.err for end in (done, again, denied))
    assert not [word for word in (secret, key, wrong) if word in said]
    for name in listing(s3_url):
        content = body(s3_url, name)
        assert not [word for word in (secret, key) if word.encode() in content], name
