"""The roll-up of a partition: what all its records say together, put once it is stored to its end.

In: a claim and a partition's records in order. Out: the sealed JSON document `rollups/PARTITION.json`, from
which the commit makes the manifest, and the sums by which it holds a listing against the records. It does
not know the commit.

A roll-up is derived: who finds none, or a damaged one, makes it again from the records.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import xxhash

from neoscope.errors import CheckError
from neoscope.format import sealed_json
from neoscope.format.chunks import Summary
from neoscope.format.layout import RECORDS, ROLLUP_KEY, ROLLUPS, rollup_key
from neoscope.format.records import each_record, record_counts, stored_batch_counts
from neoscope.format.states import kept
from neoscope.spec import canonical_json
from neoscope.statistics import token_lengths
from neoscope.storage.store import Store

LISTED_DOCUMENTS = 1000
SUM = 1 << 128


class ObjectSum:
    """How many objects, and the sum of a digest of each one's key, size and tag, modulo 2^128.

    It is the same in any order, so that a listing, which has another one than the records, is held against
    them in no memory. Two sets of objects that differ have the same sum once in 2^128.
    """

    def __init__(self) -> None:
        self.count = self.total = 0

    def add(self, key: str, size: int, tag: str | None) -> None:
        self.count += 1
        self.total = (
            self.total + xxhash.xxh3_128_intdigest(f"{key}\n{size}\n{tag}".encode())
        ) % SUM

    def merge(self, other: ObjectSum) -> None:
        """Add the objects of another sum."""
        self.count += other.count
        self.total = (self.total + other.total) % SUM

    def value(self) -> tuple[int, str]:
        """The count, and the sum in 32 hexadecimal digits."""
        return self.count, f"{self.total:032x}"


class _Array:
    """One array's part of a roll-up."""

    def __init__(self) -> None:
        self.size = 0
        self.digest = xxhash.xxh3_128()
        self.sum = ObjectSum()
        self.summary: Summary | None = None

    def add(self, entry: dict[str, Any], tags: dict[str, str | None]) -> None:
        for part in entry["chunks"]:
            self.size += part["size"]
            self.digest.update(bytes.fromhex(part["digest"]))
            self.sum.add(part["key"], part["size"], tags[part["key"]])
        summary = Summary(**entry["summary"])
        self.summary = self.summary + summary if self.summary else summary

    def to_json(self) -> dict[str, Any]:
        assert self.summary
        return {
            "stored_bytes": self.size,
            "chunks": self.sum.count,
            "digest": self.digest.hexdigest(),
            "summary": dataclasses.asdict(self.summary),
        }


class RollUp:
    """The sums of a partition's records added so far, which are in order."""

    def __init__(self, claim: dict[str, Any], partition: int) -> None:
        self._claim, self._partition = claim, partition
        self._records: list[str] = []
        self._last: dict[str, Any] = {"batches": 0}
        self._arrays: dict[str, _Array] = {}
        self._environments: dict[bytes, dict[str, Any]] = {}
        self._documents: list[dict[str, Any]] = []
        self._document_count = 0
        self._last_document: dict[str, Any] | None = None
        self._lengths: dict[int, int] = {}
        self._special_tokens = self._read_back = 0
        self._timings: dict[str, float] = {}

    def add(self, record: dict[str, Any]) -> None:
        """Take one record in."""
        self._records.append(record["content_digest"])
        self._last = record
        for name, entry in record["arrays"].items():
            self._arrays.setdefault(name, _Array()).add(entry, record["tags"])
        counts = {int(length): count for length, count in record["length_histogram"].items()}
        self._lengths = token_lengths.merge([self._lengths, counts])
        self._special_tokens += record["special_tokens"]
        self._read_back += len(record["read_back"])
        for step, seconds in record["timings"].items():
            self._timings[step] = self._timings.get(step, 0.0) + seconds
        self._environments.setdefault(canonical_json(record["environment"]), record["environment"])
        for span in record["documents"]:
            self._add_document(span)

    def _add_document(self, span: dict[str, Any]) -> None:
        """Each document counts once, although batches cut it."""
        if span["start"] and self._last_document:
            self._last_document["used"] = span["stop"]
            return
        document = {
            "id": span["id"],
            "tokens": span["tokens"],
            "used": span["stop"],
            "partition": self._partition,
        }
        self._last_document = document
        self._document_count += 1
        if len(self._documents) < LISTED_DOCUMENTS:
            self._documents.append(document)

    def content(self) -> dict[str, Any]:
        """What the document says."""
        names = kept(self._claim["spec"])
        return {
            "kind": "neoscope.rollup",
            "version": sealed_json.VERSION,
            "fingerprint": self._claim["fingerprint"],
            "partition": self._partition,
            "batches": self._last["batches"],
            "records": self._records,
            "arrays": {name: array.to_json() for name, array in self._arrays.items()},
            "documents": self._documents,
            "document_count": self._document_count,
            "last_document": self._last_document,
            "length_histogram": {str(n): count for n, count in self._lengths.items()},
            "special_tokens": self._special_tokens,
            "read_back": self._read_back,
            **{name: self._last[name] for name in names if name in self._last},
            "tags": {name: array.sum.value()[1] for name, array in self._arrays.items()},
            "environment": list(self._environments.values()),
            "timings": self._timings,
        }


def make_rollup(store: Store, claim: dict[str, Any], partition: int) -> dict[str, Any]:
    """The roll-up of a partition that is recorded to its end, from its records, put where none says the
    same. Raises CheckError where a record is missing or damaged."""
    there = stored_batch_counts(store, [partition]).get(partition, [])
    batches = there[-1] if there else 0
    if there and there != record_counts(claim["spec"], batches):
        raise CheckError(
            f"{store.url}/{RECORDS} lacks records of partition {partition}: delete the run"
        )
    made = RollUp(claim, partition)
    for record in each_record(store, claim, {partition: batches}):
        made.add(record)
    body, key = sealed_json.dump("rollup", made.content()), rollup_key(partition)
    mine = sealed_json.load("rollup", body, key)
    try:
        store.create(key, body)
    except FileExistsError:
        theirs = read_rollup(store, claim, partition)
        if theirs is None or theirs["content_digest"] != mine["content_digest"]:
            store.put(key, body)
    return mine


def ended_partitions(store: Store) -> set[int]:
    """The partitions that have a roll-up, damaged or not; one listing."""
    found = (ROLLUP_KEY.fullmatch(item.key) for item in store.listing(ROLLUPS))
    return {int(match[1]) for match in found if match}


def read_rollup(store: Store, claim: dict[str, Any], partition: int) -> dict[str, Any] | None:
    """The roll-up of a partition; None where there is none, or one that must be made again."""
    key = rollup_key(partition)
    body = store.get(key, sealed_json.intact)
    if body is None or not sealed_json.intact(body):
        return None
    found = sealed_json.load("rollup", body, f"{store.url}/{key}")
    own = (found["fingerprint"], found["partition"]) == (claim["fingerprint"], partition)
    return found if own else None
