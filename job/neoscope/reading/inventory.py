"""What a committed run must be, by its own documents, each read when something is asked that it says.

In: a store. Out: claim and manifest, which keys are the run's, and what is wrong with bytes that are not
those that were recorded. It reads no object but the documents, and keeps of records the last asked for: its
memory grows neither with the batches nor with the chunks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

import numpy.typing as npt

from neoscope.errors import CheckError
from neoscope.format import chunks, sealed_json
from neoscope.format.arrays import ArraySchema, schemas_of
from neoscope.format.layout import (
    CLAIM,
    MANIFEST,
    RECORD_KEY,
    RECORDS,
    ROLLUPS,
    VOCABULARY,
    record_key,
    rollup_key,
    state_keys,
    state_of,
)
from neoscope.format.manifest import stored_batches
from neoscope.format.records import read_record, record_count_of, record_counts
from neoscope.format.states import entries_of, kept
from neoscope.storage.store import REQUESTS_IN_FLIGHT, Store, again

AGAIN = "delete the run and run it again"
OTHER = "is not the one that the manifest names"
# More than are asked for at a time. Of a run of 125M a record names 200 objects, or 128 without arrays.
RECORDS_HELD = 4 * REQUESTS_IN_FLIGHT
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is not as it must be."""

    key: str
    problem: str
    remedy: str = AGAIN

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}" + (f"; {self.remedy}" if self.remedy else "")


@dataclasses.dataclass(frozen=True)
class Expected:
    """A chunk as its record says it is."""

    schema: ArraySchema
    size: int
    digest: str


