"""`neoscope atlas`: its files against the stored values, and its pages in a real browser."""

from __future__ import annotations

import json
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from neoscope import contexts, open_run
from neoscope.commands.atlas.serve import loopback_server
from support.command import invoke
from support.making import arguments

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def url(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    url = tmp_path_factory.mktemp("atlas") / "run"
    assert invoke("run", url, *arguments(small_model, batches=3)).code == 0
    return str(url)


@pytest.fixture(scope="module")
def atlas(url: str) -> Path:
    dest = Path(url).parent / "atlas"
    done = invoke("atlas", url, dest)
    assert done.code == 0, done.err
    assert "shows 3 layers, in 13 files" in done.out
    return dest


def block(atlas: Path, layer: int, neuron: int) -> tuple[dict[str, Any], dict[str, Any]]:
    run = json.loads((atlas / "data" / "run.json").read_text())
    first = neuron // run["block"] * run["block"]
    found = json.loads((atlas / "data" / f"layer-{layer}" / f"{first}.json").read_text())
    return found, found["neurons"][neuron - first]


@pytest.mark.parametrize("lowest", [False, True])
def test_passages_are_those_that_python_gives(url: str, atlas: Path, lowest: bool) -> None:
    run = json.loads((atlas / "data" / "run.json").read_text())
    for neuron in (0, 37, 63):
        found, page = block(atlas, 1, neuron)
        shown = page["lowest" if lowest else "highest"]
        for passage, mine in zip(
            contexts(url, 1, neuron, count=len(shown), lowest=lowest), shown, strict=True
        ):
            assert [found["tokens"][token] for token in mine["tokens"]] == passage.tokens
            assert mine["peak"] == passage.peak
            assert found["documents"][mine["document"]] == passage.document
            assert (mine["sequence"], mine["position"]) == (passage.sequence, passage.position)
            assert mine["value"] == pytest.approx(passage.value, rel=1e-3)
            levels = np.array([ord(shade) - run["zero"] for shade in mine["shades"]])
            np.testing.assert_allclose(
                levels / run["levels"] * mine["most"],
                passage.values,
                atol=0.51 / run["levels"] * mine["most"],
            )


def test_the_table_has_the_numbers_of_the_neuron(url: str, atlas: Path) -> None:
    table = json.loads((atlas / "data" / "layer-2.json").read_text())
    values = open_run(url).MLP_2.values.reshape(-1, 64).astype(np.float64)
    np.testing.assert_allclose(table["firing"], (values > 0).mean(axis=0), rtol=1e-3)
    np.testing.assert_allclose(table["mean"], values.mean(axis=0), rtol=1e-3, atol=1e-9)
    facts = json.loads(invoke("neuron", url, 2, 9, "--json", "--count", 1).out)
    for name, value in facts["facts"].items():
        assert table[name][9] == pytest.approx(value, rel=1e-3)
    (passage,) = contexts(url, 2, 9, count=1, before=5, after=2)
    before, peak, after = table["passage"][9]
    assert peak == passage.tokens[passage.peak]
    assert before + peak + after == "".join(passage.tokens)


def test_a_destination_is_its_own_or_empty(url: str, atlas: Path, tmp_path: Path) -> None:
    assert invoke("atlas", url, atlas).code == 0
    assert invoke("atlas", url, atlas, "--layers", "1").code == 4
    (tmp_path / "letter.txt").write_text("mine")
    assert invoke("atlas", url, tmp_path).code == 4
    done = invoke("atlas", url, tmp_path / "new", "--layers", "1,7")
    assert done.code == 2
    assert "the run has no layer 7" in done.err
    assert not list((tmp_path / "new").rglob("*.*"))


def test_without_arrays_passages_have_no_shades(small_model: Path, tmp_path: Path) -> None:
    given = [*arguments(small_model), "--no-arrays", "--no-statistics"]
    assert invoke("run", tmp_path / "run", *given).code == 0
    assert invoke("atlas", tmp_path / "run", tmp_path / "atlas").code == 0
    _, page = block(tmp_path / "atlas", 0, 3)
    assert page["highest"]
    assert "shades" not in page["highest"][0]
    assert "by_length" not in page


def test_a_bucket_serves_the_page_as_a_page(url: str, s3_url: str) -> None:
    done = invoke("atlas", url, f"{s3_url}/atlas", "--layers", "0")
    assert done.code == 0, done.err
    bucket, _, prefix = s3_url.removeprefix("s3://").partition("/")
    s3 = boto3.Session().client("s3")
    kinds = {
        "index.html": "text/html",
        "atlas.js": "text/javascript",
        "data/run.json": "application/json",
    }
    for key, kind in kinds.items():
        head = s3.head_object(Bucket=bucket, Key=f"{prefix}/atlas/{key}")
        assert head["ContentType"].startswith(kind)


@pytest.fixture(scope="module")
def address(atlas: Path) -> Iterator[str]:
    server = loopback_server(str(atlas), 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def test_it_is_served_to_this_machine(address: str) -> None:
    with urllib.request.urlopen(address + "atlas.js", timeout=20) as answer:
        assert answer.headers["Content-Type"].startswith("text/javascript")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page that asked no other server, and threw nothing."""
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(60_000)
    asked: list[str] = []
    thrown: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: thrown.append(str(error)))
    page.goto(address)
    page.wait_for_selector("tbody tr")
    yield page
    page.close()
    assert not thrown
    assert not [each for each in asked if not each.startswith((address, "data:"))]


def numbers(page: Any, column: int) -> list[float]:
    cells = page.locator(f"tbody tr td:nth-child({column})").all_inner_texts()
    return [float(cell.replace("−", "-").replace("%", "")) for cell in cells]


def test_the_table_sorts_and_filters(page: Any, atlas: Path) -> None:
    assert page.locator("tbody tr").count() == 64
    kurtosis = numbers(page, 6)
    assert kurtosis == sorted(kurtosis, reverse=True)
    page.click("thead th[data-name=mean] button")
    page.click("thead th[data-name=mean] button")
    assert numbers(page, 3) == sorted(numbers(page, 3))
    assert "sort=mean" in page.url
    page.fill("input", "17")
    table = json.loads((atlas / "data" / "layer-0.json").read_text())
    expected = [n for n in range(64) if n == 17 or "17" in "".join(table["passage"][n]).lower()]
    assert sorted(numbers(page, 1)) == expected
    page.reload()
    page.wait_for_selector("tbody tr")
    assert sorted(numbers(page, 1)) == expected


def test_keys_lead_to_a_neuron_and_back(page: Any) -> None:
    page.click("thead th[data-name=std] button")
    order = [int(each) for each in numbers(page, 1)]
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector(".facts")
    assert page.url.endswith(f"#/layer/0/neuron/{order[2]}")
    assert page.locator("ol").count() == 2
    assert page.locator("ol").first.locator("li .peak").count() == 8
    page.keyboard.press("Escape")
    page.wait_for_selector("tbody tr.chosen")
    assert page.locator("tr.chosen").get_attribute("data-neuron") == str(order[2])
    assert [int(each) for each in numbers(page, 1)] == order
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("nav a[data-layer='1'][aria-current]")


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("path", ["#/layer/1", "#/layer/1/neuron/5"])
def test_nothing_hangs_over_the_edge(page: Any, address: str, width: int, path: str) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(address + path)
    page.wait_for_selector("tbody tr" if "neuron" not in path else ".facts")
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_is_dark_where_that_is_asked_for(page: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(ground) != light
