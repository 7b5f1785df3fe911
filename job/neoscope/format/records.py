"""Claim and records: what a run is, and how far each partition is stored.

In: what was resolved and stored. Out: the sealed JSON documents `run.json` and `records/*.json`, put
where there is none yet. It does not know how values are computed, nor the commit.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from neoscope.errors import CheckError, ConflictError
from neoscope.format import sealed_json
from neoscope.format.layout import CLAIM, RECORD_KEY, RECORDS, record_key
from neoscope.spec import RunSpec, differing_fields
from neoscope.storage.integrity import Body, same
from neoscope.storage.store import REQUESTS_IN_FLIGHT, Store, concurrent_map

# Where no activations are stored; a record of each batch would be most of the work.
BATCHES_A_RECORD = 64


def record_counts(spec: dict[str, Any], batches: int | None = None) -> list[int]:
    """The numbers of stored batches at which a partition of so many `batches` (by default all that the
    spec asks for) puts a record, ascending: after every batch, and with --no-arrays after every 64 and the
    last."""
    step, batches = _batches_a_record(spec), batches or spec["batches"]
    return [*range(step, batches, step), batches]


def record_count_of(spec: dict[str, Any], batch: int, batches: int) -> int:
    """Which of `record_counts` is that of the record that names a batch, counted from 0."""
    step = _batches_a_record(spec)
    return min((batch // step + 1) * step, batches)


def _batches_a_record(spec: dict[str, Any]) -> int:
    return 1 if spec["arrays"] else BATCHES_A_RECORD


def read_claim(store: Store, spec: RunSpec | None = None) -> dict[str, Any] | None:
    """The claim of the run in a store, None where there is none.

    Raises ConflictError where it is of another spec than the one given, naming the fields.
    """
    body = store.get(CLAIM, sealed_json.intact)
    if body is None:
        return None
    claim = sealed_json.load("run", body, f"{store.url}/{CLAIM}")
    if spec is not None and claim["fingerprint"] != spec.fingerprint:
        theirs = {
            **claim["spec"],
            "text": [{k: f[k] for k in ("size", "digest")} for f in claim["spec"]["text"]],
        }
        raise ConflictError(
            f"{store.url} already holds another run: "
            + "; ".join(differing_fields(spec.identity(), theirs))
            + f"; give another output, or first: neoscope delete {store.url}"
        )
    return claim


def check_resolved(store: Store, claim: dict[str, Any], resolved: dict[str, Any]) -> None:
    """Raise ConflictError where model, tokenizer or text are not those that the claim names."""
    for part in ("model", "tokenizer", "text"):
        fields = differing_fields(resolved[part], claim[part])
        if fields:
            raise ConflictError(
                f"the {part} is no longer the one that the run at {store.url} began with: "
                + "; ".join(fields)
                + f"; bring it back, or start over after: neoscope delete {store.url}"
            )


def put_record(
    store: Store, claim: dict[str, Any], partition: int, batches: int, content: dict[str, Any]
) -> None:
    """Say that a partition is stored up to `batches`. A record that is there must say the same."""
    key = record_key(partition, batches)
    head = {"fingerprint": claim["fingerprint"], "partition": partition, "batches": batches}
    body = sealed_json.dump("record", {**head, **content})
    try:
        store.create(key, body)
    except FileExistsError:
        mine = sealed_json.load("record", body, key)
        found = store.get(key, sealed_json.intact) or b""
        if not sealed_json.intact(found):  # one that nobody can go on from, whoever put it
            store.put(key, body)
            return
        theirs = sealed_json.load("record", found, f"{store.url}/{key}")
        if mine["content_digest"] != theirs["content_digest"]:
            raise CheckError(
                f"{store.url}/{key} already records other values for this batch: two unlike machines "
                f"worked on partition {partition}; delete the run and use one kind of machine"
            ) from None


def put_unrecorded(store: Store, key: str, body: Body, record: str) -> str | None:
    """Put an object that the record with the key `record` will name; its tag."""
    try:
        return store.create(key, body)
    except FileExistsError:
        return _resolve_existing(store, key, body, record)


def _resolve_existing(store: Store, key: str, body: Body, record: str) -> str | None:
    """Put an object where there is one, left by an interrupted start or made by another
    process at this moment; its tag.

    The same bytes stay. Other bytes are put over, but not once `record`, the record of their batch,
    is there: CheckError then. Where it came while ours were on their way, what it records is put
    back, so that no worker spoils what another has committed.
    """
    there = store.read(key, functools.partial(same, body))
    if there is not None and same(body, there):
        with contextlib.suppress(FileNotFoundError):
            return store.tag(key)
        there = None
    if there is None:
        # Statistics that a worker ahead of this one has superseded at this moment: put again, and
        # deleted again by this worker's next record, or by the commit.
        return store.put(key, body)
    if store.get(record) is None:
        tag = store.put(key, body)
        if store.get(record) is None:
            return tag
        store.put(key, there)
    raise recorded_otherwise(store, key)


def recorded_otherwise(store: Store, key: str) -> CheckError:
    """What is said where another worker on the partition computes other bits."""
    return CheckError(
        f"{store.url}/{key} is recorded with other values than were computed here: two unlike "
        "machines work on one partition; delete the run and use one kind of machine"
    )


def stored_batch_counts(store: Store, partitions: Sequence[int]) -> dict[int, list[int]]:
    """How many batches each record of these partitions says are stored, ascending, by partition."""
    wanted, found = set(partitions), dict[int, list[int]]()
    # Of a folder every listing goes through all files.
    size = len(partitions) if store.is_local else -(-len(partitions) // REQUESTS_IN_FLIGHT)
    parts = [partitions[first : first + size] for first in range(0, len(partitions), size or 1)]

    def keys_of(part: Sequence[int]) -> list[str]:
        after, until = record_key(min(part), 0), record_key(max(part) + 1, 0)
        return [item.key for item in store.listing(RECORDS, after, until)]

    for keys in concurrent_map(keys_of, parts):
        for key in sorted(keys):
            match = RECORD_KEY.fullmatch(key)
            if match and int(match[1]) in wanted:
                found.setdefault(int(match[1]), []).append(int(match[2]))
    return found


def last_record(
    store: Store,
    claim: dict[str, Any],
    partition: int,
    stored: dict[int, list[int]] | None = None,
) -> dict[str, Any] | None:
    """All the state that a partition has: its last record, None where there is none. `stored` is what
    `stored_batch_counts` has found just now."""
    found = stored_batch_counts(store, [partition]) if stored is None else stored
    counts = found.get(partition)
    return read_record(store, claim, partition, counts[-1]) if counts else None


def each_record(
    store: Store, claim: dict[str, Any], partitions: Mapping[int, int]
) -> Iterator[dict[str, Any]]:
    """Every record of partitions that have so many batches, in order, many asked for at a time and some
    dozens in memory. Raises CheckError for a bad one."""
    each = (
        (partition, count)
        for partition, batches in partitions.items()
        for count in (record_counts(claim["spec"], batches) if batches else [])
    )
    return concurrent_map(lambda place: read_record(store, claim, *place), each)


def read_record(
    store: Store, claim: dict[str, Any], partition: int, batches: int
) -> dict[str, Any]:
    """One record, checked. Raises CheckError where it is damaged or of another run."""
    key = record_key(partition, batches)
    record = sealed_json.load(
        "record", store.get(key, sealed_json.intact) or b"", f"{store.url}/{key}"
    )
    found = (record["fingerprint"], record["partition"], record["batches"])
    if found != (claim["fingerprint"], partition, batches):
        raise CheckError(f"{store.url}/{key} belongs to another run or partition: delete the run")
    return record
