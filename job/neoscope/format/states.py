"""What is kept of each partition: the cumulative state of each of its statistics, up to its last record.

In: states as bytes, claim and records. Out: objects, and the way back from them. It does not know what a
state holds, nor how it was computed.

A partition has one object for each kind of statistics, `statistics/PARTITION-BATCHES.safetensors` and
`neurons/PARTITION-BATCHES.safetensors`, which its last record names. Those before are deleted once the
record is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from neoscope.errors import CheckError, InputError
from neoscope.format import chunks, sealed_json
from neoscope.format.layout import PARTITION_NEURONS, PARTITION_STATISTICS, STATE_KEY, state_key
from neoscope.format.records import last_record, put_unrecorded, recorded_otherwise
from neoscope.storage.store import Store

STATISTICS_NAMES = (PARTITION_STATISTICS, PARTITION_NEURONS)


def kept(spec: Mapping[str, Any]) -> list[str]:
    """The names of the statistics that a run of this spec keeps."""
    return [name for name in STATISTICS_NAMES if spec[name]]


def put_states(
    store: Store, partition: int, batches: int, states: Mapping[str, bytes], record: str
) -> dict[str, Any]:
    """Store a partition's states by name, which the record with the key `record` will name; their
    entries there.

    Where another worker has put that record already, nothing is stored: what it names may be
    superseded and deleted, and what is put there now would stay. Raises CheckError where that worker
    has recorded other states.
    """
    if not states:
        return {}
    there = store.get(record, sealed_json.intact)
    recorded = None
    if there is not None:
        recorded = sealed_json.load("record", there, f"{store.url}/{record}")
    entries = {}
    for name, body in states.items():
        key = state_key(name, partition, batches)
        entries[name] = {"key": key, "size": len(body), "digest": chunks.bytes_digest(body)}
        if recorded is None:
            put_unrecorded(store, key, body, record)
        elif recorded[name] != entries[name]:
            raise recorded_otherwise(store, key)
    return entries


def last_state(
    store: Store,
    claim: dict[str, Any],
    partition: int,
    stored: dict[int, list[int]] | None = None,
) -> tuple[dict[str, Any] | None, dict[str, bytes]]:
    """A partition's last record and the states up to it by name, None and nothing where there is no
    record. `stored` is what
    `stored_batch_counts` has found just now."""
    record = last_record(store, claim, partition, stored)
    while record:
        try:
            return record, {name: read_state(store, record, name) for name in kept(claim["spec"])}
        except FileNotFoundError as error:
            # Another worker on the partition may have gone on meanwhile, and deleted them.
            before, record = record, last_record(store, claim, partition)
            if record and record["batches"] == before["batches"]:
                raise missing(store, str(error)) from None
    return None, {}


def read_state(store: Store, record: dict[str, Any], name: str) -> bytes:
    """The state that a record names. Raises FileNotFoundError where the object is not there,
    CheckError where it is not the recorded one."""
    entry = record[name]
    body = store.get(entry["key"], lambda body: chunks.bytes_digest(body) == entry["digest"])
    if body is None:
        raise FileNotFoundError(entry["key"])
    if chunks.bytes_digest(body) != entry["digest"]:
        raise CheckError(
            f"{store.url}/{entry['key']} is not the one that was recorded: delete the run and run it again"
        )
    return body


def missing(store: Store, key: str) -> CheckError:
    return CheckError(f"{store.url}/{key} is missing: delete the run and run it again")


def clear_superseded(store: Store, spec: dict[str, Any], batches: list[int]) -> None:
    """Delete what workers that were killed left of a run whose partitions have ended with so many `batches`:
    states that are not the last; by one listing of each kind. Without the permission they stay: the
    records name them."""
    for name in kept(spec):
        last = {state_key(name, each, count) for each, count in enumerate(batches)}
        there = {item.key for item in store.objects(name) if STATE_KEY.fullmatch(item.key)}
        with contextlib.suppress(InputError):
            store.delete(sorted(there - last))
