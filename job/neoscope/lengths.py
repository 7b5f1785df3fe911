"""Token length in characters: of a vocabulary, and as exact statistics that merge.

In: a tokenizer, or an array of lengths. Out: plain numbers. It does not know where tokens come from.

The length of a token is the number of characters that it adds to a text, the leading space
counted; special tokens have length 0 and are in no group and in no statistic. A token that is part of a
character, some of its bytes, counts 1, as the U+FFFD that it decodes to: lengths can sum to more than the
characters of the text.
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Mapping
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


def histogram(lengths: npt.NDArray[np.uint16]) -> dict[int, int]:
    """`{length: tokens}` over an array of lengths of any shape, ascending; length 0 is left out."""
    values, counts = np.unique(lengths, return_counts=True)
    pairs = zip(values.tolist(), counts.tolist(), strict=True)
    return {length: count for length, count in pairs if length > 0}


def merge(histograms: Iterable[Mapping[int, int]]) -> dict[int, int]:
    """The histogram of all the tokens that the given histograms count."""
    total: dict[int, int] = {}
    for counts in histograms:
        for length, count in counts.items():
            total[length] = total.get(length, 0) + count
    return dict(sorted(total.items()))


def summarize(counts: Mapping[int, int]) -> dict[str, Any]:
    """Minimum, lower median, maximum, mean and the three groups of a length histogram.

    The median is the lower one, a length that was observed. The groups are strict: tokens shorter
    than, as long as and longer than the median. A histogram without tokens gives None throughout.
    """
    total = sum(counts.values())
    if not total:
        groups = {name: {"count": 0, "share": None} for name in ("shorter", "equal", "longer")}
        nothing = dict.fromkeys(("min", "median", "max", "mean"))
        return {**nothing, "histogram": {}, "groups": groups}
    lengths = sorted(counts)
    seen, median = 0, lengths[0]
    for median in lengths:
        seen += counts[median]
        if 2 * seen >= total:
            break
    sizes = {
        "shorter": sum(count for length, count in counts.items() if length < median),
        "equal": counts[median],
        "longer": sum(count for length, count in counts.items() if length > median),
    }
    return {
        "min": lengths[0],
        "median": median,
        "max": lengths[-1],
        "mean": sum(length * count for length, count in counts.items()) / total,
        "histogram": {str(length): counts[length] for length in lengths},
        "groups": {name: {"count": count, "share": count / total} for name, count in sizes.items()},
    }
