"""Whether every chunk that the records name is there as it was recorded, by listings alone.

In: a claim, and of each partition's roll-up what a listing of its chunks must add up to. Out: nothing, or
the chunk that is not as recorded. Memory is that of a page of a listing for each that goes on side by side,
and two numbers for each array of a partition.

S3 lists by key in bytes, 1 before 10 before 2: the chunks of all partitions mixed. So each is counted where
its key belongs, and only where count or sum are others than the records have, these are gone through.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

from neoscope.errors import CheckError
from neoscope.format import chunks
from neoscope.format.arrays import ArraySchema, schemas_of
from neoscope.format.layout import ACTIVATIONS
from neoscope.format.records import each_record
from neoscope.format.rollups import ObjectSum
from neoscope.storage.store import Listed, Store, concurrent_map

# Above so many chunks an array is listed in parts, by the first two digits of their first index.
LISTED_WHOLE, LISTED_PARTS = 10_000, 100
LISTINGS_AT_A_TIME = 16


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What the records of a partition of so many batches say of its chunks: by array how many there are, and
    what `ObjectSum` makes of them."""

    batches: int
    arrays: dict[str, tuple[int, str]]


def recorded_chunks(rollup: dict[str, Any]) -> Recorded:
    tags = rollup["tags"]
    arrays = {name: (entry["chunks"], tags[name]) for name, entry in rollup["arrays"].items()}
    return Recorded(rollup["batches"], arrays)


def check_objects(store: Store, claim: dict[str, Any], recorded: list[Recorded]) -> None:
    """Raise CheckError where a chunk is missing or is not the recorded one. `recorded` is by partition.

    The store's own tag tells an object that was put over after it was recorded; such a one is read
    and must have the recorded digest.
    """
    schemas, partitions = schemas_of(claim), len(recorded)
    batches = claim["spec"]["batches"]
    parts = [(schema, *part) for schema in schemas.values() for part in _parts(store, schema)]
    found = {name: [ObjectSum() for _ in range(partitions)] for name in schemas}
    sums = concurrent_map(
        lambda part: _sums(store, batches, partitions, *part), parts, LISTINGS_AT_A_TIME
    )
    for (schema, *_), part in zip(parts, sums, strict=True):
        for total, each in zip(found[schema.name], part, strict=True):
            total.merge(each)
    for partition, chunks_of in enumerate(recorded):
        differing = {
            name
            for name, counted in chunks_of.arrays.items()
            if found[name][partition].value() != counted
        }
        if differing:
            _check_each(store, claim, {partition: chunks_of.batches}, differing)


def _parts(store: Store, schema: ArraySchema) -> Iterator[tuple[str | None, str | None]]:
    """The ranges of keys in which an array is listed."""
    chunks_key = f"{ACTIVATIONS}/{schema.name}/c/"
    if store.is_local or math.prod(schema.grid) <= LISTED_WHOLE:
        yield None, None
        return
    bounds = sorted(f"{chunks_key}{number}" for number in range(1, LISTED_PARTS))
    yield from zip([None, *bounds], [*bounds, None], strict=True)


def _sums(
    store: Store,
    batches: int,
    partitions: int,
    schema: ArraySchema,
    after: str | None,
    until: str | None,
) -> list[ObjectSum]:
    """Of each partition the sum of its chunks in one range of an array's keys."""
    sums = [ObjectSum() for _ in range(partitions)]
    prefix = f"{ACTIVATIONS}/{schema.name}/c"
    rows = schema.batch_grid[0] * batches  # of chunks, in a partition
    for item in store.listing(prefix, after, until):
        index = item.key[len(prefix) + 1 :].split("/")
        # What is no chunk of the run is `verify`'s to tell.
        if len(index) == len(schema.grid) and all(map(str.isdecimal, index)):
            partition = int(index[0]) // rows
            if partition < partitions:
                sums[partition].add(item.key, item.size, item.tag)
    return sums


def _check_each(
    store: Store, claim: dict[str, Any], partition: dict[int, int], names: set[str]
) -> None:
    """Look up every chunk of some arrays that the records of a partition name."""
    schemas = schemas_of(claim)

    def check(chunk: tuple[str, dict[str, Any], str | None]) -> None:
        name, part, tag = chunk
        _check(store, schemas[name], part, tag, store.find(part["key"]))

    each = (
        (name, part, record["tags"][part["key"]])
        for record in each_record(store, claim, partition)
        for name in sorted(names)
        for part in record["arrays"][name]["chunks"]
    )
    for _ in concurrent_map(check, each):
        pass


def _check(
    store: Store, schema: ArraySchema, part: dict[str, Any], tag: str | None, item: Listed | None
) -> None:
    key = part["key"]
    if item is None or item.size != part["size"]:
        found = "is missing" if item is None else f"has {item.size} bytes"
        raise CheckError(
            f"{store.url}/{key} {found}, recorded with {part['size']}: "
            f"delete the run and run it again"
        )
    holds = functools.partial(chunks.holds, schema, part["digest"])
    if item.tag != tag and not holds(store.read(key, holds)):
        raise CheckError(
            f"{store.url}/{key} was put over with other values after it was recorded: "
            "two unlike machines worked on one partition; delete the run"
        )
