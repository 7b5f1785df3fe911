"""What the commit of a large run costs: seconds and peak memory, over a link of 15 ms each way and 80 MB/s.

    python tests/benchmarks/commit.py [BATCHES ...] [--arrays] [--loopback]

By default 100,000 and 1,000,000 batches of a run of statistics only, each in 64 partitions; with --arrays
chunks of the twelve layers of GPT-Neo 125M too, 192 a batch, which takes minutes at 100,000. The roll-ups are
made up, by the code that makes real ones: a record for 64 batches (with arrays for each), a dozen documents a
batch, and for each partition the statistics of the 125M shape. They lie in a stand-in for S3, which lists the
chunks at once; see `listing_store`. The commit is a process of its own. With --loopback there is no link.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from listing_store import tag
from measure import machine
from network import LATENCY_MS, RATE_KB, answers_at, link, minio

from neoscope.format import sealed_json
from neoscope.format.arrays import array_schemas, schemas_of
from neoscope.format.chunks import CHECKSUM_BYTES, bytes_digest
from neoscope.format.claim import put_claim
from neoscope.format.layout import ACTIVATIONS, rollup_key, state_keys
from neoscope.format.records import record_counts
from neoscope.format.rollups import RollUp
from neoscope.spec import make_spec
from neoscope.statistics.length_cells import BINS, Cells
from neoscope.statistics.neurons import BINS as NEURON_BINS
from neoscope.statistics.neurons import POWERS, Neurons
from neoscope.storage.store import Store, open_store

LAYERS, NEURONS, CELLS, DOCUMENTS, PARTITIONS, CONTEXTS = 12, 3072, 25, 12, 64, 32
PLACE = "s3://made-up/run"
ENVIRONMENT = {
    "python": "3",
    "platform": "none",
    "device": "cpu",
    "precision": {},
    "libraries": {"torch": "2"},
}
# In a process of its own, so that its memory is the commit's and nothing else's. ru_maxrss would begin with
# what the process that starts it has.
COMMIT = """
import json, re, sys, time
from pathlib import Path
from neoscope.format.records import read_claim
from neoscope.pipeline.commit import commit
from neoscope.storage.store import open_store
store = open_store(sys.argv[1], write=True)
began = time.perf_counter()
manifest = commit(store, read_claim(store))
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "peak": 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]),
    "tokens": manifest["tokens"]["count"],
}))
"""


def cells(batches: int) -> bytes:
    """Cells of so many tokens that their counts are those of the records."""
    values = np.random.default_rng(0).standard_normal((LAYERS, CELLS, NEURONS))
    return Cells(
        np.arange(1, CELLS + 1, dtype=np.uint16),
        np.zeros(CELLS, np.bool_),
        np.full(CELLS, batches),
        np.ones((LAYERS, CELLS, BINS), np.int64),
        values.astype(np.float32),
        values,
        values**2,
    ).dump()


def neurons(batches: int) -> bytes:
    """The same by neuron."""
    chance, shape = np.random.default_rng(1), (LAYERS, 2, NEURONS)
    histogram = np.zeros((*shape, NEURON_BINS), np.uint32)
    histogram[..., 100:160] = 7
    value = np.sort(chance.standard_normal((*shape, CONTEXTS)).astype(np.float32), axis=-1)
    token = chance.integers(0, batches * CELLS, (*shape, CONTEXTS))
    return Neurons(
        np.array([batches * (CELLS - 1), batches]),
        chance.standard_normal(shape).astype(np.float32),
        np.abs(chance.standard_normal((LAYERS, 2, POWERS, NEURONS))),
        np.ones(shape, np.uint32),
        histogram,
        value[..., ::-1],
        token,
        value,
        token,
    ).dump()


def put_run(store: Store, batches: int, *, arrays: bool) -> int:
    """Claim, statistics and roll-ups of a run that wants nothing but its commit; the roll-ups' bytes."""
    spec = make_spec(
        weights="random", dataset="sample", arrays=arrays, partitions=PARTITIONS, batches=batches,
        sequences=SEQUENCES if arrays else 1, positions=POSITIONS if arrays else CELLS,
    )  # fmt: skip
    schemas = array_schemas(spec, layers=range(LAYERS), neurons=NEURONS)
    claim = put_claim(
        store,
        spec,
        {
            "model": {
                "name": "made up", "revision": None, "weights": "random", "digest": "0" * 32,
                "layers": LAYERS, "neurons": NEURONS, "architecture": "gpt_neo", "forward": "made up",
            },
            "tokenizer": {
                "name": "made up", "revision": None, "size": 1, "vocabulary_digest": "0" * 32,
            },
            "text": {"source": "sample", "column": "text"},
            "hook": {
                "module": "transformer.h.*.mlp.c_fc", "side": "output", "value": "made up",
                "layers": list(range(LAYERS)),
            },
            "arrays": {name: schema.to_json() for name, schema in schemas.items()},
            "environment": ENVIRONMENT,
        },
    )  # fmt: skip
    tokens = spec.tokens_per_batch // CELLS * batches
    states = {"statistics": cells(tokens), "neurons": neurons(tokens)}
    size, entries = 0, {}
    for name, body in states.items():  # those of all partitions are the same, and one object
        (key,) = state_keys(name, 0, batches, ())
        store.create(key, body)
        entries[name] = {"key": key, "size": len(body), "digest": bytes_digest(body)}
    for partition in range(PARTITIONS):
        made = RollUp(claim, partition)
        for record in records(claim, partition):
            made.add({**record, **entries})
        body = sealed_json.dump("rollup", made.content())
        store.create(rollup_key(partition), body)
        size += len(body)
    return size


