"""The commit: from claim and records to the Zarr metadata and the manifest.

In: a run whose partitions are all recorded to the end. Out: `zarr.json` files and last
`manifest.json`, a pure function of claim and records but for timings and environment, so that
workers who race to commit write the same. It does not know how the values were computed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from neoscope.errors import CheckError, ConflictError
from neoscope.format import chunks, sealed_json
from neoscope.format.arrays import schemas_of
from neoscope.format.layout import (
    ACTIVATIONS,
    MANIFEST,
    PARTITION_TOKEN_SUMS,
    RECORDS,
    merged_key,
)
from neoscope.format.manifest import manifest_content, read_manifest
from neoscope.format.records import each_record, record_counts, stored_batch_counts
from neoscope.format.states import clear_superseded
from neoscope.format.token_sums import layer_entry, merged_layers
from neoscope.format.totals import Totals
from neoscope.storage.integrity import same
from neoscope.storage.store import Store


def commit(store: Store, claim: dict[str, Any]) -> dict[str, Any] | None:
    """Commit the run and return its manifest; None while a partition is not recorded to the end.

    Raises CheckError where an object is missing or not the recorded one, ConflictError where a
    manifest that says something else is already there.
    """
    began = time.perf_counter()
    spec = claim["spec"]
    found = stored_batch_counts(store)
    whole = record_counts(spec)
    partitions = range(spec["partitions"])
    if any(found.get(partition, [0])[-1] != spec["batches"] for partition in partitions):
        return None
    for partition in partitions:
        if found[partition] != whole:
            raise CheckError(
                f"{store.url}/{RECORDS} lacks records of partition {partition}: delete the run"
            )
    check, totals = _object_check(store, claim), Totals(claim)
    for record in each_record(store, claim, partitions):
        check(record)
        totals.add(record)
    manifest, documents = manifest_content(store, claim, totals)
    if spec[PARTITION_TOKEN_SUMS] and totals.lengths:
        manifest[PARTITION_TOKEN_SUMS] = _put_token_sums(store, claim, totals)
    manifest["timings"] = {**totals.timings, "commit": time.perf_counter() - began}
    body = sealed_json.dump("manifest", manifest)
    clear_superseded(store, claim)
    # No reader opens anything before all values are there.
    for key in sorted(documents, key=lambda key: key.endswith("zarr.json")):
        _create_same(store, key, documents[key])
    try:
        store.create(MANIFEST, body)
    except FileExistsError:
        theirs = read_manifest(store)
        mine = sealed_json.load("manifest", body, MANIFEST)
        if theirs is None or theirs["content_digest"] != mine["content_digest"]:
            other = theirs["content_digest"] if theirs else "nothing"
            raise ConflictError(
                f"{store.url}/{MANIFEST} is already there and says something else: "
                f"content {other}, here {mine['content_digest']}; give another output"
            ) from None
        return theirs
    store.clear_temporary_files()
    return sealed_json.load("manifest", body, MANIFEST)


def _put_token_sums(store: Store, claim: dict[str, Any], totals: Totals) -> dict[str, Any]:
    """Put the sums by token of the run, with one layer's in memory at a time; the manifest's entry."""
    entry: dict[str, Any] = {"objects": {}}
    last, tokens = list(totals.last.values()), sum(totals.lengths.values())
    for sums in merged_layers(store, claim, last, tokens):
        key, body = merged_key(sums.layer), sums.dump()
        _create_same(store, key, body)
        entry["objects"][key] = layer_entry(body)
        entry["cells"] = len(sums.token)
        entry["sums_of"] = "values" if sums.weight is None else "inputs"
    return entry


def _create_same(store: Store, key: str, body: bytes) -> None:
    try:
        store.create(key, body)
    except FileExistsError:
        if store.get(key, functools.partial(same, body)) != body:
            raise ConflictError(
                f"{store.url}/{key} is already there and says something else: delete the run"
            ) from None


def _object_check(store: Store, claim: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """A check that every chunk that a record names is there as it was recorded, by one listing.

    The store's own tag tells an object that was put over after it was recorded; such a one is read
    and must have the recorded digest.
    """
    there = {item.key: item for item in store.objects(ACTIVATIONS)}
    schemas = schemas_of(claim)

    def check(record: dict[str, Any]) -> None:
        for name, entry in record["arrays"].items():
            for part in entry["chunks"]:
                key, item = part["key"], there.get(part["key"])
                if item is None or item.size != part["size"]:
                    found = "is missing" if item is None else f"has {item.size} bytes"
                    raise CheckError(
                        f"{store.url}/{key} {found}, recorded with {part['size']}: "
                        f"delete the run and run it again"
                    )
                holds = functools.partial(chunks.holds, schemas[name], part["digest"])
                if item.tag != record["tags"][key] and not holds(store.read(key, holds)):
                    raise CheckError(
                        f"{store.url}/{key} was put over with other values after it was recorded: "
                        "two unlike machines worked on one partition; delete the run"
                    )

    return check
