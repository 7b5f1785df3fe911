"""Deleting a run, and nothing else."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from neoscope import open_run
from neoscope.errors import InputError, UnavailableError
from support.command import invoke, neoscope
from support.places import in_minio, listing, put


@pytest.fixture
def finished(place: str, small_run: list[str]) -> str:
    """A finished run of the test's own."""
    assert invoke("run", place, *small_run).code == 0
    return place


FOREIGN = [
    "notes.txt",
    "manifest.json.bak",
    "activations.zarr.old/zarr.json",
    "records-of-mine/a.json",
    "plots/manifest.json",
    "activations.zarr/notes.txt",
    "records/notes.txt",
    "statistics/plot.png",
]


def test_delete_takes_the_run_and_leaves_what_is_not_its_own(finished: str) -> None:
    for key in FOREIGN:
        put(finished, key, b"mine")
    done = invoke("delete", finished, "--yes")
    assert done.code == 0, done.err
    assert set(listing(finished)) == set(FOREIGN)
    assert f"{len(FOREIGN)} objects that are not the run's stay" in done.out
    assert invoke("delete", finished, "--yes").code == 3


def test_delete_asks_first_and_without_a_terminal_it_takes_no_answer(finished: str) -> None:
    before = listing(finished)
    refused = neoscope("delete", finished)
    assert refused.code == 2
    assert "--yes" in refused.err
    assert listing(finished) == before


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("n", 2), ("", 2)])
def test_delete_takes_yes_for_an_answer_at_a_terminal(
    small_run: list[str], tmp_path: Path, answer: str, code: int
) -> None:
    url = tmp_path / "run"
    assert invoke("run", url, *small_run).code == 0
    ours, theirs = pty.openpty()
    os.write(ours, f"{answer}\n".encode())
    done = subprocess.run(
        [sys.executable, "-m", "neoscope", "delete", str(url)],
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=60,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == code, done.stderr
    assert f"Delete the run at {url}?" in done.stdout
    assert (url / "manifest.json").exists() == (code != 0)


def test_delete_begins_with_the_manifest_and_ends_with_the_claim(
    finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neoscope.storage.store import Store

    order: list[str] = []
    really_delete = Store.delete

    def delete(store: Store, keys: list[str]) -> None:
        order.extend(keys)
        really_delete(store, keys)

    monkeypatch.setattr(Store, "delete", delete)
    everything = set(listing(finished))
    assert invoke("delete", finished, "--yes").code == 0
    assert (order[0], order[-1]) == ("manifest.json", "run.json")
    assert set(order) == everything


def test_a_deletion_that_broke_off_leaves_no_finished_run_and_can_be_repeated(
    finished: str, small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neoscope.storage.store import Store

    really_delete = Store.delete

    def only_the_first(store: Store, keys: list[str]) -> None:
        really_delete(store, keys)
        raise UnavailableError("the store went away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "delete", only_the_first)
        assert invoke("delete", finished, "--yes").code == 75
    assert "manifest.json" not in listing(finished)
    with pytest.raises(InputError):
        open_run(finished)
    assert invoke("delete", finished, "--yes").code == 0
    assert listing(finished) == {}
    assert invoke("run", finished, *small_run).code == 0


def test_a_run_that_was_never_finished_can_be_deleted(finished: str) -> None:
    for key in [key for key in listing(finished) if key.endswith(("manifest.json", "zarr.json"))]:
        if finished.startswith("s3://"):
            bucket, prefix = in_minio(finished)
            bucket.Object(prefix + key).delete()
        else:
            (Path(finished) / key).unlink()
    assert invoke("delete", finished, "--yes").code == 0
    assert listing(finished) == {}
