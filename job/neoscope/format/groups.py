"""A group of statistics in the store, `statistics.zarr` or `neurons.zarr`: its objects and what the manifest
says of them.

In: arrays by name, and the words for them. Out: bytes by key, and digests. It does not know what the arrays
mean, nor where they come from.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.format import chunks


@dataclasses.dataclass(frozen=True)
class Group:
    """A Zarr group at `path` of arrays with these dimensions, described in words, some with units."""

    path: str
    dimensions: Mapping[str, tuple[str, ...]]
    descriptions: Mapping[str, str]
    units: Mapping[str, str]

    def is_by_layer(self, name: str) -> bool:
        """Whether an array has a chunk for each layer."""
        dimensions = self.dimensions[name]
        return len(dimensions) > 1 and dimensions[0] == "layer"


def zarr_objects(
    group: Group, arrays: dict[str, npt.NDArray[Any]], attributes: dict[str, Any]
) -> dict[str, bytes]:
    """Every object of the group by key, its own metadata last."""
    import zarr
    from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

    memory: dict[str, Any] = {}
    made = zarr.create_group(
        zarr.storage.MemoryStore(memory),
        zarr_format=3,
        attributes={**attributes, "coordinates": "bin_left bin_right"},
    )
    for name in sorted(arrays):
        values = arrays[name]
        squeezed = BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.bitshuffle)
        array = made.create_array(
            name,
            shape=values.shape,
            chunks=(1, *values.shape[1:]) if group.is_by_layer(name) else values.shape,
            dtype=values.dtype,
            filters=None,
            compressors=[squeezed, Crc32cCodec()],
            dimension_names=group.dimensions[name],
            attributes={
                "description": group.descriptions[name],
                **({"units": group.units[name]} if name in group.units else {}),
            },
            config={"write_empty_chunks": True},
        )
        array[...] = values
    # Values, then the arrays' metadata, then the group's: until that is there no reader opens it.
    keys = sorted(memory, key=lambda key: (key.endswith("zarr.json"), key == "zarr.json", key))
    return {f"{group.path}/{key}": memory[key].to_bytes() for key in keys}


def digests(group: Group, objects: dict[str, bytes]) -> dict[str, str]:
    """The digest of every array's values, as any Zarr reader reads them from these objects."""
    import zarr
    from zarr.core.buffer import cpu

    memory: Any = {key: cpu.Buffer.from_bytes(body) for key, body in objects.items()}
    source = zarr.storage.MemoryStore(memory)
    opened = zarr.open_group(
        source, path=group.path, mode="r", zarr_format=3, use_consolidated=False
    )
    return {name: chunks.digest(np.asarray(array[...])) for name, array in opened.arrays()}


def manifest_entry(
    group: Group, arrays: dict[str, npt.NDArray[Any]], objects: dict[str, bytes]
) -> dict[str, Any]:
    """What the manifest says of the group: digests of values, sizes and digests of objects."""
    return {
        "arrays": {
            name: {
                "shape": list(values.shape),
                "dtype": str(values.dtype),
                "dimensions": list(group.dimensions[name]),
                "digest": chunks.digest(values),
            }
            for name, values in sorted(arrays.items())
        },
        "objects": {
            key: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            for key, body in objects.items()
        },
    }
