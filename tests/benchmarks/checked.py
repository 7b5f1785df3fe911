"""What it costs to know that a put has arrived as it left: processor time and seconds against plain puts.

    python tests/benchmarks/checked.py [ROUNDS]

Chunks of 6.3 MB into a MinIO on this machine, over HTTP and over HTTPS, the ways in turn. `plain` checks
nothing; a checksum and a signed body find an altered body where the store checks them; what the others find
is in the docstrings below.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import obstore
import xxhash
from measure import in_turn, table
from obstore.store import S3Store

from neoscope.storage.store import Store

sys.path.insert(0, str(Path(__file__).parents[2] / "job" / "local"))

import minio
from minio_program import binary

CHUNK_BYTES = 6_291_460
CHUNKS = 64
CONNECTIONS = 8
Way = Callable[[str, bytes], None]


def ways(make: Callable[..., S3Store]) -> dict[str, Way]:
    plain = make(unsigned_payload=True)
    crc64 = make(unsigned_payload=True, checksum_algorithm="crc64nvme")
    sha256 = make(unsigned_payload=True, checksum_algorithm="sha256")
    signed = make()
    store = Store("s3://bench/checked", plain)

    def put(store: S3Store) -> Way:
        def work(key: str, body: bytes) -> None:
            obstore.put(store, key, body, use_multipart=False)

        return work

    def checked(key: str, body: bytes) -> None:
        """Finds everything, by the checksum and HEAD where the store checks, as MinIO does."""
        store.put(key, body)

    def etag(key: str, body: bytes) -> None:
        """Finds another body and an answer that is made up; not with KMS."""
        digest = hashlib.md5(body, usedforsecurity=False).hexdigest()
        assert obstore.put(plain, key, body, use_multipart=False)["e_tag"] == f'"{digest}"'

    def looked_up(key: str, body: bytes) -> None:
        """Finds another body where the store checks, and a body that is not kept."""
        tag = obstore.put(crc64, key, body, use_multipart=False)["e_tag"]
        found = obstore.head(crc64, key)
        assert (found["size"], found["e_tag"]) == (len(body), tag)

    def read_back(key: str, body: bytes) -> None:
        """Finds everything, of any store."""
        obstore.put(plain, key, body, use_multipart=False)
        back = memoryview(obstore.get(plain, key).bytes())
        assert xxhash.xxh3_128_digest(back) == xxhash.xxh3_128_digest(body)

    return {
        "plain": put(plain),
        "x-amz-checksum-crc64nvme": put(crc64),
        "the same, and HEAD": looked_up,
        "x-amz-checksum-sha256": put(sha256),
        "signed body": put(signed),
        "ETag is MD5": etag,
        "read back": read_back,
        "neoscope's Store.put": checked,
    }


@contextmanager
def over_tls(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a MinIO that speaks HTTPS by a certificate of its own."""
    (folder / "certs").mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "certs/private.key", "-out", folder / "certs/public.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    keys = {"MINIO_ROOT_USER": "neoscope", "MINIO_ROOT_PASSWORD": "of-this-benchmark"}
    address = f"127.0.0.1:{minio._free_port()}"
    command = [binary(), "server", "--address", address, "--certs-dir", folder / "certs"]
    with subprocess.Popen(
        [*command, folder / "data"],
        env={**os.environ, **keys, "MINIO_BROWSER": "off", "MINIO_UPDATE": "off"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            yield {
                "AWS_ENDPOINT_URL": f"https://{address}",
                "AWS_ACCESS_KEY_ID": keys["MINIO_ROOT_USER"],
                "AWS_SECRET_ACCESS_KEY": keys["MINIO_ROOT_PASSWORD"],
            }
        finally:
            process.terminate()


@contextmanager
def over_http(folder: Path) -> Iterator[dict[str, str]]:
    with minio.server(folder) as server:
        yield server.environment


def measure(name: str, environment: dict[str, str], rounds: int) -> None:
    keys = {
        "access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
    }
    client: Any = boto3.Session().client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=keys["access_key_id"],
        aws_secret_access_key=keys["secret_access_key"],
        region_name="us-east-1",
        verify=False,
    )
    for _ in range(100):
        try:
            client.create_bucket(Bucket="bench")
            break
        except Exception:  # it is still starting
            time.sleep(0.1)

    def make(**options: Any) -> S3Store:
        return S3Store(
            "bench",
            prefix="checked",
            endpoint=environment["AWS_ENDPOINT_URL"],
            region="us-east-1",
            client_options={"allow_http": True, "allow_invalid_certificates": True},
            **keys,
            **options,
        )

    bodies = [np.random.default_rng(seed).bytes(CHUNK_BYTES) for seed in range(CONNECTIONS)]
    processor: dict[str, list[float]] = {}

    def row(name: str, way: Way) -> Callable[[], None]:
        def work() -> None:
            began = time.process_time()
            with ThreadPoolExecutor(CONNECTIONS) as pool:
                jobs = [pool.submit(way, str(n), bodies[n % CONNECTIONS]) for n in range(CHUNKS)]
                for job in jobs:
                    job.result()
            processor.setdefault(name, []).append(time.process_time() - began)

        return work

    rows = {each: row(each, way) for each, way in ways(make).items()}
    seconds = in_turn(rows, rounds)
    title = f"{CHUNKS} chunks of 6.3 MB over {name}, {CONNECTIONS} at a time"
    print(table(title, seconds, "plain"), end="\n\n")
    warm = {each: spent[1:] for each, spent in processor.items()}
    print(table("The same, CPU seconds of the client", warm, "plain", "CPU s"), end="\n\n")


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    for name, served in (("HTTP", over_http), ("HTTPS", over_tls)):
        with tempfile.TemporaryDirectory() as scratch, served(Path(scratch)) as settings:
            measure(name, settings, count)
