"""A data set of the Hub: at which commit, and which of its files are a text; those that were fetched.

In: what the spec or a claim says of the text. Out: what `datasets` loads. With the Hub it is streamed, and no
cache stands in for it. Without it there is only what `neoscope fetch --text` has brought: files in the
Hub's own cache, and a note of which files the text has in all, so that the partitions' shares stay the same.
"""

from __future__ import annotations

import dataclasses
import glob
import itertools
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neoscope import hub
from neoscope.errors import InputError, NeoscopeError, UnavailableError

LOCAL_TEXT = "give local files with --text, or --dataset sample"
# Of opening or reading a file of a data set, each of which repeats its requests for 23 s and more
# itself; by default it is 20, so that a Hub that has stalled is waited for for half an hour.
TRIES = 2
KINDS = ("json", "parquet")
# Of files, for each token that a partition takes: English in FineWeb's Parquet has about 3, as JSON lines 5.
BYTES_PER_TOKEN = 16
_FETCH = (
    "try again when the Hub can be reached, or bring more of it with neoscope fetch --text and the "
    "--batches and --partitions of this run"
)


@dataclasses.dataclass(frozen=True)
class Files:
    """The files of a text in order: how many, and the rows of one by its number, streamed, a shard for each
    row group where it is Parquet. `shares` gives what was noted of them when they were fetched for so many
    partitions; None where all of them can be opened."""

    count: int
    rows: Callable[[int], Any]
    shares: Callable[[int], list[list[int]]] | None = None


def find(name: str, revision: str | None) -> hub.Repository:
    """Where a data set is read from. Raises UnavailableError where only the Hub knows its commit."""
    return hub.find_dataset(_what(name), name, revision, alternative=LOCAL_TEXT)


def load(text: dict[str, Any]) -> Files:
    """The files of a data set. Without the Hub, one that is not on this disk is an UnavailableError."""
    repository = find(text["name"], text["revision"])
    if not repository.offline:
        location = f"hf://datasets/{text['name']}"  # no local folder of this name
        options = {"split": text["split"], "revision": repository.commit}
        return _shards(_load(location, text["config"], **options))
    return _fetched(text, repository)


def load_files(kind: str, files: list[Path], **options: Any) -> Files:
    """Local files of one kind."""
    names = [glob.escape(str(file)) for file in files]
    return _shards(_load(kind, data_files=names, split="train", **options))


def _shards(rows: Any) -> Files:
    # By row groups: read as a whole, pyarrow fetches all of a file in the background while its first rows
    # are used (178 MB for 3 documents, 11 by row groups).
    count = rows.num_shards
    return Files(count, lambda number: rows.shard(num_shards=count, index=number).reshard())


def fetch_text(text: dict[str, Any], partitions: int, tokens: int) -> dict[str, int]:
    """Bring a text's files into the Hub's cache, as many of each partition's as hold BYTES_PER_TOKEN for each
    of its `tokens`: the size in bytes of each. The shares of `text` are noted beside them."""
    name, what = text["name"], _what(text["name"])
    repository = find(name, text["revision"])
    hub.check_answers(what, repository, alternative=LOCAL_TEXT)
    kind, files = _files(text, repository)
    sizes = hub.sizes(what, name, repository, files)
    shares = text.get("shares") or [[0, 0], [len(files), 0]]
    wanted: dict[str, int] = {}
    for (first, group), (last, end) in itertools.pairwise(shares):
        held = 0
        for number in range(first, last + (end > 0)):
            if held < BYTES_PER_TOKEN * tokens:
                wanted[files[number]] = sizes[files[number]]
                # Of a file in part it is not known how much is this share's.
                held += sizes[files[number]] if number > first or not group else 0
    for file in wanted:
        hub.file(what, name, file, repository, "dataset", alternative=LOCAL_TEXT)
    noted = {**_read_note(text, repository).get("shares", {}), str(partitions): shares}
    note = json.dumps({"kind": kind, "files": files, "shares": noted}, indent=1)
    hub.put_note(what, _note(text, repository), note)
    return wanted


