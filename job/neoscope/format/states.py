"""What is kept of each partition: the cumulative state of each of its statistics, up to its last record.

In: states as bytes, claim and records. Out: objects, and the way back from them. It does not know what a
state holds, nor how it was computed.

A partition has one object for each kind of statistics, `statistics/PARTITION-BATCHES.safetensors` and
`neurons/PARTITION-BATCHES.safetensors`, and of sums by token, which are large, one for each layer,
`token-sums/PARTITION-BATCHES-LAYER.safetensors`. Its last record names them. Those before are deleted once
the record is there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from neoscope.errors import CheckError, InputError
from neoscope.format import chunks, sealed_json
from neoscope.format.layout import (
    PARTITION_NEURONS,
    PARTITION_STATISTICS,
    PARTITION_TOKEN_SUMS,
    STATE_KEY,
    state_folder,
    state_keys,
)
from neoscope.format.records import last_record, put_unrecorded, recorded_otherwise
from neoscope.storage.store import Store, concurrent_map

STATISTICS_NAMES = (PARTITION_STATISTICS, PARTITION_NEURONS, PARTITION_TOKEN_SUMS)


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
    recorded = _recorded(store, record)

    def put(name: str) -> dict[str, Any]:
        (key,) = state_keys(name, partition, batches, ())
        return _put(store, key, states[name], record, recorded and recorded[name])

    return dict(zip(states, concurrent_map(put, states), strict=True))


def put_token_sums(
    store: Store,
    partition: int,
    batches: int,
    bodies: Iterable[bytes],
    layers: Sequence[int],
    record: str,
) -> dict[str, Any]:
    """As `put_states`, of the sums by token, the body of each of `layers` made when it is its turn."""
    recorded = _recorded(store, record)
    theirs = recorded[PARTITION_TOKEN_SUMS] if recorded else [None] * len(layers)
    keys = state_keys(PARTITION_TOKEN_SUMS, partition, batches, layers)
    each = zip(keys, bodies, theirs, strict=True)
    return {PARTITION_TOKEN_SUMS: [_put(store, key, body, record, it) for key, body, it in each]}


def _recorded(store: Store, record: str) -> dict[str, Any] | None:
    """The record with this key, None where it is not put yet."""
    there = store.get(record, sealed_json.intact)
    return None if there is None else sealed_json.load("record", there, f"{store.url}/{record}")


def _put(
    store: Store, key: str, body: bytes, record: str, recorded: dict[str, Any] | None
) -> dict[str, Any]:
    """Put a body that is not `recorded` yet; its entry."""
    entry = {"key": key, "size": len(body), "digest": chunks.bytes_digest(body)}
    if recorded is None:
        put_unrecorded(store, key, body, record)
    elif recorded != entry:
        raise recorded_otherwise(store, key)
    return entry


def entries_of(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """What a record says of each object of the statistics with this name."""
    found = record[name]
    return found if isinstance(found, list) else [found]


def last_state(
    store: Store,
    claim: dict[str, Any],
    partition: int,
    stored: dict[int, list[int]] | None = None,
) -> tuple[dict[str, Any] | None, dict[str, list[bytes]]]:
    """A partition's last record and the objects of the states up to it by name, None and nothing where
    there is no record. `stored` is what `stored_batch_counts` has found just now."""
    record = last_record(store, claim, partition, stored)
    while record:
        try:
            return record, {
                name: [read_object(store, entry) for entry in entries_of(record, name)]
                for name in kept(claim["spec"])
            }
        except FileNotFoundError as error:
            # Another worker on the partition may have gone on meanwhile, and deleted them.
            before, record = record, last_record(store, claim, partition)
            if record and record["batches"] == before["batches"]:
                raise missing(store, str(error)) from None
    return None, {}


def read_state(store: Store, record: dict[str, Any], name: str) -> bytes:
    """The state that a record names, of statistics with one object; raises as `read_object`."""
    (entry,) = entries_of(record, name)
    return read_object(store, entry)


def read_object(store: Store, entry: dict[str, Any]) -> bytes:
    """The object that a record's entry names. Raises FileNotFoundError where it is not there,
    CheckError where it is not the recorded one."""
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


def clear_superseded(store: Store, claim: dict[str, Any], batches: list[int]) -> None:
    """Delete what workers that were killed left of a run whose partitions have ended with so many `batches`:
    states that are not the last; by one listing of each kind. Without the permission they stay: the
    records name them."""
    spec, layers = claim["spec"], claim["hook"]["layers"]
    for name in kept(spec):
        last = {
            key
            for each, count in enumerate(batches)
            for key in state_keys(name, each, count, layers)
        }
        folder = store.objects(state_folder(name))
        there = {item.key for item in folder if STATE_KEY.fullmatch(item.key)}
        with contextlib.suppress(InputError):
            store.delete(sorted(there - last))
