"""The wheel: what is in it, and what an environment of each kind can do with it.

The light environment is made by every test run; the one that makes runs, which is 6 GB, where
NEOSCOPE_WHEEL=full asks for it (`make test-wheel`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from neoscope.extra import MODULES
from support.command import FULL_WHEEL, ROOT, Finished
from support.making import make

UV = Path(sys.executable).with_name("uv")
# What is no module. The rest is every .py of the package.
DATA = {
    "neoscope/py.typed",
    "neoscope/text/sample.jsonl",
    "neoscope/text/gpt2_merges.txt",
    "neoscope/text/gpt2_merges.LICENSE",
    "neoscope/format/schemas/run.schema.json",
    "neoscope/format/schemas/record.schema.json",
    "neoscope/format/schemas/manifest.schema.json",
    "neoscope/commands/report/template.html.jinja",
    "neoscope/commands/report/token_section.html.jinja",
    "neoscope/commands/atlas/index.html",
    "neoscope/commands/atlas/atlas.css",
    "neoscope/commands/atlas/atlas.js",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that the image is built from, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "job" / "neoscope", folder / "job" / "neoscope", ignore=ignored)
    words = ("build", "--wheel", "--no-build-isolation", "--python", sys.executable)
    uv(*words, "--out-dir", folder / "dist", folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


def uv(*words: object) -> None:
    done = subprocess.run([UV, *map(str, words)], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr


def environment() -> dict[str, str]:
    """Without this checkout, and with the index that pip is told of, as in the Makefile."""
    told = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    index = subprocess.run(told, capture_output=True, text=True).stdout.strip()
    found = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return ({"UV_DEFAULT_INDEX": index} if index else {}) | found


def install(folder: Path, wheel: Path, extra: str = "") -> Path:
    """A new environment with the wheel in it, and the locked versions of what it asks for."""
    locked = folder / "locked.txt"  # without hashes, which constraints may not have
    lines = (ROOT / "requirements" / "job.txt").read_text("utf-8").splitlines()
    locked.write_text("\n".join(line.rstrip(" \\") for line in lines if "==" in line), "utf-8")
    uv("venv", "--python", sys.executable, folder / "env")
    python = folder / "env" / "bin" / "python"
    uv(
        "pip",
        "install",
        "--python",
        python,
        "--constraint",
        locked,
        f"neoscope{extra} @ {wheel.as_uri()}",
    )
    return python


@pytest.fixture(scope="module")
def light(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("light"), wheel)


@pytest.fixture(scope="module")
def run(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("runs"), small_model)


def neoscope(python: Path, *words: object) -> Finished:
    """The command of an environment, away from the checkout."""
    done = subprocess.run(
        [python.with_name("neoscope"), *map(str, words)],
        capture_output=True,
        text=True,
        cwd=python.parent,
        env=environment(),
    )
    return Finished(done.returncode, done.stdout, done.stderr)


def execute(python: Path, code: str) -> str:
    words = [python, "-I", "-W", "error", "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, cwd=python.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_it_has_every_module_and_the_data_that_they_read(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    ours = {name for name in names if ".dist-info/" not in name}
    package = ROOT / "job" / "neoscope"
    modules = {f"neoscope/{path.relative_to(package).as_posix()}" for path in package.rglob("*.py")}
    assert ours - modules >= DATA and modules <= ours
    assert ours - modules - DATA <= {name for name in ours if name.endswith((".jinja", ".json"))}


def test_it_says_what_it_is(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (head,) = {name.partition("/")[0] for name in archive.namelist() if ".dist-info/" in name}
    metadata = Parser().parsestr(archive.read(f"{head}/METADATA").decode())
    assert (metadata["Name"], metadata["License-Expression"]) == ("neoscope", "Apache-2.0")
    assert f"{head}/licenses/LICENSE" in archive.namelist()
    needed = [line for line in metadata.get_all("Requires-Dist") or [] if "extra ==" not in line]
    heavy = tuple(name.replace("_", "-") for name in MODULES)
    assert [line for line in needed if line.startswith(heavy)] == []
    assert (
        "neoscope = neoscope.commands.main:main"
        in archive.read(f"{head}/entry_points.txt").decode()
    )


def test_the_extra_is_what_makes_runs(wheel: Path) -> None:
    """extra.py, which says what is missing, names what pyproject.toml asks for."""
    archive = zipfile.ZipFile(wheel)
    (name,) = [each for each in archive.namelist() if each.endswith("METADATA")]
    lines = Parser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []
    extra = [line for line in lines if 'extra == "run"' in line]
    assert {line.split(">")[0].split(";")[0].strip().replace("-", "_") for line in extra} == set(
        MODULES
    )


def test_the_light_one_has_nothing_that_makes_runs(light: Path) -> None:
    found = "import importlib.util as u; print([n for n in {} if u.find_spec(n)])"
    assert execute(light, found.format(MODULES)) == "[]"


def test_the_light_one_is_small(light: Path) -> None:
    folder = light.parent.parent
    size = sum(
        path.stat().st_size
        for path in folder.rglob("*")
        if not path.is_symlink() and path.is_file()
    )
    assert size < 400e6


def test_the_light_one_reads_runs(light: Path, run: str, tmp_path: Path) -> None:
    for words, said in (
        (("status", run), "committed"),
        (("list", Path(run).parent), "committed"),
        (("verify", run), "is whole"),
        (("pull", run, tmp_path / "copy"), "open_run"),
        (("pull", run, tmp_path / "part", "--layers", "1", "--neurons", "0-3"), "open_run"),
        (("pull", run, tmp_path / "files", "--to", "safetensors"), "load_file"),
        (("report", run, "--file", tmp_path / "report.html"), "written"),
        (("plan", "--model", "gpt-neo-1.3B"), "24 layers of 8,192 neurons"),
        (("delete", tmp_path / "copy", "--yes"), "deleted"),
    ):
        done = neoscope(light, *words)
        assert done.code == 0 and said in done.out, (words, done)
    code = (
        "import neoscope; from neoscope import by_length;"
        f"run = neoscope.open_run({run!r}); statistics = neoscope.open_statistics({run!r});"
        "r = by_length.correlation(statistics);"
        "print(run.MLP_1.shape == (16, 24, 64), r.shape == (3, 64), float(run.MLP_0.mean()) != 0)"
    )
    assert execute(light, code) == "True True True"


@pytest.mark.parametrize(
    "words",
    [
        ("run", "out"),
        ("fetch",),
        ("verify", "RUN", "--recompute", "1"),
        ("verify", "RUN", "--text"),
        ("plan", "--model", "Qwen/Qwen3-0.6B"),
    ],
    ids=str,
)
def test_the_light_one_says_how_to_get_what_makes_runs(
    light: Path, run: str, words: tuple[str, ...]
) -> None:
    done = neoscope(light, *(run if word == "RUN" else word for word in words))
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("neoscope: error: ") and "needs torch, " in line
    assert line.endswith("this installation only reads runs: pip install 'neoscope[run]'")
    assert not (light.parent / "out").exists()


@pytest.mark.parametrize("name", ["capture", "load_model", "load_tokenizer", "tokenize"])
def test_from_python_too(light: Path, name: str) -> None:
    code = (
        "import neoscope\n"
        f"try: neoscope.{name}\n"
        "except neoscope.NeoscopeError as error: print(isinstance(error, ImportError), error)"
    )
    said = execute(light, code)
    assert said.startswith(f"True neoscope.{name} needs torch, ") and "neoscope[run]" in said


@pytest.mark.skipif(not FULL_WHEEL, reason="6 GB: make test-wheel")
@pytest.mark.timeout(1200)
def test_the_other_one_makes_them(wheel: Path, light: Path, tmp_path: Path) -> None:
    python = install(tmp_path, wheel, "[run]")
    words = ("--weights", "random", "--dataset", "sample", "--sequences", "2", "--positions", "32")
    done = neoscope(python, "run", tmp_path / "made", *words)
    assert done.code == 0, done.err
    assert neoscope(python, "verify", tmp_path / "made", "--recompute", "1", "--text").code == 0
    assert neoscope(light, "verify", tmp_path / "made").code == 0
