"""Documents, streamed by `datasets`: FineWeb and its like from the Hub, local files, or the packaged sample.

In: what the spec says of the text. Out: one partition's documents in order, with a state to resume from
that can be written down as JSON and gone back to. It does not know tokens.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import xxhash

from neoscope.errors import InputError, UsageError
from neoscope.spec import SAMPLE, RunSpec, TextFile
from neoscope.text import data_set
from neoscope.text.data_set import translate_errors

# Of so many files a partition and more, shares are of whole files: they differ by a sixteenth at most.
WHOLE_FILES = 16
FILES_AT_A_TIME = 8  # which are opened to count their row groups
SAMPLE_FILE = Path(__file__).parent / "sample.jsonl"
KINDS = {
    ".jsonl": "json",
    ".json": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
}


def describe_file(path: Path) -> TextFile:
    """A text file by what it holds. Raises InputError where it cannot be read."""
    digest = xxhash.xxh3_128()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
            size = file.tell()
    except OSError as error:
        raise InputError(f"cannot read the text file {path}: {error.strerror}") from None
    if size == 0:
        raise InputError(f"the text file {path} is empty: give one with text")
    return TextFile(path.name, size, digest.hexdigest())


def file_kind(paths: list[Path]) -> str:
    """The one kind of all the files, by their endings: `json`, `parquet` or `text`."""
    kinds = set()
    for path in paths:
        suffixes = [
            suffix for suffix in path.suffixes if suffix not in (".gz", ".zst", ".bz2", ".xz")
        ]
        kind = KINDS.get(suffixes[-1].lower() if suffixes else "")
        if kind is None:
            raise UsageError(f"--text {path}: unknown file type; use {', '.join(KINDS)}")
        kinds.add(kind)
    if len(kinds) > 1:
        raise UsageError(
            f"--text files are of different kinds ({', '.join(sorted(kinds))}): give one kind"
        )
    return str(kinds.pop())


def check_shares(spec: RunSpec) -> None:
    """Raise InputError for more partitions than files, where a file is not shared.

    Of Parquet the row groups are: how many, its opening tells.
    """
    names = [SAMPLE_FILE] if spec.dataset == SAMPLE else [Path(file.name) for file in spec.text]
    if not names or file_kind(names) == "parquet" or len(names) >= spec.partitions:
        return
    one = "the sample" if spec.dataset == SAMPLE else names[0].name
    are = f"{one} is one file" if len(names) == 1 else f"the text is {len(names)} files"
    raise InputError(
        f"{are}; for {spec.partitions} partitions split it and give {spec.partitions} or more "
        "--text files"
    )


def resolve(spec: RunSpec, paths: list[Path]) -> dict[str, Any]:
    """What the text is, as plain JSON for the claim: the revision for a data set, digests for files, and
    how several partitions share it."""
    text = _resolve(spec)
    if spec.partitions > 1:
        text["shares"] = shares(text, paths, spec.partitions)
    return text


def _resolve(spec: RunSpec) -> dict[str, Any]:
    if spec.text:
        files = [dataclasses.asdict(file) for file in spec.text]
        return {"source": "files", "column": spec.text_column, "files": files}
    if spec.dataset == SAMPLE:
        files = [dataclasses.asdict(describe_file(SAMPLE_FILE))]
        return {"source": "sample", "column": spec.text_column, "files": files}
    assert spec.dataset is not None
    return {
        "source": "dataset",
        "name": spec.dataset,
        "config": spec.dataset_config,
        "split": spec.dataset_split,
        "revision": data_set.find(spec.dataset, spec.dataset_revision).commit,
        "column": spec.text_column,
    }


class Documents:
    """One partition's documents in order, with a `resume_state` in plain JSON.

    Where its share begins and ends, `text` says; see `shares`.
    """

    def __init__(
        self,
        text: dict[str, Any],
        paths: list[Path],
        *,
        partition: int = 0,
        resume_state: dict[str, Any] | None = None,
    ) -> None:
        self._column: str = text["column"]
        self._name = _name(text)
        self._index = 0
        with translate_errors(self._name):
            self._files = _open(text, paths)
            self._opened: tuple[int, Any] = (-1, None)
            ends = text.get("shares") or [[0, 0], [self._files.count, 0]]
            self._pieces = self._pieces_between(ends[partition], ends[partition + 1])
            self._begin_piece(resume_state["piece"] if resume_state else 0)
            # datasets tells the state of the very beginning until the first row after a resumption.
            self._resume_state = resume_state
            if resume_state is not None:
                self._index = resume_state["index"]
                self._rows.load_state_dict(resume_state["state"])
            self._iterator = iter(self._rows)

    def _pieces_between(self, begin: list[int], end: list[int]) -> list[tuple[int, int | None]]:
        """What a share is read by: whole files, None for the row group, and row groups of files in part."""
        found: list[tuple[int, int | None]] = []
        for file in range(begin[0], end[0] + (end[1] > 0)):
            first = begin[1] if file == begin[0] else 0
            if first or file == end[0]:
                stop = end[1] if file == end[0] else self._file(file).num_shards
                found += [(file, group) for group in range(first, stop)]
            else:
                found.append((file, None))
        return found

    def _file(self, number: int) -> Any:
        """The rows of one file, by its row groups where it is Parquet."""
        if self._opened[0] != number:
            self._opened = number, self._files.rows(number)
        return self._opened[1]

    def _begin_piece(self, number: int) -> None:
        """Stand at the beginning of one piece of the share. They are opened one after another."""
        self._piece, (file, group) = number, self._pieces[number]
        rows = self._file(file)
        if group is not None:
            rows = rows.shard(num_shards=rows.num_shards, index=group)
        self._rows, self._iterator = rows, iter(rows)

    def resume_state(self) -> dict[str, Any]:
        """The state before the next document: the piece of the share, `datasets`' own state in it, and
        the number of documents before it."""
        here = {"index": self._index, "piece": self._piece, "state": self._rows.state_dict()}
        return self._resume_state or here

    def next(self) -> tuple[str, str] | None:
        """The next document as (id, text), None at the end. The id is the row's own, else its number."""
        with translate_errors(self._name):
            row = next(self._iterator, None)
            while row is None and self._piece + 1 < len(self._pieces):
                self._begin_piece(self._piece + 1)
                row = next(self._iterator, None)
        self._resume_state = None
        if row is None:
            return None
        text = row.get(self._column)
        if not isinstance(text, str):
            where = f"document {self._index} of {self._name}"
            if self._column not in row:
                raise InputError(
                    f"{where} has no column {self._column!r}: give --text-column, one of "
                    + ", ".join(sorted(row))
                )
            kind = "nothing" if text is None else f"a {type(text).__name__}, {str(text)[:40]!r}"
            raise InputError(
                f"{where} has {kind} in its column {self._column!r}, which must be text"
            )
        name = row.get("id")
        name = name if isinstance(name, str) else f"#{self._index}"
        self._index += 1
        return name, text


