"""Packing: any documents become exactly the concatenated stream, cut into batches, from any place."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neoscope.errors import InputError
from neoscope.text.packing import Batch, Span, batches
from neoscope.text.tokenizer import packaged_tokenizer

SEPARATOR = 7


class Listed:
    """Documents in memory; the place in them is the number of those that were read."""

    def __init__(self, texts: list[str], place: dict[str, Any] | None = None) -> None:
        self.texts = texts
        self.read: int = place["read"] if place else 0

    def next(self) -> tuple[str, str] | None:
        if self.read == len(self.texts):
            return None
        self.read += 1
        return f"document {self.read - 1}", self.texts[self.read - 1]

    def resume_state(self) -> dict[str, Any]:
        return {"read": self.read}


def letters(text: str, *, add_special_tokens: bool, verbose: bool) -> dict[str, list[int]]:
    """A tokenizer whose tokens are the characters."""
    assert not add_special_tokens
    return {"input_ids": [ord(character) for character in text]}


def pack(
    texts: list[str], sequences: int, positions: int, separator: int | None, after: Any = None
) -> list[Batch]:
    """Every whole batch of the texts, from the start or after a batch."""
    stream = Listed(texts, after["stream"] if after else None)
    found = []
    with pytest.raises(InputError, match="too few tokens|fills"):
        for batch in batches(
            stream,
            letters,
            sequences=sequences,
            positions=positions,
            separator=separator,
            offset=after["offset"] if after else 0,
        ):
            found.append(batch)
    return found


def joined(texts: list[str], separator: int | None) -> list[int]:
    """What the packed tokens must be."""
    end = [] if separator is None else [separator]
    return [token for text in texts for token in [*map(ord, text), *end]]


texts = st.lists(st.text("abcdefgh", max_size=15), max_size=20)
sizes = st.integers(1, 5)
separators = st.sampled_from([None, SEPARATOR])


@given(texts, sizes, sizes, separators)
def test_batches_are_exactly_the_joined_documents(
    texts: list[str], sequences: int, positions: int, separator: int | None
) -> None:
    stream = joined(texts, separator)
    found = pack(texts, sequences, positions, separator)
    assert len(found) == len(stream) // (sequences * positions)
    for batch in found:
        assert batch.token_ids.shape == (sequences, positions)
        assert batch.token_ids.dtype == np.int32
    packed = [token for batch in found for token in batch.token_ids.ravel().tolist()]
    assert packed == stream[: len(packed)]


@given(texts, sizes, sizes, separators)
def test_spans_tile_every_batch_and_every_document(
    texts: list[str], sequences: int, positions: int, separator: int | None
) -> None:
    reached: dict[str, int] = {}
    for batch in pack(texts, sequences, positions, separator):
        tokens: list[int] = []
        for span in batch.documents:
            document = joined([texts[int(span.id.split()[1])]], separator)
            assert span.tokens == len(document)
            assert span.start == reached.get(span.id, 0)
            reached[span.id] = span.stop
            tokens += document[span.start : span.stop]
        assert tokens == batch.token_ids.ravel().tolist()
    whole = [name for name, stop in reached.items()][:-1]
    assert whole == [f"document {number}" for number in range(len(whole))]
    for number, name in enumerate(whole):
        assert reached[name] == len(joined([texts[number]], separator))


@given(texts, sizes, sizes, separators)
def test_going_on_from_any_position_gives_the_same_batches(
    texts: list[str], sequences: int, positions: int, separator: int | None
) -> None:
    found = pack(texts, sequences, positions, separator)
    for number, batch in enumerate(found, start=1):
        place = json.loads(json.dumps(batch.resume_state))
        rest = pack(texts, sequences, positions, separator, after=place)
        assert len(rest) == len(found) - number
        for again, before in zip(rest, found[number:], strict=True):
            np.testing.assert_array_equal(again.token_ids, before.token_ids)
            assert again.documents == before.documents
            assert again.resume_state == before.resume_state


def test_a_cut_document_goes_on_in_the_next_batch() -> None:
    first, second = pack(["abc", "defgh"], 2, 2, None)
    assert first.token_ids.tolist() == [[97, 98], [99, 100]]
    assert first.documents == (Span("document 0", 3, 0, 3), Span("document 1", 5, 0, 1))
    assert first.resume_state == {"stream": {"read": 1}, "offset": 1}
    assert second.token_ids.tolist() == [[101, 102], [103, 104]]
    assert second.documents == (Span("document 1", 5, 1, 5),)
    assert second.resume_state == {"stream": {"read": 2}, "offset": 0}


def test_one_document_can_fill_many_batches() -> None:
    found = pack(["abcdefg"], 1, 2, None)
    assert [batch.token_ids.tolist() for batch in found] == [[[97, 98]], [[99, 100]], [[101, 102]]]
    assert [batch.resume_state["offset"] for batch in found] == [2, 4, 6]


def test_a_separator_ends_every_document_even_an_empty_one() -> None:
    (batch,) = pack(["a", "", "b"], 1, 5, SEPARATOR)
    assert batch.token_ids.tolist() == [[97, SEPARATOR, SEPARATOR, 98, SEPARATOR]]
    assert [span.tokens for span in batch.documents] == [2, 1, 2]


def test_an_empty_document_is_named_though_it_gives_no_token() -> None:
    (batch,) = pack(["a", "", "b"], 1, 2, None)
    assert batch.documents[1] == Span("document 1", 0, 0, 0)


def test_gpt2_tokens_are_joined_with_nothing_between_documents() -> None:
    stream = Listed(["The cat sat", " on the mat."])
    batch = next(batches(stream, packaged_tokenizer(), sequences=1, positions=7))
    assert batch.token_ids.tolist() == [[464, 3797, 3332, 319, 262, 2603, 13]]


def test_no_document_is_read_beyond_the_one_that_completes_the_batch() -> None:
    stream = Listed(["ab", "cd", "ef"])
    next(batches(stream, letters, sequences=1, positions=3))
    assert stream.read == 2


def test_too_little_text_says_how_far_it_came() -> None:
    with pytest.raises(InputError, match="too few tokens, 5 for a batch of 8.*--sequences"):
        next(batches(Listed(["abc", "de"]), letters, sequences=2, positions=4))


@pytest.mark.parametrize(
    ("before", "said"),
    [(0, "1 batch of 4 tokens: use --batches 1"), (1, "2 batches of 4 tokens: use --batches 2")],
)
def test_text_that_ends_says_how_many_batches_it_fills(before: int, said: str) -> None:
    """Those before a place are of the same text."""
    found = batches(
        Listed(["abc", "de"]), letters, sequences=2, positions=2, first=before, source="the share"
    )
    next(found)
    with pytest.raises(InputError, match=f"the share fills {said}$"):
        next(found)
