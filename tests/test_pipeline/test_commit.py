"""The commit reads a roll-up of each partition and lists the chunks; what it then finds is exact."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from faults.content import objects
from faults.content import put as put_over
from faults.proxy import Proxy, proxied
from neoscope.format.records import read_claim
from neoscope.format.rollups import ObjectSum
from neoscope.pipeline import commit, object_check
from neoscope.storage.store import open_store
from support.command import invoke
from support.making import arguments
from support.places import body, in_minio, listing, put

CHUNK = "activations.zarr/MLP_1/c/3/0/0"


@pytest.fixture
def uncommitted(place: str, small_model: Path) -> tuple[str, dict[str, Any]]:
    """A run as it is just before its commit, and the manifest that it had."""
    done = invoke("run", place, *arguments(small_model))
    assert done.code == 0, done.err
    manifest = json.loads(body(place, "manifest.json"))
    delete(place, "manifest.json", *(key for key in listing(place) if key.endswith("zarr.json")))
    return place, manifest


def delete(url: str, *keys: str) -> None:
    if url.startswith("s3://"):
        bucket, prefix = in_minio(url)
        bucket.delete_objects(Delete={"Objects": [{"Key": prefix + key} for key in keys]})
    else:
        for key in keys:
            (Path(url) / key).unlink()


def again(url: str) -> dict[str, Any] | None:
    """The manifest of another commit."""
    store = open_store(url, write=True)
    claim = read_claim(store)
    assert claim
    return commit.commit(store, claim)


def test_a_roll_up_that_is_gone_or_damaged_is_made_again_from_the_records(
    uncommitted: tuple[str, dict[str, Any]],
) -> None:
    url, manifest = uncommitted
    key = "rollups/00000.json"
    right = body(url, key)
    for spoil in (lambda: delete(url, key), lambda: put(url, key, right[:-9])):
        spoil()
        found = again(url)
        assert found and found["content_digest"] == manifest["content_digest"]
        assert json.loads(body(url, key))["content_digest"] == json.loads(right)["content_digest"]
        delete(url, "manifest.json")


def test_a_chunk_that_is_missing_is_named(uncommitted: tuple[str, dict[str, Any]]) -> None:
    url, _ = uncommitted
    delete(url, CHUNK)
    with pytest.raises(Exception, match=f"{CHUNK} is missing"):
        again(url)
    assert "manifest.json" not in listing(url)


def test_a_chunk_with_other_values_is_named_and_one_that_was_put_again_is_right(
    uncommitted: tuple[str, dict[str, Any]],
) -> None:
    url, manifest = uncommitted
    right = body(url, CHUNK)
    put(url, CHUNK, body(url, CHUNK.replace("3/", "2/")))
    with pytest.raises(Exception, match=f"{CHUNK} was put over"):
        again(url)
    if not url.startswith("s3://"):
        (Path(url) / CHUNK).unlink()  # for another inode, and so another tag
    put(url, CHUNK, right)
    found = again(url)
    assert found and found["content_digest"] == manifest["content_digest"]


def test_what_is_no_chunk_of_the_run_does_not_hinder(
    uncommitted: tuple[str, dict[str, Any]],
) -> None:
    url, manifest = uncommitted
    for index in ("9999/0/0", "3/1/0/0", "notes.txt", "03/0/0"):
        put(url, f"activations.zarr/MLP_1/c/{index}", b"x")
    found = again(url)
    assert found and found["content_digest"] == manifest["content_digest"]


def test_an_array_that_is_listed_in_parts_is_listed_whole(
    endpoint: str, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every object is in one part, however many digits its number has."""
    keys = [f"activations.zarr/MLP_0/c/{number}/0" for number in [*range(130), 999, 1000, 21_345]]
    for key in keys:
        put_over(s3_url, key, key.encode())
    store, schema = open_store(s3_url), Listed()
    monkeypatch.setattr(object_check, "LISTED_WHOLE", 0)
    parts = [list(store.listing(PREFIX, *part)) for part in object_check._parts(store, schema)]  # type: ignore[arg-type]
    assert sorted(item.key for part in parts for item in part) == sorted(keys)
    assert len(parts) == 100 and max(map(len, parts)) < 15


