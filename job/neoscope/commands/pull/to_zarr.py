"""A selection of a run's arrays as one plain Zarr group, with coordinates and attributes.

In: a run and a selection. Out: `activations.zarr`, a Zarr v3 group whose `zarr.json` come last. It does
not know the values.

A chunk that an earlier start left there is kept where it has the digest that it must have: of a whole
chunk of the run that is in the run's record. Of one that is put together of parts, the digest is noted in
`digests.json` beside the group, so that the run need not be read again; what is not noted is read again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.commands.pull.selection import Numbers, Piece, Selection, pieces
from neoscope.commands.pull.source import VerifiedSource
from neoscope.commands.pull.token_strings import put_token_text
from neoscope.format import chunks
from neoscope.format.arrays import FILL_VALUES, ArraySchema, metadata, schemas_of
from neoscope.format.layout import TOKEN_IDS, TOKEN_TEXT, VOCABULARY
from neoscope.progress import Progress
from neoscope.storage.store import Store, concurrent_map

DIGESTS = "digests.json"
NOTED_AFTER = 64  # chunks: at most so many of 6 MB are made again after a kill


@dataclasses.dataclass(frozen=True)
class Block:
    """One chunk of the group: its array, the pieces of the run's chunks that make it, and whether it is one
    of these as it is."""

    schema: ArraySchema
    pieces: list[Piece]
    whole: bool


def pull_group(
    origin: VerifiedSource,
    dest: Store,
    selection: Selection,
    said: dict[str, Any],
    progress: Progress,
) -> None:
    """Store what is selected as a Zarr group. `said` are the attributes that say what it is."""
    labels = selection.labels(origin.run.claim["spec"]["positions"])
    stored = {name: schemas_of(origin.run.claim)[name] for name in selection.names()}
    excerpts = {name: _excerpt(schema, labels) for name, schema in stored.items()}
    blocks = dict(
        block for name in stored for block in _blocks(stored[name], excerpts[name], labels)
    )
    noted = _noted(dest)
    kept = _kept(origin, dest, blocks, noted, progress)
    _fetch(origin, dest, {key: blocks[key] for key in blocks if key not in kept}, noted, progress)
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


def _noted(dest: Store) -> dict[str, str]:
    """The digests by key that an earlier start noted; none where they are damaged."""
    try:
        found = json.loads(dest.get(DIGESTS) or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _kept(
    origin: VerifiedSource,
    dest: Store,
    blocks: dict[str, Block],
    noted: dict[str, str],
    progress: Progress,
) -> set[str]:
    """The keys of the chunks that are at `dest` already with the digests that are known of them."""
    found = {item.key for item in dest.listing()} & blocks.keys()
    there = sorted(key for key in found if blocks[key].whole or key in noted)

    def is_right(key: str) -> bool:
        block = blocks[key]
        known = origin.run.chunk(block.pieces[0].key).digest if block.whole else noted[key]
        return chunks.stored_digest(block.schema, dest.read(key)) == known

    kept = set()
    progress.begin("checking what is there", len(there), "chunks")
    for key, right in zip(there, concurrent_map(is_right, there), strict=True):
        progress.advance("checking what is there")
        if right:
            kept.add(key)
    progress.end()
    return kept


def _fetch(
    origin: VerifiedSource,
    dest: Store,
    missing: dict[str, Block],
    noted: dict[str, str],
    progress: Progress,
) -> None:
    """Put the chunks that are missing, and after every `NOTED_AFTER` the digests of those that the
    run's records do not have."""

    def fetch(key: str) -> tuple[str, str]:
        values = _values(origin, missing[key])
        dest.put(key, _encode(missing[key].schema, values).data)
        return key, chunks.digest(values)

    progress.begin("pulling", sum(_read_bytes(block) for block in missing.values()), "B")
    for number, (key, digest) in enumerate(concurrent_map(fetch, missing), 1):
        progress.advance("pulling", _read_bytes(missing[key]))
        if not missing[key].whole:
            noted[key] = digest
        if noted and (number % NOTED_AFTER == 0 or number == len(missing)):
            dest.put(DIGESTS, json.dumps(noted, indent=0).encode())
    progress.end()


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
        found = list(pieces(stored, wanted))
        whole = excerpt.chunks == stored.chunks and found[0].is_whole(stored.chunks)
        yield excerpt.key(index), Block(excerpt, found, whole)


def _read_bytes(block: Block) -> int:
    """About the bytes that are read for a chunk of the group, whose own chunk is no larger than the run's."""
    return len(block.pieces) * block.schema.chunk_bytes


def _values(origin: VerifiedSource, block: Block) -> npt.NDArray[Any]:
    """The values of a chunk of the group, the fill value where its array has ended."""
    shape = block.schema.chunks
    values = np.full(shape, FILL_VALUES[np.dtype(block.schema.dtype).kind], block.schema.dtype)
    for piece in block.pieces:
        values[piece.target] = piece.cut(origin.values(piece.key))
    return values


def _encode(schema: ArraySchema, values: Any) -> Any:
    """The stored bytes of a chunk, padded at the edge of the array as Zarr pads it."""
    buffer = np.empty(schema.chunk_bytes + chunks.CHECKSUM_BYTES, np.uint8)
    buffer[: -chunks.CHECKSUM_BYTES].view(schema.dtype)[:] = values.reshape(-1)
    return chunks.encode(schema, buffer)
