"""A whole run to a destination, its manifest last, so that the copy is a run of its own.

In: a verified source and a destination that is taken. Out: every object that the run names. What an
earlier start has left there is checked and not fetched again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from neoscope.commands.pull.source import VerifiedSource
from neoscope.errors import CheckError
from neoscope.format.layout import MANIFEST, RECORDS, REPORT, ROLLUPS
from neoscope.progress import Progress
from neoscope.reading.inventory import Problem
from neoscope.storage.store import Store, concurrent_map

T = TypeVar("T")
LAST = 5  # of the phases in which objects are copied
# Objects of which many at a time would be gigabytes of memory: a layer's sums by token may have one.
LARGE, LARGE_AT_A_TIME = 100_000_000, 2


def pull_run(origin: VerifiedSource, dest: Store, progress: Progress) -> str:
    """A copy of the whole run that is itself a run, its manifest last; what was done, in words.

    It is of what the run's documents name, and of the report: what else lies there stays behind.
    """
    found, run = origin.store.listing(), origin.run
    own = {each.key: each.size for each in found if run.is_named(each.key) or each.key == REPORT}
    sizes = {}
    for key in run.names():  # the chunks of a record together, so that it is read once
        if key not in own:
            raise CheckError(f"{origin.store.url}/{Problem(key, 'is missing')}")
        sizes[key] = own.pop(key)
    sizes |= own
    there = already_copied(origin, dest, progress)
    wanted = [key for key in sizes if key not in there]

    def fetch(key: str) -> int:
        body = origin.read(key)
        dest.put(key, body)
        return len(body)

    progress.begin("pulling", sum(sizes[key] for key in wanted), "B")
    for phase in range(LAST + 1):
        if phase == LAST:
            _check_sizes(dest, sizes)
        keys = [key for key in wanted if copy_order(key) == phase]
        for size in _by_size(fetch, keys, sizes):
            progress.advance("pulling", size)
    progress.end()
    dest.clear_temporary_files()
    fetched, total = sum(sizes[key] for key in wanted), sum(sizes.values())
    return (
        f"{dest.url} is a copy of {origin.store.url}: {len(sizes):,} objects, {total / 1e9:.2f} GB, "
        f"{fetched / 1e9:.2f} GB of them fetched now, every byte as recorded"
    )


def _by_size(work: Callable[[str], T], keys: list[str], sizes: dict[str, int]) -> Iterator[T]:
    """`work` of every key, of large objects few at a time."""
    large = [key for key in keys if sizes[key] > LARGE]
    yield from concurrent_map(work, [key for key in keys if sizes[key] <= LARGE])
    yield from concurrent_map(work, large, LARGE_AT_A_TIME)


def _check_sizes(dest: Store, sizes: dict[str, int]) -> None:
    """Raise CheckError where an object but the manifest is not at `dest` in its size, by one listing."""
    there = {item.key: item.size for item in dest.objects()}
    for key in sorted(sizes.keys() - {MANIFEST}):
        if there.get(key) != sizes[key]:
            raise CheckError(
                f"{dest.url}/{key} was put with {sizes[key]} bytes and has {there.get(key, 'none')}: "
                "the storage is faulty; give another destination"
            )


def already_copied(origin: VerifiedSource, dest: Store, progress: Progress) -> set[str]:
    """The keys of the objects that are at `dest` already, as their digests say."""
    there = {item.key: item.size for item in dest.listing() if origin.run.is_named(item.key)}

    def check(key: str) -> str | None:
        return None if origin.run.find(key, dest.read(key)) else key

    progress.begin("checking what is there", len(there), "objects")
    sound = set()
    for key in _by_size(check, sorted(there), there):
        progress.advance("checking what is there")
        if key:
            sound.add(key)
    progress.end()
    return sound


def copy_order(key: str) -> int:
    """What may be there while what comes later is not: a copy that was broken off is no run that
    any reader opens, and no worker takes it for one that is recorded."""
    if key.endswith("/zarr.json"):
        return 3 if key.count("/") > 1 else 4  # arrays before their group
    if key == MANIFEST:
        return LAST
    return {RECORDS: 1, ROLLUPS: 2}.get(key.partition("/")[0], 0)
