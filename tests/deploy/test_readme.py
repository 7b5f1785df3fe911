"""What the README and docs/ say is what the command does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from neoscope import open_run, open_statistics
from neoscope.commands.cli import EXIT_CODES, cli
from neoscope.statistics import by_length
from neoscope.text.documents import SAMPLE_FILE
from support.command import ROOT, invoke

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_that_it_names_exists() -> None:
    named = set(re.findall(r"`neoscope ([a-z]+(?:-[a-z]+)*)", README))
    assert named == set(cli.commands)


def test_every_option_that_it_names_exists() -> None:
    known = {
        name
        for command in cli.commands.values()
        for p in command.params
        for name in (*p.opts, *p.secondary_opts)
    }
    ours = re.sub(r"```bash\n.+?```", "", README, flags=re.DOTALL)  # the rest are other programs'
    assert set(re.findall(r"--[a-z][a-z0-9-]+", ours)) <= known | {"--help"}


def test_every_make_target_that_it_names_exists() -> None:
    targets = re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|\$ )make ([a-z0-9]+(?:-[a-z0-9]+)*)", README)) <= set(targets)


@pytest.mark.parametrize("code", re.findall(r"\d+", EXIT_CODES.split("SIG")[0]))
def test_it_documents_every_exit_code_of_the_help(code: str) -> None:
    section = README.split("## Exit codes")[1].split("##")[0]
    assert re.search(rf"\| .*\b{code}\b.* \|", section)


def test_it_lists_the_objects_that_a_run_leaves() -> None:
    for name in ("run.json", "vocabulary.json", "activations.zarr", "records", "manifest.json"):
        assert name in README.split("## What a run leaves")[1]


# Its examples, run as they stand but for the place


EXAMPLES = [
    code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "open_" in code
]
(HISTOGRAMS,) = [code for code in EXAMPLES if "hist(" in code]
(CORRELATIONS,) = [code for code in EXAMPLES if "corr(" in code]
(STATISTICS,) = [code for code in EXAMPLES if "open_statistics" in code]
(ROWS,) = [code for code in EXAMPLES if "shuffled_rows" in code]
DOCS = {
    f"{path.stem}-{number}": code
    for path in sorted((ROOT / "docs").glob("*.md"))
    for number, code in enumerate(
        re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL)
    )
}


@pytest.fixture(scope="module")
def run(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run with special tokens between its short documents."""
    folder = tmp_path_factory.mktemp("readme")
    sentences = "".join(SAMPLE_FILE.read_text("utf-8").splitlines()).split(". ")
    text = folder / "short.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in sentences), "utf-8")
    words = ["--model", small_model, "--text", text, "--separator", "eos"]
    done = invoke("run", folder / "run", *words, "--sequences", 16, "--positions", 64)
    assert done.code == 0, done.err
    return str(folder / "run")


def execute(code: str, run: str) -> tuple[dict[str, Any], str]:
    """The names that an example leaves, and what it prints; a warning is an error."""
    names: dict[str, Any] = {}
    matplotlib.use("Agg")
    with redirect_stdout(StringIO()) as out, warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(code.replace("s3://neoscope/local", run), names)
    return names, out.getvalue()


@pytest.mark.parametrize(("code", "limit"), [(HISTOGRAMS, 15), (CORRELATIONS, 10)])
def test_the_exercise_takes_few_lines(code: str, limit: int) -> None:
    assert len([line for line in code.splitlines() if line.strip()]) < limit


@pytest.mark.parametrize("code", EXAMPLES)
def test_every_example_runs(
    code: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    execute(code, run)


@pytest.mark.parametrize("name", DOCS)
def test_every_example_of_the_docs_runs(
    name: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    execute(DOCS[name], run)


def test_from_a_run_to_whether_it_is_length_takes_few_lines(run: str) -> None:
    lines = [line for line in DOCS["is-it-length-0"].splitlines() if line.strip()]
    assert len(lines) < 15
    names, out = execute(DOCS["is-it-length-0"], run)
    naive, honest = re.match(r"naive \|t\| (\S+), honest \|t\| (\S+)\n", out).groups()
    assert float(naive) == round(float(abs(names["fit"].naive_t).median()), 1) > float(honest)


def test_the_histograms_are_those_of_the_three_groups(
    run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    axes = execute(HISTOGRAMS, run)[0]["axes"]
    assert (tmp_path / "histograms.png").stat().st_size > 1000
    arrays = open_run(run).load()
    length = arrays.token_length.values
    median = int(np.percentile(length[length > 0], 50, method="lower"))
    groups = ((length > 0) & (length < median), length == median, length > median)
    assert all(group.any() for group in groups) and (length == 0).any()
    for number, axis in enumerate(axes.flat[:3]):
        assert axis.get_title() == f"MLP_{number}"
        for group, drawn in zip(groups, axis.patches, strict=True):
            values = arrays[f"MLP_{number}"].values[group]
            expected, _ = np.histogram(values, bins=np.linspace(-8, 5, 51), density=True)
            np.testing.assert_allclose(drawn.get_xy()[1:-1:2, 1], expected, rtol=1e-6)


def test_the_correlations_are_those_of_every_neuron_with_token_length(run: str) -> None:
    names, out = execute(CORRELATIONS, run)
    arrays = open_run(run).load()
    length = arrays.token_length.values
    words = length > 0
    assert not words.all()
    for number, line in enumerate(out.splitlines()):
        neurons = arrays[f"MLP_{number}"].values[words].astype(float)
        expected = [np.corrcoef(neuron, length[words])[0, 1] for neuron in neurons.T]
        best = int(np.argmax(np.abs(expected)))
        assert line == (
            f"MLP_{number}: mean |r| {np.abs(expected).mean():.3f}, "
            f"neuron {best} has {expected[best]:+.3f}"
        )
    np.testing.assert_allclose(names["r"], expected, atol=1e-12)


def test_the_statistics_say_the_same_as_the_activations(run: str) -> None:
    from_activations = execute(CORRELATIONS, run)[0]["r"]
    from_statistics = by_length.correlation(open_statistics(run))
    np.testing.assert_allclose(from_statistics.values[-1], from_activations, atol=1e-10)
    assert execute(STATISTICS, run)[1].startswith("most: 0.")


def test_the_rows_to_train_on_are_every_token_once_in_another_order(run: str) -> None:
    shuffled_rows = execute(ROWS, run)[0]["shuffled_rows"]
    found = list(shuffled_rows(run, "MLP_1", rows=100, sequences=4))
    assert {len(batch) for batch in found[:2]} == {100}
    arrays = open_run(run).load()
    expected = arrays["MLP_1"].values[arrays.token_length.values > 0]
    rows = np.concatenate(found)
    assert not np.array_equal(rows, expected)
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])


def test_its_first_lines_of_python_run_in_a_new_shell(tmp_path: Path) -> None:
    """From the clone alone: nothing in any cache, and a Hub that does not answer."""
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "capture" in c]
    code += "\nprint(list(layers)[-1], tuple(layers['MLP_11'].shape))\n"
    alone = {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable],
        input=code,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **alone},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "MLP_11 (1, 7, 3072)\n"
