"""Which partitions a worker makes, by what engines put into its environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from neoscope.errors import InputError, UsageError
from neoscope.model.loading import gpu_count, pick_device
from neoscope.pipeline.worker import Rank, find_share, find_worker, local_rank, own_device
from support.command import invoke

Environment = dict[str, str]


def array(number: int, first: int = 0, last: int = 3, step: int = 1) -> Environment:
    """What Slurm gives a task of `--array=first-last:step`."""
    count = (last - first) // step + 1
    values = {"ID": number, "MIN": first, "MAX": last, "COUNT": count, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def torchrun(rank: int, size: int, nodes: int = 1) -> Environment:
    """What torchrun gives a process."""
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank % (size // nodes)}
    return {name: str(value) for name, value in values.items()} | {"GROUP_WORLD_SIZE": str(nodes)}


def srun(rank: int, size: int) -> Environment:
    """What srun gives a process."""
    values = {"PROCID": rank, "STEP_NUM_TASKS": size, "NTASKS": size, "LOCALID": rank}
    return {f"SLURM_{name}": str(value) for name, value in values.items()}


BATCH = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}  # of every batch script
BATCH_OF_FOUR = {**BATCH, "SLURM_NTASKS": "4"}  # of one with --ntasks=4
SKYPILOT = {"SKYPILOT_JOB_RANK": "2", "SKYPILOT_NUM_JOBS": "5"}


def worker(environment: Environment, workers: int | None = None, partitions: int = 8) -> str:
    found = find_worker(workers, partitions, environment)
    return f"{found.index} of {found.size}"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JOB_COMPLETION_INDEX": "7"}, "7 of 8"),  # as many as partitions
        (array(2), "2 of 4"),
        (array(9, first=7, last=10), "2 of 4"),
        (array(10, first=4, last=10, step=3), "2 of 3"),
        (array(5, first=5, last=5), "0 of 1"),
        (SKYPILOT, "2 of 5"),
        (torchrun(3, 4), "3 of 4"),
        (torchrun(5, 8, nodes=2), "5 of 8"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "1 of 2"),  # other launchers set no more
        (srun(3, 4), "3 of 4"),
        ({**BATCH, **array(1)}, "1 of 4"),
        ({**BATCH_OF_FOUR, **array(1)}, "1 of 4"),
        ({**array(1), **srun(2, 3)}, "5 of 12"),
        ({**BATCH, **array(1), **torchrun(2, 3)}, "5 of 12"),
        ({**srun(1, 2), **torchrun(5, 8, nodes=2)}, "5 of 8"),  # torchrun on each of two nodes
        ({**srun(0, 1), **torchrun(2, 4)}, "2 of 4"),
        ({**SKYPILOT, **torchrun(1, 2)}, "5 of 10"),
        ({"JOB_COMPLETION_INDEX": "1", **torchrun(2, 4)}, "6 of 8"),
        ({"JOB_COMPLETION_INDEX": "1", "RANK": "", "WORLD_SIZE": ""}, "1 of 8"),  # as not set
    ],
)
def test_a_number_among_tasks_and_one_within_the_task_nest(
    environment: Environment, expected: str
) -> None:
    assert worker(environment) == expected


@pytest.mark.parametrize(
    ("environment", "workers", "expected"),
    [
        ({"JOB_COMPLETION_INDEX": "1"}, 3, "1 of 3"),
        ({"JOB_COMPLETION_INDEX": "2", **torchrun(2, 4)}, 3, "10 of 12"),
        (array(1), 4, "1 of 4"),
    ],
)
def test_workers_is_the_number_of_tasks_that_no_variable_tells(
    environment: Environment, workers: int, expected: str
) -> None:
    assert worker(environment, workers) == expected


@pytest.mark.parametrize("size", [1, 3, 4, 8, 11])
def test_every_partition_is_one_worker_s(size: int) -> None:
    shares = [find_share("auto", None, 8, torchrun(rank, size)).partitions for rank in range(size)]
    assert sorted(each for share in shares for each in share) == list(range(8))
    assert list(shares[0]) == list(range(0, 8, size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
    ("environment", "workers", "line"),
    [
        (
            {**array(10, first=4, last=10, step=3), **torchrun(1, 2)},
            None,
            "worker 5 of 6 (SLURM_ARRAY_TASK_ID=10 of 4-10:3, RANK=1 of WORLD_SIZE=2): "
            "3 partitions, 5, 11, 17",
        ),
        (
            {"JOB_COMPLETION_INDEX": "3"},
            None,
            "worker 3 of 20 (JOB_COMPLETION_INDEX=3): partition 3",
        ),
        (
            {"JOB_COMPLETION_INDEX": "0"},
            4,
            "worker 0 of 4 (JOB_COMPLETION_INDEX=0): 5 partitions, 0, 4, 8, ...",
        ),
        (
            {"JOB_COMPLETION_INDEX": "29"},
            30,
            "worker 29 of 30 (JOB_COMPLETION_INDEX=29): no partition is left for it",
        ),
    ],
)
def test_one_line_says_what_was_read_and_what_follows(
    environment: Environment, workers: int | None, line: str
) -> None:
    assert find_share("auto", workers, 20, environment).line == line


@pytest.mark.parametrize(
    ("partition", "expected"), [("3", [3]), ("0-7", [*range(8)]), ("5,0-1,1", [0, 1, 5])]
)
def test_partitions_by_number_need_no_engine(partition: str, expected: list[int]) -> None:
    share = find_share(partition, None, 8, {"RANK": "of no meaning here"})
    assert share.partitions == expected
    assert share.line is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "JOB_COMPLETION_INDEX, SLURM_ARRAY_TASK_ID, SKYPILOT_JOB_RANK, RANK, or SLURM_PROCID"),
        (BATCH, "nothing in the environment numbers this worker"),
        (BATCH_OF_FOUR, "nothing in the environment numbers this worker"),
        ({"JOB_COMPLETION_INDEX": ""}, "nothing in the environment numbers this worker"),
        ({"JOB_COMPLETION_INDEX": "first"}, "JOB_COMPLETION_INDEX=first is no number"),
        ({"JOB_COMPLETION_INDEX": "-1"}, "JOB_COMPLETION_INDEX=-1 is no number"),
        ({"JOB_COMPLETION_INDEX": "٣"}, "JOB_COMPLETION_INDEX=٣ is no number"),
        ({"JOB_COMPLETION_INDEX": "8"}, "JOB_COMPLETION_INDEX=8, and the run has 8 partitions"),
        (
            {"JOB_COMPLETION_INDEX": "2", **torchrun(0, 4)},
            "worker 8 by JOB_COMPLETION_INDEX=2, RANK",
        ),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4 is not below WORLD_SIZE=4"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "RANK=0 is not below WORLD_SIZE=0"),
        ({"RANK": "1.5", "WORLD_SIZE": "4"}, "RANK=1.5 is no number"),
        ({"RANK": "1"}, "RANK=1 is set and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "4", **array(0)}, "WORLD_SIZE=4 is set and RANK is not"),
        ({"SLURM_STEP_NUM_TASKS": "2"}, "SLURM_STEP_NUM_TASKS=2 is set and SLURM_PROCID is not"),
        (srun(2, 2), "SLURM_PROCID=2 is not below SLURM_STEP_NUM_TASKS=2"),
        ({"SKYPILOT_JOB_RANK": "5", "SKYPILOT_NUM_JOBS": "5"}, "SKYPILOT_JOB_RANK=5 is not below"),
        ({"SKYPILOT_NUM_JOBS": "5"}, "SKYPILOT_NUM_JOBS=5 is set and SKYPILOT_JOB_RANK is not"),
        ({**array(0), "SLURM_ARRAY_TASK_STEP": ""}, "without SLURM_ARRAY_TASK_STEP"),
        ({"SLURM_ARRAY_TASK_COUNT": "3"}, "without SLURM_ARRAY_TASK_ID"),
        ({**array(0), "SLURM_ARRAY_TASK_ID": "a"}, "SLURM_ARRAY_TASK_ID=a is no number"),
        ({**array(4), "SLURM_ARRAY_TASK_ID": "4"}, "SLURM_ARRAY_TASK_ID=4 is not in its array"),
        ({**array(7, first=5, last=9, step=4)}, "SLURM_ARRAY_TASK_ID=7 is not in its array"),
        (
            array(1, first=1, last=1) | {"SLURM_ARRAY_TASK_ID": "0"},
            "SLURM_ARRAY_TASK_ID=0 is not in",
        ),
        # --array=1,5,7 as Slurm tells it
        (
            array(5, first=1, last=7) | {"SLURM_ARRAY_TASK_COUNT": "3"},
            "no even range (SLURM_ARRAY_TASK_ID=5, SLURM_ARRAY_TASK_MIN=1, SLURM_ARRAY_TASK_MAX=7",
        ),
        (array(0) | {"SLURM_ARRAY_TASK_STEP": "0"}, "no even range"),
        (
            {"JOB_COMPLETION_INDEX": "1", **array(0)},
            "JOB_COMPLETION_INDEX=1 and SLURM_ARRAY_TASK_ID=0 of 0-3:1",
        ),
        (
            {"JOB_COMPLETION_INDEX": "1", **torchrun(5, 8, nodes=2)},
            "torchrun spans GROUP_WORLD_SIZE=2 pods",
        ),
        (
            {**srun(1, 2), **torchrun(1, 4)},
            "srun started torchrun 2 times (SLURM_STEP_NUM_TASKS=2)",
        ),
    ],
)
def test_numbers_that_do_not_fit_are_refused_by_name_and_value(
    environment: Environment, message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        worker(environment)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("partition", "workers", "environment", "message"),
    [
        (
            "auto",
            3,
            {"JOB_COMPLETION_INDEX": "3"},
            "JOB_COMPLETION_INDEX=3 is not below --workers 3",
        ),
        ("auto", 3, array(0), "--workers 3 is not the number of tasks here (SLURM_ARRAY_TASK_ID=0"),
        ("auto", 3, torchrun(0, 3), "--workers 3 is not the number of tasks here (RANK=0"),
        ("auto", 3, {}, "nothing in the environment numbers this worker"),
        ("0", 3, {}, "--workers 3 goes with --partition auto only"),
        ("8", None, {}, "--partition 8 is not one of the 8 partitions: give 0 to 7"),
        ("0-8", None, {}, "--partition 0-8 is not one of the 8 partitions"),
        ("first", None, {}, "--partition first: 'first' is no number or range"),
        ("", None, {}, "'' is no number or range"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    partition: str, workers: int | None, environment: Environment, message: str
) -> None:
    with pytest.raises(UsageError) as raised:
        find_share(partition, workers, 8, environment)
    assert message in str(raised.value)


# The GPU of a process


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (torchrun(3, 4), Rank(3, None, "LOCAL_RANK=3")),
        ({**srun(1, 2), "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}, "LOCAL_RANK=1"),
        (srun(2, 4), Rank(2, None, "SLURM_LOCALID=2")),
        ({"RANK": "5", "WORLD_SIZE": "8"}, None),  # one process a pod
    ],
)
def test_the_number_on_the_node_is_torchrun_s_or_else_srun_s(
    environment: Environment, expected: Rank | str | None
) -> None:
    found = local_rank(environment)
    assert found == expected or (found is not None and found.read == expected)


@pytest.fixture
def gpus(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many GPUs as torch is to see: there are none here."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.mark.parametrize(
    ("gpus", "device", "local", "expected"),
    [
        (0, "auto", 3, "cpu"),
        (0, "cpu", None, "cpu"),
        (1, "auto", None, "cuda:0"),
        (1, "cuda", 3, "cuda:0"),  # each process sees one of its own
        (4, "cpu", 3, "cpu"),
        (4, "auto", None, "cuda:0"),
        (4, "auto", 3, "cuda:3"),
        (4, "cuda", 3, "cuda:3"),
        (4, "cuda:1", 3, "cuda:1"),
        (4, "cuda:3", None, "cuda:3"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_of_several_gpus_a_process_takes_the_one_of_its_number(
    device: str, local: int | None, expected: str
) -> None:
    rank = None if local is None else Rank(local, None, f"LOCAL_RANK={local}")
    assert pick_device(own_device(device, rank, gpu_count())) == torch.device(expected)


@pytest.mark.parametrize(
    ("gpus", "device", "local", "message"),
    [
        (0, "cuda", None, "--device cuda: torch finds no GPU here"),
        (0, "cuda:0", None, "--device cuda:0: torch finds no GPU here"),
        (1, "cuda:1", None, "--device cuda:1: torch finds 1 here"),
        (2, "auto", 2, "LOCAL_RANK=2: torch finds 2 here"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_a_gpu_that_is_not_there_is_refused(device: str, local: int | None, message: str) -> None:
    rank = None if local is None else Rank(local, None, f"LOCAL_RANK={local}")
    with pytest.raises(InputError) as raised:
        pick_device(own_device(device, rank, gpu_count()))
    assert message in str(raised.value)


@pytest.mark.parametrize("gpus", [2], indirect=True)
@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("environment", "said"),
    [(torchrun(5, 6), "LOCAL_RANK=5: torch"), (srun(5, 6), "SLURM_LOCALID=5: torch")],
)
def test_a_run_takes_the_gpu_of_its_process(
    environment: Environment, said: str, tmp_path: Path
) -> None:
    """Seen by the GPU that is not there."""
    texts = [tmp_path / f"{number}.jsonl" for number in range(6)]
    for text in texts:
        text.write_text(json.dumps({"text": "a word"}) + "\n")
    given = [word for text in texts for word in ("--text", text)]
    words = ("--weights", "random", *given, "--partitions", 6, "--partition", "auto")
    done = invoke("run", tmp_path / "run", *words, **environment)
    assert (done.code, said in done.err) == (3, True), done.err
