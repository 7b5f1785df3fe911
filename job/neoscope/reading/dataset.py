"""A committed run, or a selection of one, as a labelled, lazy dataset.

In: the URL of a run. Out: an `xarray.Dataset` that reads what is selected, when it is used. It does
not know how the run was made, nor which arrays it keeps beside token ids and lengths.
"""

from __future__ import annotations

import functools
import importlib.util
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray
from xarray.backends import BackendArray, BackendEntrypoint
from xarray.core import indexing

from neoscope.argument_checks import check_name
from neoscope.errors import CheckError, InputError, UsageError
from neoscope.format import chunks as stored
from neoscope.format import layout
from neoscope.format.layout import (
    ACTIVATIONS,
    SELECTION,
    STORED,
    TOKEN_IDS,
    TOKEN_LENGTH,
    TOKEN_TEXT,
    VOCABULARY,
)
from neoscope.format.manifest import read_manifest
from neoscope.reading.status import committed
from neoscope.spec import LAYER
from neoscope.storage.store import Store, open_store

TOKEN_GROUP = "token_group"


def open_run(url: str, *, endpoint_url: str | None = None, chunks: Any = None) -> xarray.Dataset:
    """The arrays of a committed run: `MLP_0` ... [sequence, position, neuron], read when selected.

    Coordinates [sequence, position]: `token_ids` int32, `token_text` str, `token_length` uint16 in
    characters, and `token_group` float32: -1, 0 or 1 for tokens shorter than, as long as or longer
    than the run's median. Special tokens have length 0 and group NaN, so that no comparison, no
    `groupby` and no mean takes them in. `sequence`, `position` and `neuron` are numbered from 0; the
    sequences that a run lacks whose text has ended early (--text-end stop) are left out.

    A selection that `neoscope pull --layers ...` made is opened alike; its `sequence` and `neuron` are
    numbered as in the run.

    `url` is `s3://bucket/prefix` or a folder; `endpoint_url` is found as boto3 finds it where
    it is not given. `chunks` is that of `xarray.open_dataset`: None reads into numpy, `{}` gives dask
    arrays of the stored chunks. Raises InputError where there is no committed run and no whole
    selection, and for `chunks` of another kind, UsageError for `chunks` without dask.
    """
    if not _are_chunks(chunks):
        raise InputError(
            f"chunks={chunks!r}: give None, {{}} for the stored chunks, 'auto', or sizes by dimension, "
            'such as {"sequence": 64}'
        )
    if chunks is not None and importlib.util.find_spec("dask") is None:
        raise UsageError(f"chunks={chunks!r} needs dask, which is not installed: pip install dask")
    store = open_store_of(url, endpoint_url)
    manifest = read_manifest(store)
    if manifest is None and (selection := store.get(SELECTION)):
        _check_selection(store, json.loads(selection))
    elif manifest is None:
        committed(store)  # says how far it is
    return xarray.open_dataset(
        store.url, engine=_Labelled, chunks=chunks, store=store, manifest=manifest
    )


def _are_chunks(chunks: Any) -> bool:
    """Whether `xarray.open_dataset` knows what to do with it: it takes any value, and fails late."""
    if isinstance(chunks, dict):
        sizes = [
            size
            for each in chunks.values()
            for size in (each if isinstance(each, tuple) else [each])
        ]
        return all(size == "auto" or (isinstance(size, int) and size is not True) for size in sizes)
    return chunks is None or chunks == "auto" or (isinstance(chunks, int) and chunks is not True)


def open_store_of(url: Any, endpoint_url: Any) -> Store:
    """The store at a URL that a user gave. Raises InputError for one that is no string."""
    endpoint = None if endpoint_url is None else check_name("endpoint_url", endpoint_url)
    return open_store(check_name("url", url), endpoint_url=endpoint)


def _check_selection(store: Store, selection: dict[str, Any]) -> None:
    """Raise InputError where a selection is no Zarr group, or is not whole: its metadata come last."""
    of = selection["selection_of"]
    if selection["form"] == "safetensors":
        raise InputError(
            f"{store.url} holds a selection of {of} as safetensors: open its files with "
            "safetensors.numpy.load_file"
        )
    if store.get(f"{ACTIVATIONS}/zarr.json") is None:
        raise InputError(
            f"the selection of {of} at {store.url} is incomplete: rerun the same neoscope pull to finish it"
        )


def open_arrays(store: Store) -> xarray.Dataset:
    """The arrays as they are stored, of a run that is known to be committed."""
    return _open_group(store, ACTIVATIONS)


def stored_part(arrays: xarray.Dataset) -> xarray.Dataset:
    """The arrays without the sequences that a run lacks whose text has ended early; what is left is
    numbered as in the run."""
    if STORED not in arrays.coords:
        return arrays
    rows = np.flatnonzero(arrays[STORED].values)
    return arrays.isel(sequence=rows).drop_vars(STORED).assign_coords(sequence=rows)


def open_statistics(url: str, *, endpoint_url: str | None = None) -> xarray.Dataset:
    """The statistics by token length of a committed run; `by_length` says what follows from them.

    `tokens` [first_position, length], `histogram` [layer, first_position, length, bin], `total` and
    `squared_deviation` [layer, first_position, length, neuron], described in their attributes. Raises
    InputError where there is no committed run, or where it was made with --no-statistics.
    """
    return open_statistics_of(open_store_of(url, endpoint_url))


