"""Statistics in the store: the cells of each partition, and `statistics.zarr` of the whole run.

In: cells, claim and records. Out: objects, and the way back from them. It does not know how the cells
were computed, nor what is derived from them; see `by_length`.

A partition has one cumulative object, `statistics/PARTITION-BATCHES.safetensors`: what is there up to its
last record, which names it. The one before is deleted once the record is there.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.errors import CheckError, InputError
from neoscope.format import chunks, sealed_json
from neoscope.format.layout import (
    PARTITION_STATISTICS,
    STATISTICS,
    STATISTICS_DIMENSIONS,
    STATISTICS_KEY,
    statistics_key,
)
from neoscope.format.records import last_record, put_unrecorded, recorded_otherwise
from neoscope.statistics.length_cells import BINS_PER_UNIT, HALF, Cells, merge
from neoscope.storage.store import Store, concurrent_map

CELLS_AT_A_TIME = 2  # 40 MB each for GPT-Neo 125M, and twice as many in memory

DESCRIPTIONS = {
    "tokens": "Tokens of each length, special ones left out.",
    "histogram": "Activations in bins [bin_left, bin_right); the first and the last bin are open.",
    "total": "Sum of the activations.",
    "squared_deviation": "Sum of the squares of the activations' differences from the mean of the "
    "same layer, first_position, length and neuron.",
    "layer": "Number of the model's layer.",
    "first_position": "Whether the token stands first in its sequence.",
    "length": "Characters of the token's own string, the leading space counted; a token that is part "
    "of a character counts 1.",
    "neuron": "Number of the neuron in its layer.",
    "bin_left": "Least activation of the bin.",
    "bin_right": "Least activation above the bin.",
}
# An activation, and what has its dimension, has none: 1 as CF conventions write it.
UNITS = {
    "tokens": "tokens",
    "histogram": "values",
    "total": "1",
    "squared_deviation": "1",
    "length": "characters",
    "bin_left": "1",
    "bin_right": "1",
}


def put_cells(
    store: Store, partition: int, batches: int, cells: Cells, record: str
) -> dict[str, Any]:
    """Store a partition's cells, which the record with the key `record` will name; its entry there.

    Where another worker has put that record already, nothing is stored: what it names may be
    superseded and deleted, and what is put there now would stay. Raises CheckError where that worker
    has recorded other cells.
    """
    body = cells.dump()
    key = statistics_key(partition, batches)
    entry = {"key": key, "size": len(body), "digest": chunks.bytes_digest(body)}
    record_body = store.get(record, sealed_json.intact)
    if record_body is None:
        put_unrecorded(store, key, body, record)
    elif sealed_json.load("record", record_body, f"{store.url}/{record}")["statistics"] != entry:
        raise recorded_otherwise(store, key)
    return entry


def last_state(
    store: Store,
    claim: dict[str, Any],
    partition: int,
    stored: dict[int, list[int]] | None = None,
) -> tuple[dict[str, Any] | None, Cells | None]:
    """A partition's last record and the cells up to it, None where there are none. `stored` is what
    `recorded` has found just now."""
    record = last_record(store, claim, partition, stored)
    while record and claim["spec"]["statistics"]:
        try:
            return record, read_cells(store, record)
        except FileNotFoundError:
            # Another worker on the partition may have gone on meanwhile, and deleted them.
            before, record = record, last_record(store, claim, partition)
            if record and record["batches"] == before["batches"]:
                raise _missing(store, record) from None
    return record, None


def read_cells(store: Store, record: dict[str, Any]) -> Cells:
    """The cells that a record names. Raises FileNotFoundError where the object is not there,
    CheckError where it is not the recorded one."""
    entry = record["statistics"]
    body = store.get(entry["key"], lambda body: chunks.bytes_digest(body) == entry["digest"])
    if body is None:
        raise FileNotFoundError(entry["key"])
    if chunks.bytes_digest(body) != entry["digest"]:
        raise CheckError(
            f"{store.url}/{entry['key']} is not the one that was recorded: delete the run and run it again"
        )
    return Cells.load(body)


def clear_superseded(store: Store, spec: dict[str, Any]) -> None:
    """Delete what workers that were killed left of a run whose partitions are all recorded to the end:
    cumulative objects that are not the last; by one listing. Without the permission they stay: the
    records name them."""
    if spec["statistics"]:
        last = {statistics_key(each, spec["batches"]) for each in range(spec["partitions"])}
        there = {
            item.key
            for item in store.objects(PARTITION_STATISTICS)
            if STATISTICS_KEY.fullmatch(item.key)
        }
        with contextlib.suppress(InputError):
            store.delete(sorted(there - last))


def merge_partitions(
    store: Store, last: list[dict[str, Any]], layers: list[int], counts: dict[int, int]
) -> dict[str, npt.NDArray[Any]]:
    """Every array of `statistics.zarr`, from the partitions' last records in order.

    `layers` are the layers' numbers, `counts` the run's tokens by length, both ascending. Raises
    CheckError where cells are missing or damaged, or have counted other tokens.
    """
    lengths = np.array(list(counts), np.uint16)

    def cells_of(record: dict[str, Any]) -> Cells:
        try:
            cells = read_cells(store, record)
        except FileNotFoundError:
            raise _missing(store, record) from None
        if not np.isin(cells.length, lengths).all():
            raise _miscounted(store)
        return cells

    merged = merge(lengths, concurrent_map(cells_of, last, CELLS_AT_A_TIME))
    if merged["tokens"].sum(axis=0).tolist() != list(counts.values()):
        raise _miscounted(store)
    edges = np.arange(-HALF, HALF + 1) / BINS_PER_UNIT
    return {
        **merged,
        "layer": np.array(layers, np.int64),
        "first_position": np.array([False, True]),
        "length": lengths,
        "neuron": np.arange(merged["total"].shape[-1]),
        "bin_left": np.concatenate([[-np.inf], edges]),
        "bin_right": np.concatenate([edges, [np.inf]]),
    }


def _miscounted(store: Store) -> CheckError:
    return CheckError(
        f"{store.url}/{PARTITION_STATISTICS} has counted other tokens than the records: delete the run and "
        "run it again"
    )


def _missing(store: Store, record: dict[str, Any]) -> CheckError:
    return CheckError(
        f"{store.url}/{record['statistics']['key']} is missing: delete the run and run it again"
    )


def zarr_objects(
    arrays: dict[str, npt.NDArray[Any]], attributes: dict[str, Any]
) -> dict[str, bytes]:
    """Every object of `statistics.zarr` by key, the group's own metadata last."""
    import zarr
    from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

    memory: dict[str, Any] = {}
    group = zarr.create_group(
        zarr.storage.MemoryStore(memory),
        zarr_format=3,
        attributes={**attributes, "coordinates": "bin_left bin_right"},
    )
    for name in sorted(arrays):
        values, dimensions = arrays[name], STATISTICS_DIMENSIONS[name]
        by_layer = len(dimensions) > 1 and dimensions[0] == "layer"
        squeezed = BloscCodec(cname="zstd", clevel=3, shuffle=BloscShuffle.bitshuffle)
        array = group.create_array(
            name,
            shape=values.shape,
            chunks=(1, *values.shape[1:]) if by_layer else values.shape,
            dtype=values.dtype,
            filters=None,
            compressors=[squeezed, Crc32cCodec()],
            dimension_names=dimensions,
            attributes={
                "description": DESCRIPTIONS[name],
                **({"units": UNITS[name]} if name in UNITS else {}),
            },
            config={"write_empty_chunks": True},
        )
        array[...] = values
    # Values, then the arrays' metadata, then the group's: until that is there no reader opens it.
    keys = sorted(memory, key=lambda key: (key.endswith("zarr.json"), key == "zarr.json", key))
    return {f"{STATISTICS}/{key}": memory[key].to_bytes() for key in keys}


def digests(objects: dict[str, bytes]) -> dict[str, str]:
    """The digest of every array's values, as any Zarr reader reads them from these objects."""
    import zarr
    from zarr.core.buffer import cpu

    memory: Any = {key: cpu.Buffer.from_bytes(body) for key, body in objects.items()}
    source = zarr.storage.MemoryStore(memory)
    group = zarr.open_group(
        source, path=STATISTICS, mode="r", zarr_format=3, use_consolidated=False
    )
    return {name: chunks.digest(np.asarray(array[...])) for name, array in group.arrays()}


def manifest_entry(
    arrays: dict[str, npt.NDArray[Any]], objects: dict[str, bytes]
) -> dict[str, Any]:
    """What the manifest says of `statistics.zarr`: digests of values, sizes and digests of objects."""
    return {
        "arrays": {
            name: {
                "shape": list(values.shape),
                "dtype": str(values.dtype),
                "dimensions": list(STATISTICS_DIMENSIONS[name]),
                "digest": chunks.digest(values),
            }
            for name, values in sorted(arrays.items())
        },
        "objects": {
            key: {"size": len(body), "sha256": hashlib.sha256(body).hexdigest()}
            for key, body in objects.items()
        },
    }
