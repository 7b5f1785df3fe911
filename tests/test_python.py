"""neoscope from Python: its names, its errors, its tokenizer, and `run` as the command."""

from __future__ import annotations

import inspect
import json
import pkgutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import neoscope
from neoscope import capture, load_model, load_tokenizer, open_run, tokenize
from neoscope.commands.options import SPEC_OPTIONS
from neoscope.errors import ConflictError, InputError, UsageError
from neoscope.statistics import by_length
from neoscope.text.documents import SAMPLE_FILE
from support.command import invoke
from support.places import listing


def test_completion_offers_the_public_names_and_nothing_heavy_is_imported() -> None:
    code = (
        "import neoscope, sys; print(*dir(neoscope)); neoscope.__version__; "
        "assert not {'torch', 'transformers', 'xarray', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(neoscope.__all__) <= set(done.stdout.split())
    assert neoscope.__version__ == invoke("--version").out.split()[-1]


@pytest.mark.parametrize("name", neoscope.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(neoscope, name) is not None
    assert name in dir(neoscope)


def test_no_module_takes_the_name_of_a_public_function() -> None:
    modules = {module.name for module in pkgutil.iter_modules(neoscope.__path__)}
    assert modules.isdisjoint(neoscope.__all__)
    assert neoscope.by_length is by_length


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"precision": "fp16"}, "'float32', 'bfloat16', 'float16'"),
        ({"weights": "rand"}, "'pretrained', 'random'"),
        ({"device": "gpu"}, "'auto', 'cpu', 'cuda'"),
        ({"device": "mps"}, "Apple's GPU, where it was never tried: use cpu or auto"),
        ({"device": 0}, "'auto', 'cpu', 'cuda'"),
        ({"device": "cpu:1"}, "'auto', 'cpu', 'cuda'"),
        ({"name": 3}, "name=3"),
        ({"revision": 3}, "revision=3"),
        ({"seed": True}, "seed=True"),
        ({"seed": -1}, "0 or more"),
        ({"revision": "main"}, "no meaning"),
    ],
)
def test_a_model_that_there_is_not_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load_model(**{"weights": "random", **arguments})


@pytest.fixture(scope="module")
def small(small_model: Path) -> Any:
    return load_model(str(small_model), device="cpu")


@pytest.mark.parametrize(
    "layers",
    ["1", 1, [True, False], [1.0], [-1], [1, 1], [], ["1"], None.__class__, {"MLP_1": 1}],
)
def test_layers_that_are_no_list_of_numbers_are_refused(small: Any, layers: Any) -> None:
    with pytest.raises(InputError, match="layers="):
        capture(small, [[1, 2]], layers=layers)


@pytest.mark.parametrize("layers", [[2, 0], (0, 2), range(0, 3, 2), np.array([0, 2]), {0, 2}])
def test_layers_may_be_any_numbers(small: Any, layers: Any) -> None:
    assert list(capture(small, [[1, 2]], layers=layers)) == ["MLP_0", "MLP_2"]


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"forward": "slow"}, InputError, "'fast', 'reference'"),
        ({"hook": "transformer.h.*.mlp", "hook_side": "in"}, InputError, "'output', 'input'"),
        ({"hook_side": "inner"}, InputError, "'output', 'input'"),
        ({"hook_side": "input"}, UsageError, "goes with --hook only"),
        ({"hook": 3}, InputError, "hook=3"),
    ],
)
def test_a_pass_that_there_is_not_is_refused(
    small: Any, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        capture(small, [[1, 2]], **arguments)


@pytest.mark.parametrize("chunks", ["all", True, 1.5, {"sequence": "x"}, ["sequence"]])
def test_chunks_that_there_are_not_are_refused(partitioned: str, chunks: Any) -> None:
    with pytest.raises(InputError, match="chunks="):
        open_run(partitioned, chunks=chunks)


@pytest.mark.parametrize("arguments", [{"url": 3}, {"url": "x", "endpoint_url": 3}])
def test_a_place_is_a_name(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="=3: give a name"):
        open_run(**arguments)


# Token ids


def test_token_ids_are_a_runs(small_model: Path, small_run: list[str], tmp_path: Path) -> None:
    neoscope.run(tmp_path, model=small_model, dataset="sample", sequences=8, positions=24)
    text = [json.loads(line)["text"] for line in SAMPLE_FILE.read_text("utf-8").splitlines()]
    found = tokenize(load_tokenizer(str(small_model)), text, sequences=8, positions=24)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, open_run(str(tmp_path)).token_ids)


def test_a_text_is_one_sequence_unless_told(small_model: Path) -> None:
    tokenizer = load_tokenizer(small_model)
    found = tokenize(tokenizer, "The cat sat.")
    assert found.shape[0] == 1
    assert tokenizer.decode(found[0]) == "The cat sat."


