"""Documents from local files: every kind, in order, from any place; damage is said in one line."""

from __future__ import annotations

import gc
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from neoscope.errors import InputError, UsageError
from neoscope.spec import SAMPLE, make_spec
from neoscope.text.documents import SAMPLE_FILE, Documents, describe_file, file_kind, resolve

# Long enough that a gzip or Parquet file has something to damage.
TEXTS = [
    f"Document {number}: naïve café 한국어 🙂\nsecond line " + "x" * number for number in range(40)
]
EXPECTED = [(f"d{number}", text) for number, text in enumerate(TEXTS)]


@pytest.fixture(autouse=True)
def _streams_end_here() -> Iterator[None]:
    """A Parquet stream that is not read to its end can abort Python at exit, unless it is gone
    well before."""
    yield
    gc.collect()


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


ROWS = [{"id": name, "text": text, "score": 0.5} for name, text in EXPECTED]


def write(path: Path, content: list[dict[str, Any]] | bytes) -> Path:
    """Rows as the ending says, or exact bytes."""
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path, row_group_size=10)
    else:
        body = jsonl(content)
        path.write_bytes(gzip.compress(body) if path.suffix == ".gz" else body)
    return path


def documents(
    paths: list[Path], *, column: str = "text", partitions: int = 1, **place: Any
) -> Documents:
    """The files as a run opens them: described, of one kind, streamed."""
    files = tuple(describe_file(path) for path in paths)
    file_kind(paths)
    spec = make_spec(text=files, text_column=column, partitions=partitions)
    return Documents(resolve(spec, paths), paths, **place)


def rest(found: Documents) -> list[tuple[str, str]]:
    return list(iter(found.next, None))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.NDJSON", "a.jsonl.gz", "a.parquet"])
def test_every_document_comes_as_it_was_written_with_its_id(tmp_path: Path, name: str) -> None:
    assert rest(documents([write(tmp_path / name, ROWS)])) == EXPECTED


def test_a_plain_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "letter.v2.txt"
    path.write_text("Dear Ανδρέα,\n\n\n  hello 🙂\n", encoding="utf-8")
    assert rest(documents([path])) == [("#0", "Dear Ανδρέα,\n\n\n  hello 🙂\n")]


def test_several_files_are_read_in_the_order_they_were_given(tmp_path: Path) -> None:
    second = write(tmp_path / "a.jsonl", ROWS[20:])
    first = write(tmp_path / "b.jsonl", ROWS[:20])
    assert rest(documents([first, second])) == EXPECTED


def test_files_of_one_kind_may_be_compressed_or_not(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl.gz", ROWS[:20])
    second = write(tmp_path / "b.jsonl", ROWS[20:])
    assert rest(documents([first, second])) == EXPECTED


@pytest.mark.parametrize("name", ["*.jsonl", "a[1].jsonl", "what?.jsonl", "a b é#%{x}.jsonl"])
def test_a_file_is_read_under_any_name_and_no_other_file_with_it(tmp_path: Path, name: str) -> None:
    """A file's name is no pattern."""
    for other in ("a1.jsonl", "whatx.jsonl"):
        write(tmp_path / other, [{"id": "another file's", "text": "x"}])
    assert rest(documents([write(tmp_path / name, ROWS)])) == EXPECTED


def test_a_document_without_an_id_is_called_by_its_number(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    assert rest(documents([path])) == [("#0", "a"), ("#1", "b")]


def test_an_id_that_is_no_text_is_not_taken_for_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"id": 7, "text": "a"}, {"id": 8, "text": "b"}])
    assert rest(documents([path])) == [("#0", "a"), ("#1", "b")]


def test_the_text_may_be_in_another_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"id": "x", "text": "no", "body": "yes"}])
    assert rest(documents([path], column="body")) == [("x", "yes")]


def test_an_empty_text_is_a_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": ""}, {"text": "b"}])
    assert rest(documents([path])) == [("#0", ""), ("#1", "b")]


def test_the_packaged_sample_is_read_like_any_file() -> None:
    found = Documents(resolve(make_spec(dataset=SAMPLE), []), [])
    lines = [json.loads(line) for line in SAMPLE_FILE.read_text(encoding="utf-8").splitlines()]
    assert rest(found) == [(line["id"], line["text"]) for line in lines]


@pytest.mark.parametrize(
    "names", [["a.jsonl"], ["a.jsonl.gz"], ["a.parquet"], ["a.jsonl", "b.jsonl"]]
)
def test_reading_goes_on_exactly_where_a_written_down_place_says(
    tmp_path: Path, names: list[str]
) -> None:
    size = len(ROWS) // len(names)
    paths = [
        write(tmp_path / name, ROWS[size * number : size * (number + 1)])
        for number, name in enumerate(names)
    ]
    found = documents(paths)
    places = [json.dumps(found.resume_state())]
    while found.next():
        places.append(json.dumps(found.resume_state()))
    for read in (0, 1, 9, 10, 11, 20, 39, 40):
        again = documents(paths, resume_state=json.loads(places[read]))
        assert rest(again) == EXPECTED[read:]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("start", [0, 7, 10])
