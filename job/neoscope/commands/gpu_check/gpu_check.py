"""`neoscope gpu-check`: a line for each check, a table for the README, and all of it as JSON.

In: a device. Out: lines, and whether every check has passed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from neoscope.commands.gpu_check import timings
from neoscope.commands.gpu_check.checks import Subject, check
from neoscope.errors import CheckError
from neoscope.model import numerics
from neoscope.model.loading import pick_device
from neoscope.pipeline.provenance import describe_environment

MODELS = ("gpt-neo-125m", "gpt-neo-1.3B")


def gpu_check(device: str) -> Iterator[str]:
    """Check and measure a device; lines as they come.

    Raises InputError where it is not there, UsageError where the environment changes what it computes,
    and CheckError at the end where a check has failed.
    """
    target = pick_device(device)
    numerics.check_environment(target)
    numerics.fix_workspace(target)
    yield from report([Subject(name, "random", device) for name in MODELS], target)


def report(subjects: list[Subject], device: torch.device, **sizes: int) -> Iterator[str]:
    """Check the first model, measure all; `sizes` are those of `timings.measure`."""
    environment = describe_environment(device)
    yield f"on {_machine(environment)}"
    findings = []
    for finding in check(subjects[0]):
        findings.append(finding)
        yield str(finding)
    measured = {subject.model: timings.measure(subject, **sizes) for subject in subjects}
    tokens = sizes.get("sequences", timings.SEQUENCES) * sizes.get("positions", timings.POSITIONS)
    yield from ("", *_table(measured, tokens, _machine(environment)), "")
    failed = [finding.what for finding in findings if not finding.passed]
    yield json.dumps(
        {
            "environment": environment,
            "checks": {each.what: {"passed": each.passed, "seen": each.seen} for each in findings},
            "tokens": tokens,
            "seconds": measured,
        }
    )
    if failed:
        raise CheckError(f"{len(failed)} of {len(findings)} checks failed: {', '.join(failed)}")


def _machine(environment: dict[str, Any]) -> str:
    gpu = environment.get("gpu", {})
    driver = f", driver {gpu['driver']}, CUDA {gpu['cuda']}" if gpu else ""
    return f"{environment['device']}{driver}, torch {environment['libraries']['torch']}"


def _table(measured: dict[str, dict[str, float]], tokens: int, machine: str) -> Iterable[str]:
    """In Markdown: milliseconds of a batch and tokens a second, a column a model."""
    yield f"{tokens:,} tokens in float32, random weights, medians; {machine}"
    yield ""
    yield "| | " + " | ".join(measured) + " |"
    yield "|---|" + "---|" * len(measured)
    for row in timings.ROWS:
        cells = [
            f"{1e3 * seconds[row]:.1f} ms, {tokens / seconds[row]:,.0f} tokens/s"
            for seconds in measured.values()
        ]
        yield f"| {row} | " + " | ".join(cells) + " |"
