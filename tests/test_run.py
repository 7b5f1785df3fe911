"""The command end to end: what a run leaves, read with libraries that are not ours."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import pytest
import torch
import transformers
import xxhash
import zarr

from conftest import Finished, invoke, neoscope
from neoscope import load_model, open_run
from neoscope.errors import InputError, UnavailableError
from neoscope.format import sealed_json
from neoscope.model.hooks import capture
from neoscope.text.documents import SAMPLE_FILE
from places import body, dataset, in_minio, listing, new_place, put, zarr_store

LAYERS = ("MLP_0", "MLP_1", "MLP_2")
SEQUENCES, POSITIONS, BATCHES = 8, 24, 2
SIZE = SEQUENCES * POSITIONS


@dataclass(frozen=True)
class Run:
    """A run that was made: its place, and what the command said."""

    url: str
    done: Finished

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads(body(self.url, "manifest.json")))


# Reading a place without neoscope


def group(url: str) -> zarr.Group:
    return zarr.open_group(
        zarr_store(url), path="activations.zarr", mode="r", zarr_format=3, use_consolidated=False
    )


def values(url: str, name: str) -> npt.NDArray[Any]:
    return np.asarray(group(url)[name][...])  # type: ignore[index]


def sample() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SAMPLE_FILE.read_text(encoding="utf-8").splitlines()]


def arguments(model: Path, **options: object) -> list[str]:
    """The arguments, but for the place, of a small run on the packaged sample."""
    chosen = {
        "model": model,
        "dataset": "sample",
        "sequences": SEQUENCES,
        "positions": POSITIONS,
        "batches": BATCHES,
        **options,
    }
    given = {f"--{name.replace('_', '-')}": value for name, value in chosen.items() if value}
    return [word for name, value in given.items() for word in (name, str(value))]


@pytest.fixture(scope="module", params=["folder", "minio"])
def run(request: pytest.FixtureRequest, small_model: Path) -> Run:
    """One run of two batches, in a folder and in MinIO, which no test changes."""
    url = new_place(request.param, request)
    done = invoke("run", url, *arguments(small_model))
    assert done.code == 0, done.err
    return Run(url, done)


@pytest.fixture(scope="module")
def model(small_model: Path) -> transformers.GPTNeoForCausalLM:
    return load_model(str(small_model), device="cpu")


@pytest.fixture(scope="module")
def tokenizer(small_model: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(small_model)


# What a run leaves


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
    documents = {"run.json", "vocabulary.json", "manifest.json"}
    coordinates = {"first_position", "length", "layer", "bin_left", "bin_right"}
    by_layer = {"histogram", "total", "squared_deviation"}
    statistics = {
        "statistics/00000-00000002.safetensors",
        "statistics.zarr/zarr.json",
        "statistics.zarr/tokens/c/0/0",
        *(f"statistics.zarr/{name}/zarr.json" for name in (*coordinates, *by_layer, "tokens")),
        *(f"statistics.zarr/{name}/c/0" for name in coordinates),
        *(f"statistics.zarr/{name}/c/{layer}/0/0/0" for name in by_layer for layer in range(3)),
    }
    expected = chunks | tables | metadata | records | documents | statistics
    assert set(listing(run.url)) == expected


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


# The manifest


def test_claim_records_and_manifest_hold_to_the_published_schemas(run: Run) -> None:
    for key in listing(run.url):
        kind = {"run.json": "run", "manifest.json": "manifest"}.get(key)
        kind = "record" if key.startswith("records/") else kind
        if kind:
            jsonschema.Draft202012Validator(sealed_json.schema(kind)).validate(
                json.loads(body(run.url, key))
            )


def test_the_manifests_arrays_are_those_in_the_store(run: Run) -> None:
    entries, there = run.manifest["arrays"], listing(run.url)
    assert list(entries) == [*LAYERS, "token_ids", "token_length"]
    for name, entry in entries.items():
        array = group(run.url)[name]
        assert isinstance(array, zarr.Array)
        assert (tuple(entry["shape"]), tuple(entry["chunks"])) == (array.shape, array.chunks)
        assert entry["dtype"] == array.dtype.name
        stored = [
            size
            for key, (size, *_) in there.items()
            if key.startswith(f"activations.zarr/{name}/c/")
        ]
        assert entry["stored_bytes"] == sum(stored)
        exact = values(run.url, name)
        wide = exact.astype(np.float64)
        assert (entry["min"], entry["max"]) == (wide.min(), wide.max())
        assert entry["mean"] == pytest.approx(wide.mean(), rel=1e-6, abs=1e-6 * wide.std())
        assert entry["std"] == pytest.approx(wide.std(), rel=1e-6)
        assert entry["nonfinite"] == 0
        rows = array.chunks[0]
        parts = [
            xxhash.xxh3_128_digest(np.ascontiguousarray(exact[first : first + rows]).tobytes())
            for first in range(0, len(exact), rows)
        ]
        assert entry["digest"] == xxhash.xxh3_128_hexdigest(b"".join(parts))


def test_the_manifests_token_lengths_are_those_in_the_store(run: Run) -> None:
    tokens = run.manifest["tokens"]
    lengths = values(run.url, "token_length").ravel().tolist()
    median = statistics.median_low(lengths)
    assert (tokens["count"], tokens["sequences"], tokens["positions"]) == (384, 16, 24)
    assert tokens["special"] == 0
    assert tokens["digest"] == run.manifest["arrays"]["token_ids"]["digest"]
    found = tokens["length"]
    assert (found["min"], found["median"], found["max"]) == (min(lengths), median, max(lengths))
    assert found["mean"] == pytest.approx(statistics.fmean(lengths))
    assert found["histogram"] == {str(n): lengths.count(n) for n in sorted(set(lengths))}
    for name, count in {
        "shorter": sum(n < median for n in lengths),
        "equal": sum(n == median for n in lengths),
        "longer": sum(n > median for n in lengths),
    }.items():
        assert found["groups"][name] == {"count": count, "share": pytest.approx(count / 384)}


def test_the_manifest_says_which_documents_were_used_and_where_the_last_was_cut(
    run: Run, tokenizer: Any
) -> None:
    text, left, expected = run.manifest["text"], SIZE * BATCHES, []
    for document in sample():
        if left:
            count = len(tokenizer(document["text"], add_special_tokens=False)["input_ids"])
            used = min(count, left)
            left -= used
            expected.append({"id": document["id"], "tokens": count, "used": used, "partition": 0})
    assert text["documents"] == expected
    assert text["document_count"] == len(expected)
    assert text["cut"] == [expected[-1]]
    assert text["source"] == "sample"


def test_the_manifest_says_what_it_was_made_of(run: Run, small_model: Path) -> None:
    manifest = run.manifest
    assert manifest["model"]["name"] == str(small_model)
    assert (manifest["model"]["layers"], manifest["model"]["neurons"]) == (3, 64)
    assert manifest["model"]["weights"] == "pretrained"
    assert manifest["model"]["revision"] is None
    assert manifest["spec"]["positions"] == POSITIONS
    assert manifest["tokenizer"]["size"] == 512
    assert set(manifest["records"]) == {
        key for key in listing(run.url) if key.startswith("records/")
    }
    assert manifest["zarr"].keys() | manifest["statistics"]["objects"].keys() == {
        key for key in listing(run.url) if key.endswith("zarr.json") or "statistics.zarr" in key
    }
    assert {"prepare", "capture", "store", "commit"} <= manifest["timings"].keys()


def test_every_check_is_recorded_with_what_was_seen(run: Run) -> None:
    checks = run.manifest["checks"]
    assert all(check["passed"] and check["found"] == check["expected"] for check in checks.values())
    assert checks["layers"]["found"] == 3
    assert checks["shape"]["found"] == [16, 24, 64]
    assert checks["values"]["found"] == 16 * 24 * 64
    assert checks["nonfinite"]["found"] == 0
    assert checks["read_back"]["found"] == 3 * BATCHES


def test_the_summary_is_the_table_of_the_exercise_and_the_way_in(run: Run) -> None:
    length = run.manifest["tokens"]["length"]
    for name, sign in (("shorter", "<"), ("equal", "="), ("longer", ">")):
        found = length["groups"][name]
        row = rf"{name}\s+{sign} {length['median']}\s+{found['count']}\s+{found['share']:.1%}"
        assert re.search(row, run.done.out), row
    assert "MLP_0 ... MLP_2  each [16 x 24 x 64] float32" in run.done.out
    assert run.url in run.done.out
    assert all(line.startswith("neoscope: ") for line in run.done.err.splitlines())


def test_the_lines_at_the_end_of_the_summary_open_the_run(run: Run) -> None:
    lines = run.done.out.partition("Open it in Python:\n")[2]
    code = "\n".join(line.strip() for line in lines.splitlines()) + "\nprint(dict(run.sizes))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "{'sequence': 16, 'position': 24, 'neuron': 64}\n", done.stderr


# Starting again


def test_a_second_start_says_that_all_is_there_and_changes_nothing(
    run: Run, small_model: Path
) -> None:
    before = listing(run.url)
    again = invoke("run", run.url, *arguments(small_model))
    assert again.code == 0
    assert "already holds this run" in again.err
    assert again.out.split("seconds:")[0] == run.done.out.split("seconds:")[0]
    assert listing(run.url) == before


def test_a_second_start_as_a_process_of_its_own_is_quick(run: Run, small_model: Path) -> None:
    """Nothing heavy is imported where nothing is to be computed."""
    code = (
        "import sys; from neoscope.process import invoke; code = invoke(sys.argv[1:]);"
        "print([name for name in ('torch', 'transformers', 'datasets') if name in sys.modules], code)"
    )
    command = [sys.executable, "-c", code, "run", run.url, *arguments(small_model)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[] 0", done.stderr


@pytest.mark.parametrize(
    ("option", "field"),
    [
        ({"batches": 3}, "batches was 2, now 3"),
        ({"positions": 12}, "positions was 24, now 12"),
        ({"separator": "eos"}, 'separator was "none", now "eos"'),
        ({"store_dtype": "float16"}, 'store_dtype was "float32", now "float16"'),
        ({"weights": "random"}, 'weights was "pretrained", now "random"'),
        ({"dataset": None, "text": SAMPLE_FILE}, "text was []"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_another_run_in_its_place_is_refused_and_named(
    run: Run, small_model: Path, option: dict[str, Any], field: str
) -> None:
    before = listing(run.url)
    refused = invoke("run", run.url, *arguments(small_model, **option))
    assert refused.code == 4
    assert field in refused.err
    assert listing(run.url) == before


def test_two_runs_of_one_spec_are_the_same_bytes_wherever_they_lie(
    run: Run, small_model: Path, tmp_path: Path
) -> None:
    other = str(tmp_path / "other")
    assert invoke("run", other, *arguments(small_model)).code == 0
    theirs = json.loads(body(other, "manifest.json"))
    assert theirs["content_digest"] == run.manifest["content_digest"]
    assert theirs["fingerprint"] == run.manifest["fingerprint"]
    assert set(listing(other)) == set(listing(run.url))
    for key in listing(other):
        if not key.startswith("records/") and key not in ("run.json", "manifest.json"):
            assert body(other, key) == body(run.url, key), key


def test_random_weights_depend_on_the_seed_and_on_nothing_else(
    small_model: Path, tmp_path: Path
) -> None:
    found = {}
    for name, options in {
        "default": {},
        "zero": {"seed": "0"},
        "one": {"seed": 1},
    }.items():
        url = str(tmp_path / name)
        given = arguments(small_model, weights="random", batches=1, **options)
        assert invoke("run", url, *given).code == 0
        found[name] = Run(url, Finished(0, "", "")).manifest
    assert found["default"]["content_digest"] == found["zero"]["content_digest"]
    assert found["default"]["model"]["digest"] != found["one"]["model"]["digest"]
    for name in LAYERS:
        assert found["zero"]["arrays"][name]["digest"] != found["one"]["arrays"][name]["digest"]
    assert found["zero"]["tokens"] == found["one"]["tokens"]
    assert found["one"]["model"]["weights"] == "random"
    assert found["one"]["spec"]["seed"] == 1
    assert "RANDOM" in str(group(str(tmp_path / "one")).attrs["note"])


# Options that change what is stored


def make(tmp_path: Path, model: Path, **options: object) -> str:
    """A run in a folder with these options."""
    url = str(tmp_path / "run")
    done = invoke("run", url, *arguments(model, **options))
    assert done.code == 0, done.err
    return url


def stored_tokens(url: str) -> torch.Tensor:
    return torch.from_numpy(values(url, "token_ids")[:SEQUENCES])


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


def words(count: int) -> str:
    """Text of so many different words."""
    return " ".join(f"word{number * 7919 % 9973}" for number in range(count))


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


# Broken off


def long_text(path: Path, documents: int = 60) -> Path:
    """Parquet of many row groups of four documents, each a little longer than a batch but for one
    that is longer than two; so batches end in the first document of a group, and in the last."""
    rows = [{"id": f"d{number}", "text": words(22 + number % 60)} for number in range(documents)]
    rows.insert(2, {"id": "long", "text": words(80)})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=4)
    return path


def unfinish(folder: Path, batches: int) -> None:
    """Leave what is there when the record of so many batches has just been put.

    Of a run without statistics: those of an earlier record are gone once the next one is there.
    """
    (folder / "manifest.json").unlink()
    for path in folder.rglob("zarr.json"):
        path.unlink()
    for path in (folder / "records").iterdir():
        if int(path.stem.partition("-")[2]) > batches:
            path.unlink()


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "two files"])
def test_a_run_broken_off_after_any_batch_ends_as_an_undisturbed_one(
    small_model: Path, tmp_path: Path, kind: str
) -> None:
    """Broken off: as it was when that record had just been put."""
    paths = [long_text(tmp_path / "a.parquet")]
    if kind != "parquet":
        rows = pyarrow.parquet.read_table(paths[0]).to_pylist()
        halves = [rows] if kind == "jsonl" else [rows[:4], rows[4:]]
        paths = [tmp_path / f"{number}.jsonl" for number in range(len(halves))]
        for path, half in zip(paths, halves, strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in half))
    count = 8
    given = [*arguments(small_model, dataset=None, batches=count), "--no-statistics"]
    given += [word for path in paths for word in ("--text", str(path))]
    whole = str(tmp_path / "whole")
    assert invoke("run", whole, *given).code == 0
    expected = Run(whole, Finished(0, "", "")).manifest
    for recorded in (1, 4, 6):
        url = tmp_path / f"after-{recorded}"
        shutil.copytree(whole, url)
        unfinish(url, recorded)
        again = invoke("run", url, *given)
        assert again.code == 0, again.err
        found = json.loads(body(str(url), "manifest.json"))
        for part in ("tokens", "arrays", "text", "checks", "zarr"):
            assert found[part] == expected[part], f"{part} after {recorded}"
        assert found["content_digest"] == expected["content_digest"], f"after {recorded}"


def test_a_run_that_broke_off_and_broke_off_again_in_one_long_document_goes_on_rightly(
    small_model: Path, tmp_path: Path
) -> None:
    """Each start stores one batch more, and its record is all that the next one has to go by."""
    text = tmp_path / "long.jsonl"
    text.write_text(
        json.dumps({"text": words(40)}) + "\n" + json.dumps({"text": "once " + words(500)}) + "\n"
    )
    given = [*arguments(small_model, dataset=None, text=text, batches=5), "--no-statistics"]
    whole, url = tmp_path / "whole", tmp_path / "run"
    assert invoke("run", whole, *given).code == 0
    for number in range(1, 6):
        assert invoke("run", url, *given).code == 0
        if number < 5:
            unfinish(url, number)
    for name in ("token_ids", "MLP_1"):
        np.testing.assert_array_equal(values(str(url), name), values(str(whole), name))


def test_a_text_file_may_have_another_name_when_the_run_goes_on(
    small_model: Path, tmp_path: Path
) -> None:
    """It is what it holds."""
    text, renamed, url = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "run"))
    text.write_text(json.dumps({"text": words(200)}) + "\n")
    given = [*arguments(small_model, dataset=None), "--no-statistics", "--text"]
    assert invoke("run", url, *given, text).code == 0
    unfinish(url, 1)
    text.rename(renamed)
    again = invoke("run", url, *given, renamed)
    assert again.code == 0, again.err


def nothing_finished(url: str) -> bool:
    """Whether nothing at a place looks like a finished run."""
    return not [key for key in listing(url) if key.endswith(("manifest.json", "zarr.json"))]


@pytest.fixture(scope="module")
def undisturbed(
    small_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[str], str]:
    """The arguments of a run that takes some seconds, and where it was made at one go."""
    folder = tmp_path_factory.mktemp("undisturbed")
    text = long_text(folder / "a.parquet", 400)
    given = arguments(small_model, dataset=None, text=text, sequences=2, positions=8, batches=200)
    assert invoke("run", folder / "run", *given).code == 0
    return given, str(folder / "run")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
    ids=["SIGINT", "SIGTERM"],
)
def test_a_stopped_run_cannot_be_opened_and_ends_as_an_undisturbed_one(
    undisturbed: tuple[list[str], str], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    (given, whole), url = undisturbed, str(tmp_path / "run")
    command = [sys.executable, "-m", "neoscope", "run", url, *given]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (Path(url) / "records" / "00000-00000002.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert "Traceback" not in err
    assert f"stopped by {number.name}" in err
    assert nothing_finished(url)
    with pytest.raises(FileNotFoundError):
        group(url)
    with pytest.raises(FileNotFoundError):
        dataset(url)
    with pytest.raises(InputError, match="is not whole"):
        open_run(url)
    again = invoke("run", url, *given)
    assert again.code == 0
    assert "going on after batch" in again.err
    for name in (*LAYERS, "token_ids", "token_length"):
        np.testing.assert_array_equal(values(url, name), values(whole, name))


def test_values_that_are_not_finite_are_a_failed_check_and_leave_no_record(
    small_model: Path, place: str, tmp_path: Path
) -> None:
    broken = transformers.GPTNeoForCausalLM.from_pretrained(small_model)
    broken.transformer.h[1].mlp.c_fc.bias.data[5] = float("nan")
    folder = tmp_path / "nan"
    shutil.copytree(small_model, folder)
    broken.save_pretrained(folder)
    done = invoke("run", place, *arguments(folder))
    assert done.code == 5
    assert re.search(r"MLP_1 has (\d+ )?values that are not finite", done.err)
    assert nothing_finished(place)
    assert not [key for key in listing(place) if key.startswith("records/")]
    with pytest.raises(FileNotFoundError):
        group(place)
    with pytest.raises(FileNotFoundError):
        dataset(place)


@pytest.mark.parametrize(
    ("damage", "words_of_it"),
    [(Path.unlink, "is missing"), (lambda path: path.write_bytes(b"short"), "5 bytes")],
    ids=["missing", "short"],
)
def test_a_recorded_chunk_that_is_not_there_is_a_failed_check_and_no_manifest(
    small_run: list[str], tmp_path: Path, damage: Any, words_of_it: str
) -> None:
    url = tmp_path / "run"
    given = [*small_run, "--no-statistics"]
    assert invoke("run", url, *given).code == 0
    unfinish(url, 1)
    damage(url / "activations.zarr" / "MLP_1" / "c" / "2" / "0" / "0")
    done = invoke("run", url, *given)
    assert done.code == 5
    assert "MLP_1/c/2/0/0" in done.err
    assert words_of_it in done.err
    assert nothing_finished(str(url))


def test_a_store_that_gives_back_other_bytes_is_a_failed_check_and_leaves_no_record(
    small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neoscope.storage.store import Store

    really_get = Store.get

    def get(store: Store, key: str) -> bytes | None:
        found = really_get(store, key)
        return (
            found[:-9] + bytes([found[-9] ^ 1]) + found[-8:] if found and "MLP_2" in key else found
        )

    monkeypatch.setattr(Store, "get", get)
    done = invoke("run", tmp_path / "run", *small_run)
    assert done.code == 5
    assert re.search("MLP_2/c/.* does not read back as it was stored", done.err)
    assert not (tmp_path / "run" / "records").exists()
    assert nothing_finished(str(tmp_path / "run"))


def test_partitions_share_the_text_and_the_last_one_commits(
    small_model: Path, place: str, tmp_path: Path, tokenizer: Any
) -> None:
    shares = {"0.jsonl": words(80), "1.jsonl": "other " + words(80)}
    for name, text in shares.items():
        (tmp_path / name).write_text(json.dumps({"id": name, "text": text}) + "\n")
    given = arguments(small_model, dataset=None, batches=1, partitions=2)
    given += ["--text", str(tmp_path / "0.jsonl"), "--text", str(tmp_path / "1.jsonl")]
    first = invoke("run", place, *given, "--partition", "1")
    assert first.code == 0, first.err
    assert "others are missing" in first.out
    assert nothing_finished(place)
    second = invoke("run", place, *given, "--partition", "auto", JOB_COMPLETION_INDEX="0")
    assert second.code == 0, second.err
    stored = values(place, "token_ids")
    for partition, text in enumerate(shares.values()):
        rows = stored[SEQUENCES * partition : SEQUENCES * (partition + 1)]
        assert rows.ravel().tolist() == tokenizer(text)["input_ids"][:SIZE]
    found = json.loads(body(place, "manifest.json"))
    assert [entry["partition"] for entry in found["text"]["documents"]] == [0, 1]
    assert found["partitions"] == 2


# Deleting


FOREIGN = [
    "notes.txt",
    "manifest.json.bak",
    "activations.zarr.old/zarr.json",
    "records-of-mine/a.json",
    "plots/manifest.json",
    "activations.zarr/notes.txt",
    "records/notes.txt",
    "statistics/plot.png",
]


@pytest.fixture
def finished(place: str, small_run: list[str]) -> str:
    """A finished run of the test's own."""
    assert invoke("run", place, *small_run).code == 0
    return place