def test_a_place_found_after_going_on_is_as_good_as_any(
    tmp_path: Path, name: str, start: int
) -> None:
    """Also the one before the first document is read, where `datasets` itself tells the beginning."""
    path = write(tmp_path / name, ROWS)
    found = documents([path])
    for _ in range(start):
        found.next()
    again = documents([path], resume_state=json.loads(json.dumps(found.resume_state())))
    for read in range(start, start + 5):
        place = json.loads(json.dumps(again.resume_state()))
        assert rest(documents([path], resume_state=place)) == EXPECTED[read:]
        again.next()


def test_a_document_without_an_id_keeps_its_number_after_going_on(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"text": text} for text in "abcd"])
    found = documents([path])
    found.next()
    found.next()
    place = json.loads(json.dumps(found.resume_state()))
    assert rest(documents([path], resume_state=place)) == [("#2", "c"), ("#3", "d")]


@pytest.mark.parametrize(
    ("files", "groups", "partitions"), [(15, 1, 10), (15, 4, 10), (3, 7, 5), (40, 1, 2), (1, 9, 4)]
)
def test_shares_of_parquet_are_as_even_as_row_groups_make_them(
    tmp_path: Path, files: int, groups: int, partitions: int
) -> None:
    """And contiguous, and together the whole, from wherever each is resumed."""
    rows = [{"id": f"{number}", "text": "same size"} for number in range(files * groups * 2)]
    paths = [tmp_path / f"{number:02}.parquet" for number in range(files)]
    for number, path in enumerate(paths):
        table = pyarrow.Table.from_pylist(rows[number * groups * 2 : (number + 1) * groups * 2])
        pyarrow.parquet.write_table(table, path, row_group_size=2)
    every = list(range(partitions))
    found = [rest(documents(paths, partition=each, partitions=partitions)) for each in every]
    assert [name for share in found for name, _ in share] == [row["id"] for row in rows]
    sizes = [len(share) for share in found]
    assert max(sizes) - min(sizes) <= 2
    stream = documents(paths, partition=partitions - 1, partitions=partitions)
    for number in range(sizes[-1]):
        state = json.loads(json.dumps(stream.resume_state()))
        again = documents(
            paths, partition=partitions - 1, partitions=partitions, resume_state=state
        )
        assert again.next() == stream.next() == found[-1][number]


def test_shares_of_other_files_are_as_even_as_whole_files_make_them(tmp_path: Path) -> None:
    """By their bytes: the one large file is a share."""
    sizes = [1000] * 6 + [6000, 3000, 3000, 6000]
    paths = [
        write(tmp_path / f"{number}.jsonl", [{"text": "x" * size}])
        for number, size in enumerate(sizes)
    ]
    found = [rest(documents(paths, partition=each, partitions=4)) for each in range(4)]
    assert [[len(text) for _, text in share] for share in found] == [
        [1000] * 6,
        [6000],
        [3000, 3000],
        [6000],
    ]


@pytest.mark.parametrize("partitions", [1, 2, 3, 4])
def test_shares_are_contiguous_and_together_the_whole(tmp_path: Path, partitions: int) -> None:
    """One Parquet file of four row groups is shared by row group."""
    path = write(tmp_path / "a.parquet", ROWS)
    shares = [
        rest(documents([path], partition=number, partitions=partitions))
        for number in range(partitions)
    ]
    assert all(shares)
    assert [document for share in shares for document in share] == EXPECTED


