"""What records and commit cost a run of statistics only: 100,000 batches in 64 partitions.

    python tests/benchmarks/commit.py [BATCHES [PARTITIONS]]

The records are made up, by the code that makes real ones: a record for 64 batches, a dozen documents a
batch, token ids and lengths of 1 x 25 tokens (their size does not matter to the commit), and for each
partition the cells of the 125M shape. They are put in a local folder, and committed.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import machine

from neoscope.format import layout, records
from neoscope.format.arrays import array_schemas, schemas_of
from neoscope.format.claim import put_claim
from neoscope.format.layout import TOKEN_IDS, TOKEN_LENGTH
from neoscope.format.states import put_states
from neoscope.pipeline import stored_batch
from neoscope.pipeline.commit import commit
from neoscope.pipeline.layer_writer import put_array
from neoscope.pipeline.stored_batch import StoredBatch
from neoscope.spec import make_spec
from neoscope.statistics.length_cells import BINS, Cells
from neoscope.storage.store import Store, open_store
from neoscope.text.packing import Batch, Span

LAYERS, NEURONS, CELLS, DOCUMENTS = 12, 3072, 25, 12
ENVIRONMENT = {"python": "3", "platform": "none", "device": "cpu", "libraries": {"torch": "2"}}


def cells(batches: int) -> Cells:
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
    )


def make(store: Store, partitions: int, batches: int) -> dict[str, object]:
    """A run that wants nothing but its commit."""
    spec = make_spec(
        weights="random", dataset="sample", arrays=False, partitions=partitions, batches=batches,
        sequences=1, positions=CELLS,
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
    schemas = schemas_of(claim)
    ids = np.zeros((1, CELLS), np.int32)
    token_lengths = np.arange(1, CELLS + 1, dtype=np.uint16)[None]
    for partition in range(partitions):
        first = 0
        for count in records.record_counts(claim["spec"]):
            stored = []
            for number in range(first, count):
                key = layout.record_key(partition, count)
                at = partition * batches + number
                arrays = {
                    TOKEN_IDS: [put_array(store, schemas[TOKEN_IDS], at, ids, key)],
                    TOKEN_LENGTH: [put_array(store, schemas[TOKEN_LENGTH], at, token_lengths, key)],
                }
                spans = tuple(
                    Span(f"<urn:uuid:{partition}-{number}-{n}>", 700, 0, 700)
                    for n in range(DOCUMENTS)
                )
                batch = Batch(ids, spans, {"stream": {"index": number}, "offset": 0})
                counts = token_lengths.histogram(token_lengths)
                stored.append(StoredBatch(batch, arrays, counts, 0, {}))
            content = {
                **stored_batch.record_content(stored),
                "environment": ENVIRONMENT,
                "timings": {},
            }
            if count == batches:
                states = {"statistics": cells(batches).dump()}
                content |= put_states(store, partition, count, states, key)
            else:  # superseded: only its name is left
                content["statistics"] = {"key": "gone", "size": 1, "digest": "0" * 32}
            records.put_record(store, claim, partition, count, content)
            first = count
    return claim


def main(batches: int, partitions: int) -> None:
    each = batches // partitions
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder, write=True)
        began = time.perf_counter()
        claim = make(store, partitions, each)
        made = time.perf_counter() - began
        sizes = [path.stat().st_size for path in (Path(folder) / "records").iterdir()]
        began = time.perf_counter()
        if commit(store, claim) is None:
            raise SystemExit("the commit found the run unfinished")
        spent = time.perf_counter() - began
        manifest = (Path(folder) / "manifest.json").stat().st_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(
        f"{each * partitions:,} batches in {partitions} partitions, statistics only\n{machine()}\n"
    )
    print(f"records     {len(sizes):,}, {sum(sizes) / 1e6:,.1f} MB, {made:.0f} s with all objects")
    print(f"manifest    {manifest / 1e6:.1f} MB")
    print(f"commit      {spent:.1f} s, peak memory of the process {peak:.2f} GB")


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[1:]]
    main(*(numbers + [100_000, 64][len(numbers) :]))
