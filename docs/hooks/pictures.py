"""The pictures of README and docs/: the report of a run, and the figures of the notebooks.

In: the URL of a run. Out: docs/images/report.png, the beginning of its report in a browser (the system's own
chromium), and a picture of every figure of docs/notebooks, in their order. It does not know what the run
is of.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).parent.parent
IMAGES = DOCS / "images"
NOTEBOOKS = tuple(sorted((DOCS / "notebooks").glob("*.md")))
URL = "s3://neoscope/local"  # as the notebooks have it
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTH, HEIGHT = 1200, 1360  # of the part of the report, in pixels


def execute(notebook: Path, url: str) -> NotebookNode:
    """A notebook with the outputs of its cells, run in a process of its own on the run at `url`."""
    found = jupytext.read(notebook)
    for cell in found.cells:
        cell.source = cell.source.replace(URL, url)
    return NotebookClient(found, timeout=600, kernel_name="python3").execute()


def figures(notebook: NotebookNode) -> list[bytes]:
    """The pictures that a notebook's cells have given, as PNG."""
    outputs = [each for cell in notebook.cells for each in cell.get("outputs", [])]
    drawn = [each["data"]["image/png"] for each in outputs if "image/png" in each.get("data", {})]
    return [base64.b64decode(each) for each in drawn]


def photograph(page: Path, picture: Path) -> None:
    """The beginning of a page as a browser shows it in light colours."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        window = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        window.goto(page.resolve().as_uri())
        window.screenshot(path=picture)
        browser.close()


def main(url: str) -> None:
    if CHROMIUM is None:
        sys.exit("there is no chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        neoscope = Path(sys.executable).with_name("neoscope")
        subprocess.run([neoscope, "report", url, "--file", page], check=True)
        photograph(page, IMAGES / "report.png")
    for notebook in NOTEBOOKS:
        for number, picture in enumerate(figures(execute(notebook, url)), 1):
            (IMAGES / f"{notebook.stem}-{number}.png").write_bytes(picture)
    print(*sorted(path.relative_to(DOCS.parent) for path in IMAGES.iterdir()), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1])