def test_a_share_goes_on_where_its_place_says(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", ROWS)
    share: dict[str, Any] = {"partition": 1, "partitions": 2}
    found = documents([path], **share)
    for _ in range(7):
        found.next()
    place = json.loads(json.dumps(found.resume_state()))
    assert rest(documents([path], **share, resume_state=place)) == EXPECTED[27:]


@pytest.mark.parametrize(
    ("name", "possible"),
    [
        ("a.parquet", "is 4 files or row groups of Parquet: use --partitions 4"),
        ("a.jsonl", "is one file: use --partitions 1"),
    ],
)
def test_too_many_partitions_say_how_many_are_possible(
    tmp_path: Path, name: str, possible: str
) -> None:
    path = write(tmp_path / name, ROWS)
    with pytest.raises(InputError, match=f"{possible}, or for 5 partitions give 5 or more"):
        documents([path], partition=0, partitions=5)


def cut(body: bytes) -> bytes:
    return body[: len(body) * 2 // 3]


DAMAGED: list[tuple[str, Any, str]] = [
    ("broken-line.jsonl", jsonl(ROWS) + b'{"id": "x", "text": }\n', "broken-line.jsonl"),
    ("half-a-line.jsonl", jsonl(ROWS)[:-9], "half-a-line.jsonl"),
    ("latin-1.jsonl", '{"text": "café au lait"}\n'.encode("latin-1"), "utf-8"),
    ("latin-1.txt", "café au lait".encode("latin-1"), "utf-8"),
    ("utf-16.txt", "café".encode("utf-16"), "utf-8"),
    ("cut.jsonl.gz", cut(gzip.compress(jsonl(ROWS))), "end-of-stream"),
    ("not-gzip.jsonl.gz", jsonl(ROWS), "gzip"),
    ("not-parquet.parquet", b"PAR1 this is not", "[Pp]arquet"),
    ("empty.jsonl", b"", "empty"),
    ("null.jsonl", b'{"text": null}\n', "document 0 of null.jsonl has nothing"),
    ("number.jsonl", b'{"text": 5}\n', "document 0 of number.jsonl has a int"),
    ("list.jsonl", b'{"text": ["a"]}\n', "document 0 of list.jsonl has a list"),
    ("object.jsonl", b'{"text": {"a": 1}}\n', "document 0 of object.jsonl has a dict"),
    ("late.jsonl", b'{"text": "a"}\n{"text": null}\n', "document 1 of late.jsonl has nothing"),
    ("other.jsonl", b'{"body": "x", "id": "y"}\n', "has no column 'text'.*body, id"),
    ("scalar.jsonl", b"5\n", "scalar.jsonl"),
    ("surrogate.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
]


@pytest.mark.parametrize(("name", "body", "words"), DAMAGED, ids=[row[0] for row in DAMAGED])
def test_damaged_text_is_an_error_of_one_line(
    tmp_path: Path, name: str, body: bytes, words: str
) -> None:
    path = write(tmp_path / name, body)
    with pytest.raises(InputError, match=words) as caught:
        rest(documents([path]))
    assert "\n" not in str(caught.value).strip()


def test_damaged_parquet_is_an_error_in_words(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.parquet", ROWS).read_bytes()
    flipped = bytes(byte ^ 0xFF if 60 <= place < 400 else byte for place, byte in enumerate(whole))
    for name, body in {"flipped.parquet": flipped, "cut.parquet": cut(whole)}.items():
        with pytest.raises(InputError, match=name):
            rest(documents([write(tmp_path / name, body)]))


def test_parquet_without_the_column_or_with_numbers_in_it_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"id": "x", "number": 5}])
    with pytest.raises(InputError, match="no column 'text'"):
        documents([path]).next()
    with pytest.raises(InputError, match="a int, '5' in its column 'number'"):
        documents([path], column="number").next()


def test_a_file_with_other_columns_than_the_first_is_no_reason_to_go_on_in_silence(
    tmp_path: Path,
) -> None:
    first = write(tmp_path / "a.jsonl", ROWS)
    second = write(tmp_path / "b.jsonl", [{"body": "b"}])
    with pytest.raises(InputError, match=r"a\.jsonl, b\.jsonl"):
        rest(documents([first, second]))


@pytest.mark.parametrize("body", [b"\n\n\n", b"  \n"], ids=["newlines", "blanks"])
def test_a_file_of_empty_lines_has_no_documents(tmp_path: Path, body: bytes) -> None:
    """The packer then says that there is too little text."""
    assert rest(documents([write(tmp_path / "blank.jsonl", body)])) == []


def test_what_is_no_readable_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the text file .*gone\.jsonl: No such file"):
        describe_file(tmp_path / "gone.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"cannot read .*folder\.jsonl: Is a directory"):
        describe_file(tmp_path / "folder.jsonl")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.jsonl", "json"),
        ("a.json", "json"),
        ("a.ndjson", "json"),
        ("a.JSONL", "json"),
        ("a.b.jsonl.gz", "json"),
        ("a.jsonl.zst", "json"),
        ("a.parquet", "parquet"),
        ("a.txt", "text"),
        ("README.md", "text"),
        ("2024.txt.gz", "text"),
    ],
)
def test_the_ending_says_the_kind(name: str, kind: str) -> None:
    assert file_kind([Path("some.folder") / name]) == kind


@pytest.mark.parametrize("name", ["a.csv", "a", "a.gz", ".jsonl", "a.jsonl.bak", "jsonl"])
def test_an_ending_that_says_nothing_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown file type; use \.jsonl, .*\.parquet"):
        file_kind([Path(name)])


def test_files_of_two_kinds_are_refused() -> None:
    with pytest.raises(UsageError, match="json, parquet"):
        file_kind([Path("a.jsonl"), Path("b.parquet")])


def test_a_file_is_described_by_what_it_holds(tmp_path: Path) -> None:
    one, two, three = (
        describe_file(write(tmp_path / name, body))
        for name, body in (("a.txt", b"same"), ("b.txt", b"same"), ("c.txt", b"other"))
    )
    assert (one.name, one.size) == ("a.txt", 4)
    assert (one.size, one.digest) == (two.size, two.digest)
    assert one.digest != three.digest
