"""What one would write without neoscope: transformers with hooks, then zarr through s3fs.

    python tests/benchmarks/straightforward.py s3://bucket/prefix | FOLDER

The same 16 x 512 tokens of the packaged sample, the same shape with random weights. It checks nothing.
"""

from __future__ import annotations

import json
import sys

import torch
import zarr
from transformers import GPTNeoConfig, GPTNeoForCausalLM

from neoscope.text.documents import SAMPLE_FILE
from neoscope.text.tokenizer import packaged_tokenizer


def main(output: str) -> None:
    tokenizer = packaged_tokenizer()
    rows = map(json.loads, SAMPLE_FILE.read_text(encoding="utf-8").splitlines())
    tokens = [token for row in rows for token in tokenizer(row["text"], verbose=False)["input_ids"]]
    ids = torch.tensor(tokens[: 16 * 512]).view(16, 512)
    config = GPTNeoConfig(
        hidden_size=768, num_layers=12, num_heads=12, attention_types=[[["global", "local"], 6]]
    )
    model = GPTNeoForCausalLM(config).eval()
    layers = {}
    for i, block in enumerate(model.transformer.h):
        block.mlp.c_fc.register_forward_hook(
            lambda _module, _inputs, output, name=f"MLP_{i}": layers.__setitem__(name, output)
        )
    with torch.no_grad():
        model(ids)
    zarr.save_group(output, **{name: values.numpy() for name, values in layers.items()})


if __name__ == "__main__":
    main(sys.argv[1])
