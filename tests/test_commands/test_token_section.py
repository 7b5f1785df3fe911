"""The report's section on tokens: its numbers, and that it is a part of a page."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import jinja2
import numpy as np
import pytest
from test_report import Page

from neoscope.commands.report import figures
from neoscope.commands.report.token_section import PROPERTIES, token_section
from neoscope.reading import by_token
from support.command import invoke


@pytest.fixture(scope="module")
def url(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = tmp_path_factory.mktemp("section") / "run"
    given = ["--model", small_model, "--dataset", "sample", "--sequences", 8, "--positions", 24]
    assert invoke("run", url, *given).code == 0
    return str(url)


def test_its_numbers_are_those_of_by_token(url: str) -> None:
    found = token_section(url, times=99)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    sums, table = list(by_token.sums(url)), by_token.features(url)[PROPERTIES]
    fit = by_token.regress(sums, table, errors="CR3").sel(feature="length")
    assert found["naive"]["median"] == pytest.approx(float(abs(fit.naive_t).median()))
    assert found["honest"]["median"] == pytest.approx(float(abs(fit.t).median()))
    assert found["honest"]["significant"] == pytest.approx(float((abs(fit.t) > 1.96).mean()))
    assert found["shares"]["token"] == pytest.approx(fit.r2_token.median("neuron").values.tolist())
    both = by_token.regress(sums, table).r2.median("neuron")
    assert found["shares"]["both"] == pytest.approx(both.values.tolist())
    alone = by_token.regress(sums, table[["length"]]).r2.median("neuron")
    assert found["shares"]["length"] == pytest.approx(alone.values.tolist())
    dealt = by_token.permute(sums, table, times=99)
    assert found["threshold"] == dealt.threshold
    assert found["above_count"] == int(dealt.above.sum()) and found["neurons"] == 3 * 64
    listed = sorted((each["layer"], each["neuron"]) for each in found["above"])
    assert listed == np.argwhere(dealt.above.values).tolist() or len(listed) == 12
    assert all(abs(each["t"]) > dealt.threshold for each in found["above"])


def test_it_is_a_part_of_a_page(url: str) -> None:
    tokens = token_section(url, times=99)
    tokens["above"] = [{"layer": 2, "neuron": 7, "t": 5.04, "naive_t": 21.3, "p_largest": 0.01}]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["grouped"] = lambda number: f"{number:,}"
    source = resources.files("neoscope.commands.report") / "token_section.html.jinja"
    figure = figures.token_shares(tokens["layers"], tokens["shares"])
    template = environment.from_string(source.read_text(encoding="utf-8"))
    page = Page(template.render(tokens=tokens, shares_figure=figure))
    assert page.open == [] and "#00000" not in figure
    assert f"{tokens['occurrences']:,} tokens are of {tokens['token_types']:,} kinds" in page.words
    assert (
        f"{tokens['honest']['median']:.1f}" in page.words
        and "+5.0+21.30.010" in page.words.replace("\n", "")
    )
    tokens.update(
        above=[], above_count=0, threshold=None, naive={"median": None, "significant": None}
    )
    words = Page(template.render(tokens=tokens, shares_figure=figure)).words
    assert "0 of 192 neurons" in words and "Above what" not in words
