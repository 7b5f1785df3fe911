"""What `neoscope verify` says of a run: what was checked, what is no damage, and what cannot be meant."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from support.command import invoke
from support.places import listing, put
from support.runs import make


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, small_model: Path) -> str:
    """A run of two batches in a folder, which no test changes."""
    return make("folder", request, small_model)


@pytest.fixture(scope="module")
def of_files(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """A run of two local files, and the files."""
    from neoscope.text.documents import SAMPLE_FILE

    folder = tmp_path_factory.mktemp("of-files")
    lines = SAMPLE_FILE.read_text("utf-8").splitlines()
    files = [folder / "a.jsonl", folder / "b.jsonl"]
    for number, file in enumerate(files):
        file.write_text("\n".join(lines[number * 4 : number * 4 + 4]) + "\n")
    texts = [word for file in files for word in ("--text", file)]
    shape = ["--sequences", 4, "--positions", 16]
    done = invoke("run", folder / "run", "--model", small_model, *texts, *shape)
    assert done.code == 0, done.err
    return str(folder / "run"), files


def last(text: str) -> str:
    return text.strip().splitlines()[-1]


def test_the_last_line_says_what_was_checked(run: str) -> None:
    size = sum(size for size, *_ in listing(run).values())
    plain = invoke("verify", run)
    assert plain.code == 0
    assert f"is whole: {len(listing(run))} objects, {size:,} bytes" in last(plain.out)
    assert "computed again" not in plain.out and "read again" not in plain.out
    more = invoke("verify", run, "--recompute", "2", "--text")
    assert "2 sequences computed again agree" in last(more.out)
    assert "the text read again gives the same tokens" in last(more.out)


def test_what_is_not_the_runs_is_told_and_no_damage(run: str, tmp_path: Path) -> None:
    place = str(tmp_path / "run")
    shutil.copytree(run, place)
    plain = last(invoke("verify", place).out)
    for key in (".DS_Store", "activations.zarr/MLP_0/Thumbs.db", "records/._x", "notes/mine.txt"):
        put(place, key, b"x")
    put(place, "report.html", b"<html>")
    done = invoke("verify", place)
    assert done.code == 0, done.out
    assert "1 objects are not the run's and stay: notes/mine.txt" in done.out
    assert "3 objects are left there by a system" in done.out and "Thumbs.db" in done.out
    assert "report.html" not in done.out and last(done.out) == plain

    put(place, "activations.zarr/MLP_0/c/99/0/0", b"x")  # which a reader would come upon
    done = invoke("verify", place)
    assert done.code == 5 and "activations.zarr/MLP_0/c/99/0/0: does not belong" in done.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--text-file", "x.jsonl"), "--text-file goes with --text"),
        (("--recompute", "17"), "has 16 sequences: give 16 or fewer"),
        (("--text", "--text-file", "x.jsonl"), "was not made of local files"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_refused_at_once(
    run: str, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = invoke("verify", run, *words)
    assert done.code == 2 and said in done.err and "verifying" not in done.err


def test_all_sequences_can_be_computed_again(run: str) -> None:
    done = invoke("verify", run, "--recompute", "16")
    assert done.code == 0 and "16 sequences computed again" in last(done.out)


def test_a_run_without_activations_has_none_to_compute_again(
    request: pytest.FixtureRequest, small_model: Path
) -> None:
    done = invoke("verify", make("folder", request, small_model, "--no-arrays"), "--recompute", "1")
    assert done.code == 2 and "no activations" in done.err


def test_wrong_text_files_are_bad_input_and_each_is_named(
    of_files: tuple[str, list[Path]], tmp_path: Path
) -> None:
    url, (first, second) = of_files
    other = tmp_path / "other.jsonl"
    other.write_text('{"text": "another"}\n')
    done = invoke("verify", url, "--text", "--text-file", first, "--text-file", other)
    assert done.code == 3
    assert f"{other} is not the run's b.jsonl" in done.err and "a.jsonl" not in done.err
    done = invoke("verify", url, "--text", "--text-file", second, "--text-file", first)
    assert done.code == 3
    assert "is not the run's a.jsonl" in done.err and "is not the run's b.jsonl" in done.err
    for words in ((), ("--text-file", first)):
        done = invoke("verify", url, "--text", *words)
        assert done.code == 2 and "2 local files (a.jsonl, b.jsonl)" in done.err
    done = invoke("verify", url, "--text", "--text-file", first, "--text-file", second)
    assert done.code == 0, done.err
