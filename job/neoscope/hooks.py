"""One forward pass with a hook on every layer's MLP neurons.

In: a GPT-Neo of transformers and token ids. Out: each layer's values as it appears, given to
consumers from inside the hook, or all of them as a dictionary. It does not know what consumers do.

The hook point of layer i is `transformer.h[i].mlp.c_fc`: its output is what the MLP's neurons are
given, before GELU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from neoscope import gpt_neo
from neoscope.errors import InputError

if TYPE_CHECKING:
    from transformers import GPTNeoForCausalLM

# Takes a layer's name and its values [sequence, position, neuron] on the model's device. The values
# are the consumer's only until it returns: the forward pass may write over them after that.
Consumer = Callable[[str, torch.Tensor], None]


def hook_points(model: GPTNeoForCausalLM) -> dict[str, torch.nn.Module]:
    """The module whose output is captured, by name: `MLP_0` is `transformer.h[0].mlp.c_fc`."""
    return {f"MLP_{layer}": block.mlp.c_fc for layer, block in enumerate(model.transformer.h)}


def capture(
    model: GPTNeoForCausalLM, token_ids: Any, *, forward: str = "fast"
) -> dict[str, torch.Tensor]:
    """What every MLP neuron of every layer is given, before GELU.

    `token_ids` are integers [sequence, position]. The result is `{"MLP_0": [sequence, position,
    neuron], ...}` on the model's device, in the model's dtype: for 16 x 512 tokens of GPT-Neo 125M
    twelve arrays [16, 512, 3072], 1.2 GB in float32. `forward` is `fast`, ours, or `reference`,
    transformers' own.
    """
    layers: dict[str, torch.Tensor] = {}

    def keep(name: str, values: torch.Tensor) -> None:
        layers[name] = values.clone()

    stream(model, token_ids, [keep], forward=forward)
    return layers


def stream(
    model: GPTNeoForCausalLM, token_ids: Any, consumers: Sequence[Consumer], *, forward: str
) -> None:
    """Run the model once and give each layer to every consumer, in layer order, as it appears.

    Nothing after the last hook point is computed. What a consumer raises ends the pass.
    """
    ids = _checked(model, token_ids)
    hooks = []

    def hook_for(name: str) -> Callable[..., None]:
        def hook(_module: torch.nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            for consume in consumers:
                consume(name, output)

        return hook

    for name, module in hook_points(model).items():
        hooks.append(module.register_forward_hook(hook_for(name)))
    try:
        with torch.no_grad():
            if forward == "fast":
                gpt_neo.forward(model, ids)
            else:
                _reference(model, ids)
    finally:
        for hook in hooks:
            hook.remove()


class _Finished(Exception):
    """The last hook point has been reached: nothing after it is wanted."""


def _reference(model: GPTNeoForCausalLM, ids: torch.Tensor) -> None:
    """transformers' own forward pass, up to the last hook point."""

    def stop(*_: Any) -> None:
        raise _Finished

    last = model.transformer.h[-1].mlp.c_fc.register_forward_hook(stop)
    try:
        model.transformer(ids, use_cache=False)
    except _Finished:
        pass
    finally:
        last.remove()


def _checked(model: GPTNeoForCausalLM, token_ids: npt.ArrayLike) -> torch.Tensor:
    """Token ids as the model takes them, or an error that says what does not fit."""
    try:
        ids = (
            token_ids
            if isinstance(token_ids, torch.Tensor)
            else torch.tensor(np.asarray(token_ids))
        )
    except (TypeError, ValueError) as error:  # ragged lists, words
        raise InputError(f"token ids must be integers [sequence, position]: {error}") from None
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.dim() != 2 or ids.numel() == 0 or not whole:
        raise InputError(
            f"token ids must be integers [sequence, position], not {ids.dtype} {list(ids.shape)}"
        )
    ids = ids.to(torch.int64)  # torch finds no extremes of uint16 and uint32
    config = model.config
    if ids.shape[1] > config.max_position_embeddings:
        raise InputError(
            f"sequences of {ids.shape[1]} positions are longer than the model's "
            f"{config.max_position_embeddings}: lower --positions"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= config.vocab_size:
        raise InputError(
            f"token id {low if low < 0 else high} is not in the model's vocabulary of "
            f"{config.vocab_size}: the tokenizer does not fit the model"
        )
    return ids.to(model.device)
