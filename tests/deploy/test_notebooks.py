"""The notebooks of docs/ run as they stand, on a run in MinIO that the command has made."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from nbformat import NotebookNode

from support.command import ROOT, neoscope

sys.path.insert(0, str(ROOT / "docs" / "hooks"))
import pictures

PNG = b"\x89PNG\r\n"


@pytest.fixture(scope="module")
def url(endpoint: str, small_model: Path) -> str:
    """The place that the notebooks name has a bucket of its own here."""
    found = f"s3://neoscope-test/{__name__}"
    words = ("--model", small_model, "--dataset", "sample", "--separator", "eos")
    done = neoscope("run", found, *words, "--sequences", 16, "--positions", 64)
    assert done.code == 0, done.err
    return found


@pytest.mark.parametrize("notebook", pictures.NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_gives_the_figures_that_its_page_shows(
    notebook: Path, url: str
) -> None:
    executed = pictures.execute(notebook, url)
    assert said(executed, "stderr") == "", "a warning stands in the notebook"
    assert said(executed, "stdout")
    drawn = pictures.figures(executed)
    shown = [f"../images/{notebook.stem}-{number + 1}.png" for number in range(len(drawn))]
    text = notebook.read_text("utf-8")
    assert [each for each in shown if f"]({each})" not in text] == []
    assert text.count("](../images/") == len(shown) > 1
    assert all(picture.startswith(PNG) and len(picture) > 5000 for picture in drawn)
    assert all((notebook.parent / each).is_file() for each in shown)


def test_the_exercise_finds_what_the_run_says(url: str) -> None:
    """Its numbers are those of the manifest, and its neurons those of the statistics."""
    from neoscope import by_length, open_statistics
    from neoscope.format.manifest import read_manifest
    from neoscope.storage.store import open_store

    (exercise,) = [each for each in pictures.NOTEBOOKS if each.stem == "exercise"]
    out = said(pictures.execute(exercise, url), "stdout")
    manifest = read_manifest(open_store(url))
    assert manifest is not None
    length = manifest["tokens"]["length"]
    assert f"median length: {length['median']} characters" in out
    for name, group in length["groups"].items():
        assert f"{name:>8}: {group['count']:5,} tokens, {group['share']:.1%}" in out
    r = by_length.correlation(open_statistics(url))
    layer, neuron = divmod(int(abs(r.values).argmax()), r.sizes["neuron"])
    assert f"MLP_{layer} neuron {neuron}: r {float(r[layer, neuron]):+.3f}" in out


def said(notebook: NotebookNode, stream: str) -> str:
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    return "".join(each["text"] for each in outputs if each.get("name") == stream)
