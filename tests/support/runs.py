"""A run of two batches that tests pull from.

In: a kind of place. Out: its URL, its objects, and what the command says. It knows the run's shape.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from faults.proxy import Proxy
from support.command import invoke
from support.places import body, listing, new_place

LAYERS, SEQUENCES, POSITIONS, NEURONS = 3, 16, 24, 64  # in chunks of 2 x 24 x 16
CHUNKS = LAYERS * 8 * 4 + 2 * 2


def make(kind: str, request: pytest.FixtureRequest, model: Path, *more: str) -> str:
    url = new_place(kind, request)
    options = ("--model", model, "--dataset", "sample", "--batches", 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neoscope.format.arrays.MAX_CHUNK_ELEMENTS", 2 * POSITIONS * 16)
        done = invoke("run", url, *options, "--sequences", 8, "--positions", POSITIONS, *more)
    assert done.code == 0, done.err
    return url


def bodies(url: str) -> dict[str, bytes]:
    return {key: body(url, key) for key in listing(url)}


def pull(*words: object) -> str:
    done = invoke("pull", *words)
    assert done.code == 0, done.err
    return done.out


def chunk_gets(proxy: Proxy) -> list[str]:
    chunk = "activations.zarr/.*/c/"
    return [r.key for r in proxy.requests if r.method == "GET" and re.search(chunk, r.key)]
