"""Readers that are not ours, without our code: each gives the values that the model computed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorstore
import xarray
import zarr

from neoscope import load_model
from neoscope.model.hooks import capture
from support.command import invoke
from support.places import in_minio, new_place, zarr_store

SEQUENCES, POSITIONS, NEURONS = 8, 24, 64  # in chunks of 2 x 24 x 16

Read = Callable[[str, str], npt.NDArray[Any]]


@dataclass(frozen=True)
class Stored:
    """A run, and what its arrays must be."""

    url: str
    values: dict[str, npt.NDArray[Any]]


@pytest.fixture(scope="module")
def computed(small_model: Path) -> dict[str, npt.NDArray[Any]]:
    """Every array of the run, computed without storage."""
    from transformers import AutoTokenizer

    from neoscope.text.documents import SAMPLE_FILE

    tokenizer = AutoTokenizer.from_pretrained(small_model)
    lines = SAMPLE_FILE.read_text("utf-8").splitlines()
    documents = [json.loads(line)["text"] for line in lines]
    stream = [t for text in documents for t in tokenizer(text)["input_ids"]]
    ids = np.array(stream[: SEQUENCES * POSITIONS], "int32").reshape(SEQUENCES, POSITIONS)
    lengths = np.vectorize(lambda token: len(tokenizer.decode([token])))(ids).astype("uint16")
    layers = capture(load_model(str(small_model), device="cpu"), ids)
    tokens = {"token_ids": ids, "token_length": lengths}
    return tokens | {name: layer.numpy() for name, layer in layers.items()}


@pytest.fixture(scope="module", params=["folder", "minio"])
def where(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["float32", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["none", "lz4"])
def stored(
    request: pytest.FixtureRequest,
    small_model: Path,
    computed: dict[str, npt.NDArray[Any]],
    where: str,
    dtype: str,
) -> Stored:
    url = new_place(where, request)
    words = ["--model", small_model, "--dataset", "sample"]
    words += ["--sequences", SEQUENCES, "--positions", POSITIONS]
    words += ["--store-dtype", dtype, "--compression", request.param]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("neoscope.format.arrays.MAX_CHUNK_ELEMENTS", 2 * POSITIONS * 16)
        done = invoke("run", url, *words)
    assert done.code == 0, done.err
    cast = {
        name: values.astype(dtype) if name.startswith("MLP_") else values
        for name, values in computed.items()
    }
    return Stored(url, cast)


def by_zarr(url: str, name: str) -> npt.NDArray[Any]:
    group = zarr.open_group(zarr_store(url), path="activations.zarr", mode="r")
    return np.asarray(group[name][...])  # type: ignore[index]


def by_zarrs(url: str, name: str) -> npt.NDArray[Any]:
    """zarrs, in Rust, in the place of zarr-python's codecs; strict, so that zarr never stands in."""
    with zarr.config.set(
        {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
    ):
        return by_zarr(url, name)


def by_xarray(url: str, name: str) -> npt.NDArray[Any]:
    found = xarray.open_zarr(
        zarr_store(url), group="activations.zarr", consolidated=False, chunks=None
    )
    return np.asarray(found[name])


def by_tensorstore(url: str, name: str) -> npt.NDArray[Any]:
    if url.startswith("s3://"):
        bucket, prefix = in_minio(url)
        place = {
            "driver": "s3",
            "bucket": bucket.name,
            "endpoint": os.environ["AWS_ENDPOINT_URL"],
            "aws_region": "us-east-1",
            "path": f"{prefix}activations.zarr/{name}/",
        }
    else:
        place = {"driver": "file", "path": f"{url}/activations.zarr/{name}/"}
    found = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True, open=True)
    return np.asarray(found.result().read().result())


@pytest.mark.filterwarnings("ignore:Successfully reconstructed a store:RuntimeWarning")  # zarrs, S3
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("read", [by_zarr, by_zarrs, by_xarray, by_tensorstore])
def test_every_reader_gives_the_values_that_were_computed(stored: Stored, read: Read) -> None:
    for name, expected in stored.values.items():
        found = read(stored.url, name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("read", [by_zarr, by_zarrs, by_xarray, by_tensorstore])
def test_no_reader_opens_what_is_not_committed(
    tmp_path: Path, small_run: list[str], read: Read
) -> None:
    assert invoke("run", tmp_path / "run", *small_run).code == 0
    for metadata in (tmp_path / "run").rglob("zarr.json"):
        metadata.unlink()
    with pytest.raises(Exception):  # noqa: B017, PT011 - each has its own
        read(str(tmp_path / "run"), "MLP_0")
