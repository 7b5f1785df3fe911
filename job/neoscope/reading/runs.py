"""The runs under a place, and what each is.

In: a store. Out: an entry for every run in it, or in its folders down to a depth. It reads a claim and a
manifest of each, and of what is not committed lists the records; no array. What `neoscope pull` left of a
selection is no run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from neoscope.errors import CheckError
from neoscope.format.layout import CLAIM
from neoscope.format.manifest import read_manifest, stored_batches, text_name
from neoscope.format.records import read_claim, stored_batch_counts
from neoscope.format.states import STATISTICS_NAMES
from neoscope.storage.store import Store, concurrent_map

OURS = b'"kind": "neoscope.run"'


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run: `stored` of its `batches` in all partitions; `tokens` that it has when it is whole, and
    `size`, the bytes of its arrays and statistics once it is. Of a run whose claim or manifest is
    damaged only the URL, and what is wrong."""

    url: str
    committed: bool = False
    stored: int = 0
    batches: int = 0
    model: str = ""
    weights: str = ""
    text: str = ""
    tokens: int = 0
    size: int | None = None
    damage: str | None = None

    @property
    def state(self) -> str:
        if self.damage:
            return "damaged"
        return "committed" if self.committed else f"{self.stored:,} of {self.batches:,} batches"


def find_runs(store: Store, depth: int) -> Iterator[Entry]:
    """The run at a place, or those in its folders, by URL; `depth` folders deep. Within a run none are
    looked for. Raises InputError, UnavailableError as the store does."""
    level = [store]
    for remaining in range(depth, -1, -1):
        entries = list(concurrent_map(_entry, level))
        yield from filter(None, entries)
        others = [place for place, entry in zip(level, entries, strict=True) if entry is None]
        if not remaining or not others:
            return
        level = [child for found in concurrent_map(Store.children, others) for child in found]


def _entry(store: Store) -> Entry | None:
    """The run at a place; None where there is none, or a file of that name which is another's."""
    if OURS not in (store.get(CLAIM) or b""):
        return None
    try:
        return _described(store)
    except CheckError as error:
        return Entry(store.url, damage=str(error))


def _described(store: Store) -> Entry | None:
    claim = read_claim(store)
    if claim is None:
        return None  # deleted at this moment
    spec, manifest = claim["spec"], read_manifest(store)
    batches = spec["batches"] * spec["partitions"]
    counts = {} if manifest else stored_batch_counts(store, range(spec["partitions"]))
    return Entry(
        store.url,
        manifest is not None,
        sum(stored_batches(manifest) if manifest else (each[-1] for each in counts.values())),
        batches,
        claim["model"]["name"],
        claim["model"]["weights"],
        text_name(claim["text"]),
        manifest["tokens"]["count"]
        if manifest
        else batches * spec["sequences"] * spec["positions"],
        _size(manifest) if manifest else None,
    )


def _size(manifest: dict[str, Any]) -> int:
    """Stored bytes of arrays and statistics."""
    sizes = [entry["stored_bytes"] for entry in manifest["arrays"].values()]
    for name in STATISTICS_NAMES:
        sizes += [each["size"] for each in manifest.get(name, {"objects": {}})["objects"].values()]
    return sum(sizes)
