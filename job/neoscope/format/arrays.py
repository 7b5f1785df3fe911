"""The Zarr schema of a run: which arrays, in what chunks, under which keys, and their metadata.

In: a RunSpec and the model's dimensions. Out: shapes, chunk grids, keys, and the bytes of every
`zarr.json`. It does not know the values, nor how they come to the store.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.format.layout import ACTIVATIONS, STORED, TOKEN_IDS, TOKEN_LENGTH, TOKEN_TEXT
from neoscope.spec import LAYER, RunSpec

# 6 MB of float32: large enough for one request to be worth it, small enough that one neuron's
# values come from a quarter of a layer (measured: 34 against 89 ms a layer).
MAX_CHUNK_ELEMENTS = 1_600_000
# What a reader would see for a missing chunk: values that no array holds.
FILL_VALUES = {"f": math.nan, "i": -1, "u": 65_535}


@dataclasses.dataclass(frozen=True)
class ArraySchema:
    """One array of the whole run. `rows` are the sequences of one batch: no chunk spans two."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    dimensions: tuple[str, ...]
    rows: int
    compression: str = "none"

    @property
    def batch_grid(self) -> tuple[int, ...]:
        """The number of chunks of one batch along each dimension."""
        return (self.rows // self.chunks[0], *self.grid[1:])

    @property
    def grid(self) -> tuple[int, ...]:
        """The number of chunks of the whole run along each dimension."""
        return tuple(n // c for n, c in zip(self.shape, self.chunks, strict=True))

    @property
    def chunk_bytes(self) -> int:
        return math.prod(self.chunks) * np.dtype(self.dtype).itemsize

    def batch_keys(self, batch: int) -> list[str]:
        """The keys of one batch's chunks in C order of the grid; `batch` counts over the whole run."""
        first = batch * self.batch_grid[0]
        return [self.key((first + index[0], *index[1:])) for index in np.ndindex(self.batch_grid)]

    def key(self, index: tuple[int, ...]) -> str:
        """The key of the chunk at an index of the grid."""
        return f"{ACTIVATIONS}/{self.name}/c/{'/'.join(map(str, index))}"

    def index_of(self, key: str) -> tuple[int, ...] | None:
        """The index of the chunk with this key; None where the array has none such."""
        words = key.split("/")[-len(self.grid) :]
        if not all(map(str.isdecimal, words)):
            return None
        index = tuple(map(int, words))
        inside = all(number < count for number, count in zip(index, self.grid, strict=False))
        return index if inside and self.key(index) == key else None

    def to_json(self) -> dict[str, Any]:
        return {
            "shape": list(self.shape),
            "dtype": self.dtype,
            "chunks": list(self.chunks),
            "dimensions": list(self.dimensions),
            "codecs": ["bytes", *(["blosc"] if self.compression == "lz4" else []), "crc32c"],
        }


def array_schemas(spec: RunSpec, *, layers: Sequence[int], neurons: int) -> dict[str, ArraySchema]:
    """Every array of a run by name: `MLP_0` and on if activations are stored, then `token_ids` and
    `token_length`."""
    rows, positions = spec.sequences, spec.positions
    total = rows * spec.total_batches
    chunks = layer_chunks(rows, positions, neurons, spec.pass_sequences)
    layer = ("sequence", "position", "neuron")
    schemas = [
        ArraySchema(
            f"{LAYER}{index}",
            (total, positions, neurons),
            spec.store_dtype,
            chunks,
            layer,
            rows,
            spec.compression,
        )
        for index in (layers if spec.arrays else ())
    ]
    schemas += [
        ArraySchema(name, (total, positions), dtype, (rows, positions), layer[:2], rows)
        for name, dtype in ((TOKEN_IDS, "int32"), (TOKEN_LENGTH, "uint16"))
    ]
    return {schema.name: schema for schema in schemas}


def layer_chunks(
    sequences: int, positions: int, neurons: int, pass_sequences: int
) -> tuple[int, int, int]:
    """The chunk of a layer: sequences, all positions, and neurons in the fewest even parts that keep it
    at MAX_CHUNK_ELEMENTS or less.

    Its sequences are the largest divisor of those of a pass that is not above a quarter of a batch's
    `sequences`, so that no chunk waits for a second pass.
    """
    quarter = max(1, sequences // 4)
    rows = max(n for n in range(1, quarter + 1) if pass_sequences % n == 0)
    columns = next(
        neurons // parts
        for parts in range(1, neurons + 1)
        if neurons % parts == 0
        and (rows * positions * neurons // parts <= MAX_CHUNK_ELEMENTS or parts == neurons)
    )
    return rows, positions, columns


def zarr_codecs(schema: ArraySchema) -> list[Any]:
    """Zarr's codecs after `bytes` (little-endian). `lz4` is bitshuffle and LZ4 at level 1: 0.90 of
    the size of float32 activations, where zstd is no smaller and four times slower."""
    from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

    if schema.compression == "none":
        return [Crc32cCodec()]
    size = np.dtype(schema.dtype).itemsize
    blosc = BloscCodec(cname="lz4", clevel=1, shuffle=BloscShuffle.bitshuffle, typesize=size)
    return [blosc, Crc32cCodec()]


def metadata(
    schemas: dict[str, ArraySchema],
    attributes: dict[str, dict[str, Any]],
    group_attributes: dict[str, Any],
    stored: npt.NDArray[np.bool_] | None = None,
) -> dict[str, bytes]:
    """The bytes of every `zarr.json` by key, the group's own last, as zarr itself writes them; and of the
    array that says which sequences are `stored`, where it is given.

    They are made in memory: `create_array` on a shared store fails or loses data when workers race.
    """
    import zarr

    memory: dict[str, Any] = {}
    group = zarr.create_group(
        zarr.storage.MemoryStore(memory),
        zarr_format=3,
        attributes={
            **group_attributes,
            "coordinates": " ".join(
                [
                    TOKEN_IDS,
                    TOKEN_LENGTH,
                    *([TOKEN_TEXT] if TOKEN_TEXT in schemas else []),
                    *([STORED] if stored is not None else []),
                ]
            ),
        },
    )
    for schema in schemas.values():
        text = schema.dtype == "string"
        dtype = schema.dtype if text else np.dtype(schema.dtype)
        group.create_array(
            schema.name,
            shape=schema.shape,
            chunks=schema.chunks,
            dtype=dtype,
            fill_value="" if text else FILL_VALUES[np.dtype(schema.dtype).kind],
            filters=None,
            compressors=zarr_codecs(schema),
            dimension_names=schema.dimensions,
            attributes=attributes.get(schema.name, {}),
        )
    if stored is not None:
        group.create_array(
            STORED,
            data=stored,
            chunks=stored.shape,
            dimension_names=("sequence",),
            attributes={"description": "Whether the sequence is there; others hold fill values."},
            config={"write_empty_chunks": True},
        )
    documents = {f"{ACTIVATIONS}/{key}": buffer.to_bytes() for key, buffer in memory.items()}
    root = f"{ACTIVATIONS}/zarr.json"
    return {
        **{key: documents[key] for key in sorted(documents) if key != root},
        root: documents[root],
    }


def schemas_of(claim: dict[str, Any]) -> dict[str, ArraySchema]:
    """The array schemas that a claim or manifest describes."""
    rows = claim["spec"]["sequences"]
    return {
        name: ArraySchema(
            name,
            tuple(entry["shape"]),
            entry["dtype"],
            tuple(entry["chunks"]),
            tuple(entry["dimensions"]),
            rows,
            "lz4" if "blosc" in entry["codecs"] else "none",
        )
        for name, entry in claim["arrays"].items()
    }
