"""Any number of workers, on different partitions and on the same one, killed and started again, make one
run, the one that a single worker makes; and unlike ones never make a run that is wrong."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from faults.conftest import NewUrl, Tell, Undisturbed, times
from faults.content import content, differences, objects
from faults.forks import Forks
from faults.proxy import Request, proxied
from neoscope.storage.store import open_store

PARTITIONS = 3
MOST_KILLS = 4  # of one race
LAYER_CHUNKS = 4

# Values as another machine might compute them: not wrong, but other bits.
OTHER_BITS = """
from neoscope.pipeline import loop
stream = loop.stream
def unlike(model, ids, consumers, **options):
    (take,) = consumers
    stream(model, ids, [lambda name, values: take(name, values * 1.000001)], **options)
loop.stream = unlike
"""


@pytest.fixture(scope="module")
def shared(arguments: list[str]) -> list[str]:
    """A run of three partitions of two batches, but for its place."""
    return [*arguments, "--batches", "2", "--partitions", str(PARTITIONS)]


@pytest.fixture(scope="module")
def one_by_one(
    forks: Forks, shared: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """That run made by one worker, one partition after the other."""
    place = str(tmp_path_factory.mktemp("one-by-one") / "run")
    for partition in range(PARTITIONS - 1):
        ended = forks.run("run", place, *shared, "--partition", partition)
        assert ended.code == 0, ended.err
        assert "others are missing" in ended.out
    return Undisturbed(forks, place, [*shared, "--partition", str(PARTITIONS - 1)])


def race(
    forks: Forks, place: str, commands: list[list[str]], kills: int, chance: random.Random
) -> int:
    """Start all at once, kill and start again some, until each has ended well; how many were killed."""
    running = {number: forks.start("run", place, *each) for number, each in enumerate(commands)}
    killed = 0
    while running:
        time.sleep(chance.uniform(0, 0.1))
        if killed < kills and chance.random() < 0.3:
            number = chance.choice(list(running))
            if running[number].kill().code == -signal.SIGKILL:
                killed += 1
                running[number] = forks.start("run", place, *commands[number])
        for number, process in list(running.items()):
            ended = process.poll()
            if ended is not None:
                assert ended.code == 0, ended.err
                del running[number]
    return killed


@pytest.mark.parametrize("where", ["folder", "MinIO"])
def test_racing_workers_make_one_run(
    forks: Forks,
    shared: list[str],
    one_by_one: Undisturbed,
    where: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    chance: random.Random,
    tell: Tell,
) -> None:
    """Three workers on three partitions, and a fourth on one of them."""
    races, killed = times(2, 20), 0
    for number in range(races):
        place = str(tmp_path / str(number))
        if where == "MinIO":
            new_url: NewUrl = request.getfixturevalue("new_url")
            place = new_url()
        partitions = [*range(PARTITIONS), chance.randrange(PARTITIONS)]
        commands = [[*shared, "--partition", str(partition)] for partition in partitions]
        killed += race(forks, place, commands, chance.randint(0, MOST_KILLS), chance)
        assert differences(content(place), one_by_one.content) == []
    tell(
        f"4 workers on 3 partitions, {where}",
        races,
        f"one run, identical; {killed} killed on the way",
    )


@pytest.mark.parametrize("where", ["folder", "MinIO"])
def test_like_workers_on_one_partition_make_one_run(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    where: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    chance: random.Random,
    tell: Tell,
) -> None:
    races, killed = times(2, 20), 0
    for number in range(races):
        place = str(tmp_path / str(number))
        if where == "MinIO":
            new_url: NewUrl = request.getfixturevalue("new_url")
            place = new_url()
        workers = chance.randint(2, 4)
        killed += race(forks, place, [arguments] * workers, chance.randint(0, MOST_KILLS), chance)
        assert differences(content(place), undisturbed.content) == []
    tell(
        f"2 to 4 like workers on one partition, {where}",
        races,
        f"one run, identical; {killed} killed on the way",
    )


@pytest.mark.parametrize("where", ["folder", "MinIO"])
def test_unlike_workers_on_one_partition_commit_nothing_or_what_verifies(
    forks: Forks,
    arguments: list[str],
    where: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    chance: random.Random,
    tell: Tell,
) -> None:
    races, outcomes = times(3, 30), Counter[str]()
    for number in range(races):
        place = str(tmp_path / str(number))
        if where == "MinIO":
            new_url: NewUrl = request.getfixturevalue("new_url")
            place = new_url()
        processes = []
        for disturb in chance.sample(["", OTHER_BITS], 2):
            processes.append(forks.start("run", place, *arguments, disturb=disturb))
            time.sleep(chance.uniform(0, 0.2))
        codes = sorted(process.wait().code for process in processes)
        assert set(codes) <= {0, 5}, [process.err for process in processes]
        committed = "manifest.json" in objects(place)
        if committed:
            ended = forks.run("verify", place)
            assert ended.code == 0, ended.out
        else:
            assert codes == [5, 5]
        outcomes[f"exits {codes}, " + ("committed and verified" if committed else "nothing")] += 1
    told = "; ".join(f"{count} times {outcome}" for outcome, count in outcomes.most_common())
    tell(f"2 unlike workers on one partition, {where}", races, told)


def test_a_worker_that_comes_too_late_spoils_nothing_that_another_has_committed(
    forks: Forks, arguments: list[str], endpoint: str, new_url: NewUrl, tell: Tell
) -> None:
    """It looked for a record when there was none yet; its puts arrive when the run is committed."""
    place, brief = new_url(), [*arguments, "--batches", "1"]

    def first_is_held_at_its_record(request: Request) -> str | None:
        return "hold" if request.method == "PUT" and "/records/" in request.key else None

    seen: set[str] = set()

    def second_is_held_at_what_it_puts_over(request: Request) -> str | None:
        over = request.method == "PUT" and request.key in seen and "/MLP_" in request.key
        seen.add(request.key if request.method == "PUT" else "")
        return "hold" if over else None

    with (
        proxied(endpoint, first_is_held_at_its_record) as first,
        proxied(endpoint, second_is_held_at_what_it_puts_over) as second,
    ):
        one = forks.start("run", place, *brief, "--endpoint-url", first.endpoint)
        one.until(lambda: first.faults["hold"] == 1)
        other = forks.start(
            "run", place, *brief, "--endpoint-url", second.endpoint, disturb=OTHER_BITS
        )
        other.until(lambda: second.faults["hold"] >= LAYER_CHUNKS)
        first.gate.set()
        ended = one.wait()
        assert ended.code == 0, ended.err
        second.gate.set()
        ended = other.wait()
        assert ended.code == 5, ended.err
        assert "two unlike machines" in ended.err
    ended = forks.run("verify", place)
    assert ended.code == 0, ended.out
    late = second.faults["hold"]
    tell("puts of an unlike worker after the commit", late, "exit 5; what was committed verifies")


def test_clearing_up_takes_nothing_from_a_put_that_is_under_way(
    tmp_path: Path, chance: random.Random, tell: Tell
) -> None:
    """The worker that commits cannot tell the file of a killed put from one that is being written."""
    store, body, taken = open_store(str(tmp_path / "run"), write=True), bytes(8_000_000), 0
    with ThreadPoolExecutor(1) as pool:
        for number in range(times(40, 400)):
            put = pool.submit(store.create, f"c/{number}", body)
            time.sleep(chance.uniform(0, 0.008))
            taken += any((tmp_path / "run").rglob("*#*"))
            store.clear_temporary_files()
            put.result()
            assert store.get(f"c/{number}") == body
            store.delete([f"c/{number}"])
    tell("files cleared while they were written", taken, "put again")


def test_the_rest_of_killed_puts_is_cleared(
    forks: Forks, arguments: list[str], undisturbed: Undisturbed, tmp_path: Path, tell: Tell
) -> None:
    """A put into a folder that is killed leaves a file that no listing shows."""
    place = tmp_path / "run"
    shutil.copytree(undisturbed.place, place)
    left = [
        place / "manifest.json#1",
        place / "activations.zarr" / "MLP_0" / "c" / "0" / "0" / "0#2",
    ]
    for path in left:
        path.write_bytes(b"half")
    assert forks.run("run", place, *arguments).code == 0
    assert not any(path.exists() for path in left)
    for path in left:
        path.write_bytes(b"half")
    (place / "manifest.json").unlink()
    assert forks.run("run", place, *arguments).code == 0
    assert differences(content(str(place)), undisturbed.content) == []
    tell("files left by killed puts", 2 * len(left), "cleared")
