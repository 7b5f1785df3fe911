"""What the README says is what the command does."""

from __future__ import annotations

import re

import pytest

from conftest import ROOT
from neoscope.cli import EXIT_CODES, cli

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_that_it_names_exists() -> None:
    named = set(re.findall(r"`neoscope ([a-z]+)", README))
    assert named == set(cli.commands)


def test_every_option_that_it_names_exists() -> None:
    known = {name for command in cli.commands.values() for p in command.params for name in p.opts}
    ours = re.sub(r"```bash\n.+?```", "", README, flags=re.DOTALL)  # the rest are other programs'
    assert set(re.findall(r"--[a-z][a-z-]+", ours)) <= known | {"--help"}


def test_every_make_target_that_it_names_exists() -> None:
    targets = re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"(?:`|\$ )make ([a-z0-9]+(?:-[a-z0-9]+)*)", README)) <= set(targets)


@pytest.mark.parametrize("code", re.findall(r"\d+", EXIT_CODES.split("SIG")[0]))
def test_it_documents_every_exit_code_of_the_help(code: str) -> None:
    section = README.split("## Exit codes")[1].split("##")[0]
    assert re.search(rf"\| .*\b{code}\b.* \|", section)


def test_it_lists_the_objects_that_a_run_leaves() -> None:
    for name in ("run.json", "vocabulary.json", "activations.zarr", "records", "manifest.json"):
        assert name in README.split("## What a run leaves")[1]
