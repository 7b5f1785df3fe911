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
import functools
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from neoscope.errors import CheckError, InputError, UsageError
from neoscope.extra import require_run
from neoscope.format import groups, layout, records, sealed_json
from neoscope.format.arrays import schemas_of
from neoscope.format.claim import left_by_system
from neoscope.format.layout import (
    FOLDERS,
    MANIFEST,
    PARTITION_TOKEN_SUMS,
    REPORT,
    TOKEN_IDS,
    TOKEN_LENGTH,
)
from neoscope.format.manifest import manifest_content
from neoscope.format.rollups import RollUp
from neoscope.format.states import entries_of, kept
from neoscope.format.statistics import GROUPS
from neoscope.format.token_sums import merged_layers
from neoscope.format.totals import Totals
from neoscope.progress import Progress
from neoscope.reading.inventory import (
    Expected,
    Inventory,
    Problem,
    read_chunk,
    read_inventory,
)
from neoscope.statistics import token_lengths
from neoscope.statistics.token_sums import TokenSums
from neoscope.storage.store import Store, again, concurrent_map
from neoscope.text.documents import describe_file
from neoscope.text.vocabulary import length_table

TOLD = 5  # names in a line
ROLLUPS_AT_A_TIME = 4  # each holds a digest of every record
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
    """Check every object of a committed run, its records one partition after another. Raises InputError
    where there is no run."""
    if store.get(MANIFEST) is None:
        if store.get(layout.CLAIM) is None:
            raise InputError(f"there is no run at {store.url}")
        missing = "is missing: the run is not committed"
        return Verified([Problem(MANIFEST, missing, "rerun the same command")])
    try:
        run = read_inventory(store)
        totals = Totals(run.claim)
        for rollup in concurrent_map(run.rollup, range(len(run.batches)), ROLLUPS_AT_A_TIME):
            totals.add(rollup)
    except CheckError as error:
        return Verified([_told(store, error)])
    problems = list(_documents(store, run, totals))
    own, size, superseded, system, others = 0, 0, [], [], []
    for item in store.listing():
        if run.is_named(item.key):
            own, size = own + 1, size + item.size
            superseded += [item.key] if run.is_superseded(item.key) else []
        elif left_by_system(item.key):
            system.append(item.key)
        elif item.key.startswith(tuple(f"{name}/" for name in FOLDERS)):
            problems.append(Problem(item.key, "does not belong to the run", "delete it"))
        elif item.key != REPORT:
            others.append(item.key)
    states = (
        state["key"] for each in totals.states for name in each for state in entries_of(each, name)
    )
    objects = itertools.chain(run.manifest["zarr"], superseded, states)
    finds = concurrent_map(lambda key: _find(store, run, key), objects, LARGE_AT_A_TIME)
    problems += filter(None, finds)
    problems += _recorded(store, run, progress)
    return Verified(problems, own, size, sorted(others), sorted(system))


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
    try:
        return again(lambda: run.find(key, store.read(key)), lambda find: find is None)
    except CheckError as error:
        return _told(store, error)


def _told(store: Store, error: CheckError) -> Problem:
    """What is wrong with a document, which names its object and what to do."""
    key, _, said = str(error).removeprefix(f"{store.url}/").partition(" ")
    return Problem(key, said, "")


def _documents(store: Store, run: Inventory, totals: Totals) -> Iterator[Problem]:
    """The manifest, and the digests that it has of Zarr metadata and statistics, against what claim,
    records and cells make of them."""
    try:
        content, _ = manifest_content(store, run.claim, totals)
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
        yield from _token_sums(store, run, totals)
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


def _token_sums(store: Store, run: Inventory, totals: Totals) -> Iterator[Problem]:
    """The sums by token of each layer, by their bytes, and against what the partitions' states give. (Their
    bytes made anew could differ, as those of statistics.)"""
    objects = dict(run.manifest.get(PARTITION_TOKEN_SUMS, NO_STATISTICS)["objects"])
    tokens = sum(totals.lengths.values())
    try:
        for sums in merged_layers(store, run.claim, totals.states, tokens) if tokens else ():
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


def _recorded(store: Store, run: Inventory, progress: Progress) -> Iterator[Problem]:
    """Read every chunk, many at a time, and hold it against its record, and the records against the
    manifest; token ids are held against the vocabulary, and token lengths against the ids."""
    key = layout.VOCABULARY
    body = store.get(key, run.fits(key))
    find, table = run.find(key, body), None
    if find:
        yield find
    elif body is not None:
        vocabulary = json.loads(body)
        table = length_table(vocabulary["tokens"], vocabulary["special"])
    a_batch = sum(math.prod(schema.batch_grid) for schema in schemas_of(run.claim).values())
    progress.begin("verifying", a_batch * sum(run.batches), "chunks")
    for finds in concurrent_map(lambda check: check(), _checks(store, run, table, progress)):
        yield from finds
    progress.end()


