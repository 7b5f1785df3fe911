"""`neoscope neuron-records`, loaded and used by OpenAI's own package."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from neuron_explainer.activations.activation_records import (
    calculate_max_activation,
    format_activation_records,
)
from neuron_explainer.activations.activations import (
    ActivationRecordSliceParams,
    NeuronRecord,
    load_neuron,
)

from neoscope import contexts, open_neurons, open_run
from support.command import invoke
from support.making import arguments, sample
from support.places import listing


@pytest.fixture(scope="module")
def url(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = tmp_path_factory.mktemp("records") / "run"
    # Short documents with special tokens between them; 96 positions: a block of 64 and the rest.
    text = url.parent / "short.jsonl"
    words = [each for document in sample() for each in document["text"].split(". ")]
    text.write_text("".join(json.dumps({"text": each}) + "\n" for each in words), "utf-8")
    made = ["--model", tiny_model, "--text", text, "--separator", "eos", "--batches", 8]
    done = invoke("run", url, *made, "--sequences", 2, "--positions", 96, "--contexts", 8)
    assert done.code == 0, done.err
    return str(url)


@pytest.fixture(scope="module")
def records(url: str) -> Path:
    dest = Path(url).parent / "out"
    done = invoke("neuron-records", url, dest, "--layers", "0,2", "--neurons", "3-5,60")
    assert done.code == 0, done.err
    assert "holds the records of 8 neurons" in done.out
    assert {path.name for path in (dest / "2").iterdir()} == {
        "3.json",
        "4.json",
        "5.json",
        "60.json",
    }
    return dest


def load(records: Path, layer: int, neuron: int) -> NeuronRecord:
    return load_neuron(layer, neuron, dataset_path=records.as_uri())


@pytest.mark.parametrize(("layer", "neuron"), [(0, 3), (2, 60)])
def test_the_highest_passages_are_those_of_the_run(
    url: str, records: Path, layer: int, neuron: int
) -> None:
    record, run = load(records, layer, neuron), open_run(url)
    values = run[f"MLP_{layer}"].sel(neuron=neuron).values
    strings, special = run.token_text.values, run.token_length.values == 0
    assert (record.neuron_id.layer_index, record.neuron_id.neuron_index) == (layer, neuron)
    expected, cut = contexts(url, layer, neuron, count=8), 0
    for passage, mine in zip(expected, record.most_positive_activation_records, strict=True):
        row, begin = passage.sequence, passage.position // 64 * 64
        end = min(begin + 64, 96)
        ends = [begin - 1, *(begin + np.flatnonzero(special[row, begin:end])), end]
        first = max(each for each in ends if each < passage.position) + 1
        last = min(each for each in ends if each > passage.position)
        assert mine.tokens == strings[row, first:last].tolist()
        assert mine.activations == values[row, first:last].tolist()
        assert passage.value in mine.activations
        cut += last - first < end - begin
    assert cut, "no passage ends at a special token"
    assert record.max_activation == values[~special].max()
    assert (
        calculate_max_activation(record.most_positive_activation_records) == record.max_activation
    )


def test_the_moments_are_those_of_all_tokens_but_special_ones(url: str, records: Path) -> None:
    record, run = load(records, 2, 4), open_run(url)
    values = run.MLP_2.sel(neuron=4).values[run.token_length.values > 0].astype(np.float64)
    assert record.mean == pytest.approx(values.mean())
    assert record.variance == pytest.approx(values.var())
    deviation = values - values.mean()
    assert record.skewness == pytest.approx((deviation**3).mean() / values.std() ** 3)
    assert record.kurtosis == pytest.approx((deviation**4).mean() / values.var() ** 2 - 3)


def test_their_package_divides_and_prints_them(records: Path) -> None:
    record = load(records, 0, 5)
    params = ActivationRecordSliceParams(n_examples_per_split=2)
    train = record.train_activation_records(params)
    valid = record.valid_activation_records(params)
    assert (len(train), len(valid)) == (2, 4)
    text = format_activation_records(train, record.max_activation)
    assert text.count("<start>") == 2
    assert "\t10" in text  # the highest value of all


def test_random_passages_are_anywhere_and_the_same_each_time(
    url: str, records: Path, tmp_path: Path
) -> None:
    drawn = [load(records, layer, neuron).random_sample for layer in (0, 2) for neuron in (3, 4)]
    assert [len(each) for each in drawn] == [8] * 4
    assert len({json.dumps([passage.tokens for passage in each]) for each in drawn}) == 4
    assert invoke("neuron-records", url, tmp_path, "--layers", "2", "--neurons", "4").code == 0
    again = (tmp_path / "2" / "4.json").read_bytes()
    assert again == (records / "2" / "4.json").read_bytes()


def test_records_of_all_neurons_go_to_s3(url: str, s3_url: str) -> None:
    assert invoke("neuron-records", url, s3_url, "--layers", "1").code == 0
    assert len(listing(s3_url)) == 1 + 64


def test_what_has_no_records_is_one_line(
    url: str, records: Path, small_model: Path, tmp_path: Path
) -> None:
    assert invoke("neuron-records", url, records).code == 4
    assert invoke("neuron-records", url, tmp_path / "a", "--neurons", "64").code == 2
    without = tmp_path / "without"
    made = arguments(small_model)
    assert invoke("run", without, *made, "--no-arrays").code == 0
    done = invoke("neuron-records", without, tmp_path / "b")
    assert done.code == 3
    assert "has no arrays" in done.err
    assert len(done.err.splitlines()) == 1


def test_fewer_sequences_than_contexts(small_model: Path, tmp_path: Path) -> None:
    run, dest = tmp_path / "run", tmp_path / "records"
    assert invoke("run", run, *arguments(small_model)).code == 0
    assert invoke("neuron-records", run, dest, "--layers", "0", "--neurons", "0").code == 0
    kept = (open_neurons(str(run)).sel(layer=0, neuron=0).highest_token.values >= 0).any(0).sum()
    record = load(dest, 0, 0)
    assert 0 < len(record.most_positive_activation_records) <= kept
    assert math.isfinite(record.max_activation)


def test_sequences_that_a_run_lacks_are_in_no_record(small_model: Path, tmp_path: Path) -> None:
    run, dest = tmp_path / "run", tmp_path / "records"
    text = tmp_path / "text.txt"
    text.write_text("A short text that fills one batch and no more. " * 20)
    made = ["--model", small_model, "--text", text, "--sequences", 2, "--positions", 24]
    done = invoke("run", run, *made, "--batches", 40, "--text-end", "stop")
    assert done.code == 0, done.err
    assert invoke("neuron-records", run, dest, "--layers", "0", "--neurons", "0").code == 0
    texts = {"".join(each.tokens) for each in load(dest, 0, 0).random_sample}
    whole = "".join(open_run(str(run)).token_text.values.reshape(-1).tolist())
    assert texts and all(text in whole for text in texts)
