"""The passages of each neuron: against the stored arrays, the vocabulary and the text itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from neoscope import by_neuron, contexts, open_run, open_statistics
from neoscope.errors import InputError, UsageError
from neoscope.reading.passages import Passage
from support.command import invoke
from support.making import arguments


def make(url: object, model: Path, *more: object, **options: object) -> str:
    done = invoke("run", url, *arguments(model, **options), *more)
    assert done.code == 0, done.err
    return str(url)


@pytest.mark.parametrize("lowest", [False, True])
def test_passages_are_those_of_the_stored_values(
    place: str, small_model: Path, lowest: bool
) -> None:
    make(place, small_model, batches=3)
    run = open_run(place)
    values = run.MLP_1[:, :, 7].values
    found = contexts(place, 1, 7, count=5, before=4, after=2, lowest=lowest)
    best = values.min(axis=1) if lowest else values.max(axis=1)
    assert [each.value for each in found] == sorted(best.tolist(), reverse=not lowest)[:5]
    for each in found:
        sequence, position = each.sequence, each.position
        assert each.token == sequence * 24 + position
        assert values[sequence, position] == each.value
        window = slice(max(0, position - 4), position + 3)
        assert each.tokens == run.token_text[sequence, window].values.tolist()
        np.testing.assert_array_equal(each.values, values[sequence, window])
        assert each.values is not None
        assert each.values[each.peak] == each.value


def spelled(passage: Passage) -> str:
    return "".join(passage.tokens)


@pytest.mark.parametrize(
    "more", [(), ("--separator", "eos"), ("--bos",), ("--no-arrays",)], ids=str
)
def test_a_passage_is_of_the_document_that_has_its_text(
    more: tuple[str, ...], small_model: Path, tmp_path: Path
) -> None:
    """Documents of one letter each, cut by batches; of 70 of them, where a record is of 64."""
    text = tmp_path / "text.jsonl"
    rows = [{"id": f"d{n}", "text": "abcdefghij"[n % 10] * (300 + n)} for n in range(120)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    batches = 70 if "--no-arrays" in more else 4
    url = make(
        tmp_path / "run", small_model, *more, dataset=None, text=text, batches=batches, sequences=4
    )
    for passage in contexts(url, 2, 3, count=16, before=0, after=0):
        if passage.tokens[0] != "<|endoftext|>":
            assert passage.document is not None
            letter = "abcdefghij"[int(passage.document[1:]) % 10]
            assert letter in spelled(passage)
        assert (passage.values is None) == ("--no-arrays" in more)


def test_what_there_is_not_is_said(partitioned: str) -> None:
    with pytest.raises(InputError, match=r"has no layer 9: it has \[0, 1, 2\]"):
        contexts(partitioned, 9, 0)
    with pytest.raises(InputError, match="has no neuron 64: each layer has 0 to 63"):
        contexts(partitioned, 0, 64)
    with pytest.raises(UsageError, match="count can't be 33"):
        contexts(partitioned, 0, 0, count=33)
    with pytest.raises(InputError, match="before=-1: give 0 or more"):
        contexts(partitioned, 0, 0, before=-1)
    with pytest.raises(InputError, match="the dataset of neoscope.open_neurons is needed"):
        by_neuron.firing(open_statistics(partitioned))
