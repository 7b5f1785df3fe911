"""`neoscope list`: the runs under a place, and what each is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.proxy import proxied
from support.command import BUCKET, invoke
from support.places import body, listing, new_place, put


@pytest.fixture(params=["folder", "minio"])
def place(
    request: pytest.FixtureRequest, small_run: list[str], tmp_path: Path
) -> Callable[[str], str]:
    """A place with a whole run, half of one two folders deep, and what is no run."""
    root = new_place(request.param, request)

    def run(name: str, *words: str) -> None:
        done = invoke("run", f"{root}/{name}", *words)
        assert done.code == 0, done.err

    sizes = [word for word in small_run if word not in ("--dataset", "sample")]
    texts = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for text in texts:
        text.write_text(json.dumps({"text": "The cat sat on the mat. " * 400}) + "\n", "utf-8")
    run("one", *small_run)
    run(
        "more/half",
        *sizes,
        "--partitions",
        "2",
        *(w for text in texts for w in ("--text", str(text))),
    )
    put(root, "notes/run.json", b'{"kind": "of mine"}')
    return lambda name="": f"{root}/{name}".rstrip("/")


def rows(*words: object) -> list[list[str]]:
    done = invoke("list", *words)
    assert done.code == 0, done.err
    return [line.split("  ") for line in done.out.splitlines()]


def test_each_run_is_a_line(place: Callable[[str], str], small_model: Path) -> None:
    head, *lines = invoke("list", place(""), "--depth", "2").out.splitlines()
    assert head.split() == ["state", "model", "text", "tokens", "size", "run"]
    half, one = lines
    manifest = json.loads(body(place("one"), "manifest.json"))
    spec = manifest["spec"]
    tokens = spec["batches"] * spec["sequences"] * spec["positions"]
    assert one.startswith("committed  ") and str(small_model) in one
    assert "the packaged sample" in one and f"  {tokens:,}  " in one
    assert one.endswith(place("one"))
    assert half.startswith("1 of 2 batches") and "a.jsonl, b.jsonl" in half
    assert f"  {2 * tokens:,}  " in half and half.endswith(place("more/half"))


def test_json_has_what_the_table_has_and_the_bytes_are_those_in_the_store(
    place: Callable[[str], str],
) -> None:
    (one,) = json.loads(invoke("list", place(""), "--json").out)
    assert (one["state"], one["committed"], one["damage"]) == ("committed", True, None)
    stored = [
        size
        for key, (size, *_) in listing(one["url"]).items()
        # of statistics the metadata count too
        if key.startswith(("statistics.zarr/", "neurons.zarr/"))
        or (key.startswith("activations.zarr/") and "/c/" in key)
    ]
    assert one["size"] == sum(stored)


def test_a_run_itself_and_a_bucket_are_places_too(place: Callable[[str], str]) -> None:
    assert len(invoke("list", place("one")).out.splitlines()) == 2
    if place("").startswith("s3://"):
        found = invoke("list", f"s3://{BUCKET}", "--depth", "2").out
        assert place("one") in found and place("more/half") not in found


def test_where_there_is_none_it_says_how_to_look_deeper(place: Callable[[str], str]) -> None:
    done = invoke("list", place("more/half/records"))
    assert (done.code, done.out.count("\n")) == (0, 1)
    assert "no run at" in done.out and "--depth" in done.out


def test_a_damaged_run_is_listed_as_that(place: Callable[[str], str]) -> None:
    put(place("one"), "manifest.json", body(place("one"), "manifest.json").replace(b"16", b"17"))
    done = invoke("list", place(""), "--depth", "2")
    assert done.code == 5 and "1 of 2 runs are damaged" in done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["state", "1", "damaged"]


def test_what_a_run_holds_is_not_listed(endpoint: str, s3_url: str, small_run: list[str]) -> None:
    """A run may be millions of objects."""
    assert invoke("run", f"{s3_url}/one", *small_run).code == 0
    with proxied(endpoint) as proxy:
        assert invoke("list", s3_url, "--endpoint-url", proxy.endpoint).code == 0
        listed = [r.query for r in proxy.requests if "list-type" in r.query]
    assert len(listed) == 1 and "delimiter" in listed[0]


def test_a_place_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = invoke("list", tmp_path / "none")
    assert done.code == 3 and "no such folder" in done.err