def _checks(
    store: Store, run: Inventory, table: npt.NDArray[np.uint16] | None, progress: Progress
) -> Iterator[Callable[[], list[Problem]]]:
    """What is to be checked of each record in order; each check reads what it needs."""

    def places() -> Iterator[tuple[int, int]]:
        for partition in range(len(run.batches)):
            yield from ((partition, count) for count in run.record_counts(partition))

    def read(place: tuple[int, int]) -> dict[str, Any] | Problem:
        try:
            return run.record(*place)
        except CheckError as error:
            return _told(store, error)

    def chunk(key: str, expected: Expected) -> list[Problem]:
        values = _values(store, key, expected, progress)
        return [values] if isinstance(values, Problem) else []

    rollup, begun = None, -1
    for (partition, count), record in zip(places(), concurrent_map(read, places()), strict=True):
        if partition != begun:
            rollup, begun = RollUp(run.claim, partition), partition
        if isinstance(record, Problem):
            rollup = None  # nothing can be said of it
            yield functools.partial(list, [record])
            continue
        for name in schemas_of(run.claim):
            if name not in (TOKEN_IDS, TOKEN_LENGTH):
                for each in run.chunks(record, name).items():
                    yield functools.partial(chunk, *each)
        tokens = _RecordTokens(store, run, record, table, progress)
        yield from (functools.partial(tokens.check, *pair) for pair in tokens.pairs)
        if rollup:
            rollup.add(record)
            if count == run.batches[partition]:
                yield functools.partial(_rollup, run, rollup.content())


def _rollup(run: Inventory, content: dict[str, Any]) -> list[Problem]:
    """A roll-up against what its records say."""
    key = layout.rollup_key(content["partition"])
    same = sealed_json.content_digest(content) == run.manifest["rollups"].get(key)
    return [] if same else [Problem(key, "is not what its records say")]


class _RecordTokens:
    """The tokens of one record: ids against the vocabulary, whose tokens have the lengths in `table`, lengths
    against the ids, and once the last of them is checked, what the record counts against both."""

    def __init__(
        self,
        store: Store,
        run: Inventory,
        record: dict[str, Any],
        table: npt.NDArray[np.uint16] | None,
        progress: Progress,
    ) -> None:
        ids, lengths = (run.chunks(record, name).items() for name in (TOKEN_IDS, TOKEN_LENGTH))
        self.pairs = list(zip(ids, lengths, strict=True))
        self._store, self._table, self._progress = store, table, progress
        self._key = layout.record_key(record["partition"], record["batches"])
        self._said = {int(length): count for length, count in record["length_histogram"].items()}
        self._lock, self._left = threading.Lock(), len(self.pairs)
        self._counts: list[dict[int, int]] = []

    def check(self, *pair: tuple[str, Expected]) -> list[Problem]:
        """What is wrong with one pair of chunks, of ids and of lengths; with the last also the record."""
        ids, length = (_values(self._store, *each, self._progress) for each in pair)
        finds = [each for each in (ids, length) if isinstance(each, Problem)]
        if not isinstance(ids, Problem) and not isinstance(length, Problem):
            finds += self._compare(ids, length, *(key for key, _ in pair))
        with self._lock:
            self._left -= 1
            if not isinstance(length, Problem):
                self._counts.append(token_lengths.histogram(length))
            last = self._left == 0 and len(self._counts) == len(self.pairs)
        if last and token_lengths.merge(self._counts) != self._said:
            finds.append(Problem(self._key, "counts other lengths than its tokens have"))
        return finds

    def _compare(
        self, ids: npt.NDArray[Any], length: npt.NDArray[Any], ids_key: str, length_key: str
    ) -> list[Problem]:
        if self._table is None:
            return []
        if ids.min() < 0 or ids.max() >= len(self._table):
            words = f"has ids outside of the vocabulary of {len(self._table)}"
            return [Problem(ids_key, words)]
        if not np.array_equal(self._table[ids], length):
            return [Problem(length_key, "has other lengths than the token ids have")]
        return []


def _values(
    store: Store, key: str, expected: Expected, progress: Progress
) -> npt.NDArray[Any] | Problem:
    """The values of a chunk; else what is wrong with it."""
    values = read_chunk(store, key, expected)
    progress.advance(key)
    if not isinstance(values, Problem) and not np.isfinite(values).all():
        return Problem(key, "has values that are not finite")
    return values
