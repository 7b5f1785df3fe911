"""Weights and tokenizer of a decoder, from the Hub, a local folder, or seeded random numbers.

In: a name. Out: transformers' own model, without its head, and tokenizer, with what the name resolved
to. It does not know what is run through them.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
import xxhash
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModel,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from neoscope import hub
from neoscope.argument_checks import check_choice, check_number
from neoscope.errors import InputError
from neoscope.hub import loading
from neoscope.model import memory
from neoscope.model.random_weights import published_config, random_model
from neoscope.model.shapes import PUBLISHED_SHAPES
from neoscope.spec import (
    DEVICES,
    GPT_NEO_125M,
    KNOWN_NAMES,
    PRECISIONS,
    Precision,
    Weights,
    check_source,
    full_name,
)


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """A model's full name, configuration, where its files are, and whether its weights are random."""

    name: str
    config: PreTrainedConfig
    repository: hub.Repository
    random: bool


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its revision (a commit of the Hub; None where there is none) and the
    xxh3-128 digest of its weights."""

    model: PreTrainedModel
    revision: str | None
    digest: str


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


def gpu_count() -> int:
    """The GPUs that torch finds here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def pick_device(device: Any) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU where there is one.

    Raises InputError for another word, and where there is no such GPU.
    """
    gpus = gpu_count()
    word, _, number = str(device).partition(":")
    if device not in DEVICES and not (word == "cuda" and number.isdecimal()):
        each = "".join(f", 'cuda:{gpu}'" for gpu in range(gpus))
        raise InputError(f"device={device!r}: give one of 'auto', 'cpu', 'cuda'{each}")
    if word == "cpu" or (word == "auto" and not gpus):
        return torch.device("cpu")
    if not gpus:
        raise InputError(f"--device {device}: torch finds no GPU here; use --device cpu or auto")
    index = int(number or 0)
    if index >= gpus:
        raise InputError(
            f"--device {device}: torch finds {gpus} here, from 0; give one of them with --device cuda:N"
        )
    return torch.device("cuda", index)


def find_model(name: str, *, revision: str | None, weights: str) -> FoundModel:
    """What a name stands for, by its configuration alone: no weights are fetched."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = full_name(name)
    if weights == "random" and name in PUBLISHED_SHAPES:
        return FoundModel(name, published_config(name), hub.Repository(), random=True)
    repository = hub.find(f"the model {name}", name, revision, known=KNOWN_NAMES)
    config = _load_config(name, repository)
    if weights == "random" and config.model_type != "gpt_neo":
        raise InputError(
            f"--weights random knows the initial distribution of GPT-Neo only, and {name} is a "
            f"{config.model_type}: give a folder with weights"
        )
    return FoundModel(name, config, repository, random=weights == "random")


def load(
    found: FoundModel, *, seed: int, precision: str, device: torch.device, eager: bool = False
) -> LoadedModel:
    """The model in eval mode on the device.

    Attention is transformers' choice, which is fused wherever it has that for the architecture,
    unless `eager` is set.
    """
    dtype: torch.dtype = getattr(torch, precision)
    what = f"for the weights of {found.name}"
    with memory.translate_out_of_memory(what, "use --precision bfloat16 or --device cpu"):
        if found.random:
            model = random_model(found.config, seed, dtype, device)
        else:
            model = _pretrained_model(found.name, found.repository, dtype, eager, device)
    model = model.eval().requires_grad_(False)
    return LoadedModel(model, found.repository.commit, weights_digest(model))


def weights_digest(model: PreTrainedModel) -> str:
    """xxh3-128 over name, dtype, shape and bytes of every parameter of the decoder, by name."""
    digest = xxhash.xxh3_128()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _load_config(name: str, repository: hub.Repository) -> PreTrainedConfig:
    with loading(f"the model {name}", repository):
        config = AutoConfig.from_pretrained(
            name,
            revision=repository.commit or "main",
            local_files_only=repository.offline,
            trust_remote_code=False,
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"the model {name} is a {config.model_type}, which transformers has no decoder of: give a "
            "model that predicts the next token"
        )
    return config


def _pretrained_model(
    name: str, repository: hub.Repository, dtype: torch.dtype, eager: bool, device: torch.device
) -> PreTrainedModel:
    """The weights as they are in the files, cast and put on the device one by one: none is ever twice
    in memory, and a GPU's are never all in the host's."""
    # Else transformers has a service of the Hub convert weights that are no safetensors yet, in public.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    with loading(f"the model {name}", repository):
        model, report = AutoModel.from_pretrained(
            name,
            revision=repository.commit or "main",
            dtype=dtype,
            device_map={"": device},  # for which transformers needs accelerate
            attn_implementation="eager" if eager else None,
            local_files_only=repository.offline,
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
