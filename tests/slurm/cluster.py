"""slurm/neoscope.sbatch on a real Slurm of one node; run by `make test-slurm`, not by `make test`.

Slurm lets a requeued task wait for two minutes; here it is told to begin sooner.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from one_node import lacking, one_node

from neoscope.text.documents import SAMPLE_FILE
from support.command import ROOT, Finished, invoke

PARTITIONS = 8


@dataclass(frozen=True)
class Slurm:
    """The commands of a user, and a folder for the logs of tasks."""

    logs: Path

    def command(self, *words: object) -> str:
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def submit(self, array: str, url: str, *arguments: object, options: str = "") -> str:
        """`make slurm-run`; the number of the array."""
        given = f"--array={array} --cpus-per-task=1 --output={self.logs}/%A_%a.log {options}"
        words = " ".join(map(str, arguments))
        told = self.command("make", "slurm-run", f"SBATCH={given}", f"ARGS={url} {words}")
        found = re.search(r"Submitted batch job (\d+)", told)
        assert found, told
        return found[1]

    def task(self, task: str) -> dict[str, str]:
        """What Slurm says of a task, such as 7_1."""
        told = self.command("scontrol", "--oneliner", "show", "job", task)
        return dict(word.split("=", 1) for word in told.split() if "=" in word)

    def log(self, task: str) -> str:
        path = self.logs / f"{task}.log"
        return path.read_text() if path.exists() else ""

    def wait(self, task: str, condition: Callable[[], bool], seconds: float = 600) -> None:
        """Return when something is so."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{self.task(task)}\n{self.log(task)}"
            time.sleep(0.5)

    def wait_for_state(self, task: str, *states: str) -> None:
        self.wait(task, lambda: self.task(task)["JobState"] in states)

    def wait_until_requeued(self, task: str) -> None:
        requeued = {"JobState": "PENDING", "Restarts": "1"}
        self.wait(task, lambda: requeued.items() <= self.task(task).items())

    def begin_again(self, task: str) -> None:
        """Let a task that is to be requeued wait no longer than for that."""
        self.wait_until_requeued(task)
        # Not in the same second: the node would take it for the job that it has just ended.
        self.command("scontrol", "update", f"JobId={task}", "StartTime=now+5")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, endpoint: str) -> Iterator[Slurm]:
    reason = lacking()
    if reason:
        pytest.skip(reason)
    with (
        one_node(tmp_path_factory.mktemp("slurm")) as configuration,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("SLURM_CONF", str(configuration))
        patch.setenv("OMP_NUM_THREADS", "1")  # Slurm believes in more processors than there are
        yield Slurm(tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def shared(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """A run of eight partitions with text for some thousand batches, but for its place."""
    documents = SAMPLE_FILE.read_text("utf-8").splitlines()
    words: list[object] = ["--model", small_model]
    for number in range(PARTITIONS):
        path = tmp_path_factory.mktemp("text") / f"{number}.jsonl"
        path.write_text("\n".join(documents[number:] * 100) + "\n", "utf-8")
        words += ["--text", path]
    return [*words, "--sequences", 8, "--positions", 24, "--partitions", PARTITIONS]


def verified(url: str) -> Finished:
    done = invoke("verify", url)
    assert done.code == 0, done.err + done.out
    return done


def stored(url: str) -> list[int]:
    """The stored batches of each partition."""
    told = invoke("status", url).out
    return [int(count) for count in re.findall(r"^partition \d+: (\d+) of", told, re.MULTILINE)]


def test_four_tasks_make_eight_partitions(slurm: Slurm, shared: list[object], s3_url: str) -> None:
    job = slurm.submit("0-3%4", s3_url, *shared)
    for number in range(4):
        task = f"{job}_{number}"
        slurm.wait_for_state(task, "COMPLETED", "FAILED")
        read = f"SLURM_ARRAY_TASK_ID={number} of 0-3:1, SLURM_PROCID=0 of SLURM_STEP_NUM_TASKS=1"
        said = f"worker {number} of 4 ({read}): 2 partitions, {number}, {number + 4}"
        assert said in slurm.log(task), slurm.log(task)
    told = slurm.command("make", "slurm-status")
    assert len(re.findall(rf"^{job}_\d .*COMPLETED", told, re.MULTILINE)) == 4, told
    verified(s3_url)


@pytest.mark.parametrize(("array", "numbers", "processes"), [("0-0", [0], 4), ("5-7:2", [5, 7], 2)])
def test_a_task_of_several_processes_uses_all_of_a_node(
    slurm: Slurm, shared: list[object], s3_url: str, array: str, numbers: list[int], processes: int
) -> None:
    options = f"--ntasks={processes} --gres=gpu:{processes}"
    job = slurm.submit(array, s3_url, *shared, options=options)
    for number in numbers:
        slurm.wait_for_state(f"{job}_{number}", "COMPLETED", "FAILED")
    process = f"SLURM_PROCID={processes - 1} of SLURM_STEP_NUM_TASKS={processes}"
    log = slurm.log(f"{job}_{numbers[-1]}")
    assert re.search(rf"worker 3 of 4 .*{process}\): 2 partitions, 3, 7", log), log
    verified(s3_url)


def test_stopped_tasks_are_requeued_and_cancelled_ones_are_finished_by_another_array(
    slurm: Slurm, shared: list[object], s3_url: str
) -> None:
    batches = 60
    arguments = [*shared, "--batches", batches]
    job = slurm.submit("0-3%4", s3_url, *arguments)
    # The last task has the job id of the array: what is done to it is not to be done to all.
    requeued, cancelled, other, stopped = (f"{job}_{number}" for number in range(4))
    slurm.wait(job, lambda: 0 not in (stored(s3_url) or [0])[:4])
    slurm.command("scontrol", "requeue", requeued)  # as when its node is lost
    slurm.command("scancel", "--signal=TERM", stopped)  # as by preemption
    slurm.command("scancel", cancelled)
    for task in (requeued, stopped):
        slurm.begin_again(task)
    assert slurm.task(cancelled)["JobState"] == "CANCELLED"
    for task in (requeued, stopped, other):
        slurm.wait_for_state(task, "COMPLETED", "FAILED")
        assert slurm.task(task)["JobState"] == "COMPLETED", slurm.log(task)
    assert "nothing is half-written" in slurm.log(stopped)
    assert re.search(rf"going on after batch \d+ of {batches}", slurm.log(stopped))
    assert slurm.task(cancelled)["JobState"] == "CANCELLED"
    assert slurm.task(other)["Restarts"] == "0"
    again = slurm.submit("1-3", s3_url, *arguments)
    for number in (1, 2, 3):
        slurm.wait_for_state(f"{again}_{number}", "COMPLETED", "FAILED")
    verified(s3_url)


def test_a_task_that_comes_to_its_time_limit_is_requeued_and_goes_on(
    slurm: Slurm, shared: list[object], s3_url: str
) -> None:
    arguments = [*shared, "--batches", 1000, "--no-statistics"]  # more than it is given time for
    # Two minutes: a loaded machine needs one to begin. Limits are looked at every half minute.
    job = slurm.submit("0-0", s3_url, *arguments, options="--time=3 --signal=TERM@60")
    task = f"{job}_0"
    slurm.begin_again(task)
    before = next(count for count in stored(s3_url) if count < 1000)
    assert "stopped by SIGTERM; nothing is half-written" in slurm.log(task)
    slurm.wait(task, lambda: "going on after batch" in slurm.log(task))
    went_on = re.search(r"going on after batch (\d+) of 1000", slurm.log(task))
    assert went_on and int(went_on[1]) == before > 0
    slurm.command("scancel", job)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--store-dtype", "float64"], 2, "'float64' is not one of"),
        (["--positions", "100"], 3, "--positions 100 is longer than the model's 64"),
    ],
)
def test_what_no_retry_cures_fails_the_task_at_once(
    slurm: Slurm, shared: list[object], s3_url: str, arguments: list[str], code: int, message: str
) -> None:
    task = slurm.submit("0-0", s3_url, *shared, *arguments) + "_0"
    slurm.wait_for_state(task, "FAILED", "COMPLETED")
    found = slurm.task(task)
    assert (found["ExitCode"], found["Restarts"]) == (f"{code}:0", "0")
    assert message in slurm.log(task)


def test_what_may_succeed_later_is_tried_again(
    slurm: Slurm, shared: list[object], s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    task = slurm.submit("0-0", s3_url, "--dataset", "sample", "--model", "nobody/nothing") + "_0"
    slurm.wait_until_requeued(task)
    assert "127.0.0.1:1" in slurm.log(task)
    slurm.command("scancel", task)
