"""Every stored byte of a run, held against what claim, records and manifest say of it.

In: a store. Out: problems, each naming an object, what is wrong with it, and what to do; and what lies there
that is not the run's, which is no damage. Nothing but the report's bytes is left out. It does not compute
the model; see `recompute`.

A checksum alone does not find a stale chunk or two chunks that changed places: every chunk is held
against the digest in the record of its batch. Zarr metadata and manifest are made again from claim
and records, and must be the same.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.errors import CheckError, InputError, UsageError
from neoscope.extra import require_run
from neoscope.format import groups, layout, records
from neoscope.format.claim import left_by_system
from neoscope.format.layout import FOLDERS, MANIFEST, PARTITION_TOKEN_SUMS, REPORT
from neoscope.format.manifest import manifest_content
from neoscope.format.states import kept
from neoscope.format.statistics import GROUPS
from neoscope.format.token_sums import merged_layers
from neoscope.progress import Progress
from neoscope.reading.inventory import (
    Expected,
    Inventory,
    Problem,
    Tokens,
    read_chunk,
    read_inventory,
)
from neoscope.statistics import token_lengths
from neoscope.statistics.token_sums import TokenSums
from neoscope.storage.store import Store, again, concurrent_map
from neoscope.text.documents import describe_file
from neoscope.text.vocabulary import length_table

TOLD = 5  # names in a line
LARGE_AT_A_TIME = 4  # statistics of a partition, 40 MB for GPT-Neo 125M
NO_STATISTICS: dict[str, dict[str, Any]] = {"arrays": {}, "objects": {}}


@dataclasses.dataclass(frozen=True)
class Verified:
    """What came of a check: what is wrong; how many `objects` of how many bytes were read; and by key the
    objects that are not the run's, `others` and what systems leave."""

    problems: list[Problem]
    objects: int = 0
    size: int = 0
    others: list[str] = dataclasses.field(default_factory=list)
    system: list[str] = dataclasses.field(default_factory=list)


def verify(store: Store, progress: Progress) -> Verified:
    """Check every object of a committed run. Raises InputError where there is no run."""
    there = {item.key: item.size for item in store.objects()}
    if layout.CLAIM not in there and MANIFEST not in there:
        raise InputError(f"there is no run at {store.url}")
    if MANIFEST not in there:
        missing = "is missing: the run is not committed"
        return Verified([Problem(MANIFEST, missing, "rerun the same command")])
    try:
        run = read_inventory(store)
    except CheckError as error:
        return Verified([Problem(store.url, str(error))])
    if run.mismatched_documents:
        return Verified(run.mismatched_documents)
    problems = list(_documents(store, run))
    own = there.keys() & {*run.documents, *run.digests, *run.chunks}
    system = {key for key in there if left_by_system(key)}
    foreign = there.keys() - own - system - {REPORT}
    among = {key for key in foreign if key.startswith(tuple(f"{name}/" for name in FOLDERS))}
    for key in sorted(among):
        problems.append(Problem(key, "does not belong to the run", "delete it"))
    names = kept(run.claim["spec"])
    statistics = {key for name in names for key in run.manifest.get(name, NO_STATISTICS)["objects"]}
    objects = [
        key
        for key in sorted(run.digests.keys() - statistics)
        if key in there or key not in run.superseded
    ]
    finds = concurrent_map(lambda key: _find(store, run, key), objects, LARGE_AT_A_TIME)
    problems += filter(None, finds)
    problems += _each_chunk(store, run, there, progress)
    if not problems:
        problems += _tokens(store, run)
    size = sum(there[key] for key in own)
    return Verified(problems, len(own), size, sorted(foreign - among), sorted(system))


def told(checked: Verified) -> list[str]:
    """What lies in a run's place and is no damage, in words: a line for each kind that there is."""
    kinds = (("not the run's", checked.others), ("left there by a system", checked.system))
    return [
        f"{len(keys)} objects are {what} and stay: {', '.join(keys[:TOLD])}"
        + (", ..." if len(keys) > TOLD else "")
        for what, keys in kinds
        if keys
    ]


def check_request(
    store: Store, *, recompute: int | None, text: bool, text_paths: list[Path]
) -> None:
    """Refuse what cannot be checked of this run, before all of it is read.

    Raises UsageError for options that do not fit the run or what is installed, InputError for text files
    that are not its own.
    """
    if text_paths and not text:
        raise UsageError("--text-file goes with --text: add it")
    if recompute or text:
        require_run("neoscope verify " + ("--recompute" if recompute else "--text"))
    try:
        claim = records.read_claim(store)
    except CheckError:
        return  # which `verify` tells, with all else
    if claim is None:
        return
    spec = claim["spec"]
    if recompute and not spec["arrays"]:
        raise UsageError(f"--recompute {recompute}: the run has no activations (--no-arrays)")
    sequences = spec["sequences"] * spec["batches"] * spec["partitions"]
    if recompute and recompute > sequences:
        raise UsageError(
            f"--recompute {recompute}: the run has {sequences} sequences: give {sequences} or fewer"
        )
    if text:
        _check_text_files(claim["text"], text_paths)


def _check_text_files(described: dict[str, Any], paths: list[Path]) -> None:
    """Whether files are those that a run was made of, in their order."""
    if described["source"] != "files":
        if paths:
            raise UsageError("--text-file: the run was not made of local files: leave it out")
        return
    recorded = described["files"]
    if len(paths) != len(recorded):
        names = ", ".join(file["name"] for file in recorded)
        raise UsageError(
            f"--text: the run was made of {len(recorded)} local files ({names}), and {len(paths)} are "
            "given: give each with --text-file, in this order"
        )
    found = [describe_file(path) for path in paths]
    differ = [
        f"{path} is not the run's {file['name']} (digest {mine.digest}, recorded {file['digest']})"
        for path, mine, file in zip(paths, found, recorded, strict=True)
        if mine.digest != file["digest"]
    ]
    if differ:
        raise InputError(f"{'; '.join(differ)}: give the run's own files in their order")


