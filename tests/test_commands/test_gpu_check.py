"""`neoscope gpu-check`: without a GPU one line; on a CPU in a GPU's place all that it does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from neoscope.commands.gpu_check import checks, gpu_check, timings
from neoscope.commands.gpu_check.checks import Subject
from neoscope.errors import CheckError
from support.command import invoke

CPU = torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    done = invoke("gpu-check")
    assert (done.code, done.out) == (3, "")
    (line,) = done.err.splitlines()
    assert line.startswith("neoscope: error: --device cuda: torch ")


@pytest.mark.timeout(900)  # five processes, most of whose time is imports
def test_every_check_and_measure_on_a_cpu_in_a_gpus_place(small_model: Path) -> None:
    """The runs are real processes, one of them killed; the table has a row of each measure."""
    subject = Subject(str(small_model), "pretrained", "cpu")
    lines = list(gpu_check.report([subject], CPU, sequences=4, positions=16, rounds=1))
    told = [line for line in lines if line[:6] in ("PASS  ", "FAIL  ")]
    assert len(told) == 3 * 5 + 3
    assert [line for line in told if line.startswith("FAIL")] == []
    assert [line.split(" | ")[0][2:] for line in lines if " tokens/s" in line] == list(timings.ROWS)
    found = json.loads(lines[-1])
    assert found["checks"].keys() == {line[6:].split(": ")[0] for line in told}
    assert found["seconds"][str(small_model)].keys() == set(timings.ROWS)
    assert found["environment"]["precision"]["float32_matmul_precision"] == "highest"


@pytest.mark.parametrize(
    ("fault", "failed"),
    [
        (lambda values: values * 1.002, ["float32 capture", "float32 capture, a sequence a pass"]),
        (lambda values: values + torch.rand(()) * 1e-6, ["float32 capture twice"]),
    ],
    ids=["wrong-values", "other-bits"],
)
def test_what_a_gpu_gets_wrong_is_found(
    fault: Callable[[Any], Any],
    failed: list[str],
    small_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, calls = checks.capture, []

    def capture(model: Any, ids: Any) -> dict[str, torch.Tensor]:
        calls.append(ids)
        layers = real(model, ids)
        return layers if len(calls) == 1 else {name: fault(layers[name]) for name in layers}

    monkeypatch.setattr(checks, "capture", capture)
    subject = Subject(str(small_model), "pretrained", "cpu")
    found = list(checks._check_precision(subject, "float32"))
    assert [each.what for each in found if not each.passed] == failed


def test_a_failed_check_is_exit_5_after_all_is_told(
    small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = checks.Finding("two equal runs", False, "MLP_1 differ")
    monkeypatch.setattr(gpu_check, "check", lambda _subject: iter([finding]))
    lines = []
    with pytest.raises(CheckError, match="1 of 1 checks failed: two equal runs"):
        subject = Subject(str(small_model), "pretrained", "cpu")
        for line in gpu_check.report([subject], CPU, sequences=2, positions=8, rounds=1):
            lines.append(line)
    assert "FAIL  two equal runs: MLP_1 differ" in lines
    assert json.loads(lines[-1])["checks"]["two equal runs"]["passed"] is False


def test_runs_that_differ_are_told_by_layer(tmp_path: Path) -> None:
    for name, digest in (("one", "a"), ("other", "b")):
        (tmp_path / name).mkdir()
        arrays = {"MLP_0": {"digest": "same"}, "MLP_1": {"digest": digest}}
        manifest = {"content_digest": digest, "arrays": arrays}
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest))
    assert checks._difference(tmp_path / "one", tmp_path / "other") == "MLP_1 differ"
    assert checks._difference(tmp_path / "one", tmp_path / "one") == ""
