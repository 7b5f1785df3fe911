"""Options that change what is stored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
import xxhash

from neoscope import load_model
from neoscope.model.hooks import capture
from support.command import Finished, invoke
from support.making import (
    LAYERS,
    POSITIONS,
    SEQUENCES,
    SIZE,
    Run,
    arguments,
    make,
    sample,
    stored_tokens,
    values,
    words,
)


def test_float16_arrays_are_the_values_cast_and_so_are_their_statistics(
    small_model: Path, tmp_path: Path, model: transformers.GPTNeoForCausalLM
) -> None:
    url = make(tmp_path, small_model, store_dtype="float16")
    expected = capture(model, stored_tokens(url))
    entries = Run(url, Finished(0, "", "")).manifest["arrays"]
    for name in LAYERS:
        stored = values(url, name)
        assert stored.dtype == np.float16
        np.testing.assert_array_equal(stored[:SEQUENCES], expected[name].half().numpy())
        assert entries[name]["max"] == float(stored.max())
        assert entries[name]["std"] == pytest.approx(stored.astype(np.float64).std(), rel=1e-6)
        assert entries[name]["stored_bytes"] == stored.nbytes + 4 * 8


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_precision_is_that_of_the_computation(
    small_model: Path, tmp_path: Path, precision: str
) -> None:
    url = make(tmp_path, small_model, precision=precision, batches=1)
    low = load_model(str(small_model), device="cpu", precision=precision)
    expected = capture(low, stored_tokens(url))
    for name in LAYERS:
        stored = values(url, name)
        assert stored.dtype == np.float32
        np.testing.assert_array_equal(stored, expected[name].float().numpy())


def test_the_reference_forward_gives_the_same_values_but_for_rounding(
    small_model: Path, tmp_path: Path, model: transformers.GPTNeoForCausalLM
) -> None:
    url = make(tmp_path, small_model, forward="reference", batches=1)
    expected = capture(model, stored_tokens(url))
    for name in LAYERS:
        np.testing.assert_allclose(values(url, name), expected[name].numpy(), atol=1e-5)


def test_compression_changes_the_stored_bytes_and_no_value(
    small_model: Path, tmp_path: Path, model: transformers.GPTNeoForCausalLM
) -> None:
    url = make(tmp_path, small_model, compression="lz4")
    expected = capture(model, stored_tokens(url))
    manifest = Run(url, Finished(0, "", "")).manifest
    for name in LAYERS:
        np.testing.assert_array_equal(values(url, name)[:SEQUENCES], expected[name].numpy())
        assert manifest["arrays"][name]["codecs"] == ["bytes", "blosc", "crc32c"]
        assert manifest["arrays"][name]["stored_bytes"] < values(url, name).nbytes


def test_a_separator_stands_after_each_document_and_has_no_length(
    small_model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "short.jsonl"
    text.write_text("".join(json.dumps({"text": f"number {n}"}) + "\n" for n in range(200)))
    url = make(tmp_path, small_model, dataset=None, text=text, separator="eos", batches=1)
    tokens, lengths = values(url, "token_ids").ravel(), values(url, "token_length").ravel()
    manifest = Run(url, Finished(0, "", "")).manifest
    ends = int((tokens == 0).sum())
    assert ends >= 10
    assert manifest["tokens"]["special"] == ends
    assert (lengths[tokens == 0] == 0).all()
    assert (lengths[tokens != 0] > 0).all()
    assert sum(manifest["tokens"]["length"]["histogram"].values()) == SIZE - ends
    assert manifest["tokens"]["length"]["min"] > 0


def test_three_batches_are_one_stream_of_tokens(
    small_model: Path, tmp_path: Path, tokenizer: Any, model: transformers.GPTNeoForCausalLM
) -> None:
    url = make(tmp_path, small_model, batches=3)
    stream = [
        token
        for document in sample()
        for token in tokenizer(document["text"], add_special_tokens=False)["input_ids"]
    ]
    tokens = values(url, "token_ids")
    assert tokens.shape == (24, POSITIONS)
    assert tokens.ravel().tolist() == stream[: 3 * SIZE]
    third = capture(model, tokens[16:])
    np.testing.assert_array_equal(values(url, "MLP_2")[16:], third["MLP_2"].numpy())


def test_one_sequence_of_one_position_is_a_run(small_model: Path, tmp_path: Path) -> None:
    url = make(tmp_path, small_model, sequences=1, positions=1, batches=2)
    assert values(url, "MLP_0").shape == (2, 1, 64)


def test_local_files_are_read_in_order_and_recorded_by_content(
    small_model: Path, tmp_path: Path, tokenizer: Any
) -> None:
    texts = {"b.jsonl": "First comes b. " + words(10), "a.jsonl": "Then comes a. " + words(60)}
    paths = []
    for name, text in texts.items():
        paths.append(tmp_path / name)
        paths[-1].write_text(json.dumps({"id": f"in {name}", "text": text}) + "\n")
    url = str(tmp_path / "run")
    options = arguments(small_model, dataset=None, batches=1)
    done = invoke("run", url, *options, "--text", paths[0], "--text", paths[1])
    assert done.code == 0, done.err
    stream = [token for text in texts.values() for token in tokenizer(text)["input_ids"]]
    assert values(url, "token_ids").ravel().tolist() == stream[:SIZE]
    text_entry = Run(url, done).manifest["text"]
    assert [document["id"] for document in text_entry["documents"]] == ["in b.jsonl", "in a.jsonl"]
    assert text_entry["files"] == [
        {
            "name": path.name,
            "size": path.stat().st_size,
            "digest": xxhash.xxh3_128_hexdigest(path.read_bytes()),
        }
        for path in paths
    ]