# Of a batch with arrays, its tokens are as many of each length.
SEQUENCES, POSITIONS = 16, 500


def records(claim: dict[str, Any], partition: int) -> Iterator[dict[str, Any]]:
    """The records of a partition, made up."""
    spec, schemas, first = claim["spec"], schemas_of(claim), 0
    summary = {"min": 0.0, "max": 1.0, "total": 1.0, "squares": 1.0, "nonfinite": 0}
    layers = [name for name in schemas if name.startswith("MLP_")]
    for count in record_counts(spec):
        entries: dict[str, Any] = {}
        tags: dict[str, str] = {}
        for name, schema in schemas.items():
            keys = [
                key
                for number in range(first, count)
                for key in schema.batch_keys(partition * spec["batches"] + number)
            ]
            size = schema.chunk_bytes + CHECKSUM_BYTES
            values = len(keys) * int(np.prod(schema.chunks))
            entries[name] = {
                "chunks": [{"key": key, "size": size, "digest": "0" * 32} for key in keys],
                "summary": {"count": values, **summary},
            }
            tags |= {key: tag(f"run/{key}") for key in keys}
        each = spec["sequences"] * spec["positions"] // CELLS * (count - first)
        yield {
            "content_digest": f"{partition:032x}{count:032x}",
            "batches": count,
            "arrays": entries,
            "documents": [
                {"id": f"<urn:uuid:{partition}-{n}>", "tokens": 700, "start": 0, "stop": 700}
                for n in range(first * DOCUMENTS, count * DOCUMENTS)
            ],
            "length_histogram": {str(length): each for length in range(1, CELLS + 1)},
            "special_tokens": 0,
            "read_back": dict.fromkeys(layers, ""),
            "tags": tags,
            "environment": ENVIRONMENT,
            "timings": {"capture": 1.0},
        }
        first = count


@contextlib.contextmanager
def listing_store(batches: int, *, arrays: bool) -> Iterator[str]:
    """The endpoint of a stand-in that lists the chunks of a run of so many batches a partition."""
    spec = make_spec(
        weights="random", dataset="sample", arrays=arrays, partitions=PARTITIONS, batches=batches,
        sequences=SEQUENCES if arrays else 1, positions=POSITIONS if arrays else CELLS,
    )  # fmt: skip
    listed = {
        f"run/{ACTIVATIONS}/{name}/c/": [
            schema.grid[0],
            int(np.prod(schema.grid[1:])),
            schema.chunk_bytes + CHECKSUM_BYTES,
        ]
        for name, schema in array_schemas(spec, layers=range(LAYERS), neurons=NEURONS).items()
    }
    port = str(minio._free_port())
    program = Path(__file__).parent / "listing_store.py"
    with subprocess.Popen([sys.executable, program, port, json.dumps(listed)]) as process:
        try:
            while not answers_at(f"http://127.0.0.1:{port}/made-up"):
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def main(sizes: list[int], *, arrays: bool, far: bool) -> None:
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    over = (
        f"{LATENCY_MS} ms each way, {RATE_KB / 1000:.0f} MB/s a connection" if far else "loopback"
    )
    print(
        f"commit of a run {'with arrays' if arrays else 'of statistics only'}, {over}\n{machine()}\n"
    )
    for total in sizes:
        batches = total // PARTITIONS
        with contextlib.ExitStack() as stack:
            near = stack.enter_context(listing_store(batches, arrays=arrays))
            began = time.perf_counter()
            size = put_run(open_store(PLACE, endpoint_url=near, write=True), batches, arrays=arrays)
            made = time.perf_counter() - began
            endpoint = stack.enter_context(link(near)) if far else near
            done = subprocess.run(
                [sys.executable, "-c", COMMIT, PLACE],
                env={**os.environ, "AWS_ENDPOINT_URL": endpoint},
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
        found = json.loads(done.stdout)
        chunks = batches * PARTITIONS * (2 + (LAYERS * 16 if arrays else 0))
        print(
            f"{batches * PARTITIONS:>10,} batches, {chunks:,} chunks: {found['seconds']:.1f} s, peak memory "
            f"{found['peak'] / 1e9:.2f} GB; roll-ups {size / 1e6:.1f} MB (made in {made:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    words = sys.argv[1:]
    numbers = [int(word) for word in words if word.isdecimal()] or [100_000, 1_000_000]
    main(numbers, arrays="--arrays" in words, far="--loopback" not in words)
