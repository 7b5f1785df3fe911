"""Whether a pass fits the memory of the device, before it where that can be known.

In: the shapes of a pass and the free memory in bytes. Out: nothing, or one line that says which number
to lower, and to what. What is reckoned is what a pass certainly holds at once, not all of it: a pass
that turns out too large all the same ends with the same words.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from neoscope.errors import InputError
from neoscope.spec import RunSpec


def check_pass(
    spec: RunSpec, config: Any, neurons: int, device: torch.device, *, eager: bool
) -> None:
    """Raise InputError where a pass cannot fit the GPU; nothing is known of other devices.

    The weights are already there. `config` is transformers' of the model, `eager` whether attention is.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        require(spec, sequence_bytes(spec, config, neurons, eager=eager), free + cached)


def sequence_bytes(spec: RunSpec, config: Any, neurons: int, *, eager: bool) -> int:
    """Bytes that one sequence of a pass takes at least.

    In a layer's MLP these are there at once: the residual stream and its normed copy, the neurons
    before and after the activation function, and the copy that is on its way to the host. In eager
    attention the scores and their softmax for every head are there instead.
    """
    text = config.get_text_config()
    computed: int = getattr(torch, spec.precision).itemsize
    stored: int = getattr(torch, spec.store_dtype).itemsize
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    residual = 2 * hidden * computed
    mlp = neurons * (2 * computed + stored)
    scores = 2 * heads * spec.positions * computed if eager else 0
    return spec.positions * (residual + max(mlp, scores))


def require(spec: RunSpec, one_sequence: int, free: int) -> None:
    """Raise InputError where `free` bytes are too few for a pass, with the number that would do."""
    needed = spec.pass_sequences * one_sequence
    if needed <= free:
        return
    divisors = [n for n in range(1, spec.sequences + 1) if spec.sequences % n == 0]
    fitting = [n for n in divisors if n * one_sequence <= free]
    raise InputError(
        f"the device's memory is too small {_pass(spec)}: beside the weights it takes "
        f"{needed / 1e9:.2f} GB at least, and {free / 1e9:.2f} GB are free; "
        + (f"use --sequences-per-pass {max(fitting)}" if fitting else "lower --positions")
    )


@contextmanager
def translate_out_of_memory_of_pass(spec: RunSpec) -> Iterator[None]:
    """`translate_out_of_memory` for a pass."""
    one = spec.pass_sequences == 1
    with translate_out_of_memory(
        _pass(spec), f"lower {'--positions' if one else '--sequences-per-pass'}"
    ):
        yield


@contextmanager
def translate_out_of_memory(what: str, advice: str) -> Iterator[None]:
    """Turn a device's refusal of memory into an error for the user."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise InputError(f"the device's memory is too small {what}: {advice}") from None


def _pass(spec: RunSpec) -> str:
    return f"for a pass over {spec.pass_sequences} sequences of {spec.positions} positions"
