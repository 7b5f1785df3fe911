"""One chunk: its stored form, its digest, what its values are like, and the way back.

In: a chunk's values in host memory. Out: the bytes that Zarr's codecs for its array would write,
made without a copy. It does not know where the chunk lies in its array or in the store.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import numpy.typing as npt
import xxhash

from neoscope.format.arrays import ArraySchema

CHECKSUM_BYTES = 4  # crc32c stands behind the encoded values, little-endian


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the stored values of a chunk, an array's batch or an array are like.

    `total` and `squares` are the sums of the values and of their squares, added up in float64.
    """

    count: int
    min: float
    max: float
    total: float
    squares: float
    nonfinite: int

    @property
    def mean(self) -> float:
        return self.total / self.count

    @property
    def std(self) -> float:
        """The population's standard deviation."""
        return math.sqrt(max(0.0, self.squares / self.count - self.mean**2))

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.count + other.count,
            min(self.min, other.min),
            max(self.max, other.max),
            self.total + other.total,
            self.squares + other.squares,
            self.nonfinite + other.nonfinite,
        )


@dataclasses.dataclass(frozen=True)
class StoredChunk:
    """A chunk as it lies in the store: `size` in stored bytes, `digest` of its decoded bytes."""

    key: str
    size: int
    digest: str
    tag: str | None
    summary: Summary


def encode(schema: ArraySchema, buffer: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The stored form of the chunk whose little-endian bytes fill `buffer` up to its last four.

    It is what Zarr's codecs for the array give. Uncompressed it is `buffer` itself, with the
    checksum written into its end: Zarr's own codec would copy the chunk to append it.
    """
    if schema.compression != "none":
        size = np.dtype(schema.dtype).itemsize
        blosc = numcodecs.Blosc("lz4", clevel=1, shuffle=numcodecs.Blosc.BITSHUFFLE, typesize=size)
        packed = blosc.encode(buffer[:-CHECKSUM_BYTES])
        buffer = np.empty(len(packed) + CHECKSUM_BYTES, np.uint8)
        buffer[:-CHECKSUM_BYTES] = np.frombuffer(packed, np.uint8)
    checksum = google_crc32c.value(buffer[:-CHECKSUM_BYTES])
    buffer[-CHECKSUM_BYTES:] = np.frombuffer(checksum.to_bytes(4, "little"), np.uint8)
    return buffer


def decode(schema: ArraySchema, body: bytes | memoryview) -> npt.NDArray[Any]:
    """The values of a stored chunk, not copied where it is not compressed.

    Raises ValueError where the checksum fails or the size is not the chunk's. zarr's own decoder
    gives the same.
    """
    stored = np.frombuffer(body, np.uint8)
    values, checksum = stored[:-CHECKSUM_BYTES], stored[-CHECKSUM_BYTES:].tobytes()
    if google_crc32c.value(values).to_bytes(4, "little") != checksum:
        raise ValueError("checksum mismatch")
    if schema.compression != "none":
        try:
            values = np.frombuffer(numcodecs.Blosc().decode(values), np.uint8)
        except RuntimeError as error:
            raise ValueError(str(error)) from None
    return values.view(np.dtype(schema.dtype).newbyteorder("<")).reshape(schema.chunks)


def digest(values: npt.NDArray[Any]) -> str:
    """xxh3-128 of the little-endian bytes of an array in C order, 32 hexadecimal digits."""
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)


def stored_digest(schema: ArraySchema, body: bytes | memoryview | None) -> str | None:
    """The digest of a stored chunk's values; None where it is missing or its checksum fails."""
    if body is None:
        return None
    try:
        return digest(decode(schema, body))
    except ValueError:
        return None


def holds(schema: ArraySchema, expected: str, body: bytes | memoryview | None) -> bool:
    """Whether a stored chunk holds the values with this digest; not where it is missing or damaged."""
    return stored_digest(schema, body) == expected


def bytes_digest(body: bytes | memoryview) -> str:
    """xxh3-128 of bytes, 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(body)


def combine(digests: list[str]) -> str:
    """The digest of an array: xxh3-128 over the digests of its chunks, in C order of its grid."""
    return xxhash.xxh3_128_hexdigest(bytes.fromhex("".join(digests)))


def summarize(values: npt.NDArray[Any]) -> Summary:
    """The summary of a chunk of any shape; extremes and sums are NaN where a value is not finite."""
    from neoscope.statistics import length_kernels

    # Token ids and lengths are exact in float32: they are below 2^24.
    rows = np.ascontiguousarray(values.reshape(-1, values.shape[-1]), np.float32)
    columns = rows.shape[1]
    low, high = np.full(columns, np.inf, np.float32), np.full(columns, -np.inf, np.float32)
    total, squares = np.zeros(columns), np.zeros(columns)
    length_kernels.summarize(rows, low, high, total, squares)
    if not np.isfinite(squares).all():
        nan = math.nan
        return Summary(values.size, nan, nan, nan, nan, int((~np.isfinite(rows)).sum()))
    return Summary(
        values.size,
        float(low.min()),
        float(high.max()),
        float(total.sum()),
        float(squares.sum()),
        0,
    )
