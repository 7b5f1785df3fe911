"""Workers numbered by engines make one run, the one that a single worker makes, whatever their number and
whichever engine it began on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from faults.conftest import Undisturbed, times
from faults.content import content, differences
from faults.forks import ONE_THREAD, Forks, Process
from neoscope.text.documents import SAMPLE_FILE
from support.command import invoke

PARTITIONS, BATCHES = 8, 6


@pytest.fixture(scope="module")
def shared(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run of eight partitions of six batches, but for its place."""
    documents = SAMPLE_FILE.read_text("utf-8").splitlines()
    words = ["--model", str(small_model)]
    for number in range(PARTITIONS):
        path = tmp_path_factory.mktemp("text") / f"{number}.jsonl"
        path.write_text("\n".join(documents[number:] + documents[:number]) + "\n", "utf-8")
        words += ["--text", str(path)]
    shape = ("--sequences", "4", "--positions", "16", "--batches", str(BATCHES))
    return [*words, *shape, "--partitions", str(PARTITIONS)]


@pytest.fixture(scope="module")
def by_one(
    forks: Forks, shared: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """That run made by one worker, a start for each partition."""
    place = str(tmp_path_factory.mktemp("by-one") / "run")
    for partition in reversed(range(1, PARTITIONS)):
        ended = forks.run("run", place, *shared, "--partition", partition)
        assert ended.code == 0, ended.err
    return Undisturbed(forks, place, [*shared, "--partition", "0"])


def array(number: int, count: int) -> dict[str, str]:
    """The variables of task `number` of Slurm's --array=1-count."""
    values = {"ID": number + 1, "MIN": 1, "MAX": count, "COUNT": count, "STEP": 1}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def pod(number: int) -> dict[str, str]:
    return {"JOB_COMPLETION_INDEX": str(number)}


def process(number: int, count: int) -> dict[str, str]:
    return {"RANK": str(number), "WORLD_SIZE": str(count), "LOCAL_RANK": str(number)}


def start(
    forks: Forks, place: str, shared: list[str], environments: list[dict[str, str]]
) -> list[Process]:
    """Start workers side by side."""
    arguments = ("run", place, *shared, "--partition", "auto")
    return [forks.start(*arguments, environment=each) for each in environments]


def records(place: str, partition: int) -> int:
    return len(list(Path(place).glob(f"records/{partition:05d}-*.json")))


def stop(place: str, workers: dict[int, Process]) -> None:
    """Kill each worker when it has recorded some of its first partition."""
    for partition, worker in workers.items():
        worker.until(lambda partition=partition: records(place, partition) > 0)  # type: ignore[misc]
        worker.kill()
    assert not (Path(place) / "manifest.json").exists()


def test_one_worker_makes_all_partitions_and_loads_the_model_once(
    shared: list[str], by_one: Undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neoscope.pipeline import inputs

    loads: list[Any] = []
    load = inputs.load
    monkeypatch.setattr(inputs, "load", lambda *a, **b: loads.append(a) or load(*a, **b))
    place = str(tmp_path / "run")
    done = invoke("run", place, *shared, "--partition", "0-7")
    assert done.code == 0, done.err
    assert len(loads) == 1
    assert differences(content(place), by_one.content) == []


def test_a_run_begun_with_four_workers_is_finished_with_three(
    forks: Forks, shared: list[str], by_one: Undisturbed, tmp_path: Path
) -> None:
    place = str(tmp_path / "run")
    four = start(forks, place, shared, [array(number, 4) for number in range(4)])
    stop(place, dict(enumerate(four)))
    three = start(forks, place, shared, [process(number, 3) for number in range(3)])
    ended = [worker.wait() for worker in three]
    assert [each.code for each in ended] == [0, 0, 0], [each.err for each in ended]
    assert "worker 1 of 3 (RANK=1 of WORLD_SIZE=3): 3 partitions, 1, 4, 7" in ended[1].err
    assert any("going on after batch" in each.err for each in ended)
    assert any("stored:" in each.out for each in ended), "one of them commits"
    assert differences(content(place), by_one.content) == []


def test_a_run_begun_on_kubernetes_is_finished_by_hand(
    forks: Forks, shared: list[str], by_one: Undisturbed, tmp_path: Path
) -> None:
    place = str(tmp_path / "run")
    pods = start(forks, place, shared, [pod(number) for number in range(2, PARTITIONS)])
    stop(place, dict(enumerate(pods, start=2)))
    for number, worker in enumerate(start(forks, place, shared, [pod(0), pod(1)])):
        ended = worker.wait()
        assert ended.code == 0, ended.err
        said = f"worker {number} of 8 (JOB_COMPLETION_INDEX={number}): partition {number}"
        assert said in ended.err
        assert "others are missing" in ended.out
    done = forks.run("run", place, *shared, "--partition", "2-7")
    assert done.code == 0, done.err
    assert differences(content(place), by_one.content) == []


def test_a_worker_that_no_partition_is_left_for_ends_well_and_stores_nothing(
    forks: Forks, shared: list[str], by_one: Undisturbed, tmp_path: Path
) -> None:
    arguments = [*shared, "--partition", "auto"]
    place = str(tmp_path / "run")
    done = forks.run("run", place, *arguments, environment=array(8, 9))
    assert done.code == 0, done.err
    assert "worker 8 of 9 (SLURM_ARRAY_TASK_ID=9 of 1-9:1): no partition is left for it" in done.err
    assert content(place) == {}
    done = forks.run("run", by_one.place, *arguments, environment=array(8, 9))
    assert done.code == 0, done.err
    assert "already holds this run, whole" in done.err


def test_torchrun_s_processes_share_a_run(
    shared: list[str], by_one: Undisturbed, tmp_path: Path
) -> None:
    """Few of them in `make test`: each spends seconds on its imports."""
    place, count = tmp_path / "run", times(2, 4)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(count), "-m", "neoscope", "run", str(place), *shared]
    done = subprocess.run(
        [*command, "--partition", "auto"],
        capture_output=True,
        text=True,
        timeout=240,
        env=ONE_THREAD | {"PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 0, done.stderr
    for rank in range(count):
        worker = f"worker {rank} of {count} (RANK={rank} of WORLD_SIZE={count})"
        assert f"{worker}: {PARTITIONS // count} partitions, {rank}, {rank + count}" in done.stderr
    assert json.loads((place / "manifest.json").read_text())["partitions"] == PARTITIONS
    assert differences(content(str(place)), by_one.content) == []