@pytest.mark.parametrize(
    ("text", "shape", "said"),
    [
        ("", {}, "0 tokens"),
        ("a b", {"positions": 99}, "99 are needed"),
        ("a b", {"sequences": 2}, "positions too"),
        ("a b", {"positions": 0}, "1 or more"),
        ("a b", {"positions": 1.0}, "whole number"),
        (3, {}, "text=3"),
        (["a", 3], {"positions": 99}, "document 1 of the text"),
        (b"a", {}, "document 0 of the text"),
    ],
)
def test_a_text_that_does_not_fit_is_refused(
    small_model: Path, text: Any, shape: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        tokenize(load_tokenizer(small_model), text, **shape)


def test_a_tokenizer_is_transformers() -> None:
    with pytest.raises(InputError, match="load_tokenizer"):
        tokenize("gpt2", "a")  # type: ignore[arg-type]


# neoscope.run


def test_run_is_the_command(small_model: Path, tmp_path: Path) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    options = {"model": small_model, "dataset": "sample", "sequences": 8, "positions": 24}
    found = neoscope.run(tmp_path / "a", **options, layers=[2, 0], quiet=True)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    words = ["--model", small_model, "--dataset", "sample", "--sequences", 8, "--positions", 24]
    assert invoke("run", tmp_path / "b", *words, "--layers", "0,2").code == 0
    manifest = json.loads((tmp_path / "b/manifest.json").read_text())
    assert found is not None and found["content_digest"] == manifest["content_digest"]
    assert neoscope.run(tmp_path / "a", **options, layers="0,2", quiet=True) == found
    with pytest.raises(ConflictError, match="layers was"):
        neoscope.run(tmp_path / "a", **options)


def test_run_returns_nothing_while_partitions_are_missing(
    small_model: Path, tmp_path: Path
) -> None:
    text = []
    for number, line in enumerate(SAMPLE_FILE.read_text("utf-8").splitlines()[:2]):
        text.append(tmp_path / f"{number}.jsonl")
        text[-1].write_text(line + "\n")
    shape: dict[str, Any] = {"partitions": 2, "sequences": 2, "positions": 16}
    options = {"model": small_model, "text": text, **shape}
    assert neoscope.run(tmp_path / "run", **options, partition=1) is None
    assert neoscope.run(tmp_path / "run", **options) is not None


def test_run_shows_every_option_of_the_command() -> None:
    import click

    command = click.command()(lambda: None)
    for each in SPEC_OPTIONS:
        command = each(command)
    names = {p.name for p in command.params} - {"text_paths"}
    assert names <= set(inspect.signature(neoscope.run).parameters)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"bathces": 2}, UsageError, "no option 'bathces'; near are batches"),
        ({"precision": "fp16"}, InputError, "'float32', 'bfloat16', 'float16'"),
        ({"device": "gpu"}, InputError, "'auto', 'cpu', 'cuda'"),
        ({"batches": True}, InputError, "whole number"),
        ({"batches": "2"}, InputError, "whole number"),
        ({"batches": 0}, UsageError, "1 or more"),
        ({"seed": -1, "weights": "random"}, UsageError, "0 or more"),
        ({"arrays": "no"}, InputError, "True or False"),
        ({"sign_payload": 1}, InputError, "True or False"),
        ({"layers": [True]}, InputError, "layers="),
        ({"text": 3}, InputError, "text=3"),
        ({"text": [3]}, InputError, "text=3"),
        ({"partition": 1.5}, InputError, "whole number"),
        ({"partition": 1}, UsageError, "not one of the 1"),
        ({"endpoint_url": 3}, InputError, "endpoint_url=3"),
    ],
)
def test_options_that_are_wrong_write_nothing(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        neoscope.run(tmp_path / "run", **options)
    assert listing(str(tmp_path)) == {}


# What is said of what was made


def test_layers_are_named_as_they_are_and_files_by_name(small_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "letters.jsonl"
    text.write_text(SAMPLE_FILE.read_text("utf-8"))
    words = ["--model", small_model, "--text", text, "--sequences", 8, "--positions", 24]
    done = invoke("run", tmp_path / "run", *words, "--layers", "0,2")
    assert done.code == 0, done.err
    assert "MLP_0, MLP_2  each [8 x 24 x 64]" in done.out
    assert " on letters.jsonl: 192 tokens" in done.out
    assert open_run(str(tmp_path / "run")).title.endswith(" on letters.jsonl")
    page = tmp_path / "page.html"
    assert invoke("report", tmp_path / "run", "--file", page).code == 0
    assert "<dd>letters.jsonl" in page.read_text("utf-8")


PARTS = {"run": [], "selection": ["--layers", "1"], "safetensors": ["--to", "safetensors"]}


@pytest.mark.parametrize("words", PARTS.values(), ids=list(PARTS))
def test_pull_ends_with_the_lines_that_open_what_it_made(
    partitioned: str, tmp_path: Path, words: list[str]
) -> None:
    done = invoke("pull", partitioned, tmp_path / "part", *words)
    assert done.code == 0, done.err
    lines = done.out.partition("Open it in Python:\n")[2].splitlines()
    names: dict[str, Any] = {}
    exec("\n".join(line.strip() for line in lines), names)
    if words[:1] == ["--to"]:
        np.testing.assert_array_equal(names["MLP_0"], open_run(partitioned).MLP_0)
    else:
        np.testing.assert_array_equal(names["run"].MLP_1, open_run(partitioned).MLP_1)
    assert ("statistics" in names) == ("neurons" in names) == (not words)


def test_it_says_that_a_part_of_a_character_counts_one(partitioned: str) -> None:
    words = "part of a character counts 1"
    assert words in open_run(partitioned).token_length.description
    assert words in neoscope.open_statistics(partitioned).length.description
