"""`neoscope neuron`: one screen of a terminal, and JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from neoscope import by_length, open_run, open_statistics
from support.command import invoke
from support.making import arguments


@pytest.fixture(scope="module")
def url(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = tmp_path_factory.mktemp("neuron") / "run"
    assert invoke("run", url, *arguments(small_model)).code == 0
    return str(url)


def test_json_has_the_numbers_of_the_stored_values(url: str) -> None:
    done = invoke("neuron", url, 1, 5, "--json", "--count", 3)
    assert done.code == 0, done.err
    found = json.loads(done.out)
    run = open_run(url)
    layer = run.MLP_1.values.astype(np.float64).reshape(-1, 64)
    values = layer[:, 5]
    facts, ranks = found["facts"], found["ranks"]
    assert facts["mean"] == pytest.approx(values.mean())
    assert facts["std"] == pytest.approx(values.std())
    assert facts["firing"] == (values > 0).mean()
    assert ranks["firing"] == ((layer > 0).mean(axis=0) < (values > 0).mean()).mean()
    correlation = by_length.correlation(open_statistics(url)).sel(layer=1, neuron=5)
    assert facts["length_correlation"] == pytest.approx(float(correlation))
    assert sum(found["histogram"]["counts"]) == len(values)
    assert [each["value"] for each in found["lowest"]] == sorted(
        run.MLP_1[:, :, 5].min("position").values.tolist()
    )[:3]


def test_the_screen_fits_and_marks_each_peak_without_colour(url: str) -> None:
    done = invoke("neuron", url, 1, 5, "--count", 4)
    assert done.code == 0, done.err
    assert "\x1b" not in done.out
    lines = done.out.splitlines()
    assert len(lines) < 40
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("layer 1, neuron 5 of ")
    assert "384 tokens" in lines[0]
    passages = lines[-4:]
    assert all("«" in line and "»" in line for line in passages)
    values = [float(line.split()[0]) for line in passages]
    assert values == sorted(values, reverse=True)
    assert invoke("neuron", url, 1, 5, "--lowest", "--count", 4).out.splitlines()[-4:] != passages


@pytest.mark.parametrize("plain", [False, True])
def test_a_terminal_gets_colours_unless_it_asks_for_none(url: str, plain: bool) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", **({"NO_COLOR": "1"} if plain else {})}
    if not plain:
        environment.pop("NO_COLOR", None)
    words = [sys.executable, "-m", "neoscope", "neuron", url, "0", "3", "--count", "2"]
    subprocess.run(words, stdout=theirs, check=True, env=environment, timeout=240)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:
        pass
    os.close(ours)
    assert (b"\x1b[" in said) != plain
    assert b"neuron 3" in said


def test_what_there_is_not_is_one_line(url: str) -> None:
    done = invoke("neuron", url, 1, 64)
    assert done.code == 3
    assert "has no neuron 64: each layer has 0 to 63" in done.err


def test_text_cannot_speak_to_the_terminal() -> None:
    from neoscope.commands.neuron_screen import printable

    assert printable("a\x1b[2Jb\nc\u202e") == "a·[2Jb↵c·"
