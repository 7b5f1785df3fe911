"""`--text-end stop`: a partition ends with its text, and the run says what it lacks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

import neoscope
from faults.content import objects, put
from support.command import Finished, invoke
from support.places import body, dataset, listing

SEQUENCES, POSITIONS = 4, 16
SIZE = SEQUENCES * POSITIONS
HAS = (3, 0, 1)  # batches that the text of each partition fills, of 4
ROWS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 32, 33, 34, 35]


@pytest.fixture
def texts(tmp_path: Path) -> list[Path]:
    """Three files, one byte a token, of so many whole batches and half a one."""
    paths = []
    for number, batches in enumerate(HAS):
        paths.append(tmp_path / f"{number}.jsonl")
        documents = [
            {"id": f"{number}-{n}", "text": chr(1 + number) * 16} for n in range(batches * 4 + 2)
        ]
        paths[-1].write_text("".join(json.dumps(document) + "\n" for document in documents))
    return paths


def run(place: str, model: Path, texts: list[Path], partition: int, *more: object) -> Finished:
    given = [word for path in texts for word in ("--text", path)]
    shape = ("--sequences", SEQUENCES, "--positions", POSITIONS, "--partitions", 3, "--batches", 4)
    words = ("--model", model, *given, *shape, "--text-end", "stop", "--partition", partition)
    return invoke("run", place, *words, *more)


def manifest(place: str) -> dict[str, Any]:
    return dict(json.loads(body(place, "manifest.json")))


def make(place: str, model: Path, texts: list[Path], *more: object) -> dict[str, Any]:
    for partition in (1, 0, 2):
        done = run(place, model, texts, partition, *more)
        assert done.code == 0, done.err
    assert "the text of 3 of 3 partitions ended early: 4 of 12 batches" in done.out
    return manifest(place)


def test_a_run_of_all_its_text_says_what_it_lacks(
    place: str, small_model: Path, texts: list[Path], tmp_path: Path
) -> None:
    found = make(place, small_model, texts)
    assert found["stored_batches"] == list(HAS)
    assert found["tokens"]["count"] == sum(HAS) * SIZE
    assert found["arrays"]["MLP_0"]["shape"] == [48, POSITIONS, 64]
    done = invoke("verify", place, "--recompute", 3)
    assert done.code == 0, done.out
    done = invoke("status", place)
    assert "4 of 12 batches, 3 of 3 partitions whole, committed" in done.out

    opened = neoscope.open_run(place)
    assert opened.sequence.values.tolist() == ROWS
    assert np.isfinite(opened.MLP_2.values).all()
    assert opened.token_ids.values.min() >= 0
    assert opened.MLP_1.sel(sequence=33).shape == (POSITIONS, 64)

    plain = dataset(place)  # as any Zarr reader sees it
    assert np.flatnonzero(plain.stored.values).tolist() == ROWS
    assert np.isnan(plain.MLP_0.values[12:32]).all() and np.isnan(plain.MLP_0.values[36:]).all()
    assert (plain.MLP_0.values[ROWS] == opened.MLP_0.values).all()
    assert (plain.token_ids.values[12:32] == -1).all()

    (first,) = neoscope.contexts(place, 0, 5, 1)
    assert first.sequence in ROWS
    assert first.document is not None and first.document[0] == str(first.sequence // 16)


def test_copies_and_selections_have_what_is_there(
    small_model: Path, texts: list[Path], tmp_path: Path
) -> None:
    place = str(tmp_path / "run")
    make(place, small_model, texts)
    done = invoke("pull", place, tmp_path / "copy")
    assert done.code == 0, done.err
    assert invoke("verify", tmp_path / "copy").code == 0
    done = invoke("pull", place, tmp_path / "part", "--layers", 1)
    assert done.code == 0, done.err
    part = neoscope.open_run(str(tmp_path / "part"))
    assert part.sequence.values.tolist() == ROWS
    assert (part.MLP_1.values == neoscope.open_run(place).MLP_1.values).all()
    done = invoke("pull", place, tmp_path / "none", "--sequences", "11-13")
    assert (done.code, "has no number" in done.err) == (2, True), done.err


def test_without_arrays_the_last_record_is_where_the_text_ends(
    place: str, small_model: Path, texts: list[Path]
) -> None:
    make(place, small_model, texts, "--no-arrays")
    records = sorted(key for key in listing(place) if key.startswith("records/"))
    assert records == ["records/00000-00000003.json", "records/00002-00000001.json"]
    assert invoke("verify", place).code == 0
    statistics = neoscope.open_statistics(place)
    assert int(statistics.tokens.sum()) == sum(HAS) * SIZE


@pytest.mark.parametrize("left", [1, 2, 3], ids="after record {}".format)
def test_a_run_that_was_killed_ends_as_one_that_was_not(
    place: str, small_model: Path, texts: list[Path], tmp_path: Path, left: int
) -> None:
    """After the last record too, when only the roll-up is not there yet: nothing but that says that the
    text has ended."""
    whole = make(str(tmp_path / "whole"), small_model, texts, "--no-statistics", "--no-neurons")
    for key, content in objects(str(tmp_path / "whole")).items():
        later = any(f"records/00000-0000000{number}" in key for number in range(left + 1, 5))
        committed = ("manifest.json", "rollups/00000.json", "zarr.json", "/stored/")
        if not later and not any(word in key for word in committed):
            put(place, key, content)
    if left < 3:
        assert "2 of 3 partitions whole, not committed" in invoke("status", place).out
    other = run(place, small_model, texts, 2, "--no-statistics", "--no-neurons")
    assert "others are missing" in other.out
    done = run(place, small_model, texts, 0, "--no-statistics", "--no-neurons")
    assert done.code == 0, done.err
    assert manifest(place)["content_digest"] == whole["content_digest"]
    assert invoke("verify", place).code == 0


def test_a_text_that_fills_no_batch_is_an_error(
    small_model: Path, texts: list[Path], tmp_path: Path
) -> None:
    texts = texts[1:2]
    words = ("--model", small_model, "--text", texts[0], "--text-end", "stop", "--positions", 16)
    done = invoke("run", tmp_path / "run", *words)
    assert done.code == 3
    assert "the text fills no batch of 256 tokens" in done.err
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_a_text_that_is_long_enough_leaves_nothing_out(small_model: Path, tmp_path: Path) -> None:
    words = ("--model", small_model, "--dataset", "sample", "--sequences", 4, "--positions", 16)
    done = invoke("run", tmp_path / "run", *words, "--text-end", "stop")
    assert done.code == 0, done.err
    assert "ended early" not in done.out
    group = zarr.open_group(tmp_path / "run", path="activations.zarr", mode="r")
    assert np.asarray(group["stored"][...]).all()  # type: ignore[index]
    assert neoscope.open_run(str(tmp_path / "run")).sizes["sequence"] == 4
