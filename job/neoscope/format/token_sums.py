"""The sums by token of a whole run, `token-sums/MLP_3.safetensors` and so on: one object a layer.

In: claim, and the states of all partitions. Out: the sums of a layer at a time, for the commit and for
what checks it: those of all layers are gigabytes. It does not know how they were added up, nor what is
derived from them.
"""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np

from neoscope.errors import CheckError
from neoscope.format.layout import PARTITION_TOKEN_SUMS, TOKEN_SUMS
from neoscope.format.states import entries_of, missing, read_object
from neoscope.format.statistics import miscounted
from neoscope.statistics.token_sums import TokenSums
from neoscope.storage.store import Store


def merged_layers(
    store: Store, claim: dict[str, Any], states: list[dict[str, Any]], tokens: int
) -> Iterator[TokenSums]:
    """The sums of each layer, from the entries of the partitions' `states` in order.

    `tokens` is how many the run has, special ones left out. Raises CheckError where states are missing or
    damaged, have counted other tokens, or are of other weights.
    """
    first: TokenSums | None = None
    for index, layer in enumerate(claim["hook"]["layers"]):
        merged = _merged(
            store, [entries_of(entries, PARTITION_TOKEN_SUMS)[index] for entries in states]
        )
        first = first or merged
        if merged.layer != layer or merged.count.sum() != tokens or not _same_tokens(merged, first):
            raise miscounted(store, PARTITION_TOKEN_SUMS)
        yield merged


def layer_entry(body: bytes) -> dict[str, Any]:
    """What the manifest says of one layer's object."""
    return {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def _merged(store: Store, entries: list[dict[str, Any]]) -> TokenSums:
    """The sums of all partitions, added up in their order."""
    try:
        each = (TokenSums.load(read_object(store, entry)) for entry in entries)
        return functools.reduce(operator.add, each)
    except FileNotFoundError as error:
        raise missing(store, str(error)) from None
    except ValueError as error:
        raise CheckError(
            f"{store.url}/{TOKEN_SUMS}: {error}; delete the run and run it again"
        ) from None


def _same_tokens(one: TokenSums, other: TokenSums) -> bool:
    names = ("token", "first", "count")
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