class Inventory:
    """A committed run as it says it is: `claim`, `manifest`, and how many `batches` each partition has."""

    def __init__(self, store: Store, claim: dict[str, Any], manifest: dict[str, Any]) -> None:
        self.claim, self.manifest = claim, manifest
        self.batches = stored_batches(manifest)
        self._store, self._spec = store, claim["spec"]
        self._schemas = schemas_of(claim)
        self._documents = {
            CLAIM: manifest["claim"],
            MANIFEST: manifest["content_digest"],
            **manifest["rollups"],
        }
        self._digests: dict[str, str] = {
            VOCABULARY: claim["tokenizer"]["vocabulary_digest"],
            **manifest["zarr"],
            **{
                key: entry["sha256"]
                for name in kept(self._spec)
                for key, entry in manifest.get(name, {}).get("objects", {}).items()
            },
        }
        self._rollups = _Held(self._read_rollup, RECORDS_HELD)
        self._entries = _Held(self._read_entries, RECORDS_HELD)

    def names(self) -> Iterator[str]:
        """Every key that the run must have, those of a record together."""
        for partition in range(len(self.batches)):
            first = 0
            for count in self.record_counts(partition):
                for batch in range(first, count):
                    number = partition * self._spec["batches"] + batch
                    for schema in self._schemas.values():
                        yield from schema.batch_keys(number)
                yield record_key(partition, count)
                first = count
            if first:
                for name in kept(self._spec):
                    yield from self._state_keys(name, partition, first)
        yield from self._digests
        yield from self._documents

    def is_named(self, key: str) -> bool:
        """Whether an object is the run's own: one that it must have, or an earlier state of statistics."""
        if key in self._digests or key in self._documents:
            return True
        record = RECORD_KEY.fullmatch(key)
        if record:
            return self._is_recorded(int(record[1]), int(record[2]))
        return self._record_of(key) is not None

    def is_superseded(self, key: str) -> bool:
        """Whether an object is an earlier state of statistics: it may be there or not."""
        state = state_of(key)
        return state is not None and self.is_named(key) and state[2] < self.batches[state[1]]

    def record_counts(self, partition: int) -> list[int]:
        """The numbers of stored batches at which a partition has a record."""
        batches = self.batches[partition]
        return record_counts(self._spec, batches) if batches else []

    def rollup(self, partition: int) -> dict[str, Any]:
        """The roll-up of a partition. Raises CheckError where it is not the one that the manifest names."""
        key = rollup_key(partition)
        body = self._store.get(key, sealed_json.intact) or b""
        found = sealed_json.load("rollup", body, f"{self._store.url}/{key}")
        if found["content_digest"] != self._documents.get(key):
            raise self._other(key)
        return found

    def record(self, partition: int, count: int) -> dict[str, Any]:
        """A record. Raises CheckError where it is not the one that its partition's roll-up has."""
        record = read_record(self._store, self.claim, partition, count)
        if record["content_digest"] != self._record_digest(partition, count):
            raise self._other(record_key(partition, count))
        return record

    def chunk(self, key: str) -> Expected:
        """What its record says of a chunk. Raises CheckError where that is not as it must be."""
        found = self._entry(key)
        assert isinstance(found, Expected), key
        return found

    def chunks(self, record: dict[str, Any], name: str) -> dict[str, Expected]:
        """What a record says of the chunks of an array, by key in C order of the grid."""
        return {
            part["key"]: Expected(self._schemas[name], part["size"], part["digest"])
            for part in record["arrays"][name]["chunks"]
        }

    def find(self, key: str, body: bytes | memoryview | None) -> Problem | None:
        """What is wrong with an object, if anything; nothing is known of the report. Raises CheckError
        where the documents are not as they must be."""
        expected = self._digests.get(key) or self._entry(key)
        if isinstance(expected, Expected):
            values = check_chunk(key, body, expected)
            return values if isinstance(values, Problem) else None
        if body is None:
            return Problem(key, "is missing")
        if expected is not None:
            same = _digest(body, len(expected)) == expected
        elif kind := _kind(key):
            try:
                document = sealed_json.load(kind, bytes(body), key)
            except CheckError as error:
                return Problem(key, str(error).removeprefix(f"{key} "), "")
            same = document["content_digest"] == self._document_digest(key)
        else:
            same = True
        return None if same else Problem(key, "is not the one that was recorded")

    def fits(self, key: str) -> Callable[[bytes | memoryview], bool]:
        """Whether a body is that of the object `key`."""
        return lambda body: self.find(key, body) is None

    def _document_digest(self, key: str) -> str | None:
        record = RECORD_KEY.fullmatch(key)
        if record is None:
            return self._documents.get(key)
        return self._record_digest(int(record[1]), int(record[2]))

    def _entry(self, key: str) -> Expected | str | None:
        """What its record says of a chunk, or of a state its digest; None of what no record names."""
        place = self._record_of(key)
        if place is None:
            return None
        partition, count = place
        if count == self.batches[partition] and state_of(key):
            return self._rollups(partition)[1].get(
                key
            )  # as its record does, which need not be read
        return self._entries(*place).get(key)

    def _record_of(self, key: str) -> tuple[int, int] | None:
        """Partition and number of batches of the record that names a chunk or state."""
        if state := state_of(key):
            name, partition, count = state
            there = name in kept(self._spec) and self._is_recorded(partition, count)
            return (partition, count) if there and key in self._state_keys(*state) else None
        schema = self._schemas.get(key.split("/")[1] if key.count("/") > 1 else "")
        index = schema.index_of(key) if schema else None
        if schema is None or index is None:
            return None
        partition, batch = divmod(index[0] // schema.batch_grid[0], self._spec["batches"])
        if batch >= self.batches[partition]:
            return None
        return partition, record_count_of(self._spec, batch, self.batches[partition])

    def _is_recorded(self, partition: int, count: int) -> bool:
        """Whether a partition has a record of so many batches."""
        batches = self.batches[partition] if partition < len(self.batches) else 0
        return 0 < count <= batches and record_count_of(self._spec, count - 1, batches) == count

    def _state_keys(self, name: str, partition: int, count: int) -> list[str]:
        return state_keys(name, partition, count, self.claim["hook"]["layers"])

    def _record_digest(self, partition: int, count: int) -> str | None:
        return self._rollups(partition)[0].get(count)

    def _read_rollup(self, partition: int) -> tuple[dict[int, str], dict[str, str]]:
        """The digests of a partition's records by number of batches, and of its last states by key."""
        rollup, counts = self.rollup(partition), self.record_counts(partition)
        records = dict(zip(counts, rollup["records"], strict=True))
        return records, self._state_digests(rollup) if records else {}

    def _state_digests(self, document: dict[str, Any]) -> dict[str, str]:
        """Of the states that a record or a roll-up names, by key."""
        return {
            state["key"]: state["digest"]
            for name in kept(self._spec)
            for state in entries_of(document, name)
        }

    def _read_entries(self, partition: int, count: int) -> dict[str, Expected | str]:
        record = self.record(partition, count)
        found: dict[str, Expected | str] = {**self._state_digests(record)}
        for name in self._schemas:
            found |= self.chunks(record, name)
        return found

    def _other(self, key: str) -> CheckError:
        return CheckError(f"{self._store.url}/{key} {OTHER}; {AGAIN}")


class _Held(Generic[T]):
    """What `make` gives of a place, of the last `most` that were asked for; made once where several threads
    ask for it at a time."""

    def __init__(self, make: Callable[..., T], most: int) -> None:
        self._make, self._most = make, most
        self._lock = threading.Lock()
        self._found: dict[tuple[int, ...], Future[T]] = {}

    def __call__(self, *place: int) -> T:
        with self._lock:
            found = self._found.pop(place, None)
            future = self._found[place] = found or Future()
            if len(self._found) > self._most:
                del self._found[next(iter(self._found))]
        if found is None:
            try:
                future.set_result(self._make(*place))
            except Exception as error:
                future.set_exception(error)
        return future.result()


def read_inventory(store: Store) -> Inventory:
    """Raises CheckError where claim or manifest are missing, damaged or not of one run."""
    claim, manifest = (
        sealed_json.load(kind, store.get(key, sealed_json.intact) or b"", f"{store.url}/{key}")
        for kind, key in (("run", CLAIM), ("manifest", MANIFEST))
    )
    if claim["content_digest"] != manifest["claim"]:
        raise CheckError(f"{store.url}/{CLAIM} {OTHER}; {AGAIN}")
    return Inventory(store, claim, manifest)


def read_chunk(store: Store, key: str, expected: Expected) -> npt.NDArray[Any] | Problem:
    """As `check_chunk`, of the chunk in the store, asked for again where it does not fit."""
    return again(
        lambda: check_chunk(key, store.read(key), expected),
        lambda values: not isinstance(values, Problem),
    )


def check_chunk(
    key: str, body: bytes | memoryview | None, expected: Expected
) -> npt.NDArray[Any] | Problem:
    """The values of a stored chunk that is as its record says; else what is wrong with it."""
    if body is None:
        return Problem(key, "is missing")
    if len(body) != expected.size:
        return Problem(key, f"has {len(body)} bytes, recorded with {expected.size}")
    try:
        values = chunks.decode(expected.schema, body)
    except ValueError:
        return Problem(key, "is damaged: checksum mismatch")
    if chunks.digest(values) != expected.digest:
        return Problem(
            key, "holds other values than were recorded, with a right checksum: stale or swapped"
        )
    return values


def _kind(key: str) -> str | None:
    """Of a sealed document; None of what is none."""
    kinds = {CLAIM: "run", MANIFEST: "manifest", RECORDS: "record", ROLLUPS: "rollup"}
    return kinds.get(key.partition("/")[0])


def _digest(body: bytes | memoryview, digits: int) -> str:
    return hashlib.sha256(body).hexdigest() if digits == 64 else chunks.bytes_digest(body)
