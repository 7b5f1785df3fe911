"""Neuron records: what OpenAI's `neuron_explainer` loads to have a model explain a neuron and to score that.

In: a committed run with stored arrays, and a destination. Out: `LAYER/NEURON.json`, each with the moments of
a neuron, passages at which it is highest, and passages drawn at random. It does not know how neurons are
explained.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neoscope.commands.neuron import number
from neoscope.commands.pull.selection import Numbers, select
from neoscope.errors import InputError
from neoscope.format.claim import claim_destination
from neoscope.format.layout import STORED, TOKEN_IDS, TOKEN_LENGTH
from neoscope.progress import Progress
from neoscope.reading.dataset import open_arrays, open_neurons_of, vocabulary
from neoscope.reading.status import committed
from neoscope.reading.windows import Windows
from neoscope.spec import LAYER
from neoscope.statistics import by_neuron
from neoscope.storage.store import Store, concurrent_map

CLAIM = "neuron-records.json"  # put first: which run the records are of
TOKENS = 64  # in a passage at most, as in the records that OpenAI published of GPT-2
SEED = 0  # of the draw; each neuron has a draw of its own


def write_neuron_records(
    source: Store, dest: Store, *, layers: str | None, neurons: str | None, progress: Progress
) -> str:
    """Write a record of each neuron to `dest`; what was done, in words.

    `layers` and `neurons` are numbers as `0,3,6-11`, None for all. A layer's arrays are read once. Raises
    InputError where the run is not committed or has no arrays or no statistics by neuron, UsageError for
    numbers that it does not have, ConflictError where `dest` holds anything else.
    """
    manifest = committed(source)
    if not manifest["spec"]["arrays"]:
        raise InputError(
            f"the run at {source.url} has no arrays, and a neuron record has the value at every token of its "
            "passages: run it without --no-arrays, or use neoscope atlas"
        )
    chosen = select(manifest, layers=layers, sequences=None, neurons=neurons)
    known, arrays = open_neurons_of(source), open_arrays(source)
    strings = vocabulary(source, manifest)
    said = {"neuron_records_of": manifest["content_digest"], **chosen.to_json()}
    claim_destination(dest, CLAIM, json.dumps(said).encode())
    count = len(chosen.layers) * len(chosen.neurons)
    progress.begin("writing", count, "neurons")
    for layer in chosen.layers.tolist():

        def put(record: dict[str, Any]) -> None:
            of = record["neuron_id"]
            text = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            key = f"{of['layer_index']}/{of['neuron_index']}.json"
            dest.put(key, text.encode(), "application/json")

        for _ in concurrent_map(put, _records(known, arrays, strings, layer, chosen.neurons)):
            progress.advance(f"layer {layer}")
    progress.end()
    return f"{dest.url} holds the records of {count:,} neurons, as neuron_explainer loads them"


def _records(
    known: xr.Dataset,
    arrays: xr.Dataset,
    strings: npt.NDArray[np.object_],
    layer: int,
    neurons: Numbers,
) -> Iterator[dict[str, Any]]:
    """The record of each of the neurons of a layer.

    A passage lies in one of the blocks of 64 positions that a sequence is cut into, so that the place of
    its highest value says nothing; and it ends at special tokens, at which neurons have values that would
    set the scale for all others.
    """
    positions = known.attrs["positions"]
    mine = known.sel(layer=layer).isel(neuron=neurons).load()
    highest = by_neuron.contexts(mine).token.values
    ordinary = _ordinary(arrays)
    drawn = _draw(np.flatnonzero(ordinary), layer, neurons, highest.shape[1])
    tokens = np.concatenate([highest, drawn], axis=1)
    begin = tokens - tokens % positions % TOKENS
    windows = Windows(np.where(tokens < 0, -1, begin), positions, 0, TOKENS - 1)
    ids = windows.of_tokens(arrays[TOKEN_IDS])
    values = windows.of_values(arrays[f"{LAYER}{layer}"].isel(neuron=neurons))

    def passages(row: int, contexts: range) -> list[dict[str, Any]]:
        return [
            passage(row, context, int(tokens[row, context] - begin[row, context]))
            for context in contexts
            if tokens[row, context] >= 0
        ]

    def passage(row: int, context: int, peak: int) -> dict[str, Any]:
        count = int((ids[row, context] >= 0).sum())
        first = int(begin[row, context])
        ends = np.flatnonzero(~ordinary[first : first + count])
        place = int(np.searchsorted(ends, peak))
        part = slice(
            int(ends[place - 1]) + 1 if place else 0,
            int(ends[place]) if place < len(ends) else count,
        )
        return {
            "dataclass_name": "ActivationRecord",
            "tokens": [str(text) for text in strings[ids[row, context, part]]],
            "activations": values[row, context, part].tolist(),
        }

    moments = by_neuron.moments(mine)
    kept = highest.shape[1]
    for row, neuron in enumerate(neurons.tolist()):
        of = moments.isel(neuron=row)
        yield {
            "dataclass_name": "NeuronRecord",
            "neuron_id": {
                "dataclass_name": "NeuronId",
                "layer_index": layer,
                "neuron_index": neuron,
            },
            "random_sample": passages(row, range(kept, tokens.shape[1])),
            "mean": number(of["mean"]),
            "variance": number(of["std"] ** 2),
            "skewness": number(of["skewness"]),
            "kurtosis": number(of["kurtosis"]),
            "most_positive_activation_records": passages(row, range(kept)),
        }


def _ordinary(arrays: xr.Dataset) -> npt.NDArray[np.bool_]:
    """Which of all tokens, flattened, are there and not special."""
    lengths = arrays[TOKEN_LENGTH].values
    there = arrays[STORED].values[:, None] if STORED in arrays.coords else True
    ordinary: npt.NDArray[np.bool_] = ((lengths > 0) & there).reshape(-1)
    return ordinary


def _draw(
    ordinary: npt.NDArray[np.int64], layer: int, neurons: Numbers, count: int
) -> npt.NDArray[np.int64]:
    """Tokens [neuron, context] drawn without replacement from those of `ordinary`; -1 where there are no
    more."""
    drawn = np.full((len(neurons), count), -1, np.int64)
    for row, neuron in enumerate(neurons.tolist()):
        chance = np.random.default_rng([SEED, layer, neuron])
        some = chance.choice(ordinary, min(count, len(ordinary)), replace=False)
        drawn[row, : len(some)] = some
    return drawn
