"""Token length: characters of GPT-2's own tokens, and statistics that are exact and merge."""

from __future__ import annotations

import hashlib
import json
import statistics
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from neoscope.errors import InputError
from neoscope.statistics.token_lengths import histogram, merge, summarize
from neoscope.text.gpt2 import MERGES_FILE, gpt2_vocabulary
from neoscope.text.tokenizer import packaged_tokenizer
from neoscope.text.vocabulary import length_table, special_ids, vocabulary_strings

END_OF_TEXT = 50_256
lengths = st.lists(st.integers(0, 40), max_size=200)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return packaged_tokenizer()


@pytest.fixture(scope="module")
def strings(tokenizer: Any) -> list[str]:
    return vocabulary_strings(tokenizer)


def token_bytes() -> list[bytes]:
    """GPT-2's tokens as bytes, from its published vocabulary: its 256 letters stand for the bytes,
    the printable ones for themselves and the others in order for U+0100 and on."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in own]
    byte_of = {chr(byte): byte for byte in own}
    byte_of |= {chr(256 + rank): byte for rank, byte in enumerate(others)}
    return [bytes(byte_of[letter] for letter in token) for token in gpt2_vocabulary()[0]]


def test_the_vocabulary_is_the_file_that_openai_published() -> None:
    """The SHA-256 of its encoder.json and vocab.bpe, as tiktoken checks its downloads of them."""
    encoder = json.dumps(gpt2_vocabulary()[0]).encode()
    digests = [hashlib.sha256(body).hexdigest() for body in (encoder, MERGES_FILE.read_bytes())]
    assert digests == [
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ]


def counted(values: list[int]) -> dict[int, int]:
    return histogram(np.array(values, dtype=np.uint16))


def test_every_token_of_gpt2_is_as_long_as_its_bytes_decode(
    tokenizer: Any, strings: list[str]
) -> None:
    table = length_table(strings, special_ids(tokenizer))
    expected = [len(token.decode("utf-8", errors="replace")) for token in token_bytes()]
    expected[END_OF_TEXT] = 0
    assert len(table) == 50_257
    assert table.dtype == np.uint16
    np.testing.assert_array_equal(table, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" the", [4]),
        ("the", [3]),
        ("é", [1]),
        ("α", [1]),
        ("ж", [1, 1]),  # two bytes, a token each: each decodes to U+FFFD
        ("한", [1, 1]),  # two bytes and one
        ("🙂", [1, 2]),  # the second token's two bytes are two U+FFFD
        (" .", [2]),
        (" n't", [2, 2]),
        ("\n\n", [2]),
        ("<|endoftext|>", [0]),
    ],
)
def test_known_lengths(tokenizer: Any, strings: list[str], text: str, expected: list[int]) -> None:
    table = length_table(strings, special_ids(tokenizer))
    assert table[tokenizer(text)["input_ids"]].tolist() == expected


def test_the_strings_are_not_cleaned_up_even_where_the_tokenizer_would() -> None:
    """transformers spares byte-level vocabularies from it, and no others."""
    spaced = ["a", " .", " ,", " n't", "[UNK]"]
    model = WordLevel({text: number for number, text in enumerate(spaced)}, unk_token="[UNK]")
    tidy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(model), clean_up_tokenization_spaces=True
    )
    assert tidy.decode([1]) == "."
    assert vocabulary_strings(tidy) == [
        f" {text}" for text in spaced
    ]  # words, told apart by a space


def test_end_of_text_is_the_only_special_token_of_gpt2(tokenizer: Any) -> None:
    assert special_ids(tokenizer) == [END_OF_TEXT]


def test_a_token_too_long_for_16_bits_is_refused() -> None:
    assert length_table(["x" * 65_535], [])[0] == 65_535
    with pytest.raises(InputError, match="65536"):
        length_table(["x" * 65_536], [])


@given(lengths)
def test_the_histogram_counts_every_length_but_zero(values: list[int]) -> None:
    counts = counted(values)
    assert counts == {n: values.count(n) for n in sorted(set(values)) if n > 0}
    assert list(counts) == sorted(counts)


def test_a_histogram_takes_an_array_of_any_shape() -> None:
    table = np.array([[1, 2, 0], [2, 2, 9]], dtype=np.uint16)
    assert histogram(table) == {1: 1, 2: 3, 9: 1}


@given(st.lists(lengths, max_size=6))
def test_merged_histograms_are_that_of_all_the_tokens(parts: list[list[int]]) -> None:
    everything = [value for part in parts for value in part]
    assert list(merge([counted(part) for part in parts]).items()) == list(
        counted(everything).items()
    )


@given(lengths)
def test_the_summary_agrees_with_the_statistics_module(values: list[int]) -> None:
    found = summarize(counted(values))
    real = [value for value in values if value > 0]
    if not real:
        assert found["median"] is found["min"] is found["max"] is found["mean"] is None
        assert found["histogram"] == {}
        assert [group["count"] for group in found["groups"].values()] == [0, 0, 0]
        assert [group["share"] for group in found["groups"].values()] == [None] * 3
        return
    median = statistics.median_low(real)
    assert found["median"] == median
    assert (found["min"], found["max"]) == (min(real), max(real))
    assert found["mean"] == pytest.approx(statistics.fmean(real), rel=1e-12)
    assert {int(n): count for n, count in found["histogram"].items()} == counted(values)
    expected = {
        "shorter": sum(n < median for n in real),
        "equal": sum(n == median for n in real),
        "longer": sum(n > median for n in real),
    }
    assert {name: group["count"] for name, group in found["groups"].items()} == expected
    for name, group in found["groups"].items():
        assert group["share"] == pytest.approx(expected[name] / len(real))


def test_the_median_is_the_lower_one_and_the_groups_are_strict() -> None:
    found = summarize({2: 2, 3: 1, 5: 3})
    assert found["median"] == 3
    assert [group["count"] for group in found["groups"].values()] == [2, 1, 3]
    assert summarize({1: 2, 4: 2})["median"] == 1
