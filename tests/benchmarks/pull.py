"""What pulling costs: `neoscope pull` against obstore reading the same objects.

    python tests/benchmarks/pull.py [ROUNDS]

A run of 16 x 512 tokens of the 125M shape (1.2 GB) from MinIO on this machine into a folder. obstore
keeps 8 requests on their way, as pull does: once dropping what it reads, once putting it into a folder
unchecked. Server, client and disk share the machine's processors; the second table, in which the network is
the limit, needs root and `tc`, which narrows the loopback device meanwhile.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import boto3
import obstore
from measure import in_turn, table

from neoscope.commands.pull.pull import pull
from neoscope.commands.pull.source import open_verified_source
from neoscope.progress import Progress
from neoscope.storage.store import REQUESTS_IN_FLIGHT, Store, open_store

sys.path.insert(0, str(Path(__file__).parents[2] / "job" / "local"))

import minio

URL = "s3://bench/run"
READ = "obstore reads the objects"
LINK = "2gbit"


def read(source: Store, dest: Store | None) -> None:
    """obstore alone."""

    def fetch(key: str) -> None:
        body = obstore.get(source.backend, key).bytes()
        if dest is not None:
            obstore.put(dest.backend, key, body, use_multipart=False)

    with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        list(pool.map(fetch, [item.key for item in source.objects()]))


def pulled(source: Store, dest: Store, layers: str | None, form: str) -> None:
    pull(
        source,
        dest,
        layers=layers,
        sequences=None,
        neurons=None,
        form=form,
        progress=Progress(quiet=True),
    )


def checked(source: Store) -> None:
    """What pull reads, held against its digests and dropped."""
    origin = open_verified_source(source)
    with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        list(pool.map(lambda key: len(origin.read(key)), origin.run.chunks))


@contextmanager
def narrow_link() -> Iterator[None]:
    """The loopback device at `LINK`. Raises CalledProcessError, FileNotFoundError where it stays wide."""
    device = ["dev", "lo", "root"]
    shape = ["tbf", "rate", LINK, "burst", "256kb", "latency", "50ms"]
    subprocess.run(["tc", "qdisc", "add", *device, *shape], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["tc", "qdisc", "del", *device], check=True)


def main(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder, minio.server(Path(folder) / "minio") as server:
        os.environ.update(server.environment, AWS_DEFAULT_REGION="us-east-1")
        boto3.Session().client("s3").create_bucket(Bucket="bench")
        words = ["run", URL, "--dataset", "sample", "--weights", "random"]
        subprocess.run([sys.executable, "-m", "neoscope", *words], check=True, capture_output=True)
        source = open_store(URL)

        def into(work: Callable[[Store], None]) -> Callable[[], object]:
            def run() -> object:
                place = tempfile.TemporaryDirectory(dir=folder)
                work(open_store(place.name, write=True))
                return place  # removed when the clock has stopped

            return run

        rows: dict[str, Callable[[], object]] = {
            READ: lambda: read(source, None),
            "the same, held against their digests": lambda: checked(source),
            "obstore reads and puts them into a folder": into(lambda dest: read(source, dest)),
            "neoscope pull": into(lambda dest: pulled(source, dest, None, "zarr")),
            "neoscope pull --layers 0-11": into(lambda dest: pulled(source, dest, "0-11", "zarr")),
            "neoscope pull --to safetensors": into(
                lambda dest: pulled(source, dest, None, "safetensors")
            ),
        }
        size = sum(item.size for item in source.objects())
        title = f"Pulling {size / 1e9:.2f} GB from MinIO on this machine"
        print(table(title, in_turn(rows, rounds), READ))
        try:
            with narrow_link():
                seconds = in_turn(rows, rounds)
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            print(f"\nover a link of {LINK}: not measured, {error}")
        else:
            print(table(f"\n{title}, over a link of {LINK}", seconds, READ))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
