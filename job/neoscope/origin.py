"""A committed run as something to take from: what it recorded, and objects that are held against it.

In: a store. Out: the run's documents, and the bytes and values of its objects, each checked as it is
read. It does not know where they go.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy.typing as npt

from neoscope import chunks
from neoscope.arrays import GROUP
from neoscope.errors import CheckError
from neoscope.records import VOCABULARY
from neoscope.status import committed
from neoscope.storage import Store
from neoscope.verify import (
    Expected,
    Find,
    expected_chunks,
    held_against,
    of_another_run,
    read_documents,
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """A committed run: its documents, what every chunk must be, and the digests of other objects, which
    are SHA-256 (64 digits) or xxh3-128 (32)."""

    store: Store
    claim: dict[str, Any]
    manifest: dict[str, Any]
    expected: dict[str, Expected]
    digests: dict[str, str]

    def find(self, key: str, body: memoryview | None) -> Find | None:
        """What is wrong with an object, if anything, by the digest that the run recorded of it. The
        documents that carry digests themselves are not looked into."""
        if key in self.expected:
            values = held_against(key, body, self.expected[key])
            return values if isinstance(values, Find) else None
        if body is None:
            return Find(key, "is missing")
        digest = self.digests.get(key)
        if digest is None or digest == _digest(body, len(digest)):
            return None
        return Find(key, "is not the one that was recorded")

    def read(self, key: str) -> memoryview:
        """The bytes of an object, held against its digest. Raises CheckError where they do not fit, or
        there are none."""
        body = self.store.read(key)
        find = self.find(key, body)
        if find is not None or body is None:
            raise self._bad(find or Find(key, "is missing"))
        return body

    def values(self, key: str) -> npt.NDArray[Any]:
        """The values of a chunk, held against its record. Raises CheckError as `read` does."""
        values = held_against(key, self.store.read(key), self.expected[key])
        if isinstance(values, Find):
            raise self._bad(values)
        return values

    def attributes(self, name: str) -> dict[str, Any]:
        """The Zarr attributes of an array, or of the group where `name` is empty."""
        key = "/".join(part for part in (GROUP, name, "zarr.json") if part)
        attributes: dict[str, Any] = json.loads(bytes(self.read(key)))["attributes"]
        return attributes

    def _bad(self, find: Find) -> CheckError:
        return CheckError(f"{self.store.url}/{find}")


def _digest(body: memoryview, digits: int) -> str:
    return hashlib.sha256(body).hexdigest() if digits == 64 else chunks.bytes_digest(body)


def open_origin(store: Store) -> Origin:
    """Raises InputError where the run is not committed, CheckError where its documents are not sound."""
    committed(store)
    claim, manifest, records = read_documents(store)
    for find in of_another_run(claim, manifest, records):
        raise CheckError(f"{store.url}/{find}")
    statistics = manifest.get("statistics", {}).get("objects", {})
    partitions = [record["statistics"] for record in records if "statistics" in record]
    digests = {
        VOCABULARY: claim["tokenizer"]["vocabulary_digest"],
        **manifest["zarr"],
        **{key: entry["sha256"] for key, entry in statistics.items()},
        **{entry["key"]: entry["digest"] for entry in partitions},
    }
    return Origin(store, claim, manifest, expected_chunks(claim, records), digests)
