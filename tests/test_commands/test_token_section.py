"""The report's section on tokens: its numbers, what the page says of them, and where there are none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import Page

from neoscope import contexts
from neoscope.commands.neuron_screen import printable
from neoscope.commands.report.token_section import PROPERTIES, token_section
from neoscope.progress import Progress
from neoscope.reading import by_token
from neoscope.storage.store import open_store
from support.command import invoke


@pytest.fixture(scope="module")
def url(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = tmp_path_factory.mktemp("section") / "run"
    given = ["--model", small_model, "--dataset", "sample", "--sequences", 8, "--positions", 24]
    assert invoke("run", url, *given).code == 0
    return str(url)


def section(url: str) -> dict[str, Any]:
    manifest = json.loads(Path(url, "manifest.json").read_text())
    return token_section(open_store(url), manifest, permutations=99, progress=Progress(quiet=True))


def page(url: object) -> Page:
    return Page(Path(str(url), "report.html").read_text("utf-8").replace("\xa0", " "))


def test_its_numbers_are_those_of_by_token(url: str) -> None:
    found = section(url)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    sums, table = list(by_token.sums(url)), by_token.features(url)[PROPERTIES]
    whole = by_token.regress(sums, table, errors="CR3")
    fit = whole.sel(feature="length")
    assert found["naive"]["median"] == pytest.approx(float(abs(fit.naive_t).median()))
    assert found["honest"]["median"] == pytest.approx(float(abs(fit.t).median()))
    assert found["honest"]["significant"] == pytest.approx(float((abs(fit.t) > 1.96).mean()))
    subsets = {"length": ["length"], "frequency": ["log_frequency"], "both": PROPERTIES}
    shares = by_token.r2(sums, table, subsets)
    for name in subsets:
        share = shares.sel(subset=name)
        assert found["shares"][name] == pytest.approx(share.median("neuron").values.tolist())
        assert found["medians"][name] == pytest.approx(float(share.median()))
    assert found["shares"]["token"] == pytest.approx(fit.r2_token.median("neuron").values.tolist())
    added = shares.sel(subset="both") - shares.sel(subset="frequency")
    assert found["medians"]["added"] == pytest.approx(float(added.median()))
    assert found["medians"]["chance"] == (whole.token_types - 1) / (whole.occurrences - 1)
    dealt = by_token.permute(sums, table, times=99)
    assert found["threshold"] == dealt.threshold
    assert found["above_count"] == int(dealt.above.sum()) and found["neurons"] == 3 * 64
    listed = sorted((each["layer"], each["neuron"]) for each in found["above"])
    assert listed == np.argwhere(dealt.above.values).tolist() or len(listed) == 12
    assert all(abs(each["t"]) > dealt.threshold for each in found["above"])


def test_the_page_says_them(url: str) -> None:
    done = invoke("report", url, "--permutations", 99)
    assert done.code == 0 and "GB of arrays by token" in done.err and "--no-tokens" in done.err
    found, words = section(url), page(url).words
    assert f"{found['occurrences']:,} occurrences are of {found['token_types']:,} diff" in words
    assert f"Chance alone gives {100 * found['medians']['chance']:.1f} %" in words
    assert f"which token it is{100 * found['medians']['token']:.1f} %" in words
    for name in ("naive", "honest"):
        median, beyond = found[name]["median"], found[name]["significant"]
        assert f"{median:.1f}{100 * beyond:.1f} %" in words
    assert f"{found['above_count']} of 192 neurons" in words and "dealt out anew 99 times" in words
    assert f"is above {found['threshold']:.1f} in one time of twenty" in words
    assert {"href": "#tokens"} in page(url).all("a") and {"id": "tokens"} in page(url).all(
        "section"
    )


def test_the_page_says_why_there_is_none(small_model: Path, url: str, tmp_path: Path) -> None:
    assert invoke("report", url, "--no-tokens").code == 0
    assert "Not answered on this page: this page was made with --no-tokens." in page(url).words
    given = ["--model", small_model, "--dataset", "sample", "--sequences", 1, "--positions", 4]
    for option, reason in (
        ("--no-arrays", "it keeps neither activations (--no-arrays) nor --token-sums"),
        ("--arrays", "the text is too short for it ("),
    ):
        run = tmp_path / option
        assert invoke("run", run, *given, option).code == 0
        done = invoke("report", run)
        assert done.code == 0 and reason in done.err
        assert reason in page(run).words and page(run).open == []


def test_neurons_above_chance_lead_to_their_passages(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neoscope.commands.report.token_section.LEVEL", 0.95)
    assert invoke("report", url, "--permutations", 19).code == 0
    found = page(url)
    links = [each["href"] for each in found.all("a") if "#neuron-" in (each["href"] or "")]
    named = {f"#{each['id']}" for each in found.all("tbody") if each.get("id")}
    assert links and set(links) == named
    _, layer, neuron = links[0].split("-")
    (passage,) = contexts(url, int(layer), int(neuron), 1, before=8, after=3)
    assert f"{passage.value:+.2f}" + "".join(map(printable, passage.tokens)) in found.words


def test_a_missing_chunk_is_no_answer(url: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(url, run)
    (run / "report.html").unlink(missing_ok=True)
    next(each for each in (run / "activations.zarr/MLP_1/c").rglob("*") if each.is_file()).unlink()
    done = invoke("report", run)
    assert done.code == 5 and "see neoscope verify" in done.err
    assert not (run / "report.html").exists()


def test_options_that_do_not_fit_together(url: str) -> None:
    done = invoke("report", url, "--no-tokens", "--permutations", 99)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "--permutations 99" in done.err
    assert invoke("report", url, "--permutations", 18).code == 2
