"""A data set of the Hub: at which commit, and which of its files are a text; those that were fetched.

In: what the spec or a claim says of the text. Out: what `datasets` loads. With the Hub it is streamed, and no
cache stands in for it. Without it there is only what `neoscope fetch --text` has brought: files in the
Hub's own cache, and a note of which files the text has in all, so that the partitions' shares stay the same.
"""

from __future__ import annotations

import dataclasses
import glob
import json
import logging
import tempfile
from collections.abc import Iterator
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


@dataclasses.dataclass(frozen=True)
class FetchedText:
    """All files of a text by their names, and their kind; `here` are those on this disk."""

    kind: str
    files: list[str]
    here: dict[str, Path]

    def share(self, partition: int, partitions: int) -> list[str]:
        """A partition's files: contiguous, as `IterableDataset.shard` has them; all of them where they are
        fewer than the partitions, which share row groups then."""
        if len(self.files) < partitions:
            return self.files
        each, more = divmod(len(self.files), partitions)
        start = each * partition + min(partition, more)
        return self.files[start : start + each + (partition < more)]


def find(name: str, revision: str | None) -> hub.Repository:
    """Where a data set is read from. Raises UnavailableError where only the Hub knows its commit."""
    return hub.find_dataset(_what(name), name, revision, alternative=LOCAL_TEXT)


def load(text: dict[str, Any], partition: int, partitions: int) -> tuple[Any, str | None, bool]:
    """The rows of a text, streamed; why they end before its end; whether they are all partitions'.

    Without the Hub they are those of the partition's files on this disk, up to the first that is missing."""
    repository = find(text["name"], text["revision"])
    if not repository.offline:
        location = f"hf://datasets/{text['name']}"  # no local folder of this name
        options = {"split": text["split"], "revision": repository.commit}
        return _load(location, text["config"], **options), None, True
    found = _fetched(text, repository)
    share = found.share(partition, partitions)
    there = [found.here[name] for name in share[: _count_here(found, share)]]
    absent = None if len(there) == len(share) else _absent(text, repository, share[len(there)])
    whole = share == found.files
    if absent and (not there or (whole and partitions > 1)):
        raise UnavailableError(absent)
    return load_files(found.kind, there), absent, whole


def load_files(kind: str, files: list[Path], **options: Any) -> Any:
    """The rows of local files of one kind, streamed, a shard a file."""
    names = [glob.escape(str(file)) for file in files]
    return _load(kind, data_files=names, split="train", **options)


def fetch_text(text: dict[str, Any], partitions: int, tokens: int) -> dict[str, int]:
    """Bring a text's files into the Hub's cache, as many of each partition's as hold BYTES_PER_TOKEN for each
    of its `tokens`: the size in bytes of each."""
    name, what = text["name"], _what(text["name"])
    repository = find(name, text["revision"])
    hub.check_answers(what, repository, alternative=LOCAL_TEXT)
    found = FetchedText(*_files(text, repository), here={})
    sizes = hub.sizes(what, name, repository, found.files)
    shared = len(found.files) >= partitions
    wanted: dict[str, int] = {}
    for partition in range(partitions):
        held = 0
        for file in found.share(partition, partitions):
            if held < BYTES_PER_TOKEN * tokens or not shared:
                wanted[file] = sizes[file]
                held += sizes[file]
    for file in wanted:
        hub.file(what, name, file, repository, "dataset", alternative=LOCAL_TEXT)
    note = json.dumps({"kind": found.kind, "files": found.files}, indent=1)
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


def _fetched(text: dict[str, Any], repository: hub.Repository) -> FetchedText:
    """What the note says, and what is there of it."""
    name, what = text["name"], _what(text["name"])
    try:
        note = json.loads(_note(text, repository).read_bytes())
        kind, files = note["kind"], note["files"]
    except (OSError, ValueError, KeyError):
        hub.check_answers(what, repository, alternative=LOCAL_TEXT)
        raise
    here = hub.file_names(what, name, repository, "dataset")
    paths = {each: hub.file(what, name, each, repository, "dataset") for each in {*here} & {*files}}
    return FetchedText(kind, files, {each: path for each, path in paths.items() if path})


def _count_here(found: FetchedText, share: list[str]) -> int:
    """How many of a share's first files are on this disk."""
    return next((at for at, name in enumerate(share) if name not in found.here), len(share))


def _absent(text: dict[str, Any], repository: hub.Repository, file: str) -> str:
    return (
        f"{repository.unavailable_reason}, and the file {file} of {_what(text['name'])} is not on this disk: "
        "try again when the Hub can be reached, or bring more of it with neoscope fetch --text and the "
        "--batches and --partitions of this run"
    )


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
