"""Where the MLP neurons of a decoder are: one row an architecture, by transformers' names.

In: a `model_type`, or a pattern of the user's own. Out: the module of each layer, which side of it, and
in words what a neuron's value there is. It knows no model and imports nothing heavy.

In a plain MLP a neuron's value is what it is given, before the activation function. In a gated MLP no
single number is given to a neuron: its value is what it writes with, act(gate) * up. That is what is
called its activation where such models are studied (nnsight's `mlp.down_proj.input`, TransformerLens's
`hook_post`); its gate alone is `--hook "model.layers.*.mlp.gate_proj"`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Sequence
from typing import get_args

from neoscope.argument_checks import check_choice
from neoscope.errors import InputError, UsageError
from neoscope.spec import Side, check_pattern


@dataclasses.dataclass(frozen=True)
class HookPoint:
    """What is captured of each layer: one side of one module. `*` in `module` is the layer's number."""

    module: str
    side: Side
    value: str  # of one neuron, in words

    def module_of(self, layer: int) -> str:
        return self.module.replace("*", str(layer))


def _plain(module: str, activation: str = "the activation function") -> HookPoint:
    value = (
        f"what the neuron is given: the output of the MLP's first linear map, before {activation}"
    )
    return HookPoint(module, "output", value)


def _gated(module: str = "model.layers.*.mlp.down_proj") -> HookPoint:
    value = "what the neuron writes with: act(gate) * up, the input of the MLP's last linear map"
    return HookPoint(module, "input", value)


ARCHITECTURES = {
    "gpt_neo": _plain("transformer.h.*.mlp.c_fc", "GELU"),
    "gpt2": _plain("transformer.h.*.mlp.c_fc"),
    "gpt_neox": _plain("gpt_neox.layers.*.mlp.dense_h_to_4h"),
    "llama": _gated(),
    "mistral": _gated(),
    "qwen2": _gated(),
    "qwen3": _gated(),
    "gemma": _gated(),
    "gemma2": _gated(),
    "gemma3_text": _gated(),
}


def hook_point(model_type: str, module: str | None, side: Side | None) -> HookPoint:
    """The hook point of the user's own where a module pattern is given, else the architecture's.

    Raises UsageError for a pattern without exactly one `*` and for a side without a pattern, InputError
    for another side and for an architecture that has no row.
    """
    if side is not None:
        check_choice("hook_side", side, get_args(Side))
    if module is not None:
        check_pattern(module)
        side = side or "output"
        return HookPoint(module, side, f"the {side} of the module {module}")
    if side is not None:
        raise UsageError(f"--hook-side {side} goes with --hook only: drop it")
    if model_type not in ARCHITECTURES:
        raise InputError(
            f"neoscope does not know where the MLP neurons of a {model_type} are: give --hook with the "
            f'name of a module, such as "model.layers.*.mlp.down_proj" (known without: '
            f"{', '.join(ARCHITECTURES)})"
        )
    return ARCHITECTURES[model_type]


def numbers_of(
    modules: Collection[str], point: HookPoint, layers: Sequence[int] | None = None
) -> list[int]:
    """The numbers of the layers that have the hook point, ascending, of a decoder's module names.

    `layers` chooses among them. Raises InputError where no module matches, or a layer is not there.
    """
    pattern = re.compile(re.escape(point.module).replace(r"\*", r"(0|[1-9]\d*)"))
    found = sorted(int(match[1]) for name in modules if (match := pattern.fullmatch(name)))
    if not found:
        patterns = sorted({re.sub(r"\.\d+\.", ".*.", name, count=1) for name in modules})
        near = difflib.get_close_matches(point.module, patterns, n=4, cutoff=0)
        raise InputError(f"no module is called {point.module}; near are {', '.join(near)}")
    missing = sorted(set(layers or ()).difference(found))
    if missing:
        raise InputError(
            f"--layers: {point.module} has no layer {', '.join(map(str, missing))}; it has "
            f"{found[0]} to {found[-1]}"
        )
    return [number for number in found if layers is None or number in layers]
