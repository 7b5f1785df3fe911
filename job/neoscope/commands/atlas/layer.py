"""What the atlas says of one layer: a table of its neurons, and pages of them in blocks.

In: a run's datasets. Out: plain JSON values, as `atlas.js` reads them. It does not know where they go.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from neoscope.commands.neuron import FACTS, histogram_of, layer_facts, number
from neoscope.format.layout import TOKEN_IDS
from neoscope.reading.document_spans import DocumentSpans
from neoscope.reading.passages import AFTER, BEFORE
from neoscope.reading.windows import Windows
from neoscope.spec import LAYER
from neoscope.statistics import by_neuron
from neoscope.storage.store import Store

BLOCK = 32  # neurons in one file, which is some 100 kB
BEFORE_IN_TABLE, AFTER_IN_TABLE = 5, 2
# A shade is one character: so many above and below that of 0, none of which JSON writes as two.
LEVELS, ZERO = 20, ord("7")


@dataclasses.dataclass(frozen=True)
class Source:
    """A run, opened: datasets, strings by token id, and what is asked for."""

    store: Store
    neurons: xr.Dataset
    statistics: xr.Dataset | None
    arrays: xr.Dataset
    strings: npt.NDArray[np.object_]
    documents: DocumentSpans
    positions: int
    highest: int
    lowest: int
    values: bool


@dataclasses.dataclass(frozen=True)
class Layer:
    """The table of one layer, and its blocks of neurons."""

    table: dict[str, Any]
    blocks: Iterator[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class _Side:
    """The passages at one end of all neurons of a layer: `value` [neuron, context], `ids` and `values`
    [neuron, context, token]."""

    windows: Windows
    value: npt.NDArray[np.float32]
    ids: npt.NDArray[np.int32]
    values: npt.NDArray[np.float32] | None


def make_layer(source: Source, number: int) -> Layer:
    """The files of one layer; the blocks are made one after the other, as they are taken."""
    neurons = source.neurons.sel(layer=number).load()
    facts = layer_facts(source.store, source.neurons, number)
    sides = {
        "highest": _side(source, neurons, number, source.highest, lowest=False),
        "lowest": _side(source, neurons, number, source.lowest, lowest=True),
    }
    table = {
        "layer": number,
        **{name: [_short(value) for value in facts[name].values] for name in FACTS},
        "passage": _strongest(source, sides["highest"]),
    }
    means = _means_by_length(source, number)
    counts = by_neuron.histograms(neurons)

    def blocks() -> Iterator[dict[str, Any]]:
        for first in range(0, neurons.sizes["neuron"], BLOCK):
            some = range(first, min(first + BLOCK, neurons.sizes["neuron"]))
            yield _block(source, some, sides, counts, means)

    return Layer(table, blocks())


def _side(source: Source, neurons: xr.Dataset, number: int, count: int, *, lowest: bool) -> _Side:
    found = by_neuron.contexts(neurons, count=count, lowest=lowest)
    windows = Windows(found.token.values, source.positions, BEFORE, AFTER)
    values = windows.of_values(source.arrays[f"{LAYER}{number}"]) if source.values else None
    return _Side(windows, found.value.values, windows.of_tokens(source.arrays[TOKEN_IDS]), values)


def _strongest(source: Source, side: _Side) -> list[list[str]]:
    """Of each neuron the text before its highest value, at it and behind it."""
    near = side.ids[:, 0, BEFORE - BEFORE_IN_TABLE : BEFORE + AFTER_IN_TABLE + 1]
    text = np.where(near >= 0, source.strings[near], "")
    return [
        ["".join(row[:BEFORE_IN_TABLE]), row[BEFORE_IN_TABLE], "".join(row[BEFORE_IN_TABLE + 1 :])]
        for row in text.tolist()
    ]


def _means_by_length(source: Source, number: int) -> npt.NDArray[np.float64] | None:
    """Mean activation [neuron, length] at tokens of each length."""
    if source.statistics is None:
        return None
    cells = source.statistics[["tokens", "total"]].sel(layer=number).sum("first_position").load()
    means: npt.NDArray[np.float64] = (
        (cells.total / cells.tokens).transpose("neuron", "length").values
    )
    return means


def _block(
    source: Source,
    neurons: range,
    sides: dict[str, _Side],
    counts: xr.DataArray,
    means: npt.NDArray[np.float64] | None,
) -> dict[str, Any]:
    """Some neurons, with the strings and documents of their passages in tables of the block's own."""
    rows = slice(neurons.start, neurons.stop)
    used = np.unique(np.concatenate([side.ids[rows].reshape(-1) for side in sides.values()]))
    used = used[used >= 0]
    documents: dict[str | None, int] = {}
    pages = [
        {
            "histogram": histogram_of(counts.isel(neuron=neuron)),
            **({} if means is None else {"by_length": [_short(m) for m in means[neuron]]}),
            **{
                name: list(_passages(source, side, neuron, used, documents))
                for name, side in sides.items()
            },
        }
        for neuron in neurons
    ]
    return {
        "first": neurons.start,
        "tokens": [str(text) for text in source.strings[used]],
        "documents": list(documents),
        "neurons": pages,
    }


def _passages(
    source: Source,
    side: _Side,
    neuron: int,
    used: npt.NDArray[np.int32],
    documents: dict[str | None, int],
) -> Iterator[dict[str, Any]]:
    """A neuron's passages: tokens are indices in `used`, shades one character a token."""
    for context in np.flatnonzero(side.windows.token[neuron] >= 0).tolist():
        ids = side.ids[neuron, context]
        inside = ids >= 0
        token = int(side.windows.token[neuron, context])
        document = documents.setdefault(source.documents.id_of(token), len(documents))
        sequence, position = divmod(token, source.positions)
        passage = {
            "value": _short(side.value[neuron, context]),
            "tokens": np.searchsorted(used, ids[inside]).tolist(),
            "peak": int(inside[:BEFORE].sum()),
            "document": document,
            "sequence": sequence,
            "position": position,
        }
        if side.values is not None:
            values = side.values[neuron, context][inside]
            most = float(np.abs(values).max())
            passage["most"] = _short(most)
            passage["shades"] = shades(values, most)
        yield passage


def shades(values: npt.NDArray[np.float32], most: float) -> str:
    """Each value as a character: its share of `most` in LEVELS above and below ZERO."""
    levels = np.rint(values / (most or 1.0) * LEVELS).astype(np.int64)
    return "".join(chr(ZERO + int(level)) for level in levels)


def _short(value: Any) -> float | None:
    """Four digits, which a page shows."""
    plain = number(value)
    return None if plain is None else float(f"{plain:.4g}")