PREFIX = "activations.zarr/MLP_0/c"


class Listed:
    name, grid = "MLP_0", (30_000, 1)


def test_a_sum_is_the_same_in_any_order_and_another_for_any_other_object() -> None:
    objects = [("a/0", 1, '"x"'), ("a/1", 1, '"x"'), ("a/2", 2, None)]
    one, two, other = ObjectSum(), ObjectSum(), ObjectSum()
    for item in objects:
        one.add(*item)
    for item in reversed(objects):
        two.add(*item)
    for item in (*objects[:2], ("a/2", 3, None)):
        other.add(*item)
    assert one.value() == two.value() != other.value()


def test_the_commit_asks_for_no_record(
    endpoint: str, s3_url: str, small_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With roll-ups there, however many batches there are."""
    done = invoke("run", s3_url, *arguments(small_model, batches=5))
    assert done.code == 0, done.err
    delete(s3_url, "manifest.json")
    with proxied(endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert again(s3_url)
        assert not [request for request in proxy.requests if "/records/" in request.key]
        assert listings(proxy) == Counter({"rollups": 1, "activations.zarr": 5, "other": 2})


def listings(proxy: Proxy) -> Counter[str]:
    """Which folders were listed how often."""
    queries = [each.query for each in proxy.requests if "list-type" in each.query]
    found = [re.search(r"(rollups|records|activations\.zarr)", query) for query in queries]
    return Counter(each[1] if each else "other" for each in found)


def test_status_and_a_restart_of_a_finished_run_are_a_handful_of_requests(
    endpoint: str, s3_url: str, partitioned: str, small_model: Path
) -> None:
    """However many partitions and records there are: none of them is asked for."""
    for key, content in objects(partitioned).items():
        put_over(s3_url, key, content)
    texts = [w for n in range(3) for w in ("--text", Path(partitioned).parent / f"{n}.jsonl")]
    shape = ["--sequences", 4, "--positions", 16, "--partitions", 3, "--batches", 2]
    again = ["run", s3_url, "--model", small_model, *texts, *shape, "--partition", 1]
    for command, most in ((["status", s3_url], 3), (again, 5)):
        with proxied(endpoint) as proxy:
            done = invoke(*command, "--endpoint-url", proxy.endpoint)
            assert done.code == 0, done.err
            assert len(proxy.requests) <= most, proxy.requests
            assert not any("record" in each.key + each.query for each in proxy.requests)


def test_a_worker_lists_the_records_of_its_own_partition_alone(
    endpoint: str, s3_url: str, partitioned: str, small_model: Path
) -> None:
    """Once to see where it stands, and once when it has ended; of the others it has the roll-ups. (Tags of
    a folder are none of MinIO's: the commit looks up each of their chunks.)"""
    lacking = ("/00001", "manifest.json", "zarr.json")
    for key, content in objects(partitioned).items():
        if not any(word in key for word in lacking):
            put_over(s3_url, key, content)
    texts = [w for n in range(3) for w in ("--text", Path(partitioned).parent / f"{n}.jsonl")]
    shape = ["--sequences", 4, "--positions", 16, "--partitions", 3, "--batches", 2]
    words = ["run", s3_url, "--model", small_model, *texts, *shape, "--partition", 1]
    with proxied(endpoint) as proxy:
        done = invoke(*words, "--endpoint-url", proxy.endpoint)
        assert done.code == 0, done.err
        assert listings(proxy)["records"] == 2
    whole = json.loads(body(partitioned, "manifest.json"))
    assert json.loads(body(s3_url, "manifest.json"))["content_digest"] == whole["content_digest"]
