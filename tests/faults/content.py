"""What lies at a place, and what of it must be the same however often the run was disturbed.

In: a folder or a bucket, read without neoscope. Out: objects by key, and their content.
"""

from __future__ import annotations

import functools
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3

# What the contract lets differ between two runs that say the same.
MAY_DIFFER = {"seal", "environment", "resume_state", "tags", "timings"}
CHUNKS = 14  # of one batch of the fault tests' run: 3 layers of 4, token ids, token lengths
SEALED = re.compile(r"run\.json|manifest\.json|(records|rollups)/.*\.json")


def client(service: str = "s3") -> Any:
    """boto3's client of the store that the environment names, whose making takes longer than its use."""
    return _client(service, os.environ["AWS_ENDPOINT_URL"], os.environ["AWS_ACCESS_KEY_ID"])


@functools.cache
def _client(service: str, _endpoint: str, _key: str) -> Any:
    return boto3.Session().client(service)


def objects(place: str) -> dict[str, bytes]:
    """Every object of a place by its key."""
    if not place.startswith("s3://"):
        found: dict[str, bytes] = {}
        for path in Path(place).rglob("*"):
            with suppress(FileNotFoundError, IsADirectoryError):  # it may vanish as we look
                found[path.relative_to(place).as_posix()] = path.read_bytes()
        return found
    s3 = client()
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix + "/")
    keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
    with ThreadPoolExecutor(8) as pool:
        bodies = pool.map(lambda key: s3.get_object(Bucket=bucket, Key=key)["Body"].read(), keys)
        return {
            key.removeprefix(prefix + "/"): body for key, body in zip(keys, bodies, strict=True)
        }


def put(place: str, key: str, body: bytes) -> None:
    """Put an object over whatever is there."""
    if place.startswith("s3://"):
        bucket, _, prefix = place.removeprefix("s3://").partition("/")
        client().put_object(Bucket=bucket, Key=f"{prefix}/{key}", Body=body)
    else:
        path = Path(place) / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def content(place: str) -> dict[str, Any]:
    """Every object by key: documents without what may differ, and the bytes of everything else."""
    return {key: _content(key, body) for key, body in objects(place).items()}


def _content(key: str, body: bytes) -> Any:
    if not SEALED.fullmatch(key):
        return body
    document = json.loads(body)
    return {name: value for name, value in document.items() if name not in MAY_DIFFER}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The keys that are there once only or say something else; empty where both are the same."""
    keys = sorted(found.keys() | expected.keys())
    return [key for key in keys if found.get(key) != expected.get(key)]


def phase(place: str) -> str:
    """How far a run that was killed had come, told from what it left."""
    keys = {key for key in objects(place) if "#" not in key}
    records = sum(key.startswith("records/") for key in keys)
    chunks = sum("/c/" in key for key in keys)
    if "manifest.json" in keys:
        return "committed"
    if any(key.endswith("zarr.json") for key in keys):
        return "in the commit"
    if "run.json" not in keys:
        return "before the claim"
    if "vocabulary.json" not in keys:
        return "after the claim"
    return "after a record" if chunks == records * CHUNKS else "in a batch"
