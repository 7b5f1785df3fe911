"""A run, or a part of it, to another place: every byte is held against what the run recorded of it.

In: a committed run and a place. Out: a copy that is itself a run, or a selection of its arrays. What
an earlier start has left there is checked and not fetched again. It does not know what the values mean.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from neoscope.commit import MANIFEST
from neoscope.errors import CheckError, ConflictError, UsageError
from neoscope.origin import Origin, open_origin
from neoscope.place import check_place, take_place
from neoscope.progress import Progress
from neoscope.recorded import REPORT, Find
from neoscope.records import CLAIM, RECORDS
from neoscope.selection import SELECTION, Selection, select
from neoscope.spec import differing_fields
from neoscope.storage import REQUESTS_IN_FLIGHT, Store

LAST = 4  # of the phases in which objects are copied

S = TypeVar("S")
T = TypeVar("T")


def pull(
    source: Store,
    dest: Store,
    *,
    layers: str | None,
    sequences: str | None,
    neurons: str | None,
    form: str,
    progress: Progress,
) -> str:
    """Bring a run, or what is selected of it, to `dest`; what was done, in words.

    `layers`, `sequences` and `neurons` are numbers as `0,3,6-11`, None for all; `form` is `zarr` or
    `safetensors`. Raises ConflictError where `dest` holds anything else, CheckError where a byte of
    the run is not as recorded, InputError where the run is not committed.
    """
    if source.url == dest.url:
        raise UsageError(f"{dest.url} is the run itself: give another place")
    origin = open_origin(source)
    if form == "zarr" and layers is sequences is neurons is None:
        return pull_run(origin, dest, progress)
    selection = select(origin.run.claim, layers=layers, sequences=sequences, neurons=neurons)
    said = describe(origin, selection)
    body = json.dumps({**said, "form": form}, indent=2).encode() + b"\n"
    if form == "safetensors":
        from neoscope.layer_files import pull_files as pull_part
    else:
        from neoscope.excerpt import pull_group as pull_part
    if form == "safetensors" and not dest.is_local:
        raise UsageError(f"--to safetensors writes to a local folder, not to {dest.url}")
    claim_place(dest, SELECTION, body)
    pull_part(origin, dest, selection, said, progress)
    return f"{dest.url} holds what was selected of {source.url}, every byte of it as recorded"


def describe(origin: Origin, selection: Selection) -> dict[str, Any]:
    """The attributes that say what a selection is a selection of."""
    return {
        "selection_of": origin.store.url,
        "selection_content_digest": origin.run.manifest["content_digest"],
        **selection.to_json(),
    }


def pull_run(origin: Origin, dest: Store, progress: Progress) -> str:
    """A copy of the whole run that is itself a run, its manifest last; what was done, in words.

    It is of what the run's documents name, and of the report: what else lies there stays behind.
    """
    claim_place(dest, CLAIM, bytes(origin.read(CLAIM)))
    there, run = {item.key: item.size for item in origin.store.objects()}, origin.run
    named = {*run.documents, *run.digests, *run.chunks}
    for key in sorted(named - run.superseded - there.keys()):
        raise CheckError(f"{origin.store.url}/{Find(key, 'is missing')}")
    sizes = {key: there[key] for key in there.keys() & {*named, REPORT}}
    wanted = sizes.keys() - _sound(origin, dest, progress)

    def fetch(key: str) -> int:
        body = origin.read(key)
        dest.put(key, body)
        return len(body)

    progress.begin("pulling", sum(sizes[key] for key in wanted), "B")
    for phase in range(LAST + 1):
        if phase == LAST:
            _check_sizes(dest, sizes)
        for size in at_a_time(fetch, sorted(key for key in wanted if _phase(key) == phase)):
            progress.advance("pulling", size)
    progress.end()
    dest.clear_temporary_files()
    fetched, total = sum(sizes[key] for key in wanted), sum(sizes.values())
    return (
        f"{dest.url} is a copy of {origin.store.url}: {len(sizes):,} objects, {total / 1e9:.2f} GB, "
        f"{fetched / 1e9:.2f} GB of them fetched now, every byte as recorded"
    )


def _check_sizes(dest: Store, sizes: dict[str, int]) -> None:
    """Raise CheckError where an object but the manifest is not at `dest` in its size, by one listing."""
    there = {item.key: item.size for item in dest.objects()}
    for key in sorted(sizes.keys() - {MANIFEST}):
        if there.get(key) != sizes[key]:
            raise CheckError(
                f"{dest.url}/{key} was put with {sizes[key]} bytes and has {there.get(key, 'none')}: "
                "the storage is faulty; give another place"
            )


def at_a_time(work: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """`work` of every item, in order, as many at a time as there may be requests on their way."""
    with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        yield from pool.map(work, items)


def claim_place(dest: Store, key: str, body: bytes) -> None:
    """Put `body` first of all at a place. ConflictError where there is something else already."""
    check_place(dest, key)
    there = take_place(dest, key, body)
    if there == body:
        return
    try:
        found = "; ".join(differing_fields(json.loads(body), json.loads(there)))[:500]
    except ValueError:
        found = f"{key} is damaged"
    raise ConflictError(f"{dest.url} holds something else already: {found}; give an empty place")


def _sound(origin: Origin, dest: Store, progress: Progress) -> set[str]:
    """The keys of the objects that are at `dest` already, as their digests say."""
    known = {*origin.run.documents, *origin.run.digests, *origin.run.chunks}
    there = {item.key for item in dest.objects()} & known

    def check(key: str) -> str | None:
        return None if origin.run.find(key, dest.read(key)) else key

    progress.begin("checking what is there", len(there), "objects")
    sound = set()
    for key in at_a_time(check, sorted(there)):
        progress.advance("checking what is there")
        if key:
            sound.add(key)
    progress.end()
    return sound


def _phase(key: str) -> int:
    """What may be there while what comes later is not: a copy that was broken off is no run that
    any reader opens, and no worker takes it for one that is recorded."""
    if key.endswith("/zarr.json"):
        return 2 if key.count("/") > 1 else 3  # arrays before their group
    if key == MANIFEST:
        return LAST
    return 1 if key.startswith(f"{RECORDS}/") else 0