def test_delete_takes_the_run_and_leaves_what_is_not_its_own(finished: str) -> None:
    for key in FOREIGN:
        put(finished, key, b"mine")
    done = invoke("delete", finished, "--yes")
    assert done.code == 0, done.err
    assert set(listing(finished)) == set(FOREIGN)
    assert f"{len(FOREIGN)} objects that are not the run's stay" in done.out
    assert invoke("delete", finished, "--yes").code == 3


def test_delete_asks_first_and_without_a_terminal_it_takes_no_answer(finished: str) -> None:
    before = listing(finished)
    refused = neoscope("delete", finished)
    assert refused.code == 2
    assert "--yes" in refused.err
    assert listing(finished) == before


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2), ("", 2)])
def test_delete_takes_yes_for_an_answer_at_a_terminal(
    small_run: list[str], tmp_path: Path, answer: str, code: int
) -> None:
    url = tmp_path / "run"
    assert invoke("run", url, *small_run).code == 0
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "neoscope", "delete", str(url)],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code, done.stderr
    assert f"Delete the run at {url}?" in done.stdout
    assert (url / "manifest.json").exists() == (code != 0)


def test_delete_begins_with_the_manifest_and_ends_with_the_claim(
    finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neoscope.storage.store import Store

    order: list[str] = []
    really_delete = Store.delete

    def delete(store: Store, keys: list[str]) -> None:
        order.extend(keys)
        really_delete(store, keys)

    monkeypatch.setattr(Store, "delete", delete)
    everything = set(listing(finished))
    assert invoke("delete", finished, "--yes").code == 0
    assert (order[0], order[-1]) == ("manifest.json", "run.json")
    assert set(order) == everything


def test_a_deletion_that_broke_off_leaves_no_finished_run_and_can_be_repeated(
    finished: str, small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neoscope.storage.store import Store

    really_delete = Store.delete

    def only_the_first(store: Store, keys: list[str]) -> None:
        really_delete(store, keys)
        raise UnavailableError("the store went away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", only_the_first)
        assert invoke("delete", finished, "--yes").code == 75
    assert "manifest.json" not in listing(finished)
    with pytest.raises(InputError):
        open_run(finished)
    assert invoke("delete", finished, "--yes").code == 0
    assert listing(finished) == {}
    assert invoke("run", finished, *small_run).code == 0


def test_a_run_that_was_never_finished_can_be_deleted(finished: str) -> None:
    for key in [key for key in listing(finished) if key.endswith(("manifest.json", "zarr.json"))]:
        if finished.startswith("s3://"):
            bucket, prefix = in_minio(finished)
            bucket.Object(prefix + key).delete()
        else:
            (Path(finished) / key).unlink()
    assert invoke("delete", finished, "--yes").code == 0
    assert listing(finished) == {}


# Secrets


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