def _open(text: dict[str, Any], paths: list[Path]) -> data_set.Files:
    if text["source"] == "dataset":
        return data_set.load(text)
    files = paths if text["source"] == "files" else [SAMPLE_FILE]
    kind = file_kind(files)
    return data_set.load_files(kind, files, **({"sample_by": "document"} if kind == "text" else {}))


def shares(text: dict[str, Any], paths: list[Path], partitions: int) -> list[list[int]]:
    """Where the share of each partition begins and the last one ends: [file, row group], both from 0.

    Shares are as even as whole files make them where each has many; else by row groups where the files are
    Parquet. Local files count by their bytes.
    """
    with translate_errors(_name(text)):
        files = _open(text, paths)
        if files.shares:
            return files.shares(partitions)
        groups = [1] * files.count
        if files.count < WHOLE_FILES * partitions:
            with ThreadPoolExecutor(FILES_AT_A_TIME) as pool:
                each = pool.map(lambda number: files.rows(number).num_shards, range(files.count))
                groups = list(each)
    pieces = [(file, group) for file in range(files.count) for group in range(groups[file])]
    if len(pieces) < partitions:
        found = "one file" if len(pieces) == 1 else f"{len(pieces)} files or row groups of Parquet"
        raise InputError(
            f"the text is {found}: use --partitions {len(pieces)}, or for {partitions} partitions give "
            f"{partitions} or more --text files"
        )
    sizes = [file["size"] for file in text.get("files", [])]
    weights = [sizes[file] / groups[file] if sizes else 1.0 for file, _ in pieces]
    return [*(list(pieces[at]) for at in _even(weights, partitions)), [files.count, 0]]


def _even(weights: list[float], parts: int) -> list[int]:
    """Where each of so many parts begins, in which the weights are about even and none is without one."""
    before = [0.0, *itertools.accumulate(weights)]
    found = [0]
    for part in range(1, parts):
        wanted = before[-1] * part / parts
        at = bisect.bisect_left(before, wanted)
        at -= wanted - before[at - 1] < before[at] - wanted
        found.append(min(max(at, found[-1] + 1), len(weights) - (parts - part)))
    return found


def _name(text: dict[str, Any]) -> str:
    return text.get("name") or ", ".join(file["name"] for file in text["files"])
