"""Documents, streamed by `datasets`: FineWeb and its like from the Hub, local files, or the packaged sample.

In: what the spec says of the text. Out: one partition's documents in order, with a state to resume from
that can be written down as JSON and gone back to. It does not know tokens.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import xxhash

from neoscope.errors import InputError, UnavailableError, UsageError
from neoscope.spec import SAMPLE, RunSpec, TextFile
from neoscope.text import data_set
from neoscope.text.data_set import translate_errors

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


def resolve(spec: RunSpec) -> dict[str, Any]:
    """What the text is, as plain JSON for the claim: the revision for a data set, digests for files."""
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
    """One partition's documents in order. `resume_state` and `seek` speak plain JSON."""

    def __init__(
        self,
        text: dict[str, Any],
        paths: list[Path],
        *,
        partition: int = 0,
        partitions: int = 1,
        resume_state: dict[str, Any] | None = None,
    ) -> None:
        self._column: str = text["column"]
        self._name = text.get("name") or ", ".join(file["name"] for file in text["files"])
        self._index = 0
        with translate_errors(self._name):
            self._share, self._absent = _share(text, paths, partition, partitions)
            self._begin_file(resume_state["file"] if resume_state else 0)
            # datasets tells the state of the very beginning until the first row after a resumption.
            self._resume_state = resume_state
            if resume_state is not None:
                self._index = resume_state["index"]
                self._rows.load_state_dict(resume_state["state"])
            self._iterator = iter(self._rows)

    def _begin_file(self, number: int) -> None:
        """Stand at the beginning of one file of the share.

        Files are opened one after another, each by its row groups where it is Parquet: read as a
        whole, pyarrow fetches all of a file in the background while its first rows are used (178 MB
        for 3 documents, 11 by row groups).
        """
        self._file = number
        self._rows = self._share.shard(num_shards=self._share.num_shards, index=number).reshard()
        self._iterator = iter(self._rows)

    def resume_state(self) -> dict[str, Any]:
        """The state before the next document: the file of the share, `datasets`' own state in it, and
        the number of documents before it."""
        here = {"index": self._index, "file": self._file, "state": self._rows.state_dict()}
        return self._resume_state or here

    def next(self) -> tuple[str, str] | None:
        """The next document as (id, text), None at the end. The id is the row's own, else its number."""
        with translate_errors(self._name):
            row = next(self._iterator, None)
            while row is None and self._file + 1 < self._share.num_shards:
                self._begin_file(self._file + 1)
                row = next(self._iterator, None)
        self._resume_state = None
        if row is None:
            if self._absent:
                raise UnavailableError(self._absent)
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


def _share(
    text: dict[str, Any], paths: list[Path], partition: int, partitions: int
) -> tuple[Any, str | None]:
    """The partition's share of the text; where the text goes on in a file that is not on this disk, why."""
    if text["source"] == "dataset":
        rows, absent, whole = data_set.load(text, partition, partitions)
        return _part(rows, partition, partitions) if whole else rows, absent
    files = paths if text["source"] == "files" else [SAMPLE_FILE]
    kind = file_kind(files)
    options = {"sample_by": "document"} if kind == "text" else {}
    rows = data_set.load_files(kind, files, **options)
    return _part(rows, partition, partitions), None


def _part(rows: Any, partition: int, partitions: int) -> Any:
    """The partition's contiguous part of the files, or of the row groups where files are too few."""
    if rows.num_shards < partitions:
        rows = rows.reshard()
    if rows.num_shards < partitions:
        count = rows.num_shards
        found = "one file" if count == 1 else f"{count} files or row groups of Parquet"
        raise InputError(
            f"the text is {found}: use --partitions {count}, or for {partitions} partitions give "
            f"{partitions} or more --text files"
        )
    return rows.shard(num_shards=partitions, index=partition)
