"""The statistics by neuron of whole runs: against numpy on the stored arrays, and through restarts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
import zarr

from neoscope import by_neuron, open_neurons, open_run
from neoscope.errors import InputError
from neoscope.statistics.neurons import DIMENSIONS
from neoscope.storage.store import open_store
from support.command import invoke
from support.making import arguments, nothing_finished
from support.neurons_by_numpy import assert_as_numpy


def make(url: object, model: Path, *more: object, **options: object) -> None:
    done = invoke("run", url, *arguments(model, **options), *more)
    assert done.code == 0, done.err


def assert_of_what_is_stored(url: str) -> None:
    run, neurons = open_run(url), open_neurons(url)
    arrays = {name: neurons[name].values for name in DIMENSIONS}
    for layer in range(3):
        assert_as_numpy(arrays, run[f"MLP_{layer}"].values, run.token_length.values, layer)


@pytest.mark.parametrize("store_dtype", ["float32", "float16"])
def test_a_run_says_of_its_neurons_what_numpy_says_of_what_it_stores(
    place: str, small_model: Path, store_dtype: str
) -> None:
    """More contexts are kept than there are sequences; passes are smaller than batches."""
    options = ("--separator", "eos", "--sequences-per-pass", 2)
    make(place, small_model, *options, batches=3, store_dtype=store_dtype)
    assert_of_what_is_stored(place)
    keys = [item.key for item in open_store(place).objects("neurons")]
    assert keys == ["neurons/00000-00000003.safetensors"]
    assert invoke("verify", place).code == 0


def test_partitions_have_what_they_store_together(partitioned: str) -> None:
    assert_of_what_is_stored(partitioned)
    assert invoke("verify", partitioned).code == 0


def test_without_arrays_it_is_the_same_and_contexts_are_as_many_as_asked_for(
    small_model: Path, tmp_path: Path
) -> None:
    make(tmp_path / "both", small_model, "--contexts", 3, batches=4)
    make(tmp_path / "alone", small_model, "--contexts", 3, "--no-arrays", batches=4)
    both, alone = (open_neurons(str(tmp_path / name)) for name in ("both", "alone"))
    assert both.identical(alone.assign_attrs(both.attrs))
    assert both.sizes["context"] == 3
    top = by_neuron.contexts(both.sel(layer=1).isel(neuron=5), count=2)
    values = open_run(str(tmp_path / "both")).MLP_1[:, :, 5].max("position").values
    np.testing.assert_array_equal(top.value, np.sort(values)[:-3:-1])


def test_a_start_that_goes_on_after_a_record_ends_with_the_same_bits(
    small_model: Path, tmp_path: Path
) -> None:
    """Where two batches are recorded and the third is not, and the state after the second is there."""
    make(tmp_path / "whole", small_model, batches=3)
    make(tmp_path / "run", small_model, batches=3)
    make(tmp_path / "two", small_model, batches=2)
    url = tmp_path / "run"
    (url / "manifest.json").unlink()
    (url / "records" / "00000-00000003.json").unlink()
    for name in ("statistics", "neurons"):
        key = f"{name}/00000-00000002.safetensors"
        shutil.copy(tmp_path / "two" / key, url / key)
        (url / name / "00000-00000003.safetensors").unlink()
    shutil.rmtree(url / "neurons.zarr")
    make(url, small_model, batches=3)
    found, whole = (
        json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("run", "whole")
    )
    assert found["content_digest"] == whole["content_digest"]
    assert [path.name for path in (url / "neurons").iterdir()] == ["00000-00000003.safetensors"]


def test_without_neurons_there_are_none(small_model: Path, tmp_path: Path) -> None:
    make(tmp_path / "run", small_model, "--no-neurons")
    assert not [item.key for item in open_store(str(tmp_path / "run")).objects("neurons")]
    with pytest.raises(InputError, match="it has --no-neurons"):
        open_neurons(str(tmp_path / "run"))
    done = invoke("run", tmp_path / "b", *arguments(small_model), "--no-neurons", "--contexts", 3)
    assert done.code == 2
    assert "--contexts 3 and --no-neurons do not fit" in done.err


@pytest.mark.parametrize(
    "key", ["neurons/00000-00000002.safetensors", "neurons.zarr/histogram/c/1/0/0/0"]
)
def test_verify_names_what_is_missing_or_altered(
    key: str, small_model: Path, tmp_path: Path
) -> None:
    make(tmp_path / "run", small_model)
    path = tmp_path / "run" / key
    body = path.read_bytes()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    done = invoke("verify", tmp_path / "run")
    assert done.code == 5
    assert key in done.out
    path.unlink()
    done = invoke("verify", tmp_path / "run")
    assert f"{key}: is missing" in done.out or f"{key} is missing" in done.out


def test_a_pulled_run_has_them_and_a_deleted_one_leaves_nothing(
    small_model: Path, tmp_path: Path
) -> None:
    make(tmp_path / "run", small_model)
    assert invoke("pull", tmp_path / "run", tmp_path / "copy").code == 0
    assert open_neurons(str(tmp_path / "copy")).identical(open_neurons(str(tmp_path / "run")))
    assert invoke("delete", tmp_path / "copy", "--yes").code == 0
    assert not list((tmp_path / "copy").rglob("*.*"))


def test_zarr_itself_reads_it(small_model: Path, tmp_path: Path) -> None:
    make(tmp_path / "run", small_model)
    group = zarr.open_group(tmp_path / "run" / "neurons.zarr", mode="r")
    assert sorted(group.array_keys()) == sorted(DIMENSIONS)
    assert group.attrs["positions"] == 24


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--no-arrays",), "every neuron of layers 1 has one value at all tokens"),
        (("--positions", 64), "MLP_1 has 0 for all 8,192 values of activations.zarr/MLP_1/c/"),
    ],
    ids=["layer", "chunk"],
)
def test_a_layer_that_no_pass_has_written_is_a_failed_check(
    small_model: Path, tmp_path: Path, more: tuple[object, ...], words: str
) -> None:
    broken = transformers.GPTNeoForCausalLM.from_pretrained(small_model)
    linear = broken.transformer.h[1].mlp.c_fc
    linear.weight.data[:], linear.bias.data[:] = 0, 0
    shutil.copytree(small_model, tmp_path / "model")
    broken.save_pretrained(tmp_path / "model")
    done = invoke("run", tmp_path / "run", *arguments(tmp_path / "model"), *more)
    assert done.code == 5
    assert words in done.err
    assert nothing_finished(str(tmp_path / "run"))
