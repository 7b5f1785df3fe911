"""The report of a run: what is on the page, and what it is made of."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from neoscope import by_neuron, contexts, open_neurons, open_statistics
from neoscope.commands.neuron_screen import printable
from neoscope.statistics import by_length
from support.command import invoke

VOID = {"meta", "br", "use", "path", "rect", "img", "link"}


class Page(HTMLParser):
    """Elements by tag with their attributes, the page's words, and the elements left open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def outside_tokens(words: str) -> tuple[str, str]:
    """The page's words before and after its section on tokens."""
    before, rest = words.split("Is it length, or which token it is?")
    return before, rest[rest.index("The text\n") :]


@pytest.fixture(scope="module")
def reported(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """A run, and its report as it is stored."""
    url = tmp_path_factory.mktemp("reported") / "run"
    given = ["--model", small_model, "--dataset", "sample", "--sequences", 8, "--positions", 24]
    assert invoke("run", url, *given).code == 0
    done = invoke("report", url)
    assert done.code == 0, done.err
    assert done.out == f"stored:  {url}/report.html\n"
    return url, Page((url / "report.html").read_text("utf-8"))


def test_it_is_one_whole_page_that_needs_no_network(reported: tuple[Path, Page]) -> None:
    _, page = reported
    assert page.open == []
    assert not page.all("script") + page.all("link") + page.all("img") + page.all("iframe")
    for _, attributes in page.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    identifiers = [each["id"] for _, each in page.elements if "id" in each]
    assert len(identifiers) == len(set(identifiers)), "two figures share an id"


def test_every_neuron_that_it_names_has_a_link_to_its_passages(
    reported: tuple[Path, Page],
) -> None:
    url, page = reported
    links = [each["href"] for each in page.all("a") if "#neuron-" in (each["href"] or "")]
    places = [each["id"] for each in page.all("tbody") if "id" in each]
    assert len(links) >= 22 and {f"#{each}" for each in places} == set(links)
    _, layer, neuron = places[0].split("-")
    found = contexts(str(url), int(layer), int(neuron), count=3, before=8, after=3)
    passages = ["".join(map(printable, each.tokens)) for each in found]
    assert [each for each in passages if each not in page.words] == []


def test_every_figure_has_words_and_takes_its_colours_from_the_page(
    reported: tuple[Path, Page],
) -> None:
    url, page = reported
    figures = page.all("svg")
    assert (
        len(figures) == 1 + 3 + 1 + 1 + 1
    )  # lengths, one a layer, correlations, firing, shares of variance
    assert all(each["role"] == "img" and len(each["aria-label"] or "") > 20 for each in figures)
    source = (url / "report.html").read_text("utf-8")
    assert "#00000" not in source
    assert "var(--shorter)" in source[source.index("<svg") :]


def test_it_says_what_the_manifest_says(reported: tuple[Path, Page]) -> None:
    url, page = reported
    manifest = json.loads((url / "manifest.json").read_text())
    length = manifest["tokens"]["length"]
    assert f"{length['median']} characters" in page.words
    for name in ("shorter", "equal", "longer"):
        group = length["groups"][name]
        assert f"{group['count']:,}" in page.words
        assert f"{100 * group['share']:.1f} %" in page.words
    for value in (manifest["fingerprint"], manifest["content_digest"], manifest["model"]["digest"]):
        assert value in page.words
    assert "RANDOM" not in page.words


def test_it_names_the_neuron_that_follows_length_most(reported: tuple[Path, Page]) -> None:
    url, page = reported
    r = by_length.correlation(open_statistics(str(url)))
    layer, neuron = np.unravel_index(np.nanargmax(np.abs(r.values)), r.shape)
    table = page.words[page.words.index("The strongest\n") :]
    assert f"correlation\n\n\n{layer}{neuron}{r.values[layer, neuron]:+.3f}\n" in table


def test_but_for_tokens_no_activation_is_read(reported: tuple[Path, Page], tmp_path: Path) -> None:
    url, page = reported
    copy = tmp_path / "run"
    shutil.copytree(url, copy)
    for layer in (copy / "activations.zarr").glob("MLP_*"):
        shutil.rmtree(layer / "c")
    assert invoke("report", copy, "--no-tokens").code == 0
    again = (copy / "report.html").read_text("utf-8").replace(str(copy), str(url))
    assert outside_tokens(Page(again).words) == outside_tokens(page.words)


def test_the_run_is_whole_with_its_report(reported: tuple[Path, Page]) -> None:
    assert invoke("verify", reported[0]).code == 0


def test_it_comes_from_minio_and_goes_to_a_file_too(
    small_model: Path, s3_url: str, tmp_path: Path
) -> None:
    given = ["--model", small_model, "--dataset", "sample", "--sequences", 4, "--positions", 8]
    assert invoke("run", s3_url, *given, "--no-arrays").code == 0
    done = invoke("report", s3_url, "--file", tmp_path / "page.html")
    assert done.code == 0, done.err
    assert s3_url in Page((tmp_path / "page.html").read_text("utf-8")).words
    elsewhere = tmp_path / "none" / "page.html"
    refused = invoke("report", s3_url, "--no-tokens", "--file", elsewhere)
    assert (refused.code, refused.err.count("\n")) == (3, 1)
    assert "cannot write" in refused.err


def test_random_weights_are_said_loudly(tmp_path: Path) -> None:
    url = tmp_path / "run"
    given = ["--weights", "random", "--dataset", "sample", "--sequences", 1, "--positions", 8]
    assert invoke("run", url, *given, "--no-arrays").code == 0
    assert invoke("report", url).code == 0
    page = Page((url / "report.html").read_text("utf-8"))
    assert "The weights are RANDOM" in page.words
    assert {"class": "alarm"} in page.all("p")


def test_a_run_without_statistics_has_no_report(small_model: Path, tmp_path: Path) -> None:
    url = tmp_path / "run"
    given = ["--model", small_model, "--dataset", "sample", "--sequences", 4, "--positions", 8]
    assert invoke("run", url, *given, "--no-statistics").code == 0
    done = invoke("report", url)
    assert done.code == 3
    assert "has no statistics" in done.err
    (url / "manifest.json").unlink()
    done = invoke("report", url)
    assert done.code == 3
    assert "is not whole" in done.err


def test_it_tells_of_each_neuron(reported: tuple[Path, Page]) -> None:
    url, page = reported
    neurons = open_neurons(str(url))
    kurtosis = by_neuron.moments(neurons)["kurtosis"]
    heaviest = float(kurtosis.max())
    layer, neuron = np.unravel_index(int(kurtosis.values.argmax()), kurtosis.shape)
    assert "What each neuron does" in page.words
    assert f"\n{layer}{neuron}{heaviest:.1f}" in page.words
    lowest = bool(by_neuron.moments(neurons)["skewness"][layer, neuron] < 0)
    (passage,) = contexts(str(url), int(layer), int(neuron), 1, before=8, after=3, lowest=lowest)
    assert f"{passage.value:+.2f}" + "".join(map(printable, passage.tokens)) in page.words


def test_a_run_without_statistics_by_neuron_has_a_report_too(
    small_model: Path, tmp_path: Path
) -> None:
    given = ["--model", small_model, "--dataset", "sample", "--sequences", 8, "--positions", 24]
    assert invoke("run", tmp_path / "run", *given, "--no-neurons").code == 0
    assert invoke("report", tmp_path / "run").code == 0
    assert "What each neuron does" not in (tmp_path / "run" / "report.html").read_text("utf-8")