def _files(text: dict[str, Any], repository: hub.Repository) -> tuple[str, list[str]]:
    """Kind and names of the files of a text, as `datasets` finds them."""
    import datasets

    prefix = f"hf://datasets/{text['name']}@{repository.commit}/"
    with translate_errors(text["name"]), tempfile.TemporaryDirectory() as cache:
        builder = datasets.load_dataset_builder(
            f"hf://datasets/{text['name']}",
            text["config"],
            revision=repository.commit,
            cache_dir=cache,
        )
        splits = builder.config.data_files or {}
        if text["split"] not in splits:
            raise InputError(
                f"{_what(text['name'])} has no split {text['split']}: give --dataset-split, one of "
                + ", ".join(map(str, splits))
            )
        files = [str(file).removeprefix(prefix) for file in splits[text["split"]]]
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in KINDS:
        raise InputError(
            f"{_what(text['name'])} is of {kind} files, which are not fetched: Parquet and JSON are"
        )
    return kind, files


def _fetched(text: dict[str, Any], repository: hub.Repository) -> Files:
    """The files that the note says, of which some are here."""
    name, what, note = text["name"], _what(text["name"]), _read_note(text, repository)
    if not note:
        hub.check_answers(what, repository, alternative=LOCAL_TEXT)
    files, kind = note["files"], note["kind"]
    there = set(hub.file_names(what, name, repository, "dataset"))

    def absent(part: str) -> UnavailableError:
        return UnavailableError(
            f"{repository.unavailable_reason}, and {part} {what} is not on this disk: {_FETCH}"
        )

    def shares(partitions: int) -> list[list[int]]:
        if str(partitions) not in note["shares"]:
            raise absent(f"how {partitions} partitions share")
        found: list[list[int]] = note["shares"][str(partitions)]
        return found

    def rows(number: int) -> Any:
        if files[number] not in there:
            raise absent(f"the file {files[number]} of")
        path = hub.file(what, name, files[number], repository, "dataset")
        assert path is not None
        return load_files(kind, [path]).rows(0)

    return Files(len(files), rows, shares)


def _read_note(text: dict[str, Any], repository: hub.Repository) -> dict[str, Any]:
    """What was noted of a text; empty where nothing was."""
    try:
        note = json.loads(_note(text, repository).read_bytes())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and {"kind", "files", "shares"} <= note.keys() else {}


def _note(text: dict[str, Any], repository: hub.Repository) -> Path:
    assert repository.commit is not None
    return hub.note_path(text["name"], repository.commit, text["config"], text["split"])


def _what(name: str) -> str:
    return f"the data set {name}"


def _load(*arguments: Any, **options: Any) -> Any:
    """`datasets.load_dataset`, streaming, away from its cache: where the Hub fails, it would silently
    take another revision from there, and it locks files there although nothing is kept."""
    import datasets

    datasets.disable_progress_bars()
    datasets.utils.logging.set_verbosity(logging.CRITICAL)  # its errors are raised as well
    datasets.config.STREAMING_OPEN_MAX_RETRIES = datasets.config.STREAMING_READ_MAX_RETRIES = TRIES
    with tempfile.TemporaryDirectory() as cache:
        return datasets.load_dataset(*arguments, streaming=True, cache_dir=cache, **options)


@contextmanager
def translate_errors(name: str) -> Iterator[None]:
    """Turn what `datasets` raises while reading into errors for the user."""
    import datasets
    import pyarrow

    try:
        with hub.translate_errors(f"the text {name}", alternative=LOCAL_TEXT):
            yield
    except NeoscopeError:
        raise
    except StopIteration:
        raise InputError(f"the text {name} is empty: give one with text") from None
    except (
        pyarrow.lib.ArrowInvalid,
        pyarrow.lib.ArrowNotImplementedError,
        datasets.exceptions.DatasetGenerationError,
        datasets.table.CastError,
        EOFError,
        KeyError,
    ) as error:
        raise InputError(f"the text {name} is damaged or of another kind: {error}") from None
