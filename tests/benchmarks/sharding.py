"""What reading would cost if a layer's batch were one object: Zarr's sharding against plain chunks.

    .venv/bin/python tests/benchmarks/sharding.py [BATCHES [ROUNDS]] [--link]

The same values of one layer of GPT-Neo 125M, [16 x BATCHES, 512, 3072] float32 in chunks of 4 x 512 x 768,
are written to a MinIO of its own twice by zarr-python: each chunk an object, 16 a batch, and each batch an
object of 16 chunks and their index. One neuron, one sequence and the whole layer are read by zarr-python, by
it with zarrs's codecs, and by tensorstore, which open the array anew each time; with --link over 15 ms each
way and 80 MB/s a connection. Requests are counted by a proxy in a round of their own. The ratio is sharded to
plain.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import numpy.typing as npt
import tensorstore
import zarr
from measure import in_turn, machine
from network import link, minio
from obstore.store import S3Store
from zarr.codecs import Crc32cCodec

sys.path.insert(0, str(Path(__file__).parents[1]))

from faults.proxy import proxied

SEQUENCES, POSITIONS, NEURONS, CHUNKS = 16, 512, 3072, (4, 512, 768)
BUCKET = "sharding"
KINDS = {"plain": None, "sharded": (SEQUENCES, POSITIONS, NEURONS)}
WANTED: dict[str, Any] = {
    "one neuron": (slice(None), slice(None), slice(77, 78)),
    "one sequence": (slice(5, 6), slice(None), slice(None)),
    "whole layer": (slice(None), slice(None), slice(None)),
}
Read = Callable[[str, str, Any], npt.NDArray[Any]]


def zarr_store(endpoint: str, kind: str) -> Any:
    backend = S3Store(
        BUCKET,
        prefix=kind,
        endpoint=endpoint,
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region="us-east-1",
        client_options={"allow_http": True},
    )
    return zarr.storage.ObjectStore(backend)


def write(endpoint: str, batches: int) -> npt.NDArray[np.float32]:
    """Both arrays; their values."""
    shape = (SEQUENCES * batches, POSITIONS, NEURONS)
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    for kind, shards in KINDS.items():
        array = zarr.create_array(
            zarr_store(endpoint, kind),
            shape=shape,
            chunks=CHUNKS,
            shards=shards,
            dtype="float32",
            filters=None,
            compressors=[Crc32cCodec()],
            fill_value=float("nan"),
        )
        for first in range(0, len(values), SEQUENCES):
            array[first : first + SEQUENCES] = values[first : first + SEQUENCES]
    return values


def by_zarr(endpoint: str, kind: str, wanted: Any) -> npt.NDArray[Any]:
    array = zarr.open_array(zarr_store(endpoint, kind), mode="r", zarr_format=3)
    return np.asarray(array[wanted])


def by_zarrs(endpoint: str, kind: str, wanted: Any) -> npt.NDArray[Any]:
    with zarr.config.set(
        {"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "codec_pipeline.strict": True}
    ):
        return by_zarr(endpoint, kind, wanted)


def by_tensorstore(endpoint: str, kind: str, wanted: Any) -> npt.NDArray[Any]:
    place = {
        "driver": "s3",
        "bucket": BUCKET,
        "endpoint": endpoint,
        "aws_region": "us-east-1",
        "path": f"{kind}/",
    }
    found = tensorstore.open({"driver": "zarr3", "kvstore": place}, read=True, open=True)
    return np.asarray(found.result()[wanted].read().result())


READERS: dict[str, Read] = {
    "zarr-python": by_zarr,
    "zarrs": by_zarrs,
    "tensorstore": by_tensorstore,
}


def requests(endpoint: str, read: Read, kind: str, wanted: Any) -> int:
    """How many requests a read makes, the metadata's among them, in a process of its own: zarrs holds the
    lock that the proxy's thread would need."""
    apart = multiprocessing.get_context("spawn")
    with proxied(endpoint) as proxy, ProcessPoolExecutor(1, apart) as process:
        process.submit(read, proxy.endpoint, kind, wanted).result()
        return len(proxy.requests)


def main(endpoint: str, near: str, batches: int, rounds: int) -> None:
    values = write(near, batches)
    for name, wanted in WANTED.items():
        rows = {
            f"{reader}, {kind}": functools.partial(read, endpoint, kind, wanted)
            for reader, read in READERS.items()
            for kind in KINDS
        }
        for row, work in rows.items():
            np.testing.assert_array_equal(work(), values[wanted], err_msg=row)
        seconds = in_turn(rows, rounds, warm_up=False)
        print(
            f"\n{name}{'':<20}{'plain':>12}{'sharded':>12}{'ratio':>9}  least..greatest  requests"
        )
        for reader, read in READERS.items():
            plain, sharded = (seconds[f"{reader}, {kind}"] for kind in KINDS)
            ratios = [two / one for one, two in zip(plain, sharded, strict=True)]
            counts = [requests(near, read, kind, wanted) for kind in KINDS]
            print(
                f"  {reader:<28}{statistics.median(plain):>10.3f} s{statistics.median(sharded):>10.3f} s"
                f"{statistics.median(ratios):>9.2f}  {min(ratios):.2f}..{max(ratios):.2f}      "
                f"{counts[0]} and {counts[1]}",
                flush=True,
            )


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    with tempfile.TemporaryDirectory() as folder, minio.server(Path(folder) / "minio") as server:
        os.environ.update(server.environment, AWS_DEFAULT_REGION="us-east-1")
        boto3.Session().client("s3").create_bucket(Bucket=BUCKET)
        with contextlib.ExitStack() as stack:
            far = "--link" in sys.argv
            address = stack.enter_context(link(server.endpoint)) if far else server.endpoint
            over = "15 ms each way and 80 MB/s a connection" if far else "loopback"
            print(f"one layer in plain chunks and in shards, MinIO over {over}\n{machine()}")
            main(address, server.endpoint, *(numbers + [4, 5][len(numbers) :]))
