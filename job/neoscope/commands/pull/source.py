"""A committed run as something to take from: the bytes and values of its objects, each held against what
the run recorded of it as it is read.

In: a store. Out: bytes, values, attributes. It does not know where they go.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy.typing as npt

from neoscope.errors import CheckError
from neoscope.format.layout import ACTIVATIONS
from neoscope.reading.inventory import Inventory, Problem, read_chunk, read_inventory
from neoscope.reading.status import committed
from neoscope.storage.store import Store


@dataclasses.dataclass(frozen=True)
class VerifiedSource:
    """A committed run and where it is."""

    store: Store
    run: Inventory

    def read(self, key: str) -> memoryview:
        """The bytes of an object. Raises CheckError where they are not those that were recorded."""
        body = self.store.read(key, self.run.fits(key))
        find = self.run.find(key, body)
        if find is not None or body is None:
            raise self._bad(find or Problem(key, "is missing"))
        return body

    def values(self, key: str) -> npt.NDArray[Any]:
        """The values of a chunk. Raises CheckError as `read` does."""
        values = read_chunk(self.store, key, self.run.chunk(key))
        if isinstance(values, Problem):
            raise self._bad(values)
        return values

    def attributes(self, name: str) -> dict[str, Any]:
        """The Zarr attributes of an array, or of the group where `name` is empty."""
        key = "/".join(part for part in (ACTIVATIONS, name, "zarr.json") if part)
        attributes: dict[str, Any] = json.loads(bytes(self.read(key)))["attributes"]
        return attributes

    def _bad(self, find: Problem) -> CheckError:
        return CheckError(f"{self.store.url}/{find}")


def open_verified_source(store: Store) -> VerifiedSource:
    """Raises InputError where the run is not committed, CheckError where claim or manifest is not sound."""
    committed(store)
    return VerifiedSource(store, read_inventory(store))
