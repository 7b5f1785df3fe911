"""The commit: from claim and records to the Zarr metadata and the manifest.

In: a run whose partitions are all recorded to the end. Out: `zarr.json` files and last
`manifest.json`, a pure function of claim and records but for timings and environment, so that
workers who race to commit write the same. It reads a roll-up of each partition, and of the chunks a
listing; its memory does not grow with the batches. It does not know how the values were computed.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from neoscope.errors import ConflictError, InputError
from neoscope.format import sealed_json
from neoscope.format.layout import MANIFEST, PARTITION_TOKEN_SUMS, merged_key, record_key
from neoscope.format.manifest import manifest_content, read_manifest
from neoscope.format.rollups import ended_partitions, make_rollup, read_rollup
from neoscope.format.states import clear_superseded
from neoscope.format.token_sums import layer_entry, merged_layers
from neoscope.format.totals import Totals
from neoscope.pipeline.object_check import Recorded, check_objects, recorded_chunks
from neoscope.storage.integrity import same
from neoscope.storage.store import Store, concurrent_map

ROLLUPS_AT_A_TIME = 4  # which are read and parsed; each holds a digest of every record


def commit(store: Store, claim: dict[str, Any]) -> dict[str, Any] | None:
    """Commit the run and return its manifest; None while a partition is not recorded to the end.

    Raises CheckError where an object is missing or not the recorded one, ConflictError where a
    manifest that says something else is already there.
    """
    began = time.perf_counter()
    spec, totals = claim["spec"], Totals(claim)
    if not _all_ended(store, claim):
        return None
    recorded: list[Recorded] = []
    for rollup in concurrent_map(
        lambda partition: (
            read_rollup(store, claim, partition) or make_rollup(store, claim, partition)
        ),
        range(spec["partitions"]),
        ROLLUPS_AT_A_TIME,
    ):
        totals.add(rollup)
        recorded.append(recorded_chunks(rollup))
    if not any(totals.batches):
        size = spec["sequences"] * spec["positions"]
        raise InputError(
            f"the text fills no batch of {size:,} tokens: give more text, or lower --sequences or "
            f"--positions, and first: neoscope delete {store.url}"
        )
    check_objects(store, claim, recorded)
    manifest, documents = manifest_content(store, claim, totals)
    if spec[PARTITION_TOKEN_SUMS] and totals.lengths:
        manifest[PARTITION_TOKEN_SUMS] = _put_token_sums(store, claim, totals)
    manifest["timings"] = {**totals.timings, "commit": time.perf_counter() - began}
    body = sealed_json.dump("manifest", manifest)
    clear_superseded(store, claim, totals.batches)
    # No reader opens anything before all values are there.
    for metadata in (False, True):
        keys = [key for key in documents if key.endswith("zarr.json") == metadata]
        for _ in concurrent_map(lambda key: _create_same(store, key, documents[key]), keys):
            pass
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
    tokens = sum(totals.lengths.values())
    for sums in merged_layers(store, claim, totals.states, tokens):
        key, body = merged_key(sums.layer), sums.dump()
        _create_same(store, key, body)
        entry["objects"][key] = layer_entry(body)
        entry["cells"] = len(sums.token)
        entry["sums_of"] = "values" if sums.weight is None else "inputs"
    return entry


def _all_ended(store: Store, claim: dict[str, Any]) -> bool:
    """Whether every partition has a roll-up, or is recorded to its end by a worker that was killed before
    it has put one."""
    there, batches = ended_partitions(store), claim["spec"]["batches"]
    without = [each for each in range(claim["spec"]["partitions"]) if each not in there]

    def ended(partition: int) -> bool:
        return store.find(record_key(partition, batches)) is not None

    # Most often the first is still being made.
    return all(map(ended, without[:1])) and all(concurrent_map(ended, without[1:]))


def _create_same(store: Store, key: str, body: bytes) -> None:
    try:
        store.create(key, body)
    except FileExistsError:
        if store.get(key, functools.partial(same, body)) != body:
            raise ConflictError(
                f"{store.url}/{key} is already there and says something else: delete the run"
            ) from None
