"""Who may import whom: the rooms of the package, and the one direction in which imports go."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from support.command import ROOT

PACKAGE = ROOT / "job" / "neoscope"
BELOW = {"errors", "argument_checks", "spec", "storage", "statistics"}
EVERY = {*BELOW, "progress", "hub", "text", "model", "format", "reading", "pipeline", "commands"}
ROOMS = {
    "errors": set[str](),
    "argument_checks": {"errors"},
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
HEAVY = {"torch", "transformers", "datasets", "tokenizers"}
LIGHT = {"errors", "progress", "spec", "storage", "format", "reading"}


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


@pytest.mark.parametrize("room", sorted(LIGHT))
def test_what_reads_a_run_needs_no_torch(room: str) -> None:
    assert {(file, name) for file, name in imports(room) if name.split(".")[0] in HEAVY} == set()
