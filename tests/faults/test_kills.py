"""A run that is killed at any moment leaves nothing that looks finished, and the same command finishes
it: every byte is then as if it had never been killed."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from faults.conftest import NewUrl, Tell, Undisturbed, times
from faults.content import content, differences, objects, phase
from faults.forks import Forks, Process
from faults.proxy import Plan, Proxy, Request, proxied
from neoscope.format.layout import rollup_key
from neoscope.text.documents import SAMPLE_FILE

MOST_KILLS = 3  # of one run, before it is left in peace
LAST = ("manifest.json", "zarr.json")  # what is written when all else is there


def check_absent_or_whole(place: str, undisturbed: Undisturbed) -> None:
    """Nothing that a reader could open is there before everything is."""
    left = {key: value for key, value in content(place).items() if "#" not in key}
    if any(key.endswith(LAST) for key in left):
        missing = differences(left, undisturbed.content)
        assert all(key.endswith(LAST) for key in missing), missing
    if "manifest.json" in left:
        assert differences(left, undisturbed.content) == []


def finish(
    forks: Forks, place: str, arguments: list[str], undisturbed: Undisturbed, *more: str
) -> None:
    """The same command again finishes the run, and it is the undisturbed one."""
    ended = forks.run("run", place, *arguments, *more)
    assert ended.code == 0, ended.err
    assert differences(content(place), undisturbed.content) == []


def told(runs: int, phases: Counter[str]) -> str:
    found = ", ".join(f"{count} {name}" for name, count in phases.most_common())
    return f"{runs} runs finished, all identical; killed: {found}"


# At any moment


def kill_some_time(process: Process, place: str, objects: int, chance: random.Random) -> bool:
    """Kill it at a random moment: before its first object, or about when it puts one of the others;
    False if it was too late."""
    wanted = chance.randrange(objects) if chance.random() < 0.8 else 0
    while sum(path.is_file() for path in Path(place).rglob("*")) < wanted:
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05 if wanted else 0.5))
    return process.poll() is None and process.kill().code == -signal.SIGKILL


def test_killed_at_any_moment_over_a_folder(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
    chance: random.Random,
    tell: Tell,
) -> None:
    wanted, phases, runs = times(10, 100), Counter[str](), 0
    while phases.total() < wanted:
        runs += 1
        place = str(tmp_path / str(runs))
        for _ in range(chance.randint(1, MOST_KILLS)):
            process = forks.start("run", place, *arguments)
            if kill_some_time(process, place, len(undisturbed.content), chance):
                phases[phase(place)] += 1
                check_absent_or_whole(place, undisturbed)
        finish(forks, place, arguments, undisturbed)
    tell("killed at a random moment, folder", phases.total(), told(runs, phases))


def test_killed_with_sums_by_token_in_three_partitions(
    forks: Forks, small_model: Path, tmp_path: Path, chance: random.Random, tell: Tell
) -> None:
    """Each partition is killed once, after its first record or anywhere, and they end in another order."""
    lines, texts = SAMPLE_FILE.read_text("utf-8").splitlines(), []
    for number in range(3):
        path = tmp_path / f"{number}.jsonl"
        path.write_text("\n".join(lines[number * 11 : number * 11 + 11]) + "\n")
        texts += ["--text", str(path)]
    arguments = ["--model", str(small_model), *texts, "--no-arrays", "--token-sums"]
    arguments += ["--sequences", "1", "--positions", "16", "--batches", "130", "--partitions", "3"]
    whole, place = str(tmp_path / "whole"), str(tmp_path / "run")
    for number in ("0", "1", "2"):
        assert forks.run("run", whole, *arguments, "--partition", number).code == 0
    for number in ("2", "0", "1"):
        start = [place, *arguments, "--partition", number]
        process, record = forks.start("run", *start), f"records/0000{number}-00000064.json"
        process.until(Path(place, record).exists)
        time.sleep(chance.uniform(0, 0.1))
        assert process.kill().code in (0, -signal.SIGKILL)
        assert forks.run("run", *start).code == 0
    assert differences(content(place), content(whole)) == []
    assert forks.run("verify", place).code == 0
    tell("killed after a record, sums by token", 3, "3 partitions finished, merged and identical")


def killing(process: list[Process], number: int, fault: str | None) -> Plan:
    """Kill the process when it makes a request of that number; the store may yet get the request."""

    def plan(request: Request) -> str | None:
        if request.number != number or not process:
            return None
        process[0].send(signal.SIGKILL)
        return fault

    return plan


def test_killed_at_any_request_over_minio(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    endpoint: str,
    new_url: NewUrl,
    chance: random.Random,
    tell: Tell,
) -> None:
    wanted, phases, runs = times(10, 100), Counter[str](), 0
    with proxied(endpoint) as proxy:
        requests = requests_of(forks, arguments, proxy, new_url())
        while phases.total() < wanted:
            runs += 1
            place = new_url()
            for _ in range(chance.randint(1, MOST_KILLS)):
                process: list[Process] = []
                proxy.requests.clear()
                fault = chance.choice([None, "reset", "cut"])
                late = chance.random() < 0.3  # the commit is a few requests only
                number = requests - chance.randint(1, 9) if late else chance.randrange(requests)
                proxy.plan = killing(process, number, fault)
                through = ["--endpoint-url", proxy.endpoint]
                process.append(forks.start("run", place, *arguments, *through))
                if process[0].wait().code == -signal.SIGKILL:
                    phases[phase(place)] += 1
                    check_absent_or_whole(place, undisturbed)
            finish(forks, place, arguments, undisturbed)
    tell("killed at a random request, MinIO", phases.total(), told(runs, phases))


@pytest.mark.parametrize("fault", [None, "reset"], ids=["while it is put", "before it is put"])
def test_killed_between_the_last_record_and_the_roll_up(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    endpoint: str,
    new_url: NewUrl,
    tell: Tell,
    fault: str | None,
) -> None:
    process: list[Process] = []

    def kill_at_the_roll_up(request: Request) -> str | None:
        if request.method != "PUT" or not request.key.endswith(rollup_key(0)):
            return None
        process[0].send(signal.SIGKILL)
        return fault

    place = new_url()
    with proxied(endpoint, kill_at_the_roll_up) as proxy:
        process.append(forks.start("run", place, *arguments, "--endpoint-url", proxy.endpoint))
        assert process[0].wait().code == -signal.SIGKILL
    found = objects(place).keys()
    assert "records/00000-00000004.json" in found and not found & set(LAST)
    assert fault is None or rollup_key(0) not in found
    finish(forks, place, arguments, undisturbed)
    tell("killed between the last record and the roll-up", 1, "finished, identical")


def requests_of(forks: Forks, arguments: list[str], proxy: Proxy, place: str) -> int:
    """How many requests the run makes when nothing disturbs it."""
    ended = forks.run("run", place, *arguments, "--endpoint-url", proxy.endpoint)
    assert ended.code == 0, ended.err
    return len(proxy.requests)


def test_the_command_itself_killed_among_its_imports_and_in_its_work(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
    chance: random.Random,
    tell: Tell,
) -> None:
    """The other tests fork a warm process; this one starts the command as a user does."""
    place, phases, count = str(tmp_path / "run"), Counter[str](), times(2, 10)
    for number in range(count):
        command = [sys.executable, "-m", "neoscope", "run", place, *arguments]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            if number % 2:
                records = len(list(Path(place).rglob("records/*.json")))
                while len(list(Path(place).rglob("records/*.json"))) == records:
                    if process.poll() is not None:  # on a busy machine, between two looks
                        break
                    time.sleep(0.002)
            else:
                time.sleep(chance.uniform(0, 4))
            process.kill()
        phases[phase(place)] += process.returncode == -signal.SIGKILL
        check_absent_or_whole(place, undisturbed)
        if phase(place) in ("committed", "in the commit"):
            finish(forks, place, arguments, undisturbed)
            place = str(tmp_path / str(number))
    finish(forks, place, arguments, undisturbed)
    tell("killed as a fresh process, folder", phases.total(), told(1, phases))


# What is recorded is not made again


def test_recorded_batches_are_not_computed_again(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    endpoint: str,
    new_url: NewUrl,
    tell: Tell,
) -> None:
    place = new_url()
    with proxied(endpoint) as proxy:
        process: list[Process] = []

        def kill_after_the_third(request: Request) -> str | None:
            if request.method == "PUT" and request.key.endswith("00000-00000003.json"):
                process[0].send(signal.SIGKILL)
            return None

        proxy.plan = kill_after_the_third
        through = ["--endpoint-url", proxy.endpoint]
        process.append(forks.start("run", place, *arguments, *through))
        assert process[0].wait().code == -signal.SIGKILL
        found = objects(place)
        recorded = {
            part["key"]
            for key, body in found.items()
            if key.startswith("records/")
            for array in json.loads(body)["arrays"].values()
            for part in array["chunks"]
        }
        before = {request.key for request in proxy.requests if request.method == "PUT"}
        proxy.requests.clear()
        proxy.plan = lambda _: None
        finish(forks, place, arguments, undisturbed, *through)
        again = {request.key for request in proxy.requests if request.method == "PUT"}
    prefix = place.removeprefix("s3://") + "/"
    assert {prefix + key for key in recorded} <= before
    assert not {prefix + key for key in recorded} & again
    tell("resumed after 3 of 4 batches", 1, f"0 of {len(recorded)} recorded chunks made again")


def bytes_read(process: Process) -> int:
    """What an ended process had read from files, all in all."""
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.01)
    (read,) = [
        int(line.split()[1])
        for line in Path(f"/proc/{process.pid}/io").read_text().splitlines()
        if line.startswith("rchar")
    ]
    process.wait()
    return read


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux tells what was read")
def test_the_row_groups_that_are_done_are_not_read_again(
    forks: Forks, small_model: Path, tmp_path: Path, tell: Tell
) -> None:
    """Of a share of a file, that is; `datasets` reads a file that is not shared from its beginning."""
    path, words = tmp_path / "text.parquet", random.Random(0)
    with pq.ParquetWriter(path, SCHEMA, compression="none") as writer:
        for number in range(40):
            text = " ".join(f"word {words.randrange(1000)}" for _ in range(60))
            row = {"id": str(number), "text": text, "ballast": words.randbytes(ROW_GROUP)}
            writer.write_table(pa.Table.from_pylist([row], SCHEMA))
    arguments = [
        *("--model", str(small_model), "--text", str(path), "--partitions", "2"),
        *("--sequences", "8", "--positions", "48", "--batches", "10"),
    ]
    undisturbed = forks.start("run", tmp_path / "undisturbed", *arguments)
    whole = bytes_read(undisturbed)
    assert undisturbed.wait().code == 0, undisturbed.err
    place = tmp_path / "run"
    process = forks.start("run", place, *arguments)
    process.until((place / "records" / "00000-00000008.json").exists)
    process.kill()
    resumed = forks.start("run", place, *arguments)
    rest = bytes_read(resumed)
    assert resumed.wait().code == 0, resumed.err
    assert "going on after batch" in resumed.err
    size = path.stat().st_size  # the file is read once to know it by its digest
    of = f"{(rest - size) / 1e6:.0f} MB read for the last fifth, {(whole - size) / 1e6:.0f} for all"
    tell("resumed in a share of a Parquet file", 1, of)
    assert rest < whole - 4 * ROW_GROUP


ROW_GROUP = 1_000_000
SCHEMA = pa.schema([("id", pa.string()), ("text", pa.string()), ("ballast", pa.binary())])


# Deleting


SLOWLY = """
import time, obstore
delete = obstore.delete
def slowly(*arguments):
    time.sleep(0.01)
    delete(*arguments)
obstore.delete = slowly
"""


def test_a_delete_that_is_killed_leaves_nothing_that_a_reader_opens(
    forks: Forks,
    arguments: list[str],
    undisturbed: Undisturbed,
    tmp_path: Path,
    chance: random.Random,
    tell: Tell,
) -> None:
    count, whole = times(6, 60), undisturbed.content.keys()
    for number in range(count):
        place = str(tmp_path / str(number))
        shutil.copytree(undisturbed.place, place)
        process = forks.start("delete", place, "--yes", disturb=SLOWLY)
        wanted = chance.randrange(2, len(whole))
        process.until(lambda place=place, wanted=wanted: len(objects(place)) <= wanted)
        process.kill()
        left = objects(place).keys()
        if any(key.endswith("zarr.json") for key in left):
            assert not [key for key in whole - left if "/c/" in key]
        assert "manifest.json" not in left
        # Where it was killed too late, all is gone.
        assert forks.run("delete", place, "--yes").code == (0 if left else 3)
        assert objects(place) == {}
    tell("delete killed at a random moment", count, "no reader opens what is left; then deleted")
