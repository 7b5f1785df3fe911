"""Text that ends too soon: said before anything is claimed or computed, with the number that it fills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from neoscope.pipeline import inputs
from neoscope.text import documents as text_documents
from support.command import invoke

SIZE = ("--sequences", 4, "--positions", 16)
WHOLE = 7  # batches that the text fills


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A text of 7 batches of 64 tokens and some more, one byte a token."""
    path = tmp_path / "documents.jsonl"
    rows = [{"id": f"d{number}", "text": "\x01" * 20} for number in range(23)]  # 460 tokens
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(place: Path, model: Path, *words: object) -> Any:
    return invoke("run", place, "--model", model, *SIZE, *words)


def content(place: Path) -> str:
    return str(json.loads((place / "manifest.json").read_bytes())["content_digest"])


@pytest.fixture(params=[32 << 20, 1], ids=["kept", "counted"])
def ahead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are packed once and kept, or of more than fits are counted first."""
    monkeypatch.setattr(inputs, "AHEAD_BYTES", request.param)


@pytest.mark.usefixtures("ahead")
@pytest.mark.parametrize("kind", ["--arrays", "--no-arrays"])
def test_a_file_that_is_too_short_is_refused_before_anything_is_there(
    documents: Path, small_model: Path, tmp_path: Path, kind: str
) -> None:
    place = tmp_path / "run"
    text = ("--text", documents, kind)
    done = run(place, small_model, *text, "--batches", WHOLE + 1)
    assert done.code == 3
    assert done.err.endswith(
        f"error: the text fills {WHOLE} batches of 64 tokens: use --batches {WHOLE}\n"
    )
    assert not [*place.rglob("*.*")]
    done = run(place, small_model, *text, "--batches", WHOLE)
    assert done.code == 0, done.err


def test_looking_ahead_changes_no_result(
    documents: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("--text", documents, "--batches", WHOLE)
    for number, size in enumerate((32 << 20, 1, 1000)):
        monkeypatch.setattr(inputs, "AHEAD_BYTES", size)
        assert run(tmp_path / f"{number}", small_model, *given).code == 0
    assert content(tmp_path / "0") == content(tmp_path / "1") == content(tmp_path / "2")


def test_no_text_that_is_kept_is_read_twice(
    documents: Path, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    following = text_documents.Documents.next
    monkeypatch.setattr(
        text_documents.Documents, "next", lambda documents: read.append(1) or following(documents)
    )
    assert run(tmp_path / "run", small_model, "--text", documents, "--batches", 3).code == 0
    assert len(read) == 10  # of 20 tokens: 192 are in the first ten


def test_a_share_that_is_too_short_says_what_to_do_with_the_place(
    documents: Path, small_model: Path, tmp_path: Path
) -> None:
    """Another worker has claimed it, of whose share there is enough."""
    short = tmp_path / "short.jsonl"
    short.write_text('{"text": "' + "\\u0001" * 130 + '"}\n')
    place = tmp_path / "run"
    given = ("--text", documents, "--text", short, "--partitions", 2, "--batches", 3)
    assert run(place, small_model, *given, "--partition", 0).code == 0
    done = run(place, small_model, *given, "--partition", 1)
    assert done.code == 3
    assert done.err.endswith(
        "error: the text's share of partition 1 fills 2 batches of 64 tokens: use --batches 2, and "
        f"give another output, or first: neoscope delete {place}\n"
    )
    assert not [*(place / "records").glob("00001-*")]
