"""A committed run as something to take from: what it recorded, and values that are held against it.

In: a store. Out: the run's documents, and the values of its chunks, each checked as it is read. It
does not know where they go.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import numpy.typing as npt

from neoscope.arrays import GROUP
from neoscope.errors import CheckError
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
    """A committed run: its documents, and what every chunk must be, by its key."""

    store: Store
    claim: dict[str, Any]
    manifest: dict[str, Any]
    expected: dict[str, Expected]

    def read(self, key: str) -> memoryview:
        """The bytes of an object as they are stored; those of a chunk are held against its record.

        Raises CheckError where they are not as recorded, or not there.
        """
        body = self.store.read(key)
        if body is None:
            raise self._bad(Find(key, "is missing"))
        if key in self.expected:
            self._checked(key, body)
        return body

    def values(self, key: str) -> npt.NDArray[Any]:
        """The values of a chunk, held against its record. Raises CheckError as `read` does."""
        return self._checked(key, self.store.read(key))

    def attributes(self, name: str) -> dict[str, Any]:
        """The Zarr attributes of an array, or of the group where `name` is empty."""
        key = "/".join(part for part in (GROUP, name, "zarr.json") if part)
        body = self.store.get(key) or b""
        if hashlib.sha256(body).hexdigest() != self.manifest["zarr"][key]:
            raise self._bad(Find(key, "is not the one that the manifest names"))
        attributes: dict[str, Any] = json.loads(body)["attributes"]
        return attributes

    def _checked(self, key: str, body: memoryview | None) -> npt.NDArray[Any]:
        values = held_against(key, body, self.expected[key])
        if isinstance(values, Find):
            raise self._bad(values)
        return values

    def _bad(self, find: Find) -> CheckError:
        return CheckError(f"{self.store.url}/{find}")


def open_origin(store: Store) -> Origin:
    """Raises InputError where the run is not committed, CheckError where its documents are not sound."""
    committed(store)
    claim, manifest, records = read_documents(store)
    for find in of_another_run(claim, manifest, records):
        raise CheckError(f"{store.url}/{find}")
    return Origin(store, claim, manifest, expected_chunks(claim, records))
