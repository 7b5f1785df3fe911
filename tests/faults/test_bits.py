"""Whatever is changed of what a run stored, `verify` finds it and names it: a bit, a byte, an object."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from faults.conftest import NewUrl, Tell, Undisturbed, times
from faults.content import objects, put
from faults.forks import Forks
from neoscope.commands.verify import verify
from neoscope.format import chunks, sealed_json
from neoscope.format.arrays import schemas_of
from neoscope.progress import Progress
from neoscope.storage.store import open_store

Objects = dict[str, bytes]


@pytest.fixture(scope="module")
def two_batches(
    forks: Forks, arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Objects:
    """Every object of a run of two batches."""
    place = str(tmp_path_factory.mktemp("two-batches") / "run")
    return objects(Undisturbed(forks, place, [*arguments, "--batches", "2"]).place)


@pytest.fixture
def place(two_batches: Objects, tmp_path: Path) -> str:
    """That run in a folder of the test's own."""
    place = str(tmp_path / "run")
    for key, body in two_batches.items():
        put(place, key, body)
    return place


def found(place: str) -> list[str]:
    """What verify finds, a line each."""
    return [str(find) for find in verify(open_store(place), Progress(quiet=True)).problems]


def flipped(body: bytes, chance: random.Random) -> bytes:
    """The same bytes but for one bit."""
    changed = bytearray(body)
    changed[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def test_nothing_is_found_where_nothing_is_wrong(place: str) -> None:
    assert found(place) == []


def test_every_flipped_bit_is_found_and_its_object_named(
    two_batches: Objects, place: str, chance: random.Random, tell: Tell
) -> None:
    count, keys, missed = times(150, 1000), sorted(two_batches), []
    for number in range(count):
        key = keys[number % len(keys)]  # every object in turn
        put(place, key, flipped(two_batches[key], chance))
        if not any(key in line for line in found(place)):
            missed.append(key)
        put(place, key, two_batches[key])
    tell(
        "one bit flipped, folder", count, f"{count - len(missed)} found, each by its object's name"
    )
    assert missed == []


@pytest.mark.parametrize("where", ["folder", "MinIO"])
def test_the_command_finds_a_flipped_bit_with_exit_5(
    forks: Forks,
    two_batches: Objects,
    place: str,
    where: str,
    request: pytest.FixtureRequest,
    chance: random.Random,
    tell: Tell,
) -> None:
    if where == "MinIO":
        new_url: NewUrl = request.getfixturevalue("new_url")
        place = new_url()
        for key, body in two_batches.items():
            put(place, key, body)
    assert forks.run("verify", place).code == 0
    count = times(6, 60)
    for key in chance.choices(sorted(two_batches), k=count):
        put(place, key, flipped(two_batches[key], chance))
        ended = forks.run("verify", place)
        assert ended.code == 5, key
        assert key in ended.out
        assert len(ended.err.strip().splitlines()) == 1
        put(place, key, two_batches[key])
    tell(f"one bit flipped, {where}, by the command", count, f"{count} found, exit 5")


# More than a bit


def recoded(run: Objects, key: str) -> bytes:
    """A chunk with other values than it had, and a checksum that fits."""
    schema = schemas_of(json.loads(run["run.json"]))[key.split("/")[1]]
    buffer = np.frombuffer(bytearray(run[key]), np.uint8)
    decoded = buffer[:-4].view(schema.dtype)
    decoded[0] += 1
    return bytes(chunks.encode(schema, buffer))


def resealed(body: bytes) -> bytes:
    """A document that was changed, with digests that fit, as a careful forger would make it."""
    document = json.loads(body)
    document["content_digest"] = sealed_json.content_digest(document)
    document["seal"] = "0" * 64
    text = json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"
    return text.replace(b"0" * 64, hashlib.sha256(text).hexdigest().encode(), 1)


def edited(body: bytes, change: Callable[[dict[str, object]], None]) -> bytes:
    document = json.loads(body)
    change(document)
    return resealed(json.dumps(document).encode())


LAYER = "activations.zarr/MLP_1"
CHUNK, OTHER = f"{LAYER}/c/3/0/0", f"{LAYER}/c/5/0/0"
IDS, LENGTHS = "activations.zarr/token_ids/c/1/0", "activations.zarr/token_length/c/1/0"
RECORD, NEXT = "records/00000-00000001.json", "records/00000-00000002.json"

# What is done to a run, and the object that must be named.
CHANGES: dict[str, tuple[str, Callable[[Objects], Objects]]] = {
    "a stale chunk with a right checksum": (CHUNK, lambda run: {CHUNK: recoded(run, CHUNK)}),
    "two chunks that changed places": (OTHER, lambda run: {CHUNK: run[OTHER], OTHER: run[CHUNK]}),
    "a chunk of another layer": (CHUNK, lambda run: {CHUNK: run[CHUNK.replace("MLP_1", "MLP_2")]}),
    "other token ids": (IDS, lambda run: {IDS: recoded(run, IDS)}),
    "other token lengths": (LENGTHS, lambda run: {LENGTHS: recoded(run, LENGTHS)}),
    "half a chunk": (CHUNK, lambda run: {CHUNK: run[CHUNK][: len(run[CHUNK]) // 2]}),
    "an empty chunk": (CHUNK, lambda run: {CHUNK: b""}),
    "a chunk with a byte more": (CHUNK, lambda run: {CHUNK: run[CHUNK] + b"\0"}),
    "zeros for a chunk": (CHUNK, lambda run: {CHUNK: bytes(len(run[CHUNK]))}),
    "another shape": (
        f"{LAYER}/zarr.json",
        lambda run: {f"{LAYER}/zarr.json": another_shape(run[f"{LAYER}/zarr.json"])},
    ),
    "exchanged records": (RECORD, lambda run: {RECORD: run[NEXT], NEXT: run[RECORD]}),
    "a forged record": (
        RECORD,
        lambda run: {RECORD: edited(run[RECORD], lambda it: it.update(special_tokens=7))},
    ),
    "a forged claim": (
        "run.json",
        lambda run: {"run.json": edited(run["run.json"], lambda it: it["model"].update(name="x"))},
    ),
    "a forged manifest": (
        "manifest.json",
        lambda run: {
            "manifest.json": edited(run["manifest.json"], lambda it: it["tokens"].update(special=7))
        },
    ),
    "another vocabulary": (
        "vocabulary.json",
        lambda run: {"vocabulary.json": run["vocabulary.json"].replace(b"the", b"teh", 1)},
    ),
    "an object more among the chunks": (
        f"{LAYER}/c/9/0/0",
        lambda run: {f"{LAYER}/c/9/0/0": run[CHUNK]},
    ),
    "an object more among the records": (
        "records/notes.txt",
        lambda run: {"records/notes.txt": b"x"},
    ),
    "a record more": (
        RECORD.replace("1.", "3."),
        lambda run: {RECORD.replace("1.", "3."): run[RECORD]},
    ),
    "an array more": (
        "activations.zarr/MLP_9/zarr.json",
        lambda run: {"activations.zarr/MLP_9/zarr.json": run[f"{LAYER}/zarr.json"]},
    ),
}


def another_shape(metadata: bytes) -> bytes:
    """A digit of the shape changed: Zarr's readers take it and pad."""
    changed = re.sub(rb'("shape":\s*\[\s*)16', rb"\g<1>17", metadata, count=1)
    assert changed != metadata
    return changed


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_object_is_found(
    two_batches: Objects, place: str, change: str, tell: Tell
) -> None:
    named, make = CHANGES[change]
    for key, body in make(two_batches).items():
        put(place, key, body)
    lines = found(place)
    assert any(named in line for line in lines), lines
    tell(
        "chunks stale, swapped or cut, documents forged, objects added",
        1,
        "found, each by its name",
    )


def test_every_missing_object_is_found(two_batches: Objects, place: str, tell: Tell) -> None:
    for key, body in two_batches.items():
        (Path(place) / key).unlink()
        lines = found(place)
        assert any(key in line for line in lines), (key, lines)
        put(place, key, body)
    tell("an object missing", len(two_batches), "found, each by its name")


def test_nothing_is_said_of_the_report(two_batches: Objects, place: str) -> None:
    """It is made from the rest, and covered by no digest."""
    put(place, "report.html", b"<html>")
    assert found(place) == []


# Values that are wrong from the beginning

WRONG_VALUES = """
from neoscope import pipeline
stream = pipeline.stream
def wrong(model, ids, consumers, **options):
    (take,) = consumers
    stream(model, ids, [lambda name, values: take(name, values * 1.01)], **options)
pipeline.stream = wrong
"""
WRONG_TOKENS = """
import dataclasses
from neoscope import prepare
batches = prepare.batches
def wrong(*arguments, **options):
    for batch in batches(*arguments, **options):
        ids = batch.token_ids.copy()
        ids[0, 0] = (ids[0, 0] + 1) % 500
        yield dataclasses.replace(batch, token_ids=ids)
prepare.batches = wrong
"""


@pytest.mark.parametrize(
    ("what", "disturb", "options"),
    [("values", WRONG_VALUES, ["--recompute", "3"]), ("tokens", WRONG_TOKENS, ["--text"])],
)
def test_what_was_wrong_when_it_was_stored_is_found_by_making_it_again(
    forks: Forks,
    arguments: list[str],
    text: Path,
    tmp_path: Path,
    what: str,
    disturb: str,
    options: list[str],
    tell: Tell,
) -> None:
    place = str(tmp_path / "run")
    more = ["--text-file", str(text)] if "--text" in options else []
    assert forks.run("run", place, *arguments, disturb=disturb).code == 0
    assert forks.run("verify", place).code == 0
    ended = forks.run("verify", place, *options, *more)
    assert ended.code == 5, ended.err
    shutil.rmtree(place)
    assert forks.run("run", place, *arguments).code == 0
    assert forks.run("verify", place, *options, *more).code == 0
    tell(f"{what} wrong when stored", 1, f"found by verify {' '.join(options)}")
