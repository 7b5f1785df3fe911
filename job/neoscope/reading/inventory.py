"""What a committed run must be, by its own documents: one pass over the records, which are not kept.

In: a store. Out: claim, manifest, the size and digest of every other object, and what is wrong with bytes
that are not those. It reads no object but the documents.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy.typing as npt

from neoscope.errors import CheckError
from neoscope.format import chunks, sealed_json
from neoscope.format.arrays import ArraySchema, schemas_of
from neoscope.format.layout import (
    CLAIM,
    MANIFEST,
    ROLLUPS,
    TOKEN_IDS,
    TOKEN_LENGTH,
    VOCABULARY,
    record_key,
    rollup_key,
)
from neoscope.format.records import each_record
from neoscope.format.rollups import RollUp
from neoscope.format.states import entries_of, kept
from neoscope.format.totals import Totals
from neoscope.storage.store import Store, again, concurrent_map

AGAIN = "delete the run and run it again"


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is not as it must be."""

    key: str
    problem: str
    remedy: str = AGAIN

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}; {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Expected:
    """A chunk as its record says it is."""

    schema: ArraySchema
    size: int
    digest: str


@dataclasses.dataclass(frozen=True)
class Tokens:
    """What one record says of tokens: the chunks of their ids and lengths, and how many there are of
    each length, special ones apart."""

    record: str
    ids: list[str]
    lengths: list[str]
    histogram: dict[int, int]


@dataclasses.dataclass(frozen=True)
class Inventory:
    """A committed run as it says it is.

    `documents` are the content digests of claim, manifest, roll-ups and records by key, `chunks` are by key,
    and `digests` of all other objects, SHA-256 (64 digits) or xxh3-128 (32). `superseded` are keys of
    statistics that may be there or not. `mismatched_documents` are sound in themselves, but not those that
    the manifest was made of.
    """

    claim: dict[str, Any]
    manifest: dict[str, Any]
    totals: Totals
    documents: dict[str, str]
    chunks: dict[str, Expected]
    digests: dict[str, str]
    superseded: set[str]
    tokens: list[Tokens]
    mismatched_documents: list[Problem]

    def find(self, key: str, body: bytes | memoryview | None) -> Problem | None:
        """What is wrong with an object, if anything; nothing is known of the report."""
        if key in self.chunks:
            values = check_chunk(key, body, self.chunks[key])
            return values if isinstance(values, Problem) else None
        if body is None:
            return Problem(key, "is missing")
        if key in self.documents:
            try:
                document = sealed_json.load(_kind(key), bytes(body), key)
            except CheckError as error:
                return Problem(key, str(error))
            same = document["content_digest"] == self.documents[key]
        else:
            digest = self.digests.get(key)
            same = digest is None or _digest(body, len(digest)) == digest
        return None if same else Problem(key, "is not the one that was recorded")

    def fits(self, key: str) -> Callable[[bytes | memoryview], bool]:
        """Whether a body is that of the object `key`."""
        return lambda body: self.find(key, body) is None


def read_inventory(store: Store) -> Inventory:
    """Raises CheckError where a document is missing or damaged, or not of this run."""
    claim, manifest = (
        sealed_json.load(
            _kind(key), store.get(key, sealed_json.intact) or b"", f"{store.url}/{key}"
        )
        for key in (CLAIM, MANIFEST)
    )
    digests = {
        VOCABULARY: claim["tokenizer"]["vocabulary_digest"],
        **manifest["zarr"],
        **{
            key: entry["sha256"]
            for name in kept(claim["spec"])
            for key, entry in manifest.get(name, {}).get("objects", {}).items()
        },
    }
    documents = {
        CLAIM: manifest["claim"],
        MANIFEST: manifest["content_digest"],
        **manifest["rollups"],
    }
    found = Inventory(claim, manifest, Totals(claim), documents, {}, digests, set(), [], [])
    if claim["content_digest"] != manifest["claim"]:
        found.mismatched_documents.append(_mismatched(CLAIM))
    rollups = list(
        concurrent_map(lambda each: _read_rollup(store, each), range(claim["spec"]["partitions"]))
    )
    batches = {rollup["partition"]: rollup["batches"] for rollup in rollups}
    records = each_record(store, claim, batches)
    for rollup in rollups:
        _take_partition(found, rollup, itertools.islice(records, len(rollup["records"])))
    return found


def _read_rollup(store: Store, partition: int) -> dict[str, Any]:
    key = rollup_key(partition)
    body = store.get(key, sealed_json.intact) or b""
    return sealed_json.load("rollup", body, f"{store.url}/{key}")


def _take_partition(
    found: Inventory, rollup: dict[str, Any], records: Iterator[dict[str, Any]]
) -> None:
    """Take in the records of a partition, each the one that its roll-up has, and that the manifest's."""
    partition, said = rollup["partition"], iter(rollup["records"])
    made = RollUp(found.claim, partition)
    for record in records:
        name = record_key(partition, record["batches"])
        found.documents[name] = record["content_digest"]
        made.add(record)
        if record["content_digest"] == next(said):
            _take(found, name, record, rollup["batches"])
        else:
            found.mismatched_documents.append(_mismatched(name))
    key, again = rollup_key(partition), made.content()
    digests = (rollup["content_digest"], sealed_json.content_digest(again))
    if {*digests, found.manifest["rollups"].get(key)} != {digests[0]}:
        found.mismatched_documents.append(_mismatched(key))
    found.totals.add({**again, "content_digest": digests[1]})


def _mismatched(key: str) -> Problem:
    return Problem(key, "is not the one that the manifest names")


def _take(found: Inventory, key: str, record: dict[str, Any], batches: int) -> None:
    """Take in what one record says, of a partition of so many batches."""
    for name, schema in schemas_of(found.claim).items():
        for part in record["arrays"][name]["chunks"]:
            found.chunks[part["key"]] = Expected(schema, part["size"], part["digest"])
    ids, lengths = (
        [part["key"] for part in record["arrays"][name]["chunks"]]
        for name in (TOKEN_IDS, TOKEN_LENGTH)
    )
    histogram = {int(length): count for length, count in record["length_histogram"].items()}
    found.tokens.append(Tokens(key, ids, lengths, histogram))
    for name in kept(found.claim["spec"]):
        for state in entries_of(record, name):
            found.digests[state["key"]] = state["digest"]
            if record["batches"] < batches:
                found.superseded.add(state["key"])


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


def _kind(key: str) -> str:
    """Of a sealed document."""
    kind = "rollup" if key.startswith(f"{ROLLUPS}/") else "record"
    return {CLAIM: "run", MANIFEST: "manifest"}.get(key, kind)


def _digest(body: bytes | memoryview, digits: int) -> str:
    return hashlib.sha256(body).hexdigest() if digits == 64 else chunks.bytes_digest(body)
