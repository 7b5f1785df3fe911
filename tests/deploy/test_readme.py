"""What the README and docs/ say is what the command does."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import yaml

from neoscope import open_run, open_statistics
from neoscope.commands.cli import EXIT_CODES, cli
from neoscope.statistics import by_length
from neoscope.text.documents import SAMPLE_FILE
from support.command import ROOT, invoke

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.stem: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
NOTEBOOKS = "\n".join(
    path.read_text("utf-8") for path in sorted((ROOT / "docs" / "notebooks").glob("*.md"))
)
TEXT = "\n".join([README, *PAGES.values()])  # the notebooks are run by test_notebooks.py
# Programs with options of their own.
OTHERS = "torchrun|docker|srun|sbatch|kubectl|make|pip|pip-audit|jupytext"


def test_every_command_that_it_names_exists() -> None:
    named = set(re.findall(r"`neoscope ([a-z]+(?:-[a-z]+)*)", README))
    assert named == set(cli.commands)
    for text in (README, TEXT):
        assert set(re.findall(r"`neoscope ([a-z]+(?:-[a-z]+)*)", text)) == set(cli.commands)
    assert set(re.findall(r"`neoscope ([a-z]+(?:-[a-z]+)*)", NOTEBOOKS)) <= set(cli.commands)


COMMANDS = [
    line.partition(" #")[0]
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("neoscope ")
]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_line_that_it_shows_is_taken(line: str) -> None:
    name, *words = shlex.split(line)[1:]
    cli.commands[name].make_context(name, words)  # parses, and runs nothing


def test_every_option_that_it_names_exists() -> None:
    known = {
        name
        for command in cli.commands.values()
        for p in command.params
        for name in (*p.opts, *p.secondary_opts)
    }
    ours = re.sub(r"```bash\n.+?```", "", TEXT, flags=re.DOTALL)  # the rest are other programs'
    ours = re.sub(rf"`(?:{OTHERS}) [^`]*`", "", ours)
    assert set(re.findall(r"--[a-z][a-z0-9-]+", ours)) <= known | {"--help"}


def test_every_make_target_that_it_names_exists() -> None:
    targets = re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|\$ )make ([a-z0-9]+(?:-[a-z0-9]+)*)", TEXT)) <= set(targets)


@pytest.mark.parametrize("code", re.findall(r"\d+", EXIT_CODES.split("SIG")[0]))
def test_it_documents_every_exit_code_of_the_help(code: str) -> None:
    section = README.split("## Exit codes")[1].split("##")[0]
    assert re.search(rf"\| .*\b{code}\b.* \|", section)


def test_it_lists_the_objects_that_a_run_leaves() -> None:
    for name in ("run.json", "vocabulary.json", "activations.zarr", "records", "manifest.json"):
        assert name in PAGES["contract"]


def test_every_file_that_a_page_links_to_is_there() -> None:
    for path, text in {
        "README.md": README,
        **{f"docs/{k}.md": v for k, v in PAGES.items()},
        "docs/notebooks/any.md": NOTEBOOKS,
    }.items():
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
            assert (ROOT / path).parent.joinpath(link).exists(), f"{path}: {link}"


def test_the_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    (latest, *_) = re.findall(
        r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE
    )
    assert citation["version"] == latest == project["version"]
    assert citation["license"] == project["license"]


def test_the_workflow_runs_what_ci_runs() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text("utf-8"))
    steps = workflow["jobs"]["ci"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run", "make docs"]


def test_the_pages_build_and_every_link_leads_somewhere(tmp_path: Path) -> None:
    """Without the network, as `make docs` builds them."""
    words = [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--site-dir", tmp_path]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "python" / "index.html").read_text("utf-8")
    for name in ("open_run", "correlation", "capture", "tokenize", "NeoscopeError"):
        assert f">{name}<" in reference or f'{name}"' in reference


# Its examples, run as they stand but for the place


EXAMPLES = [
    code for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL) if "capture(" not in code
]
(HISTOGRAMS,) = [code for code in EXAMPLES if "hist(" in code]
(CORRELATIONS,) = [code for code in EXAMPLES if "corr(" in code]
(STATISTICS,) = [code for code in EXAMPLES if "first_positions=False" in code]
(FROM_S3,) = [code for code in EXAMPLES if "from_url" in code]
(ROWS,) = [code for code in EXAMPLES if "shuffled_rows" in code]
(IS_IT_LENGTH, *_) = re.findall(r"```python\n(.*?)```", PAGES["is-it-length"], re.DOTALL)


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
    made = invoke("neuron-records", folder / "run", folder / "records", "--neurons", "37")
    assert made.code == 0, made.err
    return str(folder / "run")


def execute(code: str, run: str) -> tuple[dict[str, Any], str]:
    """The names that an example leaves, and what it prints; a warning is an error."""
    names: dict[str, Any] = {}
    matplotlib.use("Agg")
    with redirect_stdout(StringIO()) as out, warnings.catch_warnings():
        warnings.simplefilter("error")
        code = code.replace("file:///home/me/records", f"file://{Path(run).parent}/records")
        exec(code.replace("s3://neoscope/local", run).replace('"run/', f'"{run}/'), names)
    return names, out.getvalue()


@pytest.mark.parametrize(("code", "limit"), [(HISTOGRAMS, 15), (CORRELATIONS, 10)])
def test_the_exercise_takes_few_lines(code: str, limit: int) -> None:
    assert len([line for line in code.splitlines() if line.strip()]) < limit


@pytest.mark.parametrize("code", [code for code in EXAMPLES if code != FROM_S3])
def test_every_example_runs(
    code: str, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    execute(code, run)


def test_without_neoscope_it_is_read_from_s3_too(run: str, s3_url: str) -> None:
    """And without a warning, with the layers in order."""
    assert invoke("pull", run, s3_url).code == 0
    names, _ = execute(FROM_S3, s3_url)
    assert names["layers"] == ["MLP_0", "MLP_1", "MLP_2"]
    np.testing.assert_array_equal(names["arrays"].MLP_1, open_run(run).MLP_1)


def test_from_a_run_to_whether_it_is_length_takes_few_lines(run: str) -> None:
    lines = [line for line in IS_IT_LENGTH.splitlines() if line.strip()]
    assert len(lines) < 15
    names, out = execute(IS_IT_LENGTH, run)
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
