"""Who may import whom: the rooms of the package, and the one direction in which imports go."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from neoscope.extra import MODULES
from support.command import ROOT

PACKAGE = ROOT / "job" / "neoscope"
BELOW = {"errors", "argument_checks", "spec", "storage", "statistics"}
EVERY = {
    *BELOW,
    "extra",
    "progress",
    "hub",
    "text",
    "model",
    "format",
    "reading",
    "pipeline",
    "commands",
}
ROOMS = {
    "errors": set[str](),
    "argument_checks": {"errors"},
    "extra": {"errors"},
    "progress": set[str](),
    "hub": {"errors"},
    "spec": {"errors", "argument_checks"},
    "storage": {"errors"},
    "statistics": {"errors", "argument_checks"},
    "text": {"errors", "argument_checks", "hub", "spec"},
    "model": {"errors", "argument_checks", "hub", "spec"},
    "format": BELOW,
    "reading": {*BELOW, "format"},
    "pipeline": EVERY - {"commands", "reading", "hub"},
    "commands": EVERY - {"hub"},
    "__main__": {"commands"},
    "__init__": EVERY,
}
# A light install reads runs without these.
HEAVY = set(MODULES)
LIGHT = {"errors", "extra", "progress", "spec", "storage", "format", "reading"}


def imports(room: str) -> Iterator[tuple[str, str]]:
    """Each file of a room with a module that it imports, anywhere in it; names of ours in full."""
    alone = PACKAGE / f"{room}.py"
    for path in [alone] if alone.exists() else sorted((PACKAGE / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path.name, name.name) for name in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module == "neoscope":
                yield from ((path.name, f"neoscope.{name.name}") for name in node.names)
            elif isinstance(node, ast.ImportFrom):
                yield path.name, node.module or ""


def test_every_file_is_in_a_room() -> None:
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert found - {"__pycache__"} == ROOMS.keys()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_is_below_it(room: str) -> None:
    ours = {(file, name.split(".")[1]) for file, name in imports(room) if "neoscope." in name}
    assert {(file, other) for file, other in ours if other not in ROOMS[room] | {room}} == set()


def test_triton_is_imported_where_a_gpu_adds_and_nowhere_else() -> None:
    using = {(room, file) for room in ROOMS for file, name in imports(room) if "triton" in name}
    assert using == {
        ("statistics", "gpu.py"),
        ("statistics", "length_gpu_kernels.py"),
        ("statistics", "neuron_gpu_kernels.py"),
    }


def test_the_readme_has_the_same_table() -> None:
    text = (ROOT / "README.md").read_text("utf-8").partition("| room | may import")[2]
    rows = re.findall(r"^\| ([a-z_, ]+) \| ([a-z_, ]+) \|$", text, re.MULTILINE)
    found = {}
    for rooms, others in rows:
        but = others.removeprefix("everything but ")
        names = set(but.split(", ")) - {"nothing"}
        for room in rooms.split(", "):
            found[room] = EVERY - names if but != others else names
    assert found == {room: allowed for room, allowed in ROOMS.items() if room[0] != "_"}


@pytest.mark.parametrize("room", sorted(LIGHT))
def test_what_reads_a_run_needs_no_torch(room: str) -> None:
    assert {(file, name) for file, name in imports(room) if name.split(".")[0] in HEAVY} == set()
