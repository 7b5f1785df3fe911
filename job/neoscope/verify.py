"""Every stored byte of a run, held against what claim, records and manifest say of it.

In: a store. Out: finds, each naming an object, what is wrong with it, and what to do. Nothing but the
report's bytes is left out. It does not compute the model; see `recompute`.

A checksum alone does not find a stale chunk or two chunks that changed places: every chunk is held
against the digest in the record of its batch. Zarr metadata and manifest are made again from claim
and records, and must be the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope import chunks, lengths, records, sealed, stored_statistics
from neoscope.arrays import TOKEN_IDS, TOKEN_LENGTH, ArraySchema
from neoscope.commit import MANIFEST, manifest_content, schemas_of
from neoscope.errors import CheckError, InputError
from neoscope.progress import Progress
from neoscope.storage import Store
from neoscope.totals import Totals

READERS = 8  # chunks in memory at a time
REPORT = "report.html"
AGAIN = "make the run anew (neoscope delete, then run)"


@dataclasses.dataclass(frozen=True)
class Find:
    """One thing that is not as it must be."""

    key: str
    problem: str
    remedy: str = AGAIN

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}; {self.remedy}"


@dataclasses.dataclass(frozen=True)
class Expected:
    """A chunk as its record says it is."""

    schema: ArraySchema
    size: int
    digest: str


def verify(store: Store, progress: Progress, held: Container[str] = ()) -> list[Find]:
    """Check every object of a committed run. Raises InputError where there is no run.

    `held` are the keys of chunks that have just been held against their records: they are not read.
    """
    there = {item.key: item.size for item in store.objects()}
    if records.CLAIM not in there and MANIFEST not in there:
        raise InputError(f"there is no run at {store.url}")
    if MANIFEST not in there:
        return [
            Find(MANIFEST, "is missing: the run is not committed", "run the same command again")
        ]
    try:
        claim, manifest, listed = read_documents(store)
    except CheckError as error:
        return [Find(store.url, str(error))]
    if others := list(of_another_run(claim, manifest, listed)):
        return others
    finds = list(_documents(store, claim, manifest, listed))
    expected = expected_chunks(claim, listed)
    cells = {r["statistics"]["key"]: r["statistics"]["digest"] for r in listed if "statistics" in r}
    known = {
        records.CLAIM,
        records.VOCABULARY,
        MANIFEST,
        REPORT,
        *manifest["zarr"],
        *manifest.get("statistics", {}).get("objects", {}),
        *manifest["records"],
        *cells,
        *expected,
    }
    for key in sorted(there.keys() - known):
        finds.append(Find(key, "does not belong to the run", "delete it, if nobody needs it"))
    for key in sorted(there.keys() & cells.keys()):  # superseded ones may have been left, or not
        if chunks.bytes_digest(store.get(key) or b"") != cells[key]:
            finds.append(Find(key, "is not the one that was recorded"))
    finds += _each_chunk(store, expected, there, held, progress)
    if not finds:
        finds += _tokens(store, claim, listed, expected)
    return finds


def read_documents(
    store: Store,
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Claim, manifest and every record of a committed run. Raises CheckError for a bad one."""
    claim = _sealed(store, "run", records.CLAIM)
    manifest = _sealed(store, "manifest", MANIFEST)
    partitions = range(claim["spec"]["partitions"])
    return claim, manifest, [r for p in partitions for r in read_records(store, claim, p)]


def _sealed(store: Store, kind: str, key: str) -> dict[str, Any]:
    return sealed.load(kind, store.get(key) or b"", f"{store.url}/{key}")


def read_records(store: Store, claim: dict[str, Any], partition: int) -> Iterator[dict[str, Any]]:
    """Every record of a partition of a committed run, in order. Raises CheckError for a bad one."""
    for batches in records.record_counts(claim["spec"]):
        yield records.read_record(store, claim, partition, batches)


def of_another_run(
    claim: dict[str, Any], manifest: dict[str, Any], listed: list[dict[str, Any]]
) -> Iterator[Find]:
    """Claim and records that are sound in themselves, but not those that the manifest was made of."""
    said = {records.CLAIM: manifest["claim"], **manifest["records"]}
    there = {records.CLAIM: claim["content_digest"]}
    for record in listed:
        there[records.record_key(record["partition"], record["batches"])] = record["content_digest"]
    for key in sorted(said.keys() | there.keys()):
        if said.get(key) != there.get(key):
            yield Find(key, "is not the one that the manifest names")


def _documents(
    store: Store,
    claim: dict[str, Any],
    manifest: dict[str, Any],
    listed: list[dict[str, Any]],
) -> Iterator[Find]:
    """Manifest, Zarr metadata and vocabulary against what claim and records make of them."""
    try:
        totals = Totals(claim)
        for record in listed:
            totals.add(record)
        content, made = manifest_content(store, claim, totals)
    except CheckError as error:
        yield Find(stored_statistics.FOLDER, str(error))
        return
    for field, value in content.items():
        if (
            field not in ("environment", "statistics")
            and json.loads(json.dumps(value)) != manifest[field]
        ):
            yield Find(MANIFEST, f"its {field} is not what the records say")
    for key in manifest["zarr"]:
        stored = store.get(key)
        if stored is None:
            yield Find(key, "is missing")
        elif stored != made[key]:
            yield Find(key, "is not the metadata that the run was committed with")
    if "statistics" in content:
        yield from _statistics(store, manifest["statistics"], content["statistics"]["arrays"])
    vocabulary = store.get(records.VOCABULARY)
    if vocabulary is None:
        yield Find(records.VOCABULARY, "is missing")
    elif chunks.bytes_digest(vocabulary) != claim["tokenizer"]["vocabulary_digest"]:
        yield Find(records.VOCABULARY, "is not the one that the run was made with")


