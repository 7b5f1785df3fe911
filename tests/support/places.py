"""Places for runs, and what lies there, read without neoscope.

In: the URL of a place. Out: its objects, by boto3 or the file system. It does not know what a run is.
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

import boto3
import pytest
import xarray
import zarr
from obstore.store import S3Store

from support.command import BUCKET


def new_place(kind: str, request: pytest.FixtureRequest) -> str:
    """An empty place in a folder or in MinIO, for a run that many tests read."""
    if kind == "minio":
        request.getfixturevalue("endpoint")
        return f"s3://{BUCKET}/{uuid.uuid4().hex}"
    factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
    return str(factory.mktemp("runs") / "run")


def in_minio(url: str) -> tuple[Any, str]:
    """boto3's bucket and the prefix of a URL, to ask MinIO itself."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return boto3.Session().resource("s3").Bucket(bucket), f"{prefix}/"


def listing(url: str) -> dict[str, tuple[Any, ...]]:
    """Every object under a place by key: its size, and what changes when it is written again."""
    if url.startswith("s3://"):
        bucket, prefix = in_minio(url)
        return {
            item.key.removeprefix(prefix): (item.size, item.e_tag, item.last_modified)
            for item in bucket.objects.filter(Prefix=prefix)
        }
    return {
        str(path.relative_to(url)): (
            path.stat().st_size,
            path.stat().st_ino,
            path.stat().st_mtime_ns,
        )
        for path in Path(url).rglob("*")
        if path.is_file()
    }


def body(url: str, key: str) -> bytes:
    if url.startswith("s3://"):
        bucket, prefix = in_minio(url)
        return bytes(bucket.Object(prefix + key).get()["Body"].read())
    return (Path(url) / key).read_bytes()


def put(url: str, key: str, content: bytes) -> None:
    if url.startswith("s3://"):
        bucket, prefix = in_minio(url)
        bucket.Object(prefix + key).put(Body=content)
    else:
        (Path(url) / key).parent.mkdir(parents=True, exist_ok=True)
        (Path(url) / key).write_bytes(content)


def zarr_store(url: str) -> Any:
    """What zarr and xarray take for a place."""
    if not url.startswith("s3://"):
        return url
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return zarr.storage.ObjectStore(
        S3Store(
            bucket,
            prefix=prefix,
            endpoint=os.environ["AWS_ENDPOINT_URL"],
            access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
            secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            region="us-east-1",
            client_options={"allow_http": True},
        ),
        read_only=True,
    )


def dataset(url: str) -> xarray.Dataset:
    """The arrays of a run, or of a part of one, as xarray opens them by itself."""
    return xarray.open_dataset(
        zarr_store(url),
        group="activations.zarr",
        engine="zarr",
        consolidated=False,
        zarr_format=3,
        chunks=None,
    )
