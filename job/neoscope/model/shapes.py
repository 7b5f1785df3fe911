"""What a model's configuration alone decides of a run: how long a sequence may be, which layers there are.

In: a spec. Out: nothing, or the error that the loaded model would give, seconds earlier: torch and
transformers are not imported. It knows the three published GPT-Neo, and reads any other config.json as
plain JSON. What it cannot tell from there it lets pass: the loaded model is asked again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from neoscope import hub
from neoscope.errors import InputError
from neoscope.model.architectures import ARCHITECTURES, hook_point, numbers_of
from neoscope.spec import GPT_NEO_MODELS, KNOWN_NAMES, RunSpec

# The published config.json of each; what is not named is GPTNeoConfig's default (vocabulary 50257,
# window 256, gelu_new).
SHAPES = (
    {"hidden_size": 768, "num_layers": 12, "num_heads": 12, "max_position_embeddings": 2048},
    {"hidden_size": 2048, "num_layers": 24, "num_heads": 16, "max_position_embeddings": 2048},
    {"hidden_size": 2560, "num_layers": 32, "num_heads": 20, "max_position_embeddings": 2048},
)
PUBLISHED_SHAPES = dict(zip(GPT_NEO_MODELS, SHAPES, strict=True))
# Where transformers' attribute_map has another name than num_hidden_layers, max_position_embeddings.
LAYERS = {"gpt_neo": "num_layers", "gpt2": "n_layer"}
POSITIONS = {"gpt2": "n_positions"}
# On a CPU everything of GPT-Neo but `c_fc` goes through the batch by so many sequences: what one step
# leaves is still in the cache for the next, and allocations under glibc's 32 MB are not mapped afresh
# (8 sequences, or the whole batch at once: 4 % slower; 2: 1 %). A plan reckons with it too.
CPU_SEQUENCES = 4
# The modules of transformers' GPTNeoModel, under transformer and under transformer.h.*
GPT_NEO_MODULES = ("wte", "wpe", "drop", "h", "ln_f")
GPT_NEO_ATTENTION = ("attn_dropout", "resid_dropout", "k_proj", "v_proj", "q_proj", "out_proj")
GPT_NEO_BLOCK = (
    *("ln_1", "attn", "attn.attention"),
    *(f"attn.attention.{name}" for name in GPT_NEO_ATTENTION),
    *("ln_2", "mlp", "mlp.c_fc", "mlp.c_proj", "mlp.act", "mlp.dropout"),
)


def check_shape(spec: RunSpec) -> None:
    """Refuse positions, layers and a hook that the spec's model does not have.

    Raises InputError, and for a name that has to be looked up on the Hub also UnavailableError.
    """
    config = _config(spec)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in ARCHITECTURES:
        return
    longest = config.get(POSITIONS.get(model_type, "max_position_embeddings"))
    if isinstance(longest, int):
        check_positions(spec.positions, longest)
    layers = config.get(LAYERS.get(model_type, "num_hidden_layers"))
    point = hook_point(model_type, spec.hook, spec.hook_side)
    if not isinstance(layers, int):
        return
    if model_type == "gpt_neo":
        numbers_of(gpt_neo_modules(layers), point, spec.layers)
    elif spec.hook is None:
        numbers_of([point.module_of(number) for number in range(layers)], point, spec.layers)


def check_positions(positions: int, longest: int) -> None:
    """Raise InputError where the model has fewer positions than a sequence."""
    if positions > longest:
        raise InputError(
            f"--positions {positions} is longer than the model's {longest} positions: lower it"
        )


def gpt_neo_modules(layers: int) -> list[str]:
    """The names of all modules of a GPT-Neo of so many layers, as in the model with its head."""
    blocks = [f"h.{number}" for number in range(layers)]
    inner = [f"{block}.{name}" for block in blocks for name in GPT_NEO_BLOCK]
    return [f"transformer.{name}" for name in (*GPT_NEO_MODULES, *blocks, *inner)]


def _config(spec: RunSpec) -> dict[str, Any]:
    """The model's config.json, as far as it can be read; what is wrong with it, its loading says."""
    name, revision = spec.model, spec.model_revision
    known = spec.weights == "random" or not (revision or Path(name).is_dir())
    if known and name in PUBLISHED_SHAPES:
        return {"model_type": "gpt_neo", **PUBLISHED_SHAPES[name]}
    what = f"the model {name}"
    repository = hub.find(what, name, revision, known=KNOWN_NAMES)
    path = hub.file(what, name, "config.json", repository)
    try:
        config = json.loads(path.read_bytes()) if path else {}
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}
