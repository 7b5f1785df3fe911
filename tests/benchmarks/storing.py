"""What storing costs: capture and store against capture alone, and against raw puts.

    python tests/benchmarks/storing.py [ROUNDS]

1. Seconds of capture alone, and of capture with all layers stored in a local folder.
2. Seconds, and client CPU seconds, of storing 12 layers in MinIO through the writer, against obstore
   putting the same bytes from buffers that lie ready; with and without compression.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import boto3
import numpy as np
import obstore
import torch
from measure import in_turn, table

from neoscope import load_model
from neoscope.format.arrays import ArraySchema, array_schemas
from neoscope.model.hooks import stream
from neoscope.pipeline.layer_writer import LayerWriter
from neoscope.spec import RunSpec
from neoscope.storage.store import REQUESTS_IN_FLIGHT, Store, open_store

sys.path.insert(0, str(Path(__file__).parents[2] / "job" / "local"))

import minio

LAYERS, NEURONS = 12, 3072


def layers_of(compression: str = "none") -> dict[str, ArraySchema]:
    spec = RunSpec(compression=compression)  # type: ignore[arg-type]
    schemas = array_schemas(spec, layers=range(LAYERS), neurons=NEURONS)
    return {name: schema for name, schema in schemas.items() if name.startswith("MLP_")}


def capture_and_store(rounds: int, folder: Path) -> None:
    torch.set_grad_enabled(False)
    model = load_model("gpt-neo-125m", weights="random", device="cpu")
    ids = torch.randint(0, 50257, (16, 512), generator=torch.manual_seed(0))
    schemas = layers_of()
    first = next(iter(schemas.values()))
    output = folder / "run"

    def alone() -> None:
        stream(model, ids, [lambda _name, _values: None], forward="fast")

    def stored() -> None:
        store = open_store(str(output), write=True)
        with closing(LayerWriter(store, first, model.device)) as writer:
            stream(
                model,
                ids,
                [lambda name, values: writer.write(schemas[name], 0, values, "records/none")],
                forward="fast",
            )
            for parts in writer.finish().values():
                futures.wait(parts)
        shutil.rmtree(output)

    seconds = in_turn({"capture alone": alone, "capture and store, local folder": stored}, rounds)
    print(table("Capture and store, 16 x 512, 125M shape", seconds, "capture alone"), end="\n\n")


def client_cpu(rounds: int) -> None:
    values = torch.randn(16, 512, NEURONS)
    # Two layers' chunks, as many as the writer has in memory: one alone would stay in the cache.
    ready = [np.random.default_rng(seed).bytes(6_291_460) for seed in range(32)]
    places = iter(range(1_000_000))

    def raw(store: Store) -> None:
        prefix = f"raw-{next(places)}"
        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
            for number in range(LAYERS * 16):
                key, body = f"{prefix}/{number}", ready[number % len(ready)]
                pool.submit(obstore.put, store.backend, key, body, use_multipart=False)

    def ours(url: str, compression: str) -> None:
        store = open_store(f"{url}/ours-{next(places)}", write=True)
        schemas = layers_of(compression)
        with closing(LayerWriter(store, next(iter(schemas.values())), values.device)) as writer:
            for schema in schemas.values():
                writer.write(schema, 0, values, "records/none")
            for parts in writer.finish().values():
                futures.wait(parts)

    def cpu_of(work: Callable[[], None], cpu: list[float]) -> Callable[[], None]:
        def run() -> None:
            began = time.process_time()
            work()
            cpu.append(time.process_time() - began)

        return run

    with tempfile.TemporaryDirectory() as folder, minio.server(Path(folder)) as server:
        os.environ.update(server.environment, AWS_DEFAULT_REGION="us-east-1")
        boto3.Session().client("s3").create_bucket(Bucket="bench")
        url = "s3://bench/storing"
        store = open_store(url, write=True)
        works = {
            "raw obstore puts of the same bytes": lambda: raw(store),
            "the writer": lambda: ours(url, "none"),
            "the writer, --compression lz4": lambda: ours(url, "lz4"),
        }
        cpu: dict[str, list[float]] = {name: [] for name in works}
        rows = {name: cpu_of(work, cpu[name]) for name, work in works.items()}
        seconds = in_turn(rows, rounds)
    against = "raw obstore puts of the same bytes"
    print(
        table("Storing 12 layers (1.2 GB) in MinIO on this machine", seconds, against), end="\n\n"
    )
    warm = {name: row[1:] for name, row in cpu.items()}
    print(table("The same, CPU seconds of the client", warm, against, "CPU s"))


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as scratch:
        capture_and_store(count, Path(scratch))
    client_cpu(count)
