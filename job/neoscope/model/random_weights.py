"""A GPT-Neo with seeded random weights, the same on every machine.

In: a configuration and a seed. Out: the numbers, in a model. It needs no Hub, and knows GPT-Neo's initial
distribution and no other: architectures differ in theirs.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from transformers import GPTNeoConfig

from neoscope.model.shapes import PUBLISHED_SHAPES


def published_config(name: str) -> GPTNeoConfig:
    """The configuration of one of the three published GPT-Neo models, without the Hub."""
    shape = PUBLISHED_SHAPES[name]
    return GPTNeoConfig(
        **shape,
        attention_types=[[["global", "local"], shape["num_layers"] // 2]],
        name_or_path=name,
    )


def fill(model: torch.nn.Module, initializer_range: float, seed: int) -> None:
    """Give every parameter of a GPT-Neo its value of the architecture's own initialisation, in place.

    Normal with the configuration's `initializer_range` (0.02), biases 0, layer norms 1, as
    transformers' `_init_weights` for GPT-Neo. The numbers are numpy's Philox keyed by seed and
    parameter name: torch's `normal_` differs between instruction sets.
    """

    def draw(name: str, parameter: torch.nn.Parameter) -> None:
        if name.endswith("bias"):
            parameter.data.zero_()
        elif parameter.dim() == 1:
            parameter.data.fill_(1)
        else:
            key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            numbers = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
            in_place = parameter.dtype == torch.float32 and parameter.device.type == "cpu"
            values = parameter.data if in_place else torch.empty(parameter.shape)
            numbers.standard_normal(dtype=np.float32, out=values.numpy())
            parameter.data.copy_(values.mul_(initializer_range))

    with ThreadPoolExecutor() as pool:  # numpy draws without holding Python's lock
        list(pool.map(draw, *zip(*model.named_parameters(), strict=True)))
