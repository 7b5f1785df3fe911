"""On a GPU: capture into pinned memory against the copy alone and the forward pass alone.

    python tests/benchmarks/gpu.py [ROUNDS]

For the 125M and 1.3B shapes: tokens a second of (1) the forward pass with hooks that keep nothing,
(2) a plain pinned device-to-host copy of the same bytes, (3) capture through the writer's ring into an
in-memory store, which is the whole path but for the network.
NOT YET MEASURED: written without a GPU at hand; without one it says so and ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing

import torch
from measure import in_turn, table
from obstore.store import MemoryStore

from neoscope import load_model
from neoscope.format.arrays import array_schemas
from neoscope.model.hooks import stream
from neoscope.pipeline.layer_writer import LayerWriter
from neoscope.spec import RunSpec
from neoscope.storage.store import Store

SEQUENCES, POSITIONS = 16, 512


def rows(name: str) -> dict[str, Callable[[], object]]:
    model = load_model(name, weights="random", device="cuda")
    config = model.config
    neurons = model.h[0].mlp.c_fc.out_features
    ids = torch.randint(0, config.vocab_size, (SEQUENCES, POSITIONS), device="cuda")
    schemas = array_schemas(RunSpec(model=name), layers=range(config.num_layers), neurons=neurons)
    layer = torch.empty(SEQUENCES, POSITIONS, neurons, device="cuda")
    pinned = torch.empty(layer.shape, pin_memory=True)

    def forward() -> None:
        stream(model, ids, [lambda _name, _values: None], forward="fast")
        torch.cuda.synchronize()

    def copies() -> None:
        for _ in range(config.num_layers):
            pinned.copy_(layer, non_blocking=True)
        torch.cuda.synchronize()

    def whole() -> None:
        store = Store("memory", MemoryStore())  # type: ignore[arg-type]
        with closing(LayerWriter(store, schemas["MLP_0"], model.device)) as writer:
            stream(
                model,
                ids,
                [lambda name, values: writer.write(schemas[name], 0, values, "records/none")],
                forward="fast",
            )
            writer.finish()

    return {
        "a pinned copy of the same bytes": copies,
        "forward pass, hooks that keep nothing": forward,
        "capture, encoded into a store in memory": whole,
    }


def main(rounds: int) -> None:
    if not torch.cuda.is_available():
        print("GPU: not measured, torch finds none here")
        return
    for name in ("gpt-neo-125m", "gpt-neo-1.3B"):
        seconds = in_turn(rows(name), rounds)
        title = f"{name}, {SEQUENCES * POSITIONS} tokens"
        print(table(title, seconds, "a pinned copy of the same bytes"))
        for row, values in seconds.items():
            print(f"    {row}: {SEQUENCES * POSITIONS / min(values):,.0f} tokens/s at best")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
