"""Tokens of a committed run, and its sums by token: those of its stored arrays, or those that it has kept.

In: a URL. Out: a table of tokens, and `TokenSums` layer by layer. Each is read in blocks of sequences, and
nothing is kept of a block. It does not know what is made of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from neoscope.errors import CheckError, InputError
from neoscope.format.layout import (
    PARTITION_TOKEN_SUMS,
    TOKEN_IDS,
    TOKEN_LENGTH,
    merged_key,
)
from neoscope.reading import token_features
from neoscope.reading.dataset import open_arrays, open_neurons_of, stored_part, vocabulary
from neoscope.reading.status import committed
from neoscope.spec import LAYER
from neoscope.statistics.token_sums import TokenAccumulator, TokenSums
from neoscope.storage.store import Store, open_store

BLOCK_BYTES = 64_000_000  # of values that are read at a time


def features(
    url: str,
    *,
    frequency: Mapping[Any, float] | pd.Series | None = None,
    endpoint_url: str | None = None,
) -> pd.DataFrame:
    """One row for every token id that occurs in the run; special tokens have none.

    Index `token_id`; columns `token` (its string), `length` in characters, `log_frequency`,
    `begins_with_space`, `class` (see `token_features.CLASSES`), `capital` (its first character after
    a space is one), `split_character` (part of one, or U+FFFD itself). `log_frequency` is the natural
    logarithm of the share of the run's tokens, first positions among them, or of `frequency`: counts
    or shares by token id or string, of which every token needs one (InputError).

    Columns of one's own join by id, `table.join(mine)`, or by string, `table.join(mine, on="token")`.
    """
    return features_of(open_store(url, endpoint_url=endpoint_url), frequency)


def features_of(
    store: Store, frequency: Mapping[Any, float] | pd.Series | None = None
) -> pd.DataFrame:
    """The table of `features`, of the run in `store`."""
    manifest = committed(store)
    count = np.zeros(manifest["tokenizer"]["size"], np.int64)
    length = np.zeros(len(count), np.int64)
    arrays = stored_part(open_arrays(store))
    for rows in _blocks(arrays[TOKEN_IDS]):
        ids, lengths = _tokens(arrays.isel(sequence=rows), store.url)
        count += np.bincount(ids.ravel(), minlength=len(count))
        length[ids] = lengths
    token = np.flatnonzero((count > 0) & (length > 0))
    strings = vocabulary(store, manifest)[token]
    occurs = (
        count[token].astype(np.float64)
        if frequency is None
        else token_features.frequencies(frequency, token, strings.tolist())
    )
    return token_features.table(token, strings, length[token], occurs)


def sums(
    url: str, *, layers: Sequence[int] | None = None, endpoint_url: str | None = None
) -> Iterator[TokenSums]:
    """The sums by token of the run, layer by layer, each made when it is asked for: from the stored arrays,
    or from what a run without them has kept (`--token-sums`).

    `list(by_token.sums(url))` keeps them for several questions: 8 bytes for every layer, neuron and
    token that occurs. Raises InputError for a run that has neither, or a layer that it does not have,
    CheckError for arrays with a chunk missing, or sums that are not those that were stored.
    """
    return sums_of(open_store(url, endpoint_url=endpoint_url), layers)


def sums_of(store: Store, layers: Sequence[int] | None = None) -> Iterator[TokenSums]:
    """The sums of `sums`, of the run in `store`."""
    manifest = committed(store)
    url, stored, spec = store.url, manifest["hook"]["layers"], manifest["spec"]
    if not (spec["arrays"] or spec["token_sums"]):
        raise InputError(
            f"the run at {url} has neither arrays (--no-arrays) nor sums by token (--token-sums)"
        )
    unknown = sorted(set(layers or ()).difference(stored))
    if unknown:
        raise InputError(f"the run at {url} has no layer {unknown[0]}: it has {stored}")
    chosen = [layer for layer in stored if layers is None or layer in layers]
    if spec["token_sums"]:
        neurons = open_neurons_of(store)
        return (_kept_sums(store, manifest, neurons, layer) for layer in chosen)
    arrays, cells = stored_part(open_arrays(store)), 2 * manifest["tokenizer"]["size"]
    return (_layer_sums(arrays, layer, cells, url) for layer in chosen)


def _kept_sums(
    store: Store, manifest: dict[str, Any], neurons: xr.Dataset, layer: int
) -> TokenSums:
    """A layer's sums as the run has kept them, with the variances of its statistics by neuron."""
    key = merged_key(layer)
    expected = manifest.get(PARTITION_TOKEN_SUMS, {"objects": {}})["objects"].get(key)
    if expected is None:
        raise InputError(f"the run at {store.url} has special tokens alone, and no sums by token")

    def fits(body: bytes | memoryview) -> bool:
        return hashlib.sha256(body).hexdigest() == str(expected["sha256"])

    body = store.get(key, fits)
    if body is None or not fits(body):
        raise CheckError(f"{store.url}/{key} is not the one that was stored: see neoscope verify")
    of_layer = neurons.sel(layer=layer)
    return TokenSums.load(body).of_outputs(
        neurons.tokens.values, of_layer["mean"].values, of_layer.moment2.values
    )


def _layer_sums(arrays: xr.Dataset, layer: int, cells: int, url: str) -> TokenSums:
    values = arrays[f"{LAYER}{layer}"]
    accumulator = TokenAccumulator(layer, cells=cells)
    for rows in _blocks(values):
        ids, lengths = _tokens(arrays.isel(sequence=rows), url)
        first = np.zeros(ids.shape, bool)
        first[:, 0] = True
        chosen = lengths > 0
        try:
            accumulator.add(values.isel(sequence=rows).values[chosen], ids[chosen], first[chosen])
        except CheckError as error:
            raise CheckError(f"{url}: {error}; see neoscope verify") from None
    return accumulator.sums()


def _tokens(arrays: xr.Dataset, url: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Token ids and lengths [sequence, position] of some sequences."""
    ids = arrays[TOKEN_IDS].values
    if ids.min(initial=0) < 0:  # what a missing chunk reads as
        raise CheckError(f"{url}: a chunk of {TOKEN_IDS} is missing: see neoscope verify")
    return ids, arrays[TOKEN_LENGTH].values


def _blocks(values: xr.DataArray) -> Iterator[slice]:
    """Sequences of whole chunks, of BLOCK_BYTES or one chunk's."""
    chunk = values.encoding["preferred_chunks"]["sequence"]
    sequence = values.dtype.itemsize * int(np.prod(values.shape[1:]))
    step = max(1, BLOCK_BYTES // (sequence * chunk)) * chunk
    return (slice(start, start + step) for start in range(0, values.shape[0], step))