def expected_chunks(claim: dict[str, Any], listed: list[dict[str, Any]]) -> dict[str, Expected]:
    """Every chunk by its key, as the records say it is."""
    return {
        part["key"]: Expected(schema, part["size"], part["digest"])
        for name, schema in schemas_of(claim).items()
        for record in listed
        for part in record["arrays"][name]["chunks"]
    }


def _statistics(
    store: Store, entry: dict[str, Any], merged: dict[str, dict[str, Any]]
) -> Iterator[Find]:
    """`statistics.zarr` by its bytes, and its values against what the partitions' cells give. (Its
    bytes made anew could differ: another version of the library may compress otherwise.)"""
    if entry["arrays"] != merged:
        yield Find(MANIFEST, "its statistics are not what the partitions' cells say")
    sound = {}
    for key, said in entry["objects"].items():
        stored = store.get(key)
        if stored is not None and hashlib.sha256(stored).hexdigest() == said["sha256"]:
            sound[key] = stored
        else:
            yield Find(key, "is missing" if stored is None else "is not the one that was committed")
    digests = {name: array["digest"] for name, array in merged.items()}
    if len(sound) == len(entry["objects"]) and stored_statistics.digests(sound) != digests:
        yield Find(stored_statistics.GROUP, "holds other values than the partitions' cells give")


def _each_chunk(
    store: Store,
    expected: dict[str, Expected],
    there: dict[str, int],
    held: Container[str],
    progress: Progress,
) -> list[Find]:
    """Read every chunk that is not `held`, `READERS` at a time."""

    def check(key: str) -> Find | None:
        find = Find(key, "is missing") if key not in there else None
        if find is None and not (key in held and there[key] == expected[key].size):
            find = _chunk(store, key, expected[key])
        progress.advance(key)
        return find

    progress.begin("verifying", len(expected), "chunks")
    with ThreadPoolExecutor(READERS) as pool:
        finds = [find for find in pool.map(check, expected) if find is not None]
    progress.end()
    return finds


def _chunk(store: Store, key: str, expected: Expected) -> Find | None:
    values = held_against(key, store.read(key), expected)
    if isinstance(values, Find):
        return values
    if not np.isfinite(values).all():
        return Find(key, "has values that are not finite")
    return None


def held_against(key: str, body: memoryview | None, expected: Expected) -> npt.NDArray[Any] | Find:
    """The values of a stored chunk that is as its record says; else what is wrong with it."""
    if body is None:
        return Find(key, "is missing")
    if len(body) != expected.size:
        return Find(key, f"has {len(body)} bytes, recorded with {expected.size}")
    try:
        values = chunks.decode(expected.schema, body)
    except ValueError:
        return Find(key, "is damaged: its checksum does not fit")
    if chunks.digest(values) != expected.digest:
        return Find(
            key, "holds other values than were recorded, with a right checksum: stale or swapped"
        )
    return values


def _tokens(
    store: Store,
    claim: dict[str, Any],
    listed: list[dict[str, Any]],
    expected: dict[str, Expected],
) -> Iterator[Find]:
    """Token ids against the vocabulary, and token lengths against token ids. What was right a moment
    ago is held against its digest again: the way here may cut a body at any time."""
    body = store.get(records.VOCABULARY) or b""
    if chunks.bytes_digest(body) != claim["tokenizer"]["vocabulary_digest"]:
        yield Find(records.VOCABULARY, "is not the one that the run was made with")
        return
    vocabulary = json.loads(body)
    table = lengths.length_table(vocabulary["tokens"], vocabulary["special"])
    for record in listed:
        counts = []
        both = (record["arrays"][name]["chunks"] for name in (TOKEN_IDS, TOKEN_LENGTH))
        for keys in zip(*([part["key"] for part in parts] for parts in both), strict=True):
            ids, length = (held_against(key, store.read(key), expected[key]) for key in keys)
            if isinstance(ids, Find) or isinstance(length, Find):
                yield from (find for find in (ids, length) if isinstance(find, Find))
                return
            if ids.min() < 0 or ids.max() >= len(table):
                yield Find(keys[0], f"has ids outside of the vocabulary of {len(table)}")
            elif not np.array_equal(table[ids], length):
                yield Find(keys[1], "has other lengths than the token ids have")
            counts.append(lengths.histogram(length))
        if lengths.merge(counts) != {int(k): n for k, n in record["length_histogram"].items()}:
            key = records.record_key(record["partition"], record["batches"])
            yield Find(key, "counts other lengths than its tokens have")
