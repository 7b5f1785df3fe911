"""Batches overlap, and nothing else changes: what is recorded, in which order, and how a run ends."""

from __future__ import annotations

import queue
import re
import shutil
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from neoscope.errors import UnavailableError
from neoscope.pipeline import loop
from neoscope.pipeline.recording import RECORDS_BEHIND
from neoscope.pipeline.stages import InOrder, ahead
from neoscope.storage.store import Body, Store
from support.command import invoke
from support.making import Run, arguments
from support.places import listing

BATCHES = 6
SECONDS = 60  # until what must come is taken to be missing
A_MOMENT = 0.5  # in which what must not come would come
CHUNK = re.compile(r"MLP_\d+/c/(\d+)/")
CHUNKS_DOWN = 4  # of a layer, along the sequences of a batch


class Watched:
    """A run of some batches: which passes have begun, what was put, and what each put waits for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self._another = threading.Condition()
        self.put: list[str] = []
        self.before: Callable[[str], None] = lambda key: None
        really_create, really_stream = Store.create, loop.stream

        def create(store: Store, key: str, body: Body) -> str | None:
            self.before(key)
            self.put.append(key)
            return really_create(store, key, body)

        def stream(*given: Any, **named: Any) -> None:
            with self._another:
                self.begun += 1
                self._another.notify_all()
            really_stream(*given, **named)

        monkeypatch.setattr(Store, "create", create)
        monkeypatch.setattr(loop, "stream", stream)

    def wait_for_pass(self, number: int, seconds: float = SECONDS) -> bool:
        """Whether so many passes have begun, as soon as that is so."""
        with self._another:
            return self._another.wait_for(lambda: self.begun >= number, seconds)

    @property
    def records(self) -> list[str]:
        return [key for key in self.put if key.startswith("records/")]


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    url = str(tmp_path_factory.mktemp("undisturbed") / "run")
    return Run(url, invoke("run", url, *arguments(small_model, batches=BATCHES)))


def batch_of(key: str) -> int | None:
    """The batch whose chunk of a layer a key is, from 0."""
    found = CHUNK.search(key)
    return int(found[1]) // CHUNKS_DOWN if found else None


def records(count: int) -> list[str]:
    return [f"records/00000-{number:08}.json" for number in range(1, count + 1)]


def test_a_batch_is_stored_and_recorded_while_the_next_one_is_computed(
    watched: Watched, undisturbed: Run, small_model: Path, tmp_path: Path
) -> None:
    """Nothing of a batch is put, nor its statistics, before the next pass has begun: they are its own all
    the same."""

    def next_has_begun(key: str) -> None:
        state = re.fullmatch(r"statistics/00000-(\d+)\.safetensors", key)
        batch = int(state[1]) - 1 if state else batch_of(key)
        if batch is not None and batch + 1 < BATCHES:
            assert watched.wait_for_pass(batch + 2)

    watched.before = next_has_begun
    url = str(tmp_path / "run")
    done = invoke("run", url, *arguments(small_model, batches=BATCHES))
    assert done.code == 0, done.err
    assert Run(url, done).manifest["content_digest"] == undisturbed.manifest["content_digest"]
    assert set(listing(url)) == set(listing(undisturbed.url))
    assert watched.records == records(BATCHES)


def test_a_record_waits_for_the_one_before(
    watched: Watched, small_model: Path, tmp_path: Path
) -> None:
    """One chunk of the first batch is held until all of the second is stored."""
    second, held = threading.Event(), threading.Event()

    def hold(key: str) -> None:
        if batch_of(key) == 0 and not held.is_set():
            held.set()
            assert second.wait(SECONDS)
            assert watched.records == []
        elif key == "statistics/00000-00000002.safetensors":
            second.set()

    watched.before = hold
    done = invoke("run", tmp_path / "run", *arguments(small_model, batches=BATCHES))
    assert done.code == 0, done.err
    assert watched.records == records(BATCHES)


@pytest.mark.parametrize("what", ["a chunk", "token ids", "statistics", "a record"])
def test_what_fails_of_a_batch_stops_the_pass_and_leaves_the_records_before_it_alone(
    watched: Watched, small_model: Path, tmp_path: Path, what: str
) -> None:
    fails = {
        "a chunk": "activations.zarr/MLP_1/c/9/0/0",  # of the third batch
        "token ids": "activations.zarr/token_ids/c/2/0",
        "statistics": "statistics/00000-00000003.safetensors",
        "a record": "records/00000-00000003.json",
    }[what]

    def fail(key: str) -> None:
        if key == fails:
            raise UnavailableError("the store went away")

    watched.before = fail
    url = tmp_path / "run"
    done = invoke(
        "run", url, *arguments(small_model, batches=1000, dataset=None, text=text(tmp_path))
    )
    assert done.code == 75
    assert done.err.count("the store went away") == 1
    assert watched.records == records(2)
    assert sorted(f"records/{path.name}" for path in (url / "records").iterdir()) == records(2)
    assert watched.begun <= 3 + RECORDS_BEHIND + 1


def text(folder: Path) -> Path:
    path = folder / "long.txt"
    path.write_text("once upon a time there was a neuron \n" * 40_000)
    return path


def test_a_store_that_does_not_answer_makes_the_pass_wait(
    watched: Watched, small_model: Path, tmp_path: Path
) -> None:
    """So many batches are on their way at most, whatever there is of host memory."""
    gate = threading.Event()

    def wait(key: str) -> None:
        if batch_of(key) is not None:
            assert gate.wait(SECONDS)

    watched.before = wait
    given = arguments(small_model, batches=BATCHES)
    run = threading.Thread(target=invoke, args=["run", tmp_path / "run", *given], daemon=True)
    run.start()
    assert watched.wait_for_pass(RECORDS_BEHIND + 1)
    assert not watched.wait_for_pass(RECORDS_BEHIND + 2, A_MOMENT)
    assert watched.records == []
    gate.set()
    run.join(SECONDS)
    assert watched.records == records(BATCHES)


def test_what_is_made_ahead_comes_in_order_and_a_failure_in_its_turn() -> None:
    made: queue.Queue[int] = queue.Queue()
    numbers = iter(range(100))

    def make() -> int:
        made.put(number := next(numbers))
        if number == 5:
            raise UnavailableError("no more")
        return number

    with closing(ahead(make, 100, 3)) as items:
        given = [next(items)]
        assert [made.get(timeout=SECONDS) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(queue.Empty):
            made.get(timeout=A_MOMENT)
        with pytest.raises(UnavailableError, match="no more"):
            given.extend(items)
    assert given == [0, 1, 2, 3, 4]


def test_after_a_failure_nothing_more_is_done() -> None:
    done: list[str] = []

    def fail() -> None:
        raise UnavailableError("first")

    with pytest.raises(UnavailableError, match="first"), InOrder() as behind:
        behind.do(lambda: done.append("before"))
        behind.do(fail)
        last = behind.do(lambda: done.append("after"))
        with pytest.raises(UnavailableError, match="first"):
            last.result(SECONDS)
        with pytest.raises(UnavailableError, match="first"):
            behind.check()
    assert done == ["before"]


@pytest.mark.parametrize("first", ["behind", "here"])
def test_the_failure_that_comes_first_in_the_text_is_told(first: str) -> None:
    """What was given before is done to its end, though later work has failed meanwhile."""
    gate, done = threading.Event(), []

    def work() -> None:
        assert gate.wait(SECONDS)
        if first == "behind":
            raise UnavailableError("behind")
        done.append("behind")

    with pytest.raises(UnavailableError, match=first), InOrder() as behind:
        behind.do(work)
        threading.Timer(A_MOMENT, gate.set).start()
        raise UnavailableError("here")
    assert done == ([] if first == "behind" else ["behind"])


@pytest.mark.parametrize("command", ["run", "verify"])
def test_records_are_asked_for_many_at_a_time(
    undisturbed: Run,
    small_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    """By the commit and by verify: each request waits until all of them are made. A pull asks for one among
    the chunks that it names, which are many."""
    url = str(shutil.copytree(undisturbed.url, tmp_path / "run"))
    if command == "run":
        Path(url, "manifest.json").unlink()
    together = threading.Barrier(BATCHES)
    really_get = Store.get

    def get(store: Store, key: str, *fits: Any) -> bytes | None:
        if key.startswith("records/"):
            together.wait(SECONDS)
        return really_get(store, key, *fits)

    monkeypatch.setattr(Store, "get", get)
    more = arguments(small_model, batches=BATCHES) if command == "run" else []
    done = invoke(command, url, *more)
    assert done.code == 0, done.err
