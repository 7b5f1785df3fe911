"""Token length in characters: of a vocabulary, and as exact statistics that merge.

In: a tokenizer, or an array of lengths. Out: plain numbers. It does not know where tokens come from.

The length of a token is the number of characters that it adds to a text, the leading space
counted; special tokens have length 0 and are in no group and in no statistic. A token that is part of a
character, some of its bytes, counts 1, as the U+FFFD that it decodes to: lengths can sum to more than the
characters of the text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt


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
