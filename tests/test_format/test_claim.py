"""Where a run or a copy may go: an empty place or its own, and nothing else."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from faults.proxy import proxied
from support.command import Finished, invoke
from support.places import body, listing, put
from support.runs import bodies, make, pull

SYSTEM_FILES = (
    ".DS_Store",
    "._notes",
    "Thumbs.db",
    "desktop.ini",
    "lost+found/1234",
    ".nfs0000000000012345",
    "photos/@eaDir/x/SYNOFILE_THUMB_M.jpg",
    "activations.zarr/.DS_Store",
)


@pytest.fixture(scope="module")
def run(request: pytest.FixtureRequest, small_model: Path) -> str:
    """A run of two batches in a folder, which no test changes."""
    return make("folder", request, small_model)


def refused(done: Finished, place: str, before: dict[str, object], *words: str) -> None:
    """Exit 4 in one line with those words, and nothing written or changed."""
    assert done.code == 4, (done.out, done.err)
    errors = [line for line in done.err.splitlines() if line.startswith("neoscope: error:")]
    assert len(errors) == 1 and all(word in errors[0] for word in (place, *words)), done.err
    assert listing(place) == before


def test_a_run_does_not_go_among_other_objects(place: str, small_run: list[str]) -> None:
    put(place, "src/main.c", b"int main() {}")
    before = listing(place)
    refused(
        invoke("run", place, *small_run), place, before, "src/main.c", "give an empty destination"
    )


def test_a_run_does_not_go_over_a_selection_nor_a_selection_over_a_run(
    run: str, place: str, small_run: list[str]
) -> None:
    pull(run, place, "--layers", "0", "--sequences", "0-3")
    before = listing(place)
    refused(invoke("run", place, *small_run), place, before, "holds other objects")
    refused(invoke("pull", run, place), place, before, "holds other objects")
    pull(run, place, "--layers", "0", "--sequences", "0-3")


def test_what_systems_leave_does_not_count(run: str, place: str, small_run: list[str]) -> None:
    for key in SYSTEM_FILES:
        put(place, key, b"left")
    assert invoke("run", place, *small_run).code == 0
    assert set(SYSTEM_FILES) <= set(listing(place))


def test_a_copy_goes_beside_what_systems_leave(run: str, place: str) -> None:
    for key in SYSTEM_FILES:
        put(place, key, b"left")
    pull(run, place)
    assert bodies(place) == {**bodies(run), **dict.fromkeys(SYSTEM_FILES, b"left")}


def test_a_prefix_made_as_a_folder_is_empty(s3_url: str, small_run: list[str]) -> None:
    put(s3_url, "", b"")  # an object that ends in a slash, as consoles make it
    assert invoke("run", s3_url, *small_run).code == 0
    done = invoke("verify", s3_url)
    assert done.code == 0 and "not the run's" not in done.out


@pytest.mark.parametrize("depth", ["inside", "inside/deep/er"])
def test_nothing_goes_into_a_run(
    run: str, place: str, small_run: list[str], depth: str, tmp_path: Path
) -> None:
    assert invoke("run", place, *small_run).code == 0
    before = listing(place)
    inside = f"{place}/{depth}"
    for words in (("run", inside, *small_run), ("pull", run, inside)):
        refused(invoke(*words), place, before, inside, f"lies in the run at {place}")
    done = invoke("pull", run, inside, "--layers", "0")
    refused(done, place, before, "lies in the run")
    assert invoke("verify", place).code == 0


def test_nothing_goes_into_a_run_by_a_link(run: str, tmp_path: Path, small_run: list[str]) -> None:
    (tmp_path / "link").symlink_to(Path(run) / "activations.zarr")
    done = invoke("run", tmp_path / "link" / "inside", *small_run)
    assert done.code == 4 and f"lies in the run at {run}" in done.err


def test_a_run_does_not_go_around_a_run(place: str, small_run: list[str]) -> None:
    assert invoke("run", f"{place}/inside", *small_run).code == 0
    before = listing(place)
    refused(invoke("run", place, *small_run), place, before, "inside/")


def test_a_folder_with_a_run_json_of_something_else_holds_no_run(
    place: str, small_run: list[str]
) -> None:
    put(place, "run.json", b'{"kind": "a bicycle"}')
    assert invoke("run", f"{place}/inside", *small_run).code == 0


def test_keys_that_reach_their_own_prefix_only_are_enough(
    endpoint: str, s3_url: str, small_run: list[str]
) -> None:
    with proxied(endpoint) as proxy:
        parent = s3_url.removeprefix("s3://")
        proxy.plan = lambda r: "quoting 403" if r.key == f"{parent}/run.json" else None
        done = invoke("run", f"{s3_url}/inside", *small_run, "--endpoint-url", proxy.endpoint)
        assert done.code == 0, done.err
        assert proxy.faults["quoting 403"] > 0


def test_what_comes_while_the_model_is_loaded_is_not_written_to(
    place: str, small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neoscope.pipeline import partition

    prepare = partition.prepare

    def slow(*arguments: object) -> object:
        put(place, "mine.txt", b"mine")
        return prepare(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(partition, "prepare", slow)
    done = invoke("run", place, *small_run)
    assert done.code == 4 and "mine.txt" in done.err
    assert set(listing(place)) == {"mine.txt"}


def test_workers_of_one_run_that_start_at_once_share_the_place(
    place: str, small_run: list[str]
) -> None:
    """All of them find no claim; those that come late find the first one's chunks."""
    from neoscope.format import claim as places
    from neoscope.format.layout import CLAIM
    from neoscope.storage.store import open_store

    store, found = open_store(place, write=True), []
    barrier = threading.Barrier(8)

    def worker(number: int) -> None:
        barrier.wait()
        places.check_destination(store, CLAIM)
        there = places.take_destination(store, CLAIM, b"%d" % number)
        store.put(f"chunks/{number}", b"values")
        found.append(there)

    threads = [threading.Thread(target=worker, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and set(found) == {body(place, CLAIM)}


def test_a_claim_that_was_put_by_a_worker_killed_right_after_is_adopted(
    place: str, small_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from neoscope.pipeline import partition

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(partition.records, "check_resolved", killed)
        assert invoke("run", place, *small_run).code == 130
    assert set(listing(place)) == {"run.json"}
    assert invoke("run", place, *small_run).code == 0


def test_a_claim_whose_put_was_killed_leaves_an_empty_place(
    tmp_path: Path, small_run: list[str]
) -> None:
    (tmp_path / "run.json#1").write_bytes(b"{")
    assert invoke("run", tmp_path, *small_run).code == 0
    assert not (tmp_path / "run.json#1").exists()


def test_a_file_that_is_called_as_a_killed_put_leaves_one_is_not_cleared_away(
    tmp_path: Path, small_run: list[str]
) -> None:
    (tmp_path / "chapter#1").write_text("mine")  # the listing does not show it
    done = invoke("run", tmp_path, *small_run)
    assert done.code == 4 and "chapter#1" in done.err
    assert (tmp_path / "chapter#1").read_text() == "mine"


def test_taking_a_place_asks_for_one_page(endpoint: str, s3_url: str, small_run: list[str]) -> None:
    for number in range(1100):
        put(s3_url, f"photos/{number}", b"")
    with proxied(endpoint) as proxy:
        done = invoke("run", s3_url, *small_run, "--endpoint-url", proxy.endpoint)
        assert done.code == 4
        assert len([r for r in proxy.requests if "list-type" in r.query]) == 1


# A selection that goes on


@pytest.mark.parametrize(
    "words",
    [("--layers", "0", "--sequences", "0-3"), ("--neurons", "3,17,40")],
    ids=["whole chunks", "parts of chunks"],
)
def test_chunks_of_a_selection_are_held_against_the_runs_digests(
    run: str, tmp_path: Path, words: tuple[str, ...]
) -> None:
    """A checksum alone would take any chunk of the same shape for right."""
    part = str(tmp_path / "part")
    pull(run, part, *words)
    right, before = bodies(part), listing(part)
    one, other = "activations.zarr/MLP_0/c/0/0/0", "activations.zarr/MLP_0/c/1/0/0"
    put(part, one, right[other])
    pull(run, part, *words)
    assert bodies(part) == right
    values = {key for key in before if "/MLP_" in key and "/c/" in key}
    assert {key for key in values if listing(part)[key] != before[key]} == {one}


def test_parts_of_chunks_that_were_put_are_not_read_again(
    endpoint: str, request: pytest.FixtureRequest, small_model: Path, tmp_path: Path
) -> None:
    url, words = make("minio", request, small_model), ("--neurons", "3,17,40")
    pull(url, tmp_path, *words)
    for digests, fetched in ((True, 0), (False, 3 * 8 * 3)):
        if not digests:
            (tmp_path / "digests.json").write_bytes(b"{")
        with proxied(endpoint) as proxy:
            pull(url, tmp_path, *words, "--endpoint-url", proxy.endpoint)
            assert (
                len([r for r in proxy.requests if "/MLP_" in r.key and "/c/" in r.key]) == fetched
            )
    assert json.loads((tmp_path / "digests.json").read_bytes())
