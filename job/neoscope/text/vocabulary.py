"""A tokenizer's vocabulary: what each token adds to a text, and its length in characters.

In: a tokenizer. Out: strings and lengths by token id. It does not know which tokens a text has.

The length of a token is the number of characters that it adds to a text, the leading space
counted; special tokens have length 0 and are in no group and in no statistic.
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.errors import InputError

PLAIN = frozenset(string.ascii_letters + string.digits)
MAX_LENGTH = int(np.iinfo(np.uint16).max)


def vocabulary_strings(tokenizer: Any) -> list[str]:
    """What every token id adds to a text after another token, index = id.

    For byte-level vocabularies such as GPT-2's that is what the id decodes to alone; other decoders
    drop a leading space at the beginning (Llama's). Bytes that are no whole character are U+FFFD.
    Raises InputError where no token is a plain letter or digit that it could be told after.
    """
    before = _plain_token(tokenizer)
    (text,) = _decoded(tokenizer, [[before]])
    pairs = _decoded(tokenizer, [[before, token] for token in range(len(tokenizer))])
    for token, pair in enumerate(pairs):
        if not pair.startswith(text):
            raise InputError(
                f"the tokenizer decodes {text!r} and token {token} to {pair!r}: what a token adds to a "
                "text cannot be told"
            )
    return [pair.removeprefix(text) for pair in pairs]


def _plain_token(tokenizer: Any) -> int:
    """The first token that is nothing but an ASCII letter or digit; tokens of single bytes are not."""
    for token, name in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if name in PLAIN and _decoded(tokenizer, [[token]]) == [name]:
            return token
    raise InputError(
        "the tokenizer has no token that is one letter or digit: token lengths need one"
    )


def _decoded(tokenizer: Any, ids: list[list[int]]) -> list[str]:
    return list(
        tokenizer.batch_decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    )


def special_ids(tokenizer: Any) -> list[int]:
    """The ids of the tokenizer's special tokens, ascending."""
    return sorted({int(token) for token in tokenizer.all_special_ids})


def length_table(strings: list[str], special: list[int]) -> npt.NDArray[np.uint16]:
    """uint16 [token id]: the length of every token in characters, 0 for special tokens."""
    lengths = np.array([len(text) for text in strings], dtype=np.int64)
    lengths[special] = 0
    if lengths.max(initial=0) > MAX_LENGTH:
        raise InputError(
            f"the tokenizer has a token of {lengths.max()} characters: {MAX_LENGTH} fit"
        )
    return lengths.astype(np.uint16)
