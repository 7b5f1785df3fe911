"""A model's shape as far as a plan needs it, from its configuration alone.

In: a spec. Out: layers, sizes and bytes. The three published GPT-Neo are reckoned from their sizes, without
torch and without the Hub; any other decoder is built by transformers on no memory, and nothing is computed.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from neoscope.errors import InputError
from neoscope.extra import require_run
from neoscope.model.architectures import ARCHITECTURES, HookPoint, hook_point, numbers_of
from neoscope.model.shapes import PUBLISHED_SHAPES, gpt_neo_modules
from neoscope.spec import LAYER, RunSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

VOCABULARY = 50_257  # of the published GPT-Neo
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model as far as a plan needs it: the numbers of the captured layers, sizes, the elements of
    the matrices of the layers up to the last captured, the bytes of all weights and buffers, and whether
    the fast pass is our own."""

    layers: list[int]
    neurons: int
    hidden: int
    heads: int
    matrices: int
    weight_bytes: int
    ours: bool
    vocabulary: int
    inputs: (
        int | None
    )  # of the linear maps whose outputs are captured, as `hooks.linear_maps` has them


def model_shape(spec: RunSpec) -> Shape:
    """The shape of the spec's model. Raises InputError for a model that cannot be found,
    UnavailableError where only the Hub has it, UsageError where torch is needed and not installed."""
    if spec.model in PUBLISHED_SHAPES:
        point = hook_point("gpt_neo", spec.hook, spec.hook_side)
        neurons = _gpt_neo_neurons(point, PUBLISHED_SHAPES[spec.model]["hidden_size"])
        if neurons:
            return _published(spec, point, neurons)
    require_run(f"a plan of {spec.model}" + (f" at {spec.hook}" if spec.hook else ""))
    return _built(spec)


def _gpt_neo_neurons(point: HookPoint, hidden: int) -> int | None:
    """Values of a token on the hook's side of a linear map of GPT-Neo's MLP, None of other modules."""
    inner = "transformer.h.*.mlp.c_fc", "output"
    outer = "transformer.h.*.mlp.c_proj", "input"
    return 4 * hidden if (point.module, point.side) in (inner, outer) else None


def _published(spec: RunSpec, point: HookPoint, neurons: int) -> Shape:
    """As transformers' GPTNeoModel has it: biases but in query, key and value, and in each layer a
    causal mask, a byte a pair of positions."""
    sizes = PUBLISHED_SHAPES[spec.model]
    hidden, count, positions = (
        sizes["hidden_size"],
        sizes["num_layers"],
        sizes["max_position_embeddings"],
    )
    layers = numbers_of(gpt_neo_modules(count), point, spec.layers)
    matrices = 12 * hidden**2  # of a layer: four of attention, two of the MLP four times as wide
    vectors = 2 * 2 * hidden + hidden + 4 * hidden + hidden  # norms, and biases of out_proj and MLP
    parameters = (VOCABULARY + positions) * hidden + count * (matrices + vectors) + 2 * hidden
    return Shape(
        layers,
        neurons,
        hidden,
        sizes["num_heads"],
        matrices * (layers[-1] + 1),
        BYTES[spec.precision] * parameters + count * positions**2,
        point == ARCHITECTURES["gpt_neo"],
        VOCABULARY,
        hidden if point.side == "output" else None,
    )


def _built(spec: RunSpec) -> Shape:
    """From transformers' own model, on a device that holds no values."""
    from neoscope.model.hooks import hook_points, layer_numbers, linear_maps
    from neoscope.model.loading import empty_model, model_bytes

    config = _config(spec)
    model = empty_model(config, spec.precision)
    point = hook_point(config.model_type, spec.hook, spec.hook_side)
    layers = layer_numbers(model, point, spec.layers)
    last = hook_points(model, point, spec.layers)[f"{LAYER}{layers[-1]}"]
    numbered = [(re.search(r"\.(\d+)\.", name), p) for name, p in model.named_parameters()]
    text = config.get_text_config()
    return Shape(
        layers,
        _width(last, point),
        text.hidden_size,
        text.num_attention_heads,
        sum(p.numel() for at, p in numbered if p.dim() > 1 and at and int(at[1]) <= layers[-1]),
        model_bytes(model),
        config.model_type == "gpt_neo" and point == ARCHITECTURES["gpt_neo"],
        text.vocab_size,
        next((each.in_features for each in linear_maps(model, point, spec.layers).values()), None),
    )


def _config(spec: RunSpec) -> PreTrainedConfig:
    if spec.model in PUBLISHED_SHAPES:
        from neoscope.model.random_weights import published_config

        return published_config(spec.model)
    from neoscope.model.loading import find_model

    return find_model(spec.model, revision=spec.model_revision, weights=spec.weights).config


def _width(module: torch.nn.Module, point: HookPoint) -> int:
    """Values of one token on the hook's side of a module, from its weights: nothing is run."""
    import torch
    from transformers.pytorch_utils import Conv1D

    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() > 2:
        raise InputError(
            f"what {point.module} gives is known only once it runs: there is no plan of it"
        )
    if weight.dim() == 1:
        return weight.shape[0]
    out, into = reversed(weight.shape) if isinstance(module, Conv1D) else weight.shape
    return int(out if point.side == "output" else into)
