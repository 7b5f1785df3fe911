"""Claim and records: what a run is, and how far each partition is stored.

In: what was resolved and stored. Out: the sealed JSON documents `run.json` and `records/*.json`, put
where there is none yet. It does not know how values are computed, nor the commit.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from neoscope import chunks, sealed
from neoscope.batch import Batch
from neoscope.chunks import StoredChunk
from neoscope.errors import CheckError, ConflictError, UnavailableError
from neoscope.spec import RunSpec, differing_fields
from neoscope.storage import Store

CLAIM = "run.json"
VOCABULARY = "vocabulary.json"
RECORDS = "records"


def record_key(partition: int, batches: int) -> str:
    """The key of the record that `batches` batches of a partition are stored."""
    return f"{RECORDS}/{partition:05d}-{batches:08d}.json"


def read_claim(store: Store, spec: RunSpec | None = None) -> dict[str, Any] | None:
    """The claim of the run at a place, None where there is none.

    Raises ConflictError where it is of another spec than the one given, naming the fields.
    """
    body = store.get(CLAIM)
    if body is None:
        return None
    claim = sealed.load("run", body, f"{store.url}/{CLAIM}")
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


def put_claim(
    store: Store,
    spec: RunSpec,
    *,
    resolved: dict[str, Any],
    arrays: dict[str, Any],
    environment: dict[str, Any],
) -> dict[str, Any]:
    """Claim the place for a spec, or adopt the claim that another worker of the same spec put first.

    The claim is put a second time, which the store must refuse: the commit depends on that.
    """
    body = sealed.dump(
        "run",
        {
            "fingerprint": spec.fingerprint,
            "spec": spec.to_json(),
            **resolved,
            "arrays": arrays,
            "environment": environment,
        },
    )
    try:
        store.create(CLAIM, body)
    except FileExistsError:
        claim = read_claim(store, spec)
        if claim is None:
            raise UnavailableError(f"{store.url}/{CLAIM} vanished while it was read") from None
        return claim
    try:
        store.create(CLAIM, body)
    except FileExistsError:
        return sealed.load("run", body, CLAIM)
    store.delete([CLAIM])
    raise ConflictError(
        f"the storage of {store.url} puts over an object in spite of `If-None-Match: *`: neoscope "
        "needs conditional puts to keep two workers apart; give storage that honours them"
    )


def check_resolved(store: Store, claim: dict[str, Any], resolved: dict[str, Any]) -> None:
    """Raise ConflictError where model, tokenizer or text are not those that the claim names."""
    for part in ("model", "tokenizer", "text"):
        fields = differing_fields(resolved[part], claim[part])
        if fields:
            raise ConflictError(
                f"the {part} is no longer the one that the run at {store.url} began with: "
                + "; ".join(fields)
                + f"; bring it back, or begin anew after: neoscope delete {store.url}"
            )


def put_record(
    store: Store,
    claim: dict[str, Any],
    *,
    partition: int,
    batches: int,
    arrays: dict[str, list[StoredChunk]],
    batch: Batch,
    histogram: dict[int, int],
    special: int,
    read_back: dict[str, str],
    environment: dict[str, Any],
    timings: dict[str, float],
) -> None:
    """Say that a partition is stored up to `batches`. A record that is there must say the same."""
    key = record_key(partition, batches)
    body = sealed.dump(
        "record",
        {
            "fingerprint": claim["fingerprint"],
            "partition": partition,
            "batches": batches,
            "arrays": {name: _array_record(parts) for name, parts in arrays.items()},
            "documents": [dataclasses.asdict(span) for span in batch.documents],
            "position": batch.position,
            "length_histogram": {str(length): count for length, count in histogram.items()},
            "special_tokens": special,
            "read_back": read_back,
            "tags": {part.key: part.tag for parts in arrays.values() for part in parts},
            "environment": environment,
            "timings": timings,
        },
    )
    try:
        store.create(key, body)
    except FileExistsError:
        mine = sealed.load("record", body, key)
        theirs = sealed.load("record", store.get(key) or b"", f"{store.url}/{key}")
        if mine["content_digest"] != theirs["content_digest"]:
            raise CheckError(
                f"{store.url}/{key} already records other values for this batch: two unlike machines "
                f"worked on partition {partition}; delete the run and use one kind of machine"
            ) from None


def _array_record(parts: list[StoredChunk]) -> dict[str, Any]:
    """The stored chunks of one batch of one array, in C order of the grid, and what they hold."""
    summary = parts[0].summary
    for part in parts[1:]:
        summary = summary + part.summary
    return {
        "chunks": [{"key": part.key, "size": part.size, "digest": part.digest} for part in parts],
        "summary": dataclasses.asdict(summary),
    }


def read_records(store: Store, claim: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Every partition's records in order of batches, read and checked."""
    keys = sorted(item.key for item in store.objects(RECORDS) if item.key.endswith(".json"))
    records: dict[int, list[dict[str, Any]]] = {}
    for key in keys:
        record = sealed.load("record", store.get(key) or b"", f"{store.url}/{key}")
        if record["fingerprint"] != claim["fingerprint"] or key != record_key(
            record["partition"], record["batches"]
        ):
            raise CheckError(f"{store.url}/{key} belongs to another run or place: delete the run")
        records.setdefault(record["partition"], []).append(record)
    return records


def array_summary(records: list[dict[str, Any]], name: str) -> chunks.Summary:
    """What an array's values are like over all its records."""
    summaries = [chunks.Summary(**record["arrays"][name]["summary"]) for record in records]
    total = summaries[0]
    for summary in summaries[1:]:
        total = total + summary
    return total