def open_neurons(url: str, *, endpoint_url: str | None = None) -> xarray.Dataset:
    """What each neuron of a committed run does; `by_neuron` says what follows from it.

    `tokens` [first_position]; `mean`, `moment2`, `moment3`, `moment4`, `min`, `max` and `firing` [layer,
    first_position, neuron]; `histogram` [layer, first_position, neuron, bin]; `highest_value`,
    `highest_token`, `lowest_value` and `lowest_token` [layer, first_position, neuron, context]; each
    described in its attributes. What is selected is read when it is used. Raises InputError where there
    is no committed run, or where it was made with --no-neurons.
    """
    return open_neurons_of(open_store_of(url, endpoint_url))


def open_neurons_of(store: Store) -> xarray.Dataset:
    """The dataset of `open_neurons`, of the run in `store`."""
    if "neurons" not in committed(store):
        raise InputError(f"the run at {store.url} has no statistics by neuron: it has --no-neurons")
    return _open_group(store, layout.NEURONS)


def open_statistics_of(store: Store) -> xarray.Dataset:
    """The dataset of `open_statistics`, of the run in `store`."""
    if "statistics" not in committed(store):
        raise InputError(f"the run at {store.url} has no statistics: it has --no-statistics")
    return _open_group(store, layout.STATISTICS)


def _open_group(store: Store, group: str) -> xarray.Dataset:
    from zarr.storage import ObjectStore

    source: Any = ObjectStore(store.backend, read_only=True)
    return xarray.open_dataset(
        source,
        group=group,
        engine="zarr",
        consolidated=False,
        zarr_format=3,
        chunks=None,
    )


class _Labelled(BackendEntrypoint):
    """xarray's own way to a format: it adds chunks and caches to the dataset that this one opens."""

    def open_dataset(  # type: ignore[override]
        self, filename_or_obj: Any, *, drop_variables: Any = None, store: Store, manifest: Any
    ) -> xarray.Dataset:
        arrays = stored_part(open_arrays(store))
        ids, lengths = arrays.variables[TOKEN_IDS], arrays.variables[TOKEN_LENGTH]
        median = arrays.attrs["token_length_median"]
        text = (
            _derived(ids, functools.partial(_text, vocabulary(store, manifest)), "object")
            if manifest
            else _derived(arrays.variables[TOKEN_TEXT], np.asarray, "object")
        )
        text.attrs["description"] = "The token's own string."
        group = _derived(lengths, functools.partial(_group, median), "float32")
        group.attrs = {
            "description": "sign(token_length - median); NaN for special tokens.",
            "flag_values": [-1, 0, 1],
            "flag_meanings": "shorter equal longer",
            "median": median,
        }
        layers = sorted(map(str, arrays.data_vars), key=lambda name: int(name[len(LAYER) :]))
        unlabelled = {**arrays.sizes} if manifest else {}
        labels = {
            name: np.arange(size) for name, size in unlabelled.items() if name not in arrays.coords
        }
        coordinates = {TOKEN_TEXT: text, TOKEN_GROUP: group, **labels}
        found = arrays[layers].assign_coords({**arrays.coords, **coordinates})
        return found.assign_attrs(_attributes(manifest)) if manifest else found


class _Derived(BackendArray):
    """Values of a variable that are put through a function when they are read."""

    def __init__(
        self, source: xarray.Variable, function: Callable[[npt.NDArray[Any]], Any], dtype: str
    ) -> None:
        self.shape, self.dtype = source.shape, np.dtype(dtype)
        self._source, self._function = source, function

    def __getitem__(self, key: Any) -> Any:
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.OUTER, self._read
        )

    def _read(self, key: tuple[Any, ...]) -> npt.NDArray[Any]:
        return np.asarray(self._function(self._source[key].values), self.dtype)


def _derived(
    source: xarray.Variable, function: Callable[[npt.NDArray[Any]], Any], dtype: str
) -> xarray.Variable:
    data = indexing.LazilyIndexedArray(_Derived(source, function, dtype))
    preferred = {"preferred_chunks": source.encoding["preferred_chunks"]}
    return xarray.Variable(source.dims, data, encoding=preferred)


def _text(strings: npt.NDArray[np.object_], ids: npt.NDArray[np.int32]) -> Any:
    if ids.min(initial=0) < 0:  # what a missing chunk reads as
        raise CheckError("a chunk of token_ids is missing: see neoscope verify")
    return strings[ids]


def _group(median: int | None, lengths: npt.NDArray[np.uint16]) -> npt.NDArray[np.float64]:
    # Where every token is special there is no median, and no token that is in a group.
    return np.where(lengths > 0, np.sign(lengths.astype(np.float64) - (median or 0)), np.nan)


def vocabulary(store: Store, manifest: dict[str, Any]) -> npt.NDArray[np.object_]:
    """The string of every token id. Raises CheckError where it is not the one that the run was made with."""
    body = store.get(VOCABULARY) or b""
    if stored.bytes_digest(body) != manifest["tokenizer"]["vocabulary_digest"]:
        raise CheckError(f"{store.url}/{VOCABULARY} is not the run's: see neoscope verify")
    return np.array(json.loads(body)["tokens"], dtype=object)


def _attributes(manifest: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says beyond the attributes that the arrays are stored with."""
    tokens, text = manifest["tokens"], manifest["text"]
    return {
        "model_digest": manifest["model"]["digest"],
        "tokenizer": manifest["tokenizer"]["name"],
        "tokenizer_revision": manifest["tokenizer"]["revision"],
        "dataset": text.get("name"),
        "document_count": text["document_count"],
        "token_count": tokens["count"],
        "special_token_count": tokens["special"],
        "token_length_mean": tokens["length"]["mean"],
        "content_digest": manifest["content_digest"],
    }
