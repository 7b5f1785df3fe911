"""A selection of a run's arrays as one plain Zarr group, with coordinates and attributes.

In: a run and a selection. Out: `activations.zarr`, a Zarr v3 group whose `zarr.json` come last. A chunk
that an earlier start left there is kept where its checksum fits. It does not know the values.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from neoscope import chunks
from neoscope.arrays import FILL_VALUES, TOKEN_IDS, TOKEN_TEXT, ArraySchema, metadata
from neoscope.commit import schemas_of
from neoscope.origin import Origin
from neoscope.progress import Progress
from neoscope.pull import at_a_time
from neoscope.records import VOCABULARY
from neoscope.selection import Numbers, Piece, Selection, pieces
from neoscope.storage import Store
from neoscope.token_strings import put_token_text


@dataclasses.dataclass(frozen=True)
class Block:
    """One chunk of the group: its array, and the pieces of the run's chunks that make it."""

    schema: ArraySchema
    pieces: list[Piece]


def pull_group(
    origin: Origin, dest: Store, selection: Selection, said: dict[str, Any], progress: Progress
) -> None:
    """Store what is selected as a Zarr group. `said` are the attributes that say what it is."""
    labels = selection.labels(origin.run.claim["spec"]["positions"])
    stored = {name: schemas_of(origin.run.claim)[name] for name in selection.names()}
    excerpts = {name: _excerpt(schema, labels) for name, schema in stored.items()}
    blocks = dict(
        block for name in stored for block in _blocks(stored[name], excerpts[name], labels)
    )
    there = {item.key for item in dest.objects()}
    missing = [key for key in blocks if not (key in there and _whole(dest, key, blocks[key]))]

    def fetch(key: str) -> int:
        dest.put(key, _encoded(origin, blocks[key]).data)
        return _cost(origin, blocks[key])

    progress.begin("pulling", sum(_cost(origin, blocks[key]) for key in missing), "B")
    for size in at_a_time(fetch, missing):
        progress.advance("pulling", size)
    progress.end()
    axes = {name: _axis(name, numbers) for name, numbers in labels.items() if len(numbers)}
    for name, schema in axes.items():
        dest.put(schema.key((0,)), _encode(schema, labels[name]).data)
    each = {name: origin.attributes(name) for name in excerpts}
    each[TOKEN_TEXT] = {"description": "The token's own string."}
    vocabulary = json.loads(bytes(origin.read(VOCABULARY)))
    axes[TOKEN_TEXT] = put_token_text(dest, excerpts[TOKEN_IDS], vocabulary["tokens"])
    for key, body in metadata(excerpts | axes, each, origin.attributes("") | said).items():
        dest.put(key, body)
    dest.clear_temporary_files()


def _excerpt(schema: ArraySchema, labels: dict[str, Numbers]) -> ArraySchema:
    """The selected part of an array, in chunks as large as the run's where there is so much of it."""
    shape = tuple(len(labels[dimension]) for dimension in schema.dimensions)
    sizes = tuple(min(pair) for pair in zip(schema.chunks, shape, strict=True))
    return dataclasses.replace(schema, shape=shape, chunks=sizes, rows=shape[0])


def _axis(name: str, numbers: Numbers) -> ArraySchema:
    """The labels of a dimension, which xarray takes for its index by their name."""
    return ArraySchema(name, (len(numbers),), "int64", (len(numbers),), (name,), len(numbers))


def _blocks(
    stored: ArraySchema, excerpt: ArraySchema, labels: dict[str, Numbers]
) -> Iterator[tuple[str, Block]]:
    along = [
        [labels[dimension][begin : begin + size] for begin in range(0, count, size)]
        for dimension, count, size in zip(
            excerpt.dimensions, excerpt.shape, excerpt.chunks, strict=True
        )
    ]
    for parts in itertools.product(*map(enumerate, along)):
        index, wanted = zip(*parts, strict=True)
        yield excerpt.key(index), Block(excerpt, list(pieces(stored, wanted)))


def _cost(origin: Origin, block: Block) -> int:
    """The bytes that are read for a chunk of the group."""
    return sum(origin.run.chunks[piece.key].size for piece in block.pieces)


def _whole(dest: Store, key: str, block: Block) -> bool:
    return chunks.stored_digest(block.schema, dest.read(key)) is not None


def _encoded(origin: Origin, block: Block) -> Any:
    shape = block.schema.chunks
    values = np.full(shape, FILL_VALUES[np.dtype(block.schema.dtype).kind], block.schema.dtype)
    for piece in block.pieces:
        values[piece.target] = piece.cut(origin.values(piece.key))
    return _encode(block.schema, values)


def _encode(schema: ArraySchema, values: Any) -> Any:
    """The stored bytes of a chunk, padded at the edge of the array as Zarr pads it."""
    buffer = np.empty(schema.chunk_bytes + chunks.CHECKSUM_BYTES, np.uint8)
    buffer[: -chunks.CHECKSUM_BYTES].view(schema.dtype)[:] = values.reshape(-1)
    return chunks.encode(schema, buffer)
