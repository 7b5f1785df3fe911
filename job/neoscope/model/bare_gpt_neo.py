"""GPT-Neo's weights in modules with transformers' names, and nothing else.

In: a configuration, and safetensors files where the weights are not random. Out: what the fast forward and
hooks need of a model. transformers' own class takes 2.6 s and 200 MB to import, most of it for what a run
has no use for. It does not know how values are computed: there is no forward here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from transformers import GPTNeoConfig
from neoscope.errors import InputError


class BareGPTNeo(torch.nn.Module):
    """A GPT-Neo without its head: the modules of transformers' GPTNeoModel that have parameters. They have no
    values yet, on the `meta` device."""

    base_model_prefix = "transformer"

    def __init__(self, config: GPTNeoConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.wte = _embedding(config.vocab_size, config, dtype)
            self.wpe = _embedding(config.max_position_embeddings, config, dtype)
            self.h = torch.nn.ModuleList(
                _Block(config, kind, dtype) for kind in config.attention_layers
            )
            self.ln_f = _layer_norm(config, dtype)

    @property
    def base_model(self) -> BareGPTNeo:
        """The decoder, which this is."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.wte.weight.device


class _Block(torch.nn.Module):
    def __init__(self, config: GPTNeoConfig, attention_type: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.ln_1 = _layer_norm(config, dtype)
        self.attn = _TypedAttention(config, attention_type, dtype)
        self.ln_2 = _layer_norm(config, dtype)
        self.mlp = _MLP(config, dtype)


class _TypedAttention(torch.nn.Module):
    def __init__(self, config: GPTNeoConfig, attention_type: str, dtype: torch.dtype) -> None:
        super().__init__()
        self.attention_type = attention_type
        self.attention = _Attention(config, dtype)


class _Attention(torch.nn.Module):
    def __init__(self, config: GPTNeoConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        size = config.hidden_size
        self.k_proj = torch.nn.Linear(size, size, bias=False, dtype=dtype)
        self.v_proj = torch.nn.Linear(size, size, bias=False, dtype=dtype)
        self.q_proj = torch.nn.Linear(size, size, bias=False, dtype=dtype)
        self.out_proj = torch.nn.Linear(size, size, dtype=dtype)


class _MLP(torch.nn.Module):
    def __init__(self, config: GPTNeoConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size = config.hidden_size
        neurons = config.intermediate_size or 4 * size
        self.c_fc = torch.nn.Linear(size, neurons, dtype=dtype)
        self.c_proj = torch.nn.Linear(neurons, size, dtype=dtype)


def _embedding(count: int, config: GPTNeoConfig, dtype: torch.dtype) -> torch.nn.Embedding:
    # With a weight given: to draw one, even on `meta`, torch imports its compiler.
    size = config.hidden_size
    return torch.nn.Embedding(count, size, _weight=torch.empty(count, size, dtype=dtype))


def _layer_norm(config: GPTNeoConfig, dtype: torch.dtype) -> torch.nn.LayerNorm:
    return torch.nn.LayerNorm(config.hidden_size, eps=config.layer_norm_epsilon, dtype=dtype)


def allocated(config: GPTNeoConfig, dtype: torch.dtype, device: torch.device) -> BareGPTNeo:
    """The model on the device, its parameters not filled yet."""
    model = BareGPTNeo(config, dtype)
    # Not `to_empty`, for which torch imports its compiler.
    parameters = {
        key: torch.empty(parameter.shape, dtype=dtype, device=device)
        for key, parameter in model.named_parameters()
    }
    model.load_state_dict(parameters, assign=True)
    return model


def read_weights(
    config: GPTNeoConfig, files: Iterable[Path], dtype: torch.dtype, device: torch.device, name: str
) -> BareGPTNeo:
    """The model with the weights of safetensors files, cast and put on the device one by one.

    Files have them with or without the name of the decoder before each, and may have more, such as the
    head. Raises InputError where one is missing or has another shape.
    """
    model = BareGPTNeo(config, dtype)
    expected = {key: parameter.shape for key, parameter in model.named_parameters()}
    found = {
        key: values.to(device, dtype, copy=True)
        for key, values in _tensors(files)
        if key in expected and values.shape == expected[key]
    }
    lacking = sorted(expected.keys() - found)
    if lacking:
        raise InputError(
            f"the weights of {name} are not those of its config.json: {len(lacking)} are missing or of "
            f"another shape, first {model.base_model_prefix}.{lacking[0]}"
        )
    model.load_state_dict(found, assign=True)
    return model


def _tensors(files: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    prefix = f"{BareGPTNeo.base_model_prefix}."
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118, which it is no mapping for
                yield key.removeprefix(prefix), file.get_tensor(key)
