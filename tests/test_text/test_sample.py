"""The packaged sample: real prose in FineWeb's columns, enough for four batches of 16 x 512 tokens."""

from __future__ import annotations

import collections
import json
import re
import unicodedata
from typing import Any

import numpy as np
import pytest
import xxhash

from neoscope.text.documents import SAMPLE_FILE
from neoscope.text.tokenizer import packaged_tokenizer

COLUMNS = {"id", "text", "url", "language", "token_count"}


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return [json.loads(line) for line in SAMPLE_FILE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def token_counts(documents: list[dict[str, Any]]) -> list[int]:
    tokenizer = packaged_tokenizer()
    return [len(tokenizer(document["text"])["input_ids"]) for document in documents]


def test_it_has_at_least_20_documents_in_finewebs_columns(documents: list[dict[str, Any]]) -> None:
    assert len(documents) >= 20
    for document in documents:
        assert document.keys() >= COLUMNS
        assert isinstance(document["token_count"], int)
        assert all(document[name] and isinstance(document[name], str) for name in ("id", "text"))
    assert len({document["id"] for document in documents}) == len(documents)


def test_token_count_is_right(documents: list[dict[str, Any]], token_counts: list[int]) -> None:
    assert [document["token_count"] for document in documents] == token_counts


def test_it_fills_four_batches_of_8192_tokens(token_counts: list[int]) -> None:
    """Two are what `make run-local ARGS="--batches 2"` takes."""
    assert sum(token_counts) >= 4 * 8192


def test_its_first_batch_stays_as_it_is(documents: list[dict[str, Any]]) -> None:
    """Outputs and digests of runs on it are written down in other places."""
    tokenizer = packaged_tokenizer()
    ids = [token for row in documents for token in tokenizer(row["text"])["input_ids"]][:8192]
    digest = xxhash.xxh3_128(np.array(ids, dtype="<i4").tobytes()).hexdigest()
    assert digest == "db05b73468e858a1cc93dc4150973dea"


def test_nothing_in_it_is_repeated(documents: list[dict[str, Any]]) -> None:
    """No run of eight words comes twice, in one document or in two."""
    runs: collections.Counter[tuple[str, ...]] = collections.Counter()
    for document in documents:
        words = re.findall(r"\w+", document["text"].lower())
        runs.update(zip(*(words[start:] for start in range(8)), strict=False))
    assert [run for run, count in runs.items() if count > 1] == []


def test_it_has_accents_emoji_and_code(documents: list[dict[str, Any]]) -> None:
    text = "\n".join(document["text"] for document in documents)
    accented = {c for c in text if c.isalpha() and unicodedata.decomposition(c)}
    emoji = {c for c in text if ord(c) >= 0x1F300}
    assert len(accented) >= 3
    assert len(emoji) >= 2
    assert re.search(r"^\s+(return|for|if|print|def)\b", text, re.MULTILINE)


def test_no_document_dominates_it(token_counts: list[int]) -> None:
    assert max(token_counts) < sum(token_counts) / 5
