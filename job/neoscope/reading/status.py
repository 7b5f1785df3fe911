"""How far a run is: from its manifest, or from listings of its records.

In: a store. Out: batches by partition, and whether the run is committed. It does not know whether
what is stored is right; that is `verify`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from neoscope.errors import InputError
from neoscope.format.layout import CLAIM, MANIFEST
from neoscope.format.manifest import read_manifest, stored_batches
from neoscope.format.records import read_claim, stored_batch_counts
from neoscope.format.rollups import ended_partitions
from neoscope.storage.store import Store


@dataclasses.dataclass(frozen=True)
class Status:
    """`stored` batches of each partition, of `batches` each; how many are `whole`, of which the text of some
    may have ended sooner; and whether there is a manifest."""

    url: str
    stored: list[int]
    batches: int
    whole: int
    committed: bool

    @property
    def line(self) -> str:
        total = self.batches * len(self.stored)
        state = "committed" if self.committed else "not committed"
        return (
            f"{sum(self.stored)} of {total} batches, "
            f"{self.whole} of {len(self.stored)} partitions whole, {state}"
        )


def status(store: Store) -> Status:
    """Raises InputError where there is no run."""
    claim = read_claim(store)
    if claim is None:
        raise InputError(f"there is no run at {store.url}: no {CLAIM}")
    spec = claim["spec"]
    partitions, batches, stops = (
        range(spec["partitions"]),
        spec["batches"],
        spec["text_end"] == "stop",
    )
    if not stops and store.find(MANIFEST):
        return Status(store.url, [batches] * len(partitions), batches, len(partitions), True)
    if stops and (manifest := read_manifest(store)):
        return Status(store.url, stored_batches(manifest), batches, len(partitions), True)
    found = stored_batch_counts(store, partitions)
    stored = [found.get(partition, [0])[-1] for partition in partitions]
    ended = ended_partitions(store) if stops else set[int]()
    whole = sum(count == batches or each in ended for each, count in enumerate(stored))
    return Status(store.url, stored, batches, whole, False)


def committed(store: Store) -> dict[str, Any]:
    """The manifest of a run. Raises InputError where it is not committed, saying how far it is."""
    manifest = read_manifest(store)
    if manifest is None:
        raise InputError(
            f"the run at {store.url} is not whole: {status(store).line}; finish it first"
        )
    return manifest