def _find(store: Store, run: Inventory, key: str) -> Problem | None:
    """What is wrong with an object in the store, asked for again where it does not fit."""
    return again(lambda: run.find(key, store.read(key)), lambda find: find is None)


def _documents(store: Store, run: Inventory) -> Iterator[Problem]:
    """The manifest, and the digests that it has of Zarr metadata and statistics, against what claim,
    records and cells make of them."""
    try:
        content, _ = manifest_content(store, run.claim, run.totals)
    except CheckError as error:
        yield Problem(store.url, str(error))
        return
    names = kept(run.claim["spec"])
    for field, value in content.items():
        if (
            field not in ("environment", *names)
            and json.loads(json.dumps(value)) != run.manifest[field]
        ):
            yield Problem(MANIFEST, f"its {field} is not what the records say")
    if PARTITION_TOKEN_SUMS in names:
        yield from _token_sums(store, run)
    for name in [name for name in names if name in GROUPS]:
        yield from _statistics(store, run, name, content.get(name, NO_STATISTICS)["arrays"])


def _statistics(
    store: Store, run: Inventory, name: str, merged: dict[str, dict[str, Any]]
) -> Iterator[Problem]:
    """One group of statistics by its bytes, and its values against what the partitions' states give. (Its
    bytes made anew could differ: another version of the library may compress otherwise.)"""
    entry = run.manifest.get(name, NO_STATISTICS)
    if entry["arrays"] != merged:
        yield Problem(MANIFEST, f"its {name} are not what the partitions' states say")
    keys = sorted(entry["objects"])
    bodies = {key: store.get(key, run.fits(key)) for key in keys}
    problems = [find for key, body in bodies.items() if (find := run.find(key, body))]
    yield from problems
    sound = {key: body for key, body in bodies.items() if body is not None}
    digests = {name: array["digest"] for name, array in merged.items()}
    if sound and not problems and groups.digests(GROUPS[name], sound) != digests:
        yield Problem(GROUPS[name].path, "holds other values than the partitions' states give")


def _token_sums(store: Store, run: Inventory) -> Iterator[Problem]:
    """The sums by token of each layer, by their bytes, and against what the partitions' states give. (Their
    bytes made anew could differ, as those of statistics.)"""
    objects = dict(run.manifest.get(PARTITION_TOKEN_SUMS, NO_STATISTICS)["objects"])
    tokens = sum(run.totals.lengths.values())
    try:
        for sums in merged_layers(store, run.claim, run.totals.states, tokens) if tokens else ():
            key = layout.merged_key(sums.layer)
            if objects.pop(key, None) is None:
                yield Problem(MANIFEST, f"it does not name {key}")
                continue
            body = store.get(key, run.fits(key))
            if find := run.find(key, body):
                yield find
            elif body is not None and TokenSums.load(body).dump() != sums.dump():
                yield Problem(key, "holds other values than the partitions' states give")
    except CheckError as error:
        yield Problem(store.url, str(error))
        return
    yield from (Problem(MANIFEST, f"it names {key}, which no state gives") for key in objects)


def _each_chunk(
    store: Store,
    run: Inventory,
    there: Container[str],
    progress: Progress,
) -> list[Problem]:
    """Read every chunk, many at a time."""

    def check(key: str) -> Problem | None:
        find = (
            Problem(key, "is missing") if key not in there else _chunk(store, key, run.chunks[key])
        )
        progress.advance(key)
        return find

    progress.begin("verifying", len(run.chunks), "chunks")
    problems = [find for find in concurrent_map(check, run.chunks) if find is not None]
    progress.end()
    return problems


def _chunk(store: Store, key: str, expected: Expected) -> Problem | None:
    values = read_chunk(store, key, expected)
    if isinstance(values, Problem):
        return values
    if not np.isfinite(values).all():
        return Problem(key, "has values that are not finite")
    return None


def _tokens(store: Store, run: Inventory) -> Iterator[Problem]:
    """Token ids against the vocabulary, and token lengths against token ids. What was right a moment
    ago is held against its digest again: the way here may cut a body at any time."""
    key = layout.VOCABULARY
    body = store.get(key, run.fits(key)) or b""
    if find := run.find(layout.VOCABULARY, body):
        yield find
        return
    vocabulary = json.loads(body)
    table = length_table(vocabulary["tokens"], vocabulary["special"])
    for finds in concurrent_map(lambda said: _record_tokens(store, run, table, said), run.tokens):
        yield from finds


def _record_tokens(
    store: Store, run: Inventory, table: npt.NDArray[np.uint16], said: Tokens
) -> list[Problem]:
    """The same of the tokens of one record, whose vocabulary has the lengths in `table`."""
    counts, finds = [], []
    for keys in zip(said.ids, said.lengths, strict=True):
        ids, length = (read_chunk(store, key, run.chunks[key]) for key in keys)
        if isinstance(ids, Problem) or isinstance(length, Problem):
            return [find for find in (ids, length) if isinstance(find, Problem)]
        if ids.min() < 0 or ids.max() >= len(table):
            finds.append(Problem(keys[0], f"has ids outside of the vocabulary of {len(table)}"))
        elif not np.array_equal(table[ids], length):
            finds.append(Problem(keys[1], "has other lengths than the token ids have"))
        counts.append(token_lengths.histogram(length))
    if token_lengths.merge(counts) != said.histogram:
        finds.append(Problem(said.record, "counts other lengths than its tokens have"))
    return finds
