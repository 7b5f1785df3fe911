"""The bare modules of GPT-Neo against transformers' own model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import GPTNeoForCausalLM, GPTNeoModel

from neoscope.errors import InputError
from neoscope.model.bare_gpt_neo import BareGPTNeo
from neoscope.model.hooks import capture
from neoscope.model.loading import LoadedModel, find_model, load
from support.making import arguments

IDS = torch.arange(48).reshape(2, 24)


def loaded(folder: Path, *, bare: bool, precision: str = "float32") -> LoadedModel:
    found = find_model(str(folder), revision=None, weights="pretrained")
    return load(found, seed=0, precision=precision, device=torch.device("cpu"), bare=bare)


def check_same(folder: Path, precision: str = "float32") -> None:
    ours = loaded(folder, bare=True, precision=precision)
    theirs = loaded(folder, bare=False, precision=precision)
    assert isinstance(ours.model, BareGPTNeo)
    assert isinstance(theirs.model, GPTNeoModel)
    assert ours.digest == theirs.digest
    expected = capture(theirs.model, IDS)
    for name, values in capture(ours.model, IDS).items():
        assert torch.equal(values, expected[name])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_weights_and_values_are_transformers_own(small_model: Path, precision: str) -> None:
    check_same(small_model, precision)


def test_files_without_a_head_and_in_several_parts(small_model: Path, tmp_path: Path) -> None:
    decoder = GPTNeoForCausalLM.from_pretrained(small_model).transformer
    decoder.save_pretrained(tmp_path / "decoder")
    check_same(tmp_path / "decoder")
    decoder.save_pretrained(tmp_path / "parts", max_shard_size="50KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    check_same(tmp_path / "parts")


def test_random_weights_are_the_same_numbers(small_model: Path) -> None:
    found = find_model(str(small_model), revision=None, weights="random")
    ours, theirs = (
        load(found, seed=3, precision="float32", device=torch.device("cpu"), bare=bare)
        for bare in (True, False)
    )
    assert ours.digest == theirs.digest
    expected = capture(theirs.model, IDS, forward="reference")
    for name, values in capture(ours.model, IDS).items():
        torch.testing.assert_close(values, expected[name])


def test_weights_in_another_format_are_read_by_transformers(
    small_model: Path, tmp_path: Path
) -> None:
    model = GPTNeoForCausalLM.from_pretrained(small_model)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert isinstance(loaded(tmp_path, bare=True).model, GPTNeoModel)


@pytest.mark.parametrize("bare", [True, False])
def test_weights_of_another_shape_are_one_line(
    small_model: Path, tmp_path: Path, bare: bool
) -> None:
    model = GPTNeoForCausalLM.from_pretrained(small_model)
    model.save_pretrained(tmp_path)
    model.config.intermediate_size = 32
    model.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"9 are missing .* first transformer\.h\.0\.mlp\.c_fc"):
        loaded(tmp_path, bare=bare)


def test_a_run_does_not_import_transformers_models(small_model: Path, tmp_path: Path) -> None:
    given = [str(argument) for argument in arguments(small_model)]
    program = (
        "import sys, neoscope.commands.main as main\n"
        f"code = main.invoke(['run', {str(tmp_path / 'run')!r}, *{given!r}])\n"
        "print(code, 'transformers.modeling_utils' in sys.modules, 'torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 False False", done.stderr
