"""Runs that several files of tests look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from neoscope import load_model
from support.command import invoke
from support.making import Run, arguments
from support.places import new_place


@pytest.fixture(scope="module", params=["folder", "minio"])
def run(request: pytest.FixtureRequest, small_model: Path) -> Run:
    """One run of two batches, in a folder and in MinIO, which no test changes."""
    url = new_place(request.param, request)
    done = invoke("run", url, *arguments(small_model))
    assert done.code == 0, done.err
    return Run(url, done)


@pytest.fixture(scope="module")
def model(small_model: Path) -> transformers.GPTNeoForCausalLM:
    return load_model(str(small_model), device="cpu")


@pytest.fixture(scope="module")
def tokenizer(small_model: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(small_model)
