"""Weights and tokenizer of a decoder, from the Hub, a local folder, or seeded random numbers.

In: a name. Out: transformers' own model, without its head, or for the fast forward of GPT-Neo bare modules,
with what the name resolved to. transformers' models are imported only where one is made. It does not know
what is run through them.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import xxhash
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PreTrainedConfig
from transformers.utils import logging

if TYPE_CHECKING:
    from transformers import PreTrainedModel

from neoscope import hub
from neoscope.argument_checks import check_choice, check_number
from neoscope.errors import InputError, NeoscopeError, UnavailableError
from neoscope.hub import loading
from neoscope.model import memory
from neoscope.model.bare_gpt_neo import BareGPTNeo, allocated, read_weights
from neoscope.model.files import fetch_weights, find_files
from neoscope.model.random_weights import fill, published_config
from neoscope.model.shapes import PUBLISHED_SHAPES
from neoscope.spec import (
    DEVICES,
    GPT_NEO_125M,
    NO_MPS,
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

    model: PreTrainedModel | BareGPTNeo
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
    model: PreTrainedModel = load(found, seed=seed, precision=precision, device=where).model
    return model


def gpu_count() -> int:
    """The GPUs that torch finds here."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def pick_device(device: Any) -> torch.device:
    """The device for `auto`, `cpu`, `cuda` or `cuda:N`; `auto` is the first GPU where there is one.

    Raises InputError for another word, and where there is no such GPU.
    """
    gpus = gpu_count()
    word, _, number = str(device).partition(":")
    if word == "mps":
        raise InputError(f"device={device!r}: {NO_MPS}")
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
    repository = find_files(name, revision=revision, weights=weights)
    if weights == "random" and name in PUBLISHED_SHAPES:
        return FoundModel(name, published_config(name), repository, random=True)
    config = _load_config(name, repository)
    if weights == "random" and config.model_type != "gpt_neo":
        raise InputError(
            f"--weights random knows the initial distribution of GPT-Neo only, and {name} is a "
            f"{config.model_type}: give a folder with weights"
        )
    return FoundModel(name, config, repository, random=weights == "random")


def load(
    found: FoundModel,
    *,
    seed: int,
    precision: str,
    device: torch.device,
    eager: bool = False,
    bare: bool = False,
) -> LoadedModel:
    """The model in eval mode on the device.

    Attention is transformers' choice, which is fused wherever it has that for the architecture,
    unless `eager` is set. `bare` gives a GPT-Neo for the fast forward the modules that this needs, with the
    same weights, where they are random or in safetensors files.
    """
    dtype: torch.dtype = getattr(torch, precision)
    with memory.translate_out_of_memory(lambda: _no_room(found, precision, device)):
        if found.random:
            model = _unfilled_model(found.config, dtype, device, bare)
            fill(model, found.config.initializer_range, seed)
        else:
            files = fetch_weights(found.name, found.repository)
            quantised = getattr(found.config, "quantization_config", None) is not None
            plain = bool(files) and files[0].suffix == ".safetensors" and not quantised
            model = (
                _bare_model(found, files, dtype, device)
                if bare and plain
                else _pretrained_model(found.name, found.repository, dtype, eager, device)
            )
    model = model.eval().requires_grad_(False)
    return LoadedModel(model, found.repository.commit, weights_digest(model))


def empty_model(config: PreTrainedConfig, precision: str) -> PreTrainedModel:
    """The model of a configuration, without its head, that takes no memory and computes nothing."""
    from transformers import AutoModel

    with torch.device("meta"):
        model: PreTrainedModel = AutoModel.from_config(config, dtype=getattr(torch, precision))
    return model.eval()


def model_bytes(model: torch.nn.Module) -> int:
    """Of all weights and buffers."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _no_room(found: FoundModel, precision: str, device: torch.device) -> NeoscopeError:
    """Why the weights do not fit: the GPU is too small, or others are on it."""
    needed = model_bytes(empty_model(found.config, precision))
    total = torch.cuda.get_device_properties(device).total_memory
    sizes = f"of {found.name}: {needed / 1e9:.2f} GB of the device's {total / 1e9:.2f} GB"
    if needed > total:
        return InputError(
            f"the device's memory is too small for the weights {sizes}; use --precision bfloat16 or "
            "--device cpu"
        )
    return UnavailableError(
        f"the device ran out of memory for the weights {sizes}: rerun the same command when nothing "
        "else uses the device"
    )


def weights_digest(model: torch.nn.Module) -> str:
    """xxh3-128 over name, dtype, shape and bytes of every parameter of the decoder, by name."""
    digest = xxhash.xxh3_128()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_config(name: str, repository: hub.Repository) -> PreTrainedConfig:
    with loading(f"the model {name}", repository):
        config = AutoConfig.from_pretrained(
            name,
            revision=repository.commit or "main",
            local_files_only=True,
            trust_remote_code=False,
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise InputError(
            f"the model {name} is a {config.model_type}, which transformers has no decoder of: give a "
            "model that predicts the next token"
        )
    return config


def _unfilled_model(
    config: PreTrainedConfig, dtype: torch.dtype, device: torch.device, bare: bool
) -> PreTrainedModel | BareGPTNeo:
    """The model on the device, with memory for its parameters and no values in it."""
    if bare:
        return allocated(config, dtype, device)
    from transformers import AutoModel, initialization

    with initialization.no_init_weights(), device:
        model: PreTrainedModel = AutoModel.from_config(config, dtype=dtype)
    return model


def _bare_model(
    found: FoundModel, files: list[Path], dtype: torch.dtype, device: torch.device
) -> BareGPTNeo:
    with loading(f"the model {found.name}", found.repository):
        return read_weights(found.config, files, dtype, device, found.name)


def _pretrained_model(
    name: str, repository: hub.Repository, dtype: torch.dtype, eager: bool, device: torch.device
) -> PreTrainedModel:
    """The weights as they are in the files, cast and put on the device one by one: none is ever twice
    in memory, and a GPU's are never all in the host's."""
    from transformers import AutoModel

    # Else transformers has a service of the Hub convert weights that are no safetensors yet, in public.
    os.environ["DISABLE_SAFETENSORS_CONVERSION"] = "1"
    with loading(f"the model {name}", repository):
        model, report = AutoModel.from_pretrained(
            name,
            revision=repository.commit or "main",
            dtype=dtype,
            device_map={"": device},  # for which transformers needs accelerate
            attn_implementation="eager" if eager else None,
            local_files_only=True,
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
