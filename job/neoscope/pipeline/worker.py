"""Which partitions of a run this process makes: those it is told, or its share as one of many workers.

In: `--partition`, `--workers` and the environment. Out: partitions in the order in which they are made,
and what was read. Two numbers nest there: that of a task (a pod, an array task, a job), and that of a
process among those that torchrun or srun started in it. It starts nothing, and does not know what a
partition is made of.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from neoscope.errors import InputError, UsageError
from neoscope.spec import number_ranges

Environment = Mapping[str, str]

AUTO = "--partition auto"
KUBERNETES = "JOB_COMPLETION_INDEX"  # of each pod of an Indexed Job, which is not told their number
SLURM_ARRAY = "SLURM_ARRAY_TASK_"
SKYPILOT = ("SKYPILOT_JOB_RANK", "SKYPILOT_NUM_JOBS")
TORCHRUN = ("RANK", "WORLD_SIZE")
TORCHRUN_NODES = "GROUP_WORLD_SIZE"
# Not SLURM_NTASKS: a batch script that was given --ntasks has it too, and is one process.
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")


@dataclasses.dataclass(frozen=True)
class Rank:
    """A number from 0, below `size` where that is known; `read` are the variables that said so."""

    index: int
    size: int | None
    read: str


@dataclasses.dataclass(frozen=True)
class Share:
    """The partitions that this process makes, in order, and with `--partition auto` why these."""

    partitions: Sequence[int]
    line: str | None = None


def find_share(
    partition: str, workers: int | None, partitions: int, environment: Environment
) -> Share:
    """This process's share of a run of `partitions` partitions.

    Worker w of W makes w, w + W, w + 2 W, ...: none where there are fewer partitions than that. Raises
    UsageError for what does not fit, naming the option, or the variable and its value.
    """
    if partition == "auto":
        worker = find_worker(workers, partitions, environment)
        share = range(worker.index, partitions, worker.size or partitions)
        line = f"worker {worker.index} of {worker.size} ({worker.read}): {_shown(share)}"
        return Share(share, line)
    if workers is not None:
        raise UsageError(f"--workers {workers} goes with {AUTO} only: drop one")
    numbers = number_ranges("--partition", partition)
    if any(part[-1] >= partitions for part in numbers):
        raise UsageError(
            f"--partition {partition} is not one of the {partitions} partitions: "
            f"give 0 to {partitions - 1}, or more --partitions"
        )
    return Share(sorted(set().union(*numbers)))


def find_worker(workers: int | None, partitions: int, environment: Environment) -> Rank:
    """This process among all of them: task x processes of a task + process. Raises UsageError.

    `workers` is the number of tasks where no variable tells it; without either there is a worker for
    each partition.
    """
    task, process = _task(environment), _process(environment)
    if task is None and process is None:
        raise UsageError(
            f"{AUTO}: nothing in the environment numbers this worker ({KUBERNETES}, "
            f"{SLURM_ARRAY}ID, {SKYPILOT[0]}, {TORCHRUN[0]}, or {SRUN[0]} of srun): "
            "give the partitions, such as --partition 0 or 0-7"
        )
    read = ", ".join(rank.read for rank in (task, process) if rank)
    outer, inner = task or Rank(0, 1, ""), process or Rank(0, 1, "")
    if workers is not None and outer.size not in (None, workers):
        raise UsageError(f"--workers {workers} is not the number of tasks here ({read}): drop it")
    tasks, each = outer.size or workers, inner.size or 1
    if tasks is not None and outer.index >= tasks:
        raise UsageError(f"{outer.read} is not below --workers {tasks}: give the number of tasks")
    index, count = outer.index * each + inner.index, partitions if tasks is None else tasks * each
    if index >= count:
        raise UsageError(
            f"{AUTO} is worker {index} by {read}, and the run has {partitions} partitions: give "
            "the number of tasks as --workers, or more --partitions"
        )
    return Rank(index, count, read)


def local_rank(environment: Environment) -> Rank | None:
    """This process among those that torchrun or srun started on its node, None for neither."""
    name = "LOCAL_RANK" if TORCHRUN[0] in environment else "SLURM_LOCALID"
    index = _number(environment, name)
    return None if index is None else Rank(index, None, f"{name}={index}")


def own_device(device: str, local: Rank | None, gpus: int) -> str:
    """The device that a process takes of several GPUs: that of its number on the node, where it has one
    and `--device` names no other. Raises InputError where there are too few."""
    if device not in ("auto", "cuda") or local is None or gpus < 2:
        return device
    if local.index >= gpus:
        raise InputError(
            f"{local.read}: torch finds {gpus} here, from 0; give one of them with --device cuda:N, or "
            "start no more processes than there are GPUs"
        )
    return f"cuda:{local.index}"


def _task(environment: Environment) -> Rank | None:
    """This task among those of its engine, None without one."""
    pod = _number(environment, KUBERNETES)
    found = [
        None if pod is None else Rank(pod, None, f"{KUBERNETES}={pod}"),
        _array_task(environment),
        _pair(environment, *SKYPILOT),
    ]
    ranks = [rank for rank in found if rank]
    if len(ranks) > 1:
        raise UsageError(
            f"{AUTO}: two engines number this worker, {ranks[0].read} and {ranks[1].read}: "
            "unset one, or give --partition NUMBER"
        )
    return ranks[0] if ranks else None


def _array_task(environment: Environment) -> Rank | None:
    """A task of a Slurm job array, which may begin at any number and have a step."""
    names = [SLURM_ARRAY + each for each in ("ID", "MIN", "MAX", "COUNT", "STEP")]
    read = {name: _number(environment, name) for name in names}
    numbers = [number for number in read.values() if number is not None]
    said = ", ".join(f"{name}={number}" for name, number in read.items() if number is not None)
    if not numbers:
        return None
    if len(numbers) < len(names):
        lacking = next(name for name, number in read.items() if number is None)
        raise UsageError(f"{AUTO}: {said} without {lacking}: set all of them, or none")
    number, first, last, count, step = numbers
    if not step or last - first != step * (count - 1):
        raise UsageError(
            f"{AUTO}: the job array is no even range ({said}): give one such as --array=0-7"
        )
    if not first <= number <= last or (number - first) % step:
        raise UsageError(f"{AUTO}: {names[0]}={number} is not in its array ({said})")
    return Rank((number - first) // step, count, f"{names[0]}={number} of {first}-{last}:{step}")


def _process(environment: Environment) -> Rank | None:
    """This process among those of its task, None where neither torchrun nor srun started it."""
    by_torchrun = _pair(environment, *TORCHRUN)
    if by_torchrun is None:
        # In a batch script Slurm sets the index alone: it is one process.
        return _pair(environment, *SRUN) if SRUN[1] in environment else None
    nodes, started = _number(environment, TORCHRUN_NODES), _number(environment, SRUN[1])
    if nodes is not None and nodes > 1 and environment.get(KUBERNETES):
        raise UsageError(
            f"{AUTO}: torchrun spans {TORCHRUN_NODES}={nodes} pods, so that {by_torchrun.read} "
            f"counts them already: unset {KUBERNETES}, or start a torchrun in each pod by itself"
        )
    if nodes is not None and started is not None and started > nodes:
        raise UsageError(
            f"{AUTO}: srun started torchrun {started} times ({SRUN[1]}={started}), and each knows "
            f"of {TORCHRUN_NODES}={nodes}: give torchrun --nnodes, or let srun start neoscope"
        )
    return by_torchrun


def _pair(environment: Environment, index_name: str, size_name: str) -> Rank | None:
    """A number and its size; None where neither is set."""
    index, size = _number(environment, index_name), _number(environment, size_name)
    if index is None and size is None:
        return None
    if index is None or size is None:
        there, lacking = (index_name, size_name) if size is None else (size_name, index_name)
        raise UsageError(
            f"{AUTO}: {there}={environment[there]} is set and {lacking} is not: set both or neither"
        )
    if index >= size:
        raise UsageError(f"{AUTO}: {index_name}={index} is not below {size_name}={size}")
    return Rank(index, size, f"{index_name}={index} of {size_name}={size}")


def _number(environment: Environment, name: str) -> int | None:
    """The number that a variable holds; None where it is not set, or empty."""
    text = environment.get(name, "")
    if text and not (text.isascii() and text.isdecimal()):
        raise UsageError(f"{name}={text} is no number: unset it, or give --partition NUMBER")
    return int(text) if text else None


def _shown(share: range) -> str:
    if not share:
        return "no partition is left for it"
    few = ", ".join(map(str, share[:3])) + (", ..." if len(share) > 3 else "")
    return f"{len(share)} partitions, {few}" if len(share) > 1 else f"partition {few}"
